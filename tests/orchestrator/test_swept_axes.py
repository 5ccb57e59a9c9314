"""What people swept is seen, at every width of a terminal; what repeats is said once; what is priced are GPUs."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator import Sweep
from orchestrator.display.progress import state_word
from orchestrator.display.tables import plan_table, runs_table
from orchestrator.standing.status import look
from xlstm.run.records import State

WriteSweep = Callable[..., str]
SWEPT = ("tokens: [2560, 5120]", "tokens: [2560]\n  learning_rate: [3e-3, 1e-2]")


def printed(table: Any, width: int) -> list[str]:
    console = Console(width=width, record=True, markup=False, file=io.StringIO())
    console.print(table, soft_wrap=True)
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_plan_and_status_show_swept_axes_within_the_width(scaling: Any, write_sweep: WriteSweep, width: int) -> None:
    made = Sweep.load(write_sweep(SWEPT)).plan()
    made.save()
    for table in (plan_table(made.document(), width), runs_table(look(made.workspace, "tiny").runs, width)):
        heading, *rows = printed(table, width)
        assert {"run", "learning_rate", "size"} <= set(heading.split())
        assert [row.split()[:3] for row in rows] == [
            [run.run_id, "small", f"{run.spec.physics.optimizer.learning_rate:g}"] for run in made.runs
        ]
        assert all(len(line) <= width for line in (heading, *rows))


@pytest.mark.parametrize("width", [60, 80])
def test_two_swept_axes_fold_no_line_of_a_narrow_terminal(scaling: Any, write_sweep: WriteSweep, width: int) -> None:
    axes = f"{SWEPT[1]}\n  gradient_clip: [0.5, 1.5]\n  weight_decay: [0.0, 0.1]"
    made = Sweep.load(write_sweep((SWEPT[0], axes))).plan()
    made.save()
    for table in (plan_table(made.document(), width), runs_table(look(made.workspace, "tiny").runs, width)):
        heading, *rows = printed(table, width)
        assert all(len(line) <= width for line in (heading, *rows))
        for row, run in zip(rows, made.runs, strict=True):
            assert row.split()[0][-9:].removeprefix("…") in run.run_id
            assert row.split()[0].endswith(run.run_id[-8:])  # by which `scaling logs` finds it
            point = run.document()["point"]
            assert row.split()[2:5] == [f"{point[axis]:g}" for axis in axes_of(heading)]


def axes_of(heading: str) -> list[str]:
    """The swept axes that a heading names, whole or cut."""
    known = ("learning_rate", "gradient_clip", "weight_decay")
    words = [word.removesuffix("…") for word in heading.split()]
    return [axis for word in words for axis in known if axis.startswith(word) and len(word) > 4]


def test_status_as_json_has_the_point(scaling: Any, write_sweep: WriteSweep) -> None:
    Sweep.load(write_sweep(SWEPT)).plan().save()
    runs = scaling("status", "tiny", "--json").json["runs"]
    assert [run["point"]["learning_rate"] for run in runs] == [3e-3, 1e-2]


def test_what_runs_and_has_no_step_yet_is_starting() -> None:
    assert state_word(State.RUNNING, 0) == "starting"
    assert state_word(State.RUNNING, 256) == "running"
    assert state_word(State.QUEUED, 0) == "queued"


def test_the_price_is_of_gpus_and_the_time_of_cpus_is_named_apart(scaling: Any, write_sweep: WriteSweep) -> None:
    path = write_sweep(
        ("resources: [", "resources: [{when: {tokens: 2560}, set: {device: cpu}}, {set: {gpus: 1, gpu: H100-80GB}}, ")
    )
    document = scaling("plan", path, "--price", "2", "--json").json
    cpu, gpu = sorted(document["runs"], key=lambda run: run["gpu"] is not None)
    assert (cpu["cost"], gpu["cost"]) == (0.0, pytest.approx(2 * gpu["device_hours"]))
    assert document["totals"]["cost"] == pytest.approx(gpu["cost"])
    said = scaling("plan", path).out
    assert "of device time on H100-80GB and " in said
    assert "of CPU time at" in said


def test_a_mistake_of_many_runs_is_said_once_and_which_run_is_told(scaling: Any, write_sweep: WriteSweep) -> None:
    points = "".join("\n  - {tokens: 7680, learning_rate: 1e-3, modle: llama}" for _ in range(32))
    said = scaling("plan", write_sweep(("train: {", f"include:{points}\ntrain: {{")))
    (line,) = said.err.splitlines()
    assert "(32 times: also at lines " in line
    said = scaling("plan", write_sweep(("warmup_steps: 2", "warmup_steps: 15")))
    assert "a run of 10 steps is shorter than its warm-up of 15 (llama, size small, tokens: 2560)" in said.err


def test_a_typing_error_of_a_slurm_setting_is_found_by_plan(scaling: Any, write_sweep: WriteSweep) -> None:
    path = write_sweep(("set: {", "set: {slurm: {partitionn: main}, "))
    said = scaling("plan", path)
    at = next(number for number, text in enumerate(Path(path).read_text().splitlines(), 1) if "partitionn" in text)
    wrong = "resources.slurm.partitionn: no such setting; did you mean `partition`?"
    assert (said.code, said.err) == (2, f"{path}:{at}: {wrong}\n")
    said = scaling("plan", write_sweep(("set: {", "set: {slurm: {setup: [module load cuda]}, ")))
    (line,) = said.err.splitlines()
    assert "what a shell runs (setup, python, container) stands under `slurm:` in config.yaml" in line


def test_a_shipped_sweep_without_its_text_says_where_to_read_how_to_get_it(scaling: Any) -> None:
    said = scaling("plan", "wikitext-2")
    assert said.code == 2
    assert "wikitext-2.yaml say how to get the text" in said.err
