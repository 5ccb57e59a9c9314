"""How many examples a property is tried on: few and fixed ones in `make test`, many and new ones in `make fuzz`."""

import os

from hypothesis import settings

FACTOR = int(os.environ.get("SCALING_FUZZ", "1"))
"""How many times as many; what more than one finds becomes a fixed `@example` of its test."""


def examples(number: int = 100) -> settings:
    """Settings of a property, by its number of examples in `make test`."""
    return settings(max_examples=number * FACTOR, deadline=None, derandomize=FACTOR == 1)
