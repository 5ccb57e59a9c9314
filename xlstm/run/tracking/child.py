"""What the child run of a sweep's run says in MLflow: parameters, rows of metrics, state, card and provenance."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlstm.accounting import size_label
from xlstm.models.naming import family_label
from xlstm.run.directory import RunDirectory
from xlstm.run.identity import without_later_defaults
from xlstm.run.json_files import read_json
from xlstm.run.metrics import is_number
from xlstm.run.outcome import model_card
from xlstm.run.records import Result, State, Status
from xlstm.run.spec import Physics, RunSpec
from xlstm.run.tracking.bulk import Dataset, Point

_STATUS = {
    State.PLANNED: "SCHEDULED",
    State.QUEUED: "SCHEDULED",
    State.RUNNING: "RUNNING",
    State.PREEMPTED: "SCHEDULED",
    State.FAILED: "FAILED",
    State.DIVERGED: "FAILED",
    State.COMPLETED: "FINISHED",
    State.CANCELLED: "KILLED",
    State.PRUNED: "KILLED",
}


_ENDED = {"FAILED", "FINISHED", "KILLED"}


def began(run: RunDirectory) -> float | None:
    """When the first attempt was launched, or, of runs that others made, when the first row was written."""
    if (launch := run.launch(1)) is not None:
        return launch.started
    return min((row["time"] for row in run.history() if "time" in row), default=None)


def _ended(run: RunDirectory, status: Status) -> float:
    """When the last attempt ended."""
    verdict = run.verdict(status.attempt)
    return verdict.time if verdict is not None and verdict.time else status.updated


def owner(run: RunDirectory) -> dict[str, str]:
    try:
        return {"mlflow.user": run.path.owner()}
    except KeyError:
        return {}  # an id without a name, as in a container


def dataset_of(spec: RunSpec) -> Dataset:
    """The corpus that a run is trained on."""
    data = spec.physics.data
    source = json.dumps({"corpus": data.corpus, "revision": data.revision, "tokenizer": data.tokenizer})
    return Dataset(data.corpus, data.revision.removeprefix("sha256:")[:36], source)  # the longest that MLflow keeps


def _task_of(spec: RunSpec) -> dict[str, Any]:
    """The task and all its fields, where it is generated."""
    generated = spec.physics.data.generated
    if generated is None:
        return {}
    return {"task": spec.physics.task, **{f"task.{key}": value for key, value in generated.model_dump().items()}}


def params_of(spec: RunSpec) -> dict[str, Any]:
    """What an analysis needs of a run that it knows from MLflow alone."""
    physics = spec.physics
    dimensions = without_later_defaults(physics.model, vars(physics.model))
    return {
        "run_id": spec.run_id,
        "family": family_label(physics.model),
        "size": spec.presentation.size or size_label(physics.model),
        "seed": physics.seed,
        "tokens": physics.steps * physics.batch_tokens,
        "steps": physics.steps,
        "batch_tokens": physics.batch_tokens,
        "context_length": physics.data.context_length,
        **_task_of(spec),
        "corpus": physics.data.corpus,
        "revision": physics.data.revision,
        "tokenizer": physics.data.tokenizer,
        **({"tokenizer_file": spec.tokenizer_title} if spec.execution.tokenizer_path else {}),
        "learning_rate": physics.optimizer.learning_rate,
        "weight_decay": physics.optimizer.weight_decay,
        **_beside_adamw(physics),
        "schedule": physics.schedule.kind,
        "precision": physics.precision,
        "evaluation": spec.evaluation_fingerprint,
        **{f"model.{key}": value for key, value in dimensions.items()},
    }


def _beside_adamw(physics: Physics) -> dict[str, Any]:
    """What moves the weights and how it follows the width, where that is not AdamW in the standard parametrization."""
    said: dict[str, Any] = {} if physics.optimizer.name == "adamw" else {"optimizer": physics.optimizer.name}
    if physics.parametrization == "mup":
        said |= {"parametrization": "mup", "mup_base_width": physics.mup_base_width}
    return said


def points_of(rows: Iterable[Mapping[str, Any]]) -> list[Point]:
    """Each number with the time and step of its row, so that a row shipped twice is one point."""
    return [
        (key, float(value), int(row["time"] * 1000), row["step"])
        for row in rows
        if "time" in row
        for key, value in row.items()
        if key not in {"step", "time", "attempt"} and is_number(value) and math.isfinite(value)
    ]


@dataclass(frozen=True)
class Standing:
    """What is said of a run as it stands: it changes with the run's state."""

    status: str
    end: int | None
    """Milliseconds since the epoch; None while the run has not ended."""
    tags: dict[str, str]
    params: dict[str, str]
    files: dict[str, str | Path]
    """Artifacts by name."""


def standing_of(run: RunDirectory, status: Status, spec: RunSpec, result: Result | None) -> Standing:
    """What is to be said of a run in this state."""
    provenance = run.provenance_file(status.attempt)
    files: dict[str, str | Path] = {}
    tags = {"state": status.state.value, "reason": status.reason, "attempts": str(status.attempt)}
    params: dict[str, Any] = {}
    if result is not None:
        tags |= {"quality": ",".join(result.quality), "trunk_id": result.trunk_id or ""}
        tags |= {"wall_seconds": f"{result.wall_seconds:.3f}", "device_hours": f"{result.device_hours:.6f}"}
        params = {f"parameters.{key}": value for key, value in result.parameters.model_dump().items()}
        params |= {f"flops.{key}": value for key, value in result.flops.items()}
        params |= {"data_fingerprint": result.data_fingerprint}
        params |= {"computed_on": result.computed_on} if result.computed_on else {}
        card = model_card(spec, result, run.launch(result.attempts))
        tags |= {"mlflow.note.content": card}  # what the UI shows as the description of the run
        files[run.model_card_file.name] = card
    if commit := (read_json(provenance, "delete it") or {}).get("git_revision"):
        tags |= {"mlflow.source.git.commit": commit}
    if provenance.is_file():
        files[provenance.name] = provenance
    wanted = _STATUS[status.state]
    end = int(_ended(run, status) * 1000) if wanted in _ENDED else None
    return Standing(wanted, end, tags, {key: str(value) for key, value in params.items()}, files)
