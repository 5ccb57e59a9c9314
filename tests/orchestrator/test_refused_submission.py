"""A submission that an engine refuses changes nothing: neither the sweep that was kept, nor its runs."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.workbench import slurm
from xlstm.run.directory import Workspace
from xlstm.run.locks import take
from xlstm.run.records import State

WriteSweep = Callable[..., str]


class Site:
    """Slurm's commands as programs that answer what a test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.answers(sinfo="echo '(null)'", squeue="true", scontrol="echo 'MaxArraySize = 1001'", sbatch="exit 1")

    def answers(self, **scripts: str) -> None:
        for name, script in scripts.items():
            path = self.folder / name
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path / "programs")
    monkeypatch.setenv("PATH", os.pathsep.join([str(made.folder), os.environ["PATH"]]))
    return made


def contents(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_where_slurm_does_not_answer_nothing_is_left_behind(scaling: Any, write_sweep: WriteSweep, site: Site) -> None:
    site.answers(sinfo="echo 'slurm_load_partitions: Unable to contact' >&2; exit 1")
    workspace = Workspace(scaling.workspace)
    said = scaling("submit", write_sweep(), "--on", "slurm")
    assert said.code == 2
    assert "sinfo: slurm_load_partitions" in said.err
    assert contents(workspace.sweeps) == {}
    assert not list(workspace.runs.iterdir())
    assert not slurm.has(workspace, "tiny")


def test_where_sbatch_refuses_the_sweep_stays_as_it_was_submitted(
    scaling: Any, write_sweep: WriteSweep, site: Site, finish: Callable[..., None]
) -> None:
    from orchestrator.planning.plan import make_plan
    from sweeps.sweep import Sweep
    from xlstm.data import prepare

    workspace = Workspace(scaling.workspace)
    plan = make_plan(Sweep.load(write_sweep()), workspace)
    plan.save()
    failed, done = (workspace.run(run.run_id) for run in plan.runs)
    finished = plan.runs[1].spec
    text = prepare(finished.physics.data, finished.execution.data_paths, workspace)
    finish(workspace, plan.runs[1], data_fingerprint=text.fingerprint)
    failed.create(plan.runs[0].spec)
    failed.set_state(State.FAILED, "a reason")
    before = contents(workspace.sweeps)
    site.answers(sbatch="echo 'sbatch: error: invalid partition' >&2; exit 1")
    said = scaling("submit", write_sweep(("tokens: [2560, 5120]", "tokens: [2560, 5120, 7680]")), "--on", "slurm")
    assert said.code == 2
    assert "invalid partition" in said.err
    assert contents(workspace.sweeps) == before
    assert scaling("submit", write_sweep(), "--on", "slurm").code == 2
    assert (failed.status().state, failed.status().reason) == (State.FAILED, "a reason")
    assert done.status().state is State.COMPLETED
    assert not slurm.has(workspace, "tiny")


def test_a_sweep_that_another_process_carries_out_is_not_handed_to_slurm(
    scaling: Any, write_sweep: WriteSweep, site: Site
) -> None:
    workspace = Workspace(scaling.workspace)
    lock = workspace.sweep("tiny").controller_lock
    lock.parent.mkdir(parents=True)
    with open(lock, "a+") as file:
        assert take(file, wait=False)
        file.write("process 7 on somewhere with --on local\n")
        file.flush()
        said = scaling("submit", write_sweep(), "--on", "slurm")
    assert said.code == 2
    assert (
        said.err
        == "tiny is carried out by process 7 on somewhere with --on local; end that first: scaling cancel tiny\n"
    )
    assert not workspace.sweep("tiny").plan_file.exists()


def test_the_empty_folder_that_an_earlier_refusal_left_is_no_submission(scaling: Any) -> None:
    workspace = Workspace(scaling.workspace)
    workspace.sweep("tiny").slurm.mkdir(parents=True)
    assert not slurm.has(workspace, "tiny")


def test_a_sweep_that_adds_runs_goes_on_and_one_that_drops_some_names_them(
    scaling: Any, write_sweep: WriteSweep, finish: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator import Sweep
    from orchestrator.errors import InputError
    from orchestrator.execution import submission

    monkeypatch.setattr(submission, "submit", lambda *submitted, **ends: {})

    first = Sweep.load(write_sweep()).plan()
    for run in first.runs:
        finish(first.workspace, run)
    first.submit(quiet=True)
    before = contents(first.directory.path)
    kept, lost = first.runs
    fewer = Sweep.load(write_sweep(("tokens: [2560, 5120]", f"tokens: [{kept.spec.physics.tokens}]"))).plan()
    with pytest.raises(InputError, match=f"1 run that it would lose: {lost.run_id}; .* --replace"):
        fewer.submit(quiet=True)
    assert contents(first.directory.path) == before
    fewer.submit(quiet=True, replace=True)
    assert [row["run_id"] for row in first.directory.plan()["runs"]] == [kept.run_id]
    (version,) = first.directory.history.iterdir()
    assert contents(version) == {name: before[name] for name in ("sweep.yaml", "plan.json")}
    assert [run.spec.run_id for run in Sweep.load(version / "sweep.yaml").runs] == [run.run_id for run in first.runs]

    Sweep.load(write_sweep()).plan().submit(quiet=True)  # adds a run: goes on, and keeps what it replaces
    assert len(list(first.directory.history.iterdir())) == 2
    Sweep.load(write_sweep()).plan().submit(quiet=True)  # says the same: nothing to keep
    assert len(list(first.directory.history.iterdir())) == 2


def test_a_detached_submission_says_what_it_will_cost(scaling: Any, write_sweep: WriteSweep, monkeypatch: Any) -> None:
    from orchestrator.execution import detached

    monkeypatch.setattr(detached, "detach_submission", lambda workspace, sweep: 7)
    said = scaling("submit", write_sweep(), "--detach")
    assert said.code == 0, said
    assert "tiny: 2 runs, 0 complete; to train: 2 runs, 7.68K tokens" in said.out
