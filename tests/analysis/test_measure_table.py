"""Tables of measures: the best of what was searched, mean and interval over seeds, in every format."""

import csv
import math
from pathlib import Path
from statistics import fmean, stdev

import pytest

from analysis.report.measure_figures import draw
from analysis.report.table import Measured, build_table


def run(model: str, task: str, rate: float, seed: int, accuracy: float | None) -> Measured:
    point = {"model": model, "size": "s", "task": task, "learning_rate": rate, "seed": seed}
    return Measured(point, {} if accuracy is None else {"loss": 1 - accuracy, "scaled_accuracy": accuracy})


RUNS = [
    run("lstm", "parity", 1e-2, 0, 0.9),
    run("lstm", "parity", 1e-2, 1, 0.7),
    run("lstm", "parity", 1e-3, 0, 0.95),
    run("lstm", "parity", 1e-3, 1, 0.1),
    run("lstm", "set_50%", 1e-2, 0, 0.25),
    run("llama", "parity", 1e-2, 0, 0.0),
    run("llama", "set_50%", 1e-2, 0, None),
]


def test_the_best_value_is_that_of_the_best_mean_and_the_interval_is_students() -> None:
    table = build_table(RUNS, None, None, "learning_rate")
    cell = table.cells["lstm", "parity"]
    assert (cell.best, cell.seeds) == (1e-2, 2)
    assert cell.deviation == pytest.approx(stdev([0.9, 0.7]))
    assert cell.mean == pytest.approx(fmean([0.9, 0.7]))
    assert cell.interval == pytest.approx(12.706204736 * stdev([0.9, 0.7]) / math.sqrt(2))
    assert table.cells["llama", "parity"].interval is None
    assert ("llama", "set_50%") not in table.cells
    assert (table.measured, table.planned) == (6, 7)
    assert build_table(RUNS, "loss", None, "learning_rate").cells["lstm", "parity"].best == 1e-2


def test_seconds_and_memory_are_the_better_the_fewer_and_small_numbers_keep_their_digits() -> None:
    runs = [
        Measured({"model": model, "context": 128}, {"seconds_per_token": seconds, "state_mib": mib})
        for model, seconds, mib in (("lstm", 0.00612, 4.0), ("llama", 0.00325, 0.25))
    ]
    lines = build_table(runs, "seconds_per_token", "context", None).markdown().splitlines()
    assert lines[2:] == ["| lstm | 0.00612 |", "| llama | **0.00325** |"]
    assert "| **0.250** |" in build_table(runs, "state_mib", "context", None).markdown()


def test_what_varies_beside_the_column_tells_rows_apart_and_what_the_column_decides_does_not() -> None:
    runs = [
        Measured({"model": "lstm", "pairs": pairs, "context_length": 16 * pairs, "size": size}, {"loss": 1.0})
        for pairs in (4, 8)
        for size in ("w16", "w32")
    ]
    table = build_table(runs, None, "pairs", None)
    assert table.rows == ["lstm, w16", "lstm, w32"]
    assert table.columns == ["4", "8"]
    assert len(table.cells) == 4


def test_every_format_holds_the_same_numbers(tmp_path: Path) -> None:
    table = build_table(RUNS, None, "task", "learning_rate")
    assert table.markdown().splitlines() == [
        "| scaled_accuracy | parity | set_50% |",
        "| --- | ---: | ---: |",
        "| lstm | **0.800 ± 1.271** | **0.250** |",
        "| llama | 0.000 | – |",
    ]
    assert r"scaled\_accuracy & parity & set\_50\% \\" in table.latex()
    assert r"lstm & \textbf{0.800 $\pm$ 1.271} & \textbf{0.250} \\" in table.latex()
    rows = list(csv.DictReader(table.csv().splitlines()))
    assert [(row["row"], row["task"], float(row["scaled_accuracy"])) for row in rows] == [
        ("lstm", "parity", pytest.approx(0.8)),
        ("lstm", "set_50%", 0.25),
        ("llama", "parity", 0.0),
    ]
    assert [cell["mean"] for cell in table.to_json()["cells"]] == [pytest.approx(0.8), 0.25, 0.0]
    draw(table, tmp_path / "map.svg")
    drawn = (tmp_path / "map.svg").read_text()
    assert all(f">{text}<" in drawn for text in ("lstm", "llama", "parity", "set_50%", "0.80", "0.25", "0.00"))


def test_lengths_and_positions_of_the_tests_are_columns_and_numbers_are_drawn_as_curves(tmp_path: Path) -> None:
    runs = [
        Measured(
            {"model": model, "seed": seed},
            {"mean_squared_error": 0.5, "by_length/8/mean_squared_error": 0.25 + seed}
            | {f"by_position/{place}/mean_squared_error": place / 4 for place in (10, 9)},
        )
        for model, seed in (("lstm", 0), ("lstm", 1), ("llama", 0))
    ]
    table = build_table(runs, None, "position", None)
    assert (table.measure, table.columns, table.rows) == ("mean_squared_error", ["9", "10"], ["lstm", "llama"])
    assert table.cells["lstm", "9"].mean == 2.25
    assert build_table(runs, None, "length", None).cells["lstm", "8"].mean == 0.75
    draw(table, tmp_path / "curves.svg")
    drawn = (tmp_path / "curves.svg").read_text()
    assert all(f">{text}<" in drawn for text in ("lstm", "llama", "position", "mean squared error", "9", "10"))
    with pytest.raises(ValueError, match="no run has a result yet by length"):
        build_table(RUNS, None, "length", None)


def test_a_table_that_cannot_be_made_is_said() -> None:
    with pytest.raises(ValueError, match="no run has `mse`; there are loss, scaled_accuracy, and some by length"):
        build_table(RUNS, "mse", None, None)
    with pytest.raises(ValueError, match="no axis `width`"):
        build_table(RUNS, None, "width", None)
    with pytest.raises(ValueError, match="no run has a result"):
        build_table(RUNS[-1:], None, None, None)
