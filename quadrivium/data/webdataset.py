"""WebDataset tars, as img2dataset and video2dataset write them: what lies under one key is one sample.

    00000.tar:  000000001.jpg  000000001.txt  000000001.json      picture, caption, and what else is known
                clip7.mp4      clip7.json                         clip, with ``caption`` or ``text`` in its JSON

Captions are the .txt, and in the .json ``text``, ``text_<lang>`` or ``caption``; equal ones count once. ``group`` or ``story``
in the .json says what stays on one side of the held-out split. Tars are listed and not unpacked.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quadrivium.data.sources import Item, Limits, Source, _brief, _group, _kind, _locate, _sound, _texts
from quadrivium.errors import DataError, ItemError, one_line

_CAPTIONS = ("caption", "captions", "sentences", "TEXT")  # what others call ``text``


def row_of(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its caption under ``text``, whatever it was called there."""
    name = next((n for n in _CAPTIONS if row.get(n)), None)
    return row if name is None or row.get("text") else {"text": row[name], **{k: v for k, v in row.items() if k != "text"}}


def list_tars(source: Source, tars: list[Path], limits: Limits) -> None:
    """Fill a source with the samples of tars, in the order in which they lie."""
    for tar in tars:
        name = os.path.relpath(tar, source.path)
        try:
            _locate(source.path, name)
            with _opened(tar) as archive:
                for key, members in _samples(archive):
                    try:
                        _read_sample(source, tar, f"{name}:{key}", archive, members, limits)
                    except ItemError as error:
                        source.refuse(f"{name}:{key}", error)
                end = archive.offset
            with open(tar, "rb") as stream:
                stream.seek(end)
                if stream.read(512) != bytes(512):  # the library takes a damaged header for the end
                    source.refuse(
                        name, f"is cut short or damaged after {end:,} bytes; what lies before is read; write it again"
                    )
        except (tarfile.TarError, DataError, OSError) as error:
            source.refuse(name, f"is no plain tar, or is cut short ({one_line(error)}); write it again, or unpack it")


def _opened(tar: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(tar, "r:")
    except Exception as error:  # on heads that lie the library raises a dozen types
        raise ItemError(str(error) or type(error).__name__) from None


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo | ItemError]:
    """Members, and at last what keeps from reading on."""
    try:
        yield from archive
    except Exception as error:  # likewise
        yield ItemError(str(error) or type(error).__name__)


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, list[tuple[str, tarfile.TarInfo]]]]:
    """Neighbours whose names are equal up to the first dot: (key, [(rest of the name, member)])."""
    key = ""
    found: list[tuple[str, tarfile.TarInfo]] = []
    for member in _members(archive):
        if isinstance(member, ItemError):
            if found:
                yield key, found
            raise member
        folder, _, file = member.name.rpartition("/")
        stem, _, ending = file.partition(".")
        if not member.isreg() or not stem or stem == "__MACOSX":
            continue
        here = f"{folder}/{stem}".removeprefix("./").lstrip("/")
        if found and here != key:
            yield key, found
            found = []
        key = here
        found.append((ending.lower(), member))
    if found:
        yield key, found


def _read_sample(
    source: Source,
    tar: Path,
    key: str,
    archive: tarfile.TarFile,
    members: list[tuple[str, tarfile.TarInfo]],
    limits: Limits,
) -> None:
    key, row, texts = _sound(key), {}, []
    media = []
    for ending, member in members:
        last = ending.rpartition(".")[2]
        kind = _kind(f"x.{last}")
        if kind:
            if not member.size or member.issparse():
                raise ItemError(f"{ending} is empty, or stored with holes")
            media.append((ending, kind, member))
        elif last in ("txt", "json"):
            if member.size > limits.row_bytes:
                raise ItemError(f"{ending} is longer than limits.row_bytes ({limits.row_bytes:,}); cut it or allow more")
            stream = archive.extractfile(member)
            data = stream.read().decode("utf-8", "surrogateescape") if stream else ""
            if last == "txt":
                texts.append(_brief(_sound(data), limits).removeprefix("\ufeff").strip())
            else:
                try:
                    loaded = json.loads(data)
                except (ValueError, RecursionError) as error:
                    raise ItemError(f"{ending} is not JSON: {error}") from None
                row = row_of(loaded) if isinstance(loaded, dict) else {}
    captions = tuple(dict.fromkeys(t for t in (*texts, *_texts(row, limits)) if t.strip()))
    group = _group(row, key)
    for ending, kind, member in media:
        name = key if len(media) == 1 else f"{key}.{ending}"
        source.items.append(Item(source.name, name, group, kind, captions, tar, ("tar", member.offset_data, member.size)))
    if not media:
        if not captions:
            raise ItemError(f"holds neither picture, video nor text ({', '.join(e for e, _ in members)})")
        source.items.append(Item(source.name, key, group, "text", ("\n".join(captions),), tar))
