"""What training costs beyond the model itself, each figure beside its peer's in the same run, interleaved.

    python -m benchmarks.training [--json]

- step: our trainer against a plain PyTorch loop (nanoGPT's: random windows of a memory map, mean loss, clipping, fused
  AdamW) on the same model and batch. `overhead` is the share of a step of ours that is not forward, backward or
  optimizer.
- loader: tokens per second of one process from memory-mapped shards.
- checkpoint: how long a step stands still for a save, in the background and waited for.
- tokenization: our preparation against `datasets.map` with the same tokenizer, where `datasets` is installed.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xlstm.data import declare, open_prepared, prepare
from xlstm.data.batches import Windows
from xlstm.data.order import Order
from xlstm.data.preparation import data_folder
from xlstm.models import build
from xlstm.models.configs import LlamaConfig
from xlstm.models.initialization import initialize
from xlstm.records import RunDirectory, Workspace
from xlstm.spec import Execution, Optimizer, Physics, RunSpec, Schedule
from xlstm.training.checkpoints import Checkpointer, CheckpointRecord
from xlstm.training.gang import Gang
from xlstm.training.trainer import Trainer

CONTEXT, SEQUENCES = 128, 4
MODEL = LlamaConfig(vocab_size=256, embedding_dim=64, num_blocks=4, num_heads=2)
LARGER = LlamaConfig(vocab_size=256, embedding_dim=384, num_blocks=6, num_heads=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        gang = Gang.meet(Execution(device="cpu", threads_per_rank=1))
        results = {
            "step": steps(workspace, gang),
            "loader": loader(workspace),
            "checkpoint": checkpoint(workspace, gang),
            "tokenization": tokenization(workspace),
        }
        gang.part()
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for name, figures in results.items():
        print(f"{name:>14}  " + "  ".join(f"{key} {_show(value)}" for key, value in figures.items()))


def steps(workspace: Workspace, gang: Gang) -> dict[str, Any]:
    """Median milliseconds of a step of ours and of a plain loop, measured in turns, and our overhead."""
    trainer = _trainer(workspace, gang, MODEL)
    inner: list[float] = []
    for name in ("forward", "backward", "optimizer"):
        _time_inside(trainer, name, inner)
    plain = _plain_loop(workspace)
    ours, theirs, overheads = [], [], []
    for round_number in range(220):
        inner.clear()
        mine = _seconds(trainer._optimizer_step)
        overhead = 1 - sum(inner) / mine
        other = _seconds(plain)
        if round_number >= 20:
            ours.append(mine)
            theirs.append(other)
            overheads.append(overhead)
    return {
        "ours_ms": statistics.median(ours) * 1e3,
        "plain_ms": statistics.median(theirs) * 1e3,
        "ratio": statistics.median(ours) / statistics.median(theirs),
        "overhead": statistics.median(overheads),
    }


def loader(workspace: Workspace) -> dict[str, Any]:
    """Million tokens per second from shards to batches, at two context lengths."""
    rates = {}
    for context in (256, 2048):
        data, _ = declare("python-stdlib", "bytes", context)
        windows = Windows(open_prepared(data, workspace).stream("train"), context, 255)
        order = Order(windows.whole, 0)
        began, tokens = time.perf_counter(), 0
        for step in range(200):
            tokens += windows.batch(order.take(step * 32, 32)).tokens.size
        rates[f"million_tokens_per_second_at_{context}"] = tokens / (time.perf_counter() - began) / 1e6
    return rates


def checkpoint(workspace: Workspace, gang: Gang) -> dict[str, Any]:
    """Milliseconds for which a step stands still: saved in the background, and waited for."""
    trainer = _trainer(workspace, gang, LARGER)
    trainer._optimizer_step()
    lease = trainer.run.acquire("benchmark")
    saver = Checkpointer(lease, gang, keep=1, keep_steps=())
    background, waited = [], []
    for step in range(1, 11):
        record = CheckpointRecord(
            run_id=trainer.run.run_id,
            step=step,
            physics=trainer.spec.physics,
            data_fingerprint=trainer.data.manifest.fingerprint,
            ranks=1,
        )
        began = time.perf_counter()
        saver.save(trainer.state, record)
        background.append(time.perf_counter() - began)
        saver.wait()
        waited.append(time.perf_counter() - began)
    megabytes = sum(t.numel() * t.element_size() for t in trainer.state.values()) / 1e6
    return {
        "megabytes": megabytes,
        "background_ms": statistics.median(background) * 1e3,
        "waited_ms": statistics.median(waited) * 1e3,
        "ratio": statistics.median(background) / statistics.median(waited),
    }


def tokenization(workspace: Workspace) -> dict[str, Any]:
    """Seconds to tokenize the standard library with one learnt BPE: ours to shards, and `datasets.map` to Arrow."""
    data, _ = declare("python-stdlib", "bpe-4096", CONTEXT)
    prepare(data, (), workspace)
    saved = data_folder(data, workspace) / "tokenizer.json"
    data, _ = declare("python-stdlib", str(saved), CONTEXT)
    began = time.perf_counter()
    prepare(data, (), workspace, str(saved))
    figures: dict[str, Any] = {"ours_s": time.perf_counter() - began}
    try:
        import datasets
        from tokenizers import Tokenizer
    except ImportError:
        return figures | {"datasets_s": None}
    from xlstm.data.corpora import open_corpus
    from xlstm.data.preparation import assigned_documents

    tokenizer = Tokenizer.from_file(str(saved))
    texts = [document.text for _, document in assigned_documents(open_corpus("python-stdlib", ()))]
    rows = datasets.Dataset.from_dict({"text": texts})
    began = time.perf_counter()
    rows.map(lambda batch: {"ids": [e.ids for e in tokenizer.encode_batch_fast(batch["text"])]}, batched=True)
    return figures | {"datasets_s": time.perf_counter() - began}


def _trainer(workspace: Workspace, gang: Gang, model: LlamaConfig) -> Trainer:
    data, _ = declare("python-stdlib", "bytes", CONTEXT)
    prepare(data, (), workspace)
    batch = CONTEXT * SEQUENCES
    physics = Physics(
        model=model,
        data=data,
        tokens=batch * 1000,
        batch_tokens=batch,
        optimizer=Optimizer(learning_rate=1e-3),
        schedule=Schedule(warmup_steps=10),
    )
    spec = RunSpec(physics=physics, execution=Execution(device="cpu", threads_per_rank=1))
    run: RunDirectory = workspace.run(spec.run_id)
    run.create(spec)
    return Trainer(run, spec, 1, gang, open_prepared(data, workspace), lambda: None)


def _plain_loop(workspace: Workspace) -> Callable[[], None]:
    data, _ = declare("python-stdlib", "bytes", CONTEXT)
    tokens = open_prepared(data, workspace).stream("train").shards[0]
    model = build(MODEL)
    initialize(model, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> None:
        starts = torch.randint(len(tokens) - CONTEXT, (SEQUENCES,)).tolist()
        x = torch.stack([torch.from_numpy(tokens[s : s + CONTEXT].astype(np.int64)) for s in starts])
        y = torch.stack([torch.from_numpy(tokens[s + 1 : s + 1 + CONTEXT].astype(np.int64)) for s in starts])
        loss = model(x, targets=y)[0].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def _time_inside(trainer: Trainer, what: str, spent: list[float]) -> None:
    """Have the time that a trainer spends in one of the three real parts of a step appended to `spent`."""
    if what == "forward":
        original: Any = trainer.model.forward
        trainer.model.forward = lambda *a, **k: _timed(lambda: original(*a, **k), spent)
    elif what == "optimizer":
        original = trainer.optimizer.step
        trainer.optimizer.step = lambda *a, **k: _timed(lambda: original(*a, **k), spent)  # type: ignore[method-assign]
    else:
        original = torch.autograd.backward
        torch.autograd.backward = lambda *a, **k: _timed(lambda: original(*a, **k), spent)


def _timed(action: Callable[[], Any], spent: list[float]) -> Any:
    began = time.perf_counter()
    result = action()
    spent.append(time.perf_counter() - began)
    return result


def _seconds(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
