"""Loss of a model on the validation split, fixed and identical for every family, whatever the number of ranks."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from xlstm.data.batches import Batch, Windows, evenly
from xlstm.data.preparation import tokenizer_of
from xlstm.data.shards import PreparedData
from xlstm.distributed import World
from xlstm.models import IGNORED
from xlstm.run.records import Validation
from xlstm.run.spec import Data, Evaluation, RunSpec


def validate(
    model: nn.Module,
    data: PreparedData,
    spec: RunSpec,
    world: World,
    micro: int,
    heartbeat: Callable[[], None] = lambda: None,
) -> Validation:
    """Mean loss (nats per token), perplexity and bits per byte of text, over the windows the evaluation names.

    Each rank takes a contiguous part of the windows, `micro` at a time, and all run the model equally often, calling
    `heartbeat` each time.
    Every token of the windows is predicted once, ends of documents included; bytes are those of the text alone.
    """
    context = spec.physics.data.context_length
    windows = Windows(data.stream("validation"), context, data.manifest.end_of_document)
    wanted = chosen_windows(spec.evaluation, windows.covering)
    per_rank = -(-len(wanted) // world.size)
    mine = np.full(per_rank, windows.covering)  # past the end: without targets
    own = wanted[world.rank * per_rank : (world.rank + 1) * per_rank]
    mine[: len(own)] = own
    names = windows.stream.sources
    several = len(names) > 1
    nats, tokens = np.zeros((2, len(names)))
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for first in range(0, per_rank, micro):
            heartbeat()
            chosen = mine[first : first + micro]
            batch = windows.batch(chosen)
            counted = batch.targets != IGNORED
            values = losses(model, batch, spec, world.device).double().cpu().numpy()
            if several:
                sources = windows.sources(chosen)[counted]
                np.add.at(nats, sources, values[counted])
                np.add.at(tokens, sources, 1)
            else:
                nats[0] += values.sum()
                tokens[0] += counted.sum()
    model.train(was_training)
    nats, tokens = np.array(world.sum(*nats, *tokens)).reshape(2, -1)
    text_bytes = _text_bytes(data, spec, windows, wanted)
    loss = float(nats.sum() / tokens.sum())
    by_source = {name: float(n / t) for name, n, t in zip(names, nats, tokens, strict=True) if several and t}
    return Validation(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        bits_per_byte=float(nats.sum()) / math.log(2) / text_bytes if text_bytes else None,
        tokens=int(tokens.sum()),
        evaluation=spec.evaluation_fingerprint,
        by_source=by_source,
        sequences=len(wanted),
        of_sequences=windows.covering,
    )


def chosen_windows(evaluation: Evaluation, covering: int) -> NDArray[np.int64]:
    """Numbers of the windows that an evaluation reads, of so many that cover the split: ascending, each once.

    `even` takes the middles of as many equal parts of the split.
    """
    count = min(evaluation.sequences or covering, covering)
    if evaluation.windows == "first":
        return np.arange(count)
    return evenly(count, covering)


def _text_bytes(data: PreparedData, spec: RunSpec, windows: Windows, chosen: NDArray[np.int64]) -> float:
    """UTF-8 bytes of the text that the targets of some windows stand for.

    Exact for all windows of a split, and for tokenizers whose tokens each stand for bytes; otherwise a document that is
    cut counts in proportion to its tokens.
    """
    stream, context = windows.stream, windows.context_length
    starts, ends = chosen * context + 1, np.minimum(chosen * context + 1 + context, len(stream))
    if len(chosen) < windows.covering:
        of_token = _bytes_of_tokens(spec.physics.data, data.path)
        if of_token is not None:
            counts = [of_token[stream.read(int(a), int(b))] for a, b in zip(starts, ends, strict=True)]
            if all((count >= 0).all() for count in counts):
                return float(sum(int(count.sum()) for count in counts))
    return sum(
        stream.text_bytes_before(int(b)) - stream.text_bytes_before(int(a)) for a, b in zip(starts, ends, strict=True)
    )


@functools.lru_cache(maxsize=4)
def _bytes_of_tokens(data: Data, path: Path) -> NDArray[np.int64] | None:
    return tokenizer_of(data, path).token_bytes()


def losses(
    model: nn.Module, batch: Batch, spec: RunSpec, device: torch.device, z_loss: float = 0.0, **training: Any
) -> torch.Tensor:
    """Loss of every token in nats, float32 `(sequences, context_length)`; 0 where there is no target.

    `z_loss` is the weight of a penalty that its gradient has and its value has not; `training` is what else the model
    is called with in training alone.
    """
    tokens, targets = (placed(array, device) for array in (batch.tokens, batch.targets))
    resets = placed(batch.resets, device) if spec.physics.data.documents == "reset" else None
    nll: torch.Tensor = model(tokens, resets=resets, targets=targets, z_loss=z_loss, **training)[0]
    return nll


def placed(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array on the device; to a GPU it is copied from pinned memory, while the host goes on."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
