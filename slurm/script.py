"""The batch script of an array, written by submitit.

Of submitit we take the script: which options sbatch knows, how they are named and quoted, arrays, set-up lines. We do
not take its job function: it pickles what it runs, moves the pickle to the job's folder after sbatch has answered (so
that a job whose number got lost cannot start), gives up after three time-outs, and its signal would end torchrun
without a checkpoint. What a job does is `slurm.job`.

No name or path of a sweep stands in the script. sbatch is called in the batch's folder, the log and `batch.json` are
named relative to it, and all else is in `batch.json`, which no shell reads.
"""

import shlex
import sys
from pathlib import Path

import submitit

from slurm.site import Site

SIGNAL = "USR2"
"""Sent to the supervisors ahead of the time limit: write a checkpoint and end. NCCL may catch USR1."""

_SAME_NAMES = (
    "partition",
    "account",
    "qos",
    "constraint",
    "gres",
    "nodelist",
    "exclude",
    "mem",
    "time",
    "cpus_per_task",
)


def script(
    folder: Path,
    site: Site,
    *,
    name: str,
    comment: str,
    nodes: int,
    gpus: int,
    parts: int,
    dependency: str | None,
    module: str = "slurm.job batch.json",
) -> str:
    """Text of the script for `parts` jobs of one shape: `nodes` nodes with `gpus` GPUs each.

    `dependency` says, as sbatch takes it, which jobs must have ended first; `site` holds what is asked of Slurm, and
    `module` what Python runs.
    """
    executor = submitit.SlurmExecutor(folder)
    ours = {
        "output": "%A_%a.log" if parts > 1 else "%j.log",
        "signal": f"{SIGNAL}@{site.signal_seconds}",
        "requeue": True,
        # Jobs whose dependency can no longer hold would wait for ever.
        "kill-on-invalid-dep": "yes",
    }
    reservation = {"reservation": site.reservation} if site.reservation else {}
    executor.update_parameters(
        job_name=name,
        comment=comment,
        nodes=nodes,
        ntasks_per_node=1,
        gpus_per_node=gpus if gpus and not site.gres else None,
        dependency=dependency,
        setup=site.setup or None,
        array_parallelism=site.array_parallelism,
        stderr_to_stdout=True,
        use_srun=False,
        wckey=None,
        exclusive=site.exclusive or None,
        additional_parameters=reservation | site.sbatch | ours,
        **{option: getattr(site, option) for option in _SAME_NAMES},
    )
    if parts > 1:
        executor.parameters["map_count"] = parts
    python = site.python or shlex.quote(sys.executable)
    # exec: Slurm's signals then reach our process and not a shell that waits for it.
    text: str = executor._make_submission_file_text(f"exec {python} -m {module}", "")
    return text
