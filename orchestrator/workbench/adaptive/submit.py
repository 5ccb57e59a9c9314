"""Carries out adaptive sweeps. The analysis is imported when one is."""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.errors import InputError, StoppedError
from orchestrator.planning.plan import Plan
from orchestrator.standing.decisions import CONTRADICTION, contradictions
from sweeps.design import Design
from sweeps.located import SweepError
from sweeps.sweep import Sweep
from xlstm.run.executor import Executor, PlannedRun
from xlstm.run.records import Status
from xlstm.run.sweep_directory import Decision

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.workbench.adaptive.buyer import Buyer

AT_ONCE_ON_SLURM = 4
"""Runs of a round, where the design says nothing: of Slurm nobody knows how many devices will be idle."""


def is_adaptive(plan: Plan) -> bool:
    """Whether the runs of a plan are a pool."""
    return plan.sweep.file.design is not None


def refuse_unknown_form(sweep: Sweep) -> None:
    """SweepError, at its line, for a form of a design that there is not, or that asks for what no sweep says."""
    design = sweep.file.design
    if design is None:
        return
    from analysis.decisions.pool import forms_named
    from analysis.findings import RefusalError

    try:
        forms_named(design.form)
    except RefusalError as refusal:
        raise SweepError([sweep.document.problem(("design", "form"), f"`design.form`: {refusal}")]) from None


def take_as_it_is(plan: Plan) -> None:
    """Have buying go on though runs contradict the law. InputError where none does."""
    against = contradictions(plan.directory.decisions())
    if not against:
        raise InputError(f"--go-on: no run of {plan.name} contradicts its law")
    plan.directory.decide({"decision": Decision.WENT_ON, "time": time.time(), "runs": against})


def carry_out(executor: Executor, plan: Plan, console: "Console") -> Mapping[str, Status]:
    """Buy runs of a plan's pool and have them carried out from this process, until the design says that it is enough.

    StoppedError where a run contradicts the law, when what was being trained has ended.
    """
    from orchestrator.display.progress import make_display
    from orchestrator.execution import submission
    from orchestrator.workbench.adaptive.buyer import Buyer
    from orchestrator.workbench.analyses.live_fit import live_fit

    buyer = Buyer(plan, executor, console, _design(plan))
    display = make_display(console, plan.name, plan.document()["runs"])
    pool = [PlannedRun(run.spec) for run in plan.runs]
    fit = partial(live_fit, plan.workspace, plan.name)
    statuses = submission.submit(plan.workspace, plan.name, pool, executor, console, display, fit, choice=buyer)
    _refuse_contradiction(buyer)
    return statuses


def hand_over(executor: Executor, plan: Plan, console: "Console") -> None:
    """Buy the runs of one round and give them to Slurm, with a job that buys the next ones when these have ended.

    StoppedError where a run contradicts the law; InputError where Slurm or the site refuses.
    """
    from orchestrator.execution.lock import sole_controller
    from orchestrator.workbench import slurm
    from orchestrator.workbench.adaptive.buyer import Buyer

    design = _design(plan)
    with sole_controller(plan.workspace, plan.name, executor.name, console):
        slurm.reconcile(plan.workspace, plan.name)
        at_once = design.at_once or AT_ONCE_ON_SLURM
        buyer = Buyer(plan, executor, console, design.model_copy(update={"at_once": at_once}), queues=True)
        buyer.begin()
        while buyer():
            pass
        if training := set(buyer.training):
            part = replace(buyer.plan, runs=tuple(run for run in buyer.plan.runs if run.run_id in training))
            slurm.hand_over(executor, buyer.plan, part, console)
            slurm.next_round(executor, plan, console)
    _refuse_contradiction(buyer)


def _design(plan: Plan) -> Design:
    refuse_unknown_form(plan.sweep)
    assert plan.sweep.file.design is not None
    return plan.sweep.file.design


def _refuse_contradiction(buyer: "Buyer") -> None:
    if buyer.stopped == CONTRADICTION:
        name, on = buyer.plan.name, buyer.executor.name
        raise StoppedError(f"to go on all the same: scaling submit {name} --on {on} --go-on")
