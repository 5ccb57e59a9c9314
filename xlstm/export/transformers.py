"""Models in the format of Hugging Face's `transformers`: a folder of `config.json` and weights.

Llama, GPT (there GPT-2), Mamba, Mamba-2, RWKV-4 (there RWKV) and xlstm-large (there xLSTM), in and out. A model saved
here is loaded there by `AutoModelForCausalLM.from_pretrained(folder)`; and one saved there is loaded here where it is
of the same shape: in shards, with a tied head, with or without the prefix of its base model.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from xlstm.export.transformers_config import CONFIG_FILE, config_from_transformers, config_to_transformers, ties_head
from xlstm.export.weights import read_json, read_weights
from xlstm.models import build
from xlstm.models.configs import ModelConfig

WEIGHTS_FILE = "model.safetensors"

Reshape = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Entry:
    """One of our parameters, what it is called there, and how to turn its axes."""

    ours: str
    theirs: str
    out: Reshape = lambda tensor: tensor
    back: Reshape = lambda tensor: tensor


def _transposed(ours: str, theirs: str) -> Entry:
    """GPT-2 stores its matrices as (inputs, outputs)."""
    return Entry(ours, theirs, torch.t, torch.t)


def _per_channel(ours: str, theirs: str) -> Entry:
    """RWKV stores its shifts as (1, 1, channels)."""
    return Entry(ours, theirs, lambda tensor: tensor[None, None], lambda tensor: tensor[0, 0])


def _taps(ours: str, theirs: str) -> Entry:
    """A depthwise convolution has (channels, 1, taps)."""
    return Entry(ours, theirs, lambda tensor: tensor[:, None], lambda tensor: tensor[:, 0])


@dataclass(frozen=True)
class Format:
    """How a family is spelt there. Names within a block are relative to `block`, with its index in place of {}."""

    block: str
    outside: tuple[Entry, ...]
    inside: tuple[Entry, ...]


def _weight_and_bias(ours: str, theirs: str, kind: Callable[[str, str], Entry] = Entry) -> tuple[Entry, Entry]:
    return kind(f"{ours}.weight", f"{theirs}.weight"), Entry(f"{ours}.bias", f"{theirs}.bias")


def _ends(embedding: str, norm: str) -> tuple[Entry, ...]:
    """The weights outside the blocks, where the last norm has no bias and the head is usual."""
    return (
        Entry("embedding.weight", f"{embedding}.weight"),
        Entry("norm.weight", f"{norm}.weight"),
        Entry("head.weight", "lm_head.weight"),
    )


_FORMATS = {
    "llama": Format(
        "model.layers.{}",
        _ends("model.embed_tokens", "model.norm"),
        (
            Entry("attention_norm.weight", "input_layernorm.weight"),
            *(Entry(f"{name}.weight", f"self_attn.{name[0]}_proj.weight") for name in ("query", "key", "value")),
            Entry("out.weight", "self_attn.o_proj.weight"),
            Entry("feedforward_norm.weight", "post_attention_layernorm.weight"),
            *(Entry(f"{name}.weight", f"mlp.{name}_proj.weight") for name in ("gate", "up")),
            Entry("down.weight", "mlp.down_proj.weight"),
        ),
    ),
    "gpt": Format(
        "transformer.h.{}",
        (
            Entry("embedding.weight", "transformer.wte.weight"),
            Entry("positions.weight", "transformer.wpe.weight"),
            *_weight_and_bias("norm", "transformer.ln_f"),
        ),
        (
            *_weight_and_bias("attention_norm", "ln_1"),
            *_weight_and_bias("query_key_value", "attn.c_attn", _transposed),
            *_weight_and_bias("out", "attn.c_proj", _transposed),
            *_weight_and_bias("feedforward_norm", "ln_2"),
            *_weight_and_bias("up", "mlp.c_fc", _transposed),
            *_weight_and_bias("down", "mlp.c_proj", _transposed),
        ),
    ),
    "mamba": Format(
        "backbone.layers.{}",
        _ends("backbone.embeddings", "backbone.norm_f"),
        (
            Entry("norm.weight", "norm.weight"),
            Entry("up.weight", "mixer.in_proj.weight"),
            *_weight_and_bias("conv", "mixer.conv1d", _taps),
            Entry("select.weight", "mixer.x_proj.weight"),
            *_weight_and_bias("delta", "mixer.dt_proj"),
            Entry("log_rates", "mixer.A_log"),
            Entry("skip", "mixer.D"),
            Entry("out.weight", "mixer.out_proj.weight"),
        ),
    ),
    "mamba2": Format(
        "backbone.layers.{}",
        _ends("backbone.embeddings", "backbone.norm_f"),
        (
            Entry("norm.weight", "norm.weight"),
            Entry("up.weight", "mixer.in_proj.weight"),
            *_weight_and_bias("conv", "mixer.conv1d", _taps),
            Entry("log_rates", "mixer.A_log"),
            Entry("delta_bias", "mixer.dt_bias"),
            Entry("skip", "mixer.D"),
            Entry("gated_norm.weight", "mixer.norm.weight"),
            Entry("out.weight", "mixer.out_proj.weight"),
        ),
    ),
    "rwkv4": Format(
        "rwkv.blocks.{}",
        (
            Entry("embedding.weight", "rwkv.embeddings.weight"),
            *_weight_and_bias("embedding_norm", "rwkv.blocks.0.pre_ln"),
            *_weight_and_bias("norm", "rwkv.ln_out"),
            Entry("head.weight", "head.weight"),
        ),
        (
            *_weight_and_bias("time_norm", "ln1"),
            Entry("time_mix.decay", "attention.time_decay"),
            Entry("time_mix.bonus", "attention.time_first"),
            *(
                _per_channel(f"time_mix.shift_{name}", f"attention.time_mix_{name}")
                for name in ("key", "value", "receptance")
            ),
            *(Entry(f"time_mix.{name}.weight", f"attention.{name}.weight") for name in ("key", "value", "receptance")),
            Entry("time_mix.out.weight", "attention.output.weight"),
            *_weight_and_bias("channel_norm", "ln2"),
            *(
                _per_channel(f"channel_mix.shift_{name}", f"feed_forward.time_mix_{name}")
                for name in ("key", "receptance")
            ),
            *(
                Entry(f"channel_mix.{name}.weight", f"feed_forward.{name}.weight")
                for name in ("key", "receptance", "value")
            ),
        ),
    ),
    "xlstm-large": Format(
        "backbone.blocks.{}",
        _ends("backbone.embeddings", "backbone.out_norm"),
        (
            Entry("norm.weight", "norm_mlstm.weight"),
            *(Entry(f"{name}.weight", f"mlstm_layer.{name[0]}.weight") for name in ("query", "key", "value")),
            *_weight_and_bias("input_gate", "mlstm_layer.igate_preact"),
            *_weight_and_bias("forget_gate", "mlstm_layer.fgate_preact"),
            Entry("output_gate.weight", "mlstm_layer.ogate_preact.weight"),
            Entry("head_norm.weight", "mlstm_layer.multihead_norm.weight"),
            Entry("out.weight", "mlstm_layer.out_proj.weight"),
            Entry("feedforward_norm.weight", "norm_ffn.weight"),
            Entry("gate.weight", "ffn.proj_up_gate.weight"),
            Entry("up.weight", "ffn.proj_up.weight"),
            Entry("down.weight", "ffn.proj_down.weight"),
        ),
    ),
}

_NO_WEIGHTS = re.compile(r"(^|\.)(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)$")
"""Masks and frequencies, which older versions stored among the weights."""
_RENAMED = {"backbone.embedding.weight": "backbone.embeddings.weight"}
"""Names of older versions."""
_WRAPPERS = ("module.", "_orig_mod.")
"""What wrappers of a model put before every name."""


def entries(config: ModelConfig) -> Iterator[Entry]:
    """Every parameter of a model, with full names. ValueError for a family that `transformers` has not."""
    if config.family not in _FORMATS:
        raise ValueError(f"transformers has no {config.family}; there are {', '.join(_FORMATS)}")
    spelling = _FORMATS[config.family]
    yield from spelling.outside
    for index in range(config.num_blocks):
        block = spelling.block.format(index)
        for entry in spelling.inside:
            yield Entry(f"blocks.{index}.{entry.ours}", f"{block}.{entry.theirs}", entry.out, entry.back)


def to_transformers(config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters, or their gradients, by their names and in their shapes."""
    return {entry.theirs: entry.out(tensors[entry.ours]).contiguous() for entry in entries(config)}


def from_transformers(config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their parameters by our names and in our shapes. ValueError for tensors that are missing or left over."""
    expected = {entry.theirs for entry in entries(config)}
    missing, surplus = expected - tensors.keys(), tensors.keys() - expected
    if config.family == "gpt":
        surplus.discard("lm_head.weight")  # the embedding, written twice
    if missing or surplus:
        raise ValueError(
            f"not the weights of this {config.family}: missing {sorted(missing)}, left over {sorted(surplus)}"
        )
    return {entry.ours: entry.back(tensors[entry.theirs]) for entry in entries(config)}


def _by_full_names(config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of any version under the names that `entries` gives: of the base model alone, or of a wrapped one."""
    expected = {entry.theirs for entry in entries(config)}
    base = _FORMATS[config.family].outside[0].theirs.partition(".")[0]
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = name
        for wrapper in _WRAPPERS:
            full = full.removeprefix(wrapper)
        if full not in expected and f"{base}.{full}" in expected | _RENAMED.keys():
            full = f"{base}.{full}"
        if not _NO_WEIGHTS.search(full):
            named[_RENAMED.get(full, full)] = tensor
    return named


def _with_tied_head(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The embedding written twice, where the head is tied to it. ValueError where there is a head of its own."""
    names = {entry.ours: entry.theirs for entry in entries(config)}
    embedding, head = names["embedding.weight"], names.get("head.weight", "lm_head.weight")
    if embedding in tensors and not torch.equal(tensors.get(head, tensors[embedding]), tensors[embedding]):
        raise ValueError(f"{CONFIG_FILE}: tie_word_embeddings is True, but {head} is not {embedding}")
    return tensors | ({head: tensors[embedding]} if embedding in tensors else {})


def save(model: nn.Module, config: ModelConfig, folder: Path, *, context_length: int = 2048) -> None:
    """Write `config.json` and `model.safetensors`. ValueError for a family that `transformers` has not."""
    from safetensors.torch import save_file

    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    theirs = to_transformers(config, tensors)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config_to_transformers(config, context_length), indent=2) + "\n")
    save_file({name: tensor.cpu() for name, tensor in theirs.items()}, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load(folder: Path) -> tuple[nn.Module, ModelConfig]:
    """The model of a folder. ValueError for one that is not of our shape; FileNotFoundError where there is none.

    Weights are safetensors or PyTorch's, whole or in shards, of any floating-point type, and never unpickled.
    """
    content = read_json(folder / CONFIG_FILE)
    config = config_from_transformers(content)
    read = read_weights(folder)
    if config.num_blocks > len(read):
        raise ValueError(f"{folder}: {CONFIG_FILE} says {config.num_blocks} blocks, but there are {len(read)} tensors")
    theirs = _by_full_names(config, read)
    if ties_head(content):
        theirs = _with_tied_head(config, theirs)
    try:
        weights = from_transformers(config, theirs)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}, by {CONFIG_FILE}") from None
    with torch.device("meta"):  # what is stated may be larger than any memory
        shapes = build(config)
    for name, parameter in shapes.named_parameters():
        found = weights[name]
        if found.shape != parameter.shape or not found.is_floating_point():
            raise ValueError(
                f"{folder}: {name} is {tuple(found.shape)} of {found.dtype}, and ours {tuple(parameter.shape)}"
            )
    model = build(config)
    model.load_state_dict(weights)
    return model, config
