"""What the verbs of the command line share: arguments, output, and errors in one line."""

import errno
import json
import math
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from orchestrator.planning.plan import Plan
    from xlstm.run.directory import Workspace

BAD_INPUT = 2
A_RUN_FAILED = 1
INTERRUPTED = 130

SweepArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep file, or the name of a shipped sweep.")]
NameArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="Name (or file) of a sweep that was submitted.")]
OptionalNameArgument = Annotated[
    str | None, typer.Argument(metavar="[SWEEP]", help="Name (or file) of a submitted sweep; all of them if left out.")
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run id, or an unambiguous part of one.")]
TargetArgument = Annotated[str, typer.Argument(metavar="SWEEP|RUN", help="A submitted sweep, or a run.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
OnOption = Annotated[str, typer.Option(metavar="local|ray|slurm", help="Where to run it.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Lay a value over the sweep, such as grid.seed=[0,1]."),
]


OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="The same as --set KEY=VALUE.", show_default=False)
]


RefreshLawOption = Annotated[
    bool, typer.Option("--refresh-law", help="Take rates by `learning_rate: law` anew; the plan keeps them otherwise.")
]


def plan_sweep(sweep: str, *given: list[str] | None, refresh_law: bool = False) -> "Plan":
    """The plan of a sweep under the overrides that were given, one after the other."""
    from orchestrator.planning.plan import make_plan
    from orchestrator.workbench.adaptive.submit import refuse_unknown_form
    from orchestrator.workbench.slurm import refuse_unknown_settings
    from sweeps.sweep import SHIPPED, Sweep

    workspace = workspace_here()
    kept = workspace.sweep(sweep).sweep_file
    known = kept if kept.is_file() and not (SHIPPED / f"{sweep}.yaml").exists() else sweep
    loaded = Sweep.load(known, [one for overrides in given for one in overrides or ()])
    made = make_plan(loaded, workspace, refresh_law=refresh_law)
    refuse_unknown_form(made.sweep)
    refuse_unknown_settings(made.sweep)
    return made


def is_sweep(target: str) -> bool:
    """Whether a sweep is named, by a file, as one that was submitted or as one that we ship, and no run."""
    from sweeps.located import SweepError
    from sweeps.sweep import find

    if workspace_here().sweep(target).sweep_file.is_file() or Path(target).suffix in (".yaml", ".yml", ".json"):
        return True
    try:
        return find(target).is_file()
    except SweepError:
        return False


def sweep_name(sweep: str) -> str:
    """The name of a sweep given by name or by file."""
    from sweeps.sweep import Sweep

    return Sweep.load(sweep).name if Path(sweep).suffix in (".yaml", ".yml", ".json") else sweep


def workspace_here() -> "Workspace":
    from xlstm.run.directory import Workspace

    return Workspace.default()


def make_console() -> "Console":
    from rich.console import Console

    console = Console(markup=False)
    # Piped into a file or a program, a table keeps its columns instead of folding them into 80.
    return console if console.is_terminal else Console(markup=False, width=200)


def width_of(console: "Console") -> int | None:
    """Within how many characters a table has to be readable; None where nobody reads it on a terminal."""
    return console.width if console.is_terminal else None


def print_json(document: Any) -> None:
    """Print JSON; null stands for a number that is not finite, which JSON has not."""
    print(json.dumps(_finite(document), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class OneLineErrors(TyperGroup):
    """Verbs that say what a person can put right in a line each, without a traceback, and end with exit code 2.

    What stopped a submission from outside is said as well, and ends with 1.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.Exit:  # after --help nothing is to be imported
            raise
        except Exception as error:
            if (told := _in_a_line(error)) is None:
                raise
            line, code = told
        print(line, file=sys.stderr)
        raise typer.Exit(code)


def _in_a_line(error: Exception) -> tuple[str, int] | None:
    """What is said of an error, and the exit code; None for one that nobody but us can put right."""
    from orchestrator.errors import InputError, StoppedError
    from sweeps.located import SweepError
    from xlstm.run.json_files import DamagedFileError

    if isinstance(error, InputError | SweepError | DamagedFileError):
        return str(error), BAD_INPUT
    if isinstance(error, StoppedError):
        return str(error), A_RUN_FAILED
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _TRAINING:
        return f"{error.name} is not installed: this needs more than laws do, {_TRAIN_EXTRA}", BAD_INPUT
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _DISK):
        where = error.filename or workspace_here().root
        return (
            f"{where}: {error.strerror}; make room or give the right to write there, and do the same again",
            BAD_INPUT,
        )
    return None


_TRAINING = frozenset({"torch", "triton", "numba", "mlflow", "tokenizers", "safetensors", "psutil"})
_TRAIN_EXTRA = "in a checkout: pip install -c constraints.txt '.[train]'"


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@contextmanager
def interruption(console: "Console", again: str) -> "Iterator[None]":
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"stopped; what was trained is kept in checkpoints. Continue with: {again}", highlight=False)
        raise typer.Exit(INTERRUPTED) from None
