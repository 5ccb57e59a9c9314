"""The sweep language: what may stand in a sweep file, and what each key means.

A file is read into a `SweepFile`: strict, closed to unknown keys, every error located and all reported at once.
`sweeps.expand` turns it into runs. The same classes generate the JSON Schema that editors complete from.
"""

import re
from collections.abc import Iterable
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from sweeps.located import Document, Problem, SweepError
from xlstm.accounting.cards import CardName
from xlstm.quantities import nearest

BUDGETS = ("tokens", "tokens_per_parameter", "flops")
"""A point states exactly one of these."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([KMBT]?)")


def _count(value: Any) -> Any:
    """Whole numbers as people write them: 15B, 300K, 1e9."""
    if isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip())):
        value = float(match[1]) * _UNITS[match[2]]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Count = Annotated[int, BeforeValidator(_count, json_schema_input_type=int | float | str), Field(gt=0)]
WholeNumber = Annotated[int, BeforeValidator(_count, json_schema_input_type=int | float | str), Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A mapping of the sweep file: strict about types and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DataSettings(Section):
    """What is trained on."""

    corpus: str | None = Field(
        None, description="`python-stdlib`, `text:PATH`, `jsonl:PATH`, `hf:NAME`, or another corpus."
    )
    revision: str | None = Field(None, description="Revision of a named corpus; local files are hashed instead.")
    tokenizer: str | None = Field(None, description="`bytes`, or another tokenizer.")
    context_length: Count | None = Field(None, description="Tokens per training sequence.")
    documents: Literal["continue", "reset"] | None = Field(
        None, description="Whether state and attention run on from one document into the next, or start anew."
    )
    paths: list[str] | None = Field(
        None, description="Files or folders of a local corpus, relative to the sweep file that names them."
    )


class TrainSettings(Section):
    """How a run is trained. A key left out has the default of xlstm/run/spec.py."""

    batch_sequences: Count | None = Field(None, description="Global batch in sequences.")
    batch_tokens: Count | None = Field(None, description="Global batch in tokens, instead of batch_sequences.")
    learning_rate: Positive | None = Field(None, description="Peak learning rate.")
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    beta1: Annotated[float, Field(ge=0, lt=1)] | None = None
    beta2: Annotated[float, Field(ge=0, lt=1)] | None = None
    epsilon: Positive | None = None
    gradient_clip: Positive | None = Field(None, description="Largest global gradient norm; null for none.")
    schedule: Literal["cosine", "wsd", "constant"] | None = None
    warmup_steps: WholeNumber | None = None
    decay_steps: Count | None = Field(None, description="Steps of decay (wsd), or the step that reaches the floor.")
    decay_fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="decay_steps as a fraction of the run's steps."
    )
    final_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    precision: Literal["float32", "bf16-mixed"] | None = None
    z_loss: Positive | None = Field(None, description="Weight of the penalty on log²(Z) of the logits; null for none.")


class Settings(DataSettings, TrainSettings):
    """What a rule may set, and what may be an axis beside model, size, budget and seed."""


class Resources(Section):
    """Where and how a run is carried out. Changing any of it keeps the run's identity."""

    nodes: Count | None = None
    devices: Count | None = Field(None, description="Ranks per node, on GPUs where there are any.")
    gpus: Count | None = Field(None, description="GPUs per node: as devices, and refuses to run on CPU.")
    runs_per_device: Count | None = Field(None, description="Runs of one rank that share a GPU.")
    micro_batch_sequences: Count | None = None
    sharding: Literal["fsdp", "hsdp", "none"] | None = None
    activation_checkpointing: Literal["none", "selective", "full"] | None = None
    compile: bool | None = None
    kernels: Literal["auto", "reference", "torch", "numba", "triton"] | None = None
    threads_per_rank: Count | None = None
    log_every: Count | None = None
    validate_every: Count | None = None
    checkpoint_every: Count | None = None
    slurm: dict[str, str | int | bool | dict[str, str]] | None = Field(
        None, description="What a job asks of Slurm: partition, account, time and more (docs/slurm.md)."
    )
    gpu: CardName | None = Field(None, description="The card to plan for: whether the run fits it, and for how long.")
    mfu: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Share of the card's peak to plan with until runs have finished and were measured."
    )
    priority: int | None = Field(None, description="Higher starts earlier; runs of equal priority start cheap first.")


class Point(Settings):
    """Every axis a grid may have: what is run, for how long, and any setting of `data` and `train`."""

    task: Literal["language-modeling"] | None = None
    model: str | None = Field(None, description="Model family, such as xlstm[7:1] or llama.")
    size: str | None = Field(None, description="A named size, such as 125M, or a name under `sizes`.")
    seed: WholeNumber | None = None
    tokens: Count | None = Field(None, description="Token budget.")
    tokens_per_parameter: Positive | None = Field(None, description="Token budget as a multiple of all parameters.")
    flops: Positive | None = Field(None, description="Compute budget; tokens are solved from exact training FLOPs.")


def _axis(annotation: Any, metadata: Iterable[Any]) -> Any:
    one: Any = Annotated[(annotation, *metadata)] if metadata else annotation
    return Annotated[list[one], BeforeValidator(_as_list, json_schema_input_type=one | list[one]), Field(min_length=1)]


def _without_null(annotation: Any) -> Any:
    """An axis has values: what may be left out of a section may not be null in a grid."""
    return Union[tuple(kind for kind in get_args(annotation) if kind is not NoneType)]  # noqa: UP007


def _axes() -> Any:
    """Every axis of `Point`, as one value or a list of them."""
    fields: dict[str, Any] = {
        name: (_axis(_without_null(field.annotation), field.metadata), Field(None, description=field.description))
        for name, field in Point.model_fields.items()
        if name != "paths"
    }
    return create_model("Axes", __base__=Section, __doc__="Values of axes: one, or a list.", **fields)


if TYPE_CHECKING:

    class Axes(Section):
        """Values of axes: one, or a list."""

else:
    Axes = _axes()


class Rule(Section):
    """Settings for the runs it matches.

    An axis of the point wins over every rule, the first matching rule that sets a key over later ones, and a rule over
    `data` and `train`.
    """

    when: Axes = Field(default_factory=Axes, description="Axis values; a run matches if each axis has one of them.")
    set: Settings


class ResourceRule(Section):
    """Resources for the runs it matches; the first matching rule that sets a key wins that key."""

    when: Axes = Field(default_factory=Axes)
    set: Resources


class EvaluationSettings(Section):
    """What is measured on each trained model."""

    name: str | None = None
    sequences: Count | None = Field(None, description="Validation sequences, from the first; all of them if left out.")


class SweepFile(Section):
    """A sweep: which runs, trained how, on what."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    extends: str | None = Field(None, description="Another sweep, by path or name, that this one is laid over.")
    notes: str = ""
    tags: dict[str, str] = Field(default_factory=dict)
    task: Literal["language-modeling"] = "language-modeling"
    data: DataSettings = DataSettings()
    sizes: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Own sizes: a name to dimensions, or a name to families to dimensions."
    )
    grid: Axes = Field(default_factory=Axes, description="Every combination of these values is a run.")
    zip: Axes = Field(default_factory=Axes, description="Lists of equal length that vary together.")
    include: list[Axes] = Field(default_factory=list, description="Further points; axes left out come from the grid.")
    exclude: list[Axes] = Field(default_factory=list, description="Points of the grid that are not run.")
    train: TrainSettings = TrainSettings()
    rules: list[Rule] = Field(default_factory=list)
    resources: list[ResourceRule] = Field(default_factory=list)
    evaluation: EvaluationSettings = EvaluationSettings()
    best_of: str | None = Field(None, description="An axis of which the law takes the best run, such as learning_rate.")


def validate(document: Document) -> SweepFile:
    """Check a document against the language. SweepError with everything that is wrong."""
    if not isinstance(document.value, dict):
        raise SweepError([document.problem((), "a sweep is a mapping of keys such as name, data and grid")])
    try:
        return SweepFile.model_validate(document.value)
    except ValidationError as error:
        raise SweepError(_problem(document, detail) for detail in error.errors(include_url=False)) from None


def schema() -> dict[str, Any]:
    """The JSON Schema of a sweep file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | SweepFile.model_json_schema(mode="validation")


def _problem(document: Document, detail: Any) -> Problem:
    path = detail["loc"]
    key = ".".join(map(str, path))
    kind, value = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        words = _words(path[:-1])
        where = f"of `{'.'.join(map(str, path[:-1]))}`" if len(path) > 1 else "of a sweep"
        return document.problem(path, f"`{path[-1]}` is no key {where}; {nearest(str(path[-1]), words)}")
    if kind == "missing":
        return document.problem(path[:-1], f"`{key}` is missing")
    if kind == "literal_error":
        words = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        return document.problem(path, f"`{key}`: {_shown(value)} is not valid; {nearest(str(value), words)}")
    if key == "name" and kind == "string_pattern_mismatch":
        return document.problem(
            path, f"`name`: {_shown(value)} cannot name a folder; use letters, digits, dots, dashes and underscores"
        )
    if kind in ("model_type", "dict_type"):
        return document.problem(path, f"`{key}`: input should be a mapping, not {_shown(value)}")
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return document.problem(path, f"`{key}`: {message}, not {_shown(value)}")


def _shown(value: Any) -> str:
    text = f"the text {value!r}" if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _words(path: tuple[Any, ...]) -> list[str]:
    """Keys that are valid in the section at `path`."""
    section: Any = SweepFile
    for part in path:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part)
        section = _section_of(field.annotation) if field else None
        if section is None:
            return []
    return list(section.model_fields)


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if (found := _section_of(argument)) is not None:
            return found
    return None
