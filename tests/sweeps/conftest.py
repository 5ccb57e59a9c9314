"""Sweeps for the tests of their language: planned without any data, since the revision is stated."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps.sweep import Sweep

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"corpus": "text", "revision": "sha256:0", "tokenizer": "bytes", "context_length": 64},
    "sizes": {"small": {"embedding_dim": 32, "num_blocks": 4, "num_heads": 2}},
    "grid": {"model": ["llama"], "size": ["small"], "tokens": [65536], "seed": [0]},
    "train": {"batch_sequences": 8, "learning_rate": 0.001},
}


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Sweep]:
    """Load the tiny sweep with top-level keys replaced, or a text as it is."""

    def loaded(text: str | None = None, overrides: tuple[str, ...] = (), **changes: Any) -> Sweep:
        content = copy.deepcopy(TINY) | changes
        path = tmp_path / "sweep.yaml"
        path.write_text(json.dumps(content, indent=1) if text is None else text)
        return Sweep.load(path, overrides)

    return loaded
