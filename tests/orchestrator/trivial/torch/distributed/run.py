"""Stands in for torchrun and its trainer where a test needs hundreds of attempts: found first on PYTHONPATH, it is a
real process under the real supervisor, keeps the lease and writes the run directory as the trainer does, and "trains"
by counting its steps. No imports beyond the standard library, so that an attempt takes a tenth of a second.

`trivial`, beside the workspace, is a folder with `faults.json` (run id to fault; `wait for NAME` is for a file of that
name there, and `go` is for all who wait), `results/RUN_ID.json` (what a complete run leaves), and `executed.log`, to
which every step that was really executed is appended.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

STEPS = 4
FAULT_AFTER = 2
WAIT = "wait for "
MANY = 7
"""Attempts that are evicted of a run that gets on meanwhile."""

_, run_directory, _, attempt, _, token = sys.argv[sys.argv.index("xlstm.training") :]
run = Path(run_directory)
folder = run.parents[2] / "trivial"
fault = json.loads((folder / "faults.json").read_text()).get(run.name, "")


def replace(path: Path, content: dict[str, object]) -> None:
    aside = path.with_suffix(".aside")
    aside.write_text(json.dumps(content))
    os.replace(aside, path)


def leave_verdict(state: str, step: int, **more: str) -> None:
    replace(run / "attempts" / attempt / "exit.json", {"state": state, "step": step, "time": time.time(), **more})


def commit(path: Path, content: dict[str, object]) -> None:
    """Write under the run's lock, and only while the lease is this attempt's."""
    with open(run / "status.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lease = json.loads((run / "status.json").read_text())["lease"]
        if lease is None or lease["token"] != token:
            sys.exit("the lease was lost")
        replace(path, content)


checkpoint = run / "checkpoint.json"
step, line = 0, ""
if checkpoint.exists():
    step, line = json.loads(checkpoint.read_text()).values()
with open(run / "metrics.jsonl", "a") as metrics, open(folder / "executed.log", "a") as executed:
    if line not in (folder / "executed.log").read_text():
        executed.write(line)  # whoever executed it was killed before it could say so
    if int(attempt) > 1:
        metrics.write(json.dumps({"event": "resume", "attempt": int(attempt), "step": step}) + "\n")
    while step < STEPS:
        if fault == "evict" or (fault == "evict with a checkpoint" and int(attempt) <= MANY):
            if fault != "evict":
                mark = run / "checkpoints" / f"step-{int(attempt):08}" / "COMPLETE"
                mark.parent.mkdir(parents=True)
                mark.touch()
            leave_verdict("PREEMPTED", step, reason="stopped by SIGTERM")
            sys.exit(1)
        if fault == "poison" and step == FAULT_AFTER:
            leave_verdict("FAILED", step, reason="ValueError: poison", traceback="ValueError: poison")
            sys.exit(1)
        step += 1
        line = f"{run.name} {attempt} {step}\n"
        commit(checkpoint, {"step": step, "line": line})
        executed.write(line)
        executed.flush()
        row = {"step": step, "time": time.time(), "attempt": int(attempt), "train/loss": 1.0, "progress/tokens": step}
        metrics.write(json.dumps(row) + "\n")
        metrics.flush()
        if step < FAULT_AFTER:
            continue
        while fault.startswith(WAIT) and not ((folder / fault[len(WAIT) :]).exists() or (folder / "go").exists()):
            time.sleep(0.05)
        if int(attempt) > 1:
            continue
        if fault == "crash":
            leave_verdict("FAILED", step, reason="RuntimeError: chance", traceback="RuntimeError: chance")
            sys.exit(1)
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "preempt":
            leave_verdict("PREEMPTED", step, reason="stopped by SIGTERM")
            sys.exit(1)  # as torchrun does after a clean preemption: an exit code says nothing
commit(run / "result.json", json.loads((folder / "results" / f"{run.name}.json").read_text()))
leave_verdict("COMPLETED", step)
