"""What an attempt ran: code, versions, machine. Written to `attempts/<n>/provenance.json`."""

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = ("scaling-orchestrator", "torch", "triton", "numpy", "pydantic", "tokenizers")


def provenance() -> dict[str, Any]:
    """Commit and uncommitted difference of the code, versions of what computes, and the machine."""
    source = Path(__file__).parents[2]
    return {
        "commit": _git(source, "rev-parse", "HEAD"),
        "difference": _git(source, "diff", "HEAD"),
        "python": sys.version,
        "packages": {name: _version(name) for name in _PACKAGES},
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "command": sys.argv,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of git, or None outside a repository."""
    try:
        ended = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout.strip() if ended.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
