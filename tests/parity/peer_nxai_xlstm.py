"""Peer: NX-AI's xLSTMLMModel with weights of ours. Loss = sum of logits times given coefficients.

Request: vocab_size, embedding_dim, num_blocks, num_heads, slstm_at, context_length. Inputs: tokens, coefficients,
weights as `weight.<name>`. Outputs: logits, and gradients as `gradient.<name>`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from xlstm import (
    FeedForwardConfig,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMLMModel,
    xLSTMLMModelConfig,
)

folder = Path(sys.argv[1])
request = json.loads((folder / "request.json").read_text())
inputs = {key: torch.from_numpy(value) for key, value in np.load(folder / "inputs.npz").items()}

heads = request["num_heads"]
model = xLSTMLMModel(
    xLSTMLMModelConfig(
        mlstm_block=mLSTMBlockConfig(
            mlstm=mLSTMLayerConfig(conv1d_kernel_size=4, qkv_proj_blocksize=4, num_heads=heads)
        ),
        slstm_block=sLSTMBlockConfig(
            slstm=sLSTMLayerConfig(backend="vanilla", num_heads=heads, conv1d_kernel_size=4),
            feedforward=FeedForwardConfig(proj_factor=1.3, act_fn="gelu"),
        ),
        context_length=request["context_length"],
        num_blocks=request["num_blocks"],
        embedding_dim=request["embedding_dim"],
        slstm_at=request["slstm_at"],
        vocab_size=request["vocab_size"],
        tie_weights=False,
        dropout=0.0,
    )
)
model.load_state_dict(
    {key.removeprefix("weight."): value for key, value in inputs.items() if key.startswith("weight.")}, strict=False
)
parameters = dict(model.named_parameters())
given = {key.removeprefix("weight.") for key in inputs if key.startswith("weight.")}
assert given == set(parameters), given ^ set(parameters)

logits = model(inputs["tokens"])
(logits * inputs["coefficients"]).sum().backward()
outputs = {"logits": logits.detach().numpy()}
outputs |= {f"gradient.{name}": parameter.grad.numpy() for name, parameter in parameters.items()}
np.savez(folder / "outputs.npz", **outputs)
