"""Ways in which a file or a folder is damaged."""

import shutil
from collections.abc import Callable
from pathlib import Path


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def overwrite_with_junk(path: Path) -> None:
    path.write_bytes(b"\x80\xff\x00{]\n\xfe junk\n")


def put_another_type(path: Path) -> None:
    path.write_text("[1, 2, 3]\n")


def put_an_unknown_state(path: Path) -> None:
    path.write_text('{"state": "LEVITATING", "runs": [{}], "step": "x"}\n')


def put_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_a_folder(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc")


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def delete(path: Path) -> None:
    path.unlink()


WAYS: list[Callable[[Path], None]] = [
    make_empty,
    cut,
    overwrite_with_junk,
    put_another_type,
    put_an_unknown_state,
    put_a_folder,
    link_to_a_folder,
    link_to_nowhere,
    link_to_itself,
    delete,
]


def delete_folder(path: Path) -> None:
    shutil.rmtree(path)


def put_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("a file\n")


FOLDER_WAYS: list[Callable[[Path], None]] = [delete_folder, put_a_file]
