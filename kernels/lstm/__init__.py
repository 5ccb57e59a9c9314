"""One layer of an LSTM, with state and document resets."""

import torch
from torch import Tensor

from kernels.dispatch import Implementation, ImplementationError, expect_resets, expect_shape
from kernels.lstm import torch_fused
from kernels.lstm.reference import LSTMState, lstm_reference

__all__ = ["LSTMState", "lstm"]


def lstm(
    x: Tensor,
    weight_input: Tensor,
    weight_hidden: Tensor,
    bias_input: Tensor,
    bias_hidden: Tensor,
    *,
    initial_state: LSTMState | None = None,
    resets: Tensor | None = None,
    implementation: Implementation = "auto",
) -> tuple[Tensor, LSTMState]:
    """h_t and c_t of the LSTM; weights and biases in the layout of `torch.nn.LSTM`.

    `x` is (batch, time, inputs), `weight_input` (4 channels, inputs), `weight_hidden` (4 channels, channels), both
    biases (4 channels,). Where `resets` (batch, time, bool) is true, the state is forgotten before the token. Returns h
    (batch, time, channels) and the final state.

    `implementation` is `auto` or `torch` (PyTorch's fused layer) or `reference`; there are no Triton kernels, since
    cuDNN's are faster than any for dense recurrent weights. Raises ValueError for shapes that do not fit,
    ImplementationError for an implementation that does not exist.
    """
    name = "lstm"
    if x.ndim != 3:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}, expected (batch, time, inputs)")
    batch, time, inputs = x.shape
    channels = weight_hidden.shape[-1]
    expect_shape(name, "weight_input", weight_input, (4 * channels, inputs), "(4 channels, inputs)")
    expect_shape(name, "weight_hidden", weight_hidden, (4 * channels, channels), "(4 channels, channels)")
    expect_shape(name, "bias_input", bias_input, (4 * channels,), "(4 channels,)")
    expect_shape(name, "bias_hidden", bias_hidden, (4 * channels,), "(4 channels,)")
    if initial_state is None:
        initial_state = LSTMState(*x.new_zeros(2, batch, channels))
    for field, tensor in zip(LSTMState._fields, initial_state, strict=True):
        expect_shape(name, f"initial_state.{field}", tensor, (batch, channels), "(batch, channels)")
    expect_resets(name, resets, batch, time)
    if implementation not in ("auto", "torch", "reference"):
        raise ImplementationError(f"{name}: implementation {implementation!r} is none of auto, torch, reference")
    if time == 0:
        return torch.zeros(batch, 0, channels, dtype=x.dtype, device=x.device), initial_state
    operate = lstm_reference if implementation == "reference" else torch_fused.forward
    return operate(x, [weight_input, weight_hidden, bias_input, bias_hidden], initial_state, resets)
