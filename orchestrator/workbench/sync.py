"""Makes MLflow equal the run directories of a workspace."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from orchestrator.errors import InputError
from orchestrator.execution.shipping import publish, ship
from orchestrator.standing.lookup import load_document
from orchestrator.workbench.analyses.live_fit import live_fit
from orchestrator.workbench.mending import mend_plan
from orchestrator.workbench.slurm import reconcile
from xlstm.run import tracking
from xlstm.run.directory import Workspace
from xlstm.run.json_files import DamagedFileError
from xlstm.run.tracking.secrets import masked


def sync(workspace: Workspace, say: Callable[[str], object] = lambda line: None) -> list[str]:
    """Ship all that was submitted; returns what is damaged or was refused. InputError where there is no store.

    ModuleNotFoundError where there is something to ship and MLflow is not installed.
    """
    complaint = tracking.open_store(workspace.tracking_uri, workspace.artifacts)
    if complaint and find_spec("mlflow") is None:
        raise ModuleNotFoundError("No module named 'mlflow'", name="mlflow")
    if complaint:
        raise InputError(f"MLflow cannot be reached: {complaint}")
    problems: list[str] = []
    for name in workspace.submitted():
        try:
            mend_plan(workspace, name)
            run_ids = [row["run_id"] for row in load_document(workspace, name)["runs"]]
        except DamagedFileError as error:
            problems.append(f"{name}: {error}")
            continue
        try:
            reconcile(workspace, name)
        except DamagedFileError as error:
            problems.append(f"{name}: {error}")
        shipped, complaint = ship(workspace, name, run_ids, problems.append)
        complaint = complaint or publish(workspace, name, partial(live_fit, workspace, name))
        if complaint:
            problems.append(f"{name}: {complaint}")
        else:
            say(f"{name}: {len(shipped)} runs equal their directories in {masked(workspace.tracking_uri)}")
    return problems
