"""What a completed run leaves: its result, the evaluations it was measured by, and its model card.

An evaluation is stored under its name and fingerprint. The result holds the one that was asked for last; one made
earlier can take its place again without running anything. Imports without torch.
"""

import math
import re
import time

from xlstm.run.directory import RunDirectory
from xlstm.run.evaluations import AnyEvaluation
from xlstm.run.json_files import read_record, write_text
from xlstm.run.records import Launch, Measured, Result, State, Validation, write_json
from xlstm.run.spec import RunSpec


def leave_result(run: RunDirectory, spec: RunSpec, result: Result) -> None:
    """Write the outcome of the evaluation, the card, and `result.json`, which says that the run is complete."""
    path = run.evaluation_file(spec)
    path.parent.mkdir(exist_ok=True)
    write_json(path, result.validation.model_dump(mode="json"))
    write_text(run.model_card_file, model_card(spec, result, run.launch(result.attempts)))
    run.write_result(result)


def leave_measured(run: RunDirectory, spec: RunSpec, asked: AnyEvaluation, found: Measured, attempt: int) -> None:
    """Keep what another evaluation measured: as metrics of the last step, and, which says that it is made, its file."""
    metrics = {name: value for name, value in found.metrics().items() if math.isfinite(value)}
    run.evaluations.mkdir(exist_ok=True)
    run.append_metrics({"step": spec.physics.steps, "time": time.time(), "attempt": attempt, **metrics})
    write_json(run.measured_file(asked, spec), found.model_dump(mode="json"))
    run.measured_so_far_file(asked, spec).unlink(missing_ok=True)


def evaluation(run: RunDirectory, spec: RunSpec) -> Validation | None:
    """What the evaluation of `spec` measured on the trained run, or None where it was not made.

    DamagedFileError where what was measured cannot be read.
    """
    return read_record(run.evaluation_file(spec), Validation, "delete it: it is measured anew")


def adopt(run: RunDirectory, spec: RunSpec) -> bool:
    """Make the evaluation of `spec`, if it was made earlier, the one of the result. Returns whether that changed it."""
    result, known = run.result(), evaluation(run, spec)
    if result is None or known is None or result.validation.evaluation == spec.evaluation_fingerprint:
        return False
    attempt = run.status().attempt
    run.change_evaluation(spec.evaluation_fingerprint, attempt)
    run.append_metrics({"step": result.steps, "time": time.time(), "attempt": attempt, **known.metrics()})
    leave_result(run, spec, result.model_copy(update={"validation": known}))
    run.set_state(State.COMPLETED)
    return True


def model_card(spec: RunSpec, result: Result, launch: Launch | None) -> str:
    """The card of a run; the same text for the same run, wherever it is asked for."""
    physics, validation = spec.physics, result.validation
    optimizer, schedule, data = physics.optimizer, physics.schedule, physics.data
    lines = [
        f"# {result.run_id}",
        "",
        f"A {'language model' if data.generated is None else f'model that learnt `{physics.task}`'} of family"
        f" `{result.family}`, size {result.size}, trained for a scaling law.",
        "",
        "| | |",
        "| --- | --- |",
        f"| parameters | {result.parameters.total:,} ({result.parameters.non_embedding:,} without embeddings) |",
        f"| tokens | {result.tokens:,} in {result.steps:,} steps of {physics.batch_tokens:,} |",
        f"| training FLOPs | {result.flops['exact']:.4g} (6ND: {result.flops['6nd']:.4g}) |",
        *_data_rows(spec, result),
        f"| optimizer | {optimizer.name}, peak learning rate {optimizer.learning_rate:g}, weight decay "
        f"{optimizer.weight_decay:g}, {schedule.kind} after {schedule.warmup_steps} steps of warm-up |",
        *(
            [f"| parametrization | mup, the standard one at width {physics.mup_base_width} |"]
            if physics.parametrization == "mup"
            else []
        ),
        f"| precision, seed | {physics.precision}, {physics.seed} |",
        f"| validation loss | {validation.loss:.4f} nats per token (perplexity {validation.perplexity:.3f}) |",
    ]
    if validation.bits_per_byte is not None:
        lines.append(f"| bits per byte | {validation.bits_per_byte:.4f} |")
    answers = validation.answers
    if answers is not None and answers.mean_squared_error is not None:
        lines.append(f"| mean squared error | {answers.mean_squared_error:.4g} |")
    elif answers is not None:
        lines.append(
            f"| accuracy | {answers.accuracy:.4f} of the tokens of an answer, {answers.sequence_accuracy:.4f} of whole"
            f" answers; scaled {answers.scaled_accuracy:.4f} |"
        )
    lines += [f"| loss on {plain(name)} | {loss:.4f} |" for name, loss in validation.by_source.items()]
    lines.append(
        f"| evaluation | {validation.tokens:,} tokens held out{_share(validation)}, `{validation.evaluation}` |"
    )
    lines.append(f"| cost | {result.device_hours:.3g} device-hours in {result.attempts} attempts{_where(launch)} |")
    if result.trunk_id:
        lines.append(f"| shares its beginning with | {result.trunk_id} |")
    lines.append(f"| quality codes | {', '.join(result.quality) or 'none'} |")
    use = "It answers this task" if data.generated else "It continues text as its corpus would"
    lines += ["", f"{use}, and is good for nothing else: no instruction, no safeguard."]
    if spec.presentation.notes:
        lines += ["", spec.presentation.notes]
    if data.generated is not None:
        return "\n".join([*lines, ""])
    return "\n".join([*lines, "", f"    scaling generate {result.run_id} --prompt '…'", ""])


def _data_rows(spec: RunSpec, result: Result) -> list[str]:
    data = spec.physics.data
    if data.generated is not None:
        fields = data.generated.model_dump()
        said = ", ".join(f"{name} {value}" for name, value in fields.items() if name != "name")
        return [
            f"| data | `{data.corpus}` (version {data.revision} of the generators): {said} |",
            f"| context | {data.context_length} tokens, padding included |",
        ]
    return [
        f"| data | `{data.corpus}` ({data.revision}), prepared as `{result.data_fingerprint}` |",
        *(f"| {one.weight:g} parts | `{one.corpus}` ({one.revision}) |" for one in data.mixture or ()),
        f"| tokenizer | {plain(spec.tokenizer_title)} |",
        f"| context | {data.context_length} tokens; at the end of a document: {data.documents} |",
    ]


def plain(text: str) -> str:
    """A name from the data as Markdown that shows it as it is, within one cell of a table."""
    return re.sub(r"([\\`*|<>\[\]&#~])", r"\\\1", " ".join(text.split()))


def _where(launch: Launch | None) -> str:
    if launch is None:
        return ""
    execution = launch.execution
    return f"; the last on {execution.ranks} × {execution.device} by {launch.executor}"


def _share(validation: Validation) -> str:
    """How much of the split was read, where that is known."""
    if validation.sequences is None or validation.of_sequences is None:
        return ""
    return f" ({validation.sequences:,} of {validation.of_sequences:,} sequences)"
