"""MLflow as a view of the run directories: `sync` makes it equal the files, however often it is called.

Experiment = sweep; parent run = the sweep; child run = run, found by its tag `run_id`, one per (sweep, run) across
attempts. The step axis is the optimizer step. A cursor beside the metrics says what was shipped; MLflow's history only
grows, so after a rollback of shipped rows the child is replaced. Calls are short, nothing is raised: what happened is
returned. mlflow is imported when first needed.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlstm.run import metrics
from xlstm.run.directory import RunDirectory
from xlstm.run.json_files import DamagedFileError
from xlstm.run.locks import locked
from xlstm.run.records import Record, Result, State, Status, write_json
from xlstm.run.secrets import masked
from xlstm.run.spec import RunSpec
from xlstm.run.tracking.child import began, log_dataset, log_rows, owner, params_of, write_state
from xlstm.run.tracking.store import client_of, experiment_of, lies_with, parent_of

_ROWS_PER_BATCH = 250
"""Rows of some ten metrics: below the server's limit of 1,000 metrics a batch and half a second of its time."""


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


class _Cursor(Record):
    """How far one (tracking store, sweep) has followed a run."""

    tracking_uri: str
    """Of a server or a shared database, without its password; `_OWN` for the store that lies in the workspace."""
    experiment: str
    child: str
    offset: int = 0
    """Bytes of `metrics.jsonl` that were read."""
    last_step: int = -1
    """Step of the last row shipped."""
    state: str = ""
    """What the tags were written for."""


_OWN = "the workspace's own store"


def sync(run: RunDirectory, sweep: str, tracking_uri: str) -> Synced:
    """Ship what MLflow lacks of a run. Takes seconds at most; never raises for a store that is away or slow.

    Nothing is shipped of a run that was never begun, or whose folder was deleted, nor is anything made there.
    """
    if not run.spec_file.exists() and not run.attempt_numbers():
        return Synced(True, f"{run.run_id}: there is nothing of it yet")
    try:
        with _exclusive(run, sweep, tracking_uri) as cursor_file:
            if cursor_file is None:
                return Synced(True, "another process is shipping this run")
            return _sync(run, sweep, tracking_uri, cursor_file)
    except DamagedFileError as error:
        return Synced(True, str(error), damage=str(error))
    except Exception as error:  # the view must not disturb the truth: whatever MLflow raises is reported
        return Synced(False, f"{run.run_id}: {type(error).__name__}: {_first_line(error)}")


def open_store(tracking_uri: str, artifacts: Path | None = None) -> str | None:
    """Initialise a store once, before others use it: a fresh SQLite file made by two processes at once loses runs.

    Returns None, or what is wrong. `artifacts` is where a new experiment of an embedded store keeps its files.
    """
    try:
        client_of(tracking_uri, artifacts).search_experiments(max_results=1)
    except Exception as error:
        return f"{masked(tracking_uri)}: {type(error).__name__}: {_first_line(error)}"
    return None


def parent_run(sweep: str, tracking_uri: str, artifacts: Path | None = None) -> str:
    """MLflow's id of a sweep's parent run, made if it is missing. Raises what MLflow raises."""
    client = client_of(tracking_uri, artifacts)
    return parent_of(client, experiment_of(client, sweep, artifacts), sweep, artifacts)


def publish(
    sweep: str,
    tracking_uri: str,
    artifacts: Path,
    files: Mapping[str, str | Path],
    *,
    ended: bool,
    description: str = "",
    notes: str = "",
) -> str | None:
    """Put texts and files among the artifacts of a sweep's parent run, replacing what was there.

    `files` maps names of artifacts to a text, or to a file that is called the same. `description`, in Markdown, is
    shown with the parent run; images in it are names of artifacts. `notes` describe the experiment.

    `ended` says whether all runs have ended, which the parent run shows. Returns None, or what is wrong.
    """
    try:
        client = client_of(tracking_uri, artifacts)
        parent = parent_run(sweep, tracking_uri, artifacts)
        for name, content in files.items():
            if isinstance(content, str):
                client.log_text(parent, content, name)
            else:
                client.log_artifact(parent, str(content), str(Path(name).parent) if "/" in name else None)
        if description:
            shown = description.replace("](", f"](get-artifact?run_id={parent}&path=")
            client.set_tag(parent, "mlflow.note.content", shown)
        if notes:
            client.set_experiment_tag(experiment_of(client, sweep, artifacts), "mlflow.note.content", notes)
        if ended:
            client.set_terminated(parent, "FINISHED")
        else:
            client.update_run(parent, "RUNNING")
    except Exception as error:  # as in sync
        return f"{sweep}: {type(error).__name__}: {_first_line(error)}"
    return None


def log_artifact(sweep: str, tracking_uri: str, path: Path, artifacts: Path | None = None) -> str | None:
    """Keep a file with a sweep's parent run. Returns None, or what is wrong: the view must not disturb its reader."""
    try:
        client_of(tracking_uri, artifacts).log_artifact(parent_run(sweep, tracking_uri, artifacts), str(path))
    except Exception as error:
        return f"{masked(tracking_uri)}: {type(error).__name__}: {_first_line(error)}"
    return None


def forget(run: RunDirectory, tracking_uri: str) -> None:
    """Delete the children of a run that is about to be deleted, as far as the store can be reached."""
    own = lies_with(tracking_uri, run.workspace.artifacts)
    for path in run.cursors.glob("*.json"):
        cursor = _read_cursor(path)
        if cursor is not None and cursor.tracking_uri == (_OWN if own else masked(tracking_uri)):
            with contextlib.suppress(Exception):  # the view must not keep anybody from deleting the truth
                client_of(tracking_uri, run.workspace.artifacts).delete_run(cursor.child)


def forget_sweep(sweep: str, tracking_uri: str, artifacts: Path) -> None:
    """Delete the experiment of a sweep from the workspace's own store; a shared one may hold runs of others."""
    if lies_with(tracking_uri, artifacts) and Path(tracking_uri.removeprefix("sqlite:///")).exists():
        client = client_of(tracking_uri, artifacts)
        if (found := client.get_experiment_by_name(sweep)) is not None and found.lifecycle_stage == "active":
            client.delete_experiment(found.experiment_id)


def _sync(run: RunDirectory, sweep: str, tracking_uri: str, cursor_file: Path) -> Synced:
    artifacts = run.workspace.artifacts
    own = lies_with(tracking_uri, artifacts)
    client = client_of(tracking_uri, artifacts)
    status, spec, result = run.status(), run.spec(), run.result()
    cursor = _read_cursor(cursor_file)
    if cursor is None and own:
        cursor = _earlier_cursor(client, run, sweep)
    rows, end, rolled_back_to, damage = _new_rows(run, cursor.offset if cursor else 0)
    if cursor is not None and not _follows(client, cursor.child, run, own):
        cursor = None
    elif cursor is not None and rolled_back_to is not None and rolled_back_to < cursor.last_step:
        client.delete_run(cursor.child)
        cursor = None
    if cursor is None:
        if status.state in (State.PLANNED, State.QUEUED) and began(run) is None:
            # MLflow takes the start of a run when it is made, and no correction: it is made once it has begun.
            parent_of(client, experiment_of(client, sweep, artifacts), sweep, artifacts)
            return Synced(True, f"{run.run_id}: has not begun")
        cursor = _adopt_or_create(client, run, spec, sweep, tracking_uri, artifacts)
        rows, end, _, damage = _new_rows(run, 0)
    for start in range(0, len(rows), _ROWS_PER_BATCH):
        log_rows(client, cursor.child, rows[start : start + _ROWS_PER_BATCH])
    last = max([cursor.last_step, *(row["step"] for row in rows)])
    state = _describe_state(status, result)
    if rows or state != cursor.state or not cursor_file.exists():
        cursor = cursor.model_copy(update={"offset": end, "last_step": last})
        write_json(cursor_file, cursor.model_dump(), private=True)
    if state != cursor.state:
        write_state(client, cursor.child, run, status, spec, result)
        write_json(cursor_file, cursor.model_copy(update={"state": state}).model_dump(), private=True)
    return Synced(True, f"{run.run_id}: {len(rows)} rows shipped", cursor.child, len(rows), damage)


def is_child(tags: Mapping[str, str], run: RunDirectory, tracking_uri: str) -> bool:
    """Whether a child of these tags shows the run of this directory, and not that of another workspace."""
    own = lies_with(tracking_uri, run.workspace.artifacts)
    return tags.get("directory") in {_directory(run, own), str(run.path)}


def _earlier_cursor(client: Any, run: RunDirectory, sweep: str) -> _Cursor | None:
    """The cursor of the workspace's own store as it was named before: by where the workspace lay then.

    Children that a move has doubled are deleted.
    """
    found = []
    for path in run.cursors.glob("*.json"):
        cursor = _read_cursor(path)
        if (
            cursor is not None
            and Path(cursor.tracking_uri).name == "mlflow.db"
            and path.stem == _cursor_name(cursor.tracking_uri, sweep)
            and _follows(client, cursor.child, run, own=True)
        ):
            found.append(cursor)
    if not found:
        return None
    latest = max(found, key=lambda cursor: cursor.last_step)
    for other in client.search_runs([latest.experiment], f"tags.run_id = '{run.run_id}'"):
        if other.info.run_id != latest.child:
            client.delete_run(other.info.run_id)
    client.set_tag(latest.child, "directory", _directory(run, own=True))
    return latest.model_copy(update={"tracking_uri": _OWN})


def _follows(client: Any, child: str, run: RunDirectory, own: bool) -> bool:
    """Whether a child is there, and is that of this directory and not of one that it was copied from.

    Of a directory that was moved the child says from now on where it is.
    """
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_run(child)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    if found.info.lifecycle_stage != "active":
        return False  # deleted by hand
    directory = found.data.tags.get("directory")
    if own or not directory or directory == str(run.path):
        return True
    origin = RunDirectory(Path(directory))
    if origin.spec_file.exists() and not origin.path.samefile(run.path):
        return False
    client.set_tag(child, "directory", _directory(run, own=False))
    return True


def _directory(run: RunDirectory, own: bool) -> str:
    """What a child says of where its run lies: within the workspace, or, in a store of many workspaces, absolutely."""
    return str(run.path.relative_to(run.workspace.root)) if own else str(run.path)


def _adopt_or_create(
    client: Any, run: RunDirectory, spec: RunSpec, sweep: str, tracking_uri: str, artifacts: Path
) -> _Cursor:
    """The child of (sweep, run), new. It replaces children of this directory whose cursor was lost."""
    from mlflow.entities import Param, RunTag

    own = lies_with(tracking_uri, artifacts)
    experiment = experiment_of(client, sweep, artifacts)
    parent = parent_of(client, experiment, sweep, artifacts)
    for earlier in client.search_runs([experiment], f"tags.run_id = '{run.run_id}'"):
        if not own and earlier.data.tags.get("directory") != str(run.path):
            continue  # another workspace tracks its own run of this name on the same server
        client.delete_run(earlier.info.run_id)
    tags = {"mlflow.parentRunId": parent, "run_id": run.run_id, "sweep": sweep, "kind": "run"}
    tags |= {"mlflow.source.name": f"scaling submit {sweep}", "mlflow.source.type": "LOCAL"}
    tags |= {"directory": _directory(run, own), **owner(run), **spec.presentation.tags}
    start = began(run)
    child = client.create_run(
        experiment, start_time=int(start * 1000) if start else None, run_name=run.run_id, tags=tags
    ).info.run_id
    params = [Param(key, str(value)[:6000]) for key, value in params_of(spec).items()]
    client.log_batch(child, params=params, tags=[RunTag("mlflow.note.content", spec.presentation.notes)])
    log_dataset(client, child, spec)
    return _Cursor(tracking_uri=_OWN if own else masked(tracking_uri), experiment=experiment, child=child)


def _new_rows(run: RunDirectory, offset: int) -> tuple[list[dict[str, Any]], int, int | None, str]:
    """Surviving rows written after `offset`, the offset up to which was read, and the lowest step rolled back to.

    Where another evaluation replaced what was measured, that is all of them: -1. At last, which lines were left out.
    """
    rows, end, damage = metrics.read_added(run.metrics_file, offset)
    steps = [row["step"] if row["event"] == "resume" else -1 for row in rows if row.get("event") in _REPLACING]
    return metrics.surviving(rows), end, min(steps, default=None), str(damage or "")


_REPLACING = ("resume", "evaluation")
"""Events after which rows written before them no longer count."""


@contextlib.contextmanager
def _exclusive(run: RunDirectory, sweep: str, tracking_uri: str) -> Iterator[Path | None]:
    """The cursor's file, held by this process alone; None while another holds it."""
    folder = run.cursors
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        raise DamagedFileError(folder, "is no folder, where one belongs", "remove it") from None
    name = _cursor_name(_OWN if lies_with(tracking_uri, run.workspace.artifacts) else tracking_uri, sweep)
    with locked(folder / f"{name}.lock", wait=False) as held:
        yield folder / f"{name}.json" if held else None


def _cursor_name(tracking_uri: str, sweep: str) -> str:
    return hashlib.sha256(f"{tracking_uri}\n{sweep}".encode()).hexdigest()[:12]


def _read_cursor(path: Path) -> _Cursor | None:
    try:
        return _Cursor.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None  # a cursor is worth nothing but time: the child is made anew


def _describe_state(status: Status, result: Result | None) -> str:
    return f"{status.state.value} {status.attempt} {status.reason} {result is not None} with provenance"


def _first_line(error: BaseException) -> str:
    return masked((str(error).strip().splitlines() or ["no message"])[0])
