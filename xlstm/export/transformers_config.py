"""`config.json` of `transformers`, written for our models and read into our configurations.

Every field that is read must be known: mapped to one of ours, of the one value that ours are built with, or without any
effect on what the model computes. Any other is an error that names it: what is passed over in silence may make the
model another one.
"""

from collections.abc import Mapping
from typing import Any

from xlstm.models.configs import GPTConfig, LlamaConfig, MambaConfig, ModelConfig, RWKV4Config, XLSTMLargeConfig
from xlstm.models.linear_configs import Mamba2Config

CONFIG_FILE = "config.json"

_MODELS = {
    "llama": ("llama", "LlamaForCausalLM"),
    "gpt": ("gpt2", "GPT2LMHeadModel"),
    "mamba": ("mamba", "MambaForCausalLM"),
    "mamba2": ("mamba2", "Mamba2ForCausalLM"),
    "rwkv4": ("rwkv", "RwkvForCausalLM"),
    "xlstm-large": ("xlstm", "xLSTMForCausalLM"),
}
"""By our name of a family, theirs and its class."""
_FAMILIES = {theirs: ours for ours, (theirs, _) in _MODELS.items()}
"""The other way round."""
_CONFIGS = {"gpt": GPTConfig, "mamba": MambaConfig, "mamba2": Mamba2Config, "rwkv4": RWKV4Config}
"""Our configurations that say no more than `_SAME_NAMES`."""

_USUAL = {"hidden_size": "embedding_dim", "num_hidden_layers": "num_blocks"}
_SAME_NAMES: dict[str, dict[str, str]] = {
    "llama": {"num_attention_heads": "num_heads"} | _USUAL,
    "gpt": {"n_head": "num_heads", "n_embd": "embedding_dim", "n_layer": "num_blocks", "n_positions": "context_length"},
    "mamba": _USUAL | {"state_size": "state_dim"},
    "mamba2": _USUAL | {"state_size": "state_dim", "head_dim": "head_dim"},
    "rwkv4": _USUAL,
    "xlstm-large": _USUAL | {"num_heads": "num_heads"},
}
"""Their field of the same meaning as ours, but for `vocab_size`, which is the same in name too."""

_OTHER_NAMES = {
    "gpt": {"n_ctx": "n_positions"},
    "mamba": {"d_model": "hidden_size", "n_layer": "num_hidden_layers"},
    "xlstm-large": {"embedding_dim": "hidden_size", "num_blocks": "num_hidden_layers"},
}
"""Fields that say the same as another, in files of other versions; where both are there they must agree."""

_TIES_BY_DEFAULT = ("gpt", "mamba")
"""Families of which a file that does not say so has its head tied to its embedding."""

_WITHOUT_EFFECT = {
    "every family": (
        "_attn_implementation _attn_implementation_autoset _name_or_path architectures attn_implementation"
        " bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward cls_token_id"
        " decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size"
        " eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id"
        " forced_eos_token_id id2label initializer_range label2id length_penalty max_length min_length"
        " model_type name_or_path no_repeat_ngram_size num_beam_groups num_beams num_return_sequences"
        " output_attentions output_hidden_states output_scores pad_token_id prefix problem_type"
        " remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id"
        " suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p"
        " torch_dtype torchscript transformers_version typical_p unk_token_id use_bfloat16 use_cache"
    ),
    "llama": "attention_dropout max_position_embeddings pretraining_tp",
    "gpt": (
        "attn_pdrop embd_pdrop resid_pdrop predict_special_tokens reorder_and_upcast_attn summary_activation"
        " summary_first_dropout summary_proj_to_labels summary_type summary_use_proj"
    ),
    "mamba": (
        "fused_add_norm pad_vocab_size_multiple rescale_prenorm_residual residual_in_fp32 time_step_floor"
        " time_step_init_scheme time_step_max time_step_min time_step_scale use_associative_scan use_mambapy"
    ),
    "mamba2": (
        "chunk_size rescale_prenorm_residual residual_in_fp32 time_step_floor time_step_max time_step_min"
        " time_step_rank"
    ),
    "rwkv4": "context_length rescale_every",
    "xlstm-large": (
        "autocast_kernel_dtype chunk_size chunkwise_kernel inference_state_dtype max_inference_chunksize mode"
        " norm_reduction_force_float32 return_last_states sequence_kernel step_kernel"
    ),
}
"""Fields that change no logit: names, tokens, generation, what is returned, initial values; and those of one family:
dropouts, lengths that nothing depends on, kernels and their precision."""

_OFF: dict[str, Any] = {
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
    "sliding_window": None,
    "tie_encoder_decoder": False,
    "use_sliding_window": False,
}
"""Fields that change a model unless they have this value."""

_FIXED_OF_MAMBA: dict[str, Any] = {
    "expand": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
    "layer_norm_epsilon": 1e-5,
}
"""What Mamba and Mamba-2 have in common."""

_MEANS_DEFAULT = ("time_step_rank", "attention_hidden_size", "num_key_value_heads", "head_dim")
"""Fields whose null, or `auto`, means what ours are built with; so does that of RWKV's `intermediate_size`."""


def config_to_transformers(config: ModelConfig, context_length: int) -> dict[str, Any]:
    """`config.json`; `context_length` is for those of their readers that ask for one.

    ValueError for a family that `transformers` has not, for a model with other ends than a vocabulary, and for an
    xlstm-large whose key channels it would round up to a multiple of 64.
    """
    if config.num_inputs or config.num_outputs:
        raise ValueError("a language model of transformers has a vocabulary; this one has numbers or classes")
    fixed = _fixed(config)
    model_type, architecture = _MODELS[config.family]
    content: dict[str, Any] = {"model_type": model_type, "architectures": [architecture], **fixed}
    content |= {"tie_word_embeddings": config.family == "gpt", "vocab_size": config.vocab_size, "dtype": "float32"}
    content |= {theirs: getattr(config, ours) for theirs, ours in _SAME_NAMES[config.family].items()}
    match config:
        case LlamaConfig():
            content["max_position_embeddings"] = context_length
            content["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
        case GPTConfig():
            content |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        case RWKV4Config():
            # Their evaluation halves the stream every so many blocks, for float16; float32 needs none of it.
            content |= {"context_length": context_length, "rescale_every": 0}
        case XLSTMLargeConfig():
            if config.key_dim % 64:
                raise ValueError(
                    f"embedding_dim {config.embedding_dim} must be a multiple of 128 for transformers' xLSTM"
                )
    return content


def config_from_transformers(content: Mapping[str, Any]) -> ModelConfig:
    """Our configuration of a `config.json`. ValueError naming the field that is missing, unknown, or not ours."""
    model_type = content.get("model_type")
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise ValueError(f"{CONFIG_FILE}: model_type {model_type!r} is none of {', '.join(_FAMILIES)}")
    family = _FAMILIES[model_type]
    content = _by_one_name(family, content)
    fields: dict[str, Any] = {
        ours: _count(content, theirs) for theirs, ours in ({"vocab_size": "vocab_size"} | _SAME_NAMES[family]).items()
    }
    config: ModelConfig
    match family:
        case "llama":
            config = LlamaConfig(**fields, rope_theta=_rope_theta(content))
        case "xlstm-large":
            caps = {"gate_soft_cap": "gate_soft_cap", "output_logit_soft_cap": "logit_soft_cap"}
            fields |= {ours: float(content[theirs]) for theirs, ours in caps.items() if theirs in content}
            config = XLSTMLargeConfig(**fields)
        case _:
            config = _CONFIGS[family](**fields)
    _require_known(config, content)
    return config


def ties_head(content: Mapping[str, Any]) -> bool:
    """Whether the head of a `config.json`'s model is its embedding."""
    family = _FAMILIES.get(str(content.get("model_type")), "")
    return bool(content.get("tie_word_embeddings", family in _TIES_BY_DEFAULT))


def _by_one_name(family: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with every field under one name. ValueError where two fields that mean one thing differ."""
    merged = dict(content)
    for other, name in _OTHER_NAMES.get(family, {}).items():
        value = merged.pop(other, None)
        if value is None:
            continue
        if merged.get(name) not in (None, value):
            raise ValueError(f"{CONFIG_FILE}: {other} is {value!r}, but {name} is {merged[name]!r}")
        merged[name] = value
    return merged


def _count(content: Mapping[str, Any], name: str) -> int:
    value = content.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{CONFIG_FILE}: {name} is " + ("missing" if value is None else f"{value!r}, not a count"))
    return value


def _rope_theta(content: Mapping[str, Any]) -> float:
    """The base of plain rotary positions, of either spelling. ValueError where they are scaled or partial."""
    scaling, parameters = content.get("rope_scaling") or {}, content.get("rope_parameters") or {}
    for name, stated in (("rope_scaling", scaling), ("rope_parameters", parameters)):
        kinds = {key: stated[key] for key in ("type", "rope_type") if key in stated} if isinstance(stated, dict) else {}
        rest = set(stated) - set(kinds) - {"rope_theta"}
        if set(kinds.values()) - {"default"} or rest - {"partial_rotary_factor"} or _is_partial(stated):
            raise ValueError(f"{CONFIG_FILE}: {name} is {stated!r}, but this llama has plain rotary positions")
    bases = {float(each["rope_theta"]) for each in (content, parameters, scaling) if each.get("rope_theta") is not None}
    if len(bases) > 1:
        raise ValueError(f"{CONFIG_FILE}: rope_theta is stated as {' and as '.join(map(str, sorted(bases)))}")
    return bases.pop() if bases else 10_000.0


def _is_partial(stated: Mapping[str, Any]) -> bool:
    return stated.get("partial_rotary_factor", 1.0) != 1.0


def _require_known(config: ModelConfig, content: Mapping[str, Any]) -> None:
    family = config.family
    free = {"vocab_size", "gate_soft_cap", "output_logit_soft_cap", "rope_theta", "rope_scaling", "rope_parameters"}
    free |= {name for of in ("every family", family) for name in _WITHOUT_EFFECT[of].split()} | set(_SAME_NAMES[family])
    if family != "gpt":
        free.add("tie_word_embeddings")  # ours are two matrices, which may be alike
    stated = _OFF | {"tie_word_embeddings": True} | _also_fixed(config) | _fixed(config)
    for name, value in content.items():
        if name in free:
            continue
        if name not in stated:
            raise ValueError(
                f"{CONFIG_FILE}: {name} is {value!r}, and what that changes in a {_MODELS[family][0]} is not known "
                "here; take it out where it changes nothing"
            )
        unset = value in (None, "auto") and (name in _MEANS_DEFAULT or (family, name) == ("rwkv4", "intermediate_size"))
        spelt_out = name == "n_inner" and value == 4 * config.embedding_dim  # what null stands for
        if _plain(value) != stated[name] and not unset and not spelt_out:
            raise ValueError(f"{CONFIG_FILE}: {name} is {value!r}, but this {family} is built with {stated[name]!r}")
    if family == "llama" and content.get("intermediate_size") is None:
        raise ValueError(f"{CONFIG_FILE}: intermediate_size is missing")


def _plain(value: Any) -> Any:
    """A value whose infinities are numbers: JSON has none, and theirs are {"__float__": "Infinity"}."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return float(value["__float__"]) if isinstance(value, dict) and value.keys() == {"__float__"} else value


def _fixed(config: ModelConfig) -> dict[str, Any]:
    """What their configuration leaves open and ours does not, by their names."""
    match config:
        case LlamaConfig():
            return {
                "intermediate_size": config.feedforward_dim,
                "num_key_value_heads": config.num_heads,
                "hidden_act": "silu",
                "rms_norm_eps": 1e-6,
                "attention_bias": False,
                "mlp_bias": False,
            }
        case GPTConfig():
            return {
                "n_inner": None,
                "activation_function": "gelu_new",
                "layer_norm_epsilon": 1e-5,
                "scale_attn_weights": True,
                "scale_attn_by_inverse_layer_idx": False,
            }
        case MambaConfig():
            return {"time_step_rank": config.delta_rank, **_FIXED_OF_MAMBA}
        case Mamba2Config():
            return {
                "num_heads": config.num_heads,
                "n_groups": 1,
                **_FIXED_OF_MAMBA,
                "rms_norm": True,
            }
        case RWKV4Config():
            return {
                "attention_hidden_size": config.embedding_dim,
                "intermediate_size": 4 * config.embedding_dim,
                "layer_norm_epsilon": 1e-5,
            }
        case XLSTMLargeConfig():
            return {
                "qk_dim_factor": 0.5,
                "ffn_proj_factor": 2.667,
                "ffn_round_up_to_multiple_of": 64,
                "gate_soft_cap": config.gate_soft_cap,
                "output_logit_soft_cap": config.logit_soft_cap,
                "weight_mode": "single",
            }
    raise ValueError(f"transformers has no {config.family}; there are {', '.join(_MODELS)}")


def _also_fixed(config: ModelConfig) -> dict[str, Any]:
    """Further fields that may be read and have one value for ours, though none has to be written."""
    match config:
        case LlamaConfig():
            return {"head_dim": config.embedding_dim // config.num_heads}
        case MambaConfig():
            return {
                "intermediate_size": config.inner_dim,
                "d_inner": config.inner_dim,
                "rms_norm": True,
                "ssm_cfg": {},
            }
        case Mamba2Config():
            return {"norm_before_gate": False, "time_step_limit": [0.0, float("inf")]}
        case XLSTMLargeConfig():
            return {
                "use_bias": False,
                "add_out_norm": True,
                "norm_eps": 1e-6,
                "eps": 1e-6,
                "v_dim_factor": 1.0,
                "head_dim": config.embedding_dim // config.num_heads,
            }
    return {}
