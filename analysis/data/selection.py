"""Which runs of a sweep the law takes where an axis, such as the learning rate, was searched rather than studied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xlstm.run.spec import canonical


@dataclass
class Selection:
    """Runs left out because another value of the axis did better, and warnings about the best ones."""

    excluded: dict[str, str] = field(default_factory=dict)
    """Run id to reason."""
    edges: list[str] = field(default_factory=list)
    """Where the best value lies at the edge of those tried, so that a better one may lie beyond."""
    at_edge: set[str] = field(default_factory=set)
    """Run ids of those best ones."""


def best_of(axis: str, rows: Sequence[Mapping[str, Any]], losses: Mapping[str, float]) -> Selection:
    """Keep the run with the lowest validation loss among those that differ in `axis` alone.

    `rows` are those of a plan; a run without a loss is no candidate and is left to whatever excludes it. A best value
    at the edge of the axis is reported.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        others = {name: value for name, value in row["point"].items() if name != axis}
        groups.setdefault(canonical(others), []).append(row)
    selection = Selection()
    for group in groups.values():
        candidates = [row for row in group if row["run_id"] in losses]
        if not candidates:
            continue
        best = min(candidates, key=lambda row: losses[row["run_id"]])
        for row in candidates:
            if row is not best:
                selection.excluded[row["run_id"]] = f"{best['run_id']} is better in {axis}"
        values = sorted(row["point"][axis] for row in group)
        if len(values) > 1 and best["point"][axis] in (values[0], values[-1]):
            where = "lowest" if best["point"][axis] == values[0] else "highest"
            selection.at_edge.add(best["run_id"])
            selection.edges.append(
                f"{best['run_id']}: the best {axis}, {best['point'][axis]:g}, is the {where} tried; "
                "a better one may lie beyond"
            )
    return selection
