"""Where the gates of an mLSTM take their pre-activations from: the input, a learnable bias, or a constant."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OPEN = 40.0
"""Pre-activation of a forget gate that forgets nothing: its sigmoid is one in float32 and in float64."""


class Gate(nn.Module):
    """One pre-activation per head and token. `kind` as in `XLSTMConfig.input_gate` and `forget_gate`.

    `constant` (heads,) is what a gate without parameters has.
    """

    def __init__(self, channels: int, kind: str, constant: list[float]) -> None:
        super().__init__()
        heads = len(constant)
        self.constant = constant
        self.weight = nn.Parameter(torch.empty(heads, channels)) if kind == "input" else None
        self.bias = nn.Parameter(torch.empty(heads)) if kind in ("input", "bias") else None

    def forward(self, x: Tensor) -> Tensor:
        """`x` (batch, time, channels) to (batch, heads, time), at least float32."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        if self.weight is not None:
            return F.linear(x, self.weight, self.bias).transpose(1, 2).to(dtype)
        values = self.bias if self.bias is not None else torch.tensor(self.constant, device=x.device)
        return values.to(dtype)[:, None].expand(x.shape[0], -1, x.shape[1])


def preactivations(parts: Sequence[Tensor], gates: Sequence[Gate]) -> list[Tensor]:
    """What each gate gives for the channels of `parts` (batch, time, …) side by side: (batch, heads, time) each.

    The parts are not copied together, and gates that see the input read it once for all of them.
    """
    seeing = [gate for gate in gates if gate.weight is not None]
    if not seeing:
        return [gate(parts[0]) for gate in gates]
    weight = torch.cat([gate.weight for gate in seeing if gate.weight is not None])
    bias = torch.cat([gate.bias for gate in seeing if gate.bias is not None])
    first, *others = weight.split([part.shape[-1] for part in parts], dim=1)
    dtype = torch.promote_types(parts[0].dtype, torch.float32)
    total = F.linear(parts[0], first, bias).to(dtype)
    for part, columns in zip(parts[1:], others, strict=True):
        total = total + F.linear(part, columns).to(dtype)
    total = total.transpose(1, 2)
    seen = iter(total.split([len(gate.constant) for gate in seeing], dim=1))
    return [gate(parts[0]) if gate.weight is None else next(seen) for gate in gates]


def forget_bias(heads: int) -> list[float]:
    """From short to long memory over the heads: 3 to 6 in equal steps."""
    return [3.0 + 3.0 * head / max(heads - 1, 1) for head in range(heads)]
