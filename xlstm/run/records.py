"""The files that a run leaves, as models: its state, how it is carried out, how it ended and what it measured.

Where they lie is `xlstm.run.directory`. Nothing here is unpickled. Imports without torch.
"""

import re
import socket
import time
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from xlstm.accounting import Parameters as Parameters
from xlstm.run.json_files import write_json as write_json
from xlstm.run.processes import process_start
from xlstm.run.spec import Execution, RunSpec

LEASE_EXPIRY_SECONDS = 120.0
"""A lease of another host without a heartbeat for this long may be taken."""


class State(StrEnum):
    """Where a run stands. The verdict comes from the run's files, never from an exit code."""

    PLANNED = "PLANNED"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PREEMPTED = "PREEMPTED"
    FAILED = "FAILED"
    DIVERGED = "DIVERGED"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    PRUNED = "PRUNED"
    """Ended by the controller, as another run of its search is better."""

    @property
    def ended(self) -> bool:
        """Whether it lasts until somebody submits the run again."""
        return self in (State.COMPLETED, State.FAILED, State.DIVERGED, State.CANCELLED, State.PRUNED)

    @property
    def open(self) -> bool:
        """Whether the run was submitted and has not ended: it waits, trains, or is to be continued."""
        return self in (State.QUEUED, State.RUNNING, State.PREEMPTED)

    @property
    def final(self) -> bool:
        """Whether it ended without a result and no further attempt of the same submission is made, as after FAILED."""
        return self in (State.DIVERGED, State.CANCELLED, State.PRUNED)

    @property
    def unsuccessful(self) -> bool:
        """Whether the run ended without a result though nobody asked it to end."""
        return self in (State.FAILED, State.DIVERGED)


class Metric:
    """Names of metrics, the same in `metrics.jsonl` and in MLflow."""

    LOSS = "train/loss"
    LEARNING_RATE = "train/learning_rate"
    GRADIENT_NORM = "train/gradient_norm"
    VALIDATION_LOSS = "validation/loss"
    VALIDATION_PERPLEXITY = "validation/perplexity"
    VALIDATION_BITS_PER_BYTE = "validation/bits_per_byte"
    TOKENS_PER_SECOND = "throughput/tokens_per_second"
    MFU = "throughput/mfu"
    TOKENS = "progress/tokens"
    FLOPS = "progress/flops"
    PEAK_MEMORY = "memory/peak_gib"


class Record(BaseModel):
    """A JSON file that we write, or a part of one."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Holder(Record):
    """Who may write to a run: one attempt of one launcher."""

    host: str
    pid: int
    process_start: float
    token: str
    heartbeat: float

    @property
    def is_alive(self) -> bool:
        """Whether it may still write: its process lives on this machine, or it was seen of late on another."""
        if self.host == socket.gethostname():
            return process_start(self.pid) == self.process_start
        return time.time() - self.heartbeat < LEASE_EXPIRY_SECONDS

    @property
    def described(self) -> str:
        """Who it is, when it was last seen, and until when it holds."""

        def clock(moment: float) -> str:
            return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))

        until = f"{clock(self.heartbeat + LEASE_EXPIRY_SECONDS)}, unless it is seen again"
        if self.host == socket.gethostname():
            until = "that process ends"
        return f"process {self.pid} on {self.host}, last seen {clock(self.heartbeat)}, until {until}"


class Status(Record):
    """`status.json`: the state, why, and who holds the lease."""

    state: State = State.PLANNED
    reason: str = ""
    attempt: int = 0
    updated: float = 0.0
    lease: Holder | None = None

    @property
    def is_held(self) -> bool:
        """Whether a living launcher holds the run."""
        return self.lease is not None and self.lease.is_alive

    def is_held_by(self, token: str) -> bool:
        """Whether the lease is the one with that token, alive or not."""
        return self.lease is not None and self.lease.token == token


class Verdict(Record):
    """`attempts/<n>/exit.json`: how an attempt ended."""

    state: State
    reason: str = ""
    step: int | None = None
    rank: int | None = None
    traceback: str | None = None
    time: float = 0.0
    seconds: float | None = None
    """How long the attempt lasted since its launch; None in verdicts of versions that did not say."""


class Fork(Record):
    """A checkpoint of another run from which a run starts: their shared stable phase was trained once."""

    run_id: str
    step: int


class Launch(Record):
    """`attempts/<n>/launch.json`: how an attempt is carried out, every default resolved."""

    run_id: str
    attempt: int
    token: str
    """The token of the lease under which this attempt writes."""
    executor: str
    execution: Execution
    """How it is carried out, device and threads filled in; what the sweep left open is as in earlier attempts."""
    host: str
    rendezvous: str
    """host:port at which the nodes of the run meet."""
    started: float
    monotonic: float | None = None
    """The same moment on the clock of that host which nobody sets; None in launches of versions that did not say."""
    fork: Fork | None = None
    """Where to start when the run has no checkpoint of its own."""
    checkpoint_at: tuple[int, ...] = ()
    """Steps whose checkpoints are never pruned, because other runs fork from them."""

    def elapsed(self) -> float:
        """Seconds since the launch, by the clock that nobody sets; on other hosts than the launcher's by the wall's."""
        if self.monotonic is not None and self.host == socket.gethostname():
            return max(0.0, time.monotonic() - self.monotonic)
        return max(0.0, time.time() - self.started)


class PlannedParameters(BaseModel):
    """Parameters of a planned run, as far as readers of plans need them."""

    total: int


class PlannedFlops(BaseModel):
    """Training FLOPs of a planned run, as far as readers of plans need them."""

    exact: float


class PlannedRow(BaseModel):
    """A run in `plan.json`, as far as readers of plans need it; what else it holds is for people."""

    run_id: str
    model: str
    size: str
    seed: int
    tokens: int
    steps: Annotated[int, Field(gt=0)]
    batch_tokens: int
    parameters: PlannedParameters
    flops: PlannedFlops
    device_hours: float


class SweepPlan(BaseModel):
    """`plan.json` of a sweep, as far as readers of plans need it."""

    runs: list[PlannedRow]


class Answers(Record):
    """How well the tests of a generated task were answered: from 0 to 1, or how far off where answers are numbers."""

    accuracy: float | None = None
    """Share of the tokens of an answer that are right, the mean over sequences; null where answers are numbers."""
    sequence_accuracy: float | None = None
    """Share of the sequences whose whole answer is right; null likewise."""
    scaled_accuracy: float | None = None
    """(accuracy - chance) / (1 - chance); null by length."""
    mean_squared_error: float | None = None
    """Where answers are numbers: the mean over positions, and over sequences."""
    by_length: dict[int, "Answers"] = {}
    by_position: dict[int, float] = {}
    """Mean squared error at each position of the tests, counted from 0; of answers that are numbers alone."""

    def metrics(self, prefix: str) -> dict[str, float | None]:
        """Every measure by its name, those by length and by position behind them."""
        measures = ("accuracy", "sequence_accuracy", "scaled_accuracy", "mean_squared_error")
        named = {f"{prefix}{name}": getattr(self, name) for name in measures}
        for length, answers in self.by_length.items():
            named |= answers.metrics(f"{prefix}by_length/{length}/")
        return named | {f"{prefix}by_position/{p}/mean_squared_error": v for p, v in self.by_position.items()}


class Validation(Record):
    """Quality on the validation split: nats per token, its exponential, and bits per byte of text."""

    loss: float
    perplexity: float
    bits_per_byte: float | None = None
    tokens: int
    evaluation: str
    by_source: dict[str, float] = {}
    """Loss by source of the corpus, where it states more than one."""
    sequences: int | None = None
    """Sequences that were read, of `of_sequences` in the whole split; null in records of earlier versions."""
    of_sequences: int | None = None
    answers: Answers | None = None
    """Null where a corpus was learnt."""

    def metrics(self) -> dict[str, float]:
        """The validation as a part of a row of metrics."""
        named = {
            Metric.VALIDATION_LOSS: self.loss,
            Metric.VALIDATION_PERPLEXITY: self.perplexity,
            Metric.VALIDATION_BITS_PER_BYTE: self.bits_per_byte,
        }
        if self.answers is not None:
            named |= self.answers.metrics("validation/")
        return {name: value for name, value in named.items() if value is not None}


_BY_ROW = ("loss", "perplexity", "bits_per_byte", "seconds_to_first_token", "seconds_per_token", "state_mib")
"""What of the rows of a table is a metric."""


class Measured(Record):
    """`evaluations/<name>-<fingerprint>.json` of every kind but validation: what was measured on the trained run."""

    name: str
    kind: str
    evaluation: str
    """The fingerprint."""
    run_id: str
    settings: dict[str, Any]
    """The evaluation as it was asked for, without where its text lies."""
    tokens: int
    """Tokens that were predicted."""
    measures: dict[str, float]
    tables: dict[str, list[dict[str, str | bool | int | float | None]]]
    """The same by source, by context and so on: each table under the name of its first column."""
    notes: list[str] = []
    """What could not be measured, and why."""

    def metrics(self) -> dict[str, float]:
        """All measures and those of the first table, by their names in `metrics.jsonl` and MLflow."""
        found = {f"evaluation/{self.name}/{name}": value for name, value in self.measures.items()}
        for axis, rows in list(self.tables.items())[:1]:
            for row in rows:
                numbers = {name: float(value) for name in _BY_ROW if isinstance(value := row.get(name), int | float)}
                place = f"evaluation/{self.name}/by_{axis}/{_plain(row[axis])}"
                found |= {f"{place}/{name}": value for name, value in numbers.items()}
        return found


def is_measured(content: dict[str, Any] | None) -> bool:
    """Whether the file of an evaluation is a `Measured`, and no `Validation`, which has no kind."""
    return content is not None and "kind" in content


def _plain(value: object) -> str:
    """A value within the name of a metric, with the characters that MLflow allows there."""
    plain = re.sub(r"[^A-Za-z0-9_. -]", "_", str(value))
    return plain if plain.strip(". ") else "none"


class Result(Record):
    """`result.json`: what the analysis reads of a completed run."""

    run_id: str
    family: str
    size: str
    seed: int
    tokens: int
    steps: int
    parameters: Parameters
    flops: dict[str, float]
    """Training FLOPs of the whole run by convention: `exact`, `6nd`."""
    validation: Validation
    wall_seconds: float
    device_hours: float
    tokens_per_second: float | None = None
    """Throughput of all ranks in training, the median over rows of metrics: start, validation and saving left out."""
    device_name: str | None = None
    """What the driver calls the GPU; null on CPU."""
    attempts: int
    trunk_id: str | None = None
    quality: list[str] = []
    """Codes of what an analysis may want to exclude; empty for a clean run."""
    data_fingerprint: str
    tokenizer: str
    schedule: str
    context_length: int | None = None
    """Null, as the precision, in results of earlier versions: the specification beside it says."""
    precision: str | None = None
    computed_on: str | None = None
    """The device and the kernels of the last attempt, which round alike where these agree; null in earlier results."""

    def answers(self, spec: RunSpec) -> bool:
        """Whether it was measured as the specification asks."""
        return self.validation.evaluation == spec.evaluation_fingerprint
