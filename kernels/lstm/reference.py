"""The LSTM as its recurrence over time: the definition the other implementation is tested against.

Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; gates in the order input, forget, cell, output.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class LSTMState(NamedTuple):
    """What the LSTM remembers."""

    h: Tensor  # (batch, channels): the output
    c: Tensor  # (batch, channels): the cell


def lstm_reference(
    x: Tensor, weights: list[Tensor], state: LSTMState, resets: Tensor | None
) -> tuple[Tensor, LSTMState]:
    """The whole sequence, token by token; arguments as in `kernels.lstm.lstm`, weights and biases in its order."""
    weight_input, weight_hidden, bias_input, bias_hidden = weights
    h, c = state
    outputs = []
    for t in range(x.shape[1]):
        if resets is not None:
            h, c = h.masked_fill(resets[:, t, None], 0.0), c.masked_fill(resets[:, t, None], 0.0)
        gates = x[:, t] @ weight_input.t() + bias_input + h @ weight_hidden.t() + bias_hidden
        i, f, g, o = gates.chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs, dim=1), LSTMState(h, c)
