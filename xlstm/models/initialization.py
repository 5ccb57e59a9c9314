"""Initial weights that depend on the seed and on each parameter's name alone.

Every parameter is drawn from a generator of its own, on CPU and in float32: neither the number of ranks nor the device
nor the order of construction can change it, and a new parameter leaves the others as they were.
"""

import hashlib
from typing import Protocol

import torch
from torch import Tensor, nn

INITIAL_STD = 0.02
"""Standard deviation of matrices where a family's authors say no other: GPT-2's."""


class Initializes(Protocol):
    """A model that can fill one of its parameters."""

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None: ...


def initial_value(model: Initializes, name: str, shape: torch.Size, seed: int) -> Tensor:
    """The initial value of one parameter: float32 on CPU, whole, whatever the sharding of the model."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
    value = torch.empty(shape)
    with torch.no_grad():
        model.initialize_parameter(name, value, generator)
    return value


def initialize(model: nn.Module, seed: int) -> None:
    """Fill all parameters of a model that is whole on this rank. Tied parameters count once, by their first name."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_value(model, name, parameter.shape, seed))  # type: ignore[arg-type]


def initialize_normal(name: str, parameter: Tensor, generator: torch.Generator, std: float = INITIAL_STD) -> None:
    """Matrices N(0, std²), biases zero, norms one."""
    if parameter.ndim == 1:
        parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
    else:
        parameter.normal_(std=std, generator=generator)
