"""Peer: what flash-linear-attention has of Mamba and RWKV-4, with weights or inputs of ours.

Request: operator `mamba`, with configuration (fields of its MambaConfig). Inputs: tokens, coefficients, weights as
`weight.<name>`. Outputs: logits, and gradients as `gradient.<name>`. Loss = sum of logits times given coefficients.

Request: operator `wkv`. Inputs: k, v (batch, time, channels), log_decay, bonus (channels,), a, b, m (batch, channels),
coefficients (batch, time, channels), final_coefficients (batch, channels). Outputs: y, final_a, final_b, final_m,
gradients as `gradient.<name>`. Loss = sum of y times coefficients, and of the final a / b times theirs.
"""

import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # there is no GPU: Triton's interpreter runs its kernels

import numpy as np
import torch
from triton.runtime.autotuner import Autotuner

# Interpreted kernels take the first of their launch options: there is nothing to measure.
Autotuner.prune_configs = lambda self, kwargs: self.configs[:1]
Autotuner._bench = lambda self, *arguments, config, **others: [0.0]

folder = Path(sys.argv[1])
request = json.loads((folder / "request.json").read_text())
inputs = {key: torch.from_numpy(value) for key, value in np.load(folder / "inputs.npz").items()}

if request["operator"] == "mamba":
    from fla.models.mamba import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(**request["configuration"]))
    model.load_state_dict({key.removeprefix("weight."): inputs[key] for key in inputs if key.startswith("weight.")})
    model.train()
    logits = model(inputs["tokens"], use_cache=False).logits
    (logits * inputs["coefficients"]).sum().backward()
    outputs = {"logits": logits.detach().numpy()}
    outputs |= {f"gradient.{name}": parameter.grad.numpy() for name, parameter in model.named_parameters()}
else:
    from fla.ops.rwkv4 import fused_recurrent_rwkv4

    given = {name: inputs[name].requires_grad_() for name in ("k", "v", "log_decay", "bonus", "a", "b")}
    state = torch.stack((given["a"], given["b"], inputs["m"]), dim=1)[:, :, None]
    y, final = fused_recurrent_rwkv4(given["log_decay"], given["bonus"], given["k"], given["v"], state)
    a, b, m = final[:, :, 0].unbind(1)
    ((y * inputs["coefficients"]).sum() + (a / b * inputs["final_coefficients"]).sum()).backward()
    outputs = {"y": y, "final_a": a, "final_b": b, "final_m": m}
    outputs |= {f"gradient.{name}": tensor.grad for name, tensor in given.items()}
    outputs = {name: tensor.detach().numpy() for name, tensor in outputs.items()}
np.savez(folder / "outputs.npz", **outputs)
