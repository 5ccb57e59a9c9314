"""Where a result comes from: code, versions, host. Recorded per attempt, so that a number can be traced."""

import os
import platform
import socket
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "triton", "numpy", "mlflow", "pydantic", "scaling-orchestrator")


def collect() -> dict[str, Any]:
    """Git revision and difference of the code, versions of what computes, and the host. Null where there is no git."""
    return _code() | {
        "python": sys.version.split()[0],
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "command": sys.argv,
    }


@cache
def _code() -> dict[str, str | None]:
    return {"git_revision": _git("rev-parse", "HEAD"), "git_difference": _git("diff", "HEAD")}


def _git(*arguments: str) -> str | None:
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
