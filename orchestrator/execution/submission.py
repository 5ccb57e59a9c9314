"""A submission: prepare the data once, carry out what is missing, show it, and ship it to MLflow meanwhile.

`submit` is what `scaling submit` and `scaling train` do with a plan. Everything it needs to continue after its own
death lies in the run directories.
"""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console

from orchestrator.errors import InputError, StoppedError
from orchestrator.execution.controller import Controller, Event, Happening
from orchestrator.execution.lock import sole_controller
from orchestrator.execution.shipping import LiveFit, Shipper
from xlstm.data import open_prepared, prepare
from xlstm.data.preparation import data_folder
from xlstm.evaluation.kinds import check
from xlstm.run.directory import Workspace
from xlstm.run.executor import Executor, PlannedRun
from xlstm.run.json_files import DamagedFileError
from xlstm.run.records import Status
from xlstm.run.spec import RunSpec

_ENDING = (signal.SIGTERM, signal.SIGHUP)


class Display(Protocol):
    """What a submission tells of itself. A context: nothing is drawn outside it."""

    def __enter__(self) -> "Display": ...
    def __exit__(self, *error: Any) -> None: ...
    def happened(self, event: Event) -> None:
        """Something happened to a run."""
        ...

    def refresh(self) -> None:
        """Called about twice a second."""
        ...


class Choice(Protocol):
    """Which of the runs of a submission are carried out, where that is decided while they are."""

    def begin(self) -> Sequence[PlannedRun]:
        """Those decided upon before; called once nobody else carries out the sweep."""
        ...

    def __call__(self) -> Sequence[PlannedRun]:
        """Those to be carried out as well, as `Controller.more`."""
        ...


def submit(
    workspace: Workspace,
    name: str,
    runs: Sequence[PlannedRun],
    executor: Executor,
    console: Console,
    display: Display,
    live_fit: LiveFit | None = None,
    *,
    tracked: bool = True,
    choice: Choice | None = None,
    doomed: Callable[[], Mapping[str, str]] = dict,
) -> dict[str, Status]:
    """Carry out `runs` of the sweep `name`, told on `display`; returns the status of every run that was carried out.

    With a `choice`, those of `runs` that it says, when it says so. Those that are `doomed` are pruned.

    `live_fit` is called in the background as runs complete, for the sweep's parent run in MLflow; of runs that are not
    `tracked`, MLflow learns nothing.

    InputError where the data cannot be prepared; StoppedError where the workspace is gone, full or cannot be written,
    when every trainer has ended. KeyboardInterrupt, after every trainer has left a checkpoint, when the
    submission is stopped by Ctrl-C, SIGTERM or SIGHUP.
    """
    with _ending_as_interrupt(), sole_controller(workspace, name, executor.name, console):
        for run in runs:
            # Before anything takes time: what is cancelled from here on is not started.
            workspace.run(run.run_id).withdraw_cancel()
        specs = [run.spec for run in runs]
        prepare_data(workspace, specs, console)
        refuse_drift(workspace, specs)
        prepare_evaluations(workspace, specs, console)
        shipping = Shipper(workspace, name, live_fit) if tracked else nullcontext()
        with shipping as shipper, display:

            def watch(event: Event) -> None:
                if shipper is not None:
                    shipper.touch(event.run, live=event.what is Happening.STARTED)
                display.happened(event)

            more = choice or (lambda: ())
            try:
                begun = runs if choice is None else choice.begin()
                controller = Controller(workspace, executor, begun, watch, display.refresh, more, doomed)
                statuses = controller()
            except (OSError, DamagedFileError) as error:
                said = str(error)
                if isinstance(error, OSError):
                    where = error.filename or workspace.root
                    said = f"{where}: {error.strerror or error}; put that right and submit again: it continues"
                raise StoppedError(f"{name} was stopped, and its trainers have ended: {said}") from None
        if shipper is not None and shipper.complaint:
            console.print(
                f"MLflow could not be written ({shipper.complaint}); `scaling sync` makes up for it", style="yellow"
            )
        return statuses


def prepare_data(
    workspace: Workspace, specs: Sequence[RunSpec], console: Console, engine: Literal["local", "ray"] = "local"
) -> None:
    """Make the token shards of every corpus the runs train on, once each. InputError where a corpus is at fault."""
    seen: set[Path] = set()
    for spec in specs:
        data = spec.physics.data
        if data.task is not None and data.task.reads and not spec.execution.data_paths:
            raise InputError(f"task {spec.physics.task} reads files, and `data.paths` does not say where they lie")
        folder = data_folder(data, workspace)
        if folder in seen or data.generated is not None:
            continue
        seen.add(folder)
        try:
            manifest = prepare(data, spec.execution.data_paths, workspace, spec.execution.tokenizer_path, engine)
        except (ValueError, OSError) as error:
            raise InputError(f"data {data.corpus}: {error}") from None
        splits = ", ".join(f"{split.tokens:,} tokens to {name}" for name, split in sorted(manifest.splits.items()))
        console.print(f"data: {data.corpus} by {spec.tokenizer_title}: {splits}", highlight=False)
        for line in manifest.taken:
            console.print(f"    {line}", highlight=False, markup=False, soft_wrap=True)


def prepare_evaluations(workspace: Workspace, specs: Sequence[RunSpec], console: Console) -> None:
    """Prepare what missing evaluations read, each text once, and open it as the runs will.

    InputError where one cannot be made of a run; its data are prepared already. What a run cannot do is told.
    """
    checked: set[tuple[str, int | None]] = set()
    for spec in specs:
        run, positions = workspace.run(spec.run_id), getattr(spec.physics.model, "context_length", None)
        for evaluation in run.unmeasured(spec):
            key = (run.measured_file(evaluation, spec).name, positions)
            if key in checked:
                continue
            checked.add(key)
            try:
                notes = check(evaluation, spec, workspace)
            except (ValueError, OSError) as error:
                raise InputError(f"evaluations.{evaluation.name}: {error}") from None
            for note in notes:
                line = f"evaluations.{evaluation.name}: {note}"
                console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)


def refuse_drift(workspace: Workspace, specs: Sequence[RunSpec]) -> None:
    """InputError where runs that are complete were trained on another text than the one prepared under its name.

    The revision of a named corpus is a version; what it holds may differ from machine to machine, and from day to day.
    """
    prepared: dict[Path, str] = {}
    for spec in specs:
        result = workspace.run(spec.run_id).known_result()
        if result is None or spec.physics.data.generated is not None:
            continue
        data = spec.physics.data
        folder = data_folder(data, workspace)
        if not folder.exists():
            continue  # every run on it is complete: nothing new is compared with them
        if folder not in prepared:
            prepared[folder] = open_prepared(data, workspace).manifest.fingerprint
        fingerprint = prepared[folder]
        if result.data_fingerprint != fingerprint:
            raise InputError(
                f"data {data.corpus} {data.revision}: {spec.run_id} was trained on text {result.data_fingerprint}, "
                f"and prepared here is {fingerprint}, so that losses would not compare; bring the earlier text back, "
                "or submit the sweep in another workspace"
            )


def failed(statuses: Mapping[str, Status]) -> list[str]:
    """Runs that ended without a result."""
    return [run_id for run_id, status in statuses.items() if status.state.unsuccessful]


@contextmanager
def _ending_as_interrupt() -> Iterator[None]:
    """A closed terminal or a polite kill ends a submission like Ctrl-C: with checkpoints."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, interrupt) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
