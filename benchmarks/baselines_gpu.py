"""One training step of each baseline on a GPU beside its public counterpart, and RWKV-4's operator by itself.

Llama and GPT beside `transformers` with its SDPA attention; Mamba beside that of `fla`, on the kernels of `mamba_ssm`;
RWKV-4, of which `fla` has the operator alone, beside itself with that operator. At the published sizes: 2048 tokens of
context, GPT-NeoX's vocabulary. Each pair is measured as written, then compiled: our blocks, as `compile: true` compiles
them, and the whole of theirs with its loss. A side that fails is named with the reason; graph breaks are counted.

Both sides have the same weights and tokens, and take turns in one process. A step is forward, loss, backward and AdamW,
in bfloat16 as our trainer's `bf16-mixed`: weights in float32, cast for the two passes, as are their gradients for the
update. Times are between CUDA events; the ratio is the median of the turns' ratios; memory is what a step needs beyond
weights and optimizer; the floor is the step's exact FLOPs over the rate of matrix products measured in the same run.

    .venv-parity/bin/python -m benchmarks.baselines_gpu --json benchmarks/results/baselines_h100.json

It needs one CUDA GPU and what tests/parity/requirements.txt names; Mamba's peer also mamba-ssm and causal-conv1d. To
see without a GPU that the program runs, on tiny shapes whose times mean nothing:

    TRITON_INTERPRET=1 .venv-parity/bin/python -m benchmarks.baselines_gpu --dry-run
"""

import argparse
import copy
import gc
import importlib.util
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks import fla_peers
from benchmarks.baselines import Losses, ours, theirs
from benchmarks.machine import bandwidth, describe, matrix_rate, memory_used, seconds_taken
from kernels.wkv import wkv
from xlstm.accounting import training_flops_per_token
from xlstm.models import rwkv4
from xlstm.models.configs import MambaConfig, ModelConfig, RWKV4Config
from xlstm.models.sizes import config_for

FAMILIES = ("llama", "gpt", "mamba", "rwkv4")
BATCHES = {"125M": 16, "350M": 8, "760M": 4, "1.3B": 4}
"""Sequences of a step, by size: as in `block.py`."""
PACKAGES = {"transformers": "transformers", "fla": "flash-linear-attention", "triton": "triton"}
"""What the peers are, by the names they are imported and installed by."""

Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """What one step is taken on."""

    family: str
    size: str
    batch: int
    length: int = 2048
    vocab_size: int = 50304

    @property
    def config(self) -> ModelConfig:
        tiny = {"size": "125M", "embedding_dim": 96, "num_blocks": 2}
        return config_for(self.family, tiny if self.size == "tiny" else self.size, self.vocab_size)


class Training:
    """A model in training: weights in float32, cast for forward and backward, and their gradients for AdamW.

    What FSDP does for our trainer on one GPU, for either side alike and without hooks in the model, so that it can be
    compiled whole.
    """

    def __init__(self, model: nn.Module, losses: Losses, tokens: Tensor, precise: Iterable[nn.Parameter]) -> None:
        """`precise`: parameters that stay float32 in the passes, too."""
        self.model, self.losses, self.tokens = model.to(tokens.device), losses, tokens
        self.targets = tokens.roll(-1, dims=1)
        self.targets[:, -1] = -100  # nothing follows
        self.cast = list(model.parameters())
        self.weights = [parameter.detach().clone() for parameter in self.cast]
        self.precise = {id(parameter) for parameter in precise}
        self.optimizer = torch.optim.AdamW(self.weights, lr=0.0, fused=True)

    def to_bfloat16(self) -> None:
        """From here on the passes are in bfloat16."""
        for parameter in self.cast:
            if id(parameter) not in self.precise:
                parameter.data = parameter.data.to(torch.bfloat16)

    def first_loss(self) -> float:
        """Of a few tokens, as the model stands."""
        with torch.no_grad():
            return float(self.losses(self.tokens[:1, :64], self.targets[:1, :64]))

    def step(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.cast, self.weights)
        try:
            self.losses(self.tokens, self.targets).backward()
            for weight, parameter in zip(self.weights, self.cast, strict=True):
                weight.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
            self.optimizer.step()
        finally:  # one that fails, for want of memory perhaps, leaves nothing behind either
            for tensor in (*self.weights, *self.cast):
                tensor.grad = None

    def compile_blocks(self) -> None:
        for block in self.model.blocks:  # type: ignore[union-attr]
            block.compile()

    def compile_whole(self) -> None:
        self.losses = torch.compile(self.losses)


def our_side(model: nn.Module, tokens: Tensor) -> Training:
    def losses(tokens: Tensor, targets: Tensor) -> Tensor:
        return model(tokens, targets=targets)[0].sum() / (targets >= 0).sum()

    stay = (m for m in model.modules() if getattr(m, "keeps_float32", False))
    return Training(model, losses, tokens, [p for m in stay for p in m.parameters(recurse=False)])


def their_side(config: ModelConfig, model: nn.Module, tokens: Tensor) -> tuple[Training, str]:
    """The peer with our weights, and what it is."""
    if isinstance(config, RWKV4Config):
        side = our_side(copy.deepcopy(model), tokens)
        inner = side.losses

        def with_their_operator(tokens: Tensor, targets: Tensor) -> Tensor:
            with patch.object(rwkv4, "wkv", fla_peers.wkv):
                return inner(tokens, targets)

        side.losses = with_their_operator
        return side, "our model with fused_recurrent_rwkv4 of fla"
    if isinstance(config, MambaConfig):
        peer, scan = fla_peers.mamba(config, model, tokens.device.type)

        def losses(tokens: Tensor, targets: Tensor) -> Tensor:
            return peer(input_ids=tokens, labels=tokens, use_cache=False).loss  # the same targets, and its own loss

        stay = [parameter for name, parameter in peer.named_parameters() if name.endswith("A_log")]  # as ours does
        return Training(peer, losses, tokens, stay), f"fla's Mamba on {scan}"
    peer, losses = theirs(config, model, tokens.shape[1])
    return Training(peer, losses, tokens, ()), f"transformers, attention {peer.config._attn_implementation}"


def in_turns(sides: dict[str, Work], rounds: int, repeats: int, device: str) -> dict[str, Any]:
    """Median seconds of every side, ratios to ours, bytes a call needs; and why a side failed that did."""
    failed, able, breaks = {}, {}, {}
    counters = torch._dynamo.utils.counters
    for side, work in sides.items():
        counters.clear()
        try:
            work()  # compiles, and wakes up allocators
            work()
            able[side] = work
        except Exception as problem:  # a side that refuses a shape is a result, not the end of the table
            failed[side] = reason(problem)
        breaks[side] = sum(counters["graph_break"].values())
    taken: dict[str, list[float]] = {side: [] for side in able}
    for _ in range(rounds):
        for side, work in able.items():
            work()  # comes upon its own caches and allocator, not the other side's
            taken[side].append(seconds_taken(lambda work=work: [work() for _ in range(repeats)], device) / repeats)
    needed = {}
    for side, work in able.items():
        with memory_used(device) as used:
            work()
        needed[side] = used.bytes
    row = {"seconds": {side: statistics.median(seconds) for side, seconds in taken.items()}, "bytes": needed}
    if len(able) == 2:
        row["ratio"] = statistics.median(b / a for a, b in zip(taken["ours"], taken["theirs"], strict=True))
    return row | {"failed": failed, "graph_breaks": breaks}


def reason(problem: Exception) -> str:
    """The kind of a failure, and how what it says begins."""
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0][:240]}" if lines else type(problem).__name__


def steps(case: Case, rounds: int, repeats: int, device: str, rate: float, compiled: bool) -> list[dict[str, Any]]:
    """A row for the steps as written, and one for them compiled."""
    config = case.config
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(case.vocab_size, (case.batch, case.length), generator=generator).to(device)
    model = ours(config)
    facts: dict[str, Any] = asdict(case) | {"flops": training_flops_per_token(config, case.length) * tokens.numel()}
    facts["floor_seconds"] = facts["flops"] / rate
    sides, absent = {}, {}
    try:  # before ours moves to the device: it takes our weights from there
        peer, facts["peer"] = their_side(config, model, tokens)
        other = peer.first_loss()
        sides["theirs"] = peer
    except Exception as problem:
        absent["theirs"] = reason(problem)
    sides = {"ours": our_side(model, tokens)} | sides
    if not absent:
        facts["loss_difference"] = abs(sides["ours"].first_loss() - other) / abs(other)
    for side in sides.values():
        side.to_bfloat16()
    rows = []
    for is_compiled in (False, True)[: 1 + compiled]:
        if is_compiled:
            torch._dynamo.reset()  # every case on its own: none makes the next one's shapes dynamic
            for name, side in sides.items():
                is_ours = name == "ours" or isinstance(config, RWKV4Config)
                side.compile_blocks() if is_ours else side.compile_whole()
        row = facts | {"compiled": is_compiled}
        row |= in_turns({name: side.step for name, side in sides.items()}, rounds, repeats, device)
        row["failed"] |= absent
        row["tokens_per_second"] = {name: tokens.numel() / seconds for name, seconds in row["seconds"].items()}
        rows.append(row)
    return rows


def operators(case: Case, rounds: int, repeats: int, device: str, rate: float) -> list[dict[str, Any]]:
    """RWKV-4's operator at a model's shape, forward and backward, with keys and values in bfloat16 and in float32.

    The floor is that of k, v, output and their gradients, once each, at the bandwidth `rate`. Errors are those of the
    output and of the gradients of k, v, log(-decay) and bonus, by Frobenius norm, relative to float64.
    """
    shape = (case.batch, case.length, case.config.embedding_dim)
    generator = torch.Generator().manual_seed(0)
    key, value, pushed = (torch.randn(shape, generator=generator).to(device) for _ in range(3))
    log_decay = torch.linspace(-5, 3, shape[2], device=device)  # of -decay, as the model's at first
    bonus = torch.randn(shape[2], generator=generator).to(device)

    def of_ours(k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor, implementation: str = "triton") -> Tensor:
        return wkv(k, v, -torch.exp(log_decay), bonus, implementation=implementation)[0]

    def of_theirs(k: Tensor, v: Tensor, log_decay: Tensor, bonus: Tensor) -> Tensor:
        return fla_peers.wkv(k, v, -torch.exp(log_decay), bonus)[0]

    def passes(forward: Callable[..., Tensor], dtype: torch.dtype, *options: str) -> list[Tensor]:
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (key, value)]
        inputs += [
            tensor.to(torch.promote_types(dtype, torch.float32)).requires_grad_() for tensor in (log_decay, bonus)
        ]
        y = forward(*inputs, *options)
        return [y.detach(), *torch.autograd.grad(y, inputs, pushed.to(y.dtype))]

    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        sides = {
            "ours": lambda dtype=dtype: passes(of_ours, dtype),
            "theirs": lambda dtype=dtype: passes(of_theirs, dtype),
        }
        row = {"operator": "wkv", "shape": shape, "dtype": str(dtype).removeprefix("torch.")}
        row["floor_seconds"] = 6 * key.numel() * dtype.itemsize / rate
        row |= {"peer": "fused_recurrent_rwkv4 of fla"} | in_turns(sides, rounds, repeats, device)
        exact = passes(of_ours, torch.float64, "torch")
        row["errors"] = {
            side: [float((a.double() - b).norm() / b.norm()) for a, b in zip(sides[side](), exact, strict=True)]
            for side in row["seconds"]
        }
        rows.append(row)
    return rows


COLUMNS = (
    ("seconds", "ms", 1e3, ".2f"),
    ("tokens_per_second", "tokens/s", 1, ".0f"),
    ("bytes", "MiB", 2**-20, ".0f"),
)


def line(row: dict[str, Any]) -> str:
    """One line of the table, and one for each side that failed."""
    if "operator" in row:
        title = f"{row['operator']} {' x '.join(map(str, row['shape']))} {row['dtype']}"
    else:
        title = f"{row['family']} {row['size']}, {row['batch']} x {row['length']}" + ", compiled" * row["compiled"]
    cells = [
        f"{row[key][side] * factor:>15{style}}" if side in row.get(key, {}) else f"{'-':>15}"
        for key, _, factor, style in COLUMNS
        for side in ("ours", "theirs")
    ]
    cells.append(f"{row['ratio']:>9.2f}" if "ratio" in row else f"{'-':>9}")
    over = row["seconds"]["ours"] / row["floor_seconds"] if "floor_seconds" in row and "ours" in row["seconds"] else 0
    cells.append(f"{over:>9.1f}" if over else f"{'-':>9}")
    worst = "".join(f"{max(errors):>10.0e}" for errors in row.get("errors", {}).values())
    cells.append(worst or (f"{row['loss_difference']:>10.0e}" if "loss_difference" in row else f"{'-':>10}"))
    failures = [f"\n    {side}: {count} graph breaks" for side, count in row["graph_breaks"].items() if count]
    failures += [f"\n    {side} failed: {why}" for side, why in row["failed"].items()]
    return f"{title:<34}" + "".join(cells) + f"  {row.get('peer', '')}" + "".join(failures)


def main() -> None:
    """Print the table, one line as soon as it is known, and keep all numbers as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--sizes", nargs="+", choices=BATCHES, default=("125M", "350M"))
    parser.add_argument("--batch", type=int, help="sequences of a step, where a GPU's memory asks for others")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--plain", action="store_true", help="leave the compiled steps out")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU; times mean nothing")
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        parser.error("this needs a CUDA GPU, and torch sees none; --dry-run runs tiny shapes on the CPU instead")
    if arguments.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--dry-run interprets the Triton kernels: set TRITON_INTERPRET=1")
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        parser.error(f"not installed: {', '.join(missing)}; pip install -r tests/parity/requirements.txt")

    device = "cpu" if arguments.dry_run else "cuda"
    rounds, repeats, many = (1, 1, 1) if arguments.dry_run else (arguments.rounds, 3, 20)
    if arguments.dry_run:
        fla_peers.interpret_first_options()
        cases = [Case(family, "tiny", arguments.batch or 2, 64, 256) for family in arguments.families]
    else:
        cases = [
            Case(family, size, arguments.batch or BATCHES[size])
            for family in arguments.families
            for size in arguments.sizes
        ]
    machine: dict[str, Any] = describe(device) | versions()
    rate, bytes_rate = matrix_rate(device, torch.bfloat16), bandwidth(device)
    machine |= {"matrix_flops_per_second": rate, "bytes_per_second": bytes_rate}
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    titles = "".join(f"{f'{side} {title}':>15}" for _, title, _, _ in COLUMNS for side in ("our", "their"))
    print(f"{'':<34}{titles}{'ratio':>9}{'x floor':>9}{'differs':>10}  theirs")

    rows: dict[str, Any] = {"machine": machine, "steps": [], "operators": []}
    for case in cases:
        found = {"steps": steps(case, rounds, repeats, device, rate, compiled=not arguments.plain)}
        if case.family == "rwkv4":
            found["operators"] = operators(case, rounds, many, device, bytes_rate)
        gc.collect()  # compiled blocks hold themselves, and the memory of their weights
        for table, more in found.items():
            rows[table] += more
            for row in more:
                print(line(row), flush=True)
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(rows, indent=2) + "\n")
    sys.exit(any("ours" in row["failed"] for table in ("steps", "operators") for row in rows[table]))


def versions() -> dict[str, str]:
    """Of the peers, and of what they run on."""
    found = {}
    for name in (*PACKAGES.values(), "mamba_ssm", "causal_conv1d"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


if __name__ == "__main__":
    main()
