"""lm-eval's tasks on our models: its interface, requests batched by length, and the same files as every evaluation.

Every rank runs lm-eval on the same requests; the passes of the model are made in turn, as in `measure`. `lm_eval` is
the extra `harness`.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager, get_task_dict
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import nn
from torch.distributed.fsdp import FSDPModule

from xlstm.data.tokenizers import Tokenizer
from xlstm.distributed import World
from xlstm.evaluation.passes import KEPT_EVERY_SECONDS, TOKENS_PER_PASS, Row, StoppedError
from xlstm.quantities import nearest
from xlstm.run.evaluations import Harness
from xlstm.run.json_files import write_json
from xlstm.sampling import Sampler

_TOKENS_ON_CPU = 1 << 11
"""Tokens of a pass on CPU, whose activations stay in its caches."""
_LOGITS = 1 << 26
"""Logits that a pass may give."""

Request: TypeAlias = tuple[tuple[str, str], list[int], list[int]]
"""Context and continuation, as texts and as tokens."""


@dataclass
class Answers:
    """What the passes of an evaluation gave, in their order, which no rank and no interruption changes."""

    path: Path
    world: World
    stopped: Callable[[], bool]
    made: list[Any] = field(default_factory=list)
    taken: int = 0
    saved: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Take up what an attempt before has kept."""
        kept: list[Any] = []
        with contextlib.suppress(OSError, ValueError, KeyError):
            kept = list(json.loads(self.path.read_bytes())["answers"])
        self.made = self.world.gather(kept)[0]

    def of(self, passes: Sequence[Any], make: Callable[[Any], Any], *, alike: bool = False) -> list[Any]:
        """The answer to each pass; those that were kept are not made again. StoppedError where a rank is to stop.

        Ranks make them in turn, or all of them the same one where the passes call the model so often that depends on
        what they are, and its ranks wait for each other.
        """
        first = self.taken
        self.taken += len(passes)
        while len(self.made) < self.taken:
            if self.stopped():
                self._keep()
                raise StoppedError
            mine = min(len(self.made) + (0 if alike else self.world.rank), self.taken - 1)
            made = self.world.gather(make(passes[mine - first]))
            self.made += made[: 1 if alike else self.taken - len(self.made)]
            if time.monotonic() - self.saved > KEPT_EVERY_SECONDS:
                self._keep()
        return self.made[first : self.taken]

    def _keep(self) -> None:
        self.saved = time.monotonic()
        if self.world.is_main:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {"answers": self.made})


class HarnessModel(TemplateLM):
    """A model of ours as lm-eval asks it: contexts longer than `context_length` lose their beginning."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, context_length: int, answers: Answers) -> None:
        super().__init__()
        self._model, self._tokenizer, self._answers = model, tokenizer, answers
        self.max_length = context_length
        self.tokens = 0
        """Tokens that were predicted."""

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.end_of_document

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text; nothing is put before or after it."""
        return self._tokenizer.encode([string])[0].tolist()

    def _loglikelihood_tokens(self, requests: list[Request], **_: Any) -> list[tuple[float, bool]]:
        """Log-probability of each continuation in nats, and whether each of its tokens is the likeliest.

        ValueError for a continuation that the model cannot read at once.
        """
        for _texts, _context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens, where from 1 to {self.max_length} can be read; "
                    "set context_length"
                )
        self.tokens += sum(len(continuation) for _, _, continuation in requests)
        reads = [(context + continuation)[-(self.max_length + 1) :] for _, context, continuation in requests]
        counts = [len(continuation) for _, _, continuation in requests]
        # What two continuations share is read once: of one token each, as in multiple choice, they need one pass.
        rows = list(dict.fromkeys(tuple(read[:-1]) for read in reads))
        rows.sort(key=lambda row: (-len(row), row))
        wanted: dict[tuple[int, ...], list[int]] = {}
        for number, read in enumerate(reads):
            wanted.setdefault(tuple(read[:-1]), []).append(number)

        most = {row: max(counts[number] for number in numbers) for row, numbers in wanted.items()}

        def make(batch: list[tuple[int, ...]]) -> list[list[float | bool]]:
            tokens = torch.full((len(batch), len(batch[0])), self.eot_token_id)
            read = torch.zeros(tokens.shape, dtype=torch.bool)
            for index, row in enumerate(batch):
                tokens[index, : len(row)] = torch.tensor(row)
                read[index, len(row) - most[row] : len(row)] = True
            logits = self._logits_at(tokens, read)
            found: list[list[float | bool]] = []
            first = 0
            for row in batch:
                longest = most[row]
                likely = F.log_softmax(logits[first : first + longest].float(), dim=-1)
                first += longest
                for number in wanted[row]:
                    own = likely[longest - counts[number] :]
                    targets = torch.tensor(reads[number][-counts[number] :], device=own.device)
                    chosen = own.gather(1, targets[:, None]).double().sum()
                    found.append([chosen.item(), bool((own.argmax(-1) == targets).all())])
            return found

        batches = list(self._batched(rows, most))
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for batch, answers in zip(batches, self._answers.of(batches, make), strict=True):
            numbers = [number for row in batch for number in wanted[row]]
            for number, (nats, greedy) in zip(numbers, answers, strict=True):
                results[number] = (float(nats), bool(greedy))
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text in windows that do not overlap in what they predict."""
        windows, owners = [], []
        for owner, request in enumerate(requests):
            for window in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.eot_token_id, self.max_length, 1
            ):
                context, continuation = make_disjoint_window(window)
                windows.append((("", ""), context, continuation))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += nats
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The likeliest continuation of each context up to the first of its stops. ValueError where one is a sample."""
        for request in requests:
            asked: dict[str, Any] = request.args[1]
            if asked.get("do_sample") or asked.get("temperature"):
                raise ValueError("a task asks for samples; continuations here are the likeliest")
        sharded = any(isinstance(module, FSDPModule) for module in self._model.modules())
        asked_for = [request.args for request in requests]
        return self._answers.of(asked_for, lambda told: self._continue(*told), alike=sharded)

    def _continue(self, context: str, asked: dict[str, Any]) -> str:
        until = [asked["until"]] if isinstance(asked.get("until"), str) else list(asked.get("until") or ())
        limit = min(int(asked.get("max_gen_toks", 256)), self.max_length - 1)
        unread = self.tok_encode(context)[-(self.max_length - limit) :] or [self.eot_token_id]
        sampler = Sampler(self._model, [unread], limit, end=self.eot_token_id)
        written: list[int] = []
        text = ""
        for (token,) in sampler.read(limit):
            if token == self.eot_token_id:
                break
            written.append(token)
            text = self._tokenizer.decode(torch.tensor(written).numpy())
            if any(stop in text for stop in until if stop):
                break
        for stop in filter(None, until):
            text = text.partition(stop)[0]
        return text

    def _logits_at(self, tokens: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        """Logits `(positions that are read, vocabulary)`, of no others: of a long context few are asked for."""
        device = self._answers.world.device
        chosen = read.to(device)

        def choose(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            return (inputs[0][chosen][None],)

        # The last norm, and the head behind it, see each position for itself.
        hook = self._model.norm.register_forward_pre_hook(choose)  # type: ignore[union-attr,operator]
        try:
            return self._model(tokens.to(device))[0][0]
        finally:
            hook.remove()

    def _batched(
        self, rows: list[tuple[int, ...]], most: dict[tuple[int, ...], int]
    ) -> Iterator[list[tuple[int, ...]]]:
        """Rows, longest first, as many at a time as their padded tokens and the logits that are read allow."""
        tokens = _TOKENS_ON_CPU if self._answers.world.device.type == "cpu" else TOKENS_PER_PASS
        allowed = max(1, _LOGITS // int(self._model.config.vocab_size))  # type: ignore[union-attr,arg-type]
        batch: list[tuple[int, ...]] = []
        asked = 0
        for row in rows:
            if batch and ((len(batch) + 1) * len(batch[0]) > tokens or asked + most[row] > allowed):
                yield batch
                batch, asked = [], 0
            batch.append(row)
            asked += most[row]
        if batch:
            yield batch


def check_tasks(evaluation: Harness) -> None:
    """ValueError where lm-eval does not know a task, or cannot read its data."""
    manager = _manager(evaluation)
    for task in evaluation.tasks:
        if task not in manager.all_tasks:
            raise ValueError(f"lm-eval knows no task `{task}`; {nearest(task, manager.all_tasks)}")
        try:
            get_task_dict([task], manager)
        except Exception as error:  # whatever the libraries behind a task raise
            raise ValueError(f"task {task}: {' '.join(str(error).split())}") from None


def run_tasks(evaluation: Harness, model: HarnessModel) -> list[Row]:
    """A row for each task: its measures by their names in lm-eval, and how many items it has.

    None but on the first rank of each machine, to which alone lm-eval gives its results.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    found = simple_evaluate(
        model=model,
        tasks=list(evaluation.tasks),
        num_fewshot=evaluation.num_fewshot,
        limit=evaluation.limit,
        bootstrap_iters=0,
        log_samples=False,
        task_manager=_manager(evaluation),
    )
    rows: list[Row] = []
    if found is None:
        return rows
    for task, results in found["results"].items():
        measures = {
            name.removesuffix(",none").replace(",", "_"): float(value)
            for name, value in results.items()
            if isinstance(value, int | float) and not name.startswith("sample_") and "_stderr" not in name
        }
        items = found["n-samples"].get(task, {}).get("effective")
        rows.append({"task": task, "items": items, **measures})
    return rows


def _manager(evaluation: Harness) -> TaskManager:
    return TaskManager(include_path=list(evaluation.paths) or None)
