"""MLflow as a view of the run directories: `sync` makes it equal the files, however often it is called.

Experiment = sweep; parent run = the sweep; child run = run, found by its tag `run_id`, one per (sweep, run) across
attempts. The step axis is the optimizer step. A cursor beside the metrics says what was shipped; MLflow's history only
grows, so after a rollback of shipped rows the child is replaced. Calls are short, nothing is raised: what happened is
returned. mlflow is imported when first needed.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from xlstm.accounting import size_label
from xlstm.models.naming import family_label
from xlstm.run import metrics
from xlstm.run.directory import RunDirectory
from xlstm.run.json_files import DamagedFileError, read_json
from xlstm.run.locks import locked
from xlstm.run.model_card import model_card
from xlstm.run.records import Record, Result, State, Status, write_json
from xlstm.run.secrets import masked
from xlstm.run.spec import RunSpec

TIMEOUT_SECONDS = 5
_ROWS_PER_BATCH = 250
"""Rows of some ten metrics: below the server's limit of 1,000 metrics a batch and half a second of its time."""

_STATUS = {
    State.PLANNED: "SCHEDULED",
    State.QUEUED: "SCHEDULED",
    State.RUNNING: "RUNNING",
    State.PREEMPTED: "SCHEDULED",
    State.FAILED: "FAILED",
    State.DIVERGED: "FAILED",
    State.COMPLETED: "FINISHED",
    State.CANCELLED: "KILLED",
}
_ENDED = {"FAILED", "FINISHED", "KILLED"}


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
        _client(tracking_uri, artifacts).search_experiments(max_results=1)
    except Exception as error:
        return f"{masked(tracking_uri)}: {type(error).__name__}: {_first_line(error)}"
    return None


def parent_run(sweep: str, tracking_uri: str, artifacts: Path | None = None) -> str:
    """MLflow's id of a sweep's parent run, made if it is missing. Raises what MLflow raises."""
    client = _client(tracking_uri, artifacts)
    return _parent(client, _experiment(client, sweep, artifacts), sweep, artifacts)


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
        client = _client(tracking_uri, artifacts)
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
            client.set_experiment_tag(_experiment(client, sweep, artifacts), "mlflow.note.content", notes)
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
        _client(tracking_uri, artifacts).log_artifact(parent_run(sweep, tracking_uri, artifacts), str(path))
    except Exception as error:
        return f"{masked(tracking_uri)}: {type(error).__name__}: {_first_line(error)}"
    return None


def _sync(run: RunDirectory, sweep: str, tracking_uri: str, cursor_file: Path) -> Synced:
    artifacts = run.workspace.artifacts
    own = _lies_with(tracking_uri, artifacts)
    client = _client(tracking_uri, artifacts)
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
        if status.state in (State.PLANNED, State.QUEUED) and _began(run) is None:
            # MLflow takes the start of a run when it is made, and no correction: it is made once it has begun.
            _parent(client, _experiment(client, sweep, artifacts), sweep, artifacts)
            return Synced(True, f"{run.run_id}: has not begun")
        cursor = _adopt_or_create(client, run, spec, sweep, tracking_uri, artifacts)
        rows, end, _, damage = _new_rows(run, 0)
    for start in range(0, len(rows), _ROWS_PER_BATCH):
        _log_rows(client, cursor.child, rows[start : start + _ROWS_PER_BATCH])
    last = max([cursor.last_step, *(row["step"] for row in rows)])
    state = _describe_state(status, result)
    if rows or state != cursor.state or not cursor_file.exists():
        cursor = cursor.model_copy(update={"offset": end, "last_step": last})
        write_json(cursor_file, cursor.model_dump(), private=True)
    if state != cursor.state:
        _write_state(client, cursor.child, run, status, spec, result)
        write_json(cursor_file, cursor.model_copy(update={"state": state}).model_dump(), private=True)
    return Synced(True, f"{run.run_id}: {len(rows)} rows shipped", cursor.child, len(rows), damage)


def _lies_with(tracking_uri: str, artifacts: Path | None) -> bool:
    """Whether a store is the embedded one of the workspace that keeps its artifacts there."""
    if artifacts is None or not tracking_uri.startswith("sqlite:///"):
        return False
    return Path(tracking_uri.removeprefix("sqlite:///")).parent.resolve() == artifacts.parent.resolve()


def is_child(tags: Mapping[str, str], run: RunDirectory, tracking_uri: str) -> bool:
    """Whether a child of these tags shows the run of this directory, and not that of another workspace."""
    own = _lies_with(tracking_uri, run.workspace.artifacts)
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

    own = _lies_with(tracking_uri, artifacts)
    experiment = _experiment(client, sweep, artifacts)
    parent = _parent(client, experiment, sweep, artifacts)
    for earlier in client.search_runs([experiment], f"tags.run_id = '{run.run_id}'"):
        if not own and earlier.data.tags.get("directory") != str(run.path):
            continue  # another workspace tracks its own run of this name on the same server
        client.delete_run(earlier.info.run_id)
    tags = {"mlflow.parentRunId": parent, "run_id": run.run_id, "sweep": sweep, "kind": "run"}
    tags |= {"mlflow.source.name": f"scaling submit {sweep}", "mlflow.source.type": "LOCAL"}
    tags |= {"directory": _directory(run, own), **_owner(run), **spec.presentation.tags}
    began = _began(run)
    child = client.create_run(
        experiment, start_time=int(began * 1000) if began else None, run_name=run.run_id, tags=tags
    ).info.run_id
    params = [Param(key, str(value)[:6000]) for key, value in _params(spec).items()]
    client.log_batch(child, params=params, tags=[RunTag("mlflow.note.content", spec.presentation.notes)])
    _log_dataset(client, child, spec)
    return _Cursor(tracking_uri=_OWN if own else masked(tracking_uri), experiment=experiment, child=child)


def _began(run: RunDirectory) -> float | None:
    """When the first attempt was launched, or, of runs that others made, when the first row was written."""
    if (launch := run.launch(1)) is not None:
        return launch.started
    return min((row["time"] for row in run.history() if "time" in row), default=None)


def _ended(run: RunDirectory, status: Status) -> float:
    """When the last attempt ended."""
    verdict = run.verdict(status.attempt)
    return verdict.time if verdict is not None and verdict.time else status.updated


def _owner(run: RunDirectory) -> dict[str, str]:
    try:
        return {"mlflow.user": run.path.owner()}
    except KeyError:
        return {}  # an id without a name, as in a container


def _log_dataset(client: Any, child: str, spec: RunSpec) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = spec.physics.data
    source = json.dumps({"corpus": data.corpus, "revision": data.revision, "tokenizer": data.tokenizer})
    digest = data.revision.removeprefix("sha256:")[:36]  # the longest that MLflow keeps
    dataset = Dataset(name=data.corpus, digest=digest, source_type="corpus", source=source)
    client.log_inputs(child, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _params(spec: RunSpec) -> dict[str, Any]:
    """What an analysis needs of a run that it knows from MLflow alone."""
    physics = spec.physics
    dimensions = physics.model.__dict__ if hasattr(physics.model, "__dict__") else {}
    return {
        "run_id": spec.run_id,
        "family": family_label(physics.model),
        "size": spec.presentation.size or size_label(physics.model),
        "seed": physics.seed,
        "tokens": physics.steps * physics.batch_tokens,
        "steps": physics.steps,
        "batch_tokens": physics.batch_tokens,
        "context_length": physics.data.context_length,
        "corpus": physics.data.corpus,
        "revision": physics.data.revision,
        "tokenizer": physics.data.tokenizer,
        "learning_rate": physics.optimizer.learning_rate,
        "weight_decay": physics.optimizer.weight_decay,
        "schedule": physics.schedule.kind,
        "precision": physics.precision,
        "evaluation": spec.evaluation_fingerprint,
        **{f"model.{key}": value for key, value in dimensions.items()},
    }


def _log_rows(client: Any, child: str, rows: list[dict[str, Any]]) -> None:
    """Each number with the time and step of its row, so that a row shipped twice is one point."""
    from mlflow.entities import Metric

    points = [
        Metric(key, float(value), int(row["time"] * 1000), row["step"])
        for row in rows
        if "time" in row
        for key, value in row.items()
        if key not in {"step", "time", "attempt"} and _is_number(value)
    ]
    for start in range(0, len(points), 1000):
        client.log_batch(child, metrics=points[start : start + 1000])


def _write_state(
    client: Any, child: str, run: RunDirectory, status: Status, spec: RunSpec, result: Result | None
) -> None:
    from mlflow.entities import Param, RunTag

    provenance, card = run.provenance_file(status.attempt), None
    tags = {"state": status.state.value, "reason": status.reason, "attempts": str(status.attempt)}
    params: dict[str, Any] = {}
    if result is not None:
        tags |= {"quality": ",".join(result.quality), "trunk_id": result.trunk_id or ""}
        tags |= {"wall_seconds": f"{result.wall_seconds:.3f}", "device_hours": f"{result.device_hours:.6f}"}
        params = {f"parameters.{key}": value for key, value in result.parameters.model_dump().items()}
        params |= {f"flops.{key}": value for key, value in result.flops.items()}
        params |= {"data_fingerprint": result.data_fingerprint}
        card = model_card(spec, result, run.launch(result.attempts))
        tags |= {"mlflow.note.content": card}  # what the UI shows as the description of the run
    if commit := (read_json(provenance, "delete it") or {}).get("git_revision"):
        tags |= {"mlflow.source.git.commit": commit}
    client.log_batch(
        child,
        params=[Param(key, str(value)) for key, value in params.items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    wanted = _STATUS[status.state]
    if wanted in _ENDED:
        client.set_terminated(child, wanted, int(_ended(run, status) * 1000))
    else:
        client.update_run(child, wanted)
    if provenance.is_file():
        client.log_artifact(child, str(provenance))
    if card is not None:
        client.log_text(child, card, run.model_card_file.name)


def _new_rows(run: RunDirectory, offset: int) -> tuple[list[dict[str, Any]], int, int | None, str]:
    """Surviving rows written after `offset`, the offset up to which was read, and the lowest step rolled back to.

    Where another evaluation replaced what was measured, that is all of them: -1. At last, which lines were left out.
    """
    rows, end, damage = metrics.read_added(run.metrics_file, offset)
    steps = [row["step"] if row["event"] == "resume" else -1 for row in rows if row.get("event") in _REPLACING]
    return metrics.surviving(rows), end, min(steps, default=None), str(damage or "")


_REPLACING = ("resume", "evaluation")
"""Events after which rows written before them no longer count."""

_MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Says that an experiment holds trainings, not traces of language models."""

_VIEW = "scaling"


def _chart(metric: str, title: str, section: str, **axes: str) -> dict[str, Any]:
    """A line chart of a metric against tokens, with every key that the UI's own charts have."""
    chart = {
        "type": "LINE",
        "uuid": f"scaling-{metric}",
        "metricSectionId": section,
        "isGenerated": True,
        "deleted": False,
        "runsCountToCompare": 100,
        "metricKey": metric,
        "displayName": title,
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "metric",
        "selectedXAxisMetricKey": "progress/tokens",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": True,
    }
    return chart | axes


def _section(identity: str, name: str, columns: int, height: int) -> dict[str, Any]:
    shape = {"columns": columns, "cardHeight": height}
    return {"uuid": identity, "name": name, "display": True, "isReordered": True, "isGenerated": True, **shape}


_CHARTS = {
    "orderByKey": "metrics.`validation/perplexity`",  # runs sorted by a metric are not nested under their parent
    "orderByAsc": True,
    "runsHiddenMode": "SHOW_ALL",
    "isAccordionReordered": True,  # sections stay in this order; those that the UI adds come after them
    "globalLineChartConfig": {"xAxisKey": "metric", "selectedXAxisMetricKey": "progress/tokens", "lineSmoothness": 0},
    "selectedColumns": [
        *(f"params.`{name}`" for name in ("family", "size", "tokens", "learning_rate", "seed")),
        *(f"metrics.`{name}`" for name in ("validation/perplexity", "validation/loss", "train/loss")),
        *("attributes.`Duration`", "attributes.`Dataset`"),
    ],
    "compareRunSections": [
        _section("scaling-validation", "validation", 1, 520),
        _section("scaling-train", "train", 2, 360),
    ],
    "compareRunCharts": [
        _chart("validation/perplexity", "validation perplexity against tokens", "scaling-validation"),
        _chart("validation/loss", "validation loss", "scaling-validation"),
        _chart("train/loss", "training loss", "scaling-train"),
    ],
}
"""A view of the experiment as MLflow's UI saves one that is shared: every run, all metrics against tokens, validation
perplexity first and large; the UI adds the sections that are not named here."""

_TAGS = _MODEL_TRAINING | {f"mlflow.sharedViewState.{_VIEW}": json.dumps(_CHARTS)}


def charts_link(experiment: str) -> str:
    """The part of a URL that opens an experiment's charts: all runs, validation perplexity against tokens.

    `workflowType` has the UI show runs; without it an experiment opens on traces of language models.
    """
    chosen = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={_VIEW}"
    return f"/#/experiments/{experiment}/runs?{chosen}"


def experiments(tracking_uri: str) -> dict[str, str]:
    """Ids of the experiments that hold sweeps, by name."""
    found = _client(tracking_uri).search_experiments()
    return {one.name: str(one.experiment_id) for one in found if _MODEL_TRAINING.items() <= one.tags.items()}


def _experiment(client: Any, sweep: str, artifacts: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(sweep)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        for key, value in _TAGS.items():
            if found.tags.get(key) != value:
                client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)
    embedded = artifacts is not None and client.tracking_uri.startswith("sqlite:")
    try:
        location = (artifacts / sweep).as_uri() if embedded and artifacts is not None else None
        return str(client.create_experiment(sweep, artifact_location=location, tags=_TAGS))
    except MlflowException:  # another process was faster
        return str(client.get_experiment_by_name(sweep).experiment_id)


def _parent(client: Any, experiment: str, sweep: str, artifacts: Path | None) -> str:
    """The parent run of a sweep of the workspace that keeps its artifacts there, made if it is missing.

    In a store of many workspaces each has its own, told by the tag `directory`.
    """
    own = artifacts is None or _lies_with(client.tracking_uri, artifacts)
    directory = None if artifacts is None or own else str(artifacts.parent)
    made = None
    if not _parents(client, experiment, directory):
        tags = {"kind": "sweep", "sweep": sweep} | ({} if directory is None else {"directory": directory})
        made = client.create_run(experiment, run_name=sweep, tags=tags).info.run_id
    # Two processes may have made one each: all of them take the first.
    first = _parents(client, experiment, directory)[0]
    if made is not None and first != made:
        client.delete_run(made)
    elif directory is not None:
        client.set_tag(first, "directory", directory)
    return first


def _parents(client: Any, experiment: str, directory: str | None) -> list[str]:
    """Parent runs of a workspace, the first one first; all of the experiment where there is no `directory`.

    One of an earlier version, which says of no workspace, is that of a workspace whose runs it holds.
    """
    found = client.search_runs([experiment], "tags.kind = 'sweep'", order_by=["start_time", "run_id"])
    if directory is None:
        return [run.info.run_id for run in found]
    mine = [run.info.run_id for run in found if run.data.tags.get("directory") == directory]
    for run in () if mine else found:
        if "directory" not in run.data.tags:
            children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
            if any(child.data.tags.get("directory", "").startswith(f"{directory}/") for child in children):
                mine.append(run.info.run_id)
    return mine


@functools.lru_cache(maxsize=8)
def _client(tracking_uri: str, artifacts: Path | None = None) -> Any:
    """A client whose calls end within seconds. The first use of an embedded store initialises it under a lock."""
    # Read by mlflow at every request; what the user has set stands.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_SECONDS))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    # What it logs, errors with their tracebacks among it, would tear the progress display; they are told in a line.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    if not tracking_uri.startswith("sqlite:///"):
        return MlflowClient(tracking_uri)
    store = Path(tracking_uri.removeprefix("sqlite:///"))
    store.parent.mkdir(parents=True, exist_ok=True)
    with locked(store.with_name(f".{store.name}.lock")):
        client = MlflowClient(tracking_uri)
        client.search_experiments(max_results=1)
        if artifacts is not None and _lies_with(tracking_uri, artifacts):
            _point_to(artifacts, store)
        return client


def _point_to(artifacts: Path, store: Path) -> None:
    """Have the experiments of a workspace keep their files in this workspace.

    MLflow stores where they lie as absolute URLs: in a workspace that was copied or moved, those of another place.
    """
    with contextlib.closing(sqlite3.connect(store)) as connection, connection:
        known = connection.execute("SELECT experiment_id, name, artifact_location FROM experiments").fetchall()
        for experiment, name, location in known:
            here = (artifacts / name).as_uri()
            if location == here or not (location or "").endswith(f"/{artifacts.name}/{quote(name)}"):
                continue
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (here, experiment)
            )
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (here, len(location) + 1, experiment, len(location), location),
            )


@contextlib.contextmanager
def _exclusive(run: RunDirectory, sweep: str, tracking_uri: str) -> Iterator[Path | None]:
    """The cursor's file, held by this process alone; None while another holds it."""
    folder = run.cursors
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        raise DamagedFileError(folder, "is no folder, where one belongs", "remove it") from None
    name = _cursor_name(_OWN if _lies_with(tracking_uri, run.workspace.artifacts) else tracking_uri, sweep)
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _first_line(error: BaseException) -> str:
    return masked((str(error).strip().splitlines() or ["no message"])[0])
