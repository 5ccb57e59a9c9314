"""How fast a run goes: tokens per second and, where the device's peak is known, model FLOPs utilisation."""

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
