"""Peer: whole models of flash-linear-attention, with weights of ours; their recurrences are its naive references.

Request: family, configuration (fields of its configuration). Inputs: tokens, coefficients, weights as `weight.<name>`.
Outputs: logits, and gradients as `gradient.<name>`. Loss = sum of logits times given coefficients.

There is no GPU: Triton's interpreter runs norms, and what it cannot run, rotary positions and short convolutions, is
PyTorch's here.
"""

import json
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import fla.layers.gated_deltanet as gated_deltanet
import fla.layers.gla as gla
import fla.layers.hgrn as hgrn
import fla.layers.hgrn2 as hgrn2
import fla.layers.multiscale_retention as retention
import numpy as np
import torch
import torch.nn.functional as F
from fla import models
from fla.modules import FusedRMSNormGated, RMSNorm, ShortConvolution
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.hgrn.naive import naive_recurrent_hgrn
from fla.ops.simple_gla.naive import naive_recurrent_simple_gla
from triton.runtime.autotuner import Autotuner

# Interpreted kernels take the first of their launch options: there is nothing to measure.
Autotuner.prune_configs = lambda self, kwargs: self.configs[:1]
Autotuner._bench = lambda self, *arguments, config, **others: [0.0]


def of_gla(q, k, v, gk, **_):
    return naive_recurrent_gla(q, k, v, gk)


def of_hgrn(x, g, **_):
    return naive_recurrent_hgrn(x, g)


def of_retention(q, k, v, **_):
    decays = torch.log(1 - 2.0 ** (-5 - torch.arange(q.shape[2])))
    return naive_recurrent_simple_gla(q, k, v, decays.expand(q.shape[:3]))


def of_delta_rule(q, k, v, g, beta, A_log, dt_bias, **_):
    q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    decay = -A_log.exp() * F.softplus(g + dt_bias)
    return naive_recurrent_gated_delta_rule(q, k, v, beta.sigmoid(), decay)


def turned(self, q, k, **_):
    half = q.shape[-1] // 2
    angles = torch.arange(q.shape[1])[:, None] * 10000.0 ** (-torch.arange(half) / half)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return tuple(torch.cat((x[..., :half] * cos - x[..., half:] * sin, x[..., :half] * sin + x[..., half:] * cos), -1)
                 for x in (q, k))  # fmt: skip


def convolved(self, x, **_):
    padded = F.pad(x.transpose(1, 2), (self.weight.shape[-1] - 1, 0))
    return F.silu(F.conv1d(padded, self.weight, groups=x.shape[-1])).transpose(1, 2), None


def normed(self, x):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


gla.fused_recurrent_gla = hgrn2.fused_recurrent_gla = of_gla
hgrn.chunk_hgrn = hgrn.fused_recurrent_hgrn = of_hgrn
retention.chunk_retention = retention.fused_recurrent_retention = of_retention
retention.RotaryEmbedding.forward = turned
gated_deltanet.chunk_gated_delta_rule = gated_deltanet.fused_recurrent_gated_delta_rule = of_delta_rule
gated_deltanet.GatedDeltaNet._use_fused_qkv_conv = lambda self, **_: False
ShortConvolution.forward = convolved
RMSNorm.forward = lambda self, x, *_, **__: normed(self, x)
FusedRMSNormGated.forward = lambda self, x, g, *_, **__: normed(self, x) * F.silu(g)
# Its norm in front of a linear map knows no configured epsilon: 1e-5.
hgrn2.rms_norm_linear = lambda x, weight, bias, w, b: F.linear(
    x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight, w
)
hgrn.swiglu = lambda x, y: F.silu(x) * y

NAMES = {"gla": "GLA", "hgrn": "HGRN", "hgrn2": "HGRN2", "retnet": "RetNet", "gated-deltanet": "GatedDeltaNet"}
folder = Path(sys.argv[1])
request = json.loads((folder / "request.json").read_text())
inputs = {key: torch.from_numpy(value) for key, value in np.load(folder / "inputs.npz").items()}
name = NAMES[request["family"]]
options = {"fuse_swiglu": False, "fuse_cross_entropy": False}
model = getattr(models, f"{name}ForCausalLM")(getattr(models, f"{name}Config")(**request["configuration"], **options))
model.load_state_dict({key.removeprefix("weight."): inputs[key] for key in inputs if key.startswith("weight.")})
model.train()
logits = model(inputs["tokens"], use_cache=False).logits
(logits * inputs["coefficients"]).sum().backward()
outputs = {"logits": logits.detach().numpy()}
outputs |= {f"gradient.{name}": parameter.grad.numpy() for name, parameter in model.named_parameters()}
np.savez(folder / "outputs.npz", **outputs)
