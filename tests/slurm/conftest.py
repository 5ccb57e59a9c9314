"""One real Slurm for all tests of this folder."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing_programs

from xlstm.run.directory import Workspace

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def installed() -> None:
    """Skips what needs a real Slurm where there is none."""
    if missing := missing_programs():
        names = ", ".join(missing)
        pytest.skip(f"no Slurm on this machine ({names}); tests/slurm/cluster/install-debian.sh installs it")


@pytest.fixture(scope="session")
def _started(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running


@pytest.fixture
def cluster(_started: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster, with this process's Slurm commands pointed at it; none of its jobs is left, and no daemon dead."""
    monkeypatch.setenv("SLURM_CONF", _started.environment["SLURM_CONF"])
    path = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield _started
    _started.mend()  # a failed test leaves the next one the cluster that it had
    _started.clear()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")
