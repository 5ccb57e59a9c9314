"""Whatever table is fitted, the answer is a law, or a line that says why there is none: never a traceback."""

import gzip
import io
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow
import pytest
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from analysis.data.columns import EXTRA, SCHEMA
from analysis.fitting import families
from orchestrator.cli import app

COLUMNS = (*SCHEMA, *EXTRA)
ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow")
NUMBERS = (
    st.sampled_from([1e6, 3e6, 1e7, 3e7, 1e8, 1e9, 1e10, 2.5, 2.7, 3.1, 4.0])
    | st.floats(1.0, 10.0)
    | st.integers(1, 10**12)
    | st.sampled_from(["12M", "1.5B", "1,000,000", "1e9", "3,2", " 7 ", "1.000.000"])
)
CELLS = (
    NUMBERS
    | st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(
        ["", "NaN", "inf", "-", "COMPLETED", "finished", "damaged-checkpoint", "ünï", "a,b", '"', "\ud800"]
    )
)
DEEP = st.recursive(
    CELLS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of a law, of which any cell may be anything, with any columns beside them."""
    count = draw(st.integers(0, 24))
    names = draw(st.lists(st.sampled_from(COLUMNS) | st.text(max_size=6), max_size=6, unique=True))
    wild = draw(st.sampled_from([0.0, 0.05, 0.5]))
    rows = []
    for place in range(count):
        n, d = 1e6 * 3 ** (place % 4), 1e8 * 3 ** (place // 4 % 4)
        row: dict[str, Any] = {
            "parameters": n,
            "tokens": d,
            "loss": 1.7 + 400 / n**0.34 + 1100 / d**0.31 + place % 3 / 200,
        }
        row |= {name: draw(CELLS if wild < 0.5 else DEEP) for name in names if name not in row}
        for name in ("parameters", "tokens", "loss"):
            if draw(st.floats(0, 1)) < wild:
                row[name] = draw(CELLS)
        rows.append(row)
    for _ in range(draw(st.integers(0, 2))):
        rows += rows[:1]
    return rows


def written(rows: list[dict[str, Any]], ending: str) -> bytes:
    if ending in (".json", ".jsonl"):
        return (json.dumps(rows) if ending == ".json" else "\n".join(map(json.dumps, rows))).encode()
    names = list(dict.fromkeys(name for row in rows for name in row))
    if ending in (".csv", ".tsv"):
        import csv

        text = io.StringIO()
        writer = csv.writer(text, delimiter="," if ending == ".csv" else "\t")
        writer.writerows([names, *([row.get(name) for name in names] for row in rows)])
        return text.getvalue().encode("utf-8", "surrogatepass")
    columns = {}
    for name in names:
        cells = [row.get(name) for row in rows]
        try:
            columns[name] = pl.Series(name, cells)
            columns[name].to_frame().write_parquet(io.BytesIO())  # which takes no mapping without keys
        except Exception:  # what no typed column holds is text
            columns[name] = pl.Series(name, [str(cell).encode("utf-8", "replace").decode() for cell in cells])
    content = io.BytesIO()
    frame = pl.DataFrame({name: one for name, one in columns.items() if one.dtype != pl.Object})
    (frame.write_parquet if ending == ".parquet" else frame.write_ipc)(content)
    return content.getvalue()


def fit(content: bytes, name: str, *options: str) -> None:
    """Fit a file of this content: a law, or one line."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALING_WORKSPACE", str(Path(folder) / "workspace"))
        # How much is drawn and resampled is not what is asked here.
        patch.setattr(families, "fit", partial(families.fit, num_draws=6, num_starts=8))
        path = Path(folder) / name
        path.write_bytes(content)
        said = CliRunner().invoke(app, ["fit", str(path), *options])
        assert said.exception is None or isinstance(said.exception, SystemExit), repr(said.exception)
        assert said.exit_code in (0, 2), said.output
        if said.exit_code == 2:
            assert len(said.stderr.strip().split("\n")) == 1, said.stderr
        elif "--json" in options:
            assert json.loads(said.stdout)[0]["parameters"]
            again = CliRunner().invoke(app, ["predict", str(path), "--parameters", "1B", "--tokens", "1B"])
            assert again.exit_code == 0, again.output


NO_FINITE_SLOPE = (
    *((1e6, 1e8, 8.99), (3e6, 1e8, 7.86), (27e6, 1e8, 6.53), (1e6, 3e8, 7.94), (2390, 3e8, 6.02)),
    *((27e6, 3e8, 1668.0), (9e6, 7.5, 5.28), (2.75, 27e8, 4.75)),
)
"""N, D and loss of runs at some of which the best law of form `kaplan` has no finite slope."""


@example(
    [dict(zip(("parameters", "tokens", "loss"), row, strict=True)) for row in NO_FINITE_SLOPE], ".csv", "", ["--json"]
)
@example([{"parameters": 1e6, "tokens": 1e8, "loss": 8.99, "a\nb\x1b[31m": 1.0}], ".json", "", ["--best-of=size"])
@examples(12)
@given(
    tables(),
    st.sampled_from(ENDINGS),
    st.sampled_from(["", ".gz", ".zst"]),
    st.lists(st.sampled_from(["--json", "--decimal-comma", "--allow-mixed", "--best-of=size", "--keep=duplicate"])),
)
def test_any_table_gives_a_law_or_a_line(
    rows: list[dict[str, Any]], ending: str, compression: str, options: list[str]
) -> None:
    content = written(rows, ending)
    if compression:
        compress = gzip.compress if compression == ".gz" else partial(pyarrow.compress, codec="zstd", asbytes=True)
        content = compress(content)
    fit(content, f"rows{ending}{compression}", *dict.fromkeys(options))


VALID = {
    ending: written([{"parameters": 10**6 * n, "tokens": 10**8 * n, "loss": 4.0 - n / 9} for n in range(1, 6)], ending)
    for ending in ENDINGS
}


def test_a_header_that_goes_on_to_the_end_of_the_file_is_told_in_a_line() -> None:
    fit(b'"' + VALID[".csv"], "rows.csv")


@examples(40)
@given(st.sampled_from(ENDINGS), st.sampled_from(["", ".gz", ".zst"]), st.data())
def test_any_bytes_give_a_law_or_a_line(ending: str, compression: str, data: st.DataObject) -> None:
    content = bytearray(VALID[ending])
    if compression == ".gz":
        content = bytearray(gzip.compress(bytes(content), mtime=0))
    elif compression == ".zst":
        content = bytearray(pyarrow.compress(bytes(content), "zstd", asbytes=True))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=12))
    fit(bytes(content), f"rows{ending}{compression}")


@examples(40)
@given(st.sampled_from(ENDINGS), st.binary(max_size=200))
def test_any_noise_gives_a_line(ending: str, content: bytes) -> None:
    fit(content, f"rows{ending}")
