"""The sweep language: what may stand in a sweep file, and what each key means.

A file is read into a `SweepFile`: strict, closed to unknown keys, every error located and all reported at once. The
settings of a run, with their types, bounds and descriptions, are those of `xlstm.run.spec`; only what a sweep says in a
way of its own is declared here. `sweeps.expand` turns a file into runs. The same classes generate the JSON Schema that
editors complete from. Imports without torch.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, create_model

from sweeps.design import Design
from sweeps.located import Document, Problem, SweepError
from sweeps.rates import RateSettings
from sweeps.section import AS_PEOPLE_WRITE_IT, Count, Positive, Section, as_list
from xlstm.accounting.cards import CardName
from xlstm.quantities import nearest
from xlstm.run.data import Portion
from xlstm.run.evaluations import KINDS, NAME, kind_of
from xlstm.run.spec import Data, Evaluation, Execution, Optimizer, Physics, Schedule
from xlstm.tasks.settings import FormalLanguage, Pathfinder, Recall, SmallPathfinder, TaskName

BUDGETS = ("tokens", "tokens_per_parameter", "flops", "steps")
"""A point states exactly one of these."""

CORPUS = ("corpus", "revision", "paths", "text_key", "id_type", "mixture")
"""A corpus and what belongs to it: where another corpus is stated nearer, the whole is left behind."""

VALIDATION = "validation"
"""The kind of evaluation that every run has, and that `evaluation` configures."""

S = TypeVar("S", bound=Section)

_OTHER_KEYS: dict[tuple[type[BaseModel], str], str] = {
    (Schedule, "kind"): "schedule",
    (Optimizer, "name"): "optimizer",
}
"""The key of a field of the specification that a sweep calls by another name."""

OF_A_POINT = ("task", "tokens", "seed")
"""Fields of the physics that are axes of a point, and no settings of a section."""

OF_SECTIONS = ("model", "data", "optimizer", "schedule")
"""Fields of the physics that are built from several keys."""

ONE_VALUE_ONLY = ("name",)
"""The name of a task, which is its axis."""

OF_A_TASK = ("generated",)
"""Fields of the data that are built from the keys of their task."""

OF_PORTIONS = ("mixture",)
"""Fields of the data that are built from sources whose revisions are found."""

RESOLVED = {
    "data_paths": "they are `data.paths`, since the revision is read from the same files",
    "tokenizer_path": "it is `data.tokenizer` where that is a tokenizer.json",
}
"""The only fields of an execution that are no key of `resources`, and why."""


def _without_null(annotation: Any) -> Any:
    """The union without null: an axis has values, though a key of a section may be left out."""
    return Union[tuple(kind for kind in get_args(annotation) if kind is not NoneType)]  # noqa: UP007


def _written(annotation: Any, metadata: Iterable[Any]) -> Any:
    """The type of one value as a sweep file states it: not null, and whole numbers as people write them."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = _without_null(annotation)
    if get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        metadata = (*inner, *metadata)
    if get_origin(annotation) is tuple:
        annotation = list[_written(get_args(annotation)[0], ())]  # type: ignore[misc]
    if annotation is int:
        metadata = (AS_PEOPLE_WRITE_IT, *metadata)
    return Annotated[(annotation, *metadata)] if metadata else annotation


def _fields_of(
    ring: type[BaseModel], *, only: Collection[str] | None = None, without: Collection[str] = ()
) -> Callable[[type[S]], type[S]]:
    """Add the fields of a part of the specification to a section, each a key that may be left out."""

    def extended(section: type[S]) -> type[S]:
        fields: dict[str, Any] = {}
        for name, field in ring.model_fields.items():
            if name not in without and (only is None or name in only):
                stated = _written(field.annotation, field.metadata) | None
                fields[_OTHER_KEYS.get((ring, name), name)] = stated, Field(None, description=field.description)
        return create_model(
            section.__name__, __base__=section, __doc__=section.__doc__, __module__=section.__module__, **fields
        )

    return extended


def stated_fields(ring: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a part of the specification that are among the values of a sweep's keys."""
    keys = {name: _OTHER_KEYS.get((ring, name), name) for name in ring.model_fields}
    return {name: values[key] for name, key in keys.items() if key in values}


@_fields_of(Portion, without=("weight", "corpus", "revision"))
class SourceSettings(Section):
    """One source of a mixture."""

    corpus: str = Field(description=Portion.model_fields["corpus"].description)
    weight: Positive = Field(description=Portion.model_fields["weight"].description)


@_fields_of(SmallPathfinder, without=(*ONE_VALUE_ONLY, "examples"))
@_fields_of(Pathfinder, without=ONE_VALUE_ONLY)
@_fields_of(Recall, without=ONE_VALUE_ONLY)
@_fields_of(FormalLanguage, without=ONE_VALUE_ONLY)
@_fields_of(Data, without=OF_A_TASK + OF_PORTIONS)
class DataSettings(Section):
    """What is trained on."""

    paths: list[str] | None = Field(
        None, description="Files or folders of a local corpus, relative to the sweep file that names them."
    )
    mixture: Annotated[list[SourceSettings], Field(min_length=2)] | None = Field(
        None, description=Data.model_fields["mixture"].description
    )


@_fields_of(Schedule)
@_fields_of(Optimizer, without=("learning_rate",))
@_fields_of(Physics, without=OF_A_POINT + OF_SECTIONS)
class TrainSettings(RateSettings, Section):
    """How a run is trained. A key left out has the default of xlstm/run/spec.py."""

    batch_sequences: Count | None = Field(None, description="Global batch in sequences, instead of batch_tokens.")
    decay_fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="decay_steps as a fraction of the run's steps."
    )


class Settings(DataSettings, TrainSettings):
    """What a rule may set, and what may be an axis beside model, size, budget and seed."""


@_fields_of(Execution, without=RESOLVED)
class Resources(Section):
    """Where and how a run is carried out. Changing any of it keeps the run's identity."""

    gpus: Count | None = Field(None, description="GPUs per node: `devices` and `device: cuda` in one.")
    gpu: CardName | None = Field(None, description="The card to plan for: whether the run fits it, and for how long.")
    mfu: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Share of the card's peak to plan with until runs have finished and were measured."
    )
    priority: int | None = Field(None, description="Higher starts earlier; runs of equal priority start cheap first.")


@_fields_of(Physics, only=OF_A_POINT)
class Point(Settings):
    """Every axis a grid may have: what is run, for how long, and any setting of `data` and `train`."""

    model: str | None = Field(None, description="Model family, such as xlstm[7:1] or llama.")
    size: str | None = Field(None, description="A named size, such as 125M, or a name under `sizes`.")
    tokens_per_parameter: Positive | None = Field(None, description="Token budget as a multiple of all parameters.")
    flops: Positive | None = Field(None, description="Compute budget; tokens are solved from exact training FLOPs.")
    steps: Count | None = Field(None, description="Token budget as optimizer steps of the global batch.")


def _axis(annotation: Any, metadata: Iterable[Any]) -> Any:
    one: Any = Annotated[(annotation, *metadata)] if metadata else annotation
    return Annotated[list[one], BeforeValidator(as_list, json_schema_input_type=one | list[one]), Field(min_length=1)]


if TYPE_CHECKING:

    class Axes(Section):
        """Values of axes: one, or a list."""

else:
    _AXES = {
        name: (_axis(_without_null(field.annotation), field.metadata), Field(None, description=field.description))
        for name, field in Point.model_fields.items()
        if name not in ("paths", "mixture")
    }
    Axes = create_model("Axes", __base__=Section, __doc__="Values of axes: one, or a list.", **_AXES)


_WHEN = "Axis values; a run matches if each axis has one of them."


class Rule(Section):
    """Settings for the runs it matches.

    An axis of the point wins over every rule, the first matching rule that sets a key over later ones, and a rule over
    `data` and `train`.
    """

    when: Axes = Field(default_factory=Axes, description=_WHEN)
    set: Settings = Field(description="Settings of `data` and `train` for the runs that match.")


class ResourceRule(Section):
    """Resources for the runs it matches; the first matching rule that sets a key wins that key."""

    when: Axes = Field(default_factory=Axes, description=_WHEN)
    set: Resources = Field(description="Resources for the runs that match.")


@_fields_of(Evaluation)
class EvaluationSettings(Section):
    """What is measured on each trained model."""


def _without_those_of_null(value: Any) -> Any:
    """A mapping without the names that a sweep which extends another, or an override, has taken out."""
    return {name: one for name, one in value.items() if one is not None} if isinstance(value, dict) else value


def _kind(ring: type[BaseModel], kind: str) -> Any:
    """A kind of evaluation as an entry of `evaluations`; what is needed is asked for, whatever else may be left out."""
    section = _fields_of(ring, without=("name", "kind", "corpus"))(Section)
    fields: dict[str, Any] = {"kind": (Literal[kind], Field(description="What is measured (docs/evaluations.md)."))}
    if "corpus" in ring.model_fields:
        fields["corpus"] = str, Field(description=ring.model_fields["corpus"].description)
    return create_model(f"{ring.__name__}Entry", __base__=section, __doc__=ring.__doc__, **fields)


EVALUATIONS: dict[str, Any] = {
    VALIDATION: _kind(Evaluation, VALIDATION),
    **{kind_of(kind): _kind(kind, kind_of(kind)) for kind in KINDS},
}
"""What an entry of `evaluations` may say, by its kind."""
_AnyEntry: Any = Union[tuple(EVALUATIONS.values())]  # noqa: UP007


class SweepFile(Section):
    """A sweep: which runs, trained how, on what."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = Field(
        description="Names the sweep, its folder and its MLflow experiment."
    )
    extends: str | None = Field(None, description="Another sweep, by path or name, that this one is laid over.")
    notes: str = Field("", description="What the sweep is for, in words.")
    tags: dict[str, str] = Field(default_factory=dict, description="Tags of the sweep's runs in MLflow.")
    task: TaskName = Field(Physics.model_fields["task"].default, description=Physics.model_fields["task"].description)
    data: DataSettings = Field(DataSettings(), description="The training data of all runs.")
    sizes: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Own sizes: a name to dimensions, or a name to families to dimensions."
    )
    grid: Axes = Field(default_factory=Axes, description="Every combination of these values is a run.")
    zip: Axes = Field(default_factory=Axes, description="Lists of equal length that vary together, times the grid.")
    include: list[Axes] = Field(default_factory=list, description="Further points; axes left out come from the grid.")
    exclude: list[Axes] = Field(default_factory=list, description="Points of the grid that are not run.")
    train: TrainSettings = Field(TrainSettings(), description="How each run is trained.")
    rules: list[Rule] = Field(
        default_factory=list, description="Settings for some of the runs; the first rule that matches wins, per key."
    )
    resources: list[ResourceRule] = Field(
        default_factory=list, description="Where and how the runs are carried out; the first match wins, per key."
    )
    evaluation: EvaluationSettings = Field(EvaluationSettings(), description="How each trained model is measured.")
    evaluations: Annotated[
        dict[Annotated[str, Field(pattern=NAME)], Annotated[_AnyEntry, Field(discriminator="kind")]],
        BeforeValidator(_without_those_of_null, json_schema_input_type=dict[str, _AnyEntry | None]),
    ] = Field(default_factory=dict, description="What else is measured on each trained model, by name.")
    design: Design | None = Field(None, description="How runs are chosen one after another, the points being a pool.")
    best_of: str | None = Field(None, description="An axis of which the law takes the best run, such as learning_rate.")
    prune: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Chance that the best run of a point is ended before its time, for which those that cannot win by "
        "`best_of` are; left out, none is.",
    )


def validate(document: Document) -> SweepFile:
    """Check a document against the language. SweepError with everything that is wrong."""
    if not isinstance(document.value, dict):
        raise SweepError([document.problem((), "a sweep is a mapping of keys such as name, data and grid")])
    try:
        file = SweepFile.model_validate(document.value)
    except ValidationError as error:
        raise SweepError(_problem(document, detail) for detail in error.errors(include_url=False)) from None
    if file.design is not None and file.best_of is not None:
        told = "`best_of` takes the best of several runs of a point; a design buys one run at a time: leave out either"
        raise SweepError([document.problem(("best_of",), told)])
    if file.prune is not None and file.best_of is None:
        told = "`prune` ends runs that cannot win, and `best_of`, the axis along which one does, is left out"
        raise SweepError([document.problem(("prune",), told)])
    return file


def schema() -> dict[str, Any]:
    """The JSON Schema of a sweep file, for editors."""
    written = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return written | SweepFile.model_json_schema(mode="validation") | {"patternProperties": {"^x-": {}}}


def _problem(document: Document, detail: Any) -> Problem:
    path = detail["loc"]
    tag = path[2] if path[0] == "evaluations" and len(path) > 2 else None
    if tag is not None:  # the kind, by which its fields were found, and no key
        path = (*path[:2], *path[3:])
    key = ".".join(map(str, path))
    kind, value = detail["type"], detail.get("input")
    if kind == "union_tag_not_found":
        return document.problem(path, f"`{key}.kind` is missing; one of {', '.join(EVALUATIONS)}")
    if kind == "union_tag_invalid":
        said = value.get("kind") if isinstance(value, dict) else value
        return document.problem(
            (*path, "kind"), f"`{key}.kind`: {_shown(said)} is not valid; {nearest(str(said), EVALUATIONS)}"
        )
    if path[0] == "evaluations" and len(path) > 1 and kind == "string_pattern_mismatch":
        return document.problem(path[:2], f"`evaluations`: {_shown(path[1])} cannot name a file")
    if kind == "extra_forbidden":
        words = list(EVALUATIONS[tag].model_fields) if tag is not None else _words(path[:-1])
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
    if "slurm" in path[:-1]:
        # One problem for what is no value of an option, whatever kinds of values there are.
        setting = path[: path.index("slurm") + 2]
        return document.problem(
            setting,
            f"`{setting[-1]}` is no option that sbatch takes as a value; what a shell runs (setup, python, "
            "container) stands under `slurm:` in config.yaml of the workspace",
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
