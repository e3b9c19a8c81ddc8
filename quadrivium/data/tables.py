"""Tables of Hugging Face datasets: parquet files, and the arrow files of ``Dataset.save_to_disk``.

A column of bytes, or of structs with ``bytes``, holds pictures or videos (``video`` in its name says which); a column
``file_name``, ``image`` or ``video`` of strings names files below the table's folder. ``text``, ``text_<lang>`` or ``caption``
holds captions, ``group`` or ``story`` what stays together; without, rows of one picture do: the same ``path`` beside the same bytes.
A table without media is a table of texts, a document a row.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from quadrivium.data.inside import Inside, pyarrow
from quadrivium.data.sources import _CAPTION, Item, Limits, Source, _brief, _group, _kind, _locate, _texts
from quadrivium.data.webdataset import _CAPTIONS, row_of
from quadrivium.errors import ItemError, one_line

_PATHS = ("file_name", "image", "video", "image_path", "video_path", "path")


Row = dict[str, Any] | ItemError  # or why it is none


def list_tables(source: Source, files: list[Path], limits: Limits) -> None:
    """Fill a source with the rows of tables; bytes of pictures are read only where several rows have one path."""
    named: dict[Path, str] = {}
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
            if field and schema.field(media).type.get_field_index("path") >= 0:
                named[file] = media
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
    _join(source, named)


def _join(source: Source, named: dict[Path, str]) -> None:
    """Put the rows of one picture into the group of the first, unless they have one of their own.

    ``named``: tables, with their column of structs that have a path. Many tables call different pictures by one name, so bytes are
    compared too; a row that has its picture alone keeps its group, whatever else is in the table.
    """
    at: dict[tuple[Any, ...], int] = {
        (i.file, *i.inside[1:3]): n for n, i in enumerate(source.items) if i.file in named and i.group == i.key
    }
    places: dict[str, list[tuple[Any, ...]]] = {}
    for file, column in named.items():
        with suppress(Exception):  # of a dozen types; what cannot be read here is said when it is decoded
            for place, cell in _cells(file, column, "path"):
                if (file, *place) in at and (path := cell.as_py()):
                    places.setdefault(path, []).append((file, *place))
    shared = {place for found in places.values() if len(found) > 1 for place in found}
    first: dict[bytes, str] = {}
    for file in dict.fromkeys(place[0] for place in at if place in shared):
        with suppress(Exception):
            for place, cell in _cells(file, named[file], "bytes"):
                if (file, *place) in shared and (data := cell.as_py()):
                    n = at[file, *place]
                    group = first.setdefault(hashlib.sha256(data).digest(), source.items[n].group)
                    source.items[n] = replace(source.items[n], group=group)


def _cells(file: Path, column: str, key: str) -> Iterator[tuple[tuple[int, int], Any]]:
    """(part, row) and what stands under ``key`` in every cell of a column of structs."""
    pa = pyarrow()
    with pa.parquet.ParquetFile(file) if file.suffix == ".parquet" else pa.memory_map(str(file)) as table:
        if file.suffix == ".parquet":
            groups = range(table.num_row_groups)
            parts = ((g, table.iter_batches(64, row_groups=[g], columns=[f"{column}.{key}"])) for g in groups)
        else:
            parts = ((n, [batch]) for n, batch in enumerate(pa.ipc.open_stream(table)))
        for part, batches in parts:
            before = 0
            for batch in batches:
                cells = batch.column(batch.schema.get_field_index(column)).field(key)
                cells.validate(full=True)
                yield from (((part, before + i), cell) for i, cell in enumerate(cells))
                before += len(cells)


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
