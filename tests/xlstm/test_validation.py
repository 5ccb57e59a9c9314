"""What a validation reads and how it counts text, against naive readings of the same split."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from xlstm.data import declare, open_prepared, prepare
from xlstm.data.preparation import tokenizer_of
from xlstm.distributed import World
from xlstm.evaluation.validation import chosen_windows, validate
from xlstm.models.configs import LlamaConfig
from xlstm.run.directory import Workspace
from xlstm.run.spec import Evaluation, Optimizer, Physics, RunSpec

CONTEXT = 16
TEXT = ["Grüße an alle, die später kämen.", "one two three " * 40, "naïve café — “quoted” ", "x" * 300] * 8


class Bigram(nn.Module):
    """A model whose loss of a token depends on it and the one before, so that every window has its own loss."""

    def forward(self, tokens: Tensor, *, resets: Tensor | None, targets: Tensor, z_loss: float) -> tuple[Tensor, None]:
        losses = 1.0 + ((3 * tokens + 5 * targets) % 17).float()
        return torch.where(targets == -100, 0.0, losses), None


def prepared(tmp_path: Path, tokenizer: str) -> tuple[RunSpec, Workspace]:
    for number, text in enumerate(TEXT):
        split = "validation" if number // 4 % 2 else "train"
        (tmp_path / "corpus" / split).mkdir(parents=True, exist_ok=True)
        (tmp_path / "corpus" / split / f"{number:02d}.txt").write_text(text)
    paths = (str(tmp_path / "corpus"),)
    data, vocabulary = declare("text", tokenizer, CONTEXT, paths)
    workspace = Workspace(tmp_path / "workspace")
    prepare(data, paths, workspace)
    model = LlamaConfig(vocab_size=vocabulary, embedding_dim=8, num_blocks=1, num_heads=1)
    physics = Physics(
        model=model, data=data, tokens=CONTEXT, batch_tokens=CONTEXT, optimizer=Optimizer(learning_rate=1e-3)
    )
    return RunSpec(physics=physics, evaluation=Evaluation(sequences=5)), workspace


def gpt2_bytes(folder: Path, token: int) -> bytes:
    """The bytes that a token stands for, by GPT-2's table of printable characters; none for the end of a document."""
    text = Tokenizer.from_file(str(folder / "tokenizer.json")).id_to_token(int(token))
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    return b"" if text == "<|endoftext|>" else bytes(table[character] for character in text)


@pytest.mark.parametrize("tokenizer", ["bytes", "characters", "bpe-300"])
def test_a_shortened_validation_is_spread_over_the_split_and_counts_its_own_text(
    tmp_path: Path, tokenizer: str
) -> None:
    spec, workspace = prepared(tmp_path, tokenizer)
    data = open_prepared(spec.physics.data, workspace)
    world = World.init(spec.execution)
    found = validate(Bigram(), data, spec, world, micro=2)
    world.destroy()
    stream = data.stream("validation")
    tokens = stream.read(0, len(stream)).astype(np.int64)
    covering = math.ceil((len(tokens) - 1) / CONTEXT)
    windows = [int((part + 0.5) * covering / 5) for part in range(5)]
    positions = [p for w in windows for p in range(w * CONTEXT + 1, min((w + 1) * CONTEXT + 1, len(tokens)))]
    naive = np.mean([1.0 + (3 * tokens[p - 1] + 5 * tokens[p]) % 17 for p in positions])
    assert found.loss == pytest.approx(naive, rel=1e-6)
    assert (found.tokens, found.sequences, found.of_sequences) == (len(positions), 5, covering)
    if tokenizer == "bpe-300":
        written = [gpt2_bytes(data.path, token) for token in tokens]
        assert b"".join(written).decode().count("später") == 4  # what the bytes of all tokens make is the text
        count = sum(len(written[p]) for p in positions)
    elif tokenizer == "characters":
        count = sum(
            len(tokenizer_of(spec.physics.data, data.path).decode(tokens[p : p + 1]).encode()) for p in positions
        )
    else:
        count = sum(tokens[p] != 0xFF for p in positions)
    assert found.bits_per_byte == pytest.approx(naive * len(positions) / math.log(2) / count, rel=1e-6)


def test_whole_splits_and_the_first_windows_are_read_as_they_always_were() -> None:
    assert chosen_windows(Evaluation(), 7).tolist() == list(range(7))
    assert chosen_windows(Evaluation(sequences=9), 7).tolist() == list(range(7))
    assert chosen_windows(Evaluation(sequences=3, windows="first"), 7).tolist() == [0, 1, 2]
    assert chosen_windows(Evaluation(sequences=3), 9).tolist() == [1, 4, 7]
