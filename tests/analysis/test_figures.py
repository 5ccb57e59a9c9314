"""Figures and the page are drawn from fits alone, say what they show, and refuse what the runs cannot show."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.text import Text

from analysis.data import quality, references
from analysis.data.columns import SCHEMA
from analysis.decisions import isoflop
from analysis.findings import RefusalError
from analysis.fitting.families import fit
from analysis.laws.additive import AdditiveLaw
from analysis.report import figures, page, plots
from analysis.report.figures import FIGURES, Evidence

LAW = AdditiveLaw(E=1.7, A=400.0, B=400.0, alpha=0.34, beta=0.28)


def _evidence(families: Mapping[str, float]) -> Evidence:
    """IsoFLOP runs of families, whose losses are a gain times the law's, with their training curves."""
    budgets, n = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e18, 1e20, 4), np.geomspace(1e8, 3e9, 7)))
    tables = []
    for family, gain in families.items():
        d = budgets / (6 * n)
        noise = np.exp(np.random.default_rng(len(family)).normal(0, 0.002, n.size))
        numbers = {"parameters": n, "tokens": d, "flops": budgets, "loss": gain * LAW.predict(n, d) * noise}
        tables.append(pl.DataFrame(numbers).with_columns(family=pl.lit(family)))
    frame = pl.concat(tables).with_columns(run_id=pl.format("r{}", pl.int_range(pl.len())))
    absent = [pl.lit(None, dtype=kind).alias(name) for name, kind in SCHEMA.items() if name not in frame.columns]
    frame = quality.judge(frame.with_columns(absent))
    curves = pl.concat(
        pl.DataFrame({"run_id": [run] * 9, "tokens": np.linspace(0.1, 1, 9) * d, "loss": np.linspace(4, loss, 9)})
        for run, d, loss in frame.select("run_id", "tokens", "loss").iter_rows()
    )
    fits = fit(frame, num_draws=40, num_starts=20)
    return Evidence(fits, curves, [references.find("xlstm-table-3"), references.find("chinchilla")])


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    """Two families."""
    return _evidence({"llama": 1.0, "</script>": 0.97})


@pytest.fixture(scope="module")
def nine() -> Evidence:
    """More families than there are colours."""
    return _evidence({f"family-{index}": 1 + 0.01 * index for index in range(9)})


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_names_every_family_when_there_are_more_than_colours(nine: Evidence, name: str) -> None:
    with plots.style():
        figure = FIGURES[name](nine)
    words = " ".join(text.get_text() for text in figure.findobj(Text))
    assert {fitted.family for fitted in nine.fits} <= set(re.findall(r"family-\d", words))
    plots.plt.close(figure)


def test_no_two_families_look_the_same() -> None:
    looks = {(plots.color_of(index), plots.dash_of(index), plots.marker_of(index)) for index in range(28)}
    assert len(looks) == 28


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_is_drawn_with_labelled_axes(evidence: Evidence, name: str) -> None:
    with plots.style():
        figure = FIGURES[name](evidence)
    for axis in figure.axes:
        assert axis.get_xlabel()
        assert axis.lines or axis.collections
    assert figure.axes[0].get_ylabel()
    plots.plt.close(figure)


@pytest.mark.parametrize("name", ["envelope", "multipliers"])
def test_a_figure_without_its_data_is_refused_not_drawn_empty(evidence: Evidence, name: str) -> None:
    with pytest.raises(RefusalError):
        FIGURES[name](Evidence(evidence.fits[:1]))


def test_why_a_family_has_no_envelope_stands_in_its_panel(evidence: Evidence) -> None:
    one_size = evidence.fits[0].used.filter(pl.col("parameters") == pl.col("parameters").min())["run_id"]
    curves = evidence.curves.filter(pl.col("run_id").is_in(one_size.implode()))
    with plots.style():
        figure = FIGURES["envelope"](Evidence(evidence.fits[:1], curves))
    words = " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")
    assert "no envelope" in words
    assert "an envelope of" in words
    plots.plt.close(figure)


def test_a_figure_is_saved_in_every_format(evidence: Evidence, tmp_path: Path) -> None:
    with plots.style():
        paths = plots.save(figures.residuals(evidence), tmp_path / "residuals")
    starts = {path.suffix: path.read_bytes()[:5] for path in paths}
    assert starts == {".png": b"\x89PNG\r", ".pdf": b"%PDF-", ".svg": b"<?xml"}


def test_the_same_figure_makes_the_same_bytes(evidence: Evidence, tmp_path: Path) -> None:
    written = []
    for turn in ("first", "second"):
        with figures.drawn(Evidence(evidence.fits[:1])) as drawn, plots.style():
            paths = plots.save(drawn["residuals"], tmp_path / turn / "residuals")
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]


def test_the_page_says_how_it_was_made(evidence: Evidence, tmp_path: Path) -> None:
    about = {"data": "text <1>", "in MLflow": "http://127.0.0.1:5000/#/experiments/1/runs"}
    text = page.write(tmp_path / "report.html", "made", evidence, {}, about).read_text()
    assert "<dt>data</dt><dd>text &lt;1&gt;</dd>" in text
    assert '<a href="http://127.0.0.1:5000/#/experiments/1/runs">' in text
    assert "<button id=csv>" in text


def test_the_page_needs_nothing_from_elsewhere_and_holds_the_fit(evidence: Evidence, tmp_path: Path) -> None:
    with figures.drawn(evidence) as drawn:
        text = page.write(tmp_path / "report.html", "a <sweep>", evidence, drawn).read_text()
    outside = set(re.findall(r"(?:src|href)\s*=\s*[\"']?(?!#)[^\s\"'>]+", text)) | set(
        re.findall(r"@import|fetch\(", text)
    )
    assert not outside
    assert "<title>a &lt;sweep&gt;</title>" in text
    script = text.partition("<script>const DATA = ")[2].partition(";\n")[0]
    data = json.loads(script)
    assert [family["name"] for family in data["families"]] == ["llama", "</script>"]
    assert len(data["families"][0]["points"]) == evidence.fits[0].used.height
    # What the text's calculator computes from the law's coordinates is the law's own prediction.
    a, b, e, alpha, beta = data["families"][0]["law"]
    loss = math.exp(e) + math.exp(a - alpha * math.log(1e9)) + math.exp(b - beta * math.log(2e10))
    assert loss == pytest.approx(float(evidence.fits[0].law.predict(1e9, 2e10)), rel=1e-12)
    assert text.count("</script>") == 1


def test_names_from_a_table_are_shown_as_they_are_written(tmp_path: Path) -> None:
    names = ["<!--<script>", "a $\\frac$ & b"]
    evidence = _evidence({names[0]: 1.0, names[1]: 0.97})
    with figures.drawn(evidence) as drawn:
        text = page.write(tmp_path / "report.html", "names", evidence, drawn).read_text()
    assert "<!--" not in text
    script = text.partition("<script>const DATA = ")[2].partition(";\n")[0]
    assert [family["name"] for family in json.loads(script)["families"]] == names
    assert "a $\\frac$ &amp; b" in text.partition("<svg")[2]


def test_published_numbers_are_the_papers() -> None:
    table = references.TABLES["xlstm-table-3"].frame()
    assert table.height == 20
    best = table.filter(pl.col("size") == "1.3B").sort("loss").row(0, named=True)
    assert (best["family"], best["perplexity"]) == ("xlstm[1:0]", 8.89)
    one = references.TABLES["xlstm-table-1"].frame().sort("perplexity")
    assert one["family"].head(2).to_list() == ["xlstm[1:0]", "xlstm[7:1]"]
    # Hoffmann et al.'s own rounding of their parameters.
    law = references.LAWS["chinchilla"].law
    rounded = [float(f"{value:.4g}") for value in (law.A, law.B, law.E)]
    assert rounded == pytest.approx([406.4, 410.7, 1.693], abs=0.06)
    with pytest.raises(RefusalError, match="xlstm-table-1"):
        references.find("xlstm")


def test_sizes_that_nearly_agree_do_not_bend_a_profile() -> None:
    """Akima's curve through two sizes a ten-thousandth apart, with noise, would leave the plane."""
    n = np.array([1e8, 1.8e8, 3e8, 3.0003e8, 5e8, 9e8])
    loss = np.array([3.2, 3.0, 2.9, 2.93, 2.98, 3.1])
    found = isoflop._profile(
        isoflop.budgets(pl.DataFrame({"parameters": n, "loss": loss, "flops": [1e19] * 6}))[0], "akima"
    )
    assert found.loss_at_optimum == pytest.approx(2.9, abs=0.02)
