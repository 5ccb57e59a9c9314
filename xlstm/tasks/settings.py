"""What may be said of each generated task: a closed set of fields with the defaults of the xLSTM paper.

arXiv 2405.04517, section 4.1 and appendix D.1. Lengths and pairs are those of training; what is tested on longer
sequences is said by the evaluation.
"""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

LanguageName = Literal[
    "bucket-sort",
    "cycle-navigation",
    "even-pairs",
    "majority",
    "majority-count",
    "missing-duplicate",
    "modular-arithmetic",
    "modular-arithmetic-brackets",
    "odds-first",
    "parity",
    "repetition",
    "reverse",
    "set",
    "solve-equation",
    "stack-manipulation",
]

TaskName = Literal[
    "language-modeling",
    LanguageName,
    "mqar",
    "nearest-neighbor",
    "listops",
    "pixels",
    "color-pixels",
    "pathfinder",
    "bytes",
    "retrieval",
    "small-pathfinder",
]

REVISION = "1"
"""Version of the generators: raised when the sequences of any task change, which makes its runs other runs."""

SHORTEST = {"solve-equation": 3, "missing-duplicate": 2}
"""The shortest input of a language where it is not a single symbol."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class FormalLanguage(_Settings):
    """A string in, its answer out (docs/tasks.md names the fifteen languages)."""

    name: LanguageName
    shortest: int = Field(
        3, gt=0, description="Least length of a training sequence, the answer left out; of listops 501."
    )
    longest: int = Field(
        40,
        gt=0,
        description="Greatest length of a training sequence, the answer left out; of listops 1999, of"
        " nearest-neighbor 64, of bytes 4000, of each of the two texts of retrieval 4000.",
    )

    @model_validator(mode="after")
    def _has_such_lengths(self) -> Self:
        if self.shortest > self.longest:
            raise ValueError(f"lengths: shortest {self.shortest} is above longest {self.longest}")
        least = SHORTEST.get(self.name, 1)
        if self.shortest < least:
            raise ValueError(f"lengths: {self.name} has no string of {self.shortest}, its shortest has {least}")
        return self


class Recall(_Settings):
    """Multi-query associative recall (arXiv 2312.04927): keys with values, then keys again, in any order."""

    name: Literal["mqar"]
    pairs: int = Field(4, gt=0, description="Keys with a value that a sequence of mqar begins with.")
    symbols: int = Field(8192, gt=3, description="Symbols of mqar: the lower half are keys, the upper half values.")
    slot_power: float = Field(
        0.01,
        gt=0,
        description="a of the density a·i^(a-1) of the place i where mqar asks again; 1 is uniform, less is nearer.",
    )
    fill_blanks: bool = Field(True, description="Whether mqar fills what is neither pair nor query with any symbols.")
    examples: int = Field(
        100_000,
        gt=0,
        description="Different training sequences, which come again each epoch; of listops 96000, of nearest-neighbor"
        " 8192, of small-pathfinder 100000.",
    )

    def check(self, context_length: int) -> None:
        """ValueError where sequences of this length cannot hold the pairs and their queries."""
        if context_length % 2:
            raise ValueError(f"context_length {context_length} is odd: mqar writes symbols in twos")
        if 4 * self.pairs > context_length:
            raise ValueError(
                f"pairs {self.pairs} do not fit the context length {context_length}: pairs and their queries"
                f" take {4 * self.pairs}"
            )
        if self.symbols // 2 - 1 < self.pairs:
            raise ValueError(
                f"symbols {self.symbols} hold {self.symbols // 2 - 1} keys, too few for pairs {self.pairs}"
            )


class ListOps(_Settings):
    """Nested lists of digits (Long Range Arena, arXiv 2011.04006)."""

    name: Literal["listops"]
    shortest: int = Field(501, gt=3, description=FormalLanguage.model_fields["shortest"].description)
    longest: int = Field(1999, gt=3, description=FormalLanguage.model_fields["longest"].description)
    examples: int = Field(96_000, gt=0, description=Recall.model_fields["examples"].description)

    @model_validator(mode="after")
    def _has_such_lengths(self) -> Self:
        if self.shortest + 10 > self.longest:
            raise ValueError(f"lengths: longest {self.longest} is to be at least 10 above shortest {self.shortest}")
        return self


class NearestNeighbor(_Settings):
    """Vectors with values, of which the one nearest to the first so far is asked for (arXiv 2405.04517)."""

    name: Literal["nearest-neighbor"]
    longest: int = Field(64, gt=1, description=FormalLanguage.model_fields["longest"].description)
    examples: int = Field(8192, gt=0, description=Recall.model_fields["examples"].description)


class Pixels(_Settings):
    """CIFAR-10 pixel by pixel (Long Range Arena)."""

    name: Literal["pixels", "color-pixels"]


class Pathfinder(_Settings):
    """Whether a line joins two dots of a picture (Long Range Arena)."""

    name: Literal["pathfinder"]
    side: Literal[32, 64, 128, 256] = Field(32, description="Pixels of a side of the pictures of pathfinder.")
    difficulty: Literal["easy", "intermediate", "hard"] = Field(
        "hard", description="Which of the published pictures pathfinder reads: contours of 6, 9 or 14 dashes."
    )


class Bytes(_Settings):
    """Film reviews byte by byte (Long Range Arena)."""

    name: Literal["bytes"]
    longest: int = Field(4000, gt=0, description=FormalLanguage.model_fields["longest"].description)


class Retrieval(_Settings):
    """Two papers byte by byte, of which one may cite the other (Long Range Arena)."""

    name: Literal["retrieval"]
    longest: int = Field(4000, gt=0, description=FormalLanguage.model_fields["longest"].description)


class SmallPathfinder(_Settings):
    """Pathfinder at a size of one's own, generated."""

    name: Literal["small-pathfinder"]
    width: int = Field(12, ge=8, le=64, description="Cells of a side of the pictures of small-pathfinder.")
    contour: int = Field(6, ge=3, description="Cells of a line of small-pathfinder.")
    examples: int = Field(100_000, gt=0, description=Recall.model_fields["examples"].description)

    @model_validator(mode="after")
    def _two_lines_find_room(self) -> Self:
        if self.contour > self.width:
            raise ValueError(f"contour {self.contour} is longer than width {self.width}: two lines find no room")
        return self


TaskSettings = (
    FormalLanguage | Recall | NearestNeighbor | ListOps | Pixels | Pathfinder | Bytes | Retrieval | SmallPathfinder
)

AnyTask = Annotated[TaskSettings, Field(discriminator="name")]


_CLASSES: dict[str, type[TaskSettings]] = {
    name: settings for settings in get_args(TaskSettings) for name in get_args(settings.model_fields["name"].annotation)
}


def settings_of(task: str) -> type[TaskSettings]:
    """The class of what may be said of a generated task."""
    return _CLASSES.get(task, FormalLanguage)


FROM_FILES = ("pixels", "color-pixels", "pathfinder", "bytes", "retrieval")
"""Tasks whose sequences are read from files, and not generated."""


def fields_of(task: str) -> tuple[str, ...]:
    """What may be said of a task, by the names of its fields; nothing of language modeling."""
    fields: dict[str, Any] = {} if task == "language-modeling" else settings_of(task).model_fields
    return tuple(name for name in fields if name != "name")
