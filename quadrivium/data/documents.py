"""Documents in which text and pictures stand in order, and conversations about pictures: .jsonl or .json files.

    {"content": [{"image": "p1.png"}, {"text": "Once upon a time"}, {"image": "p2.png"}, ...], "story": "s1"}
    {"images": ["p1.png", null], "texts": [null, "Once upon a time"]}                                         as OBELICS
    {"text_list": ["Once ..."], "image_info": [{"image_name": "p1.png", "matched_text_index": 0}]}            as MMC4
    {"id": "7", "image": "p1.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, ...]}  as LLaVA

The text that follows a picture, up to the next one, is told of it; a last picture that nothing follows is told what stands
before it. Text before the first picture is a document of its own. What stands in one row stays on one side of the held-out
split, as does what is said about one picture. A conversation is one text, its turns a line each, read with its picture.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from quadrivium.data.sources import Item, Limits, ReadOptions, Source, _brief, _group, _kind, _lines, _locate, _sound, spelled
from quadrivium.errors import DataError, ItemError, one_line

_PLACEHOLDER = re.compile(r"[^\S\n]*<(image|video)>\n?")


def is_documents(file: Path, options: ReadOptions, limits: Limits) -> bool:
    """Whether one of the first objects in a .json or .jsonl file is such a document: the very first may be broken, or a comment.

    A .json file that cannot be read counts as one and is then refused by name; else its pictures would be read without their captions.
    """
    try:
        for row in islice((row for _, row in _read(file, options, limits) if isinstance(row, dict)), 8):
            lists = {k for k, v in row.items() if isinstance(v, list)}
            if lists & {"conversations", "content", "text_list"} or {"images", "texts"} <= lists:
                return True
    except DataError:
        return file.suffix == ".json"  # a .jsonl file is refused by whatever reads the folder
    return False


class _Together:
    """Rows that speak of one picture, directly or by way of others, are one group."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def first(self, name: str) -> str:
        while (parent := self.parent.setdefault(name, name)) != name:
            self.parent[name] = self.parent[parent]
            name = self.parent[name]
        return name

    def join(self, one: str, other: str) -> None:
        """The group of ``other`` becomes that of ``one``."""
        self.parent[self.first(other)] = self.first(one)


def list_documents(source: Source, files: list[Path], options: ReadOptions, limits: Limits) -> None:
    """Fill a source with the pictures and texts of document files, in their order."""
    together, begin = _Together(), len(source.items)
    for file in files:
        name = os.path.relpath(file, source.path)
        try:
            for number, row in _read(file, options, limits):
                key = f"{name}#{number}"
                try:
                    if not isinstance(row, dict):
                        raise ItemError(row if isinstance(row, str) else "is not a JSON object")
                    told = _conversation(row, limits) if isinstance(row.get("conversations"), list) else _told(row, limits)
                    media = [f"\0picture {_below(source, m)}" for m, _ in told if m]
                    about = media[0] if media and "conversations" in row else f"\0row {row.get('id') or key}"
                    for other in media:
                        together.join(about, other)
                    for part, (shown, text) in enumerate(told):
                        _add(source, file, f"{key}.{part}" if len(told) > 1 else key, _group(row, about), shown, text)
                except (ItemError, RecursionError) as error:
                    source.refuse(key, error)
        except DataError as error:
            source.refuse(name, error)
    for i, item in enumerate(source.items[begin:], begin):
        if item.group.startswith("\0"):  # and was not named by the row itself, in which it cannot stand
            source.items[i] = replace(item, group=together.first(item.group).partition(" ")[2])
    sizes = Counter(item.group for item in source.items[begin:])
    if sizes and (most := max(sizes.values())) > max(20, len(source.items[begin:]) / 5):
        share = most / len(source.items[begin:])
        source.notes.append(
            f"{share:.0%} of the items are one group (they share pictures), which is held out as a whole or not at all"
        )


def _below(source: Source, media: str) -> str:
    """Where a picture lies below the source's folder: as it is named, or in images."""
    here = spelled(source.path, media)
    return os.path.normpath(here if os.path.exists(source.path / here) else os.path.join("images", media))


def _add(source: Source, file: Path, key: str, group: str, media: str, text: str) -> None:
    texts = (text,) if text else ()
    if not media:
        source.items.append(Item(source.name, key, group, "text", texts, file))
        return
    kind = _kind(media)
    try:
        if kind is None:
            raise ItemError(f"{media!r:.60} names no picture or video")
        place = _locate(source.path, _below(source, media))
        source.items.append(Item(source.name, key, group, kind, texts, place))
    except ItemError as error:
        source.refuse(f"{key} ({media})", error)


def _conversation(row: dict[str, Any], limits: Limits) -> list[tuple[str, str]]:
    turns = []
    for turn in row["conversations"]:
        value = turn.get("value") if isinstance(turn, dict) else None
        if not isinstance(value, str):
            raise ItemError("a turn of the conversation has no text under value")
        turns.append(_PLACEHOLDER.sub("", _sound(value)).strip())
    text = _brief("\n".join(t for t in turns if t), limits)
    seen = row.get("image") or row.get("video") or []
    found = [str(m) for m in (seen if isinstance(seen, list) else [seen])]
    if not text and not found:
        raise ItemError("holds neither text nor picture")
    return [(media, text) for media in found] or [("", text)]


def _told(row: dict[str, Any], limits: Limits) -> list[tuple[str, str]]:
    """(picture, what is told of it) in order; an empty picture is text of its own."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for kind, value in _parts(row):
        if not isinstance(value, str):
            raise ItemError(f"a part is {value!r:.60}; {kind} is a string")
        if kind == "text":
            found[-1][1].append(_sound(value).strip())
        else:
            found.append((value, []))
    joined = [(media, _brief("\n".join(t for t in texts if t), limits)) for media, texts in found]
    if len(joined) > 1 and not joined[-1][1]:
        last = joined.pop()[0]
        before = joined[-1][1]
        joined.append((last, before))
        if len(joined) == 2:  # text, then its picture: no document beside
            joined.pop(0)
    return [(media, text) for media, text in joined if media or text]


def _parts(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(row.get("content"), list):
        for part in row["content"]:
            if not isinstance(part, dict) or len(part.keys() & {"text", "image", "video"}) != 1:
                raise ItemError('a part of content is neither {"text": ...} nor {"image": ...} nor {"video": ...}')
            yield next((k, part[k]) for k in ("text", "image", "video") if k in part)
    elif isinstance(row.get("text_list"), list):
        listed = row.get("image_info")
        info = [i for i in listed if isinstance(i, dict)] if isinstance(listed, list) else []
        if any(i.get("matched_text_index") not in range(len(row["text_list"])) for i in info):
            raise ItemError("image_info has a picture whose matched_text_index is that of no text in text_list")
        for index, text in enumerate(row["text_list"]):
            yield from (("image", i.get("image_name")) for i in info if i.get("matched_text_index") == index)
            yield "text", text
    elif isinstance(row.get("images"), list) and isinstance(row.get("texts"), list):
        if len(row["images"]) != len(row["texts"]):
            raise ItemError(f"has {len(row['images'])} images and {len(row['texts'])} texts; write null where one is missing")
        for image, text in zip(row["images"], row["texts"], strict=True):
            yield from ((kind, value) for kind, value in (("image", image), ("text", text)) if value is not None)
    else:
        raise ItemError("has none of conversations, content, text_list, or images with texts")


def _read(file: Path, options: ReadOptions, limits: Limits) -> Iterator[tuple[int, Any]]:
    """Numbered rows, from 1, of a .jsonl file, or of the list in a .json file; in the place of a row, why it is none."""
    if file.suffix.lower() == ".jsonl":
        for number, line in _lines(file, options):
            if len(line) > limits.row_bytes:
                yield number, f"is longer than limits.row_bytes ({limits.row_bytes:,}); split it or allow more"
            elif line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield number, f"is not JSON: {error}"
        return
    try:
        rows = json.loads("".join(line for _, line in _lines(file, options)))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{one_line(file)} is not JSON ({one_line(error, 120)}); mend it, or take it away") from None
    yield from enumerate(rows if isinstance(rows, list) else [rows], 1)
