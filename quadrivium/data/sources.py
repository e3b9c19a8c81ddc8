"""Folders of text, pictures and clips -> items; one item -> small frames.

    scan(path)        cheap pass over names, metadata and text; decodes no media         -> list[Source]
    read_clips(item)  one picture or video -> clips, uint8 (F, size, size, 3)
    fingerprint(...)  changes when anything that `scan` saw has changed

How a folder is read:

1. A folder that holds ``metadata.jsonl`` or ``metadata.csv`` is one media source, with everything below it. Each row has
   ``file_name`` and may have ``text`` (a string, a list of strings, or nothing), further captions ``text_<lang>`` such
   as ``text_ja``, and ``group`` or ``story``. A row without text is a bare picture or clip. Media that no row
   names, and texts, are left out and counted in a note. Such folders are looked for at any depth.
2. All other pictures and videos make one source. A short .txt of the same name beside one is its caption, where most .txt files of the
   folder are such; without, it is bare. All other .txt, .jsonl and .tsv files make one text source.
3. A folder that gives one source lends it its name. Where it gives several they are called ``folder/<subfolder>``,
   ``folder/media`` and ``folder/text``.

Licences, read-me and attribution files, files of other kinds, and folders that a command of this project has written are not data;
a note counts them. Hidden files are not looked at. A path that is a file is a source of its own; a metadata file stands for its folder.

Every item that cannot be used becomes a `Problem` here, or an `ItemError` when it is decoded; none is lost silently.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import math
import os
import re
import stat
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path, PurePath
from typing import IO, Any, Literal

import av
import av.logging
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, UnidentifiedImageError

from quadrivium.data.inside import Inside, open_inside
from quadrivium.errors import ConfigError, DataError, ItemError, one_line
from quadrivium.pictures import pages, render

Kind = Literal["text", "image", "video", "rendered"]

METADATA = ("metadata.jsonl", "metadata.csv")  # the first one present counts
# What a command has written: a file, and folders of which one lies beside it.
_MADE = {
    "manifest.json": {"shards"},
    "config.json": {"checkpoints"},
    "transfer.json": {"cells"},
    "experiment.json": {"looks", "results"},
}
TEXTS = frozenset({".txt", ".jsonl", ".tsv"})
IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif"})
VIDEOS = frozenset({".mp4", ".webm", ".gif", ".mov", ".m4v", ".mkv", ".avi", ".mpg", ".mpeg"})
SUBTITLES = frozenset({".srt", ".vtt"})

# Decoders are named, so that no file can reach one that runs a program (EPS) or opens other files and addresses (HLS).
_PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_ANIMATED = frozenset({"GIF", "WEBP", "PNG", "AVIF"})  # several pages of a TIFF or a phone's JPEG are not a clip
_VIDEO_OPTIONS = {"format_whitelist": "mov,mp4,matroska,webm,avi,mpeg,mpegts", "protocol_whitelist": "file"}

# A word about the data: the whole stem, so that license-plates.txt is read, or a beginning in capitals, as in LICENSE-MIT.txt.
_NOT_DATA = re.compile(
    r"(?i:licen[sc]es?|readme|attribution|notice)(?:\.\w+){0,2}"
    r"|(?:LICEN[SC]ES?|README|ATTRIBUTION|NOTICE)[._-].*|.*\.(?i:md)"
)
_CAPTION = re.compile(r"text(_[a-z]{2,3}([-_][A-Za-z]+)?)?")  # text, text_ja, text_zh-Hant
_BLANK = re.compile(r"\n(?:[^\S\n]*\n)+")  # one or more blank lines
# EXIF orientation -> quarter turns counter-clockwise, after mirroring left to right
_TURNS = {1: (0, False), 2: (0, True), 3: (2, False), 4: (2, True), 5: (1, True), 6: (3, False), 7: (3, True), 8: (1, False)}

# What is wrong with a file is said once, by the ItemError; the libraries are not to write on stderr as well.
av.logging.set_level(av.logging.PANIC)
warnings.filterwarnings("ignore", module=r"PIL\.")  # not catch_warnings around the call: it is not safe with threads


@dataclass(frozen=True)
class ReadOptions:
    """How media and text become items and frames; raises ConfigError where a value is out of range."""

    size: int = 64  # frames are size x size pixels
    # pad: scale the long side, fill (nothing is lost); crop: scale the short side, cut the centre
    fit: Literal["crop", "pad"] = "pad"
    fps: float = 4.0  # frames a second taken from video, by timestamps; a slower video gives all its frames, none twice
    clip_frames: int = 8  # frames of a clip; a longer video becomes consecutive clips
    max_clips: int = 16  # clips taken from one video, from its start
    doc_bytes: int = 2000  # a .txt file is cut, at blank lines only, into documents of at least this many bytes
    max_pixels: int = 50_000_000  # a larger picture or video frame is refused before it is decoded
    max_text_bytes: int = 1 << 28  # a larger text or metadata file is refused before it is read

    def __post_init__(self) -> None:
        if self.fit not in ("crop", "pad"):
            raise ConfigError(f"fit is {self.fit!r}; choose crop or pad")
        if not (isinstance(self.fps, (int, float)) and math.isfinite(self.fps) and self.fps > 0):
            raise ConfigError(f"fps is {self.fps!r}; give a number above 0")
        for name in ("size", "clip_frames", "max_clips", "doc_bytes", "max_pixels", "max_text_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; give a whole number of at least 1")


@dataclass(frozen=True)
class Limits:
    """What one item may cost. Beyond that it is skipped and listed like a damaged one; raises ConfigError below 1."""

    seconds: float = 30.0  # processor time that decoding one picture or video may take
    memory: int = 2 << 30  # bytes that a decoder may take
    row_bytes: int = 1 << 24  # a longer row of a .jsonl, .tsv or .csv file is refused before it is parsed
    document_bytes: int = 1 << 22  # a longer document is refused before it is tokenized

    def __post_init__(self) -> None:
        for name, least in (("seconds", 0.1), ("memory", 1 << 28), ("row_bytes", 1), ("document_bytes", 1)):
            if not least <= getattr(self, name) < 1 << 62:
                raise ConfigError(f"limits.{name} is {getattr(self, name)!r}; it has to be at least {least:,}")


@dataclass(frozen=True)
class Item:
    """One picture, video or text document, not yet decoded."""

    source: str
    key: str  # unique within the source: path below its folder; for text, path#document or path#line, from 1
    group: str  # what stays whole on one side of train | held-out: the row's ``group`` or ``story``, else the key
    kind: Kind  # by the name's ending (.gif counts as video; what is in the file decides how it is read); or pages of text
    texts: tuple[str, ...]  # captions; a text item has exactly one, the document
    file: Path | None  # where it lies; for text, the file that the document was cut from
    inside: Inside = ()  # where in that file, see `inside`; (): it is the file
    span: tuple[float, float] = (0.0, math.inf)  # seconds of a video that are read


@dataclass(frozen=True)
class Problem:
    """An item that cannot be used, as one line for the user."""

    source: str
    item: str
    reason: str


@dataclass(frozen=True)
class Source:
    """What `scan` found under one name."""

    name: str
    path: Path
    items: list[Item] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was left out by rule and is no damage, a line each
    options: ReadOptions | None = None  # how it is read, where that is not how all others are

    def refuse(self, item: str, reason: object) -> None:
        """Record that an item cannot be used."""
        self.problems.append(Problem(self.name, one_line(item), one_line(reason)))


def scan(path: Path, options: ReadOptions, limits: Limits = Limits()) -> list[Source]:
    """All sources under a folder or file, in a fixed order; raises DataError where there is nothing to read."""
    path = Path(os.path.abspath(path))
    if not path.exists():
        raise DataError(f"{one_line(path)} does not exist; check the path")
    if path.name in METADATA:
        path = path.parent
    name, real = one_line(path.name or "root"), Path(os.path.realpath(path))
    if path.is_dir():
        return _scan_folder(real, name, options, limits)
    source = Source(name, Path(os.path.realpath(path.parent)))
    if path.suffix.lower() in TEXTS:
        _read_texts(source, [path.name], options, limits)
    elif _kind(path.name):
        _list_media(source, [path.name], {}, options, limits)
    else:
        known = _endings(TEXTS | IMAGES | VIDEOS | {".arrow", ".json", ".parquet", ".tar", ".toml"})
        raise DataError(f"{one_line(path)} cannot be read as data; give a folder or one of {known}")
    return [source]


def rendered(source: Source, options: ReadOptions) -> Source:
    """The documents of a source as pixels: clips of pages (`pictures.render`), each with the text that stands on them.

    A document with a letter that no font here has is left out, and a note counts them: nothing of it is damaged.
    """
    made, lost, letter = Source(f"{source.name}, rendered", source.path), 0, ""
    for item in (i for i in source.items if i.kind == "text"):
        try:
            parts = pages(item.texts[0], options.size)
        except ValueError as error:
            lost, letter = lost + 1, letter or str(error)
            continue
        for n in range(0, len(parts), options.clip_frames):
            shown = "".join(parts[n : n + options.clip_frames])
            made.items.append(Item(made.name, f"{item.key}/{n + 1}", item.group, "rendered", (shown,), None))
    if lost:
        made.notes.append(f"left out {lost} documents: {letter}; install Noto Sans CJK, or leave them to be read as text only")
    return made


def _scan_folder(root: Path, name: str, options: ReadOptions, limits: Limits) -> list[Source]:
    described: list[Path] = []  # folders with metadata
    texts: list[str] = []
    media: list[str] = []
    subtitled: set[str] = set()
    other: Counter[str] = Counter()
    told: list[str] = []  # what the data is, and no data
    made: list[str] = []
    walk_problems: list[tuple[str, str]] = []

    def unreadable(error: OSError) -> None:
        walk_problems.append((os.path.relpath(error.filename, root), f"cannot be listed: {error.strerror}"))

    for folder, below, files in walk(root, made, unreadable):
        if any(metadata in files for metadata in METADATA):
            described.append(Path(folder))
            below.clear()
            continue
        for link in (x for x in below if os.path.islink(os.path.join(folder, x))):
            reason = "is a link to a folder and is not followed; give that folder as a source"
            walk_problems.append((os.path.relpath(os.path.join(folder, link), root), reason))
        for file in files:
            key = os.path.relpath(os.path.join(folder, file), root)
            ending = PurePath(file).suffix.lower()
            if _kind(file):
                media.append(key)
            elif _NOT_DATA.fullmatch(file):
                told.append(key)
            elif ending in TEXTS:
                texts.append(key)
            elif ending in SUBTITLES:  # which belong to the videos beside them
                subtitled.add(os.path.splitext(key)[0])
            else:
                other[ending or "without ending"] += 1

    ignored = ", ".join(f"{n} {one_line(ending)}" for ending, n in other.most_common(8))
    notes = [f"ignored by their ending: {ignored}"] if ignored else []
    if told:
        notes.append(
            f"left out {len(told)} as licence, read-me or .md ({some(told)}); rename what is data to another name in .txt"
        )
    notes += left_out(made)
    captions = _beside(root, texts, media, subtitled, options)
    if captions:
        read = set(captions.values())
        texts = [key for key in texts if key not in read]
        cure = "in a folder of their own they would be documents"
        notes.append(f"{len(read):,} .txt files are read as captions of the pictures and videos that have their names; {cure}")
    several = len(described) + bool(media) + bool(texts) > 1
    sources: list[Source] = []

    def new(label: str, path: Path) -> Source:
        while several and f"{name}/{label}" in [s.name for s in sources]:
            label += "_"  # a subfolder called "text" or "media" has taken the name
        sources.append(Source(f"{name}/{label}" if several else name, path))
        return sources[-1]

    for owner in described:
        _read_metadata(new(one_line(owner.relative_to(root)), owner), options, limits)
    if media:
        _list_media(new("media", root), media, captions, options, limits)
    if texts:
        _read_texts(new("text", root), texts, options, limits)
    if not sources:
        why = f"; {walk_problems[0][0]} {walk_problems[0][1]}" if walk_problems else f" ({'; '.join(notes)})" if notes else ""
        raise DataError(one_line(f"{root} holds nothing to read{why}; put {_endings(TEXTS)} text, pictures or videos there"))
    for item, reason in walk_problems:
        sources[-1].refuse(item, reason)
    sources[-1].notes.extend(notes)
    return sources


def _beside(root: Path, texts: list[str], media: list[str], subtitled: set[str], options: ReadOptions) -> dict[str, str]:
    """Pictures and videos -> the .txt of the same name beside them, where most .txt files of the folder are such, and short: what is as
    long as a document, or lies beside subtitles, is a transcript."""
    plain = {os.path.splitext(key)[0]: key for key in texts if key.lower().endswith(".txt")}
    found: dict[str, str] = {}
    for key in media:
        stem = os.path.splitext(key)[0]
        with suppress(OSError):  # what cannot be looked at is refused where it is read
            if stem in plain and stem not in subtitled and (root / plain[stem]).stat().st_size < options.doc_bytes:
                found[key] = plain[stem]
    there, named = (Counter(map(os.path.dirname, keys)) for keys in (plain.values(), set(found.values())))
    return {key: text for key, text in found.items() if 2 * named[os.path.dirname(key)] > there[os.path.dirname(key)]}


def walk(
    root: Path, made: list[str], onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` in a fixed order, without what is hidden. Folders that a command of this project has written are not entered; their
    paths below ``root`` are put into ``made``. Raises DataError where ``root`` is one itself."""
    for folder, below, files in os.walk(root, onerror=onerror):
        if any(file in files and parts & set(below) for file, parts in _MADE.items()):
            if folder == os.fspath(root):
                raise DataError(
                    f"{one_line(root)} was written by quadrivium and is no source; give the folder that it was made from"
                )
            made.append(os.path.relpath(folder, root))
            below.clear()
            continue
        below[:] = sorted(x for x in below if not _hidden(x))
        yield folder, below, sorted(x for x in files if not _hidden(x))


def left_out(made: list[str]) -> list[str]:
    """A note on what `walk` has not entered, where there is any."""
    return [f"left out {len(made)} folders that quadrivium wrote ({some(made)})"] if made else []


def some(names: list[str]) -> str:
    """The first of some names, for a note."""
    return one_line(", ".join(names[:3]) + (", ..." if len(names) > 3 else ""))


def _read_metadata(source: Source, options: ReadOptions, limits: Limits) -> None:
    """Fill a media source from the rows of its metadata file."""
    metadata = next(source.path / name for name in METADATA if os.path.lexists(source.path / name))
    try:
        _locate(source.path, metadata.name)
    except ItemError as error:
        raise DataError(f"{one_line(metadata)} cannot be read: {error}") from error
    listed: set[str] = set()
    columns: dict[str, None] = {}
    for line, row in _rows(source, metadata, options, limits):
        where = f"{metadata.name}:{line}"
        columns.update(dict.fromkeys(c for c in row if isinstance(c, str)))
        try:
            name = row.get("file_name")
            if not isinstance(name, str) or not name:
                raise ItemError("the row has no file_name")
            key = os.path.normpath(spelled(source.path, name))
            where += f" ({key})"
            if key in listed:
                raise ItemError("the file is named by an earlier row; only the first one counts")
            listed.add(key)
            kind = _kind(key)
            if kind is None:
                raise ItemError(f"the name ends in none of {_endings(IMAGES | VIDEOS)}")
            file = _locate(source.path, name)
            source.items.append(Item(source.name, key, _group(row, key), kind, _texts(row, limits), file))
        except (ItemError, RecursionError) as error:  # what could just be parsed may be nested too deeply to be quoted
            source.refuse(where, error)
    found = one_line(", ".join(columns) or "none", 120)
    if "file_name" not in columns:
        why = f", {source.problems[0].item} {source.problems[0].reason}" if source.problems else ""
        cure = "give each row the path of its picture or clip, or rename the file if it lists something else"
        raise DataError(one_line(f"{metadata}: no row has the column file_name (found: {found}{why}); {cure}", 600))
    if not any(_CAPTION.fullmatch(column) for column in columns):
        source.notes.append(f"read without captions, as {metadata.name} has no column text (found: {found})")
    unlisted = 0
    texts: list[str] = []
    made: list[str] = []
    for folder, _, files in walk(source.path, made):
        for entry in files:
            key = os.path.relpath(os.path.join(folder, entry), source.path)
            if key in listed:
                continue
            if _kind(entry):
                unlisted += 1
            elif PurePath(entry).suffix.lower() in TEXTS and entry not in METADATA and not _NOT_DATA.fullmatch(entry):
                texts.append(key)
    if unlisted:
        source.notes.append(f"left out {unlisted} pictures or videos that no row of {metadata.name} names")
    if texts:
        cure = "give each as a source of its own to read it as text"
        source.notes.append(f"left out {len(texts)} text files beside {metadata.name} ({some(texts)}); {cure}")
    source.notes.extend(left_out(made))


def _list_media(source: Source, keys: list[str], captions: dict[str, str], options: ReadOptions, limits: Limits) -> None:
    """Fill a source with pictures and videos, and the captions that lie beside some; keys are paths below its folder."""
    for key in keys:
        said: tuple[str, ...] = ()
        if key in captions:
            try:
                lines = _lines(_locate(source.path, captions[key]), options)
                said = _texts({"text": "".join(line for _, line in lines).strip()}, limits)
            except (ItemError, DataError) as error:  # the picture is still one
                source.refuse(captions[key], error)
        try:
            source.items.append(Item(source.name, key, key, _kind(key) or "image", said, _locate(source.path, key)))
        except ItemError as error:
            source.refuse(key, error)


def _read_texts(source: Source, keys: list[str], options: ReadOptions, limits: Limits) -> None:
    """Fill a text source: a document for each cut of a .txt file, for each row of a .jsonl or .tsv file."""
    uncut: list[str] = []
    for name in keys:
        new: list[Item] = []
        problems, with_text = len(source.problems), False
        try:
            file = _locate(source.path, name)
            if file.suffix.lower() == ".txt":
                text = _sound("".join(line for _, line in _lines(file, options)))
                documents = _documents(text, options.doc_bytes)
                for i, document in enumerate(documents, 1):
                    try:
                        new.append(Item(source.name, f"{name}#{i}", f"{name}#{i}", "text", (_brief(document, limits),), file))
                    except ItemError as error:
                        source.refuse(f"{name}#{i}", error)
                if not documents:
                    raise ItemError("holds no text")
                if len(documents) == 1 and documents[0].count("\n") >= 100 and not _BLANK.search(documents[0]):
                    uncut.append(name)
            else:
                for line, row in _rows(source, file, options, limits):
                    key = f"{name}#{line}"
                    with_text = with_text or any(_CAPTION.fullmatch(column) for column in row)
                    try:
                        texts = _texts(row, limits)
                        # Translations side by side: were one language always first, none would learn to begin with the other.
                        turned = file.suffix.lower() == ".tsv" and line % 2 == 0
                        document = "\n".join(reversed(texts) if turned else texts)
                        if not document:
                            raise ItemError("holds no text")
                        new.append(Item(source.name, key, _group(row, key), "text", (document,), file))
                    except (ItemError, RecursionError) as error:
                        source.refuse(key, error)
                if not with_text:  # a file of another sort: one line for the file, not one for each row
                    first = next((f" ({p.item} {p.reason})" for p in source.problems[problems:]), "")
                    del source.problems[problems:]
                    raise ItemError(f"no row has the key text{first}; add it, or take the file away")
        except DataError as error:
            source.refuse(name, error)
        source.items.extend(new)
    if uncut:
        source.notes.append(
            f"{some(uncut)}: hundreds of lines and no blank one, so one document each; put a blank line between documents"
        )


def _documents(text: str, least: int) -> list[str]:
    """Cut a text at blank lines into documents of at least ``least`` bytes; a shorter rest joins the last one."""
    cuts: list[tuple[int, int]] = []
    held = end = 0
    for gap in _BLANK.finditer(text):
        held += len(text[end : gap.start()].strip("\n").encode())
        end = gap.end()
        if held >= least:
            cuts.append((gap.start(), end))
            held = 0
    if cuts and held + len(text[end:].encode()) < least:
        cuts.pop()
    starts, ends = [0, *(b for _, b in cuts)], [*(a for a, _ in cuts), len(text)]
    return [text[a:b].strip("\n") for a, b in zip(starts, ends, strict=True) if text[a:b].strip()]


def _lines(file: Path, options: ReadOptions) -> Iterator[tuple[int, str]]:
    r"""Numbered lines, each ending as in the file but for \r\n -> \n; no byte-order mark. Bytes that are not UTF-8 come
    as lone surrogates, which `_sound` refuses, so that they cost one item and not the file."""
    try:
        if file.stat().st_size > options.max_text_bytes:
            raise DataError(f"{one_line(file)} is larger than max_text_bytes ({options.max_text_bytes:,}); split it")
        with open(file, "rb") as stream:
            for number, raw in enumerate(stream, 1):
                if number == 1 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise DataError(f"{one_line(file)} is UTF-16; save it as UTF-8")
                line = raw.decode("utf-8", "surrogateescape")
                if number == 1:
                    line = line.removeprefix("\ufeff")
                yield number, line[:-2] + "\n" if line.endswith("\r\n") else line
    except OSError as error:
        raise DataError(f"{one_line(file)} cannot be read: {error.strerror}") from error


_SURPLUS = "has more cells than the first row names; quote a cell that holds the separator, or take it out"


def _rows(source: Source, file: Path, options: ReadOptions, limits: Limits) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered rows of a .jsonl, .csv or .tsv file as dictionaries; rows that cannot be parsed become problems.

    A .tsv file is one document a row. If a cell of its first row is called ``text`` or ``text_<lang>``, that row names the
    columns; otherwise all columns are text. Every second row is read from its last text to its first (`_read_texts`).
    """
    lines = _lines(file, options)
    where = os.path.relpath(file, source.path)
    if file.suffix.lower() == ".csv":
        csv.field_size_limit(min(limits.row_bytes, 2**31 - 1))  # the module's own limit is shorter than a long description
        reader = csv.DictReader(line for _, line in lines)
        try:
            names = reader.fieldnames or ()
            _distinct(file, names)
            whole = next((name for name in names if "file_name" in name), "")
            if "file_name" not in names and (other := re.search(r"[;\t|]", whole)):
                raise DataError(f"{one_line(file)}: separate its columns by commas, not by {other[0]!r}")
            for row in reader:
                if any(cell.strip() for cell in row.pop(None, None) or []):
                    source.refuse(f"{where}:{reader.line_num}", _SURPLUS)
                else:
                    yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{one_line(file)}: line {reader.line_num} is not CSV ({error}); mend it") from error
        return
    header: list[str] | None = None
    first = True
    for number, line in lines:
        if not line.strip(" \r\n"):
            continue
        heads, first = first, False
        if len(line) > limits.row_bytes:
            reason = f"is longer than limits.row_bytes ({limits.row_bytes:,}); split it or allow more"
            source.refuse(f"{where}:{number}", reason)
            continue
        if file.suffix.lower() == ".tsv":
            cells = line.rstrip("\n").split("\t")
            if heads and any(_CAPTION.fullmatch(cell.strip()) for cell in cells):
                header = [cell.strip() for cell in cells]
                _distinct(file, header)
            elif header is not None and any(cell.strip() for cell in cells[len(header) :]):
                source.refuse(f"{where}:{number}", _SURPLUS)
            else:
                yield number, {"text": cells} if header is None else dict(zip(header, cells, strict=False))
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            source.refuse(f"{where}:{number}", f"is not JSON: {error}")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            source.refuse(f"{where}:{number}", 'is not a JSON object such as {"text": "..."}')


def _distinct(file: Path, header: Sequence[str]) -> None:
    """Of two columns of texts with one name only the last would be read: DataError."""
    if twice := [name for name in header if _CAPTION.fullmatch(name) and list(header).count(name) > 1]:
        raise DataError(f"{one_line(file)}: its first row names {twice[0]} twice; rename one by its language, as in text_ja")


def _texts(row: dict[str, Any], limits: Limits) -> tuple[str, ...]:
    """Every text of a row: ``text`` and each ``text_<lang>``, strings or lists of strings; null and blank ones dropped."""
    found = []
    for column, value in row.items():
        if not isinstance(column, str) or not _CAPTION.fullmatch(column):
            continue
        for text in value if isinstance(value, list) else [value]:
            if text is None:
                continue
            if not isinstance(text, str):
                raise ItemError(f"{column} is {text!r:.60}; it must be a string or a list of strings")
            if _brief(_sound(text), limits).strip():
                found.append(text.removeprefix("\ufeff").replace("\r\n", "\n"))
    return tuple(found)


def _group(row: dict[str, Any], key: str) -> str:
    named = (row.get(column) for column in ("group", "story"))
    return next((_sound(str(value)) for value in named if value is not None and value != ""), key)


def _sound(text: str) -> str:
    """The text itself; raises ItemError where it is not text: NUL characters, bytes that are not UTF-8."""
    if "\0" in text:
        raise ItemError("holds NUL characters, so it is not text; save it as UTF-8, without them")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ItemError(f"is not UTF-8 at character {error.start}; save it as UTF-8") from None
    return text


def _brief(text: str, limits: Limits) -> str:
    """The text itself; raises ItemError where a tokenizer would need gigabytes for it."""
    if 4 * len(text) > limits.document_bytes and len(text.encode()) > limits.document_bytes:
        raise ItemError(f"is a text longer than limits.document_bytes ({limits.document_bytes:,}); cut it or allow more")
    return text


def _locate(folder: Path, name: str) -> Path:
    """The ordinary, non-empty file ``name`` below ``folder``, a path without links; raises ItemError where it is none."""
    try:
        _sound(name)
    except ItemError:
        raise ItemError("the file name is not UTF-8 text; rename the file") from None
    if os.path.isabs(name) or ".." in name.split(os.sep):
        raise ItemError("points outside its folder; only files below it are read")
    name = spelled(folder, name)
    try:
        real = os.path.realpath(folder / name)
        if not real.startswith(os.path.join(folder, "")):
            raise ItemError("is a link that leaves its folder; copy the file there")
        status = os.stat(real)
    except OSError as error:
        raise ItemError("the file is missing" if isinstance(error, FileNotFoundError) else f"{error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ItemError("is a folder, not a file" if stat.S_ISDIR(status.st_mode) else "is not an ordinary file")
    if not status.st_size:
        raise ItemError("the file is empty (0 bytes)")
    return folder / name


def spelled(folder: Path, name: str) -> str:
    """The name as the disk spells it: files from a Mac may have letters and their accents apart (NFD), where others have one (NFC)."""
    forms = (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
    return next((form for form in forms if os.path.lexists(folder / form)), name)


def _kind(name: str) -> Literal["image", "video"] | None:
    ending = os.path.splitext(name)[1].lower()
    return "image" if ending in IMAGES else "video" if ending in VIDEOS else None


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _endings(endings: frozenset[str]) -> str:
    return " ".join(sorted(endings))


def fingerprint(sources: list[Source], options: ReadOptions) -> str:
    """SHA-256 in hex over the options, every text, and path, size and modification time of every picture and video.

    Media are not opened. Paths count from the source's folder, so it does not matter how the folder was named.
    """
    digest = hashlib.sha256(repr(options).encode())
    for source in sources:
        digest.update(repr((source.name, source.problems)).encode())
        if source.options is not None:
            digest.update(repr(source.options).encode())
        for item in source.items:
            state: tuple[int, ...] = ()
            if item.kind != "text" and item.file is not None:
                try:
                    status = os.stat(item.file)
                    state = (status.st_size, status.st_mtime_ns)
                except OSError:
                    state = (-1,)  # vanished since the scan
            digest.update(repr((item.key, item.group, item.kind, item.texts, state)).encode())
            if item.inside or item.span != (0.0, math.inf):
                digest.update(repr((item.inside, item.span)).encode())
    return digest.hexdigest()


def read_clips(item: Item, options: ReadOptions) -> list[np.ndarray]:
    """Decode a picture or video into clips, uint8 RGB (F, size, size, 3), at least one.

    A picture is one clip of one frame. A video, or an animated gif, webp, png or avif, becomes consecutive clips of
    ``clip_frames`` frames: time from the first frame is cut into slots of 1 / fps seconds, and the first frame that falls
    into a slot is taken. The last, shorter clip is kept if it has two frames or is the only one. Decoding stops at
    ``max_clips``, so no more than ``max_clips * clip_frames`` small frames are ever held.

    Frames are turned as their EXIF or video orientation says, flattened onto white, and made square by ``fit``; the bars
    that ``pad`` leaves have the median colour of the frame's border.

    Raises ItemError (file, reason, cure on one line) where the file is missing, too large or damaged anywhere before the
    last frame taken. A webm that was cut short between two frames cannot be told from a shorter one and is read.
    """
    if item.kind == "rendered":
        return [render(item.texts[0], options.size)]
    if item.kind == "text" or item.file is None:
        raise ValueError(f"{item.key} is text and has no frames")
    with clips_and_more(item, options) as (clips, _):
        return clips


@contextmanager
def clips_and_more(item: Item, options: ReadOptions) -> Iterator[tuple[list[np.ndarray], Callable[[], bool]]]:
    """What `read_clips` gives, and what tells whether a larger ``max_clips`` would give more, which decodes a little further."""
    assert item.file is not None
    least = min(2, options.clip_frames)  # frames of a last clip
    with ExitStack() as stack:
        try:
            if not stat.S_ISREG(os.stat(item.file).st_mode):
                raise ItemError("is not an ordinary file")
            stream = stack.enter_context(open_inside(item.file, item.inside))
            frames = stack.enter_context(closing(_frames(stream, options, item.span)))
            taken = list(islice(frames, options.max_clips * options.clip_frames))
            if not taken:
                raise ItemError("holds no frame")
        except Exception as error:  # Pillow and FFmpeg raise a dozen types on damaged files; the cause stays attached
            reason = str(error)
            if isinstance(error, MemoryError):
                reason = "needs more memory than there is"
            elif isinstance(error, OSError) and error.errno and not isinstance(error, av.error.FFmpegError):
                reason = f"cannot be read ({error.strerror})"
            elif not isinstance(error, ItemError):
                reason = f"is damaged ({getattr(error, 'strerror', None) or reason or type(error).__name__})"
            where = f"{item.file} ({item.key})" if item.inside else item.file
            raise ItemError(one_line(f"{where}: {reason}; mend, replace or remove the file", 600)) from error
        clips = [np.stack(taken[i : i + options.clip_frames]) for i in range(0, len(taken), options.clip_frames)]

        def more() -> bool:
            try:
                return len(list(islice(frames, least))) == least
            except Exception:  # damaged there, which costs nothing of what was read
                return False

        yield clips if len(clips) == 1 or len(clips[-1]) >= least else clips[:-1], more


def longer(cut: int, videos: int, source: Source, options: ReadOptions) -> str:
    """How many videos go on after ``max_clips``: a line, or nothing."""
    what = "videos or cues" if any(item.span[1] < math.inf for item in source.items) else "videos"
    cure = "max_clips in its table of the mixture file" if source.options else "--read.max-clips"
    most = (source.options or options).max_clips
    return f"{cut:,} of {videos:,} {what} are longer than {most:,} clips; {cure} reads more" if cut else ""


def _due(options: ReadOptions) -> Callable[[float], bool]:
    """Whether the frame at so many seconds is the first of its slot; ask in order."""
    last = -1

    def due(seconds: float) -> bool:
        nonlocal last
        slot = math.floor((seconds + 0.001) * options.fps)  # webm and gif round their times to milliseconds
        first, last = slot > last, max(slot, last)
        return first

    return due


def frames_read(count: int, fps: float, options: ReadOptions) -> list[int]:
    """Which of a video's ``count`` frames, ``fps`` a second, make the first clip that `read_clips` cuts from it."""
    due = _due(options)
    return [i for i in range(count) if due(i / fps)][: options.clip_frames]


def _frames(
    stream: IO[bytes], options: ReadOptions, span: tuple[float, float] = (0.0, math.inf)
) -> Generator[np.ndarray, None, None]:
    """The frames to take from a picture or video; what the file holds decides which of the two it is, not its name."""
    due = _due(options)
    try:
        picture = Image.open(stream, formats=_PICTURE_FORMATS)
    except UnidentifiedImageError:
        stream.seek(0)
        yield from _video_frames(stream, options, due, span)
    except Image.DecompressionBombError:
        raise ItemError("has more pixels than can be opened safely; scale it down") from None
    else:
        yield from _picture_frames(picture, options, due)


def _picture_frames(picture: Image.Image, options: ReadOptions, due: Callable[[float], bool]) -> Iterator[np.ndarray]:
    seconds = 0.0
    _check_pixels(*picture.size, options)  # as stored: `draft` changes the size, and not what a progressive JPEG takes
    picture.draft(None, (2 * options.size, 2 * options.size))  # JPEG only: decode at a fraction of the size
    for index in count():
        _check_pixels(*picture.size, options)
        picture.load()
        if due(seconds):
            yield fitted(picture, options)
        if picture.format not in _ANIMATED:
            return
        shown = picture.info.get("duration") or 0  # milliseconds
        seconds += (shown if shown > 10 else 100) / 1000  # as browsers do: 10 ms or less means "not set"
        try:
            picture.seek(index + 1)
        except EOFError:
            return


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(0x0112, 1)
    except Exception:  # a damaged EXIF block, which fails in many ways, does not damage the picture
        return 1


def _video_frames(
    stream: IO[bytes], options: ReadOptions, due: Callable[[float], bool], span: tuple[float, float]
) -> Iterator[np.ndarray]:
    try:
        container = av.open(stream, mode="r", options=_VIDEO_OPTIONS, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        raise ItemError("is neither a picture nor a video that can be read, or is cut short") from error
    with container:
        if not container.streams.video:
            raise ItemError("holds no video")
        video = container.streams.video[0]
        if video.codec_context is None:
            raise ItemError("holds video in a codec that is not known here; re-encode it, for example as H.264 mp4")
        video.thread_type = "NONE"  # each thread would hold full frames of its own, and files are read one by one
        _check_pixels(video.width, video.height, options)
        video.codec_context.options = {"max_pixels": str(options.max_pixels)}  # also where a later frame is larger
        convert = VideoReformatter()  # one for all frames: a new one for each costs ten times the decoding
        start: float | None = None
        if span[0]:
            start = (container.start_time or 0) / av.time_base + span[0]
            container.seek(int(start * av.time_base))  # the last frame before it from which decoding can begin
        for index, frame in enumerate(container.decode(video)):
            if frame.is_corrupt:
                raise ItemError(f"is damaged at frame {index}")
            _check_pixels(frame.width, frame.height, options)
            seconds = frame.time if frame.time is not None else index / float(video.average_rate or options.fps)
            start = seconds if start is None else start
            if seconds - start > span[1] - span[0]:
                return
            if seconds >= start and due(seconds - start):
                picture = Image.fromarray(convert.reformat(frame, format="rgb24", threads=1).to_ndarray())
                yield _turn(_fit(picture, options), round(frame.rotation / 90), False)


def _check_pixels(width: int, height: int, options: ReadOptions) -> None:
    if width * height > options.max_pixels:
        raise ItemError(f"is {width} x {height} pixels, more than max_pixels ({options.max_pixels:,})")


def _turn(frame: np.ndarray, turns: int, mirror: bool) -> np.ndarray:
    """Mirror left to right, then turn counter-clockwise by quarter turns; (size, size, 3) -> the same."""
    return np.ascontiguousarray(np.rot90(frame[:, ::-1] if mirror else frame, turns))


def fitted(picture: Image.Image, options: ReadOptions) -> np.ndarray:
    """A picture as training reads it: turned as its EXIF mark says, on white, square. uint8 (size, size, 3)."""
    return _turn(_fit(picture, options), *_TURNS.get(_orientation(picture), (0, False)))


def _fit(picture: Image.Image, options: ReadOptions) -> np.ndarray:
    """A decoded picture of any mode and shape as uint8 RGB (size, size, 3)."""
    picture = _plain(picture)
    size, (width, height) = options.size, picture.size
    if options.fit == "crop":  # scaling only the cut-out keeps a 60,000 x 1 strip from becoming 3,840,000 x 64
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        shape, box = (size, size), (left, top, left + side, top + side)
    else:
        scale = size / max(width, height)
        shape, box = (max(1, round(width * scale)), max(1, round(height * scale))), (0, 0, width, height)
    picture = picture.resize(shape, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", shape, "white"), picture).convert("RGB")
    frame = np.asarray(picture)
    if shape == (size, size):
        return frame
    border = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
    square = np.empty((size, size, 3), np.uint8)
    square[:] = np.median(border, axis=0)
    top, left = (size - shape[1]) // 2, (size - shape[0]) // 2
    square[top : top + shape[1], left : left + shape[0]] = frame
    return square


def _plain(picture: Image.Image) -> Image.Image:
    """Any mode as 8-bit RGB, or RGBA where something may be transparent."""
    if picture.mode in ("RGB", "RGBA"):
        return picture.convert("RGBA") if picture.has_transparency_data else picture
    if picture.mode[0] in "IF":  # 16 and 32 bits a pixel: full scale is the smallest usual one that holds the picture
        values = np.nan_to_num(np.asarray(picture).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0).clip(0)
        scales = {"I": (255.0, 65535.0), "F": (1.0, 255.0, 65535.0)}.get(picture.mode, (65535.0,))
        scale = next((s for s in scales if values.max() <= s), values.max())
        picture = Image.fromarray((values * (255 / scale)).round().astype(np.uint8))
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
