"""What the tests of all rooms share."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from xlstm.accounting.cards import count_gpus

# What imports and collection make stays: looking for garbage among it takes a quarter of their time.
gc.disable()

if not count_gpus():
    # Before anything imports triton: without a GPU its kernels run in the interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Clusters of the tests live on this machine alone; Ray would leave a token in the home directory, and use it later.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Ray's head has 30 seconds to start, which may not suffice beside other tests.
os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "300")


LONGEST_FIRST = (
    *("test_slurm_faults", "test_slow_checkpoints", "test_ray_losses", "test_ray_executor", "test_killed_processes"),
    *("test_slurm_submission", "test_submission", "test_warm_start", "test_pruning", "test_tracking_outages"),
    *("test_slurm_adaptive", "test_slurm_runs", "test_slurm_cluster", "test_cancelling", "test_machines"),
    *("test_lost_workspace", "test_many_runs", "test_noise", "test_shared_stable_phase"),
)
"""Files of minutes: whoever takes one of them last has the others wait for it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files begin before short ones, in the order of their length; within a file nothing moves."""
    rank = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_collection_finish() -> None:
    """Look for garbage from here on, among what tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def reference_data() -> Callable[[str], Path]:
    """Path of a file under $SCALING_REFERENCE_DATA (default: ../shared/data beside the checkout); skips without it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("SCALING_REFERENCE_DATA", beside))

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"no reference data {name} under {root}; set SCALING_REFERENCE_DATA")
        return root / name

    return find


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of an MLflow store in SQLite, for all tests of a module."""
    from xlstm.run.tracking import open_store

    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    assert open_store(uri) is None
    return uri


@pytest.fixture
def slow_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers started from here on take 75 s over each checkpoint, as a large model on a slow disk does."""
    _begin_with("slow_checkpoints", monkeypatch)


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers started from here on wait where `gates.held_at` says."""
    _begin_with("gated", monkeypatch)


def _begin_with(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every Python that starts from here on execute the `sitecustomize.py` of a folder beside this file."""
    here = Path(__file__).parent
    path = [str(here / folder), str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
