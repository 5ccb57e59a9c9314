"""Operators: what autograd, torch.compile, FSDP and FLOP counters see as one node each way.

An operator and its backward are operators of torch.library, `torch.ops.scaling.*`, whose dispatch takes longer than
many of the kernels (`benchmarks/dispatch.py`). So where it would change nothing, since the tensors are plain ones and
nobody looks on, the operator's body is called at once, through an autograd function of its own.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

Result = TypeVar("Result")

PLAIN = (Tensor, nn.Parameter)
"""Types of tensors that hold their numbers themselves; no subclasses, which have a dispatch of their own."""


class Operator(Generic[Result]):
    """What `operator` makes of a function; called as the function is."""

    def __init__(self, name: str, body: Callable[..., Result]) -> None:
        self.__doc__ = body.__doc__
        self._body = _without_autocast(body)
        self._definition = torch.library.custom_op(f"scaling::{name}", self._body, mutates_args=())
        self._registered = getattr(torch.ops.scaling, name).default
        self._returns_list = inspect.signature(body).return_annotation == list[Tensor]
        self._function: type[torch.autograd.Function] | None = None

    def __call__(self, *arguments: Any) -> Result:
        """As the function; by position."""
        if _observed(arguments):
            return cast(Result, self._registered(*arguments))
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in _tensors(arguments)):
            return self._body(*arguments)
        if self._function is None:
            return cast(Result, self._registered(*arguments))  # which says that there is no gradient
        result = self._function.apply(*arguments)
        return cast(Result, list(result) if self._returns_list else result)

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: the function that gives the results' shapes, dtypes and strides from arguments without numbers."""
        self._definition.register_fake(fake)
        return fake

    def register_autograd(self, differentiate: Callable[..., Any], *, keep: Callable[..., None]) -> None:
        """The gradient: `differentiate(ctx, *grads)`, with what `keep(ctx, inputs, output)` has put into ctx.

        As of `torch.library.register_autograd`; an operator that returns a list has a list of gradients.
        """
        self._definition.register_autograd(differentiate, setup_context=keep)
        body, returns_list = self._body, self._returns_list

        def forward(ctx: Any, *arguments: Any) -> Any:
            output = body(*arguments)
            keep(ctx, arguments, output)
            return tuple(cast(list[Tensor], output)) if returns_list else output

        def backward(ctx: Any, *grads: Any) -> Any:
            return differentiate(ctx, list(grads)) if returns_list else differentiate(ctx, *grads)

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        name = str(self._registered.name())  # a profiler shows it
        self._function = type(name, (torch.autograd.Function,), members)


def operator(name: str) -> Callable[[Callable[..., Result]], Operator[Result]]:
    """Decorator: makes of a function, with types that torch.library can read, the operator `scaling::<name>`.

    The function is run without autocast: casts are for its callers to make (`kernels.dispatch.cast_for_autocast`).
    """
    return lambda body: Operator(name, body)


def modules(package: str, **names: str) -> Callable[[str], Any]:
    """The module of `package` that holds an implementation, by the implementation's name; imported when asked for."""

    @functools.cache
    def module(implementation: str) -> Any:
        return importlib.import_module(f"{package}.{names[implementation]}")

    return module


def _without_autocast(body: Callable[..., Result]) -> Callable[..., Result]:
    @functools.wraps(body)
    def without(*arguments: Any) -> Result:
        device_type = next(iter(_tensors(arguments))).device.type
        if not torch.is_autocast_enabled(device_type):
            return body(*arguments)
        with torch.autocast(device_type, enabled=False):
            return body(*arguments)

    return without


def _observed(arguments: Iterable[Any]) -> bool:
    """Whether a compiler, a tracer, a mode, a transform or a tensor of another type is to see the operator."""
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return True
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return True
    if torch._C._are_functorch_transforms_active():
        return True
    return any(type(tensor) not in PLAIN or tensor.is_meta for tensor in _tensors(arguments))


def _tensors(arguments: Iterable[Any]) -> Iterable[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list):
            yield from argument
