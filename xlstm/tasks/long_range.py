"""Tasks of the Long Range Arena (Tay et al. 2021, arXiv 2011.04006) whose examples lie in files that a user has.

The class of a sequence is said after its last token. Files are looked for below the paths by the names that they were
published under; nothing is downloaded. Training and test are the Arena's; what it holds out for validation is not read.
"""

import csv
import hashlib
import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from xlstm.models import IGNORED
from xlstm.tasks.contract import Examples, Task
from xlstm.tasks.settings import Bytes, Pathfinder, Pixels, Retrieval

Bytes8 = NDArray[np.uint8]
Found = tuple[list[Path], list[Path]]
"""Files of training, and of the test."""


class LongRangeTask(Task):
    """A task whose sequences are read; a length is that of the longest sequence, and no other is tested."""

    reads: ClassVar[bool] = True

    def __init__(self, positions: int) -> None:
        self.context_length = self.longest = positions
        self.different = None
        self._parts: tuple[list[tuple[Bytes8, int]], ...] = ()

    @abstractmethod
    def find(self, paths: Sequence[str]) -> Found:
        """The files below the paths. ValueError where they are not there, which says what is looked for."""

    @abstractmethod
    def read(self, files: Sequence[Path], test: bool) -> Iterator[tuple[Bytes8, int]]:
        """The examples of some of the files, each with its class."""

    def opened(self, paths: Sequence[str], revision: str) -> "LongRangeTask":
        """The task with its examples in memory. ValueError where the files are others than those of `revision`."""
        found = self.find(paths)
        if revision_of(found) != revision:
            raise ValueError(f"the files in {', '.join(paths)} are not those of {revision}: submit the sweep again")
        self._parts = tuple(list(self.read(files, test)) for files, test in zip(found, (False, True), strict=True))
        self.different, self.tested = map(len, self._parts)
        self.test_sequences = self.tested
        return self

    def training(self, seed: int, numbers: NDArray[np.int64]) -> Examples:
        return self._examples(0, numbers)

    def test(self, length: int, numbers: NDArray[np.int64]) -> Examples:
        return self._examples(1, numbers % self.tested)

    def check(self, length: int) -> None:
        if length != self.longest:
            raise ValueError(f"the files have sequences of up to {self.longest}, and no longer ones")

    def encoded(self, row: Bytes8) -> NDArray[Any]:
        """The tokens of an example."""
        return row.astype(np.int64)

    def _examples(self, part: int, numbers: NDArray[np.int64]) -> Examples:
        shape = (len(numbers), self.context_length)
        tokens = np.zeros((*shape, self.inputs), np.float32) if self.inputs else np.zeros(shape, np.int64)
        targets = np.full(shape, IGNORED, dtype=np.int64)
        for index, number in enumerate(numbers.tolist()):
            row, answer = self._parts[part][number]
            written = self.encoded(row)
            tokens[index, : len(written)] = written
            targets[index, len(written) - 1] = answer
        return Examples(tokens, targets)


class PixelsTask(LongRangeTask):
    """`pixels`: CIFAR-10 row by row, in grey levels as tokens; `color-pixels`: its three colours as real numbers."""

    vocabulary, classes, chance, tested = 256, 10, 1 / 10, 10_000

    def __init__(self, settings: Pixels) -> None:
        super().__init__(32 * 32)
        self.inputs = 3 if settings.name == "color-pixels" else 0

    def find(self, paths: Sequence[str]) -> Found:
        what = "CIFAR-10 in its binary version"
        train = [_only(paths, f"data_batch_{number}.bin", what) for number in range(1, 6)]
        return train, [_only(paths, "test_batch.bin", what)]

    def read(self, files: Sequence[Path], test: bool) -> Iterator[tuple[Bytes8, int]]:
        rows = np.concatenate([np.fromfile(file, dtype=np.uint8) for file in files])
        if len(rows) % 3073:
            raise ValueError(f"{files[0]}: pictures take 3073 bytes each, and {len(rows)} are no whole number of them")
        rows = rows.reshape(-1, 3073)
        for row in rows if test else rows[: len(rows) * 9 // 10]:
            yield row[1:].reshape(3, 1024).T, int(row[0])

    def encoded(self, row: Bytes8) -> NDArray[Any]:
        if self.inputs:
            return row.astype(np.float32) / np.float32(255)
        levels: NDArray[np.float64] = row @ np.array([0.2989, 0.5870, 0.1140])
        return levels.astype(np.int64)


class PathfinderTask(LongRangeTask):
    """`pathfinder`: whether a line joins two dots; grey levels as tokens, row by row."""

    vocabulary, classes, chance, tested = 256, 2, 1 / 2, 20_000
    _FOLDERS: ClassVar = {"easy": "curv_baseline", "intermediate": "curv_contour_length_9"}

    def __init__(self, settings: Pathfinder) -> None:
        super().__init__(settings.side**2)
        self.side = settings.side
        self.folder = self._FOLDERS.get(settings.difficulty, "curv_contour_length_14")
        self._answers: dict[Path, int] = {}

    def find(self, paths: Sequence[str]) -> Found:
        folders = [folder for path in paths for folder in sorted(Path(path).rglob(f"{self.folder}/metadata"))]
        folders = [folder for folder in folders if f"pathfinder{self.side}" in str(folder)]
        if len(folders) != 1:
            raise _missing(paths, f"pathfinder{self.side}/{self.folder}/metadata", "the Arena's release", len(folders))
        lists = sorted(folders[0].iterdir(), key=lambda file: (len(file.name), file.name))
        # Empty pictures are known to be among those published, and left out there as well.
        named = [line.split() for file in lists for line in file.read_text().splitlines()]
        shown = [folders[0].parent / folder / name for folder, name, *_ in named]
        self._answers = dict(zip(shown, (int(words[3]) for words in named), strict=True))
        kept = [picture for picture in shown if picture.stat().st_size]
        return kept[: len(kept) * 8 // 10], kept[len(kept) * 9 // 10 :]

    def read(self, files: Sequence[Path], test: bool) -> Iterator[tuple[Bytes8, int]]:
        from matplotlib.image import imread

        for file in files:
            levels = imread(file)
            if levels.shape != (self.side, self.side):
                raise ValueError(f"{file}: a picture of {levels.shape}, and not {self.side} by {self.side}")
            yield np.rint(levels * 255).astype(np.uint8).reshape(-1), self._answers[file]


class BytesTask(LongRangeTask):
    """`bytes`: whether a film review is good, byte by byte (IMDB); 0 pads, a byte b is b + 1."""

    vocabulary, classes, chance, tested = 257, 2, 1 / 2, 25_000

    def __init__(self, settings: Bytes) -> None:
        super().__init__(settings.longest)

    def find(self, paths: Sequence[str]) -> Found:
        def part(name: str) -> list[Path]:
            files = [file for path in paths for file in sorted(Path(path).rglob(f"{name}/*/*.txt"))]
            files = [file for file in files if file.parent.name in ("neg", "pos")]
            if not files:
                raise _missing(paths, f"{name}/pos/*.txt", "the reviews of aclImdb", 0)
            return files

        return part("train"), part("test")

    def read(self, files: Sequence[Path], test: bool) -> Iterator[tuple[Bytes8, int]]:
        for file in files:
            yield _of_bytes(file.read_bytes()[: self.longest], file), int(file.parent.name == "pos")

    def encoded(self, row: Bytes8) -> NDArray[Any]:
        return row.astype(np.int64) + 1


class RetrievalTask(LongRangeTask):
    """`retrieval`: whether one paper cites the other (AAN), the two byte by byte, one after the other.

    The Arena encodes each by itself and judges the two vectors; here the model reads both, token 257 between them.
    """

    vocabulary, classes, chance, tested = 258, 2, 1 / 2, 17_437

    def __init__(self, settings: Retrieval) -> None:
        super().__init__(2 * settings.longest + 1)
        self.document = settings.longest

    def find(self, paths: Sequence[str]) -> Found:
        what = "the pairs of the Arena's release"
        names = ("new_aan_pairs.train.tsv", "new_aan_pairs.test.tsv")
        train, test = ([_only(paths, name, what)] for name in names)
        return train, test

    def read(self, files: Sequence[Path], test: bool) -> Iterator[tuple[Bytes8, int]]:
        csv.field_size_limit(sys.maxsize)
        with open(files[0], newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.reader(file, delimiter="\t"), 1):
                if len(row) != 5:
                    raise ValueError(f"{files[0]}:{line}: {len(row)} columns; a pair has label, two ids and two texts")
                texts = [text.encode()[: self.document] for text in row[3:]]
                # Both stay bytes: no UTF-8 text has the byte 255, which so can part them.
                yield _of_bytes(b"\xff".join(texts), files[0]), int(float(row[0]))

    def encoded(self, row: Bytes8) -> NDArray[Any]:
        return np.where(row == 255, 257, row.astype(np.int64) + 1)


def revision_of(found: Found) -> str:
    """`sha256:…` over the contents of the files, in their order, training before test."""
    digest = hashlib.sha256()
    for files in found:
        for file in files:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        digest.update(b"|")
    return f"sha256:{digest.hexdigest()}"


def _of_bytes(text: bytes, file: Path) -> Bytes8:
    if not text:
        raise ValueError(f"{file}: an empty text")
    return np.frombuffer(text, dtype=np.uint8)


def _only(paths: Sequence[str], name: str, what: str) -> Path:
    found = [file for path in paths for file in sorted(Path(path).rglob(name))]
    if len(found) != 1:
        raise _missing(paths, name, what, len(found))
    return found[0]


def _missing(paths: Sequence[str], name: str, what: str, found: int) -> ValueError:
    where = ", ".join(paths) or "no folder, since `paths` is not said"
    return ValueError(f"{name} of {what} is to lie below `paths` once, and {found or 'none'} lie in {where}")
