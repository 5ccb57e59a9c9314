"""An adaptive sweep on Slurm: the last job of a round has the next one bought, with nothing of ours alive between."""

from pathlib import Path

import pytest
from cluster import Cluster
from test_slurm_cli import scaling
from tiny_runs import story
from waiting import wait_until

from xlstm.run.directory import Workspace
from xlstm.run.records import State

pytestmark = [pytest.mark.serial, pytest.mark.slow]

SWEEP = """\
name: rounds
data: {corpus: text, tokenizer: bytes, context_length: 32, paths: [corpus.txt]}
sizes:
  a: {embedding_dim: 16, num_blocks: 1, num_heads: 2}
  b: {embedding_dim: 32, num_blocks: 1, num_heads: 2}
grid: {model: llama, size: [a, b], steps: [10, 20]}
train: {batch_sequences: 8, learning_rate: 1e-2, schedule: wsd, decay_fraction: 0.2, warmup_steps: 2}
resources: [{set: {log_every: 5, threads_per_rank: 1, slurm: {time: 30}}}]
evaluation: {sequences: 32}
design: {target: {parameters: 100K, tokens: 100K}, form: additive, at_once: 2}
"""


def test_the_last_job_of_a_round_has_the_next_one_bought(
    cluster: Cluster, workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "corpus.txt").write_text(" ".join(f"{i} squared is {i * i};" for i in range(4000)))
    sweep = tmp_path / "rounds.yaml"
    sweep.write_text(SWEEP)
    said = scaling(workspace, "submit", str(sweep), "--on", "slurm")
    assert "buys the next runs when these have ended" in said
    first = [row["run_id"] for row in workspace.sweep("rounds").decisions() if row["decision"] == "bought"]
    assert len(first) == 2
    wait_until(lambda: not cluster.command("squeue", "--noheader").strip(), seconds=500)
    rows = workspace.sweep("rounds").decisions()
    bought = [row["run_id"] for row in rows if row["decision"] == "bought"]
    assert sorted(bought) == sorted(row["run_id"] for row in rows if row["decision"] == "seen")
    assert len(set(bought)) == len(bought) == 4
    assert rows[-1]["decision"] == "stopped"
    for run_id in bought:
        run = workspace.run(run_id)
        assert run.status().state is State.COMPLETED, story(run)
        # In one attempt or, cut where others fork from it, in several: no step is trained twice.
        trained = [row["step"] for row in run.history() if "train/loss" in row]
        assert trained == sorted(set(trained)), story(run)
