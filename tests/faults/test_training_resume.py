"""A run that was interrupted ends as if it had not been."""

from pathlib import Path

import pytest
from launching import losses, make_run, start

from xlstm.records import Workspace

pytestmark = pytest.mark.serial


@pytest.mark.parametrize("ranks", [1, 2])
def test_ten_steps_sigkill_and_ten_more_equal_twenty_steps_bit_for_bit(tmp_path: Path, ranks: int) -> None:
    straight = make_run(Workspace(tmp_path / "straight"), steps=20)
    undisturbed = start(straight, ranks).completed()
    broken = make_run(Workspace(tmp_path / "broken"), steps=20)
    start(broken, ranks).wait_for_step(10).kill()
    second = start(broken, ranks).completed()
    assert second.attempts == 2
    assert second.validation == undisturbed.validation
    assert losses(broken) == losses(straight)
    assert [step for step, _ in losses(broken)] == list(range(1, 21))
    (resume,) = broken.events("resume")
    assert resume["step"] in (5, 10, 15)
