"""Runs read from an MLflow database: the same as MLflow's client gives, and nothing is written."""

import hashlib
import math
from pathlib import Path

import polars as pl
import pytest

from analysis.data import experiments, runs, tracking_store
from analysis.data.columns import Reading
from analysis.findings import RefusalError

EXPERIMENT = "o's runs"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment(EXPERIMENT)
    client.create_run(experiment, tags={"kind": "sweep"}, run_name="parent")
    for index in range(4):
        run = client.create_run(experiment, tags={"run_id": f"run-{index}", "trunk_id": "t"}, run_name=f"n{index}")
        points = [Metric("validation/loss", 3.1 - 0.1 * step - index / 3, 1000 + step, step) for step in (1, 2, 3)]
        points.append(Metric("validation/loss", 2.5 - index / 3, 2000, 3))  # logged again, later
        points.append(Metric("validation/loss", math.nan, 3000, 4))
        points.append(Metric("other/metric", 1.0, 1, 1))
        client.log_batch(run.info.run_id, metrics=points)
        for name, value in {"n": 10**index, "tokens": 100, "batch_tokens": 20, "parameters.total": 7}.items():
            client.log_param(run.info.run_id, name, value)
        if index < 3:
            client.set_terminated(run.info.run_id)
    deleted = client.create_run(experiment, tags={"run_id": "deleted"})
    client.delete_run(deleted.info.run_id)
    client.create_run(client.create_experiment("elsewhere"), tags={"run_id": "elsewhere"})
    return uri


@pytest.mark.parametrize("metric", ["validation/loss", "other/metric", "absent"])
def test_the_database_gives_the_histories_of_mlflows_client(store: str, metric: str) -> None:
    ours = tracking_store.read_history(EXPERIMENT, store, metric)
    assert ours.equals(tracking_store._history_by_client(EXPERIMENT, store, metric))
    assert ours.height == {"validation/loss": 12, "other/metric": 4, "absent": 0}[metric]


def test_the_database_gives_the_runs_of_mlflows_client(store: str) -> None:
    ours = tracking_store.read_runs(EXPERIMENT, store)
    theirs = tracking_store._runs_by_client(EXPERIMENT, store)
    assert [run.run for run in ours] == [run.run for run in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert (one.status, one.params, one.tags) == (other.status, other.params, other.tags)
        assert one.metrics == pytest.approx(other.metrics, nan_ok=True, rel=0)


def test_of_a_step_logged_twice_the_later_point_counts(store: str) -> None:
    curves = experiments.curves_from_mlflow(EXPERIMENT, store).filter(pl.col("run_id") == "run-0")
    assert curves.rows() == [("run-0", 20.0, 3.0), ("run-0", 40.0, 2.9), ("run-0", 60.0, 2.5)]


def test_reading_leaves_the_database_as_it_was(store: str) -> None:
    path = Path(store.removeprefix("sqlite:///"))
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    tracking_store.read_runs(EXPERIMENT, store)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_another_experiments_columns_are_named_and_parents_left_out(store: str) -> None:
    frame = runs.quality.judge(
        experiments.from_mlflow(EXPERIMENT, store, Reading({"parameters": "params.n", "loss": "metrics.other/metric"}))
    )
    assert frame["run_id"].to_list() == ["run-0", "run-1", "run-2", "run-3"]
    assert frame["flops"].to_list() == [6 * 10**index * 100 for index in range(4)]
    assert frame["cluster"].unique().to_list() == ["t"]
    assert frame["excluded"].to_list() == [None, None, None, "unfinished (RUNNING)"]


@pytest.mark.parametrize(
    ("experiment", "columns", "code", "said"),
    [
        ("nowhere", {}, "no-such-experiment", "there are: Default, elsewhere, o's runs"),
        (
            EXPERIMENT,
            {"loss": "metrics.los"},
            "missing-column",
            "metrics are: metrics.other/metric, metrics.validation/loss",
        ),
        (EXPERIMENT, {"loss": "los"}, "unknown-column", "name params.NAME, metrics.NAME or tags.NAME"),
    ],
)
def test_what_is_not_there_is_named(store: str, experiment: str, columns: dict[str, str], code: str, said: str) -> None:
    with pytest.raises(RefusalError, match=said) as refusal:
        experiments.from_mlflow(experiment, store, Reading(columns))
    assert refusal.value.code == code


def test_a_database_that_is_none_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(RefusalError) as refusal:
        tracking_store.read_runs("x", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert refusal.value.code == "no-such-store"
    assert not list(tmp_path.iterdir())
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(RefusalError) as refusal:
        tracking_store.read_runs("x", f"sqlite:///{tmp_path / 'text.db'}")
    assert refusal.value.code == "unreadable-store"


def test_runs_of_others_are_told_apart_by_mlflows_id_and_their_numbers_read_as_people_write_them(
    tmp_path: Path,
) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("names")
    made = []
    for index in range(4):
        run = client.create_run(experiment, run_name=f"lm-{index % 2}", tags={"run_id": "all the same"})
        for name, value in {"n": f"{125 + index}M", "tokens": "2.5B", "lr": "1e-3"}.items():
            client.log_param(run.info.run_id, name, value)
        client.log_metric(run.info.run_id, "eval/loss", 3.0 - index)
        client.set_terminated(run.info.run_id)
        made.append(run.info.run_id)
    columns = {"parameters": "params.n", "tokens": "params.tokens", "loss": "metrics.eval/loss"}
    reading = Reading(columns)
    frame = runs.quality.judge(experiments.from_mlflow("names", uri, reading, searched=["params.lr"]))
    assert frame["parameters"].to_list() == [125e6, 126e6, 127e6, 128e6]
    assert frame["tokens"].unique().to_list() == [2.5e9]
    assert frame["excluded"].to_list() == [None, None, None, "loss is not a positive finite number"]
    assert all(identity in key for identity, key in zip(made, frame["run_id"], strict=True))
    assert frame["searched: params.lr"].to_list() == [1e-3] * 4
