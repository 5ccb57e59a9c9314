"""How long planning 1,000 runs and looking at 1,000 finished ones takes, and what carrying out a run costs beside it.

    python -m benchmarks.orchestration [--runs 1000] [--trials 20] [--queued 1000] [--json FILE]

The sweep uses the whole language: an extended file, grid, zip, include, exclude, rules, resources, overrides, own and
named sizes, two kinds of schedule, and budgets that share their stable phase. Each verb is timed as a user calls it, as
a process of its own from start to exit, the median of several turns; `in process` leaves the interpreter's start out.

With `--trials`, so many runs are carried out by our controller on Ray, and as many trials by Ray Tune, in turns in one
cluster of this machine. With `--queued` too, so many of each are submitted, and both are stopped when the number of
`--trials` has ended. Each run and each trial ends in the same trivial subprocess (tests/orchestrator/trivial), which
stands in for torchrun. What that takes by itself, on as many cores, is timed too and taken off for the overheads.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orchestrator.planning.plan import Plan, RunPlan, make_plan
from orchestrator.standing.status import look
from sweeps.sweep import Sweep
from xlstm.run.directory import Workspace
from xlstm.run.records import Launch, Result, State, Validation, Verdict, write_json

BASE = """
name: base
data: {corpus: named, revision: r1, tokenizer: gpt2, context_length: 512}
sizes:
  10M:
    xlstm: {embedding_dim: 256, num_blocks: 8}
    llama: {embedding_dim: 256, num_blocks: 6, num_heads: 4}
    mamba: {embedding_dim: 256, num_blocks: 8}
train: {batch_sequences: 64, schedule: wsd, warmup_steps: 100, decay_fraction: 0.2, learning_rate: 1e-3}
resources:
  - {when: {size: [125M, 350M]}, set: {gpus: 8, gpu: H100-80GB}}
  - {set: {gpus: 1, checkpoint_every: 500, validate_every: 500}}
"""

SWEEP = """
name: thousand
extends: base.yaml
grid:
  model: ["xlstm[7:1]", "xlstm[1:0]", llama, mamba]
  size: [10M, 125M, 350M]
  tokens: [100M, 200M, 400M, 800M]
  seed: [SEEDS]
zip: {learning_rate: [1e-3, 2e-3], weight_decay: [0.1, 0.05]}
exclude: [{model: mamba, size: 350M, tokens: 800M}]
include:
  - {model: llama, size: 125M, flops: [1e18, 3e18], seed: 0, learning_rate: 1e-3, weight_decay: 0.1}
rules:
  - {when: {size: 350M}, set: {precision: bf16-mixed, batch_sequences: 128}}
  - {when: {seed: 1}, set: {schedule: cosine, decay_fraction: 1.0}}
  - {when: {model: mamba}, set: {beta2: 0.98}}
resources:
  - {when: {size: 350M}, set: {nodes: 2, gpus: 8, activation_checkpointing: selective, priority: 1}}
"""


def write_sweep(folder: Path, runs: int) -> Path:
    """A sweep of about so many runs: a seed adds 94 of them."""
    (folder / "base.yaml").write_text(BASE)
    path = folder / "thousand.yaml"
    path.write_text(SWEEP.replace("SEEDS", ", ".join(map(str, range(max(1, round(runs / 94)))))))
    return path


def finish(plan: Plan) -> None:
    """Leave, for every run, what a finished run leaves."""
    plan.save()
    now = time.time()
    for run in plan.runs:
        directory = plan.workspace.run(run.run_id)
        directory.create(run.spec)
        lease = directory.acquire("t")
        for step in range(1, 101):
            directory.append_metrics({"step": step, "time": now, "attempt": 1, "train/loss": 3.0, "progress/tokens": 1})
        launch = Launch(
            run_id=run.run_id,
            attempt=1,
            token="t",
            executor="local",
            execution=run.spec.execution,
            host="",
            rendezvous="",
            started=now,
            fork=run.share.fork,
        )
        write_json(directory.attempt(1) / "launch.json", launch.model_dump(mode="json"))
        write_json(directory.attempt(1) / "exit.json", Verdict(state=State.COMPLETED).model_dump(mode="json"))
        write_json(directory.path / "result.json", result_of(run).model_dump(mode="json"))
        lease.release(State.COMPLETED)


def result_of(run: RunPlan) -> Result:
    """What a finished run leaves."""
    row = run.document()
    return Result(
        run_id=run.run_id,
        family=row["model"],
        size=row["size"],
        seed=row["seed"],
        tokens=row["tokens"],
        steps=row["steps"],
        parameters=run.parameters,
        flops=row["flops"],
        validation=Validation(loss=3.0, perplexity=20.0, tokens=1, evaluation=run.spec.evaluation_fingerprint),
        wall_seconds=60.0,
        device_hours=1.0,
        tokens_per_second=1e5,
        attempts=1,
        trunk_id=run.share.fork.run_id if run.share.fork else None,
        data_fingerprint="",
        tokenizer="bytes",
        schedule="wsd",
    )


def command(workspace: Workspace, *arguments: str) -> Callable[[], None]:
    """A call of `scaling` as a process of its own."""
    environment = os.environ | {"SCALING_WORKSPACE": str(workspace.root)}

    def call() -> None:
        subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            env=environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )

    return call


def seconds(work: Callable[[], Any], turns: int) -> float:
    """Median over turns."""
    taken = []
    for _ in range(turns):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def measure(folder: Path, runs: int, turns: int) -> dict[str, Any]:
    """Seconds by what was done."""
    path, workspace = write_sweep(folder, runs), Workspace(folder / "workspace")
    fresh = make_plan(Sweep.load(path), workspace)
    measured: dict[str, Any] = {
        "runs": len(fresh.runs),
        "forks": sum(run.share.fork is not None for run in fresh.runs),
        "plan_seconds": seconds(command(workspace, "plan", str(path)), turns),
        "plan_in_process_seconds": seconds(lambda: make_plan(Sweep.load(path), workspace).document(), turns),
    }
    finish(fresh)
    return measured | {
        "plan_finished_seconds": seconds(command(workspace, "plan", str(path)), turns),
        "status_seconds": seconds(command(workspace, "status", "thousand"), turns),
        "status_json_seconds": seconds(command(workspace, "status", "thousand", "--json"), turns),
        "status_in_process_seconds": seconds(lambda: look(workspace, "thousand").document(), turns),
    }


def trivial_runs(folder: Path, count: int) -> Plan:
    """A plan of tiny runs, and what the trivial subprocess needs to leave their results."""
    overrides = [f"grid.seed={list(range(count))}", "grid.model=[llama]", "grid.size=[50K]", "grid.tokens=[150K]"]
    data = "data={corpus: text, revision: r, context_length: 128}"
    made = make_plan(Sweep.load("quickstart", [*overrides, data, "resources=[]"]), Workspace(folder / "workspace"))
    trivial = folder / "trivial"  # beside the workspace, where the trivial subprocess looks
    (trivial / "results").mkdir(parents=True)
    (trivial / "faults.json").write_text("{}")
    for run in made.runs:
        (trivial / "results" / f"{run.run_id}.json").write_text(result_of(run).model_dump_json())
    return made


class EnoughError(Exception):
    """As many have ended as were to be timed."""


def ours(folder: Path, submitted: int, count: int) -> float:
    """Seconds per run of our controller on the cluster, over the first `count` of those submitted."""
    from orchestrator.execution.controller import Controller, Event, Happening
    from orchestrator.executors.ray import RayExecutor

    made = trivial_runs(folder, submitted)
    ended: list[float] = []

    def watch(event: Event) -> None:
        if event.what is Happening.ENDED:
            assert event.status.state is State.COMPLETED
            ended.append(time.perf_counter())
            if len(ended) == count:
                raise EnoughError

    began = time.perf_counter()
    with contextlib.suppress(EnoughError):
        Controller(made.workspace, RayExecutor(made.workspace), made.launches, watch)()
    return (ended[-1] - began) / count


def trial(config: dict[str, Any]) -> dict[str, Any]:
    """One trial of Ray Tune: the same subprocess, over a run directory that was made before."""
    subprocess.run(trivial_command(config["run"]), check=True)
    return {"loss": 1.0}


def trivial_command(run: str) -> list[str]:
    """What stands in for torchrun, found first on PYTHONPATH."""
    return [sys.executable, "-m", "torch.distributed.run", "xlstm.training", run, "--attempt", "1", "--token", "t"]


def ready(made: Plan) -> list[str]:
    """The paths of the run directories, made and leased, so that nothing but the trivial subprocess is missing."""
    directories = [made.workspace.run(run.run_id) for run in made.runs]
    for directory, run in zip(directories, made.runs, strict=True):
        directory.create(run.spec)
        directory.acquire("t")
    return [str(directory.path) for directory in directories]


def tune(folder: Path, submitted: int, count: int) -> float:
    """Seconds per trial of Ray Tune on the same cluster, over the first `count` of those submitted."""
    from ray import tune as ray_tune

    paths = ready(trivial_runs(folder, submitted))
    ended: list[float] = []

    class Clock(ray_tune.Callback):
        """Notes when trials end."""

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ended.append(time.perf_counter())

    class Enough(ray_tune.Stopper):
        """Ends the experiment when as many have ended as were to be timed."""

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return len(ended) >= count

    settings = ray_tune.RunConfig(storage_path=str(folder / "tune"), verbose=0, callbacks=[Clock()], stop=Enough())
    space = {"run": ray_tune.grid_search(paths)}
    began = time.perf_counter()
    results = ray_tune.Tuner(ray_tune.with_resources(trial, {"cpu": 1}), param_space=space, run_config=settings).fit()
    assert results.num_errors == 0
    return (ended[count - 1] - began) / count


def alone(folder: Path, submitted: int, count: int) -> float:
    """Seconds per trivial subprocess, one after the other on each core."""
    del submitted
    paths = ready(trivial_runs(folder, count))
    began = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as cores:
        list(cores.map(lambda path: subprocess.run(trivial_command(path), check=True), paths))
    return (time.perf_counter() - began) / count


SIDES = {"run": ours, "tune_trial": tune, "subprocess": alone}


def measure_trials(folder: Path, submitted: int, count: int, turns: int) -> dict[str, Any]:
    """Seconds per run, per trial and per trivial subprocess: after a few of each for warmth, medians over turns."""
    import ray

    root = Path(__file__).resolve().parents[1]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(root / "tests" / "orchestrator" / "trivial"), str(root)])
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    ray.init("local", num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, logging_level="warning")
    taken: dict[str, list[float]] = {name: [] for name in SIDES}
    try:
        for turn in range(turns + 1):
            for name, side in SIDES.items():
                now = folder / f"{name}-{submitted}-{turn}"
                seconds_each = side(now, submitted, count) if turn else side(now, 2, 2)
                taken[name] += [seconds_each] if turn else []
    finally:
        ray.shutdown()
    mine, theirs, floor = (statistics.median(taken[name]) for name in SIDES)
    ratios = [b / a for a, b in zip(taken["run"], taken["tune_trial"], strict=True)]
    return {
        "submitted": submitted,
        "timed": count,
        **{f"{name}_seconds": statistics.median(each) for name, each in taken.items()},
        "tune_over_ours": statistics.median(ratios),
        "tune_overhead_over_ours": (theirs - floor) / (mine - floor),
    }


def main() -> None:
    """Measure, print a table, and keep the numbers where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--trials", type=int, default=0, help="runs against as many trials of Ray Tune; 0 for none")
    parser.add_argument("--queued", type=int, default=0, help="so many submitted, and the first --trials of them timed")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), given.runs, given.turns)
        if given.trials:
            turns = min(3, given.turns)
            measured["trials"] = [measure_trials(Path(folder), given.trials, given.trials, turns)]
            if given.queued:
                measured["trials"].append(measure_trials(Path(folder), given.queued, given.trials, turns))
    trials = measured.get("trials", [])
    for name, number in [*measured.items(), *(item for one in trials for item in one.items())]:
        if name != "trials":
            print(f"{name:32} {number:.6g}")
    if given.json:
        given.json.write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
