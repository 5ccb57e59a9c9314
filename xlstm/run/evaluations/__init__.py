"""What is measured on a trained model beside its validation: a closed class for each kind. Imports without torch.

An evaluation belongs to no run's identity: what it measured is kept by run and fingerprint, so that it is made once,
and again only where something changed that it depends on.
"""

from typing import Annotated, Literal, TypeAlias, Union

from pydantic import Field

from xlstm.run.data import Data, PositiveInt, Ring
from xlstm.run.identity import digest, without_later_defaults

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
FRINGE = ("twitterAAE_HELM_fixed", "manosphere_meta_sep", "4chan_meta_sep", "gab")
"""Sources that the xLSTM paper leaves out of its averages (arXiv 2405.04517), by the names of their folders."""


class Kind(Ring):
    """What all kinds say."""

    name: str = Field(pattern=NAME, description="Names the file it leaves, and its metrics.")

    @property
    def context(self) -> int | None:
        """Tokens that the model is to read at a time, where that is stated; None where the training's are meant."""
        stated: int | None = getattr(self, "context_length", None)
        return stated


class OfOtherText(Kind):
    """What is said of a text that is not the run's own."""

    revision: str = Field(description="Version of the text, taken at its word; left out: sha256:… of its content.")
    paths: tuple[str, ...] = Field((), description="Files or folders, relative to the sweep file that names them.")
    tokenizer: str | None = Field(
        None, description="The tokenizer that runs must have for the numbers to mean something; null: any."
    )
    context_length: PositiveInt | None = Field(None, description="Tokens read at a time; null: as in training.")


class OfOwnText(Kind):
    """What is said of a held-out split of the run's own corpus."""

    split: Literal["validation", "test"] = Field(
        "validation", description="The split of the run's corpus that is read."
    )
    sequences: PositiveInt | None = Field(
        None, description="How many sequences are read, evenly over the split; null: all."
    )


class CorpusEvaluation(OfOtherText):
    """Loss, perplexity and bits per byte on any corpus, by its sources."""

    kind: Literal["corpus"] = "corpus"
    corpus: str = Field(description="As `corpus` of `data`: a named one, or a kind of local files with its path.")
    text_key: str = Field("text", min_length=1, description="As `text_key` of `data`.")
    split: Literal["validation", "test", "train", "all"] = Field(
        "validation", description="The split that is read, by the rules of training corpora; `all` for every document."
    )
    sequences: PositiveInt | None = Field(
        None, description="How many sequences are read, evenly over the split; null: all."
    )


class LengthExtrapolation(OfOwnText):
    """Loss on the same tokens at several context lengths, and by position in the longest."""

    kind: Literal["length-extrapolation"] = "length-extrapolation"
    contexts: tuple[PositiveInt, ...] | None = Field(
        None,
        min_length=1,
        description="Context lengths, divisors of the longest; null: 1, 2, 4 and 8 times training's.",
    )

    def contexts_of(self, data: Data) -> list[int]:
        """The context lengths for runs on these data, ascending, each once."""
        return sorted(set(self.contexts or (data.context_length * factor for factor in (1, 2, 4, 8))))


class TokenFrequency(OfOwnText):
    """Loss and perplexity by how often the training split holds a token (arXiv 2405.04517, figure 2, right)."""

    kind: Literal["token-frequency"] = "token-frequency"
    bands: tuple[PositiveInt, ...] = Field(
        (1, 10, 100, 1000, 10_000, 100_000),
        min_length=1,
        description="Occurrences in training at which a band begins; what is rarer than the first is a band as well.",
    )


class Domains(OfOtherText):
    """Perplexity by domain and source of documents in PALOMA's layout, each document for itself (arXiv 2312.10523)."""

    kind: Literal["domains"] = "domains"
    split: Literal["val", "test"] = Field("val", description="Which files are read: `<source>/<split>/*.jsonl.gz`.")
    fringe: tuple[str, ...] = Field(FRINGE, description="Sources that are left out of the average over sources.")


class Harness(Kind):
    """Tasks of EleutherAI's lm-evaluation-harness, which is the extra `harness`."""

    kind: Literal["harness"] = "harness"
    tasks: tuple[str, ...] = Field(min_length=1, description="Names of lm-eval's tasks, or of those in `paths`.")
    num_fewshot: int | None = Field(None, ge=0, description="Examples before each item; null: as the task has it.")
    limit: PositiveInt | None = Field(None, description="Items of each task, the first; null: all.")
    revision: str = Field("", description="Version of the task files; left out: sha256:… of their content.")
    paths: tuple[str, ...] = Field((), description="Folders with task files of one's own, such as of offline tasks.")
    context_length: PositiveInt | None = Field(None, description="Tokens read at most; null: as in training.")


class Inference(Kind):
    """Seconds to the first token and per token after it, and memory, against the length of the prompt."""

    kind: Literal["inference"] = "inference"
    contexts: tuple[PositiveInt, ...] = Field(
        (128, 512, 2048, 8192), min_length=1, description="Lengths of the prompts, in tokens."
    )
    batch: PositiveInt = Field(1, description="Prompts that are answered together.")
    generated: int = Field(32, ge=2, description="Tokens that are generated after each prompt.")
    rounds: PositiveInt = Field(5, description="How often each length is timed; medians are told, with least and most.")


KINDS = (CorpusEvaluation, LengthExtrapolation, TokenFrequency, Domains, Harness, Inference)
"""Beside `validation`, which every run has."""

AnyEvaluation: TypeAlias = Annotated[
    Union[CorpusEvaluation, LengthExtrapolation, TokenFrequency, Domains, Harness, Inference],  # noqa: UP007
    Field(discriminator="kind"),
]


def kind_of(evaluation: type[Kind]) -> str:
    """The name of a kind."""
    name: str = evaluation.model_fields["kind"].default
    return name


def fingerprint(evaluation: Kind, data: Data) -> str:
    """Eight hex digits that name an evaluation of runs on these data. Where the text lies changes nothing."""
    own = without_later_defaults(evaluation, evaluation.model_dump(mode="json"))
    own.pop("paths", None)
    return digest({"evaluation": own, "data": without_later_defaults(data, data.model_dump(mode="json"))})
