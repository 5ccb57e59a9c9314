"""Slurm's own commands, called without a shell, and what they answer."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_SECONDS = 120.0
_SUBMITTED = re.compile(r"Submitted batch job (\d+)")
_ENDED = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
    }
)
_RUNNING = frozenset(("RUNNING", "COMPLETING", "CONFIGURING", "STAGE_OUT", "SIGNALING", "STOPPED", "SUSPENDED"))
_ORDINARY = frozenset({"", "None", "Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit", "Cleaning"})
"""Reasons for which a job waits where all is well."""


class SlurmError(RuntimeError):
    """One of Slurm's commands failed: which, and what it said."""


class NoAccountingError(SlurmError):
    """The site keeps no accounts, or they cannot be reached."""


@dataclass(frozen=True)
class QueuedJob:
    """A job as Slurm shows it."""

    number: str
    state: str
    reason: str = ""
    comment: str = ""

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED

    @property
    def is_running(self) -> bool:
        return self.state in _RUNNING

    @property
    def obstacle(self) -> str:
        """What keeps a waiting job from its turn, in Slurm's words, where that is more than its place in the queue."""
        return self.reason if self.state == "PENDING" and self.reason not in _ORDINARY else ""


def sbatch(script: Path) -> str:
    """Submit a script from its folder; returns the job's number. SlurmError says what sbatch said.

    An error does not mean that the job was refused: sbatch may give up waiting after the controller took the job.
    """
    answer = _call(["sbatch", script.name], folder=script.parent)
    if match := _SUBMITTED.search(answer):
        return match[1]
    raise SlurmError(f"sbatch answered {answer.strip()!r}, which names no job")


def squeue(name: str) -> list[QueuedJob]:
    """All jobs of one name that Slurm still shows: waiting, running, and for some minutes those that ended."""
    arguments = ["squeue", "--noheader", "--array", f"--name={name}", "--states=all", "--format=%i|%T|%r|%k"]
    return [QueuedJob(*line.split("|", 3)) for line in _call(arguments).splitlines() if line]


def sacct(numbers: Sequence[str]) -> list[QueuedJob]:
    """Jobs, also long ended, from the accounts. NoAccountingError where the site keeps none."""
    wanted = ",".join(dict.fromkeys(number.partition("_")[0] for number in numbers))
    arguments = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={wanted}"]
    try:
        answer = _call([*arguments, "--format=JobID,State"])
    except SlurmError as error:
        raise NoAccountingError(str(error)) from None
    rows = (line.split("|") for line in answer.splitlines() if line)
    # `CANCELLED by 1000`: the state is the first word, the rest says who.
    return [
        QueuedJob(number, state.partition(" ")[0], state.partition(" ")[2])
        for numbers, state in rows
        for number in expand(numbers)
    ]


def expand(numbers: str) -> list[str]:
    """The jobs that a row of sacct stands for: `12_[0-2,7%4]`, those of an array that never started, are four."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", numbers)
    if match is None:
        return [numbers]
    ranges = [part.partition("-") for part in match[2].split(",")]
    indices = [index for first, _, last in ranges for index in range(int(first), int(last or first) + 1)]
    return [f"{match[1]}_{index}" for index in indices]


def job_fields(number: str) -> dict[str, str]:
    """What `scontrol show job` tells of one job: JobState, Requeue, and so on. SlurmError where it is not known."""
    answer = _call(["scontrol", "--oneliner", "show", "job", number])
    return dict(word.split("=", 1) for word in answer.splitlines()[0].split() if "=" in word)


def node_address(node: str) -> str:
    """The address at which Slurm reaches a node. SlurmError where there is no such node."""
    answer = _call(["scontrol", "--oneliner", "show", "node", node])
    fields = dict(word.split("=", 1) for word in answer.split() if "=" in word)
    return fields.get("NodeAddr", node)


def has_gpus() -> bool:
    """Whether any node of the site offers GPUs."""
    return "gpu" in _call(["sinfo", "--noheader", "--format=%G"])


def nodes() -> list[str]:
    """Names of all nodes."""
    return sorted(set(_call(["sinfo", "--noheader", "--Node", "--format=%N"]).split()))


def partitions() -> list[str]:
    """Names of all partitions that this user may see."""
    return sorted(set(_call(["sinfo", "--noheader", "--format=%R"]).split()))


def configuration() -> dict[str, str]:
    """The controller's settings, by name."""
    lines = (line.partition("=") for line in _call(["scontrol", "show", "config"]).splitlines())
    return {name.strip(): value.strip() for name, separator, value in lines if separator}


def requeue(number: str) -> None:
    """Stop a job and let it wait again under its own number."""
    _call(["scontrol", "requeue", number])


def forbid_requeue(numbers: Sequence[str]) -> None:
    """From now on these jobs end for good when they end."""
    _call(["scontrol", "update", f"JobId={','.join(numbers)}", "Requeue=0"])


def scancel(numbers: Sequence[str], *, signal: str | None = None) -> None:
    """End jobs, or send a signal to the processes on their nodes."""
    _call(["scancel", "--quiet", *([f"--signal={signal}"] if signal else []), *numbers])


def leave_queue(waiting: Sequence[str]) -> None:
    """End jobs that wait, array after array, the last one first: jobs wait for such as were submitted before them.

    Slurm forgets a waiting job of an array that is cancelled, and then starts what was to wait for it.
    """
    arrays: dict[int, list[str]] = {}
    for number in waiting:
        arrays.setdefault(int(number.partition("_")[0]), []).append(number)
    for array in sorted(arrays, reverse=True):
        scancel(arrays[array])


def _call(command: Sequence[str], *, folder: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
    except FileNotFoundError:
        raise SlurmError(f"{command[0]} is not on this machine; `scaling slurm check` says what is missing") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within {TIMEOUT_SECONDS:.0f} s") from None
    if done.returncode:
        raise SlurmError(f"{command[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def environment(current: Mapping[str, str]) -> dict[str, str]:
    """An environment for jobs: without the traces of a job that submits them, and with absolute paths to our code."""
    kept = {
        name: value
        for name, value in current.items()
        if name in ("SLURM_CONF", "SLURM_CLUSTERS") or not name.startswith(("SLURM_", "SLURMD_", "SBATCH_", "SRUN_"))
    }
    if path := kept.get("PYTHONPATH"):
        kept["PYTHONPATH"] = os.pathsep.join(str(Path(entry).absolute()) for entry in path.split(os.pathsep) if entry)
    return kept
