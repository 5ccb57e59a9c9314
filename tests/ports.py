"""Ports for the servers of tests."""

import random
import socket
from contextlib import suppress
from pathlib import Path


def free_port() -> int:
    """A port nobody listens on, of those that no connection is given before the server has taken it."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(min(10_000, lowest - 1000), lowest), k=1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")
