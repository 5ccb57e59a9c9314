"""No run ever changes its id: those of every shipped sweep, and of a run with nothing left at its default."""

import hashlib
import json
from pathlib import Path

import pytest

from sweeps.sweep import SHIPPED, Sweep

COMMITTED: dict[str, list[str]] = json.loads((Path(__file__).parent / "run_ids.json").read_text())

TEXT = {"train.txt": "to be , or not to be : that is the question .\n" * 9, "valid.txt": "to be or not .\n"}
"""Stands in for corpora that are not shipped: an id depends on the contents of local files."""

NOTHING_AT_ITS_DEFAULT = """
name: nothing-at-its-default
data: {corpus: text, revision: "sha256:0", tokenizer: bytes, context_length: 64, documents: reset}
sizes:
  changed:
    xlstm: {embedding_dim: 64, num_blocks: 4, num_heads: 2, convolution: false, forget_gate: bias}
    llama: {embedding_dim: 64, num_blocks: 4, num_heads: 2, rope_theta: 5.0e+5}
grid: {model: ["xlstm[1:1]", llama], size: [changed], tokens: [1M], seed: [3]}
train:
  {batch_sequences: 8, precision: bf16-mixed, z_loss: 1e-4,
   learning_rate: 1e-3, beta1: 0.8, beta2: 0.9, epsilon: 1e-8, weight_decay: 0.2, recurrent_weight_decay: 0.2,
   gradient_clip: null,
   schedule: wsd, warmup_steps: 7, decay_steps: 90, final_ratio: 0.2}
"""

FEW = 60
"""Runs of a sweep that are all committed by their ids."""
SWEEPS = sorted(SHIPPED.rglob("*.yaml"))


def run_ids(path: Path, folder: Path) -> list[str]:
    """The ids of a sweep's runs where data of this machine are replaced by a stated revision, or by TEXT."""
    data = Sweep.load(path).file.data.model_dump()
    overrides = []
    if data["corpus"] is not None and data["revision"] is None:
        overrides = [f"data.corpus={data['corpus']}", "data.revision='0'"]
    if data["paths"]:
        for name, text in TEXT.items():
            (folder / name).write_text(text)
        overrides = [f"data.corpus={data['corpus']}:{folder}"]
    return stated([run.spec.run_id for run in Sweep.load(path, overrides).runs])


def stated(ids: list[str]) -> list[str]:
    """Ids as they are committed: of many the first ones, and a digest of all."""
    if len(ids) <= FEW:
        return ids
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    return [*ids[:3], f"and {len(ids) - 3:,} more; all: sha256 {digest}"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_run_of_a_shipped_sweep_has_the_id_it_always_had(path: Path, tmp_path: Path) -> None:
    assert run_ids(path, tmp_path) == COMMITTED[path.relative_to(SHIPPED).as_posix()]


def test_a_run_with_nothing_at_its_default_has_the_id_it_always_had(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(NOTHING_AT_ITS_DEFAULT)
    assert [run.spec.run_id for run in Sweep.load(path).runs] == COMMITTED["nothing at its default"]


def test_no_id_is_committed_for_a_sweep_that_is_gone() -> None:
    assert set(COMMITTED) == {path.relative_to(SHIPPED).as_posix() for path in SWEEPS} | {"nothing at its default"}
