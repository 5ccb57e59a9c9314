"""What is damaged in a run's folder, and setting it aside, so that the run goes on as if it had never been written.

Imports without torch.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from xlstm.run.directory import RunDirectory
from xlstm.run.files import SET_ASIDE
from xlstm.run.json_files import DamagedFileError, read_json, read_record
from xlstm.run.records import Measured, Validation, is_measured

_ASIDE = "a submission sets it aside and goes on"


def damage(run: RunDirectory) -> list[DamagedFileError]:
    """Everything in the folder of a run that is not what we wrote there, folders first."""
    found = [
        DamagedFileError(path, "is a file, where a folder belongs", _ASIDE)
        for path in run.folders()
        if path.exists() and not path.is_dir()
    ]
    if found:
        return found  # of what should lie below them nothing can be said
    found += [
        DamagedFileError(path, "is no file, where one belongs", _ASIDE)
        for path in run.files()
        if path.exists() and not path.is_file()
    ]
    in_the_way = {one.path for one in found}
    found += [error for path, error in _unreadable(run) if path not in in_the_way]
    found += [
        DamagedFileError(path, "is no checkpoint of this run", "it is left out") for path in run.stray_checkpoints()
    ]
    return found


def set_aside(run: RunDirectory, tell: Callable[[str], object]) -> None:
    """Rename what is damaged in the folder of a run, which must not be held, and tell of each.

    DamagedFileError where that cannot be done, or a file may be sound and could only not be read.
    """
    for one in damage(run):
        if one.denied:
            raise one
        left = one.path.parent == run.checkpoints or (one.path == run.metrics_file and one.path.is_file())
        if not left:
            _rename(one)
        tell(f"{one.path}: {one.what}; {'left out' if left else 'set aside, to go on without it'}")
        run.noticed.pop(one.path, None)


def _rename(one: DamagedFileError) -> None:
    names = (f"{one.path.name}{SET_ASIDE}{number or ''}" for number in range(1000))
    free = next(path for name in names if not os.path.lexists(path := one.path.with_name(name)))
    try:
        os.rename(one.path, free)
    except OSError as error:
        raise DamagedFileError(one.path, one.what, f"set it aside by hand ({error.strerror})") from None


def _unreadable(run: RunDirectory) -> Iterator[tuple[Path, DamagedFileError]]:
    """Records of the run that cannot be read, by path."""
    looked = RunDirectory(run.path)
    looked.status()
    for number in looked.attempt_numbers():
        looked.launch(number)
        looked.verdict(number)
    looked.history()
    yield from looked.noticed.items()
    reading: dict[Path, Callable[[], object]] = {run.spec_file: run.spec, run.result_file: run.result}
    reading |= {path: partial(_read_evaluation, path) for path in sorted(run.evaluations.glob("*.json"))}
    for path, read in reading.items():
        try:
            if os.path.lexists(path):
                read()
        except DamagedFileError as error:
            yield path, error


def _read_evaluation(path: Path) -> None:
    read_record(path, Measured if is_measured(read_json(path, _ASIDE)) else Validation, _ASIDE)
