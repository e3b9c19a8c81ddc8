"""What a source is, by what lies there: the one `scan` that everything reads through.

    *.tar                                  WebDataset samples                    `webdataset`
    *.parquet, *.arrow                     tables of Hugging Face datasets       `tables`
    .json, .jsonl of documents             interleaved, conversations            `documents`
    anything else                          folders of text, pictures, videos     `sources`, with subtitles read by `subtitles`

A folder with ``metadata.jsonl`` is that, whatever else lies there; tars come before tables, as img2dataset writes both.
"""

from __future__ import annotations

import os
from pathlib import Path

from quadrivium.data import sources
from quadrivium.data.documents import is_documents, list_documents
from quadrivium.data.sources import METADATA, Limits, ReadOptions, Source
from quadrivium.data.subtitles import narrate
from quadrivium.data.tables import list_tables
from quadrivium.data.webdataset import list_tars
from quadrivium.errors import DataError, one_line


def scan(path: Path, options: ReadOptions, limits: Limits = Limits()) -> list[Source]:
    """All sources under a folder or file, in a fixed order; raises DataError where there is nothing to read."""
    path = Path(os.path.abspath(path))
    files = _below(path)
    tars = [f for f in files if f.suffix == ".tar"]
    tables = [f for f in files if f.suffix in (".parquet", ".arrow")]
    root = Path(os.path.realpath(path if path.is_dir() else path.parent))
    documents = [f for f in files if f.suffix in (".json", ".jsonl") and f.parent == root and is_documents(f, options, limits)]
    source = Source(one_line(path.name or "root"), root)
    if tars:
        list_tars(source, tars, limits)
        if tables:
            source.notes.append(f"left out {len(tables)} tables beside the tars; give one as a source of its own to read it")
    elif tables:
        list_tables(source, tables, limits)
    elif documents:
        list_documents(source, documents, options, limits)
    else:
        if path.name.endswith((".tar.gz", ".tgz", ".tar.zst")):
            raise DataError(f"{one_line(path)} is a compressed tar; unpack it, or write it as a plain .tar")
        found = sources.scan(path, options, limits)
        for one in found:
            narrate(one, options, limits)
        return found
    return [source]


def _below(path: Path) -> list[Path]:
    """Files of a folder and of those below it, by name, hidden ones left out; none where metadata rules the folder."""
    if not path.is_dir():
        return [Path(os.path.realpath(path.parent)) / path.name] if path.is_file() and path.name not in METADATA else []
    root, found = Path(os.path.realpath(path)), []
    for folder, below, files in os.walk(root):
        if any(m in files for m in METADATA):
            below.clear()
            continue
        below[:] = sorted(b for b in below if not b.startswith("."))
        found += [Path(folder) / f for f in sorted(files) if not f.startswith(".")]
    return found
