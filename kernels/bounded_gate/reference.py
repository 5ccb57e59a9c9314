"""The bounded gate: the definition, differentiated by autograd."""

import torch
from torch import Tensor


def bounded_gate_reference(logits: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Arguments as in `kernels.bounded_gate.bounded_gate`.

    1 - f is (1 - bound) sigmoid(-logits): as a difference from 1 it would be 0 in bfloat16 from a logit of 4 on. log f
    is that of 1 - (1 - f) where f is near 1, and of the sum itself where it is small.
    """
    rest = (1 - bound) * torch.sigmoid(-logits)
    kept = bound + (1 - bound) * torch.sigmoid(logits)
    small = torch.log(kept.clamp_min(torch.finfo(kept.dtype).tiny))
    return torch.where(rest < 0.5, torch.log1p(-rest.clamp_max(0.5)), small), rest
