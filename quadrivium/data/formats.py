"""What a source is, by what lies there: the one `scan` that everything reads through.

    hf://OWNER/NAME                        a dataset of the Hugging Face hub     `hub`, then `tables`
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
from quadrivium.data.hub import fetch, is_hub
from quadrivium.data.sources import METADATA, Limits, ReadOptions, Source
from quadrivium.data.subtitles import narrate
from quadrivium.data.tables import list_tables
from quadrivium.data.webdataset import list_tars
from quadrivium.errors import DataError, one_line

FORMATS = ("folder", "tars", "tables", "documents")


def scan(path: Path, options: ReadOptions, limits: Limits = Limits(), format: str = "auto") -> list[Source]:
    """All sources under a folder or file, in a fixed order; raises DataError where there is nothing to read.

    ``format``: one of FORMATS, where what lies there leaves a choice.
    """
    if is_hub(path):
        name, folder = fetch(path)
        source = Source(one_line(name or "hub"), folder)
        list_tables(source, sorted(folder.glob("*.parquet")), limits)
        return [source]
    path = Path(os.path.abspath(path))
    files = _below(path, format == "auto")
    tars = [f for f in files if f.suffix == ".tar"]
    tables = [f for f in files if f.suffix in (".parquet", ".arrow")]
    root = Path(os.path.realpath(path if path.is_dir() else path.parent))
    documents = [f for f in files if f.suffix in (".json", ".jsonl") and f.parent == root]
    if format == "auto":
        documents = [f for f in documents if is_documents(f, options, limits)]
        format = "tars" if tars else "tables" if tables else "documents" if documents else "folder"
    source = Source(one_line(path.name or "root"), root)
    if format == "tars" and tars:
        list_tars(source, tars, limits)
        if tables:
            source.notes.append(f"left out {len(tables)} tables beside the tars; give one as a source of its own to read it")
    elif format == "tables" and tables:
        list_tables(source, tables, limits)
    elif format == "documents" and documents:
        list_documents(source, documents, options, limits)
    elif format != "folder":
        raise DataError(f"{one_line(path)} holds no {format} to read; leave the format to what lies there")
    else:
        if path.name.endswith((".tar.gz", ".tgz", ".tar.zst")):
            raise DataError(f"{one_line(path)} is a compressed tar; unpack it, or write it as a plain .tar")
        found = sources.scan(path, options, limits)
        for one in found:
            narrate(one, options, limits)
        return found
    return [source]


def _below(path: Path, ruled: bool) -> list[Path]:
    """Files of a folder and of those below it, by name, hidden ones left out; with ``ruled``, none where metadata rules the folder."""
    if not path.is_dir():
        only = path.is_file() and not (ruled and path.name in METADATA)
        return [Path(os.path.realpath(path.parent)) / path.name] if only else []
    root, found = Path(os.path.realpath(path)), []
    for folder, below, files in os.walk(root):
        if ruled and any(m in files for m in METADATA):
            below.clear()
            continue
        below[:] = sorted(b for b in below if not b.startswith("."))
        found += [Path(folder) / f for f in sorted(files) if not f.startswith(".")]
    return found
