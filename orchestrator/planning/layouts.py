"""Builds every distinct layout of a plan without a device: what `scaling plan --check` does.

A layout that cannot be built, or holds more than its card, is found here and not after hours in a queue. torch is
imported when the first layout is built.
"""

from collections.abc import Hashable
from dataclasses import dataclass

from orchestrator.planning.capacity import layout_key
from orchestrator.planning.plan import Plan
from xlstm.run.spec import RunSpec
from xlstm.training.memory import memory


@dataclass(frozen=True)
class Check:
    """What building the layouts of a plan has shown."""

    layouts: int
    """Distinct ones that were built."""
    memory_gib: dict[str, float]
    """Peak per device by run, with the shards that were built; absent where a layout could not be."""
    problems: dict[str, str]
    """By run, why it cannot be trained as planned."""


def check(plan: Plan) -> Check:
    """Build the layout of every run that is missing, each distinct one once."""
    built: dict[Hashable, float | str] = {}
    memory_gib, problems = {}, {}
    for run in plan.missing:
        expected = {"micro_batch_sequences": run.capacity.micro_batch_sequences}
        spec = run.spec.model_copy(update={"execution": run.spec.execution.model_copy(update=expected)})
        key = layout_key(spec)
        if key not in built:
            built[key] = _build(spec)
        found = built[key]
        if isinstance(found, str):
            problems[run.run_id] = f"{run.run_id} cannot be laid out: {found}"
            continue
        memory_gib[run.run_id] = found
        if run.capacity.usable_gib is not None and found > run.capacity.usable_gib:
            problems[run.run_id] = run.describe_misfit(found)
    return Check(len(built), memory_gib, problems)


def _build(spec: RunSpec) -> float | str:
    """GiB on one device, the padding of its shards included, or why the layout cannot be built."""
    from xlstm.training.parallel import build_layout

    try:
        return (memory(spec).total + build_layout(spec).padding) / 2**30
    except Exception as error:  # whatever a model or FSDP raises, the run would raise it too
        return f"{type(error).__name__}: {error}"
