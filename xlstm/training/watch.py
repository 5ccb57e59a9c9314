"""The threads that watch over a rank while it trains (heartbeat, the verdict of others, hangs), and the verdict itself.

The first rank that knows how an attempt ends writes its verdict, and every other rank sees it and stops.
"""

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from xlstm.run.directory import Lease, RunDirectory
from xlstm.run.json_files import DamagedFileError
from xlstm.run.locks import LeaseLostError
from xlstm.run.records import State, Verdict, write_json

_HEARTBEAT_SECONDS = 10.0
_LOOK_SECONDS = 0.5
_START_SECONDS = 600.0
"""Building a model and reading its checkpoint may take longer than any step."""
_PEER_SECONDS = 2.0
"""How long a rank that lost its peer waits for the peer to write the verdict, which knows the cause."""
_WAITING_WORDS = ("distributed_c10d", "_fsdp_collectives", "checkpoint/utils")
"""Files of torch in whose functions a rank that waits for others is found."""


class Watch:
    """Watches one rank from a thread of its own, while the main thread may be inside torch.

    - rank 0 renews the lease; `lease_lost` tells the loop to stop;
    - a failure that another rank recorded ends this process at once: it may wait for that rank in a collective;
    - where no step has ended for `patience` seconds, the rank to blame is named and everything ends.

    That patience is on the clock that nobody sets; the signs of life that ranks leave for each other are on the wall's
    clock, the only one that machines share.
    """

    def __init__(self, lease: Lease, rank: int, ranks: int, patience: float) -> None:
        self.lease, self.rank, self.ranks, self.patience = lease, rank, ranks, patience
        self.lease_lost = threading.Event()
        self._main = threading.main_thread().ident
        self._progress = (0, time.monotonic())
        self._started = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the watch in an orderly way; its traces of liveness are removed."""
        self._stop.set()
        self._thread.join()
        self._beat_file(self.rank).unlink(missing_ok=True)

    def progress(self, step: int) -> None:
        """Tell the watch that the main thread moves."""
        self._progress = (step, time.monotonic())
        self._started = True

    def heartbeat(self) -> None:
        """Tell the watch that the main thread moves, though no step ends."""
        self.progress(self._progress[0])

    def _run(self) -> None:
        next_beat = 0.0
        while not self._stop.wait(_LOOK_SECONDS):
            self._follow_others()
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + min(_HEARTBEAT_SECONDS, self.patience / 4)
                self._beat()
            patience = self.patience if self._started else max(self.patience, _START_SECONDS)
            if time.monotonic() - self._progress[1] > patience:
                self.report_hang()

    def _follow_others(self) -> None:
        verdict = self.lease.run.verdict(self.lease.attempt)
        if verdict is not None and verdict.state is State.FAILED and not self._stop.is_set():
            print(f"rank {self.rank} ends: {verdict.reason}", file=sys.stderr, flush=True)
            os._exit(1)

    def _beat(self) -> None:
        if not self.lease.run.path.is_dir():
            self.lease_lost.set()  # the run was deleted: there is nothing to train for
            return
        try:
            self._leave_beat()
        except (OSError, DamagedFileError) as error:
            # A full disk may have room again at the next beat, and the loop meets it as well.
            print(f"rank {self.rank}: no sign of life could be left: {error}", file=sys.stderr, flush=True)

    def _leave_beat(self) -> None:
        step, at = self._progress
        stack = self._main_stack()
        waits = any(word in frame for frame in stack for word in _WAITING_WORDS)
        write_json(
            self._beat_file(self.rank),
            {"time": time.time(), "step": step, "progress": at, "waits": waits, "stack": stack[-12:]},
        )
        if self.rank == 0:
            try:
                self.lease.renew()
            except LeaseLostError:
                self.lease_lost.set()

    def _main_stack(self) -> list[str]:
        frame = sys._current_frames().get(self._main or 0)
        summary = traceback.extract_stack(frame) if frame else []
        return [f"{entry.filename}:{entry.lineno} in {entry.name}" for entry in summary]

    def report_hang(self) -> None:
        """Name the rank that holds the others up, and end this process; torchrun ends the rest.

        In this order: a rank that gives no sign of life (stopped, or its machine gone); one whose main thread is not
        waiting for others; the one that made the fewest steps.
        """
        self._beat()
        seen = {rank: self._read_beat(rank) for rank in range(self.ranks)}
        silent = [r for r, beat in seen.items() if beat is None or time.time() - beat["time"] > self.patience / 2]
        busy = [r for r, beat in seen.items() if beat is not None and not beat["waits"]]
        slowest = min(range(self.ranks), key=lambda r: (seen[r] or {}).get("step", 0))
        culprit = (silent or busy or [slowest])[0]
        beat = seen[culprit] or {}
        manner = "gives no sign of life" if culprit in silent else "is stuck in " + (beat.get("stack") or ["?"])[-1]
        step = self._progress[0]
        reason = f"rank {culprit} {manner}: no step for {self.patience:g} s after step {step}"
        trace = "\n".join(beat.get("stack") or []) or None
        verdict = Verdict(state=State.FAILED, reason=reason, step=step, rank=culprit, traceback=trace)
        leave_verdict(self.lease.run, self.lease.attempt, verdict)
        print(reason, file=sys.stderr, flush=True)
        os._exit(1)

    def _beat_file(self, rank: int) -> Path:
        return self.lease.run.heartbeat_file(self.lease.attempt, rank)

    def _read_beat(self, rank: int) -> dict[str, Any] | None:
        try:
            beat: dict[str, Any] = json.loads(self._beat_file(rank).read_text())
        except (OSError, ValueError):
            return None
        return beat


def leave_verdict(run: RunDirectory, attempt: int, verdict: Verdict) -> None:
    """Write `exit.json` unless it is there. The first verdict stands: it holds the cause, the others its echo."""
    path, launch = run.verdict_file(attempt), run.launch(attempt)
    seconds = launch.elapsed() if launch is not None else None
    ending = verdict.model_copy(update={"time": time.time(), "seconds": seconds})
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        write_json(aside, ending.model_dump(mode="json"))
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def leave_failure(run: RunDirectory, attempt: int, rank: int, error: BaseException, traceback: str) -> None:
    """Write the verdict of a rank that raised: the cause if it is its own, after a while if it is a lost peer."""
    if _lost_a_peer(error):
        _wait_for(run.verdict_file(attempt), _PEER_SECONDS)
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
