"""What a source is, by what lies there: the one `scan` that everything reads through.

    hf://OWNER/NAME                        a dataset of the Hugging Face hub     `hub`, then `tables`
    *.tar                                  WebDataset samples                    `webdataset`
    *.parquet, *.arrow                     tables of Hugging Face datasets       `tables`
    .json, .jsonl of documents             interleaved, conversations            `documents`
    anything else                          folders of text, pictures, videos     `sources`, with subtitles read by `subtitles`

A folder with ``metadata.jsonl`` is that, whatever else lies there; tars come before tables, as img2dataset writes both. What is
not read beside tars, tables or documents is counted in a note; where it is a folder with ``metadata.jsonl``, `scan` refuses.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from quadrivium.data import sources
from quadrivium.data.documents import is_documents, list_documents
from quadrivium.data.hub import fetch, is_hub
from quadrivium.data.sources import _NOT_DATA, METADATA, TEXTS, Limits, ReadOptions, Source, _kind, left_out, walk
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
    files, described, made = _below(path, format == "auto")
    root = Path(os.path.realpath(path if path.is_dir() else path.parent))
    kinds = {
        "tars": [f for f in files if f.suffix == ".tar"],
        "tables": [f for f in files if f.suffix in (".parquet", ".arrow")],
        "documents": [f for f in files if f.suffix in (".json", ".jsonl") and f.parent == root],
    }
    if format not in ("documents", "folder"):
        kinds["documents"] = [f for f in kinds["documents"] if is_documents(f, options, limits)]
    if format == "auto":
        format = next((kind for kind, found in kinds.items() if found), "folder")
        if described and format != "folder":
            first, ruled = (os.path.relpath(f, root) for f in (kinds[format][0], described[0]))
            raise DataError(
                f"{one_line(path)} holds {format} ({first}) and a folder with metadata ({ruled}); "
                "give each as a source of its own, or take one away"
            )
    source, chosen = Source(one_line(path.name or "root"), root), kinds.pop(format, [])
    if format == "tars" and chosen:
        list_tars(source, chosen, limits)
    elif format == "tables" and chosen:
        list_tables(source, chosen, limits)
    elif format == "documents" and chosen:
        list_documents(source, chosen, options, limits)
    elif format != "folder":
        raise DataError(f"{one_line(path)} holds no {format} to read; leave the format to what lies there")
    else:
        if path.name.endswith((".tar.gz", ".tgz", ".tar.zst")):
            raise DataError(f"{one_line(path)} is a compressed tar; unpack it, or write it as a plain .tar")
        listed = sources.scan(path, options, limits)
        for one in listed:
            narrate(one, options, limits)
        return listed
    read = {*chosen, *(i.file for i in source.items)}
    left = _counted([f for f in files if f not in read], kinds)
    if left:
        source.notes.append(f"left out {left} beside the {format}; give them as sources of their own to read them")
    source.notes.extend(left_out(made))
    return [source]


def _counted(files: list[Path], kinds: dict[str, list[Path]]) -> str:
    """How many of the files could be read as what, as text; ``kinds`` says it where the ending does not."""
    known = {f: kind for kind, found in kinds.items() for f in found}
    counts: Counter[str] = Counter()
    for file in files:
        if kind := known.get(file):
            counts[kind] += 1
        elif _kind(file.name):
            counts["pictures or videos"] += 1
        elif file.suffix.lower() in TEXTS and file.name not in METADATA and not _NOT_DATA.fullmatch(file.name):
            counts["texts"] += 1
    return ", ".join(f"{n:,} {kind}" for kind, n in counts.most_common())


def _below(path: Path, ruled: bool) -> tuple[list[Path], list[Path], list[str]]:
    """Files of a folder and of those below it, by name, hidden ones left out; with ``ruled``, none of the folders that metadata
    rules, which come second. Third, what `walk` does not enter."""
    if not path.is_dir():
        only = path.is_file() and not (ruled and path.name in METADATA)
        return [Path(os.path.realpath(path.parent)) / path.name] if only else [], [], []
    found: list[Path] = []
    described: list[Path] = []
    made: list[str] = []
    for folder, below, files in walk(Path(os.path.realpath(path)), made):
        if ruled and any(m in files for m in METADATA):
            below.clear()
            described.append(Path(folder))
            continue
        found += [Path(folder) / f for f in files]
    return found, described, made
