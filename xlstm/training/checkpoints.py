"""Checkpoints of a run: written aside, fsynced, renamed, marked complete; found again, verified and loaded.

`checkpoints/step-00000100/` holds the tensors of all ranks, `index.json`, `record.json` (plain values: step, physics,
data) and `COMPLETE`, the last file written, which lists size and SHA-256 of every other. A folder without it is no
checkpoint. One that fails its sums is named, and the one before it is taken, by all ranks alike.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from xlstm.distributed import World
from xlstm.run.directory import Lease, RunDirectory
from xlstm.run.locks import LeaseLostError
from xlstm.run.records import Record, write_json
from xlstm.run.spec import Physics
from xlstm.training.parallel import local_shard
from xlstm.training.storage import INDEX, JsonIndexReader, JsonIndexWriter, describe

_RECORD = "record.json"


class CheckpointRecord(Record):
    """`record.json`: the plain values of a checkpoint."""

    run_id: str
    step: int
    physics: Physics
    data_fingerprint: str
    ranks: int
    micro_batch_sequences: int | None = None
    """Sequences that each rank passed forward at a time; None in records of versions that did not say."""


class CheckpointError(RuntimeError):
    """A checkpoint that is needed is missing or cannot be used: says which, and why."""


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint of a run at a step."""

    run: RunDirectory
    step: int

    @property
    def path(self) -> Path:
        return self.run.checkpoint(self.step)

    def record(self) -> CheckpointRecord:
        return CheckpointRecord.model_validate_json((self.path / _RECORD).read_bytes())

    def corruption(self, part: int = 0, parts: int = 1) -> str | None:
        """The first file whose size or sum is wrong, with what is wrong, or None. `part` of `parts` is examined."""
        mark = self.run.checkpoint_mark(self.step)
        try:
            listed = json.loads(mark.read_text())["files"]
            if not isinstance(listed, dict) or not {_RECORD, INDEX} <= listed.keys():
                return f"{mark} does not list the files of a checkpoint"
            for name, expected in sorted(listed.items())[part::parts]:
                path = self.path / name
                if path.parent != self.path or not path.is_file():
                    return f"{path} is missing"
                if path.stat().st_size != expected["size"]:
                    return f"{path} has {path.stat().st_size} bytes, written were {expected['size']}"
                if describe(path)["sha256"] != expected["sha256"]:
                    return f"{path} is not what was written: its SHA-256 differs"
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            return f"{mark} cannot be read: {error}"
        return None

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Fill the tensors of `state` in place, each rank its shards, from however many ranks they were saved."""
        with warnings.catch_warnings():
            # Outside a process group one process loads everything, on purpose.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            dcp.load(
                state,
                storage_reader=JsonIndexReader(self.path),
                no_dist=not dist.is_initialized(),
                planner=dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            )


def complete_checkpoints(run: RunDirectory) -> list[Checkpoint]:
    """Complete checkpoints of a run, the latest first."""
    return [Checkpoint(run, step) for step in run.checkpoint_steps()]


def latest_valid(run: RunDirectory, world: World, report: Callable[[str], None]) -> Checkpoint | None:
    """The latest valid checkpoint, the same on all ranks, or None. What is wrong with later ones is reported."""
    # What the first rank sees counts: another machine's view of a shared disk may lag.
    for step in world.gather(run.checkpoint_steps())[0]:
        checkpoint = Checkpoint(run, step)
        corruption = _corruption(checkpoint, world)
        if corruption is None:
            return checkpoint
        report(corruption)
    return None


def fork_checkpoint(trunk: RunDirectory, step: int, world: World) -> Checkpoint:
    """The checkpoint of another run at which this run starts. CheckpointError where it is missing or damaged."""
    checkpoint = Checkpoint(trunk, step)
    corruption = _corruption(checkpoint, world)
    if corruption is not None:
        raise CheckpointError(f"{trunk.run_id} has no sound checkpoint at step {step}: {corruption}")
    return checkpoint


def _corruption(checkpoint: Checkpoint, world: World) -> str | None:
    """What any rank finds wrong with a checkpoint, each examining a part of the files; equal on all ranks."""
    found = world.gather(checkpoint.corruption(world.rank, world.size))
    return next((corruption for corruption in found if corruption is not None), None)


class Checkpointer:
    """Saves checkpoints of one attempt in the background, one at a time."""

    def __init__(self, lease: Lease, world: World, keep: int, keep_steps: Collection[int]) -> None:
        self.lease, self.world, self.keep, self.keep_steps = lease, world, keep, frozenset(keep_steps)
        # Its own group: the collectives of a save run beside those of the training.
        self.group = dist.new_group(backend="gloo")
        self.background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None
        self.staged: dict[str, torch.Tensor] = {}
        """Copies in host memory, written over by the next save: to allocate them anew costs more than to copy."""

    def save(self, state: dict[str, torch.Tensor], record: CheckpointRecord) -> None:
        """Copy the state and write it in the background. Waits for the save before; raises what that one raised."""
        self.wait()
        first = not self.staged
        self.staged = {name: _copy_to_cpu(tensor, self.staged.get(name)) for name, tensor in state.items()}
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)
            if first:
                _lock_pages(self.staged.values())
        self.pending = self.background.submit(self._write, self.staged, record)

    def wait(self) -> None:
        """Wait until nothing is being written. Raises what went wrong: OSError, LeaseLostError."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def failed(self) -> bool:
        """Whether the save in the background has ended with an error, which `wait` raises."""
        return self.pending is not None and self.pending.done() and self.pending.exception() is not None

    def _write(self, staged: dict[str, torch.Tensor], record: CheckpointRecord) -> None:
        run = self.lease.run
        if not run.path.is_dir():
            raise LeaseLostError(f"{run.run_id}: its folder is gone, and is not made anew")
        aside = run.checkpoint_aside(record.step, self.lease.attempt)
        planner = dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        try:
            dcp.save(staged, storage_writer=JsonIndexWriter(aside), planner=planner, process_group=self.group)
        except dcp.CheckpointException as error:
            if self.world.is_main:
                shutil.rmtree(aside, ignore_errors=True)  # half-written, it only takes room
            causes = "; ".join(f"rank {rank}: {failure}" for rank, (failure, _) in error.failures.items())
            raise CheckpointError(f"{aside} could not be written: {causes}") from error
        # save() returns once every rank's files are on disk and the index is written.
        if self.world.is_main:
            self._commit(aside, Checkpoint(run, record.step), record)
            self._prune()

    def _commit(self, aside: Path, final: Checkpoint, record: CheckpointRecord) -> None:
        write_json(aside / _RECORD, record.model_dump(mode="json"))
        files = {}
        for note in aside.glob("*.sha256"):
            entry = json.loads(note.read_text())
            files[entry.pop("name")] = entry
            note.unlink()
        for name in (_RECORD, INDEX):
            files[name] = describe(aside / name)
        _sync(aside)
        _sync(self.lease.run.metrics_file)  # rows up to this step are as durable as the step
        with self.lease.held():
            if final.path.is_symlink() or final.path.is_file():
                final.path.unlink()  # none of ours
            elif final.path.exists():
                shutil.rmtree(final.path)  # left incomplete by a kill, or a dead branch's
            os.rename(aside, final.path)
            self._mark_complete(final, files)

    def _mark_complete(self, checkpoint: Checkpoint, files: dict[str, Any]) -> None:
        write_json(checkpoint.run.checkpoint_mark(checkpoint.step), {"files": files})
        _sync(checkpoint.path)
        _sync(checkpoint.path.parent)

    def _prune(self) -> None:
        """Drop all but the last few checkpoints, those at fork points, and what other attempts left half-written."""
        run = self.lease.run
        rolling = [step for step in run.checkpoint_steps() if step not in self.keep_steps]
        for step in rolling[self.keep :]:
            run.checkpoint_mark(step).unlink()  # first, so that a kill leaves nothing that only looks complete
            shutil.rmtree(run.checkpoint(step))
        for left_behind in run.checkpoints_aside():
            shutil.rmtree(left_behind, ignore_errors=True)


def _copy_to_cpu(tensor: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
    """A copy of a tensor, or of this rank's shard of it; written over the copy before, where there is one."""
    if before is None:
        return tensor.detach().clone() if tensor.device.type == "cpu" else tensor.detach().cpu()
    local_shard(before).copy_(local_shard(tensor.detach()), non_blocking=True)
    return before


def _lock_pages(copies: Iterable[torch.Tensor]) -> None:
    """Keep host copies where they are, so that a GPU writes to them itself: into pages that may move, it does not.

    Where the system lets a process lock no more memory, later copies are as slow as the first one, which is said.
    """
    for copy in map(local_shard, copies):
        refused = torch.cuda.cudart().cudaHostRegister(copy.data_ptr(), copy.nbytes, 0)
        if int(refused) != 0:
            print(f"checkpoints are copied slowly: {copy.nbytes:,} bytes could not be locked ({refused})", flush=True)
            return


def _sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    if not path.exists():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
