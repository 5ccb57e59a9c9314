"""What it costs to read a thousand runs of 500 validations each from an MLflow database, beside MLflow's own client.

    python -m benchmarks.loading [--runs 1000] [--points 500] [--client-runs 25] [--repeats 5] [--out DIRECTORY]

Both sides read the same fresh SQLite store in the same process, in turns: ours all runs, the client `client-runs` of
them by `get_metric_history` (then scaled to all) and all of them by `search_runs`. Ends with both frames found equal on
the runs that the client read. Writes loading.json and loading.md.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from analysis.data import tracking_store
from xlstm.run.records import Metric

EXPERIMENT = "loading"


def make_store(folder: Path, num_runs: int, points: int) -> str:
    """A store whose schema MLflow made and whose rows are those that MLflow would have written."""
    import sqlalchemy
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    experiment = int(MlflowClient(uri).create_experiment(EXPERIMENT))
    random = np.random.default_rng(0)
    names = [uuid.UUID(bytes=random.bytes(16)).hex for _ in range(num_runs)]
    engine = sqlalchemy.create_engine(uri)
    steps = range(1, points + 1)
    with engine.begin() as connection:
        metadata = sqlalchemy.MetaData()
        metadata.reflect(connection)

        def insert(table: str, rows: list[dict[str, Any]]) -> None:
            connection.execute(metadata.tables[table].insert(), rows)

        active = {"experiment_id": experiment, "lifecycle_stage": "active", "status": "FINISHED", "user_id": "x"}
        active |= {"source_type": "LOCAL", "artifact_uri": "file:///nowhere", "start_time": 0, "end_time": 1}
        insert("runs", [{"run_uuid": run, "name": f"run-{i}", **active} for i, run in enumerate(names)])
        for table, values in (
            ("tags", {"run_id": "run", "state": "COMPLETED"}),
            ("params", {"family": "llama", "tokens": "1e9", "parameters.total": "1e8", "flops.exact": "6e17"}),
        ):
            insert(table, [{"run_uuid": run, "key": k, "value": v} for run in names for k, v in values.items()])
        for run in names:
            losses = (3 + random.random(points)).tolist()
            row = {"run_uuid": run, "key": Metric.VALIDATION_LOSS, "is_nan": False}
            logged = [
                row | {"step": step, "timestamp": 1000 * step, "value": loss}
                for step, loss in zip(steps, losses, strict=True)
            ]
            insert("metrics", logged)
            insert("latest_metrics", logged[-1:])
    engine.dispose()
    return uri


def measure(num_runs: int, points: int, client_runs: int, repeats: int) -> dict[str, Any]:
    """Seconds of both sides: medians over `repeats`, which alternate."""
    from mlflow.tracking import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        uri = make_store(Path(folder), num_runs, points)
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
        ours, theirs, ratios, cpu = [], [], [], []
        for _ in range(repeats):
            began, began_cpu = time.perf_counter(), time.process_time()
            tracking_store.read_runs(EXPERIMENT, uri)
            history = tracking_store.read_history(EXPERIMENT, uri, Metric.VALIDATION_LOSS)
            ours.append(time.perf_counter() - began)
            cpu.append(time.process_time() - began_cpu)
            began = time.perf_counter()
            found = client.search_runs([experiment], max_results=num_runs)
            searched = time.perf_counter() - began
            began = time.perf_counter()
            read = [
                (run.info.run_id, point.step, point.value)
                for run in found[:client_runs]
                for point in client.get_metric_history(run.info.run_id, Metric.VALIDATION_LOSS)
            ]
            theirs.append(searched + (time.perf_counter() - began) * num_runs / client_runs)
            ratios.append(theirs[-1] / ours[-1])
        sample = pl.DataFrame(read, schema=tracking_store.HISTORY, orient="row").sort("run", "step")
        same = history.join(sample.select("run").unique(), on="run", how="semi", maintain_order="left")
        if not same.equals(sample) or history.height != num_runs * points:
            raise RuntimeError("both sides do not read the same")
    return {
        "runs": num_runs,
        "points_per_run": points,
        "rows": history.height,
        "seconds": statistics.median(ours),
        "seconds_fastest": min(ours),
        "cpu_seconds": statistics.median(cpu),
        "client_seconds": statistics.median(theirs),
        "client_runs_measured": client_runs,
        "times_faster": statistics.median(ratios),
        "repeats": repeats,
        "equal": True,
        "machine": {"cpus": os.cpu_count(), "architecture": platform.machine(), "python": platform.python_version()},
    }


def table(measured: dict[str, Any]) -> str:
    """Markdown of the measurement."""
    machine = measured["machine"]
    return (
        f"Reading {measured['runs']:,} runs × {measured['points_per_run']} validation points from an MLflow SQLite "
        f"database into a frame; a shared {machine['cpus']}-core {machine['architecture']} machine, Python "
        f"{machine['python']}, median of {measured['repeats']} alternating repeats.\n\n"
        "| | seconds | CPU seconds |\n| --- | --- | --- |\n"
        f"| `analysis.data.tracking_store` | {measured['seconds']:.2f} (fastest {measured['seconds_fastest']:.2f}) "
        f"| {measured['cpu_seconds']:.2f} |\n"
        f"| MLflow's client, scaled from {measured['client_runs_measured']} runs "
        f"| {measured['client_seconds']:.1f} | |\n"
        f"| times faster | {measured['times_faster']:.0f} | |\n"
    )


def main() -> None:
    """Measure, write JSON and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--client-runs", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    measured = measure(given.runs, given.points, given.client_runs, given.repeats)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "loading.json").write_text(json.dumps(measured, indent=2) + "\n")
    (given.out / "loading.md").write_text(table(measured))
    print(table(measured))


if __name__ == "__main__":
    main()
