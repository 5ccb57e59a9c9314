"""`scaling fit SWEEP --downstream TASK`: from a law to the error of a task in one command."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.planning.plan import make_plan
from sweeps.sweep import Sweep
from xlstm.run.directory import Workspace
from xlstm.run.evaluations import Harness
from xlstm.run.outcome import leave_measured
from xlstm.run.records import Measured, Validation

pytestmark = pytest.mark.slow

TASKS = Harness(name="tasks", tasks=("hellaswag",))


def accuracy(loss: float) -> float:
    """By an error of 0.75 - 2 exp(-0.7 L)."""
    return 0.25 + 2.0 * math.exp(-0.7 * loss)


def test_a_law_and_its_link_foretell_the_error_of_a_task(
    scaling: Any, write_sweep: Callable[..., str], finish: Callable[..., None]
) -> None:
    sweep = write_sweep(
        ("size: [small]", "size: [small, large]"), ("[2560, 5120]", "[2560, 5120, 10240, 20480, 40960]")
    )
    workspace = Workspace(scaling.workspace)
    plan = make_plan(Sweep.load(sweep), workspace)
    plan.save()
    for number, planned in enumerate(plan.runs):
        tokens = planned.spec.physics.tokens
        loss = 1.0 + 20 / planned.parameters.total**0.4 + 40 / tokens**0.5 + 0.002 * (-1) ** number
        fingerprint = planned.spec.evaluation_fingerprint
        validation = Validation(loss=loss, perplexity=math.exp(loss), tokens=9, evaluation=fingerprint)
        finish(workspace, planned, validation=validation, tokens=tokens)
        measured = Measured(
            name="tasks", kind="harness", evaluation="0", run_id=planned.run_id, settings={}, tokens=9,
            measures={"hellaswag/acc": accuracy(loss), "hellaswag/acc_norm": accuracy(loss)}, tables={},
        )  # fmt: skip
        leave_measured(workspace.run(planned.run_id), planned.spec, TASKS, measured, 1)
    said = scaling("fit", "tiny", "--form", "additive", "--downstream", "hellaswag", "--json")
    assert said.code == 0, said.err
    found = said.json[0]["downstream"]
    assert (found["measure"], found["link"]) == ("evaluation/tasks/hellaswag/acc_norm", "exponential")
    assert found["parameters"] == pytest.approx({"epsilon": 0.75, "k": 2.0, "gamma": 0.7}, rel=0.02)
    for run in found["runs"]:
        assert run["error"] == pytest.approx(1 - accuracy(run["loss"]))
        assert run["foretold"] == pytest.approx(run["error"], abs=0.01)
        assert run["interval"][0] <= run["foretold"] <= run["interval"][1]
    said = scaling("fit", "tiny", "--downstream", "hellaswagg")
    assert (said.code, "no such measure; did you mean" in said.err) == (2, True), said.err
