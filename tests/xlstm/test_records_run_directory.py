"""The run directory keeps two launchers apart and its rows in order."""

import json
import os
import shutil
import socket
import time
from pathlib import Path

import pytest

from xlstm.models.configs import LlamaConfig
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.json_files import DamagedFileError
from xlstm.run.locks import LeaseHeldError, LeaseLostError
from xlstm.run.records import Launch, State, Verdict, write_json
from xlstm.run.spec import Data, Execution, Optimizer, Physics, RunSpec
from xlstm.training.watch import leave_verdict

MODEL = LlamaConfig(vocab_size=256, embedding_dim=32, num_blocks=1, num_heads=2)


def spec(learning_rate: float = 1e-3, seed: int = 0, **execution: object) -> RunSpec:
    physics = Physics(
        model=MODEL,
        data=Data(corpus="text", revision="sha256:0", context_length=8),
        tokens=640,
        batch_tokens=64,
        optimizer=Optimizer(learning_rate=learning_rate),
        seed=seed,
    )
    return RunSpec(physics=physics, execution=Execution(**execution))  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = Workspace(tmp_path).run(spec().run_id)
    run.create(spec())
    return run


def row(step: int, attempt: int = 1) -> dict[str, object]:
    return {"step": step, "time": float(step), "attempt": attempt, "train/loss": 1.0 / step}


def test_the_name_of_a_run_depends_on_its_physics_alone() -> None:
    assert spec(devices=2, log_every=7).run_id == spec().run_id
    assert spec(learning_rate=0.001).run_id == spec(learning_rate=1e-3).run_id
    assert len({spec().run_id, spec(learning_rate=2e-3).run_id, spec(seed=1).run_id}) == 3


def test_a_second_launcher_is_told_who_holds_the_run(run: RunDirectory) -> None:
    run.acquire("first")
    with pytest.raises(LeaseHeldError, match=f"held by process {os.getpid()} on .*, until that process ends"):
        run.acquire("second")
    status = run.status()
    assert status.lease is not None
    elsewhere = status.lease.model_copy(update={"host": "elsewhere", "heartbeat": time.time() - 60})
    (run.path / "status.json").write_text(status.model_copy(update={"lease": elsewhere}).model_dump_json())
    until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(elsewhere.heartbeat + 120))
    with pytest.raises(LeaseHeldError, match=f"on elsewhere, last seen .*, until {until}, unless it is seen again"):
        run.acquire("second")


def test_a_released_run_is_taken_again_as_the_next_attempt(run: RunDirectory) -> None:
    lease = run.acquire("first")
    lease.release(State.FAILED, "a crash")
    assert run.status().state is State.FAILED
    assert run.acquire("second").attempt == 2


def test_a_lost_lease_neither_renews_nor_commits(run: RunDirectory) -> None:
    lease = run.acquire("first")
    status = run.status()
    assert status.lease is not None
    stolen = status.model_copy(update={"lease": status.lease.model_copy(update={"token": "another"})})
    (run.path / "status.json").write_text(stolen.model_dump_json())
    for use in (lease.renew, lambda: lease.held().__enter__()):
        with pytest.raises(LeaseLostError):
            use()
    lease.release(State.COMPLETED)
    assert run.status().lease == stolen.lease


def test_rows_after_a_rollback_and_torn_rows_are_gone_and_events_are_no_rows(run: RunDirectory) -> None:
    for step in (1, 2, 3, 4):
        run.append_metrics(row(step))
    with open(run.metrics_file, "ab") as file:
        file.write(b'{"step": 5, "time"')
    run.append_metrics({"event": "resume", "attempt": 2, "step": 2})
    run.append_metrics({"event": "damaged-checkpoint", "attempt": 2, "reason": "x"})
    run.append_metrics(row(3, attempt=2))
    assert [(r["step"], r["attempt"]) for r in run.metrics()] == [(1, 1), (2, 1), (3, 2)]
    assert [event["reason"] for event in run.events("damaged-checkpoint")] == ["x"]


def test_another_runs_specification_is_refused(run: RunDirectory) -> None:
    with pytest.raises(ValueError, match="is not the directory of"):
        run.create(spec(seed=5))


def test_changed_physics_are_refused_with_the_difference(run: RunDirectory) -> None:
    path = run.path / "spec.json"
    content = json.loads(path.read_text())
    content["physics"]["seed"] = 3
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"physics\.seed: 0 became 3"):
        run.spec()


@pytest.mark.parametrize("jump", [-86400.0, -3600.0, 3600.0, 86400.0])
def test_an_attempt_lasts_as_long_as_it_did_whatever_was_done_to_the_clock(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    lease = run.acquire("first")
    launch = Launch(
        run_id=run.run_id,
        attempt=1,
        token="first",
        executor="local",
        execution=Execution(device="cpu"),
        host=socket.gethostname(),
        rendezvous="",
        started=time.time(),
        monotonic=time.monotonic() - 10,
    )
    write_json(run.launch_file(1), launch.model_dump(mode="json"))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    leave_verdict(run, 1, Verdict(state=State.FAILED, reason="a crash"))
    lease.release(State.FAILED)
    assert 10 <= run.attempt_seconds(1) < 12
    assert 10 <= launch.elapsed() < 12


def test_a_folder_that_was_deleted_is_not_made_again_by_the_way(run: RunDirectory) -> None:
    lease = run.acquire("first")
    shutil.rmtree(run.path)
    for use in (lease.renew, lambda: run.set_state(State.FAILED), lambda: run.queue("")):
        with pytest.raises(DamagedFileError, match="is gone"):
            use()
    assert not run.path.exists()
