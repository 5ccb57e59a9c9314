"""Whether this Python environment is ours alone: other projects have packages of the same names.

Import names are the folders of this project, and `xlstm` and `kernels` are those of other distributions, too. Two of
one name cannot stand in one environment: pip lets the later one overwrite the earlier without a word. One that
PYTHONPATH puts in front of ours hides it; ours are then put before it, here and in every process started from here.
"""

import importlib
import os
import sys
from collections.abc import Iterable
from importlib import util
from pathlib import Path

_ROOMS = {
    "xlstm": "run/identity.py",
    "kernels": "operator.py",
    "sweeps": "expand.py",
    "slurm": "executor.py",
    "analysis": "findings.py",
}
"""A file by which each package is known for ours; not where it lies: Ray puts each in a folder of its own."""
_OTHERS = ("xlstm", "kernels")
"""Distributions whose packages are called as ours."""
_REMEDY = "give this project an environment of its own"


def stranger() -> str | None:
    """What is wrong where Python finds another project's package in place of one of ours; else None."""
    for name, known_by in _ROOMS.items():
        found = util.find_spec(name)
        origin = found.origin if found is not None else None
        if origin is None or not (Path(origin).parent / known_by).is_file():
            where = f"that of {origin}" if origin else "a folder without code"
            return f"the package `{name}` that Python finds is {where}, and not this project's; {_REMEDY}"
    return None


def put_ours_first() -> str | None:
    """Put our packages before those of the same names that PYTHONPATH has, and say so; None where it has none."""
    path = os.environ.get("PYTHONPATH", "")
    if (found := _hiding(path.split(os.pathsep) if path else [])) is None:
        return None
    ours = str(Path(__file__).resolve().parents[2])
    sys.path.insert(0, ours)
    os.environ["PYTHONPATH"] = os.pathsep.join([ours, path])
    importlib.invalidate_caches()
    return f"PYTHONPATH has {found}, which is called as a package of this project; this project's is used"


def _hiding(entries: Iterable[str]) -> Path | None:
    """The first file that is imported in place of one of our packages; None where ours are found first, or nothing."""
    for entry in map(Path, entries):
        for name, known_by in _ROOMS.items():
            if (entry / name / known_by).is_file():
                return None
            for module in (entry / name / "__init__.py", entry / f"{name}.py"):
                if module.is_file():
                    return Path(os.path.abspath(module))
    return None


def namesake() -> str | None:
    """A word where another distribution of one of our names is installed, and hides ours or is hidden; else None."""
    entries = [entry for folder in dict.fromkeys(sys.path) if os.path.isdir(folder) for entry in os.listdir(folder)]
    for name in _OTHERS:
        # importlib.metadata would tell as much, and takes a third of the time that a verb needs to start.
        records = [entry for entry in entries if entry.startswith(f"{name}-") and entry.endswith(".dist-info")]
        if not records:
            continue
        version = records[0].removeprefix(f"{name}-").removesuffix(".dist-info")
        return (
            f"the distribution `{name}` {version} is installed here, and its package is called as one of this project: "
            f"one overwrites or hides the other; {_REMEDY}"
        )
    return None


def require_own_environment() -> None:
    """End with exit code 2 and a line beside a stranger; warn of a namesake, and of one that PYTHONPATH has."""
    hidden = put_ours_first()
    if (wrong := stranger()) is not None:
        print(wrong, file=sys.stderr)
        sys.exit(2)
    for word in filter(None, (hidden, namesake())):
        print(f"warning: {word}", file=sys.stderr)
