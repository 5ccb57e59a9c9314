"""Cards a run may be planned for: memory and peak speed, from the vendors' data sheets; and how many are here.

Imports without torch.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

CardName: TypeAlias = Literal[
    "A10-24GB",
    "A100-40GB",
    "A100-80GB",
    "B200-180GB",
    "H100-80GB",
    "H100-PCIe-80GB",
    "H200-141GB",
    "L40S-48GB",
    "T4-16GB",
]
"""What a sweep may write as `gpu`."""


@dataclass(frozen=True)
class Card:
    """One accelerator."""

    name: CardName
    memory_gib: float
    """The memory that a program finds, in GiB: a little less than the name's decimal gigabytes."""
    bfloat16: float
    """Dense peak in bfloat16, in FLOP/s, without sparsity."""
    float32: float
    """Peak in float32, in FLOP/s, without TensorFloat32."""

    def peak(self, precision: str) -> float:
        """Peak FLOP/s in a precision of `Physics`."""
        return self.bfloat16 if precision == "bf16-mixed" else self.float32


CARDS: Final[Mapping[str, Card]] = {
    card.name: card
    for card in (
        Card("A10-24GB", 22.1, 125e12, 31.2e12),
        Card("A100-40GB", 39.4, 312e12, 19.5e12),
        Card("A100-80GB", 79.2, 312e12, 19.5e12),
        Card("B200-180GB", 178.4, 2250e12, 80e12),
        Card("H100-80GB", 79.2, 989e12, 67e12),
        Card("H100-PCIe-80GB", 79.2, 756e12, 51e12),
        Card("H200-141GB", 139.8, 989e12, 67e12),
        Card("L40S-48GB", 44.4, 362e12, 91.6e12),
        Card("T4-16GB", 14.6, 65e12, 8.1e12),
    )
}
"""Every card by its name."""

_WORDS: Final = (
    ("H100 PCIe", "H100-PCIe-80GB"),
    ("H100", "H100-80GB"),
    ("H200", "H200-141GB"),
    ("B200", "B200-180GB"),
    ("L40S", "L40S-48GB"),
    ("A100-SXM4-40GB", "A100-40GB"),
    ("A100-PCIE-40GB", "A100-40GB"),
    ("A100", "A100-80GB"),
    ("A10", "A10-24GB"),
    ("T4", "T4-16GB"),
)
"""Words of a driver's name for a device, the more telling first."""


def recognize(device_name: str) -> Card | None:
    """The card that a driver calls `NVIDIA H100 80GB HBM3` and the like, or None where it is not known."""
    return next((CARDS[name] for word, name in _WORDS if word in device_name), None)


def count_gpus() -> int:
    """NVIDIA devices this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len([entry for entry in Path("/dev").glob("nvidia[0-9]*") if entry.name[6:].isdigit()])
