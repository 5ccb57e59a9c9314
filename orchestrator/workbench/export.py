"""What leaves a workspace: every setting and result of runs as a table, and a trained model as a folder."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import InputError
from orchestrator.standing.status import look
from xlstm.run.directory import RunDirectory, Workspace

if TYPE_CHECKING:
    import polars as pl


def runs_frame(workspace: Workspace, source: str) -> "pl.DataFrame":
    """A row per run. Of a submitted sweep with every setting, its state and its result; else as a law reads the source.

    InputError or SweepError where there is no such source.
    """
    import polars as pl

    if source not in workspace.submitted():
        from orchestrator.workbench.analyses.laws import open_source, refusals_in_a_line

        with refusals_in_a_line():
            return open_source((source,), {}).frame
    rows = []
    for run in look(workspace, source).runs:
        row = {key: value for key, value in run.planned.items() if not isinstance(value, Mapping)}
        row |= {"forks_from": json.dumps(run.planned["forks_from"])} if run.planned.get("forks_from") else {}
        row |= {f"parameters.{key}": value for key, value in run.planned["parameters"].items()}
        row |= {f"flops.{key}": value for key, value in run.planned["flops"].items()}
        row |= {"state": run.state.value, "reason": run.reason, "attempts": run.attempts, "tokens_trained": run.tokens}
        if run.run.spec_file.exists():
            settings = run.run.spec().model_dump(mode="json")
            row |= {key: value for part in ("physics", "evaluation") for key, value in _flat(settings[part])}
        if run.result is not None:
            result = run.result
            row |= {"loss": result.validation.loss, "perplexity": result.validation.perplexity}
            row |= {"bits_per_byte": result.validation.bits_per_byte, "wall_seconds": result.wall_seconds}
            if (answers := result.validation.answers) is not None:
                row |= {name: value for name, value in answers.metrics("").items() if "/" not in name}
            row |= {"device_hours_spent": result.device_hours, "quality": ",".join(result.quality)}
        rows.append(row | run.run.evaluation_metrics())
    columns = dict.fromkeys(key for row in rows for key in row)
    return pl.DataFrame(
        [{key: row.get(key) for key in columns} for row in rows], infer_schema_length=None, strict=False
    )


def as_csv(frame: "pl.DataFrame") -> str:
    """The frame as CSV; a text or a column's name that a spreadsheet would take for a formula has a `'` before it."""
    import polars as pl

    from analysis.report.table import FORMULA

    text = pl.col(pl.String)
    formula = text.str.slice(0, 1).is_in(FORMULA) & text.cast(pl.Float64, strict=False).is_null()
    escaped = frame.with_columns(pl.when(formula).then(pl.lit("'") + text).otherwise(text).name.keep())
    renamed = {name: f"'{name}" for name in frame.columns if name.startswith(FORMULA)}
    written: str = escaped.rename(renamed).write_csv()
    return written


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as dotted names; lists as JSON."""
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", json.dumps(value) if isinstance(value, list) else value))
    return flat


def export(run: RunDirectory, folder: Path) -> list[str]:
    """Write a trained model as `transformers` reads it, with tokenizer, card and generation settings.

    Returns the names of the files. InputError where it is not trained, its family has no format there, or the folder
    holds something already.
    """
    from xlstm.data.preparation import open_prepared
    from xlstm.export import transformers
    from xlstm.generation import TrainedRun
    from xlstm.training.checkpoints import CheckpointError

    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; name a new folder")
    physics = run.spec().physics
    try:
        trained = TrainedRun.load(run, "cpu")
        transformers.save(trained.model, physics.model, folder, context_length=physics.data.context_length)
    except ValueError as error:
        raise InputError(
            f"{run.run_id}: {error}; in Python, xlstm.generation.TrainedRun.load has the model (docs/cli.md)"
        ) from None
    except (CheckpointError, FileNotFoundError) as error:
        raise InputError(str(error)) from None
    tokenizer = open_prepared(physics.data, run.workspace).path / "tokenizer.json"
    if tokenizer.is_file():
        shutil.copy(tokenizer, folder)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": physics.data.context_length}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    end = trained.tokenizer.end_of_document
    generation = {"do_sample": True, "temperature": 0.8, "top_k": 40, "bos_token_id": end, "eos_token_id": end}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    if run.model_card_file.is_file():
        shutil.copy(run.model_card_file, folder / "README.md")
    return sorted(path.name for path in folder.iterdir())
