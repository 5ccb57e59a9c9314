"""The folder of one submitted sweep: the names of what lies in it, and its plan. Imports without torch."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xlstm.run.json_files import append_json, invalid, read_json
from xlstm.run.records import SweepPlan

PLAN = "plan.json"


class Decision(StrEnum):
    """What a line of `decisions.jsonl` says, as its `decision`."""

    BOUGHT = "bought"
    """A run of the pool is trained."""
    SEEN = "seen"
    """A run's loss became known, and with it what the law says of the targets."""
    STOPPED = "stopped"
    """Nothing more is bought."""
    WENT_ON = "went on"
    """Somebody takes runs as they are that contradict the law."""


@dataclass(frozen=True)
class SweepDirectory:
    """One submitted sweep: itself, its plan, its fits, and what its submissions leave."""

    path: Path

    @property
    def root(self) -> Path:
        """The workspace it lies in."""
        return self.path.parent.parent

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def sweep_file(self) -> Path:
        """The sweep as it was submitted."""
        return self.path / "sweep.yaml"

    @property
    def plan_file(self) -> Path:
        """The plan as `scaling plan --json` prints it; it is there once the sweep was submitted."""
        return self.path / PLAN

    @property
    def history(self) -> Path:
        """Earlier versions: a folder for each, with the sweep and the plan that another submission replaced."""
        return self.path / "history"

    def keep_version(self) -> Path | None:
        """Copy the sweep and its plan among the earlier versions; returns where, None where nothing was submitted."""
        files = [path for path in (self.sweep_file, self.plan_file) if path.is_file()]
        if not files:
            return None
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(files[0].stat().st_mtime))
        number = len(list(self.history.glob("*"))) + 1 if self.history.is_dir() else 1
        version = self.history / f"{number:04d}-{stamp}"
        version.mkdir(parents=True)
        for path in files:
            shutil.copy2(path, version)
        return version

    @property
    def controller_lock(self) -> Path:
        """The file whose lock the controller holds, and whose text says who that is."""
        return self.path / "controller.lock"

    @property
    def submission_log(self) -> Path:
        """What a submission in the background prints."""
        return self.path / "submit.log"

    @property
    def decisions_file(self) -> Path:
        """What an adaptive sweep decided, a line for each decision, in order."""
        return self.path / "decisions.jsonl"

    def decisions(self) -> list[dict[str, Any]]:
        """Every decision, in order; a line torn by a kill is none: what it was to say was not acted upon."""
        if not self.decisions_file.is_file():
            return []
        rows = []
        for line in self.decisions_file.read_bytes().split(b"\n"):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and "decision" in row:
                rows.append(row)
        return rows

    def decide(self, row: Mapping[str, Any]) -> None:
        """Add a decision; when this returns, it is on the disk, and may be acted upon."""
        append_json(self.decisions_file, row, durably=True)

    @property
    def fit(self) -> Path:
        """Fits and figures of the sweep."""
        return self.path / "fit"

    @property
    def rate_laws(self) -> Path:
        """Laws of the best learning rate, which other sweeps may take theirs from."""
        return self.fit / "best-learning_rate.json"

    @property
    def slurm(self) -> Path:
        """One folder for each array of jobs that was handed to Slurm."""
        return self.path / "slurm"

    @property
    def slurm_lock(self) -> Path:
        """The file whose lock is held while jobs are handed to Slurm."""
        return self.path / "slurm.lock"

    def folders(self) -> list[Path]:
        """Every folder of the sweep, whether it is there or not."""
        return [self.path, self.fit, self.slurm]

    def files(self) -> list[Path]:
        """Every file of the sweep but its fits, batches and earlier versions, whether it is there or not."""
        locks = [self.controller_lock, self.slurm_lock]
        return [self.sweep_file, self.plan_file, self.decisions_file, *locks, self.submission_log]

    def plan(self) -> dict[str, Any]:
        """The plan. FileNotFoundError where the sweep was never submitted, DamagedFileError where it is no plan."""
        remedy = f"submit it again: scaling submit {self.sweep_file}"
        document = read_json(self.plan_file, remedy)
        if document is None:
            raise FileNotFoundError(self.plan_file)
        try:
            SweepPlan.model_validate(document)
        except ValidationError as error:
            raise invalid(self.plan_file, error, remedy) from None
        return document

    def known_plan(self) -> dict[str, Any] | None:
        """The plan; None where the sweep was never submitted. DamagedFileError as `plan`."""
        return self.plan() if self.plan_file.exists() else None
