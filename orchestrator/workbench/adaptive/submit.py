"""Carries out adaptive sweeps. The analysis is imported when one is."""

import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.errors import InputError, StoppedError
from orchestrator.planning.plan import Plan
from orchestrator.standing.decisions import CONTRADICTION, contradictions
from sweeps.located import SweepError
from sweeps.sweep import Sweep
from xlstm.run.executor import Executor, PlannedRun
from xlstm.run.records import Status
from xlstm.run.sweep_directory import Decision

if TYPE_CHECKING:
    from rich.console import Console


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

    assert plan.sweep.file.design is not None
    refuse_unknown_form(plan.sweep)
    buyer = Buyer(plan, executor, console, plan.sweep.file.design)
    display = make_display(console, plan.name, plan.document()["runs"])
    pool = [PlannedRun(run.spec) for run in plan.runs]
    fit = partial(live_fit, plan.workspace, plan.name)
    statuses = submission.submit(plan.workspace, plan.name, pool, executor, console, display, fit, choice=buyer)
    if buyer.stopped == CONTRADICTION:
        raise StoppedError(f"to go on all the same: scaling submit {plan.name} --on {executor.name} --go-on")
    return statuses
