"""Deletes runs and sweeps, and refuses what somebody still needs."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InputError
from orchestrator.execution.lock import holder
from orchestrator.standing.lookup import find_run
from xlstm.run import tracking
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.records import State


@dataclass(frozen=True)
class Deletion:
    """What would go, and what stays although it was named."""

    workspace: Workspace
    sweep: str | None
    """The sweep that goes, with its plan, its fits and its history; None where a run goes alone."""
    runs: Sequence[RunDirectory]
    kept: Sequence[str]
    """Runs of the sweep that another sweep holds, too."""

    @property
    def folders(self) -> list[Path]:
        own = [self.workspace.sweep(self.sweep).path] if self.sweep is not None else []
        return [*(run.path for run in self.runs), *own]

    def carry_out(self) -> None:
        """Remove the folders, and what the tracking store of this workspace shows of them."""
        for run in self.runs:
            tracking.forget(run, self.workspace.tracking_uri)
        if self.sweep is not None:
            tracking.forget_sweep(self.sweep, self.workspace.tracking_uri, self.workspace.artifacts)
        for folder in self.folders:
            shutil.rmtree(folder)


def plan_deletion(workspace: Workspace, sweep: str, run: str) -> Deletion:
    """What deleting the sweep of a name, or else a run, takes. InputError naming who still needs it."""
    plans = {name: workspace.sweep(name).plan() for name in workspace.submitted()}
    if sweep in plans:
        if who := holder(workspace, sweep):
            raise InputError(f"{sweep} is carried out by {who}; end that first: scaling cancel {sweep}")
        named = [row["run_id"] for row in plans[sweep]["runs"]]
        others = {row["run_id"] for name, plan in plans.items() if name != sweep for row in plan["runs"]}
        going = [workspace.run(name) for name in named if name not in others and workspace.run(name).path.exists()]
        deletion = Deletion(workspace, sweep, going, [name for name in named if name in others])
    else:
        found = find_run(workspace, run)
        holding = [name for name, plan in plans.items() if any(row["run_id"] == found.run_id for row in plan["runs"])]
        if len(holding) > 1:
            raise InputError(f"{found.run_id} belongs to {' and '.join(holding)}; delete the sweeps, or keep it")
        deletion = Deletion(workspace, None, [found], [])
    going_ids = {one.run_id for one in deletion.runs}
    for one in deletion.runs:
        status = one.status()
        if one.is_held() or status.state in (State.QUEUED, State.RUNNING):
            raise InputError(f"{one.run_id} is {status.state.value.lower()}; end it first: scaling cancel {one.run_id}")
    for name, plan in plans.items():
        for row in plan["runs"]:
            trunk = (row.get("forks_from") or {}).get("run_id")
            if trunk in going_ids and row["run_id"] not in going_ids and workspace.run(row["run_id"]).result() is None:
                raise InputError(f"{trunk} is the trunk that {row['run_id']} of {name} still has to start from")
    return deletion
