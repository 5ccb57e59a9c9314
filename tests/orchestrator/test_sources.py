"""What a verb about laws reads is looked up once."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from analysis.fitting import families
from analysis.report import figures
from sweeps.sweep import Sweep
from xlstm.run.records import Validation

VERBS = (
    ("fit",),
    ("fit", "--form", "kaplan"),
    ("fit", "--conventions"),
    ("predict", "--parameters", "1M", "--tokens", "1M"),
    ("allocate", "--flops", "1e12"),
    ("design", "--parameters", "1M", "--tokens", "1M", "--budget", "9", "--unit", "device-hours"),
    ("plot",),
    ("report",),
)


def test_a_sweeps_file_is_parsed_once_by_every_verb(
    finish: Any, scaling: Any, write_sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator import Sweep as Planned

    file = write_sweep(("size: [small]", "size: [small, large]"), ("[2560, 5120]", "[2560, 5120, 7680, 10240]"))
    plan = Planned.load(file).plan()
    plan.save()
    for planned in plan.runs:
        row = planned.document()
        loss = 1.5 + 30 / row["parameters"]["total"] ** 0.3 + 40 / row["tokens"] ** 0.3
        measured = {"loss": loss, "perplexity": math.exp(loss), "tokens": 1}
        evaluation = planned.spec.evaluation_fingerprint
        finish(plan.workspace, planned, validation=Validation(**measured, evaluation=evaluation))

    # How much is drawn and resampled is not what is asked here.
    monkeypatch.setattr(families, "fit", partial(families.fit, num_draws=12, num_starts=64))
    monkeypatch.setattr(figures, "FIGURES", {"law": figures.law})
    parsed = []
    load = Sweep.load.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(Sweep, "load", classmethod(lambda *given: parsed.append(given[1]) or load(*given)))
    for verb, *options in VERBS:
        parsed.clear()
        said = scaling(verb, file, *options)
        assert said.code == 0, said.err
        assert parsed == [file], verb


def test_several_sources_stand_side_by_side_or_are_pooled(
    scaling: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pl.read_csv(Path(__file__).parents[1] / "analysis/saved_fit/runs.csv")
    parts = {"even.csv": whole[::2], "odd.csv": whole[1::2], "both.csv": whole}
    for name, rows in parts.items():
        rows.write_csv(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(families, "fit", partial(families.fit, num_draws=12, num_starts=64))
    monkeypatch.setattr(figures, "FIGURES", {"law": figures.law})

    def laws(*asked: str) -> dict[str, Any]:
        said = scaling("fit", *asked, "--form", "additive", "--json")
        assert said.code == 0, said.err
        return {one["family"]: one["parameters"] for one in said.json}

    alone = {name: laws(name)["llama"] for name in parts}
    beside = laws("even.csv", "odd.csv")
    assert beside == {f"llama ({name})": alone[name] for name in ("even.csv", "odd.csv")}
    page = Path(scaling("report", "even.csv", "odd.csv").out.strip()).read_text()
    assert "<h1>even.csv and odd.csv</h1>" in page
    assert page.count("<td>odd.csv</td>") == 8
    pooled = laws("even.csv", "odd.csv", "--pooled")["llama"]
    assert pooled == pytest.approx(alone["both.csv"], rel=1e-5)
    # What is asked of them next is asked of the law that was fitted last.
    question = ("--parameters", "1B", "--tokens", "20B", "--json")
    (said,) = scaling("predict", "even.csv", "odd.csv", *question).json
    assert said["loss"] == pytest.approx(scaling("predict", "both.csv", *question).json[0]["loss"], rel=1e-5)


def test_a_fit_reads_a_table_as_the_last_one_did_and_says_so(scaling: Any, tmp_path: Path) -> None:
    whole = pl.read_csv(Path(__file__).parents[1] / "analysis/saved_fit/runs.csv")
    table = tmp_path / "theirs.csv"
    whole.rename({"parameters": "Model Size", "loss": "final"}).write_csv(table)
    columns = "parameters=Model Size,loss=final"
    assert "name it with --columns" in scaling("fit", str(table)).err
    first = scaling("fit", str(table), "--columns", columns, "--form", "additive")
    again = scaling("fit", str(table), "--form", "additive")
    assert again.code == 0, again.err
    said = f"columns are read as the last fit read them: {columns}; --columns says otherwise\n"
    assert said not in first.out
    assert again.out.replace(said, "") == first.out
    # A table that has other columns now is refused with what was remembered, and may be named anew.
    whole.write_csv(table)
    refused = scaling("fit", str(table)).err
    assert "no column 'Model Size'" in refused
    assert f"{columns}; --columns says otherwise" in refused
    assert scaling("fit", str(table), "--columns", "loss=loss", "--form", "additive").code == 0
