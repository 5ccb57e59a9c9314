"""The plan says, before anything is spent, what runs take of cards, disks and hours, and learns from finished runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.planning.layouts import check
from orchestrator.planning.plan import Plan, make_plan
from sweeps.sweep import Sweep
from xlstm.run.directory import Workspace

WriteSweep = Callable[..., str]
MISSION = "xlstm-125m-2.7b"


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., Plan]:
    def plan(sweep: str, *overrides: str) -> Plan:
        return make_plan(Sweep.load(sweep, overrides), Workspace(tmp_path / "workspace"))

    return plan


def test_every_batch_is_cut_into_passes_that_fit_the_stated_card(planned: Callable[..., Plan]) -> None:
    plan = planned(MISSION)
    assert len(plan.runs) == 25
    assert plan.misfits == []
    for run in plan.runs:
        document = run.document()
        assert document["gpu"] == "H100-80GB"
        assert document["micro_batch_sequences"] * document["accumulation"] * document["ranks"] == 256
        assert document["memory_gib_per_device"] <= document["usable_gib_per_device"] < 80
        # Three moments of 4 bytes per parameter in each of the last two checkpoints and the final one.
        assert document["disk_gib"] == pytest.approx(3 * 12 * document["parameters"]["total"] / 2**30)


def test_the_largest_model_on_32_small_gpus_is_named_with_what_would_help(planned: Callable[..., Plan]) -> None:
    resources = "resources=[{set: {nodes: 4, gpus: 8, gpu: A10-24GB}}]"
    grid = ('grid.model=["xlstm[1:0]"]', "grid.size=[125M, 2.7B]")
    small, large = planned(MISSION, *grid, resources).runs
    assert small.misfit is None
    assert large.misfit is not None
    assert large.misfit.startswith("xlstm-1-0-2.7B")
    assert "each of its 32 devices needs about" in large.misfit
    assert "A10-24GB" in large.misfit
    assert "activation_checkpointing: full" in large.misfit
    recomputed = resources.replace("A10-24GB", "A10-24GB, activation_checkpointing: full")
    assert planned(MISSION, *grid, recomputed).misfits == []


def test_runs_in_float32_on_a_gpu_are_told_what_it_has_for_them(planned: Callable[..., Plan]) -> None:
    assert planned(MISSION).advice == []
    (line,) = planned(MISSION, "train.precision=float32").advice
    assert line.startswith("25 runs compute in float32, for which H100-80GB has 67 of its 989 TFLOP/s")


def test_hours_are_flops_at_the_stated_share_of_the_peak_and_cost_their_price(planned: Callable[..., Plan]) -> None:
    resources = "resources=[{when: {size: 125M}, set: {gpu: A100-80GB, mfu: 0.5}}, {set: {gpus: 8, gpu: H100-80GB}}]"
    document = planned(MISSION, "grid.model=llama", "grid.size=[125M, 350M]", resources).document(price=2.0)
    small, large = document["runs"]
    assert small["device_hours"] == pytest.approx(small["flops"]["exact"] / (0.5 * 312e12) / 3600)
    assert large["device_hours"] == pytest.approx(large["flops"]["exact"] / (0.4 * 989e12) / 3600)
    assert {run["device_hours_basis"] for run in document["runs"]} == {"stated"}
    assert small["cost"] == pytest.approx(2 * small["device_hours"])
    assert document["totals"]["cost"] == pytest.approx(small["cost"] + large["cost"])


def test_hours_on_a_gpu_know_that_an_slstm_goes_step_by_step(planned: Callable[..., Plan]) -> None:
    resources = "resources=[{set: {gpus: 1, gpu: H100-80GB, micro_batch_sequences: 4}}]"
    document = planned(MISSION, 'grid.model=["xlstm[1:0]", "xlstm[7:1]"]', "grid.size=[1.3B]", resources).document()
    without, mixed = document["runs"]
    by_flops = mixed["flops"]["exact"] / (0.4 * 989e12) / 3600
    layers, tokens = 6, mixed["tokens"]
    assert without["device_hours"] == pytest.approx(without["flops"]["exact"] / (0.4 * 989e12) / 3600)
    assert mixed["device_hours"] == pytest.approx(by_flops + tokens / 4 * layers * 8e-6 / 3600)
    assert mixed["mfu"] == pytest.approx(0.4 * by_flops / mixed["device_hours"])


def test_a_finished_run_recalibrates_what_is_left(
    write_sweep: WriteSweep, planned: Callable[..., Plan], finish: Callable[..., None]
) -> None:
    path = write_sweep(("set: {", "set: {devices: 2, "), ("tokens: [2560, 5120]", "tokens: [2560, 512000]"))
    before = planned(path)
    first = before.runs[0]
    seconds = first.spec.physics.tokens / 1000 + 7
    spent = {"wall_seconds": seconds, "device_hours": 2 * seconds / 3600}
    finish(before.workspace, first, tokens_per_second=1000.0, **spent)
    after = planned(path)
    done, left = (run.document() for run in after.runs)
    assert done["state"] == "COMPLETED"
    assert left["device_hours_basis"] == "measured"
    # The same model: 512,000 tokens at 1,000 a second and 7 s of start and validation, on two devices.
    assert left["device_hours"] == pytest.approx(2 * (512_000 / 1000 + 7) / 3600)
    assert after.totals["device_hours"] == left["device_hours"]


def test_a_plan_is_json_and_reads_back_as_it_was_kept(planned: Callable[..., Plan]) -> None:
    plan = planned("quickstart")
    plan.save()
    kept = json.loads(plan.directory.plan_file.read_text())
    assert kept["runs"] == json.loads(json.dumps(plan.document()["runs"]))
    assert {run["fits"] for run in kept["runs"]} == {None}  # on CPU nobody asks for a card


def test_memory_on_cpu_is_that_of_the_process(planned: Callable[..., Plan]) -> None:
    """Peaks of processes of the quickstart's sizes, 1,024 tokens a step, as the system counts them, in GiB."""
    measured = {"llama-49.3K": 0.53, "llama-492K": 0.56, "xlstm-3-1-51.8K": 0.54, "xlstm-3-1-502K": 0.60}
    plan = planned("quickstart", "grid.size=[50K, 500K]", "grid.tokens=[250K]")
    found = {run.run_id.rpartition("-250K")[0]: run.capacity.memory_gib for run in plan.runs}
    assert {name: found[name] for name in measured} == pytest.approx(measured, rel=0.03)


def test_a_card_that_nobody_knows_is_refused_with_the_nearest(scaling: Any, write_sweep: WriteSweep) -> None:
    said = scaling("plan", write_sweep(("set: {", "set: {gpu: H100-80G, ")))
    assert said.code == 2
    assert "did you mean `H100-80GB`?" in said.err


def test_the_terminal_shows_misfits_and_exits_well(scaling: Any) -> None:
    card = "resources=[{set: {gpus: 4, gpu: T4-16GB}}]"
    said = scaling("plan", MISSION, "--set", "grid.size=2.7B", "--set", "grid.model=[llama]", "--set", card)
    assert said.code == 0
    assert "does not fit" in said.out
    assert "on T4-16GB" in said.out
    # Submitting says it once more before it looks for the data, which is not here.
    again = scaling("submit", MISSION, "--set", "grid.size=2.7B", "--set", "grid.model=[llama]", "--set", card)
    assert "does not fit" in again.out


def test_a_check_builds_each_distinct_layout_once_and_names_what_does_not_fit(scaling: Any) -> None:
    families = 'grid.model=["xlstm[1:0]", llama]'
    large = "resources=[{when: {size: 2.7B}, set: {nodes: 4, gpus: 8, gpu: A10-24GB}}, {set: {gpus: 1}}]"
    seeds = ("--set", "grid.seed=[0, 1]", "--set", "grid.size=[125M, 2.7B]", "--set", families)
    said = scaling("plan", MISSION, "--check", "--json", *seeds, "--set", large)
    assert said.code == 2
    check = said.json["check"]
    assert check["layouts"] == 4  # of eight runs: seeds share their layout
    assert len(check["memory_gib"]) == 8
    unfit = {run["run_id"] for run in said.json["runs"] if run["model"] == "xlstm[1:0]" and run["size"] == "2.7B"}
    assert check["problems"].keys() == unfit
    recomputed = large.replace("A10-24GB", "A10-24GB, activation_checkpointing: full")
    fits = scaling("plan", MISSION, "--check", *seeds, "--set", recomputed)
    assert fits.code == 0
    assert "4 layouts built: all can be trained as planned" in fits.out


def test_a_layout_that_cannot_be_built_is_named_with_the_reason(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    from xlstm.training import parallel

    def refused(*_: object) -> None:
        raise ValueError("no such mesh")

    monkeypatch.setattr(parallel, "parallelize", refused)
    plan = planned(MISSION, "grid.size=125M", "grid.model=[llama]")
    found = check(plan)
    assert found.problems == {
        run.run_id: f"{run.run_id} cannot be laid out: ValueError: no such mesh" for run in plan.runs
    }
