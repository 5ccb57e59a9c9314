"""What a sweep says of evaluations, as runs take it; every problem is noted at its key. Imports without torch."""

from functools import cached_property
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sweeps.language import VALIDATION, SweepFile
from sweeps.located import Path
from sweeps.points import Problems
from xlstm.data.held_out import revision_of
from xlstm.data.locations import located
from xlstm.data.tokenizers import canonical_name
from xlstm.models.configs import ModelConfig
from xlstm.models.naming import family_label
from xlstm.run.data import Data
from xlstm.run.evaluations import AnyEvaluation

_EVALUATION: TypeAdapter[AnyEvaluation] = TypeAdapter(AnyEvaluation)


class Evaluations:
    """The evaluations of a sweep, the same for all of its runs."""

    def __init__(self, file: SweepFile, problems: Problems) -> None:
        self._file, self._problems = file, problems

    @cached_property
    def validation(self) -> tuple[dict[str, Any], Path]:
        """What is said of the validation, under `evaluation` or as an entry of `evaluations`, and where."""
        named = [name for name, entry in self._file.evaluations.items() if entry.kind == VALIDATION]
        stated = self._file.evaluation.model_dump(exclude_none=True)
        if not named:
            return stated, ("evaluation",)
        if stated or len(named) > 1:
            other = "`evaluation`" if stated else f"`evaluations.{named[0]}`"
            told = f"`evaluations.{named[-1]}` is of kind {VALIDATION}, and so is {other}: a run has one validation"
            self._problems.complain(("evaluations", named[-1], "kind"), told)
        entry = self._file.evaluations[named[0]].model_dump(exclude_none=True, exclude={"kind"})
        return entry | {"name": named[0]}, ("evaluations", named[0])

    @cached_property
    def others(self) -> tuple[AnyEvaluation, ...]:
        """All but validation, in the order written; what is wrong with one is noted, and it is left out."""
        made = [self._made(name, entry) for name, entry in self._file.evaluations.items() if entry.kind != VALIDATION]
        return tuple(one for one in made if one is not None)

    def cannot(self, data: Data, config: ModelConfig) -> bool:
        """Note which evaluations cannot be made of a run; returns whether there are any."""
        wrong = {one.name: found for one in self.others if (found := _obstacle(one, data, config)) is not None}
        for name, (key, told) in wrong.items():
            self._problems.complain(("evaluations", name, key), f"`evaluations.{name}`: {told}")
        return bool(wrong)

    def _made(self, name: str, entry: Any) -> AnyEvaluation | None:
        said = entry.model_dump(exclude_none=True) | {"name": name}
        said |= {key: tuple(value) for key, value in said.items() if isinstance(value, list)}
        where: Path = ("evaluations", name)
        try:
            if "paths" in said:
                said["paths"] = tuple(located(path) for path in said["paths"])
            if entry.kind in ("corpus", "domains") and "revision" not in said:
                said["revision"] = revision_of(_EVALUATION.validate_python(said | {"revision": "unknown"}))  # type: ignore[arg-type]
            return _EVALUATION.validate_python(said)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                self._problems.complain((*where, *detail["loc"][1:]), str(detail["msg"]))
        except (ValueError, OSError) as error:
            about = next((key for key in ("paths", "corpus") if key in entry.model_fields_set), "kind")
            self._problems.complain((*where, about), f"`evaluations.{name}`: {error}")
        return None


def _obstacle(evaluation: AnyEvaluation, data: Data, config: ModelConfig) -> tuple[str, str] | None:
    """Why an evaluation cannot be made of a run, and the key that says so; None where it can."""
    wanted = getattr(evaluation, "tokenizer", None)
    limit: int | None = getattr(config, "context_length", None)
    if data.generated is not None:
        return "kind", f"kind {evaluation.kind} is for language-modeling; {data.generated.name} knows no text"
    if wanted is not None and canonical_name(wanted) != data.tokenizer:
        return "tokenizer", f"it is for tokenizer {canonical_name(wanted)}, and runs have {data.tokenizer}"
    if getattr(evaluation, "corpus", None) == "tokens" and wanted is None:
        return "corpus", "token ids mean something for one tokenizer alone: say `tokenizer`"
    if limit is not None and evaluation.context is not None and evaluation.context > limit:
        told = f"{family_label(config)} has {limit} positions and cannot read {evaluation.context} tokens at a time"
        return "context_length", told
    return None
