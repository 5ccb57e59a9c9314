"""Options that several verbs about laws share, and what is made of the text that is typed for them."""

import re
from typing import Annotated

import typer

from orchestrator.errors import InputError

SourceArgument = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A submitted sweep, a table (.csv, .parquet, …) or mlflow:EXPERIMENT.")
]
SourcesArgument = Annotated[
    list[str],
    typer.Argument(metavar="SOURCE", help="Submitted sweeps, tables (.csv, .parquet, …) or mlflow:EXPERIMENT."),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        metavar="OURS=THEIRS,…",
        help='Columns of a file, such as parameters="Model Size",loss=loss; left out, those of the last fit.',
    ),
]


KeepOption = Annotated[
    list[str] | None,
    typer.Option("--keep", metavar="RULE", help="Keep rows that this rule would leave out, such as not-decayed."),
]
RangeOption = Annotated[
    list[str] | None,
    typer.Option("--range", metavar="COLUMN=LOW:HIGH", help="Leave out rows outside, such as tokens=1e9:1e12."),
]
MixedOption = Annotated[
    bool,
    typer.Option("--allow-mixed", help="Fit runs of different evaluations, tokenizers or schedules together."),
]
BestOfOption = Annotated[
    list[str] | None,
    typer.Option("--best-of", metavar="COLUMN", help="An axis that was searched, such as lr: its best value counts."),
]
PooledOption = Annotated[
    bool,
    typer.Option("--pooled", help="Of several sources, fit each family's rows as one; left out, a law for each."),
]
DecimalCommaOption = Annotated[
    bool, typer.Option("--decimal-comma", help="Numbers have decimal commas; the other verbs then take this over.")
]

ReferenceOption = Annotated[
    list[str] | None,
    typer.Option("--reference", metavar="NAME", help="Draw published numbers, too: xlstm-table-3, chinchilla, …"),
]
FormOption = Annotated[
    str,
    typer.Option(
        metavar="FORM",
        help="The law's form: additive, coupled, kaplan, farseer, power-C, …; auto weighs the first three.",
    ),
]
ObjectiveOption = Annotated[
    str, typer.Option(metavar="NAME", help="huber on log loss, least-squares on loss, or least-squares-of-log.")
]

_COLUMN = re.compile(r'([^=,]+)=\s*(?:"((?:[^"]|"")+)"\s*|([^,]*[^,\s][^,]*))(?:,|$)')
"""One pair of `--columns`; a name of theirs that holds a comma stands in double quotes."""


def ranges_of(within: list[str] | None) -> dict[str, tuple[float, float]]:
    ranges = {}
    for text in within or []:
        name, equals, bounds = text.partition("=")
        low, colon, high = bounds.partition(":")
        try:
            ranges[name] = (float(low or "-inf"), float(high or "inf"))
        except ValueError:
            equals = ""
        if not (equals and colon):
            raise InputError(f"--range {text}: write COLUMN=LOW:HIGH, such as tokens=1e9:1e12 or loss=:4")
    return ranges


def columns_of(text: str | None) -> dict[str, str]:
    columns: dict[str, str] = {}
    rest = (text or "").strip(" ,")
    while rest:
        match = _COLUMN.match(rest)
        if match is None:
            raise InputError(f'--columns {text}: write ours=theirs, such as parameters="Model Size",loss=loss')
        ours, quoted, theirs = match.groups()
        columns[ours.strip()] = quoted.replace('""', '"') if quoted is not None else theirs.strip()
        rest = rest[match.end() :].strip(" ,")
    return columns


def quantity(option: str, text: str) -> int:
    from pydantic import TypeAdapter, ValidationError

    from sweeps.section import Count

    try:
        value: int = TypeAdapter(Count).validate_python(text if text[-1:].isalpha() else float(text))
    except (ValidationError, ValueError):
        raise InputError(f"{option} {text}: write a whole number above zero, such as 125M, 15B or 3e9") from None
    return value
