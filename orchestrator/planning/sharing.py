"""Which runs of a sweep share their beginning, so that it is trained once.

Runs that differ only in token budget are identical until the shorter one starts to decay (warm-up–stable–decay). The
longest unfinished run is the trunk: it leaves a checkpoint at each step where a shorter one forks off. A checkpoint
that already lies in the workspace is forked from at once, also by a longer run than the one that left it. A forked run
equals the same run trained alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xlstm.run.directory import Workspace
from xlstm.run.identity import canonical
from xlstm.run.records import Fork
from xlstm.run.spec import Physics, RunSpec, shared_steps


@dataclass(frozen=True)
class Share:
    """What a run shares: where it starts from, and at which steps others start from it."""

    fork: Fork | None = None
    checkpoint_at: tuple[int, ...] = ()

    @property
    def start(self) -> int:
        """The step at which the run starts to train."""
        return self.fork.step if self.fork else 0


def share(specs: Sequence[RunSpec], complete: Mapping[str, bool], workspace: Workspace) -> dict[str, Share]:
    """The share of every run, by run id. Runs of other schedules share nothing."""
    shares = {spec.run_id: Share() for spec in specs}
    groups: dict[str, list[RunSpec]] = {}
    for spec in specs:
        if spec.physics.schedule.kind == "wsd":
            groups.setdefault(stable_phase(spec.physics), []).append(spec)
    for group in groups.values():
        if len(group) > 1:
            shares |= _share(sorted(group, key=lambda spec: -spec.physics.undecided_steps), complete, workspace)
    return shares


def _share(group: Sequence[RunSpec], complete: Mapping[str, bool], workspace: Workspace) -> dict[str, Share]:
    """`group` is of one stable phase, the longest first."""
    open_runs = [spec for spec in group if not complete[spec.run_id]]
    kept = [
        (spec, step)
        for spec in group
        for step in workspace.run(spec.run_id).checkpoint_steps()
        if step <= spec.physics.undecided_steps
    ]
    shares: dict[str, Share] = {}
    if not open_runs:
        return shares
    trunk = open_runs[0]
    trunk_fork = _deepest(kept, trunk, group)
    # A trunk that has begun, or starts from a fork, will not pass the steps behind it again.
    behind = max([trunk_fork.step if trunk_fork else 0, *workspace.run(trunk.run_id).checkpoint_steps()])
    leaves: set[int] = set()
    for spec in open_runs[1:]:
        step = shared_steps(trunk.physics, spec.physics)
        existing = _deepest(kept, spec, group)
        if existing is not None and existing.step >= step:
            shares[spec.run_id] = Share(existing)
        elif step > behind:
            leaves.add(step)
            shares[spec.run_id] = Share(Fork(run_id=trunk.run_id, step=step))
        else:
            shares[spec.run_id] = Share(existing)
    shares[trunk.run_id] = Share(trunk_fork, tuple(sorted(leaves)))
    return shares


def stable_phase(physics: Physics) -> str:
    """What runs of one stable phase of a wsd schedule have in common: all but the budget and the decay."""
    payload: dict[str, Any] = physics.model_dump(mode="json", exclude={"tokens": True})
    payload["schedule"] = {
        key: value for key, value in payload["schedule"].items() if key not in ("decay_steps", "final_ratio")
    }
    return canonical(payload)


def _deepest(kept: Sequence[tuple[RunSpec, int]], spec: RunSpec, group: Sequence[RunSpec]) -> Fork | None:
    """The latest checkpoint of another run from which `spec` can start."""
    usable = [
        (step, source.run_id)
        for source, step in kept
        if source.run_id != spec.run_id and 0 < step <= shared_steps(source.physics, spec.physics)
    ]
    if not usable:
        return None
    step, run_id = max(usable)
    return Fork(run_id=run_id, step=step)
