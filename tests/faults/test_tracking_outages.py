"""An MLflow server that is down, dies, or hangs: training does not notice, and afterwards nothing is missing."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from launching import free_port, losses, make_run, start
from mlflow.tracking import MlflowClient
from waiting import wait_until

from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.records import State
from xlstm.run.tracking import sync
from xlstm.run.tracking.store import TIMEOUT_SECONDS

pytestmark = [pytest.mark.serial, pytest.mark.slow]

SWEEP = "outages"


@contextmanager
def server(folder: Path, port: int) -> Iterator[str]:
    """A real MLflow server over the store in `folder`, killed at the end."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--default-artifact-root", str(folder / "artifacts")]
    log = open(folder / "server.log", "ab")  # noqa: SIM115
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=dict(os.environ))
    try:
        wait_until(lambda: process.poll() is not None or _answers(port))
        assert process.poll() is None, (folder / "server.log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 9)
        process.wait()
        log.close()


@contextmanager
def silence(port: int) -> Iterator[None]:
    """A server that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(64)
        yield


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        try:
            probe.connect(("127.0.0.1", port))
            probe.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return b"200" in probe.recv(64)
        except OSError:
            return False


def history(uri: str, run: RunDirectory) -> list[tuple[int, float]]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(SWEEP)
    assert experiment is not None
    (child,) = client.search_runs([experiment.experiment_id], f"tags.run_id = '{run.run_id}'")
    points = client.get_metric_history(child.info.run_id, "train/loss")
    return [(point.step, point.value) for point in sorted(points, key=lambda p: p.step)]


def test_outages_of_every_kind_lose_nothing_and_delay_little(tmp_path: Path) -> None:
    run = make_run(Workspace(tmp_path / "workspace"), steps=300)
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    store = tmp_path / "server"

    start(run).wait_for_checkpoint().kill()
    assert not sync(run, SWEEP, uri).ok  # nobody is there
    with silence(port):
        began = time.monotonic()
        assert not sync(run, SWEEP, uri).ok
        assert time.monotonic() - began < 4 * TIMEOUT_SECONDS
    with server(store, port):
        wait_until(lambda: sync(run, SWEEP, uri).ok)  # a server that just woke may still be slow
        assert history(uri, run) == losses(run)
        second = start(run)
        second.wait_for_step(1)
    assert not sync(run, SWEEP, uri).ok  # killed in the middle
    second.completed()
    run.set_state(State.COMPLETED)
    with server(store, port):
        for _ in range(2):
            wait_until(lambda: sync(run, SWEEP, uri).ok)
            assert history(uri, run) == losses(run)
            assert [step for step, _ in history(uri, run)] == list(range(1, 301))
