"""The points of a sweep: grid times zip without what is excluded, and what is included.

Every problem is collected, at the line of the key that causes it. Imports without torch.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeps.language import BUDGETS, Axes, SweepFile
from sweeps.located import Document, Path, Problem, SweepError
from xlstm.models.naming import parse_family
from xlstm.models.sizes import SIZES
from xlstm.quantities import nearest

Choice = tuple[Any, Path]
"""A value, and the path of the key that gave it."""


@dataclass
class Point:
    """Axis values with where they were written; `origin` is where the point as a whole was."""

    choices: dict[str, Choice]
    origin: Path

    def values(self) -> dict[str, Any]:
        return {axis: value for axis, (value, _) in self.choices.items()}


@dataclass
class Problems:
    """What is wrong with a sweep, collected."""

    document: Document
    found: set[Problem] = field(default_factory=set)

    def complain(self, path: Path, message: str) -> None:
        """Note a problem at the line of a key."""
        self.found.add(self.document.problem(path, message))

    def stop(self) -> None:
        """SweepError with every problem, where there are any."""
        if self.found:
            raise SweepError(self.found)


@dataclass
class Grid:
    """The axes of a sweep file."""

    file: SweepFile
    problems: Problems

    def complain(self, path: Path, message: str) -> None:
        self.problems.complain(path, message)

    def points(self) -> Iterator[Point]:
        """Grid times zip without what is excluded, then what is included."""
        grid = self.lists(self.file.grid, ("grid",))
        zipped = self.lists(self.file.zip, ("zip",))
        for axis in grid.keys() & zipped.keys():
            self.complain(("zip", axis), f"`{axis}` is an axis of `grid` and of `zip`; keep one")
        if len({len(values) for values in zipped.values()}) > 1:
            lengths = ", ".join(f"{axis} has {len(values)}" for axis, values in zipped.items())
            self.complain(("zip",), f"lists of `zip` must be equally long: {lengths}")
            return
        rows = [dict(zip(zipped, row, strict=True)) for row in zip(*zipped.values(), strict=True)] or [{}]
        if grid or zipped:
            for combination in itertools.product(*grid.values()):
                for row in rows:
                    point = Point(dict(zip(grid, combination, strict=True)) | row, ("grid",) if grid else ("zip",))
                    if not any(matches(where, point.values()) for where in self.file.exclude):
                        yield from self._complete(point)
        for index in range(len(self.file.include)):
            yield from self._included(index, grid | zipped)
        if not (grid or zipped or self.file.include):
            self.complain((), "no runs: give `grid`, `zip` or `include`")

    def _included(self, index: int, axes: Mapping[str, list[Choice]]) -> Iterator[Point]:
        given = self.lists(self.file.include[index], ("include", index))
        inherited = {axis: values for axis, values in axes.items() if axis not in given}
        if any(budget in given for budget in BUDGETS):
            inherited = {axis: values for axis, values in inherited.items() if axis not in BUDGETS}
        for axis, values in inherited.items():
            if len(values) > 1:
                self.complain(("include", index), f"the point leaves `{axis}` open, and the grid has several values")
        columns = given | {axis: values[:1] for axis, values in inherited.items()}
        for combination in itertools.product(*columns.values()):
            yield from self._complete(Point(dict(zip(columns, combination, strict=True)), ("include", index)))

    def _complete(self, point: Point) -> Iterator[Point]:
        """The point if it says what a run needs, with the seed and task it may leave out."""
        missing = [axis for axis in ("model", "size") if axis not in point.choices]
        budgets = [budget for budget in BUDGETS if budget in point.choices]
        if missing:
            self.complain(point.origin, f"no axis `{'`, `'.join(missing)}`: each run needs a model and a size")
        if len(budgets) != 1:
            stated = f"states {' and '.join(budgets)}" if budgets else "states no budget"
            self.complain(point.origin, f"a run {stated}; give one of {', '.join(BUDGETS)}")
        if not missing and len(budgets) == 1:
            point.choices.setdefault("seed", (0, ("grid",)))
            yield point

    def lists(self, axes: Axes, path: Path) -> dict[str, list[Choice]]:
        """The stated axes in the order written, each value with its path."""
        written = self.problems.document.value
        for part in path:
            written = written.get(part, {}) if isinstance(written, dict) else written[part]
        return {
            name: [(value, (*path, name, index)) for index, value in enumerate(getattr(axes, name))]
            for name in written
            if getattr(axes, name) is not None
        }

    def check_words(self) -> None:
        """Every model and size that is written anywhere must exist, and `best_of` must be an axis that varies."""
        file = self.file
        groups: list[tuple[Axes, Path]] = [(file.grid, ("grid",)), (file.zip, ("zip",))]
        groups += [(where, ("include", index)) for index, where in enumerate(file.include)]
        groups += [(where, ("exclude", index)) for index, where in enumerate(file.exclude)]
        groups += [(rule.when, ("rules", index, "when")) for index, rule in enumerate(file.rules)]
        groups += [(rule.when, ("resources", index, "when")) for index, rule in enumerate(file.resources)]
        for axes, path in groups:
            for axis in ("model", "size"):
                for value, where in self.lists(axes, path).get(axis, []):
                    self._check_word(axis, value, where)
        varying = {
            axis for axes, path in groups[:2] for axis, values in self.lists(axes, path).items() if len(values) > 1
        }
        if file.best_of is not None and file.best_of not in varying:
            self.complain(("best_of",), f"`{file.best_of}` is no axis with several values; {nearest('', varying)}")

    def _check_word(self, axis: str, value: str, where: Path) -> None:
        if axis == "size":
            if value not in self.file.sizes and value not in SIZES:
                known = [*self.file.sizes, *SIZES]
                self.complain(where, f"unknown size `{value}`; {nearest(value, known)} (own sizes go under `sizes`)")
            return
        try:
            parse_family(value)
        except ValueError as error:
            self.complain(where, str(error))


def matches(where: Axes, values: Mapping[str, Any]) -> bool:
    """Whether a point has, on each axis that is stated, one of the values stated."""
    return all(
        axis in values and values[axis] in stated
        for axis, stated in ((name, getattr(where, name)) for name in where.model_fields_set)
        if stated is not None
    )
