"""What a certified fit and its bootstrap cost, beside SciPy from each start of a grid and the `chinchilla` package.

    taskset -c 0 python -m benchmarks.fitting POINTS.csv --columns parameters="Model Size",flops="Training FLOP" \\
        [--drop-highest 5] [--peer-python PYTHON] [--out DIRECTORY]

All sides fit the same points in the same run on one core. SciPy's side is L-BFGS-B with finite differences on the sum,
from every `stride`-th of the 4,500 starts of Besiroglu et al. 2024, for a point fit; and BFGS with the exact gradient
from the optimum, for each of some bootstrap resamples. `chinchilla` (0.2.0, in PYTHON's environment) fits by its own
BFGS with its own log-Huber loss from a grid of its own, without its pool. Their times are per start or resample, and
scaled to all. Every side's objective is ours, evaluated at its parameters. Then what `scaling fit` does for one form,
certificate, rollout and 1,000 draws, beside the additive law's certificate and draws alone; and a point fit of 200,000
rows. `--only-ours` leaves the others' sides out. Writes fitting.json and fitting.md.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import optimize

from analysis.data import runs
from analysis.fitting import choice, families, regression
from analysis.fitting.fit import Fit
from analysis.laws.additive import AdditiveLaw, Array, log_terms
from analysis.laws.forms import ADDITIVE, FORMS
from benchmarks.machine import describe

GRID = tuple(
    itertools.product(
        (0, 5, 10, 15, 20, 25), (0, 5, 10, 15, 20, 25), (-1, -0.5, 0, 0.5, 1), (0, 0.5, 1, 1.5, 2), (0, 0.5, 1, 1.5, 2)
    )
)
"""log A, log B, log E, alpha, beta."""
DRAWS = 4000
DELTA = 1e-3
"""Huber's threshold on log loss (Hoffmann et al. 2022, appendix D.3)."""
PEER = """
import sys, time
import numpy as np
from chinchilla import Chinchilla
from chinchilla._metrics import log_huber
import multiprocessing

class Here:  # its pool, in this process
    def __enter__(self): return self
    def __exit__(self, *_): return None
multiprocessing.Pool = lambda *_: Here()
table = np.loadtxt(sys.argv[1])
three = lambda low, high: np.linspace(low, high, 3)
grid = {"e": three(0.2, 0.8), "a": three(4, 10), "b": three(4, 10), "alpha": three(0.2, 0.6), "beta": three(0.2, 0.6)}
one = Chinchilla(sys.argv[2], grid, loss_fn=lambda y, p: 1e3 * log_huber(y, p, 1e-3), log_level=50)
for n, d, loss in table:
    one.append(N=n, D=d, C=6 * n * d, loss=loss)
one.visualizer.optim = lambda *_, **__: None
began = time.perf_counter()
one.fit(parallel=False)
print(time.perf_counter() - began, 3**5, one.A, one.B, one.E, one.alpha, one.beta)
"""


def measure(frame: pl.DataFrame, stride: int, repeats: int, peer: str | None) -> dict[str, Any]:
    """Seconds and objectives of all sides, medians over `repeats`; ratios of what was measured in one repeat."""
    used = frame.filter(pl.col("excluded").is_null())
    n, d, loss = (used[name].to_numpy() for name in ("parameters", "tokens", "loss"))
    optimum = families.fit(frame, num_draws=1)[0]
    found: dict[str, list[float]] = {}
    for repeat in range(repeats):
        point = _timed(lambda: families.fit(frame, num_starts=len(GRID), num_draws=1))
        certified = point[1][0]
        draws = _timed(lambda: families.fit(frame, num_starts=1, num_draws=DRAWS))
        squares = _timed(lambda: regression.fit_form(used, FORMS["additive"], regression.LEAST_SQUARES, num_draws=1000))
        starts = GRID[repeat::stride]
        grid = _timed(lambda starts=starts: [_from_start(start, n, d, loss) for start in starts])
        best = min(grid[1], key=lambda end: end[0])
        resampled = _timed(lambda repeat=repeat: _resamples(optimum, n, d, loss, 20, repeat))
        row = {
            "point_fit_seconds": point[0],
            "objective": certified.objective_value,
            "agreeing_starts": certified.certificate.agreeing_starts,
            "scaled_gradient": certified.certificate.scaled_gradient,
            "bootstrap_seconds": draws[0],
            "converged_draws": draws[1][0].certificate.converged_draws,
            "least_squares_1000_draws_seconds": squares[0],
            "scipy_grid_seconds": grid[0] / len(starts) * len(GRID),
            "scipy_grid_objective": best[0],
            "scipy_grid_starts_that_agree": float(np.mean([end[0] <= best[0] * (1 + 1e-6) for end in grid[1]])),
            "scipy_bootstrap_seconds": resampled[0] / 20 * DRAWS,
        }
        row["times_faster_than_scipy_grid"] = row["scipy_grid_seconds"] / row["point_fit_seconds"]
        row["times_faster_than_scipy_bootstrap"] = row["scipy_bootstrap_seconds"] / row["bootstrap_seconds"]
        if peer is not None and repeat == 0:
            seconds, count, *theirs = _peer(peer, n, d, loss)
            theta = np.array([*np.log(theirs[:3]), *theirs[3:]])
            row["chinchilla_grid_seconds"] = seconds / count * len(GRID)
            row["chinchilla_starts_measured"] = count
            row["chinchilla_objective"] = regression.evaluate(used, FORMS["additive"], theta)
            row["times_faster_than_chinchilla"] = row["chinchilla_grid_seconds"] / row["point_fit_seconds"]
        for name, value in row.items():
            found.setdefault(name, []).append(float(value))
    return {"points": used.height, "starts": len(GRID), "draws": DRAWS, "repeats": repeats} | {
        name: statistics.median(values) for name, values in found.items()
    }


def measure_forms(frame: pl.DataFrame, repeats: int) -> dict[str, float]:
    """Seconds of the additive law's fit, and how many times as long each form takes with its rollout; medians."""
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        additive, _fits = _timed(lambda: families.fit(frame))
        found.setdefault("additive_fit_seconds", []).append(additive)
        for form in choice.CANDIDATES:
            seconds, _fits = _timed(lambda form=form: choice.fit(frame, form=form))
            found.setdefault(f"{form.name}_with_rollout_times_additive_fit", []).append(seconds / additive)
        seconds, _fits = _timed(lambda: choice.fit(frame))
        found.setdefault("all_forms_times_additive_fit", []).append(seconds / additive)
    return {name: statistics.median(values) for name, values in found.items()}


def measure_many(rows: int) -> dict[str, float]:
    """Seconds of a point fit of each form, and of all that `scaling fit` does, on rows that an additive law made."""
    random = np.random.default_rng(0)
    n, d = (np.exp(random.uniform(np.log(low), np.log(high), rows)) for low, high in ((1e7, 1e10), (1e9, 1e12)))
    loss = AdditiveLaw(1.7, 400.0, 2000.0, 0.34, 0.36).predict(n, d) * np.exp(random.normal(0, 0.005, rows))
    frame = pl.DataFrame({"parameters": n, "tokens": d, "flops": 6 * n * d, "loss": loss}).with_columns(
        run_id=pl.int_range(rows).cast(pl.String), family=pl.lit("x"), excluded=pl.lit(None, dtype=pl.String)
    )
    found = {}
    for form in choice.CANDIDATES:
        starts = families.STARTS if form is ADDITIVE else choice.STARTS
        work = partial(families.fit, frame, form=form, num_starts=starts, num_draws=1)
        found[f"rows_{rows}_{form.name}_point_seconds"] = _timed(work)[0]
    return found | {f"rows_{rows}_all_forms_seconds": _timed(lambda: choice.fit(frame))[0]}


def _timed(work: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def _value(theta: Array, n: Array, d: Array, loss: Array, weights: Array) -> tuple[float, Array]:
    """The sum of Huber losses and its gradient, written for one fit at a time as one would for SciPy."""
    log_n, log_d = np.log(n), np.log(d)
    terms = np.stack(np.broadcast_arrays(*log_terms(theta, log_n, log_d)))
    top = terms.max(axis=0)
    shares = np.exp(terms - top)
    total = shares.sum(axis=0)
    residual = top + np.log(total) - np.log(loss)
    clipped = np.clip(residual, -DELTA, DELTA)
    shares /= total
    slope = np.concatenate([shares, -shares[:1] * log_n, -shares[1:2] * log_d])
    return float((weights * clipped * (residual - clipped / 2)).sum()), slope @ (weights * clipped)


def _from_start(start: tuple[float, ...], n: Array, d: Array, loss: Array) -> tuple[float, Array]:
    one = np.ones_like(loss)
    end = optimize.minimize(lambda theta: _value(theta, n, d, loss, one)[0], np.array(start, float), method="L-BFGS-B")
    return float(end.fun), end.x


def _resamples(optimum: Fit, n: Array, d: Array, loss: Array, count: int, seed: int) -> list[float]:
    random = np.random.default_rng(seed)
    ends = []
    for _ in range(count):
        weights = random.multinomial(len(loss), np.full(len(loss), 1 / len(loss))).astype(float)
        end = optimize.minimize(
            _value, optimum.law.to_vector(), args=(n, d, loss, weights), jac=True, method="BFGS", options={"gtol": 1e-9}
        )
        ends.append(float(end.fun))
    return ends


def _peer(python: str, n: Array, d: Array, loss: Array) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "points.txt"
        np.savetxt(table, np.stack([n, d, loss], axis=1))
        command = [python, "-c", PEER, str(table), str(Path(folder) / "project")]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(word) for word in printed.split()[-7:]]


def table(measured: dict[str, Any]) -> str:
    """Rows of a Markdown table."""
    rows = "\n".join(f"| {name.replace('_', ' ')} | {value:.8g} |" for name, value in measured.items())
    return f"| | |\n|---|---|\n{rows}\n"


def main() -> None:
    """Measure, print the table, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points")
    parser.add_argument("--columns", default="")
    parser.add_argument("--drop-highest", type=int, default=0, help="leave out this many rows of highest loss")
    parser.add_argument("--stride", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer-python")
    parser.add_argument("--only-ours", action="store_true", help="forms and many rows alone")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    columns = dict(pair.split("=", 1) for pair in given.columns.split(",") if pair)
    frame = runs.load(given.points, columns=columns)
    frame = frame.sort("loss").head(frame.height - given.drop_highest)
    measured: dict[str, Any] = {}
    if not given.only_ours:
        measured = measure(frame, given.stride, given.repeats, given.peer_python)
    measured |= measure_forms(frame, given.repeats) | measure_many(200_000)
    print(table(measured))
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        machine = describe("cpu")
        (given.out / "fitting.json").write_text(json.dumps({"machine": machine, "measured": measured}, indent=2) + "\n")
        about = ", ".join(f"{name} {value}" for name, value in machine.items())
        (given.out / "fitting.md").write_text(f"{table(measured)}\n{about}\n")


if __name__ == "__main__":
    main()
