"""What was handed to Slurm, as files: one folder per array, written before sbatch is called.

    <workspace>/sweeps/<sweep>/slurm/<batch>/
      batch.json     the runs of the array, by index
      script.sh      as sbatch took it
      submitted.json Slurm's number of the array, once it is known
      <job>.log      what the jobs themselves say

A job finds its run by its index in the array, never by its number, so a job whose number never reached us still knows
what to do.
"""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.json_files import DamagedFileError, read_record
from xlstm.run.records import Fork, Record, write_json
from xlstm.run.sweep_directory import SweepDirectory


class Part(Record):
    """One job: a run, or, where other runs fork from it, the part of a run up to a fork point."""

    run_id: str
    token: str
    """Every attempt of this job trains under a lease whose token begins with this."""
    fork: Fork | None = None
    checkpoint_at: tuple[int, ...] = ()
    until: int | None = None
    """Step whose checkpoint ends this job; None for the end of the run."""


class Contents(Record):
    """`batch.json`."""

    parts: tuple[Part, ...]
    nodes: int
    cpus_per_task: int
    container: tuple[str, ...] = ()
    python: str = ""
    """Python on the nodes; empty for the one that runs the job."""
    srun: tuple[str, ...] = ()


class Submitted(Record):
    """`submitted.json`."""

    number: str


@dataclass(frozen=True)
class Batch:
    """One array of jobs, or a single job, and its folder."""

    folder: Path

    @property
    def id(self) -> str:
        """Unique name, which Slurm keeps as the jobs' comment."""
        return self.folder.name

    @property
    def workspace(self) -> Workspace:
        return Workspace(SweepDirectory(self.folder.parents[1]).root)

    @property
    def sweep(self) -> str:
        return SweepDirectory(self.folder.parents[1]).name

    @property
    def script(self) -> Path:
        return self.folder / "script.sh"

    def contents(self) -> Contents:
        """What was handed over. DamagedFileError where it is missing or damaged: its jobs cannot be told apart."""
        path = self.folder / "batch.json"
        remedy = f"cancel the jobs whose comment in Slurm is {self.id}, and remove {self.folder}"
        found = read_record(path, Contents, remedy)
        if found is None:
            raise DamagedFileError(path, "is missing", remedy)
        return found

    def write(self, contents: Contents) -> None:
        self.folder.mkdir(parents=True)
        write_json(self.folder / "batch.json", contents.model_dump(mode="json"))

    def number(self) -> str | None:
        """Slurm's number of the array, or None where sbatch has not answered."""
        path = self.folder / "submitted.json"
        found = read_record(path, Submitted, "delete it: Slurm is asked for the number")
        return found.number if found is not None else None

    def set_number(self, number: str) -> None:
        write_json(self.folder / "submitted.json", Submitted(number=number).model_dump())

    def remove(self) -> None:
        """Take back a batch that Slurm refused, and the folder of all batches if it was the only one."""
        shutil.rmtree(self.folder)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()

    def run(self, part: Part) -> RunDirectory:
        return self.workspace.run(part.run_id)


def job_number(number: str, index: int, parts: int) -> str:
    """Slurm's name of one job: `12_3` in an array, `12` alone."""
    return number if parts == 1 else f"{number}_{index}"


def batches_of(workspace: Workspace, sweep: str) -> list[Batch]:
    """Every batch of a sweep, oldest first."""
    return [Batch(path.parent) for path in sorted(workspace.sweep(sweep).slurm.glob("*/batch.json"))]
