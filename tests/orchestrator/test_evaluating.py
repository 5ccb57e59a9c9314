"""`scaling evaluate` on a finished sweep measures once and trains nothing; what it measured is found everywhere."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xlstm.run.directory import RunDirectory, Workspace

pytestmark = [pytest.mark.serial, pytest.mark.slow]

EVALUATIONS = """evaluation: {sequences: 16}
evaluations:
  long: {kind: length-extrapolation, contexts: [32, 128], sequences: 3}
  domains: {kind: domains, paths: [paloma]}
"""


def runs_of(scaling: Any) -> list[RunDirectory]:
    workspace = Workspace(scaling.workspace)
    return [workspace.run(row["run_id"]) for row in workspace.sweep("tiny").plan()["runs"]]


def trained(run: RunDirectory) -> Any:
    """What training left: it must not change."""
    rows = [row for row in run.history() if "train/loss" in row or "validation/loss" in row]
    return rows, {path: path.stat().st_mtime_ns for path in run.checkpoints.rglob("*")}, run.result()


def write_domains(folder: Path) -> Path:
    path = folder / "paloma" / "reddit" / "val" / "a.jsonl.gz"
    path.parent.mkdir(parents=True)
    rows = [{"text": f"{number} squared is a number", "subdomain": f"r{number % 3}"} for number in range(9)]
    with gzip.open(path, "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_finished_sweep_is_measured_once_and_trains_nothing(
    scaling: Any, write_sweep: Callable[..., str], tmp_path: Path
) -> None:
    assert scaling("evaluate", write_sweep(), "evaluations.x.kind=token-frequency").code == 2  # nothing is trained yet
    assert (said := scaling("submit", write_sweep())).code == 0, said.err
    runs = runs_of(scaling)
    before = [trained(run) for run in runs]
    assert scaling("evaluate", "tiny").code == 2  # it asks for nothing

    path = write_domains(tmp_path)
    sweep = write_sweep(("evaluation: {sequences: 16}\n", EVALUATIONS))
    whole = path.read_bytes()
    path.write_bytes(gzip.compress(gzip.decompress(whole) + b'{"text": "torn'))
    said = scaling("evaluate", sweep)
    assert (said.code, "a.jsonl.gz:10: not JSON" in said.err) == (2, True)
    path.write_bytes(whole)
    assert all(len(list(run.evaluations.iterdir())) == 1 for run in runs)  # the validation
    said = scaling("evaluate", sweep, "--with", "lang")
    assert (said.code, "did you mean `long`?" in said.err) == (2, True)

    said = scaling("evaluate", sweep, "--json")
    assert said.code == 0, said.err
    assert [(one["run_id"], one["name"]) for one in said.json] == [
        (run.run_id, name) for run in runs for name in ("long", "domains")
    ]
    assert [trained(run) for run in runs] == before
    attempts = [run.status().attempt for run in runs]
    assert attempts == [2, 2]
    assert scaling("evaluate", sweep).code == 0
    assert scaling("submit", sweep).code == 0
    assert [run.status().attempt for run in runs] == attempts  # made before: nothing is run
    assert scaling("evaluate", runs[0].run_id, "evaluations.more.kind=token-frequency").code == 0
    assert [run.status().attempt for run in runs] == [3, 2]

    by_name = {one["name"]: one for one in said.json if one["run_id"] == runs[0].run_id}
    loss = by_name["long"]["measures"]["loss"]
    scaling("runs", "tiny", "--parquet", str(tmp_path / "runs.parquet"))
    import polars as pl

    from analysis.data.runs import load
    from xlstm.run.tracking.store import client_of

    column = "evaluation/long/loss"
    assert pl.read_parquet(tmp_path / "runs.parquet").filter(run_id=runs[0].run_id)[column].item() == loss
    workspace = Workspace(scaling.workspace)
    assert load("tiny", workspace=workspace).filter(run_id=runs[0].run_id)[column].item() == loss
    client = client_of(workspace.tracking_uri, workspace.artifacts)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    (child,) = client.search_runs([experiment.experiment_id], f"tags.run_id = '{runs[0].run_id}'")
    assert child.data.metrics[column] == pytest.approx(loss)
    shown = scaling("table", "tiny", "--evaluation", "long", "--measure", "loss").out
    assert shown.splitlines()[0] == "| loss | 32 | 128 |"
    assert scaling("table", "tiny", "--evaluation", "domains", "--wins", "--json").json[0]["domains"] == 3
