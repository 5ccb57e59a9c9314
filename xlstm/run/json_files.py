"""The JSON files that we write: each is replaced whole, and read whole or named as damaged. Imports without torch.

Whatever lies where a file of ours belongs (an empty or cut file, junk, a value of another type, a folder, a link, a
file that may not be read) is one error, which names the file and says what to do.
"""

import contextlib
import errno
import json
import os
import threading
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)

_IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
"""What the system says where something else lies in the place of a file; anything else is a file it may not read."""


class DamagedFileError(ValueError):
    """A file of a workspace is not what we wrote: which, what is wrong with it, and what to do, in one line."""

    def __init__(self, path: Path, what: str, remedy: str, *, denied: bool = False) -> None:
        super().__init__(f"{path}: {what}; {remedy}")
        self.path, self.what, self.remedy = path, what, remedy
        self.denied = denied
        """Whether the file may be sound, and could only not be read."""


def is_in_the_way(error: OSError) -> bool:
    """Whether the system refused because something else lies in the place of a file."""
    return error.errno in _IN_THE_WAY


def refused(path: Path, error: OSError, remedy: str) -> DamagedFileError:
    """What it means that the system refused to open a file."""
    if error.errno == errno.EISDIR:
        return DamagedFileError(path, "is a folder, where a file belongs", remedy)
    if error.errno == errno.ENOTDIR:
        above = next((folder for folder in reversed(path.parents) if folder.exists() and not folder.is_dir()), path)
        return DamagedFileError(above, "is a file, where a folder belongs", remedy)
    if is_in_the_way(error):
        return DamagedFileError(path, "is a link that leads nowhere", remedy)
    return DamagedFileError(path, f"cannot be read ({error.strerror or error})", "make it readable", denied=True)


def read_bytes(path: Path, remedy: str, start: int = 0) -> bytes | None:
    """A file from a byte on, None where there is none. DamagedFileError where something else lies there."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refused(path, error, remedy) from None


def read_record(path: Path, model: type[M], remedy: str) -> M | None:
    """The record in a JSON file, None where there is no file. DamagedFileError where it is no such record."""
    content = _content(path, remedy)
    if content is None:
        return None
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise invalid(path, error, remedy) from None


def read_json(path: Path, remedy: str) -> dict[str, Any] | None:
    """The object in a JSON file, None where there is no file. DamagedFileError where it is no JSON object."""
    content = _content(path, remedy)
    if content is None:
        return None
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(path, f"cannot be read: {error}", remedy) from None
    if not isinstance(found, dict):
        raise DamagedFileError(path, f"holds a {type(found).__name__}, where an object belongs", remedy)
    return found


def invalid(path: Path, error: ValidationError, remedy: str) -> DamagedFileError:
    """What it means that the content of a file is not what its model asks for."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    return DamagedFileError(path, f"cannot be read: {where}{': ' * bool(where)}{first['msg']}", remedy)


def _content(path: Path, remedy: str) -> bytes | None:
    content = read_bytes(path, remedy)
    if content is not None and not content.strip():
        raise DamagedFileError(path, "is empty", remedy)
    return content


def write_json(path: Path, content: Any, *, private: bool = False) -> None:
    """Replace a JSON file whole, as `write_text` does. ValueError for NaN and infinities.

    A `private` one is for its owner's eyes alone.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n", private=private)


def write_text(path: Path, content: str, *, durably: bool = True, private: bool = False) -> None:
    """Replace a text file whole: written aside, fsynced, renamed; where that fails, nothing is left behind.

    What another file tells as well need not be written durably. DamagedFileError where a folder lies in its place.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(aside, "w", encoding="utf-8", opener=_for_the_owner if private else None) as file:
            file.write(content)
            file.flush()
            if durably:
                os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        if is_in_the_way(error):
            raise refused(path, error, "remove it") from None
        raise


def append_json(path: Path, row: Any, *, durably: bool = False) -> None:
    """Append one JSON value as a line in one write, behind whatever a kill has torn. ValueError for NaN and infinities.

    `durably`: when this returns, it is on the disk.
    """
    line = json.dumps(row, allow_nan=False, separators=(",", ":"))
    with open(path, "ab+") as file:
        torn = file.seek(0, os.SEEK_END) > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")
        if durably:
            file.flush()
            os.fsync(file.fileno())


def _for_the_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
