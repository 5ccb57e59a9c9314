"""The mLSTM and sLSTM operators and attention for CPUs, forward and backward, beside public kernels where those exist.

All sides take turns in one process; medians are compared. The floor of each line is the larger of exact FLOPs over the
rate of matrix products and of bytes (inputs, outputs and their gradients, once each) over the bandwidth, both measured
in the same run. Peers: `mlstm_kernels` (on CPU its native chunkwise forms, on CUDA its Triton ones), and on CUDA
`simple_gla` of `fla`, which does the same products without normaliser. Attention, on CPU alone, is beside PyTorch's,
whose documents are a mask.

    .venv-parity/bin/python -m benchmarks.kernels

On CPU float32 at the shapes of `block.py`; on CUDA bfloat16, 65,536 tokens, at the published head dimensions.
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import bandwidth, describe, matrix_rate, wait
from kernels.attention import attention
from kernels.attention.reference import visible
from kernels.mlstm import mlstm
from kernels.slstm import slstm

Forward = Callable[..., Tensor]

CPU_SHAPES = [(8, 4, 256, 64, 64), (2, 4, 2048, 192, 192)]
"""Batch, heads, time, key and value dimension: those of the inner width in `block.py`."""
CUDA_SHAPES = [(32, 4, 2048, size, size) for size in (384, 512, 768, 1024, 1280)] + [(8, 16, 8192, 128, 256)]
CPU_LAYERS = [(8, 256, 4, 32), (2, 2048, 4, 96)]
"""Of the sLSTM: batch, time, heads, head dimension."""
CPU_ATTENTION = [(8, 2, 256, 64), (4, 8, 512, 64), (4, 4, 1024, 64), (1, 12, 2048, 64)]
"""Batch, heads, time, head dimension: those of `baselines.py`, and one sequence at 125M."""
DOCUMENT = 256
"""Tokens of a document where several are packed."""
CUDA_LAYERS = [(32, 2048, 4, size) for size in (192, 256, 384, 512, 640)]


def mlstm_peers(device: str) -> dict[str, Forward]:
    """Public implementations of the same operator, (q, k, v, i, f) to h, by name."""
    peers: dict[str, Forward] = {}
    if importlib.util.find_spec("mlstm_kernels") is not None:
        from mlstm_kernels.torch import get_mlstm_kernel

        cpu, cuda = ("native_autograd", "native_custbw"), ("triton_xl_chunk", "triton_limit_chunk")
        for name in cpu if device == "cpu" else cuda:
            kernel = get_mlstm_kernel(f"chunkwise--{name}")
            chunk = 128 if name == "triton_xl_chunk" else 64
            peers[f"mlstm_kernels {name}"] = _peer(kernel, chunk)
    if device == "cuda" and importlib.util.find_spec("fla") is not None:
        from fla.ops.simple_gla import chunk_simple_gla

        def simple_gla(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
            """Its decay is a number per head and token; the input gate would be a factor of k."""
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            h: Tensor = chunk_simple_gla(q, k, v, torch.nn.functional.logsigmoid(f.float()).transpose(1, 2))[0]
            return h

        peers["fla simple_gla"] = simple_gla
    return peers


def _peer(kernel: Callable[..., Any], chunk: int) -> Forward:
    def run(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
        h: Tensor = kernel(q, k, v, i, f, chunk_size=chunk, autocast_kernel_dtype=q.dtype)
        return h

    return run


def stepper(forward: Forward, inputs: list[Tensor], device: str) -> Callable[[], float]:
    """One forward and backward, of a drawn gradient; returns seconds."""
    drawn: list[Tensor] = []

    def step() -> float:
        wait(device)
        begin = time.perf_counter()
        h = forward(*inputs)
        if not drawn:  # in the first step, which is not counted: power depends on the numbers
            generator = torch.Generator(device).manual_seed(1)
            drawn.append(torch.randn(h.shape, generator=generator, device=device).to(h.dtype))
        torch.autograd.grad(h, inputs, drawn[0], allow_unused=True)
        wait(device)
        return time.perf_counter() - begin

    return step


def compare(
    name: str,
    sides: dict[str, Forward],
    inputs: list[Tensor],
    rounds: int,
    device: str,
    rates: tuple[float, float],
    seen: float,
) -> dict[str, Any]:
    """Medians of every side, in turns; a side that cannot run is named with the reason. `seen`: share of the FLOPs."""
    row: dict[str, Any] = {"operator": name, "seconds": {}, "failed": {}}
    with FlopCounterMode(display=False) as counter:
        stepper(sides["ours"], inputs, device)()
    sizes = sum(tensor.numel() * tensor.element_size() for tensor in inputs)
    h = sides["ours"](*inputs)
    moved = 2 * sizes + 2 * h.numel() * h.element_size()
    del h
    row["flops"], row["bytes"] = int(seen * counter.get_total_flops()), moved
    row["floor_seconds"] = max(row["flops"] / rates[0], moved / rates[1])
    steps = {}
    for side, forward in sides.items():
        steps[side] = stepper(forward, inputs, device)
        try:
            steps[side]()  # compiles, and wakes up allocators
        except Exception as problem:  # a peer that refuses a shape is a result, not the end of the table
            if side == "ours":
                raise
            row["failed"][side] = f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
            del steps[side]
    taken: dict[str, list[float]] = {side: [] for side in steps}
    for _ in range(rounds):
        for side, step in steps.items():
            taken[side].append(step())
    row["seconds"] = {side: statistics.median(seconds) for side, seconds in taken.items()}
    row["ratios"] = {
        side: statistics.median(b / a for a, b in zip(taken["ours"], seconds, strict=True))
        for side, seconds in taken.items()
        if side != "ours"
    }
    return row


def mlstm_inputs(shape: tuple[int, int, int, int, int], device: str) -> list[Tensor]:
    batch, heads, length, key_dim, value_dim = shape
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(batch, heads, length, *size, generator=generator, device=device)

    # Gates in q's dtype: the peers cast them so, and one of them asks for it.
    tensors = [normal(key_dim), normal(key_dim), normal(value_dim), normal(), normal() + 3]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def slstm_inputs(shape: tuple[int, int, int, int], device: str) -> list[Tensor]:
    batch, length, heads, head_dim = shape
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    gates = torch.randn(batch, length, 4, heads, head_dim, generator=generator, device=device)
    recurrent = torch.randn(4, heads, head_dim, head_dim, generator=generator, device=device) / head_dim**0.5
    return [gates.to(dtype).requires_grad_(), recurrent.to(dtype).requires_grad_()]


def attention_inputs(shape: tuple[int, int, int, int], device: str) -> list[Tensor]:
    batch, heads, length, head_dim = shape
    generator = torch.Generator(device).manual_seed(0)
    tensors = (torch.randn(batch, length, heads, head_dim, generator=generator, device=device) for _ in range(3))
    return [tensor.transpose(1, 2).requires_grad_() for tensor in tensors]


def attention_sides(shape: tuple[int, int, int, int], packed: bool) -> tuple[dict[str, Forward], float]:
    """Ours and PyTorch's, and the share of pairs of a query and a key that are seen."""
    batch, _, length, _ = shape
    pytorch = torch.nn.functional.scaled_dot_product_attention
    if not packed:
        return {"ours": attention, "PyTorch": lambda *x: pytorch(*x, is_causal=True)}, (length + 1) / (2 * length)
    begins = (torch.arange(length) // DOCUMENT * DOCUMENT).to(torch.int32).expand(batch, -1)
    mask = visible(length, length, begins, begins.device)
    sides = {"ours": lambda *x: attention(*x, begins=begins), "PyTorch": lambda *x: pytorch(*x, attn_mask=mask)}
    return sides, float(mask.float().mean())


def main() -> None:
    """Print one line per operator, shape and side, and all numbers as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    device = arguments.device
    machine = describe(device)
    rates = matrix_rate(device, torch.bfloat16 if device == "cuda" else torch.float32), bandwidth(device)
    machine |= {"matrix_flops_per_second": rates[0], "bytes_per_second": rates[1]}
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"{'':<28}{'side':<32}{'ms':>10}{'x floor':>10}{'ours is faster by':>19}")
    rows = []
    mlstm_sides = {"ours": lambda *x: mlstm(*x)[0], **mlstm_peers(device)}
    cases: list[tuple[str, Any, dict[str, Forward], Any, float]]
    cases = [("mlstm", shape, mlstm_sides, mlstm_inputs, 1.0) for shape in (CPU_SHAPES, CUDA_SHAPES)[device == "cuda"]]
    cases += [
        ("slstm", shape, {"ours": lambda *x: slstm(*x)[0]}, slstm_inputs, 1.0)
        for shape in (CPU_LAYERS, CUDA_LAYERS)[device == "cuda"]
    ]
    for name, packed in (("attention", False), ("documents", True)):
        for shape in CPU_ATTENTION if device == "cpu" else ():
            attention_pair, seen = attention_sides(shape, packed)
            cases.append((name, shape, attention_pair, attention_inputs, seen))
    for operator, shape, sides, inputs, seen in cases:
        name = f"{operator} {' x '.join(map(str, shape))}"
        row = compare(name, sides, inputs(shape, device), arguments.rounds, device, rates, seen)
        rows.append(row)
        for side, seconds in row["seconds"].items():
            ratio = f"{row['ratios'][side]:.2f}" if side in row["ratios"] else ""
            print(f"{name:<28}{side:<32}{1e3 * seconds:>10.1f}{seconds / row['floor_seconds']:>10.1f}{ratio:>19}")
        for side, reason in row["failed"].items():
            print(f"{name:<28}{side:<32}  {reason}", flush=True)
        if arguments.json:  # whole after every row, whatever becomes of the next
            Path(arguments.json).write_text(json.dumps({"machine": machine, "operators": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
