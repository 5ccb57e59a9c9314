"""The maximal-update parametrization: rates and initial weights of each parameter, over those of the base width.

Of Yang et al. 2022 (arXiv 2203.03466, table 8), for AdamW, and by the spectral condition (Yang, Simon & Bernstein 2023,
arXiv 2310.17813) for Muon. What it multiplies in the forward pass (the logits, the scores of attention) is folded into
weights and their rates, which is the same training (their lemma J.1): models, checkpoints and exports know nothing of
it. A map is known by its inputs and outputs, here and in the base; see docs/mup.md for what is derived of each kind.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn

from xlstm.models import build
from xlstm.models.initialization import initial_value
from xlstm.run.rates.transfer import base_model, score_scale
from xlstm.run.spec import Physics


@dataclass(frozen=True)
class Factors:
    """One parameter beside itself at the base width, where all are 1."""

    rate: float = 1.0
    """Of the learning rate; the decay of a step stays what it is in the base."""
    epsilon: float = 1.0
    """Of what AdamW adds to the root of squared gradients, as those shrink with the width."""
    muon_rate: float = 1.0
    """Of the learning rate where Muon moves it, whose updates have a size of their own."""
    scale: float = 1.0
    """Of the family's own initial value, where `size` says nothing."""
    size: float | None = None
    """Root mean square of the initial value."""

    def initial(self, value: Tensor) -> Tensor:
        """The family's own initial value, at the size that is wanted."""
        size = _size(value)
        if self.size is None or size == 0:
            return value if self.scale == 1 else value * self.scale
        return value if self.size == size else value * _rounded(self.size / size)


STANDARD: Mapping[str, Factors] = MappingProxyType({})
"""Of the standard parametrization: no parameter has any."""


def factors_of(model: nn.Module, physics: Physics) -> Mapping[str, Factors]:
    """Of each parameter of a model, which may be on the meta device, by its plain name."""
    if physics.parametrization == "standard":
        return STANDARD
    config = base_model(physics.model, physics)
    with torch.device("meta"):
        base = build(config)
    of_base = dict(base.named_parameters())
    width = physics.model.embedding_dim / config.embedding_dim
    scores = score_scale(physics.model, config)
    found = {}
    for name, parameter in named_parameters(model):
        mine, its = (_fans(one, name, shape) for one, shape in ((model, parameter.shape), (base, of_base[name].shape)))
        folded = scores if model.asks(name) else 1.0  # type: ignore[operator]
        own = Factors(epsilon=1 / width)
        if name == "head.weight" or (model.tied and name.startswith("norm.")):
            folded = 1 / width
            own = replace(own, rate=folded, scale=folded)
        elif mine is not None and its is not None:
            inputs, outputs = (here / there for here, there in zip(mine, its, strict=True))
            longest = max(parameter.shape) / max(of_base[name].shape)
            spectral = (outputs / inputs / longest) ** 0.5
            own = replace(own, rate=folded / inputs, muon_rate=folded * spectral, scale=folded / inputs**0.5)
        if mine is not None or name.endswith(("embedding.weight", *model.drawn_by_width)):  # type: ignore[misc]
            size = _size(initial_value(base, name, of_base[name].shape, physics.seed))  # type: ignore[arg-type]
            own = replace(own, size=size * own.scale)
        found[name] = replace(own, epsilon=own.epsilon / folded)
    return found


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters under names that do not depend on how the model is spread over ranks."""
    return ((plain_name(name), parameter) for name, parameter in model.named_parameters())


def plain_name(name: str) -> str:
    """Name of a parameter without what wrapping put into it: the same however the model is spread.

    The parts left out are private names of torch, of `checkpoint_wrapper` and of `torch.compile`.
    """
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


def _fans(model: nn.Module, name: str, shape: torch.Size) -> tuple[int, int] | None:
    fans: tuple[int, int] | None = model.fans(name, shape)  # type: ignore[operator]
    return fans


def _size(value: Tensor) -> float:
    """The root mean square, whatever the number of threads that sum it."""
    return _rounded(float(value.double().square().mean().sqrt()))


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")
