"""Text from a trained run, one token at a time from the model's own state: memory does not grow with what is read."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from xlstm.data.preparation import open_prepared, tokenizer_of
from xlstm.data.tokenizers import Tokenizer
from xlstm.models import build
from xlstm.run.directory import RunDirectory
from xlstm.training.checkpoints import CheckpointError, complete_checkpoints
from xlstm.training.optimization.parametrization import named_parameters


@dataclass(frozen=True)
class TrainedRun:
    """The model of a run as its latest sound checkpoint left it, with its tokenizer."""

    run_id: str
    step: int
    model: nn.Module
    tokenizer: Tokenizer

    @classmethod
    def load(cls, run: RunDirectory) -> "TrainedRun":
        """Load a run on CPU. CheckpointError where it has no sound checkpoint yet, or learnt no text."""
        physics = run.spec().physics
        if physics.data.generated is not None:
            raise CheckpointError(f"{run.run_id} learnt {physics.task}, and knows no text")
        corruptions = []
        for checkpoint in complete_checkpoints(run):
            corruption = checkpoint.corruption()
            if corruption is not None:
                corruptions.append(corruption)
                continue
            model = build(physics.model)
            checkpoint.load({f"model.{name}": parameter.detach() for name, parameter in named_parameters(model)})
            model.eval()
            prepared = open_prepared(physics.data, run.workspace)
            return cls(run.run_id, checkpoint.step, model, tokenizer_of(physics.data, prepared.path))
        raise CheckpointError(f"{run.run_id} has no sound checkpoint yet; {'; '.join(corruptions) or 'train it first'}")

    def generate(
        self, prompt: str, *, tokens: int = 256, temperature: float = 0.8, top_k: int | None = 40, seed: int = 0
    ) -> Iterator[str]:
        """Yield text that continues `prompt`, piece by piece, up to `tokens` tokens or the end of the document.

        Temperature 0 takes the likeliest token each time. A model with positions (GPT) reads on from the latter half of
        them when all are taken. ValueError for a negative temperature or an empty `top_k`.
        """
        written: list[int] = []
        shown = ""
        for (token,) in self._tokens([prompt], tokens, temperature, top_k, seed):
            assert token is not None  # of one prompt nothing comes after its end
            written.append(token)
            decoded = self.tokenizer.decode(np.array(written))
            if not decoded.endswith("\ufffd"):  # a character whose last bytes are still to come
                yield decoded[len(shown) :]
                shown = decoded
        yield self.tokenizer.decode(np.array(written, dtype=np.int64))[len(shown) :]

    def complete(
        self,
        prompts: Sequence[str],
        *,
        tokens: int = 256,
        temperature: float = 0.8,
        top_k: int | None = 40,
        seed: int = 0,
    ) -> list[str]:
        """What continues each of some prompts, of any lengths, read and written together; the rest is as `generate`.

        Each is continued as it would be alone: it has random numbers of its own, from the same seed.
        """
        written: list[list[int]] = [[] for _ in prompts]
        for together in self._tokens(prompts, tokens, temperature, top_k, seed):
            for own, token in zip(written, together, strict=True):
                if token is not None:
                    own.append(token)
        return [self.tokenizer.decode(np.array(own, dtype=np.int64)) for own in written]

    def _tokens(
        self, prompts: Sequence[str], tokens: int, temperature: float, top_k: int | None, seed: int
    ) -> Iterator[list[int | None]]:
        """The next token of every prompt, None for those that have ended, until all have or there are `tokens`."""
        if not (temperature >= 0 and math.isfinite(temperature)) or (top_k is not None and top_k < 1):
            raise ValueError("the temperature is at least 0, and top_k at least 1")
        end = self.tokenizer.end_of_document
        texts = [[end, *encoded.tolist()] for encoded in self.tokenizer.encode(list(prompts))]
        generators = [torch.Generator().manual_seed(seed) for _ in texts]
        positions: int | None = getattr(self.model.config, "context_length", None)
        begins = [0] * len(texts)  # where in its text what the state holds of each begins
        open_ones = set(range(len(texts)))
        state: Any = None
        with torch.no_grad():
            for _ in range(tokens if texts else 0):
                for row in open_ones:
                    if positions is not None and len(texts[row]) - begins[row] > positions:
                        begins[row], state = len(texts[row]) - positions // 2, None
                if state is None:
                    read, resets = _aligned([text[begin:] for text, begin in zip(texts, begins, strict=True)], end)
                    logits, state = self.model(read, resets=resets, last=True)
                else:
                    logits, state = self.model(torch.tensor([[text[-1]] for text in texts]), state, last=True)
                chosen: list[int | None] = [None] * len(texts)
                for row in sorted(open_ones):
                    scores = logits[row, -1, : self.tokenizer.vocabulary].float()
                    token = _choose(scores, temperature, top_k, generators[row])
                    if token == end:
                        open_ones.remove(row)
                    else:
                        chosen[row] = token
                        texts[row].append(token)
                if not open_ones:
                    return
                yield chosen


def generate(run: RunDirectory, prompt: str, *, tokens: int = 256, temperature: float = 0.8, seed: int = 0) -> str:
    """The prompt and what the run's model continues it with."""
    return prompt + "".join(TrainedRun.load(run).generate(prompt, tokens=tokens, temperature=temperature, seed=seed))


def _aligned(texts: list[list[int]], filler: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Tokens `(texts, longest)` that end together, and where each text starts: what fills a row before it, it forgets.

    The second is None where all are as long, and nothing is to be forgotten.
    """
    longest = max(map(len, texts))
    read = torch.full((len(texts), longest), filler)
    resets = torch.zeros(read.shape, dtype=torch.bool)
    for row, text in enumerate(texts):
        read[row, longest - len(text) :] = torch.tensor(text)
        resets[row, longest - len(text)] = True
    return read, None if all(len(text) == longest for text in texts) else resets


def _choose(logits: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -math.inf)
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
