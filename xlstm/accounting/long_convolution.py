"""What H3 and Hyena share: convolutions as long as the sequence."""

import math

from xlstm.accounting.cost import Cost, Sequence


def long_convolution(channels: int, sequence: Sequence) -> Cost:
    """Two transforms of twice the length, 2.5 n log2 n each, and the product between them; all by hand."""
    return Cost(recurrence=channels * (10 * math.log2(2 * sequence.length) + 6))
