"""What a block is counted to keep for its backward pass is what autograd keeps."""

from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm.accounting.families import saved
from xlstm.models import build
from xlstm.models.initialization import initialize
from xlstm.models.sizes import config_for

TIME, WIDTH = 256, 256
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("xlstm[1:0]", {"num_heads": 4}),
    ("xlstm[1:0]", {"num_heads": 4, "convolution": False}),
    ("xlstm[1:0]", {"num_heads": 4, "mlstm_block": "post-up"}),
    ("xlstm[0:1]", {"num_heads": 4}),
    ("xlstm[0:1]", {"num_heads": 4, "convolution": False}),
    ("xlstm[0:1]", {"num_heads": 4, "slstm_gates": "dense", "slstm_feedforward_factor": 2.6}),
    ("xlstm-large", {"num_heads": 4}),
    ("llama", {"num_heads": 4}),
    ("gpt", {"num_heads": 4, "context_length": TIME}),
    ("mamba", {}),
    ("rwkv4", {}),
    ("gla", {}),
    ("hgrn2", {}),
    ("rwkv5", {}),
    ("rwkv6", {}),
    ("hgrn", {}),
    ("retnet", {"head_dim": 64}),
    ("mamba2", {}),
    ("gated-deltanet", {"num_heads": 3}),
    ("rwkv7", {}),
    ("h3", {}),
    ("hyena", {"context_length": TIME}),
    ("lstm[vanilla]", {}),
    ("lstm[residual]", {}),
    ("lstm", {}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("family", "dimensions"), MODELS, ids=str)
def test_a_block_keeps_the_bytes_counted_within_fifteen_percent(
    family: str, dimensions: dict[str, Any], dtype: torch.dtype
) -> None:
    config = config_for(family, {"embedding_dim": WIDTH, "num_blocks": 1, **dimensions}, 64)
    measured = bytes_kept(family, dimensions, 2, dtype) - bytes_kept(family, dimensions, 1, dtype)
    counted = saved(config)[0].bytes_per_token(dtype.itemsize)
    assert counted * TIME == pytest.approx(measured, rel=0.15)


def bytes_kept(family: str, dimensions: dict[str, Any], num_blocks: int, dtype: torch.dtype) -> int:
    """Of a model of so many blocks, its weights left out."""
    model = build(config_for(family, {"embedding_dim": WIDTH, "num_blocks": num_blocks, **dimensions}, 64))
    initialize(model, 0)
    model.to(dtype)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # by storage; held, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.zeros(1, TIME, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(tokens, targets=tokens)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
