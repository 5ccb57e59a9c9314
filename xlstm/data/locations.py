"""Paths as people write them: `~` and environment variables are filled in where a path is used, and nowhere kept."""

import os
import re
from pathlib import Path

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{(\w+)\})")


def located(path: str) -> str:
    """A path with `~`, `$NAME` and `${NAME}` filled in; one that exists as it is written is that one.

    ValueError naming a variable that is not set, or a home that is not known.
    """
    if (not path.startswith("~") and "$" not in path) or Path(path).exists():
        return path
    for match in _VARIABLE.finditer(path):
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise ValueError(f"{path}: the environment variable {name} is not set")
    filled = os.path.expanduser(_VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], path))
    if filled.startswith("~"):
        raise ValueError(f"{path}: the home of {filled.partition('/')[0]} is not known")
    return filled
