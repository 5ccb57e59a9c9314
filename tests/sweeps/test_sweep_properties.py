"""What holds of every sweep: identities do not depend on spelling, and no file whatever gives a traceback."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sweeps.language import schema, validate
from sweeps.located import SweepError, parse
from sweeps.sweep import SHIPPED, Sweep

relaxed = settings(examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])

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


models = st.lists(st.sampled_from(["llama", "xlstm[1:0]"]), min_size=1, unique=True)
budget = st.one_of(
    budgets.map(lambda steps: {"tokens": [128 * count for count in steps]}),
    st.lists(st.floats(0.01, 20), min_size=1, max_size=2).map(lambda ratios: {"tokens_per_parameter": ratios}),
    st.lists(st.floats(1e9, 1e12), min_size=1, max_size=2).map(lambda flops: {"flops": flops}),
)
further = st.fixed_dictionaries(
    {},
    optional={
        "notes": st.text(max_size=10),
        "tags": st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
        "zip": st.just({"beta1": [0.8, 0.9], "beta2": [0.95, 0.99]}),
        "include": st.just([{"model": "llama", "size": "s", "tokens": 1280, "seed": 7, "beta1": 0.5, "beta2": 0.5}]),
        "exclude": st.lists(st.fixed_dictionaries({"seed": st.integers(100, 200)}), max_size=1),
        "resources": st.just(
            [{"when": {"model": "llama"}, "set": {"devices": 2, "priority": 1}}, {"set": {"gpus": 1}}]
        ),
        "evaluation": st.fixed_dictionaries({"sequences": st.integers(1, 99)}),
    },
)


@st.composite
def sweeps(draw: st.DrawFn) -> dict[str, Any]:
    """Valid sweeps over the whole language but files."""
    shape = {"embedding_dim": 32, "num_blocks": draw(st.integers(1, 4)), "num_heads": 2}
    required = {
        "name": draw(st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)),
        "data": {"corpus": "text", "revision": "sha256:0", "context_length": 32},
        "sizes": {"s": draw(st.sampled_from([dict(shape), {"llama": dict(shape), "xlstm": dict(shape)}]))},
        "grid": {"model": draw(models), "size": ["s"], "seed": draw(seeds), **draw(budget)},
        "train": {"batch_sequences": 4, "learning_rate": draw(rates)},
        "rules": draw(rules),
    }
    return copy.deepcopy(required | draw(further))  # tests change what they get


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
@given(st.integers(1, 99999), st.sampled_from([("K", 3), ("M", 6), ("B", 9), ("T", 12)]))
def test_the_spelling_of_a_budget_keeps_the_run_id(tmp_path: Path, count: int, unit: tuple[str, int]) -> None:
    letter, zeros = unit
    template = (
        "name: s\ndata: {{corpus: text, revision: r, context_length: 8}}\n"
        "sizes: {{s: {{embedding_dim: 32, num_blocks: 1, num_heads: 2}}}}\n"
        "grid: {{model: llama, size: s, tokens: {}}}\ntrain: {{batch_sequences: 1, learning_rate: 1}}\n"
    )
    whole = count * 10**zeros
    spellings = [f"{count}{letter}", f"'{count} {letter}'", f"{count}e{zeros}", f"{count}.0e+{zeros}"]
    spellings += [str(whole), f"{whole:_}", f"{whole}.0", hex(whole), f"[{whole}]"]
    assert len({tuple(ids(tmp_path, template.format(spelling))) for spelling in spellings}) == 1


@relaxed
@given(sweeps(), st.integers(300, 400))
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


@relaxed
@given(sweeps(), st.data())
def test_a_damaged_file_is_valid_or_gives_located_errors(
    tmp_path: Path, content: dict[str, Any], data: st.DataObject
) -> None:
    lines = json.dumps(content, indent=1).splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        stray = st.sampled_from(
            ["- ", "{", "}", "]", ":", "? x", "&a", "*a", "!!int x", "null", "1e999", "%YAML 9", "\t"]
        )
        lines[at : at + data.draw(st.integers(0, 2))] = data.draw(st.lists(stray | st.just(lines[at]), max_size=2))
        lines = lines or [""]
    expect_runs_or_located_errors(tmp_path, "\n".join(lines))


@relaxed
@given(st.binary(max_size=40))
def test_any_bytes_are_valid_or_give_located_errors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    with pytest.raises(SweepError) as error:
        assert Sweep.load(path).runs
    assert {problem.file for problem in error.value.problems} == {str(path)}


@relaxed
@given(st.text(max_size=12), st.sampled_from(["", "name", "grid.tokens", "data", "train.learning_rate", "rules.0"]))
@example("5", "data")
def test_any_override_is_taken_or_refused_where_it_stands(tmp_path: Path, value: str, key: str) -> None:
    override, problems = f"{key}={value}", set()
    try:
        assert Sweep.load("quickstart", [override]).runs
    except SweepError as error:
        problems = {problem.file for problem in error.problems}
    assert problems <= {f"--set {override}", str(SHIPPED / "quickstart.yaml")}


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
@given(sweeps(), st.sampled_from(["grid", "train", "data", None]))
def test_the_json_schema_takes_valid_sweeps_and_no_unknown_key(content: dict[str, Any], section: str | None) -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator(schema())
    assert list(validator.iter_errors(content)) == []
    (content if section is None else content[section])["learning_rte"] = 1
    assert list(validator.iter_errors(content)) != []


def test_a_valid_document_is_not_changed_by_validation() -> None:
    with pytest.raises(SweepError):
        validate(parse("name: x\ngrid: 5\n", "f"))
