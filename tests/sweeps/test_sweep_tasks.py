# ruff: noqa: E501
"""Generated tasks in a sweep: an axis like any other, with fields of their own and errors at their lines."""

from collections.abc import Callable
from typing import Any

import pytest

from sweeps.located import SweepError
from sweeps.sweep import Sweep
from xlstm.run.spec import RunSpec

Load = Callable[..., Sweep]

GOOD = """name: tiny
task: parity
data: {longest: 20}
sizes:
  small: {embedding_dim: 32, num_blocks: 2}
grid:
  model: [lstm]
  size: [small]
  steps: [100]
train: {batch_sequences: 8, learning_rate: 1e-3}
evaluation: {shortest: 30, longest: 40}
"""
RECALL = (
    GOOD.replace("parity", "mqar")
    .replace("longest: 20", "context_length: 64, pairs: 4")
    .replace("30", "64")
    .replace("40", "128")
)


def complaints(load: Load, text: str) -> list[str]:
    with pytest.raises(SweepError) as error:
        assert load(text).runs
    return [f"{problem.line}: {problem.message}" for problem in error.value.problems]


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("longest: 20", "longest: 2", "3: lengths: shortest 3 is above longest 2"),
        ("longest: 20", "pairs: 2", "3: `pairs` says nothing of the task parity; it takes longest, shortest"),
        ("longest: 20", "context_length: 20", "3: `context_length` says nothing of the task parity"),
        ("longest: 20", "corpus: text", "3: `corpus` says nothing of the task parity"),
        ("longest: 20", "longest: 50", "11: test length 30 is below the longest of training, 50"),
        ("shortest: 30", "shortest: 41", "11: test lengths: there is none from 41 to 40"),
        ("task: parity", "task: language-modeling", "3: `longest` says nothing of the task language-modeling"),
        ("parity\ndata: {longest", "solve-equation\ndata: {shortest: 2, longest", "3: lengths: solve-equation has no string of 2, its shortest has 3"),
    ],
)  # fmt: skip
def test_what_a_language_cannot_have_is_named_with_its_line(load: Load, right: str, wrong: str, said: str) -> None:
    assert right in GOOD
    found = complaints(load, GOOD.replace(right, wrong, 1))
    assert any(complaint.startswith(said) for complaint in found), found


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("context_length: 64, ", "", "3: `data.context_length` is missing: mqar has no length of its own"),
        ("pairs: 4", "pairs: 17", "3: pairs 17 do not fit the context length 64: pairs and their queries take 68"),
        ("context_length: 64", "context_length: 63", "3: context_length 63 is odd"),
        ("pairs: 4", "symbols: 8", "3: symbols 8 hold 3 keys, too few for pairs 4"),
        ("shortest: 64", "shortest: 32", "11: test length 32 is below the longest of training, 64"),
        ("shortest: 64", "shortest: 65", "11: test length 65: context_length 65 is odd"),
        ("longest: 128", "longest: 128, length_step: 3", "11: test length 67: context_length 67 is odd"),
        ("small: {", "small: {num_heads: 2, context_length: 100, ", "5: size `small` of `lstm`: unknown dimension"),
    ],
)  # fmt: skip
def test_what_recall_cannot_have_is_named_with_its_line(load: Load, right: str, wrong: str, said: str) -> None:
    assert right in RECALL
    text = RECALL.replace("longest: 128", "longest: 128, length_step: 2")
    found = complaints(
        load, text.replace(right, wrong, 1) if "length_step" not in wrong else RECALL.replace(right, wrong)
    )
    assert any(complaint.startswith(said) for complaint in found), found


def test_lists_take_their_own_lengths(load: Load) -> None:
    text = GOOD.replace("parity", "listops").replace("evaluation: {shortest: 30, longest: 40}\n", "")
    assert complaints(load, text) == ["3: lengths: longest 20 is to be at least 10 above shortest 501"]
    (run,) = load(text.replace("longest: 20", "longest: 600, examples: 50")).runs
    task = run.spec.physics.data.task
    assert task is not None
    assert (task.context_length, task.different, task.vocabulary) == (600, 50, 16)
    assert list(run.spec.test_lengths) == [600]


def test_files_of_a_task_that_are_not_there_are_named_with_their_line(load: Load) -> None:
    text = GOOD.replace("parity", "bytes").replace("evaluation: {shortest: 30, longest: 40}\n", "")
    (said,) = complaints(load, text.replace("longest: 20", "longest: 20, paths: [nowhere]"))
    assert said.startswith(
        "3: train/pos/*.txt of the reviews of aclImdb is to lie below `paths` once, and none lie in /"
    )
    (said,) = complaints(load, text)
    assert said.endswith("none lie in no folder, since `paths` is not said")
    (run,) = load(text.replace("longest: 20", "longest: 20, revision: stated")).runs
    assert (run.spec.physics.data.revision, run.spec.physics.model.num_outputs) == ("stated", 2)


def test_a_family_without_places_for_what_is_tested_is_named(load: Load) -> None:
    text = GOOD.replace("lstm", "gpt").replace("num_blocks: 2", "num_blocks: 2, num_heads: 2, context_length: 32")
    assert complaints(load, text) == ["11: test length 40 takes 40 positions, and the model has no more than 32"]


def test_tasks_are_an_axis_and_rules_say_what_each_takes(load: Load) -> None:
    text = GOOD.replace("data: {longest: 20}", "rules: [{when: {task: mqar}, set: {context_length: 64, pairs: 8}}]")
    text = text.replace("task: parity\n", "").replace("steps: [100]", "steps: [100]\n  task: [parity, reverse, mqar]")
    runs = load(text.replace("evaluation: {shortest: 30, longest: 40}\n", "")).runs
    specs = [run.spec for run in runs]
    assert [spec.physics.task for spec in specs] == ["parity", "reverse", "mqar"]
    assert [spec.physics.data.context_length for spec in specs] == [40, 80, 64]
    assert [spec.physics.steps for spec in specs] == [100, 100, 100]
    assert [spec.physics.model.vocab_size for spec in specs] == [3, 12, 8192]
    assert len({spec.run_id for spec in specs}) == 3


def test_a_default_that_is_said_keeps_the_run_and_any_other_field_makes_another(load: Load) -> None:
    def ids(data: dict[str, Any], **changes: Any) -> list[str]:
        grid = {"model": "llama", "size": "small", "steps": 10}
        return [run.spec.run_id for run in load(task="parity", data=data, grid=grid, **changes).runs]

    assert ids({}) == ids({"shortest": 3, "longest": 40}) == ids({}, evaluation={"longest": 300})
    assert ids({}) != ids({"longest": 41}) != ids({"shortest": 4})


def test_a_specification_of_a_task_is_read_as_it_was_written(load: Load, tmp_path: Any) -> None:
    (run,) = load(RECALL.replace("longest: 128", "longest: 128, length_step: 2")).runs
    run.spec.save(tmp_path / "spec.json")
    assert RunSpec.load(tmp_path / "spec.json") == run.spec
