"""How well a model answers the tests of a generated task, and validation whatever a run learns."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from xlstm.data.batches import Batch
from xlstm.data.generated import GeneratedData
from xlstm.data.sequences import RunData
from xlstm.distributed import World
from xlstm.evaluation.validation import placed, validate
from xlstm.models import IGNORED
from xlstm.run.records import Answers, Validation
from xlstm.run.spec import RunSpec

_LOGITS = 2**26
"""Logits that a pass may give: the model returns those of every position, though few are read."""


def validate_on(
    model: nn.Module, data: RunData, spec: RunSpec, world: World, micro: int, heartbeat: Callable[[], None]
) -> Validation:
    """Quality of a model on the validation split of a corpus, or on the tests of a task; see `validate`."""
    if isinstance(data, GeneratedData):
        return _test(model, data, spec, world, heartbeat)
    return validate(model, data, spec, world, micro, heartbeat)


def _test(
    model: nn.Module, data: GeneratedData, spec: RunSpec, world: World, heartbeat: Callable[[], None]
) -> Validation:
    """Loss per token of an answer and measures, over as many sequences of each length that is tested.

    Each length is divided over the ranks, and all run the model equally often. A sequence is scored by the share of its
    answer that is right; scores are means over sequences, and so over lengths. Where answers are numbers, the loss is
    their squared error.
    """
    lengths = spec.test_lengths
    wanted = spec.evaluation.sequences or data.task.tested
    each = -(-min(wanted, data.task.test_sequences or wanted) // len(lengths))
    sums = np.zeros((len(lengths), 4))  # loss, tokens of answers, scores, sequences that are wholly right
    # Of numbers alone: squared errors and answers at each position.
    places = np.zeros((2, data.task.positions(lengths[-1]) if data.task.regression else 0))
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for row, length in enumerate(lengths):
            for batch, real in _batches(data, spec, world, length, each):
                heartbeat()
                if data.task.regression:
                    sums[row, :2] += _add_errors(model, batch, real, world.device, places)
                else:
                    sums[row] += _tally(model, batch, real, world.device)
    model.train(was_training)
    summed = np.array(world.sum(*sums.flatten(), *places.flatten()))
    sums, places = summed[: sums.size].reshape(sums.shape), summed[sums.size :].reshape(places.shape)
    loss = float(sums[:, 0].sum() / sums[:, 1].sum())
    return Validation(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        tokens=int(sums[:, 1].sum()),
        evaluation=spec.evaluation_fingerprint,
        sequences=each * len(lengths),
        answers=_errors(lengths, sums, places) if data.task.regression else _scores(lengths, sums, each, data),
    )


def _scores(lengths: range, sums: np.ndarray, each: int, data: GeneratedData) -> Answers:
    accuracy = float(sums[:, 2].sum() / (each * len(lengths)))
    chance = data.task.chance
    return Answers(
        accuracy=accuracy,
        sequence_accuracy=float(sums[:, 3].sum() / (each * len(lengths))),
        scaled_accuracy=(accuracy - chance) / (1 - chance),
        by_length={
            length: Answers(accuracy=float(score / each), sequence_accuracy=float(whole / each))
            for length, (_, _, score, whole) in zip(lengths, sums, strict=True)
        },
    )


def _errors(lengths: range, sums: np.ndarray, places: np.ndarray) -> Answers:
    return Answers(
        mean_squared_error=float(sums[:, 0].sum() / sums[:, 1].sum()),
        by_length={
            length: Answers(mean_squared_error=float(errors / count))
            for length, (errors, count, _, _) in zip(lengths, sums, strict=True)
        },
        by_position={place: float(errors / count) for place, (errors, count) in enumerate(places.T) if count},
    )


def _batches(data: GeneratedData, spec: RunSpec, world: World, length: int, each: int) -> Iterator[tuple[Batch, int]]:
    """This rank's sequences of a length, and how many at the beginning of each batch count."""
    per_rank = -(-each // world.size)
    first = world.rank * per_rank
    vocabulary: int = spec.physics.model.vocab_size
    together = max(1, min(per_rank, _LOGITS // (vocabulary * data.task.positions(length))))
    for start in range(first, first + per_rank, together):
        numbers = np.arange(start, min(start + together, first + per_rank))
        yield data.test(length, numbers), int(np.count_nonzero(numbers < each))


def _tally(model: nn.Module, batch: Batch, real: int, device: torch.device) -> np.ndarray:
    """Nats, tokens of answers, scores, and sequences that are wholly right, of the first `real` sequences."""
    logits = model(placed(batch.tokens, device))[0]
    asked = batch.targets != IGNORED
    asked[real:] = False
    rows, columns = np.nonzero(asked)
    if not len(rows):
        return np.zeros(4)
    of_answers = logits[torch.from_numpy(rows), torch.from_numpy(columns)].float()
    targets = torch.from_numpy(batch.targets[asked]).to(device)
    nats = F.cross_entropy(of_answers, targets, reduction="none").double().sum()
    right = np.bincount(rows, (of_answers.argmax(-1) == targets).cpu().numpy(), minlength=len(asked))
    tokens = asked.sum(axis=1)
    score = right[:real] / tokens[:real]
    return np.array([nats.item(), tokens.sum(), score.sum(), np.count_nonzero(right[:real] == tokens[:real])])


def _add_errors(
    model: nn.Module, batch: Batch, real: int, device: torch.device, places: np.ndarray
) -> tuple[float, int]:
    """Sum of squared errors and their number in the first `real` sequences, both added to `places` by position."""
    said = model(placed(batch.tokens, device))[0].squeeze(-1).double().cpu().numpy()[:real]
    asked = batch.targets[:real] != IGNORED
    errors = np.where(asked, (said - batch.targets[:real]) ** 2, 0.0)
    places[0, : errors.shape[1]] += errors.sum(axis=0)
    places[1, : errors.shape[1]] += asked.sum(axis=0)
    return float(errors.sum()), int(asked.sum())
