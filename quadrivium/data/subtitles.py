"""Videos with subtitles beside them: every cue becomes a narrated clip, the frames of its time with its words.

``talk.mp4`` goes with ``talk.srt``, ``talk.vtt`` or, for a language, ``talk.en.srt``, ``talk.pt-BR.srt``. A video that has a caption
of its own keeps that and is read whole.
"""

from __future__ import annotations

import contextlib
import html
import math
import re
import unicodedata
from dataclasses import replace
from pathlib import Path

from quadrivium.data.sources import SUBTITLES, Item, Limits, ReadOptions, Source, _brief, _kind, _lines, _sound, some
from quadrivium.errors import DataError

_CUE = re.compile(r"\s*((?:\d+:)?\d{1,2}:\d{2}[.,]\d{1,3})\s*-->\s*((?:\d+:)?\d{1,2}:\d{2}[.,]\d{1,3})")
_LANGUAGE = re.compile(r"\.[a-z]{2,3}([-_][a-z0-9]{2,4})?", re.IGNORECASE)
_MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")


def narrate(source: Source, options: ReadOptions, limits: Limits) -> None:
    """Put narrated clips in the place of every video of a source that has subtitles and no caption."""
    items: list[Item] = []
    listed: dict[Path, dict[str, list[Path]]] = {}  # every folder once: some hold a hundred thousand videos
    spare: list[str] = []
    for item in source.items:
        files: list[Path] = []
        if item.kind == "video" and item.file is not None and not item.inside:
            if item.file.parent not in listed:
                listed[item.file.parent] = _subtitles(item.file.parent, spare)
            files = listed[item.file.parent].get(_stem(item.file), [])
        if not files or item.texts:
            items.append(item)
            continue
        cues: dict[tuple[float, float], list[str]] = {}
        for file in files:
            try:
                for begin, end, text in read_cues(file, options):
                    cues.setdefault((begin, end), []).append(_brief(text, limits))
            except DataError as error:
                source.refuse(file.name, error)
        for number, (span, texts) in enumerate(sorted(cues.items()), 1):
            items.append(replace(item, key=f"{item.key}@{number}", texts=tuple(texts), span=span))
        if not cues:
            source.refuse(item.key, "its subtitles hold no cue; mend them, or take them away to read the video without")
    source.items[:] = items
    if spare:
        cure = "name them like their video, as talk.srt or talk.en.srt for talk.mp4"
        source.notes.append(f"left out {len(spare)} subtitles that belong to no video ({some(spare)}); {cure}")


def read_cues(file: Path, options: ReadOptions) -> list[tuple[float, float, str]]:
    """(first second, last second, words) of each cue of an .srt or .vtt file; a cue that repeats the one before lengthens it."""
    cues: list[tuple[float, float, str]] = []
    span: tuple[float, float] | None = None
    words: list[str] = []

    def close() -> None:
        text = " ".join(" ".join(words).split())
        if span is None or not text or not span[0] < span[1] < math.inf:
            return
        if cues and cues[-1][2] == text and span[0] - cues[-1][1] < 0.5:
            cues[-1] = (cues[-1][0], span[1], text)
        else:
            cues.append((*span, text))

    for _, line in _lines(file, options):
        match = _CUE.match(line)
        if match:
            close()
            span, words = (_seconds(match[1]), _seconds(match[2])), []
        elif not line.strip():
            close()
            span, words = None, []
        elif span is not None:
            words.append(html.unescape(_MARKUP.sub("", _sound(line))))
    close()
    return cues


def _seconds(stamp: str) -> float:
    total = 0.0
    for part in stamp.replace(",", ".").split(":"):
        total = 60 * total + float(part)
    return total


def _stem(path: Path) -> str:
    return unicodedata.normalize("NFC", path.stem)  # a Mac takes letters and accents apart


def _subtitles(folder: Path, spare: list[str]) -> dict[str, list[Path]]:
    """Files of subtitles in a folder, by the stem of the video that they belong to; names of those of no video go to ``spare``."""
    found: dict[str, list[Path]] = {}
    with contextlib.suppress(OSError):
        paths = sorted(folder.iterdir())
        videos = {_stem(p) for p in paths if _kind(p.name) == "video"}
        for path in (p for p in paths if p.suffix.lower() in SUBTITLES and not p.is_symlink()):
            stem = _stem(path)  # talk.part2.srt is not of talk.mp4, talk.en.srt is unless there is a talk.en.mp4
            if stem not in videos and _LANGUAGE.fullmatch(Path(stem).suffix):
                stem = Path(stem).stem
            if stem in videos:
                found.setdefault(stem, []).append(path)
            else:
                spare.append(path.name)
    return found
