"""What an adaptive sweep decided, in words: the rows of its `decisions.jsonl`."""

from collections.abc import Mapping, Sequence
from typing import Any

from xlstm.run.sweep_directory import Decision

CONTRADICTION = "contradiction"
"""Why nothing more is bought, where a run contradicts the law."""


def contradictions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Runs that contradict the law, and that nobody has taken as they are."""
    found: list[str] = []
    for row in rows:
        if row["decision"] == Decision.SEEN and row.get("contradicts"):
            found.append(row["run_id"])
        elif row["decision"] == Decision.WENT_ON:
            found = [run_id for run_id in found if run_id not in row["runs"]]
    return found


def sentence(row: Mapping[str, Any]) -> str:
    """A decision as a line for people."""
    kind = row["decision"]
    if kind == Decision.BOUGHT:
        fork = f" from step {row['forks_from']['step']} of {row['forks_from']['run_id']}" if row["forks_from"] else ""
        why = "to begin with" if row["why"] == "first" else f"takes {row['promised']:.0%} off the targets' variance"
        return f"bought {row['run_id']}{fork}: {why}, {row['cost']['flops']:.2e} FLOPs"
    if kind == Decision.SEEN:
        against = ", which contradicts the law" if row.get("contradicts") else ""
        return f"seen {row['run_id']}: loss {row['loss']:.4f}{against}{_targets(row.get('targets', ()))}"
    if kind == Decision.STOPPED:
        known = "".join(f"; {family}{_targets(one['targets'])}" for family, one in row["families"].items())
        return f"nothing more is bought: {row['reason']}{known}"
    return f"going on: {', '.join(row['runs'])} is taken as it is"


def _targets(targets: Sequence[Mapping[str, Any]]) -> str:
    told = ""
    for one in targets:
        told += f"; at N = {one['parameters']:.3g}, D = {one['tokens']:.3g} a new run "
        if one["interval"] is None:
            told += "may come to anything"
        else:
            told += f"within [{one['interval'][0]:.4f}, {one['interval'][1]:.4f}], ±{one['half_width']:.1%}"
    return told
