"""The coordinate check (Yang et al. 2022, arXiv 2203.03466, appendix D): how large activations are after a few steps.

Where rates carry over from width to width, what each block gives and the logits are as large in a wide model as in a
narrow one. Steps are those of training (clipped gradients, the run's optimizer at its peak rate), on one batch of
random tokens that is learnt by heart: what grows with the width does so whatever the text.
"""

from collections.abc import Mapping

import torch
from torch import nn

from xlstm.models import build
from xlstm.models.configs import ModelConfig
from xlstm.run.spec import Physics
from xlstm.training.optimization.optimizer import build_optimizer, clip_gradients, set_step, training_state, update
from xlstm.training.optimization.parametrization import factors_of
from xlstm.training.parallel import init_weights

SEQUENCES, LENGTH = 4, 32


def coordinates(physics: Physics, steps: int) -> Mapping[str, float]:
    """Root mean squares, by place (`block 1` to `logits`), of what a run's model computes after so many steps.

    ValueError for a task of real numbers.
    """
    config: ModelConfig = physics.model
    if config.num_inputs or config.num_outputs:
        raise ValueError(f"a coordinate check reads tokens and predicts them, and {physics.task} has other ends")
    model: nn.Module = build(config)
    factors = factors_of(model, physics)
    init_weights(model, physics.seed, factors)
    optimizer = build_optimizer(model, physics.optimizer, factors)
    training_state(model, optimizer)
    set_step(optimizer, 0)
    generator = torch.Generator().manual_seed(physics.seed)
    length = min(LENGTH, physics.data.context_length)
    text = torch.randint(config.vocab_size, (SEQUENCES, length + 1), generator=generator)
    for _ in range(steps):
        losses, _ = model(text[:, :-1], targets=text[:, 1:])
        losses.mean().backward()
        clip_gradients(list(model.parameters()), physics.optimizer.gradient_clip)
        update(optimizer, physics.optimizer.learning_rate, sound=torch.tensor(True))
    return _sizes(model, text[:, :-1])


@torch.no_grad()
def _sizes(model: nn.Module, tokens: torch.Tensor) -> Mapping[str, float]:
    sizes: dict[str, float] = {}

    def keep(place: str, value: torch.Tensor) -> None:
        sizes[place] = float(value.double().square().mean().sqrt())

    blocks = model.blocks
    assert isinstance(blocks, nn.ModuleList)
    for index, block in enumerate(blocks):
        block.register_forward_hook(lambda _, __, given, index=index: keep(f"block {index + 1}", given[0]))
    keep("logits", model(tokens)[0])
    return sizes
