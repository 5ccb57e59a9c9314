"""A sweep, its MLflow experiment and a table written of its rows are fitted on the same rows, to the last digit."""

import gzip
import io
import math
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow
import pytest
from mlflow.tracking import MlflowClient
from ports import free_port
from waiting import wait_until

from analysis.data import runs, tracking_store
from analysis.fitting import families
from orchestrator import Plan, Sweep
from orchestrator.execution import shipping
from xlstm.run.directory import Workspace
from xlstm.run.records import Metric, Validation
from xlstm.run.tracking.store import Place

RATES = ("tokens: [2560, 5120]", "tokens: [2560, 5120, 7680, 10240]\n  learning_rate: [1e-3, 1e-2, 1e-1]")
SIZES = ("size: [small]", "size: [small, large]")
BEST_OF = ("train: {batch_sequences: 8, learning_rate: 1e-2", "best_of: learning_rate\ntrain: {batch_sequences: 8")


@pytest.fixture
def complete(finish: Callable[..., None], write_sweep: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """Plans the tiny sweep with three rates under a name, and leaves every run complete and tracked."""
    monkeypatch.setattr(families, "fit", partial(families.fit, num_draws=12, num_starts=64))

    def submit(name: str, *, workspace: Path | None = None, rates: str = "[1e-3, 1e-2, 1e-1]") -> Plan:
        if workspace is not None:
            monkeypatch.setenv("SCALING_WORKSPACE", str(workspace))
        file = write_sweep(RATES, SIZES, BEST_OF, ("name: tiny", f"name: {name}"), ("[1e-3, 1e-2, 1e-1]", rates))
        plan = Sweep.load(file).plan()
        plan.save()
        for planned in plan.runs:
            if planned.state == "COMPLETED":
                continue
            row, run = planned.document(), plan.workspace.run(planned.run_id)
            off = abs(math.log10(row["learning_rate"] / 1e-2)) * (0.07 + row["tokens"] / 1e6)
            loss = (1.5 + 30 / row["parameters"]["total"] ** 0.3 + 40 / row["tokens"] ** 0.3) * (1 + off)
            measured = {"loss": loss, "perplexity": math.exp(loss), "tokens": 1}
            evaluation = planned.spec.evaluation_fingerprint
            about = {"tokens": row["tokens"], "schedule": planned.spec.physics.schedule.kind}
            about |= {"computed_on": f"{row['size']} processor, numba kernels"}
            run.create(planned.spec)
            validated = {"step": row["steps"], "time": time.time(), "attempt": 1, Metric.VALIDATION_LOSS: loss}
            run.append_metrics(validated)
            finish(plan.workspace, planned, validation=Validation(**measured, evaluation=evaluation), **about)
        shipped, complaint = shipping.ship(plan.workspace, name, [run.run_id for run in plan.runs])
        assert complaint is None
        assert len(shipped) == len(plan.runs)
        return plan

    return submit


def used(scaling: Any, source: str) -> Any:
    """What a fit says, and of which rows."""
    said = scaling("fit", source, "--json")
    assert said.code == 0, said.err
    return {key: value for key, value in said.json[0].items() if key != "rows"}, said.json[0]["rows"]


def tables_of(frame: pl.DataFrame) -> dict[str, bytes]:
    """The frame in every format of a table, by the name of the file."""
    parquet, arrow = io.BytesIO(), io.BytesIO()
    frame.write_parquet(parquet)
    frame.write_ipc(arrow)
    return {
        "rows.csv": frame.write_csv().encode(),
        "rows.tsv": frame.write_csv(separator="\t").encode(),
        "rows.json": frame.write_json().encode(),
        "rows.jsonl": frame.write_ndjson().encode(),
        "rows.parquet": parquet.getvalue(),
        "rows.arrow": arrow.getvalue(),
        "rows.feather.zst": pyarrow.compress(arrow.getvalue(), "zstd", asbytes=True),
        "rows.csv.gz": gzip.compress(frame.write_csv().encode()),
    }


@pytest.fixture(params=["SQL", "a server"])
def read_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads the store by SQL, or through MLflow's client, as over a server."""
    if request.param == "a server":
        monkeypatch.setattr(tracking_store, "is_database", lambda uri: False)


@pytest.mark.usefixtures("read_by")
def test_a_sweep_its_experiment_and_its_table_are_fitted_on_the_same_rows(
    scaling: Any, complete: Callable[..., Plan], tmp_path: Path
) -> None:
    complete("rates")
    law, rows = used(scaling, "rates")
    assert rows["used"] == 8
    assert len(rows["excluded"]) == 16
    assert [one["code"] for one in law["warnings"]].count("several-machines") == 1
    assert used(scaling, "mlflow:rates") == (law, rows)
    frame = runs.read("rates", workspace=Workspace(scaling.workspace)).frame
    frame.write_csv(tmp_path / "rows.csv")
    assert used(scaling, str(tmp_path / "rows.csv")) == (law, rows)
    axis = scaling("fit", "rates", "--best-of", "rate")
    assert axis.code == 2
    assert "no axis 'rate' in the plan" in axis.err


def test_a_table_of_any_format_has_the_rows_of_the_sweep_it_was_written_of(
    scaling: Any, complete: Callable[..., Plan], tmp_path: Path
) -> None:
    complete("rates")
    frame = runs.read("rates", workspace=Workspace(scaling.workspace)).frame
    assert frame["excluded"].null_count() == 8
    said = ["run_id", "family", "seed", "parameters", "tokens", "flops", "loss", "evaluation", "cluster", "excluded"]
    for name, content in tables_of(frame).items():
        (tmp_path / name).write_bytes(content)
        assert runs.read(str(tmp_path / name)).frame.select(said).equals(frame.select(said)), name


@pytest.mark.usefixtures("read_by")
def test_runs_that_a_later_plan_drops_are_left_out_of_the_experiment_with_that_reason(
    scaling: Any, complete: Callable[..., Plan]
) -> None:
    first = complete("rates")
    planned = Sweep.load(str(scaling.workspace / "sweeps" / "rates" / "sweep.yaml"), ["grid.learning_rate=[1e-3,1e-1]"])
    assert len(planned.plan().dropped) == 8
    second = complete("rates", rates="[1e-3, 1e-1]")
    gone = {run.run_id for run in first.runs} - {run.run_id for run in second.runs}
    assert len(gone) == 8
    law, rows = used(scaling, "rates")
    same, tracked = used(scaling, "mlflow:rates")
    assert same == law
    assert tracked["used"] == rows["used"] == 8
    said = {row["row"]: row["reason"] for row in tracked["excluded"] if row["row"] in gone}
    assert said == dict.fromkeys(gone, "not of the sweep rates as it was last submitted")


@pytest.mark.usefixtures("read_by")
def test_another_workspace_on_the_same_server_shares_neither_rows_nor_the_parent_run(
    scaling: Any, complete: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    complete("rates", workspace=tmp_path / "theirs", rates="[1e-2, 1e-1]")
    ours = complete("rates", workspace=scaling.workspace)
    law, rows = used(scaling, "rates")
    same, tracked = used(scaling, "mlflow:rates")
    assert same == law
    assert tracked["used"] == rows["used"]
    reasons = [row["reason"] for row in tracked["excluded"] if "another workspace" in row["reason"]]
    assert len(reasons) == 16
    assert all(str(tmp_path / "theirs") in reason for reason in reasons)
    frame = runs.read("mlflow:rates", workspace=ours.workspace).frame
    usable = frame.filter(pl.col("excluded").is_null())
    assert runs.load_curves("mlflow:rates", frame, workspace=ours.workspace)["run_id"].n_unique() == usable.height

    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'rates'")
    parents = client.search_runs([experiment.experiment_id], "tags.kind = 'sweep'")
    assert {run.data.tags["directory"] for run in parents} == {str(tmp_path / "theirs"), str(scaling.workspace)}
    by_place = {run.data.tags["directory"]: run.info.run_id for run in parents}
    children = client.search_runs([experiment.experiment_id], "tags.kind = 'run'")
    assert len(children) == 40
    for child in children:
        (place,) = [place for place in by_place if child.data.tags["directory"].startswith(f"{place}/")]
        assert child.data.tags["mlflow.parentRunId"] == by_place[place]


def test_a_parent_run_that_names_no_workspace_is_that_of_the_runs_below_it(
    scaling: Any, complete: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    plan = complete("rates")
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'rates'")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.kind = 'sweep'")
    client.delete_tag(parent.info.run_id, "directory")  # as an earlier version left it
    elsewhere = Workspace(tmp_path / "theirs")
    assert Place("rates", uri, elsewhere.artifacts).parent != parent.info.run_id
    assert Place("rates", uri, plan.workspace.artifacts).parent == parent.info.run_id


@pytest.fixture
def postgresql() -> Iterator[str]:
    """The address, with a password, of a database of a PostgreSQL server of its own; skips where there can be none."""
    pytest.importorskip("psycopg", reason="PostgreSQL as MLflow's store needs its driver: pip install '.[test]'")
    if (initdb := shutil.which("initdb")) is None:
        pytest.skip("no PostgreSQL server on this machine: apt-get install postgresql")
    postgres = Path(initdb).resolve().with_name("postgres")
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        port = free_port()
        (Path(folder) / "password").write_text("s3cretpw")
        for path in (folder, f"{folder}/password"):
            shutil.chown(path, user or os.getuid())
        data = f"{folder}/data"
        asked = ["-D", data, "-U", "alice", "-A", "scram-sha-256", f"--pwfile={folder}/password"]
        subprocess.run([initdb, *asked], user=user, cwd=folder, check=True, capture_output=True)
        command = [str(postgres), "-D", data, "-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1"]
        with open(Path(folder) / "log", "wb") as log:
            server = subprocess.Popen(command, user=user, cwd=folder, stdout=log, stderr=log)
        try:
            said = (Path(folder) / "log").read_text
            wait_until(lambda: server.poll() is not None or "ready to accept connections" in said(), said)
            assert server.poll() is None, said()
            yield f"postgresql://alice:s3cretpw@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # it does not wait for who is still connected
            server.wait()


@pytest.mark.serial
@pytest.mark.slow
def test_a_sweep_and_its_experiment_in_postgresql_are_fitted_on_the_same_rows(
    scaling: Any, complete: Callable[..., Plan], postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgresql)
    monkeypatch.chdir(tmp_path)  # below which MLflow keeps the files of runs, where a database says nothing of them
    complete("rates")
    law, rows = used(scaling, "rates")
    assert rows["used"] == 8
    assert used(scaling, "mlflow:rates") == (law, rows)  # by SQL
    monkeypatch.setattr(tracking_store, "is_database", lambda uri: False)
    assert used(scaling, "mlflow:rates") == (law, rows)  # by MLflow's client
    files = [path for path in scaling.workspace.rglob("*") if path.is_file()]
    assert [path for path in files if b"s3cretpw" in path.read_bytes()] == []
