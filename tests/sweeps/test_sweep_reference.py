"""Whatever a specification may say of a run, a sweep can say; and each key is described where people look."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from sweeps import language
from sweeps.language import OF_A_POINT, OF_A_TASK, OF_PORTIONS, OF_SECTIONS, ONE_VALUE_ONLY, RESOLVED, schema
from sweeps.located import SweepError
from sweeps.sweep import Sweep
from xlstm.run.evaluations import KINDS, Kind, kind_of
from xlstm.run.rates.transfer import Transfer
from xlstm.run.spec import Data, Evaluation, Execution, Optimizer, Physics, Schedule
from xlstm.tasks.settings import FROM_FILES, FormalLanguage, Pathfinder, Recall, SmallPathfinder

Load = Callable[..., Sweep]
REFERENCE = Path(__file__).parents[2] / "docs" / "sweeps.md"

TRAIN = {"batch_sequences": 8, "learning_rate": 0.001}
WORDS: dict[str, Any] = {
    "corpus": "jsonl",
    "revision": "sha256:1",
    "tokenizer": "gpt2",
    "text_key": "content",
    "id_type": "int32",
    "name": "long",
    "batch_tokens": 1024,
    "slurm": {"partition": "p", "srun": {"mpi": "none"}},
}
"""Values of the fields whose types allow for more than a value that is any."""


def another_value(name: str, field: FieldInfo) -> Any:
    """A valid value of a field that is not its default, if there is one."""
    if name in WORDS:
        return WORDS[name]
    if get_origin(field.annotation) is Literal:
        return next((value for value in reversed(get_args(field.annotation)) if value != field.default), field.default)
    kind = next((one for one in get_args(field.annotation) if one is not NoneType), field.annotation)
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    value = {bool: True, int: 2, float: 0.5}[kind]
    return value if value != field.default else kind(2 * value)


def fields(ring: type[BaseModel], *left_out: str) -> list[Any]:
    """Name and value of every field of a part of the specification."""
    named = {name: another_value(name, field) for name, field in ring.model_fields.items() if name not in left_out}
    return [pytest.param(name, value, id=name) for name, value in named.items()]


@pytest.mark.parametrize(("name", "value"), fields(Execution, *RESOLVED))
def test_every_field_of_an_execution_can_be_said(load: Load, name: str, value: Any) -> None:
    (run,) = load(resources=[{"set": {name: value}}]).runs
    assert getattr(run.spec.execution, name) == value != Execution.model_fields[name].default


def test_what_of_an_execution_is_resolved_and_not_said_is_a_field_of_it() -> None:
    assert set(RESOLVED) < set(Execution.model_fields)
    assert all(RESOLVED.values())


@pytest.mark.parametrize(("name", "value"), fields(Evaluation, "shortest", "longest", "length_step"))
def test_every_field_of_an_evaluation_can_be_said(load: Load, name: str, value: Any) -> None:
    (run,) = load(evaluation={name: value}).runs
    assert getattr(run.spec.evaluation, name) == value != Evaluation.model_fields[name].default


@pytest.mark.parametrize(("name", "value"), fields(Data, "end_of_text", *OF_A_TASK, *OF_PORTIONS))
def test_every_field_of_the_data_can_be_said(load: Load, name: str, value: Any) -> None:
    (run,) = load(rules=[{"set": {name: value, "revision": "sha256:1"}}]).runs
    assert getattr(run.spec.physics.data, name) == value != Data.model_fields[name].default


def test_the_end_of_a_text_can_be_said(load: Load, tmp_path: Path) -> None:
    content = {"added_tokens": [{"id": 0, "content": "<stop>"}], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"][0] |= flags  # type: ignore[index]
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "a.txt").write_text("a text that is long enough")
    data = {
        "corpus": "text:a.txt",
        "tokenizer": str(tmp_path / "a.json"),
        "context_length": 64,
        "end_of_text": "<stop>",
    }
    (run,) = load(data=data).runs
    assert run.spec.physics.data.end_of_text == "<stop>"


@pytest.mark.parametrize(
    ("task", "name", "value"),
    [("parity", *field.values) for field in fields(FormalLanguage, *ONE_VALUE_ONLY, "longest")]
    + [("mqar", *field.values) for field in fields(Recall, *ONE_VALUE_ONLY, "symbols", "fill_blanks")]
    + [("pathfinder", "side", 64), ("pathfinder", "difficulty", "easy")]
    + [("small-pathfinder", "width", 16), ("small-pathfinder", "contour", 8)]
    + [("parity", "longest", 50), ("mqar", "symbols", 1024), ("mqar", "fill_blanks", False)],
)
def test_every_field_of_a_task_can_be_said(load: Load, task: str, name: str, value: Any) -> None:
    data = {"mqar": {"context_length": 64}}.get(task, {"revision": "stated"} if task in FROM_FILES else {})
    (run,) = load(task=task, data=data | {name: value}).runs
    generated = run.spec.physics.data.generated
    assert getattr(generated, name) == value != type(generated).model_fields[name].default


def test_the_lengths_of_a_test_can_be_said(load: Load) -> None:
    said = {"shortest": 48, "longest": 96, "length_step": 16}
    (run,) = load(task="parity", data={}, evaluation=said).runs
    assert list(run.spec.test_lengths) == [48, 64, 80, 96]


@pytest.mark.parametrize(("name", "value"), fields(Optimizer, *ONE_VALUE_ONLY, "recurrent_weight_decay"))
def test_every_field_of_the_optimizer_can_be_said(load: Load, name: str, value: Any) -> None:
    (run,) = load(rules=[{"set": {name: value}}]).runs
    assert getattr(run.spec.physics.optimizer, name) == value != Optimizer.model_fields[name].default


def test_the_optimizer_is_said_by_its_name_as_an_axis_too(load: Load) -> None:
    grid = {"model": "llama", "size": "small", "tokens": 65536, "seed": 0, "optimizer": ["adamw", "muon"]}
    adamw, muon = load(grid=grid).runs
    assert (adamw.spec.physics.optimizer.name, muon.spec.physics.optimizer.name) == ("adamw", "muon")
    assert adamw.spec.run_id == load().runs[0].spec.run_id != muon.spec.run_id


@pytest.mark.parametrize(("name", "value"), fields(Schedule))
def test_every_field_of_the_schedule_can_be_said(load: Load, name: str, value: Any) -> None:
    (run,) = load(rules=[{"set": {"schedule" if name == "kind" else name: value}}]).runs
    assert getattr(run.spec.physics.schedule, name) == value != Schedule.model_fields[name].default


@pytest.mark.parametrize(("name", "value"), fields(Physics, *OF_SECTIONS, *OF_A_POINT, *Transfer.model_fields))
def test_every_field_of_the_physics_can_be_said(load: Load, name: str, value: Any) -> None:
    (run,) = load(rules=[{"set": {name: value}}]).runs
    assert getattr(run.spec.physics, name) == value != Physics.model_fields[name].default


def test_a_parametrization_is_said_with_the_width_it_starts_from_or_refused_at_its_line(load: Load) -> None:
    (run,) = load(train=TRAIN | {"parametrization": "mup", "mup_base_width": 16, "mup_base_heads": 1}).runs
    assert run.spec.physics.mup_base_heads == 1
    assert run.spec.run_id != load().runs[0].spec.run_id
    for said, told in (
        ({"parametrization": "mup"}, "mup needs mup_base_width"),
        ({"mup_base_width": 16}, "mup_base_width and mup_base_heads are for `parametrization: mup`"),
        ({"parametrization": "mup", "mup_base_width": 15}, "mup_base_width 15 makes no model of llama: embedding_dim"),
    ):
        with pytest.raises(SweepError, match=rf"sweep.yaml:\d+: {told}"):
            _ = load(train=TRAIN | said).runs


@pytest.mark.parametrize("name", OF_A_POINT)
def test_every_field_of_the_physics_that_belongs_to_a_point_is_an_axis(load: Load, name: str) -> None:
    value = {"task": "language-modeling", "tokens": 5120, "seed": 7}[name]
    grid = {"model": "llama", "size": "small", "tokens": 65536, name: [value]}
    (run,) = load(grid=grid).runs
    assert getattr(run.spec.physics, name) == value


def test_devices_device_and_gpus_are_taken_from_the_nearest_rule_that_says_them(load: Load) -> None:
    def asked(*rules: dict[str, Any]) -> tuple[int, str]:
        (run,) = load(resources=[{"set": rule} for rule in rules]).runs
        return run.spec.execution.devices, run.spec.execution.device

    assert asked({"devices": 2}, {"device": "cpu"}) == (2, "cpu")
    assert asked({"device": "cpu"}, {"devices": 2}) == (2, "cpu")
    assert asked({"gpus": 2}, {"device": "cpu", "devices": 4}) == (2, "cuda")
    assert asked({"device": "cpu"}, {"gpus": 8}, {"devices": 4}) == (4, "cpu")
    assert asked({"devices": 4}, {"gpus": 8}) == (4, "auto")


def sections() -> dict[str, dict[str, Any]]:
    """Keys of the sweep file and of each section, as the JSON Schema has them."""
    written = schema()
    return {"": written["properties"]} | {name: part["properties"] for name, part in written["$defs"].items()}


def test_the_json_schema_describes_every_key() -> None:
    silent = [f"{name}.{key}" for name, keys in sections().items() for key in keys if not keys[key].get("description")]
    assert not silent


def values_of(key: dict[str, Any]) -> str:
    """What may stand at a key, in words."""
    kinds = [kind for kind in key.get("anyOf", [key]) if kind.get("type") != "null"]
    kind = kinds[0]
    if "anyOf" in kind:
        return "whole number"
    if "const" in kinds[-1] and len(kinds) > 1:
        return f"{kind['type']} or `{kinds[-1]['const']}`"
    if "enum" in kind or "const" in kind:
        return ", ".join(f"`{value}`" for value in kind.get("enum", [kind.get("const")]))
    words = {
        "string": "text",
        "boolean": "true or false",
        "integer": "whole number",
        "array": "list",
        "object": "mapping",
    }
    return words.get(kind.get("type", "object"), kind.get("type", "mapping"))


def default_of(name: str, rings: Iterable[type[BaseModel]]) -> str:
    """What a run has where a key is left out, if the specification says so."""
    for ring in rings:
        field = ring.model_fields.get({"schedule": "kind", "optimizer": "name"}.get(name, name))
        if field is not None and not field.is_required():
            value = field.get_default(call_default_factory=True)
            return "" if value in (None, {}, (), "") else f"`{value if isinstance(value, str) else json.dumps(value)}`"
    return ""


@pytest.mark.parametrize(
    ("section", "rings"),
    [
        ("DataSettings", [Data, FormalLanguage, Recall, Pathfinder, SmallPathfinder]),
        ("TrainSettings", [Physics, Optimizer, Schedule]),
        ("Point", [Physics]),
        ("Resources", [Execution]),
        ("EvaluationSettings", [Evaluation]),
    ],
)
def test_the_reference_has_every_key_with_its_values_its_default_and_its_meaning(
    section: str, rings: list[type[BaseModel]]
) -> None:
    keys = TypeAdapter(getattr(language, section)).json_schema()["properties"]
    if section == "Point":
        keys = {name: key for name, key in keys.items() if name not in language.Settings.model_fields}
    rows = [
        f"| `{name}` | {values_of(key)} | {default_of(name, rings)} | {key['description']} |"
        for name, key in keys.items()
    ]
    written = REFERENCE.read_text().splitlines()
    assert [row for row in rows if row not in written] == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_has_every_key_of_a_kind_of_evaluation(kind: type[Kind]) -> None:
    keys = TypeAdapter(language.EVALUATIONS[kind_of(kind)]).json_schema()["properties"]
    section = REFERENCE.read_text().partition(f"\n`{kind_of(kind)}`:\n")[2].partition("\n`")[0]
    rows = {
        f"| `{name}` | {values_of(key)} | {default_of(name, [kind])} | {key['description']} |"
        for name, key in keys.items()
        if name != "kind"
    }
    assert rows == {line for line in section.splitlines() if line.startswith("| `")}


def test_the_reference_names_every_key_of_the_file_itself() -> None:
    written = REFERENCE.read_text().splitlines()
    rows = [f"| `{key}` | {about['description']} |" for key, about in sections()[""].items()]
    assert [row for row in rows if row not in written] == []
