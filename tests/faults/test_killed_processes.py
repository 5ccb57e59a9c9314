"""kill -9 of a worker, of torchrun and of the controller: nothing survives, and the result is as if undisturbed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from gates import held_at
from typer.testing import CliRunner
from waiting import wait_until

from orchestrator.cli import app
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.records import State
from xlstm.training.checkpoints import complete_checkpoints

pytestmark = [pytest.mark.serial, pytest.mark.slow, pytest.mark.usefixtures("gated")]

SWEEP = """
name: kills
data: {corpus: text, paths: [CORPUS], tokenizer: bytes, context_length: 32}
sizes: {tiny: {embedding_dim: 32, num_blocks: 2, num_heads: 2}}
grid: {model: [llama], size: [tiny], tokens: [13K]}
train: {batch_sequences: 4, learning_rate: 1.0e-3, warmup_steps: 10}
resources:
  - {set: {devices: 2, checkpoint_every: 10, log_every: 5}}
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    corpus = folder / "corpus"
    corpus.mkdir()
    for index in range(40):
        words = " ".join(f"{(index * 7919 + word * word) % 997} is not {word}" for word in range(300))
        (corpus / f"{index}.txt").write_text(words)
    path = folder / "kills.yaml"
    path.write_text(SWEEP.replace("CORPUS", str(corpus)))
    return path


def submit(sweep: Path, workspace: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"SCALING_WORKSPACE": str(workspace)}
    command = [sys.executable, "-m", "orchestrator.cli", "submit", str(sweep), "--on", "local"]
    with open(workspace / "submit.log", "ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def submit_here(sweep: Path, workspace: Path) -> None:
    """Submit in this process, to the end."""
    variables = {"SCALING_WORKSPACE": str(workspace), "MLFLOW_TRACKING_URI": None}
    said = CliRunner().invoke(app, ["submit", str(sweep), "--on", "local"], env=variables)
    assert said.exit_code == 0, said.output


def the_run(workspace: Path) -> RunDirectory:
    (directory,) = Workspace(workspace).runs.iterdir()
    return RunDirectory(directory)


def trained_past(workspace: Path, step: int, attempt: int = 1) -> bool:
    runs = Workspace(workspace).runs
    if not runs.exists() or not any(runs.iterdir()):
        return False
    return any(row["step"] >= step and row["attempt"] == attempt for row in the_run(workspace).metrics())


def processes_of(workspace: Path) -> dict[str, list[psutil.Process]]:
    """Processes that name the run's directory in their command line, by role."""
    directory = str(the_run(workspace).path)
    found: dict[str, list[psutil.Process]] = {"supervisor": [], "torchrun": [], "worker": []}
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if directory in line:
            modules = [line[index + 1] for index, word in enumerate(line[:-1]) if word == "-m"]
            if "orchestrator.execution.supervisor" in modules:
                found["supervisor"].append(process)
            elif "torch.distributed.run" in modules:
                found["torchrun"].append(process)
            elif "xlstm.training" in modules:
                found["worker"].append(process)
    return found


def survivors(workspace: Path) -> list[psutil.Process]:
    return [process for processes in processes_of(workspace).values() for process in processes]


def losses(workspace: Path) -> dict[int, float]:
    return {row["step"]: row["train/loss"] for row in the_run(workspace).metrics() if "train/loss" in row}


@pytest.fixture(scope="module")
def undisturbed(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("undisturbed")
    submit_here(sweep, workspace)
    return workspace


def test_a_killed_worker_and_a_killed_torchrun_are_replaced_and_leave_no_trace_in_the_result(
    sweep: Path, undisturbed: Path, tmp_path: Path
) -> None:
    def lose(victim: str) -> None:
        processes = processes_of(tmp_path)
        old = [*processes["worker"], *processes["torchrun"]]
        assert len(processes["worker"]) == 2
        processes[victim][0].send_signal(signal.SIGKILL)
        wait_until(lambda: not any(process.is_running() for process in old))

    with held_at(Workspace(tmp_path), 52):
        with held_at(Workspace(tmp_path), 27):
            controller = submit(sweep, tmp_path)
            wait_until(lambda: trained_past(tmp_path, 25))
            lose("worker")
        wait_until(lambda: trained_past(tmp_path, 50, attempt=2))
        lose("torchrun")
    assert controller.wait(timeout=300) == 0, (tmp_path / "submit.log").read_text()
    assert_same_result(tmp_path, undisturbed, attempts=3)
    assert survivors(tmp_path) == []


def test_a_killed_controller_takes_everything_along_and_the_next_submit_goes_on(
    sweep: Path, undisturbed: Path, tmp_path: Path
) -> None:
    with held_at(Workspace(tmp_path), 27):
        controller = submit(sweep, tmp_path)
        wait_until(lambda: trained_past(tmp_path, 25))
        controller.send_signal(signal.SIGKILL)
        controller.wait()
        wait_until(lambda: not survivors(tmp_path))
    assert the_run(tmp_path).result() is None
    newest = complete_checkpoints(the_run(tmp_path))[0].step
    assert newest >= 20

    submit_here(sweep, tmp_path)
    assert_same_result(tmp_path, undisturbed, attempts=2)
    resumed = [json.loads(line) for line in the_run(tmp_path).metrics_file.read_text().splitlines() if "resume" in line]
    assert [row["step"] for row in resumed] == [newest]


def test_submitting_a_finished_sweep_again_trains_nothing(sweep: Path, undisturbed: Path) -> None:
    before = the_run(undisturbed).status()
    submit_here(sweep, undisturbed)
    assert the_run(undisturbed).status() == before


def assert_same_result(workspace: Path, undisturbed: Path, *, attempts: int) -> None:
    result, expected = the_run(workspace).result(), the_run(undisturbed).result()
    assert result is not None
    assert expected is not None
    assert the_run(workspace).status().state is State.COMPLETED
    assert result.attempts == attempts
    assert result.validation.loss == expected.validation.loss  # bit for bit
    assert losses(workspace) == losses(undisturbed)
