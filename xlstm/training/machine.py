"""The machine of a rank: how fast it trains, how busy it is meanwhile, and what its memory does."""

import contextlib
import ctypes
import gc
import math
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch

from xlstm.accounting import training_flops_per_token
from xlstm.accounting.cards import recognize
from xlstm.run.records import Metric
from xlstm.run.spec import RunSpec


class Speed:
    """Counts the time of steps alone: neither validation nor the writing of checkpoints."""

    def __init__(self, spec: RunSpec, device: torch.device) -> None:
        physics = spec.physics
        self.flops_per_token = training_flops_per_token(physics.model, physics.data.context_length)
        self._batch_tokens = physics.batch_tokens
        self._peak = peak_flops(device, physics.precision)
        self._ranks = spec.execution.ranks
        self._seconds, self._steps = 0.0, 0

    def step(self, seconds: float) -> None:
        """Count one step."""
        self._seconds += seconds
        self._steps += 1

    def since_last(self) -> dict[str, float]:
        """Throughput of the steps since the last call, as metrics."""
        rate = self._steps * self._batch_tokens / max(self._seconds, 1e-9)
        self._seconds, self._steps = 0.0, 0
        metrics = {Metric.TOKENS_PER_SECOND: rate}
        if self._peak is not None:
            metrics[Metric.MFU] = rate * self.flops_per_token / (self._peak * self._ranks)
        return metrics


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of a device in a precision, or None where it is not known: then no utilisation is claimed."""
    if device.type != "cuda":
        return None
    card = recognize(torch.cuda.get_device_name(device))
    return card.peak(precision) if card else None


class SystemMetrics:
    """Load of the processors and memory in use, and the same of the rank's GPU; per cent, under MLflow's own names.

    Asked for more than once a second it answers nothing: to ask the kernel costs as much as a small step's batch. A
    GPU's load needs nvidia-ml-py; without it, it is left out.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._asked = -math.inf

    def since_last(self) -> dict[str, float]:
        """Metrics over the time since the last answer; empty within a second of it."""
        if time.monotonic() - self._asked < 1.0:
            return {}
        self._asked = time.monotonic()
        metrics = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_percentage": psutil.virtual_memory().percent,
        }
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            metrics["system/gpu_0_memory_usage_percentage"] = 100.0 * (1 - free / total)
            with contextlib.suppress(ModuleNotFoundError):
                metrics["system/gpu_0_utilization_percentage"] = float(torch.cuda.utilization(self.device))
        return metrics


@contextlib.contextmanager
def garbage_collected_by_hand() -> Iterator[None]:
    """Python's collector looks for circles when it is told to, not in the middle of some rank's step."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


@contextlib.contextmanager
def profiler(steps: int | None, trace: Path) -> Iterator[Callable[[], None]]:
    """Profile so many steps, after three that warm up, into a file; what is yielded is called after each step."""
    if steps is None:
        yield lambda: None
        return
    when = torch.profiler.schedule(wait=2, warmup=1, active=steps, repeat=1)
    with torch.profiler.profile(schedule=when, on_trace_ready=lambda p: p.export_chrome_trace(str(trace))) as profile:
        yield profile.step


def chip(device: str) -> str:
    """What the driver calls the GPU, or the system the processor."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def keep_freed_memory() -> bool:
    """Have the C library keep what this process frees; whether it can be told to (glibc can).

    A step frees what the next one takes again. Given back to the system in between, it comes back page by page, each
    of them zeroed: a tenth of a small step on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # M_MMAP_THRESHOLD at its largest, M_TRIM_THRESHOLD, M_TOP_PAD: malloc.h
    taken = [mallopt(option, value) for option, value in ((-3, 2**25), (-1, 2**31 - 1), (-2, 2**26))]
    return all(taken)
