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
