"""YAML 1.2 as plain values that remember their lines.

`1e-3` is a number, `no` a string, `010` ten; a repeated key is an error; `<<` merges. Problems are collected, not
raised one by one: a `Problem` has the file, the line, what is wrong and what would be right.
"""

import io
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Path = tuple[str | int, ...]
"""Keys and indices that lead from the top of a document to a value."""

_MERGE = "<<"
"""The key that lays a mapping under another, as YAML 1.1 has it."""
_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong with a file."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


_FEW = 3
"""Other places of a problem that are named, and up to which each is said on a line of its own."""


class SweepError(ValueError):
    """Everything wrong with a sweep, one line each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(set(problems))
        said: dict[tuple[str, str], list[Problem]] = {}
        for problem in self.problems:
            said.setdefault((problem.file, re.sub(r"\.\d+\b", "", problem.message)), []).append(problem)
        super().__init__("\n".join(map(_together, said.values())))


def _together(alike: Sequence[Problem]) -> str:
    """The same problem of several lines, said once and counted."""
    first, *others = alike
    if len(others) < _FEW:
        return "\n".join(map(str, alike))
    lines = ", ".join(str(problem.line) for problem in others[:_FEW])
    more = f" and {len(others) - _FEW} more" if len(others) > _FEW else ""
    return f"{first} ({len(alike)} times: also at lines {lines}{more})"


@dataclass(frozen=True)
class Document:
    """A value, and the file and line of every key and item of it."""

    file: str
    value: Any
    places: Mapping[Path, tuple[str, int]]

    def place(self, path: Sequence[str | int]) -> tuple[str, int]:
        """File and line of the value at `path`, or of its nearest ancestor that was written down."""
        path = tuple(path)
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, (self.file, 1))

    def problem(self, path: Sequence[str | int], message: str) -> Problem:
        return Problem(*self.place(path), message)

    def over(self, base: "Document", prepend: Collection[str] = ()) -> "Document":
        """This document laid over another: mappings merge key by key, anything else replaces what it covers.

        Lists at the top-level keys `prepend` are put before those of the base instead of replacing them.
        """
        places = dict(base.places)

        def lay(above: Any, below: Any, path: Path) -> Any:
            if isinstance(above, dict) and isinstance(below, dict):
                places[path] = self.places.get(path, places.get(path, ("", 0)))
                return below | {key: lay(value, below.get(key), (*path, key)) for key, value in above.items()}
            moved = {}
            together = isinstance(above, list) and isinstance(below, list) and len(path) == 1 and path[0] in prepend
            if together:
                moved = {_shifted(place, len(above)): where for place, where in places.items() if place[:1] == path}
            for place in [place for place in places if place[: len(path)] == path]:
                del places[place]
            places.update(moved)
            places.update({place: where for place, where in self.places.items() if place[: len(path)] == path})
            return above + below if together else above

        return Document(self.file, lay(self.value, base.value, ()), places)


def parse(text: str, file: str) -> Document:
    """Parse one YAML document. SweepError with every repeated key, or with where the syntax breaks."""
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 2)
    try:
        node = yaml.compose(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        began = error.context_mark.line + 1 if error.context_mark and error.context else None
        within = (
            f"{error.context} (from line {began} on)" if began and mark and began != mark.line + 1 else error.context
        )
        what = " ".join(part for part in (within, error.problem) if part)
        raise SweepError([Problem(file, mark.line + 1 if mark else 1, f"not valid YAML: {what}")]) from None
    except (YAMLError, ValueError) as error:
        raise SweepError([Problem(file, 1, f"not valid YAML: {str(error).splitlines()[0]}")]) from None
    reader = _Reader(file)
    value = {} if node is None else reader.read(node, ())
    if reader.problems:
        raise SweepError(reader.problems)
    return Document(file, value, reader.places)


def _shifted(path: Path, by: int) -> Path:
    return path if len(path) < 2 or isinstance(path[1], str) else (path[0], path[1] + by, *path[2:])


class _Reader:
    """Turns nodes into plain values, noting lines and problems."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.places: dict[Path, tuple[str, int]] = {}
        self.problems: list[Problem] = []
        self._open: set[int] = set()

    def read(self, node: Node, path: Path) -> Any:
        self.places.setdefault(path, (self.file, node.start_mark.line + 1))
        if id(node) in self._open:
            self._complain(node, "an alias may not contain itself")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, path)
            if isinstance(node, SequenceNode):
                return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
            assert isinstance(node, ScalarNode)
            return self._scalar(node)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self._complain(key_node, "a key must be a word")
                continue
            key = str(key_node.value)
            if key == _MERGE:
                merged.append(value_node)
                continue
            if key in result:
                self._complain(key_node, f"`{key}` is given twice, first in line {self.places[(*path, key)][1]}")
                continue
            self.places[(*path, key)] = (self.file, key_node.start_mark.line + 1)
            result[key] = self.read(value_node, (*path, key))
        for value_node in merged:
            self._merge(value_node, path, result)
        return result

    def _merge(self, node: Node, path: Path, result: dict[str, Any]) -> None:
        """Add the keys of other mappings that `result` lacks; of several, the first that has a key gives it."""
        for source in node.value if isinstance(node, SequenceNode) else [node]:
            if not isinstance(source, MappingNode):
                self._complain(source, f"`{_MERGE}` takes a mapping, or a list of them")
                continue
            reader = _Reader(self.file)
            reader._open = self._open
            found = reader.read(source, path)
            self.problems += reader.problems
            for key, value in (found or {}).items():
                if key not in result:
                    result[key] = value
                    within = (*path, key)
                    self.places |= {at: where for at, where in reader.places.items() if at[: len(within)] == within}

    def _scalar(self, node: ScalarNode) -> Any:
        text, kind = str(node.value), str(node.tag).rpartition(":")[2]
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return _BOOLEANS[text.lower()]
            if kind == "int":
                return _integer(text)
            if kind == "float":
                return _finite(text)
            if kind in ("str", "timestamp", "value"):
                return text
        except (KeyError, ValueError):
            self._complain(node, f"`{text}` is not a finite number")
            return text
        self._complain(node, f"the tag {node.tag} has no meaning here")
        return text

    def _complain(self, node: Node, message: str) -> None:
        self.problems.append(Problem(self.file, node.start_mark.line + 1, message))


def _integer(text: str) -> int:
    digits = text.replace("_", "").lower()
    return int(digits, 0) if digits.lstrip("+-").startswith(("0x", "0o", "0b")) else int(digits)


def _finite(text: str) -> float:
    value = float(text.replace("_", ""))
    if not math.isfinite(value):
        raise ValueError(text)
    return value
