"""Storage of torch.distributed.checkpoint without pickle: tensors in files, their places in `index.json`.

Torch's own index is a pickle, and reading one runs what it says. Here the index is JSON with the same content, and a
file of tensors is read with `weights_only`. Each rank notes size and SHA-256 of what it wrote.

`_StorageInfo` (file, offset and length of a tensor) has no public name in torch: FileSystemReader reads by them.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from xlstm.run.json_files import write_text

INDEX = "index.json"


class JsonIndexWriter(FileSystemWriter):
    """Writes tensors as torch.distributed.checkpoint does, and the index as JSON."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, single_file_per_rank=True, sync_files=True)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            written = super().write_data(plan, planner)
        except Exception as error:
            raise _told_by_the_disk(error) from error
        folder = Path(self.path)
        for file in folder.glob(f"{plan.storage_data.prefix}*.distcp"):
            write_text(file.with_suffix(".sha256"), json.dumps({"name": file.name, **describe(file)}))
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        tensors: dict[str, Any] = {}
        for name, entry in metadata.state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata):
                raise TypeError(f"{name} is not a tensor; a checkpoint holds tensors, and plain values in its record")
            tensors[name] = {
                "dtype": str(entry.properties.dtype).removeprefix("torch."),
                "size": list(entry.size),
                "chunks": [{"offsets": list(c.offsets), "sizes": list(c.sizes)} for c in entry.chunks],
            }
        places = [
            {
                "tensor": result.index.fqn,
                "offset": None if result.index.offset is None else list(result.index.offset),
                "index": result.index.index,
                "file": result.storage_data.relative_path,
                "start": result.storage_data.offset,
                "length": result.storage_data.length,
            }
            for rank in results
            for result in rank
        ]
        write_text(Path(self.path) / INDEX, json.dumps({"tensors": tensors, "places": places}))


class JsonIndexReader(FileSystemReader):
    """Reads what `JsonIndexWriter` wrote."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        content = json.loads((Path(self.path) / INDEX).read_text())
        return Metadata(
            state_dict_metadata={name: _tensor_entry(entry) for name, entry in content["tensors"].items()},
            storage_data={
                MetadataIndex(place["tensor"], place["offset"], place["index"]): _StorageInfo(
                    _plain_file_name(place["file"]), place["start"], place["length"]
                )
                for place in content["places"]
            },
            storage_meta=StorageMeta(load_id=self.load_id),
        )


def describe(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _told_by_the_disk(error: BaseException) -> BaseException:
    """What the file system said, where it did: closing a half-written file raises errors on top of it."""
    below: BaseException | None = error
    while below is not None and not isinstance(below, OSError):
        below = below.__cause__ or below.__context__
    return below or error


def _tensor_entry(entry: dict[str, Any]) -> TensorStorageMetadata:
    dtype = getattr(torch, entry["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{entry['dtype']!r} is no type of tensors")
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=dtype),
        size=torch.Size(entry["size"]),
        chunks=[ChunkStorageMetadata(torch.Size(c["offsets"]), torch.Size(c["sizes"])) for c in entry["chunks"]],
    )


def _plain_file_name(name: str) -> str:
    if not name or Path(name).name != name:
        raise ValueError(f"{name!r} is not the name of a file of this checkpoint")
    return name
