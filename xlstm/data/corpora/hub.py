"""Datasets of the `datasets` library: a folder that it saved, a folder of data files, or a name on the Hub.

What lies in the library's cache is read without a network. Datasets are memory-mapped Arrow files: nothing is held in
memory. Imports without torch, and without the library until a dataset is opened.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xlstm.data.corpora.documents import CorpusError

_ROWS_AT_ONCE = 1000


@functools.lru_cache(maxsize=4)
def splits(name: str) -> Mapping[str, Any]:
    """The splits of a dataset by name; a dataset without splits is one, `train`. CorpusError where it cannot be had.

    `name` is a folder, or `repository`, `repository:subset`, `repository:subset@revision` on the Hub.
    """
    try:
        import datasets
    except ImportError:
        raise CorpusError("corpus hf needs the `datasets` library: pip install datasets") from None
    folder = Path(name)
    try:
        if any((folder / known).is_file() for known in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(name)
        elif folder.exists():
            loaded = datasets.load_dataset(name)
        else:
            repository, _, revision = name.partition("@")
            repository, _, subset = repository.partition(":")
            loaded = datasets.load_dataset(repository, subset or None, revision=revision or None)
    except Exception as error:  # the library passes on what its many formats and two HTTP clients raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CorpusError(
            f"hf:{name}: {first}; without a network, give a folder that `save_to_disk` wrote, or fill the cache of "
            "`datasets` where there is one and share it (HF_HOME)"
        ) from None
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def rows(name: str, split: str, text: str) -> Iterator[tuple[Any, Any]]:
    """(text, meta) of every row of a split: `text` names the text's column; meta is None where there is no such column.

    CorpusError where the text's column is missing.
    """
    table = splits(name)[split]
    columns = table.column_names
    if text not in columns:
        found = ", ".join(columns)
        raise CorpusError(f"hf:{name}: split {split} has no column `{text}`; found {found}; say data.text_key: COLUMN")
    wanted = [column for column in dict.fromkeys((text, "meta")) if column in columns]
    for batch in table.select_columns(wanted).iter(batch_size=_ROWS_AT_ONCE):
        yield from zip(batch[text], batch.get("meta", [None] * len(batch[text])), strict=True)


@functools.lru_cache(maxsize=4)
def revision(name: str, text: str) -> str:
    """`sha256:…` over the rows of all splits: the same wherever, and however stored, the dataset lies."""
    digest = hashlib.sha256()
    for split in splits(name):
        digest.update(f"{split}\n".encode())
        for row in rows(name, split, text):
            content = repr(row).encode(errors="surrogatepass")
            digest.update(len(content).to_bytes(8, "big") + content)
    return f"sha256:{digest.hexdigest()}"
