"""How much of the text that is validated on stands in the text that is trained on as well. Imports without torch."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

SPAN = 64
"""Bytes of a span: as long as a line or two of source, longer than what two texts share by chance."""
_FACTORS = (
    *(0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9),
    *(0xD6E8FEB86659FD93, 0xA0761D6478BD642F, 0xE7037ED1A0B428DB),
)
"""Odd numbers of 64 bits, one for each doubling from 1 to SPAN bytes."""
_NAMED = 3


def shared_bytes(train: Iterable[bytes], validation: Mapping[str, bytes]) -> dict[str, int]:
    """Of each text of `validation`, by its name, the bytes in spans of SPAN bytes that a text of `train` has, too."""
    known = np.sort(np.concatenate([_hashes(text) for text in train]))
    shared = {}
    for name, text in validation.items():
        begins = np.zeros(len(text) + 1, dtype=np.int64)
        hashes = _hashes(text)
        places = np.searchsorted(known, hashes)
        found = np.flatnonzero((places < len(known)) & (known[np.minimum(places, len(known) - 1)] == hashes))
        np.add.at(begins, found, 1)
        np.add.at(begins, found + SPAN, -1)
        shared[name] = int((np.cumsum(begins) > 0).sum())
    return shared


def described(train: Iterable[bytes], validation: Mapping[str, bytes]) -> str | None:
    """How much of the validation text the training text has, too, in a line that names where most; None for none."""
    shared = shared_bytes(train, validation)
    if not any(shared.values()):
        return None
    shares = {name: count / len(validation[name]) for name, count in shared.items() if count}
    most = sorted(shares, key=lambda name: -shares[name])[:_NAMED]
    named = ", ".join(f"{name} {shares[name]:.0%}" for name in most)
    share = sum(shared.values()) / sum(map(len, validation.values()))
    return f"validation: {share:.1%} of its text stands in train, too, in spans of {SPAN} bytes (most: {named})"


def _hashes(text: bytes) -> NDArray[np.uint64]:
    """One number for each span of SPAN bytes, equal for equal spans."""
    hashes = np.frombuffer(text, np.uint8).astype(np.uint64) + np.uint64(1)
    length = 1
    for factor in _FACTORS:
        if len(hashes) <= length:
            return np.empty(0, np.uint64)
        hashes = hashes[:-length] * np.uint64(factor) + hashes[length:]
        length *= 2
    return hashes
