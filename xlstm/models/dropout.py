"""Dropout whose noise is a pure function of what it is for: neither ranks, nor passes, nor restarts change it.

Srivastava et al. (2014), on what each block adds to the residual stream. A generator's numbers would depend on what was
drawn before and on how a batch is divided; here each sequence has a key, and each element of it a number of its own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_BITS = 24


@dataclass(frozen=True)
class Dropout:
    """Which part of each block's addition is left out in one forward pass."""

    rate: float
    """Probability of an element to be left out; those that stay are scaled by 1 / (1 - rate)."""
    keys: Tensor
    """One number per sequence of the batch, int64 (batch,)."""

    def __call__(self, before: Tensor, after: Tensor, block: int) -> Tensor:
        """What stands after a block, of (batch, time, d) before and after it."""
        elements = before[0].numel()
        places = torch.arange(elements, device=before.device) + (block << 40)
        words = _mix(self.keys.to(before.device)[:, None] ^ _mix(places))
        kept = (words & (2**_BITS - 1)) >= round(self.rate * 2**_BITS)
        return before + (after - before) * kept.view_as(before) / (1 - self.rate)


def _mix(words: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014), as `xlstm.randomness.mix` has it for unsigned words."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        words = (words ^ _shifted(words, shift)) * factor
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """To the right, filled with zeros: the shift of signed words fills with their sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)
