"""Text from a trained run, one token at a time from the model's own state: memory does not grow with what is read."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from xlstm.data.preparation import open_prepared, tokenizer_of
from xlstm.data.tokenizers import Tokenizer
from xlstm.models import build
from xlstm.run.directory import RunDirectory
from xlstm.sampling import Sampler
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
    def load(cls, run: RunDirectory, device: str = "auto") -> "TrainedRun":
        """Load a run on a device, `auto` a GPU where there is one.

        CheckpointError where it has no sound checkpoint yet, or learnt no text; ValueError where there is no such
        device.
        """
        placed = _device(device)
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
            model.to(placed).eval()
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
        if not texts:
            return
        sampler = Sampler(
            self.model,
            texts,
            tokens,
            end=end,
            vocabulary=self.tokenizer.vocabulary,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
        )
        for together in sampler.read(tokens):
            chosen = [None if token == end else token for token in together]
            if all(token is None for token in chosen):
                return
            yield chosen


def _device(name: str) -> torch.device:
    """The device of this name, `auto` a GPU where there is one. ValueError where there is none such."""
    gpus = torch.cuda.device_count()
    try:
        device = torch.device(("cuda" if gpus else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise ValueError(f"device {name}: one of auto, cpu, cuda") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= gpus):
        raise ValueError(f"device {name}: this machine shows {gpus} GPUs; auto and cpu would run")
    return device
