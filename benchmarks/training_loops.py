"""Loops that train one Llama on one stream of tokens: ours, a plain one as in nanoGPT, `transformers.Trainer`.

The two others train our model, which tells what the loops cost, or the Llama of `transformers` with the same weights,
which is what one would train in them. Each is made once and then advanced by a number of steps at a time, so that all
can take turns. Time is the processor time of the thread that trains: neither what else the machine does counts, nor
waiting for disks.
"""

import gc
import tempfile
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.baselines import Losses, theirs
from xlstm.data import declare, open_prepared, prepare
from xlstm.models import build
from xlstm.models.configs import ModelConfig
from xlstm.models.initialization import initialize
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.records import Launch, write_json
from xlstm.run.spec import Execution, Optimizer, Physics, RunSpec, Schedule
from xlstm.training import trainer
from xlstm.training.attempt import _Attempt

CONTEXT, SEQUENCES = 128, 4
BATCH_TOKENS = CONTEXT * SEQUENCES
RATE = 1e-3

clock = time.thread_time

Advance = Callable[[int], float]
"""Trains so many steps; returns the seconds they took."""


def our_run(workspace: Workspace, model: ModelConfig) -> RunDirectory:
    """A long run over the Python library's source, its data prepared and its first attempt launched, on CPU."""
    data, _ = declare("python-stdlib", "bytes", CONTEXT)
    prepare(data, (), workspace)
    physics = Physics(
        model=model,
        data=data,
        tokens=BATCH_TOKENS * 100_000,
        batch_tokens=BATCH_TOKENS,
        optimizer=Optimizer(learning_rate=RATE),
        schedule=Schedule(warmup_steps=10),
    )
    spec = RunSpec(physics=physics, execution=Execution(device="cpu", threads_per_rank=1))
    run = workspace.run(spec.run_id)
    run.create(spec)
    lease = run.acquire(uuid.uuid4().hex)
    launch = Launch(
        run_id=run.run_id,
        attempt=lease.attempt,
        token=lease.token,
        executor="benchmark",
        execution=spec.execution,
        host="",
        rendezvous="",
        started=time.time(),
    )
    write_json(run.attempt(lease.attempt) / "launch.json", launch.model_dump(mode="json"))
    return run


class Ours:
    """Our trainer, as an attempt runs it: watch, heartbeat, agreement at every boundary, rows of metrics."""

    def __init__(self, workspace: Workspace, model: ModelConfig) -> None:
        run = our_run(workspace, model)
        launch = run.launch(1)
        assert launch is not None
        self.attempt = _Attempt(run, 1, launch.token)
        self.trainer = self.attempt.trainer
        self.inside: list[float] = []
        """Seconds of each step's forward and backward passes, and of its update."""
        _time(self.trainer, "_add_gradients", self.inside)
        for name in ("clip_gradients", "update"):
            _time(trainer, name, self.inside)

    def __call__(self, steps: int) -> float:
        last = self.trainer.step + steps
        gc.collect()  # as a trainer does once before its first step: it is no cost of these
        gc.freeze()
        began = clock()
        self.trainer.train(lambda: self.attempt._at_boundary() and self.trainer.step < last)
        return clock() - began

    def overhead(self, steps: int) -> float:
        """Share of the time of so many steps that is neither forward and loss, backward, nor clipping and AdamW."""
        self.inside.clear()
        whole = self(steps)
        return 1 - sum(self.inside) / whole

    def close(self) -> None:
        self.attempt.close()


def our_model(config: ModelConfig) -> tuple[nn.Module, Losses]:
    """Our model, with its mean loss."""
    model = build(config)
    initialize(model, 0)
    return model, lambda tokens, targets: model(tokens, targets=targets)[0].mean()


def their_model(config: ModelConfig) -> tuple[nn.Module, Losses]:
    """The same of `transformers`, with the same weights. ImportError where it is not installed."""
    return theirs(config, our_model(config)[0], CONTEXT)


def plain(workspace: Workspace, model: nn.Module, mean_loss: Losses) -> Advance:
    """nanoGPT's loop: random windows of a memory map, mean loss, clipping, fused AdamW."""
    tokens = _tokens(workspace)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def advance(steps: int) -> float:
        began = clock()
        for _ in range(steps):
            starts = torch.randint(len(tokens) - CONTEXT, (SEQUENCES,)).tolist()
            x = torch.stack([torch.from_numpy(tokens[s : s + CONTEXT].astype(np.int64)) for s in starts])
            y = torch.stack([torch.from_numpy(tokens[s + 1 : s + 1 + CONTEXT].astype(np.int64)) for s in starts])
            mean_loss(x, y).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return clock() - began

    return advance


def huggingface(workspace: Workspace, model: nn.Module, mean_loss: Losses) -> Advance:
    """`transformers.Trainer`. ImportError where it, or `accelerate`, is not installed."""
    from transformers import Trainer as HuggingFaceTrainer
    from transformers import TrainerCallback, TrainingArguments

    with_loss = _WithLoss(model, mean_loss)
    tokens = _tokens(workspace)

    class Stamps(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            self.times.append(clock())

    def advance(steps: int) -> float:
        stamps = Stamps()
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                max_steps=steps + 1,  # the first, which sets everything up, is not timed
                per_device_train_batch_size=SEQUENCES,
                learning_rate=RATE,
                adam_beta2=0.95,
                weight_decay=0.1,
                max_grad_norm=1.0,
                optim="adamw_torch_fused",
                logging_steps=10,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                dataloader_num_workers=0,
                remove_unused_columns=False,
            )
            trainer = HuggingFaceTrainer(with_loss, arguments, train_dataset=_WindowsOf(tokens), callbacks=[stamps])
            trainer.log = lambda *arguments, **named: None  # it would print
            trainer.train()
        return stamps.times[-1] - stamps.times[0]

    return advance


class _WithLoss(nn.Module):
    """A model, as `transformers.Trainer` wants one."""

    def __init__(self, model: nn.Module, mean_loss: Losses) -> None:
        super().__init__()
        self.model, self.mean_loss = model, mean_loss

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": self.mean_loss(input_ids, labels)}


class _WindowsOf(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // CONTEXT

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        span = torch.from_numpy(self.tokens[index * CONTEXT : (index + 1) * CONTEXT + 1].astype(np.int64))
        return {"input_ids": span[:-1], "labels": span[1:]}


def _tokens(workspace: Workspace) -> np.ndarray:
    data, _ = declare("python-stdlib", "bytes", CONTEXT)
    return open_prepared(data, workspace).stream("train").shards[0]


def _time(holder: Any, name: str, spent: list[float]) -> None:
    original = getattr(holder, name)

    def timed(*arguments: Any, **named: Any) -> Any:
        began = clock()
        result = original(*arguments, **named)
        spent.append(clock() - began)
        return result

    setattr(holder, name, timed)
