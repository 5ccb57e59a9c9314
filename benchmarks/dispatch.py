"""What torch.library's dispatch adds to an operator: forward and backward on a few numbers, with it and without.

    python -m benchmarks.dispatch --json benchmarks/results/dispatch_cpu.json

The numbers are so few that nearly all of the time is calls. Without is how operators are called where nobody looks on
(`kernels/operator.py`); both sides take turns, and the ratio is the median of the turns'.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.machine import describe, seconds_taken
from kernels import operator
from kernels.rms_norm import rms_norm
from kernels.squared_relu import squared_relu
from kernels.token_shift import token_shift

CALLS = 500
"""Of a side in a turn."""


def operators() -> dict[str, Callable[[], list[Tensor]]]:
    """Calls of a few operators whose results have gradients."""
    x, weight, shares = (torch.ones(shape, requires_grad=True) for shape in ((1, 2, 8), (8,), (3, 8)))
    return {
        "squared_relu": lambda: [squared_relu(x)],
        "rms_norm": lambda: [rms_norm(x, weight)],
        "token_shift": lambda: token_shift(x, shares),
    }


def compare(name: str, call: Callable[[], list[Tensor]], rounds: int) -> dict[str, Any]:
    """Medians of both sides in microseconds, and of their ratio."""
    grads = [torch.ones_like(y) for y in call()]

    def calls() -> None:
        for _ in range(CALLS):
            torch.autograd.backward(call(), grads)

    taken: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(rounds + 1):
        taken["without"].append(seconds_taken(calls, "cpu"))
        with mock.patch.object(operator, "_observed", return_value=True):
            taken["with"].append(seconds_taken(calls, "cpu"))
    micro = {f"{side}_us": 1e6 * statistics.median(seconds[1:]) / CALLS for side, seconds in taken.items()}
    ratios = [b / a for a, b in zip(taken["without"], taken["with"], strict=True)]
    return {"operator": name, **micro, "ratio": statistics.median(ratios[1:])}


def main() -> None:
    """One line per operator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    machine = describe("cpu")
    print(machine)
    print(f"{'operator':<14}{'without (us)':>14}{'with (us)':>14}{'ratio':>10}")
    rows = [compare(name, call, arguments.rounds) for name, call in operators().items()]
    for row in rows:
        print(f"{row['operator']:<14}{row['without_us']:>14.0f}{row['with_us']:>14.0f}{row['ratio']:>9.2f}x")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
