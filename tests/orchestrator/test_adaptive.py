"""Sweeps that choose their own next run: what is bought, when it ends, and that no kill changes it."""

import json
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console
from waiting import wait_until

from analysis.decisions import pool
from orchestrator.errors import InputError
from orchestrator.execution.controller import Controller
from orchestrator.planning.plan import Plan, make_plan
from orchestrator.standing.decisions import CONTRADICTION
from orchestrator.workbench.adaptive.buyer import Buyer
from orchestrator.workbench.adaptive.laws import Laws
from orchestrator.workbench.adaptive.submit import refuse_unknown_form, take_as_it_is
from sweeps.located import SweepError
from sweeps.sweep import Sweep
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.executor import Handle, Job, JobState
from xlstm.run.records import Validation
from xlstm.run.spec import RunSpec
from xlstm.run.sweep_directory import SweepDirectory

SIZES = "".join(f"  w{width}: {{embedding_dim: {width}, num_blocks: 1, num_heads: 2}}\n" for width in (16, 32, 48, 64))
POOL = (
    ("  small: {embedding_dim: 16, num_blocks: 1, num_heads: 2}\n", ""),
    ("  large: {embedding_dim: 32, num_blocks: 2, num_heads: 2}\n", SIZES),
    ("size: [small]", "size: [w16, w32, w48, w64]"),
    ("tokens: [2560, 5120]", "tokens: [5120, 10240, 20480, 40960, 81920]"),
    ("warmup_steps: 2}", "warmup_steps: 2, schedule: wsd, decay_fraction: 0.2}"),
)
DESIGN = "design: {target: {parameters: 200K, tokens: 200K}, until: 0.015, form: additive}\n"


MADE: dict[Any, Any] = {}


def true_loss(run_id: str, parameters: float, tokens: float) -> float:
    """A law, and a scatter of 0.2 % at most."""
    chance = int(run_id[-8:], 16) / 16**8 - 0.5
    return (1.2 + 30 * parameters**-0.4 + 90 * tokens**-0.45) * (1 + 0.004 * chance)


class Killed(BaseException):
    """The controller dies here."""


@dataclass
class Oracle:
    """An engine whose runs end at once with the loss of a law, each scattered a little, and leave their checkpoints."""

    plan: Plan
    finish: Callable[..., None]
    off: dict[str, float] = field(default_factory=dict)
    """What is added to the loss of a run."""
    name: str = "oracle"
    devices: int = 1
    trained: list[str] = field(default_factory=list)
    _jobs: dict[str, Job] = field(default_factory=dict)
    _open: dict[str, int] = field(default_factory=dict)
    """Looks until a job has ended, as many as there are devices."""

    def submit(self, jobs: Sequence[Job]) -> list[Handle]:
        self._open |= {job.token: self.devices for job in jobs}
        self._jobs |= {job.token: job for job in jobs}
        return [Handle(job.run, job.token, job.token) for job in jobs]

    def _train(self, job: Job) -> None:
        (planned,) = [run for run in self.plan.runs if run.run_id == job.run.run_id]
        n, d = planned.parameters.total, planned.spec.physics.tokens
        loss = true_loss(job.run.run_id, n, d) + self.off.get(job.run.run_id, 0.0)
        measured = Validation(loss=loss, perplexity=1, tokens=1, evaluation=planned.spec.evaluation_fingerprint)
        self.finish(self.plan.workspace, planned, validation=measured, tokens=d)
        for step in (*job.checkpoint_at, planned.spec.physics.undecided_steps):
            leave_checkpoint(job.run, step)
        self.trained.append(job.run.run_id)

    def has_room(self, spec: RunSpec) -> bool:
        return len(self._open) < self.devices

    def adopt(self, runs: Sequence[RunDirectory]) -> list[Handle]:
        return []

    def poll(self, handles: Sequence[Handle]) -> list[JobState]:
        left = {token: looks - 1 for token, looks in self._open.items()}
        self._open = {token: looks for token, looks in left.items() if looks}
        ended = [handle for handle in handles if handle.token not in self._open]
        for handle in ended:
            if handle.token in left:
                self._train(self._jobs[handle.token])
        return [JobState.ENDED if handle in ended else JobState.RUNNING for handle in handles]

    def rest(self, seconds: float) -> None:
        pass

    def cancel(self, handles: Sequence[Handle], *, grace_seconds: float = 0) -> None:
        pass


def leave_checkpoint(run: RunDirectory, step: int) -> None:
    mark = run.checkpoint_mark(step)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


@dataclass
class Bench:
    """The pool in a workspace of its own."""

    path: str
    folder: Path
    finish: Callable[..., None]
    overrides: tuple[str, ...] = ()
    off: dict[str, float] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)

    def plan(self) -> Plan:
        return make_plan(Sweep.load(self.path, self.overrides), Workspace(self.folder))

    def go(self, devices: int = 1, plan: Plan | None = None) -> tuple[Buyer, Oracle]:
        """One controller, until it ends or dies."""
        plan = plan or self.plan()
        plan.save()
        assert plan.sweep.file.design is not None
        oracle = Oracle(plan, self.finish, self.off, devices=devices)
        buyer = Buyer(plan, oracle, Console(quiet=True), plan.sweep.file.design)
        try:
            Controller(plan.workspace, oracle, buyer.begin(), more=buyer)()
        finally:
            self.trained += oracle.trained
        return buyer, oracle

    @property
    def rows(self) -> list[dict[str, Any]]:
        return Workspace(self.folder).sweep("tiny").decisions()

    @property
    def bought(self) -> list[str]:
        return [row["run_id"] for row in self.rows if row["decision"] == "bought"]


@pytest.fixture(autouse=True)
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits and choices are functions of what was seen: each is made once for all of these tests."""
    monkeypatch.setattr(pool, "STARTS", 12)
    monkeypatch.setattr(pool, "DRAWS", 150)
    law, pick = pool.law, Laws.pick

    def law_of(rows: pl.DataFrame, *asked: Any) -> Any:
        key = (*rows["run_id"], *rows["loss"], *asked)
        if key not in MADE:
            MADE[key] = law(rows, *asked)
        return MADE[key]

    def picked(laws: Laws, *asked: Any) -> Any:
        losses = laws._frame(asked[0], asked[1])["loss"].to_list()
        key = json.dumps([*asked, losses, laws.design.model_dump()])
        if key not in MADE:
            MADE[key] = pick(laws, *asked)
        return MADE[key]

    monkeypatch.setattr(pool, "law", law_of)
    monkeypatch.setattr(Laws, "pick", picked)


@pytest.fixture
def bench(tmp_path: Path, write_sweep: Callable[..., str], finish: Callable[..., None]) -> Callable[..., Bench]:
    path = Path(write_sweep(*POOL))
    path.write_text(path.read_text() + DESIGN)

    def made(name: str, *overrides: str) -> Bench:
        return Bench(str(path), tmp_path / name, finish, overrides)

    return made


def test_buying_ends_when_the_target_is_known_and_each_decision_says_why(bench: Callable[..., Bench]) -> None:
    one = bench("a")
    before = one.plan()
    buyer, _ = one.go()
    rows = one.rows
    assert buyer.stopped == "reached"
    assert 10 <= len(one.bought) < 20
    assert one.trained == one.bought
    last = rows[-1]
    (target,) = last["families"]["llama"]["targets"]
    assert last["decision"] == "stopped"
    assert target["half_width"] <= 0.015
    # The true loss, which no run was trained at.
    assert target["interval"][0] < 1.2 + 30 * 200e3**-0.4 + 90 * 200e3**-0.45 < target["interval"][1]
    seen = [row for row in rows if row["decision"] == "seen"]
    assert [row["run_id"] for row in seen] == one.bought
    assert all(row["targets"] for row in seen[7:])
    assert {row["why"] for row in rows if row["decision"] == "bought"} <= {"first", "worth"}
    # A run starts from what those before it left, and costs its own part.
    forks = [row for row in rows if row["decision"] == "bought" and row["forks_from"]]
    flops = {run.run_id: run.flops["exact"] for run in one.plan().runs}
    assert forks
    assert all(row["cost"]["flops"] < flops[row["run_id"]] for row in forks)
    again, _ = one.go(plan=before)  # as of a controller that waited for the first to end
    assert again.stopped == "reached"
    assert one.rows == rows


@pytest.mark.parametrize("moment", ["before a row", "after a row", "after a launch"])
def test_a_controller_killed_at_any_decision_goes_on_and_buys_nothing_twice(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    undisturbed = bench("a")
    undisturbed.go()
    killed, lives = bench("b"), 0
    decide, submit = SweepDirectory.decide, Oracle.submit
    done: list[str] = []  # in this life

    def deciding(directory: SweepDirectory, row: dict[str, Any]) -> None:
        if moment == "before a row" and "row" in done:
            raise Killed
        decide(directory, row)
        done.append("row")
        if moment == "after a row":
            raise Killed

    def submitting(oracle: Oracle, jobs: Sequence[Job]) -> list[Handle]:
        handles = submit(oracle, jobs)
        if moment == "after a launch":
            oracle.poll(handles)  # the job outlives its controller
        if moment == "after a launch" and jobs:
            raise Killed
        return handles

    monkeypatch.setattr(SweepDirectory, "decide", deciding)
    monkeypatch.setattr(Oracle, "submit", submitting)
    while True:
        lives += 1
        done.clear()
        try:
            buyer, _ = killed.go()
        except Killed:
            continue
        break
    assert lives >= len(undisturbed.bought)
    assert buyer.stopped == "reached"
    assert killed.bought == undisturbed.bought
    assert sorted(killed.trained) == sorted(undisturbed.trained)
    assert [row["decision"] for row in killed.rows] == [row["decision"] for row in undisturbed.rows]


def test_a_run_that_contradicts_the_law_stops_the_buying_until_told_to_go_on(bench: Callable[..., Bench]) -> None:
    finer = "design.until=0.008"
    one = bench("a", finer)
    one.go()
    wrong = one.bought[10]
    other = bench("b", finer)
    other.off[wrong] = 0.5
    buyer, _ = other.go()
    assert buyer.stopped == CONTRADICTION
    assert other.bought[-1] == wrong
    assert wrong in other.rows[-1]["reason"]
    rows = other.rows
    assert other.go()[0].stopped == CONTRADICTION
    assert other.rows == rows
    take_as_it_is(other.plan())
    assert other.go()[0].stopped != CONTRADICTION
    assert len(other.bought) > 11
    with pytest.raises(InputError, match="no run of tiny contradicts"):
        take_as_it_is(other.plan())


def test_a_budget_is_kept_and_idle_devices_are_used(bench: Callable[..., Bench]) -> None:
    one = bench("a", "design.budget={flops: 1.5e11}", "design.until=0.001")
    buyer, _ = one.go(devices=3)
    assert buyer.stopped in ("budget", "worth")
    assert sum(row["cost"]["flops"] for row in one.rows if row["decision"] == "bought") <= 1.5e11
    assert max(len(row["training"]) for row in one.rows if row["decision"] == "bought") >= 1
    assert len(set(one.trained)) == len(one.trained)


def test_a_budget_alone_is_spent_from_every_size_on(bench: Callable[..., Bench]) -> None:
    one = bench("a", "design.budget={flops: 4.0e10}", "design.until=null")
    buyer, _ = one.go()
    assert buyer.stopped == "budget"
    runs = {run.run_id: run for run in one.plan().runs}
    sizes = {run.parameters.total for run in runs.values()}
    assert {runs[run_id].parameters.total for run_id in one.bought[: len(sizes)]} == sizes
    spent = sum(row["cost"]["flops"] for row in one.rows if row["decision"] == "bought")
    forks = [run.flops["exact"] for run_id, run in runs.items() if run_id not in one.bought]
    assert 4.0e10 - min(forks) < spent <= 4.0e10


def test_a_cancelled_run_ends_the_buying_until_it_is_submitted_again(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, submit = bench("a"), Oracle.submit

    def cancelled(oracle: Oracle, jobs: Sequence[Job]) -> list[Handle]:
        for job in jobs:
            job.run.request_cancel()
        return submit(oracle, jobs)

    with monkeypatch.context() as patched:
        patched.setattr(Oracle, "submit", cancelled)
        patched.setattr(Oracle, "_train", lambda *job: None)
        buyer, _ = one.go(devices=2)
    assert buyer.stopped == "cancelled"
    assert len(one.bought) == 1
    Workspace(one.folder).run(one.bought[0]).withdraw_cancel()  # as a submission does
    assert one.go()[0].stopped == "reached"
    assert one.trained == one.bought


def test_of_several_families_the_least_known_is_bought_for(bench: Callable[..., Bench]) -> None:
    one = bench("a", 'grid.model=[llama, "xlstm[1:0]"]', "design.first=6", "design.until=0.5")
    buyer, _ = one.go()
    assert buyer.stopped == "reached"
    families = [row["family"] for row in one.rows if row["decision"] == "bought"]
    assert {family: families.count(family) for family in families} == {"llama": 10, "xlstm[1:0]": 10}
    assert {row["family"] for row in one.rows if row["decision"] == "seen"} == set(one.rows[-1]["families"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("design.target=[{parameters: 1M}]", "`design.target.0.tokens` is missing"),
        ("design={target: {parameters: 1M, tokens: 1M}, untl: 0.1}", "`untl` is no key of `design`"),
        ("design.until=2", "`design.until`: input should be less than 1"),
        ("design.budget={flops: 1, device_hours: 1}", "in one of them"),
        ("design.form=adative", "additive"),
        ("design.form=data-constrained", "unique_tokens"),
        ("best_of=learning_rate", "`best_of` takes the best"),
    ],
)
def test_a_wrong_design_is_refused_at_its_line(bench: Callable[..., Bench], override: str, said: str) -> None:
    with pytest.raises(SweepError, match=re.escape(override.partition("=")[0].partition(".")[0])) as refused:
        refuse_unknown_form(Sweep.load(bench("a").path, [override]))
    assert said in str(refused.value)


@pytest.mark.slow
@pytest.mark.serial
def test_a_submission_killed_while_it_buys_goes_on_and_the_command_line_tells_of_it(
    scaling: Any, bench: Callable[..., Bench], trivial: Any
) -> None:
    path, finer = bench("a").path, "design.until=0.05"
    plan = make_plan(Sweep.load(path), Workspace(scaling.workspace))
    trivial.prepare([run.spec for run in plan.runs], {})
    for run in plan.runs:
        file = trivial.folder / "results" / f"{run.run_id}.json"
        result = json.loads(file.read_text())
        result["validation"]["loss"] = true_loss(run.run_id, run.parameters.total, run.spec.physics.tokens)
        about = {"parameters": run.parameters.model_dump(), "tokens": run.spec.physics.tokens, "flops": run.flops}
        file.write_text(json.dumps(result | about))
    first = scaling.start("submit", path, finer)
    decisions = Workspace(scaling.workspace).sweep("tiny").decisions
    wait_until(lambda: len(decisions()) > 4)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    said = scaling("submit", path, finer)
    assert said.code == 0, said.err
    assert "every target is known as well as asked" in said.out
    status = scaling("status", "tiny", "--json").json
    bought = [row["run_id"] for row in status["decisions"] if row["decision"] == "bought"]
    assert sorted(bought) == sorted(run["run_id"] for run in status["runs"] if run["state"] == "COMPLETED")
    assert trivial.executed() == dict.fromkeys(bought, trivial.once)
    assert "every target is known as well as asked" in scaling("status", "tiny").out
    assert scaling("watch", "tiny", "--json").json["decisions"] == status["decisions"]
    page = scaling("report", "tiny")
    assert page.code == 0, page.err
    assert "every target is known as well as asked" in Path(page.out.strip()).read_text()
