"""Finds what people name: a workspace to write to, the plan of a submitted sweep, a run by a part of its id."""

import os
import tempfile
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError
from sweeps.located import Problem, SweepError
from xlstm.quantities import nearest
from xlstm.run.directory import WORKSPACE_VARIABLE, RunDirectory, Workspace
from xlstm.run.files import SET_ASIDE


def writable_workspace(workspace: Workspace | None = None) -> Workspace:
    """The workspace, by default the one of this shell, made if missing. InputError where it cannot be written."""
    workspace = workspace or Workspace.default()
    try:
        for folder in (workspace.root, workspace.runs, workspace.sweeps, workspace.data):
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workspace.runs):
            pass
    except OSError as error:
        raise InputError(
            f"workspace {workspace.root} cannot be written: {error.strerror}; "
            f"set {WORKSPACE_VARIABLE} to a folder of yours"
        ) from None
    return workspace


def load_document(workspace: Workspace, name: str) -> dict[str, Any]:
    """The saved plan of a submitted sweep. SweepError naming the nearest one for a name that was never submitted."""
    try:
        if Path(name).name != name:  # a path is no name, wherever it leads
            raise FileNotFoundError(name)
        return workspace.sweep(name).plan()
    except FileNotFoundError:
        names = workspace.submitted()
        hint = nearest(name, names) if names else "none was submitted here yet: scaling submit SWEEP.yaml --on local"
        raise SweepError([Problem(str(workspace.sweeps), 0, f"no sweep `{name}`; {hint}")]) from None


def find_run(workspace: Workspace, name: str) -> RunDirectory:
    """The run with this id, or the only one whose id contains it. InputError for none or several."""
    names = os.listdir(workspace.runs) if workspace.runs.is_dir() else []
    known = sorted(one for one in names if not one.endswith(SET_ASIDE))
    if name in known:
        return workspace.run(name)
    found = [run_id for run_id in known if name in run_id]
    if len(found) == 1:
        return workspace.run(found[0])
    if found:
        listed = ", ".join(found[:8]) + (", …" if len(found) > 8 else "")
        raise InputError(f"`{name}` may be {len(found)} runs: {listed}")
    hint = nearest(name, known) if known else "no run was started yet: scaling submit SWEEP.yaml --on local"
    raise InputError(f"no run `{name}` in {workspace.runs}; {hint}")
