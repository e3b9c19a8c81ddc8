"""Tables of Hugging Face datasets: parquet files, and the arrow files of ``Dataset.save_to_disk``.

A column of bytes, or of structs with ``bytes``, holds pictures or videos (``video`` in its name says which); a column
``file_name``, ``image`` or ``video`` of strings names files below the table's folder. ``text``, ``text_<lang>`` or ``caption``
holds captions, ``group`` or ``story`` what stays together. A table without media is a table of texts, a document a row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from quadrivium.data.inside import Inside, pyarrow
from quadrivium.data.sources import _CAPTION, Item, Limits, Source, _brief, _group, _kind, _locate, _texts
from quadrivium.data.webdataset import _CAPTIONS, row_of
from quadrivium.errors import ItemError, one_line

_PATHS = ("file_name", "image", "video", "image_path", "video_path", "path")


Row = dict[str, Any] | ItemError  # or why it is none


def list_tables(source: Source, files: list[Path], limits: Limits) -> None:
    """Fill a source with the rows of tables; bytes of pictures are not read."""
    for file in files:
        name = os.path.relpath(file, source.path)
        try:
            _locate(source.path, name)
            schema, names, rows = _open(file)
            media, field = _media(schema)
            paths = None if media else next((n for n in _PATHS if n in names), None)
            words = [n for n in names if _CAPTION.fullmatch(n) or n in (*_CAPTIONS, "group", "story")]
            if not media and not paths and not words:
                raise ItemError(f"has no column of pictures, videos or text (found: {', '.join(names)})")
            used = [*words, *([paths] if paths else [])]
            twice = next((n for n in (*used, media) if n and names.count(n) > 1), None)
            if twice:
                raise ItemError(f"has several columns named {twice}; rename all but one")
            for number, (where, row) in enumerate(rows(used)):
                key = f"{name}#{number}"
                try:
                    if isinstance(row, ItemError):
                        raise row
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
                        source.items.append(Item(source.name, key, group, "text", (_brief("\n".join(texts), limits),), file))
                    else:
                        raise ItemError("holds no text")
                except ItemError as error:
                    source.refuse(key, error)
        except ItemError as error:
            source.refuse(name, error)


def _open(file: Path) -> tuple[Any, list[str], Callable[[list[str]], Iterator[tuple[Inside, Row]]]]:
    """A table's schema, the names in it, which may be no UTF-8, and what yields (place, row) for chosen columns."""
    pa = pyarrow()
    most = 8 * file.stat().st_size  # rows that a file can hold: more is a lie, for which memory would be taken
    try:
        if file.suffix == ".parquet":
            table = pa.parquet.ParquetFile(file)

            def parquet(columns: list[str]) -> Iterator[tuple[Inside, Row]]:
                for group in range(table.num_row_groups):
                    at = 0
                    try:
                        count = table.metadata.row_group(group).num_rows
                        if not 0 <= count <= most:
                            raise ItemError(f"says that it has {count:,} rows")
                        if not columns:
                            yield from ((("parquet", group, i), {}) for i in range(count))
                            continue
                        for batch in table.iter_batches(256, row_groups=[group], columns=columns):
                            yield from ((("parquet", group, at + i), row) for i, row in enumerate(_rows(batch)))
                            at += batch.num_rows
                    except Exception as error:  # what the library raises on damage is of a dozen types
                        reason = f"row group {group} is damaged after {at} rows ({one_line(error, 120)}); write the table again"
                        yield ("parquet", group, at), ItemError(reason)

            return table.schema_arrow, table.schema_arrow.names, parquet
        with pa.memory_map(str(file)) as stream:
            schema = pa.ipc.open_stream(stream).schema

        def arrow(columns: list[str]) -> Iterator[tuple[Inside, Row]]:
            part = -1
            try:
                with pa.memory_map(str(file)) as stream:
                    for part, batch in enumerate(pa.ipc.open_stream(stream)):
                        if not 0 <= batch.num_rows <= most:
                            raise ItemError(f"says that it has {batch.num_rows:,} rows")
                        batch.validate()
                        rows = _rows(batch.select(columns)) if columns else iter([{}] * batch.num_rows)
                        yield from ((("arrow", part, i), row) for i, row in enumerate(rows))
            except Exception as error:  # likewise
                reason = f"is damaged at its part {part + 1} ({one_line(error, 120)}); what lies before is read; write it again"
                yield ("arrow", part + 1, 0), ItemError(reason)

        return schema, schema.names, arrow
    except Exception as error:  # likewise
        raise ItemError(f"is no {file.suffix[1:]} table, or is damaged ({one_line(error, 120)}); fetch it again") from None


def _rows(batch: Any) -> Iterator[Row]:
    """The rows of a batch, the bad ones as what is wrong with them: text that is not UTF-8, times that no calendar has."""
    try:
        batch.validate(full=True)
        yield from batch.to_pylist()
        return
    except Exception:  # one of them; which one is looked for now
        pass
    for i in range(batch.num_rows):
        try:
            one = batch.slice(i, 1)
            one.validate(full=True)
            row: Row = one.to_pylist()[0]
        except Exception as error:
            row = ItemError(f"cannot be read ({one_line(error, 120)})")
        yield row


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
