"""Rows that must not be fitted are excluded with a reason, and data that answer nothing are refused with a code."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from analysis.data import quality, runs
from analysis.data.columns import SCHEMA
from analysis.findings import RefusalError
from analysis.fitting import families
from analysis.fitting.fit import Fit
from analysis.laws.additive import AdditiveLaw

LAW = AdditiveLaw(E=1.7, A=400.0, B=400.0, alpha=0.34, beta=0.28)


def table(**replaced: object) -> pl.DataFrame:
    """Sixteen runs of a known law in the frame's columns, some columns replaced."""
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e10, 4), np.geomspace(1e9, 1e12, 4)))
    noise = np.exp(np.random.default_rng(1).normal(0, 0.003, n.size))
    given = {"parameters": n, "tokens": d, "flops": 6 * n * d, "loss": LAW.predict(n, d) * noise} | replaced
    frame = pl.DataFrame(given).with_columns(run_id=pl.format("r{}", pl.int_range(pl.len())), family=pl.lit("x"))
    absent = [pl.lit(None, dtype=kind).alias(name) for name, kind in SCHEMA.items() if name not in frame.columns]
    return frame.with_columns(absent).select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())


def fit(frame: pl.DataFrame, *, allow_mixed: bool = False) -> Fit:
    (found,) = families.fit(quality.judge(frame), num_draws=20, num_starts=20, allow_mixed=allow_mixed)
    return found


def at(row: int, value: object, otherwise: object) -> list[object]:
    return [value if index == row else otherwise for index in range(16)]


@pytest.mark.parametrize(
    ("column", "values", "reason", "rule"),
    [
        ("state", at(2, "RUNNING", "COMPLETED"), "unfinished (RUNNING)", "unfinished"),
        ("state", at(2, "DIVERGED: step 7", "COMPLETED"), "diverged", "diverged"),
        (
            "quality",
            at(2, "learning-rate-not-decayed, repeated-data:1.30-epochs", ""),
            "not-decayed (learning-rate-not-decayed)",
            "not-decayed",
        ),
        (
            "quality",
            at(2, "repeated-data:1.30-epochs", ""),
            "repeated-data (repeated-data:1.30-epochs)",
            "repeated-data",
        ),
        ("quality", at(2, "damaged-checkpoint", ""), "damaged-checkpoint (damaged-checkpoint)", "damaged-checkpoint"),
    ],
)
def test_each_rule_excludes_its_row_with_a_reason_and_can_be_switched_off(
    column: str, values: list[object], reason: str, rule: str
) -> None:
    frame = table(**{column: values})
    judged = quality.judge(frame)
    assert judged.filter(pl.col("excluded").is_not_null()).select("run_id", "excluded").rows() == [("r2", reason)]
    off = {rule, "repeated-data", "unfinished"} if column != "state" or rule == "diverged" else {rule}
    assert quality.judge(frame, quality.Rules(keep=frozenset(off)))["excluded"].is_null().all()


def test_the_second_of_two_equal_rows_is_the_duplicate() -> None:
    frame = pl.concat([table(), table()[3:4].with_columns(run_id=pl.lit("copy")), table()[5:6]])
    judged = quality.judge(frame)
    assert judged["excluded"].to_list() == [None] * 16 + ["duplicate", "duplicate"]
    assert quality.judge(frame, quality.Rules(keep=frozenset({"duplicate"})))["excluded"].is_null().all()


def test_of_a_run_that_was_tried_twice_the_completed_one_stays() -> None:
    frame = table(state=at(0, "FAILED", "COMPLETED")).with_columns(run_id=pl.lit("same")).head(2)
    assert quality.judge(frame)["excluded"].to_list() == ["unfinished (FAILED)", None]


def test_rows_outside_a_stated_range_are_excluded() -> None:
    judged = quality.judge(table(), quality.Rules(ranges={"tokens": (5e9, 1e12)}))
    outside = judged.filter(pl.col("excluded").is_not_null())
    assert outside.height == 4
    assert outside["excluded"].unique().to_list() == ["tokens outside 5e+09 to 1e+12"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0, None])
@pytest.mark.parametrize("column", ["loss", "parameters", "tokens"])
def test_what_is_no_positive_number_is_excluded_and_the_rest_fitted(column: str, value: float | None) -> None:
    frame = table()
    frame = frame.with_columns(
        pl.when(pl.int_range(pl.len()) == 4).then(pl.lit(value, pl.Float64)).otherwise(column).alias(column)
    )
    judged = quality.judge(frame)
    assert judged["excluded"][4] == f"{column} is not a positive finite number"
    assert judged["excluded"].null_count() == 15


@pytest.mark.parametrize("column", ["evaluation", "tokenizer", "schedule"])
def test_runs_that_do_not_compare_are_refused_unless_asked_for(column: str) -> None:
    frame = table(**{column: ["one"] * 5 + ["other"] * 11})
    with pytest.raises(RefusalError, match=rf"{column} is one \(5 runs\), other \(11 runs\)") as refusal:
        fit(frame)
    assert refusal.value.code == "mixed-rows"
    assert fit(frame, allow_mixed=True).used.height == 16


def test_an_excluded_row_mixes_nothing() -> None:
    fitted = fit(table(tokenizer=at(2, "other", "one"), state=at(2, "FAILED", "COMPLETED")))
    assert fitted.used.height == 15


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (table().head(5), "too-few-points"),
        (table(parameters=[1e8] * 16), "one-value"),
        (table(tokens=[1e10] * 16), "one-value"),
        (table(loss=[2.5] * 16), "constant-loss"),
        (table(loss=[math.nan] * 16), "too-few-points"),
        (table(loss=[-2.5] * 16), "too-few-points"),
        (table().clear(), "no-rows"),
    ],
)
def test_rows_that_answer_nothing_are_refused_with_a_code(frame: pl.DataFrame, code: str) -> None:
    with pytest.raises(RefusalError) as refusal:
        fit(frame)
    assert refusal.value.code == code


def test_a_law_that_the_data_cannot_identify_comes_with_warnings() -> None:
    # Tokens that change by a tenth of a percent cannot tell beta.
    n = np.geomspace(1e7, 1e10, 16)
    d = 1e10 * np.linspace(1, 1.001, 16)
    noise = np.exp(np.random.default_rng(1).normal(0, 0.003, 16))
    fitted = fit(table(parameters=n, tokens=d, flops=6 * n * d, loss=LAW.predict(n, d) * noise))
    codes = {warning.code for warning in fitted.warnings}
    assert codes & {"weakly-identified", "bounds-hit", "irreducible-loss-open"}, codes


@pytest.mark.parametrize("columns", [{}, {"parameters": "n"}, {"parameters": "n", "tokens": "gone"}])
def test_a_table_without_the_columns_is_refused(tmp_path: Path, columns: dict[str, str]) -> None:
    path = tmp_path / "points.csv"
    pl.DataFrame({"n": [1e7, 2e7], "d": [1e9, 2e9], "loss": [3.0, 2.9]}).write_csv(path)
    with pytest.raises(RefusalError) as refusal:
        runs.load(str(path), columns=columns)
    assert refusal.value.code == "missing-column"


@pytest.mark.parametrize(
    ("keep", "ranges", "code"),
    [
        ({"undone"}, {}, "unknown-rule"),
        (set(), {"size": (0, 1)}, "unknown-rule"),
        (set(), {"loss": (3, 2)}, "empty-range"),
    ],
)
def test_rules_that_are_none_are_refused(keep: set[str], ranges: dict[str, tuple[float, float]], code: str) -> None:
    with pytest.raises(RefusalError) as refusal:
        quality.Rules(keep=frozenset(keep), ranges=ranges)
    assert refusal.value.code == code


def test_runs_of_one_trunk_are_resampled_together() -> None:
    fitted = fit(table(cluster=[f"trunk-{index // 4}" for index in range(16)]))
    assert fitted.resampling.endswith("over 4 clusters")


@pytest.mark.parametrize(
    ("column", "values"),
    [("data", ["2cd7", "a6b1"]), ("context_length", [16, 64]), ("precision", ["float32", "bf16-mixed"])],
)
def test_losses_on_other_texts_contexts_or_precisions_are_refused(column: str, values: list[object]) -> None:
    mixed = table(**{column: [values[row % 2] for row in range(16)]})
    with pytest.raises(RefusalError) as refusal:
        fit(mixed)
    assert refusal.value.code == "mixed-rows"
    assert f"{column} is {values[0]}" in str(refusal.value)
    assert fit(mixed, allow_mixed=True).used.height == mixed.height


def test_families_that_were_measured_differently_are_fitted_with_a_warning() -> None:
    first, second = (
        table(evaluation=[evaluation] * 16).with_columns(
            family=pl.lit(family), run_id=pl.format("{}-{}", pl.lit(family), "run_id")
        )
        for family, evaluation in (("llama", "aa"), ("mamba", "bb"))
    )
    fits = families.fit(quality.judge(pl.concat([first, second])), num_draws=20, num_starts=20)
    assert len(fits) == 2
    for one in fits:
        (warning,) = [warning for warning in one.warnings if warning.code == "families-not-comparable"]
        assert "evaluation is llama: aa; mamba: bb" in warning.message


def test_runs_of_several_machines_or_kernels_are_fitted_with_one_warning_where_they_tell() -> None:
    here, there = "Xeon, numba kernels", "Xeon, torch kernels"
    for told, count in (([None, here], 0), ([here, here], 0), ([here, there], 1)):
        frame = table(computed_on=[told[row % 2] for row in range(16)])
        found = [warning for warning in fit(frame).warnings if warning.code == "several-machines"]
        assert len(found) == count
    assert f"{here} (8 runs); {there} (8 runs)" in found[0].message


@pytest.mark.parametrize(
    ("code", "rule"), [("loss-above-uniform:859.2-of-5.545", "exploded"), ("loss-rose:2.1-to-2.6", "loss-rose")]
)
def test_a_run_that_exploded_or_whose_loss_rose_is_left_out(code: str, rule: str) -> None:
    rows = table()
    flagged = rows.with_columns(
        quality=pl.when(pl.int_range(rows.height) == 3).then(pl.lit(code)).otherwise(pl.lit(""))
    )
    found = fit(flagged)
    assert found.used.height == rows.height - 1
    (reason,) = found.rows["excluded"].drop_nulls().to_list()
    assert reason.startswith(f"{rule} ({code}")
