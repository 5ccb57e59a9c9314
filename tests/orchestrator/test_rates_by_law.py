"""`learning_rate: law`: taken once from the fit of another sweep, and kept until it is asked anew."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Sweep
from xlstm.run.directory import Workspace
from xlstm.run.rates.law import RateLaw, RateLaws
from xlstm.run.records import write_json

BY_LAW = ("learning_rate: 1e-2", "learning_rate: law, law: rates")


def keep_law(workspace: Workspace, at_center: float, spread: float = 0.1) -> RateLaw:
    """A law of Llama that falls with N and rises with D, kept as the fit of `rates` keeps it."""
    draws = [(at_center + spread * one, -0.5, 0.1) for one in (0, -1, -1, 1, 1)]
    law = RateLaw(family="llama", law="K N^-0.5 D^0.1", varying=("N", "D"), center=(10.0, 8.0), draws=tuple(draws))
    path = workspace.sweep("rates").rate_laws
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, RateLaws(laws=(law,)).model_dump(mode="json"))
    return law


def test_a_rate_by_law_is_taken_once_and_kept_until_it_is_asked_anew(
    scaling: Any, write_sweep: Callable[..., str], tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "workspace")
    law = keep_law(workspace, -5.0)
    path = write_sweep(BY_LAW)
    plan = Sweep.load(path).plan()
    for run in plan.runs:
        best, low, high = law.at(run.parameters.total, run.spec.physics.tokens)
        assert low < run.spec.physics.optimizer.learning_rate == float(f"{best:.4g}") < high
    plan.save()
    (first, *_) = saved = workspace.sweep("tiny").plan()["rates_by_law"]
    assert len(saved) == 2
    assert first["source"] == "sweeps/rates/fit/best-learning_rate.json"
    assert first["interval"][0] < first["learning_rate"] < first["interval"][1]
    keep_law(workspace, -4.0)  # more runs were fitted meanwhile
    rows = {row["tokens"]: row for row in scaling("plan", path, "--json").json["runs"]}
    assert {row["run_id"] for row in rows.values()} == {run.run_id for run in plan.runs}
    wider = {row["tokens"]: row for row in scaling("plan", path, "grid.tokens=[2560, 10240]", "--json").json["runs"]}
    assert wider[2560]["run_id"] == rows[2560]["run_id"]
    assert wider[10240]["learning_rate"] == pytest.approx(rows[2560]["learning_rate"] * 2.718 * 4**0.1, rel=1e-2)
    anew = {row["tokens"]: row for row in scaling("plan", path, "--refresh-law", "--json").json["runs"]}
    assert anew[2560]["learning_rate"] == pytest.approx(rows[2560]["learning_rate"] * 2.718, rel=1e-2)
    assert "by sweeps/rates/fit/best-learning_rate.json" in scaling("plan", path).out


def test_a_law_that_is_not_there_or_says_nothing_is_refused_at_its_line(
    scaling: Any, write_sweep: Callable[..., str], tmp_path: Path
) -> None:
    def refused(*replacements: tuple[str, str]) -> str:
        path = write_sweep(*replacements)
        line = 1 + [text[:6] for text in Path(path).read_text().splitlines()].index("train:")
        said = scaling("plan", path)
        assert said.code == 2
        assert f"{path}:{line}: " in said.err
        return " ".join(said.err.split())

    assert "rates has no law of the best learning rate" in refused(BY_LAW)
    assert "scaling fit rates --hyperparameters" in refused(BY_LAW)
    keep_law(Workspace(tmp_path / "workspace"), -5.0, spread=9.0)
    assert "its interval is unbounded" in refused(BY_LAW)
    assert "the law of rates says nothing of mamba" in refused(BY_LAW, ("[llama]", "[mamba]"), (", num_heads: 2", ""))
    assert "needs `law`" in refused(("learning_rate: 1e-2", "learning_rate: law"))
