"""Where a result comes from: code, versions, host. Recorded per attempt, so that a number can be traced."""

import json
import os
import platform
import socket
import subprocess
import sys
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from xlstm.run.tracking.secrets import masked

SHIPPED = "scaling_code"
"""Package that travels with shipped code, which has left its repository."""
_PACKAGES = ("torch", "triton", "numba", "numpy", "mlflow", "pydantic", "scaling-orchestrator")


def collect() -> dict[str, Any]:
    """Git revision and difference of the code, versions of what computes, and the host. Null where there is no git.

    Secrets of the environment are masked.
    """
    revision, difference = code()["git_revision"], code()["git_difference"]
    return {
        "git_revision": revision,
        "git_difference": None if difference is None else masked(difference),
        "python": sys.version.split()[0],
        "packages": {name: version for name in _PACKAGES if (version := version_of(name))},
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "command": [masked(argument) for argument in sys.argv],
    }


@cache
def code() -> dict[str, str | None]:
    """Git revision and difference; of code that was shipped to this node, those of whoever shipped it."""
    try:
        shipped: dict[str, str | None] = json.loads(resources.files(SHIPPED).joinpath("code.json").read_text())
    except ModuleNotFoundError:
        return {"git_revision": _git("rev-parse", "HEAD"), "git_difference": _git("diff", "HEAD")}
    return shipped


def leave_for_shipping(folder: Path) -> Path:
    """Make the package that tells shipped code where it comes from; returns its folder, within `folder`.

    Secrets are masked here: a node does not know those of whoever submits.
    """
    package = folder / SHIPPED
    package.mkdir()
    (package / "__init__.py").touch()
    told = {name: text and masked(text) for name, text in code().items()}
    (package / "code.json").write_text(json.dumps(told))
    return package


def _git(*arguments: str) -> str | None:
    root = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="backslashreplace", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def version_of(package: str) -> str | None:
    """The version of a package that is installed here, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
