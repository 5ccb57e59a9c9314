"""What a certified fit costs, beside SciPy's L-BFGS-B from each start of a grid, on the same points in the same run.

    python -m benchmarks.fitting POINTS.csv --columns parameters="Model Size",flops="Training FLOP" [--json]

The grid is the one of Besiroglu et al. 2024 (4,500 starts, finite differences, the sum as objective). SciPy's time is
measured on every `stride`-th start and given per start; the objective it reports is the best over those starts.
"""

import argparse
import itertools
import json
import time
from typing import Any

import numpy as np
import polars as pl
from scipy import optimize

from analysis import fitting, optimizer, runs
from analysis.laws import Array
from analysis.optimizer import Points

GRID = tuple(
    itertools.product(
        (0, 5, 10, 15, 20, 25), (0, 5, 10, 15, 20, 25), (-1, -0.5, 0, 0.5, 1), (0, 0.5, 1, 1.5, 2), (0, 0.5, 1, 1.5, 2)
    )
)
"""log A, log B, log E, alpha, beta."""


def measure(frame: pl.DataFrame, stride: int) -> dict[str, Any]:
    """Seconds and objectives of both sides."""
    used = frame.filter(pl.col("excluded").is_null())
    points = Points(*(np.log(used[name].to_numpy()) for name in ("parameters", "tokens", "loss")), np.ones(used.height))
    began = time.perf_counter()
    (point,) = fitting.fit(frame, num_starts=len(GRID), num_draws=1)
    ours = time.perf_counter() - began
    began = time.perf_counter()
    fitting.fit(frame, num_starts=20, num_draws=4000)
    bootstrap = time.perf_counter() - began

    def value(theta: Array) -> float:
        return float(optimizer.objective(theta[None], points, fitting.DELTA)[0])

    began = time.perf_counter()
    sampled = GRID[::stride]
    found = [optimize.minimize(value, np.array(start, float), method="L-BFGS-B").fun for start in sampled]
    theirs = (time.perf_counter() - began) / len(sampled) * len(GRID)
    return {
        "points": used.height,
        "starts": len(GRID),
        "point_fit_seconds": ours,
        "objective": point.objective_value,
        "agreeing_starts": point.certificate.agreeing_starts,
        "bootstrap_4000_seconds": bootstrap,
        "scipy_seconds_for_all_starts": theirs,
        "scipy_starts_measured": len(sampled),
        "scipy_best_objective": min(found),
        "times_faster": theirs / ours,
    }


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points")
    parser.add_argument("--columns", default="")
    parser.add_argument("--stride", type=int, default=23)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    columns = dict(pair.split("=", 1) for pair in given.columns.split(",") if pair)
    measured = measure(runs.load(given.points, columns=columns), given.stride)
    if given.json:
        print(json.dumps(measured, indent=2))
        return
    for name, number in measured.items():
        print(f"{name:32} {number:.8g}")


if __name__ == "__main__":
    main()
