"""A workspace that is deleted, full or not writable under a running sweep: a line, no process left, and a way on."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from gates import held_at
from waiting import wait_until

from orchestrator.planning.plan import Plan, make_plan
from sweeps.sweep import Sweep
from xlstm.run import directory
from xlstm.run.directory import Workspace
from xlstm.run.processes import TOKEN_VARIABLE
from xlstm.run.records import State, write_json

WriteSweep = Callable[..., str]

pytestmark = pytest.mark.serial


def processes_of(workspace: Path) -> list[str]:
    """Command lines of supervisors and trainers that carry out runs of a workspace."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            said = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if entry.name.isdigit() and str(workspace / "runs") in said:
            found.append(said)
    return found


def delete(folder: Path, trivial: Any) -> None:
    """Have it gone at once for whoever looks: a slow machine would show it half deleted, or write into it meanwhile."""
    shutil.rmtree(folder.rename(trivial.folder / "deleted"))


@pytest.fixture
def planned(scaling: Any, write_sweep: WriteSweep, trivial: Any) -> Plan:
    """Two runs that wait to be told to go on."""
    assert TOKEN_VARIABLE not in os.environ
    made = make_plan(Sweep.load(write_sweep(trivial.runs(2))), Workspace(scaling.workspace))
    trivial.prepare([run.spec for run in made.runs], {run.run_id: "wait for go" for run in made.runs})
    return made


def both_wait(trivial: Any) -> bool:
    """Whether both runs have come to where they are told to go on."""
    return (trivial.folder / "executed.log").exists() and list(trivial.executed().values()) == [[1, 2]] * 2


def test_a_workspace_deleted_under_a_running_sweep_ends_it_with_a_line(
    scaling: Any, write_sweep: WriteSweep, trivial: Any, planned: Plan
) -> None:
    path = write_sweep(trivial.runs(2))
    process = scaling.start("submit", path)
    wait_until(lambda: both_wait(trivial))
    delete(scaling.workspace, trivial)
    (trivial.folder / "go").touch()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, (out, err)
    assert "Traceback" not in out + err
    assert err.strip().splitlines()[-1].startswith("tiny was stopped, and its trainers have ended: ")
    assert f"{scaling.workspace}: the workspace is gone" in err
    assert not processes_of(scaling.workspace)
    assert not (scaling.workspace / "runs").exists()
    again = scaling("submit", path)
    assert again.code == 0, again


def test_a_workspace_moved_under_a_running_sweep_ends_it_with_a_line_and_goes_on_where_it_is(
    scaling: Any,
    write_sweep: WriteSweep,
    trivial: Any,
    planned: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_sweep(trivial.runs(2))
    process = scaling.start("submit", path)
    wait_until(lambda: both_wait(trivial))
    scaling.workspace.rename(tmp_path / "moved")
    (trivial.folder / "go").touch()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, (out, err)
    assert "Traceback" not in out + err
    assert err.strip().splitlines()[-1].startswith("tiny was stopped, and its trainers have ended: ")
    assert not processes_of(scaling.workspace)
    assert not (scaling.workspace / "runs").exists()
    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path / "moved"))
    again = scaling("submit", path)
    assert again.code == 0, again
    for run in planned.runs:
        assert Workspace(tmp_path / "moved").run(run.run_id).status().state is State.COMPLETED


def test_a_run_deleted_under_a_running_sweep_is_given_up_by_name_and_the_other_goes_on(
    scaling: Any, write_sweep: WriteSweep, trivial: Any, planned: Plan
) -> None:
    gone, other = (planned.workspace.run(run.run_id) for run in planned.runs)
    process = scaling.start("submit", write_sweep(trivial.runs(2)))
    wait_until(lambda: both_wait(trivial))
    delete(gone.path, trivial)
    (trivial.folder / "go").touch()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, (out, err)
    assert "Traceback" not in out + err
    assert f"{gone.path}: is gone" in out
    assert not gone.path.exists()
    assert other.status().state is State.COMPLETED
    again = scaling("submit", write_sweep(trivial.runs(2)))
    assert again.code == 0, again
    assert gone.status().state is State.COMPLETED


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace on a file system of its own; skips where none can be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "small", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.decode().strip()}")
    monkeypatch.setenv("SCALING_WORKSPACE", str(folder / "workspace"))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write to a file until there is no room."""
    with suppress(OSError), open(path, "wb", 0) as file:
        while True:
            file.write(b"\0" * 4096)


def test_a_workspace_that_may_not_be_written_any_more_ends_a_sweep_with_a_line(
    scaling: Any, write_sweep: WriteSweep, trivial: Any, planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller meets it when it tries again a run that has crashed; the other run trains just then."""
    crashes, waits = planned.runs
    trivial.prepare([run.spec for run in planned.runs], {crashes.run_id: "crash", waits.run_id: "preempt"})
    written = []

    def write(path: Path, content: Any) -> None:
        written.append(path)
        if len(written) > len(planned.runs):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        write_json(path, content)

    monkeypatch.setattr(directory, "write_json", write)
    said = scaling("submit", write_sweep(trivial.runs(2)))
    assert said.code == 1, said
    (line,) = [line for line in said.err.splitlines() if "was stopped" in line]
    assert "Read-only file system; put that right and submit again: it continues" in line
    assert not processes_of(scaling.workspace)
    monkeypatch.undo()


@pytest.mark.slow
@pytest.mark.usefixtures("gated")
def test_a_sweep_whose_disk_is_full_ends_with_a_line_and_continues_afterwards(
    scaling: Any, write_sweep: WriteSweep, small_disk: Path
) -> None:
    path = write_sweep(("tokens: [2560, 5120]", "tokens: [128000]"), ("checkpoint_every: 5", "checkpoint_every: 50"))
    workspace = Workspace(small_disk / "workspace")
    (planned,) = make_plan(Sweep.load(path), workspace).runs
    run = workspace.run(planned.run_id)
    filler = small_disk / "filler"
    with held_at(workspace, 60):
        process = scaling.start("submit", path)
        wait_until(run.checkpoint_steps)
        fill(filler)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, (out, err)
    assert "Traceback" not in out + err
    assert "tiny was stopped, and its trainers have ended: " in err
    assert "No space left on device" in err
    assert not processes_of(workspace.root)
    assert not list(run.path.rglob(".*.json.*"))
    filler.unlink()
    again = scaling("submit", path)
    assert again.code == 0, again
    assert run.status().state is State.COMPLETED
    assert any(row.get("event") == "resume" and row["step"] > 0 for row in run.history())
