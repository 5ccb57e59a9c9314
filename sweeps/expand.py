"""From a sweep to its runs: for each point of the grid one resolved specification.

What a point says wins over rules, rules over `data` and `train`. Derived budgets are rounded to whole optimizer steps.
Every problem of every point is collected, once, with the line of the key that causes it. Imports without torch.
"""

import pathlib as files
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from sweeps.budgets import tokens_of
from sweeps.corpora import declared
from sweeps.evaluations import Evaluations
from sweeps.language import BUDGETS, CORPUS, DataSettings, Resources, Settings, SweepFile, stated_fields
from sweeps.located import Document, Path
from sweeps.points import Choice, Grid, Point, Problems, matches
from sweeps.rates import LAW, RateByLaw
from xlstm import accounting
from xlstm.data import CorpusError
from xlstm.data.generated import declare_task
from xlstm.data.locations import located
from xlstm.models.configs import ModelConfig
from xlstm.models.naming import family_label, parse_family
from xlstm.models.sizes import config_for
from xlstm.run.spec import (
    Data,
    Evaluation,
    Execution,
    Optimizer,
    Physics,
    Presentation,
    RunSpec,
    Schedule,
    has_slstm,
    same_training,
)
from xlstm.tasks.settings import FROM_FILES, fields_of, settings_of

_ALTERNATIVES = (
    ("batch_sequences", "batch_tokens"),
    ("decay_steps", "decay_fraction"),
    ("devices", "gpus"),
    ("device", "gpus"),
)
"""Two ways to say one thing: the one stated nearest to the point is taken whole."""

_DEFAULT_WHERE_NULL = ("tokenizer", "documents", "text_key", "schedule", "precision", "optimizer")
"""Settings that may be null, which is to say that they are left out."""

_SCHEDULING = ("priority", "gpu", "mfu")

_SHIPPED = files.Path(__file__).parent.resolve()
"""Sweeps that come with the program, some of them without their text."""


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: its specification, the point it comes from, and how it is to be scheduled."""

    spec: RunSpec
    point: Mapping[str, Any]
    """Axis values: model, size, budget, seed and whatever else varies."""
    priority: int = 0
    gpu: str | None = None
    """The card to plan for, by its name in xlstm.accounting.cards; None where none was stated."""
    mfu: float | None = None
    """Share of the card's peak to plan with; None where none was stated."""
    earlier: RunSpec | None = None
    """What earlier versions made of the same point: weight decay fell on the sLSTM's recurrent weights, too.

    None where that is the same run, or the sweep says which it means.
    """


def expand(file: SweepFile, document: Document, rate_by_law: RateByLaw | None = None) -> list[SweepRun]:
    """Every run of a sweep, in the order written; a run that two points name appears once.

    SweepError with every problem. CorpusError's text becomes a problem at the line of the data.
    """
    problems = Problems(document)
    grid = Grid(file, problems)
    points = list(grid.points())
    grid.check_words()
    problems.stop()
    expansion = _Expansion(file, problems, rate_by_law)
    runs: dict[str, SweepRun] = {}
    for point in points:
        run = expansion.run(point)
        if run is not None:
            runs.setdefault(run.spec.run_id, run)
    problems.stop()
    return list(runs.values())


@dataclass
class _Expansion:
    file: SweepFile
    problems: Problems
    rate_by_law: RateByLaw | None

    def __post_init__(self) -> None:
        self.evaluations = Evaluations(self.file, self.problems)

    def complain(self, path: Path, message: str) -> None:
        self.problems.complain(path, message)

    def run(self, point: Point) -> SweepRun | None:
        """The run of a point, or None after noting what is wrong with it."""
        settings = self._choose(Settings.model_fields, self._settings_levels(point))
        resources = self._choose(Resources.model_fields, self._resource_levels(point.values()))
        validation, place = self.evaluations.validation
        evaluation = {name: (value, (*place, name)) for name, value in validation.items()}
        sources = {name: path for name, (_, path) in (evaluation | point.choices | settings | resources).items()}
        values = {
            name: value for name, (value, _) in settings.items() if value is not None or name not in _DEFAULT_WHERE_NULL
        }
        declared = self._data(point, settings, values)
        if declared is None:
            return None
        data, vocabulary = declared
        config = self._config(point, vocabulary, {} if data.task is None else data.task.ends)
        if config is not None and self.evaluations.cannot(data, config):
            return None
        batch = self._batch(values, data)
        if config is None or batch is None:
            return None
        if values.get("learning_rate") == LAW:
            rate = self._rate(point, values, data, config, batch, settings["learning_rate"][1])
            if rate is None:
                return None
            values["learning_rate"] = rate
        try:
            physics = self._physics(point, values, data, config, batch)
            spec = RunSpec(
                physics=physics,
                execution=_execution(resources, values),
                presentation=Presentation(size=point.values()["size"], tags=self.file.tags, notes=self.file.notes),
                evaluation=Evaluation(**validation),
                evaluations=self.evaluations.others,
            )
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                self._complain_at_cause(detail, sources, point)
            return None
        spec, earlier = same_training(spec), None
        if values.get("recurrent_weight_decay") is None and has_slstm(config) and physics.optimizer.weight_decay:
            sparing = spec.physics.optimizer.model_copy(update={"recurrent_weight_decay": 0.0})
            earlier, spec = spec, spec.with_physics(spec.physics.model_copy(update={"optimizer": sparing}))
        scheduling = {name: resources[name][0] for name in _SCHEDULING if resources.get(name, (None,))[0] is not None}
        return SweepRun(spec, point.values(), earlier=earlier, **scheduling)

    def _settings_levels(self, point: Point) -> Iterator[dict[str, Choice]]:
        yield {name: choice for name, choice in point.choices.items() if name in Settings.model_fields}
        for index, rule in enumerate(self.file.rules):
            if matches(rule.when, point.values()):
                yield _stated(rule.set, ("rules", index, "set"))
        yield _stated(self.file.train, ("train",)) | _stated(self.file.data, ("data",))

    def _resource_levels(self, values: Mapping[str, Any]) -> Iterator[dict[str, Choice]]:
        for index, rule in enumerate(self.file.resources):
            if matches(rule.when, values):
                yield _stated(rule.set, ("resources", index, "set"))

    def _choose(self, names: Iterable[str], levels: Iterable[dict[str, Choice]]) -> dict[str, Choice]:
        """For each name the first level that states it; alternatives exclude each other."""
        chosen: dict[str, Choice] = {}
        for level in levels:
            taken = set(chosen)
            for pair in _ALTERNATIVES:
                if all(name in level for name in pair):
                    self.complain(level[pair[1]][1], f"give {' or '.join(f'`{name}`' for name in pair)}, not both")
                if chosen.keys() & set(pair):
                    taken |= set(pair)
            if "corpus" in taken:
                taken |= set(CORPUS)
            chosen |= {name: choice for name, choice in level.items() if name in names and name not in taken}
        return chosen

    def _task(self, point: Point) -> str:
        task: str = point.values().get("task") or self.file.task
        return task

    def _data(self, point: Point, settings: Mapping[str, Choice], values: Mapping[str, Any]) -> tuple[Data, int] | None:
        task = self._task(point)
        generated = task != "language-modeling"
        own = {"paths", *Data.model_fields}
        if generated:
            own = {*fields_of(task), *(["context_length"] if "pairs" in fields_of(task) else [])}
            own |= {"paths", "revision"} if task in FROM_FILES else set()
        foreign = [name for name in DataSettings.model_fields if values.get(name) is not None and name not in own]
        for name in foreign:
            known = f"it takes {', '.join(sorted(own))}" if generated else "it reads a corpus"
            self.complain(settings[name][1], f"`{name}` says nothing of the task {task}; {known}")
        if foreign:
            return None
        return self._generated(task, point, settings, values) if generated else self._corpus(settings, values)

    def _generated(
        self, task: str, point: Point, settings: Mapping[str, Choice], values: Mapping[str, Any]
    ) -> tuple[Data, int] | None:
        context_length = values.get("context_length")
        if "pairs" in fields_of(task) and context_length is None:
            self.complain(("data",), f"`data.context_length` is missing: {task} has no length of its own")
            return None
        stated = {name: value for name, value in stated_fields(settings_of(task), values).items() if value is not None}
        try:
            return declare_task(task, stated, context_length, values.get("paths") or (), values.get("revision"))
        except (ValueError, OSError) as error:
            details = error.errors(include_url=False) if isinstance(error, ValidationError) else [{"msg": str(error)}]
            for detail in details:
                message = str(detail["msg"]).removeprefix("Value error, ")
                causes = [name for name in (*fields_of(task), "context_length") if name in settings]
                cause = next((settings[name][1] for name in causes if f"{name} " in message), None)
                if task in FROM_FILES and "paths" in settings:
                    cause = settings["paths"][1]
                where = cause or (point.choices["task"][1] if "task" in point.choices else ("task",))
                self.complain(where, message)
            return None

    def _corpus(self, settings: Mapping[str, Choice], values: Mapping[str, Any]) -> tuple[Data, int] | None:
        for name in ("corpus", "context_length"):
            if values.get(name) is None:
                self.complain(("data",), f"`data.{name}` is missing")
                return None
        paths = tuple(values.get("paths") or ())
        mixture = values.get("mixture") or ()
        if mixture and any(values.get(name) for name in ("text_key", "id_type", "revision")):
            told = "a mixture says `text_key` of each of its sources, and takes no `revision` and no `id_type`"
            self.complain(settings["mixture"][1], told)
            return None
        try:
            paths = tuple(located(path) if path else path for path in paths)
            return declared(
                values["corpus"],
                values.get("tokenizer") or _default("tokenizer"),
                values["context_length"],
                paths,
                values.get("revision"),
                values.get("documents") or _default("documents"),
                values.get("text_key") or _default("text_key"),
                values.get("end_of_text"),
                values.get("id_type"),
                tuple(tuple(sorted(source.model_dump(exclude_none=True).items())) for source in mixture),
            )
        except (ValueError, OSError) as error:
            about = "paths" if paths else "corpus"
            if "tokenizer" in str(error) and not isinstance(error, CorpusError):
                about = "tokenizer"
            where = settings.get(about, settings["corpus"])[1]
            file, _ = self.problems.document.place(where)
            shipped = paths and files.Path(file).resolve().is_relative_to(_SHIPPED)
            hint = f"; the first lines of {file} say how to get the text" if shipped else ""
            self.complain(where, f"{error}{hint}")
            return None

    def _config(self, point: Point, vocabulary: int, ends: Mapping[str, Any]) -> ModelConfig | None:
        model, size = point.values()["model"], point.values()["size"]
        own = self.file.sizes.get(size)
        where: Path = ("sizes", size) if own is not None else point.choices["size"][1]
        dimensions: Any = size if own is None else own
        if own and all(isinstance(value, dict) for value in own.values()):  # by family
            name = next((name for name in (model, parse_family(model)[0]) if name in own), None)
            if name is None:
                self.complain(where, f"size `{size}` says nothing of `{model}`")
                return None
            where, dimensions = (*where, name), own[name]
        try:
            return config_for(model, dimensions, vocabulary, **ends)
        except (TypeError, ValueError) as error:
            self.complain(where, f"size `{size}` of `{model}`: {error}")
            return None

    def _batch(self, values: Mapping[str, Any], data: Data) -> int | None:
        if values.get("batch_tokens"):
            return int(values["batch_tokens"])
        if values.get("batch_sequences"):
            return int(values["batch_sequences"]) * data.context_length
        self.complain(("train",), "`train.batch_sequences` is missing")
        return None

    def _rate(
        self, point: Point, values: Mapping[str, Any], data: Data, config: ModelConfig, batch: int, where: Path
    ) -> float | None:
        """The rate by the law that a point names, or None after noting why there is none."""
        tokens = tokens_of(point.values(), config, data.context_length, batch) // batch * batch
        try:
            if values.get("law") is None:
                raise ValueError("`learning_rate: law` needs `law`, the sweep whose fitted law it takes")
            if self.rate_by_law is None:
                raise ValueError("a rate by law is known where the sweep is planned, with its workspace")
            return self.rate_by_law(values["law"], family_label(config), accounting.parameters(config).total, tokens)
        except ValueError as error:
            self.complain(where, str(error))
            return None

    def _physics(self, point: Point, values: Mapping[str, Any], data: Data, config: ModelConfig, batch: int) -> Physics:
        """ValidationError where the values do not make a run."""
        stated = point.values()
        tokens = tokens_of(stated, config, data.context_length, batch)
        decay = values.get("decay_steps")
        if values.get("decay_fraction"):
            decay = max(1, round(values["decay_fraction"] * (tokens // batch)))
        built = {
            "task": self._task(point),
            "model": config,
            "data": data,
            "tokens": tokens,
            "batch_tokens": batch,
            "optimizer": Optimizer.model_validate(stated_fields(Optimizer, values)),
            "schedule": Schedule.model_validate(stated_fields(Schedule, values) | {"decay_steps": decay}),
            "seed": stated["seed"],
        }
        return Physics.model_validate(stated_fields(Physics, values) | built)

    def _complain_at_cause(self, detail: Any, sources: Mapping[str, Path], point: Point) -> None:
        """Note a problem of a specification at the key that most likely causes it."""
        message = str(detail["msg"]).removeprefix("Value error, ")
        if message.startswith("a run of"):
            values = point.values()
            budget = next(f"{name}: {values[name]}" for name in BUDGETS if name in values)
            message += f" ({values['model']}, size {values['size']}, {budget})"
        key = next((part for part in reversed(detail["loc"]) if isinstance(part, str)), None)
        if detail["type"] == "missing" and key in Settings.model_fields:
            self.complain(("train",), f"`train.{key}` is missing")
            return
        if key not in sources:
            suspects = {
                "mup": ("mup_base_width", "mup_base_heads", "parametrization"),
                "less than one global batch": BUDGETS,
                "test length": ("shortest", "longest", "length_step"),
                "runs_per_device": ("runs_per_device",),
                "ranks": ("devices", "gpus", "nodes"),
                "micro-batch": ("micro_batch_sequences",),
                "batch": ("batch_sequences", "batch_tokens"),
                "decay": ("decay_steps", "decay_fraction"),
                "warm-up": ("warmup_steps",),
            }
            names = [name for word, names in suspects.items() if word in message for name in names if name in sources]
            key = names[0] if names else None
        self.complain(sources.get(key or "", point.origin), message)


def _stated(section: Any, path: Path) -> dict[str, Choice]:
    return {name: (getattr(section, name), (*path, name)) for name in section.model_fields_set}


def _default(name: str) -> Any:
    return Data.model_fields[name].default


def _execution(resources: Mapping[str, Choice], values: Mapping[str, Any]) -> Execution:
    stated = stated_fields(Execution, {name: value for name, (value, _) in resources.items()})
    if "gpus" in resources:
        stated |= {"devices": resources["gpus"][0], "device": "cuda"}
    tokenizer = values.get("tokenizer") or ""
    tokenizer_path = tokenizer if tokenizer.endswith(".json") else None
    return Execution(**stated, data_paths=tuple(values.get("paths") or ()), tokenizer_path=tokenizer_path)
