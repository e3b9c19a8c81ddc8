"""The web page of a run: four routes to try, with the bits of every token as colours. Gradio draws it, `guard` surrounds it.

    serve(run, WebConfig())      until Ctrl-C; English at /, Japanese at /ja

One thread works for all visitors, in turn (`Desk`): who waits is told how many are before them, who leaves frees their
place, and between any two steps of the model the work may end. Pictures go to the browser inside the answers, so no file is
ever served; an upload is decoded in a process of its own (`data.decoding`), and its file is swept away after two minutes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import html
import io
import itertools
import json
import math
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from quadrivium.ask import frames_of
from quadrivium.checkpoint import Run
from quadrivium.data.decoding import Decoders
from quadrivium.data.sources import Item, Limits
from quadrivium.errors import ConfigError, ItemError, QuadriviumError, RunError, one_line
from quadrivium.evaluate import token_bits
from quadrivium.generate import Sampling
from quadrivium.guard import LOOPBACK, Guard, WebLimits
from quadrivium.library import draw
from quadrivium.pictures import enlarge
from quadrivium.samples import decode, dream, one_clip
from quadrivium.sequence import Sequence, group, ungroup
from quadrivium.words import ENGLISH, JAPANESE, Words

_CHARACTERS = 2000  # of a text that is given
_MOST = {"temperature": 2.0, "top_p": 1.0, "n": 8, "seed": 2**31 - 1, "max_ids": 300}
_TEXT_SCALE = 8.0  # bits of a text token where the colours end; of a visual one they end at half of what a guess costs
_PALETTE = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])  # viridis
_KEPT = 64  # uploads that are remembered, as codes and small frames
_LOOK = 0.3  # seconds between two looks at the work of a visitor


@dataclass(frozen=True)
class WebConfig:
    """Where the page is served, to whom, and what it allows."""

    host: str = "127.0.0.1"  # address to listen at; 0.0.0.0: every one of this machine
    port: int = 7860  # another one, if this is taken
    password: str = ""  # asked for by the browser; also taken from the environment, QUADRIVIUM_PASSWORD
    limits: WebLimits = field(default_factory=WebLimits)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port is {self.port}; it has to be below 65536")


# ---------------------------------------------------------------------------------------------------------------- work


class Full(Exception):
    """Too many wait already."""


class Overdue(Exception):
    """The work took longer than it may."""


class Left(Exception):
    """Nobody waits for the work any more."""


@dataclass(eq=False)
class Ticket:
    """One visitor's work: what there is to show of it, and whether it is still wanted."""

    shown: Any = None
    began: float | None = None
    left: bool = False


class Desk:
    """Work done in turn by a few threads, for visitors who may leave."""

    def __init__(self, limits: WebLimits, threads: int = 1) -> None:
        self.limits, self.pool = limits, ThreadPoolExecutor(threads)
        self.line: list[Ticket] = []
        self.here = threading.local()  # ``ticket``: that of the work which this thread does

    async def serve(self, work: Callable[[], Iterator[Any]]) -> AsyncGenerator[tuple[Ticket, int], None]:
        """News of the work until it is done: its ticket, and how many are before it. Raises what the work raises, and Full."""
        if len(self.line) > self.limits.waiting:
            raise Full
        ticket = Ticket()
        self.line.append(ticket)
        job = self.pool.submit(self._do, work, ticket)
        job.add_done_callback(lambda _: self.line.remove(ticket))
        try:
            last: Any = None
            for look in itertools.count():
                if job.done():
                    break
                news = 0 if ticket.began else self.line.index(ticket), ticket.shown
                if news != last or look % 4 == 0:  # telling costs the framework more than looking, and is how it sees who left
                    yield ticket, news[0]
                last = news
                await asyncio.sleep(_LOOK)
            job.result()
            yield ticket, 0
        finally:
            ticket.left = True
            job.cancel()

    def _do(self, work: Callable[[], Iterator[Any]], ticket: Ticket) -> None:
        ticket.began, self.here.ticket = time.monotonic(), ticket
        for ticket.shown in work():
            self.check()

    def check(self) -> None:
        """Called before every step of the model: ends work that nobody waits for, and what takes too long."""
        ticket = getattr(self.here, "ticket", None)
        if ticket is None or ticket.began is None:
            return
        if ticket.left:
            raise Left
        if time.monotonic() - ticket.began > self.limits.seconds:
            raise Overdue


@dataclass(frozen=True)
class Shown:
    """What the model can be shown: codes (F, R, C, G), the pixels (F, S, S, 3) they were made of, and a caption."""

    codes: np.ndarray
    frames: np.ndarray
    caption: str = ""


@dataclass(frozen=True)
class Examples:
    """Held-out things of the run's data: what to draw, clips, how a text begins."""

    captions: list[str] = field(default_factory=list)
    clips: list[Shown] = field(default_factory=list)
    beginnings: list[str] = field(default_factory=list)


def examples(run: Run, most: int = 4) -> Examples:
    """A few held-out items of each kind; none where the data is gone, or was never known."""
    found = Examples()
    try:
        mixture = run.mixture()
        for stream in mixture.held.values():
            for unit in list(mixture.held_units(stream, most))[:most]:
                sequence = mixture.sequence(stream, unit)
                written = [run.text.decode(s.data) for s in sequence if s.modality == "text"]
                shown = [s.data for s in sequence if s.modality == "frames"]
                if stream.route == "t2v":
                    found.captions.append(written[0])
                elif stream.route == "t2t" and int(sequence[0].data[0]) == run.text.end:
                    found.beginnings.append(_half(written[0]))
                elif stream.route in ("v2t", "v2v") and shown:
                    codes = np.concatenate(shown)
                    found.clips.append(Shown(codes, decode(run, codes), "".join(written)))
    except (QuadriviumError, OSError, KeyError, TypeError, ValueError):
        return Examples()
    described = sorted(found.clips, key=lambda c: (not c.caption, -len(c.codes)))
    return Examples(_spread(found.captions, most), _spread(described, most), _spread(found.beginnings, most))


def _spread(found: list[Any], most: int) -> list[Any]:
    return found[:: max(1, len(found) // most)][:most]


def _half(text: str) -> str:
    """How a text begins: about half of its first paragraph, up to a space where it has any."""
    first = text.strip().split("\n\n")[0][:160]
    half = first[: max(1, len(first) // 2)]
    return half.rsplit(" ", 1)[0] if " " in half else half


class Player:
    """A run and its visitors: what each of the four routes does, as pieces of the page."""

    def __init__(self, run: Run, limits: WebLimits) -> None:
        self.run, self.limits = run, limits
        self.frames = frames_of(run) if run.visual is not None else 0
        self.examples = examples(run)
        self.desk, self.reading = Desk(limits), Desk(limits, threads=2)
        run.model.watch = self.desk.check
        options = one_clip(run)
        self.options = replace(options, max_pixels=min(options.max_pixels, 50_000_000))
        self.decoders = Decoders(self.options, Limits(seconds=10, memory=1 << 30))
        self.shown: OrderedDict[str, Shown] = OrderedDict()

    def close(self) -> None:
        """End the threads and the decoders."""
        for desk in (self.desk, self.reading):
            for ticket in desk.line:
                ticket.left = True
            desk.pool.shutdown(cancel_futures=True)
        self.decoders.__exit__(None, None, None)

    # Every method below is a generator of HTML: each piece takes the place of the one before.

    def see(self, words: Words, text: str, frames: float, *how: float) -> Iterator[str]:
        n, sampling = _settings(words, *how)
        clips = draw(self.run, "video", _given(words, text), [], n, self._count(words, frames), sampling)
        yield self._pictures(words, clips) + self._legends(words, frames=True)

    def read(self, words: Words, key: str, *how: float) -> Iterator[str]:
        n, sampling = _settings(words, *how)
        shown = self._find(words, key)
        told = draw(self.run, "text", None, [shown.codes], n, 0, sampling)
        written = f"<h4>{words.caption}</h4><p>{html.escape(shown.caption)}</p>" if shown.caption else ""
        yield self._texts(words, told) + written + self._legends(words, text=True)

    def carry_on(self, words: Words, key: str, text: str, frames: float, *how: float) -> Iterator[str]:
        n, sampling = _settings(words, *how)
        shown, count = self._find(words, key), self._count(words, frames)
        begun = max(1, min(len(shown.codes), self.frames - count))  # so that it ends where the clips do that the run knows
        said = _given(words, text) if (text or "").strip() else None
        clips = draw(self.run, "video", said, [shown.codes[:begun]], n, count, sampling)
        page = f"<h4>{words.given}</h4>{_strip(words, shown.frames[:begun])}<h4>{words.continued}</h4>{self._pictures(words, clips)}"
        later = shown.frames[begun : begun + count]
        if len(later):
            page += f"<h4>{words.really}</h4>{_strip(words, later)}"
        yield page + self._legends(words, frames=True)

    def answer(self, words: Words, text: str, imagine: bool, frames: float, *how: float) -> Iterator[str]:
        n, sampling = _settings(words, *how)
        text = _given(words, text)
        said = draw(self.run, "text", text, [], n, 0, sampling)
        page = f"<h4>{words.said}</h4>{self._texts(words, said, before=text)}"
        yield page + self._legends(words, text=True)
        if not imagine or self.run.visual is None:
            return
        clips, stories, captions = dream(self.run, text, n, self._count(words, frames), sampling)
        page += f"<h4>{words.imagined}</h4>"
        for clip, story, caption in zip(clips, stories, captions, strict=True):
            page += f'<section class="q-card">{self._pictures(words, [clip], card=False)}'
            page += f"<h5>{words.story}</h5>{self._texts(words, [story], before=text, card=False)}"
            page += f"<h5>{words.told}</h5>{self._texts(words, [caption], card=False)}</section>"
        yield page + self._legends(words, text=True, frames=True)

    def look(self, words: Words, path: str, folder: Path) -> Iterator[tuple[str, str]]:
        """An uploaded file -> its key and how it looks."""
        file = Path(path)
        if not file.resolve().is_relative_to(folder.resolve()) or file.is_symlink() or not file.is_file():
            raise ConfigError(words.forgotten)
        (found,) = self.decoders.read_all([Item("upload", file.name, "", "image", (), file)])
        if isinstance(found, ItemError):
            reason = str(found).removeprefix(f"{file}: ").removesuffix("; mend, replace or remove the file")
            raise ConfigError(words.bad_file.format(name=one_line(file.name, 60), reason=one_line(reason, 200)))
        assert self.run.visual is not None
        key = secrets.token_urlsafe(12)
        frames = found[0].copy()  # what came out of the decoder cannot be written to, and torch warns of that
        self.shown[key] = Shown(group(self.run.visual.encode(frames), self.run.patch), frames)
        while len(self.shown) > _KEPT:
            self.shown.popitem(last=False)
        yield key, f"<h4>{words.shown}</h4>{_strip(words, found[0])}"

    def _find(self, words: Words, key: str) -> Shown:
        if not key:
            raise ConfigError(words.nothing_shown)
        clips = self.examples.clips
        if key in map(str, range(len(clips))):
            return clips[int(key)]
        try:
            return self.shown[key]
        except KeyError:
            raise ConfigError(words.forgotten) from None

    def _count(self, words: Words, frames: float) -> int:
        return int(_within(words, frames, 1, most_frames(self.frames)))

    @property
    def _scale(self) -> float:
        """Bits of a visual token where the colours end."""
        return math.log2(max(self.run.model.config.codes, 2)) / 2

    def _pictures(self, words: Words, rows: list[Sequence], card: bool = True) -> str:
        """Sequences that want frames: each as a strip of frames over the maps of their bits."""
        page = ""
        for row, bits in zip(rows, token_bits(self.run.model, rows), strict=True):
            maps = ungroup(bits, self.run.patch)
            total = words.bits.format(bits=bits.sum()) + (
                f" · {words.per_frame.format(bits=bits.sum() / len(bits))}" if len(bits) > 1 else ""
            )
            strip = _strip(words, decode(self.run, row[-1].data), maps, self._scale)
            page += f'<section class="q-card">{strip}<p class="q-sum">{total}</p></section>' if card else strip
        return page

    def _texts(self, words: Words, rows: list[Sequence], before: str = "", card: bool = True) -> str:
        """Sequences that want text: each with a line under every token, as dear as it was."""
        page = ""
        for row, bits in zip(rows, token_bits(self.run.model, rows), strict=True):
            ids = row[-1].data[1:]
            marked = "".join(_marked(words, piece, cost) for piece, cost in pieces(self.run.text, ids, bits, before))
            size = int(self.run.text.id_bytes[ids].sum())
            total = words.bits.format(bits=bits.sum()) + (f" · {words.per_byte.format(bits=bits.sum() / size)}" if size else "")
            line = (
                f'<p class="q-text"><span class="q-before">{html.escape(before)}</span>{marked}</p><p class="q-sum">{total}</p>'
            )
            page += f'<section class="q-card">{line}</section>' if card else line
        return page

    def _legends(self, words: Words, text: bool = False, frames: bool = False) -> str:
        ends = [(words.legend_text, f"{_TEXT_SCALE:g}+")] if text else []
        if frames:
            ends.append((words.legend_frames, f"{self._scale:.3g}+"))
        stops = ", ".join(_hex(i / 4) for i in range(5))
        bar = f'<i class="q-bar" style="background:linear-gradient(90deg, {stops})"></i>'
        lines = "".join(f"<p>{what} <span>0 {bar} {end}</span></p>" for what, end in ends)
        return f'<div class="q-legend">{lines}</div>'


def most_frames(usual: int) -> int:
    """Frames that a visitor may ask for: twice as many as the run's clips have."""
    return max(4, 2 * usual)


def _given(words: Words, text: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(words.no_text)
    if len(text) > _CHARACTERS:
        raise ConfigError(words.long_text.format(most=_CHARACTERS))
    return text.encode("utf-8", "replace").decode()  # half of a pair of surrogates is no letter


def _within(words: Words, value: float, least: float, most: float) -> float:
    if not (isinstance(value, int | float) and least <= value <= most):  # what is not a number is within nothing
        raise ConfigError(words.bad_value)
    return value


def _settings(words: Words, temperature: float, top_p: float, n: float, seed: float, max_ids: float) -> tuple[int, Sampling]:
    given = {"temperature": temperature, "top_p": top_p, "n": n, "seed": seed, "max_ids": max_ids}
    least = {"temperature": 0, "top_p": 0.05, "n": 1, "seed": 0, "max_ids": 1}
    t, p, n, seed, ids = (_within(words, given[k], least[k], _MOST[k]) for k in given)
    return int(n), Sampling(t, p, int(seed), int(ids))


# ---------------------------------------------------------------------------------------------------------------- looks


def pieces(text: Any, ids: np.ndarray, bits: np.ndarray, prompt: str = "") -> list[tuple[str, float]]:
    """Ids (n,) that go on from ``prompt`` and their bits (n,) -> letters and what they cost. Ids that are parts of one letter are one
    piece, and what leaves no letters, such as the end mark, is an empty piece."""
    found: list[tuple[str, float]] = []
    begun = text.encode(prompt).tolist()
    before, cost = text.decode(begun), 0.0
    for k in range(len(ids)):
        after, cost = text.decode([*begun, *ids[: k + 1]]), cost + float(bits[k])
        if after.endswith("\ufffd") and k + 1 < len(ids):
            continue  # a letter that is not whole yet
        found.append((after[len(before) :], cost))
        before, cost = after, 0.0
    return found


def colours(values: np.ndarray) -> np.ndarray:
    """Numbers, 0 to 1 and clipped there, -> colours uint8 (..., 3), dark to bright."""
    at = np.clip(values, 0, 1) * (len(_PALETTE) - 1)
    low = np.minimum(at.astype(int), len(_PALETTE) - 2)
    part = (at - low)[..., None]
    return np.round(_PALETTE[low] * (1 - part) + _PALETTE[low + 1] * part).astype(np.uint8)


def _hex(value: float) -> str:
    return "#" + bytes(colours(np.array(value))).hex()


def _marked(words: Words, piece: str, cost: float) -> str:
    shown = html.escape(piece) if piece else f'<small aria-label="{words.end}">■</small>'
    return f'<span class="q-token" style="--q:{_hex(cost / _TEXT_SCALE)}" title="{cost:.1f}">{shown}</span>'


def _image(frames: np.ndarray, name: str, kind: str) -> str:
    """One picture, or several as an endless animation, within the page itself."""
    out = io.BytesIO()
    first, *later = [enlarge(Image.fromarray(f), 2 if len(f) < 48 else 1) for f in frames]
    if later:
        first.save(out, "WEBP", lossless=True, save_all=True, append_images=later, duration=400, loop=0)
    else:
        first.save(out, "PNG")
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img class="{kind}" alt="{html.escape(name)}" src="data:image/{"webp" if later else "png"};base64,{data}">'


def _strip(words: Words, frames: np.ndarray, bits: np.ndarray | None = None, scale: float = 1.0) -> str:
    """Frames side by side, bits (F, R, C) as maps under them; before several ones, the same moving."""
    moving = f'<figure class="q-moving">{_image(frames, "▶", "q-frame")}<figcaption>▶</figcaption></figure>'
    page = moving if len(frames) > 1 else ""
    for i, frame in enumerate(frames):
        below = ""
        if bits is not None:
            cost = words.bits.format(bits=bits[i].sum())
            below = f"{_image(colours(bits[i] / scale)[None], cost, 'q-map')}<figcaption>{cost}</figcaption>"
        page += f"<figure>{_image(frame[None], f'{i + 1}', 'q-frame')}{below}</figure>"
    return f'<div class="q-strip">{page}</div>'


_CSS = """
.gradio-container {max-width: 60rem !important; margin: 0 auto !important}
.q-strip {display: flex; flex-wrap: wrap; gap: .5rem; align-items: flex-start; margin: .25rem 0}
.q-strip figure {margin: 0; width: clamp(4.2rem, 21%, 8rem)}
.q-strip figcaption, .q-thumbs figcaption, .q-sum {font-size: .8rem; opacity: .8; margin: .1rem 0; text-align: center}
.q-sum {text-align: left}
.q-frame, .q-map {display: block; width: 100%; image-rendering: pixelated; border-radius: .2rem; margin: 0 0 .2rem}
.q-thumbs {display: flex; flex-wrap: wrap; gap: .5rem}
.q-thumbs figure {margin: 0; width: 4.2rem}
@media (max-width: 640px) {.gradio-container .main {padding: .75rem !important}}
.q-card {border-top: 1px solid var(--border-color-primary); padding: .6rem 0}
.q-text {white-space: pre-wrap; overflow-wrap: anywhere; line-height: 2; font-size: 1.05rem; margin: 0}
.q-token {border-bottom: .3em solid var(--q)}
.q-before {opacity: .65}
.q-legend {font-size: .8rem; border-top: 1px solid var(--border-color-primary); padding-top: .4rem; margin-top: .4rem}
.q-legend p {margin: .2rem 0} .q-legend span {white-space: nowrap}
.q-bar {display: inline-block; width: 7rem; height: .7em; border-radius: .2em}
.q-alert {border-left: .3rem solid #d9480f; padding: .3rem .6rem; margin: .2rem 0}
.q-status {min-height: 1.4em; margin: .2rem 0}
.q-page h4 {margin: .8rem 0 .2rem; font-weight: 600} .q-page h5 {margin: .5rem 0 0; font-size: .85rem; opacity: .8}
.q-example {white-space: normal !important; text-align: left !important; justify-content: flex-start !important; height: auto !important; font-weight: 400 !important}
"""


def _alert(sentence: str) -> str:
    return f'<p class="q-alert" role="alert">{html.escape(sentence)}</p>'


def _status(sentence: str) -> str:
    return f'<p class="q-status" role="status">{html.escape(sentence)}</p>'


# ---------------------------------------------------------------------------------------------------------------- page


def _build(player: Player, folder: Path) -> Any:
    """The page in both languages, as gradio's Blocks."""
    import gradio as gr

    async def news(desk: Desk, words: Words, work: Callable[[], Iterator[Any]]) -> AsyncGenerator[tuple[str, Any], None]:
        """What to say and what to show, again and again until the work is done."""
        shown: Any = gr.skip()  # what stood there stays until there is something new
        try:
            async with aclosing(desk.serve(work)) as told:
                async for ticket, before in told:
                    shown = shown if ticket.shown is None else ticket.shown
                    seconds = 0.0 if ticket.began is None else time.monotonic() - ticket.began
                    say = words.waiting.format(before=before) if before else words.working.format(seconds=seconds)
                    yield _status(say), shown
            yield "" if desk is player.reading else _status(words.done.format(seconds=seconds)), shown
        except Full:
            yield _alert(words.full), shown
        except (Overdue, Left):
            yield _alert(words.too_long.format(seconds=player.limits.seconds)), shown
        except QuadriviumError as error:
            yield _alert(str(error)), shown
        except Exception:
            traceback.print_exc()
            yield _alert(words.failed), shown

    def page(words: Words) -> None:
        name = html.escape(player.run.folder.resolve().name)
        size = sum(p.numel() for p in player.run.model.parameters()) / 1e6
        gr.Navbar(main_page_name="English")
        about = words.about.format(name=name, step=player.run.step, size=size)
        gr.HTML(f'<div class="q-page"><h2>{words.title}</h2><p>{about}</p></div>')
        how: list[Any] = []
        sees, usual, most = player.run.visual is not None, player.frames, most_frames(player.frames)

        def event(
            trigger: Any, route: Callable[..., Iterator[str]], inputs: list[Any], status: Any, result: Any, stop: Any
        ) -> None:
            async def ask(*values: Any) -> AsyncGenerator[tuple[str, Any], None]:
                async with aclosing(news(player.desk, words, lambda: route(words, *values))) as told:
                    async for each in told:
                        yield each

            begun = trigger(
                ask,
                [*inputs, *how],
                [status, result],
                show_progress="hidden",
                concurrency_limit=None,
                api_visibility="private",
            )
            stop.click(None, None, status, js=f"() => {json.dumps(_status(words.stopped))}", cancels=[begun])

        def end(go: str, route: Callable[..., Iterator[str]], inputs: list[Any]) -> Callable[[], None]:
            """Buttons and the place of the answer; what they do is tied when the sliders are there."""
            with gr.Row():
                button, stop = gr.Button(go, variant="primary", min_width=120), gr.Button(words.stop, min_width=120)
            status, result = gr.HTML(_status("")), gr.HTML(elem_classes="q-page")
            return lambda: event(button.click, route, inputs, status, result, stop)

        def text_box(label: str, hint: str, found: list[str]) -> Any:
            box = gr.Textbox(label=label, placeholder=hint, lines=2, max_length=_CHARACTERS)
            if found:
                with gr.Accordion(words.examples, open=False):
                    for example in found:
                        short = example if len(example) < 90 else f"{example[:88]}…"
                        button = gr.Button(short, size="sm", elem_classes="q-example")
                        button.click(None, None, box, js=f"() => {json.dumps(example)}")
            return box

        def to_show() -> Any:
            """A picture or video, uploaded or one of the examples; returns what holds its key."""
            key, clips = gr.Textbox(visible="hidden", label="key"), player.examples.clips
            seconds = usual / player.options.fps
            limits = {"megabytes": player.limits.upload_bytes / 1e6, "size": player.options.size}
            upload = gr.UploadButton(words.upload)
            gr.HTML(f'<p class="q-sum">{words.upload_help.format(frames=usual, seconds=seconds, **limits)}</p>')
            picked = None
            if clips:
                names = [words.held_out.format(number=i + 1) for i in range(len(clips))]
                with gr.Accordion(words.examples, open=True):
                    shown = "".join(
                        f"<figure>{_image(clip.frames, name, 'q-frame')}<figcaption>{name}</figcaption></figure>"
                        for clip, name in zip(clips, names, strict=True)
                    )
                    gr.HTML(f'<div class="q-thumbs">{shown}</div>')
                    picked = gr.Radio([(name, str(i)) for i, name in enumerate(names)], show_label=False, label=words.examples)
            status, preview = gr.HTML(), gr.HTML(elem_classes="q-page")

            # Both ways to choose forget what was chosen by the other, and the button its file, so that each can be taken again.
            choices = [upload] if picked is None else [upload, picked]

            async def taken(path: str) -> AsyncGenerator[tuple[Any, ...], None]:
                async with aclosing(news(player.reading, words, lambda: player.look(words, path, folder))) as told:
                    async for said, found in told:
                        new = found if isinstance(found, tuple) else (gr.skip(), gr.skip())
                        yield said, *new, *(None for _ in choices)

            upload.upload(
                taken,
                upload,
                [status, key, preview, *choices],
                show_progress="hidden",
                concurrency_limit=None,
                api_visibility="private",
            )
            if picked is not None:
                looks = [f"<h4>{words.shown}</h4>{_strip(words, clip.frames)}" for clip in clips]
                choose = f"(i) => [i, {json.dumps(looks)}[Number(i)], '']"
                picked.input(None, picked, [key, preview, status], js=choose)
            return key

        def frames_slider(label: str, value: int, info: str = "") -> Any:
            return gr.Slider(1, most, value, step=1, label=label, info=info or None)

        ties: list[Callable[[], None]] = []
        with gr.Tabs():
            if sees:
                with gr.Tab(words.see):
                    gr.HTML(f"<p>{words.see_help}</p>")
                    box = text_box(words.description, words.description_hint, player.examples.captions)
                    count = frames_slider(words.frames, usual, words.frames_help)
                    ties.append(end(words.go_see, player.see, [box, count]))
                with gr.Tab(words.read):
                    gr.HTML(f"<p>{words.read_help}</p>")
                    ties.append(end(words.go_read, player.read, [to_show()]))
                with gr.Tab(words.carry_on):
                    gr.HTML(f"<p>{words.carry_on_help}</p>")
                    key = to_show()
                    box = text_box(words.words_too, words.description_hint, [])
                    count = frames_slider(words.later_frames, max(1, usual - 1))
                    ties.append(end(words.go_carry_on, player.carry_on, [key, box, count]))
            with gr.Tab(words.answer):
                gr.HTML(f"<p>{words.answer_help if sees else words.no_sight}</p>")
                found = [*player.examples.captions[:2], *player.examples.beginnings[:2]] if sees else player.examples.beginnings
                box = text_box(words.beginning, words.beginning_hint, found)
                imagine = gr.Checkbox(sees, label=words.imagine, visible=sees)
                count = gr.Slider(1, most, max(usual, 1), step=1, label=words.frames, visible=sees)
                ties.append(end(words.go_answer, player.answer, [box, imagine, count]))
        with gr.Accordion(words.sampling, open=False):
            how += [
                gr.Slider(0, _MOST["temperature"], 0.7, step=0.05, label=words.temperature, info=words.temperature_help),
                gr.Slider(0.05, 1, 0.95, step=0.05, label=words.top_p, info=words.top_p_help),
                gr.Slider(1, _MOST["n"], 2, step=1, label=words.number),
                gr.Number(0, label=words.seed, precision=0, minimum=0, maximum=_MOST["seed"]),
                gr.Slider(1, _MOST["max_ids"], 100, step=1, label=words.length),
            ]
        for tie in ties:
            tie()
        demo.load(None, None, None, js=f"() => {{document.documentElement.lang = '{words.language}'}}")

    with gr.Blocks(title="Quadrivium", analytics_enabled=False) as demo:
        page(ENGLISH)
    with demo.route("日本語", "/ja"):
        page(JAPANESE)
    demo.state_session_capacity = 64  # what the framework remembers of a visitor, which nothing here needs
    return demo.queue(max_size=64, default_concurrency_limit=None, api_open=False)


def application(player: Player, config: WebConfig, folder: Path) -> Guard:
    """The page as an ASGI application; ``folder``, which is its own, takes the uploads until they are read."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder), "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "64"  # of 10,000 that the framework would remember
    try:
        import gradio as gr
        from fastapi import FastAPI
    except ImportError:
        raise RunError("the page needs gradio: pip install -c constraints.txt -e '.[play]'") from None
    blocks = _build(player, folder)
    fonts = ["system-ui", "Hiragino Sans", "Noto Sans JP", "Yu Gothic UI", "sans-serif"]
    theme = gr.themes.Default(
        font=[gr.themes.Font(f) for f in fonts], font_mono=[gr.themes.Font(f) for f in ("ui-monospace", "monospace")]
    )

    @contextlib.asynccontextmanager
    async def life(_: Any) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep(guard, blocks))
        try:
            yield
        finally:
            sweeping.cancel()
            player.close()

    with warnings.catch_warnings(action="ignore"):  # of a mode that is not asked for
        app = gr.mount_gradio_app(
            FastAPI(lifespan=life, docs_url=None, redoc_url=None, openapi_url=None),
            blocks,
            "/",
            footer_links=[],
            run_history=False,
            show_error=False,
            max_file_size=config.limits.upload_bytes,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            theme=theme,
            head=f"<style>{_CSS}</style>",  # as it stands; what is given as css is made to count inside the page alone
        )
    password = config.password or os.environ.get("QUADRIVIUM_PASSWORD", "")
    hosts = LOOPBACK if config.host in LOOPBACK else frozenset()
    guard = Guard(app, folder, config.limits, hosts, password)
    return guard


async def _sweep(guard: Guard, blocks: Any) -> None:
    """Forget, every few seconds, visitors who asked and do not listen, and uploads that have lain there long enough."""
    while True:
        await asyncio.sleep(10)
        queue = blocks._queue
        for session in guard.silent(60):
            await queue.clean_events(session_hash=session)
            queue.pending_messages_per_session.pop(session, None)
            queue.pending_event_ids_session.pop(session, None)
            blocks.pending_diff_streams.pop(session, None)
        blocks.upload_file_set.clear()
        guard.sweep(guard.limits.keep)


def serve(run: Run, config: WebConfig) -> None:
    """Serve the page until it is interrupted. Raises RunError where gradio is missing or the port is taken."""
    with tempfile.TemporaryDirectory(prefix="quadrivium-play-") as folder:
        guard = application(Player(run, config.limits), config, Path(folder).resolve())
        import uvicorn

        try:
            family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
            listening = socket.create_server((config.host, config.port), family=family, backlog=256)
        except OSError as error:
            raise RunError(
                f"{config.host}:{config.port} cannot be listened at ({error.strerror}); try another --port"
            ) from None
        host, port = listening.getsockname()[:2]
        if host not in LOOPBACK and not guard.password:
            print("whoever reaches this machine can use the page; --password asks them for one")
        print(f"http://{f'[{host}]' if ':' in host else host}:{port}  (Japanese: /ja; Ctrl-C ends it)", flush=True)
        settings = uvicorn.Config(
            guard, log_level="error", access_log=False, server_header=False, timeout_graceful_shutdown=2, ws="none"
        )
        sys.setswitchinterval(0.001)  # the model's thread lets those who serve have their turn more often
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves no uploads behind
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[listening])
