"""Documents in columns: Parquet files, and the Arrow streams that `datasets` saves. Imports without torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any


class ColumnError(ValueError):
    """A columnar file cannot be read as documents: says which, and what is wrong."""


def rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(text, meta) of every row of a file; meta is None where there is no such column."""
    import pyarrow

    try:
        for batch in _batches(path):
            names = batch.schema.names
            if "text" not in names:
                raise ColumnError(f"{path}: no column `text`; found {', '.join(names)}")
            texts = batch.column("text")
            metas = batch.column("meta").to_pylist() if "meta" in names else [None] * len(texts)
            yield from zip(texts.to_pylist(), metas, strict=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise ColumnError(f"{path}: cannot be read: {error}") from None


def _batches(path: Path) -> Iterator[Any]:
    with open(path, "rb") as file:
        magic = file.read(6)
    if magic[:4] == b"PAR1":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            wanted = [name for name in ("text", "meta") if name in file.schema_arrow.names]
            yield from file.iter_batches(columns=wanted if "text" in wanted else None)
    elif magic == b"ARROW1":
        import pyarrow.ipc

        with pyarrow.ipc.open_file(str(path)) as reader:
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
    elif magic[:4] == b"\xff\xff\xff\xff":
        import pyarrow.ipc

        with pyarrow.OSFile(str(path)) as source, pyarrow.ipc.open_stream(source) as reader:
            yield from reader
    else:
        raise ColumnError(f"{path}: neither a Parquet nor an Arrow file")
