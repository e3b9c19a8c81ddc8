"""Tables of Hugging Face datasets: parquet files, and the arrow files of ``Dataset.save_to_disk``.

A column of bytes, or of structs with ``bytes``, holds pictures or videos (``video`` in its name says which); a column
``file_name``, ``image`` or ``video`` of strings names files below the table's folder. ``text``, ``text_<lang>`` or ``caption``
holds captions, ``group`` or ``story`` what stays together. A table without media is a table of texts, a document a row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quadrivium.data.inside import Inside, pyarrow
from quadrivium.data.sources import _CAPTION, Item, Limits, Source, _group, _kind, _locate, _texts
from quadrivium.data.webdataset import _CAPTIONS, row_of
from quadrivium.errors import DataError, ItemError, one_line

_PATHS = ("file_name", "image", "video", "image_path", "video_path", "path")


def list_tables(source: Source, files: list[Path], limits: Limits) -> None:
    """Fill a source with the rows of tables; bytes of pictures are not read."""
    for file in files:
        name = os.path.relpath(file, source.path)
        try:
            _locate(source.path, name)
            schema, rows = _open(file)
            media, field = _media(schema)
            paths = None if media else next((n for n in _PATHS if n in schema.names), None)
            words = [n for n in schema.names if _CAPTION.fullmatch(n) or n in (*_CAPTIONS, "group", "story")]
            if not media and not paths and not words:
                raise ItemError(f"has no column of pictures, videos or text (found: {', '.join(schema.names)})")
            for number, (where, row) in enumerate(rows([*words, *([paths] if paths else [])])):
                key = f"{name}#{number}"
                try:
                    row = row_of(row)
                    texts, group = _texts(row, limits), _group(row, key)
                    if media:
                        inside: Inside = (*where, media, field)
                        kind: Any = "video" if "video" in media or media in ("mp4", "clip") else "image"
                        source.items.append(Item(source.name, key, group, kind, texts, file, inside))
                    elif paths and row[paths]:
                        seen = _kind(str(row[paths]))
                        if seen is None:
                            raise ItemError(f"{paths} is {str(row[paths])!r:.60}, which names no picture or video")
                        place = _locate(file.parent.resolve(), str(row[paths]))
                        source.items.append(Item(source.name, key, _group(row, str(row[paths])), seen, texts, place))
                    elif texts:
                        source.items.append(Item(source.name, key, group, "text", ("\n".join(texts),), file))
                    else:
                        raise ItemError("holds no text")
                except ItemError as error:
                    source.refuse(key, error)
        except ItemError as error:
            source.refuse(name, error)


def _open(file: Path) -> tuple[Any, Any]:
    """A table's schema, and what yields (place, row) for chosen columns."""
    pa = pyarrow()
    try:
        if file.suffix == ".parquet":
            table = pa.parquet.ParquetFile(file)

            def parquet(columns: list[str]) -> Iterator[tuple[tuple[str, int, int], dict[str, Any]]]:
                for group in range(table.num_row_groups):
                    if not columns:
                        yield from ((("parquet", group, i), {}) for i in range(table.metadata.row_group(group).num_rows))
                        continue
                    for i, row in enumerate(table.read_row_group(group, columns=columns).to_pylist()):
                        yield ("parquet", group, i), row

            return table.schema_arrow, parquet
        with pa.memory_map(str(file)) as stream:
            schema = pa.ipc.open_stream(stream).schema

        def arrow(columns: list[str]) -> Iterator[tuple[tuple[str, int, int], dict[str, Any]]]:
            with pa.memory_map(str(file)) as stream:
                for part, batch in enumerate(pa.ipc.open_stream(stream)):
                    rows = batch.select(columns).to_pylist() if columns else [{}] * batch.num_rows
                    yield from ((("arrow", part, i), row) for i, row in enumerate(rows))

        return schema, arrow
    except (pa.ArrowException, OSError) as error:
        raise ItemError(f"is no {file.suffix[1:]} table, or is damaged ({one_line(error, 120)}); fetch it again") from None
    except DataError as error:
        raise DataError(f"{one_line(file)}: {error}") from None


def _media(schema: Any) -> tuple[str, str]:
    """The first column of pictures or videos and, where its cells are structs, the key of their bytes."""
    types = pyarrow().types
    for column in schema:
        if "audio" in column.name:
            continue
        if types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
            return column.name, "bytes"
        if types.is_binary(column.type) or types.is_large_binary(column.type):
            return column.name, ""
    return "", ""
