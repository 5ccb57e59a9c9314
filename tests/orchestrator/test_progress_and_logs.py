"""What a person sees of a sweep: its end in sight, a failure with its reason, and the log of a run as it grows."""

import io
import threading
from collections.abc import Callable
from typing import Any

import pytest
from waiting import wait_until

from orchestrator.display.logs import print_logs
from orchestrator.display.progress import make_display
from orchestrator.errors import InputError
from orchestrator.execution.controller import Event, Happening
from orchestrator.planning.plan import Plan, make_plan
from sweeps.sweep import Sweep
from xlstm.run.directory import Workspace
from xlstm.run.records import Metric, State

WriteSweep = Callable[..., str]


@pytest.fixture
def planned(scaling: Any, write_sweep: WriteSweep) -> Plan:
    made = make_plan(Sweep.load(write_sweep()), Workspace(scaling.workspace))
    for one in made.runs:
        made.workspace.run(one.run_id).create(one.spec)
    return made


def row(step: int, attempt: int) -> dict[str, Any]:
    return {"step": step, "attempt": attempt, Metric.LOSS: 5.0 - step, Metric.TOKENS: 256 * step}


def test_a_sweep_whose_runs_have_all_ended_has_no_time_left(planned: Plan) -> None:
    from rich.console import Console

    said = io.StringIO()
    rows = planned.document()["runs"]
    with make_display(Console(file=said, width=200), "tiny", rows) as display:
        first, second = (planned.workspace.run(one["run_id"]) for one in rows)
        display.refresh()
        lease = first.acquire("token")
        display.happened(Event(first, Happening.HELD, first.status()))
        lease.release(State.COMPLETED)
        display.happened(Event(first, Happening.ENDED, first.status()))
        second.set_state(State.FAILED, "set aside after the same error twice: ValueError: poison")
        display.happened(Event(second, Happening.ENDED, second.status()))
    lines = said.getvalue().splitlines()
    assert lines[0].startswith(f"{first.run_id}: held by another launcher: process ")
    assert f"{second.run_id}: failed (set aside after the same error twice: ValueError: poison)" in lines
    assert lines[-1] == "1 of 2 runs complete, 1 failed, 33% of the FLOPs"


def test_all_of_the_flops_are_done_when_every_run_is_and_not_before(planned: Plan) -> None:
    from rich.console import Console

    rows = [{**row, "flops": {"exact": flops}} for row, flops in zip(planned.document()["runs"], (999, 1), strict=True)]
    said = io.StringIO()
    for state in (State.RUNNING, State.COMPLETED):
        with make_display(Console(file=said, width=200), "tiny", rows) as display:
            for row, becomes in zip(rows, (State.COMPLETED, state), strict=True):
                run = planned.workspace.run(row["run_id"])
                run.set_state(becomes)
                display.happened(Event(run, Happening.ENDED, run.status()))
    shares = [line.rpartition(", ")[2] for line in said.getvalue().splitlines() if line.endswith("of the FLOPs")]
    assert shares == ["99% of the FLOPs", "100% of the FLOPs"]


def test_the_time_left_is_told_by_the_steps_of_what_runs_and_not_by_the_flops_of_small_models(planned: Plan) -> None:
    from rich.console import Console

    # By the plan a token of the second takes nine times as long; both spend 1 ms of each on what no FLOPs tell.
    rows = [
        {**row, "device_hours": seconds * row["tokens"] / 3600, "flops": {"exact": seconds * row["tokens"] * 1e10}}
        for row, seconds in zip(planned.document()["runs"], (1e-6, 9e-6), strict=True)
    ]
    display: Any = make_display(Console(file=io.StringIO(), width=200), "tiny", rows)
    first = planned.workspace.run(rows[0]["run_id"])
    display.happened(Event(first, Happening.STARTED, first.status()))
    display.progress.read()
    assert display.progress.seconds_left is None
    first.append_metrics(row(2, attempt=1) | {Metric.TOKENS_PER_SECOND: 1 / (1e-3 + 1e-6)})
    display.progress.read()
    left = (rows[0]["tokens"] - 512) * (1e-3 + 1e-6) + rows[1]["tokens"] * (1e-3 + 9e-6)
    assert display.progress.seconds_left == pytest.approx(left)
    first.append_metrics(row(4, attempt=1) | {Metric.TOKENS_PER_SECOND: 2e6})  # twice as fast as planned
    display.progress.read()
    left = ((rows[0]["tokens"] - 1024) * 1e-6 + rows[1]["tokens"] * 9e-6) / 2
    assert display.progress.seconds_left == pytest.approx(left)
    display.happened(Event(first, Happening.ENDED, first.status().model_copy(update={"state": State.FAILED})))
    display.happened(Event(first, Happening.RETRIED, first.status().model_copy(update={"state": State.QUEUED})))
    display.happened(Event(first, Happening.STARTED, first.status()))
    assert display.progress.seconds_left == pytest.approx(left)


def test_logs_show_the_latest_attempt_and_follow_it_until_its_end(planned: Plan) -> None:
    run = planned.workspace.run(planned.runs[0].run_id)
    with pytest.raises(InputError, match="never started"):
        print_logs(run, io.StringIO())
    run.acquire("first").release(State.PREEMPTED)
    run.append_metrics(row(1, attempt=1))
    lease = run.acquire("second")
    run.append_metrics({"event": "resume", "attempt": 2, "step": 1})
    said = io.StringIO()
    following = threading.Thread(target=print_logs, args=(run, said), kwargs={"follow": True})
    following.start()
    run.append_metrics(row(2, attempt=2))
    (run.attempt(2) / "rank-0.log").write_text("a word of the trainer\nand half a li")
    wait_until(lambda: "a word of the trainer\n" in said.getvalue())
    assert following.is_alive()
    lease.release(State.COMPLETED)
    following.join(30)
    assert said.getvalue().splitlines() == [
        f"==> {run.metrics_file} <==",
        "attempt 2 continues from step 1",
        "step 2: loss 3.0000, 512 tokens",
        f"==> {run.attempt(2) / 'rank-0.log'} <==",
        "a word of the trainer",
        "and half a li",
    ]
