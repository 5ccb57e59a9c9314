"""Weights go out to other packages and come back as they were."""

import pytest
import torch

from xlstm.export.xlstm_packages import from_nxai, to_nxai
from xlstm.models import build
from xlstm.models.configs import XLSTMConfig
from xlstm.models.initialization import initialize

CONFIG = XLSTMConfig(vocab_size=17, embedding_dim=32, num_blocks=2, slstm_at=(1,))


def weights() -> dict[str, torch.Tensor]:
    model = build(CONFIG)
    initialize(model, 0)
    return {name: value + 0.5 for name, value in model.state_dict().items()}


def test_weights_come_back_from_nxai_as_they_went() -> None:
    ours = weights()
    back = from_nxai(CONFIG, to_nxai(CONFIG, ours))
    assert back.keys() == ours.keys()
    for name, value in ours.items():
        torch.testing.assert_close(back[name], value, rtol=2e-7, atol=2e-7)  # a norm's weight is rounded twice


def test_both_layouts_of_nxais_recurrent_matrices_are_read() -> None:
    vanilla = to_nxai(CONFIG, weights())
    prefix, heads, dim = "xlstm_block_stack.blocks.1.xlstm.slstm_cell.", 4, 8
    recurrent = vanilla[prefix + "_recurrent_kernel_"].reshape(heads, 4, dim, dim)
    cuda = vanilla | {
        prefix + "_recurrent_kernel_": recurrent.permute(0, 3, 1, 2).reshape(heads, dim, 4 * dim),
        prefix + "_bias_": vanilla[prefix + "_bias_"].reshape(4, heads, dim).transpose(0, 1).flatten(),
    }
    for name, value in from_nxai(CONFIG, vanilla).items():
        assert torch.equal(from_nxai(CONFIG, cuda)[name], value), name


def test_weights_of_another_model_are_refused_by_name() -> None:
    theirs = to_nxai(CONFIG, weights())
    theirs["tokens.weight"] = theirs.pop("token_embedding.weight")
    with pytest.raises(ValueError, match=r"missing \['token_embedding.weight'\], unknown \['tokens.weight'\]"):
        from_nxai(CONFIG, theirs)
