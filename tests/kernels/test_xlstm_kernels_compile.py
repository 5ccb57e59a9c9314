"""The Triton kernels compile for GPUs that are not here, as they are launched, within what the chips have.

The interpreter sees neither shared memory nor registers, nor where an operand of a product comes from, nor how wide an
offset is; the compiler does. A part of `benchmarks/ahead_of_time.py`, whose table has all.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.ahead_of_time import narrow_products, open_waits
from kernels.slstm import triton_scan

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes a program may use, CUDA C++ programming guide, table of technical specifications per compute capability."""


@pytest.mark.parametrize(
    ("group", "capability"),
    [
        ("mLSTM", 90),
        pytest.param("block", 90, marks=pytest.mark.slow),
        pytest.param("mLSTM", 80, marks=pytest.mark.slow),
        pytest.param("sLSTM", 80, marks=pytest.mark.slow),
        pytest.param("sLSTM", 90, marks=pytest.mark.slow),
        pytest.param("others", 90, marks=pytest.mark.slow),
        pytest.param("scans", 90, marks=pytest.mark.slow),
        pytest.param("linear attention", 80, marks=pytest.mark.slow),
        pytest.param("linear attention", 90, marks=pytest.mark.slow),
        pytest.param("loss", 90, marks=pytest.mark.slow),
    ],
)
def test_kernels_fit_the_chip(group: str, capability: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.ahead_of_time", "--some"]
    finished = subprocess.run(
        [*command, "--groups", group, "--capability", str(capability)],
        env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    kernels = [json.loads(line) for line in finished.stdout.splitlines()]
    assert kernels
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY[capability], kernel
        assert kernel["stack"] == 0, kernel
        assert kernel["register operands"] == 0, kernel
        assert kernel["narrow products"] == 0, kernel
        assert kernel["open waits"] == 0, kernel
        # Rows are multiples of 16 numbers here: all but single numbers, and blocks of four, are read eight at a time.
        few = kernel["kernel"].startswith(("gates_", "times_kernel"))
        assert kernel["loads of 16 bytes"] > 0 or few, kernel
        if group == "sLSTM":  # what `programs_at_once` relies on
            assert kernel["shared"] <= triton_scan.shared_memory(512, torch.bfloat16), kernel
            assert kernel["blocks"] >= 2, kernel
            assert kernel["early reads"] == 0, kernel


NARROW = """
%1 = arith.muli %c, %rows : i32
%2 = arith.{0}
%3 = tt.addptr %states_C, %2 : !tt.ptr<bf16>, {1}
%4 = tt.addptr %3, %5 : !tt.ptr<bf16>, i64
"""


@pytest.mark.parametrize("made", [("muli %1, %c1638400_i32 : i32", "i32"), ("extsi %1 : i32 to i64", "i64")])
def test_a_product_of_32_bits_that_reaches_the_states_is_found(made: tuple[str, str]) -> None:
    assert narrow_products(NARROW.format(*made)) == 1
    assert narrow_products(NARROW.format(*made).replace("%states_C", "%carry")) == 0
    assert narrow_products(NARROW.format("muli %wide, %c1638400_i64 : i64", "i64")) == 0


def test_a_copy_between_a_wait_and_the_meeting_of_all_warps_is_found() -> None:
    ptx = "wgmma.wait_group.sync.aligned 1;\n{0}\ncp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10;"
    assert open_waits(ptx.format("")) == 1
    assert open_waits(ptx.format("bar.sync 0;")) == 0
