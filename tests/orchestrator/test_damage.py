"""No file of a workspace, whatever is in it, ends a verb in a traceback or keeps the other runs from being seen.

Each file and folder that the owners of names list is damaged in each way, in a small finished workspace.
"""

import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damaging import (
    FOLDER_WAYS,
    WAYS,
    cut,
    delete,
    link_to_itself,
    link_to_nowhere,
    make_empty,
    overwrite_with_junk,
    put_a_file,
    put_a_folder,
    put_another_type,
)

from orchestrator.planning.plan import make_plan
from sweeps.sweep import Sweep
from xlstm.run.damage import damage, set_aside
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.files import RunFiles
from xlstm.run.records import State

OLD = Path(__file__).parent / "old_workspace"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old workspace, unpacked once, with an MLflow store that follows it."""
    folder = tmp_path_factory.mktemp("kept")
    with tarfile.open(OLD / "workspace.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def workspace(kept: Path, scaling: Any) -> Workspace:
    """A copy of it, which is the workspace of the command line."""
    shutil.copytree(kept, scaling.workspace.parent, dirs_exist_ok=True)
    made = Workspace(scaling.workspace)
    for file in made.sweeps.glob("*/sweep.yaml"):  # says where its corpus lay when it was submitted
        file.write_text(re.sub(r"/[^\"]*/corpus.txt", f"{made.root.parent}/corpus.txt", file.read_text()))
    return made


def one_run(workspace: Workspace) -> RunDirectory:
    """A run that was interrupted after its first attempt and has checkpoints."""
    (run,) = (workspace.run(path.name) for path in workspace.runs.glob("llama-1.43K-128K-*"))
    return run


def finished_run(workspace: Workspace) -> RunDirectory:
    """A run of the sweep `old`."""
    (run,) = (workspace.run(path.name) for path in workspace.runs.glob("llama-1.43K-1.28K-s0-719b4231"))
    return run


VERBS = (
    ("status", "--json"),
    ("status",),
    ("plan", "old"),
    ("plan", "interrupted"),
    ("cancel", "troubled"),
    ("fit", "old"),
)


def check(scaling: Any, workspace: Workspace, damaged: Path, verbs: Any = VERBS) -> dict[tuple[str, ...], Any]:
    """Every verb ends with 0, or with 2 and a line that says why, and makes no run directory."""
    before = sorted(workspace.runs.glob("*"))
    said = {}
    for verb in verbs:
        said[verb] = one = scaling(*verb)
        assert one.code in (0, 2), (verb, one)
        assert "Traceback" not in one.out + one.err, verb
        if one.code == 2:
            assert one.err.strip(), verb
    assert sorted(workspace.runs.glob("*")) == before
    return said


def others_are_seen(said: Any, workspace: Workspace, run_id: str) -> None:
    shown = {run["run_id"]: run for sweep in json.loads(said.out) for run in sweep["runs"]}
    everything = {path.name for path in workspace.runs.glob("llama*")} | {run_id}
    assert everything <= shown.keys()
    states = {shown[one]["state"] for one in everything - {run_id}}
    assert states <= {"COMPLETED", "FAILED", "DIVERGED", "PREEMPTED", "CANCELLED"}


def names_of_run_files() -> list[str]:
    """Relative paths of every file that a run owns and the old workspace holds."""
    with tarfile.open(OLD / "workspace.tar.xz") as archive:
        names = archive.getnames()
    found = {name.split("/", 3)[3] for name in names if "/runs/llama-1.43K-1.28K-s0-719b4231/" in name}
    return sorted(found - {name for name in found if name.startswith("mlflow/")})


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", names_of_run_files())
def test_a_damaged_file_of_a_run_is_named_and_the_other_runs_are_seen(
    scaling: Any, workspace: Workspace, name: str, way: Callable[[Path], None]
) -> None:
    run = finished_run(workspace)
    path = run.path / name
    way(path)
    said = check(scaling, workspace, path, verbs=(("status", "--json"), ("plan", "old"), ("logs", run.run_id)))
    others_are_seen(said["status", "--json"], workspace, run.run_id)
    # What a submission does first: afterwards nothing is in its way, and what is named is what it left where it was.
    told: list[str] = []
    set_aside(run, told.append)
    assert {one.path for one in damage(run)} <= {run.metrics_file}
    for line in told:
        assert line.startswith(str(run.path)), line
    shown = next(one for sweep in said["status", "--json"].json for one in sweep["runs"] if one["run_id"] == run.run_id)
    if name == "result.json":
        assert shown["state"] == ("COMPLETED" if way in (link_to_nowhere, delete) else "FAILED")
        assert (str(path) in shown["reason"]) == (shown["state"] == "FAILED")
    if name in ("status.json", "result.json", "attempts/1/launch.json", "attempts/1/exit.json", "spec.json"):
        gone = way is delete or (way is link_to_nowhere and name != "spec.json")
        assert any(line.startswith(f"{path}: ") and "set aside" in line for line in told) != gone, told


def test_every_file_of_a_run_is_among_those_that_are_damaged_here() -> None:
    """The owner's list holds each of its names, so that one that is added is looked at as well."""
    run = RunFiles(Path("/runs/x"))
    listed = {path.name for path in (*run.files(), *run.folders())}
    for name in dir(RunFiles):
        value = getattr(run, name)
        if isinstance(value, Path) and name not in ("path",):
            assert value.name in listed, name


@pytest.mark.parametrize("way", FOLDER_WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", [".", "attempts", "attempts/1", "evaluations", "mlflow", "checkpoints"])
def test_a_folder_of_a_run_that_is_gone_or_a_file_stops_nobody(
    scaling: Any, workspace: Workspace, name: str, way: Callable[[Path], None]
) -> None:
    run = finished_run(workspace)
    run.checkpoints.mkdir(exist_ok=True)
    path = run.path / name
    way(path)
    said = check(scaling, workspace, path, verbs=(("status", "--json"), ("plan", "old"), ("cancel", "old")))
    others_are_seen(said["status", "--json"], workspace, run.run_id)
    set_aside(run, lambda line: None)
    assert not damage(run)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", ["sweep.yaml", "plan.json", "controller.lock", "submit.log"])
def test_a_damaged_file_of_a_sweep_stops_no_other_sweep(
    scaling: Any, workspace: Workspace, name: str, way: Callable[[Path], None]
) -> None:
    sweep = workspace.sweep("interrupted")
    path = sweep.path / name
    assert path in sweep.files()
    path.touch()
    way(path)
    said = check(
        scaling, workspace, path, verbs=(("status", "--json"), ("plan", "interrupted"), ("cancel", "interrupted"))
    )
    shown = {one["sweep"] for one in said["status", "--json"].json}
    assert {"old", "troubled"} <= shown
    if name == "plan.json" and not path.is_dir() and way not in (delete, link_to_nowhere, link_to_itself):
        assert "interrupted" in shown  # made anew from the sweep as it was submitted
        assert sweep.plan()["runs"]


@pytest.mark.parametrize("way", FOLDER_WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", ["fit", "slurm"])
def test_a_folder_of_a_sweep_that_is_gone_or_a_file_stops_nobody(
    scaling: Any, workspace: Workspace, name: str, way: Callable[[Path], None]
) -> None:
    sweep = workspace.sweep("old")
    path = sweep.path / name
    assert path in sweep.folders()
    path.mkdir(exist_ok=True)
    way(path)
    said = check(scaling, workspace, path, verbs=(("status", "--json"), ("fit", "old")))
    assert len(said["status", "--json"].json) == 3


@pytest.mark.parametrize(
    "name",
    [
        "llama/fit.json",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("rules.json", "llama/draws.npy", "llama/rows.parquet")
        ),
    ],
)
def test_a_damaged_fit_is_made_anew_or_named(scaling: Any, workspace: Workspace, name: str) -> None:
    path = workspace.sweep("old").fit / name
    for way in WAYS:
        kept = path.read_bytes()
        way(path)
        verbs = (("predict", "old", "--parameters", "10K", "--tokens", "10K"), ("fit", "old"))
        said = check(scaling, workspace, path, verbs=verbs)
        for one in said.values():
            assert one.code == 0 or str(path) in one.err, (way, one)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(kept)


@pytest.mark.parametrize("way", [make_empty, cut, overwrite_with_junk, put_another_type, put_a_folder, delete])
@pytest.mark.parametrize("name", ["manifest.json", "train-00000.tokens", "train.documents"])
def test_damaged_data_are_named_with_what_to_do(
    scaling: Any, workspace: Workspace, name: str, way: Callable[[Path], None]
) -> None:
    (folder,) = workspace.data.glob("[!.]*")
    way(folder / name)
    said = scaling("submit", str(workspace.root.parent / "interrupted.yaml"))
    assert said.code == 2, said
    (line,) = said.err.strip().splitlines()
    assert str(folder / name) in line
    assert "scaling data prepare" in line


@pytest.mark.parametrize("way", [overwrite_with_junk, put_a_folder, link_to_nowhere])
def test_a_tracking_database_that_is_none_is_named_with_what_to_do(
    scaling: Any, workspace: Workspace, way: Callable[[Path], None]
) -> None:
    path = workspace.root / "mlflow.db"
    path.touch()
    way(path)
    said = check(scaling, workspace, path, verbs=(*VERBS, ("sync",), ("fit", "mlflow:old")))
    assert {verb[0] for verb, one in said.items() if one.code == 2} == {"sync", "fit"}
    assert said["fit", "old"].code == 0
    assert str(path) in said["sync",].err
    assert str(path) in said["fit", "mlflow:old"].err
    assert "`scaling sync` makes it anew" in said["sync",].err


def test_where_the_folder_of_data_was_deleted_every_verb_goes_on(scaling: Any, workspace: Workspace) -> None:
    shutil.rmtree(workspace.data)
    assert {one.code for one in check(scaling, workspace, workspace.data).values()} == {0}


def test_sync_ships_the_others_and_names_what_is_damaged_and_makes_no_folder_anew(
    scaling: Any, workspace: Workspace
) -> None:
    """Four runs at once: one gone, one without a specification, one with junk among its metrics, one a file."""
    runs = [workspace.run(row["run_id"]) for row in workspace.sweep("old").plan()["runs"]][:4]
    gone, without, junk, file = runs
    shutil.rmtree(gone.path)
    overwrite_with_junk(without.spec_file)
    rows = junk.metrics_file.read_bytes().splitlines()
    junk.metrics_file.write_bytes(b"\n".join([rows[0], b"\x80\xff junk", b'{"time": 1.0}', *rows[1:], b""]))
    put_a_file(file.path)
    said = scaling("sync")
    assert said.code == 2, said
    assert "Traceback" not in said.err
    named = said.err.splitlines()
    assert any(str(without.spec_file) in line for line in named)
    assert any(str(junk.metrics_file) in line and "2 lines left out" in line for line in named)
    assert not gone.path.exists()
    assert file.path.is_file()
    assert "runs equal their directories" in said.out
    assert len(junk.history()) == len(rows)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace.root / 'mlflow.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "old"]
    shipped = {run.data.tags.get("run_id") for run in client.search_runs([experiment.experiment_id])}
    planned = {row["run_id"] for row in workspace.sweep("old").plan()["runs"]}
    assert planned - shipped == {gone.run_id, without.run_id, file.run_id}


def test_a_row_that_no_trainer_wrote_is_left_out_and_a_torn_one_is_not_worth_a_word(workspace: Workspace) -> None:
    run = one_run(workspace)
    rows = run.history()
    assert not run.noticed
    with open(run.metrics_file, "ab") as file:
        file.write(b'{"step": 5, "ti\n')
    assert run.history() == rows
    assert not run.noticed
    with open(run.metrics_file, "ab") as file:
        file.write(b'\x00\x01\n{"time": 3.0, "attempt": 1}\n"step"\n{"step": 1, "time": 2.0, "train/loss": "low"}\n')
    assert run.history() == rows
    (named,) = run.noticed.values()
    assert "4 lines left out" in str(named)


def test_strays_among_checkpoints_are_named_and_left_out(workspace: Workspace) -> None:
    run = one_run(workspace)
    steps = run.checkpoint_steps()
    assert steps
    (run.checkpoints / "step-00000999").write_text("a file")
    (run.checkpoints / "step-abc").mkdir()
    (run.checkpoints / "step-abc" / "COMPLETE").touch()
    elsewhere = workspace.root / "elsewhere"
    shutil.copytree(run.checkpoint(steps[0]), elsewhere)
    run.checkpoint(998).symlink_to(elsewhere)
    assert run.checkpoint_steps() == steps
    assert not run.has_checkpoint(998)
    told: list[str] = []
    set_aside(run, told.append)
    assert len(told) == 3
    assert all("left out" in line for line in told)
    assert (run.checkpoints / "step-abc").exists()


def test_a_deleted_status_is_derived_from_the_attempts(workspace: Workspace) -> None:
    for run, state in ((one_run(workspace), State.PREEMPTED), (finished_run(workspace), State.COMPLETED)):
        before = run.status()
        overwrite_with_junk(run.status_file)
        after = run.status()
        assert (after.state, after.attempt) == (state, before.attempt)
        assert run.status_file in run.noticed
        os.unlink(run.status_file)
        assert run.status().attempt == before.attempt


def test_a_fit_leaves_a_damaged_run_out_by_name(scaling: Any, workspace: Workspace) -> None:
    run = finished_run(workspace)
    make_empty(run.result_file)
    said = scaling("fit", "old")
    assert said.code == 0, said
    assert f"left out: {run.run_id}: damaged ({run.result_file}: is empty" in said.out


@pytest.mark.serial
@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [["status.json"], ["attempts/1/launch.json", "attempts/1/exit.json"], ["spec.json", "checkpoints"]]
)
def test_an_interrupted_run_with_damaged_files_is_continued(
    scaling: Any, workspace: Workspace, names: list[str]
) -> None:
    run = one_run(workspace)
    paths = [run.path / name for name in names]
    for path in paths:
        if path.is_dir():
            (path / "step-00000320").write_text("a file")
            (path / "step-abc").mkdir()
        else:
            overwrite_with_junk(path)
    said = scaling("submit", str(workspace.root.parent / "interrupted.yaml"))
    assert said.code == 0, said
    assert run.status().state is State.COMPLETED
    assert all(str(path) in said.out for path in paths), said
    made = make_plan(Sweep.load(str(workspace.root.parent / "interrupted.yaml")), workspace)
    assert made.runs[0].state is State.COMPLETED
    assert any(row.get("event") == "resume" and row["step"] > 0 for row in run.history())
