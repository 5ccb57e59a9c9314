"""The MLflow server on a workspace."""

import os
import sys
from typing import NoReturn

from orchestrator.errors import InputError
from xlstm.run.directory import Workspace
from xlstm.run.secrets import masked
from xlstm.run.tracking import charts_link, experiments


def serve(workspace: Workspace, host: str, port: int) -> NoReturn:
    """Become the MLflow server: this process is replaced. InputError where the tracking store is a server already."""
    if workspace.tracking_uri.startswith(("http://", "https://")):
        raise InputError(f"the tracking store is a server already: open {masked(workspace.tracking_uri)}")
    print(f"MLflow on {workspace.root}: http://{host}:{port}  (Ctrl-C ends it)")
    for sweep, experiment in experiments(workspace.tracking_uri).items():
        print(f"charts of {sweep}: http://{host}:{port}{charts_link(experiment)}")
    sys.stdout.flush()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"),
        *("--artifacts-destination", str(workspace.artifacts)),
    ]
    # In the environment, since everybody reads the command lines of a machine.
    os.execve(sys.executable, command, os.environ | {"MLFLOW_BACKEND_STORE_URI": workspace.tracking_uri})
