"""What `prepare` would read, before anything is written: counts, routes, samples with pictures, problems."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence as Seq
from pathlib import Path

import numpy as np

from quadrivium.data.decoding import Decoders
from quadrivium.data.shards import is_held, stable_hash
from quadrivium.data.sources import Item, Limits, ReadOptions, Source, longer
from quadrivium.errors import ItemError, one_line
from quadrivium.pictures import Cell, sheet
from quadrivium.prepare import PrepareConfig, lacking, one_sided
from quadrivium.sequence import ROUTES


def routes_of(items: Seq[Item]) -> list[str]:
    """Routes that a source can feed, as far as names tell; a video that turns out to be one frame feeds none of frames to frames."""
    feeds = {  # without captions, and with them
        "text": (("t2t",), ("t2t",)),
        "image": (("v2v",), ("t2v", "v2t")),
        "video": (("v2v",), ("t2v", "v2t", "v2v", "tv2v")),
        "rendered": ((), ("v2t", "v2v")),
    }
    found = {route for kind, told in {(i.kind, bool(i.texts)) for i in items} for route in feeds[kind][told]}
    return [r for r in ROUTES if r in found]


def look(
    sources: Seq[Source],
    options: ReadOptions,
    limits: Limits,
    held: float,
    samples: int = 5,
    max_bad: float = PrepareConfig.max_bad,
) -> tuple[str, list[tuple[Source, list[list[Cell]]]]]:
    """A report as text, and of each source ``samples`` rows (name, frames, texts), drawn once and for all."""
    head = f"{'source':<28}{'documents':>10}{'pictures':>10}{'videos':>8}{'captions':>10}{'groups':>8}{'held out':>10}{'problems':>10}  routes"
    lines, rows = [head, "-" * len(head)], []
    details = []
    bad = sum(len(s.problems) for s in sources)
    for source in sources:
        with Decoders(source.options or options, limits) as decoders:
            kinds = Counter(i.kind for i in source.items)
            groups = {i.group for i in source.items}
            told = sum(len(i.texts) for i in source.items if i.kind != "text")
            counts = (kinds["text"], kinds["image"], kinds["video"], told, len(groups))
            out = sum(is_held(g, held) for g in groups)
            order = np.random.default_rng([stable_hash(source.name)]).permutation(len(source.items))[:samples]
            chosen = [source.items[int(i)] for i in order]
            shown: list[list[Cell]] = []
            videos = cut = 0
            for item, clips in zip(chosen, decoders.read_all(chosen), strict=True):
                if isinstance(clips, ItemError):
                    details.append(f"{source.name}: problem: {clips}")
                    continue
                videos, cut = videos + (sum(map(len, clips)) > 1), cut + clips.cut
                frames = clips[0][:8] if clips else None
                shown.append([one_line(item.key, 80), frames, one_line(" | ".join(item.texts), 400)])
                many = f", {len(clips)} clips" if len(clips) > 1 else ""
                seen = f"{len(frames)} frames{many}" if frames is not None else "text"
                details.append(
                    f"{source.name}: {one_line(item.key, 60)} ({seen}): {one_line(' | '.join(item.texts), 100) or '-'}"
                )
            rows.append((source, shown))
            broken = len(chosen) - len(shown)  # of the samples
            bad += broken
            lines.append(
                f"{source.name:<28.28}{counts[0]:>10,}{counts[1]:>10,}{counts[2]:>8,}{counts[3]:>10,}{counts[4]:>8,}{out:>10,}"
                f"{len(source.problems) + broken:>10,}  {' '.join(routes_of(source.items))}"
            )
            if line := longer(cut, videos, source, options):
                details.append(f"{source.name}: note: of these samples, {line}")
            details += [f"{source.name}: note: {note}" for note in source.notes]
            details += [f"{source.name}: problem: {p.item}: {p.reason}" for p in source.problems[:5]]
            if len(source.problems) > 5:
                details.append(f"{source.name}: and {len(source.problems) - 5} more problems")
    taught, kept = (
        {route for s in sources for route in routes_of([i for i in s.items if is_held(i.group, held) == out])}
        for out in (False, True)
    )
    said = [lacking(taught | kept), one_sided(taught, kept)]
    total = sum(len(s.items) + len(s.problems) for s in sources)
    if bad > max_bad * total:
        said.append(
            f"prepare would stop: at least {bad} of {total} items cannot be used, more than {max_bad:.0%}; mend them or allow more with --max-bad"
        )
    return "\n".join([*lines, *filter(None, said), "", *details]), rows


def write_sheets(rows: Seq[tuple[Source, list[list[Cell]]]]) -> list[Path]:
    """The samples as pictures in a new temporary folder: nothing is written among the user's files. Those of an hour ago are deleted."""
    for old in Path(tempfile.gettempdir()).glob("quadrivium-inspect-*"):
        with contextlib.suppress(OSError):
            if old.stat().st_mtime < time.time() - 3600:
                shutil.rmtree(old, ignore_errors=True)  # another user's stay
    if not any(shown for _, shown in rows):
        return []
    folder, paths = Path(tempfile.mkdtemp(prefix="quadrivium-inspect-")), []
    for number, (source, shown) in enumerate(rows):
        if shown:
            path = folder / f"{number}.png"
            sheet(shown, ("item", "frames", "texts"), source.name).save(path)
            paths.append(path)
    return paths
