"""What the machine of a rank does while it trains, under the names that MLflow gives its own system metrics."""

import contextlib

import psutil
import torch


def system_metrics(device: torch.device) -> dict[str, float]:
    """Load of the processors since the last call, memory in use, and the same of the rank's GPU; per cent.

    A GPU's load needs nvidia-ml-py; without it, it is left out.
    """
    metrics = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_percentage": psutil.virtual_memory().percent,
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        metrics["system/gpu_0_memory_usage_percentage"] = 100.0 * (1 - free / total)
        with contextlib.suppress(ModuleNotFoundError):
            metrics["system/gpu_0_utilization_percentage"] = float(torch.cuda.utilization(device))
    return metrics
