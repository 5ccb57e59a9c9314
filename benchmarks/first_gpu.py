"""The first minutes on a GPU as one command: is it right, where does the time go, and what was expected.

What can be told without a GPU, from compiled kernels and on paper, is told in docs/operators.md; this is what remains
to be seen. Each row is written as it comes, with what was expected beside what is measured. Options of kernels are
pinned, the safest of each, and all kernels are compiled first, in many processes. A part that fails is a row with its
reason.

    python -m benchmarks.first_gpu --json first_gpu.jsonl       # under eight minutes on an H100 or H200
    TRITON_INTERPRET=1 python -m benchmarks.first_gpu --dry-run # tiny shapes on the CPU; times mean nothing

Public kernels (`mlstm_kernels`, `fla`) are measured beside ours where they are installed.
"""

import argparse
import faulthandler
import importlib
import json
import multiprocessing
import os
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor

import kernels
from benchmarks.kernels import mlstm_inputs, mlstm_peers, slstm_inputs, stepper
from benchmarks.machine import bandwidth, describe, least_seconds, matrix_rate, memory_used, wait
from benchmarks.operator_problems import Problem, Run, problems, slstm_problem
from kernels.block_diagonal import block_diagonal
from kernels.causal_conv import causal_conv_silu
from kernels.mlstm import mlstm
from kernels.rms_norm import rms_norm
from kernels.rotary import rotary
from kernels.slstm import slstm, triton_scan
from kernels.swiglu import swiglu
from xlstm.accounting import training_flops_per_token
from xlstm.models import build
from xlstm.models.initialization import initialize
from xlstm.models.sizes import config_for

Row = dict[str, Any]
BOUND = 1e-2
"""The largest relative error, by Frobenius norm, that bf16 leaves of a right kernel."""
EXPECTED_MLSTM = {384: 2.6, 512: 4.1, 768: 8.2, 1024: 13.5, 1280: 20.2, 256: 3.7}
"""Milliseconds forward and backward of 262,144 token-heads by value dimension: bounds of products, memory and cache."""
EXPECTED_STEPS = {"125M": 150_000, "1.3B": 35_000}
"""Tokens per second: 150 thousand was expected of the kernels before they were rewritten, 35 thousand is the goal."""


def pin_options() -> int:
    """Give every kernel of ours its first, safest options alone; returns how many kernels have a choice."""
    pinned = 0
    for module in pkgutil.walk_packages(kernels.__path__, "kernels."):
        if ".triton_" not in module.name:
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, triton.runtime.Autotuner):
                value.configs = value.configs[:1]
                pinned += 1
    return pinned


def compile_one(device: str, index: int) -> None:
    """In a process of its own: launch the kernels of one problem, so that they lie compiled in Triton's cache."""
    pin_options()
    problems(Run(device, 0.0, 1))[index].passes("triton", torch.bfloat16)


def correctness(run: Run) -> Iterator[Callable[[], Row]]:
    """Every operator in bfloat16 against PyTorch's form in float64, on memory that held no numbers before."""
    for problem in problems(run):
        yield partial(_error, run, problem)


def _error(run: Run, problem: Problem) -> Row:
    exact = problem.passes("torch", torch.float64)
    poison = torch.full((2**16 if run.dry else 2**28,), float("nan"), device=run.device)
    del poison
    found = problem.passes("triton", torch.float32 if run.dry else torch.bfloat16)
    errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
    return {"row": f"error of {problem.name}", "measured": max(errors), "expected": f"below {BOUND}"}


def states(run: Run) -> Iterator[Callable[[], Row]]:
    """States beyond 2^31 numbers, and many launches that must give the same bits."""

    def beyond() -> Row:
        shape = (2, 2, 64, 16, 16) if run.dry else (22, 4, 2048, 1280, 1280)
        tensors = [t.detach() for t in mlstm_inputs(shape, run.device)]
        with torch.no_grad():
            last = mlstm(*tensors, implementation="triton")[0][-1:, -1:]
            one = [t[-1:, -1:].double() for t in tensors]
            exact = mlstm(*one, implementation="torch")[0]
        error = float((last.double() - exact).norm() / exact.norm())
        return {"row": "error of the last of 22 sequences at 2.7B", "measured": error, "expected": f"below {BOUND}"}

    def repeated() -> Row:
        shape = (2, 2, 64, 16, 16) if run.dry else (66, 4, 512, 512, 512)
        tensors = mlstm_inputs(shape, run.device)
        first, different = None, 0
        for _ in range(2 if run.dry else 100):
            h = mlstm(*tensors, implementation="triton")[0]
            found = [h.detach(), *torch.autograd.grad(h, tensors, tensors[2].detach())]
            different += first is not None and not all(map(torch.equal, found, first))
            first = first or found
        return {"row": "launches of mlstm that differ in a bit", "measured": different, "expected": 0}

    yield from (beyond, repeated)


def mlstm_times(run: Run) -> Iterator[Callable[[], Row]]:
    """Forward and backward, beside public kernels in turns, and how the time divides over our kernels."""
    shapes = [(1, 2, 64, 16, 16)] if run.dry else [(32, 4, 2048, n, n) for n in (512, 1024)] + [(8, 16, 2048, 128, 256)]
    for shape in shapes:

        def row(shape: tuple[int, int, int, int, int] = shape) -> Row:
            inputs = mlstm_inputs(shape, run.device)
            sides = {"ours": lambda *x: mlstm(*x, implementation="triton")[0], **mlstm_peers(run.device)}
            seconds: dict[str, Any] = {}
            for name, side in sides.items():
                step = stepper(side, inputs, run.device)
                try:
                    step()
                    seconds[name] = 1e3 * min(step() for _ in range(run.rounds))
                except Exception as problem:  # a peer that refuses a shape is a result
                    if name == "ours":
                        raise
                    seconds[name] = _reason(problem)
            by_kernel = _by_kernel(stepper(sides["ours"], inputs, run.device)) if not run.dry else {}
            expected = EXPECTED_MLSTM.get(shape[4], "")
            title = f"ms of mlstm {' x '.join(map(str, shape))}"
            return {"row": title, "measured": seconds, "expected": expected, "by_kernel": by_kernel}

        yield row


def surrounding(run: Run, rate: float) -> Iterator[Callable[[], Row]]:
    """What surrounds the cell, as a share of the memory's bandwidth: inputs, outputs and their gradients, once each."""
    width, tokens = (64, 32) if run.dry else (4096, 8192)
    x, y = (run.normal(1, tokens, width, seed=seed).bfloat16() for seed in (0, 1))
    by = torch.float32 if run.dry else torch.bfloat16
    angles = torch.arange(tokens, device=run.device)[:, None] / torch.arange(1.0, 33.0, device=run.device)
    cases: list[tuple[str, Callable[..., Any], list[Tensor]]] = [
        ("causal_conv_silu", lambda *t: causal_conv_silu(*t, implementation="triton")[0], [x, _map(run, width, 4)]),
        ("block_diagonal", partial(block_diagonal, implementation="triton"), [x, _map(run, width // 4, 4, 4)]),
        ("swiglu", partial(swiglu, implementation="triton"), [x, y]),
        ("rms_norm", partial(rms_norm, implementation="triton"), [x, _map(run, width)]),
        (
            "rotary",
            lambda q, k: torch.cat(rotary(q, k, angles.cos(), angles.sin(), implementation="triton"), -1),
            [t.unflatten(-1, (-1, 64)) for t in (x, y)],
        ),
    ]
    for name, function, tensors in cases:

        def row(name: str = name, function: Callable[..., Any] = function, tensors: list[Tensor] = tensors) -> Row:
            inputs = [t.to(by).requires_grad_() for t in tensors]
            if name == "causal_conv_silu":
                inputs.append(torch.zeros(width, dtype=by, device=run.device, requires_grad=True))
            h = function(*inputs)
            moved = 2 * h.element_size() * (h.numel() + sum(t.numel() for t in inputs if t.ndim > 2))
            grad = torch.randn_like(h)
            seconds = least_seconds(
                lambda: torch.autograd.grad(function(*inputs), inputs, grad), run.device, run.rounds
            )
            return {"row": f"bandwidth of {name}", "measured": moved / seconds / rate, "expected": "0.4 to 0.85"}

        yield row


def slstm_rows(run: Run) -> Iterator[Callable[[], Row]]:
    """The sLSTM with a launch a step and in one launch: errors, the same bits, microseconds of a step both ways."""

    def a_launch_a_step() -> Any:
        return mock.patch.object(triton_scan, "programs_at_once", return_value=0)

    def equal(size: int) -> Row:
        problem, dtype = slstm_problem(run, size), torch.float32 if run.dry else torch.bfloat16
        with a_launch_a_step():
            expected = problem.passes("triton", dtype)
        rounds = 2 if run.dry else 20
        found = [all(map(torch.equal, problem.passes("triton", dtype), expected)) for _ in range(rounds)]
        title = f"launches of slstm {size} that differ from a launch a step"
        return {"row": title, "measured": found.count(False), "expected": 0}

    def times(size: int) -> Row:
        length = 8 if run.dry else 512
        inputs = slstm_inputs((16, length, 4, size), run.device)
        step = stepper(lambda *t: slstm(*t, implementation="triton")[0], inputs, run.device)

        def taken() -> float:
            step()
            return 1e6 * min(step() for _ in range(run.rounds)) / length

        with a_launch_a_step():
            by_step = taken()
        measured = {"at once": taken(), "a launch a step": by_step}
        return {"row": f"us a step of slstm {size}", "measured": measured, "expected": "5 to 10 at once"}

    for size in [16] if run.dry else [192, 512, 640]:
        with_launches = slstm_problem(run, size)

        def by_step(problem: Problem = with_launches) -> Row:
            with a_launch_a_step():
                return _error(run, problem)

        yield from (by_step, partial(equal, size), partial(times, size))


def training_steps(run: Run, rate: float) -> Iterator[Callable[[], Row]]:
    """Steps of xLSTM[1:0] as the trainer takes them: bfloat16 passes over float32 weights, AdamW, no accumulation."""
    from benchmarks.baselines_gpu import our_side

    for size, batch in (("125M", 1),) if run.dry else (("125M", 16), ("1.3B", 4)):

        def row(size: str = size, batch: int = batch) -> Row:
            length, vocab = (32, 256) if run.dry else (2048, 50304)
            dimensions = {"size": "125M", "embedding_dim": 64, "num_blocks": 1} if run.dry else size
            config = config_for("xlstm[1:0]", dimensions, vocab)
            model = build(config)
            initialize(model, seed=0)
            tokens = torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(1)).to(run.device)
            side = our_side(model, tokens)
            side.to_bfloat16()
            side.step()
            with memory_used(run.device) as used:
                side.step()
            seconds = least_seconds(side.step, run.device, run.rounds)
            rate_of_tokens = tokens.numel() / seconds
            facts: Row = {"gib_beyond_weights": used.bytes / 2**30}
            facts["mfu_of_measured_rate"] = training_flops_per_token(config, length) * rate_of_tokens / rate
            facts["by_kernel"] = _by_kernel(side.step) if not run.dry else {}
            expected = EXPECTED_STEPS.get(size, "")
            return {"row": f"tokens/s of xlstm[1:0] {size}", "measured": rate_of_tokens, "expected": expected} | facts

        yield row


def _map(run: Run, *shape: int) -> Tensor:
    return run.normal(*shape, seed=5).bfloat16()


def _by_kernel(work: Callable[[], object]) -> dict[str, float]:
    """Milliseconds on the GPU of one call, by kernel, the dearest dozen; and between kernels, under "idle"."""
    from torch.profiler import ProfilerActivity, profile

    begin = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        wait("cuda")
    elapsed = 1e3 * (time.perf_counter() - begin)
    spent = {event.key: event.self_device_time_total / 1e3 for event in profiled.key_averages()}
    dearest = sorted(spent.items(), key=lambda item: -item[1])[:12]
    return dict(dearest) | {"idle": max(0.0, elapsed - sum(spent.values()))}


def _reason(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0][:240]}" if lines else type(problem).__name__


def measure(run: Run, tell: Callable[[Row], None]) -> bool:
    """All rows, in the order of what one wants to know first; returns whether none failed or was left out."""
    rates = matrix_rate(run.device, torch.bfloat16), bandwidth(run.device)
    tell({"row": "TFLOP/s of a product", "measured": rates[0] / 1e12, "expected": "700 to 800 on H100, H200"})
    tell({"row": "TB/s of a copy", "measured": rates[1] / 1e12, "expected": "2.9 on H100, 4.3 on H200"})
    parts = (
        correctness(run),
        states(run),
        mlstm_times(run),
        training_steps(run, rates[0]),
        surrounding(run, rates[1]),
        slstm_rows(run),
    )
    whole = True
    for part in parts:
        for row in part:
            if time.monotonic() > run.deadline:
                tell({"row": f"the rest of {part.__name__}", "failed": "left out: no time is left"})
                whole = False
                break
            try:
                tell(row())
            except Exception as problem:
                tell({"row": f"a row of {part.__name__}", "failed": _reason(problem)})
                whole = False
    return whole


def main() -> None:
    """Print the table, one line as soon as it is known, and append each row to a file where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU; times mean nothing")
    parser.add_argument("--seconds", type=float, default=460.0, help="no row is begun after so many")
    parser.add_argument("--rounds", type=int, default=5, help="runs of which the fastest is told")
    parser.add_argument("--json", help="file to which each row is appended as a line of JSON")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        parser.error("this needs a CUDA GPU, and torch sees none; --dry-run runs tiny shapes on the CPU instead")
    if arguments.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--dry-run interprets the Triton kernels: set TRITON_INTERPRET=1")
    device = "cpu" if arguments.dry_run else "cuda"
    begin = time.monotonic()
    run = Run(device, begin + arguments.seconds, 1 if arguments.dry_run else arguments.rounds)

    def tell(row: Row) -> None:
        row = row | {"at": round(time.monotonic() - begin, 1)}
        result = row.get("failed", row.get("measured"))
        shown = f"{result:.4g}" if isinstance(result, int | float) else json.dumps(result)
        print(f"{row['at']:7.1f} s  {row['row']:<46} {shown:<20} expected {row.get('expected', '-')}", flush=True)
        for kernel, milliseconds in row.get("by_kernel", {}).items():
            print(f"{'':12}{milliseconds:10.3f} ms  {kernel[:90]}", flush=True)
        if arguments.json:
            with open(arguments.json, "a") as file:
                file.write(json.dumps(row) + "\n")

    if arguments.json:
        Path(arguments.json).unlink(missing_ok=True)
    machine = describe(device) | {"triton": triton.__version__, "kernels_with_options": pin_options()}
    tell({"row": "machine", "measured": machine})
    if not arguments.dry_run:
        faulthandler.dump_traceback_later(arguments.seconds + 60, exit=True)  # should a kernel never end
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(16, len(os.sched_getaffinity(0))), mp_context=spawned) as pool:
            waiting = [pool.submit(compile_one, device, index) for index in range(len(problems(run)))]
            failed = [_reason(error) for future in waiting if isinstance(error := future.exception(), Exception)]
        tell({"row": "problems that do not compile", "measured": failed, "expected": "[]"})
    sys.exit(0 if measure(run, tell) else 1)


if __name__ == "__main__":
    main()
