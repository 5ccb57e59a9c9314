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


def joined(gates: Sequence[Gate]) -> tuple[Tensor, Tensor] | None:
    """Weights (…, channels) and biases of the gates that see the input, side by side; None where none does."""
    seeing = [(gate.weight, gate.bias) for gate in gates if gate.weight is not None and gate.bias is not None]
    return (torch.cat([weight for weight, _ in seeing]), torch.cat([bias for _, bias in seeing])) if seeing else None


def separated(gates: Sequence[Gate], x: Tensor, together: Tensor | None) -> list[Tensor]:
    """Each gate's (batch, heads, time): out of `together` (batch, time, …), what the `joined` gave, or its own."""
    seeing = [len(gate.constant) for gate in gates if gate.weight is not None]
    seen = iter(() if together is None else together.transpose(1, 2).split(seeing, dim=1))
    return [gate(x) if gate.weight is None else next(seen) for gate in gates]


def forget_bias(heads: int) -> list[float]:
    """From short to long memory over the heads: 3 to 6 in equal steps."""
    return [3.0 + 3.0 * head / max(heads - 1, 1) for head in range(heads)]
