"""A loss whose interval is unbounded is not told, by the command line and by the page alike."""

import html
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

RUNS = """parameters,tokens,loss
1e6,2e8,7.2114
1e6,3e8,7.0211
2e6,2e8,6.5009
2e6,3e8,6.9127
3e6,2e8,6.2288
3e6,3e8,6.3075
"""
"""Six runs that leave both exponents open: what they say of one parameter, or of one token, has no bound."""


@pytest.fixture
def fitted(scaling: Any, tmp_path: Path) -> str:
    table = tmp_path / "few.csv"
    table.write_text(RUNS)
    assert scaling("fit", str(table), "--form", "additive").code == 0
    return str(table)


def test_a_loss_whose_interval_is_unbounded_is_not_told(scaling: Any, fitted: str) -> None:
    at = ("--parameters", "1", "--tokens", "1")
    line = scaling("predict", fitted, *at).out.splitlines()[0]
    assert "the loss is not told: its interval is unbounded" in line
    assert "1e-06 times the smallest" in line  # which says why
    (row,) = scaling("predict", fitted, *at, "--json").json
    assert (row["loss"], row["interval"], row["new_run_interval"]) == (None, None, None)
    near = scaling("predict", fitted, "--parameters", "2M", "--tokens", "200M").out.splitlines()[0]
    assert re.match(r"all: loss [67]\.\d{4} \[[567]\.\d{4}, [67]\.\d{4}\] at N", near)


def test_no_bound_of_a_loss_is_negative(scaling: Any, fitted: str) -> None:
    """A rival that is lower by more than the law's own bound would have it below nothing."""
    assert scaling("fit", fitted).code == 0
    for size in ("1", "1K", "1M", "1B"):
        (row,) = scaling("predict", fitted, "--parameters", size, "--tokens", "1B", "--json").json
        assert row["interval"] is None or row["interval"][0] >= 0


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to look with")
@pytest.mark.slow
@pytest.mark.parametrize(("size", "tokens"), [("1", "1"), ("2M", "200M")])
def test_the_page_tells_what_predict_tells(scaling: Any, fitted: str, tmp_path: Path, size: str, tokens: str) -> None:
    page = Path(scaling("report", fitted).out.strip())
    text = re.sub(r"(<input id=size [^>]*value=)[^>]*", rf"\g<1>{size}", page.read_text())
    asked = tmp_path / "asked.html"
    asked.write_text(re.sub(r"(<input id=tokens [^>]*value=)[^>]*", rf"\g<1>{tokens}", text))
    assert BROWSER is not None
    shown = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"),
            *("--virtual-time-budget=5000", "--dump-dom", asked.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    answers = html.unescape(re.sub(r"<[^>]+>", "", re.findall(r"<output id=\"answers\".*?</output>", shown)[0]))
    told = scaling("predict", fitted, "--parameters", size, "--tokens", tokens).out.splitlines()[0]
    assert "Infinity" not in answers
    # The page's intervals come of fewer draws, and it writes 1e-06 as 0.000001.
    wanted = re.sub(r" at N = [\d,]+, D = [\d,]+", "", told).replace(":;", ":")
    said, meant = (re.sub(r" \[[^]]*\]", "", line).partition("; N ")[0] for line in (answers, wanted))
    assert said == meant
