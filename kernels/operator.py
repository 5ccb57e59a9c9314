"""Operators, declared: what autograd, torch.compile, FSDP and FLOP counters see as one node each way.

An operator and its backward are operators of torch.library, `torch.ops.scaling.*`, whose dispatch takes longer than
many of the kernels (`benchmarks/dispatch.py`). So where it would change nothing, since the tensors are plain ones and
nobody looks on, the operator's body is called at once, through an autograd function of its own.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

Result = TypeVar("Result")
Hook = Callable[..., Any]

PLAIN = (Tensor, nn.Parameter)
"""Types of tensors that hold their numbers themselves; no subclasses, which have a dispatch of their own."""


class DeclarationError(TypeError):
    """An operator is declared incompletely or in contradictions; the message names what is missing."""


class _Node(Generic[Result]):
    """One operator of torch.library, called past its dispatch where nobody looks on."""

    def __init__(
        self, name: str, takes: dict[str, str], gives: Sequence[str], body: Hook, fake: Hook, count: Callable[..., int]
    ) -> None:
        self._body = _plainly(body)
        arguments = ", ".join(f"{kind} {argument}" for argument, kind in takes.items())
        results = gives[0] if len(gives) == 1 else f"({', '.join(gives)})"
        schema = f"({arguments}) -> {results}"
        self._definition = torch.library.custom_op(f"scaling::{name}", self._body, mutates_args=(), schema=schema)
        self._registered = getattr(torch.ops.scaling, name).default
        self._definition.register_fake(fake)
        register_flop_formula(getattr(torch.ops.scaling, name))(count)
        self._recorded: Hook = self._registered  # which says that there is no gradient

    def __call__(self, *arguments: Any) -> Result:
        """As the schema says."""
        if _observed(arguments):
            return self._registered(*arguments)
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in _tensors(arguments)):
            return self._body(*arguments)
        return self._recorded(*arguments)


class Operator(_Node[Result]):
    """The operator `scaling::<name>` and its backward, `scaling::<name>_backward`; called by position.

        _rms_norm = Operator[tuple[Tensor, Tensor]](
            "rms_norm",
            "(Tensor x, Tensor weight, float eps, str implementation) -> (Tensor y, Tensor scale)",
            backward="(grad_y, x, weight, scale, implementation) -> (x, weight)",
            modules=modules(__name__, torch="torch_fused", numba="numba_norm", triton="triton_norm"),
            results=lambda x: (x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=state_dtype(x))),
            flops=0,
        )

    The second line is a schema of torch.library with names for the results. `backward` says what the backward takes:
    gradients of results (the other results have none; where they end in `?`, all may be None), then arguments and
    results, tensors before all else; and of which arguments it gives the gradients. All other facts follow: what is
    saved, what is not differentiable, what the backward's types are.

    The bodies are `forward` and `backward` of the module that `modules` finds for the last argument, `implementation`
    (of its only one, where the schema has no such argument), called with all the others. `bundles` are named tuples:
    arguments that are the fields of one, in a row, come as one, None where the first of them is. Where more is to be
    done, `run_forward` and `run_backward` are called, with the module before the arguments.

    The remaining functions name as their parameters those of the arguments that they want, in any order. `results` and
    `gradients` make tensors without numbers, as a fake mode needs them, of the results' and the gradients' shapes,
    dtypes and strides; where `gradients` is absent, a gradient is contiguous and as its argument, that of `state` as
    `grad_final_state`, and that of an argument which is None is empty, of the first gradient's dtype. `flops` and
    `backward_flops` are given shapes in place of tensors; the backward's are a multiple of the forward's, or counted.

    Bodies run without autocast: casts are for the callers to make (`kernels.dispatch.cast_for_autocast`). Autograd
    itself casts gradients to the dtypes of what they belong to. Raises DeclarationError for what does not fit together.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        *,
        backward: str,
        modules: Callable[..., Any],
        results: Hook,
        flops: Hook | int,
        gradients: Hook | None = None,
        backward_flops: Hook | int = 2,
        bundles: Sequence[Any] = (),
        run_forward: Hook | None = None,
        run_backward: Hook | None = None,
    ) -> None:
        takes, gives = (_typed(name, side) for side in _sides(name, schema))
        plan = _Plan(name, takes, gives, *(_parts(side) for side in _sides(name, backward)))
        wants = plan.backward_takes
        fake = _asking(name, "results", results, takes)
        fake_back = plan.likenesses() if gradients is None else _asking(name, "gradients", gradients, wants)
        count = _counting(name, "flops", flops, takes)
        if callable(backward_flops):
            count_back = _counting(name, "backward_flops", backward_flops, wants)
        else:
            count_back = _counting(name, "flops", flops, wants, backward_flops)
        body = _body(modules, run_forward or "forward", takes, _bundling(name, takes, bundles))
        super().__init__(name, takes, list(gives.values()), body, fake, count)
        body_back = _body(modules, run_backward or "backward", wants, _bundling(name, wants, bundles))
        of_each = ["Tensor"] * len(plan.differentiated)
        self._backward: _Node[Any] = _Node(f"{name}_backward", wants, of_each, body_back, fake_back, count_back)
        self._differentiate_by(plan)

    def _differentiate_by(self, plan: "_Plan") -> None:
        body, lists, keep = self._body, plan.gives_list, plan.keep
        differentiate = plan.differentiating(self._backward)
        self._definition.register_autograd(differentiate, setup_context=keep)

        def forward(ctx: Any, *arguments: Any) -> Any:
            output = body(*arguments)
            keep(ctx, arguments, output)
            return tuple(output) if lists else output

        def backward(ctx: Any, *grads: Any) -> Any:
            return differentiate(ctx, list(grads)) if lists else differentiate(ctx, *grads)

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        function: Any = type(str(self._registered.name()), (torch.autograd.Function,), members)  # a profiler shows it
        self._recorded = (lambda *arguments: list(function.apply(*arguments))) if lists else function.apply


class _Plan:
    """What follows from a declaration for autograd: what is saved, and where each gradient belongs."""

    def __init__(
        self, name: str, takes: dict[str, str], gives: dict[str, str], wants: list[str], differentiated: list[str]
    ) -> None:
        known, results = takes | gives, list(gives)
        of_results = [want for want in wants if want.startswith("grad_")]
        saved = [want for want in wants if known.get(want, "").startswith("Tensor")]
        options = [want for want in wants if want in known and want not in saved]
        if [*of_results, *saved, *options] != wants:
            raise DeclarationError(
                f"{name}: the backward takes ({', '.join(wants)}), expected gradients of results, each grad_<result>, "
                f"then tensors, then what is no tensor, of {', '.join(known)}"
            )
        maybe = {want.removesuffix("?").removeprefix("grad_"): want.endswith("?") for want in of_results}
        if not maybe or not maybe.keys() <= gives.keys():
            raise DeclarationError(
                f"{name}: the backward takes gradients of {', '.join(maybe) or 'nothing'}, expected some of the "
                f"results, {', '.join(gives)}"
            )
        if len(set(maybe.values())) > 1:
            raise DeclarationError(f"{name}: some gradients that the backward takes end in ?, expected all or none")
        if strange := [one for one in differentiated if not takes.get(one, "").startswith("Tensor")]:
            raise DeclarationError(f"{name}: the backward gives a gradient of {strange[0]}, which is no tensor it has")
        grads = {f"grad_{one}": gives[one] + "?" * optional for one, optional in maybe.items()}
        self.name, self.differentiated, self.gives_list = name, differentiated, "Tensor[]" in gives.values()
        self.backward_takes = grads | {want: known[want] for want in (*saved, *options)}
        self._seen = _getter([results.index(one) for one in maybe])
        self._materialized = not any(maybe.values())
        self._one_result = len(gives) == 1
        places = [*takes, *gives]
        self._saved, self._options = (_getter([places.index(one) for one in some]) for some in (saved, options))
        self._aside = [index for index, one in enumerate(results) if one not in maybe]
        none = len(differentiated)
        self._places = _getter([differentiated.index(one) if one in differentiated else none for one in takes])
        self._absentable = [
            (index, list(takes).index(one)) for index, one in enumerate(differentiated) if takes[one] == "Tensor?"
        ]

    def likenesses(self) -> Hook:
        """The function that makes gradients without numbers: as the arguments of the backward to which they belong.

        That of a state is as that of the final one, that of what is None empty. Raises DeclarationError where the
        backward takes neither.
        """
        places = {name: place for place, name in enumerate(self.backward_takes)}
        likes = {one: places.get(one, places.get(f"grad_final_{one}")) for one in self.differentiated}
        if unlike := [one for one, like in likes.items() if like is None]:
            raise DeclarationError(
                f"{self.name}: the backward gives the gradient of {unlike[0]} and does not take {unlike[0]}, so "
                "`gradients` must say what shape it has"
            )
        find = _getter([like for like in likes.values() if like is not None])

        def make(*arguments: Any) -> Any:
            found = find(arguments)
            made = tuple(found[0].new_empty(0) if one is None else one.new_empty(one.shape) for one in found)
            return made if len(made) > 1 else made[0]

        return make

    def keep(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Put into `ctx` what the backward takes."""
        everything = (*inputs, output) if self._one_result else (*inputs, *output)
        ctx.save_for_backward(*self._saved(everything))
        ctx.options = self._options(everything)
        if self._aside:
            ctx.mark_non_differentiable(*(output[index] for index in self._aside))
        if not self._materialized:
            ctx.set_materialize_grads(False)
        if self._absentable:
            ctx.absent = [index for index, place in self._absentable if inputs[place] is None]

    def differentiating(self, backward: Hook) -> Callable[..., tuple[Tensor | None, ...]]:
        """The function that gives the gradient of each argument, None where there is none, from the results'."""
        seen, places, absentable = self._seen, self._places, self._absentable
        one_gradient = len(self.differentiated) == 1

        def differentiate(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
            found = backward(*seen(grads), *ctx.saved_tensors, *ctx.options)
            if one_gradient:
                return places((found, None))
            if absentable:
                found = [None if index in ctx.absent else grad for index, grad in enumerate(found)]
            return places((*found, None))

        return differentiate


def _body(modules: Callable[..., Any], run: str | Hook, takes: dict[str, str], bundled: Hook) -> Hook:
    """The function that calls an implementation: `run`, or the module's function of that name."""
    if isinstance(run, str):
        find = functools.cache(lambda *implementation: getattr(modules(*implementation), run))
    else:
        find = functools.cache(lambda *implementation: functools.partial(run, modules(*implementation)))
    if "implementation" in takes:
        return lambda *arguments: find(arguments[-1])(*bundled(arguments[:-1]))
    return lambda *arguments: find()(*bundled(arguments))


def _bundling(name: str, takes: dict[str, str], bundles: Sequence[Any]) -> Callable[[tuple[Any, ...]], Sequence[Any]]:
    """The function that makes one of the arguments that are the fields of a bundle."""
    places, there = [], list(takes)
    for bundle in bundles:
        if bundle._fields[0] in takes:
            begin = there.index(bundle._fields[0])
            end = begin + len(bundle._fields)
            if there[begin:end] != list(bundle._fields):
                raise DeclarationError(
                    f"{name}: {bundle.__name__} is {', '.join(bundle._fields)}, which do not follow one another in "
                    f"{', '.join(there)}"
                )
            places.append((begin, end, bundle._make))
    places.sort(reverse=True)  # so that what comes before a bundle is still in its place

    def bundled(arguments: tuple[Any, ...]) -> Sequence[Any]:
        parts = list(arguments)
        for begin, end, make in places:
            parts[begin:end] = [None if parts[begin] is None else make(parts[begin:end])]
        return parts

    return bundled if places else lambda arguments: arguments


def _sides(name: str, schema: str) -> tuple[str, str]:
    before, arrow, after = schema.partition(" -> ")
    if not arrow:
        raise DeclarationError(f"{name}: {schema!r} has no results, expected (arguments) -> (results)")
    return before, after


def _parts(side: str) -> list[str]:
    return side.strip("()").split(", ")


def _typed(name: str, side: str) -> dict[str, str]:
    typed = {}
    for part in _parts(side):
        kind, space, argument = part.partition(" ")
        if not space:
            raise DeclarationError(f"{name}: {part!r} in the schema has no name, expected a type and a name")
        typed[argument] = kind
    return typed


def _getter(indices: list[int]) -> Callable[[Any], Any]:
    """The function that picks these of a sequence's elements, a sequence of them also where they are one or none."""
    if len(indices) > 1:
        return itemgetter(*indices)
    return itemgetter(slice(indices[0], indices[0] + 1) if indices else slice(0))


def _asking(name: str, label: str, function: Hook, takes: dict[str, str]) -> Hook:
    """The function of all arguments that gives `function` those which its parameters name."""
    asked, there = list(inspect.signature(function).parameters), list(takes)
    if strange := [one for one in asked if one not in there]:
        raise DeclarationError(f"{name}: {label} asks for {strange[0]}, which is none of {', '.join(there)}")
    get = _getter([there.index(one) for one in asked])
    return lambda *arguments: function(*get(arguments))


def _counting(name: str, label: str, flops: Hook | int, takes: dict[str, str], factor: int = 1) -> Callable[..., int]:
    """A FLOP formula as PyTorch calls it, with the results' shapes besides."""
    count = _asking(name, label, flops, takes) if callable(flops) else lambda *_: flops

    def formula(*shapes: Any, **_: Any) -> int:
        return factor * int(count(*shapes))

    return formula


def _plainly(body: Hook) -> Hook:
    @functools.wraps(body)
    def without(*arguments: Any) -> Any:
        device = next(iter(_tensors(arguments))).device
        if device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            return body(*arguments)
        # Triton launches on the current device, whatever its tensors'.
        on = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
        with on, torch.autocast(device.type, enabled=False):
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
