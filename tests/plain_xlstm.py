"""xLSTM in plain PyTorch and float64, as its paper writes it (arXiv 2405.04517): no stabiliser, no chunks, no kernels.

For tests that want a second opinion on a trained model's losses: `logits` takes weights by our names, and nothing else.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def logits(weights: Weights, tokens: Tensor, *, blocks: int, heads: int) -> Tensor:
    """Logits (batch, time, vocabulary) of tokens (batch, time); a block with recurrent weights is an sLSTM block."""
    weights = {name: value.double() for name, value in weights.items()}
    x = weights["embedding.weight"][tokens]
    for number in range(blocks):
        prefix = f"blocks.{number}."
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        x = slstm_block(own, x, heads) if "recurrent" in own else mlstm_block(own, x, heads)
    return norm(x, weights["norm.weight"]) @ weights["head.weight"].T


def norm(x: Tensor, weight: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def convolved(x: Tensor, own: Weights) -> Tensor:
    """SiLU of a causal convolution over four tokens, channel by channel."""
    padded = torch.cat([torch.zeros_like(x[:, :3]), x], dim=1)
    taps = sum(padded[:, tap : tap + x.shape[1]] * own["conv.weight"][:, tap] for tap in range(4))
    return F.silu(taps + own["conv.bias"])


def per_head(h: Tensor, weight: Tensor) -> Tensor:
    """Norm of each head of (batch, time, heads, head_dim)."""
    return norm(h, weight.view(h.shape[2:])).flatten(2)


def mlstm_block(own: Weights, x: Tensor, heads: int) -> Tensor:
    inner, gate = (norm(x, own["norm.weight"]) @ own["up.weight"].T).chunk(2, dim=-1)
    seen = convolved(inner, own)
    q, k, v = (
        torch.einsum("btgi,goi->btgo", part.unflatten(-1, (-1, 4)), own[f"{name}.weight"]).flatten(2)
        for name, part in (("query", seen), ("key", seen), ("value", inner))
    )
    gates = torch.cat([q, k, v], dim=-1)
    i = torch.exp(gates @ own["input_gate.weight"].T + own["input_gate.bias"])
    f = torch.sigmoid(gates @ own["forget_gate.weight"].T + own["forget_gate.bias"])
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in (q, k, v))
    batch, time, _, size = q.shape
    memory, normalizer = torch.zeros(batch, heads, size, size).double(), torch.zeros(batch, heads, size).double()
    outputs = []
    for t in range(time):
        key = k[:, t] / size**0.5
        memory = f[:, t, :, None, None] * memory + i[:, t, :, None, None] * v[:, t, :, :, None] * key[:, :, None]
        normalizer = f[:, t, :, None] * normalizer + i[:, t, :, None] * key
        said = (memory @ q[:, t, :, :, None])[..., 0]
        outputs.append(said / (normalizer * q[:, t]).sum(-1, keepdim=True).abs().clamp(min=1.0))
    h = per_head(torch.stack(outputs, dim=1), own["head_norm.weight"])
    return x + ((h + own["skip"] * seen) * F.silu(gate)) @ own["down.weight"].T


def slstm_block(own: Weights, x: Tensor, heads: int) -> Tensor:
    plain = norm(x, own["norm.weight"])
    seen = convolved(plain, own)
    # Input and forget gate see the convolved input, cell input and output gate the plain one.
    by_gate = torch.stack([seen, seen, plain, plain], dim=2).unflatten(-1, (heads, -1))
    pre = torch.einsum("btghi,ghio->btgho", by_gate, own["weight"]) + own["bias"]
    h = c = n = torch.zeros_like(pre[:, 0, 0])
    outputs = []
    for t in range(x.shape[1]):
        i, f, z, o = (pre[:, t] + torch.einsum("bhd,ghde->bghe", h, own["recurrent"])).unbind(1)
        c = torch.sigmoid(f) * c + torch.exp(i) * torch.tanh(z)
        n = torch.sigmoid(f) * n + torch.exp(i)
        h = torch.sigmoid(o) * c / n
        outputs.append(h)
    x = x + per_head(torch.stack(outputs, dim=1), own["head_norm.weight"])
    gate, up = (norm(x, own["feedforward_norm.weight"]) @ own["gate_and_up.weight"].T).chunk(2, dim=-1)
    return x + (F.gelu(gate) * up) @ own["down.weight"].T
