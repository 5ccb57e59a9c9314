"""The LSTM by PyTorch's own fused layer (cuDNN, oneDNN), documents included.

Where documents end inside a row, each piece of a row becomes a sequence of its own in one packed batch: the layer then
starts every document from an empty state and stays fused.
"""

import torch
from torch import Tensor

from kernels.lstm.reference import LSTMState


def forward(x: Tensor, weights: list[Tensor], state: LSTMState, resets: Tensor | None) -> tuple[Tensor, LSTMState]:
    """The whole sequence; arguments as those of the reference."""
    train = torch.is_grad_enabled()
    if resets is None:
        y, h, c = torch.lstm(x, (state.h[None], state.c[None]), weights, True, 1, 0.0, train, False, True)
        return y, LSTMState(h[0], c[0])

    batch, time, _ = x.shape
    starts = resets.clone()
    starts[:, 0] = True
    starts = starts.flatten()
    piece = starts.cumsum(0) - 1  # (batch * time,): to which piece a token belongs
    first = starts.nonzero().squeeze(1)  # (pieces,): where each begins
    offset = torch.arange(batch * time, device=x.device) - first[piece]
    lengths = torch.bincount(piece)
    rank = torch.empty_like(first)
    rank[lengths.argsort(descending=True)] = torch.arange(len(first), device=x.device)
    order = (offset * len(first) + rank[piece]).argsort()  # longest piece first within each step, as packing wants it

    def initial(tensor: Tensor) -> Tensor:
        """The state of each piece: its row's where it continues the row, else empty."""
        continues = (first % time == 0) & ~resets.flatten()[first]
        pieces = torch.where(continues[:, None], tensor[first // time], 0.0)
        return torch.zeros_like(pieces).index_copy(0, rank, pieces)[None]

    packed = x.flatten(0, 1)[order]
    y, h, c = torch.lstm(
        packed, torch.bincount(offset).cpu(), (initial(state.h), initial(state.c)), weights, True, 1, 0.0, train, False
    )
    last = rank[piece.view(batch, time)[:, -1]]
    y = torch.zeros_like(y).index_copy(0, order, y).view(batch, time, -1)
    return y, LSTMState(h[0, last], c[0, last])
