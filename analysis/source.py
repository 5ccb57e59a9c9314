"""What a verb about laws reads, as one value: every part of it is looked up once, when it is first asked for.

A source is a submitted sweep, a table or an MLflow experiment, or several of them. Its fits are saved beside it and
serve again while the rows, the way of fitting and the question are the same.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from analysis.data import runs, several
from analysis.data.columns import NUMBERS, Reading
from analysis.data.quality import Rules
from analysis.data.runs import Kind
from analysis.data.selection import Rows
from analysis.decisions import agreement
from analysis.findings import RefusalError
from analysis.fitting import choice, doubts, families
from analysis.fitting.fit import JUDGEMENT, Fit
from analysis.laws import forms
from analysis.laws.forms import Form
from analysis.laws.objectives import HUBER, Objective
from xlstm.run.directory import Workspace
from xlstm.run.json_files import DamagedFileError, read_json
from xlstm.run.records import write_json

_QUESTION = "rules.json"
"""The file beside saved fits that says what was asked last, and how columns were read."""


@dataclass(frozen=True)
class Question:
    """What is asked of a source: which rows are fitted, to which form, by which objective."""

    rules: Rules = field(default_factory=Rules)
    mixed: bool = False
    """Whether runs of different evaluations, tokenizers or schedules are fitted together."""
    form: Form | None = None
    """None is the form that the rows speak for."""
    objective: Objective = HUBER
    best_of: tuple[str, ...] = ()
    """Axes of which the best value stands for the others; left out, what the sweep's plan says."""
    pooled: bool = False
    """Whether rows of one family in several sources are fitted as one, and not side by side."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; a form or an objective is named where it is not the default."""
        document = self.rules.to_json() | {"mixed": self.mixed}
        if self.form is not None:
            document["form"] = self.form.name
        if self.objective != HUBER:
            document["objective"] = self.objective.name
        if self.best_of:
            document["best_of"] = list(self.best_of)
        if self.pooled:
            document["pooled"] = True
        return document

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Question":
        """From what `to_json` gave. RefusalError for a form that is no longer known."""
        form = forms.find(stored["form"]) if "form" in stored else None
        objective = Objective.of(stored.get("objective", HUBER.name))
        best_of, pooled = tuple(stored.get("best_of", ())), stored.get("pooled", False)
        return cls(Rules.from_json(stored), stored["mixed"], form, objective, best_of, pooled)


@dataclass(frozen=True)
class Source:
    """A submitted sweep's name, `mlflow:EXPERIMENT`, or the path of a table, with what is asked of it.

    Reading it raises RefusalError where it is not there, lacks columns, or its rows cannot answer.
    """

    name: str
    workspace: Workspace
    reading: Reading | None = None
    """How its columns are read; None reads them as for the last question."""
    asked: Question | None = None
    """None asks what was asked last, so that what is predicted and drawn is what was fitted."""
    others: tuple[str, ...] = ()
    """Further sources, whose rows stand beside those of the first."""

    @property
    def names(self) -> tuple[str, ...]:
        """All sources, as they are typed."""
        return (self.name, *self.others)

    @property
    def title(self) -> str:
        """What it is called on a page."""
        return " and ".join(several.titles(self.names))

    @cached_property
    def kind(self) -> Kind:
        """What the name stands for."""
        return Kind.SEVERAL if self.others else Kind.of(self.name)

    @cached_property
    def folder(self) -> Path:
        """Where fits and figures are saved: with the sweep, or in a folder of the source's own among the fits.

        What an earlier revision saved of a table or an experiment, by its name alone, is found while its rows are
        among those of this source.
        """
        if self.kind is Kind.SWEEP:
            return self.workspace.sweep(self.name).fit
        if self.kind is Kind.SEVERAL:
            each = [str(Path(one).resolve()) if Kind.of(one) is Kind.TABLE else one for one in self.names]
            stem = "-".join(_safe(Path(one).stem) for one in several.titles(self.names))
            return self.workspace.fits / f"{stem[:60]}-{_digest(chr(10).join([self._store, *each]))}"
        where = str(Path(self.name).resolve()) if self.kind is Kind.TABLE else f"{self._store}\n{self.name}"
        stem = Path(self.name).name.partition(".")[0] if self.kind is Kind.TABLE else self.name.removeprefix("mlflow:")
        own = self.workspace.fits / f"{_safe(stem)[:40]}-{_digest(where)}"
        earlier = self.workspace.fits / _safe(Path(self.name).stem if self.kind is Kind.TABLE else stem)
        return earlier if not own.exists() and self._saved_in(earlier) else own

    @cached_property
    def plan(self) -> dict[str, Any] | None:
        """The plan of a submitted sweep; None for anything else."""
        return self.workspace.sweep(self.name).known_plan() if self.kind is Kind.SWEEP else None

    @cached_property
    def question(self) -> Question:
        """What is asked now, or was asked last."""
        return self.asked or Question.from_json(self._asked_before)

    @cached_property
    def read_as(self) -> Reading:
        """How the columns are read now, or, where none are named, were read for the last question."""
        if self.reading is not None and self.reading.columns:
            return self.reading
        before = self._asked_before
        comma = before.get("decimal_comma", False) or (self.reading is not None and self.reading.decimal_comma)
        return Reading(before.get("columns", {}), comma)

    @property
    def remembered(self) -> str:
        """What is read as the last question had it, though a new one says nothing of it; empty where nothing is."""
        if self.asked is None or self.reading is None or self.read_as == self.reading:
            return ""
        pairs = ",".join(f"{ours}={theirs}" for ours, theirs in self.read_as.columns.items())
        comma = ", decimal commas" if self.read_as.decimal_comma and not self.reading.decimal_comma else ""
        return f"columns are read as the last fit read them: {pairs}{comma}; --columns says otherwise"

    @property
    def frame(self) -> pl.DataFrame:
        """One row per run; `excluded` is null, or why the row is not fitted."""
        return self._loaded.frame

    @property
    def notes(self) -> list[str]:
        """Where the best value of a searched axis lies at the edge of those tried."""
        return self._loaded.notes

    @cached_property
    def fits(self) -> list[Fit]:
        """One fit per family: those saved while they answer the question, else new ones, which are saved."""
        form, objective, mixed = self.question.form, self.question.objective, self.question.mixed
        if self._is_asked_again:
            found = families.saved(self.folder, self.frame, form=form, objective=objective, allow_mixed=mixed)
            # One saved before forms were weighed, or judged as now, answers what follows a fit, but no new question.
            weighed = form is not None or any(one.others for one in found)
            if found and (self.asked is None or (weighed and all(one.judgement == JUDGEMENT for one in found))):
                return found
        fits = self.fit()
        try:
            self._save(fits)
        except OSError:
            if self.asked is not None:
                raise
            # Who only reads, such as a prediction, needs no folder that can be written: it is fitted anew each time.
        return fits

    def _save(self, fits: list[Fit]) -> None:
        if self.asked is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            asked = self.asked.to_json()
            if self.read_as.columns:
                asked["columns"] = dict(self.read_as.columns)
            if self.read_as.decimal_comma:
                asked["decimal_comma"] = True
            write_json(self._question_file, asked)
        for fitted, name in zip(fits, _folders([fitted.family for fitted in fits]), strict=True):
            fitted.save(self.folder / name)

    def fit(self) -> list[Fit]:
        """One new fit per family, as the question asks; nothing is saved."""
        asked = self.question
        frame = self.frame
        try:
            found = choice.fit(frame, form=asked.form, objective=asked.objective, allow_mixed=asked.mixed)
        except RefusalError as refusal:
            if self.kind is not Kind.TABLE:
                raise
            raise RefusalError(refusal.code, f"{self.name}: {refusal}") from None
        return [agreement.checked(doubts.at_edge(one, self._loaded.at_edge)) for one in found]

    def curves(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Every validation during training of the usable rows: columns run_id, tokens, loss."""
        each = [runs.load_curves(name, rows, workspace=self.workspace) for name in self.names]
        return pl.concat(each).unique(maintain_order=True) if self.others else each[0]

    @property
    def _question_file(self) -> Path:
        return self.folder / _QUESTION

    @cached_property
    def _asked_before(self) -> dict[str, Any]:
        """The last question; empty where its file is damaged, and is written anew as a question is asked now."""
        remedy = f"fit again: scaling fit {' '.join(self.names)}"
        try:
            stored = read_json(self._question_file, remedy)
            return stored if stored and Question.from_json(stored) else Question().to_json()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if self.asked is not None:
                return {}
            if isinstance(error, DamagedFileError):
                raise
            raise DamagedFileError(self._question_file, f"is no question ({error!r})", remedy) from None

    @property
    def _is_asked_again(self) -> bool:
        return bool(self._asked_before) and self.question == Question.from_json(self._asked_before)

    @cached_property
    def _loaded(self) -> Rows:
        question = self.question
        further = () if question.form is None else question.form.inputs
        reading = replace(self.read_as, further=further)
        try:
            each = [
                runs.read(name, reading, workspace=self.workspace, rules=question.rules, best_of=question.best_of)
                for name in self.names
            ]
        except RefusalError as refusal:
            if refusal.code != "missing-column" or not self.remembered:
                raise
            raise RefusalError(refusal.code, f"{refusal}; {self.remembered}, such as --columns loss=loss") from None
        if not self.others:
            return each[0]
        return several.beside(self.names, each, pooled=question.pooled, rules=question.rules)

    @property
    def _store(self) -> str:
        """What tells two tracking stores apart; that of the workspace stays the same where the workspace is moved."""
        uri = self.workspace.tracking_uri
        return "" if str(self.workspace.root) in uri else uri

    def _saved_in(self, folder: Path) -> bool:
        """Whether every row of the fits that are saved in a folder is one of this source's, by its numbers."""
        saved = [pl.read_parquet(path, columns=list(NUMBERS)) for path in folder.glob("*/rows.parquet")]
        if not saved:
            return False
        before = json.loads((folder / _QUESTION).read_text()) if (folder / _QUESTION).exists() else {}
        reading = self.reading or Reading(before.get("columns", {}), before.get("decimal_comma", False))
        frame = runs.read(self.name, reading, workspace=self.workspace).frame
        lacking: int = pl.concat(saved).join(frame, on=list(NUMBERS), how="anti", nulls_equal=True).height
        return lacking == 0


def _safe(name: str) -> str:
    """A name as a part of a path."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _folders(families: list[str]) -> list[str]:
    """A folder for the fit of each family: its name where that makes one, and no other family has the same."""
    names = ["".join(c if c.isalnum() else "-" for c in family).strip("-") for family in families]
    times = Counter(name.casefold() for name in names)
    return [
        name if name and times[name.casefold()] == 1 and len(name.encode()) <= 80 else f"{name[:16]}-{_digest(family)}"
        for name, family in zip(names, families, strict=True)
    ]
