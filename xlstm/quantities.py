"""Counts, spans of time and lists of names as people read them. Imports without torch."""

import difflib
from collections.abc import Iterable

UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
"""How many of a count its unit stands for; a billion tokens are also a giga-token."""


def compact(count: int) -> str:
    """Short name of a count: 15_000_000_000 -> 15B, 1_234_567 -> 1.23M. For slugs and tables, never for arithmetic."""
    for unit, name in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= 0.9995 * unit:  # what three digits round up to it
            return f"{count / unit:.3g}{name}"
    return str(count)


def duration(seconds: float) -> str:
    """`1:05`, `2:03:20`, `3 d 04:00`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02}:{minute:02}"
    return f"{hour}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def nearest(word: str, words: Iterable[str]) -> str:
    """`did you mean …?` or, where nothing is near, the list of what is valid."""
    valid = sorted(words)
    close = difflib.get_close_matches(word, valid, n=1)
    return f"did you mean `{close[0]}`?" if close else f"valid here: {', '.join(valid)}"
