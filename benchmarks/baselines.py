"""One training step of each baseline on CPU beside the implementation people would take instead, in one process.

Same weights, same tokens; forward, loss, backward and AdamW; both sides take turns, and medians are compared. The
other side is `transformers` (Llama, GPT-2, both Mambas, RWKV, each as it runs where no extra kernels are installed)
or, for the LSTM, `torch.nn.LSTM`; for the families around one recurrence it is our model with the plain PyTorch of
`fla` in that place (`plain_recurrences`). In the same turns the step's matrix products are made by themselves: they are
the library's on both sides, so that theirs over the products is the ratio that nothing on this library can exceed.
Attention's are not among them, nor those inside PyTorch's LSTM, nor transforms. Needs an environment that has
`transformers` and `fla` besides this repository:

    .venv-parity/bin/python -m benchmarks.baselines --shape small

For a GPU there is `baselines_gpu.py`.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import describe
from benchmarks.plain_recurrences import PLACES, in_place
from benchmarks.products import products_of
from xlstm.export.transformers import to_transformers
from xlstm.export.transformers_config import config_to_transformers
from xlstm.models import build
from xlstm.models.configs import GPTConfig, LlamaConfig, LSTMConfig, MambaConfig, ModelConfig, RWKV4Config
from xlstm.models.initialization import initialize
from xlstm.models.linear_configs import Mamba2Config
from xlstm.models.sizes import config_for
from xlstm.training.machine import keep_freed_memory

VOCAB = 256


@dataclass(frozen=True)
class Shape:
    """What one step is taken on."""

    batch: int
    length: int
    width: int
    blocks: int


SHAPES = {
    "small": Shape(8, 256, 128, 4),
    "wide": Shape(8, 256, 256, 4),
    "long": Shape(4, 1024, 256, 4),
    "large": Shape(4, 512, 512, 6),
}
PATIENCE = 10.0
"""Seconds of a step beyond which it is taken once a turn, with none before it to wake up, and in fewer turns."""

Clock = Callable[[], float]
"""Seconds since some time: of the wall, or of this process' processors, which other processes take nothing from."""

Losses = Callable[[Tensor, Tensor], Tensor]
"""From tokens and targets to the mean loss."""


def configuration(family: str, shape: Shape) -> ModelConfig:
    """Attention in heads of 64 dimensions, as in the published sizes."""
    own = {"embedding_dim": shape.width, "num_blocks": shape.blocks}
    dimensions = {"vocab_size": VOCAB, **own}
    heads = shape.width // 64
    match family:
        case "llama":
            return LlamaConfig(**dimensions, num_heads=heads)
        case "gpt":
            return GPTConfig(**dimensions, num_heads=heads, context_length=shape.length)
        case "mamba":
            return MambaConfig(**dimensions)
        case "mamba2":
            return Mamba2Config(**dimensions)
        case "rwkv4":
            return RWKV4Config(**dimensions)
        case "lstm":
            return LSTMConfig(**dimensions, variant="vanilla")
        case "gla" | "gated-deltanet":
            return config_for(family, {**own, "num_heads": heads}, VOCAB)
        case "hgrn2" | "rwkv5" | "rwkv6" | "retnet" | "rwkv7":
            return config_for(family, {**own, "head_dim": 64}, VOCAB)
        case "hyena":
            return config_for(family, {**own, "context_length": shape.length}, VOCAB)
        case "hgrn" | "h3":
            return config_for(family, own, VOCAB)
    raise ValueError(f"unknown family {family!r}; there are {', '.join(FAMILIES)}")


FAMILIES = ("llama", "gpt", "mamba", "mamba2", "rwkv4", "lstm", *PLACES)


class StackedLSTM(nn.Module):
    """The plain stack as one would write it with PyTorch: embedding, `nn.LSTM` of several layers, head."""

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        d = config.embedding_dim
        self.embedding = nn.Embedding(config.vocab_size, d)
        self.lstm = nn.LSTM(d, d, config.num_blocks, batch_first=True)
        self.head = nn.Linear(d, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(tokens))[0])


def ours(config: ModelConfig) -> nn.Module:
    """Our model, its weights away from zero so that no path is dead."""
    model = build(config)
    initialize(model, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def theirs(config: ModelConfig, model: nn.Module, length: int) -> tuple[nn.Module, Losses]:
    """The other side with our weights."""
    if isinstance(config, LSTMConfig):
        peer: nn.Module = StackedLSTM(config)
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        names = {
            "weight_input": "weight_ih",
            "weight_hidden": "weight_hh",
            "bias_input": "bias_ih",
            "bias_hidden": "bias_hh",
        }
        layers = {
            f"lstm.{there}_l{index}": weights[f"blocks.{index}.lstm.{here}"]
            for index in range(config.num_blocks)
            for here, there in names.items()
        }
        outside = {name: weights[name] for name in ("embedding.weight", "head.weight")}
        peer.load_state_dict(layers | outside)
        return peer, lambda tokens, targets: F.cross_entropy(peer(tokens).flatten(0, 1), targets.flatten())

    if config.family in PLACES:
        twin = copy.deepcopy(model)

        def plainly(tokens: Tensor, targets: Tensor) -> Tensor:
            with in_place(config.family):
                loss: Tensor = twin(tokens, targets=targets)[0].mean()
            return loss

        return twin, plainly

    from transformers import AutoConfig, AutoModelForCausalLM

    content = config_to_transformers(config, length)
    peer = AutoModelForCausalLM.from_config(AutoConfig.for_model(**content), dtype=torch.float32)
    load_ours(config, model, peer)
    peer.train()

    def losses(tokens: Tensor, targets: Tensor) -> Tensor:
        logits = peer(tokens, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    return peer, losses


def load_ours(config: ModelConfig, model: nn.Module, peer: nn.Module) -> None:
    """Our weights into a peer that calls them what `transformers` does. RuntimeError where they do not fit."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    missing, unexpected = peer.load_state_dict(to_transformers(config, weights), strict=False)
    if unexpected or set(missing) - ({"lm_head.weight"} if config.family == "gpt" else set()):
        raise RuntimeError(f"weights do not fit: missing {missing}, unexpected {unexpected}")


def stepper(model: nn.Module, losses: Losses, tokens: Tensor, clock: Clock = time.perf_counter) -> Callable[[], float]:
    """One training step; returns seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    targets = tokens.roll(-1, dims=1)

    def step() -> None:
        losses(tokens, targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return lambda: taken(step, clock)


def taken(work: Callable[[], None], clock: Clock) -> float:
    """Seconds of `work`."""
    begin = clock()
    work()
    return clock() - begin


def compare(family: str, shape: Shape, rounds: int, compiled: bool, clock: Clock = time.perf_counter) -> dict[str, Any]:
    """Medians of both sides in seconds, their ratio, and by how much their losses differ, relatively."""
    config = configuration(family, shape)
    model = ours(config)
    peer, their_losses = theirs(config, model, shape.length)

    def our_losses(tokens: Tensor, targets: Tensor) -> Tensor:
        return model(tokens, targets=targets)[0].mean()

    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCAB, (shape.batch, shape.length), generator=generator)
    short = tokens[:1, :8]
    with torch.no_grad():
        here, there = our_losses(short, short), their_losses(short, short)
    if compiled:
        our_losses, their_losses = torch.compile(our_losses), torch.compile(their_losses)
    our_step, their_step = (
        stepper(side, losses, tokens, clock) for side, losses in ((model, our_losses), (peer, their_losses))
    )
    products = None if compiled else products_of(our_step)
    sides = {"ours": our_step, "theirs": their_step}
    if products is not None:
        sides["products"] = lambda: taken(products, clock)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    slow = their_step() > PATIENCE
    for _ in range(min(rounds, 2) if slow else rounds):
        for side, step in sides.items():
            if not (slow and side == "theirs"):
                step()  # training comes upon its own caches and allocator, not the other side's
            seconds[side].append(step())
    row: dict[str, Any] = {"family": family, "turns": len(seconds["ours"])}
    row |= {f"{side}_seconds": statistics.median(taken) for side, taken in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    row["ratio"] = statistics.median(ratios)
    if products is not None:
        row["bound"] = statistics.median(b / a for a, b in zip(seconds["products"], seconds["theirs"], strict=True))
    return row | {"loss_difference": float((here - there).abs() / there)}


def main() -> None:
    """Print one line per family, and all numbers as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--compile", action="store_true", help="torch.compile on both sides")
    parser.add_argument(
        "--processor-time", action="store_true", help="not the wall's: with one thread, on a busy machine"
    )
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    keep_freed_memory()  # as our trainer does; it serves both sides
    clock = time.process_time if arguments.processor_time else time.perf_counter
    machine = describe("cpu") | {"clock": clock.__name__}
    print(f"{shape}, {machine}")
    columns = ("ours (ms)", "theirs (ms)", "ratio", "products (ms)", "bound", "loss differs")
    print(f"{'family':<8}" + "".join(f"{column:>14}" for column in columns))
    rows = []
    for family in arguments.families:
        row = compare(family, shape, arguments.rounds, arguments.compile, clock)
        rows.append(row)
        cells = [f"{1e3 * row['ours_seconds']:.1f}", f"{1e3 * row['theirs_seconds']:.1f}", f"{row['ratio']:.2f}x"]
        cells += [f"{1e3 * row['products_seconds']:.1f}", f"{row['bound']:.2f}x"] if "bound" in row else ["-", "-"]
        cells.append(f"{row['loss_difference']:.1e}")
        print(f"{family:<8}" + "".join(f"{cell:>14}" for cell in cells), flush=True)
        if arguments.json:
            content = {"machine": machine, "shape": asdict(shape), "rows": rows}
            Path(arguments.json).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
