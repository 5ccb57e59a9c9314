"""The training loop of one run: batches in, optimizer steps, rows of metrics and checkpoints out.

Everything that decides the weights (batch, order, loss, schedule) is computed from the physics and the step alone, so
neither the number of ranks nor a restart changes it beyond the rounding of sums.
"""

import gc
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from kernels.dispatch import prefer
from xlstm.data.batches import Batch
from xlstm.data.sequences import RunData, TrainingSequences
from xlstm.distributed import World
from xlstm.evaluation.answers import validate_on
from xlstm.evaluation.validation import losses
from xlstm.models import build
from xlstm.models.dropout import Dropout
from xlstm.randomness import keys
from xlstm.run.directory import RunDirectory
from xlstm.run.records import Metric, Validation
from xlstm.run.spec import RunSpec
from xlstm.training.checkpoints import CheckpointRecord
from xlstm.training.machine import Speed, SystemMetrics, garbage_collected_by_hand, profiler
from xlstm.training.micro_batch import Probe
from xlstm.training.optimization.optimizer import build_optimizer, clip_gradients, set_step, training_state, update
from xlstm.training.optimization.parametrization import factors_of
from xlstm.training.optimization.schedule import learning_rate
from xlstm.training.parallel import init_weights, make_mesh, parallelize, reshard

DROPOUT = 3
"""Purpose of the random numbers of dropout, beside those of `xlstm.tasks.contract`."""


class DivergedError(RuntimeError):
    """Loss or gradient is not a number any more. The optimizer has not moved."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} at step {step}")
        self.step = step


@dataclass
class Trainer:
    """Model, optimizer and position of one run on one rank."""

    run: RunDirectory
    spec: RunSpec
    attempt: int
    world: World
    data: RunData
    heartbeat: Callable[[], None]
    """Called while no step ends, so that a long validation is not taken for a hang."""
    last_validation: Validation | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        physics, execution = self.spec.physics, self.spec.execution
        prefer(execution.kernels)
        with torch.device("meta"):
            self.model: nn.Module = build(physics.model)
        parallelize(self.model, physics, execution, make_mesh(execution, self.world))
        self.model.to_empty(device=self.world.device)
        factors = factors_of(self.model, physics)
        init_weights(self.model, physics.seed, factors)
        self.model.train()
        self.optimizer = build_optimizer(self.model, physics.optimizer, factors)
        self.parameters = list(self.model.parameters())
        self.state = training_state(self.model, self.optimizer)
        self.sequences = TrainingSequences(self.data, physics)
        self.per_rank = physics.batch_sequences // self.world.size
        self.micro = execution.micro_batch_sequences or self.per_rank
        self.micro_before: int | None = None
        self.speed = Speed(self.spec, self.world.device)
        self.system = SystemMetrics(self.world.device)
        self.step = 0
        self._ready: tuple[int, Batch] | None = None
        """A step, and its batch, which was read while the device was busy with the step before."""
        set_step(self.optimizer, 0)

    def continue_from(self, record: CheckpointRecord) -> None:
        """Take the position of a checkpoint whose tensors were loaded into `state`."""
        self.step = record.step
        set_step(self.optimizer, record.step)
        if record.ranks == self.world.size:
            self.micro_before = record.micro_batch_sequences

    def train(self, at_boundary: Callable[[], bool]) -> bool:
        """Train to the last step. `at_boundary` runs before each step and may end the loop: then False is returned.

        DivergedError, on all ranks, before the optimizer moves on a loss or gradient that is no number, and where the
        model gives a validation loss that is none.
        """
        spec, execution = self.spec, self.spec.execution
        if self.world.device.type == "cuda" and execution.micro_batch_sequences is None:
            self.micro = self._probe().choose(self.per_rank, self.micro_before)
        profiled = execution.profile_steps if self.world.is_main else None
        trace = self.run.trace_file(self.attempt)
        with garbage_collected_by_hand(), profiler(profiled, trace) as step_ended:
            while self.step < spec.physics.steps:
                if not at_boundary():
                    return False
                started = time.perf_counter()
                loss, norm, rate = self._optimizer_step()
                self.speed.step(time.perf_counter() - started)
                step_ended()
                last = self.step == spec.physics.steps
                if self.step % execution.log_every == 0 or last:
                    self._log_training(loss, norm, rate)
                    gc.collect(1)
                if last or (execution.validate_every and self.step % execution.validate_every == 0):
                    self._log_validation()
        if self.last_validation is None:  # continued from the last checkpoint: to finish, or to be measured anew
            self._log_validation(again=True)
        return at_boundary()

    def validation(self) -> Validation:
        """Quality of the model as it is now; equal on all ranks."""
        result = validate_on(self.model, self.data, self.spec, self.world, self.micro, self.heartbeat)
        reshard(self.model)  # what was gathered would be kept until the next backward pass
        return result

    def _optimizer_step(self) -> tuple[float, float, float]:
        """One update. Returns the mean loss over the global batch, the gradient norm and the learning rate.

        The device is waited for once, at the end, when loss and norm are read together: weights have not moved if one
        of them is no number.
        """
        physics = self.spec.physics
        loss = self.world.sum_on_device(self._add_gradients(self._batch(self.step)))
        norm = clip_gradients(self.parameters, physics.optimizer.gradient_clip)
        rate = learning_rate(physics, self.step)
        update(self.optimizer, rate, sound=loss.isfinite() & norm.isfinite())
        if self.world.device.type == "cuda" and self.step + 1 < physics.steps:
            self._ready = self.step + 1, self._batch(self.step + 1)
        mean, of_gradients = torch.stack([loss, norm.double()]).tolist()
        for value, what in ((mean, "loss"), (of_gradients, "gradient norm")):
            if not math.isfinite(value):
                raise DivergedError(self.step + 1, f"the {what} is {value}")
        self.step += 1
        return mean, of_gradients, rate

    def _batch(self, step: int) -> Batch:
        """This rank's sequences of a step."""
        if self._ready is not None and self._ready[0] == step:
            return self._ready[1]
        first = step * self.spec.physics.batch_sequences + self.world.rank * self.per_rank
        return self.sequences.batch(first, self.per_rank)

    def _dropout(self, start: int, count: int) -> Dropout:
        """What is left out of some of this rank's sequences in this step: decided by seed, step and sequence alone."""
        physics = self.spec.physics
        first = self.step * physics.batch_sequences + self.world.rank * self.per_rank + start
        words = keys(physics.seed, DROPOUT, np.arange(first, first + count)).view(np.int64)
        return Dropout(physics.dropout, torch.from_numpy(words).to(self.world.device))

    def _counted(self, batch: Batch) -> float:
        """Positions with a target in the global batch, of which this rank has a part."""
        if self.sequences.every_position_counts:
            return self.spec.physics.batch_tokens
        return self.world.sum(batch.counted)[0]

    def _probe(self) -> Probe:
        """What passes of one and two sequences take of the GPU's memory; weights and moments stay as they are."""
        device = self.world.device

        def peak(sequences: int) -> int:
            self.heartbeat()
            torch.cuda.reset_peak_memory_stats(device)
            self.micro = sequences
            passes = min(2, self.per_rank // sequences)  # two, as gradients are then added up
            self._add_gradients(self.sequences.numbered(np.arange(passes * sequences)))
            self.optimizer.zero_grad()
            return max(self.world.gather(torch.cuda.max_memory_allocated(device)))

        peak(1)  # libraries take their workspaces, and kernels are tuned
        held = min(self.world.gather(torch.cuda.memory_allocated(device)))
        free, whole = torch.cuda.mem_get_info(device)
        mine = free + torch.cuda.memory_reserved(device)
        available = min(self.world.gather(min(mine, whole // self.spec.execution.runs_per_device)))
        return Probe.measure(peak, held, available, self.per_rank)

    def _add_gradients(self, batch: Batch) -> torch.Tensor:
        """Forward and backward passes over this rank's sequences. Returns its part of the global batch's mean loss.

        The mean is over the positions of the global batch that have a target.
        Gradients are summed over the ranks in the last pass.
        """
        physics, counted = self.spec.physics, self._counted(batch)
        parts = []
        for start in range(0, len(batch.tokens), self.micro):
            if self.world.size > 1:
                self.model.set_requires_gradient_sync(start + self.micro >= len(batch.tokens))  # type: ignore[operator]
            rows = batch.rows(start, start + self.micro)
            noise = {"dropout": self._dropout(start, len(rows.tokens))} if physics.dropout else {}
            nll = losses(self.model, rows, self.spec, self.world.device, physics.z_loss or 0.0, **noise)
            loss = nll.sum() / counted
            loss.backward()
            parts.append(loss.detach())
        return parts[0] if len(parts) == 1 else torch.stack(parts).double().sum()

    def _log_training(self, loss: float, norm: float, rate: float) -> None:
        throughput = self.speed.since_last()
        if not self.world.is_main:
            return
        self._append(
            {
                Metric.LOSS: loss,
                Metric.LEARNING_RATE: rate,
                Metric.GRADIENT_NORM: norm,
                Metric.PEAK_MEMORY: self._peak_memory_gib(),
                **throughput,
                **self.system.since_last(),
            }
        )

    def _log_validation(self, again: bool = False) -> None:
        """Validate and log; `again` where an attempt before may have logged this step, right before it ended."""
        self.last_validation = self.validation()
        if not math.isfinite(self.last_validation.loss):
            raise DivergedError(self.step, f"the validation loss is {self.last_validation.loss}")
        if self.world.is_main and not (again and self._is_logged(Metric.VALIDATION_LOSS)):
            self._append(self.last_validation.metrics())

    def _is_logged(self, metric: str) -> bool:
        """Whether a surviving row of this step holds the metric."""
        return any(row["step"] == self.step and metric in row for row in self.run.metrics())

    def _append(self, metrics: dict[str, float]) -> None:
        tokens = self.step * self.spec.physics.batch_tokens
        progress = {Metric.TOKENS: tokens, Metric.FLOPS: self.speed.flops_per_token * tokens}
        head = {"step": self.step, "time": time.time(), "attempt": self.attempt}
        self.run.append_metrics({**head, **progress, **metrics})

    def _peak_memory_gib(self) -> float:
        if self.world.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.world.device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
