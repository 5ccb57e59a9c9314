"""Which rows the law takes where an axis, such as the learning rate, was searched rather than studied."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import polars as pl

SEARCHED = "searched: "
"""Begins the names of columns that hold the values of a searched axis, beside those of a frame."""
POINT = f"{SEARCHED}point of the plan"
"""The column that holds all the other coordinates, where a plan states them."""
MEASURED = frozenset({"run_id", "size", "loss", "bits_per_byte", "cluster", "state", "quality", "weight", "excluded"})
"""Columns in which the runs of one search may differ: what came out, and what names a run."""


@dataclass(frozen=True)
class Rows:
    """The rows of a source, judged, and what is to be said of them."""

    frame: pl.DataFrame
    notes: list[str]
    """Where the best value of a searched axis lies at the edge of those tried, so that a better one may lie beyond."""
    at_edge: frozenset[str] = frozenset()
    """Runs of those best values."""


def best_of(frame: pl.DataFrame, axes: Sequence[str], described: Collection[str] | None = None) -> Rows:
    """Keep, of rows that differ in the searched `axes` alone, those whose value of them has the lowest loss.

    The values stand in columns named SEARCHED and the axis, which the result no longer has. Rows agree in all the rest
    by POINT where there is such a column, else by every column (of `described`, where given) but the MEASURED ones. Of
    several rows of one value, which are repetitions, the mean counts, and all of them stay. Where each value has seeds
    of its own, the seed is left out of what must agree. A row that is excluded already is no candidate, but its value
    counts as tried.
    """
    columns = [SEARCHED + axis for axis in axes]
    bare = frame.drop([name for name in frame.columns if name.startswith(SEARCHED)])
    if not axes or not frame.height:
        return Rows(bare, [])
    values = list(zip(*(frame[name].to_list() for name in columns), strict=True))
    agree = (
        [POINT]
        if POINT in frame.columns
        else [name for name in bare.columns if name not in MEASURED and (described is None or name in described)]
    )
    groups = _groups(frame, agree)
    if "seed" in agree and not any(len({values[row] for row in rows}) > 1 for rows in groups):
        groups = _groups(frame, [name for name in agree if name != "seed"])
    names, losses = frame["run_id"].to_list(), frame["loss"].to_list()
    reasons = frame["excluded"].to_list()
    axis = " and ".join(axes)
    edges: list[str] = []
    at_edge: set[str] = set()
    for rows in groups:
        by_value: dict[tuple[object, ...], list[int]] = {}
        for row in rows:
            if reasons[row] is None:
                by_value.setdefault(values[row], []).append(row)
        if not by_value:
            continue
        best = min(by_value, key=lambda value: sum(losses[row] for row in by_value[value]) / len(by_value[value]))
        name = names[by_value[best][0]]
        for value, others in by_value.items():
            if value != best:
                for row in others:
                    reasons[row] = f"{name} is better in {axis}"
        for place, one in enumerate(axes):
            tried = sorted({value for row in rows if isinstance(value := values[row][place], int | float)})
            if len(tried) > 1 and best[place] in (tried[0], tried[-1]):
                where = "lowest" if best[place] == tried[0] else "highest"
                told = f"the best {one}, {best[place]:g}, is the {where} tried; a better one may lie beyond"
                edges.append(f"{name}: {told}")
                at_edge.update(names[row] for row in rows if values[row] == best and reasons[row] is None)
    return Rows(bare.with_columns(pl.Series("excluded", reasons, pl.String)), edges, frozenset(at_edge))


def _groups(frame: pl.DataFrame, agree: Sequence[str]) -> list[list[int]]:
    """Rows by what they agree in, in the order of the frame."""
    groups: dict[str, list[int]] = {}
    for row, described in enumerate(frame.select(agree).iter_rows()):
        groups.setdefault(repr(described), []).append(row)
    return list(groups.values())
