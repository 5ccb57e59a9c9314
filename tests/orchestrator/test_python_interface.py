"""A sweep from Python is the sweep of the command line: the same plan, the same runs, the same mistakes."""

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator import Sweep
from orchestrator.errors import InputError
from sweeps.located import SweepError
from xlstm.run.records import State

WriteSweep = Callable[..., str]


def test_a_plan_from_python_is_the_plan_of_the_command_line(scaling: Any, write_sweep: WriteSweep) -> None:
    path = write_sweep()
    assert Sweep.load(path).plan().document() == scaling("plan", path, "--json").json
    assert not scaling.workspace.exists()


def test_mistakes_raise_what_the_command_line_says(scaling: Any, write_sweep: WriteSweep) -> None:
    path = write_sweep(("[llama]", "[lama]"))
    with pytest.raises(SweepError) as error:
        Sweep.load(path).plan()
    assert str(error.value) == scaling("plan", path).err.strip()
    with pytest.raises(InputError, match="did you mean `local`"):
        Sweep.load(write_sweep()).plan().submit(on="lokal")


@pytest.mark.serial
def test_a_sweep_submitted_from_python_is_complete_and_trained_once(
    scaling: Any, write_sweep: WriteSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(("tokens: [2560, 5120]", "tokens: [2560]"))
    standing = Sweep.load(path).plan().submit(on="local", quiet=True)
    assert standing.counts == {State.COMPLETED: 1}
    assert standing.document() == scaling("status", "tiny", "--json").json
    assert capsys.readouterr().out == ""
    again = Sweep.load(path).plan(scaling.workspace)
    assert again.missing == []
    assert again.submit(quiet=True).runs[0].attempts == 1
