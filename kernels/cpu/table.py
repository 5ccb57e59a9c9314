"""How a kernel for CPUs is given its arguments: a table of 64-bit words, laid out as the signature of its body says.

The annotation of a parameter says what an argument may be and as what the body sees it: `int`, `float` (in float32),
`bool`, a tensor by its dtype (`Rows`, `Doubles`, `Integers`, `Flags`), `… | None` where it may be absent, or
`list[Rows]`.
"""

import ctypes
import inspect
import struct
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

Argument: TypeAlias = Tensor | int | float | list[Tensor] | None

AXES = 4
"""Leading axes of a tensor that a kernel can step along."""


class Rows(NamedTuple):
    """A tensor of float32, in numbers that lie next to each other along its last axis.

    Holds its address, 0 if absent, and how many numbers lie between two neighbours along each leading axis.
    """

    address: int
    first: int
    second: int
    third: int
    fourth: int


class Doubles(Rows):
    """As `Rows`, of float64."""


class Integers(Rows):
    """As `Rows`, of int32."""


class Flags(Rows):
    """As `Rows`, of booleans."""


DTYPES = {Rows: torch.float32, Doubles: torch.float64, Integers: torch.int32, Flags: torch.bool}
WORDS: dict[Any, str] = {int: "q", bool: "q", float: "d", list[Rows]: "q", **dict.fromkeys(DTYPES, f"{1 + AXES}q")}
"""How an argument lies in the table, in the letters of `struct`; a list is the address of a table of its own."""


class Layout:
    """What a body's signature says of the table: the kind of each argument, in their order, and which may be absent.

    The first two parameters of a body are not in the table: the calling thread's share of the work. Raises TypeError
    for an annotation that is no kind of argument.
    """

    def __init__(self, body: Callable[..., None]) -> None:
        self.name = f"{body.__module__}.{body.__qualname__}"
        self.kinds: dict[str, Any] = {}
        self.optional = set()
        for name, parameter in list(inspect.signature(body).parameters.items())[2:]:
            kind = parameter.annotation
            if isinstance(kind, UnionType):
                kind = get_args(kind)[0]
                self.optional.add(name)
            if kind not in WORDS:
                raise TypeError(f"{self.name}: {name} is annotated {kind}, which is no kind of argument")
            self.kinds[name] = kind
        self._slots = [(name, kind, DTYPES.get(kind)) for name, kind in self.kinds.items()]
        self._words = struct.Struct("q" + "".join(WORDS[kind] for kind in self.kinds.values()))
        self._table = ctypes.c_int64 * (self._words.size // 8)

    def table(self, pieces: int, arguments: Mapping[str, Argument]) -> tuple[Any, list[Any]]:
        """The table of a call, and the tables that it points to, which must outlive the call.

        Raises TypeError for arguments that are missing, are too many, or are not of their kind, and ValueError for a
        tensor whose numbers are not where the kernel will look for them.
        """
        words: list[Any] = [pieces]
        lists = []
        if len(arguments) != len(self.kinds):
            raise self._other_names(arguments)
        for name, kind, dtype in self._slots:
            try:
                argument = arguments[name]
            except KeyError:
                raise self._other_names(arguments) from None
            if kind in _NUMBERS and isinstance(argument, kind):
                words.append(argument)
            elif argument is None and name in self.optional:
                words += _ABSENT
            elif dtype is not None and isinstance(argument, Tensor):
                words += self._view(name, argument, dtype)
            elif isinstance(argument, list) and kind == list[Rows]:
                views: list[int] = []
                for tensor in argument:
                    views += self._view(name, tensor, torch.float32)
                lists.append((ctypes.c_int64 * len(views))(*views))
                words.append(ctypes.addressof(lists[-1]))
            else:
                raise TypeError(f"{self.name}: {name} is a {type(argument).__name__}, expected {kind.__name__}")
        table = self._table()
        self._words.pack_into(table, 0, *words)
        return table, lists

    def _view(self, name: str, tensor: Tensor, dtype: torch.dtype) -> tuple[int, ...]:
        strides, axes = tensor.stride(), tensor.ndim
        if tensor.dtype is not dtype:
            raise TypeError(f"{self.name}: {name} is of {tensor.dtype}, expected {dtype}")
        if not tensor.is_cpu or not 1 <= axes <= 1 + AXES or not (strides[-1] == 1 or has_dense_rows(tensor)):
            raise ValueError(
                f"{self.name}: {name} is on {tensor.device}, of shape {tuple(tensor.shape)} and strides {strides}, "
                f"expected on a CPU, 1 to {1 + AXES} axes, the last one dense"
            )
        return (tensor.data_ptr(), *strides[:-1], *_ABSENT[axes:])

    def _other_names(self, arguments: Mapping[str, Argument]) -> TypeError:
        missing = ", ".join(sorted(self.kinds.keys() - arguments.keys())) or "nothing"
        surplus = ", ".join(sorted(arguments.keys() - self.kinds.keys())) or "nothing"
        return TypeError(f"{self.name}: missing is {missing}, unknown is {surplus}")


_ABSENT = (0,) * (1 + AXES)
_NUMBERS = (int, float, bool)


def has_dense_rows(tensor: Tensor) -> bool:
    """Whether numbers lie next to each other along the last axis."""
    return tensor.stride(-1) == 1 or tensor.shape[-1] == 1 or tensor.numel() == 0
