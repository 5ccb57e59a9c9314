"""Rotary positions as a Triton kernel: pair by pair, in float32."""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl
from torch import Tensor

RUN_TIME = ["angle_rows", "sign"]
"""Arguments whose values must not compile a kernel anew."""
TILE = {"B": 1024}


@triton.jit(do_not_specialize=RUN_TIME)
def turn_kernel(
    x, cos, sin, turned, num_pairs, angle_rows, sign, HEADS: tl.constexpr, HALF: tl.constexpr, B: tl.constexpr
):
    """Tokens are rows of `x`; those of the angles come round again where a batch has one set of them."""
    at = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    inside = at < num_pairs
    j, head = at % HALF, at // HALF
    first = head * (2 * HALF) + j
    angle = (head // HEADS) % angle_rows * HALF + j
    a = tl.load(x + first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + first + HALF, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + angle, mask=inside, other=0.0)
    s = tl.load(sin + angle, mask=inside, other=0.0) * sign
    tl.store(turned + first, (a * c - b * s).to(turned.dtype.element_ty), mask=inside)
    tl.store(turned + first + HALF, (b * c + a * s).to(turned.dtype.element_ty), mask=inside)


def turn(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    """As the reference for both, by the opposite angles where `back`; rounded once."""
    angles = cos.float().contiguous(), sin.float().contiguous()
    return _turn(query, *angles, back), _turn(key, *angles, back)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    turned, num_pairs = x.new_empty(x.shape), x.numel() // 2
    heads, half = x.shape[2], x.shape[3] // 2
    grid = (triton.cdiv(num_pairs, TILE["B"]),)
    angle_rows, sign = cos.shape[:-1].numel(), -1.0 if back else 1.0
    turn_kernel[grid](x.contiguous(), cos, sin, turned, num_pairs, angle_rows, sign, HEADS=heads, HALF=half, **TILE)
    return turned
