"""Hundreds of runs through the real controller, executor and supervisors: faults are survived, nothing is done twice.

The trainer alone is replaced, by a real process that counts its steps (`trivial/`): two hundred imports of torch would
take the time of the whole test suite.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.controller import Controller, Event, Happening
from orchestrator.executors.local import LocalExecutor
from orchestrator.plan import Plan, make_plan
from orchestrator.status import look
from sweeps.sweep import Sweep
from xlstm.records import Parameters, Result, State, Validation, Workspace
from xlstm.spec import RunSpec

TRIVIAL = Path(__file__).parent / "trivial"
STEPS = 4
WriteSweep = Callable[..., str]

pytestmark = pytest.mark.serial


@dataclass(frozen=True)
class Trivial:
    """The folder that the trivial trainer reads its faults from and writes its steps to."""

    folder: Path

    def prepare(self, specs: list[RunSpec], faults: dict[str, str]) -> None:
        (self.folder / "results").mkdir(parents=True)
        (self.folder / "faults.json").write_text(json.dumps(faults))
        for spec in specs:
            (self.folder / "results" / f"{spec.run_id}.json").write_text(result_of(spec).model_dump_json())

    def executed(self) -> dict[str, list[int]]:
        """The steps that were executed, in order, by run."""
        steps: dict[str, list[int]] = {}
        for line in (self.folder / "executed.log").read_text().splitlines():
            run_id, _, step = line.split()
            steps.setdefault(run_id, []).append(int(step))
        return steps


def result_of(spec: RunSpec) -> Result:
    return Result(
        run_id=spec.run_id,
        family="llama",
        size="small",
        seed=spec.physics.seed,
        tokens=spec.physics.tokens,
        steps=STEPS,
        parameters=Parameters(total=1, non_embedding=1, non_embedding_with_head=1),
        flops={"exact": 6.0, "6nd": 6.0},
        validation=Validation(loss=1.0, perplexity=2.7, tokens=1, evaluation=spec.evaluation.fingerprint),
        wall_seconds=0.1,
        device_hours=0.1 / 3600,
        attempts=1,
        data_fingerprint="d",
        tokenizer="bytes",
        schedule="cosine",
    )


@pytest.fixture
def trivial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trivial:
    """Put the trivial trainer in torchrun's place, for the processes that start from here on."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TRIVIAL), str(Path(__file__).parents[2])]))
    monkeypatch.setenv("TRIVIAL_TRAINING", str(tmp_path / "trivial"))
    return Trivial(tmp_path / "trivial")


def plan(write_sweep: WriteSweep, workspace: Workspace, runs: int) -> Plan:
    path = write_sweep(("tokens: [2560, 5120]", f"tokens: [{STEPS * 256}]\n  seed: {list(range(runs))}"))
    made = make_plan(Sweep.load(path), workspace)
    made.save()
    return made


@pytest.mark.slow
def test_two_hundred_runs_with_crashes_preemptions_and_a_poison_run_end_with_199_trained_once(
    scaling: Any, write_sweep: WriteSweep, trivial: Trivial
) -> None:
    workspace = Workspace(scaling.workspace)
    made = plan(write_sweep, workspace, 200)
    ids = [run.run_id for run in made.runs]
    # A tenth crashes, half of it without a word; a tenth is preempted; one fails whenever it is tried.
    faults = {
        run_id: {3: "crash", 8: "kill", 5: "preempt", 15: "preempt"}.get(i % 20, "") for i, run_id in enumerate(ids)
    }
    poison = ids[100]
    assert not faults[poison]
    trivial.prepare([run.spec for run in made.runs], faults | {poison: "poison"})
    seen: Counter[Happening] = Counter()

    def watch(event: Event) -> None:
        seen[event.what] += 1

    statuses = Controller(workspace, LocalExecutor(gpus=0, cores=4), made.launches, watch=watch)()

    complete = {run_id for run_id, status in statuses.items() if status.state is State.COMPLETED}
    assert complete == set(ids) - {poison}
    executed = trivial.executed()
    assert all(executed[run_id] == list(range(1, STEPS + 1)) for run_id in complete)
    for run_id in complete:
        assert statuses[run_id].attempt == (2 if faults[run_id] else 1), run_id
    assert statuses[poison].state is State.FAILED
    assert statuses[poison].attempt == 2  # the same traceback twice ends it
    assert (seen[Happening.SUBMITTED], seen[Happening.RETRIED]) == (200 + 40 + 1, 40 + 1)

    standing = {run["run_id"]: run for run in scaling("status", "tiny", "--json").json["runs"]}
    assert standing[poison]["reason"] == "set aside after the same error twice: ValueError: poison"
    assert "set aside after the same error twice: ValueError: poison" in scaling("status", "tiny").out
    assert look(workspace, "tiny").ledger.wasted.tokens == 0  # every step was kept in a checkpoint
