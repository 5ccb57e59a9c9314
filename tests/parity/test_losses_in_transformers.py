"""A llama as in the quickstart has, in `transformers` and on the same windows of the text, the loss we report."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peers import needs_peers, run_peer
from plain_reading import mean_loss, validation_windows

from xlstm.export.transformers import save
from xlstm.generation import TrainedRun
from xlstm.run.directory import Workspace

SWEEP = """
name: reading
data: {corpus: "text:corpus.txt", tokenizer: bytes, context_length: 128}
sizes: {50K: {embedding_dim: 32, num_blocks: 2, num_heads: 2}}
grid: {model: llama, size: 50K, tokens: 40960}
train: {batch_sequences: 8, warmup_steps: 5, learning_rate: 4.0e-3}
evaluation: {sequences: 24}
"""


@needs_peers
@pytest.mark.serial
def test_transformers_reads_the_loss_of_a_trained_llama(tmp_path: Path) -> None:
    text = tmp_path / "corpus.txt"
    text.write_text(" ".join(f"{i} squared is {i * i};" for i in range(4000)))
    (tmp_path / "reading.yaml").write_text(SWEEP)
    command = [sys.executable, "-m", "orchestrator.cli", "submit", str(tmp_path / "reading.yaml")]
    workspace = Workspace(tmp_path / "workspace")
    subprocess.run(command, env=os.environ | {"SCALING_WORKSPACE": str(workspace.root)}, check=True)
    (folder,) = workspace.runs.iterdir()
    run = workspace.run(folder.name)
    result = run.result()
    assert result is not None
    save(TrainedRun.load(run, "cpu").model, run.spec().physics.model, tmp_path / "exported")
    tokens, targets = validation_windows(text, 128, 24)
    asked = {"model": str(tmp_path / "exported"), "new_tokens": 1}
    theirs = run_peer(
        "transformers", asked, {"tokens": tokens, "coefficients": torch.zeros(1), "prompt": tokens[:1, :4]}
    )
    loss = mean_loss(theirs["logits"], targets)
    assert result.validation.loss == pytest.approx(loss, rel=1e-5)
