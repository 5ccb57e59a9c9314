"""The command line on a workspace of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

REPOSITORY = Path(__file__).parents[2]

SWEEP = """name: tiny
data: {{corpus: "text:{corpus}", context_length: 32}}
sizes:
  small: {{embedding_dim: 16, num_blocks: 1, num_heads: 2}}
  large: {{embedding_dim: 32, num_blocks: 2, num_heads: 2}}
grid:
  model: [llama]
  size: [small]
  tokens: [2560, 5120]
train: {{batch_sequences: 8, learning_rate: 1e-2, warmup_steps: 2}}
resources: [{{set: {{checkpoint_every: 5, log_every: 1}}}}]
evaluation: {{sequences: 16}}
"""


@dataclass(frozen=True)
class Said:
    """What a call of `scaling` left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Shell:
    """Calls `scaling` in this process, or as a process of its own."""

    workspace: Path

    def __call__(self, *arguments: str) -> Said:
        from orchestrator.cli import app

        result = CliRunner().invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Said(result.exit_code, result.stdout, result.stderr)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )

    def run(self, *arguments: str) -> Said:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=300)
        return Said(process.returncode, out, err)


@pytest.fixture
def scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Shell(tmp_path / "workspace")


@pytest.fixture
def write_sweep(tmp_path: Path) -> Callable[..., str]:
    """Write the tiny sweep with parts of its text replaced; returns its path."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(" ".join(f"{i} squared is {i * i};" for i in range(4000)))

    def write(*replacements: tuple[str, str]) -> str:
        text = SWEEP.format(corpus=corpus)
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "tiny.yaml"
        path.write_text(text)
        return str(path)

    return write
