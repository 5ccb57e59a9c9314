"""Run a peer's implementation in its own environment: tensors in, tensors out, through files.

A peer is a script of this folder, `peer_<name>.py`, that the other environment's Python runs: it reads `request.json`
and `inputs.npz` in the folder named by its only argument and leaves `outputs.npz` there. A process of its own is needed
because peers bring packages of the same name as ours.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
INTERPRETER = Path(os.environ.get("SCALING_PARITY_PYTHON", HERE.parent.parent / ".venv-parity" / "bin" / "python"))

needs_peers = pytest.mark.skipif(
    not INTERPRETER.exists(), reason=f"no peers at {INTERPRETER}; `make parity` installs and runs them"
)


def run_peer(name: str, request: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the peer makes of a request and named tensors. RuntimeError with the peer's own words where it fails."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "request.json").write_text(json.dumps(request))
        np.savez(Path(folder) / "inputs.npz", **{key: value.detach().numpy() for key, value in inputs.items()})
        done = subprocess.run(
            # -P: this folder, and so the repository, stays out of the peer's search path.
            [INTERPRETER, "-P", HERE / f"peer_{name}.py", folder],
            cwd=folder, capture_output=True, text=True, timeout=300,
            env={"PATH": os.environ["PATH"], "HOME": folder, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"peer {name} failed:\n{done.stderr[-4000:]}")
        with np.load(Path(folder) / "outputs.npz", allow_pickle=False) as outputs:
            return {key: torch.from_numpy(outputs[key]) for key in outputs.files}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of the expected value; of the difference alone where that is zero."""
    difference, size = (actual.detach().double() - expected.double()).norm(), expected.double().norm()
    return float(difference / size) if size > 0 else float(difference)
