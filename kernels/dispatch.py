"""Choosing the implementation of an operator, and the reasons why one cannot run.

Every public function of this package takes `implementation`:

- `auto`: what `prefer` named in this process; else `triton` for tensors on a CUDA device, `numba` for those on a CPU,
  where there are such kernels and they take dtype and shapes; else, and for the mLSTM in float32 on CUDA, `torch`;
  a compiler that traces for CUDA gets the plain expressions of what it fuses with its neighbours (Llama's norm,
  rotary positions and SwiGLU);
- `reference`: the plain recurrence, the definition; slow, differentiated by autograd;
- `torch`: fast on any device, with a hand-written backward;
- `numba`: compiled kernels for CPUs and float32, of the operators that gain by them;
- `triton`: compiled kernels; on CPU only through Triton's interpreter (TRITON_INTERPRET=1 before triton is imported).

Asking for one that cannot run, in a call or by `prefer`, raises ImplementationError with the reason. Only `auto` may
choose another; and a preference for `numba` or `triton` leaves an operator without such kernels to `torch`.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

Implementation: TypeAlias = Literal["auto", "reference", "torch", "numba", "triton"]
Chosen: TypeAlias = Literal["reference", "torch", "numba", "triton"]

TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes of inputs that the Triton kernels take."""

HOPPER_TRITON = (3, 6)
"""The first Triton that may compile for compute capability 9."""

_preferred: Implementation = "auto"


def prefer(implementation: Implementation) -> None:
    """What `auto` means from now on in this process: one implementation of every operator, or what suits each."""
    global _preferred
    _preferred = implementation


class ImplementationError(ValueError):
    """The implementation asked for does not exist or cannot run here; the message says why and what would."""


def modules(package: str, **names: str) -> Callable[..., Any]:
    """The module of `package` that holds an implementation, by the implementation's name; imported when asked for.

    Without a name, the first: for operators that have one implementation alone. ImplementationError for one that is not
    declared although `choose` was not told so.
    """

    @functools.cache
    def module(implementation: str = next(iter(names))) -> Any:
        if implementation not in names:
            raise ImplementationError(f"{package}: has no {implementation!r}, only {', '.join(names)}")
        return importlib.import_module(f"{package}.{names[implementation]}")

    return module


def triton_obstacle(tensor: Tensor) -> str | None:
    """Why Triton kernels cannot run on this tensor's device or in its dtype, or None where they can."""
    if tensor.dtype not in TRITON_DTYPES:
        return f"{tensor.dtype} is not supported; float32, float16 and bfloat16 are"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if tensor.is_cuda:
        major, minor = torch.cuda.get_device_capability(tensor.device)
        if major < 8:
            return f"compute capability {major}.{minor} is below 8.0"
        return _hopper_obstacle(importlib.metadata.version("triton")) if major == 9 else None
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"the tensors are on {tensor.device} and Triton's interpreter is off (TRITON_INTERPRET=1 turns it on)"


def _hopper_obstacle(version: str) -> str | None:
    """Why this Triton may not compile for Hopper, or None.

    Whether operands of a warp-group product come from shared memory was read from what 3.6 and later make of these
    kernels; from registers, the next turn of a loop may overwrite them (triton-lang/triton issue 9433).
    """
    if tuple(int(part) for part in version.split(".")[:2]) >= HOPPER_TRITON:
        return None
    least = ".".join(map(str, HOPPER_TRITON))
    return f"Triton {version} is below {least}, the first whose matrix products were checked on Hopper"


def choose(
    operator: str,
    implementation: Implementation,
    tensor: Tensor,
    shape_obstacle: Callable[[], str | None] | None = lambda: None,
    cpu_obstacle: Callable[[], str | None] | None = None,
    of_products: bool = False,
    fusible: bool = False,
) -> Chosen:
    """The implementation that will run for `tensor`.

    `shape_obstacle` says why the Triton kernels refuse the shapes, `cpu_obstacle` why the Numba kernels refuse the
    operands; None where the operator has none. `of_products`: its Triton kernels are matrix products, which in float32
    have no tensor cores and are left to the library unless asked for. `fusible`: its definition is plain expressions,
    which torch.compile makes one kernel of with their neighbours. Raises ImplementationError for an unknown name, or
    for `triton` or `numba` where it cannot run.
    """
    names = get_args(Implementation)
    if implementation not in names:
        raise ImplementationError(f"{operator}: implementation {implementation!r} is none of {', '.join(names)}")
    if implementation == "auto":
        lacking = {"numba": cpu_obstacle is None, "triton": shape_obstacle is None}
        implementation = "torch" if lacking.get(_preferred) else _preferred
    if implementation == "auto":
        if _on_gpu(tensor) and fusible and torch.compiler.is_compiling():
            return "reference"
        if _on_gpu(tensor):
            by_library = of_products and tensor.dtype == torch.float32
            on_gpu = shape_obstacle is not None and triton_obstacle(tensor) is None and shape_obstacle() is None
            on_gpu = on_gpu and not by_library
            return "triton" if on_gpu else "torch"
        for_cpus = tensor.device.type == "cpu" and cpu_obstacle is not None and cpu_obstacle() is None
        return "numba" if for_cpus else "torch"
    obstacle = None
    if implementation == "triton":
        no_kernels = "this operator has no Triton kernels"
        obstacle = no_kernels if shape_obstacle is None else triton_obstacle(tensor) or shape_obstacle()
    if implementation == "numba":
        obstacle = "this operator has no kernels for CPUs" if cpu_obstacle is None else cpu_obstacle()
    if obstacle is not None:
        raise ImplementationError(f"{operator}: implementation {implementation!r} cannot run: {obstacle}")
    return implementation


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def state_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of states and accumulators: float64 for float64 inputs, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def cast_for_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in autocast's dtype where autocast is on for their device, else as they are."""
    device_type = tensors[0].device.type
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(t if t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def expect_shape(operator: str, name: str, tensor: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    """Raise ValueError unless `tensor` has this shape; the message names the operator, the argument and the axes."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{operator}: {name} has shape {tuple(tensor.shape)}, expected {shape} = {meaning}")


def expect_resets(operator: str, resets: Tensor | None, batch: int, time: int) -> None:
    """Raise ValueError unless `resets` is absent or what says where documents begin: bool (batch, time)."""
    if resets is None:
        return
    expect_shape(operator, "resets", resets, (batch, time), "(batch, time)")
    if resets.dtype != torch.bool:
        raise ValueError(f"{operator}: resets are {resets.dtype}, expected torch.bool")
