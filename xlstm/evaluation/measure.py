"""Makes an evaluation of a trained model: the same file whatever the number of ranks, and after a kill."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from xlstm.data.preparation import data_folder, tokenizer_of
from xlstm.distributed import World
from xlstm.evaluation.inference import Timings
from xlstm.evaluation.kinds import TextEvaluation, open_passes
from xlstm.evaluation.passes import KEPT_EVERY_SECONDS, Passes, StoppedError
from xlstm.evaluation.validation import losses
from xlstm.models import IGNORED
from xlstm.run.directory import RunDirectory
from xlstm.run.evaluations import AnyEvaluation, Harness, Inference, fingerprint
from xlstm.run.records import Measured, write_json
from xlstm.run.spec import RunSpec


@dataclass
class _Sums:
    """Sums over the first passes, by group: nats in float64, added in the order of the passes."""

    passes: int
    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]


def measure(
    model: nn.Module,
    evaluation: AnyEvaluation,
    spec: RunSpec,
    run: RunDirectory,
    world: World,
    stopped: Callable[[], bool] = lambda: False,
) -> Measured:
    """Make an evaluation; equal on all ranks, which make the passes in turn. Nothing is written but sums so far.

    `stopped` is asked between passes, and must answer the same on all ranks. StoppedError where it says so.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if isinstance(evaluation, Harness):
                return _tasks(model, evaluation, spec, run, world, stopped)
            if isinstance(evaluation, Inference):
                timings = Timings(evaluation, spec, world.device)
                timings.run(model, stopped)
                told = {"measures": timings.measures(), "tables": timings.tables(), "notes": timings.notes}
                return world.gather(_measured(evaluation, spec, tokens=timings.tokens, **told))[0]
            return _sums(model, evaluation, spec, run, world, stopped)
    finally:
        model.train(was_training)


def _sums(
    model: nn.Module,
    evaluation: TextEvaluation,
    spec: RunSpec,
    run: RunDirectory,
    world: World,
    stopped: Callable[[], bool],
) -> Measured:
    passes = open_passes(evaluation, spec, run.workspace)
    kept = run.measured_so_far_file(evaluation, spec)
    sums = world.gather(_kept(kept.read_bytes() if kept.is_file() else b"", passes))[0]
    saved = time.monotonic()
    while sums.passes < passes.count:
        if stopped():
            if world.is_main:
                _keep(run, evaluation, spec, sums)
            raise StoppedError
        mine = min(sums.passes + world.rank, passes.count - 1)
        for nats, tokens in world.gather(_pass(model, passes, mine, spec, world.device)):
            if sums.passes < passes.count:
                sums = _Sums(sums.passes + 1, sums.nats + nats, sums.tokens + tokens)
        if world.is_main and time.monotonic() - saved > KEPT_EVERY_SECONDS:
            _keep(run, evaluation, spec, sums)
            saved = time.monotonic()
    return _measured(
        evaluation,
        spec,
        tokens=int(sums.tokens.sum()),
        measures=passes.measures(sums.nats, sums.tokens),
        tables=passes.tables(sums.nats, sums.tokens),
        notes=passes.notes,
    )


def _tasks(
    model: nn.Module, evaluation: Harness, spec: RunSpec, run: RunDirectory, world: World, stopped: Callable[[], bool]
) -> Measured:
    from xlstm.evaluation.harness import Answers, HarnessModel, run_tasks

    data = spec.physics.data
    tokenizer = tokenizer_of(data, data_folder(data, run.workspace))
    limit = getattr(spec.physics.model, "context_length", None) or data.context_length
    answers = Answers(run.measured_so_far_file(evaluation, spec), world, stopped)
    asked = HarnessModel(model, tokenizer, evaluation.context_length or min(limit, data.context_length), answers)
    rows = world.gather(run_tasks(evaluation, asked))[0]
    numbers = {
        f"{row['task']}/{name}": value for row in rows for name, value in row.items() if isinstance(value, float)
    }
    return _measured(evaluation, spec, tokens=asked.tokens, measures=numbers, tables={"task": rows}, notes=[])


def _measured(evaluation: AnyEvaluation, spec: RunSpec, **found: Any) -> Measured:
    return Measured(
        name=evaluation.name,
        kind=evaluation.kind,
        evaluation=fingerprint(evaluation, spec.physics.data),
        run_id=spec.run_id,
        settings=evaluation.model_dump(mode="json", exclude={"paths", "name", "kind"}),
        **found,
    )


def _pass(
    model: nn.Module, passes: Passes, number: int, spec: RunSpec, device: torch.device
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    batch, groups = passes.batch(number)
    values = losses(model, batch, spec, device).double().cpu().numpy()
    asked = batch.targets != IGNORED
    mine = groups[asked]
    nats = np.bincount(mine, values[asked], minlength=passes.groups).astype(np.float64)
    return nats, np.bincount(mine, minlength=passes.groups).astype(np.int64)


def _kept(content: bytes, passes: Passes) -> _Sums:
    """The sums that an attempt before kept; none where there are none, or they are not whole."""
    try:
        found = json.loads(content)
        sums = _Sums(int(found["passes"]), np.array(found["nats"], np.float64), np.array(found["tokens"], np.int64))
        if sums.nats.shape == sums.tokens.shape == (passes.groups,):
            return sums
    except (ValueError, KeyError, TypeError):
        pass
    return _Sums(0, np.zeros(passes.groups), np.zeros(passes.groups, np.int64))


def _keep(run: RunDirectory, evaluation: AnyEvaluation, spec: RunSpec, sums: _Sums) -> None:
    run.evaluations.mkdir(exist_ok=True)
    content = {"passes": sums.passes, "nats": sums.nats.tolist(), "tokens": sums.tokens.tolist()}
    write_json(run.measured_so_far_file(evaluation, spec), content)
