"""The runs of an adaptive sweep that were not bought yet, each with what it would cost now.

A run costs what it would train itself: it starts from the latest checkpoint of its stable phase that lies in the
workspace, or that a run which is being trained will leave. Each run that is bought leaves the checkpoints from which
others of the pool could start, so that a budget costs little more than its decay once a longer one was trained.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator.planning.sharing import Share, stable_phase
from xlstm.run.directory import Workspace
from xlstm.run.records import Fork
from xlstm.run.spec import RunSpec
from xlstm.run.sweep_directory import Decision


@dataclass(frozen=True)
class Offer:
    """A run that could be bought: what it would share, and the part of it that it would train itself."""

    spec: RunSpec
    share: Share

    @property
    def own_part(self) -> float:
        """Of its steps those that it trains itself, in (0, 1]."""
        return 1 - self.share.start / self.spec.physics.steps


def bought_shares(decisions: Iterable[Mapping[str, Any]]) -> dict[str, Share]:
    """What each run that was bought shares, in the order in which they were bought."""
    return {
        row["run_id"]: Share(
            Fork.model_validate(row["forks_from"]) if row["forks_from"] else None, tuple(row["checkpoint_at"])
        )
        for row in decisions
        if row["decision"] == Decision.BOUGHT
    }


@dataclass(frozen=True)
class Pool:
    """The runs of an adaptive sweep by their ids, in the order in which they are to start."""

    specs: Mapping[str, RunSpec]
    workspace: Workspace

    @cached_property
    def _phases(self) -> dict[str, str]:
        """The stable phase of each run that has one."""
        wsd = {run_id: spec for run_id, spec in self.specs.items() if spec.physics.schedule.kind == "wsd"}
        return {run_id: stable_phase(spec.physics) for run_id, spec in wsd.items()}

    def offers(self, taken: Mapping[str, Share], ended: Collection[str]) -> list[Offer]:
        """The runs that were not taken, in the order of the pool.

        `taken` were bought, or were there before; of those that have `ended`, what lies in the workspace counts, and of
        the others what they will leave.
        """
        kept: dict[str, list[tuple[int, str]]] = {}
        for run_id, shared in taken.items():
            if (phase := self._phases.get(run_id)) is not None:
                last = self.specs[run_id].physics.undecided_steps
                there = run_id in ended
                steps = self.workspace.run(run_id).checkpoint_steps() if there else (*shared.checkpoint_at, last)
                kept.setdefault(phase, []).extend((step, run_id) for step in steps if 0 < step <= last)
        ends: dict[str, set[int]] = {}
        for run_id, phase in self._phases.items():
            if run_id not in taken:
                ends.setdefault(phase, set()).add(self.specs[run_id].physics.undecided_steps)
        return [
            Offer(spec, self._share(spec, kept.get(phase, ()), ends.get(phase, ())))
            for run_id, spec in self.specs.items()
            if run_id not in taken
            for phase in [self._phases.get(run_id, "")]
        ]

    def _share(self, spec: RunSpec, kept: Iterable[tuple[int, str]], ends: Iterable[int]) -> Share:
        """Where a run starts, and where others of its stable phase could start from it.

        `kept` are checkpoints of the phase, `ends` the steps at which runs begin to decay that were not taken.
        """
        last = spec.physics.undecided_steps
        step, run_id = max(((step, run_id) for step, run_id in kept if step <= last), default=(0, ""))
        fork = Fork(run_id=run_id, step=step) if step else None
        return Share(fork, tuple(sorted(end for end in ends if step < end <= last)))
