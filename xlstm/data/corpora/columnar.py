"""Documents in columns: Parquet files, and the Arrow streams that `datasets` saves. Imports without torch."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


class ColumnError(ValueError):
    """A columnar file cannot be read as documents: says which, and what is wrong."""


MISSING = object()


def value_of(row: Mapping[str, Any], key: str) -> Any:
    """The value of a key, or of a key within others where it holds dots. `MISSING` where there is none.

    Within a null all is null.
    """
    if key in row:
        return row[key]
    value: Any = row
    for part in key.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def rows(path: Path, key: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """(row, meta) of every row of a file: the column that holds `key`; meta is None where there is no such column."""
    import pyarrow

    try:
        for batch in _batches(path, key):
            names = batch.schema.names
            column = _column(names, key)
            if column not in names:
                raise ColumnError(f"{path}: no column `{column}`; found {', '.join(names)}; say data.text_key: COLUMN")
            texts = batch.column(column)
            metas = batch.column("meta").to_pylist() if "meta" in names else [None] * len(texts)
            yield from (({column: text}, meta) for text, meta in zip(texts.to_pylist(), metas, strict=True))
    except (pyarrow.ArrowException, OSError) as error:
        raise ColumnError(f"{path}: cannot be read: {error}") from None


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
        raise ColumnError(f"{path}: neither a Parquet nor an Arrow file")
