"""Makes an evaluation of a trained model: the same file whatever the number of ranks, and after a kill."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from xlstm.distributed import World
from xlstm.evaluation.kinds import open_passes
from xlstm.evaluation.passes import Passes
from xlstm.evaluation.validation import losses
from xlstm.models import IGNORED
from xlstm.run.directory import RunDirectory
from xlstm.run.evaluations import AnyEvaluation, fingerprint
from xlstm.run.records import Measured, write_json
from xlstm.run.spec import RunSpec

KEPT_EVERY_SECONDS = 30.0
"""Between two times that sums are kept, from which the next attempt goes on."""


class StoppedError(Exception):
    """A rank was asked to stop: the sums so far are kept."""


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
    passes = open_passes(evaluation, spec, run.workspace)
    kept = run.measured_so_far_file(evaluation, spec)
    sums = world.gather(_kept(kept.read_bytes() if kept.is_file() else b"", passes))[0]
    was_training, saved = model.training, time.monotonic()
    model.eval()
    try:
        with torch.no_grad():
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
    finally:
        model.train(was_training)
    return Measured(
        name=evaluation.name,
        kind=evaluation.kind,
        evaluation=fingerprint(evaluation, spec.physics.data),
        run_id=spec.run_id,
        settings=evaluation.model_dump(mode="json", exclude={"paths", "name", "kind"}),
        tokens=int(sums.tokens.sum()),
        measures=passes.measures(sums.nats, sums.tokens),
        tables=passes.tables(sums.nats, sums.tokens),
        notes=passes.notes,
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
