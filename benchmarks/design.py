"""What a budget buys: R² of dear runs predicted from what each way of choosing buys of a pool.

    python -m benchmarks.design POOL TARGETS --form farseer --columns parameters=N,tokens=D [--repeats 10]

The ways: expected drop of the prediction's variance (ours), its part within the best mode alone (V-optimality), at
random, and cheapest first. All begin with the same cheapest runs and fit by the same descents; R² is of the ensemble's
mean at each share of the pool's cost, mean and standard deviation over repeats. Writes benchmarks/results/design.json
and .md; another pool is another row.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, stdev
from unittest.mock import patch

import numpy as np
import polars as pl

from analysis.data import runs
from analysis.data.columns import Reading
from analysis.decisions import next_run
from analysis.laws import forms

RESULTS = Path(__file__).parent / "results" / "design"
SHARES = (0.01, 0.05, 0.1)


def in_order(pool: pl.DataFrame, targets: pl.DataFrame, form: forms.Form, seed: int, cheapest: bool) -> list[float]:
    """R² at each share of runs taken in an order that asks no law."""
    costs, measured = pool["flops"].to_numpy(), targets["loss"].to_numpy()
    bought = next_run.first_runs(costs, len(form.coordinates))
    others = np.setdiff1d(np.arange(len(costs)), bought)
    order = others[np.argsort(costs[others])] if cheapest else np.random.default_rng(seed).permutation(others)
    spent, found = float(costs[bought].sum()), []
    for share in SHARES:
        for row in order:
            if row not in bought and spent + costs[row] <= share * costs.sum():
                bought.append(int(row))
                spent += float(costs[row])
        knowledge = next_run.learn(pool[bought], (form,), seed=seed)
        found.append(next_run.r_squared(measured, knowledge.losses(targets).mean(axis=0)))
    return found


def chosen(
    pool: pl.DataFrame, targets: pl.DataFrame, form: forms.Form, seed: int, modes: int
) -> tuple[list[float], float]:
    """R² at each share of runs chosen by the law so far, and the seconds of CPU that a decision took."""
    begin = time.process_time()
    with patch.object(next_run, "MODES", modes):
        found = next_run.simulate(pool, targets, (form,), SHARES, seed=seed)
    return list(found.r2.values()), (time.process_time() - begin) / max(len(found.rounds), 1)


def measure(pool: pl.DataFrame, targets: pl.DataFrame, form: forms.Form, repeats: int) -> dict[str, object]:
    """R² by way, repeat and share, and the median seconds of CPU of our decisions."""
    ways: dict[str, list[list[float]]] = {"expected drop": [], "V-optimal": [], "random": [], "cheapest first": []}
    seconds = []
    for seed in range(repeats):
        r2, took = chosen(pool, targets, form, seed, next_run.MODES)
        seconds.append(took)
        ways["expected drop"].append(r2)
        ways["V-optimal"].append(chosen(pool, targets, form, seed, 1)[0])
        ways["random"].append(in_order(pool, targets, form, seed, cheapest=False))
        ways["cheapest first"].append(in_order(pool, targets, form, seed, cheapest=True))
    return {"form": form.name, "runs": pool.height, "ways": ways, "seconds": median(seconds)}


def markdown(found: dict[str, dict[str, object]]) -> str:
    """A row for each pool and way."""
    shares = " | ".join(f"{share:.0%}" for share in SHARES)
    lines = [f"| pool | form | chosen by | R² at {shares} |", "| --- " * (3 + len(SHARES)) + "|"]
    for name, one in found.items():
        ways: dict[str, list[list[float]]] = one["ways"]  # type: ignore[assignment]
        for way, r2 in ways.items():
            cells = [
                f"{mean(at):.2f} ± {stdev(at):.2f}" if len(at) > 1 else f"{at[0]:.2f}" for at in zip(*r2, strict=True)
            ]
            lines.append(f"| {name}, {one['runs']} runs | {one['form']} | {way} | {' | '.join(cells)} |")
        lines.append(f"| | | a decision, median | {one['seconds']:.2f} s of CPU | | |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path)
    parser.add_argument("targets", type=Path)
    parser.add_argument("--form", default="coupled")
    parser.add_argument("--columns", default="", help="ours=theirs,…")
    parser.add_argument("--repeats", type=int, default=10)
    given = parser.parse_args(arguments)
    form = forms.find(given.form)
    columns = dict(pair.split("=", 1) for pair in given.columns.split(",") if pair)
    reading = replace(Reading(columns), further=form.inputs)
    pool, targets = (
        frame.filter(pl.col("excluded").is_null())
        for frame in (runs.from_table(path, reading) for path in (given.pool, given.targets))
    )
    path = RESULTS.with_suffix(".json")
    found = json.loads(path.read_text()) if path.exists() else {}
    found[f"{given.pool.resolve().parent.name}, {form.name}"] = measure(pool, targets, form, given.repeats)
    path.write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
