"""Squared ReLU by definition."""

from torch import Tensor


def squared_relu_reference(x: Tensor) -> Tensor:
    """max(x, 0)²."""
    return x.relu().square()
