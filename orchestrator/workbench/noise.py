"""Measures what rounding does to the loss of a run, by repeating it with other threads, kernels and micro-batches."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.display.progress import make_display
from orchestrator.errors import InputError, StoppedError
from orchestrator.execution import submission
from orchestrator.executors.local import LocalExecutor
from orchestrator.planning.plan import plan_run
from orchestrator.standing.lookup import find_run
from orchestrator.standing.noise import Noise, executions, measured, repeat_of
from xlstm.quantities import compact, duration
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.executor import PlannedRun
from xlstm.run.records import State
from xlstm.run.spec import Execution, RunSpec

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Repeats:
    """The repeats of a run that have not been made yet, and what they cost."""

    run: RunDirectory
    spec: RunSpec
    missing: Mapping[str, Execution]
    """How each is carried out, by its name."""
    device_hours: float
    """Of all of them, at the speed of the run itself."""

    @property
    def summary(self) -> str:
        """What there is to do, in a line."""
        count, physics = len(self.missing), self.spec.physics
        return (
            f"{self.run.run_id}: {count} repeat{'s' if count > 1 else ''} with other {', '.join(self.missing)}; "
            f"{compact(count * physics.steps * physics.batch_tokens)} tokens, "
            f"about {duration(self.device_hours * 3600)} of device time"
        )

    def carry_out(self, console: "Console") -> Noise:
        """Train what is missing, one repeat after the other, and say what all of them tell.

        StoppedError where a repeat does not complete; KeyboardInterrupt as `submission.submit`.
        """
        for name, execution in self.missing.items():
            repeat = repeat_of(self.run, name)
            self._train(repeat, self.spec.model_copy(update={"execution": execution}), console, name)
        noise = measured(self.run)
        if noise is None:
            raise StoppedError(f"{self.run.run_id}: the repeats were trained on another text than the run")
        return noise

    def _train(self, repeat: RunDirectory, spec: RunSpec, console: "Console", name: str) -> None:
        workspace = repeat.workspace
        workspace.runs.mkdir(parents=True, exist_ok=True)
        if not workspace.data.is_symlink():
            workspace.data.symlink_to(os.path.relpath(self.run.workspace.data, workspace.root))
        display = make_display(console, name, [plan_run(spec, workspace).document()])
        try:
            statuses = submission.submit(
                workspace, name, [PlannedRun(spec)], LocalExecutor(), console, display, tracked=False
            )
        except ValueError as error:  # this machine can never hold it
            raise InputError(str(error)) from None
        (status,) = statuses.values()
        if status.state is not State.COMPLETED:
            raise StoppedError(f"{self.run.run_id}: the repeat with other {name} is {status.state}: {status.reason}")
        workspace.data.unlink()
        shutil.rmtree(repeat.checkpoints, ignore_errors=True)  # of a repeat its loss is wanted, and nothing else


def plan_repeats(workspace: Workspace, name: str) -> Repeats:
    """The repeats of a run that are missing. InputError where it is not complete, or its text has drifted."""
    run = find_run(workspace, name)
    spec, result = run.spec(), run.result()
    if result is None or not result.answers(spec):
        raise InputError(f"{run.run_id} is not complete; what rounding does to its loss is measured when it is")
    submission.refuse_drift(workspace, [spec])
    launch = run.launch(result.attempts)
    execution = launch.execution if launch is not None else spec.execution
    hours = result.device_hours
    if result.tokens_per_second:
        hours = result.tokens / result.tokens_per_second / 3600 * execution.devices_taken
    missing = {
        name: wanted
        for name, wanted in executions(spec, execution).items()
        if not repeat_of(run, name).is_complete(spec)
    }
    return Repeats(run, spec, missing, len(missing) * hours)
