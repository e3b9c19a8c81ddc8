"""Contact sheets of held-out items: given | wanted | generated, one picture a route and one page with the texts."""

from __future__ import annotations

import base64
import html
import io
import sys
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from quadrivium.ask import frames_of, read_options
from quadrivium.checkpoint import Run, Trained
from quadrivium.data.mixture import Mixture
from quadrivium.data.shards import stable_hash
from quadrivium.data.sources import Item, ReadOptions, read_clips
from quadrivium.errors import ConfigError
from quadrivium.generate import Sampling, generate, opening
from quadrivium.imagine import TRIES, imagine
from quadrivium.pictures import Cell, save_gif, save_mp4, save_png, sheet
from quadrivium.sequence import ROUTES, Segment, Sequence, frames, group, route_of, text, ungroup

_NOTHING = "(nothing)"

HEADS = ("source", "given", "wanted", "generated")
SOBER = Sampling(temperature=0.9, top_p=0.95, max_ids=60)


def cells(run: Trained, segments: Sequence) -> list[Cell]:
    """Segments as text and pixels, for people to look at."""
    return [_cell(run, s) for s in segments]


def _cell(run: Trained, segment: Segment) -> Cell:
    if segment.modality == "text":
        return run.text.decode(segment.data)
    return decode(run, segment.data)


def draw(
    run: Trained, mixture: Mixture, each: int, sampling: Sampling, progress: bool = True
) -> Iterator[tuple[str, list[list[Cell]]]]:
    """Of every route, rows (source, given, wanted, generated) of ``each`` held-out items, always the same ones."""
    routes = sorted({s.route for s in mixture.held.values()})
    for route in tqdm(routes, desc="samples", unit="route", disable=not progress):
        streams = [s for s in mixture.held.values() if s.route == route]
        picked = [(s, u) for k in range(each) for s in streams for u in list(mixture.held_units(s, each))[k : k + 1]][:each]
        rows: list[list[Cell]] = []
        jobs: dict[tuple, list[tuple[int, Sequence]]] = {}
        for i, (stream, unit) in enumerate(picked):
            sequence = mixture.sequence(stream, unit)
            given = tuple(s for s in sequence if not s.wanted)
            wanted = next(s for s in sequence if s.wanted)
            if route == "t2t" and len(wanted.data) > 2:  # the first half of the window is the prompt
                half = max(2, len(wanted.data) // 2)
                given, wanted = (text(wanted.data[:half]),), text(wanted.data[half - 1 :], True)
            name = f"{stream.source.name}: {stream.source.key(int(stream.unit[unit, 0]))}"
            caption = " / ".join(c for c in cells(run, given) if isinstance(c, str)) or None
            shown = [c for c in cells(run, given) if not isinstance(c, str)]
            shown_text = wanted if wanted.modality == "frames" else text([*wanted.data[1:].tolist(), run.text.end])
            rows.append([f"{name}\n", (shown[0] if shown else caption), _cell(run, shown_text), None])
            if shown and caption:
                rows[-1][0] = f"{name} | {caption}"
            jobs.setdefault((wanted.modality, len(wanted.data) if wanted.modality == "frames" else 0), []).append((i, given))
        for (modality, count), job in jobs.items():
            # A batch is given something in every row, or in none.
            for part in ([j for j in job if j[1]], [j for j in job if not j[1]]):
                if part:
                    made = generate(run.model, [g for _, g in part], modality, run.text.end, count or 1, sampling)
                    for (i, _), ids in zip(part, made, strict=True):
                        rows[i][3] = run.text.decode(ids) if modality == "text" else decode(run, ids)
        yield route, rows


def sheet_of(route: str, rows: list[list[Cell]], step: int) -> Image.Image:
    """A route's rows as one picture."""
    return sheet(rows, HEADS, f"{route}: held-out items, step {step}")


def write_samples(
    run: Run, mixture: Mixture, out: Path, each: int = 8, sampling: Sampling = SOBER, progress: bool = True
) -> list[Path]:
    """Draw ``each`` held-out items a route, generate what they want, and write sheets, GIFs and ``index.html`` into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    written, page = [], []
    for route, rows in draw(run, mixture, each, sampling, progress):
        path = out / f"{route}.png"
        sheet_of(route, rows, run.step).save(path)
        written.append(path)
        for i, row in enumerate(rows):
            made_frames = row[3]
            if isinstance(made_frames, np.ndarray) and len(made_frames) > 1:
                save_gif(made_frames, out / f"{route}-{i}.gif", scale=3)
        page.append((route, rows))
    index = out / "index.html"
    index.write_text(_page(page, run.step), encoding="utf-8")
    return [*written, index]


def answer(
    run: Run,
    want: str,
    prompt: str | None,
    image: Path | None,
    video: Path | None,
    n: int,
    count: int,
    sampling: Sampling,
    out: Path,
    progress: bool = True,
) -> list[Path]:
    """What `quadrivium generate` does: read what is given, draw ``n`` samples, print text, write pictures and clips to ``out``."""
    if n < 1 or count < 1:
        raise ConfigError("--n and --frames have to be at least 1")
    if image and video:
        raise ConfigError("give --image or --video, not both: no route is trained on the two together")
    if run.visual is None and (want != "text" or image or video):
        raise ConfigError(f"{run.folder} was trained on text alone; it neither reads nor draws pictures")
    seen, kind = image or video, "image" if image else "video"
    given = give(run, want, prompt, [read(run, seen, kind)] if seen else [])
    total = count if want == "video" else 1
    route = route_asked(given, want)
    if said := never(run, route):
        print(f"note: {said}", file=sys.stderr)
    made = generate(
        run.model, [given] * n, "text" if want == "text" else "frames", run.text.end, total, sampling, progress=progress
    )
    if want == "text":
        for ids in made:
            print(f"{prompt or ''}{run.text.continued(prompt or '', ids)}" or _NOTHING)
            print("-" * 20)
        return []
    out.mkdir(parents=True, exist_ok=True)
    said = f"{prompt or ''} {seen.stem if seen else ''}"
    stem = _stem(run, route, said, sampling, prompt, kind, seen and seen.resolve(), n, total)
    clips = [decode(run, codes) for codes in made]
    written = []
    if total == 1:
        written.append(out / f"{stem}.png")
        save_png(np.concatenate(clips), written[0], scale=4)
    else:
        fps = read_options(run).fps
        for i, clip in enumerate(clips):
            for suffix, save in ((".gif", save_gif), (".mp4", save_mp4)):
                written.append(out / f"{stem}-{i}{suffix}")
                save(clip, written[-1], fps=fps, scale=4)
    shown = [c for c in cells(run, given) if not isinstance(c, str)]
    rows: list[list[Cell]] = [[prompt, shown[0] if shown else None, clip] for clip in clips]
    written.append(out / f"{stem}-sheet.png")
    sheet(rows, ("text", "frames given", "generated"), stem).save(written[-1])
    for path in written:
        print(path)
    return written


def route_asked(given: Sequence, want: str) -> str:
    """The route by which ``want`` follows what is given (`give`); a text's own beginning is no source."""
    if want == "text":
        return route_of((*(s for s in given if s.modality == "frames"), text([0, 0], True)))
    return route_of((*given, frames(np.zeros((1, 1, 1, 1)), True)))


def never(run: Run, route: str) -> str:
    """A sentence where a run was not trained on a route, which it then answers with noise; else empty."""
    learnt = run.config.get("routes", ROUTES)
    return "" if route in learnt else f"{run.folder} was trained on {', '.join(learnt)} and never on {route}"


def _stem(run: Run, what: str, given: str, sampling: Sampling, *asked: object) -> str:
    """A file's name that says what was given. It ends with a hash of all that shapes the file, so that what was asked otherwise
    does not take its place; the same call does."""
    said = "-".join("".join(c if c.isalnum() else " " for c in given).split())[:40].strip("-")
    whole = stable_hash(repr((run.folder.resolve(), run.step, what, sampling, asked)))
    return "-".join(filter(None, (what, said, f"seed{sampling.seed}", f"{whole:016x}"[:6])))


def give(run: Run, want: str, prompt: str | None, shown: Seq[np.ndarray] = ()) -> Sequence:
    """What is given, as the routes know it: a text and then frames (codes (F, R, C, G)); or, where text is wanted, frames and then a
    text that stays open, to be gone on with."""
    seen = tuple(frames(codes) for codes in shown)
    if want != "text":
        return seen if prompt is None else (text(run.text.document(prompt)), *seen)
    begun = run.text.encode(prompt or "")
    return (*seen, text([run.text.end, *begun])) if begun.size else seen


def write(run: Run, given: Seq[Sequence], sampling: Sampling, progress: bool = False) -> list[Sequence]:
    """What is given, each followed by a text, drawn and *wanted*.

    Text that goes on from text begins with the id before it; it ends with the end mark unless it was cut at its limit.
    """
    end = run.text.end
    made = generate(run.model, given, "text", end, sampling=sampling, progress=progress)
    whole = [
        [opening(g, end), *ids, *([end] if len(ids) < sampling.max_ids else [])] for g, ids in zip(given, made, strict=True)
    ]
    return [(*g, text(ids, wanted=True)) for g, ids in zip(given, whole, strict=True)]


def dream(
    run: Run,
    prompt: str,
    n: int,
    count: int,
    sampling: Sampling,
    forget: bool = False,
    words: Sampling | None = None,
    tries: int = TRIES,
    progress: bool = False,
) -> list[list[Sequence]]:
    """Text -> frames -> later frames -> text, as three lists of ``n`` sequences: the clips, how the text goes on after each,
    and what each alone is called. ``words``: how the texts are drawn, where that is not how the clips are. ``tries``: see
    `imagine`; a run that never learnt v2t cannot check what it draws, and has one."""
    document, tries = run.text.document(prompt), tries if "v2t" in run.config.get("routes", ROUTES) else 1
    clips = imagine(run.model, [document], count, n, sampling, forget=forget, tries=tries, progress=progress)[0]
    drawn: list[list[Sequence]] = [[(text(document), frames(clip, wanted=True)) for clip in clips]]
    for after in (give(run, "text", prompt), ()):
        drawn.append(write(run, [(frames(clip), *after) for clip in clips], words or sampling, progress))
    return drawn


def imagine_aloud(
    run: Run,
    prompt: str,
    n: int,
    count: int,
    sampling: Sampling,
    out: Path,
    forget: bool = False,
    tries: int = TRIES,
    progress: bool = True,
) -> list[Path]:
    """What `quadrivium generate --imagine` does: text -> frames -> later frames -> text, ``n`` times.

    Prints of each imagined clip how the text goes on after it was looked at, and what the clip is called in a caption; writes
    it to ``out`` as GIF and as a PNG strip. ``count``: frames; 0: as many as the run's clips have.
    """
    if n < 1 or tries < 1 or count < 0:
        raise ConfigError("--n and --tries have to be at least 1, and --frames not negative")
    if run.visual is None:
        raise ConfigError(f"{run.folder} was trained on text alone; it imagines nothing")
    if not prompt.strip():
        raise ConfigError("there is nothing to imagine; say it with --text")
    count = count or frames_of(run)
    sober = replace(sampling, temperature=min(sampling.temperature, 0.7))  # words are drawn more soberly than pictures
    drawn = dream(run, prompt, n, count, sampling, forget, sober, tries, progress)
    out.mkdir(parents=True, exist_ok=True)
    fps = read_options(run).fps
    written = []
    stem = _stem(run, "imagined", prompt, sampling, prompt, n, count, forget, tries)
    for i, (imagined, story, caption) in enumerate(zip(*drawn, strict=True)):
        clip = decode(run, imagined[-1].data)
        written += [out / f"{stem}-{i}.gif", out / f"{stem}-{i}.png"]
        save_gif(clip, written[-2], fps=fps, scale=4)
        save_png(clip, written[-1], scale=4)
        account, called = run.text.continued(prompt, story[-1].data[1:]), run.text.decode(caption[-1].data[1:])
        print(f"{prompt}{account}\n  the clip as a caption: {called or _NOTHING}")
        print(f"  {written[-2]}\n  {written[-1]}\n{'-' * 20}")
    return written


def one_clip(run: Run) -> ReadOptions:
    """How the run's data was read, for a single clip: as many frames as the run was trained on."""
    return replace(read_options(run), max_clips=1, clip_frames=max(frames_of(run), 1))


def read(run: Run, path: Path, kind: str) -> np.ndarray:
    """Codes (F, R, C, G) of a picture or of the first clip of a video, read as the training data was."""
    assert run.visual is not None
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    item = Item(source="given", key=path.name, group=path.name, kind=kind, texts=(), file=path)  # type: ignore[arg-type]
    return group(run.visual.encode(read_clips(item, one_clip(run))[0]), run.patch)


def decode(run: Trained, cells: np.ndarray) -> np.ndarray:
    """Codes (F, R, C, G) -> frames uint8 (F, S, S, 3)."""
    assert run.visual is not None
    return run.visual.decode(ungroup(cells, run.patch))


def _page(routes: list[tuple[str, list[list[Cell]]]], step: int) -> str:
    def show(cell: Cell) -> str:
        if cell is None:
            return ""
        if isinstance(cell, str):
            return html.escape(cell)
        tags = []
        for frame in cell:
            buffer = io.BytesIO()
            Image.fromarray(frame).save(buffer, "PNG")
            tags.append(f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">')
        return "".join(tags)

    parts = []
    for route, rows in routes:
        body = "".join("<tr>" + "".join(f"<td>{show(c)}</td>" for c in row) + "</tr>" for row in rows)
        heads = "".join(f"<th>{h}</th>" for h in HEADS)
        parts.append(f"<h2>{route}</h2><table><tr>{heads}</tr>{body}</table>")
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;margin:1.5em;color:#222;background:#fff}"
        "td,th{padding:.4em .8em;vertical-align:top;text-align:left;border-top:1px solid #ddd;max-width:24em;overflow-wrap:anywhere}"
        "img{width:96px;image-rendering:pixelated;margin:1px}"
        "@media (prefers-color-scheme:dark){body{color:#ddd;background:#181818}td,th{border-color:#444}}"
    )
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Samples, step {step}</title>'
    return f"{head}<style>{style}</style><h1>Held-out items at step {step}</h1>{''.join(parts)}</html>"
