"""Waiting for what other processes do."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], what: Callable[[], str] = str, seconds: float = 300.0) -> None:
    """Wait for a condition, patiently, for machines are busy; AssertionError, with what there is to see, without it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"what was waited for did not happen in {seconds:.0f} s\n{what()}"
        time.sleep(0.02)
