"""What a run will cost, before it is paid: device-hours at measured speed where runs have finished, else stated.

A finished run tells two things: how many exact FLOPs per second one device gave to its family at its size while it
trained, and what it took beside its steps (start, validation, checkpoints). The nearest size of the same family counts
first, then the nearest of any family; between cards speed goes with their peak. Without a finished run the stated share
of the card's peak is used. FLOPs do not tell what an sLSTM takes on a GPU, which goes through time step by step: that
is added where no run of the family has measured it.
"""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from xlstm.accounting.cards import Card, recognize
from xlstm.models.naming import family_label
from xlstm.run.directory import RunDirectory
from xlstm.run.records import Result
from xlstm.run.spec import RunSpec
from xlstm.training.memory import kind_of_device

STATED_MFU = 0.4
"""Share of a card's dense peak in the run's precision, where the sweep states none."""
CPU_FLOPS = 10e9
"""Per device: what one core gives to small models."""

SLSTM_FORWARD, SLSTM_BACKWARD = 3e-6, 5e-6
"""Seconds of one token of one sLSTM layer on a GPU, for all sequences of a pass: on paper (docs/operators.md)."""


def sequential_seconds(spec: RunSpec, tokens: int, micro_batch: int) -> float:
    """What the sLSTM layers of a run take of its devices' time, for so many tokens in passes of so many sequences."""
    layers: tuple[int, ...] = getattr(spec.physics.model, "slstm_at", ())
    again = {"none": 0, "selective": sum(layer % 2 == 0 for layer in layers), "full": len(layers)}
    recomputed = again[spec.execution.activation_checkpointing]
    steps = tokens / micro_batch
    return steps * (len(layers) * (SLSTM_FORWARD + SLSTM_BACKWARD) + recomputed * SLSTM_FORWARD)


@dataclass(frozen=True)
class Measurement:
    """What one finished run measured."""

    family: str
    parameters: int
    device: str
    card: Card | None
    flops_per_device_second: float
    overhead_seconds: float | None = None
    """Of all ranks, beside its steps; None where it cannot be told from what was lost or taken over."""


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take."""

    device_hours: float
    basis: str
    """Whether the speed was `measured` or `stated`."""
    mfu: float | None
    """Share of the card's peak that the speed is; None on CPU."""


@dataclass(frozen=True)
class Speeds:
    """Measured speeds of a workspace."""

    measurements: tuple[Measurement, ...] = ()

    @classmethod
    def measure(cls, runs: Iterable[tuple[RunDirectory, Result]]) -> "Speeds":
        """Speeds of finished runs."""
        found = (_measure(run, result) for run, result in runs)
        return cls(tuple(measurement for measurement in found if measurement is not None))

    def estimate(
        self, spec: RunSpec, parameters: int, flops: float, card: Card | None, mfu: float | None, sequential: float
    ) -> Estimate:
        """What a run takes whose own steps are `flops`, and on a GPU so many seconds besides that no FLOPs tell.

        `mfu` is what the sweep states.
        """
        device = kind_of_device(spec)
        usable = [measurement for measurement in self._typical if measurement.device == device]
        peak = card.peak(spec.physics.precision) if card else None
        if not usable:
            seconds = flops / ((mfu or STATED_MFU) * peak) + sequential if peak else flops / CPU_FLOPS
            return _estimate("stated", seconds, flops, peak)
        family = family_label(spec.physics.model)
        nearest = min(
            usable, key=lambda one: (one.family != family, abs(math.log(one.parameters / max(1, parameters))))
        )
        speed = nearest.flops_per_device_second
        if peak and nearest.card:
            speed *= peak / nearest.card.peak(spec.physics.precision)
        seconds = flops / speed + (sequential if peak and nearest.family != family else 0.0)
        beside = self._overhead.get(device, 0.0) * spec.execution.ranks
        return _estimate("measured", seconds, flops, peak, beside)

    @cached_property
    def _typical(self) -> list[Measurement]:
        """The median speed of each model on each kind of device and card."""
        speeds: dict[tuple[str, int, str, Card | None], list[float]] = {}
        for one in self.measurements:
            model = (one.family, one.parameters, one.device, one.card)
            speeds.setdefault(model, []).append(one.flops_per_device_second)
        return [Measurement(*model, statistics.median(measured)) for model, measured in speeds.items()]

    @cached_property
    def _overhead(self) -> dict[str, float]:
        """Median seconds of a run beside its steps, by kind of device."""
        known: dict[str, list[float]] = {}
        for measurement in self.measurements:
            if measurement.overhead_seconds is not None:
                known.setdefault(measurement.device, []).append(measurement.overhead_seconds)
        return {device: statistics.median(seconds) for device, seconds in known.items()}


def _estimate(basis: str, seconds: float, flops: float, peak: float | None, beside: float = 0.0) -> Estimate:
    """Of device-seconds in steps, and `beside` them."""
    return Estimate((seconds + beside) / 3600, basis, flops / seconds / peak if peak and seconds else None)


def _measure(run: RunDirectory, result: Result) -> Measurement | None:
    launch = run.launch(result.attempts)
    if launch is None or not result.tokens_per_second:
        return None
    speed = result.tokens_per_second * result.flops["exact"] / result.tokens / launch.execution.ranks
    overhead = None
    if result.attempts == 1 and result.trunk_id is None:
        overhead = max(0.0, result.wall_seconds - result.tokens / result.tokens_per_second)
    return Measurement(
        family=result.family,
        parameters=result.parameters.total,
        device=launch.execution.device,
        flops_per_device_second=speed,
        card=recognize(result.device_name) if result.device_name else None,
        overhead_seconds=overhead,
    )
