"""Ends runs, whoever carries them out. Imports little: whoever cancels is in a hurry."""

from orchestrator.execution import cancellation
from orchestrator.execution.lock import holder
from orchestrator.standing.lookup import find_run, load_document
from orchestrator.workbench import slurm
from xlstm.run.directory import RunDirectory, Workspace


def cancel(workspace: Workspace, sweep: str, run: str) -> list[RunDirectory]:
    """End the runs of `sweep` if it was submitted, else `run`; returns those that were open.

    InputError where there is no such run, or where some are still held when the patience is over.
    """
    controlled = False
    if sweep in workspace.submitted():
        controlled = holder(workspace, sweep) is not None
        # Forks first: whoever sees that their trunk is to end sees it of them, too.
        rows = sorted(load_document(workspace, sweep)["runs"], key=lambda row: not row.get("forks_from"))
        runs = [workspace.run(row["run_id"]) for row in rows]
    else:
        runs = [find_run(workspace, run)]
    cancelled = slurm.cancel(workspace, runs)
    left = [one for one in runs if one not in cancelled]
    return cancelled + cancellation.cancel(left, controlled=controlled)
