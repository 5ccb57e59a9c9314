"""Prints the logs of a run, and follows them while it lives."""

import time
from typing import TextIO

from orchestrator.errors import InputError
from xlstm.records import RunDirectory

FOLLOW_SECONDS = 0.5


def print_logs(run: RunDirectory, out: TextIO, *, follow: bool = False) -> None:
    """Write the logs of the latest attempt, each under its name; with `follow`, go on while a launcher holds the run.

    InputError where no attempt was made yet.
    """
    attempt = run.status().attempt
    if not run.logs(attempt) and not follow:
        raise InputError(f"{run.run_id} has no logs yet: it was never started")
    read: dict[str, int] = {}
    latest = ""
    while True:
        living = run.is_held()
        for path in run.logs(run.status().attempt):
            with open(path, "rb") as file:
                file.seek(read.get(str(path), 0))
                text = file.read()
            if text or str(path) not in read:
                if str(path) != latest:
                    out.write(f"==> {path} <==\n")
                    latest = str(path)
                out.write(text.decode(errors="replace"))
                out.flush()
                read[str(path)] = read.get(str(path), 0) + len(text)
        if not (follow and living):
            return
        time.sleep(FOLLOW_SECONDS)
