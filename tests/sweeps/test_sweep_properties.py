"""What holds of every sweep: identities do not depend on spelling, and no file whatever gives a traceback."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sweeps.language import schema, validate
from sweeps.located import SweepError, parse
from sweeps.sweep import Sweep

relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

seeds = st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True)
budgets = st.lists(st.integers(1, 400), min_size=1, max_size=3, unique=True)
rates = st.floats(1e-6, 1.0, allow_subnormal=False)
rules = st.lists(
    st.fixed_dictionaries(
        {
            "when": st.fixed_dictionaries(
                {}, optional={"seed": seeds, "model": st.sampled_from(["llama", "xlstm[1:0]"])}
            ),
            "set": st.fixed_dictionaries({}, optional={"learning_rate": rates, "weight_decay": st.floats(0, 1)}),
        }
    ),
    max_size=3,
)


@st.composite
def sweeps(draw: st.DrawFn) -> dict[str, Any]:
    """Valid sweeps over the whole language but files."""
    return {
        "name": draw(st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)),
        "data": {"corpus": "text", "revision": "sha256:0", "context_length": 32},
        "sizes": {"s": {"embedding_dim": 32, "num_blocks": draw(st.integers(1, 4)), "num_heads": 2}},
        "grid": {
            "model": draw(st.lists(st.sampled_from(["llama", "xlstm[1:0]"]), min_size=1, unique=True)),
            "size": ["s"],
            "tokens": [steps * 128 for steps in draw(budgets)],
            "seed": draw(seeds),
        },
        "train": {"batch_sequences": 4, "learning_rate": draw(rates)},
        "rules": draw(rules),
    }


def ids(folder: Path, text: str) -> list[str]:
    path = folder / "s.yaml"
    path.write_text(text)
    return [run.spec.run_id for run in Sweep.load(path).runs]


def shuffled(value: Any, seed: int) -> Any:
    """The same mappings with their keys in another order; lists as they are."""
    if isinstance(value, dict):
        keys = list(value)
        random.Random(seed).shuffle(keys)
        return {key: shuffled(value[key], seed) for key in keys}
    return [shuffled(item, seed) for item in value] if isinstance(value, list) else value


@relaxed
@given(sweeps())
def test_a_sweep_written_out_is_the_same_sweep(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(json.dumps(content))
    first = Sweep.load(path)
    path.write_text(first.dump())
    again = Sweep.load(path)
    assert again.file == first.file
    assert [run.spec for run in again.runs] == [run.spec for run in first.runs]


@relaxed
@given(sweeps(), st.integers())
def test_the_order_of_keys_keeps_every_run_id(tmp_path: Path, content: dict[str, Any], seed: int) -> None:
    assert set(ids(tmp_path, json.dumps(content))) == set(ids(tmp_path, json.dumps(shuffled(content, seed))))


@relaxed
@given(st.integers(1, 9999), st.integers(1, 7))
def test_the_spelling_of_a_number_keeps_the_run_id(tmp_path: Path, digits: int, exponent: int) -> None:
    value = digits * 10.0**-exponent
    spellings = {f"{digits}e-{exponent}", f"{value!r}", f"{value:.17e}", f"{digits}.0E-{exponent:02}"}
    template = (
        "name: s\ndata: {{corpus: text, revision: r, context_length: 32}}\n"
        "sizes: {{s: {{embedding_dim: 32, num_blocks: 1, num_heads: 2}}}}\n"
        "grid: {{model: llama, size: s, tokens: 12.8K}}\ntrain: {{batch_sequences: 4, learning_rate: {}}}\n"
    )
    exact = {spelling for spelling in spellings if float(spelling) == value}
    assert len({tuple(ids(tmp_path, template.format(spelling))) for spelling in exact}) == 1


@relaxed
@given(sweeps(), st.integers(100, 200))
def test_adding_a_point_keeps_every_run_there_was(tmp_path: Path, content: dict[str, Any], seed: int) -> None:
    before = ids(tmp_path, json.dumps(content))
    content["grid"]["seed"] = [*content["grid"]["seed"], seed]
    after = ids(tmp_path, json.dumps(content))
    assert set(before) < set(after)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@relaxed
@given(sweeps(), st.data())
def test_a_sweep_with_anything_anywhere_is_valid_or_gives_located_errors(
    tmp_path: Path, content: dict[str, Any], data: st.DataObject
) -> None:
    place: Any = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(junk)
        break
    expect_runs_or_located_errors(tmp_path, json.dumps(content))


@relaxed
@given(st.text(max_size=60))
def test_any_text_is_valid_or_gives_located_errors(tmp_path: Path, text: str) -> None:
    expect_runs_or_located_errors(tmp_path, text.encode(errors="replace").decode())


def expect_runs_or_located_errors(folder: Path, text: str) -> None:
    path = folder / "s.yaml"
    path.write_text(text)
    lines = max(1, len(path.read_text().splitlines()) + 1)
    try:
        found = Sweep.load(path).runs
    except SweepError as error:
        problems = error.problems
    else:
        assert found
        return
    assert problems
    for problem in problems:
        assert problem.file == str(path)
        assert 1 <= problem.line <= lines
        assert problem.message


@relaxed
@given(sweeps())
def test_the_json_schema_knows_every_key_that_the_language_knows(content: dict[str, Any]) -> None:
    known = schema()
    assert set(content) <= set(known["properties"])
    assert set(content["grid"]) <= set(known["$defs"]["Axes"]["properties"])
    assert set(content["train"]) <= set(known["$defs"]["TrainSettings"]["properties"])
    assert not known["additionalProperties"]


def test_a_valid_document_is_not_changed_by_validation() -> None:
    with pytest.raises(SweepError):
        validate(parse("name: x\ngrid: 5\n", "f"))
