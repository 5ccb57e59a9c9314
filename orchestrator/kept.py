"""The plans kept in a workspace: what status, analysis and cancelling read, without planning anything."""

import json
from typing import Any

from sweeps.located import Problem, SweepError, nearest
from xlstm.run.directory import Workspace


def load_document(workspace: Workspace, name: str) -> dict[str, Any]:
    """The kept plan of a submitted sweep. SweepError naming the nearest one for a name that was never submitted."""
    path = workspace.sweeps / name / "plan.json"
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        names = submitted(workspace)
        hint = nearest(name, names) if names else "none was submitted here yet: scaling submit SWEEP.yaml --on local"
        raise SweepError([Problem(str(workspace.sweeps), 0, f"no sweep `{name}`; {hint}")]) from None
    return document


def submitted(workspace: Workspace) -> list[str]:
    """Names of the sweeps that were submitted to a workspace, the latest first."""
    plans = sorted(workspace.sweeps.glob("*/plan.json"), key=lambda path: -path.stat().st_mtime)
    return [path.parent.name for path in plans]
