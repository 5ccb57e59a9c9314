"""What a site offers and what it lacks, before the first job: `look` reads, `probe` runs one small job.

`python -m slurm.check FOLDER` is what the probe runs on each node.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.execution.provenance import version_of
from slurm import commands
from slurm.commands import NoAccountingError, SlurmError
from slurm.job import resolves
from slurm.site import Site, SiteError
from xlstm.quantities import nearest
from xlstm.run.directory import Workspace

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
SHARED_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "fuse.ceph", "wekafs", "panfs", "pvfs2", "orangefs", "cifs"}
)
LEAST_KILL_WAIT = 30
"""Seconds between SIGTERM and SIGKILL below which a checkpoint may not be written when a job is requeued by hand."""
_MARKS = {True: "ok", False: "MISSING", None: "note"}
NODES_LOOKED_UP = 64
"""Names of so many nodes are resolved; they follow one pattern."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `ok` is None for what may be as it is but is worth knowing."""

    what: str
    ok: bool | None
    detail: str

    def __str__(self) -> str:
        """A line for people."""
        return f"{_MARKS[self.ok]:>8}  {self.what}: {self.detail}"


def look(workspace: Workspace) -> list[Finding]:
    """Everything that can be told from the login node without running a job."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        why = f"{', '.join(missing)} not found; is this a login node of the cluster?"
        return [Finding("commands", False, why), _settings(workspace)]
    findings = [Finding("commands", True, ", ".join(COMMANDS))]
    try:
        configuration = commands.configuration()
    except SlurmError as error:
        # Slurm tells the same in several lines; its last one is the verdict.
        return [
            *findings,
            Finding("controller", False, f"no answer: {str(error).splitlines()[-1]}"),
            _settings(workspace),
        ]
    findings.append(Finding("controller", True, configuration.get("SLURM_VERSION", "answers")))
    findings += [_settings(workspace, commands.partitions()), _file_system(workspace)]
    findings += [_node_names(), _gpus(), _accounting()]
    return [*findings, *_policies(configuration)]


def probe(workspace: Workspace, nodes: int, seconds: int = 300) -> list[Finding]:
    """Run one small job on `nodes` nodes: do they see the workspace, have our code, and reach each other by name?"""
    folder = workspace.root / f".slurm-check-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    site = Site.load(workspace)
    chosen = {name: getattr(site, name) for name in ("partition", "account", "qos", "constraint", "reservation")}
    options = [f"--{name}={value}" for name, value in chosen.items() if value]
    layout = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--time=5", *options]
    python = [*site.container, site.task_python or sys.executable]
    command = ["srun", "--quiet", *layout, *site.srun, *python, "-m", "slurm.check", str(folder)]
    try:
        done = subprocess.run(
            command, env=commands.environment(os.environ), capture_output=True, text=True, timeout=seconds, check=False
        )
        seen = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    except subprocess.TimeoutExpired:
        return [Finding("probe", False, f"the job did not end within {seconds} s; is the partition full?")]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if len(seen) < nodes:
        words = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return [
            Finding("workspace on the nodes", False, f"{len(seen)} of {nodes} nodes wrote to {workspace.root}: {words}")
        ]
    deaf = {one["node"]: one["unknown"] for one in seen if one["unknown"]}
    # Where no node knows the names, jobs meet at Slurm's addresses; where some do, the others wait in vain.
    known = True if not deaf else None if len(deaf) == len(seen) else False
    names = (
        f"{next(iter(deaf))} cannot resolve {', '.join(next(iter(deaf.values())))}"
        if deaf
        else "the nodes know each other"
    )
    torch = sorted({one["torch"] for one in seen})
    return [
        Finding("workspace on the nodes", True, f"{nodes} nodes read and write {workspace.root}"),
        Finding("names on the nodes", known, names),
        Finding("torch on the nodes", len(torch) == 1 and torch[0] != "", ", ".join(torch) or "not installed"),
    ]


def _settings(workspace: Workspace, partitions: Sequence[str] | None = None) -> Finding:
    """Whether the settings can be read, and, where it is known which `partitions` there are, theirs is one of them."""
    try:
        site = Site.load(workspace)
    except SiteError as error:
        return Finding("settings", False, str(error))
    if partitions is not None:
        unknown = [name for name in (site.partition or "").split(",") if name and name not in partitions]
        if unknown:
            return Finding(
                "settings", False, f"partition: there is no `{unknown[0]}`; {nearest(unknown[0], partitions)}"
            )
    stated = ", ".join(sorted(site.model_fields_set)) or "none; the site's defaults are used"
    return Finding("settings", True, stated)


def _file_system(workspace: Workspace) -> Finding:
    place = workspace.root.absolute()
    while not place.exists():
        place = place.parent
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(mount[1], mount[2]) for mount in mounts if place.is_relative_to(mount[1])]
    point, kind = max(holding, key=lambda mount: len(mount[0]), default=("/", "unknown"))
    if kind in SHARED_FILE_SYSTEMS:
        return Finding("shared file system", True, f"{workspace.root} is on {kind} at {point}")
    return Finding(
        "shared file system",
        None,
        f"{workspace.root} is on {kind} at {point}: every node must see the same files there; `--nodes 2` tries it",
    )


def _node_names() -> Finding:
    names = commands.nodes()[:NODES_LOOKED_UP]
    unknown = [name for name in names if not resolves(name)]
    if unknown:
        detail = f"{', '.join(unknown[:5])} cannot be resolved here; jobs fall back to the addresses that Slurm uses"
        return Finding("node names", None, detail)
    return Finding("node names", True, f"{len(names)} looked up")


def _gpus() -> Finding:
    if commands.has_gpus():
        return Finding("GPUs", True, "offered as gres/gpu")
    return Finding(
        "GPUs", None, "no node offers gres/gpu: runs are given no GPUs unless `gres` or `constraint` asks for them"
    )


def _accounting() -> Finding:
    try:
        commands.sacct(["1"])
    except NoAccountingError as error:
        return Finding("accounting", None, f"{error}; states come from squeue and the run directories")
    return Finding("accounting", True, "sacct answers")


def _policies(configuration: dict[str, str]) -> Iterator[Finding]:
    wait = int(configuration.get("KillWait", "30 sec").split()[0])
    short = (
        f"KillWait is {wait} s: a checkpoint must be written in that time when a job is requeued or cancelled by hand"
    )
    yield Finding("time to save", True if wait >= LEAST_KILL_WAIT else None, short)
    again = configuration.get("JobRequeue", "1") == "1"
    detail = "jobs may be requeued" if again else "JobRequeue=0; our jobs ask for --requeue themselves"
    yield Finding("requeue", True if again else None, detail)


def _on_node(folder: Path) -> None:
    """What one node of the probe sees."""
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    # Inside a container Slurm's commands may be missing; the names are then not looked up.
    ask = ["scontrol", "show", "hostnames"] if shutil.which("scontrol") else ["true"]
    listed = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.split()
    unknown = [name for name in listed if not resolves(name)]
    seen = {"node": node, "unknown": unknown, "torch": version_of("torch") or ""}
    (folder / f"{node}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    _on_node(Path(sys.argv[1]))
