"""`scaling submit --on slurm`, as people type it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from waiting import wait_until

from xlstm.run.directory import Workspace

pytestmark = [pytest.mark.serial, pytest.mark.slow]

SWEEP = """\
name: typed
data: {corpus: text, tokenizer: bytes, context_length: 32, paths: [corpus.txt]}
sizes: {tiny: {llama: {embedding_dim: 32, num_blocks: 2, num_heads: 2}}}
grid: {model: llama, size: tiny, tokens: 5120}
train: {batch_sequences: 8, learning_rate: 1e-2}
resources: [{set: {nodes: 2, devices: 1, log_every: 1, slurm: {time: 30}}}]
evaluation: {sequences: 32}
"""


def scaling(workspace: Workspace, *words: str, **variables: str) -> str:
    """Standard output of the command line."""
    command = [sys.executable, "-m", "orchestrator.cli", *words]
    environment = os.environ | {"SCALING_WORKSPACE": str(workspace.root)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    environment |= variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_sweep_is_handed_over_and_looked_at_and_nothing_of_ours_lives_meanwhile(
    cluster: Cluster, workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "corpus.txt").write_text(" ".join(f"{i} squared is {i * i};" for i in range(4000)))
    sweep = tmp_path / "typed.yaml"
    sweep.write_text(SWEEP)
    assert "1 runs are with Slurm" in scaling(workspace, "submit", str(sweep), "--on", "slurm")
    wait_until(lambda: not cluster.command("squeue", "--noheader").strip())
    # Jobs leave an embedded store alone: the login node writes it when somebody looks.
    assert not (workspace.root / "mlflow.db").exists()
    (run,) = json.loads(scaling(workspace, "status", "typed", "--json"))["runs"]
    assert run["state"] == "COMPLETED"
    assert (workspace.root / "mlflow.db").exists()
    assert "all complete" in scaling(workspace, "submit", str(sweep), "--on", "slurm")
    assert "nothing to retry" in scaling(workspace, "retry", "typed")
    assert "nothing to cancel" in scaling(workspace, "cancel", "typed")
    (batch,) = (workspace.sweeps / "typed" / "slurm").glob("*/script.sh")
    assert "#SBATCH --time=30\n" in batch.read_text()


def test_what_is_handed_over_leaves_no_secret(cluster: Cluster, workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(" ".join(f"{i} squared is {i * i};" for i in range(4000)))
    sweep = tmp_path / "typed.yaml"
    sweep.write_text(SWEEP.replace("nodes: 2", "nodes: 1"))
    secrets = {
        "MLFLOW_TRACKING_URI": "http://alice:s3cretpw@127.0.0.1:9",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "SOME_API_KEY": "k3y-of-some-service",
    }
    said = scaling(workspace, "submit", str(sweep), "--on", "slurm", **secrets)
    wait_until(lambda: not cluster.command("squeue", "--noheader").strip())
    said += scaling(workspace, "status", "typed", **secrets)
    assert "completed" in said
    texts = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(texts) > 15
    texts |= {"printed": said.encode()}
    assert [name for name, text in texts.items() if b"s3cretpw" in text or b"k3y-of-some-service" in text] == []
