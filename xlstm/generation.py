"""Text from a trained run, one token at a time from the model's own state: memory does not grow with what is read."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from xlstm.data.preparation import open_prepared, tokenizer_of
from xlstm.data.tokenizers import Tokenizer
from xlstm.models import build
from xlstm.run.directory import RunDirectory
from xlstm.training.checkpoints import CheckpointError, complete_checkpoints
from xlstm.training.parametrization import named_parameters


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
        if not (temperature >= 0 and math.isfinite(temperature)) or (top_k is not None and top_k < 1):
            raise ValueError("the temperature is at least 0, and top_k at least 1")
        generator = torch.Generator().manual_seed(seed)
        text = [self.tokenizer.end_of_document, *self.tokenizer.encode([prompt])[0].tolist()]
        positions: int | None = getattr(self.model.config, "context_length", None)
        state, unread, seen = None, list(text), 0
        written: list[int] = []
        shown = ""
        with torch.no_grad():
            for _ in range(tokens):
                if positions is not None and seen + len(unread) > positions:
                    state, unread, seen = None, text[-(positions // 2) :], 0
                logits, state = self.model(torch.tensor([unread]), state, last=True)
                seen += len(unread)
                token = _choose(logits[0, -1, : self.tokenizer.vocabulary].float(), temperature, top_k, generator)
                if token == self.tokenizer.end_of_document:
                    break
                text.append(token)
                unread = [token]
                written.append(token)
                decoded = self.tokenizer.decode(np.array(written))
                if not decoded.endswith("\ufffd"):  # a character whose last bytes are still to come
                    yield decoded[len(shown) :]
                    shown = decoded
        yield self.tokenizer.decode(np.array(written, dtype=np.int64))[len(shown) :]


def generate(run: RunDirectory, prompt: str, *, tokens: int = 256, temperature: float = 0.8, seed: int = 0) -> str:
    """The prompt and what the run's model continues it with."""
    return prompt + "".join(TrainedRun.load(run).generate(prompt, tokens=tokens, temperature=temperature, seed=seed))


def _choose(logits: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -math.inf)
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
