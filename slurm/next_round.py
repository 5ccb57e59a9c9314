"""The next round of an adaptive sweep: a job that waits for those of this round and submits the sweep again.

`python -m slurm.next_round` runs in the job's folder, below the sweep's. Between two rounds nothing of ours is alive:
Slurm starts this job when every run of the round has ended, however it ended.
"""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from orchestrator.execution.detached import submission
from slurm import commands
from slurm.executor import SlurmExecutor, numbers_of
from slurm.script import script
from slurm.site import Site
from xlstm.run.directory import WORKSPACE_VARIABLE, Workspace
from xlstm.run.executor import Handle
from xlstm.run.sweep_directory import SweepDirectory

COMMENT = "next-round"
"""By which the job is found in the queue."""


def submit_next(executor: SlurmExecutor, handles: Sequence[Handle]) -> str | None:
    """Have the sweep submitted again when these jobs have ended; returns the job's number.

    None where a job waits for that already. SlurmError where Slurm refuses.
    """
    waiting = [job for job in commands.squeue(executor.job_name) if job.comment == COMMENT]
    if any(not job.has_ended and not job.is_running for job in waiting):
        return None
    site = (executor.site or Site.load(executor.workspace)).for_run({})
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = executor.workspace.sweep(executor.sweep).slurm / f"{stamp}-{COMMENT}-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    numbers = [number for handle in handles for number in numbers_of(handle)]
    text = script(
        folder,
        site,
        name=executor.job_name,
        comment=COMMENT,
        nodes=1,
        gpus=0,
        parts=1,
        dependency=f"afterany:{':'.join(numbers)}" if numbers else None,
        module="slurm.next_round",
    )
    path = folder / "script.sh"
    path.write_text(text)
    return commands.sbatch(path)


def main() -> int:
    sweep = SweepDirectory(Path.cwd().parents[1])
    # What Slurm says of this job would be taken for what is asked of the next ones.
    environment = commands.environment(os.environ) | {WORKSPACE_VARIABLE: str(sweep.root)}
    command = submission(Workspace(sweep.root), sweep.name, "slurm")
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
