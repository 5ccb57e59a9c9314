"""How often a nominal 95 % interval holds the truth: laws that are known, simulated again and again, fitted as ever.

    python -m benchmarks.coverage intervals [--replicates 1000] [--draws 400] [--jobs 2]
    python -m benchmarks.coverage doubts --replicates 200 [--draws 200] [--starts 12] [--keep doubts.jsonl]

`intervals` fits the form that made the runs: a power law in C with floor, additive, coupled (gamma). Noise of 0.5 % in
the loss: normal; heavy-tailed (Student's t with 3 degrees of freedom, the same variance); clustered (0.4 % shared by
all runs of one model size, as of one trunk, and 0.3 % of each run's own). 9, 25 and 240 runs on a grid of sizes and
budgets. Quantities: the exponents, the prediction at ten times the largest size and budget, and N* there. Objective
and resampling are the defaults. A row is `held` where coverage lies within 90-98 %, `warned` where every fit said that
its intervals are not to be trusted.

`doubts` fits as `scaling fit` does where no form is named, to runs of which something is amiss: a wrong form, noise
that depends on compute, an outlier, a trend, sizes and tokens that go together. Asked for is a new run at ten times the
largest N and D: does it lie inside its interval, and was there any warning? A row is `held` where 90 % lie inside,
`warned` where 90 % of the fits had a warning. 200 replicates take hours: `--keep` names a file to which each is added,
and what that has is not done again. Writes benchmarks/results/coverage.json and .md, each table by itself.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from analysis.fitting import choice
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


@dataclass(frozen=True)
class Attempt:
    """Runs of which something is amiss: the law behind them, where they lie, and how they scatter about it."""

    form: str = "additive"
    parameters: Mapping[str, float] = field(default_factory=dict)
    """What differs from the additive truth."""
    sizes: int = 6
    budgets: int = 6
    growth: float = 0.0
    """The scatter goes as this power of C, .3 % at the runs' geometric mean."""
    freedom: int | None = None
    """Of Student's t, of the same variance; None is normal."""
    outlier: float = 0.0
    """Of one run, which one is drawn."""
    trend: float = 0.0
    """Relative loss that a decade of N adds beyond the law."""
    ratio: float | None = None
    """Tokens per parameter of all runs but for this factor's scatter; None is a grid."""

    def points(self, random: np.random.Generator) -> tuple[Array, Array]:
        """N and D of the runs."""
        n = np.geomspace(2e7, 2e9, self.sizes)
        if self.ratio is not None:
            return n, 20 * n * np.exp(random.normal(0, self.ratio, self.sizes))
        return n.repeat(self.budgets), np.tile(np.geomspace(1e9, 4e10, self.budgets), self.sizes)

    def loss(self, n: Array, d: Array) -> Array:
        """Without noise."""
        form = FORMS[self.form]
        values = BESIDES.get(self.form, ADDITIVE_TRUTH) | self.parameters
        log_loss = form.log_loss(form.theta(values)[None], form.log_inputs(n, d))[0]
        return np.asarray(np.exp(log_loss) * (1 + self.trend * np.log10(n / 2e7)))

    def noise(self, n: Array, d: Array, random: np.random.Generator) -> Array:
        """Errors of log loss."""
        scale = NOISE * (n * d / np.sqrt(2e7 * 2e9 * 1e9 * 4e10)) ** self.growth
        if self.freedom is None:
            return np.asarray(random.normal(0, scale))
        return np.asarray(random.standard_t(self.freedom, n.shape) * scale * np.sqrt(1 - 2 / self.freedom))


NOISE = 0.003
ADDITIVE_TRUTH = {"E": 1.7, "A": 400.0, "B": 2000.0, "alpha": 0.34, "beta": 0.36}
BESIDES: dict[str, dict[str, float]] = {
    "coupled": ADDITIVE_TRUTH,
    "kaplan": {"Nc": 8.8e13, "Dc": 5.4e13, "alpha": 0.076, "beta": 0.103},
    "farseer": {"s": 4.0, "q": -0.12, "S": 0.2, "B": 60.0, "b": -0.25, "Q": 4.0, "A": -0.02, "a": 0.15, "V": -0.9},
    "broken": {"E": 1.4, "A": 400.0, "alpha": 0.12, "C1": 3e19, "kappa": 0.06, "f": 0.5},
}
ATTEMPTS = {
    "right form, 36 runs": Attempt(),
    "right form, 144 runs": Attempt(sizes=12, budgets=12),
    "right form, errors of Student's t (3), 36 runs": Attempt(freedom=3),
    "nine runs": Attempt(sizes=3, budgets=3),
    "two sizes, 36 runs": Attempt(sizes=2, budgets=18),
    "coupled, gamma .65, 36 runs": Attempt("coupled", {"gamma": 0.65}),
    "coupled, gamma .65, 144 runs": Attempt("coupled", {"gamma": 0.65}, 12, 12),
    "coupled, gamma .4, 36 runs": Attempt("coupled", {"gamma": 0.4}),
    "coupled, gamma .4, 144 runs": Attempt("coupled", {"gamma": 0.4}, 12, 12),
    "kaplan, 36 runs": Attempt("kaplan"),
    "farseer, 36 runs": Attempt("farseer"),
    "farseer, 144 runs": Attempt("farseer", {}, 12, 12),
    "broken in C, 36 runs": Attempt("broken"),
    "broken in C, 144 runs": Attempt("broken", {}, 12, 12),
    "noise as C^.15, 36 runs": Attempt(growth=0.15),
    "noise as C^.25, 36 runs": Attempt(growth=0.25),
    "noise as C^.25, 144 runs": Attempt(sizes=12, budgets=12, growth=0.25),
    "noise as C^-.25, 36 runs": Attempt(growth=-0.25),
    "one outlier of +5 %, 36 runs": Attempt(outlier=0.05),
    "D = 20 N, 24 runs": Attempt(sizes=24, ratio=0.0),
    "D = 20 N within 10 %, 24 runs": Attempt(sizes=24, ratio=0.1),
    "large models 2 % a decade worse, 36 runs": Attempt(trend=0.02),
}


def doubted(task: tuple[str, int, int, int]) -> dict[str, Any]:
    """Of one replicate: where a new run far beyond and the law's mean there lie, and the codes of all warnings."""
    name, index, draws, starts = task
    attempt, random = ATTEMPTS[name], np.random.default_rng([index, list(ATTEMPTS).index(name)])
    n, d = attempt.points(random)
    error = attempt.noise(n, d, random)
    if attempt.outlier:
        error[random.integers(len(error))] += np.log1p(attempt.outlier)
    frame = pl.DataFrame({"parameters": n, "tokens": d, "flops": 6 * n * d, "loss": attempt.loss(n, d) * np.exp(error)})
    frame = frame.with_columns(
        run_id=pl.int_range(pl.len()).cast(pl.String), family=pl.lit("x"), excluded=pl.lit(None, dtype=pl.String)
    )
    (found,) = choice.fit(frame, num_draws=draws, num_starts=starts)
    far_n, far_d = np.array([10 * n.max()]), np.array([10 * d.max()])
    truth = attempt.loss(far_n, far_d)
    measured = truth * np.exp(attempt.noise(far_n, far_d, random))
    center, low, high = found.predict(far_n, far_d)
    least, most = found.predict_run(far_n, far_d)
    return {
        "mean inside": bool(low[0] <= truth[0] <= high[0]),
        "inside": bool(least[0] <= measured[0] <= most[0]),
        "half width": float((most - least)[0] / 2 / center[0]),
        "bias": float(abs(center[0] / truth[0] - 1)),
        "form": found.form.name,
        "codes": sorted({warning.code for warning in found.warnings}),
    }


def doubts_of(name: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row of the second table."""
    inside, warned = (
        float(np.mean(shares)) for shares in ([one["inside"] for one in found], [bool(one["codes"]) for one in found])
    )
    codes = Counter(code for one in found for code in one["codes"])
    return {
        "case": name,
        "replicates": len(found),
        "inside": inside,
        "mean_inside": float(np.mean([one["mean inside"] for one in found])),
        "half_width": float(np.median([one["half width"] for one in found])),
        "bias": float(np.median([one["bias"] for one in found])),
        "warned": warned,
        "codes": {code: count / len(found) for code, count in codes.most_common()},
        "forms": {form: count / len(found) for form, count in Counter(one["form"] for one in found).most_common()},
        "verdict": "held" if inside >= 0.9 else ("warned" if warned >= 0.9 else "MISSED"),
    }


def main() -> None:
    """Run one of the two tables and write both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("intervals", "doubts"))
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=400, help="bootstrap draws of each fit")
    parser.add_argument("--starts", type=int, default=12, help="descents of each form")
    parser.add_argument("--keep", type=Path, help="of doubts: JSON lines of what was found, read and added to")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--cases", default="", help="of doubts: only those whose name holds this, into the table there is"
    )
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.jobs) as pool:
        rows = (_intervals if arguments.table == "intervals" else _doubts)(pool, arguments)
    file = RESULTS / "coverage.json"
    result = json.loads(file.read_text()) if file.exists() else {}
    if arguments.cases:
        new = {row["case"]: row for row in rows}
        rows = [new.get(row["case"], row) for row in result["doubts"]["rows"]]
    settings = {"replicates": arguments.replicates, "draws": arguments.draws, "starts": arguments.starts}
    result[arguments.table] = {"machine": describe("cpu"), **settings, "rows": rows}
    file.write_text(json.dumps(result, indent=1) + "\n")
    tables = {"intervals": table, "doubts": doubts_table}
    text = "\n".join(tables[name](result[name]) for name in tables if name in result)
    (RESULTS / "coverage.md").write_text(text)
    print(text)


def _doubts(pool: ProcessPoolExecutor, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    began = time.perf_counter()
    tasks = [
        (name, index, arguments.draws, arguments.starts)
        for index in range(arguments.replicates)
        for name in ATTEMPTS
        if arguments.cases in name
    ]
    kept = arguments.keep.read_text().splitlines() if arguments.keep and arguments.keep.exists() else []
    done = {tuple(task): one for task, one in map(json.loads, kept)}
    missing = [task for task in tasks if task not in done]
    for task, one in zip(missing, pool.map(doubted, missing), strict=True):
        done[task] = one
        if arguments.keep:
            with arguments.keep.open("a") as file:
                file.write(json.dumps([task, one]) + "\n")
        print(*task, f"{time.perf_counter() - began:.0f} s", flush=True)
    return [
        doubts_of(name, [done[task] for task in tasks if task[0] == name])
        for name in dict.fromkeys(task[0] for task in tasks)
    ]


def _intervals(pool: ProcessPoolExecutor, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    began, rows = time.perf_counter(), []
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
    return rows


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


def doubts_table(result: dict[str, Any]) -> str:
    """What is amiss, a row each: shares in per cent, half width and bias of the prediction relative to it."""
    lines = [
        f"A new run at ten times the largest N and D, predicted as `scaling fit` does where no form is named: "
        f"replicates of {result['draws']} draws; noise of .3 %. Half width and bias are "
        "medians, in % of the loss. A case is held with 90 % inside, warned with a warning in 90 %.",
        "",
        "| case | replicates | inside | mean inside | half width | bias | warned | warnings | forms chosen | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        codes, forms = (
            ", ".join(f"{name} {100 * share:.0f}" for name, share in row[kind].items()) for kind in ("codes", "forms")
        )
        numbers = (f"{100 * row[name]:.{digits}f}" for name, digits in _NUMBERS)
        lines.append(
            f"| {row['case']} | {row['replicates']} | {' | '.join(numbers)} | {codes} | {forms} | {row['verdict']} |"
        )
    return "\n".join(lines) + "\n"


_NUMBERS = (("inside", 0), ("mean_inside", 0), ("half_width", 2), ("bias", 2), ("warned", 0))


if __name__ == "__main__":
    main()
