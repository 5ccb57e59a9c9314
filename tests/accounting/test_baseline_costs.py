"""FLOPs and kept activations of the baselines, against counters of PyTorch on the models themselves."""

import dataclasses
import functools

import pytest
import torch
from every_family import DIMENSIONS, small
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import xlstm.models.lstm
from kernels.lstm import lstm
from xlstm.accounting import flops_per_token
from xlstm.accounting.families import saved
from xlstm.models import build
from xlstm.models.configs import HybridConfig, MambaConfig
from xlstm.models.initialization import initialize
from xlstm.models.linear_configs import GatedDeltaNetConfig, Mamba2Config, RetNetConfig
from xlstm.models.long_convolution_configs import H3Config, HyenaConfig

BATCH, LENGTH = 2, 64
CONFIGS = {
    family: small(family, vocab_size=31, embedding_dim=192) for family in DIMENSIONS if not family.startswith("xlstm")
}
"""xLSTM's own costs are compared in `test_flops`."""


RECURRENCES = tuple(
    f"scaling.{name}" for name in ("causal_conv_silu", "linear_recurrence", "long_convolution", "selective_scan", "wkv")
)
"""Operators without matrix products."""

BY_HAND = ("lstm", "gla", "hgrn2", "rwkv5", "rwkv6", "retnet", "mamba2", "gated-deltanet", "rwkv7", "hyena")
"""Families whose elementwise recurrence is no operator of ours, or is part of one that is counted by its products."""


def tokens() -> Tensor:
    return torch.randint(31, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))


def filter_products(config: H3Config | HyenaConfig) -> int:
    """FLOPs of one block's filters over LENGTH tokens, a multiple of the pieces that H3's powers are made in."""
    if isinstance(config, H3Config):
        return 2 * LENGTH * config.state_dim * config.embedding_dim
    mapped = config.num_features + 2 * config.filter_dim + (config.order - 1) * config.embedding_dim
    return 2 * LENGTH * config.filter_dim * mapped


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_products_are_those_that_pytorch_counts(family: str, backward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # The fused LSTM hides its products from the counter; its definition shows them.
    monkeypatch.setattr(xlstm.models.lstm, "lstm", functools.partial(lstm, implementation="reference"))
    config = CONFIGS[family]
    model = build(config)
    initialize(model, seed=0)
    # As plain products, attention is seen by the counter too.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        losses, _ = model(tokens(), targets=tokens())
        if backward:
            losses.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    recurrences = sum(count for operation, count in counts.items() if str(operation).startswith(RECURRENCES))
    counted = (counter.get_total_flops() - recurrences) / (BATCH * LENGTH)
    expected = flops_per_token(config, LENGTH, backward=backward, causal=False).products
    if backward and family.startswith("lstm"):
        # The empty state before the first token needs no gradient: one product less in each sequence and block.
        expected -= 8 * config.embedding_dim**2 * config.num_blocks / LENGTH
    if isinstance(config, Mamba2Config):
        # Heads share keys and queries, so the model's products of them are one head's; the operator makes each head's.
        surplus = (config.num_heads - 1) * 2 * LENGTH * config.state_dim * config.num_blocks
        expected += surplus * (3 if backward else 1)
    if backward and isinstance(config, RetNetConfig | Mamba2Config):
        # The mLSTM makes its scores a second time, instead of keeping them.
        keys = config.embedding_dim if isinstance(config, RetNetConfig) else config.num_heads * config.state_dim
        expected += 2 * LENGTH * keys * config.num_blocks
    delta = config.parts()[0] if isinstance(config, HybridConfig) else config
    if isinstance(delta, GatedDeltaNetConfig):
        # A decay by head leaves two kinds of pairs and three products with states; the operator makes four and four.
        keys, values, heads = delta.key_dim, delta.value_dim, delta.num_heads
        blocks = config.num_blocks // (1 if delta is config else 2)
        surplus = (4 * LENGTH * (keys + values) + 2 * keys * values / heads) * blocks
        expected += surplus * (3 if backward else 1)
    if isinstance(config, H3Config | HyenaConfig):
        # Filters are made once a pass; Hyena's again for their gradients, while H3's end with the product.
        times = (4 if isinstance(config, HyenaConfig) else 3) if backward else 1
        expected += times * filter_products(config) * config.num_blocks / (BATCH * LENGTH)
    assert counted == pytest.approx(expected, rel=1e-12)
    if not family.startswith(BY_HAND):
        skips = (
            2 * config.inner_dim * config.num_blocks if isinstance(config, MambaConfig) else 0
        )  # u D, beside the scan
        elementwise = flops_per_token(config, LENGTH, backward=backward).recurrence - (3 if backward else 1) * skips
        assert recurrences / (BATCH * LENGTH) == pytest.approx(elementwise, rel=1e-12)


@pytest.mark.parametrize("family", CONFIGS)
def test_kept_activations_are_those_that_autograd_saves(family: str) -> None:
    """Per token and block: what three blocks keep beyond one, halved."""
    config = CONFIGS[family]

    def bytes_kept(num_blocks: int) -> int:
        model = build(dataclasses.replace(config, num_blocks=num_blocks))
        initialize(model, seed=0)
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(tokens(), targets=tokens())
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    measured = (bytes_kept(3) - bytes_kept(1)) / 2 / (BATCH * LENGTH)
    kept = saved(dataclasses.replace(config, num_blocks=3))
    predicted = sum(block.bytes_per_token(itemsize=4) for block in kept[1:]) / 2
    assert predicted == pytest.approx(measured, rel=0.1)
