"""Peer: the author's package for RWKV-5, 6 and 7, which has no gradients.

Request: family. Inputs: tokens (time,), weights as `weight.<name>`. Outputs: logits (time, vocabulary).
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

folder = Path(sys.argv[1])
request = json.loads((folder / "request.json").read_text())
inputs = {key: torch.from_numpy(value) for key, value in np.load(folder / "inputs.npz").items()}
weights = {key.removeprefix("weight."): inputs[key] for key in inputs if key.startswith("weight.")}
torch.save(weights, folder / "weights.pth")
newest = request["family"] == "rwkv7"
os.environ |= {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "RWKV_V7_ON": "1" if newest else "0"}

if True:  # it reads its environment when it is imported
    from rwkv.model import RWKV

model = RWKV(str(folder / ("weights" if newest else "weights.pth")), "cpu fp32")
logits, _ = model.forward(inputs["tokens"].tolist(), None, full_output=True)
np.savez(folder / "outputs.npz", logits=logits.float().numpy())
