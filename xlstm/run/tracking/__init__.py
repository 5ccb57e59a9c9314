"""MLflow as a view of the run directories: `sync` makes it equal the files, however often it is called.

Experiment = sweep; parent run = the sweep; child run = run, found by its tag `run_id`, one per (sweep, run) across
attempts. The step axis is the optimizer step. A cursor beside the metrics says what was shipped; MLflow's history only
grows, so after a rollback of shipped rows the child is replaced. Calls are short, nothing is raised: what happened is
returned. mlflow is imported when first needed.
"""

import contextlib
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from xlstm.run import metrics
from xlstm.run.directory import RunDirectory
from xlstm.run.json_files import DamagedFileError
from xlstm.run.records import Result, State, Status, write_json
from xlstm.run.spec import RunSpec
from xlstm.run.tracking import embedded
from xlstm.run.tracking.bulk import Child, Point
from xlstm.run.tracking.child import Standing, began, dataset_of, owner, params_of, points_of, standing_of
from xlstm.run.tracking.cursor import OWN, Cursor, cursor_file_of, cursor_name, exclusive, read_cursor
from xlstm.run.tracking.embedded import lies_with
from xlstm.run.tracking.secrets import masked
from xlstm.run.tracking.store import Place, client_of


@dataclass(frozen=True)
class Synced:
    """What a call of `sync` did."""

    ok: bool
    message: str
    child: str | None = None
    """MLflow's id of the child run."""
    rows: int = 0
    """Rows of metrics shipped by this call."""
    damage: str = ""
    """What of the run is damaged and could not be shipped: the store is not to blame."""


_AT_ONCE = 50
"""Runs whose children are written to the workspace's own store as one transaction."""
_Shipping: TypeAlias = Generator[Child, str, Synced]
"""Ships a run; waits for MLflow's id of a child that is to be made."""


def sync(run: RunDirectory, sweep: str, tracking_uri: str) -> Synced:
    """Ship what MLflow lacks of a run. Takes seconds at most; never raises for a store that is away or slow.

    Nothing is shipped of a run that was never begun, or whose folder was deleted, nor is anything made there.
    """
    return next(sync_all([run], Place(sweep, tracking_uri, run.workspace.artifacts)))


def sync_all(runs: Sequence[RunDirectory], place: Place) -> Iterator[Synced]:
    """As `sync`, of one run after another; in the workspace's own store many are logged as one transaction."""
    at_once = _AT_ONCE if place.own else 1
    for first in range(0, len(runs), at_once):
        yield from _sync_at_once(runs[first : first + at_once], place)


def _sync_at_once(runs: Sequence[RunDirectory], place: Place) -> Iterator[Synced]:
    """Prepare each run, log what is new as one transaction, then keep the files of each and how far it was followed."""
    begun = [(shipping, _step(shipping)) for shipping in (_shipping(run, place) for run in runs)]
    new = [met for _, met in begun if isinstance(met, Child)]
    made: Iterator[str] = iter(())
    with contextlib.suppress(Exception):  # then each by itself: one that cannot be logged keeps no other from it
        made = iter((len(new) > 1 and place.make_all(new)) or ())
    for shipping, met in begun:
        if isinstance(met, Child):
            try:
                met = _step(shipping, next(made, None) or place.make(met))
            except Exception as error:
                met = _step(shipping, error)
        assert isinstance(met, Synced)  # no run has two children
        yield met


def _step(shipping: _Shipping, made: str | Exception | None = None) -> Child | Synced:
    """Go on with what became of the child asked for last; returns the next one to be made, or what was done."""
    try:
        if isinstance(made, Exception):
            return shipping.throw(made)
        return next(shipping) if made is None else shipping.send(made)
    except StopIteration as end:
        done: Synced = end.value
        return done


def _shipping(run: RunDirectory, place: Place) -> _Shipping:
    if not run.spec_file.exists() and not run.attempt_numbers():
        return Synced(True, f"{run.run_id}: there is nothing of it yet")
    try:
        if (child := _unchanged(run, place)) is not None:
            return Synced(True, f"{run.run_id}: 0 rows shipped", child)
        with exclusive(run, place) as cursor_file:
            if cursor_file is None:
                return Synced(True, "another process is shipping this run")
            return (yield from _sync(run, place, cursor_file))
    except DamagedFileError as error:
        return Synced(True, str(error), damage=str(error))
    except Exception as error:  # the view must not disturb the truth: whatever MLflow raises is reported
        return Synced(False, f"{run.run_id}: {type(error).__name__}: {_first_line(error)}")


def open_store(tracking_uri: str, artifacts: Path | None = None) -> str | None:
    """Initialise a store once, before others use it: a fresh SQLite file made by two processes at once loses runs.

    Returns None, or what is wrong. `artifacts` is where a new experiment of an embedded store keeps its files.
    """
    if artifacts is not None and embedded.is_ready(tracking_uri, artifacts):
        return None
    try:
        client_of(tracking_uri, artifacts).search_experiments(max_results=1)
    except Exception as error:
        return f"{masked(tracking_uri)}: {type(error).__name__}: {_first_line(error)}{remedy(tracking_uri, error)}"
    return None


def remedy(tracking_uri: str, error: Exception) -> str:
    """What helps against a SQLite file that is damaged; empty where the error says nothing of the kind."""
    damaged = any(words in str(error) for words in ("file is not a database", "malformed", "unable to open database"))
    told = "; move it out of the way: `scaling sync` makes it anew from the run directories"
    return told if tracking_uri.startswith("sqlite:") and damaged else ""


def publish(
    place: Place,
    files: Mapping[str, str | Path],
    *,
    ended: bool,
    stamp: str = "",
    points: Sequence[Point] = (),
    description: str = "",
    notes: str = "",
) -> str | None:
    """Put texts and files among the artifacts of a sweep's parent run, replacing what was there.

    `files` maps names of artifacts to a text, or to a file that is called the same. `description`, in Markdown, is
    shown with the parent run; images in it are names of artifacts. `notes` describe the experiment. `stamp` tells what
    all this was made from: it is kept with the parent, for `is_published`. `points` are metrics of the sweep.

    `ended` says whether all runs have ended, which the parent run shows. Returns None, or what is wrong.
    """
    try:
        client, parent = place.client, place.parent
        for name, content in files.items():
            place.keep(parent, name, content)
        if description:
            shown = description.replace("](", f"](get-artifact?run_id={parent}&path=")
            client.set_tag(parent, "mlflow.note.content", shown)
        if notes:
            client.set_experiment_tag(place.experiment, "mlflow.note.content", notes)
        if ended:
            client.set_terminated(parent, "FINISHED")
        else:
            client.update_run(parent, "RUNNING")
        place.log_points(parent, points)
        client.set_tag(parent, embedded.PUBLISHED, stamp)
    except Exception as error:  # as in sync
        return f"{place.sweep}: {type(error).__name__}: {_first_line(error)}"
    return None


def is_published(place: Place, stamp: str) -> bool:
    """Whether the parent run shows what is made from `stamp`, as far as that is known without importing mlflow."""
    return place.shown is not None and place.shown.published == stamp


def log_artifact(sweep: str, tracking_uri: str, path: Path, artifacts: Path) -> str | None:
    """Keep a file with a sweep's parent run. Returns None, or what is wrong: the view must not disturb its reader."""
    try:
        place = Place(sweep, tracking_uri, artifacts)
        place.keep(place.parent, path.name, path)
    except Exception as error:
        return f"{masked(tracking_uri)}: {type(error).__name__}: {_first_line(error)}"
    return None


def forget(run: RunDirectory, tracking_uri: str) -> None:
    """Delete the children of a run that is about to be deleted, as far as the store can be reached."""
    own = lies_with(tracking_uri, run.workspace.artifacts)
    for path in run.cursors.glob("*.json"):
        cursor = read_cursor(path)
        if cursor is not None and cursor.tracking_uri == (OWN if own else masked(tracking_uri)):
            with contextlib.suppress(Exception):  # the view must not keep anybody from deleting the truth
                client_of(tracking_uri, run.workspace.artifacts).delete_run(cursor.child)


def forget_sweep(sweep: str, tracking_uri: str, artifacts: Path) -> None:
    """Delete the experiment of a sweep from the workspace's own store; a shared one may hold runs of others."""
    if lies_with(tracking_uri, artifacts) and Path(tracking_uri.removeprefix("sqlite:///")).exists():
        client = client_of(tracking_uri, artifacts)
        if (found := client.get_experiment_by_name(sweep)) is not None and found.lifecycle_stage == "active":
            client.delete_experiment(found.experiment_id)


def _unchanged(run: RunDirectory, place: Place) -> str | None:
    """The child of a run of which everything was shipped to the workspace's own store; None where that is not known."""
    if not place.active or (cursor := read_cursor(cursor_file_of(run, place))) is None:
        return None
    return cursor.child if cursor.child in place.active and cursor.files == files_stamp(run) else None


def files_stamp(run: RunDirectory) -> str:
    """Changes with whatever of a run is shipped: its state, its result and its metrics."""
    said = []
    for path in (run.status_file, run.result_file, run.metrics_file):
        try:
            found = os.stat(path)
            said.append(f"{found.st_mtime_ns}/{found.st_size}")
        except OSError:
            said.append("-")
    return " ".join(said)


def _sync(run: RunDirectory, place: Place, cursor_file: Path) -> _Shipping:
    files = files_stamp(run)
    status, spec, result = run.status(), run.spec(), run.result()
    cursor = read_cursor(cursor_file)
    if cursor is None and place.own:
        cursor = _earlier_cursor(run, place)
    start = cursor.offset if cursor else 0
    rows, end, rolled_back_to, damage = _new_rows(run, start)
    if cursor is not None and not _follows(place, cursor.child, run):
        cursor = None
    elif cursor is not None and rolled_back_to is not None and rolled_back_to < cursor.last_step:
        place.client.delete_run(cursor.child)
        cursor = None
    if cursor is None:
        if status.state in (State.PLANNED, State.QUEUED) and began(run) is None:
            # MLflow takes the start of a run when it is made, and no correction: it is made once it has begun.
            assert place.parent  # its sweep is there already
            return Synced(True, f"{run.run_id}: has not begun")
        if start:
            rows, end, _, damage = _new_rows(run, 0)
        cursor = yield from _make(run, spec, place, standing_of(run, status, spec, result), points_of(rows))
        cursor = cursor.model_copy(update={"state": _describe_state(status, result)})
    elif rows:
        place.log_points(cursor.child, points_of(rows))
    last = max([cursor.last_step, *(row["step"] for row in rows)])
    state = _describe_state(status, result)
    shipped = cursor.model_copy(update={"offset": end, "last_step": last})
    if state != cursor.state:
        write_json(cursor_file, shipped.model_dump(), private=True)
        _write_standing(place, cursor.child, standing_of(run, status, spec, result))
    shipped = shipped.model_copy(update={"state": state, "files": "" if damage else files})
    if shipped != cursor or not cursor_file.exists():
        write_json(cursor_file, shipped.model_dump(), private=True)
    return Synced(True, f"{run.run_id}: {len(rows)} rows shipped", cursor.child, len(rows), damage)


def is_child(tags: Mapping[str, str], run: RunDirectory, tracking_uri: str) -> bool:
    """Whether a child of these tags shows the run of this directory, and not that of another workspace."""
    own = lies_with(tracking_uri, run.workspace.artifacts)
    return tags.get("directory") in {_directory(run, own), str(run.path)}


def _earlier_cursor(run: RunDirectory, place: Place) -> Cursor | None:
    """The cursor of the workspace's own store as it was named before: by where the workspace lay then.

    Children that a move has doubled are deleted.
    """
    found = []
    for path in run.cursors.glob("*.json"):
        cursor = read_cursor(path)
        if (
            cursor is not None
            and Path(cursor.tracking_uri).name == "mlflow.db"
            and path.stem == cursor_name(cursor.tracking_uri, place.sweep)
            and _follows(place, cursor.child, run)
        ):
            found.append(cursor)
    if not found:
        return None
    latest = max(found, key=lambda cursor: cursor.last_step)
    for other in place.client.search_runs([latest.experiment], f"tags.run_id = '{run.run_id}'"):
        if other.info.run_id != latest.child:
            place.client.delete_run(other.info.run_id)
    place.client.set_tag(latest.child, "directory", _directory(run, own=True))
    return latest.model_copy(update={"tracking_uri": OWN})


def _follows(place: Place, child: str, run: RunDirectory) -> bool:
    """Whether a child is there, and is that of this directory and not of one that it was copied from.

    Of a directory that was moved the child says from now on where it is.
    """
    if child in place.active:
        return True
    from mlflow.exceptions import MlflowException

    try:
        found = place.client.get_run(child)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    if found.info.lifecycle_stage != "active":
        return False  # deleted by hand
    directory = found.data.tags.get("directory")
    if place.own or not directory or directory == str(run.path):
        return True
    origin = RunDirectory(Path(directory))
    if origin.spec_file.exists() and not origin.path.samefile(run.path):
        return False
    place.client.set_tag(child, "directory", _directory(run, own=False))
    return True


def _directory(run: RunDirectory, own: bool) -> str:
    """What a child says of where its run lies: within the workspace, or, in a store of many workspaces, absolutely."""
    return str(run.path.relative_to(run.workspace.root)) if own else str(run.path)


def _make(
    run: RunDirectory, spec: RunSpec, place: Place, standing: Standing, points: Sequence[Point]
) -> Generator[Child, str, Cursor]:
    """The child of (sweep, run), new. It replaces children of this directory whose cursor was lost."""
    for earlier, directory in place.children(run.run_id):
        if not place.own and directory != str(run.path):
            continue  # another workspace tracks its own run of this name on the same server
        place.client.delete_run(earlier)
    tags = {"mlflow.parentRunId": place.parent, "run_id": run.run_id, "sweep": place.sweep, "kind": "run"}
    tags |= {"mlflow.source.name": f"scaling submit {place.sweep}", "mlflow.source.type": "LOCAL"}
    tags |= {"directory": _directory(run, place.own), **owner(run), **spec.presentation.tags}
    tags |= {"mlflow.note.content": spec.presentation.notes} | standing.tags
    params = {key: str(value)[:6000] for key, value in params_of(spec).items()} | standing.params
    start = began(run)
    started = int(start * 1000) if start else None
    about = (run.run_id, standing.status, started, standing.end, dataset_of(spec))
    child = yield Child(*about, tags=tags, params=params, points=points)
    _keep_files(place, child, standing)
    uri = OWN if place.own else masked(place.tracking_uri)
    return Cursor(tracking_uri=uri, experiment=place.experiment, child=child)


def _write_standing(place: Place, child: str, standing: Standing) -> None:
    from mlflow.entities import Param, RunTag

    params, tags = standing.params, standing.tags
    place.client.log_batch(
        child, params=[Param(*item) for item in params.items()], tags=[RunTag(*item) for item in tags.items()]
    )
    place.end(child, standing.status, standing.end)
    _keep_files(place, child, standing)


def _keep_files(place: Place, child: str, standing: Standing) -> None:
    for name, content in standing.files.items():
        place.keep(child, name, content)


def _new_rows(run: RunDirectory, offset: int) -> tuple[list[dict[str, Any]], int, int | None, str]:
    """Surviving rows written after `offset`, the offset up to which was read, and the lowest step rolled back to.

    Where another evaluation replaced what was measured, that is all of them: -1. At last, which lines were left out.
    """
    rows, end, damage = metrics.read_added(run.metrics_file, offset)
    steps = [row["step"] if row["event"] == "resume" else -1 for row in rows if row.get("event") in _REPLACING]
    return metrics.surviving(rows), end, min(steps, default=None), str(damage or "")


_REPLACING = ("resume", "evaluation")
"""Events after which rows written before them no longer count."""


def _describe_state(status: Status, result: Result | None) -> str:
    return f"{status.state.value} {status.attempt} {status.reason} {result is not None} with provenance"


def _first_line(error: BaseException) -> str:
    return masked((str(error).strip().splitlines() or ["no message"])[0])
