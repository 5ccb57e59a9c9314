"""What a sweep says of evaluations: it reaches the runs, changes no id, and is refused at its key where it is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps.located import SweepError
from sweeps.sweep import Sweep

Load = Callable[..., Sweep]
GPT = {"model": ["gpt"], "size": ["small"], "tokens": [65536]}
SIZES = {"small": {"embedding_dim": 32, "num_blocks": 1, "num_heads": 2, "context_length": 64}}


def test_evaluations_reach_the_runs_and_change_no_id(load: Load, tmp_path: Path) -> None:
    (tmp_path / "held_out.txt").write_text("a text that nobody has seen")
    said = {
        "long": {"kind": "length-extrapolation", "contexts": [64, "1K"]},
        "other": {"kind": "corpus", "corpus": "text:held_out.txt", "split": "all"},
        "paloma": {"kind": "domains", "revision": "2023-12", "paths": ["nowhere"]},
        "quality": {"kind": "validation", "sequences": 7},
    }
    (run,) = load(evaluations=said).runs
    (plain,) = load().runs
    assert run.spec.run_id == plain.spec.run_id
    long, other, paloma = run.spec.evaluations
    assert (long.name, long.kind, long.contexts) == ("long", "length-extrapolation", (64, 1000))  # type: ignore[union-attr]
    assert other.paths == (str(tmp_path / "held_out.txt"),)  # type: ignore[union-attr]
    assert other.revision.startswith("sha256:")  # type: ignore[union-attr]
    assert paloma.revision == "2023-12"  # type: ignore[union-attr]  # taken at its word: no file is needed to plan
    assert (run.spec.evaluation.name, run.spec.evaluation.sequences) == ("quality", 7)


def test_an_evaluation_may_be_laid_over_a_sweep(load: Load) -> None:
    sweep = {"long": {"kind": "length-extrapolation"}, "rare": {"kind": "token-frequency"}}
    (run,) = load(overrides=("evaluations.more.kind=token-frequency", "evaluations.rare=null"), evaluations=sweep).runs
    assert [one.name for one in run.spec.evaluations] == ["long", "more"]


@pytest.mark.parametrize(
    ("changes", "key", "told"),
    [
        (
            {"x": {"kind": "domain"}},
            "kind",
            "`evaluations.x.kind`: the text 'domain' is not valid; did you mean `domains`?",
        ),
        ({"x": {"sequences": 3}}, "x", "`evaluations.x.kind` is missing; one of validation, corpus"),
        (
            {"x": {"kind": "corpus", "sequence": 3, "corpus": "text"}},
            "sequence",
            "`sequence` is no key of `evaluations.x`",
        ),
        ({"x": {"kind": "corpus"}}, "x", "`evaluations.x.corpus` is missing"),
        (
            {"x": {"kind": "token-frequency", "bands": []}},
            "bands",
            "`evaluations.x.bands`: list should have at least 1",
        ),
        ({"x y": {"kind": "token-frequency"}}, "x y", "'x y' cannot name a file"),
        ({"x": {"kind": "corpus", "corpus": "text:gone.txt"}}, "corpus", "gone.txt: no such file or folder"),
        ({"x": {"kind": "domains"}}, "kind", "domains need `paths`"),
        (
            {"x": {"kind": "domains", "revision": "a", "tokenizer": "gpt2"}},
            "tokenizer",
            "it is for tokenizer gpt2, and runs have bytes",
        ),
        (
            {"x": {"kind": "validation"}, "y": {"kind": "validation"}},
            "kind",
            "`evaluations.y` is of kind validation, and so is `evaluations.x`",
        ),
    ],
)
def test_what_is_wrong_is_said_at_its_key(load: Load, changes: dict[str, Any], key: str, told: str) -> None:
    with pytest.raises(SweepError) as caught:
        load(evaluations=changes).runs  # noqa: B018
    (problem,) = caught.value.problems
    assert told in problem.message
    lines = (Path(problem.file)).read_text().splitlines()
    assert f'"{key}"' in lines[problem.line - 1]


def test_a_validation_is_said_once(load: Load) -> None:
    with pytest.raises(SweepError, match="is of kind validation, and so is `evaluation`"):
        load(evaluation={"sequences": 3}, evaluations={"x": {"kind": "validation"}}).runs  # noqa: B018


def test_a_context_that_a_family_cannot_take_is_refused(load: Load) -> None:
    said = {"x": {"kind": "domains", "revision": "a", "context_length": 128}}
    with pytest.raises(SweepError, match="gpt has 64 positions and cannot read 128 tokens at a time"):
        load(sizes=SIZES, grid=GPT, evaluations=said).runs  # noqa: B018


def test_a_task_without_text_has_no_evaluation_of_text(load: Load) -> None:
    with pytest.raises(SweepError, match="kind token-frequency is for language-modeling; parity knows no text"):
        load(task="parity", data={}, evaluations={"x": {"kind": "token-frequency"}}).runs  # noqa: B018


def test_the_schema_knows_every_kind() -> None:
    from sweeps.language import schema

    assert "CorpusEvaluationEntry" in json.dumps(schema())
