"""Muon's update against its definition and torch's, and which parameters it moves."""

import math
from typing import Any

import pytest
import torch
from every_family import DIMENSIONS, small
from torch import Tensor

from xlstm.accounting.cost import Sequence, total
from xlstm.accounting.families import costs
from xlstm.models import build
from xlstm.run.spec import Optimizer
from xlstm.training.optimization.muon import BY_MUON, Muon
from xlstm.training.optimization.optimizer import build_optimizer, set_step, training_state, update


def newton_schulz(matrix: Tensor) -> Tensor:
    """Five iterations of the quintic of https://kellerjordan.github.io/posts/muon/, in the matrix's own precision."""
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_updates_are_those_of_a_naive_muon_in_float64_and_bit_for_bit_torchs(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    mine = Muon([{"params": [ours], BY_MUON: True}], lr=1.0, weight_decay=0.1)
    other = torch.optim.Muon([theirs], lr=1.0, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    naive, momentum = start.double(), torch.zeros(shape, dtype=torch.float64)
    for step in range(4):
        gradient = torch.randn(shape, generator=generator)
        ours.grad, theirs.grad, rate = gradient.clone(), gradient.clone(), 0.1 / (step + 1)
        before = ours.detach().double()
        update(mine, rate, sound=torch.tensor(True))
        other.param_groups[0]["lr"] = rate
        other.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        direction = newton_schulz(0.05 * gradient + 0.95 * momentum)
        naive = naive * (1 - 0.1 * rate) - rate * 0.2 * math.sqrt(max(shape)) * direction
        made = (before * (1 - 0.1 * rate) - ours.detach()) / (rate * 0.2 * math.sqrt(max(shape)))
        # Fifteen products in bfloat16, whose rounding the steep quintic makes up to 3.4 times larger each time it is
        # far from one; singular values beyond that are drawn together again.
        assert (made - direction).norm() / direction.norm() < 5 * torch.finfo(torch.bfloat16).eps
    assert torch.equal(ours, theirs)
    assert (ours - naive).norm() / naive.norm() < torch.finfo(torch.bfloat16).eps


def test_nothing_moves_where_gradients_are_no_numbers_and_what_is_saved_is_all_there_is() -> None:
    def made() -> tuple[Any, Any, dict[str, Tensor]]:
        torch.manual_seed(0)
        model = build(small("llama", vocab_size=16, embedding_dim=16))
        optimizer = build_optimizer(model, Optimizer(name="muon", learning_rate=1e-2))
        return model, optimizer, training_state(model, optimizer)

    def step(model: Any, optimizer: Any, number: int, *, poisoned: bool = False) -> None:
        tokens = torch.arange(32).view(2, 16).add(number) % 16
        model(tokens, targets=tokens.roll(-1, 1))[0].sum().backward()
        if poisoned:
            model.blocks[0].up.weight.grad[0, 0] = float("nan")
        update(optimizer, 1e-2, sound=torch.tensor(not poisoned))

    model, optimizer, state = made()
    set_step(optimizer, 0)
    step(model, optimizer, 0)
    saved = {name: tensor.clone() for name, tensor in state.items()}
    step(model, optimizer, 1, poisoned=True)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in state.items())
    assert {name.partition(".")[0] for name in saved if name.endswith("blocks.0.up.weight")} == {
        "model",
        "momentum_buffer",
    }
    step(model, optimizer, 1)
    _, again, continued = resumed = made()
    for name, tensor in continued.items():
        tensor.copy_(saved[name])
    set_step(again, 1)
    step(resumed[0], again, 1)
    assert all(torch.equal(tensor, state[name]) for name, tensor in continued.items())


@pytest.mark.parametrize("family", DIMENSIONS)
def test_muon_moves_the_matrices_that_are_counted_and_none_of_embedding_head_and_vectors(family: str) -> None:
    config = small(family, vocab_size=16, embedding_dim=64)
    with torch.device("meta"):
        model = build(config)
    optimizer = build_optimizer(model, Optimizer(name="muon", learning_rate=1e-2))
    moved = [one for group in optimizer.param_groups if group.get(BY_MUON) for one in group["params"]]
    assert sum(one.numel() for one in moved) == total(costs(config, Sequence(1, 1, True))).matrices
    outside = {
        id(model.embedding.weight),
        *(id(one) for name, one in model.named_parameters() if name == "head.weight"),
    }
    assert not outside & {id(one) for one in moved}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
