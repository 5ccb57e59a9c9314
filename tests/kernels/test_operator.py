"""Whoever watches tensors sees our operators, and gets what they give; nobody's numbers depend on being watched."""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from kernels.rms_norm import rms_norm
from kernels.squared_relu import squared_relu
from kernels.token_shift import token_shift


class Watching(TorchDispatchMode):
    """Names of the operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(op.name())
        return op(*args, **(kwargs or {}))


class Wrapped(Tensor):
    """A tensor that holds another one and notes the operators that it meets."""

    held: Tensor
    seen: ClassVar[list[str]] = []

    @staticmethod
    def __new__(cls, held: Tensor) -> "Wrapped":
        wrapped = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, requires_grad=held.requires_grad)
        wrapped.held = held
        return wrapped

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(op.name())
        args, kwargs = tree_map_only(Wrapped, lambda one: one.held, (args, kwargs or {}))
        return tree_map_only(Tensor, Wrapped, op(*args, **kwargs))


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def shifted(x: Tensor, shares: Tensor) -> Tensor:
    return torch.cat(token_shift(x, shares), dim=-1)


OPERATORS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "squared_relu": (squared_relu, (numbers(2, 3, 8),)),
    "rms_norm": (rms_norm, (numbers(2, 3, 8), numbers(8))),
    "token_shift": (shifted, (numbers(2, 3, 8), numbers(3, 8))),
}
"""One with one result, one with a number among its arguments, one with a list of results."""
every = pytest.mark.parametrize("name", OPERATORS)


def gradients(function: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = [argument.clone().requires_grad_() for argument in arguments]
    y = function(*leaves)
    return [y, *torch.autograd.grad(y.square().sum(), leaves)]


@every
def test_a_mode_sees_the_operator_and_its_backward_and_changes_no_number(name: str) -> None:
    function, arguments = OPERATORS[name]
    with Watching() as watching:
        watched = gradients(function, arguments)
    ours = [seen for seen in watching.seen if seen.startswith("scaling::")]
    assert ours == [f"scaling::{name}", f"scaling::{name}_backward"]
    assert all(torch.equal(a, b) for a, b in zip(watched, gradients(function, arguments), strict=True))


@every
def test_a_mode_that_comes_with_the_backward_sees_it(name: str) -> None:
    function, arguments = OPERATORS[name]
    leaves = [argument.clone().requires_grad_() for argument in arguments]
    loss = function(*leaves).square().sum()
    with Watching() as watching:
        loss.backward()
    assert f"scaling::{name}_backward" in watching.seen


@every
def test_a_profile_names_the_operator_and_its_backward(name: str) -> None:
    function, arguments = OPERATORS[name]
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        gradients(function, arguments)
    seen = {event.name for event in profiled.events()}
    assert {f"scaling::{name}", f"scaling::{name}Backward"} <= seen


@every
def test_a_tensor_of_another_type_is_asked(name: str) -> None:
    function, arguments = OPERATORS[name]
    Wrapped.seen.clear()
    result = function(*map(Wrapped, arguments))
    assert isinstance(result, Wrapped)
    assert f"scaling::{name}" in Wrapped.seen
    assert torch.equal(result.held, function(*arguments))


@every
def test_what_has_no_numbers_gets_shapes(name: str) -> None:
    function, arguments = OPERATORS[name]
    of_meta = function(*(argument.to("meta") for argument in arguments))
    with FakeTensorMode() as mode:
        of_fake = function(*map(mode.from_tensor, arguments))
    expected = function(*arguments)
    assert of_meta.is_meta
    assert of_meta.shape == of_fake.shape == expected.shape


@every
def test_a_traced_graph_holds_the_operator_and_no_number_of_the_trace(name: str) -> None:
    function, arguments = OPERATORS[name]
    others = tuple(argument.flip(0) for argument in arguments)

    def positional(*some: Tensor) -> Tensor:
        return function(*some)

    graph = make_fx(positional)(*arguments)
    assert f"scaling.{name}" in graph.code
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated, and that shapes are constants
        traced = torch.jit.trace(positional, arguments, check_trace=False)
    for again in (graph, traced):
        assert torch.equal(again(*others), function(*others))


@every
def test_transforms_that_operators_of_torch_library_do_not_know_are_refused(name: str) -> None:
    function, arguments = OPERATORS[name]
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: function(x, *arguments[1:]).sum())(arguments[0])


@every
def test_there_is_no_second_derivative_and_it_is_refused(name: str) -> None:
    function, arguments = OPERATORS[name]
    leaves = [argument.clone().requires_grad_() for argument in arguments]
    first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match=f"scaling.{name}_backward.* no autograd formula"):
        first[0].sum().backward()


@every
def test_parameters_and_frozen_ones(name: str) -> None:
    function, arguments = OPERATORS[name]
    expected = gradients(function, arguments)
    x, *rest = arguments
    leaf, frozen = nn.Parameter(x.clone()), [nn.Parameter(one.clone(), requires_grad=False) for one in rest]
    y = function(leaf, *frozen)
    y.square().sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, expected[1])
    assert all(one.grad is None for one in frozen)
    with torch.no_grad():
        assert not function(leaf, *frozen).requires_grad
