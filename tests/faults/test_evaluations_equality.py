"""An evaluation gives the same file on one rank and on two, and where it was interrupted or killed on the way."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import losses, make_run, start

from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.evaluations import AnyEvaluation, LengthExtrapolation, TokenFrequency
from xlstm.run.records import State

pytestmark = [pytest.mark.serial, pytest.mark.slow]

ASKED: tuple[AnyEvaluation, ...] = (
    LengthExtrapolation(name="long", contexts=(16, 64, 128), sequences=9),
    TokenFrequency(name="rare", bands=(1, 100, 1000)),
)
SMALL_PASSES = "from xlstm.evaluation import passes\npasses.TOKENS_PER_PASS = 512\n"
"""Many passes, so that there is a middle."""
KILLED = """
import os, signal
from xlstm.evaluation import measure
measure.KEPT_EVERY_SECONDS = 0.0
plain, made = measure._pass, []
def one_of_many(*told):
    made.append(told)
    if len(made) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*told)
measure._pass = one_of_many
"""
ASKED_TO_STOP = """
import os, signal
from xlstm.evaluation import measure
plain, made = measure._pass, []
def one_of_many(*told):
    made.append(told)
    if len(made) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return plain(*told)
measure._pass = one_of_many
"""
COUNTED = """
import sys
from xlstm.evaluation import measure
plain = measure._pass
def counted(*told):
    print("made a pass", file=sys.stderr)
    return plain(*told)
measure._pass = counted
"""


def trained(folder: Path) -> Iterator[RunDirectory]:
    """Copies of one trained run, which ask for evaluations from now on."""
    run = make_run(Workspace(folder / "trained"), steps=4)
    start(run).completed()
    run.create(run.spec().model_copy(update={"evaluations": ASKED}))
    for name in ("one", "two", "killed"):
        shutil.copytree(folder / "trained", folder / name)
        yield Workspace(folder / name).run(run.run_id)


def files(run: RunDirectory) -> dict[str, bytes]:
    """What the evaluations left, by the names of their files."""
    asked = [run.measured_file(one, run.spec()) for one in run.spec().evaluations]
    return {path.name: path.read_bytes() for path in asked if path.exists()}


def test_ranks_and_interruptions_change_no_byte_and_nothing_is_trained(tmp_path: Path) -> None:
    runs = list(trained(tmp_path))
    one, two, killed = runs
    before = [(losses(run), sorted(run.checkpoints.rglob("*")), run.result()) for run in runs]
    alone = start(one, wrapper=SMALL_PASSES + COUNTED)
    alone.completed()
    expected = files(one)
    assert len(expected) == 2
    start(two, 2, wrapper=SMALL_PASSES).completed()
    assert files(two) == expected

    start(killed, wrapper=SMALL_PASSES + KILLED).wait()
    assert not files(killed)
    stopped = start(killed, wrapper=SMALL_PASSES + ASKED_TO_STOP).wait()
    assert (stopped.verdict.state, stopped.verdict.reason) == (
        State.PREEMPTED,
        "stopped by SIGTERM while long was measured",
    )
    last = start(killed, wrapper=SMALL_PASSES + COUNTED)
    last.completed()
    assert files(killed) == expected
    assert last.log().count("made a pass") == alone.log().count("made a pass") - 5  # three and two were kept
    assert [(losses(run), sorted(run.checkpoints.rglob("*")), run.result()) for run in runs] == before
    assert not list(killed.evaluations.glob("*.part"))
