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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlstm.accounting import size_label
from xlstm.models.naming import family_label
from xlstm.run import metrics
from xlstm.run.directory import RunDirectory
from xlstm.run.json_files import DamagedFileError
from xlstm.run.locks import locked
from xlstm.run.model_card import model_card
from xlstm.run.records import Record, Result, State, Status, write_json
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
    experiment: str
    child: str
    offset: int = 0
    """Bytes of `metrics.jsonl` that were read."""
    last_step: int = -1
    """Step of the last row shipped."""
    state: str = ""
    """What the tags were written for."""


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
        return f"{tracking_uri}: {type(error).__name__}: {_first_line(error)}"
    return None


def parent_run(sweep: str, tracking_uri: str, artifacts: Path | None = None) -> str:
    """MLflow's id of a sweep's parent run, made if it is missing. Raises what MLflow raises."""
    client = _client(tracking_uri, artifacts)
    return _parent(client, _experiment(client, sweep, artifacts), sweep)


def publish(
    sweep: str, tracking_uri: str, artifacts: Path, files: Mapping[str, str | Path], *, ended: bool
) -> str | None:
    """Put texts and files among the artifacts of a sweep's parent run, replacing what was there.

    `files` maps names of artifacts to a text, or to a file that is called the same.

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
        return f"{tracking_uri}: {type(error).__name__}: {_first_line(error)}"
    return None


def _sync(run: RunDirectory, sweep: str, tracking_uri: str, cursor_file: Path) -> Synced:
    artifacts = run.workspace.artifacts
    client = _client(tracking_uri, artifacts)
    status, spec, result = run.status(), run.spec(), run.result()
    cursor = _read_cursor(cursor_file)
    rows, end, rolled_back_to, damage = _new_rows(run, cursor.offset if cursor else 0)
    if cursor is not None and not _lives(client, cursor.child):
        cursor = None  # deleted by hand
    elif cursor is not None and rolled_back_to is not None and rolled_back_to < cursor.last_step:
        client.delete_run(cursor.child)
        cursor = None
    if cursor is None:
        cursor = _adopt_or_create(client, run, spec, sweep, tracking_uri, artifacts)
        rows, end, _, damage = _new_rows(run, 0)
    for start in range(0, len(rows), _ROWS_PER_BATCH):
        _log_rows(client, cursor.child, rows[start : start + _ROWS_PER_BATCH])
    last = max([cursor.last_step, *(row["step"] for row in rows)])
    state = _describe_state(status, result)
    if state != cursor.state:
        _write_state(client, cursor.child, status, result)
        if result is not None:
            # MLflow shows it as the description of the run.
            card = model_card(spec, result, run.launch(result.attempts))
            client.set_tag(cursor.child, "mlflow.note.content", card)
    write_json(cursor_file, cursor.model_copy(update={"offset": end, "last_step": last, "state": state}).model_dump())
    return Synced(True, f"{run.run_id}: {len(rows)} rows shipped", cursor.child, len(rows), damage)


def _adopt_or_create(
    client: Any, run: RunDirectory, spec: RunSpec, sweep: str, tracking_uri: str, artifacts: Path
) -> _Cursor:
    """The child of (sweep, run), new. It replaces children of this directory whose cursor was lost."""
    from mlflow.entities import Param, RunTag

    experiment = _experiment(client, sweep, artifacts)
    parent = _parent(client, experiment, sweep)
    for earlier in client.search_runs([experiment], f"tags.run_id = '{run.run_id}'"):
        if earlier.data.tags.get("directory") != str(run.path):
            continue  # another workspace tracks its own run of this name on the same server
        client.delete_run(earlier.info.run_id)
    tags = {"mlflow.parentRunId": parent, "run_id": run.run_id, "sweep": sweep, "kind": "run"}
    tags |= {"directory": str(run.path), **spec.presentation.tags}
    child = client.create_run(experiment, run_name=run.run_id, tags=tags).info.run_id
    params = [Param(key, str(value)[:6000]) for key, value in _params(spec).items()]
    client.log_batch(child, params=params, tags=[RunTag("mlflow.note.content", spec.presentation.notes)])
    return _Cursor(tracking_uri=tracking_uri, experiment=experiment, child=child)


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
        "evaluation": spec.evaluation.fingerprint,
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


def _write_state(client: Any, child: str, status: Status, result: Result | None) -> None:
    from mlflow.entities import Param, RunTag

    tags = {"state": status.state.value, "reason": status.reason, "attempts": str(status.attempt)}
    params: dict[str, Any] = {}
    if result is not None:
        tags |= {"quality": ",".join(result.quality), "trunk_id": result.trunk_id or ""}
        tags |= {"wall_seconds": f"{result.wall_seconds:.3f}", "device_hours": f"{result.device_hours:.6f}"}
        params = {f"parameters.{key}": value for key, value in result.parameters.model_dump().items()}
        params |= {f"flops.{key}": value for key, value in result.flops.items()}
        params |= {"data_fingerprint": result.data_fingerprint}
    client.log_batch(
        child,
        params=[Param(key, str(value)) for key, value in params.items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    wanted = _STATUS[status.state]
    if wanted in _ENDED:
        client.set_terminated(child, wanted, int(status.updated * 1000))
    else:
        client.update_run(child, wanted)


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
"""Has MLflow's UI show runs and charts first; an experiment of unknown kind opens on traces of language models."""

_VIEW = "scaling"
_CHARTS = {
    "orderByKey": "metrics.`validation/perplexity`",  # runs sorted by a metric are not nested under their parent
    "orderByAsc": True,
    "runsHiddenMode": "SHOW_ALL",
    "globalLineChartConfig": {"xAxisKey": "metric", "selectedXAxisMetricKey": "progress/tokens", "lineSmoothness": 0},
}
"""A view of the experiment as MLflow's UI saves one that is shared: every run, all metrics against tokens."""

_TAGS = _MODEL_TRAINING | {f"mlflow.sharedViewState.{_VIEW}": json.dumps(_CHARTS)}


def charts_link(experiment: str) -> str:
    """The part of a URL that opens an experiment's charts: all runs, validation perplexity against tokens."""
    return f"/#/experiments/{experiment}/runs?compareRunsMode=CHART&viewStateShareKey={_VIEW}"


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
        for key in _TAGS.keys() - found.tags.keys():
            client.set_experiment_tag(found.experiment_id, key, _TAGS[key])
        return str(found.experiment_id)
    embedded = artifacts is not None and client.tracking_uri.startswith("sqlite:")
    try:
        location = (artifacts / sweep).as_uri() if embedded and artifacts is not None else None
        return str(client.create_experiment(sweep, artifact_location=location, tags=_TAGS))
    except MlflowException:  # another process was faster
        return str(client.get_experiment_by_name(sweep).experiment_id)


def _parent(client: Any, experiment: str, sweep: str) -> str:
    made = None
    if not client.search_runs([experiment], "tags.kind = 'sweep'", max_results=1):
        made = client.create_run(experiment, run_name=sweep, tags={"kind": "sweep", "sweep": sweep}).info.run_id
    # Two processes may have made one each: all of them take the first.
    first = client.search_runs([experiment], "tags.kind = 'sweep'", max_results=1, order_by=["start_time", "run_id"])
    if made is not None and first[0].info.run_id != made:
        client.delete_run(made)
    return str(first[0].info.run_id)


def _lives(client: Any, child: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(child).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


@functools.lru_cache(maxsize=8)
def _client(tracking_uri: str, artifacts: Path | None = None) -> Any:
    """A client whose calls end within seconds. The first use of an embedded store initialises it under a lock."""
    # Read by mlflow at every request; what the user has set stands.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_SECONDS))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    # What it logs, errors with their tracebacks among it, would tear the progress display; they are told in a line.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    from mlflow.tracking import MlflowClient

    if not tracking_uri.startswith("sqlite:///"):
        return MlflowClient(tracking_uri)
    store = Path(tracking_uri.removeprefix("sqlite:///"))
    store.parent.mkdir(parents=True, exist_ok=True)
    with locked(store.with_name(f".{store.name}.lock")):
        client = MlflowClient(tracking_uri)
        client.search_experiments(max_results=1)
        return client


@contextlib.contextmanager
def _exclusive(run: RunDirectory, sweep: str, tracking_uri: str) -> Iterator[Path | None]:
    """The cursor's file, held by this process alone; None while another holds it."""
    folder = run.cursors
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        raise DamagedFileError(folder, "is no folder, where one belongs", "remove it") from None
    name = hashlib.sha256(f"{tracking_uri}\n{sweep}".encode()).hexdigest()[:12]
    with locked(folder / f"{name}.lock", wait=False) as held:
        yield folder / f"{name}.json" if held else None


def _read_cursor(path: Path) -> _Cursor | None:
    try:
        return _Cursor.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None  # a cursor is worth nothing but time: the child is made anew


def _describe_state(status: Status, result: Result | None) -> str:
    return f"{status.state.value} {status.attempt} {status.reason} {result is not None}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
