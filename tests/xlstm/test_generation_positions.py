"""A model with positions writes on when all of them are taken."""

import pytest
import torch

from xlstm.data.tokenizers import ByteTokenizer
from xlstm.generation import TrainedRun
from xlstm.models import build
from xlstm.models.configs import GPTConfig, XLSTMConfig
from xlstm.models.initialization import initialize


def test_gpt_writes_beyond_its_context_from_the_latter_half_of_what_it_can_read() -> None:
    config = GPTConfig(vocab_size=256, embedding_dim=16, num_blocks=1, num_heads=2, context_length=16)
    model = build(config)
    initialize(model, seed=0)
    text = "".join(TrainedRun("a", 0, model, ByteTokenizer()).generate("x" * 40, tokens=30, temperature=0))
    tokens = [0xFF, *("x" * 40).encode()]
    read, written = tokens[-8:], []
    for _ in range(30):  # nothing remembered: the whole text that is seen, each time
        if len(read) > 16:
            read = (tokens + written)[-8:]
        with torch.no_grad():
            logits, _ = model(torch.tensor([read]))
        token = int(logits[0, -1].argmax())
        if token == 0xFF:
            break
        written.append(token)
        read = [*read, token]
    assert text == bytes(written).decode(errors="replace")
    assert len(written) > 16


def test_odd_widths_of_the_pre_up_projection_are_refused() -> None:
    with pytest.raises(ValueError, match="embedding_dim must be even"):
        XLSTMConfig(vocab_size=8, embedding_dim=33, num_blocks=2, num_heads=3)
    assert XLSTMConfig(vocab_size=8, embedding_dim=33, num_blocks=1, num_heads=3, slstm_at=(0,)).embedding_dim == 33
