"""A submission that outlives its terminal."""

import subprocess
import sys

from xlstm.run.directory import Workspace


def detach_submission(workspace: Workspace, sweep: str) -> int:
    """Submit a kept sweep to this machine from a process of its own session; returns its id."""
    with open(workspace.sweep(sweep).submission_log, "ab") as output:
        process = subprocess.Popen(
            submission(workspace, sweep, "local"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process.pid


def submission(workspace: Workspace, sweep: str, on: str) -> list[str]:
    """The command line that submits a kept sweep."""
    scaling = [sys.executable, "-P", "-m", "orchestrator.cli"]
    return [*scaling, "submit", str(workspace.sweep(sweep).sweep_file), "--on", on]
