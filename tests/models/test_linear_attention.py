"""What is easily got wrong in the families around linear attention: bounds, precision, initial values."""

import pytest
import torch

from xlstm.models import build
from xlstm.models.bounded_gates import LowerBounds, bounded_gate
from xlstm.models.initialization import initialize
from xlstm.models.linear_configs import HGRN2Config
from xlstm.models.sizes import config_for


@pytest.mark.parametrize("bound", [0.0, 0.9])
def test_what_a_forget_gate_lets_in_is_exact_where_it_forgets_nothing(bound: float) -> None:
    logits = torch.tensor([-60.0, -16.0, -4.0, 0.0, 4.0, 16.0, 40.0])
    exact = bounded_gate(logits.double(), torch.tensor(bound, dtype=torch.float64))
    for actual, expected in zip(bounded_gate(logits, torch.tensor(bound)), exact, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=0)
    in_bfloat16 = bounded_gate(torch.tensor(4.0).bfloat16(), torch.tensor(bound))[1]
    torch.testing.assert_close(in_bfloat16, exact[1][4].float(), rtol=1e-2, atol=0)  # as a difference it would be 0


def test_every_block_starts_to_keep_its_share_of_the_depth_at_least() -> None:
    bounds = LowerBounds(HGRN2Config(vocab_size=8, embedding_dim=4, num_blocks=5, head_dim=4))
    torch.nn.init.zeros_(bounds.shares)
    for block, bound in enumerate(bounds()):
        torch.testing.assert_close(bound.value, torch.full((4,), block / 5))


@pytest.mark.parametrize("family", ["rwkv5", "rwkv6"])
def test_rwkv_starts_with_token_shift_and_memories_of_many_lengths(family: str) -> None:
    """The author's start: another library's zeros shift nothing and forget by e at every token."""
    model = build(config_for(family, {"embedding_dim": 128, "num_blocks": 2}, 8))
    initialize(model, seed=0)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    decay = -weights["blocks.0.time_mix.decay"].flatten().exp()
    torch.testing.assert_close(decay[[0, -1]], -torch.tensor([-6.0, -1.0]).exp())
    assert (decay.diff() <= 0).all()
    own = weights["blocks.0.channel_mix.shift_key"]
    torch.testing.assert_close(own[64], torch.tensor(0.5))  # height 1 in the first block, in both versions
    assert not weights["blocks.1.time_mix.out.weight"].any()
    assert weights["blocks.1.time_mix.bonus"].flatten()[3] == pytest.approx(1 - 3 / 127)
