"""Tasks of the Long Range Arena: files as they are published, read as they say, and a pathfinder of our own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xlstm.data.generated import GeneratedData, declare_task
from xlstm.models import IGNORED
from xlstm.tasks import Examples, task_of
from xlstm.tasks.settings import SmallPathfinder


def pictures(folder: Path) -> None:
    """CIFAR-10 in its binary version, two pictures a batch."""
    folder.mkdir()
    drawn = np.random.default_rng(0).integers(0, 256, (6, 2, 3073)).astype(np.uint8)
    drawn[..., 0] = np.arange(12).reshape(6, 2) % 10
    for name, part in zip([*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"], drawn, strict=True):
        part.tofile(folder / name)


def reviews(folder: Path) -> None:
    for part in ("train", "test"):
        for kind in ("neg", "pos", "unsup"):
            (folder / part / kind).mkdir(parents=True)
            for number in range(2):
                (folder / part / kind / f"{number}_9.txt").write_text(f"{part} {kind} {number}")


def pairs(folder: Path) -> None:
    folder.mkdir()
    (folder / "new_aan_pairs.train.tsv").write_text('"1.0"\t"a"\t"b"\t"one text"\t"an other"\n0.0\tc\td\tü\ty\n')
    (folder / "new_aan_pairs.test.tsv").write_text("1.0\ta\tb\tp\tq\n")


def contours(folder: Path) -> list[np.ndarray]:
    """Ten pictures in two lists, one empty, as in the Arena's release."""
    folder = folder / "pathfinder32" / "curv_contour_length_14"
    (folder / "metadata").mkdir(parents=True)
    drawn = []
    for part in ("2", "10"):
        (folder / "imgs" / part).mkdir(parents=True)
        lines = []
        for number in range(6 if part == "2" else 5):
            picture = folder / "imgs" / part / f"sample_{number}.png"
            levels = np.random.default_rng([int(part), number]).integers(0, 256, (32, 32)).astype(np.uint8)
            if (part, number) == ("2", 3):
                picture.touch()
            else:
                Image.fromarray(levels).save(picture)
                drawn.append(levels)
            lines.append(f"imgs/{part} {picture.name} {number} {number % 2} 1.0 0.5")
        (folder / "metadata" / f"{part}.npy").write_text("\n".join(lines) + "\n")
    return drawn


def opened(task: str, folder: Path, **fields: object) -> GeneratedData:
    data, _ = declare_task(task, fields, None, [str(folder)])
    return GeneratedData.open(data, [str(folder)])


def answers(targets: np.ndarray) -> list[tuple[int, int]]:
    """Where each sequence is answered, and how."""
    asked = [[place for place, target in enumerate(row) if target != IGNORED] for row in targets]
    return [(place, int(row[place])) for row, (place,) in zip(targets, asked, strict=True)]


def test_pictures_are_read_row_by_row_in_grey_or_in_colours(tmp_path: Path) -> None:
    pictures(tmp_path / "cifar-10-batches-bin")
    grey, colours = opened("pixels", tmp_path), opened("color-pixels", tmp_path)
    assert (grey.task.different, grey.task.test_sequences) == (9, 2), "nine tenths are trained on"
    raw = np.fromfile(tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin", dtype=np.uint8).reshape(2, 3073)
    batch, same = (data.training(0, np.array([3])) for data in (grey, colours))
    red, green, blue = raw[1, 1:].reshape(3, 32, 32).astype(float)
    assert batch.tokens.reshape(32, 32).tolist() == (0.2989 * red + 0.587 * green + 0.114 * blue).astype(int).tolist()
    assert np.allclose(same.tokens.reshape(32, 32, 3), np.stack([red, green, blue], -1) / 255)
    assert answers(batch.targets) == answers(same.targets) == [(1023, 3)]
    assert answers(grey.test(1024, np.array([1, 0, 2])).targets) == [(1023, 1), (1023, 0), (1023, 0)]


def test_contours_are_read_in_the_order_of_their_lists(tmp_path: Path) -> None:
    drawn = contours(tmp_path)
    data = opened("pathfinder", tmp_path)
    assert (data.task.different, data.task.test_sequences) == (8, 1)
    batch = data.training(0, np.arange(8))
    assert batch.tokens.tolist() == [levels.reshape(-1).tolist() for levels in drawn[:8]]
    assert answers(batch.targets) == [(1023, answer) for answer in (0, 1, 0, 0, 1, 0, 1, 0)]
    assert data.test(1024, np.arange(1)).tokens.tolist() == [drawn[9].reshape(-1).tolist()]


def test_texts_are_read_byte_by_byte_and_cut(tmp_path: Path) -> None:
    reviews(tmp_path / "aclImdb")
    data = opened("bytes", tmp_path, longest=12)
    batch = data.training(0, np.arange(4))
    assert batch.tokens[1].tolist() == [byte + 1 for byte in b"train neg 1"] + [0]
    assert answers(batch.targets) == [(10, 0), (10, 0), (10, 1), (10, 1)]
    pairs(tmp_path / "tsv_data")
    data = opened("retrieval", tmp_path, longest=6)
    batch = data.training(0, np.arange(2))
    assert batch.tokens[0].tolist() == [*(byte + 1 for byte in b"one te"), 257, *(byte + 1 for byte in b"an oth")]
    assert batch.tokens[1].tolist() == [*(byte + 1 for byte in "ü".encode()), 257, ord("y") + 1, *[0] * 9]
    assert answers(batch.targets) == [(12, 1), (3, 0)]


@pytest.mark.parametrize(
    ("task", "paths", "said"),
    [
        (
            "pixels",
            ["."],
            "data_batch_1.bin of CIFAR-10 in its binary version is to lie below `paths` once, and none lie",
        ),
        ("retrieval", [], "no folder, since `paths` is not said"),
        ("bytes", ["nowhere"], "train/pos/*.txt of the reviews of aclImdb .* none lie in nowhere"),
        ("pathfinder", ["."], "pathfinder32/curv_contour_length_14/metadata of the Arena's release"),
    ],
)
def test_files_that_are_not_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, paths: Sequence[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said.replace("*.", r"\*.")):
        declare_task(task, {}, None, paths)


def test_other_files_than_those_planned_with_are_refused(tmp_path: Path) -> None:
    reviews(tmp_path / "aclImdb")
    data, _ = declare_task("bytes", {}, None, [str(tmp_path)])
    (tmp_path / "aclImdb" / "test" / "neg" / "0_9.txt").write_text("another")
    assert declare_task("bytes", {}, None, [str(tmp_path)], "stated") == declare_task(
        "bytes", {}, None, [str(tmp_path)]
    )
    assert declare_task("bytes", {}, None, [], "stated")[0].revision == "stated"
    with pytest.raises(ValueError, match="are not those of sha256:"):
        GeneratedData.open(data, [str(tmp_path)])


def joined(picture: np.ndarray) -> tuple[bool, int]:
    """Whether the two dots lie in one piece, found by filling from the first, and the number of pieces."""
    lines, pieces, joins = set(zip(*map(np.ndarray.tolist, np.nonzero(picture)), strict=True)), 0, False
    while lines:
        pieces += 1
        front, dots = [lines.pop()], 0
        while front:
            row, column = front.pop()
            dots += int(picture[row, column] == 2)
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & lines
            lines -= near
            front += near
        joins |= dots == 2
    return joins, pieces


@pytest.mark.parametrize(("width", "contour"), [(12, 6), (8, 8), (20, 12)])
def test_a_line_joins_the_dots_where_it_is_said(width: int, contour: int) -> None:
    task = task_of(SmallPathfinder(name="small-pathfinder", width=width, contour=contour), 0)
    drawn: list[Examples] = [task.training(1, np.arange(60)), task.test(width**2, np.arange(60))]
    for examples in drawn:
        pictures = examples.tokens.reshape(-1, width, width)
        found = [joined(picture) for picture in pictures]
        assert answers(examples.targets) == [(width**2 - 1, int(joins)) for joins, _ in found]
        assert {pieces for _, pieces in found} == {2}
        assert {tuple(np.bincount(picture.reshape(-1), minlength=3)[1:]) for picture in pictures} == {
            (2 * contour - 2, 2)
        }
        assert 15 < sum(joins for joins, _ in found) < 45
    again = task.training(1, np.array([41, 7]))
    assert (again.tokens == drawn[0].tokens[[41, 7]]).all(), "a sequence depends on its own number alone"
    assert not (drawn[0].tokens == drawn[1].tokens).all()
