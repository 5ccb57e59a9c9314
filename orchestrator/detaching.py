"""A submission that outlives its terminal."""

import subprocess
import sys
from pathlib import Path

from xlstm.records import Workspace


def detach_submission(workspace: Workspace, sweep: str, on: str) -> tuple[int, Path]:
    """Submit a kept sweep from a process of its own session; returns its id and its log."""
    log = workspace.sweeps / sweep / "submit.log"
    kept = workspace.sweeps / sweep / "sweep.yaml"
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", "submit", str(kept), "--on", on],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process.pid, log
