"""The C library keeps what a training process frees."""

import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, statistics, sys, torch
from xlstm.training.machine import keep_freed_memory
if sys.argv[1] == "return":  # M_MMAP_THRESHOLD as it is at first: large pieces go back to the system when freed
    ctypes.CDLL(None).mallopt(-3, 2**17)
elif not keep_freed_memory():
    raise SystemExit("no glibc")
def step():
    tensors = [torch.ones(2**20) for _ in range(16)]  # 4 MiB each
def count():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
# The median: while the heap settles, a step now and then finds no gap for one of its tensors, and the heap grows by it.
print(statistics.median([count() for _ in range(13)][3:]))
"""


def faults(how: str) -> float:
    """Pages that the system hands out in the median step which takes and frees 64 MiB."""
    finished = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True)
    if "no glibc" in finished.stderr:
        pytest.skip("memory is kept where glibc is the C library, and here it is not")
    assert finished.returncode == 0, finished.stderr
    return float(finished.stdout)


def test_memory_that_steps_take_and_free_is_not_handed_out_again() -> None:
    assert faults("keep") < 100 < faults("return")
