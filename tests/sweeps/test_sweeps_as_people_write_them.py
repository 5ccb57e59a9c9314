"""Anchors, merges, variables and `~` in sweep files mean what people expect, and mistakes in them have their lines."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.located import SweepError, parse
from sweeps.sweep import Sweep

REST = """
sizes: {t: {llama: {embedding_dim: 16, num_blocks: 1, num_heads: 2}}}
grid: {model: [llama], size: [t], tokens: [2048]}
train: {batch_sequences: 4, warmup_steps: 2, learning_rate: 1e-3}
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Callable[[str], Path]:
    """A sweep file whose data section is given, beside a folder with a text."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a text that is long enough to be divided " * 20)

    def write(data: str, rest: str = REST) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(f"name: paths\ndata: {data}{rest}")
        return path

    return write


def test_a_merge_gives_what_is_not_said_and_the_first_of_several_wins() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc:\n  <<: [*a, *b]\n  x: 3\n"
    document = parse(text, "f")
    assert document.value["c"] == {"x": 3, "y": 1, "z": 2}
    assert [document.place(("c", key))[1] for key in "xyz"] == [5, 1, 2]


@pytest.mark.parametrize("text", ["a: {<<: 1}", "a: {<<: [1]}", "a: &a {<<: *a}"])
def test_a_merge_of_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(SweepError, match=r"`<<` takes a mapping|may not contain itself"):
        parse(text, "f")


def test_keys_that_begin_with_x_hold_anchors_and_are_no_part_of_the_sweep(sweep: Callable[..., Path]) -> None:
    sizes = "\nx-small: &small {embedding_dim: 16, num_blocks: 1, num_heads: 2}\nsizes:\n  t: {llama: *small}\n"
    sizes += "  u:\n    llama:\n      <<: *small\n      num_blocks: 2\n"
    rest = sizes + REST[REST.index("grid") :].replace("[t]", "[t, u]")
    loaded = Sweep.load(sweep("{corpus: python-stdlib, tokenizer: bytes, context_length: 32}", rest))
    assert [run.spec.physics.model.num_blocks for run in loaded.runs] == [1, 2]
    assert "x-small" not in loaded.dump()


@pytest.mark.parametrize("path", ["$TEXTS/a.txt", "${TEXTS}/a.txt", "~/texts/a.txt", "$BESIDE/a.txt"])
def test_variables_and_home_are_filled_in_where_they_are_used_and_kept_as_they_are_written(
    sweep: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("TEXTS", str(tmp_path / "texts"))
    monkeypatch.setenv("BESIDE", "texts")
    monkeypatch.setenv("HOME", str(tmp_path))
    (plain,) = Sweep.load(sweep('{corpus: "text:texts/a.txt", tokenizer: bytes, context_length: 32}')).runs
    loaded = Sweep.load(sweep(f'{{corpus: "text:{path}", tokenizer: bytes, context_length: 32}}'))
    (run,) = loaded.runs
    assert run.spec.run_id == plain.spec.run_id
    kept = str(tmp_path / path) if path.startswith("$BESIDE") else path
    assert run.spec.execution.data_paths == (kept,)
    assert kept in loaded.dump()


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ('{corpus: "text:$NOWHERE_SET/a.txt", tokenizer: bytes, context_length: 32}', 2),
        ("\n  corpus: text\n  paths: [$NOWHERE_SET/a.txt]\n  context_length: 32", 4),
        ("\n  corpus: python-stdlib\n  tokenizer: $NOWHERE_SET/tokenizer.json\n  context_length: 32", 4),
    ],
)
def test_a_variable_that_is_not_set_is_an_error_at_its_line(
    sweep: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, data: str, line: int
) -> None:
    monkeypatch.delenv("NOWHERE_SET", raising=False)
    path = sweep(data)
    with pytest.raises(SweepError, match=r"the environment variable NOWHERE_SET is not set") as error:
        _ = Sweep.load(path).runs
    assert [(problem.file, problem.line) for problem in error.value.problems] == [(str(path), line)]


def test_a_variable_in_extends_is_filled_in(
    sweep: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep('{corpus: "text:texts/a.txt", tokenizer: bytes, context_length: 32}')
    above = tmp_path / "above.yaml"
    above.write_text("name: above\nextends: $BASES/sweep.yaml\n")
    monkeypatch.setenv("BASES", str(tmp_path))
    assert len(Sweep.load(above).runs) == 1
    monkeypatch.delenv("BASES")
    with pytest.raises(SweepError, match=r"above\.yaml:2: .*BASES is not set"):
        Sweep.load(above)


def test_a_path_that_exists_as_it_is_written_is_that_one(sweep: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "cost $5.txt").write_text("a text that is long enough to be divided " * 20)
    (run,) = Sweep.load(sweep('{corpus: "text:cost $5.txt", tokenizer: bytes, context_length: 32}')).runs
    assert run.spec.execution.data_paths == (str(tmp_path / "cost $5.txt"),)


def test_a_complaint_about_a_corpus_stands_at_the_corpus(sweep: Callable[..., Path]) -> None:
    path = sweep("{tokenizer: bytes, context_length: 32}")
    with pytest.raises(SweepError) as error:
        _ = Sweep.load(path, ["data.corpus=jsonl:nowhere.jsonl", "data.tokenizer=bytes"]).runs
    assert [problem.file for problem in error.value.problems] == ["--set data.corpus=jsonl:nowhere.jsonl"]
