"""An MLflow server that is down, dies, or hangs: training does not notice, and afterwards nothing is missing."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gates import held_at
from launching import losses, make_run, start
from mlflow.tracking import MlflowClient
from ports import free_port
from waiting import wait_until

from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.records import State
from xlstm.run.tracking import sync

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
def silence(port: int) -> Iterator[socket.socket]:
    """A server that lets itself be connected to, as often as it is asked, and never answers."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(64)
        listening.setblocking(False)
        yield listening


def times_asked(listening: socket.socket) -> int:
    """How often a server was connected to."""
    for count in range(65):
        try:
            listening.accept()[0].close()
        except BlockingIOError:
            return count
    raise AssertionError("as often as it can count")


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

    with held_at(run.workspace, 20):
        start(run).wait_for_checkpoint().kill()
    assert not sync(run, SWEEP, uri).ok  # nobody is there
    with silence(port) as listening:
        assert not sync(run, SWEEP, uri).ok
        assert 1 <= times_asked(listening) < 4  # each time for no longer than `TIMEOUT_SECONDS`
    with held_at(run.workspace, 100):
        with server(store, port):
            wait_until(lambda: sync(run, SWEEP, uri).ok)  # a server that just woke may still be slow
            assert history(uri, run) == losses(run)
            second = start(run).wait_for_step(100)
        assert not sync(run, SWEEP, uri).ok  # killed in the middle
    second.completed()
    run.set_state(State.COMPLETED)
    with server(store, port):
        for _ in range(2):
            wait_until(lambda: sync(run, SWEEP, uri).ok)
            assert history(uri, run) == losses(run)
            assert [step for step, _ in history(uri, run)] == list(range(1, 301))
