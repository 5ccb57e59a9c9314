"""From a sweep to its runs: which points there are, and which setting each run has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps.sweep import SHIPPED, Sweep
from xlstm import accounting

Load = Callable[..., Sweep]
GRID: dict[str, Any] = {"model": ["llama"], "size": ["small"], "tokens": [65536], "seed": [0]}


def points(sweep: Sweep, *axes: str) -> list[tuple[Any, ...]]:
    return [tuple(run.point[axis] for axis in axes) for run in sweep.runs]


def test_a_grid_is_every_combination_in_the_order_written(load: Load) -> None:
    sweep = load(grid=GRID | {"seed": [3, 1], "tokens": ["64K", "128K"]})
    assert points(sweep, "tokens", "seed") == [(64000, 3), (64000, 1), (128000, 3), (128000, 1)]


def test_zip_pairs_lists_and_multiplies_the_grid(load: Load) -> None:
    sweep = load(grid=GRID | {"seed": [0, 1]}, zip={"learning_rate": [1e-3, 2e-3], "weight_decay": [0.1, 0.2]})
    assert points(sweep, "seed", "learning_rate", "weight_decay") == [
        (0, 1e-3, 0.1),
        (0, 2e-3, 0.2),
        (1, 1e-3, 0.1),
        (1, 2e-3, 0.2),
    ]


def test_exclude_drops_points_and_include_adds_them(load: Load) -> None:
    sweep = load(
        grid=GRID | {"seed": [0, 1], "tokens": [65536, 131072]},
        exclude=[{"seed": 1, "tokens": 131072}],
        include=[{"seed": [5, 6], "tokens": 8192}],
    )
    assert points(sweep, "tokens", "seed") == [(65536, 0), (65536, 1), (131072, 0), (8192, 5), (8192, 6)]


def test_a_point_named_twice_is_one_run(load: Load) -> None:
    assert len(load(include=[{"seed": 0}]).runs) == 1


def test_documents_and_z_loss_are_physics_and_leaving_them_out_keeps_the_run(load: Load) -> None:
    (plain,) = load().runs
    (reset,) = load(overrides=("data.documents=reset",)).runs
    (penalised,) = load(overrides=("train.z_loss=1e-4",)).runs
    assert reset.spec.physics.data.documents == "reset"
    assert penalised.spec.physics.z_loss == 1e-4
    assert len({plain.spec.run_id, reset.spec.run_id, penalised.spec.run_id}) == 3
    assert "z_loss" not in plain.spec.canonical_payload()["physics"]


def test_recurrent_weights_are_spared_unless_the_sweep_says_otherwise(load: Load) -> None:
    grid = GRID | {"model": ["llama", "xlstm[1:1]", "xlstm[1:0]"]}

    def stated(**train: float) -> dict[str, tuple[float | None, str]]:
        runs = load(grid=grid, train={"batch_sequences": 8, "learning_rate": 0.001} | train).runs
        return {
            run.point["model"]: (run.spec.physics.optimizer.recurrent_weight_decay, run.spec.run_id) for run in runs
        }

    plain, none, as_others, half = stated(), stated(recurrent_weight_decay=0.0), stated(recurrent_weight_decay=0.1), {}
    half = stated(recurrent_weight_decay=0.05)
    assert plain == none
    assert {model: value for model, (value, _) in plain.items()} == {
        "llama": None,
        "xlstm[1:1]": 0.0,
        "xlstm[1:0]": None,
    }
    # Before there was a choice, the weights decayed as all others: that is the id which such a run has and keeps.
    assert as_others["xlstm[1:1]"] == (None, "xlstm-1-1-54K-65.5K-s0-5dee95d9")
    assert len({found["xlstm[1:1]"][1] for found in (plain, as_others, half)}) == 3
    assert plain["llama"] == as_others["llama"] == half["llama"]
    assert stated(weight_decay=0.0)["xlstm[1:1]"][0] is None


def test_the_first_matching_rule_wins_per_key_and_the_point_wins_over_rules(load: Load) -> None:
    sweep = load(
        grid=GRID | {"seed": [0, 1], "beta1": [0.8]},
        rules=[
            {"when": {"seed": 1}, "set": {"learning_rate": 0.01}},
            {"when": {"model": "llama"}, "set": {"learning_rate": 0.02, "weight_decay": 0.3, "beta1": 0.7}},
        ],
    )
    optimizers = [run.spec.physics.optimizer for run in sweep.runs]
    assert [one.learning_rate for one in optimizers] == [0.02, 0.01]
    assert [one.weight_decay for one in optimizers] == [0.3, 0.3]
    assert [one.beta1 for one in optimizers] == [0.8, 0.8]


def test_a_rule_in_tokens_replaces_a_batch_in_sequences(load: Load) -> None:
    sweep = load(rules=[{"when": {}, "set": {"batch_tokens": 1024}}])
    assert sweep.runs[0].spec.physics.batch_tokens == 1024


def test_tokens_per_parameter_counts_all_parameters_and_whole_steps(load: Load) -> None:
    grid = {key: value for key, value in GRID.items() if key != "tokens"} | {"tokens_per_parameter": [20]}
    physics = load(grid=grid).runs[0].spec.physics
    parameters = accounting.parameters(physics.model).total
    assert physics.tokens % physics.batch_tokens == 0
    assert abs(physics.tokens - 20 * parameters) <= physics.batch_tokens / 2


def test_an_isoflop_profile_spends_the_budget_at_every_size(load: Load) -> None:
    sizes = {name: {"embedding_dim": width, "num_blocks": 4, "num_heads": 2} for name, width in (("a", 16), ("b", 64))}
    sweep = load(sizes=sizes, grid={"model": ["llama"], "size": ["a", "b"], "flops": [1e13]})
    for run in sweep.runs:
        physics = run.spec.physics
        spent = accounting.training_flops(physics.model, physics.data.context_length, physics.tokens)["exact"]
        step = accounting.training_flops_per_token(physics.model, 64) * physics.batch_tokens
        assert abs(spent - 1e13) <= step / 2


def test_own_sizes_may_differ_per_family_and_the_full_name_goes_first(load: Load) -> None:
    sizes = {
        "small": {
            "xlstm": {"embedding_dim": 32, "num_blocks": 4, "num_heads": 2},
            "xlstm[1:1]": {"embedding_dim": 16, "num_blocks": 2, "num_heads": 2},
            "llama": {"embedding_dim": 64, "num_blocks": 2, "num_heads": 4},
        }
    }
    sweep = load(sizes=sizes, grid=GRID | {"model": ["xlstm[1:0]", "xlstm[1:1]", "llama"]})
    assert [run.spec.physics.model.embedding_dim for run in sweep.runs] == [32, 16, 64]


def test_resources_change_the_execution_and_never_the_run(load: Load) -> None:
    plain = load().runs[0]
    wide = load(resources=[{"set": {"devices": 4, "compile": True, "kernels": "numba", "priority": 3}}]).runs[0]
    assert wide.spec.execution.devices == 4
    assert wide.spec.execution.kernels == "numba"
    assert wide.priority == 3
    assert wide.spec.run_id == plain.spec.run_id


@pytest.mark.parametrize(
    "override",
    [
        "grid.seed=[1]",
        "grid.tokens=[131072]",
        "data.revision=sha256:1",
        "data.context_length=128",
        "data.documents=reset",
        "train.batch_sequences=16",
        "train.learning_rate=2e-3",
        "train.weight_decay=0.2",
        "train.schedule=constant",
        "train.precision=bf16-mixed",
        "sizes.small.num_blocks=3",
    ],
)
def test_whatever_changes_the_trained_weights_changes_the_run(load: Load, override: str) -> None:
    assert load(overrides=(override,)).runs[0].spec.run_id != load().runs[0].spec.run_id


def test_gpus_are_devices_that_refuse_the_cpu(load: Load) -> None:
    execution = load(resources=[{"set": {"gpus": 2}}]).runs[0].spec.execution
    assert (execution.devices, execution.device) == (2, "cuda")


def test_decay_fraction_is_a_fraction_of_each_runs_steps(load: Load) -> None:
    sweep = load(
        grid=GRID | {"tokens": [51200, 102400]},
        train={"batch_sequences": 8, "learning_rate": 1e-3, "schedule": "wsd", "decay_fraction": 0.2},
    )
    assert [run.spec.physics.schedule.decay_steps for run in sweep.runs] == [20, 40]


def test_an_override_lies_over_the_file(load: Load) -> None:
    sweep = load(overrides=("train.learning_rate=3e-3", "grid.seed=[0, 7]"))
    assert points(sweep, "seed") == [(0,), (7,)]
    assert sweep.runs[0].spec.physics.optimizer.learning_rate == 3e-3


def test_another_corpus_leaves_the_revision_and_paths_of_the_one_it_replaces_behind(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text to train on, and some more of it. " * 50)
    named = load(data={"corpus": "slimpajama", "revision": "627B", "context_length": 64})
    assert named.runs[0].spec.physics.data.revision == "627B"
    path = tmp_path / "named.yaml"
    path.write_text(named.dump())
    spelled = load(data={"corpus": "text", "context_length": 64, "paths": ["a.txt"]}).runs[0].spec
    overridden = Sweep.load(path, [f"data.corpus=text:{tmp_path / 'a.txt'}"]).runs[0].spec
    extended = load("name: other\nextends: named.yaml\ndata: {corpus: 'text:a.txt'}\n").runs[0].spec
    rule = {"set": {"corpus": "text:a.txt"}}
    ruled = load(data={"corpus": "slimpajama", "revision": "627B", "context_length": 64}, rules=[rule]).runs[0].spec
    assert {spec.run_id for spec in (overridden, extended, ruled)} == {spelled.run_id}
    together = Sweep.load(path, ["data.revision=v2", "data.corpus=other"]).runs[0].spec.physics.data
    assert (together.corpus, together.revision) == ("other", "v2")


def test_a_sweep_extends_another_and_states_only_what_differs(load: Load, tmp_path: Path) -> None:
    base = load(rules=[{"when": {"model": "llama"}, "set": {"learning_rate": 0.5}}])
    (tmp_path / "base.yaml").write_text(base.dump())
    sweep = load(
        "name: more\nextends: base.yaml\ngrid: {flops: [1e13]}\n"
        "rules: [{when: {model: llama}, set: {learning_rate: 0.25}}]"
    )
    assert sweep.name == "more"
    assert points(sweep, "model", "flops") == [("llama", 1e13)]
    assert sweep.runs[0].spec.physics.optimizer.learning_rate == 0.25


def test_paths_are_relative_to_the_sweep_that_names_them(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text to train on, and some more of it. " * 50)
    data = {"corpus": "text", "tokenizer": "bytes", "context_length": 64, "paths": ["a.txt"]}
    sweep = load(data=data)
    assert sweep.runs[0].spec.execution.data_paths == (str(tmp_path / "a.txt"),)
    assert sweep.runs[0].spec.physics.data.revision.startswith("sha256:")


def test_text_and_a_path_are_a_corpus_in_one_word(load: Load, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text to train on, and some more of it. " * 50)
    data = {"corpus": "text", "tokenizer": "bytes", "context_length": 64, "paths": ["a.txt"]}
    spelled = load(data=data).runs[0].spec
    short = load(data={"corpus": "text:a.txt", "tokenizer": "bytes", "context_length": 64}).runs[0].spec
    assert short == spelled


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_makes_runs_under_its_own_name(path: Path, tmp_path: Path) -> None:
    sweep = Sweep.load(path.stem)
    assert sweep.name == path.stem
    if sweep.file.data.paths:  # files that are not shipped: any text stands in for them
        (tmp_path / "text.txt").write_text("some text to train on, and some more of it. " * 50)
        sweep = Sweep.load(path.stem, [f"data.paths=[{tmp_path / 'text.txt'}]"])
    assert sweep.runs
