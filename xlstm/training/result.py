"""What a completed run leaves for the analysis: `result.json`."""

import math
import statistics

from kernels import cpu
from xlstm.accounting import parameters, size_label, training_flops
from xlstm.data.sequences import RunData, TrainingSequences
from xlstm.models.naming import family_label
from xlstm.run.directory import RunDirectory
from xlstm.run.records import Launch, Metric, Result, Validation
from xlstm.run.spec import Execution, RunSpec
from xlstm.training.machine import chip

HOPELESS = 1.1
"""Loss over that of a uniform guess beyond which a run has exploded: a fresh model is within 1.05 of it."""
RISEN = 1.01
"""Loss over the lowest one earlier in the run beyond which it has risen: rounding alone changes it by up to 0.6 %."""


def make_result(run: RunDirectory, spec: RunSpec, launch: Launch, data: RunData, validation: Validation) -> Result:
    """Quality, size and cost of a run whose last step is done. The cost counts every attempt, lost work included."""
    physics = spec.physics
    tokens = physics.steps * physics.batch_tokens
    seconds = {number: run.attempt_seconds(number) for number in range(1, launch.attempt)}
    seconds[launch.attempt] = launch.elapsed()
    hours = 0.0
    for number, spent in seconds.items():
        earlier = run.launch(number)
        hours += spent * (earlier.execution.devices_taken if earlier else 1) / 3600
    return Result(
        run_id=run.run_id,
        family=family_label(physics.model),
        size=spec.presentation.size or size_label(physics.model),
        seed=physics.seed,
        tokens=tokens,
        steps=physics.steps,
        parameters=parameters(physics.model),
        flops=training_flops(physics.model, physics.data.context_length, tokens),
        validation=validation,
        wall_seconds=sum(seconds.values()),
        device_hours=hours,
        tokens_per_second=_tokens_per_second(run),
        device_name=chip("cuda") if launch.execution.device == "cuda" else None,
        attempts=launch.attempt,
        trunk_id=launch.fork.run_id if launch.fork else None,
        quality=quality_codes(run, spec, data, validation),
        data_fingerprint=data.fingerprint,
        tokenizer=physics.data.tokenizer,
        schedule=physics.schedule.kind,
        context_length=physics.data.context_length,
        precision=physics.precision,
        computed_on=f"{chip(launch.execution.device)}, {_kernels(launch.execution)} kernels",
    )


def _kernels(execution: Execution) -> str:
    """Whose arithmetic a run's operators have: `auto` on CPU is `numba`, or `torch` where numba is missing."""
    if execution.kernels != "auto" or execution.device == "cuda":
        return execution.kernels
    return "torch" if cpu.missing() else "numba"


def _tokens_per_second(run: RunDirectory) -> float | None:
    rows = [row[Metric.TOKENS_PER_SECOND] for row in run.metrics() if Metric.TOKENS_PER_SECOND in row]
    return statistics.median(rows) if rows else None


def quality_codes(run: RunDirectory, spec: RunSpec, data: RunData, validation: Validation) -> list[str]:
    """Codes of what an analysis may want to know or to leave out."""
    codes = []
    physics = spec.physics
    if physics.data.generated is None:  # the test of a task may be longer than what was trained on, and its loss so bad
        uniform = math.log(data.vocabulary)
        if validation.loss > HOPELESS * uniform:
            codes.append(f"loss-above-uniform:{validation.loss:.4g}-of-{uniform:.4g}")
        earlier = [row[Metric.VALIDATION_LOSS] for row in run.metrics() if Metric.VALIDATION_LOSS in row]
        if earlier and validation.loss > RISEN * min(earlier):
            codes.append(f"loss-rose:{min(earlier):.4g}-to-{validation.loss:.4g}")
    different = TrainingSequences(data, physics).different
    epochs = physics.steps * physics.batch_sequences / different if different else 0.0
    if epochs > 1:
        codes.append(f"repeated-data:{epochs:.2f}-epochs")
    schedule = physics.schedule
    undecayed = schedule.kind == "cosine" and (schedule.decay_steps or 0) > physics.steps
    if schedule.kind == "constant" or undecayed:
        codes.append("learning-rate-not-decayed")
    if run.events("damaged-checkpoint"):
        codes.append("damaged-checkpoint")
    return codes
