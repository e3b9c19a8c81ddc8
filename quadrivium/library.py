"""Quadrivium as a library: a run, loaded, in a few calls; what `import quadrivium` offers.

A picture is a path, a PIL image or an array uint8 (H, W, 3); a video is a path or frames uint8 (F, H, W, 3). They are read as
the run's data was: turned, flattened on white, made square. Of a video file its first clip is read, of an array all of it. Shape letter: S side of a frame.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np
from PIL import Image

from quadrivium import evaluate
from quadrivium import sequence as seq
from quadrivium.ask import frames_of, read_options
from quadrivium.checkpoint import Run
from quadrivium.data.sources import fitted
from quadrivium.dist import device_of
from quadrivium.errors import ConfigError, one_line
from quadrivium.generate import Sampling, generate, opening
from quadrivium.imagine import TRIES
from quadrivium.samples import decode, dream, give, never, read, route_asked, write

Picture = str | PathLike[str] | Image.Image | np.ndarray
Video = str | PathLike[str] | np.ndarray


@dataclass(frozen=True)
class Imagined:
    """A clip that the model imagined, uint8 (F, S, S, 3); ``story``: the text, as it goes on after the clip was looked at;
    ``caption``: what the clip alone is called."""

    frames: np.ndarray
    story: str
    caption: str


class _Options(TypedDict, total=False):
    image: Picture | None
    video: Video | None
    n: int
    frames: int | None
    temperature: float
    top_p: float
    seed: int
    max_ids: int


def load(folder: str | PathLike[str], device: str = "auto") -> Quadrivium:
    """Load a folder that `quadrivium train` or `quadrivium export --full` wrote. ``device``: auto takes a GPU where there is one. Raises RunError, ConfigError."""
    _check("the path of a folder", str | PathLike, folder=folder)
    return Quadrivium(Run(Path(folder), device_of(device)))


def _check(what: str, kind: Any, **given: object) -> None:
    """Raises ConfigError where an argument is of another kind than it has to be."""
    for name, value in given.items():
        if not isinstance(value, kind):
            raise ConfigError(f"{name} is {one_line(repr(value), 100)}; it has to be {what}")


def draw(
    run: Run, want: str, text: str | None, shown: list[np.ndarray], n: int, frames: int, sampling: Sampling
) -> list[seq.Sequence]:
    """``n`` sequences: what is given (`give`), and after it text or ``frames`` frames, drawn and *wanted*."""
    given = give(run, want, text, shown)
    if want == "text":
        return write(run, [given] * n, sampling)
    made = generate(run.model, [given] * n, "frames", run.text.end, frames, sampling)
    return [(*given, seq.frames(codes, wanted=True)) for codes in made]


def _pictures(media: Any, kind: str) -> list[Image.Image]:
    """The frames of what is given as an image or a video in memory. Raises ConfigError for anything else."""
    if kind == "image" and isinstance(media, Image.Image):
        return [media]
    shape = "(H, W, 3)" if kind == "image" else "(F, H, W, 3), F at least 1"
    try:
        array = np.asarray(media)
    except ValueError:
        raise ConfigError(f"{kind} holds parts of several sizes; give a path or an array uint8 {shape}") from None
    if array.dtype != np.uint8 or array.ndim != (3 if kind == "image" else 4) or array.shape[-1] != 3 or not array.size:
        raise ConfigError(f"{kind} is {array.dtype} {array.shape}; give a path or an array uint8 {shape}")
    return [Image.fromarray(one) for one in (array[None] if kind == "image" else array)]


class Quadrivium:
    """A trained model: text and frames from text and frames. Made by `load`; raises ConfigError where pictures are asked of a model that
    has no eye, and warns (UserWarning) where it was never trained on the route that is asked for, and answers with noise."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @overload
    def generate(self, want: Literal["text"], text: str | None = ..., **options: Unpack[_Options]) -> list[str]: ...
    @overload
    def generate(self, want: Literal["image", "video"], text: str | None = ..., **options: Unpack[_Options]) -> np.ndarray: ...
    def generate(
        self,
        want: Literal["text", "image", "video"],
        text: str | None = None,
        image: Picture | None = None,
        video: Video | None = None,
        n: int = 1,
        frames: int | None = None,
        temperature: float = 1.0,
        top_p: float = 0.95,
        seed: int = 0,
        max_ids: int = 160,
    ) -> list[str] | np.ndarray:
        """Draw ``n`` texts, pictures or videos that follow what is given; nothing given is allowed.

        Text after text alone goes on from it, and comes without it. Returns n strings, pictures uint8 (n, S, S, 3), or videos
        uint8 (n, frames, S, S, 3), ``frames`` being as many as the run's clips have where it is not said.
        """
        _check("one string", str | None, text=text)
        _check("a whole number", Integral, n=n)
        _check("a whole number", Integral | None, frames=frames)
        if want not in ("text", "image", "video") or n < 1 or (frames is not None and frames < 1):
            raise ConfigError("want is text, image or video; n and frames are at least 1")
        shown = self._shown(image, video)
        if want != "text":
            self._check_sight()
        self._check_route(give(self._run, want, text, shown), want)
        count = (frames or frames_of(self._run)) if want == "video" else 1
        rows = draw(self._run, want, text, shown, n, count, self._sampling(temperature, top_p, seed, max_ids))
        if want == "text":
            return [self._run.text.continued(text or "", row[-1].data[1:]) for row in rows]
        clips = np.stack([decode(self._run, row[-1].data) for row in rows])
        return clips if want == "video" else clips[:, 0]

    def score(
        self,
        text: str | None = None,
        image: Picture | None = None,
        video: Video | None = None,
        given_text: str | None = None,
        given_image: Picture | None = None,
        given_video: Video | None = None,
    ) -> float:
        """Bits that one text, picture or video costs under the model, end of the text included, after what is given.

        A text after a text goes on from it, so give the space between them to one of the two (to neither, where the tokenizer spells words
        with a space of their own, as those of Llama 2 and Mistral do).
        """
        _check("one string", str | None, text=text, given_text=given_text)
        wanted = self._shown(image, video)
        if (text is not None) + len(wanted) != 1:
            raise ConfigError(
                "score one thing: text, image or video; what it follows is given_text, given_image or given_video"
            )
        shown = self._shown(given_image, given_video)
        want = "frames" if text is None else "text"
        given = give(self._run, want, given_text, shown)
        self._check_route(given, want)
        if text is None:
            last = seq.frames(wanted[0], wanted=True)
        else:
            end = self._run.text.end
            last = seq.text([opening(given, end), *self._run.text.encode(text), end], wanted=True)
        return float(evaluate.bits(self._run.model, [(*given, last)])[0])

    def imagine(
        self,
        text: str,
        n: int = 1,
        frames: int | None = None,
        forget: bool = False,
        temperature: float = 1.0,
        top_p: float = 0.95,
        seed: int = 0,
        max_ids: int = 160,
        tries: int = TRIES,
    ) -> list[Imagined]:
        """Text -> frames -> later frames -> text, ``n`` times. ``forget``: drop the words after the first frame. ``tries``: first frames
        drawn for each clip at temperature 1, which goes on from the one off which the model reads the text best; 1: unchecked."""
        self._check_sight()
        _check("one string", str, text=text)
        _check("a whole number", Integral, n=n, tries=tries)
        _check("a whole number", Integral | None, frames=frames)
        if n < 1 or tries < 1 or (frames is not None and frames < 1) or not text.strip():
            raise ConfigError("n, tries and frames are at least 1, and there is a text to imagine")
        run, sampling = self._run, self._sampling(temperature, top_p, seed, max_ids)
        self._check_route(give(run, "frames", text), "frames")
        drawn = dream(run, text, n, frames or frames_of(run), sampling, forget, tries=tries)
        return [
            Imagined(
                decode(run, clip[-1].data),
                text + run.text.continued(text, story[-1].data[1:]),
                run.text.decode(caption[-1].data[1:]),
            )
            for clip, story, caption in zip(*drawn, strict=True)
        ]

    def _sampling(self, temperature: float, top_p: float, seed: int, max_ids: int) -> Sampling:
        _check("a number", Real, temperature=temperature, top_p=top_p)
        _check("a whole number", Integral, seed=seed, max_ids=max_ids)
        try:
            return Sampling(float(temperature), float(top_p), int(seed), int(max_ids))
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def _check_route(self, given: seq.Sequence, want: str) -> None:
        if said := never(self._run, route_asked(given, want)):
            warnings.warn(said, stacklevel=3)

    def _check_sight(self) -> None:
        if self._run.visual is None:
            raise ConfigError(f"{self._run.folder} was trained on text alone; it neither reads nor draws pictures")

    def _shown(self, image: Picture | None, video: Video | None) -> list[np.ndarray]:
        """Codes (F, R, C, G) of what is shown."""
        if image is not None and video is not None:
            raise ConfigError("give an image or a video, not both: no route is trained on the two together")
        found = []
        for media, kind in ((image, "image"), (video, "video")):
            if media is None:
                continue
            self._check_sight()
            if isinstance(media, str | PathLike):
                found.append(read(self._run, Path(media), kind))
                continue
            options, visual = read_options(self._run), self._run.visual
            assert visual is not None
            pictures = _pictures(media, kind)
            codes = visual.encode(np.stack([fitted(picture, options) for picture in pictures]))
            found.append(seq.group(codes, self._run.patch))
        return found
