"""How well laws of curves predict runs under schedules that were not fitted, and what a fit costs.

    python -m benchmarks.curves TABLE... --fit-runs cosine_24000,constant_24000,wsdcon_9 [--columns learning_rate=lr]

A table holds the curves of one size, as `scaling fit --curves` reads them. Of both laws: the means over the runs that
were not fitted of what is asked of a prediction; the losses at the ends of those among them that decayed, as far as the
law is from them in the mean and at worst (a virtual end against a real one), and by the law fitted to all runs, which
is as near as its form comes; seconds of CPU to fit all runs. Writes benchmarks/results/curves.json and .md.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.curves import read
from analysis.curves.curve import Curve
from analysis.curves.fit import CurveFit, fit
from analysis.curves.laws import LAWS

RESULTS = Path(__file__).parent / "results" / "curves"
MEASURES = ("r2", "mae", "rmse", "mean_relative_error", "worst_relative_error")


def ends(fitted: CurveFit, curves: Sequence[Curve]) -> dict[str, Any]:
    """How far the law is from the last losses of runs whose rate had fallen, in nats: the mean, and the worst run."""
    decayed = [curve for curve in curves if curve.rates[-1] < 0.9 * curve.rates.max()]
    miss = {curve.run: abs(float(fitted.predict(curve)[0][-1]) - float(curve.losses[-1])) for curve in decayed}
    worst = max(miss, key=miss.__getitem__)
    return {"mean": float(np.mean(list(miss.values()))), "worst": miss[worst], "worst_run": worst}


def measure(curves: Sequence[Curve], fit_runs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By law."""
    unseen = [curve for curve in curves if curve.run not in fit_runs]
    found = {}
    for name, law in LAWS.items():
        fitted = fit([curve for curve in curves if curve.run in fit_runs], law)
        begin = time.process_time()
        whole = fit(curves, law)
        seconds = time.process_time() - begin
        prediction = fitted.to_json(curves)["prediction"]
        found[name] = {"prediction": prediction, "ends": ends(fitted, unseen), "ends_of_all": ends(whole, unseen)}
        found[name] |= {"runs": len(curves), "seconds": seconds}
    return found


def markdown(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A row for each table and law."""
    measures = "R² | MAE | RMSE | mean relative | worst relative"
    lines = [f"| curves | law | {measures} | ends, mean and worst | ends, all fitted | CPU s |", "| --- " * 10 + "|"]
    for table, laws in found.items():
        for name, one in laws.items():
            r2, mae, rmse, mean, worst = (one["prediction"][measure] for measure in MEASURES)
            cells = [table, name, f"{r2:.5f}", f"{mae:.5f}", f"{rmse:.5f}", f"{mean:.3%}", f"{worst:.2%}"]
            cells += [f"{one['ends']['mean']:.4f}, {one['ends']['worst']:.4f} ({one['ends']['worst_run']})"]
            cells += [f"{one['ends_of_all']['mean']:.4f}", f"{one['seconds']:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--fit-runs", required=True)
    parser.add_argument("--columns", default="", help="OURS=THEIRS,…")
    arguments = parser.parse_args()
    columns = dict(pair.split("=") for pair in arguments.columns.split(",") if pair)
    found = {}
    for table in arguments.tables:
        (group,) = read.from_table(table, columns)
        found[table.stem] = measure([curve.after_warmup for curve in group.curves], arguments.fit_runs.split(","))
    RESULTS.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
