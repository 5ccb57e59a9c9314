"""A sweep as an object: found by path or by the name of a shipped one, laid over what it extends, and checked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sweeps.language import BUDGETS, CORPUS, SweepFile, validate
from sweeps.located import Document, Problem, SweepError, parse
from sweeps.rates import RateByLaw
from xlstm.data.locations import located
from xlstm.quantities import nearest
from xlstm.run.data import MIXTURE

if TYPE_CHECKING:
    from sweeps.expand import SweepRun

SHIPPED = Path(__file__).parent
_STACKED = ("rules", "resources")
"""Lists in which what extends comes before what is extended, since the first match wins."""


@dataclass(frozen=True)
class Sweep:
    """A valid sweep file, with the places of its keys."""

    file: SweepFile
    document: Document
    rate_by_law: RateByLaw | None = field(default=None, compare=False)
    """Who knows the laws that its learning rates are left to; whoever plans it says."""

    @classmethod
    def load(cls, source: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a sweep by path or shipped name; `overrides` are `key.path=value` with YAML values.

        SweepError names every problem with file and line.
        """
        return cls._under(_read(find(source), ()), overrides)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], overrides: Sequence[str] = ()) -> Self:
        """The sweep of a mapping as a sweep file holds it; paths in it are relative to the current folder.

        SweepError names every problem, with lines as the mapping is written as JSON.
        """
        text = json.dumps(value, indent=2)
        return cls._under(_laid_over(parse(text, "the dictionary"), Path.cwd() / "the dictionary", ()), overrides)

    @classmethod
    def _under(cls, document: Document, overrides: Sequence[str]) -> Self:
        for override in _joined(overrides):
            document = override.over(_without_corpus(document) if _states_corpus(override) else document)
        return cls(validate(document), document)

    @property
    def name(self) -> str:
        return self.file.name

    @cached_property
    def runs(self) -> "list[SweepRun]":
        """Every run of the sweep, in the order written. SweepError names every problem with file and line."""
        from sweeps.expand import expand

        return expand(self.file, self.document, self.rate_by_law)

    def dump(self) -> str:
        """The sweep with everything it extends, as JSON (which is YAML): loads into the same runs."""
        return json.dumps(self.document.value, indent=2) + "\n"


def find(source: str | Path) -> Path:
    """The file of a sweep given by path or by the name of a shipped one. SweepError where there is none."""
    path = Path(source)
    if path.suffix in (".yaml", ".yml", ".json") or len(path.parts) > 1 or path.exists():
        if path.is_file():
            return path
        wrong = "a folder, and not a sweep's file" if path.is_dir() else "no such file"
        named = "" if path.suffix else "; a sweep is a .yaml file, or the name of a shipped one"
        raise SweepError([Problem(str(source), 0, wrong + named)])
    shipped = {file.stem: file for file in SHIPPED.glob("*.yaml")}
    if str(source) in shipped:
        return shipped[str(source)]
    raise SweepError([Problem(str(source), 0, f"neither a file nor a shipped sweep; {nearest(str(source), shipped)}")])


def _read(path: Path, extended_by: tuple[Path, ...]) -> Document:
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise SweepError([Problem(str(path), 1, f"not UTF-8 text: {error.reason} at byte {error.start}")]) from None
    except OSError as error:
        raise SweepError([Problem(str(path), 0, error.strerror or str(error))]) from None
    return _laid_over(parse(text, str(path)), path, extended_by)


def _laid_over(document: Document, path: Path, extended_by: tuple[Path, ...]) -> Document:
    """A document laid over what it extends, its paths relative to the folder of `path`."""
    if not isinstance(document.value, dict):
        return document
    # Keys `x-…` at its top hold what the others refer to.
    kept = {key: value for key, value in document.value.items() if not key.startswith("x-")}
    document = _with_located_corpora(Document(document.file, kept, document.places), path.parent)
    base = document.value.get("extends")
    if not isinstance(base, str):
        return document
    try:
        base = located(base)
        beside = path.parent / base
        base_path = beside if beside.is_file() else find(base)
    except (SweepError, ValueError) as error:
        what = error.problems[0].message if isinstance(error, SweepError) else str(error)
        raise SweepError([document.problem(("extends",), f"`extends: {base}`: {what}")]) from None
    here = path.resolve()
    if base_path.resolve() in (*extended_by, here):
        raise SweepError([document.problem(("extends",), f"`{base}` extends itself")])
    return _over(document, _read(base_path, (*extended_by, here)))


def _over(document: Document, base: Document) -> Document:
    """Lay a sweep over another. A budget it states replaces whichever kind of budget the base had."""
    value = document.value
    stated = [value[part] for part in ("grid", "zip") if isinstance(value.get(part), dict)]
    if isinstance(base.value, dict) and any(budget in axes for axes in stated for budget in BUDGETS):
        inherited = {
            key: {axis: values for axis, values in part.items() if axis not in BUDGETS}
            if key in ("grid", "zip") and isinstance(part, dict)
            else part
            for key, part in base.value.items()
        }
        base = Document(base.file, inherited, base.places)
    if _states_corpus(document):
        base = _without_corpus(base)
    return document.over(base, prepend=_STACKED)


def _data_of(document: Document) -> dict[str, Any]:
    """What a document says of the data; empty where that is no mapping."""
    data = document.value.get("data") if isinstance(document.value, dict) else None
    return data if isinstance(data, dict) else {}


def _states_corpus(document: Document) -> bool:
    return not _data_of(document).keys().isdisjoint(("corpus", "mixture"))


def _without_corpus(document: Document) -> Document:
    """A document without its corpus and what belongs to it: another is laid over it."""
    data = _data_of(document)
    if not data:
        return document
    others = {key: value for key, value in data.items() if key not in CORPUS}
    return Document(document.file, document.value | {"data": others}, document.places)


def _is_about_corpus(value: dict[str, Any]) -> bool:
    data = value.get("data")
    return len(value) == 1 and isinstance(data, dict) and data.keys() <= set(CORPUS)


def _joined(overrides: Sequence[str]) -> list[Document]:
    """Overrides in their order, those of the corpus as one: they name it together."""
    documents = [_override(text) for text in overrides]
    about = [one for one in documents if _is_about_corpus(one.value)]
    if len(about) < 2:
        return documents
    first, *others = about
    for other in others:
        first = other.over(first)
    return [first, *(one for one in documents if one not in about)]


def _override(text: str) -> Document:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SweepError([Problem(f"--set {text}", 0, "write key.path=value, such as train.learning_rate=1e-3")])
    place = (f"--set {text}", 0)
    content = parse(value, place[0]).value if value.strip() else ""
    path = tuple(key.strip().split("."))
    for part in reversed(path):
        content = {part: content}
    document = Document(place[0], content, {path[:length]: place for length in range(len(path) + 1)})
    return _with_located_corpora(document, Path.cwd())


def _with_located_corpora(document: Document, folder: Path) -> Document:
    """Spell out `corpus: text:PATH`, and make paths independent of where the sweep is read from. Changes the value."""
    value = document.value
    rules = value.get("rules")
    rules = rules if isinstance(rules, list) else []
    places = dict(document.places)
    evaluations = value.get("evaluations")
    measured = evaluations if isinstance(evaluations, dict) else {}
    sections: list[tuple[tuple[str | int, ...], Any]] = [(("data",), value.get("data"))]
    sections += [
        (("rules", index, "set"), rule.get("set")) for index, rule in enumerate(rules) if isinstance(rule, dict)
    ]
    sections += [(("evaluations", name), entry) for name, entry in measured.items()]
    for where, section in sections:
        if not isinstance(section, dict):
            continue
        if isinstance(section.get("mixture"), list) and "paths" not in section:
            _spell_out_mixture(section)
            for key in ("corpus", "paths"):
                places.setdefault((*where, key), document.place((*where, "mixture")))
        corpus, paths = section.get("corpus"), section.get("paths")
        if isinstance(corpus, str) and ":" in corpus:
            section["corpus"], _, path = corpus.partition(":")
            places.setdefault((*where, "paths"), document.place((*where, "corpus")))
            paths = [path, *(paths if isinstance(paths, list) else [])]
        if isinstance(paths, list):
            named = section.get("corpus") == "hf"  # perhaps a name on the Hub, and no path
            section["paths"] = [
                _beside(folder, path, named) if isinstance(path, str) and path else path for path in paths
            ]
    return Document(document.file, value, places)


def _spell_out_mixture(section: dict[str, Any]) -> None:
    """Name the corpus of a mixture, and take the path of each source, empty where it has none, to its paths."""
    section.setdefault("corpus", MIXTURE)
    section["mixture"] = [dict(source) if isinstance(source, dict) else source for source in section["mixture"]]
    section["paths"] = []
    for source in section["mixture"]:
        corpus = source.get("corpus") if isinstance(source, dict) else None
        name, _, path = corpus.partition(":") if isinstance(corpus, str) else ("", "", "")
        if isinstance(corpus, str):
            source["corpus"] = name
        section["paths"].append(path)


def _beside(folder: Path, path: str, named: bool) -> str:
    """A path that means the same wherever the sweep is read from. Variables and `~` stay as they are written."""
    if (folder / path).exists():
        return str((folder / path).absolute())
    try:
        leads_elsewhere = Path(located(path)).is_absolute()
    except ValueError:
        leads_elsewhere = True  # said where the path is used, at its line
    return path if leads_elsewhere or named else str((folder / path).absolute())
