# ruff: noqa: E501
"""Whatever is wrong with a sweep is said with its line and what would be right, all of it at once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.located import SweepError
from sweeps.sweep import Sweep

Load = Callable[..., Sweep]

GOOD = """name: tiny
data: {corpus: text, revision: "sha256:0", context_length: 64}
sizes:
  small: {embedding_dim: 32, num_blocks: 4, num_heads: 2}
grid:
  model: [llama]
  size: [small]
  tokens: [64K]
train:
  batch_sequences: 8
  learning_rate: 1e-3
"""


def complaints(load: Load, text: str) -> list[str]:
    """Every problem of a sweep, without the folder of its file."""
    with pytest.raises(SweepError) as error:
        assert load(text).runs
    return [f"{problem.line}: {problem.message}" for problem in error.value.problems]


def test_the_sweep_that_the_errors_are_made_from_is_good(load: Load) -> None:
    assert len(load(GOOD).runs) == 1


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("train:", "trian:", "9: `trian` is no key of a sweep; did you mean `train`?"),
        ("learning_rate: 1e-3", "learning_rte: 1", "11: `learning_rte` is no key of `train`; did you mean `learning_rate`?"),
        ("learning_rate: 1e-3", "learning_rate: '1e-3'", "11: `train.learning_rate`: input should be a valid number, not the text '1e-3'"),
        ("learning_rate: 1e-3", "schedule: cosin", "11: `train.schedule`: the text 'cosin' is not valid; did you mean `cosine`?"),
        ("  learning_rate: 1e-3\n", "", "9: `train.learning_rate` is missing"),
        ("[llama]", "[lama]", "6: unknown model family `lama`"),
        ("[small]", "[smal]", "7: unknown size `smal`; did you mean `small`?"),
        ("64K", "64X", "8: `grid.tokens.0`: input should be a valid integer, not the text '64X'"),
        ("64K", "100", "8: tokens 100 is less than one global batch of 512"),
        ("  tokens: [64K]\n", "", "5: a run states no budget; give one of tokens, tokens_per_parameter, flops"),
        ("tokens: [64K]", "tokens: [64K]\n  flops: [1e12]", "5: a run states tokens and flops; give one of"),
        ("num_heads: 2", "num_heads: 5", "4: size `small` of `llama`"),
        ("num_heads: 2", "heads: 2", "4: size `small` of `llama`: unknown dimension `heads`"),
        ("batch_sequences: 8", "warmup_steps: 8", "9: `train.batch_sequences` is missing"),
        ("batch_sequences: 8", "batch_tokens: 100", "10: batch_tokens 100 is not a multiple of the context length 64"),
        ("name: tiny", "name: ../tiny", "1: `name`: the text '../tiny' cannot name a folder"),
        ("corpus: text, ", "", "2: `data.corpus` is missing"),
        ("train:", "best_of: seed\ntrain:", "9: `seed` is no axis with several values"),
        ("train:", "zip: {seed: [0, 1], weight_decay: [0]}\ntrain:", "9: lists of `zip` must be equally long"),
        ("train:", "include: [{sead: 1}]\ntrain:", "9: `sead` is no key of `include.0`; did you mean `seed`?"),
        ("train:", "resources: [{set: {devices: 3}}]\ntrain:", "9: a global batch of 8 sequences cannot be divided over 3 ranks"),
        ("train:", "resources: [{set: {devices: 2, gpus: 2}}]\ntrain:", "9: give `devices` or `gpus`, not both"),
        ("train:", "rules: [{when: {model: lama}, set: {beta1: 0.5}}]\ntrain:", "9: unknown model family `lama`"),
        ("train:", "rules: [{when: {}, set: null}]\ntrain:", "9: `rules.0.set`: input should be a mapping, not None"),
        ("train:", "task: partiy\ntrain:", "9: `task`: the text 'partiy' is not valid; did you mean `parity`?"),
        ("context_length: 64", "context_length: 64, tokenizer: byte", "2: unknown tokenizer 'byte'"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(load: Load, right: str, wrong: str, said: str) -> None:
    assert right in GOOD
    found = complaints(load, GOOD.replace(right, wrong, 1))
    assert any(complaint.startswith(said) for complaint in found), found


def test_all_mistakes_are_reported_at_once(load: Load) -> None:
    text = GOOD.replace("train:", "trian: {}\ntrain:").replace("64K", "xK").replace("1e-3", "fast")
    assert [complaint.split(":")[0] for complaint in complaints(load, text)] == ["8", "9", "12"]


def test_mistakes_of_different_points_are_reported_at_once(load: Load) -> None:
    text = GOOD.replace("[64K]", "[64K, 10, 20]")
    assert len(complaints(load, text)) == 2


def test_an_error_in_an_extended_sweep_names_that_file(load: Load, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(GOOD.replace("beta", "").replace("num_heads: 2", "num_heads: 5"))
    with pytest.raises(SweepError) as error:
        assert load("name: other\nextends: base.yaml\n").runs
    (problem,) = error.value.problems
    assert (Path(problem.file).name, problem.line) == ("base.yaml", 4)


def test_a_sweep_that_extends_itself_is_refused(load: Load) -> None:
    assert complaints(load, "name: x\nextends: sweep.yaml\n") == ["2: `sweep.yaml` extends itself"]


def test_an_unknown_name_gets_the_nearest_shipped_sweep() -> None:
    with pytest.raises(SweepError, match="did you mean `quickstart`"):
        Sweep.load("quickstrat")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(SweepError, match=r"none\.yaml: no such file"):
        Sweep.load("none.yaml")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(SweepError, match="not UTF-8"):
        Sweep.load(tmp_path / "s.yaml")


def test_an_empty_text_file_is_named_at_the_paths(load: Load, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    text = GOOD.replace('revision: "sha256:0"', "paths: [empty.txt]")
    (complaint,) = complaints(load, text)
    assert complaint.startswith("2: ")
    assert "empty.txt" in complaint


def test_a_text_file_that_is_not_utf8_is_named_at_the_paths(load: Load, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("café ".encode("latin-1") * 100)
    text = GOOD.replace('revision: "sha256:0"', "paths: [latin.txt]")
    (complaint,) = complaints(load, text)
    assert complaint.startswith("2: ")
    assert "latin.txt" in complaint
    assert "UTF-8" in complaint


def test_what_is_extended_and_is_not_there_is_named(load: Load) -> None:
    assert complaints(load, "name: x\nextends: nothing.yaml\n") == ["2: `extends: nothing.yaml`: no such file"]


def test_a_family_is_told_by_the_nearest_name(load: Load) -> None:
    (said,) = complaints(load, GOOD.replace("[llama]", "[llamma]"))
    assert said.startswith("6: unknown model family `llamma`; did you mean `llama`? There are xlstm[a:b]")


def test_a_bracket_that_nobody_closed_is_told_with_the_line_where_it_opened(load: Load) -> None:
    (said,) = complaints(load, GOOD.replace("model: [llama]", "model: [llama"))
    assert said == "7: not valid YAML: while parsing a flow sequence (from line 6 on) expected ',' or ']', but got ':'"
