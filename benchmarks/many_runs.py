"""Thousands of runs: what is asked of the workspace's own MLflow store, of status, watch, report and submit.

    python -m benchmarks.many_runs [--runs 200 2000 20000] [--synced 2000] [--json FILE] [--markdown FILE]

Runs are made, not trained: each leaves what a finished run leaves, a hundred rows of metrics among it. Calls of
`scaling` are timed in CPU seconds of the process; a look of `watch` and a poll of the controller are timed in this
process, in CPU milliseconds, when the first is over. The controller holds as many runs that wait, while one trains.
"""

import argparse
import json
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.orchestration import command, result_of
from orchestrator.display.progress import make_display
from orchestrator.execution.controller import Controller
from orchestrator.executors.local import LocalExecutor
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.standing.status import Lookout
from sweeps.sweep import Sweep
from xlstm.run.directory import Workspace
from xlstm.run.executor import Job
from xlstm.run.records import Launch, State, Status, Validation, Verdict

RUNS = "runs"
ROWS = 100
POLLS = 10
SIZES = ("50K", "200K", "500K")
BUDGETS = ("150K", "300K", "600K", "1.2M")


def planned(workspace: Workspace, count: int) -> Plan:
    """About so many runs of two families, three sizes and four budgets."""
    seeds = list(range(max(1, round(count / 24))))
    grid = [f"grid.seed={seeds}", f"grid.size=[{', '.join(SIZES)}]", f"grid.tokens=[{', '.join(BUDGETS)}]"]
    others = ["data={corpus: text, revision: r, context_length: 128}", "train.schedule=cosine", "resources=[]"]
    return make_plan(Sweep.load("quickstart", [*grid, *others, "name=many"]), workspace)


def finish(plan: Plan) -> None:
    """Leave, for every run, what a finished run leaves; losses follow a law."""
    plan.save()
    now = time.time()
    for run in plan.runs:
        directory = plan.workspace.run(run.run_id)
        directory.create(run.spec)
        n, d = run.parameters.total, run.spec.physics.tokens
        loss = 1.5 + 30 / n**0.3 + 40 / d**0.3 + 1e-3 * (run.spec.physics.seed % 7)
        rows = [
            {"step": step, "time": now + step, "attempt": 1, "train/loss": loss + 1 / step, "progress/tokens": step * 8}
            | ({"validation/loss": loss + 1 / step, "validation/perplexity": 20.0} if step % 10 == 0 else {})
            for step in range(1, ROWS + 1)
        ]
        directory.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        identity = {"run_id": run.run_id, "attempt": 1, "token": "t", "executor": "local", "host": ""}
        launch = Launch(**identity, execution=run.spec.execution, rendezvous="", started=now)
        directory.attempt(1).mkdir(parents=True)
        validation = Validation(loss=loss, perplexity=20.0, tokens=1, evaluation=run.spec.evaluation_fingerprint)
        for path, record in {
            directory.launch_file(1): launch,
            directory.verdict_file(1): Verdict(state=State.COMPLETED, time=now),
            directory.result_file: result_of(run).model_copy(update={"validation": validation}),
            directory.status_file: Status(state=State.COMPLETED, attempt=1, updated=now),
        }.items():
            path.write_text(record.model_dump_json())  # not durably: that would be most of the time


def cpu_seconds(call: Callable[[], None]) -> float:
    """Of a call that starts a process and waits for it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def look_again(workspace: Workspace) -> float:
    """CPU milliseconds of a further look at a sweep."""
    look = Lookout(workspace, "many")
    look()
    began = time.process_time()
    for _ in range(POLLS):
        look()
    return (time.process_time() - began) / POLLS * 1000


class _Sleeping(LocalExecutor):
    """Starts a process that waits instead of a trainer."""

    def _start(self, job: Job, slots: tuple[int, ...]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["sleep", "600"])


class _EnoughError(Exception):
    """As many polls were seen as were to be timed."""


def poll(plan: Plan, *, live: bool) -> tuple[float, float]:
    """CPU seconds until the runs of a plan wait in the controller, and milliseconds of each poll from then on."""
    with open("/dev/null", "w") as nowhere:
        console = Console(file=nowhere, force_terminal=live, width=120)
        display = make_display(console, "many", plan.document()["runs"])
        executor, ticks, began = _Sleeping(gpus=0, cores=1), [], time.process_time()

        def tick() -> None:
            display.refresh()
            ticks.append(time.process_time())
            if len(ticks) > POLLS:
                raise _EnoughError

        try:
            with display:
                Controller(plan.workspace, executor, plan.launches, display.happened, tick)()
        except _EnoughError:
            pass
    return ticks[0] - began, (ticks[POLLS] - ticks[0]) / POLLS * 1000


def measure(folder: Path, count: int, *, sync: bool) -> dict[str, Any]:
    """Numbers by what was done, for about so many runs."""
    workspace = Workspace(folder / f"finished-{count}")
    plan = planned(workspace, count)
    finish(plan)
    measured: dict[str, Any] = {RUNS: len(plan.runs)}
    measured["status, CPU s"] = cpu_seconds(command(workspace, "status", "many", "--json"))
    measured["submit, all complete, CPU s"] = cpu_seconds(command(workspace, "plan", "many"))
    measured["a look of watch, all finished, CPU ms"] = look_again(workspace)
    if sync:
        measured["first sync, CPU s"] = cpu_seconds(command(workspace, "sync"))
        measured["sync, nothing new, CPU s"] = cpu_seconds(command(workspace, "sync"))
        measured["fit, CPU s"] = cpu_seconds(command(workspace, "fit", "many"))
        measured["report, CPU s"] = cpu_seconds(command(workspace, "report", "many"))
        page = workspace.sweep("many").fit / "report.html"
        measured["the page, MB"] = page.stat().st_size / 1e6
    waiting = planned(Workspace(folder / f"waiting-{count}"), count)
    waiting.save()
    measured["submit until all wait, CPU s"], measured["a poll, all but one wait, CPU ms"] = poll(waiting, live=True)
    measured["a look of watch, all wait, CPU ms"] = look_again(waiting.workspace)
    return measured


def table(found: list[dict[str, Any]]) -> str:
    """The numbers as Markdown: a column for each number of runs."""
    names = [name for name in max(found, key=len) if name != RUNS]
    lines = [f"| | {' | '.join(f'{one[RUNS]:,} runs' for one in found)} |", "| --- " + "| ---: " * len(found) + "|"]
    for name in names:
        lines.append(f"| {name} | {' | '.join(f'{one[name]:.3g}' if name in one else '' for one in found)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, and keep the numbers where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[200, 2000, 20000])
    parser.add_argument("--synced", type=int, default=2000, help="no more runs than this are synced and drawn")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    given = parser.parse_args()
    found = []
    for count in given.runs:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(Path(folder), count, sync=count <= given.synced))
        print(json.dumps(found[-1], indent=2), flush=True)
    print(table(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    if given.markdown:
        given.markdown.write_text(f"# Thousands of runs\n\n{(__doc__ or '').strip()}\n\n{table(found)}\n")


if __name__ == "__main__":
    main()
