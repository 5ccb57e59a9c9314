"""Peer: a model saved by us in the format of `transformers`. Loss = sum of logits times given coefficients.

Request: model (folder), new_tokens, save_to (folder, optional). Inputs: tokens, coefficients, prompt. Outputs: logits,
gradients as `gradient.<name>`, and the greedy continuation of the prompt.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

folder = Path(sys.argv[1])
request = json.loads((folder / "request.json").read_text())
inputs = {key: torch.from_numpy(value) for key, value in np.load(folder / "inputs.npz").items()}

model, loading = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32, output_loading_info=True)
assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
if request.get("save_to"):
    model.save_pretrained(request["save_to"])

model.train()
logits = model(inputs["tokens"], use_cache=False).logits
(logits * inputs["coefficients"]).sum().backward()
outputs = {"logits": logits.detach().numpy()}
outputs |= {f"gradient.{name}": parameter.grad.numpy() for name, parameter in model.named_parameters()}

model.eval()
with torch.no_grad():
    text = inputs["prompt"]
    for _ in range(request["new_tokens"]):
        text = torch.cat((text, model(text, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
outputs["continuation"] = text[:, inputs["prompt"].shape[1] :].numpy()
np.savez(folder / "outputs.npz", **outputs)
