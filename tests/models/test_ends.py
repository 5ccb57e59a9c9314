"""Real numbers in, classes or a number out, dropout and the paper's sLSTM: the same ways for every family."""

import numpy as np
import pytest
import torch
from every_family import DIMENSIONS

from xlstm.accounting import flops_per_token, parameters
from xlstm.export.transformers_config import config_to_transformers
from xlstm.models import IGNORED, build
from xlstm.models.configs import XLSTMConfig
from xlstm.models.dropout import Dropout
from xlstm.models.initialization import initialize
from xlstm.models.sizes import config_for
from xlstm.randomness import mix

ENDS = {"num_inputs": 3, "num_outputs": 1, "regression": True}


def made(family: str, **ends: int | bool) -> torch.nn.Module:
    sizes = {"embedding_dim": 16, "num_blocks": 2} | DIMENSIONS[family]
    model = build(config_for(family, sizes, 7, **ends)).double()
    initialize(model, 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # away from initial values, of which some are zero
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


@pytest.mark.parametrize("family", DIMENSIONS)
def test_numbers_go_in_and_a_number_or_classes_come_out(family: str) -> None:
    model, vectors = made(family, **ENDS), torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.rand(2, 5).double()
    targets[:, 0] = IGNORED
    said, _ = model(vectors)
    assert said.shape == (2, 5, 1)
    errors, _ = model(vectors, targets=targets)
    torch.testing.assert_close(errors[:, 1:], (said.squeeze(-1) - targets)[:, 1:] ** 2)
    assert not errors[:, 0].any()
    errors.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ValueError, match="numbers or classes"):
        config_to_transformers(model.config, 8)
    classes = made(family, num_outputs=4)
    tokens = torch.tensor([[1, 6, 0]])
    logits, _ = classes(tokens)
    assert logits.shape == (1, 3, 4)
    answer = torch.tensor([[IGNORED, IGNORED, 2]])
    torch.testing.assert_close(classes(tokens, targets=answer)[0].sum(), -logits[0, 2].log_softmax(-1)[2])
    for one in (model, classes):
        assert parameters(one.config).total == sum(parameter.numel() for parameter in one.parameters())
    wider = flops_per_token(model.config, 8).products - flops_per_token(classes.config, 8).products
    assert wider == 2 * 16 * 3 + 2 * 16 * (1 - 4)


@pytest.mark.parametrize("family", DIMENSIONS)
def test_dropout_is_a_function_of_each_sequence_alone(family: str) -> None:
    model, tokens = made(family), torch.randint(0, 7, (3, 6), generator=torch.Generator().manual_seed(1))
    keys = torch.tensor([5, -9, 2**62])
    whole = model(tokens, dropout=Dropout(0.5, keys))[0]
    assert not torch.allclose(whole, model(tokens)[0])
    parts = [model(tokens[row : row + 1, :4], dropout=Dropout(0.5, keys[row : row + 1]))[0] for row in range(3)]
    torch.testing.assert_close(torch.cat(parts), whole[:, :4])
    assert not torch.allclose(model(tokens[:1], dropout=Dropout(0.5, keys[1:2]))[0], whole[:1])


def test_dropout_leaves_out_its_share_by_the_words_of_splitmix() -> None:
    before, after = torch.zeros(4, 50, 40), torch.ones(4, 50, 40)
    keys = torch.arange(4)
    found = Dropout(0.25, keys)(before, after, 3)
    assert sorted(found.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert (found == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    # The finaliser of `xlstm.randomness`, less the constant that it adds first.
    less = np.uint64(2**64 - 0x9E3779B97F4A7C15)
    places = mix((np.arange(2000, dtype=np.uint64) + np.uint64(3 << 40)) + less)
    words = mix((keys.numpy().astype(np.uint64)[:, None] ^ places) + less)
    dropped = (words & np.uint64(2**24 - 1)) < 2**22
    assert ((found == 0).view(4, -1).numpy() == dropped).all()


def test_the_slstm_starts_and_sees_as_said() -> None:
    sizes = {"embedding_dim": 64, "num_blocks": 2, "num_heads": 2}
    plain, paper = (
        build(config_for("xlstm[1:1]", sizes | changed, 7))
        for changed in ({}, {"slstm_convolution": False, "slstm_initialization": "uniform"})
    )
    for model in (plain, paper):
        initialize(model, 0)
        assert isinstance(model.config, XLSTMConfig)
        assert parameters(model.config).total == sum(parameter.numel() for parameter in model.parameters())
    assert [block.conv is None for block in plain.blocks] == [False, False]  # type: ignore[union-attr]
    assert [block.conv is None for block in paper.blocks] == [False, True]  # type: ignore[union-attr]
    assert not plain.blocks[1].recurrent.any()  # type: ignore[index, union-attr, operator]
    for name in ("recurrent", "bias"):
        values = getattr(paper.blocks[1], name)  # type: ignore[index]
        assert values.abs().max() <= 1 / 8
        assert values.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.1)
