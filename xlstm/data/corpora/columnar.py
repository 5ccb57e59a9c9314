"""Documents in columns: Parquet files, and the Arrow streams that `datasets` saves. Imports without torch."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xlstm.data.corpora.documents import CorpusError


def rows(path: Path, key: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """(row, meta) of every row of a file: the column that holds `key`; meta is None where there is no such column."""
    import pyarrow

    try:
        for batch in _batches(path, key):
            names = batch.schema.names
            column = _column(names, key)
            if column not in names:
                raise CorpusError(f"{path}: no column `{column}`; found {', '.join(names)}; say data.text_key: COLUMN")
            texts = batch.column(column)
            metas = batch.column("meta").to_pylist() if "meta" in names else [None] * len(texts)
            yield from (({column: text}, meta) for text, meta in zip(texts.to_pylist(), metas, strict=True))
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"{path}: cannot be read: {error}") from None


def _column(names: Sequence[str], key: str) -> str:
    """The column of a key: of its name, or the one that holds it where the key has dots."""
    return key if key in names else key.partition(".")[0]


def _batches(path: Path, key: str) -> Iterator[Any]:
    with open(path, "rb") as file:
        magic = file.read(6)
    if magic[:4] == b"PAR1":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            column = _column(file.schema_arrow.names, key)
            wanted = [name for name in dict.fromkeys((column, "meta")) if name in file.schema_arrow.names]
            yield from file.iter_batches(columns=wanted if column in wanted else None)
    elif magic == b"ARROW1":
        import pyarrow.ipc

        with pyarrow.ipc.open_file(str(path)) as reader:
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
    elif magic[:4] == b"\xff\xff\xff\xff":
        import pyarrow.ipc

        with pyarrow.OSFile(str(path)) as source, pyarrow.ipc.open_stream(source) as reader:
            yield from reader
    else:
        raise CorpusError(f"{path}: neither a Parquet nor an Arrow file")
