"""What `scaling plan` and `scaling submit` do, from Python: `Sweep.load(path).plan().submit(on="local")`.

`from orchestrator import Sweep` is the way in. Mistakes raise what the command line says in a line: `SweepError` for a
sweep, `InputError` for the rest.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.planning.layouts import Check, check
from orchestrator.planning.plan import Plan as PlannedSweep
from orchestrator.planning.plan import make_plan
from orchestrator.standing.lookup import writable_workspace
from orchestrator.standing.status import SweepStanding, look
from orchestrator.workbench.submit import submit
from sweeps.sweep import Sweep as SweepInFile
from xlstm.run.directory import Workspace

if TYPE_CHECKING:
    import polars as pl


class Sweep(SweepInFile):
    """A valid sweep that can be planned."""

    def plan(self, workspace: str | Path | None = None) -> "Plan":
        """Plan it against a workspace, by default $SCALING_WORKSPACE or ./workspace; nothing is written.

        SweepError where it does not make valid runs.
        """
        where = Workspace.default() if workspace is None else Workspace(Path(workspace).absolute())
        made = make_plan(self, where)
        return Plan(made.sweep, made.workspace, made.runs, made.rates_by_law)


class Plan(PlannedSweep):
    """A plan that can be checked and carried out."""

    def to_frame(self) -> "pl.DataFrame":
        """A row per run in the order in which they start: what it is, the axes that vary, and what it costs."""
        import polars as pl

        from orchestrator.display.tables import swept

        rows = self.document()["runs"]
        axes = [axis for axis in swept(rows) if axis != "size"]
        kept = ("run_id", "model", "size", "seed", "tokens", "steps", "learning_rate", "device_hours", "state")
        return pl.DataFrame(
            [
                {name: row[name] for name in kept}
                | {axis: row["point"].get(axis) for axis in axes}
                | {"parameters": row["parameters"]["total"], "flops": row["flops"]["exact"]}
                for row in rows
            ]
        )

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>{self.to_frame()._repr_html_()}"

    def check(self) -> Check:
        """Build every distinct layout of what is missing, without a device."""
        return check(self)

    def submit(self, on: str = "local", *, quiet: bool = False, replace: bool = False) -> SweepStanding:
        """Run what is missing on `local`, `ray` or `slurm`, and say how the sweep stands then.

        Returns when every run has ended; with `slurm` at once, for the jobs go on by themselves. Called again, it
        continues. With `replace`, runs of the submitted sweep of this name that are not in the plan no longer belong to
        it. InputError where there are such runs without it, or where data or engine refuse; KeyboardInterrupt after
        every trainer left a checkpoint.
        """
        from rich.console import Console

        writable_workspace(self.workspace)
        submit(self, on, Console(markup=False, quiet=quiet), replace=replace)
        return look(self.workspace, self.name)
