"""Which tokens a validation reads, by the documented rules alone: a single text, byte by byte, cut nine to one."""

import math
from pathlib import Path

import torch
from torch import Tensor

END = 0xFF


def validation_windows(text: Path, context: int, sequences: int) -> tuple[Tensor, Tensor]:
    """Tokens and targets (sequences, context) of windows spread evenly over the validation split.

    The last tenth of the text's characters is held out. Its stream begins and ends with the end of a document.
    """
    content = text.read_text()
    stream = [END, *content[len(content) * 9 // 10 :].encode(), END]
    covering = math.ceil((len(stream) - 1) / context)
    starts = [int((part + 0.5) * covering / sequences) * context for part in range(sequences)]
    spans = torch.tensor([stream[start : start + context + 1] for start in starts])
    return spans[:, :-1], spans[:, 1:]


def mean_loss(logits: Tensor, targets: Tensor) -> float:
    """Nats per token."""
    at_target = logits.double().gather(-1, targets[..., None])[..., 0]
    return float((logits.double().logsumexp(-1) - at_target).mean())
