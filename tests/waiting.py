"""Waiting for what other processes do."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def wait_until(condition: Callable[[], object], what: Callable[[], str] = str, seconds: float = 300.0) -> None:
    """Wait for a condition, patiently, for machines are busy; AssertionError, with what there is to see, without it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"what was waited for did not happen in {seconds:.0f} s\n{what()}"
        time.sleep(0.02)


@contextmanager
def patient_with_raylets() -> Iterator[None]:
    """Raylets that this process starts meanwhile have a minute: Ray's 30 seconds may not suffice beside other tests."""
    from ray._private import services

    at_once = services.get_node

    def in_time(*asked: Any) -> Any:
        deadline = time.monotonic() + 60
        while True:
            try:
                return at_once(*asked)
            except RuntimeError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError("the raylet did not start") from error
            time.sleep(0.1)

    services.get_node = in_time
    try:
        yield
    finally:
        services.get_node = at_once
