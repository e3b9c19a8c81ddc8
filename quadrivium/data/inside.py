"""Files that lie inside other files: members of a tar, cells of a parquet or arrow table, opened by where they lie.

    ("tar", offset, bytes)                    a member of a tar that is not compressed
    ("parquet", row group, row, column, key)  a cell, or ``key`` of it where the cell is a struct (images of Hugging Face datasets)
    ("arrow", batch, row, column, key)        the same in an arrow stream, as ``Dataset.save_to_disk`` writes it

Such a place is plain data, so an item can be handed to another process. Tables are read a row group at a time and the last
one is kept: items come in the order of their rows.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from quadrivium.errors import DataError, ItemError

Inside = tuple[str | int, ...]


def open_inside(file: Path, inside: Inside) -> IO[bytes]:
    """A stream over what lies at ``inside`` in ``file``, or over the whole file where that is empty. Raises ItemError, OSError."""
    if not inside:
        return open(file, "rb")
    how, first, second, *rest = inside
    if how == "tar":
        with open(file, "rb") as stream:
            stream.seek(int(first))
            data = stream.read(int(second))
        if len(data) < int(second):
            raise ItemError("is cut short")
        return BytesIO(data)
    value = _column(str(how), str(file), int(first), str(rest[0]))[int(second)].as_py()
    value = value.get(str(rest[1])) if isinstance(value, dict) else value
    if not isinstance(value, bytes) or not value:
        raise ItemError("holds no picture or video")
    return BytesIO(value)


def pyarrow() -> Any:
    """The library that reads tables; one sentence where it is absent."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError("parquet and arrow files need pyarrow: pip install -c constraints.txt -e '.[data]'") from None
    return pyarrow


@lru_cache(maxsize=2)
def _column(how: str, file: str, part: int, column: str) -> Any:
    if how == "parquet":
        with pyarrow().parquet.ParquetFile(file) as table:
            return table.read_row_group(part, columns=[column]).column(0).combine_chunks()
    with pyarrow().memory_map(file) as source:
        reader = pyarrow().ipc.open_stream(source)
        for index, batch in enumerate(reader):
            if index == part:
                return batch.column(batch.schema.get_field_index(column))
    raise ItemError("has fewer parts than when it was listed")
