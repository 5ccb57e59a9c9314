"""Folders that `transformers` writes by itself give its logits here, whatever the way in which they lie there."""

from pathlib import Path

import pytest
import torch
from peers import needs_peers, relative_error, run_peer

from xlstm.export.transformers import load

TOLERANCE = 1e-5
"""Of the Frobenius norm, relative: about a hundred roundings of float32."""


@needs_peers
@pytest.mark.serial
@pytest.mark.parametrize(
    "kind",
    [
        *("llama, in shards", "llama tied", "llama tied, in shards", "llama, pickled"),
        *("gpt", "gpt, base only", "mamba tied", "mamba tied, base only", "mamba tied, in shards"),
        *("rwkv", "rwkv, in shards", "xlstm", "xlstm, in shards"),
    ],
)
def test_a_folder_gives_its_logits(kind: str, tmp_path: Path) -> None:
    tokens = torch.randint(61, (2, 128), generator=torch.Generator().manual_seed(1))
    theirs = run_peer("transformers_folders", {"kind": kind, "save_to": str(tmp_path)}, {"tokens": tokens})
    model, _ = load(tmp_path)
    with torch.no_grad():
        logits, _ = model(tokens)
    assert relative_error(logits, theirs["logits"]) < TOLERANCE
