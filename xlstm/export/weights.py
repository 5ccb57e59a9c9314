"""Tensors of a folder that another program left: safetensors, or PyTorch's files, whole or in shards.

Files of PyTorch are pickles, and a pickle may run any code: they are read with `weights_only`, which builds tensors and
nothing else.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder, on CPU, by its name there.

    FileNotFoundError where there is no file of weights; ValueError naming the file that is missing, damaged, or holds
    more than tensors.
    """
    for name, read in _READERS.items():
        if (folder / name).is_file():
            return read(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _shards(folder / f"{name}.index.json", read)
    raise FileNotFoundError(f"{folder}: no weights: no {' or '.join(_READERS)}, and no index of their shards")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping. ValueError naming the file that does not."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a mapping")
    return content


def _shards(index: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index}: no weight_map of tensors to files")
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(places.values()):
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{index}: {file!r} names no file of this folder")
        if not (index.parent / file).is_file():
            raise ValueError(f"{index.parent / file}: the shard is missing; {index.name} names it")
        tensors |= read(index.parent / file)
    lost = sorted(places.keys() - tensors.keys())
    if lost:
        raise ValueError(f"{index}: {lost[0]} is in none of the shards")
    return {name: tensors[name] for name in places}


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors: {error}") from None


def _pickled(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{path}: holds something else than tensors, or is damaged: {first}") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: not a mapping of names to tensors")
    return content


_READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    "model.safetensors": _safetensors,
    "pytorch_model.bin": _pickled,
}
