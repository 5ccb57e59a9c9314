"""A run's id: what was hashed from the start stays hashed, and what is added later counts once it is said."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from xlstm.models.configs import LlamaConfig
from xlstm.run.spec import Data, Evaluation, Optimizer, Physics, Ring, RunSpec

STATED: dict[str, Any] = {
    "model": LlamaConfig(vocab_size=256, embedding_dim=32, num_blocks=1, num_heads=2),
    "data": Data(corpus="text", revision="sha256:0", context_length=8),
    "tokens": 640,
    "batch_tokens": 64,
    "optimizer": Optimizer(learning_rate=1e-3),
}


@dataclass(frozen=True, kw_only=True)
class LaterLlama(LlamaConfig):
    """Llama with a choice that did not exist before."""

    parallel_blocks: bool = False


class LaterData(Data):
    """Data with a setting that did not exist before."""

    languages: tuple[str, ...] = ()


class Distillation(Ring):
    """A part of the physics that did not exist before."""

    method: Literal["distillation"] = "distillation"
    temperature: float = 1.0


class LaterPhysics(Physics):
    """Physics with fields that did not exist before, on each level."""

    model: LaterLlama
    data: LaterData
    label_smoothing: float = 0.0
    teacher: Distillation | None = Field(None, description="What the run learns from, beside the data.")


def run_id(model: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **stated: Any) -> str:
    """The id of a run in a program that knows the later fields."""
    physics = LaterPhysics(
        **STATED
        | {
            "model": LaterLlama(**dataclasses.asdict(STATED["model"]), **(model or {})),
            "data": LaterData(**STATED["data"].model_dump(), **(data or {})),
        },
        **stated,
    )
    return RunSpec(physics=physics).run_id


def test_fields_that_are_added_later_keep_every_id_while_they_have_their_defaults() -> None:
    assert run_id() == RunSpec(physics=Physics(**STATED)).run_id
    stated = run_id(label_smoothing=0.0, teacher=None, model={"parallel_blocks": False}, data={"languages": ()})
    assert stated == run_id()


def test_fields_that_are_added_later_move_the_id_once_they_are_said() -> None:
    said = [
        run_id(),
        run_id(label_smoothing=0.1),
        run_id(model={"parallel_blocks": True}),
        run_id(data={"languages": ("en",)}),
        run_id(teacher=Distillation()),
        run_id(teacher=Distillation(temperature=2.0)),
    ]
    assert len(set(said)) == len(said)


def test_a_part_that_is_added_later_is_hashed_with_its_name_and_without_its_defaults() -> None:
    physics = LaterPhysics(
        **STATED
        | {
            "model": LaterLlama(**dataclasses.asdict(STATED["model"])),
            "data": LaterData(**STATED["data"].model_dump()),
        },
        teacher=Distillation(),
    )
    assert physics.model_dump(mode="json")["teacher"] == {"method": "distillation"}


def test_the_payload_holds_the_task_as_a_string_and_every_field_of_the_first_version() -> None:
    payload = RunSpec(physics=Physics(**STATED)).canonical_payload()["physics"]
    assert payload["task"] == "language-modeling"
    assert payload["schedule"] == {"kind": "cosine", "warmup_steps": 0, "decay_steps": None, "final_ratio": 0.1}
    assert payload["model"]["rope_theta"] == 10_000.0
    assert "z_loss" not in payload


def test_a_spec_that_is_written_and_read_is_the_same_with_later_fields_left_out(tmp_path: Path) -> None:
    for spec in (RunSpec(physics=Physics(**STATED)), RunSpec(physics=Physics(**STATED, z_loss=1e-4))):
        spec.save(tmp_path / "spec.json")
        assert RunSpec.load(tmp_path / "spec.json") == spec
        assert ('"z_loss"' in (tmp_path / "spec.json").read_text()) == (spec.physics.z_loss is not None)


class LaterEvaluation(Evaluation):
    """An evaluation with a setting that did not exist before."""

    by_length: bool = False


def test_an_evaluation_of_the_first_windows_has_the_fingerprint_it_always_had() -> None:
    data = STATED["data"]
    for kind in (Evaluation, LaterEvaluation):
        assert kind(windows="first").fingerprint_on(data) == "3db120ce"
        assert kind(windows="first", sequences=16).fingerprint_on(data) == "2ede3cfb"
        assert kind(windows="first", name="long", sequences=512).fingerprint_on(data) == "6e5beffb"
        assert kind(sequences=16).fingerprint_on(data) == "b5e17d92"
    assert LaterEvaluation(by_length=True).fingerprint_on(data) != LaterEvaluation().fingerprint_on(data)


@pytest.mark.parametrize("changed", [{"context_length": 64}, {"revision": "sha256:1"}, {"tokenizer": "words"}])
def test_losses_on_other_text_tokens_or_contexts_have_other_fingerprints(changed: dict[str, Any]) -> None:
    data = STATED["data"]
    assert Evaluation().fingerprint_on(data.model_copy(update=changed)) != Evaluation().fingerprint_on(data)


def test_a_specification_that_was_saved_before_there_was_a_choice_reads_the_first_windows(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    RunSpec(physics=Physics(**STATED), evaluation=Evaluation(sequences=16)).save(path)
    assert RunSpec.load(path).evaluation.windows == "even"
    content = json.loads(path.read_text())
    del content["evaluation"]["windows"]
    path.write_text(json.dumps(content))
    assert RunSpec.load(path).evaluation_fingerprint == "2ede3cfb"
