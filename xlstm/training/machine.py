"""The machine of a rank: what it does while it trains, by the names of MLflow's own system metrics, and its memory."""

import contextlib
import ctypes
import math
import time

import psutil
import torch


class SystemMetrics:
    """Load of the processors and memory in use, and the same of the rank's GPU; per cent.

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
