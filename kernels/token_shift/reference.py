"""Token shift by definition."""

import torch
from torch import Tensor


def token_shift_reference(x: Tensor, shares: Tensor, last: Tensor, resets: Tensor | None) -> list[Tensor]:
    """b + s (x - b) for each share s; b is x one token later, `last` before the first, 0 where a document begins."""
    before = torch.cat((last[:, None], x[:, :-1]), dim=1)
    if resets is not None:
        before = before.masked_fill(resets[..., None], 0.0)
    return [before + share * (x - before) for share in shares]
