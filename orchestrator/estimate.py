"""What a run will cost, before it is paid: device-hours at measured speed where runs have finished, else stated.

A finished run tells how many exact FLOPs per second one device gave to its family at its size; the nearest size of the
same family counts first, then the nearest of any family. Without one, the stated share of the device's peak is used.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.supervisor import count_gpus
from xlstm.models.naming import family_label
from xlstm.records import RunDirectory
from xlstm.spec import RunSpec

STATED_FLOPS = {"cuda": 0.4 * 989e12, "cpu": 10e9}
"""Per device: 40 % of an H100's dense bfloat16 peak (NVIDIA's data sheet), and what one core gives to small models."""


@dataclass(frozen=True)
class Measurement:
    """Speed of one finished run."""

    family: str
    parameters: int
    device: str
    flops_per_device_second: float


@dataclass(frozen=True)
class Speeds:
    """Measured speeds of a workspace."""

    measurements: tuple[Measurement, ...] = ()

    @classmethod
    def measure(cls, runs: Iterable[RunDirectory]) -> "Speeds":
        """Speeds of the finished runs among `runs`; forked ones count what their trunk trained and are left out."""
        found = []
        for run in runs:
            result = run.result()
            launch = run.launch(run.status().attempt) if result else None
            if result is None or launch is None or result.trunk_id or result.device_hours <= 0:
                continue
            speed = result.flops["exact"] / (result.device_hours * 3600)
            found.append(Measurement(result.family, result.parameters.total, launch.execution.device, speed))
        return cls(tuple(found))

    def device_hours(self, spec: RunSpec, parameters: int, flops: float) -> tuple[float, str]:
        """Hours of one device for `flops`, and whether the speed was `measured` or `stated`."""
        device = spec.execution.device
        if device == "auto":
            device = "cuda" if count_gpus() else "cpu"
        family = family_label(spec.physics.model)
        usable = [measurement for measurement in self.measurements if measurement.device == device]
        if not usable:
            return flops / STATED_FLOPS[device] / 3600, "stated"
        nearest = min(
            usable, key=lambda one: (one.family != family, abs(math.log(one.parameters / max(1, parameters))))
        )
        return flops / nearest.flops_per_device_second / 3600, "measured"
