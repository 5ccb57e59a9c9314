"""Whether the quickstart's runs would tell a law that is known: its sizes and budgets, simulated and fitted anew.

    python -m benchmarks.identified [--replicates 20] [--draws 200] [--starts 12]

Losses at the N and D of the shipped quickstart follow an additive law with a scatter of .3 % a run and .3 % a size,
whose runs share a trunk; they are fitted as `scaling fit` does where no form is named. Of each law: how often the 95 %
intervals of its exponents hold them and a new run at four times the largest N and D, and the median half widths of the
intervals relative to the exponents. Prints a table.
"""

import argparse
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from analysis.fitting import choice
from analysis.laws.additive import Array
from orchestrator.planning.plan import make_plan
from sweeps.sweep import Sweep
from xlstm.run.directory import Workspace

SCATTER = 0.003
LAWS = {
    "E .6, alpha .445, beta .266": ("xlstm[3:1]", 0.6, 99.0, 36.0, 0.445, 0.2656),
    "E .7, alpha .30, beta .30": ("llama", 0.7, 16.0, 40.0, 0.30, 0.30),
    "E .5, alpha .22, beta .275": ("llama", 0.5, 6.0, 54.0, 0.22, 0.275),
}
"""Whose runs, and E, A, B, alpha and beta: about what fits of quickstarts gave, with a floor."""


@cache
def points(family: str) -> tuple[Array, Array]:
    """N and D of a family's runs, size by size."""
    runs = make_plan(Sweep.load("quickstart"), Workspace(Path("/nowhere"))).runs
    mine = [run for run in runs if run.document()["model"] == family]
    found = sorted((run.parameters.total, run.spec.physics.tokens) for run in mine)
    n, d = np.array(found, float).T
    return n, d


def replicate(law: str, seed: int, draws: int, starts: int) -> dict[str, Any]:
    """Of one simulated quickstart: whether each interval holds its truth, and the exponents' half widths."""
    family, e, a, b, alpha, beta = LAWS[law]
    n, d = points(family)
    random = np.random.default_rng([seed, len(n)])

    def measured(n: Array, d: Array) -> Array:
        sizes, of = np.unique(n, return_inverse=True)
        error = SCATTER * (random.standard_normal(len(sizes))[of] + random.standard_normal(len(n)))
        return np.asarray((e + a * n**-alpha + b * d**-beta) * np.exp(error))

    frame = pl.DataFrame({"parameters": n, "tokens": d, "flops": 6 * n * d, "loss": measured(n, d)}).with_columns(
        cluster=pl.col("parameters").cast(pl.String),
        run_id=pl.int_range(pl.len()).cast(pl.String),
        family=pl.lit("x"),
        excluded=pl.lit(None, dtype=pl.String),
    )
    (fitted,) = choice.fit(frame, num_draws=draws, num_starts=starts)
    far = np.array([4 * n.max()]), np.array([4 * d.max()])
    low, high = fitted.predict_run(*far)
    found: dict[str, Any] = {"new run": bool(low[0] <= measured(*far)[0] <= high[0])}
    for name, truth in (("alpha", alpha), ("beta", beta)):
        if name in fitted.parameters:
            low_end, high_end = fitted.interval(itemgetter(name))
            found[name] = bool(low_end <= truth <= high_end)
            found[f"{name} half width"] = (high_end - low_end) / 2 / truth
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=20)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--starts", type=int, default=12)
    asked = parser.parse_args()
    print("| law | replicates | alpha held | beta held | new run held | alpha's half width | beta's |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for law in LAWS:
        found = [replicate(law, seed, asked.draws, asked.starts) for seed in range(asked.replicates)]
        held = (str(sum(one.get(name, False) for one in found)) for name in ("alpha", "beta", "new run"))
        wide = (
            np.median([one[name] for one in found if name in one]) for name in ("alpha half width", "beta half width")
        )
        print(
            f"| {law} | {len(found)} | {' | '.join(held)} | {' | '.join(f'{100 * w:.0f} %' for w in wide)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
