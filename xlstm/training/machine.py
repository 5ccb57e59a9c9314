"""What the machine of a rank does while it trains, under the names that MLflow gives its own system metrics."""

import contextlib
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
