"""A model with positions writes on when all of them are taken; prompts are continued together as alone."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from every_family import DIMENSIONS, small
from torch.utils._python_dispatch import TorchDispatchMode

from xlstm.data.tokenizers import ByteTokenizer
from xlstm.generation import TrainedRun
from xlstm.models import build
from xlstm.models.configs import GPTConfig, XLSTMConfig
from xlstm.models.initialization import initialize
from xlstm.run.directory import Workspace
from xlstm.sampling import TOKENS_BETWEEN_LOOKS, Sampler


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


class Waits(TorchDispatchMode):
    """Counts what has the host wait for a number of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(operator) for name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")):
            self.seen[str(operator)] += 1
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", DIMENSIONS)
def test_a_token_after_another_is_chosen_where_no_number_can_be_read(family: str) -> None:
    """On `meta` there are none: whatever would have the host wait for a device raises there."""
    device = "cpu" if family in ("h3", "hyena", "hgrn") else "meta"  # autocast, which they leave, knows no `meta`
    model = build(small(family, vocab_size=50, embedding_dim=16)).to(device)
    sampler = Sampler(model, torch.zeros(2, 3, dtype=torch.int64), 5, end=49)
    with Waits() as waits:
        assert sampler.advance(5).shape == (2, 5)
    assert not waits.seen


def test_a_seed_draws_as_multinomial_does_and_the_host_looks_once_in_several_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(small("llama", vocab_size=256, embedding_dim=16))
    initialize(model, seed=0)
    run, prompts, tokens = TrainedRun("a", 0, model.double(), ByteTokenizer()), ["x", "yes"], 5 * TOKENS_BETWEEN_LOOKS
    expected = []
    for prompt in prompts:
        generator, text = torch.Generator().manual_seed(3), [0xFF, *prompt.encode()]
        for _ in range(tokens):
            with torch.no_grad():
                scores = model(torch.tensor([text]))[0][0, -1].float()
            scores[scores < scores.topk(40).values[-1]] = -torch.inf
            text.append(int(torch.multinomial((scores / 0.8).softmax(-1), 1, generator=generator)))
        written = text[1 + len(prompt) :]
        expected.append(bytes(written[: written.index(0xFF)] if 0xFF in written else written).decode(errors="replace"))
    looks = []
    for name in ("tolist", "cpu", "numpy"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, plain=plain, name=name: (looks.append(name), plain(self))[1]
        )
    with Waits() as waits:
        assert run.complete(prompts, tokens=tokens, seed=3) == expected
    assert (looks, waits.seen) == (["tolist"] * 5, {})


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


@pytest.mark.parametrize("name", ["cuda:99", "meta", "gpu"])
def test_a_device_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"device {name}: "):
        TrainedRun.load(Workspace(tmp_path).run("a"), name)


def test_odd_widths_of_the_pre_up_projection_are_refused() -> None:
    with pytest.raises(ValueError, match="embedding_dim must be even"):
        XLSTMConfig(vocab_size=8, embedding_dim=33, num_blocks=2, num_heads=3)
    assert XLSTMConfig(vocab_size=8, embedding_dim=33, num_blocks=1, num_heads=3, slstm_at=(0,)).embedding_dim == 33
