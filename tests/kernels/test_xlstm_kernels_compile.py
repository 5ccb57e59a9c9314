"""The Triton kernels of the xLSTM blocks compile for GPUs that are not here, at every published head dimension.

The interpreter sees neither shared memory nor registers; the compiler does.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes a program may use, CUDA C++ programming guide, table of technical specifications per compute capability."""

SPILLED = 16
"""Bytes of stores and loads together per thread: up to two words are addresses outside the inner loops."""


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("operator", ["mlstm", "slstm", "block", "loss"])
def test_kernels_fit_the_chip(operator: str, capability: int) -> None:
    script = Path(__file__).with_name("ahead_of_time.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(script.parents[2])
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", script, operator, str(capability)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    kernels = [json.loads(line) for line in finished.stdout.splitlines()]
    assert kernels
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY[capability], kernel
        assert kernel["spilled"] <= SPILLED, kernel
