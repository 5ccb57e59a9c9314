"""Which metrics a run will leave, and how many points of each: what is missing of a run can be named."""

from xlstm.accounting.cards import Card
from xlstm.run.records import Metric
from xlstm.run.spec import RunSpec

_TRAINING = (
    Metric.LOSS,
    Metric.LEARNING_RATE,
    Metric.GRADIENT_NORM,
    Metric.TOKENS_PER_SECOND,
    Metric.PEAK_MEMORY,
)


def expected_points(spec: RunSpec, start: int, card: Card | None) -> dict[str, int]:
    """Points by metric of a run that starts at a step: 0, or where it forks off its trunk."""
    steps, execution = spec.physics.steps, spec.execution
    logged = _points(start, steps, execution.log_every)
    validated = _points(start, steps, execution.validate_every or steps)
    points = dict.fromkeys(_TRAINING, logged)
    if card is not None:
        points[Metric.MFU] = logged
    points |= dict.fromkeys((Metric.VALIDATION_LOSS, Metric.VALIDATION_PERPLEXITY), validated)
    return points


def _points(start: int, steps: int, every: int) -> int:
    """Steps in (start, steps] that are a multiple of `every`, or the last."""
    return steps // every - start // every + (steps % every != 0)
