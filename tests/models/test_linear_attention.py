"""What is easily got wrong in the families around linear attention: bounds, precision, initial values."""

import pytest
import torch

from xlstm.accounting import parameters
from xlstm.models import build
from xlstm.models.bounded_gates import LowerBounds
from xlstm.models.initialization import initialize
from xlstm.models.linear_configs import HGRN2Config
from xlstm.models.naming import family_label
from xlstm.models.sizes import config_for


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


@pytest.mark.parametrize("size", ["125M", "350M", "2.7B"])
@pytest.mark.parametrize("pattern", ["gated-deltanet[3]+llama[1]", "mamba2[7]+llama[1]", "xlstm[7]+mamba[1]"])
def test_blocks_in_turns_have_the_parameters_of_the_size(pattern: str, size: str) -> None:
    """Within 3 % of what lies between its families, and exactly those of the model."""
    config = config_for(pattern, size, 50_304)
    assert family_label(config) == pattern
    names = [turn.partition("[")[0] for turn in pattern.split("+")]
    alone = [parameters(config_for("xlstm[1:0]" if n == "xlstm" else n, size, 50_304)).total for n in names]
    assert 0.97 * min(alone) < parameters(config).total < 1.03 * max(alone)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build(config).parameters()) == parameters(config).total


def test_a_pattern_that_is_none_is_refused_by_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"`rwkv4\[1\]` of .* is none of gated-deltanet\[n\]"):
        config_for("rwkv4[1]+llama[1]", "125M", 50_304)
    with pytest.raises(ValueError, match="must name two families at least, and each once"):
        config_for("llama[1]+llama[2]", "125M", 50_304)
