"""A submission that outlives its terminal."""

import subprocess
import sys
from pathlib import Path

from xlstm.run.directory import Workspace


def detach_submission(workspace: Workspace, sweep: str) -> int:
    """Submit a kept sweep to this machine from a process of its own session; returns its id."""
    with open(log_file(workspace, sweep), "ab") as output:
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
    return [
        sys.executable,
        "-m",
        "orchestrator.cli",
        "submit",
        str(workspace.sweeps / sweep / "sweep.yaml"),
        "--on",
        on,
    ]


def log_file(workspace: Workspace, sweep: str) -> Path:
    """What a submission in the background prints."""
    return workspace.sweeps / sweep / "submit.log"
