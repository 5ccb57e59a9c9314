"""A model with positions writes on when all of them are taken; prompts are continued together as alone."""

import pytest
import torch
from every_family import small

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


@pytest.mark.parametrize(
    "family", ["gpt", "llama", "xlstm[1:1]", "mamba", "retnet", "rwkv7", "hgrn2", "gated-deltanet[1]+llama[1]"]
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_prompts_of_any_lengths_are_continued_together_as_each_alone(family: str, temperature: float) -> None:
    config = small(family, vocab_size=256, embedding_dim=16)
    model = build(config)
    initialize(model, seed=0)
    run = TrainedRun("a", 0, model.double(), ByteTokenizer())
    prompts = ["", "x", "a longer prompt, as it were", "y" * (60 if family == "gpt" else 11)]
    alone = [run.complete([prompt], tokens=20, temperature=temperature)[0] for prompt in prompts]
    assert alone == ["".join(run.generate(prompt, tokens=20, temperature=temperature)) for prompt in prompts]
    assert run.complete(prompts, tokens=20, temperature=temperature) == alone
    assert len(set(alone)) > 1
    assert run.complete([]) == []


@pytest.mark.parametrize("family", ["gpt", "llama", "gated-deltanet[1]+llama[1]"])
def test_a_token_is_appended_without_a_copy_and_pasts_that_branch_keep_apart(family: str) -> None:
    model = build(small(family, vocab_size=50, embedding_dim=16))
    initialize(model, seed=0)
    tokens = torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, _ = model(tokens)
        _, state = model(tokens[:, :8])
        said, states = [], []
        for token in tokens[:, 8:].unbind(1):
            logits, onward = model(token[:, None], state)
            branch, _ = model((token + 1)[:, None] % 50, state)  # another continuation of the same past
            state = onward
            said.append(logits)
            states.append(getattr(state, "past", state).blocks[0])
        again, _ = model((tokens[:, -1:] + 1) % 50, model(tokens[:, :-1])[1])
    torch.testing.assert_close(torch.cat(said, 1), whole[:, 8:])
    torch.testing.assert_close(branch, again)
    buffers = {known.keys.untyped_storage().data_ptr() for known in states}
    assert len(buffers) == 3, "of 16, 32 and 64 tokens"


def test_odd_widths_of_the_pre_up_projection_are_refused() -> None:
    with pytest.raises(ValueError, match="embedding_dim must be even"):
        XLSTMConfig(vocab_size=8, embedding_dim=33, num_blocks=2, num_heads=3)
    assert XLSTMConfig(vocab_size=8, embedding_dim=33, num_blocks=1, num_heads=3, slstm_at=(0,)).embedding_dim == 33
