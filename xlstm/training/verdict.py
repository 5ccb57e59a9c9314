"""How an attempt ends: the first rank that knows writes the verdict, and every other rank sees it and stops."""

import json
import os
import threading
import time
from pathlib import Path

from xlstm.run.directory import RunDirectory
from xlstm.run.records import State, Verdict

_GRACE_SECONDS = 2.0
"""A rank whose peer is gone waits this long for the peer's own word before it speaks itself."""


class DivergedError(RuntimeError):
    """Loss or gradient is not a number any more. The optimizer has not moved."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} at step {step}")
        self.step = step


def leave_verdict(run: RunDirectory, attempt: int, verdict: Verdict) -> bool:
    """Write `exit.json` unless it is there. The first verdict stands: it holds the cause, the others its echo."""
    path = run.verdict_file(attempt)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with open(aside, "w") as file:
        json.dump(verdict.model_copy(update={"time": time.time()}).model_dump(mode="json"), file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    finally:
        aside.unlink()
    return True


def leave_failure(run: RunDirectory, attempt: int, rank: int, error: BaseException, traceback: str) -> None:
    """Write the verdict of a rank that raised: the cause if it is its own, after a while if it is a lost peer."""
    if _lost_a_peer(error):
        _wait_for(run.verdict_file(attempt), _GRACE_SECONDS)
        reason = f"rank {rank} lost contact with another rank: {_first_line(error)}"
    elif _is_out_of_memory(error):
        reason = (
            f"rank {rank} is out of memory: set a smaller micro_batch_sequences, activation_checkpointing: full, "
            "or more devices"
        )
    else:
        reason = f"rank {rank}: {type(error).__name__}: {_first_line(error)}"
    leave_verdict(run, attempt, Verdict(state=State.FAILED, reason=reason, rank=rank, traceback=traceback))


def _wait_for(path: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _lost_a_peer(error: BaseException) -> bool:
    if type(error).__name__ in {"DistNetworkError", "DistBackendError"}:
        return True
    words = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _is_out_of_memory(error: BaseException) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )
