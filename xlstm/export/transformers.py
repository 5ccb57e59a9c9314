"""Models in the format of Hugging Face's `transformers`: a folder of `config.json` and `model.safetensors`.

Llama, GPT (there GPT-2), Mamba and RWKV-4 (there RWKV), in and out. A model saved here is loaded there by
`AutoModelForCausalLM.from_pretrained(folder)`; and one saved there is loaded here where it is of the same shape.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xlstm.models import build
from xlstm.models.configs import GPTConfig, LlamaConfig, MambaConfig, ModelConfig, RWKV4Config

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

Reshape = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Entry:
    """One of our parameters, what it is called there, and how to turn its axes."""

    ours: str
    theirs: str
    out: Reshape = lambda tensor: tensor
    back: Reshape = lambda tensor: tensor


def _same(ours: str, theirs: str) -> Entry:
    return Entry(ours, theirs)


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


def _weight_and_bias(ours: str, theirs: str, kind: Callable[[str, str], Entry]) -> tuple[Entry, Entry]:
    return kind(f"{ours}.weight", f"{theirs}.weight"), _same(f"{ours}.bias", f"{theirs}.bias")


_FORMATS = {
    "llama": Format(
        "model.layers.{}",
        (
            _same("embedding.weight", "model.embed_tokens.weight"),
            _same("norm.weight", "model.norm.weight"),
            _same("head.weight", "lm_head.weight"),
        ),
        (
            _same("attention_norm.weight", "input_layernorm.weight"),
            *(_same(f"{name}.weight", f"self_attn.{name[0]}_proj.weight") for name in ("query", "key", "value")),
            _same("out.weight", "self_attn.o_proj.weight"),
            _same("feedforward_norm.weight", "post_attention_layernorm.weight"),
            *(_same(f"{name}.weight", f"mlp.{name}_proj.weight") for name in ("gate", "up")),
            _same("down.weight", "mlp.down_proj.weight"),
        ),
    ),
    "gpt": Format(
        "transformer.h.{}",
        (
            _same("embedding.weight", "transformer.wte.weight"),
            _same("positions.weight", "transformer.wpe.weight"),
            *_weight_and_bias("norm", "transformer.ln_f", _same),
        ),
        (
            *_weight_and_bias("attention_norm", "ln_1", _same),
            *_weight_and_bias("query_key_value", "attn.c_attn", _transposed),
            *_weight_and_bias("out", "attn.c_proj", _transposed),
            *_weight_and_bias("feedforward_norm", "ln_2", _same),
            *_weight_and_bias("up", "mlp.c_fc", _transposed),
            *_weight_and_bias("down", "mlp.c_proj", _transposed),
        ),
    ),
    "mamba": Format(
        "backbone.layers.{}",
        (
            _same("embedding.weight", "backbone.embeddings.weight"),
            _same("norm.weight", "backbone.norm_f.weight"),
            _same("head.weight", "lm_head.weight"),
        ),
        (
            _same("norm.weight", "norm.weight"),
            _same("up.weight", "mixer.in_proj.weight"),
            *_weight_and_bias("conv", "mixer.conv1d", _taps),
            _same("select.weight", "mixer.x_proj.weight"),
            *_weight_and_bias("delta", "mixer.dt_proj", _same),
            _same("log_rates", "mixer.A_log"),
            _same("skip", "mixer.D"),
            _same("out.weight", "mixer.out_proj.weight"),
        ),
    ),
    "rwkv4": Format(
        "rwkv.blocks.{}",
        (
            _same("embedding.weight", "rwkv.embeddings.weight"),
            *_weight_and_bias("embedding_norm", "rwkv.blocks.0.pre_ln", _same),
            *_weight_and_bias("norm", "rwkv.ln_out", _same),
            _same("head.weight", "head.weight"),
        ),
        (
            *_weight_and_bias("time_norm", "ln1", _same),
            _same("time_mix.decay", "attention.time_decay"),
            _same("time_mix.bonus", "attention.time_first"),
            *(
                _per_channel(f"time_mix.shift_{name}", f"attention.time_mix_{name}")
                for name in ("key", "value", "receptance")
            ),
            *(_same(f"time_mix.{name}.weight", f"attention.{name}.weight") for name in ("key", "value", "receptance")),
            _same("time_mix.out.weight", "attention.output.weight"),
            *_weight_and_bias("channel_norm", "ln2", _same),
            *(
                _per_channel(f"channel_mix.shift_{name}", f"feed_forward.time_mix_{name}")
                for name in ("key", "receptance")
            ),
            *(
                _same(f"channel_mix.{name}.weight", f"feed_forward.{name}.weight")
                for name in ("key", "receptance", "value")
            ),
        ),
    ),
}


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


_SAME_NAMES: dict[str, dict[str, str]] = {
    "llama": {"num_attention_heads": "num_heads", "hidden_size": "embedding_dim", "num_hidden_layers": "num_blocks"},
    "gpt": {"n_head": "num_heads", "n_embd": "embedding_dim", "n_layer": "num_blocks", "n_positions": "context_length"},
    "mamba": {"hidden_size": "embedding_dim", "num_hidden_layers": "num_blocks", "state_size": "state_dim"},
    "rwkv4": {"hidden_size": "embedding_dim", "num_hidden_layers": "num_blocks"},
}
"""Their field of the same meaning as ours, but for `vocab_size`, which is the same in name too."""

_TYPES = {"llama": "llama", "gpt": "gpt2", "mamba": "mamba", "rwkv4": "rwkv"}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "gpt": "GPT2LMHeadModel",
    "mamba": "MambaForCausalLM",
    "rwkv4": "RwkvForCausalLM",
}


def _fixed(config: ModelConfig) -> dict[str, Any]:
    """What their configuration leaves open and ours does not, by their names."""
    match config:
        case LlamaConfig():
            return {
                "intermediate_size": config.feedforward_dim,
                "num_key_value_heads": config.num_heads,
                "hidden_act": "silu",
                "rms_norm_eps": 1e-6,
                "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
                "attention_bias": False,
                "mlp_bias": False,
                "tie_word_embeddings": False,
            }
        case GPTConfig():
            return {
                "n_inner": None,
                "activation_function": "gelu_new",
                "layer_norm_epsilon": 1e-5,
                "scale_attn_weights": True,
                "scale_attn_by_inverse_layer_idx": False,
                "tie_word_embeddings": True,
            }
        case MambaConfig():
            return {
                "time_step_rank": config.delta_rank,
                "expand": 2,
                "conv_kernel": 4,
                "use_bias": False,
                "use_conv_bias": True,
                "hidden_act": "silu",
                "layer_norm_epsilon": 1e-5,
                "tie_word_embeddings": False,
            }
        case RWKV4Config():
            return {
                "attention_hidden_size": config.embedding_dim,
                "intermediate_size": 4 * config.embedding_dim,
                "layer_norm_epsilon": 1e-5,
                "tie_word_embeddings": False,
            }
    raise ValueError(f"transformers has no {config.family}; there are {', '.join(_FORMATS)}")


def config_to_transformers(config: ModelConfig, context_length: int) -> dict[str, Any]:
    """`config.json`; `context_length` is for those of their readers that ask for one."""
    content: dict[str, Any] = {
        "model_type": _TYPES.get(config.family),
        "architectures": [_ARCHITECTURES.get(config.family)],
    }
    content |= _fixed(config) | {"vocab_size": config.vocab_size, "dtype": "float32"}
    content |= {theirs: getattr(config, ours) for theirs, ours in _SAME_NAMES[config.family].items()}
    match config:
        case LlamaConfig():
            content["max_position_embeddings"] = context_length
        case GPTConfig():
            content |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        case RWKV4Config():
            # Their evaluation halves the stream every so many blocks, for float16; float32 needs none of it.
            content |= {"context_length": context_length, "rescale_every": 0}
    return content


def config_from_transformers(content: Mapping[str, Any]) -> ModelConfig:
    """Our configuration of a `config.json`. ValueError naming the field that this model cannot represent."""
    family = next((family for family, name in _TYPES.items() if name == content.get("model_type")), None)
    if family is None:
        raise ValueError(f"model_type {content.get('model_type')!r} is none of {', '.join(_TYPES.values())}")
    fields = {"vocab_size": content["vocab_size"]}
    fields |= {ours: content[theirs] for theirs, ours in _SAME_NAMES[family].items()}
    config: ModelConfig
    match family:
        case "llama":
            rope = content.get("rope_parameters") or {"rope_theta": content.get("rope_theta", 10_000.0)}
            config = LlamaConfig(**fields, rope_theta=float(rope["rope_theta"]))
        case "gpt":
            config = GPTConfig(**fields)
        case "mamba":
            config = MambaConfig(**fields)
        case _:
            config = RWKV4Config(**fields)
    for name, value in _fixed(config).items():
        there = content.get(name, value)
        if there != value and not (name in _MEANS_DEFAULT and there in (None, "auto")):
            raise ValueError(f"{CONFIG_FILE}: {name} is {there!r}, but this {family} is built with {value!r}")
    return config


_MEANS_DEFAULT = (
    "time_step_rank",
    "attention_hidden_size",
    "intermediate_size",
    "num_key_value_heads",
    "rope_parameters",
)
"""Fields whose absence means what ours are built with."""


def save(model: nn.Module, config: ModelConfig, folder: Path, *, context_length: int = 2048) -> None:
    """Write `config.json` and `model.safetensors`. ValueError for a family that `transformers` has not."""
    from safetensors.torch import save_file

    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    theirs = to_transformers(config, tensors)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config_to_transformers(config, context_length), indent=2) + "\n")
    save_file({name: tensor.cpu() for name, tensor in theirs.items()}, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load(folder: Path) -> tuple[nn.Module, ModelConfig]:
    """The model of a folder. ValueError for one that is not of our shape; FileNotFoundError where there is none."""
    from safetensors.torch import load_file

    config = config_from_transformers(json.loads((folder / CONFIG_FILE).read_text()))
    weights = from_transformers(config, load_file(folder / WEIGHTS_FILE))
    model = build(config)
    model.load_state_dict(weights)
    return model, config
