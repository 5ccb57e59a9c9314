"""What a verb about laws reads, as one value: every part of it is looked up once, when it is first asked for.

A source is a submitted sweep, a table or an MLflow experiment. Its fits are saved beside it and serve again while the
rows, the way of fitting and the question are the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from analysis import fitting, forms, runs, selection
from analysis.fit import Fit
from analysis.forms import ADDITIVE, Form
from analysis.objectives import HUBER, Objective
from analysis.quality import Rules
from analysis.runs import Kind
from xlstm.run.directory import Workspace
from xlstm.run.json_files import DamagedFileError, read_json
from xlstm.run.records import write_json


@dataclass(frozen=True)
class Question:
    """What is asked of a source: which rows are fitted, to which form, by which objective."""

    rules: Rules = field(default_factory=Rules)
    mixed: bool = False
    """Whether runs of different evaluations, tokenizers or schedules are fitted together."""
    form: Form = ADDITIVE
    objective: Objective = HUBER

    def to_json(self) -> dict[str, Any]:
        """Plain values; a form or an objective is named where it is not the default."""
        document = self.rules.to_json() | {"mixed": self.mixed}
        if self.form is not ADDITIVE:
            document["form"] = self.form.name
        if self.objective != HUBER:
            document["objective"] = self.objective.name
        return document

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Question":
        """From what `to_json` gave. RefusalError for a form that is no longer known."""
        form = forms.find(stored.get("form", ADDITIVE.name))
        return cls(Rules.from_json(stored), stored["mixed"], form, Objective.of(stored.get("objective", HUBER.name)))


@dataclass(frozen=True)
class Source:
    """A submitted sweep's name, `mlflow:EXPERIMENT`, or the path of a CSV or Parquet file, with what is asked of it.

    Reading it raises RefusalError where it is not there, lacks columns, or its rows cannot answer.
    """

    name: str
    workspace: Workspace
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our names to the source's own."""
    asked: Question | None = None
    """None asks what was asked last, so that what is predicted and drawn is what was fitted."""

    @cached_property
    def kind(self) -> Kind:
        """What the name stands for."""
        return Kind.of(self.name)

    @cached_property
    def folder(self) -> Path:
        """Where fits and figures are saved: with the sweep, or among the workspace's fits."""
        if self.kind is Kind.SWEEP:
            return self.workspace.sweep(self.name).fit
        stem = Path(self.name).stem if self.kind is Kind.TABLE else self.name.removeprefix("mlflow:")
        return self.workspace.fits / "".join(c if c.isalnum() or c in "._-" else "-" for c in stem)

    @cached_property
    def plan(self) -> dict[str, Any] | None:
        """The plan of a submitted sweep; None for anything else."""
        submitted = self.kind is Kind.SWEEP and self.workspace.sweep(self.name).plan_file.exists()
        return self.workspace.sweep(self.name).plan() if submitted else None

    @cached_property
    def question(self) -> Question:
        """What is asked now, or was asked last."""
        return self.asked or Question.from_json(self._asked_before)

    @property
    def frame(self) -> pl.DataFrame:
        """One row per run; `excluded` is null, or why the row is not fitted."""
        return self._loaded[0]

    @property
    def notes(self) -> list[str]:
        """Where the best value of a searched axis (`best_of` of the sweep) lies at the edge of those tried."""
        return self._loaded[1]

    @cached_property
    def fits(self) -> list[Fit]:
        """One fit per family: those saved while they answer the question, else new ones, which are saved."""
        form, objective, mixed = self.question.form, self.question.objective, self.question.mixed
        if self._is_asked_again:
            found = fitting.saved(self.folder, self.frame, form=form, objective=objective, allow_mixed=mixed)
            if found:
                return found
        fits = fitting.fit(self.frame, form=form, objective=objective, allow_mixed=mixed)
        if self.asked is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self._question_file, self.asked.to_json())
        for fitted in fits:
            fitted.save(self.folder / "".join(c if c.isalnum() else "-" for c in fitted.family).strip("-"))
        return fits

    def curves(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Every validation during training of the usable rows: columns run_id, tokens, loss."""
        return runs.load_curves(self.name, rows, workspace=self.workspace)

    @property
    def _question_file(self) -> Path:
        return self.folder / "rules.json"

    @cached_property
    def _asked_before(self) -> dict[str, Any]:
        remedy = f"fit again: scaling fit {self.name}"
        stored = read_json(self._question_file, remedy)
        try:
            return Question.from_json(stored).to_json() if stored else Question().to_json()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedFileError(self._question_file, f"is no question ({error!r})", remedy) from None

    @property
    def _is_asked_again(self) -> bool:
        try:
            return self.question.to_json() == self._asked_before
        except DamagedFileError:
            if self.asked is None:
                raise
            return False  # it is written anew

    @cached_property
    def _loaded(self) -> tuple[pl.DataFrame, list[str]]:
        frame = runs.load(self.name, columns=self.columns, workspace=self.workspace, rules=self.question.rules)
        if self.plan is None or not self.plan.get("best_of"):
            return frame, []
        usable = frame.filter(pl.col("excluded").is_null())
        losses = dict(zip(usable["run_id"], usable["loss"], strict=True))
        chosen = selection.best_of(self.plan["best_of"], self.plan["runs"], losses)
        reasons = pl.col("run_id").replace_strict(chosen.excluded, default=None, return_dtype=pl.String)
        return frame.with_columns(excluded=pl.coalesce("excluded", reasons)), chosen.edges
