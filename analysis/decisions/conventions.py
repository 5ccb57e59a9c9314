"""How far the way of counting moves the answer: Chinchilla's three approaches on the same runs, by convention.

N is counted in total, without embeddings, or without the token embedding but with the head; C exactly (attention, heads
and cells included) or as 6ND of that N. Which convention is taken moves the compute-optimal exponent by more than its
error bars do (Porian et al. 2024, arXiv 2406.19146; Pearce & Song 2024, arXiv 2406.12907), so that all are shown.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from analysis.decisions import allocation, isoflop
from analysis.findings import RefusalError
from analysis.fitting import families

PARAMETERS = {
    "total": "parameters",
    "non_embedding": "non_embedding",
    "non_embedding_with_head": "non_embedding_with_head",
}
"""Names of the conventions of N, and the frame's columns that hold them."""
FLOPS = ("exact", "6ND")
APPROACHES = ("1 envelope", "2 parabola", "2 cubic", "2 akima", "3 parametric")
DRAWS = 200


@dataclass(frozen=True)
class Answer:
    """The exponent a of N* ~ C^a by one approach under one convention, or why it has none."""

    family: str
    approach: str
    parameters: str
    flops: str
    exponent: float | None = None
    interval: tuple[float, float] | None = None
    """At 0.95, by the regression over budgets for approaches 1 and 2 and by the bootstrap for approach 3."""
    refusal: str = ""
    tokens_exponent: float | None = None
    """b of D* ~ C^b; None by approach 1."""
    tokens_interval: tuple[float, float] | None = None


def count(frame: pl.DataFrame, parameters: str, flops: str) -> pl.DataFrame:
    """The frame with N and C counted by a convention; rows whose N is not known by it are left out."""
    n = pl.col(PARAMETERS[parameters])
    counted = frame.filter(n.is_not_null()).with_columns(n.alias("parameters"))
    if flops == "exact":
        return counted
    return counted.with_columns(flops=6 * pl.col("parameters") * pl.col("tokens"))


def compare(frame: pl.DataFrame, curves: pl.DataFrame) -> list[Answer]:
    """Every approach under every convention that the rows know, family by family.

    `frame` is from `analysis.data.runs`, `curves` from its `load_curves`; where there are none, approach 1 is refused.
    RefusalError where no row is usable.
    """
    usable = frame.filter(pl.col("excluded").is_null())
    if usable.is_empty():
        raise RefusalError("no-rows", "there are no runs to compare")
    return [
        answer
        for family in usable["family"].unique(maintain_order=True)
        for answer in _compare_family(family, usable.filter(pl.col("family") == family), curves)
    ]


def _compare_family(family: str, rows: pl.DataFrame, curves: pl.DataFrame) -> Iterator[Answer]:
    exact = not np.allclose(rows["flops"], 6 * rows["parameters"] * rows["tokens"], rtol=1e-9)
    for parameters in PARAMETERS:
        for flops in FLOPS if exact else ("6ND",):
            counted = count(rows, parameters, flops)
            if counted.is_empty():
                continue
            for approach in APPROACHES:
                try:
                    answer = _answer(approach, counted, curves)
                except RefusalError as refusal:
                    yield Answer(family, approach, parameters, flops, refusal=str(refusal))
                else:
                    yield Answer(family, approach, parameters, flops, *answer[:2], "", *answer[2:])


Both = tuple[float, tuple[float, float], float | None, tuple[float, float] | None]
"""The exponents of N* and D*, each with its interval."""


def _answer(approach: str, rows: pl.DataFrame, curves: pl.DataFrame) -> Both:
    kind, _, method = approach.partition(" ")
    if kind == "3":  # between the smallest and the largest budget trained, under the runs' own cost of a token
        (fitted,) = families.fit(rows, num_draws=DRAWS)
        low, high = float(np.min(rows["flops"].to_numpy())), float(np.max(rows["flops"].to_numpy()))
        found = allocation.exponents_between(fitted, low, high)
        return *found["parameters"], *found["tokens"]
    if kind == "2":
        frontier = isoflop.frontier(rows, method)
    else:
        frontier = isoflop.envelope(isoflop.along_runs(curves, rows))
    return frontier.exponent, frontier.interval, frontier.tokens_exponent, frontier.tokens_interval
