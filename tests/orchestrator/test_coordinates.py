"""`scaling check coordinates`: what it says of a sweep's widths."""

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("parametrization", ["mup", "standard"])
def test_activations_are_told_by_width_and_judged(scaling: Any, tmp_path: Path, parametrization: str) -> None:
    transfer = {"parametrization": "mup", "mup_base_width": 32} if parametrization == "mup" else {}
    sweep = {
        "name": "widths",
        "data": {"corpus": "text", "revision": "sha256:0", "tokenizer": "bytes", "context_length": 16},
        "sizes": {str(d): {"embedding_dim": d, "num_blocks": 1 + d // 64, "num_heads": 2} for d in (32, 64, 192)},
        "grid": {"model": ["llama"], "size": ["192", "32", "64"], "tokens": [4096], "learning_rate": [1e-4, 1e-2]},
        "train": {"batch_sequences": 4} | transfer,
    }
    path = tmp_path / "widths.json"
    path.write_text(json.dumps(sweep))
    said = scaling("check", "coordinates", str(path), "--json")
    assert said.code == 0
    (document,) = said.json
    assert document["widths"] == [32, 64, 192]
    assert document["learning_rate"] == 1e-2
    assert [one["place"] for one in document["places"]] == ["block 1", "logits"]  # as deep as the shallowest
    for one in document["places"]:
        assert one["ratio"] == max(one["sizes"]) / min(one["sizes"])
    assert document["flat"] == (parametrization == "mup")
    assert (tmp_path / "workspace" / "fits" / "widths-coordinates.png").is_file()


def test_one_width_is_refused_in_a_line(scaling: Any, write_sweep: Any) -> None:
    said = scaling("check", "coordinates", write_sweep())
    assert said.code == 2
    assert "a coordinate check needs a family of two widths at least" in said.err
