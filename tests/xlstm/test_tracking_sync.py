"""MLflow equals the files, whatever happened to either."""

import json
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from xlstm.accounting import size_label
from xlstm.models.configs import LlamaConfig
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.records import Launch, Parameters, Result, State, Validation, Verdict, write_json
from xlstm.run.spec import Data, Optimizer, Physics, RunSpec
from xlstm.run.tracking import sync
from xlstm.run.tracking.charts import charts_link
from xlstm.run.tracking.store import experiments

MODEL = LlamaConfig(vocab_size=256, embedding_dim=32, num_blocks=1, num_heads=2)
SWEEP = "a-sweep"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make(Workspace(tmp_path / "workspace"))


def make(workspace: Workspace, seed: int | None = None) -> RunDirectory:
    data = Data(corpus="text", revision="sha256:0", context_length=8)
    physics = Physics(
        model=MODEL,
        data=data,
        tokens=800,
        batch_tokens=8,
        optimizer=Optimizer(learning_rate=1e-3),
        # Each test has runs of its own in the store that all share.
        seed=time.monotonic_ns() % 2**40 if seed is None else seed,
    )
    spec = RunSpec(physics=physics)
    run = workspace.run(spec.run_id)
    run.create(spec)
    return run


def write_rows(run: RunDirectory, attempt: int, steps: range, offset: float = 0.0) -> None:
    for step in steps:
        run.append_metrics(
            {
                "step": step,
                "time": 1e9 + step + offset,
                "attempt": attempt,
                "train/loss": step + offset,
                "progress/tokens": step * 8,
            }
        )


def children(store: str, run: RunDirectory, sweep: str = SWEEP) -> list[Any]:
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(sweep)
    return client.search_runs([experiment.experiment_id], f"tags.run_id = '{run.run_id}'") if experiment else []


def history(store: str, run: RunDirectory, sweep: str = SWEEP) -> list[tuple[int, float]]:
    (child,) = children(store, run, sweep)
    found = MlflowClient(store).get_metric_history(child.info.run_id, "train/loss")
    return [(metric.step, metric.value) for metric in sorted(found, key=lambda m: m.step)]


def of_files(run: RunDirectory) -> list[tuple[int, float]]:
    return [(row["step"], row["train/loss"]) for row in run.metrics()]


def test_syncing_twice_gives_every_row_once(store: str, run: RunDirectory) -> None:
    write_rows(run, 1, range(1, 40))
    assert sync(run, SWEEP, store).rows == 39
    assert sync(run, SWEEP, store).rows == 0
    assert history(store, run) == of_files(run)
    write_rows(run, 1, range(40, 50))
    assert sync(run, SWEEP, store).rows == 10
    assert history(store, run) == of_files(run)


def test_a_lost_cursor_changes_nothing(store: str, run: RunDirectory) -> None:
    write_rows(run, 1, range(1, 20))
    sync(run, SWEEP, store)
    for cursor in (run.path / "mlflow").glob("*.json"):
        cursor.unlink()
    sync(run, SWEEP, store)
    assert history(store, run) == of_files(run)


def test_a_cursor_that_lags_behind_what_was_shipped_gives_no_doubles(store: str, run: RunDirectory) -> None:
    write_rows(run, 1, range(1, 10))
    sync(run, SWEEP, store)
    (cursor,) = (run.path / "mlflow").glob("*.json")
    old = cursor.read_bytes()
    write_rows(run, 1, range(10, 20))
    sync(run, SWEEP, store)
    cursor.write_bytes(old)  # as if killed between the shipping and the note of it
    sync(run, SWEEP, store)
    assert history(store, run) == of_files(run)


def test_after_a_rollback_the_surviving_branch_alone_is_there(store: str, run: RunDirectory) -> None:
    write_rows(run, 1, range(1, 20))
    sync(run, SWEEP, store)
    first = children(store, run)[0].info.run_id
    run.append_metrics({"event": "resume", "attempt": 2, "step": 10})
    write_rows(run, 2, range(11, 16), offset=0.5)
    sync(run, SWEEP, store)
    assert history(store, run) == [(s, float(s)) for s in range(1, 11)] + [(s, s + 0.5) for s in range(11, 16)]
    assert children(store, run)[0].info.run_id != first


def test_a_rollback_of_what_was_never_shipped_keeps_the_child(store: str, run: RunDirectory) -> None:
    write_rows(run, 1, range(1, 11))
    sync(run, SWEEP, store)
    first = children(store, run)[0].info.run_id
    write_rows(run, 1, range(11, 14))
    run.append_metrics({"event": "resume", "attempt": 2, "step": 10})
    write_rows(run, 2, range(11, 16), offset=0.5)
    sync(run, SWEEP, store)
    assert history(store, run) == of_files(run)
    assert children(store, run)[0].info.run_id == first


def test_a_row_torn_in_the_middle_is_shipped_once_it_is_whole(store: str, run: RunDirectory) -> None:
    write_rows(run, 1, range(1, 4))
    whole = run.metrics_file.read_bytes()
    run.metrics_file.write_bytes(whole[:-10])
    sync(run, SWEEP, store)
    assert history(store, run) == [(1, 1.0), (2, 2.0)]
    run.metrics_file.write_bytes(whole)
    sync(run, SWEEP, store)
    assert history(store, run) == of_files(run)


def test_the_link_to_the_charts_names_a_view_the_experiment_holds_even_if_it_was_made_without(
    store: str, run: RunDirectory
) -> None:
    client = MlflowClient(store)
    made = client.create_experiment("made-before")
    sync(run, "made-before", store)
    key = charts_link(made).rpartition("viewStateShareKey=")[2]
    view = json.loads(client.get_experiment(made).tags[f"mlflow.sharedViewState.{key}"])
    assert view["globalLineChartConfig"]["selectedXAxisMetricKey"] == "progress/tokens"
    assert client.get_experiment(made).tags["mlflow.experimentKind"] == "custom_model_development"
    assert experiments(store)["made-before"] == made


def test_a_child_deleted_by_hand_comes_back_whole(store: str, run: RunDirectory) -> None:
    write_rows(run, 1, range(1, 6))
    sync(run, SWEEP, store)
    MlflowClient(store).delete_run(children(store, run)[0].info.run_id)
    assert children(store, run) == []
    sync(run, SWEEP, store)
    assert history(store, run) == of_files(run)


def test_two_sweeps_that_share_a_run_have_a_child_each(store: str, run: RunDirectory) -> None:
    write_rows(run, 1, range(1, 6))
    for sweep in ("one", "two", "one", "two"):
        assert sync(run, sweep, store).ok
    assert history(store, run, "one") == history(store, run, "two") == of_files(run)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (State.RUNNING, "RUNNING"),
        (State.FAILED, "FAILED"),
        (State.DIVERGED, "FAILED"),
        (State.COMPLETED, "FINISHED"),
        (State.CANCELLED, "KILLED"),
        (State.PREEMPTED, "SCHEDULED"),
    ],
)
def test_the_status_is_that_of_the_run(store: str, run: RunDirectory, state: State, status: str) -> None:
    sync(run, SWEEP, store)
    run.set_state(state, "because")
    sync(run, SWEEP, store)
    (child,) = children(store, run)
    assert child.info.status == status
    assert child.data.tags["state"] == state.value
    assert child.data.tags["reason"] == "because"
    assert (child.info.end_time is not None) == (status in {"FAILED", "FINISHED", "KILLED"})


def test_a_retried_run_is_running_again(store: str, run: RunDirectory) -> None:
    run.set_state(State.FAILED, "crash")
    sync(run, SWEEP, store)
    run.set_state(State.RUNNING)
    sync(run, SWEEP, store)
    assert children(store, run)[0].info.status == "RUNNING"


def test_numbers_that_are_none_never_arrive(store: str, run: RunDirectory) -> None:
    with pytest.raises(ValueError, match="JSON"):
        run.append_metrics({"step": 1, "time": 0.0, "attempt": 1, "train/loss": float("nan")})
    write_rows(run, 1, range(1, 3))
    with open(run.metrics_file, "ab") as file:  # as another program might
        file.write(b'{"step": 3, "time": 3.0, "attempt": 1, "train/loss": NaN, "train/gradient_norm": Infinity}\n')
    sync(run, SWEEP, store)
    assert history(store, run) == [(1, 1.0), (2, 2.0)]
    assert "train/gradient_norm" not in children(store, run)[0].data.metrics


def test_a_completed_run_carries_what_a_fit_needs(store: str, run: RunDirectory) -> None:
    result = Result(
        run_id=run.run_id,
        family="llama",
        size="1x32",
        seed=0,
        tokens=800,
        steps=100,
        parameters=Parameters(total=30, non_embedding=10, non_embedding_with_head=20),
        flops={"exact": 1e9, "6nd": 2e9},
        validation=Validation(loss=2.0, perplexity=7.4, tokens=10, evaluation="abc"),
        wall_seconds=1.0,
        device_hours=0.1,
        attempts=1,
        data_fingerprint="f",
        tokenizer="bytes",
        schedule="cosine",
        quality=["repeated-data"],
    )
    sync(run, SWEEP, store)
    write_json(run.path / "result.json", result.model_dump(mode="json"))
    run.set_state(State.COMPLETED)
    sync(run, SWEEP, store)
    (child,) = children(store, run)
    wanted = {
        "family": "llama",
        "size": size_label(run.spec().physics.model),
        "tokens": "800",
        "parameters.total": "30",
        "parameters.non_embedding": "10",
        "flops.exact": "1000000000.0",
        "tokenizer": "bytes",
        "schedule": "cosine",
        "evaluation": run.spec().evaluation_fingerprint,
    }
    assert wanted.items() <= child.data.params.items()
    assert child.data.tags["quality"] == "repeated-data"
    parent = MlflowClient(store).get_run(child.data.tags["mlflow.parentRunId"])
    assert parent.info.run_name == SWEEP


def test_a_store_that_cannot_be_reached_is_reported_not_raised(run: RunDirectory) -> None:
    write_rows(run, 1, range(1, 3))
    started = time.monotonic()
    outcome = sync(run, SWEEP, "http://127.0.0.1:9")  # the discard port: nobody listens
    assert not outcome.ok
    assert run.run_id in outcome.message
    assert time.monotonic() - started < 60


def _sync_in_process(path: str, uri: str) -> bool:
    run = RunDirectory(Path(path))
    return sync(run, SWEEP, uri).ok


@pytest.mark.serial
@pytest.mark.slow
def test_eight_processes_on_a_fresh_store_record_every_run(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    runs = [make(workspace, seed) for seed in range(8)]
    for run in runs:
        write_rows(run, 1, range(1, 20))
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        assert pool.starmap(_sync_in_process, [(str(run.path), uri) for run in runs]) == [True] * 8
    for run in runs:
        assert history(uri, run) == of_files(run)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(SWEEP)
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id], "tags.kind = 'sweep'")) == 1


def test_the_trainer_does_not_import_mlflow() -> None:
    import subprocess

    program = "import sys, xlstm.training.attempt, xlstm.run.tracking; sys.exit('mlflow' in sys.modules)"
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0


def test_a_child_has_the_times_of_its_run_whenever_it_is_logged(store: str, run: RunDirectory) -> None:
    execution = run.spec().execution
    identity = {"run_id": run.run_id, "token": "t", "executor": "local", "execution": execution, "host": ""}
    launch = Launch(**identity, attempt=1, rendezvous="", started=1e9)
    assert sync(run, SWEEP, store).child is None  # has not begun: there is no start to tell
    lease = run.acquire("t")
    write_json(run.launch_file(1), launch.model_dump(mode="json"))
    write_rows(run, 1, range(1, 6))
    write_json(run.verdict_file(1), Verdict(state=State.COMPLETED, time=1e9 + 90).model_dump(mode="json"))
    write_json(run.provenance_file(1), {"git_revision": "0123abc"})
    lease.release(State.COMPLETED)
    assert sync(run, SWEEP, store).ok
    (child,) = children(store, run)
    assert (child.info.start_time, child.info.end_time) == (10**12, 10**12 + 90_000)
    assert child.data.tags["mlflow.source.git.commit"] == "0123abc"
    assert child.data.tags["mlflow.user"] == run.path.owner()
    (given,) = child.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("text", "0")
    assert [one.path for one in MlflowClient(store).list_artifacts(child.info.run_id)] == ["provenance.json"]


def test_the_view_that_is_shared_begins_with_validation_perplexity_against_tokens(
    store: str, run: RunDirectory
) -> None:
    write_rows(run, 1, range(1, 3))
    sync(run, "viewed", store)
    experiment = MlflowClient(store).get_experiment_by_name("viewed")
    link = charts_link(experiment.experiment_id)
    assert "workflowType=machine_learning" in link
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{link.rpartition('=')[2]}"])
    first = view["compareRunCharts"][0]
    assert (first["metricKey"], first["selectedXAxisMetricKey"]) == ("validation/perplexity", "progress/tokens")
    assert first["metricSectionId"] == view["compareRunSections"][0]["uuid"]
    assert view["compareRunSections"][0]["columns"] == 1
