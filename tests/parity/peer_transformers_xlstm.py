"""Peer: transformers' xLSTMForCausalLM, loaded from a folder saved in its own format, with weights of ours.

Request: configuration (fields of xLSTMConfig), chunk_size. Inputs: tokens, coefficients, weights as
`weight.<name>`. Outputs: logits, and gradients as `gradient.<name>`. Loss = sum of logits times coefficients.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers.utils
import transformers.utils.import_utils

# Its own code, not that of NX-AI's package, which stands beside it here and which it would take over.
transformers.utils.is_xlstm_available = transformers.utils.import_utils.is_xlstm_available = lambda: False

from safetensors.torch import save_file  # noqa: E402
from transformers import xLSTMConfig, xLSTMForCausalLM  # noqa: E402

folder = Path(sys.argv[1])
request = json.loads((folder / "request.json").read_text())
inputs = {key: torch.from_numpy(value) for key, value in np.load(folder / "inputs.npz").items()}
weights = {key.removeprefix("weight."): value for key, value in inputs.items() if key.startswith("weight.")}

stated = {name: value for name, value in request["configuration"].items() if name != "model_type"}
configuration = xLSTMConfig(**stated, mode="train", autocast_kernel_dtype="float32")
configuration.chunk_size = request["chunk_size"]
saved = folder / "saved"
configuration.save_pretrained(saved)
save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
model, report = xLSTMForCausalLM.from_pretrained(saved, output_loading_info=True)
assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report

model.train()
logits = model(inputs["tokens"], use_cache=False).logits
(logits * inputs["coefficients"]).sum().backward()
outputs = {"logits": logits.detach().numpy()}
outputs |= {f"gradient.{name}": parameter.grad.numpy() for name, parameter in model.named_parameters()}
np.savez(folder / "outputs.npz", **outputs)
