"""The plans kept in a workspace: what status, analysis and cancelling read, without planning anything."""

from typing import Any

from sweeps.located import Problem, SweepError
from xlstm.quantities import nearest
from xlstm.run.directory import Workspace


def load_document(workspace: Workspace, name: str) -> dict[str, Any]:
    """The kept plan of a submitted sweep. SweepError naming the nearest one for a name that was never submitted."""
    try:
        return workspace.sweep(name).plan()
    except FileNotFoundError:
        names = workspace.submitted()
        hint = nearest(name, names) if names else "none was submitted here yet: scaling submit SWEEP.yaml --on local"
        raise SweepError([Problem(str(workspace.sweeps), 0, f"no sweep `{name}`; {hint}")]) from None
