"""How fast a run goes: tokens per second and, where the device's peak is known, model FLOPs utilisation."""

import torch

from xlstm.accounting import training_flops_per_token
from xlstm.records import Metric
from xlstm.spec import RunSpec

_PEAK_FLOPS = {
    # Dense, without sparsity, from the vendor's data sheets: bfloat16, and float32 without TensorFloat32.
    "A100": (312e12, 19.5e12),
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "B200": (2250e12, 80e12),
    "L40S": (362e12, 91.6e12),
    "A10": (125e12, 31.2e12),
    "T4": (65e12, 8.1e12),
}


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
    name = torch.cuda.get_device_name(device)
    for known, (bfloat16, float32) in _PEAK_FLOPS.items():
        if known in name:
            return bfloat16 if precision == "bf16-mixed" else float32
    return None
