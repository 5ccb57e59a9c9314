"""What blocks are counted to keep for their backward pass is what autograd keeps."""

import pytest
import torch
from torch import Tensor

from xlstm.accounting.cost import Sequence
from xlstm.accounting.families import saved
from xlstm.models import build
from xlstm.models.initialization import initialize
from xlstm.models.sizes import config_for

TIME, WIDTH = 256, 256


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["xlstm[1:0]", "xlstm[0:1]", "xlstm-large"])
def test_blocks_keep_the_bytes_counted_within_fifteen_percent(family: str, dtype: torch.dtype) -> None:
    config = config_for(family, {"embedding_dim": WIDTH, "num_blocks": 1, "num_heads": 4}, 64)
    model = build(config)
    initialize(model, 0)
    block = model.blocks[0].to(dtype)  # type: ignore[index, operator]
    weights = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    kept: dict[int, Tensor] = {}  # by storage; held, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = torch.randn(1, TIME, WIDTH, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(x)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / TIME
    counted = saved(config, Sequence(TIME, TIME, True))[0].bytes_per_token(dtype.itemsize)
    assert counted == pytest.approx(measured, rel=0.15)
