"""What a machine is and can do: its description, the time of work, rates of products and copies, and memory in use."""

import ctypes
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from xlstm.training.machine import chip


def describe(device: str) -> dict[str, str | int | float]:
    """Chip, cores, threads, libraries, and how busy the machine was with other work when measuring began."""
    return {
        "chip": chip(device),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def least_seconds(work: Callable[[], object], device: str, rounds: int) -> float:
    """Seconds of the fastest of `rounds` runs, after one to wake up: what the chip can do, other work aside."""
    taken = []
    for _ in range(rounds + 1):
        wait(device)
        begin = time.perf_counter()
        work()
        wait(device)
        taken.append(time.perf_counter() - begin)
    return min(taken[1:])


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_taken(work: Callable[[], object], device: str) -> float:
    """Seconds of `work`: between two events in the GPU's own queue, or on the clock."""
    wait(device)
    if device != "cuda":
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin
    begin_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin_event.record()
    work()
    end_event.record()
    end_event.synchronize()
    return begin_event.elapsed_time(end_event) / 1e3


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """FLOPs per second of one large matrix product."""
    size = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / least_seconds(lambda: a @ b, device, 7)


def bandwidth(device: str) -> float:
    """Bytes per second of a copy, reads and writes together."""
    a = torch.empty(2**30 if device == "cuda" else 2**26, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * a.numel() / least_seconds(lambda: b.copy_(a), device, 7)


@dataclass
class Used:
    """Bytes that were needed beyond what lay there before."""

    bytes: int = 0


@contextmanager
def memory_used(device: str) -> Iterator[Used]:
    """The highest memory in use inside the block, less that before it: resident memory on CPU (Linux with glibc)."""
    used = Used()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield used
        used.bytes = torch.cuda.max_memory_allocated() - before
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back, so that using it again is seen
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
        before = _resident("VmRSS")
        yield used
        used.bytes = _resident("VmHWM") - before


def _resident(line_name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(line_name))
