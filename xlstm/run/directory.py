"""The directories of a workspace: a folder for each sweep and each run. They are the truth; MLflow is a view of them.

`Workspace` finds them, `RunDirectory` reads and writes one run (whose files `xlstm.run.files` names), `Lease` keeps two
launchers from one run. A file is replaced whole (written aside, fsynced, renamed) or, for the metrics, only appended
to. Nothing here is unpickled. Imports without torch.

A damaged file is one error, `DamagedFileError`. What an attempt left and the state can do without it: they are read as
if the file were not there, and `RunDirectory.noticed` holds what was wrong. A specification or a result that cannot be
read is raised.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from xlstm.run import metrics
from xlstm.run.evaluations import AnyEvaluation
from xlstm.run.files import RunFiles
from xlstm.run.json_files import DamagedFileError, append_json, invalid, read_json, read_record, refused
from xlstm.run.locks import (
    AlreadyCompleteError,
    CancelRequestedError,
    LeaseHeldError,
    LeaseLostError,
    locked,
)
from xlstm.run.processes import process_start
from xlstm.run.records import (
    Holder,
    Launch,
    Measured,
    Record,
    Result,
    State,
    Status,
    Verdict,
    is_measured,
    write_json,
)
from xlstm.run.spec import RunSpec
from xlstm.run.sweep_directory import PLAN, SweepDirectory

WORKSPACE_VARIABLE = "SCALING_WORKSPACE"
_ANEW = "submit its sweep again, which writes it anew"
_MEASURED_ANEW = "submit its sweep again: it is measured anew from the last checkpoint"
_DERIVED = "what it held is derived from the attempts; delete it"
_NOT_COUNTED = "its attempt is not counted; delete it"

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Workspace:
    """The folder that holds data, sweeps, runs and the embedded MLflow store."""

    root: Path

    @classmethod
    def default(cls) -> "Workspace":
        """$SCALING_WORKSPACE, or ./workspace."""
        return cls(Path(os.environ.get(WORKSPACE_VARIABLE) or "workspace").absolute())

    @property
    def tracking_uri(self) -> str:
        """$MLFLOW_TRACKING_URI, or the SQLite store of this workspace."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def artifacts(self) -> Path:
        return self.root / "mlartifacts"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def sweeps(self) -> Path:
        return self.root / "sweeps"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def fits(self) -> Path:
        """Fits and figures of what is no sweep of this workspace: tables, and experiments of other stores."""
        return self.root / "fits"

    @property
    def cancel_requests_file(self) -> Path:
        """Grows with every request to end a run, so that one look tells whether there was one."""
        return self.root / "cancel-requests"

    def cancel_requests(self) -> int:
        """How often somebody asked for the end of a run."""
        try:
            return os.stat(self.cancel_requests_file).st_size
        except OSError:
            return 0

    def run(self, run_id: str) -> "RunDirectory":
        return RunDirectory(self.runs / run_id)

    def sweep(self, name: str) -> SweepDirectory:
        return SweepDirectory(self.sweeps / name)

    def submitted(self) -> list[str]:
        """Names of the sweeps that were submitted here, the latest first."""
        plans = sorted(self.sweeps.glob(f"*/{PLAN}"), key=lambda path: -path.lstat().st_mtime)
        return [path.parent.name for path in plans]


@dataclass(frozen=True)
class RunDirectory(RunFiles):
    """One run, read and written: its specification, state, metrics, attempts and result."""

    noticed: dict[Path, DamagedFileError] = field(default_factory=dict, compare=False, repr=False)
    """Damaged files that were met while the run was read, and done without."""

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.path.parent.parent)

    def spec(self) -> RunSpec:
        """The specification. DamagedFileError where it is missing, or none, or that of another run."""
        try:
            return RunSpec.load(self.spec_file)
        except FileNotFoundError:
            raise DamagedFileError(self.spec_file, "is missing", _ANEW) from None
        except OSError as error:
            raise refused(self.spec_file, error, _ANEW) from None
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            said = " ".join(str(error).removeprefix(f"{self.spec_file}: ").split())
            raise DamagedFileError(self.spec_file, f"cannot be read: {said}", _ANEW) from None

    def create(self, spec: RunSpec) -> None:
        """Make the directory and write `spec.json`. ValueError if another run's specification lies there."""
        if self.run_id != spec.run_id:
            raise ValueError(f"{self.path} is not the directory of {spec.run_id}")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise DamagedFileError(self.path, "is no folder, where one belongs", "remove it") from None
        spec.save(self.spec_file)

    def status(self) -> Status:
        """The stored status; where there is none, or it is damaged, what attempts tell: PLANNED before the first."""
        return self._read(self.status_file, Status, _DERIVED) or self._derived_status()

    def set_state(self, state: State, reason: str = "") -> None:
        """Change the state, leaving the lease as it is."""
        with self._locked():
            self._write_status(self.status(), state=state, reason=reason)

    def queue(self, reason: str) -> None:
        """Say that the run waits for its turn, unless a living launcher holds it already."""
        with self._locked():
            status = self.status()
            if not status.is_held:
                self._write_status(status, state=State.QUEUED, reason=reason)

    def request_cancel(self) -> None:
        """Ask whoever carries the run out, or is about to, to end it; submitting it again takes the request back."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.cancel_file.touch()
        with open(self.workspace.cancel_requests_file, "ab") as requests:
            requests.write(b"\n")

    def withdraw_cancel(self) -> None:
        self.cancel_file.unlink(missing_ok=True)

    def cancel_requested(self) -> bool:
        return self.cancel_file.exists()

    def write_result(self, result: Result) -> None:
        """Write `result.json`, which says that the run is complete."""
        write_json(self.result_file, result.model_dump(mode="json"))

    def result(self) -> Result | None:
        """The result, or None where there is none yet. DamagedFileError where it cannot be read."""
        return read_record(self.result_file, Result, _MEASURED_ANEW)

    def known_result(self) -> Result | None:
        """The result; None where there is none yet, and where it cannot be read, which is noticed."""
        return self._read(self.result_file, Result, _MEASURED_ANEW)

    def change_evaluation(self, fingerprint: str, attempt: int) -> None:
        """Say which evaluation the rows from here on are measured by: those of another one before it no longer count.

        Nothing is written where it is the one that is in force.
        """
        events, result = self.events("evaluation"), self.result()
        before = events[-1]["fingerprint"] if events else result.validation.evaluation if result else None
        if before != fingerprint:
            changed = {"event": "evaluation", "attempt": attempt, "fingerprint": fingerprint}
            self.append_metrics(changed | {"before": before})

    def launch(self, attempt: int) -> Launch | None:
        """How attempt `attempt` is carried out, or None where it was never launched."""
        return self._read(self.launch_file(attempt), Launch, _NOT_COUNTED)

    def latest_launch(self) -> Launch | None:
        """How the latest attempt that was launched is carried out, or None where none ever was."""
        numbers = range(self.status().attempt, 0, -1)
        return next((launch for number in numbers if (launch := self.launch(number)) is not None), None)

    def verdict(self, attempt: int) -> Verdict | None:
        """How attempt `attempt` ended, or None where it left no verdict."""
        return self._read(self.verdict_file(attempt), Verdict, _NOT_COUNTED)

    def is_held(self) -> bool:
        """Whether a living launcher holds the run."""
        return self.status().is_held

    def attempt_seconds(self, number: int) -> float:
        """How long an attempt lasted: from its launch to its verdict, or to the last row that a killed one wrote."""
        launch, verdict = self.launch(number), self.verdict(number)
        if launch is None:
            return 0.0
        if verdict is not None and verdict.seconds is not None:
            return verdict.seconds
        times = [row["time"] for row in self.history() if row.get("attempt") == number and "time" in row]
        end = verdict.time if verdict and verdict.time else max(times, default=launch.started)
        return max(0.0, end - launch.started)

    def is_complete(self, spec: RunSpec) -> bool:
        """Whether the run is trained, and measured as the specification asks."""
        return self.is_answered(self.result(), spec)

    def is_answered(self, result: Result | None, spec: RunSpec) -> bool:
        """Whether the result of the run, and the evaluations that were made, are all that the specification asks."""
        return result is not None and result.answers(spec) and not self.unmeasured(spec)

    def unmeasured(self, spec: RunSpec) -> list[AnyEvaluation]:
        """The evaluations of the specification that were not made yet."""
        return [one for one in spec.evaluations if not self.measured_file(one, spec).is_file()]

    def evaluation_metrics(self) -> dict[str, float]:
        """`evaluation/<name>/…`: of evaluations of one name the latest."""
        return {name: value for one in self.measured() for name, value in one.metrics().items()}

    def measured(self) -> list[Measured]:
        """What evaluations beside validation measured, the latest last; a damaged one is noticed."""
        found = []
        for path in sorted(self.evaluations.glob("*.json"), key=lambda path: (path.lstat().st_mtime_ns, path.name)):
            try:
                if is_measured(content := read_json(path, _MEASURED_ANEW)):
                    found.append(Measured.model_validate(content))
            except DamagedFileError as error:
                self.noticed[path] = error
            except ValidationError as error:
                self.noticed[path] = invalid(path, error, _MEASURED_ANEW)
        return found

    def acquire(self, token: str) -> "Lease":
        """Take the lease and begin the next attempt.

        LeaseHeldError while another launcher lives; AlreadyCompleteError where one has left nothing to do;
        CancelRequestedError where somebody asked for the end of the run before it began.
        """
        with self._locked():
            status = self.status()
            if status.lease is not None and status.lease.is_alive:
                raise LeaseHeldError(self.run_id, status.lease)
            if self.cancel_requested():
                raise CancelRequestedError(f"{self.run_id} was cancelled before it began")
            if self.spec_file.exists() and self.is_complete(self.spec()):
                raise AlreadyCompleteError(f"{self.run_id} is complete: another launcher trained it meanwhile")
            holder = Holder(
                host=socket.gethostname(),
                pid=os.getpid(),
                process_start=process_start(os.getpid()) or 0.0,
                token=token,
                heartbeat=time.time(),
            )
            self._write_status(status, attempt=status.attempt + 1, lease=holder)
            self.attempt(status.attempt + 1).mkdir(parents=True, exist_ok=True)
            return Lease(self, token, status.attempt + 1)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row to `metrics.jsonl` in one write. ValueError for NaN and infinities: no measurements."""
        append_json(self.metrics_file, row)

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of the surviving branch, ordered by step.

        A row is `{"step", "time", "attempt", <metric name>: value, …}`. A row `{"event": "resume", "attempt", "step"}`
        says that an attempt continued from `step`: rows of later steps written before it are a dead branch. A row
        `{"event": "evaluation", "attempt", "fingerprint", "before"}` says by which evaluation the rows after it are
        measured: what another one measured before it is dropped. Other events say what happened and measure nothing.
        """
        return metrics.surviving(self.history())

    def events(self, name: str) -> list[dict[str, Any]]:
        """Rows `{"event": name, …}`, in the order in which they happened."""
        return [row for row in self.history() if row.get("event") == name]

    def history(self) -> list[dict[str, Any]]:
        """Every row, also of dead branches, and every event, in the order in which they were written."""
        try:
            rows, damage = metrics.read(self.metrics_file)
        except DamagedFileError as error:
            rows, damage = [], error
        if damage is not None:
            self.noticed[damage.path] = damage
        return rows

    def last_row(self) -> dict[str, Any]:
        """The last row of metrics that a step left; empty where there is none."""
        return metrics.read_last(self.metrics_file)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the kernel's lock on the run for one read-modify-write; a dead process holds nothing.

        DamagedFileError where the run's folder is gone: it is not made again by the way.
        """
        if not self.path.is_dir():
            raise DamagedFileError(self.path, "is gone", "submit its sweep again to train it anew")
        with locked(self.status_lock):
            yield

    def _read(self, path: Path, model: type[R], remedy: str) -> R | None:
        """The record in a file of the run; None where there is none, and where it is damaged, which is noticed."""
        try:
            return read_record(path, model, remedy)
        except DamagedFileError as error:
            self.noticed[path] = error
            return None

    def _derived_status(self) -> Status:
        """The state that result and attempts tell of."""
        if not (numbers := self.attempt_numbers()):
            return Status()
        verdict = self.verdict(numbers[-1])
        if self.result_file.is_file():
            state, reason = State.COMPLETED, ""
        elif verdict is not None:
            state, reason = verdict.state, verdict.reason
        else:
            state, reason = State.PREEMPTED, "its last attempt left no verdict"
        return Status(state=state, reason=reason, attempt=numbers[-1], updated=verdict.time if verdict else 0.0)

    def _write_status(self, status: Status, **changes: Any) -> None:
        changed = status.model_copy(update=changes | {"updated": time.time()})
        write_json(self.status_file, changed.model_dump(mode="json"))


@dataclass(frozen=True)
class Lease:
    """The right to write to a run. Renewed by a heartbeat; checked before each checkpoint is committed."""

    run: RunDirectory
    token: str
    attempt: int

    def is_held(self) -> bool:
        """Whether this lease still stands; a trainer that lost it must stop."""
        return self.run.status().is_held_by(self.token)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run's lock for one commit, so that nobody takes the run meanwhile. LeaseLostError if it is lost."""
        with self.run._locked():
            self._require(self.run.status())
            yield

    def renew(self, state: State | None = None) -> None:
        """Beat, and change the state if given. LeaseLostError when another launcher has taken the run."""
        with self.run._locked():
            status = self.run.status()
            beat = self._require(status).model_copy(update={"heartbeat": time.time()})
            changes: dict[str, Any] = {"lease": beat}
            if state is not None:
                changes |= {"state": state, "reason": ""}
            self.run._write_status(status, **changes)

    def release(self, state: State, reason: str = "") -> None:
        """End the attempt with its state and give the lease back; nothing happens if it was lost."""
        with self.run._locked():
            status = self.run.status()
            if status.is_held_by(self.token):
                self.run._write_status(status, state=state, reason=reason, lease=None)

    def _require(self, status: Status) -> Holder:
        if status.lease is None or status.lease.token != self.token:
            raise LeaseLostError(f"{self.run.run_id}: the lease was taken by another launcher")
        return status.lease
