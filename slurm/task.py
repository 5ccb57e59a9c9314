"""One node's part of an attempt: `srun … python -m slurm.task RUN_DIRECTORY …` becomes the supervisor of its node."""

import os
import signal
import sys

from slurm.commands import environment


def main() -> None:
    """Exec the supervisor with this node's rank. All arguments are handed on."""
    # Ignored until the supervisor has its own handler: by default the signal would end the task without a verdict.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    rank = os.environ["SLURM_NODEID"]
    kept = environment(os.environ) | {name: os.environ[name] for name in _TOLD if name in os.environ}
    command = [sys.executable, "-m", "orchestrator.supervisor", *sys.argv[1:], "--node-rank", rank]
    os.execve(sys.executable, command, kept)


_TOLD = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SLURM_JOB_NODELIST")
"""What the trainer may record of the job. The rest of Slurm's variables would mislead what it starts."""


if __name__ == "__main__":
    main()
