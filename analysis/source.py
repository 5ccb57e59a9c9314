"""What a verb about laws reads, as one value: every part of it is looked up once, when it is first asked for.

A source is a submitted sweep, a table or an MLflow experiment. Its fits are saved beside it and serve again while the
rows, the way of fitting and the question are the same.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from analysis.data import runs, selection
from analysis.data.quality import Rules
from analysis.data.runs import Kind
from analysis.fitting import choice, doubts, families
from analysis.fitting.fit import Fit
from analysis.laws import forms
from analysis.laws.forms import Form
from analysis.laws.objectives import HUBER, Objective
from xlstm.run.directory import Workspace
from xlstm.run.records import write_json


@dataclass(frozen=True)
class Question:
    """What is asked of a source: which rows are fitted, to which form, by which objective."""

    rules: Rules = field(default_factory=Rules)
    mixed: bool = False
    """Whether runs of different evaluations, tokenizers or schedules are fitted together."""
    form: Form | None = None
    """None is the form that the rows speak for."""
    objective: Objective = HUBER

    def to_json(self) -> dict[str, Any]:
        """Plain values; a form or an objective is named where it is not the default."""
        document = self.rules.to_json() | {"mixed": self.mixed}
        if self.form is not None:
            document["form"] = self.form.name
        if self.objective != HUBER:
            document["objective"] = self.objective.name
        return document

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Question":
        """From what `to_json` gave. RefusalError for a form that is no longer known."""
        form = forms.find(stored["form"]) if "form" in stored else None
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
        if self.question.to_json() == self._asked_before:
            found = families.saved(self.folder, self.frame, form=form, objective=objective, allow_mixed=mixed)
            # One saved before forms were weighed answers what follows a fit, but not a new question of the form.
            if found and (self.asked is None or form is not None or any(one.others for one in found)):
                return found
        fits = self.fit()
        if self.asked is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self._question_file, self.asked.to_json())
        for fitted in fits:
            fitted.save(self.folder / "".join(c if c.isalnum() else "-" for c in fitted.family).strip("-"))
        return fits

    def fit(self) -> list[Fit]:
        """One new fit per family, as the question asks; nothing is saved."""
        asked = self.question
        found = choice.fit(self.frame, form=asked.form, objective=asked.objective, allow_mixed=asked.mixed)
        return [doubts.at_edge(one, self._loaded[2]) for one in found]

    def curves(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Every validation during training of the usable rows: columns run_id, tokens, loss."""
        return runs.load_curves(self.name, rows, workspace=self.workspace)

    @property
    def _question_file(self) -> Path:
        return self.folder / "rules.json"

    @cached_property
    def _asked_before(self) -> dict[str, Any]:
        stored: dict[str, Any] = json.loads(self._question_file.read_text()) if self._question_file.exists() else {}
        return stored or Question().to_json()

    @cached_property
    def _loaded(self) -> tuple[pl.DataFrame, list[str], set[str]]:
        frame = runs.load(self.name, columns=self.columns, workspace=self.workspace, rules=self.question.rules)
        if self.plan is None or not self.plan["best_of"]:
            return frame, [], set()
        usable = frame.filter(pl.col("excluded").is_null())
        losses = dict(zip(usable["run_id"], usable["loss"], strict=True))
        chosen = selection.best_of(self.plan["best_of"], self.plan["runs"], losses)
        reasons = pl.col("run_id").replace_strict(chosen.excluded, default=None, return_dtype=pl.String)
        return frame.with_columns(excluded=pl.coalesce("excluded", reasons)), chosen.edges, chosen.at_edge
