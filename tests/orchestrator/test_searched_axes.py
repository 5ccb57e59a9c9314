"""A sweep that searches the learning rate beside another axis: what `fit` says of it, and what `design` writes."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from analysis.fitting import families
from orchestrator import Sweep
from xlstm.run.records import Validation


@pytest.fixture
def searched(finish: Any, write_sweep: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A sweep's file whose 16 runs are complete, those at a rate of 0.01 and without decay being the best."""
    file: str = write_sweep(
        ("size: [small]", "size: [small, large]"),
        ("[2560, 5120]", "[2560, 5120]\n  learning_rate: [3e-3, 1e-2]\n  weight_decay: [0.0, 0.1]"),
        (", learning_rate: 1e-2", ""),
        ("evaluation:", "best_of: learning_rate\nevaluation:"),
    )
    plan = Sweep.load(file).plan()
    plan.save()
    for planned in plan.runs:
        row = planned.document()
        loss = 1.5 + 30 / row["parameters"]["total"] ** 0.3 + 40 / row["tokens"] ** 0.3
        loss += 0.1 * (row["point"]["learning_rate"] == 3e-3) + 0.05 * row["point"]["weight_decay"]
        measured = {"loss": loss, "perplexity": math.exp(loss), "tokens": 1}
        evaluation = planned.spec.evaluation_fingerprint
        finish(plan.workspace, planned, validation=Validation(**measured, evaluation=evaluation))
    monkeypatch.setattr(families, "fit", partial(families.fit, num_draws=12, num_starts=64))
    return file


def test_what_is_the_same_of_many_runs_is_one_line(scaling: Any, searched: str) -> None:
    said = scaling("fit", searched, "--form", "additive")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    (left_out,) = [line for line in lines if "is better in learning_rate" in line]
    assert left_out.startswith("left out: 8 rows: another run is better in learning_rate: llama-")
    (edge,) = [line for line in lines if "the best learning_rate" in line]
    assert edge.startswith(
        "8 points: the best learning_rate, 0.01, is the highest tried; a better one may lie beyond: "
    )


def test_what_design_writes_can_be_pasted_into_the_sweep(scaling: Any, searched: str, tmp_path: Path) -> None:
    points = tmp_path / "next.yaml"
    asked = ("--parameters", "20K", "--tokens", "20K", "--budget", "1e12")
    said = scaling("design", searched, *asked, "--write", str(points))
    assert said.code == 0, said.err
    assert points.read_text().count("  - {") > 0
    sweep = Path(searched)
    sweep.write_text(sweep.read_text() + points.read_text())
    planned = scaling("plan", searched, "--json")
    assert planned.code == 0, planned.err
    added = [run for run in planned.json["runs"] if run["seed"] > 0]
    assert len(added) == points.read_text().count("  - {")
    assert {(run["point"]["learning_rate"], run["point"]["weight_decay"]) for run in added} == {(1e-2, 0.0)}
