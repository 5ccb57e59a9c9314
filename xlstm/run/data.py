"""What a run is trained on, as a part of its specification. Imports without torch."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from xlstm.tasks import Task, task_of
from xlstm.tasks.settings import AnyTask

MIXTURE = "mixture"
"""The name of a corpus that is several, drawn from by their weights."""

PositiveInt = Annotated[int, Field(gt=0)]

IdType = Literal["uint8", "uint16", "uint32", "int32", "int64"]
"""What headerless token ids may be stored as, little-endian."""


class Ring(BaseModel):
    """A part of a specification: immutable, strict about types, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class Portion(Ring):
    """One source of a mixture, as declared."""

    corpus: str = Field(description="As `corpus` of `data`: `text:PATH`, or a named corpus.")
    revision: str = Field(description="As `revision` of `data`.")
    weight: float = Field(gt=0, description="Its share of the training sequences, in proportion to all weights.")
    text_key: str = Field("text", min_length=1, description="As `text_key` of `data`.")


class Data(Ring):
    """The training data as declared; where the files lie is `Execution.data_paths`."""

    corpus: str = Field(
        description="A named corpus such as `python-stdlib`, or a kind of local files such as `text` or `jsonl`; a"
        " sweep may also say where they lie: `text:PATH`."
    )
    revision: str = Field(description="Revision of a named corpus, or sha256:… of the content of local files.")
    tokenizer: str = Field("bytes", description="`bytes`, `words`, `gpt2`, or another tokenizer (docs/training.md).")
    context_length: PositiveInt = Field(description="Tokens per training sequence.")
    documents: Literal["continue", "reset"] = Field(
        "continue", description="Whether state and attention run on from one document into the next, or start anew."
    )
    text_key: str = Field(
        "text",
        min_length=1,
        description="The key or column that holds the text, such as `content`; `data.text` for one within another.",
    )
    end_of_text: str | None = Field(
        None, min_length=1, description="The token of a tokenizer.json that ends a text, where it has an unusual name."
    )
    id_type: IdType | None = Field(
        None, description="How headerless token ids are stored; null: the narrowest from 16 bits on."
    )
    generated: AnyTask | None = Field(None, description="What generated sequences are like; null for a corpus.")
    mixture: tuple[Portion, ...] | None = Field(
        None, min_length=2, description="Sources that are drawn from by their weights, in the place of one corpus."
    )

    @model_validator(mode="after")
    def _a_mixture_is_called_one(self) -> Self:
        if (self.corpus == MIXTURE) != (self.mixture is not None):
            raise ValueError("corpus mixture is for data that state their mixture, and for no others")
        return self

    @property
    def task(self) -> Task | None:
        """The task whose sequences are generated; None for a corpus."""
        return None if self.generated is None else task_of(self.generated, self.context_length)
