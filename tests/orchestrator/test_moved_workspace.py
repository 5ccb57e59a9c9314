"""A workspace that was copied or moved: what is done in it stays in it, and nothing is logged twice."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from orchestrator import Plan, Sweep
from xlstm.run import tracking
from xlstm.run.directory import Workspace


@pytest.fixture
def plan(scaling: Any, finish: Callable[..., None], write_sweep: Callable[..., str]) -> Plan:
    """A finished sweep that was logged where it was made."""
    made = Sweep.load(write_sweep()).plan()
    made.save()
    for run in made.runs:
        finish(made.workspace, run)
    assert scaling("sync").code == 0
    return made


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but those of SQLite, whose pages change when they are read."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("mlflow.db")]
    return {str(path): path.read_bytes() for path in files}


def children(workspace: Workspace, sweep: str = "tiny") -> list[Any]:
    client = MlflowClient(workspace.tracking_uri)
    return client.search_runs([client.get_experiment_by_name(sweep).experiment_id], "tags.kind = 'run'")


def enter(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("SCALING_WORKSPACE", str(workspace))
    return Workspace(workspace)


def test_a_copy_leaves_alone_what_it_was_copied_from(
    plan: Plan, scaling: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = {child.info.run_id for child in children(plan.workspace)}
    shutil.copytree(plan.workspace.root, tmp_path / "copy")
    before = contents(plan.workspace.root)
    copy = enter(tmp_path / "copy", monkeypatch)
    assert scaling.run("sync").code == 0  # in a process of its own: MLflow remembers where a run's artifacts lie
    assert contents(plan.workspace.root) == before
    assert {child.info.run_id for child in children(copy)} == logged
    assert all(child.info.artifact_uri.startswith(copy.artifacts.as_uri()) for child in children(copy))


def test_after_a_move_the_place_of_before_stays_empty(
    plan: Plan, scaling: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, origin = len(children(plan.workspace)), plan.workspace.root
    origin.rename(tmp_path / "moved elsewhere")
    moved = enter(tmp_path / "moved elsewhere", monkeypatch)
    assert scaling.run("sync").code == 0
    assert not origin.exists()
    assert len(children(moved)) == before == len(plan.runs)
    assert {child.data.tags["directory"] for child in children(moved)} == {f"runs/{run.run_id}" for run in plan.runs}


def test_a_copy_that_logs_to_the_same_server_has_children_of_its_own_and_a_moved_one_keeps_them(
    plan: Plan, store: str, tmp_path: Path
) -> None:
    run = plan.workspace.run(plan.runs[0].run_id)
    first = tracking.sync(run, "shared", store).child
    shutil.copytree(plan.workspace.root, tmp_path / "copy")
    copied = Workspace(tmp_path / "copy").run(run.run_id)
    second = tracking.sync(copied, "shared", store).child
    assert first != second
    assert tracking.sync(run, "shared", store).child == first
    shutil.rmtree(plan.workspace.root)
    (tmp_path / "copy").rename(tmp_path / "moved")
    moved = Workspace(tmp_path / "moved").run(run.run_id)
    assert tracking.sync(moved, "shared", store).child == second
    assert MlflowClient(store).get_run(second).data.tags["directory"] == str(moved.path)
