"""What one run is, in three rings, and its identity.

`Physics` is all that may change the trained weights; only it is hashed into `run_id`. `Execution` is how the run is
carried out (devices, sharding, cadences); changing it changes neither the identity nor, beyond rounding, the result.
`Presentation` is for people. `Evaluation` says what is measured: it is keyed by (run_id, evaluation fingerprint), so a
new one needs no training.

Imports without torch.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from xlstm.accounting import size_label
from xlstm.models.configs import ModelConfig
from xlstm.models.naming import family_label
from xlstm.quantities import compact
from xlstm.run.data import Data as Data
from xlstm.run.data import IdType as IdType
from xlstm.run.data import PositiveInt, Ring
from xlstm.run.evaluations import AnyEvaluation
from xlstm.run.identity import SCHEMA_VERSION, canonical, differences, digest, without_later_defaults
from xlstm.run.json_files import write_text
from xlstm.run.rates.transfer import Transfer, base_model
from xlstm.tasks.settings import TaskName


class Optimizer(Ring):
    """AdamW (Loshchilov & Hutter 2019), or Muon (Jordan et al. 2024) for the matrices of hidden layers beside it.

    Weight decay falls on the parameters each model names for it. Muon's update is scaled to the size of AdamW's
    (arXiv 2502.16982), so that one learning rate is that of both.
    """

    name: Literal["adamw", "muon"] = Field(
        "adamw", description="What moves the weights; `muon` for the matrices of hidden layers, AdamW for the rest."
    )
    learning_rate: float = Field(gt=0, description="Peak learning rate.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of AdamW's mean of gradients per step.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of AdamW's mean of squared gradients per step.")
    epsilon: float = Field(
        1e-5, gt=0, description="Added to the root of AdamW's squared gradients; the default is the xLSTM paper's."
    )
    weight_decay: float = Field(
        0.1, ge=0, description="Share of a weight that one step at a learning rate of 1 would take away."
    )
    gradient_clip: float | None = Field(1.0, gt=0, description="Largest global gradient norm; null for none.")
    recurrent_weight_decay: float | None = Field(
        None,
        ge=0,
        description="Weight decay of the sLSTM's recurrent weights; a sweep that leaves it out means 0, as in the"
        " authors' code.",
    )
    """None is `weight_decay`, as it was before there was a choice."""


class Schedule(Ring):
    """Learning rate against optimizer step. Lengths are steps of the global batch."""

    kind: Literal["cosine", "wsd", "constant"] = Field(
        "cosine", description="How the learning rate goes after the warm-up; `wsd` stays at the peak, then decays."
    )
    warmup_steps: int = Field(
        0, ge=0, description="Steps in which the learning rate rises linearly from 0 to the peak."
    )
    decay_steps: int | None = Field(
        None, gt=0, description="cosine: step that reaches the floor (default: the run's last); wsd: steps of decay."
    )
    final_ratio: float = Field(
        0.1, ge=0, le=1, description="Learning rate at the end of the schedule, as a fraction of the peak."
    )

    @model_validator(mode="after")
    def _wsd_states_its_decay(self) -> Self:
        if self.kind == "wsd" and self.decay_steps is None:
            raise ValueError("schedule.decay_steps is needed for a wsd schedule")
        return self


class Physics(Transfer):
    """Ring 1: everything that may change the trained weights. Only this is hashed."""

    task: TaskName = Field("language-modeling", description="What the run learns.")
    model: Annotated[ModelConfig, Field(discriminator="family")]
    data: Data
    tokens: PositiveInt = Field(description="Token budget; trained are whole steps of `batch_tokens`, rounded down.")
    batch_tokens: PositiveInt = Field(description="Global batch in tokens: sequences times context length.")
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    precision: Literal["float32", "bf16-mixed"] = Field(
        "float32", description="What is computed in; weights and optimizer states are float32 with either."
    )
    seed: int = Field(0, ge=0, description="Seed of the initial weights and of the order of the data.")
    z_loss: float | None = Field(
        None,
        gt=0,
        description="Weight of the penalty on log²(Z) of the logits, such as 1e-4; null for none.",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of what each block adds to its input that training leaves out."
    )

    @model_serializer(mode="wrap")
    def _without_later_fields_at_their_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_later_defaults(self, handler(self))

    @model_validator(mode="after")
    def _has_a_base_to_transfer_from(self) -> Self:
        base_model(self.model, self)
        return self

    @model_validator(mode="after")
    def _data_are_those_of_the_task(self) -> Self:
        learnt = self.data.generated.name if self.data.generated else "language-modeling"
        if self.task != learnt:
            raise ValueError(f"task {self.task} has the data of {learnt}")
        ends = {name: getattr(self.model, name) for name in ("num_inputs", "num_outputs", "regression")}
        asked = dict.fromkeys(ends, 0) if self.data.task is None else self.data.task.ends
        if ends != asked:
            raise ValueError(f"task {self.task} asks of a model {asked}, and this one has {ends}")
        return self

    @model_validator(mode="after")
    def _batch_is_whole_sequences_and_budget_at_least_one_step(self) -> Self:
        if self.batch_tokens % self.data.context_length:
            raise ValueError(
                f"batch_tokens {self.batch_tokens} is not a multiple of the context length {self.data.context_length}"
            )
        if self.tokens < self.batch_tokens:
            raise ValueError(f"tokens {self.tokens} is less than one global batch of {self.batch_tokens}")
        return self

    @model_validator(mode="after")
    def _warmup_and_decay_fit_into_the_run(self) -> Self:
        schedule = self.schedule
        decay = (schedule.decay_steps or 0) if schedule.kind == "wsd" else 0
        if schedule.warmup_steps + decay > self.steps:
            raise ValueError(
                f"a run of {self.steps} steps is shorter than its warm-up of {schedule.warmup_steps}"
                + (f" and decay of {decay}" if decay else "")
            )
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.tokens // self.batch_tokens

    @property
    def batch_sequences(self) -> int:
        """Sequences in one global batch."""
        return self.batch_tokens // self.data.context_length

    @property
    def undecided_steps(self) -> int:
        """Leading steps that do not depend on the token budget: for wsd, those before the decay starts."""
        schedule = self.schedule
        if schedule.kind == "wsd":
            return self.steps - (schedule.decay_steps or 0)
        if schedule.kind == "cosine" and schedule.decay_steps is None:
            return schedule.warmup_steps
        return self.steps


class Execution(Ring):
    """Ring 2: how the run is carried out. Recorded per attempt, never part of the identity."""

    nodes: PositiveInt = Field(1, description="Machines that the run takes.")
    devices: PositiveInt = Field(1, description="Ranks per node: GPUs, or processes on CPU.")
    device: Literal["cpu", "cuda", "auto"] = Field(
        "auto", description="What the ranks compute on; auto: on GPUs where there are any."
    )
    runs_per_device: PositiveInt = Field(1, description="Runs of one rank that share a GPU, a part of its memory each.")
    micro_batch_sequences: PositiveInt | None = Field(
        None, description="Sequences per rank and pass; null: all of the rank's on CPU, as many as fit on GPU."
    )
    sharding: Literal["fsdp", "hsdp", "none"] = Field(
        "fsdp", description="Weights and optimizer states: spread over all ranks, over each node's, or on every rank."
    )
    activation_checkpointing: Literal["none", "selective", "full"] = Field(
        "none", description="Which blocks compute their activations again in the backward pass, to save memory."
    )
    compile: bool = Field(False, description="Whether the blocks are compiled by torch.compile.")
    kernels: Literal["auto", "reference", "torch", "numba", "triton"] = Field(
        "auto", description="Implementation of the operators; auto: the fastest that the device can run."
    )
    threads_per_rank: PositiveInt | None = Field(None, description="CPU threads per rank; null: one.")
    log_every: PositiveInt = Field(10, description="Steps between rows of metrics.")
    validate_every: PositiveInt | None = Field(None, description="Steps between validations; null: at the end only.")
    checkpoint_every: PositiveInt | None = Field(None, description="Steps between checkpoints; null: at the end only.")
    keep_checkpoints: PositiveInt = Field(2, description="Latest checkpoints kept, besides those at fork points.")
    watchdog_seconds: float = Field(600.0, gt=0, description="Seconds without a step after which a run counts as hung.")
    profile_steps: PositiveInt | None = Field(
        None, description="Steps, from an attempt's fourth on, of which the first rank leaves a trace; null: none."
    )
    data_paths: tuple[str, ...] = Field((), description="Files or folders of a corpus that lies in local files.")
    tokenizer_path: str | None = Field(None, description="The tokenizer.json of a tokenizer that lives in a file.")
    slurm: dict[str, str | int | bool | dict[str, str]] = Field(
        default_factory=dict,
        description="What the run asks of Slurm: partition, account, time and more (docs/slurm.md).",
    )

    @property
    def ranks(self) -> int:
        """Processes of the whole run."""
        return self.nodes * self.devices

    @property
    def shards(self) -> int:
        """Ranks that share one copy of the parameters: all, those of a node, or each for itself."""
        return {"fsdp": self.ranks, "hsdp": self.devices, "none": 1}[self.sharding]

    @property
    def devices_taken(self) -> float:
        """Devices that the run has to itself, or its part of one."""
        return self.ranks / self.runs_per_device

    @model_validator(mode="after")
    def _only_single_ranks_share(self) -> Self:
        if self.runs_per_device > 1 and self.ranks > 1:
            raise ValueError(f"runs_per_device is for runs of one rank; this one has {self.ranks}")
        return self


class Presentation(Ring):
    """Ring 3: names and notes for people."""

    name: str = Field("", description="The run's name for people.")
    size: str = Field("", description="Size as the sweep wrote it, such as 125M.")
    tags: dict[str, str] = Field(default_factory=dict, description="Tags of the run in MLflow.")
    notes: str = Field("", description="What the run is for, in words.")


class Evaluation(Ring):
    """What is measured on the trained model."""

    name: str = Field("validation", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the file it leaves.")
    sequences: PositiveInt | None = Field(None, description="Number of validation sequences; null: all of them.")
    windows: Literal["even", "first"] = Field(
        "even", description="Which sequences a shortened validation reads: evenly over the whole split, or the first."
    )
    shortest: PositiveInt | None = Field(None, description="Least length a generated task is tested on; null: its own.")
    longest: PositiveInt | None = Field(None, description="Greatest length it is tested on; null: the task's own.")
    length_step: PositiveInt | None = Field(None, description="From one tested length to the next; null: 1.")

    def fingerprint_on(self, data: Data) -> str:
        """Eight hex digits that name this evaluation of runs on these data: equal fingerprints, comparable losses.

        `first` is what was done before text, tokenizer and context were a part of the fingerprint, and keeps it so.
        """
        own = without_later_defaults(self, self.model_dump(mode="json"))
        if self.windows == "first":
            return digest({name: own[name] for name in ("name", "sequences")})
        return digest({"evaluation": own, "data": without_later_defaults(data, data.model_dump(mode="json"))})


class RunSpec(Ring):
    """One training run, fully resolved: what the planner writes, the trainer reads and the analysis cites."""

    physics: Physics
    execution: Execution = Execution()
    presentation: Presentation = Presentation()
    evaluation: Evaluation = Evaluation()
    evaluations: tuple[AnyEvaluation, ...] = ()
    """What else is measured once the run is trained."""

    @model_validator(mode="after")
    def _batch_divides_over_ranks(self) -> Self:
        sequences, ranks = self.physics.batch_sequences, self.execution.ranks
        micro = self.execution.micro_batch_sequences
        if sequences % ranks:
            raise ValueError(f"a global batch of {sequences} sequences cannot be divided over {ranks} ranks")
        if micro and (sequences // ranks) % micro:
            raise ValueError(f"{sequences // ranks} sequences per rank are not a multiple of the micro-batch {micro}")
        return self

    @model_validator(mode="after")
    def _tests_are_those_of_the_task(self) -> Self:
        if self.physics.data.task is not None:
            self.physics.data.task.check_tests(self.test_lengths, getattr(self.physics.model, "context_length", None))
        elif self.evaluation.shortest or self.evaluation.longest or self.evaluation.length_step:
            raise ValueError("test lengths are for generated tasks; language-modeling reads its validation split")
        return self

    @property
    def test_lengths(self) -> range:
        """The lengths that a generated task is tested on; none for a corpus."""
        task, asked = self.physics.data.task, self.evaluation
        return range(0) if task is None else task.tests(asked.shortest, asked.longest, asked.length_step)

    @cached_property
    def run_id(self) -> str:
        """Readable slug, a generated task before it, and eight hex digits: `xlstm-7-1-125M-15B-s0-3f9a1c2e`."""
        model = self.physics.model
        label = "".join(c if c.isalnum() else "-" for c in family_label(model)).strip("-")
        slug = f"{label}-{size_label(model)}-{compact(self.physics.tokens)}-s{self.physics.seed}"
        if self.physics.data.generated is not None:
            slug = f"{self.physics.task}-{slug}"
        return f"{slug}-{digest(self.canonical_payload())}"

    @cached_property
    def evaluation_fingerprint(self) -> str:
        """What names the evaluation of this run: equal fingerprints, comparable losses."""
        return self.evaluation.fingerprint_on(self.physics.data)

    @property
    def tokenizer_title(self) -> str:
        """The tokenizer for people: its name, and of one that lives in a file also the file's, with its folder's."""
        name, path = self.physics.data.tokenizer, self.execution.tokenizer_path
        return name if path is None else f"{name} ({'/'.join(Path(path).parts[-2:])})"

    def with_physics(self, physics: Physics) -> "RunSpec":
        """The same run but for its physics, and so another one."""
        return RunSpec(
            physics=physics,
            execution=self.execution,
            presentation=self.presentation,
            evaluation=self.evaluation,
            evaluations=self.evaluations,
        )

    def canonical_payload(self) -> dict[str, Any]:
        """What is hashed: ring 1 as plain values, without later fields at their defaults, and the schema version."""
        return {"schema": SCHEMA_VERSION, "physics": self.physics.model_dump(mode="json")}

    def save(self, path: Path) -> None:
        """Write `spec.json`, all rings, the evaluation, and the canonical payload of the hash, where it is another."""
        identity = {"run_id": self.run_id, "canonical": canonical(self.canonical_payload())}
        content = self.model_dump(mode="json", exclude=None if self.evaluations else {"evaluations"}) | identity
        text = json.dumps(content, indent=2) + "\n"
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text, durably=False)

    @classmethod
    def load(cls, path: Path) -> "RunSpec":
        """Read `spec.json`. ValueError, with the differences, when its physics is not the one of its run_id."""
        content = json.loads(path.read_text())
        run_id = content.pop("run_id", None)
        if run_id is not None:  # as saved; before there was a choice, the first windows were read
            content.get("evaluation", {}).setdefault("windows", "first")
        hashed = content.pop("canonical", None)
        spec = cls.model_validate(content)
        if run_id not in (None, spec.run_id):
            changed = differences(json.loads(hashed or "{}"), spec.canonical_payload())
            listed = "; ".join(f"{key}: {before} became {after}" for key, before, after in changed)
            raise ValueError(f"{path}: the physics of {run_id} was changed, which gives {spec.run_id}: {listed}")
        return spec


def same_training(spec: RunSpec) -> RunSpec:
    """The one of all specifications with the same training that states no more than it has to.

    A decay of cosine that ends with the run, and the floor of a constant rate, say nothing; before runs were told apart
    by this specification, they made another id of the same training. Nor does a decay of recurrent weights that is that
    of all weights, or of a model that has none.
    """
    physics, schedule, optimizer = spec.physics, spec.physics.schedule, spec.physics.optimizer
    recurrent = optimizer.recurrent_weight_decay
    if recurrent is not None and (recurrent == optimizer.weight_decay or not has_slstm(physics.model)):
        plain = optimizer.model_copy(update={"recurrent_weight_decay": None})
        return same_training(spec.with_physics(physics.model_copy(update={"optimizer": plain})))
    without: dict[str, Any] = {}
    if schedule.kind == "cosine" and schedule.decay_steps == physics.steps:
        without["decay_steps"] = None
    if schedule.kind == "constant":
        without = {"decay_steps": None, "final_ratio": Schedule.model_fields["final_ratio"].default}
    if all(getattr(schedule, name) == value for name, value in without.items()):
        return spec
    return spec.with_physics(physics.model_copy(update={"schedule": schedule.model_copy(update=without)}))


def has_slstm(model: ModelConfig) -> bool:
    """Whether a model has sLSTM blocks, whose recurrent weights `Optimizer.recurrent_weight_decay` is for."""
    return bool(getattr(model, "slstm_at", ()))


def shared_steps(left: Physics, right: Physics) -> int:
    """Leading optimizer steps in which two runs are one: 0 unless they differ in nothing but the token budget.

    The length and floor of a wsd decay belong to the budget: they change nothing before the decay starts.
    """
    budget: dict[str, Any] = {"tokens": True}
    if left.schedule.kind == right.schedule.kind == "wsd":
        budget["schedule"] = {"decay_steps", "final_ratio"}
    if left.model_dump(exclude=budget) != right.model_dump(exclude=budget):
        return 0
    return min(left.undecided_steps, right.undecided_steps)
