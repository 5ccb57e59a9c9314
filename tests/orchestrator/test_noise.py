"""What rounding alone does to a run's loss is measured beside the run, and touches nothing of it."""

import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator import Sweep
from orchestrator.standing.noise import REPEATS, executions, repeat_of
from xlstm.data import prepare
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.records import Validation, write_json
from xlstm.run.spec import Execution

WriteSweep = Callable[..., str]


def contents(run: RunDirectory) -> dict[str, bytes]:
    """Every file of a run but those of its repeats."""
    return {
        str(path): path.read_bytes()
        for path in run.path.rglob("*")
        if path.is_file() and not path.is_relative_to(run.noise)
    }


@pytest.mark.serial
def test_repeats_lie_in_the_folder_of_the_run_and_touch_nothing_of_it(
    scaling: Any, write_sweep: WriteSweep, finish: Any, trivial: Any
) -> None:
    plan = Sweep.load(write_sweep(trivial.runs(1))).plan()
    plan.save()
    (planned,) = plan.runs
    run = plan.workspace.run(planned.run_id)
    run.create(planned.spec)
    assert f"{run.run_id} is not complete" in scaling("noise", "llama").err
    text = prepare(planned.spec.physics.data, planned.spec.execution.data_paths, plan.workspace).fingerprint
    measured = Validation(loss=2.0, perplexity=7.4, tokens=1, evaluation=planned.spec.evaluation_fingerprint)
    finish(plan.workspace, planned, validation=measured, data_fingerprint=text, tokens=1024, tokens_per_second=512.0)
    before = contents(run)

    refused = scaling("noise", "llama")
    assert refused.code == 2
    assert "3 repeats with other threads, kernels, micro-batch; 3.07K tokens, about 0:06 of device time" in refused.out
    assert refused.err.strip() == "nothing was trained: nobody can be asked here; say --yes"
    assert not run.noise.exists()

    trivial.prepare([planned.spec], {})  # every repeat comes to a loss of 1
    run.noise.mkdir()
    (run.noise / "trivial").symlink_to(trivial.folder)
    said = scaling("noise", "llama", "--yes")
    assert said.code == 0, said
    floor = statistics.stdev([math.log(2), 0, 0, 0])
    assert f"moves the logarithm of its loss by {floor:.2g}" in said.out
    assert contents(run) == before
    assert not (plan.workspace.root / "mlflow.db").exists()
    how = {name: repeat_of(run, name).launch(1) for name in REPEATS}
    assert [launch.execution.threads_per_rank for launch in how.values() if launch] == [2, 1, 1]
    assert [launch.execution.kernels for launch in how.values() if launch] == ["auto", "torch", "auto"]
    assert [launch.execution.micro_batch_sequences for launch in how.values() if launch] == [None, None, 4]
    assert not any(path.is_symlink() for path in run.noise.glob("*/data"))

    again = scaling("noise", "llama", "--json")  # trains nothing
    assert again.json == {
        "run_id": run.run_id,
        "floor": floor,
        "loss": 2.0,
        "repeats": {"threads": 1.0, "kernels": 1.0, "micro-batch": 1.0},
    }
    assert scaling("status", "tiny", "--json").json["runs"][0]["state"] == "COMPLETED"
    assert scaling("sync").code == 0


def test_the_measured_floor_stands_beside_hubers_delta(
    scaling: Any, write_sweep: WriteSweep, finish: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from functools import partial

    from analysis.fitting import families

    monkeypatch.setattr(families, "fit", partial(families.fit, num_draws=12, num_starts=64))
    path = write_sweep(("size: [small]", "size: [small, large]"), ("[2560, 5120]", "[2560, 5120, 7680, 10240]"))
    plan = Sweep.load(path).plan()
    plan.save()
    for planned in plan.runs:
        row = planned.document()
        loss = 1.5 + 30 / row["parameters"]["total"] ** 0.3 + 40 / row["tokens"] ** 0.3
        evaluation = planned.spec.evaluation_fingerprint
        measured = Validation(loss=loss, perplexity=math.exp(loss), tokens=1, evaluation=evaluation)
        finish(plan.workspace, planned, validation=measured, tokens=row["tokens"])
    assert "noise" not in scaling("fit", "tiny", "--json").json[0]
    run = plan.workspace.run(plan.runs[0].run_id)
    own = run.result()
    assert own is not None
    for name, factor in (("threads", 1.002), ("kernels", 0.998)):
        repeated = own.validation.model_copy(update={"loss": own.validation.loss * factor})
        other = repeat_of(run, name)
        other.path.mkdir(parents=True)
        write_json(other.result_file, own.model_copy(update={"validation": repeated}).model_dump(mode="json"))
    elsewhere = repeat_of(run, "micro-batch")  # trained on another text: not compared
    elsewhere.path.mkdir(parents=True)
    drifted = own.model_copy(update={"data_fingerprint": "another"})
    write_json(elsewhere.result_file, drifted.model_dump(mode="json"))
    (document,) = scaling("fit", "tiny", "--json").json
    floor = statistics.stdev([0.0, math.log(1.002), math.log(0.998)])
    assert document["noise"] == {
        "floor": pytest.approx(floor),
        "delta": 0.001,
        "runs": {run.run_id: pytest.approx(floor)},
    }
    line = f"llama: rounding alone moves log losses by {floor:.2g} (1 run repeated), Huber's delta is 0.001"
    assert line in scaling("fit", "tiny").out


@pytest.mark.parametrize(
    ("own", "threads", "kernels", "micro"),
    [
        ({"threads_per_rank": 4, "kernels": "torch"}, 1, "auto", 4),
        ({"micro_batch_sequences": 1}, 2, "torch", 8),
        ({"devices": 8}, 2, "torch", None),
    ],
)
def test_each_repeat_sums_otherwise_than_the_run(
    write_sweep: WriteSweep, own: dict[str, Any], threads: int, kernels: str, micro: int | None
) -> None:
    spec = Sweep.load(write_sweep()).runs[0].spec
    found = executions(spec, Execution(checkpoint_every=5, validate_every=2, **own))
    assert list(found) == list(REPEATS)
    assert found["threads"].threads_per_rank == threads
    assert found["kernels"].kernels == kernels
    assert found["micro-batch"].micro_batch_sequences == micro
    if micro is None:  # a rank passes one sequence: threads and kernels are others, both
        assert (found["micro-batch"].threads_per_rank, found["micro-batch"].kernels) == (threads, kernels)
    assert {one.checkpoint_every for one in found.values()} == {one.validate_every for one in found.values()} == {None}


@pytest.mark.serial
@pytest.mark.slow
def test_real_repeats_of_a_run_differ_by_rounding_alone(scaling: Any, write_sweep: WriteSweep) -> None:
    path = write_sweep(
        ("tokens: [2560, 5120]", "tokens: [5120]"),
        ("model: [llama]", 'model: ["xlstm[1:1]"]'),
        ("num_blocks: 1,", "num_blocks: 2,"),
    )
    assert scaling("submit", path).code == 0
    (folder,) = Workspace(scaling.workspace).runs.iterdir()
    run = Workspace(scaling.workspace).run(folder.name)
    before = contents(run)
    said = scaling("noise", "xlstm", "--yes", "--json")
    assert said.code == 0, said
    assert contents(run) == before
    assert 0 < said.json["floor"] < 1e-3
    assert len(set(said.json["repeats"].values())) > 1
