"""Peer: a model that `transformers` makes and writes by itself, in one of the ways that people have their folders.

Request: kind, save_to (folder). Inputs: tokens. Outputs: logits.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers.utils
import transformers.utils.import_utils

# Its own code, not that of NX-AI's package, which may stand beside it.
transformers.utils.is_xlstm_available = transformers.utils.import_utils.is_xlstm_available = lambda: False

import transformers as t  # noqa: E402

folder = Path(sys.argv[1])
request = json.loads((folder / "request.json").read_text())
tokens = torch.from_numpy(np.load(folder / "inputs.npz")["tokens"])

llama = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
small = {"hidden_size": 64, "num_hidden_layers": 2}
gpt = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
large = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_heads": 4,
    "mode": "train",
    "autocast_kernel_dtype": "float32",
}
made = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(vocab_size=61, **llama)),
    "llama tied": lambda: t.LlamaForCausalLM(t.LlamaConfig(vocab_size=61, tie_word_embeddings=True, **llama)),
    "gpt": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=61, **gpt)),
    "mamba tied": lambda: t.MambaForCausalLM(t.MambaConfig(vocab_size=61, **small)),
    "rwkv": lambda: t.RwkvForCausalLM(t.RwkvConfig(vocab_size=61, **small)),
    "xlstm": lambda: t.xLSTMForCausalLM(t.xLSTMConfig(vocab_size=61, **large)),
}
kind, _, way = request["kind"].partition(", ")
torch.manual_seed(0)
model = made[kind]().eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.03)
        if name.endswith("igate_preact.bias"):
            parameter.add_(10.0)  # open, so that what is remembered counts
saved = Path(request["save_to"])
model.save_pretrained(saved, max_shard_size="50KB" if way == "in shards" else "5GB")
if way == "base only":
    (saved / "model.safetensors").unlink()
    model.base_model.save_pretrained(saved)
if way == "pickled":
    (saved / "model.safetensors").unlink()
    torch.save(model.state_dict(), saved / "pytorch_model.bin")
with torch.no_grad():
    logits = model(tokens, use_cache=False).logits
np.savez(folder / "outputs.npz", logits=logits.float().numpy())
