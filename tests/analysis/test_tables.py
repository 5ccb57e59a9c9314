"""Tables as people have them: whatever their format and their writing of numbers, the same rows are fitted."""

import csv
import gzip
import io
import json
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow
import pytest
from typer.testing import CliRunner

from analysis.data import runs, tables
from analysis.data.columns import Reading
from analysis.findings import RefusalError
from analysis.fitting import families
from analysis.laws.additive import AdditiveLaw
from analysis.report import figures
from orchestrator.cli import app

LAW = AdditiveLaw(E=1.7, A=400.0, B=1100.0, alpha=0.34, beta=0.31)
POINTS = [(n, d) for n in (10_000_000, 30_000_000, 100_000_000) for d in (200_000_000, 600_000_000, 2_000_000_000)]
NOISE = np.random.default_rng(3).normal(0, 0.003, len(POINTS))
ROWS: list[dict[str, Any]] = [
    {"parameters": n, "tokens": d, "loss": round(float(LAW.predict(n, d) * np.exp(noise)), 5)}
    for (n, d), noise in zip(POINTS, NOISE, strict=True)
]
NUMBERS = pl.DataFrame(ROWS).cast(pl.Float64)


def separated(rows: Sequence[Mapping[str, Any]], separator: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    content = io.BytesIO()
    pl.DataFrame(rows).write_parquet(content)
    return content.getvalue()


def arrow(rows: Sequence[Mapping[str, Any]], *, stream: bool = False) -> bytes:
    content = io.BytesIO()
    (pl.DataFrame(rows).write_ipc_stream if stream else pl.DataFrame(rows).write_ipc)(content)
    return content.getvalue()


FORMATS: dict[str, Callable[[Sequence[Mapping[str, Any]]], bytes]] = {
    "rows.csv": separated,
    "semicolons.csv": lambda rows: separated(rows, ";"),
    "tabs.csv": lambda rows: separated(rows, "\t"),
    "utf16.csv": lambda rows: separated(rows).decode().encode("utf-16"),
    "marked.csv": lambda rows: b"\xef\xbb\xbf" + separated(rows),
    "latin.csv": lambda rows: separated([row | {"note": "kühl"} for row in rows]).decode().encode("latin-1"),
    "comments.csv": lambda rows: b"# by hand\n\n# twice\n" + separated(rows),
    "blank-lines.csv": lambda rows: separated(rows).replace(b"\r\n", b"\n\n"),
    "pipes.csv": lambda rows: separated(rows, "|"),
    "excel.csv": lambda rows: b"sep=;\r\n" + separated(rows, ";"),
    "rows.tsv": lambda rows: separated(rows, "\t"),
    "array.json": lambda rows: json.dumps(rows).encode(),
    "columns.json": lambda rows: json.dumps({name: [row[name] for row in rows] for name in rows[0]}).encode(),
    "indexed.json": lambda rows: json.dumps(
        {name: {str(place): row[name] for place, row in enumerate(rows)} for name in rows[0]}
    ).encode(),
    "lines.json": lines,
    "rows.jsonl": lines,
    "rows.ndjson": lines,
    "rows.parquet": parquet,
    "rows.arrow": arrow,
    "rows.feather": arrow,
    "stream.arrow": lambda rows: arrow(rows, stream=True),
}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True),  # type: ignore[no-any-return]
}


def write(folder: Path, name: str, content: bytes | str) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def scaling(*arguments: str) -> Any:
    said = CliRunner().invoke(app, list(arguments))
    assert said.exception is None or isinstance(said.exception, SystemExit), said.exception
    return said


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path / "workspace"))
    # How much is drawn and resampled is not what is asked here.
    monkeypatch.setattr(families, "fit", partial(families.fit, num_draws=12, num_starts=64))
    return tmp_path


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, compression: str) -> None:
    path = write(tmp_path, name + compression, COMPRESS[compression](FORMATS[name](ROWS)))
    assert runs.load(path).select(NUMBERS.columns).equals(NUMBERS)


def test_only_named_columns_are_parsed(tmp_path: Path) -> None:
    junk = [row | {"C": "9" * 30, "note": 1 if place < 8 else "ends early"} for place, row in enumerate(ROWS)]
    assert runs.load(write(tmp_path, "rows.csv", separated(junk))).select(NUMBERS.columns).equals(NUMBERS)
    nested = [{"config": {"n": row["parameters"]}, "tokens": row["tokens"], "loss": row["loss"]} for row in ROWS]
    path = write(tmp_path, "rows.jsonl", lines([row | {"table": {"a": [None]}} for row in nested]))
    assert runs.load(path, columns={"parameters": "config.n"}).select(NUMBERS.columns).equals(NUMBERS)


def test_a_cell_that_is_empty_follows_from_the_other_two(tmp_path: Path) -> None:
    rows = [
        row | {"flops": "" if place % 2 else 7 * row["parameters"] * row["tokens"]} for place, row in enumerate(ROWS)
    ]
    frame = runs.load(write(tmp_path, "rows.csv", separated(rows)))
    assert frame["excluded"].is_null().all()
    ratio = (frame["flops"] / frame["parameters"] / frame["tokens"]).round(9).to_list()
    assert ratio == [6.0 if place % 2 else 7.0 for place in range(9)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.csv", b"", "the file is empty"),
        ("ragged.csv", separated(ROWS) + b"1,2\r\n", "ragged.csv:11: 2 cells, the first line names 3"),
        ("twice.csv", b"loss,parameters,tokens,loss\n1,2,3,4\n", "2 columns 'loss'"),
        ("broken.jsonl", b'{"loss": 1}\n{"loss": \n', "broken.jsonl:2: no JSON"),
        ("no-object.jsonl", b'{"loss": 1}\n3\n', "no-object.jsonl:2: a line is one object"),
        ("no-rows.json", b"[]", "holds no rows"),
        ("deep.json", b"[" * 100_000, "not readable as .json"),
        ("number.json", b"7", "no array of objects"),
        ("no.parquet", b"PAR1 no", "not readable as .parquet"),
        ("cut.parquet", parquet(ROWS)[:-40], "not readable as .parquet"),
        ("no.arrow", b"ARROW1 no", "not readable as .arrow"),
        ("cut.csv.gz", gzip.compress(separated(ROWS))[:-9], "not readable as .csv"),
        ("no-loss.csv", b"parameters,Tokens,Loss\n1,2,3\n", "--columns loss=…; there are: parameters, Tokens, Loss"),
        (
            "no-tokens.csv",
            b"parameters,Tokens,loss\n1,2,3\n",
            "tokens, flops; name them with --columns; there are: par",
        ),
        ("sheet.xlsx", b"PK", "tables are read as .csv, .tsv, .json"),
    ],
)
def test_what_cannot_be_read_is_a_line_that_names_the_file(here: Path, name: str, content: bytes, said: str) -> None:
    shown = scaling("fit", write(here, name, content))
    assert shown.exit_code == 2
    (line,) = shown.stderr.splitlines()
    assert name in line
    assert said in line


def test_a_refusal_for_want_of_rows_counts_the_reasons(here: Path) -> None:
    rows: list[dict[str, Any]] = [row | {"state": "finished"} for row in ROWS]
    rows[0]["state"] = rows[1]["state"] = "crashed"
    rows[2] |= {"loss": ""}
    rows[3] |= {"parameters": "10X"}
    rows[4] |= {"parameters": "20X"}
    path = write(here, "rows.csv", separated(rows))
    shown = scaling("fit", path)
    assert shown.exit_code == 2
    assert shown.stderr.strip() == (
        f"{path}: all: 4 usable runs cannot determine 5 parameters; at least 6 (9 rows: 2 left out because: unfinished "
        "(crashed), 2 left out because: parameters is no number ('10X' in line 5), 1 left out because: loss is not a "
        "positive finite number)"
    )


def test_a_decimal_comma_is_asked_for_and_then_remembered(here: Path) -> None:
    rows = [row | {"loss": str(row["loss"]).replace(".", ",")} for row in ROWS]
    path = write(here, "rows.csv", separated(rows, ";"))
    refused = scaling("fit", path)
    assert refused.exit_code == 2
    assert "say --decimal-comma" in refused.stderr
    assert scaling("fit", path, "--decimal-comma").exit_code == 0
    assert scaling("predict", path, "--parameters", "10M", "--tokens", "1B").exit_code == 0


def test_columns_of_the_last_fit_are_remembered_and_may_hold_commas(here: Path) -> None:
    name = 'N (total, with "embedding" = all)'
    path = write(
        here, "rows.csv", separated([{name: row["parameters"], **row} for row in ROWS]).replace(b"parameters,", b"M,")
    )
    option = 'parameters="N (total, with ""embedding"" = all)", loss=loss'
    assert scaling("fit", path).exit_code == 2
    assert scaling("fit", path, "--columns", option).exit_code == 0
    for verb in (("predict", "--parameters", "10M", "--tokens", "1B"), ("allocate", "--flops", "1e18")):
        shown = scaling(verb[0], path, *verb[1:])
        assert shown.exit_code == 0, shown.stderr
    again = scaling("fit", path)
    assert again.exit_code == 0
    assert "columns are read as the last fit read them: parameters=N (total" in again.stdout


def searched(seeds: Callable[[int, int], object] | None = None) -> list[dict[str, Any]]:
    """Three rates at each point; the middle one is the best, and stands for the point."""
    return [
        {**row, "lr": rate, "loss": row["loss"] * worse} | ({} if seeds is None else {"seed": seeds(place, index)})
        for place, row in enumerate(ROWS)
        for index, (rate, worse) in enumerate(((1e-4, 1.1), (1e-3, 1.0), (1e-2, 1.2)))
    ]


@pytest.mark.parametrize("seeds", [None, lambda place, index: 0, lambda place, index: 3 * place + index])
def test_rows_of_a_searched_axis_are_warned_of_and_the_best_value_is_taken_where_it_is_named(
    here: Path, seeds: Callable[[int, int], object] | None
) -> None:
    path = write(here, "rates.csv", separated(searched(seeds)))
    best = write(here, "best.csv", separated(ROWS))
    (warned,) = json.loads(scaling("fit", path, "--json").stdout)
    (warning,) = [one["message"] for one in warned["warnings"] if one["code"] == "several-losses"]
    assert "at 9 of 9 points (N, D) several rows differ in loss, by up to 20 %" in warning
    assert "--best-of" in warning
    (found,), (alone,) = (
        json.loads(scaling("fit", *given, "--json").stdout) for given in ((path, "--best-of", "lr"), (best,))
    )
    assert found["parameters"] == alone["parameters"]
    assert not any(one["code"] == "several-losses" for one in found["warnings"])
    at = ("--parameters", "1B", "--tokens", "1B", "--json")
    assert json.loads(scaling("predict", path, *at).stdout) == json.loads(scaling("predict", best, *at).stdout)
    assert "no column 'rate' for --best-of; there are: parameters" in scaling("fit", path, "--best-of", "rate").stderr


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda row: {"parameters": row["parameters"] / 1e6}, "other-units", "parameters is 10 in 9 rows: counts are"),
        (lambda row: {"flops": 6e-15 * row["parameters"] * row["tokens"]}, "other-units", "flops is 12 in 9 rows"),
        (lambda row: {"run_id": row["parameters"]}, "several-budgets-of-one-run", "3 names stand at 9 budgets"),
    ],
)
def test_what_a_table_may_mean_otherwise_is_warned_of(
    here: Path, change: Callable[[dict[str, Any]], dict[str, Any]], code: str, said: str
) -> None:
    (fitted,) = json.loads(
        scaling("fit", write(here, "rows.csv", separated([row | change(row) for row in ROWS])), "--json").stdout
    )
    (warned,) = [one["message"] for one in fitted["warnings"] if one["code"] == code]
    assert said in warned


def test_repetitions_are_no_search_and_all_of_them_stay(tmp_path: Path) -> None:
    rows = [
        {**row, "lr": rate, "loss": row["loss"] * worse * (1 + 0.002 * repetition)}
        for row in ROWS
        for rate, worse in ((1e-4, 1.1), (1e-3, 1.0))
        for repetition in range(3)
    ]
    frame = runs.read(write(tmp_path, "rows.csv", separated(rows)), best_of=["lr"]).frame
    assert frame["excluded"].null_count() == 27
    assert not list(runs.quality.several_losses(frame.filter(pl.col("excluded").is_null()), "all"))


def test_a_best_value_at_the_edge_of_those_tried_is_said(tmp_path: Path) -> None:
    rows = [row for row in searched() if row["lr"] != 1e-4]
    found = runs.read(write(tmp_path, "rows.csv", separated(rows)), best_of=["lr"])
    assert len(found.notes) == 9
    assert found.notes[0] == "0: the best lr, 0.001, is the lowest tried; a better one may lie beyond"


def test_rows_that_share_a_name_are_runs_of_their_own(tmp_path: Path) -> None:
    rows = [row | {"run_id": f"lm-{place % 3}"} for place, row in enumerate(ROWS)]
    frame = runs.load(write(tmp_path, "rows.csv", separated([*rows, rows[4]])))
    assert frame["excluded"].to_list() == [None] * 9 + ["duplicate"]
    assert frame["run_id"].n_unique() == 10
    assert frame["run_id"][0] == "lm-0 (row 0)"


def test_a_table_whose_name_is_no_text_has_a_page(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FIGURES", {"law": figures.law})
    path = write(here, os.fsdecode(b"rows\xff.csv"), separated(ROWS))
    assert scaling("fit", path).exit_code == 0
    assert scaling("report", path).exit_code == 0
    (page,) = (here / "workspace").rglob("report.html")
    assert "rows\\udcff.csv" in page.read_text()


def test_tables_of_one_name_share_neither_fits_nor_questions(here: Path) -> None:
    for folder, ending in (("a", ".csv"), ("b", ".csv"), ("b", ".jsonl")):
        (here / folder).mkdir(exist_ok=True)
        rows = [row | {"loss": row["loss"] * (1.1 if folder == "b" else 1)} for row in ROWS]
        write(here / folder, f"results{ending}", FORMATS[f"rows{ending}"](rows))
    asked = ("--parameters", "1B", "--tokens", "20B", "--json")
    before = scaling("predict", str(here / "b" / "results.csv"), *asked).stdout
    assert scaling("fit", str(here / "a" / "results.csv"), "--range", "parameters=2e7:").exit_code == 0
    assert scaling("fit", str(here / "b" / "results.jsonl"), "--range", "tokens=3e8:").exit_code == 0
    assert scaling("predict", str(here / "b" / "results.csv"), *asked).stdout == before
    assert len(list((here / "workspace" / "fits").iterdir())) == 3


def test_what_was_saved_by_the_files_name_alone_is_found_by_the_file_that_it_was_made_of(here: Path) -> None:
    path = write(here, "results.csv", separated(ROWS))
    assert scaling("fit", path, "--range", "parameters=2e7:").exit_code == 0
    fits = here / "workspace" / "fits"
    (own,) = fits.iterdir()
    own.rename(fits / "results")
    asked = ("--parameters", "1B", "--tokens", "20B")
    assert scaling("predict", path, *asked).exit_code == 0
    assert [folder.name for folder in fits.iterdir()] == ["results"]
    (here / "other").mkdir()
    other = write(here / "other", "results.csv", separated([row | {"loss": row["loss"] + 0.5} for row in ROWS]))
    assert scaling("predict", other, *asked).exit_code == 0
    assert len(list(fits.iterdir())) == 2


def test_families_whose_names_differ_in_punctuation_only_keep_fits_of_their_own(here: Path) -> None:
    families = ["x[7:1]", "x-7-1", "..", "é" * 300]
    rows = [
        row | {"family": family, "loss": row["loss"] + place} for place, family in enumerate(families) for row in ROWS
    ]
    path = write(here, "rows.csv", separated(rows))
    assert len(json.loads(scaling("fit", path, "--json").stdout)) == 4
    (folder,) = (here / "workspace" / "fits").iterdir()
    assert len(list(folder.glob("*/fit.json"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_two_hundred_thousand_rows_are_read_in_seconds(tmp_path: Path, ending: str) -> None:
    count, draw = 200_000, np.random.default_rng(0)
    frame = pl.DataFrame(
        {name: draw.uniform(1e6, 1e9, count) for name in ("parameters", "tokens", "loss")}
        | {f"junk{place}": draw.uniform(size=count) for place in range(20)}
    ).with_columns(run_id=pl.format("run-{}", pl.int_range(count)))
    path = tmp_path / f"rows.{ending}"
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[ending](path)
    began = time.process_time()
    assert runs.read(str(path), Reading()).frame["excluded"].null_count() == count
    assert time.process_time() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * 2**20  # KiB


def test_a_file_that_unfolds_beyond_what_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAXIMUM_BYTES", 2**16)
    for name in ("rows.csv.gz", "rows.csv.zst"):
        content = COMPRESS[name[8:]](separated(ROWS) + b"\n" * 2**20)
        assert len(content) < 2**12
        with pytest.raises(RefusalError, match="more than"):
            runs.load(write(tmp_path, name, content))


@pytest.mark.parametrize("family", ["=1+1", "+cmd", "-sum(a1)", "@a"])
def test_a_text_that_is_a_formula_to_a_spreadsheet_is_exported_as_text(here: Path, family: str) -> None:
    path = write(here, "rows.csv", separated([row | {"family": family, "size": "-1.5"} for row in ROWS]))
    assert scaling("runs", path, "--csv", str(here / "out.csv")).exit_code == 0
    with open(here / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["family"], row["size"]) for row in rows} == {(f"'{family}", "-1.5")}
    assert scaling("runs", path).stdout.count(f"'{family}") == len(ROWS)
