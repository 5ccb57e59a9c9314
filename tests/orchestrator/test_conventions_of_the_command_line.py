"""What people expect of a command line and of a library: versions, workspaces, overrides, tables, deletion, export."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import orchestrator
from orchestrator import Sweep
from orchestrator.standing.status import look
from xlstm.run.directory import Workspace
from xlstm.run.records import State

WriteSweep = Callable[..., str]


def test_the_version_is_told(scaling: Any) -> None:
    assert scaling("--version").out == f"scaling-orchestrator {orchestrator.__version__}\n"
    assert "--install-completion" in scaling("--help").out
    assert "local|ray|slurm" in scaling("submit", "--help").out


def test_a_workspace_is_chosen_and_plain_overrides_are_as_those_with_set(
    scaling: Any, write_sweep: WriteSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sweep()
    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path / "other"))
    said = scaling("--workspace", str(tmp_path / "chosen"), "status")
    assert str(tmp_path / "chosen") in said.out
    plain = scaling("plan", path, "grid.seed=[0, 1]", "--json").json
    assert plain == scaling("plan", path, "--set", "grid.seed=[0, 1]", "--json").json
    assert len(plain["runs"]) == 4


def test_a_sweep_is_made_of_a_dictionary_and_shown_in_short(scaling: Any, write_sweep: WriteSweep) -> None:
    loaded = Sweep.load(write_sweep())
    made = Sweep.from_dict(json.loads(loaded.dump()))
    assert [run.spec for run in made.runs] == [run.spec for run in loaded.runs]
    plan = made.plan()
    assert repr(plan) == "<plan of tiny: 2 runs, 0 complete>"
    assert plan.to_frame()["run_id"].to_list() == [run.run_id for run in plan.runs]
    assert "<table" in plan._repr_html_()
    plan.save()
    assert repr(look(plan.workspace, "tiny")) == "<standing of tiny: 2 runs, 2 planned>"


def test_runs_are_a_table_with_every_setting(
    scaling: Any, write_sweep: WriteSweep, finish: Callable[..., None], tmp_path: Path
) -> None:
    plan = Sweep.load(write_sweep()).plan()
    plan.save()
    finish(plan.workspace, plan.runs[0])
    assert scaling("runs", "tiny", "--csv", str(tmp_path / "runs.csv")).code == 0
    frame = pl.read_csv(tmp_path / "runs.csv")
    assert frame["optimizer.learning_rate"].to_list()[0] == 1e-2
    assert frame["data.context_length"].to_list()[0] == 32
    assert frame["state"].to_list() == ["COMPLETED", "PLANNED"]
    assert frame["loss"].to_list() == [1.0, None]
    assert scaling("runs", "tinny").code == 2


def test_what_somebody_needs_is_not_deleted(scaling: Any, write_sweep: WriteSweep, finish: Callable[..., None]) -> None:
    plan = Sweep.load(write_sweep()).plan()
    plan.save()
    first, second = plan.runs
    for run in plan.runs:
        finish(plan.workspace, run)
    other = Sweep.load(write_sweep(("name: tiny", "name: other"), ("[2560, 5120]", "[2560]"))).plan()
    other.save()
    workspace = Workspace(scaling.workspace)
    assert "belongs to" in scaling("delete", first.run_id, "--yes").err
    workspace.run(second.run_id).set_state(State.QUEUED)
    assert f"{second.run_id} is queued; end it first" in scaling("delete", "tiny", "--yes").err
    workspace.run(second.run_id).set_state(State.COMPLETED)
    assert scaling("delete", "tiny").code == 2  # nobody can be asked
    assert scaling("delete", "tiny", "--dry-run").code == 0
    assert workspace.run(second.run_id).path.exists()
    said = scaling("delete", "tiny", "--yes")
    assert said.code == 0, said
    assert f"kept, for another sweep holds it: {first.run_id}" in said.out
    assert workspace.run(first.run_id).path.exists()
    assert not workspace.run(second.run_id).path.exists()
    assert workspace.submitted() == ["other"]


def test_a_trunk_that_an_unfinished_fork_needs_is_not_deleted(scaling: Any, write_sweep: WriteSweep) -> None:
    schedule = ("warmup_steps: 2", "warmup_steps: 2, schedule: wsd, decay_fraction: 0.2")
    plan = Sweep.load(write_sweep(schedule)).plan()
    plan.save()
    fork = next(run for run in plan.runs if run.share.fork is not None)
    trunk = plan.workspace.run(fork.share.fork.run_id)
    for run in plan.runs:
        plan.workspace.run(run.run_id).create(run.spec)
    said = scaling("delete", trunk.run_id, "--yes")
    assert (said.code, trunk.path.exists()) == (2, True)
    assert f"{trunk.run_id} is the trunk that {fork.run_id} of tiny still has to start from" in said.err


def test_a_trained_run_is_exported_with_tokenizer_card_and_generation_settings(
    scaling: Any, write_sweep: WriteSweep, finish: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from xlstm.data import preparation
    from xlstm.export import transformers
    from xlstm.generation import TrainedRun
    from xlstm.models import build

    plan = Sweep.load(write_sweep(("[llama]", '[llama, "xlstm[1:0]"]'), ("[2560, 5120]", "[2560]"))).plan()
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    (prepared / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(preparation, "open_prepared", lambda data, workspace: SimpleNamespace(path=prepared))
    models = {run.run_id: build(run.spec.physics.model) for run in plan.runs}
    monkeypatch.setattr(
        TrainedRun,
        "load",
        lambda run, device: TrainedRun(run.run_id, 10, models[run.run_id], SimpleNamespace(end_of_document=7)),
    )
    llama, xlstm = sorted(plan.runs, key=lambda run: run.sweep_run.point["model"])
    for run in plan.runs:
        finish(plan.workspace, run)
        plan.workspace.run(run.run_id).model_card_file.write_text("# a card")
    said = scaling("export", llama.run_id, str(tmp_path / "out"))
    assert said.code == 0, said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "tokenizer.json"),
        *("tokenizer_config.json", "generation_config.json", "README.md"),
    }
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 7
    model, _ = transformers.load(tmp_path / "out")
    assert all((a == b).all() for a, b in zip(model.parameters(), models[llama.run_id].parameters(), strict=True))
    assert "not empty" in scaling("export", llama.run_id, str(tmp_path / "out")).err
    refused = scaling("export", xlstm.run_id, str(tmp_path / "other"))
    assert (refused.code, (tmp_path / "other").exists()) == (2, False)
    assert "TrainedRun.load has the model" in refused.err


def test_a_fit_is_shown_in_short(scaling: Any, tmp_path: Path) -> None:
    from analysis.data import runs
    from analysis.fitting import families

    rows = [(n, d, 1.7 + 400 / n**0.34 + 410 / d**0.28) for n in (1e6, 4e6, 1.6e7) for d in (1e8, 4e8, 1.6e9)]
    pl.DataFrame(rows, schema=["parameters", "tokens", "loss"], orient="row").write_csv(tmp_path / "runs.csv")
    (fitted,) = families.fit(runs.load(str(tmp_path / "runs.csv"), workspace=Workspace(tmp_path)))
    assert repr(fitted).startswith("<fit of ")
    assert repr(fitted).endswith("; 9 runs>")
    assert "alpha" in fitted._repr_html_()


def test_cores_are_counted_where_the_system_has_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    import psutil

    from xlstm.run.processes import usable_cores

    assert usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(psutil.Process, "cpu_affinity")
    assert usable_cores() == psutil.cpu_count()
