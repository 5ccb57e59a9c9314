"""The long convolution on a CPU by transforms and tap by tap, forward and backward, in turns; medians are compared.

Times are those of this process' processors, which others take nothing from. From what it shows,
`kernels/long_convolution` draws the line up to which `auto` goes tap by tap.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.long_convolution
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from benchmarks.machine import describe
from kernels.dispatch import Implementation
from kernels.long_convolution import long_convolution

SHAPES = [(8, 256, 128, 256), (8, 256, 128, 64), (4, 1024, 256, 1024), (2, 2048, 128, 2048)]
"""Batch, time, channels, taps: a small model's, H3's shift, and longer ones."""
FORMS: tuple[Implementation, ...] = ("torch", "numba")


def seconds(shape: tuple[int, int, int, int], form: Implementation) -> tuple[float, float]:
    """Of one forward and one backward."""
    batch, length, channels, taps = shape
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(batch, length, channels, generator=generator) for _ in range(2))
    filters = torch.randn(taps, channels, generator=generator).requires_grad_()
    x.requires_grad_()
    begin = time.process_time()
    y = long_convolution(x, filters, implementation=form)
    middle = time.process_time()
    y.backward(grad)
    return middle - begin, time.process_time() - middle


def main() -> None:
    """Print a line for each shape, and all numbers as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each form")
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    machine = describe("cpu")
    print(machine)
    rows = []
    for shape in SHAPES:
        turns = [{form: seconds(shape, form) for form in FORMS} for _ in range(arguments.rounds + 1)][1:]
        row = {"shape": shape} | {
            form: [1e3 * statistics.median(turn[form][part] for turn in turns) for part in range(2)] for form in FORMS
        }
        rows.append(row)
        cells = (f"{form} {row[form][0]:.2f} + {row[form][1]:.2f} ms" for form in FORMS)
        print(shape, *cells, flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
