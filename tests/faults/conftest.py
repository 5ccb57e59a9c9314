"""Runs that several tests compare theirs with."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import make_run, start

from xlstm.run.directory import RunDirectory, Workspace


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], RunDirectory]:
    """The default run of twenty steps, trained without disturbance on so many ranks."""

    @functools.cache
    def train(ranks: int) -> RunDirectory:
        run = make_run(Workspace(tmp_path_factory.mktemp(f"undisturbed-{ranks}")))
        start(run, ranks).completed()
        return run

    return train


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")
