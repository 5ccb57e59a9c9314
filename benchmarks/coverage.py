"""How often a nominal 95 % interval holds the truth: laws that are known, simulated again and again, fitted as ever.

    python -m benchmarks.coverage [--replicates 1000] [--draws 400] [--jobs 2]

Forms: a power law in C with floor, additive, coupled (gamma). Noise of 0.5 % in the loss: normal; heavy-tailed
(Student's t with 3 degrees of freedom, the same variance); clustered (0.4 % shared by all runs of one model size, as of
one trunk, and 0.3 % of each run's own). 9, 25 and 240 runs on a grid of sizes and budgets. Quantities: the exponents,
the prediction at ten times the largest size and budget, and N* there. Objective and resampling are the defaults. A row
is `held` where coverage lies within 90-98 %, `warned` where every fit said that its intervals are not to be trusted.
Writes benchmarks/results/coverage.json and .md.
"""

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from analysis.fitting.regression import fit_form
from analysis.laws.additive import Array
from analysis.laws.forms import FORMS
from benchmarks.machine import describe

RESULTS = Path(__file__).parent / "results"
TRUTH = {
    "power-C-floor": [6.65, 0.15, 0.6],
    "additive": [6.2, 7.7, 0.6, 0.347, 0.367],
    "coupled": [6.5, 7.5, 0.56, 0.42, 0.43, 0.77],
}
NOISES = ("normal", "heavy-tailed", "clustered")
GRIDS = {9: (3, 3), 25: (5, 5), 240: (20, 12)}
SIGMA = 0.005
UNTRUSTED = {"few-points", "few-clusters"}
BAND = (0.90, 0.98)

Quantity = Callable[[dict[str, Array]], Array]


def runs(form: str, noise: str, count: int, replicate: int) -> pl.DataFrame:
    """One simulated experiment."""
    sizes, budgets = GRIDS[count]
    n = np.geomspace(1e7, 1e9, sizes).repeat(budgets)
    d = np.tile(np.geomspace(2e8, 2e10, budgets), sizes)
    frame = pl.DataFrame({"parameters": n, "tokens": d, "flops": 6 * n * d})
    inputs = np.log(frame.select(FORMS[form].inputs).to_numpy().T)
    log_loss = FORMS[form].log_loss(np.array([TRUTH[form]]), inputs)[0]
    random = np.random.default_rng([replicate, count])
    if noise == "normal":
        error = random.normal(0, SIGMA, count)
    elif noise == "heavy-tailed":
        error = random.standard_t(3, count) * SIGMA / np.sqrt(3)
    else:
        error = random.normal(0, 0.8 * SIGMA, sizes).repeat(budgets) + random.normal(0, 0.6 * SIGMA, count)
        frame = frame.with_columns(cluster=pl.col("parameters").round(0).cast(pl.String))
    return frame.with_columns(loss=np.exp(log_loss + error))


def quantities(form: str) -> dict[str, Quantity]:
    """What intervals are asked for: exponents, the loss far beyond the runs, and the best size for that compute."""
    n, d = 1e10, 2e11
    if form == "power-C-floor":
        return {
            "alpha": lambda p: p["alpha"],
            "prediction": lambda p: p["E"] + p["A"] * (6 * n * d) ** -p["alpha"],
        }

    def prediction(p: dict[str, Array]) -> Array:
        return np.asarray(p["E"] + (p["A"] * n ** -p["alpha"] + p["B"] * d ** -p["beta"]) ** p.get("gamma", 1.0))

    def optimal_size(p: dict[str, Array]) -> Array:
        scale = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
        return np.asarray(scale * (n * d) ** (p["beta"] / (p["alpha"] + p["beta"])))

    return {"alpha": lambda p: p["alpha"], "beta": lambda p: p["beta"], "prediction": prediction, "N*": optimal_size}


def truth(form: str) -> dict[str, float]:
    """The quantities of the law itself."""
    names = (name.removeprefix("log ") for name in FORMS[form].coordinates)
    plain = [
        np.exp(v) if c.startswith("log ") else v for c, v in zip(FORMS[form].coordinates, TRUTH[form], strict=True)
    ]
    parameters = {name: np.array([value]) for name, value in zip(names, plain, strict=True)}
    return {name: float(quantity(parameters)[0]) for name, quantity in quantities(form).items()}


def replicate(task: tuple[str, str, int, int, int]) -> tuple[dict[str, bool], bool]:
    """Of one experiment: which intervals hold the truth, and whether the fit warned that they may not."""
    form, noise, count, index, draws = task
    fitted = fit_form(runs(form, noise, count, index), FORMS[form], num_starts=48, num_draws=draws, seed=index)
    held = {}
    for name, quantity in quantities(form).items():
        low, high = fitted.interval(quantity)
        held[name] = bool(low <= truth(form)[name] <= high)
    return held, bool(UNTRUSTED & {warning.code for warning in fitted.warnings})


def main() -> None:
    """Run all of it and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=400, help="bootstrap draws of each fit")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for form in TRUTH:
            for noise in NOISES:
                for count in GRIDS:
                    tasks = [(form, noise, count, index, arguments.draws) for index in range(arguments.replicates)]
                    found = list(pool.map(replicate, tasks, chunksize=10))
                    warned = float(np.mean([flag for _, flag in found]))
                    for quantity in found[0][0]:
                        coverage = float(np.mean([held[quantity] for held, _ in found]))
                        said = BAND[0] <= coverage <= BAND[1]
                        verdict = "held" if said else ("warned" if warned == 1 else "MISSED")
                        row = {"form": form, "noise": noise, "runs": count, "quantity": quantity}
                        rows.append(row | {"coverage": coverage, "warned": warned, "verdict": verdict})
                    print(rows[-1], f"{time.perf_counter() - began:.0f} s", flush=True)
    result = {"machine": describe("cpu"), "replicates": arguments.replicates, "draws": arguments.draws, "rows": rows}
    (RESULTS / "coverage.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "coverage.md").write_text(table(result))
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """Coverage in per cent, one row per form, noise and number of runs."""
    lines = [
        f"Coverage in % of nominal 95 % intervals, {result['replicates']} replicates of {result['draws']} draws; one "
        f"standard error is {100 * np.sqrt(0.95 * 0.05 / result['replicates']):.1f}. `!`: outside 90-98.",
        "",
        "| form | noise | runs | alpha | beta | prediction | N* | says not to be trusted |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    keys = list(dict.fromkeys((row["form"], row["noise"], row["runs"]) for row in result["rows"]))
    for key in keys:
        mine = {row["quantity"]: row for row in result["rows"] if (row["form"], row["noise"], row["runs"]) == key}
        cells = [
            f"{100 * mine[name]['coverage']:.1f}{'' if mine[name]['verdict'] == 'held' else ' !'}"
            if name in mine
            else ""
            for name in ("alpha", "beta", "prediction", "N*")
        ]
        always = mine["alpha"]["warned"]
        lines.append(f"| {' | '.join(map(str, key))} | {' | '.join(cells)} | {always:.0%} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
