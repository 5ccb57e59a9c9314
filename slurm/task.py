"""One node's part of an attempt: `srun … python -m slurm.task RENDEZVOUS …` becomes the supervisor of its node."""

import os
import signal
import sys

from orchestrator.execution.command import command
from slurm.commands import environment


def main() -> None:
    """Exec the supervisor with this node's rank. What follows the rendezvous is handed on."""
    # Ignored until the supervisor has its own handler: by default the signal would end the task without a verdict.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    rendezvous, *told = sys.argv[1:]
    kept = environment(os.environ) | {name: os.environ[name] for name in _TOLD if name in os.environ}
    line = command(told, node_rank=int(os.environ["SLURM_NODEID"]), rendezvous=rendezvous)
    os.execve(sys.executable, line, kept)


_TOLD = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SLURM_JOB_NODELIST")
"""What the trainer may record of the job. The rest of Slurm's variables would mislead what it starts."""


if __name__ == "__main__":
    main()
