"""Muon (Jordan et al. 2024) for the matrices of hidden layers, and AdamW for the rest, as one optimizer.

The update is that of `torch.optim.Muon` with Nesterov's momentum of 0.95, its Newton-Schulz iteration included, scaled
to the size of AdamW's by 0.2 sqrt(max(rows, columns)) (Liu et al. 2025, arXiv 2502.16982). The iteration needs the
whole matrix. torch's class leaves that to DTensors, which give the same by sixteen collectives for a matrix, one for
each product; here momentum stays sharded, each rank gathers one matrix's update once, makes the same iteration as every
other, and takes its own rows of the result. So an update is that of one rank, bit for bit, where the gradients are.
"""

import math
from typing import Any

import torch

# A private path of torch: the iteration has no public name but the whole step of `torch.optim.Muon`.
from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, DEFAULT_NS_STEPS, EPS, _zeropower_via_newtonschulz

BY_MUON = "by_muon"
"""The key of groups of parameters that Muon moves."""
MOMENTUM_BUFFER = "momentum_buffer"
MOMENTUM = 0.95
"""Decay of the mean of gradients per step, and the share of it in Nesterov's update: the author's, and torch's."""
SIZE_OF_ADAMW = 0.2
"""Root mean square of AdamW's updates over the learning rate (arXiv 2502.16982, section 2.2)."""


class Muon(torch.optim.AdamW):
    """AdamW whose groups with `by_muon` are moved by Muon instead: matrices, sharded or whole.

    Nothing moves where `found_inf` says that the gradients are no numbers, as in AdamW's fused step, without asking.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of all parameters; the gradients of matrices are dropped, so that AdamW leaves them alone."""
        for group in self.param_groups:
            for parameter in group["params"] if group.get(BY_MUON) else []:
                if parameter.grad is not None:
                    self._move(parameter, group)
                    parameter.grad = None
        return super().step(closure)

    def _move(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if MOMENTUM_BUFFER not in state:
            state[MOMENTUM_BUFFER] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        gradient = parameter.grad
        assert gradient is not None
        momentum = state[MOMENTUM_BUFFER].lerp(gradient, 1 - MOMENTUM)
        direction = orthogonal(gradient.lerp(momentum, MOMENTUM))
        rate = group["lr"]
        moved = parameter * (1 - rate * group["weight_decay"])
        moved.add_(direction, alpha=-rate * SIZE_OF_ADAMW * math.sqrt(max(parameter.shape)))
        for old, new in ((state[MOMENTUM_BUFFER], momentum), (parameter, moved)):
            _replace(old, new, getattr(self, "found_inf", None))


def orthogonal(update: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrix to (rows, columns), nearly: singular values about one; sharded as `update` is.

    Five quintic iterations in bfloat16, as torch has them.
    """
    whole = update.full_tensor() if hasattr(update, "full_tensor") else update
    made = _zeropower_via_newtonschulz(whole, (DEFAULT_A, DEFAULT_B, DEFAULT_C), DEFAULT_NS_STEPS, EPS)
    made = made.to(update.dtype)
    if not hasattr(update, "full_tensor"):
        return made
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(update, DTensor)
    # Every rank has the same result: without a source rank each takes its part and nothing is sent.
    return distribute_tensor(made, update.device_mesh, update.placements, src_data_rank=None)


def _replace(old: torch.Tensor, new: torch.Tensor, found_inf: torch.Tensor | None) -> None:
    """Write `new` into `old`, each rank its shard, unless `found_inf` (0-d) is not zero: read on the device."""
    old, new = (one.to_local() if hasattr(one, "to_local") else one for one in (old, new))
    old.copy_(new if found_inf is None else torch.where(found_inf == 0, new, old))
