"""The command line on tables that no run of ours made."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app

COLUMNS = "parameters=Model Size,flops=Training FLOP,loss=loss"


@pytest.fixture
def table(reference_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path / "workspace"))
    return str(reference_data("scaling/chinchilla/svg_extracted_data.csv"))


@pytest.mark.slow
def test_a_foreign_table_is_fitted_and_a_budget_split_from_the_command_line(table: str) -> None:
    shown = CliRunner().invoke(app, ["fit", table, "--columns", COLUMNS, "--json"])
    assert shown.exit_code == 0, shown.output
    (document,) = json.loads(shown.stdout)
    assert document["rows"]["used"] == 245
    assert document["certificate"]["converged"]
    shown = CliRunner().invoke(app, ["allocate", table, "--columns", COLUMNS, "--flops", "5.76e23", "--json"])
    assert shown.exit_code == 0, shown.output
    (split,) = json.loads(shown.stdout)["allocations"]
    low, high = split["parameters_interval"]
    assert low < split["parameters"] < high
    assert 6 * split["parameters"] * split["tokens"] == pytest.approx(5.76e23, rel=1e-4)


def test_a_column_that_is_not_there_ends_in_one_line_and_exit_code_2(table: str) -> None:
    shown = CliRunner().invoke(app, ["fit", table, "--columns", "parameters=Size,flops=Training FLOP"])
    assert shown.exit_code == 2
    assert "no column 'Size' for parameters; there are: x, y, color, Model Size" in shown.output


def test_what_is_predicted_is_what_was_fitted_with_its_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path / "workspace"))
    table = tmp_path / "points.csv"
    rows = [
        f"{n},{d},{1.7 + 400 / n**0.34 + 400 / d**0.28},{'a' if d < 5e9 else 'b'}"
        for n in (1e7, 1e8, 1e9)
        for d in (1e9, 1e10, 1e11)
    ]
    table.write_text("\n".join(["parameters,tokens,loss,tokenizer", *rows]))

    def predicted() -> float:
        shown = CliRunner().invoke(app, ["predict", str(table), "--parameters", "1B", "--tokens", "1B", "--json"])
        assert shown.exit_code == 0, shown.output
        return float(json.loads(shown.stdout)[0]["loss"])

    refused = CliRunner().invoke(app, ["fit", str(table)])
    assert refused.exit_code == 2
    assert "tokenizer is a (3 runs), b (6 runs)" in refused.output
    shown = CliRunner().invoke(app, ["fit", str(table), "--allow-mixed", "--range", "loss=:9", "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)[0]["rules"]["ranges"] == {"loss": [None, 9.0]}
    assert predicted() == pytest.approx(1.7 + 400 / 1e9**0.34 + 400 / 1e9**0.28, rel=1e-4)
    assert CliRunner().invoke(app, ["fit", str(table)]).exit_code == 2
