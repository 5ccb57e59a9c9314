"""`scaling table` reads a sweep of tasks from the workspace and, once it is tracked, the same from MLflow."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.planning.plan import make_plan
from sweeps.sweep import Sweep
from xlstm.run.directory import Workspace
from xlstm.run.records import Answers, Validation

SWEEP = """name: languages
data: {longest: 8}
sizes: {s: {embedding_dim: 16, num_blocks: 1}}
grid: {task: [parity, reverse], model: [lstm], size: [s], steps: [4], learning_rate: [1e-2, 1e-3], seed: [0, 1]}
best_of: learning_rate
train: {batch_sequences: 8}
"""
EXPECTED = """| scaled_accuracy | parity | reverse |
| --- | ---: | ---: |
| lstm | 0.850 ± 0.635 | 0.850 ± 0.635 |
"""


def measured(folder: Path, finish: Callable[..., None], workspace: Workspace) -> None:
    """Submit the sweep, and leave what its runs would have measured."""
    (folder / "languages.yaml").write_text(SWEEP)
    plan = make_plan(Sweep.load(folder / "languages.yaml"), workspace)
    plan.save()
    for planned in plan.runs:
        physics = planned.spec.physics
        scaled = (0.8 if physics.optimizer.learning_rate == 1e-2 else 0.1) + 0.1 * physics.seed
        answers = Answers(accuracy=0.5, sequence_accuracy=0.5, scaled_accuracy=scaled)
        fingerprint = planned.spec.evaluation_fingerprint
        validation = Validation(loss=1.0, perplexity=2.7, tokens=9, evaluation=fingerprint, answers=answers)
        finish(workspace, planned, validation=validation, seed=physics.seed)
        workspace.run(planned.run_id).append_metrics({"step": 4, "time": 1.0, "attempt": 1, **validation.metrics()})


def test_a_table_is_read_from_the_workspace(scaling: Any, tmp_path: Path, finish: Callable[..., None]) -> None:
    assert scaling("table", "languages").code == 2
    measured(tmp_path, finish, Workspace(scaling.workspace))
    said = scaling("table", "languages", "--to", str(tmp_path / "table.md"))
    assert (said.code, said.out) == (0, EXPECTED), said.err
    assert (tmp_path / "table.md").read_text() == EXPECTED
    assert scaling("table", "languages", "--to", "table.doc").code == 2
    assert scaling("runs", "languages", "--csv", str(tmp_path / "runs.csv")).code == 0
    exported = csv.DictReader((tmp_path / "runs.csv").read_text().splitlines())
    assert {row["scaled_accuracy"] for row in exported} == {
        "0.1",
        "0.2",
        "0.8",
        "0.9",
    }
    assert scaling("table", "languages", "--columns", "width").out.startswith("| scaled_accuracy | 16 |\n")


@pytest.mark.slow
def test_a_table_is_the_same_from_mlflow(scaling: Any, tmp_path: Path, finish: Callable[..., None]) -> None:
    measured(tmp_path, finish, Workspace(scaling.workspace))
    assert scaling("sync").code == 0
    said = scaling("table", "mlflow:languages", "--best-of", "learning_rate")
    assert (said.code, said.out) == (0, EXPECTED), said.err
    by_width = [scaling("table", source, "--columns", "width").out for source in ("languages", "mlflow:languages")]
    assert by_width[1].startswith("| scaled_accuracy | 16 |\n")


FILES = """name: reviews
task: bytes
data: {longest: 8, revision: stated}
sizes: {s: {embedding_dim: 16, num_blocks: 1}}
grid: {model: [lstm], size: [s], steps: [2]}
train: {batch_sequences: 2, learning_rate: 1e-3}
resources: [{set: {device: cpu}}]
"""


@pytest.mark.slow
@pytest.mark.serial
def test_a_task_that_reads_files_trains_on_those_of_its_user_alone(scaling: Any, tmp_path: Path) -> None:
    for part, kind in (("train", "neg"), ("train", "pos"), ("test", "pos")):
        (tmp_path / "aclImdb" / part / kind).mkdir(parents=True)
        (tmp_path / "aclImdb" / part / kind / "0_9.txt").write_text(f"{part} {kind}")
    (tmp_path / "reviews.yaml").write_text(FILES)
    refused = scaling("submit", str(tmp_path / "reviews.yaml"))
    assert refused.code == 2
    assert "task bytes reads files, and `data.paths` does not say where they lie" in refused.err
    said = scaling("submit", str(tmp_path / "reviews.yaml"), f"data.paths=[{tmp_path}]")
    assert said.code == 0, said
    assert scaling("table", "reviews", "--measure", "accuracy").out.splitlines()[-1] in (
        "| lstm | 0.000 |",
        "| lstm | 1.000 |",
    )
