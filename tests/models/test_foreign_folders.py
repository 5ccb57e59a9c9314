"""Folders as others leave them give our logits, or are refused by the name of what differs."""

import functools
import json
import pickle
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xlstm.export.transformers import load, save
from xlstm.export.transformers_config import config_from_transformers, config_to_transformers
from xlstm.models import build
from xlstm.models.configs import GPTConfig, LlamaConfig, MambaConfig, ModelConfig, RWKV4Config, XLSTMLargeConfig
from xlstm.models.initialization import initialize

CONFIGS: dict[str, ModelConfig] = {
    "llama": LlamaConfig(vocab_size=31, embedding_dim=32, num_blocks=2, num_heads=2, rope_theta=500.0),
    "gpt": GPTConfig(vocab_size=31, embedding_dim=32, num_blocks=2, num_heads=2, context_length=16),
    "mamba": MambaConfig(vocab_size=31, embedding_dim=32, num_blocks=2),
    "rwkv4": RWKV4Config(vocab_size=31, embedding_dim=32, num_blocks=2),
    "xlstm-large": XLSTMLargeConfig(vocab_size=31, embedding_dim=128, num_blocks=1, num_heads=2, logit_soft_cap=20.0),
}
BASES = {"llama": "model.", "gpt": "transformer.", "mamba": "backbone.", "rwkv4": "rwkv.", "xlstm-large": "backbone."}
TIED = {"llama": "model.embed_tokens.weight", "mamba": "backbone.embeddings.weight"}
TOKENS = torch.randint(31, (2, 16), generator=torch.Generator().manual_seed(0))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS)[0]
    return found


@pytest.fixture(params=CONFIGS)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def written(family: str, folder: Path, tied: bool = False) -> Tensor:
    """A folder of a model away from its initial values, as `save` leaves it, and what the model says."""
    model = build(CONFIGS[family])
    initialize(model, 1)
    generator = torch.Generator().manual_seed(2)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        if tied:
            parameters["head.weight"].copy_(parameters["embedding.weight"])
    save(model, CONFIGS[family], folder)
    return logits(model)


def change(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def reweigh(folder: Path, rename: Callable[[str], str | None]) -> dict[str, Tensor]:
    """The tensors of a folder under other names, without those whose name is None; the file is taken away."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return {new: tensor for name, tensor in tensors.items() if (new := rename(name)) is not None}


def test_what_is_saved_is_loaded(family: str, tmp_path: Path) -> None:
    expected = written(family, tmp_path)
    model, config = load(tmp_path)
    assert config == CONFIGS[family]
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("stem", ["model.safetensors", "pytorch_model.bin"])
def test_shards_are_one_model(family: str, tmp_path: Path, stem: str) -> None:
    expected = written(family, tmp_path)
    tensors = reweigh(tmp_path, lambda name: name)
    places = {}
    for number, part in enumerate((list(tensors)[::2], list(tensors)[1::2]), start=1):
        file = f"part-{number}-of-2.{stem.rpartition('.')[2]}"
        chosen = {name: tensors[name] for name in part}
        if stem.endswith("bin"):
            torch.save(chosen, tmp_path / file)
        else:
            save_file(chosen, tmp_path / file)
        places |= dict.fromkeys(part, file)
    index = tmp_path / f"{stem}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert torch.equal(logits(load(tmp_path)[0]), expected)
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=r"part-2-of-2.*the shard is missing"):
        load(tmp_path)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(places, "../elsewhere")}))
    with pytest.raises(ValueError, match=r"'\.\./elsewhere' names no file of this folder"):
        load(tmp_path)


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod."])
def test_names_without_the_prefix_of_the_base_and_of_wrapped_models_are_known(
    family: str, tmp_path: Path, wrapper: str
) -> None:
    expected = written(family, tmp_path)
    tensors = reweigh(tmp_path, lambda name: wrapper + name.removeprefix(BASES[family]))
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert torch.equal(logits(load(tmp_path)[0]), expected)


@pytest.mark.parametrize("family", TIED)
@pytest.mark.parametrize("says", [True, None])
def test_a_tied_head_is_the_embedding(family: str, tmp_path: Path, says: bool | None) -> None:
    expected = written(family, tmp_path, tied=True)
    save_file(reweigh(tmp_path, lambda name: None if "lm_head" in name else name), tmp_path / "model.safetensors")
    change(tmp_path, tie_word_embeddings=True)
    if says is None:
        content = json.loads((tmp_path / "config.json").read_text())
        del content["tie_word_embeddings"]
        (tmp_path / "config.json").write_text(json.dumps(content))
    if says is None and family == "llama":  # there it is not, where nothing is said
        with pytest.raises(ValueError, match=r"missing \['lm_head.weight'\]"):
            load(tmp_path)
    else:
        assert torch.equal(logits(load(tmp_path)[0]), expected)


def test_a_head_that_is_said_to_be_tied_and_is_another_is_refused(tmp_path: Path) -> None:
    written("llama", tmp_path)
    change(tmp_path, tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"tie_word_embeddings is True, but lm_head\.weight is not"):
        load(tmp_path)


def test_masks_and_names_of_older_versions_are_known(tmp_path: Path) -> None:
    expected = written("gpt", tmp_path / "gpt")
    tensors = reweigh(tmp_path / "gpt", lambda name: name.removeprefix("transformer."))
    tensors |= {"h.0.attn.bias": torch.ones(1, 1, 16, 16), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file(tensors, tmp_path / "gpt" / "model.safetensors")
    change(tmp_path / "gpt", n_ctx=16, n_inner=128, summary_type="cls_index", task_specific_params={"a": 1})
    assert torch.equal(logits(load(tmp_path / "gpt")[0]), expected)
    expected = written("mamba", tmp_path / "mamba")
    old = reweigh(tmp_path / "mamba", lambda name: name.replace("embeddings", "embedding"))
    save_file(old, tmp_path / "mamba" / "model.safetensors")
    change(tmp_path / "mamba", d_model=32, n_layer=2, d_inner=64, rms_norm=True, ssm_cfg={}, time_step_rank="auto")
    assert torch.equal(logits(load(tmp_path / "mamba")[0]), expected)


LLAMA_4 = {
    "rope_theta": 500.0,
    "rope_scaling": None,
    "head_dim": 16,
    "num_key_value_heads": None,
    "torch_dtype": "bfloat16",
}


def test_the_spelling_of_older_versions_is_read(tmp_path: Path) -> None:
    expected = written("llama", tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(content | LLAMA_4))
    assert torch.equal(logits(load(tmp_path)[0]), expected)


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling is .*linear"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling"),
        ("llama", {"rope_parameters": {"rope_theta": 500.0, "rope_type": "yarn"}}, "rope_parameters is .*yarn"),
        ("llama", {"rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}}, "rope_parameters"),
        ("llama", {"rope_theta": 7.0}, "rope_theta is stated as 7.0 and as 500.0"),
        ("llama", {"attention_bias": True}, "attention_bias is True"),
        ("llama", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama", {"sliding_window": 4096}, "sliding_window is 4096"),
        ("llama", {"head_dim": 64}, "head_dim is 64, but this llama is built with 16"),
        ("llama", {"num_key_value_heads": 1}, "num_key_value_heads is 1"),
        ("llama", {"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"attn_temperature_tuning": True}, "attn_temperature_tuning is True, and what that changes"),
        ("llama", {"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ("llama", {"hidden_size": None}, "hidden_size is missing"),
        ("llama", {"num_hidden_layers": "2"}, "num_hidden_layers is '2', not a count"),
        ("llama", {"model_type": "gemma"}, "model_type 'gemma' is none of llama"),
        ("gpt", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt", {"n_ctx": 32}, "n_ctx is 32, but n_positions is 16"),
        ("gpt", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ("mamba", {"ssm_cfg": {"layer": "Mamba2"}}, "ssm_cfg"),
        ("mamba", {"time_step_rank": 3}, "time_step_rank is 3"),
        ("rwkv4", {"attention_hidden_size": 64}, "attention_hidden_size is 64"),
        ("xlstm-large", {"weight_mode": "fused"}, "weight_mode is 'fused'"),
        ("xlstm-large", {"v_dim_factor": 2.0}, "v_dim_factor is 2.0"),
        ("xlstm-large", {"num_blocks": 2}, "num_blocks is 2, but num_hidden_layers is 1"),
    ],
)
def test_what_ours_is_not_is_refused_by_its_name(family: str, fields: dict[str, Any], message: str) -> None:
    content = config_to_transformers(CONFIGS[family], 16) | fields
    with pytest.raises(ValueError, match=rf"config\.json: .*{message}"):
        config_from_transformers(content)


@examples(60)
@given(
    st.sampled_from(sorted(CONFIGS)), st.text(min_size=1, max_size=12), st.sampled_from([True, 1, "x", [], {"a": 1}])
)
def test_no_field_is_passed_over_in_silence(family: str, name: str, value: Any) -> None:
    content = config_to_transformers(CONFIGS[family], 16)
    if name in content:
        return
    with pytest.raises(ValueError, match=r"config\.json: "):
        config_from_transformers(content | {f"x_{name}": value})


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    written("llama", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    harm = tmp_path / "harm"
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(str(harm)), protocol=2))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: holds something else than tensors, or is damaged"):
        load(tmp_path)
    assert not harm.exists()


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


@examples(40)
@given(st.binary(max_size=40), st.sampled_from(["config.json", "model.safetensors", "model.safetensors.index.json"]))
def test_damaged_folders_are_refused_in_words(tmp_path_factory, content: bytes, name: str) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("folder")
    written("llama", folder)
    if name.endswith("index.json"):
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json|model\.safetensors"):
        load(folder)


@functools.cache
def sound(family: str, sharded: bool) -> dict[str, bytes]:
    """The files of a folder, in one piece or with an index of shards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written(family, folder)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        tensors = load_file(folder / "model.safetensors")
    if sharded:
        files["part-1.safetensors"] = files.pop("model.safetensors")
        index = {"weight_map": dict.fromkeys(tensors, "part-1.safetensors")}
        files["model.safetensors.index.json"] = json.dumps(index).encode()
    return files


@examples(20)
@given(st.sampled_from(sorted(CONFIGS)), st.booleans(), st.data())
def test_folders_damaged_here_and_there_are_loaded_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, family: str, sharded: bool, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("folder")
    files = dict(sound(family, sharded))
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(content), 4000)))  # where headers and settings stand
        content[at : at + data.draw(st.integers(0, 8))] = data.draw(
            st.binary(max_size=12) | st.sampled_from([b"null", b"-1", b"1e9", b"[]", b"{}", b'"', b"0", b"99999999999"])
        )
    for file, whole in (files | {name: bytes(content)}).items():
        (folder / file).write_bytes(whole)
    try:
        logits(load(folder)[0])
    except (ValueError, FileNotFoundError) as error:
        assert re.search(r"config\.json|safetensors", str(error)), error  # noqa: PT017


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("llama", {"num_hidden_layers": 10**9}, r"config\.json says 1000000000 blocks, but there are 21 tensors"),
        ("rwkv4", {"vocab_size": 10**12}, r"embedding\.weight is \(31, 32\) .*ours \(1000000000000, 32\)"),
    ],
)
def test_sizes_that_no_memory_holds_are_refused_before_they_are_taken(
    tmp_path: Path, family: str, fields: dict[str, Any], message: str
) -> None:
    written(family, tmp_path)
    change(tmp_path, **fields)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_a_tensor_of_another_name_is_named_with_its_folder(tmp_path: Path) -> None:
    written("gpt", tmp_path)
    tensors = reweigh(tmp_path, lambda name: name.replace("transformer.h.0.attn.c_proj.bias", "h.0.attn.c_prof.bias"))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{tmp_path}: not the weights of this gpt.*by config\.json"):
        load(tmp_path)


def test_tensors_of_another_shape_and_folders_without_weights_are_named(tmp_path: Path) -> None:
    written("llama", tmp_path)
    tensors = reweigh(tmp_path, lambda name: name)
    with pytest.raises(FileNotFoundError, match=r"no weights: no model\.safetensors or pytorch_model\.bin"):
        load(tmp_path)
    tensors["model.norm.weight"] = torch.ones(33)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"norm\.weight is \(33,\) of torch\.float32, and ours \(32,\)"):
        load(tmp_path)
