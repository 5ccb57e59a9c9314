"""Rows of several sources in one frame: the column `sweep` says which source a row is of."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from analysis.data import quality, tables
from analysis.data.runs import Kind
from analysis.data.selection import Rows

SWEEP = "sweep"


def titles(sources: Sequence[str]) -> list[str]:
    """What each source is called beside the others: its name, of a table the file's, or all of it where two agree."""
    short = [Path(name).name if tables.format_of(name) else name.removeprefix("mlflow:") for name in sources]
    times = Counter(short)
    return [name if times[name] == 1 else whole for name, whole in zip(short, sources, strict=True)]


def beside(sources: Sequence[str], read: Sequence[Rows], *, pooled: bool, rules: quality.Rules) -> Rows:
    """The rows of all sources, judged one by one before.

    A family that several sources have is one family of each, `llama (wide)`, so that laws are compared; where the rows
    are `pooled`, it is one, and a run that several sources hold counts once.
    """
    names = titles(sources)
    families = Counter(family for rows in read for family in rows.frame["family"].unique())
    shared = [family for family, times in families.items() if times > 1]
    frames = []
    for source, name, rows in zip(sources, names, read, strict=True):
        columns = [pl.lit(name).alias(SWEEP)]
        if Kind.of(source) is Kind.TABLE:  # rows of two tables have the same names and are not the same
            columns.append(pl.format("{}: {}", pl.lit(name), "run_id").alias("run_id"))
        if not pooled:
            named = pl.format("{} ({})", "family", pl.lit(name))
            columns.append(pl.when(pl.col("family").is_in(shared)).then(named).otherwise("family").alias("family"))
        frames.append(rows.frame.with_columns(columns))
    frame = pl.concat(frames, how="diagonal")
    at_edge = frozenset[str]().union(*(rows.at_edge for rows in read))
    return Rows(
        quality.judge(frame, rules) if pooled else frame, [note for rows in read for note in rows.notes], at_edge
    )
