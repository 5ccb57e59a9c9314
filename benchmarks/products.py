"""The matrix products of a piece of work by themselves: what no implementation on the same library can do without."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.addmm.default}


class Products(TorchDispatchMode):
    """Notes the matrix products that are made within it, with shapes and strides of what they take."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            self.calls.append((func, tuple(_room(x) for x in args if isinstance(x, Tensor))))
        return func(*args, **(kwargs or {}))


def _room(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(x.shape), x.stride()


def products_of(work: Callable[[], object]) -> Callable[[], None] | None:
    """What makes the products of `work` once more, on numbers of its own; None where it makes none by itself."""
    with Products() as noted:
        work()
    if not noted.calls:
        return None
    calls = [(func, [_normal(*room) for room in rooms]) for func, rooms in noted.calls]

    def again() -> None:
        for func, operands in calls:
            func(*operands)

    return again


def _normal(shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    return torch.empty_strided(shape, strides).normal_()
