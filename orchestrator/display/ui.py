"""The MLflow server on a workspace."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
import webbrowser
from collections.abc import Callable

from orchestrator.errors import InputError
from xlstm.run.directory import Workspace
from xlstm.run.tracking import embedded
from xlstm.run.tracking.charts import charts_link
from xlstm.run.tracking.secrets import masked
from xlstm.run.tracking.store import experiments

START_SECONDS = 300.0
"""After which a server that has not answered is given up: on a busy machine it takes more than a minute."""


def serve(workspace: Workspace, host: str, port: int, ship: Callable[[], object], *, open_browser: bool = False) -> int:
    """Run the MLflow server until it ends; its links are printed once it answers. Returns its exit code.

    `ship` makes the store equal the workspace. A store that is there is served meanwhile; a fresh one is made by `ship`
    alone, as two that make one SQLite file lose runs. InputError where the tracking store is a server already, or the
    server does not come up.
    """
    if workspace.tracking_uri.startswith(("http://", "https://")):
        raise InputError(f"the tracking store is a server already: open {masked(workspace.tracking_uri)}")
    if not (ready := embedded.is_ready(workspace.tracking_uri, workspace.artifacts)):
        ship()
    address = f"http://{host}:{port}"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that who ends this process ends the server
    server = _start(workspace, host, port)
    try:
        if ready:
            ship()
        _await(server, address)
        links = {
            name: address + charts_link(one)
            for name, one in experiments(workspace.tracking_uri, workspace.artifacts).items()
        }
        print(f"MLflow on {workspace.root}: {address}  (Ctrl-C ends it)")
        for sweep, link in links.items():
            print(f"charts of {sweep}: {link}")
        sys.stdout.flush()
        if open_browser:
            latest = next((links[name] for name in workspace.submitted() if name in links), address)
            webbrowser.open(latest)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        server.wait()


def _start(workspace: Workspace, host: str, port: int) -> "subprocess.Popen[bytes]":
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"),
        *("--artifacts-destination", str(workspace.artifacts)),
    ]
    # Jobs that judge traces of language models: seven processes that take longer to start than the server.
    needless = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"} | needless
    store = {"MLFLOW_BACKEND_STORE_URI": workspace.tracking_uri}  # everybody reads the command lines of a machine
    return subprocess.Popen(command, env=quiet | os.environ | store)


def _await(server: "subprocess.Popen[bytes]", address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if (code := server.poll()) is not None:
            raise InputError(f"the MLflow server ended with exit code {code} before it answered at {address}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise InputError(f"the MLflow server did not answer at {address} within {START_SECONDS:.0f} s")
