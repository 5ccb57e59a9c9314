"""Ranks meet although ports are taken and an earlier attempt has left its traces."""

import os
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from gates import held_at
from launching import make_run
from ports import free_port
from waiting import wait_until

from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.processes import tagged

pytestmark = [pytest.mark.serial, pytest.mark.slow, pytest.mark.usefixtures("gated")]


def start_nodes(
    run: RunDirectory, endpoint: str, environment: dict[str, str]
) -> tuple[str, list[subprocess.Popen[bytes]]]:
    """One supervisor per node of two, both on this machine, meeting at `endpoint`."""
    token = uuid.uuid4().hex
    command = [sys.executable, "-m", "orchestrator.execution.supervisor", str(run.path), "--token", token]
    command += ["--rendezvous", endpoint, "--node-rank"]
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    with open(run.path / "supervisor.log", "ab") as log:
        nodes = [subprocess.Popen([*command, rank], env=variables, stdout=log, stderr=log) for rank in "01"]
    return token, nodes


def test_the_nodes_meet_again_at_the_port_of_their_killed_attempt_whatever_the_environment_says(tmp_path: Path) -> None:
    run = make_run(Workspace(tmp_path / "workspace"), steps=200, nodes=2, checkpoint_every=10, log_every=10)
    endpoint = f"localhost:{free_port()}"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        # What the environment of a job may still hold: torchrun's variables, of a store that is no store.
        stale = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1]), "RANK": "7", "WORLD_SIZE": "9"}
        with held_at(run.workspace, 15):
            token, nodes = start_nodes(run, endpoint, stale)
            wait_until(lambda: any(run.checkpoints.glob("step-*/COMPLETE")))
            for node in nodes:
                node.kill()
                node.wait()
            wait_until(lambda: not list(tagged(token)))
        assert run.result() is None
        _, nodes = start_nodes(run, endpoint, stale)
        assert [node.wait(timeout=300) for node in nodes] == [0, 0], (run.path / "supervisor.log").read_text()
    result = run.result()
    assert result is not None
    assert result.attempts == 2
    assert [row["step"] for row in run.metrics() if "train/loss" in row] == list(range(10, 201, 10))
    assert run.events("resume")[0]["step"] == 10
