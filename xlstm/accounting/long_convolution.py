"""What H3 and Hyena share: convolutions as long as the sequence, and the block that they stand in."""

import math

from xlstm.accounting.cost import Cost, Sequence, linear, norm


def long_convolution(channels: int, sequence: Sequence) -> Cost:
    """Two transforms of twice the length, 2.5 n log2 n each, and the product between them; all by hand."""
    return Cost(recurrence=channels * (10 * math.log2(2 * sequence.length) + 6))


def gelu_block(mixer: Cost, d: int) -> Cost:
    """A mixer and an MLP of width 4 d, with biases, each behind a norm with weight and bias."""
    return norm(2 * d) + mixer + norm(2 * d) + linear(d, 4 * d, bias=True) + linear(4 * d, d, bias=True)
