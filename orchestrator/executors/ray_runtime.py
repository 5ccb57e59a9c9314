"""What we bring to a Ray cluster, and what its nodes must have.

Our code travels with the job; the nodes share the workspace and have installed what the code needs, which is checked
before anything starts.
"""

import hashlib
import importlib
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.errors import InputError
from orchestrator.execution import provenance
from orchestrator.execution.warm import COLD_START_VARIABLE
from xlstm.run.directory import Workspace

CHECK_SECONDS = 300.0
"""For every node to look around: its first task brings our code along, and starts a process on a busy machine."""
NAMESPACE = "scaling"
PACKAGES = ("analysis", "kernels", "orchestrator", "slurm", "sweeps", "xlstm")
"""What is shipped to the nodes."""
REQUIRED = ("torch", "numpy", "psutil", "pydantic", "tokenizers")
"""What trainers and their supervisors import, and nodes have installed."""


def connect(address: str | None) -> None:
    """Join the cluster at `address`, or this machine's, unless this process is in one. InputError if there is none."""
    if ray.is_initialized():
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            ray.init(
                address=address or "auto",
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level="warning",
                runtime_env=shipped(Path(folder)),
            )
    except (ConnectionError, ValueError) as error:
        where = address or "this machine"
        said = str(error).splitlines()[0] if isinstance(error, ValueError) else "start one with: ray start --head"
        raise InputError(f"--on ray: no cluster at {where}; {said}") from None


def workspace_key(workspace: Workspace) -> str:
    """What tells the actors of one workspace from those of another."""
    return hashlib.sha256(str(workspace.root).encode()).hexdigest()[:8]


def shipped(folder: Path) -> dict[str, Any]:
    """The runtime environment of everything we start in a cluster: this very code, wherever it lies here.

    `folder` holds what is to be shipped besides, until it was.
    """
    packages = [importlib.import_module(name).__path__[0] for name in PACKAGES]
    packages.append(str(provenance.leave_for_shipping(folder)))
    variables = {"PYTHONSAFEPATH": "1"}  # what lies where a raylet was started is not what was submitted
    variables |= {name: os.environ[name] for name in ("PYTHONPATH", COLD_START_VARIABLE) if name in os.environ}
    return {"py_modules": packages, "excludes": ["__pycache__"], "env_vars": variables}


def require_shared_workspace(workspace: Workspace) -> None:
    """InputError naming the nodes that do not see what this process writes to the workspace, or lack a library."""
    workspace.runs.mkdir(parents=True, exist_ok=True)
    probe = workspace.runs / f".probe-{uuid.uuid4().hex}"
    probe.write_text(probe.name)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        look = ray.remote(_look)
        places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        looks = [
            look.options(num_cpus=0, max_retries=0, scheduling_strategy=place).remote(str(probe)) for place in places
        ]
        ray.wait(looks, num_returns=len(looks), timeout=CHECK_SECONDS)
        problems = [_problem(node, seen, workspace) for node, seen in zip(nodes, looks, strict=True)]
    finally:
        probe.unlink()
    if found := [problem for problem in problems if problem]:
        raise InputError("\n".join(f"--on ray: {problem}" for problem in found))


def dead_nodes() -> set[str]:
    """Ids of the nodes that the cluster has lost."""
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


def _look(probe: str) -> tuple[bool, dict[str, str | None]]:
    """What a node sees: whether the probe is there as it was written, and its versions of what trainers import."""
    path = Path(probe)
    versions = {name: provenance.version_of(name) for name in REQUIRED}
    return path.exists() and path.read_text() == path.name, versions


def _problem(node: dict[str, Any], look: Any, workspace: Workspace) -> str | None:
    """What is wrong with a node, judged by its look around; None if nothing, or if it is gone by now."""
    name = node["NodeManagerHostname"]
    try:
        seen, versions = ray.get(look, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return None if node["NodeID"] in dead_nodes() else f"{name} did not answer within {CHECK_SECONDS:.0f} s"
    except ray.exceptions.RayTaskError as error:
        return f"{name} cannot run this package: {error.cause}"
    except ray.exceptions.RayError as error:
        return None if node["NodeID"] in dead_nodes() else f"{name} cannot start tasks: {str(error).splitlines()[0]}"
    if not seen:
        return f"{name} cannot read {workspace.root}; set SCALING_WORKSPACE to a folder that every node shares"
    if missing := [package for package, version in versions.items() if version is None]:
        return f"{name} lacks {', '.join(missing)}: install there what is installed here"
    if versions["torch"] != (here := provenance.version_of("torch")):
        return f"{name} has torch {versions['torch']}, here is {here}: results would depend on the node"
    return None
