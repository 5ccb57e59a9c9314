"""Llama: documents, cache, initial weights and parameter counts."""

import torch
from torch import nn

from xlstm.models.configs import LlamaConfig
from xlstm.models.llama import Llama

CONFIG = LlamaConfig(vocab_size=61, embedding_dim=32, num_blocks=2, num_heads=4)


def model() -> Llama:
    torch.manual_seed(0)
    built = Llama(CONFIG).double()
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.3)
    return built


def tokens(batch: int, time: int) -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab_size, (batch, time), generator=torch.Generator().manual_seed(1))


def test_logits_do_not_depend_on_later_tokens() -> None:
    llama, text = model(), tokens(2, 12)
    changed = text.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % CONFIG.vocab_size
    before, after = llama(text)[0], llama(changed)[0]
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=0, atol=0)
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_cached_steps_equal_one_pass() -> None:
    llama, text = model(), tokens(2, 12)
    whole, _ = llama(text)
    state, pieces = None, []
    for piece in text.split([5, 1, 1, 4, 1], dim=1):
        logits, state = llama(piece, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
