"""What training costs beyond the model itself, each figure beside its peer's in the same run, in turns.

    PYTHONPATH=. .venv-parity/bin/python -m benchmarks.training [--rounds 5] [--json]

- loop: tokens per second of our trainer, of a plain PyTorch loop (nanoGPT's) and of `transformers.Trainer`, these two
  with our Llama in them and with that of `transformers`, on batches of the same size; and the share of a step of ours
  that is neither forward and loss, backward nor update (clipping and AdamW). In processor time of the training thread.
- loader: tokens per second of one process from memory-mapped shards, in processor time.
- checkpoint: how long a step stands still while a checkpoint is saved in the background, and when it is waited for.
- tokenization: a corpus to shards, and its texts through `datasets.map`, with the same tokenizer on the same cores.

Writes benchmarks/results/training.json and .md. A peer that is not installed is left out, and the table says so.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.training_loops import BATCH_TOKENS, Ours, huggingface, our_model, our_run, plain, their_model
from xlstm.data import declare, open_prepared, prepare
from xlstm.data.batches import Windows
from xlstm.data.corpora import open_corpus
from xlstm.data.order import Order
from xlstm.data.preparation import assigned_documents, data_folder
from xlstm.models.configs import LlamaConfig
from xlstm.run.directory import Lease, Workspace
from xlstm.training.checkpoints import Checkpointer, CheckpointRecord
from xlstm.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"
MODEL = LlamaConfig(vocab_size=256, embedding_dim=64, num_blocks=2, num_heads=2)
LARGER = LlamaConfig(vocab_size=256, embedding_dim=384, num_blocks=6, num_heads=6)
STEPS = 10
"""Of a turn: short, as the speed of a shared machine drifts within seconds."""
TURNS = 8
"""In each round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side; medians are given")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rounds = arguments.rounds
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(Workspace(Path(folder) / "small"), MODEL)
        results: dict[str, Any] = {
            "machine": machine(),
            "loop": loop(ours, Workspace(Path(folder) / "small"), rounds),
            "loader": loader(Workspace(Path(folder) / "small"), rounds),
            "checkpoint": checkpoint(Workspace(Path(folder) / "large"), ours, rounds),
            "tokenization": tokenization(Path(folder), rounds),
        }
        ours.close()
    table = to_table(results)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "training.json").write_text(json.dumps(results, indent=2) + "\n")
    (RESULTS / "training.md").write_text(table)
    print(json.dumps(results, indent=2) if arguments.json else table)


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how busy it was with other work."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
    }


def loop(ours: Ours, workspace: Workspace, rounds: int) -> dict[str, Any]:
    """Tokens per second of the three loops, and our overhead, over turns of `STEPS` steps each."""
    loops = {"ours": ours, "plain": plain(workspace, *our_model(MODEL))}
    try:
        loops["plain_their_model"] = plain(workspace, *their_model(MODEL))
        loops["trainer"] = huggingface(workspace, *our_model(MODEL))
        loops["trainer_their_model"] = huggingface(workspace, *their_model(MODEL))
    except ImportError as error:
        print(f"transformers is left out: {error}")
    for advance in loops.values():
        advance(10)
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    overheads = []
    for _ in range(rounds * TURNS):
        for name, advance in loops.items():
            seconds[name].append(advance(STEPS))
        overheads.append(ours.overhead(STEPS))
    rates = {f"{name}_tokens_per_second": STEPS * BATCH_TOKENS / statistics.median(s) for name, s in seconds.items()}
    ratios = {
        f"ours_over_{name}": statistics.median(theirs / mine for mine, theirs in zip(seconds["ours"], s, strict=True))
        for name, s in seconds.items()
        if name != "ours"
    }
    return {
        **rates,
        **ratios,
        "step_ms": statistics.median(seconds["ours"]) / STEPS * 1e3,
        "overhead": statistics.median(overheads),
    }


def loader(workspace: Workspace, rounds: int) -> dict[str, Any]:
    """Million tokens per second of processor time, from shards to batches of 32 sequences."""
    rates = {}
    for context in (256, 2048):
        data, _ = declare("python-stdlib", "bytes", context)
        windows = Windows(open_prepared(data, workspace).stream("train"), context, 255)
        order = Order(windows.whole, 0)
        measured = []
        for number in range(rounds):
            began, tokens = time.process_time(), 0
            for step in range(number * 200, number * 200 + 200):
                tokens += windows.batch(order.take(step * 32, 32)).tokens.size
            measured.append(tokens / (time.process_time() - began) / 1e6)
        rates[f"million_tokens_per_second_at_{context}"] = statistics.median(measured)
    return rates


def checkpoint(workspace: Workspace, small: Ours, rounds: int) -> dict[str, Any]:
    """Milliseconds for which a step stands still: saved in the background, and waited for."""
    run = our_run(workspace, LARGER)
    world, spec = small.attempt.world, run.spec()
    data = open_prepared(spec.physics.data, workspace)
    trainer = Trainer(run, spec, 1, world, data, lambda: None)
    trainer._optimizer_step()
    launch = run.launch(1)
    assert launch is not None
    saver = Checkpointer(Lease(run, launch.token, 1), world, keep=1, keep_steps=())
    background, waited = [], []
    for step in range(1, rounds + 2):
        record = CheckpointRecord(
            run_id=run.run_id,
            step=step,
            physics=spec.physics,
            data_fingerprint=data.manifest.fingerprint,
            ranks=1,
        )
        began = time.perf_counter()
        saver.save(trainer.state, record)
        background.append(time.perf_counter() - began)
        saver.wait()
        waited.append(time.perf_counter() - began)
    background, waited = background[1:], waited[1:]  # the first takes fresh memory from the system
    return {
        "megabytes": sum(t.numel() * t.element_size() for t in trainer.state.values()) / 1e6,
        "background_ms": statistics.median(background) * 1e3,
        "waited_ms": statistics.median(waited) * 1e3,
        "ratio": statistics.median(b / w for b, w in zip(background, waited, strict=True)),
    }


def tokenization(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds to tokenize the standard library with one learnt BPE: ours from files to shards, theirs to Arrow."""
    data, _ = declare("python-stdlib", "bpe-4096", 256)
    first = Workspace(folder / "learnt")
    prepare(data, (), first)
    saved = data_folder(data, first) / "tokenizer.json"
    data, _ = declare("python-stdlib", str(saved), 256)
    ours, theirs = [], []
    texts = [document.text for _, document in assigned_documents(open_corpus("python-stdlib", ()))]
    for number in range(rounds):
        began = time.perf_counter()
        prepare(data, (), Workspace(folder / f"tokenization-{number}"), str(saved))
        ours.append(time.perf_counter() - began)
        seconds = _datasets_map(texts, saved)
        if seconds is None:
            return {"megabytes": _megabytes(texts), "ours_s": statistics.median(ours)}
        theirs.append(seconds)
    return {
        "megabytes": _megabytes(texts),
        "ours_s": statistics.median(ours),
        "datasets_s": statistics.median(theirs),
        "datasets_over_ours": statistics.median(t / o for o, t in zip(ours, theirs, strict=True)),
    }


def _datasets_map(texts: Sequence[str], saved: Path) -> float | None:
    try:
        import datasets
    except ImportError as error:
        print(f"datasets.map is left out: {error}")
        return None
    from tokenizers import Tokenizer

    datasets.disable_progress_bars()
    tokenizer = Tokenizer.from_file(str(saved))
    with tempfile.TemporaryDirectory() as folder:
        rows = datasets.Dataset.from_dict({"text": texts})
        began = time.perf_counter()
        rows.map(
            lambda batch: {"ids": [one.ids for one in tokenizer.encode_batch_fast(batch["text"])]},
            batched=True,
            remove_columns=["text"],
            cache_file_name=f"{folder}/tokens.arrow",
        )
        return time.perf_counter() - began


def _megabytes(texts: Sequence[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def to_table(results: dict[str, Any]) -> str:
    """The figures beside what is asked of them, as Markdown."""
    step, load, save, tokens = (results[name] for name in ("loop", "loader", "checkpoint", "tokenization"))
    absent = "not installed"
    rows = [
        ("overhead of our trainer", f"{step['overhead']:.2%} of a step of {step['step_ms']:.1f} ms", "< 3 % at 10 ms"),
        *(
            (f"tokens/s, ours over {loop} with {model}", _ratio(step.get(f"ours_over_{name}"), absent), "≥ 1")
            for loop, model, name in (
                ("plain PyTorch", "the Llama of `transformers`", "plain_their_model"),
                ("plain PyTorch", "our Llama", "plain"),
                ("`transformers.Trainer`", "its own Llama", "trainer_their_model"),
                ("`transformers.Trainer`", "our Llama", "trainer"),
            )
        ),
        ("loader, context 256", f"{load['million_tokens_per_second_at_256']:.0f} M tokens/s", "≥ 20 M"),
        ("loader, context 2048", f"{load['million_tokens_per_second_at_2048']:.0f} M tokens/s", "≥ 20 M"),
        (
            f"stall of a background checkpoint of {save['megabytes']:.0f} MB",
            f"{save['background_ms']:.0f} of {save['waited_ms']:.0f} ms, {save['ratio']:.1%}",
            "< 10 %",
        ),
        ("tokenization, `datasets.map` over ours", _ratio(tokens.get("datasets_over_ours"), absent), "≥ 1"),
    ]
    where = results["machine"]
    lines = [
        f"{where['cores']} cores ({where['processor']}), one thread a side, torch {where['torch']}; "
        f"load by other work while it ran: {where['load']:.1f}.",
        "",
        "| what | measured | asked |",
        "| --- | --- | --- |",
        *(f"| {what} | {measured} | {asked} |" for what, measured, asked in rows),
    ]
    return "\n".join([*lines, ""])


def _ratio(value: float | None, otherwise: str = "") -> str:
    return otherwise if value is None else f"{value:.2f}×"


if __name__ == "__main__":
    main()
