"""Continues prompts a token at a time on the model's own device: the host reads what was written when it wants to."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

TOKENS_BETWEEN_LOOKS = 8
"""Tokens that are written before the host reads them, and learns which rows have ended."""


class Sampler:
    """Some prompts and what a model continues them with, side by side, until each has ended or the room is taken.

    The rows end together, so that one column is one step; what fills a row before its prompt, the model forgets. A
    model with positions reads on from the latter half of them when all are taken.
    """

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]] | Tensor,
        room: int,
        *,
        end: int | None = None,
        vocabulary: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> None:
        """Room for `room` tokens after `prompts`, tensors (rows, time) or as many ids for each as it has.

        A row that has written `end` writes nothing else. Chosen are the first `vocabulary` ids, by default all; at
        temperature 0 the likeliest. Each row is given the same random numbers, those it would be given alone.
        """
        device = next(model.parameters()).device
        longest = max(map(len, prompts))
        self._model, self._end, self._vocabulary = model, end, vocabulary
        self._temperature, self._top_k = temperature, top_k
        self._generator = torch.Generator(device).manual_seed(seed) if temperature else None
        self._positions: int | None = getattr(model.config, "context_length", None)
        self._starts = [longest - len(prompt) for prompt in prompts]  # the column from which each is read
        self._column = longest
        self._ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        written = torch.zeros(len(prompts), longest + room, dtype=torch.int64)
        for row, (start, prompt) in enumerate(zip(self._starts, prompts, strict=True)):
            written[row, start:longest] = torch.as_tensor(prompt)
        self._written = written.to(device)
        self.state: Any = None
        """What the model remembers of all tokens but the last."""

    @torch.no_grad()
    def advance(self, count: int) -> Tensor:
        """The next `count` tokens of every row, int64 (rows, count) on the device, for which the host does not wait."""
        first = self._column
        for _ in range(count):
            token = self._choose(self._logits())
            if self._end is not None:
                token = token.masked_fill(self._ended, self._end)
                self._ended = token == self._end
            self._written[:, self._column] = token
            self._column += 1
        return self._written[:, first : self._column]

    def read(self, count: int) -> Iterator[list[int]]:
        """The next `count` tokens of every row, one after another, of which the host reads several at once."""
        for done in range(0, count, TOKENS_BETWEEN_LOOKS):
            yield from self.advance(min(TOKENS_BETWEEN_LOOKS, count - done)).T.tolist()

    def _logits(self) -> Tensor:
        """Of the next token of every row, (rows, vocabulary)."""
        for row, start in enumerate(self._starts):
            if self._positions is not None and self._column - start > self._positions:
                self._starts[row], self.state = self._column - self._positions // 2, None
        read, resets = self._written[:, self._column - 1 : self._column], None
        if self.state is None:
            first = min(self._starts)
            read = self._written[:, first : self._column]
            if first != max(self._starts):
                begins = torch.tensor(self._starts, device=read.device)
                resets = torch.arange(first, self._column, device=read.device) == begins[:, None]
        logits: Tensor
        logits, self.state = self._model(read, self.state, resets=resets, last=True)
        return logits[:, -1]

    def _choose(self, logits: Tensor) -> Tensor:
        scores = logits[:, : self._vocabulary].float()
        if self._temperature == 0:
            return scores.argmax(-1)
        if self._top_k is not None and self._top_k < scores.shape[-1]:
            scores = scores.masked_fill(scores < scores.topk(self._top_k).values[:, -1:], -math.inf)
        chances = (scores / self._temperature).softmax(-1)
        # What torch.multinomial draws, which itself has the host wait for a check.
        return (chances / chances.new_empty(chances.shape[-1]).exponential_(generator=self._generator)).argmax(-1)
