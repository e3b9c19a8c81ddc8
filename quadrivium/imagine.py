"""Imagine: text -> first frame -> later frames -> text, inside the model.

    opening ids --read once--> cache --take--> samples x tries x { frame 1 } --v2t--> how well is the opening read off it?
        the best try of each sample --> frame 2 | ... --v2t--> text, or options to choose from

Drawing who is where from words is learnt long after reading it off a picture (docs/figures.md), so the model checks its own first
frames: it draws several and goes on from the one off which it reads best what it was told, as DALL-E chose among its pictures by
another model (Ramesh et al. 2021, arXiv 2102.12092). Reading alone prefers frames that look like what is often read, such as single
pictures, which no frame ever followed. So what the frame costs after the opening counts too: chosen is the frame that is
likeliest together with its being read so, p(frame | opening) p(opening | frame).
The first step is the route t2v of a clip, whose later frames see text and earlier frames alike (t2v and tv2v are one walk).
With ``forget`` the text is dropped after the first frame: what follows is the route v2v alone. The last step reads the
frames and no earlier text (v2t), so nothing but the picture carries what the answer rests on.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from quadrivium.evaluate import bits
from quadrivium.generate import Engine, Sampling, continuations
from quadrivium.model import Model
from quadrivium.sequence import frames, text

TRIES = 8  # first frames to choose from, where nothing is said


@dataclass(frozen=True)
class Imagining:
    """How clips are imagined before an answer is read off them."""

    samples: int = 8  # clips for each question
    # First frames drawn for a clip, at temperature 1; it goes on from the one off which the model reads best what it was told. 1: unchecked,
    # as it also is at temperature 0.
    tries: int = 1
    # What a first frame costs after the words counts too where one is chosen. Commands do so; grids that were begun without do not.
    jointly: bool = False
    frames: int = 0  # of a clip; 0: as many as the clips have that the run was trained on
    temperature: float = 0.7  # of what follows, and of first frames that are not chosen among
    top_p: float = 0.95  # draw from the most likely codes that hold this much probability
    forget: bool = False  # drop the text after the first frame
    seed: int = 0  # the same one imagines the same
    batch: int = 64  # first frames at a time

    def __post_init__(self) -> None:
        if self.samples < 1 or self.tries < 1 or self.frames < 0 or self.batch < 1:
            raise ValueError("imagining: samples, tries and batch are at least 1, frames is not negative (0: as in the data)")
        _ = self.sampling  # which checks the rest

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.seed)


AS_BELIEVED = Sampling(temperature=1.0, top_p=1.0)  # how first frames are drawn that are chosen among


def _generators(opening: np.ndarray, draws: Iterable[object], seed: int) -> list[torch.Generator]:
    """A generator for every draw, a sample or one of its tries: a function of the text, the draw and the seed, never of the place
    in a batch."""
    digests = (hashlib.sha256(f"{seed} {j} ".encode() + opening.astype(np.int64).tobytes()).digest() for j in draws)
    return [torch.Generator().manual_seed(int.from_bytes(d[:7], "little")) for d in digests]


@torch.inference_mode()
def imagine(
    model: Model,
    openings: Seq[np.ndarray],
    count: int,
    samples: int = 1,
    sampling: Sampling | None = None,
    batch: int = 64,
    forget: bool = False,
    tries: int = 1,
    jointly: bool = True,
    progress: bool = False,
) -> np.ndarray:
    """Draw ``samples`` clips of ``count`` frames for each opening, at most ``batch`` first frames at a time, or those of one clip.

    openings: ids ``[end, x_1, ..., x_n, end]`` of closed captions.
    tries: first frames of each clip, drawn as the model believes, of which it goes on from the one after which the opening costs least
        (v2t), with ``jointly`` together with what the frame costs after the opening (t2v). At temperature 0 there is nothing to
        choose among, and one.
    Returns codes (n, samples, F, R, C, G). Sample j of an opening is the same whatever else is drawn, up to tries that cost the opening alike.
    """
    sampling, config = sampling or Sampling(), model.config
    tries = tries if sampling.temperature else 1
    if not (config.rows and config.columns and config.codes):
        raise ValueError("this model was built without frames, so it imagines nothing")
    model.eval()
    per_frame = config.rows * config.columns + 1
    shape = (len(openings), samples, count, config.rows, config.columns, config.patch**2)
    found = np.empty(shape, np.int64)
    # Neighbours of nearly equal length waste no columns of the cache, and equal ones need no mask.
    order = sorted(range(len(openings)), key=lambda i: len(openings[i]))
    each = min(samples, max(batch // tries, 1))  # samples of an opening at once
    at_once = max(batch // (each * tries), 1)
    with tqdm(total=len(order) * samples, desc="imagine", unit="clip", leave=False, disable=not progress) as bar:
        for begin, sample in itertools.product(range(0, len(order), at_once), range(0, samples, each)):
            rows, some = order[begin : begin + at_once], range(sample, min(sample + each, samples))
            generators = [g for i in rows for g in _generators(openings[i], some, sampling.seed)]
            first = 1 if forget else count
            engine = Engine(model, [(text(openings[i]),) for i in rows], first * per_frame)
            engine.take(np.repeat(np.arange(len(rows)), len(some) * tries))
            clips = np.zeros((len(rows) * len(some), 0, *shape[3:]), np.int64)
            if tries > 1:
                of = np.repeat(rows, len(some) * tries)
                named = [f"{j}.{t}" for j in some for t in range(tries)]
                drawn = engine.frames(1, AS_BELIEVED, [g for i in rows for g in _generators(openings[i], named, sampling.seed)])
                cost = continuations(model, [(frames(frame),) for frame in drawn], [[openings[i]] for i in of])[0][:, 0]
                if jointly:
                    after = [(text(openings[i]), frames(frame, wanted=True)) for i, frame in zip(of, drawn, strict=True)]
                    cost = cost + bits(model, after) * np.log(2)
                best = np.arange(0, len(of), tries) + cost.reshape(-1, tries).argmin(axis=1)
                clips = drawn[best]
                if first > 1:
                    engine.take(best)
            if clips.shape[1] < first:
                clips = np.concatenate([clips, engine.frames(first - clips.shape[1], sampling, generators)], axis=1)
            if forget and count > 1:
                engine = Engine(model, [(frames(clip),) for clip in clips], (count - 1) * per_frame)
                clips = np.concatenate([clips, engine.frames(count - 1, sampling, generators)], axis=1)
            found[rows, some.start : some.stop] = clips.reshape(len(rows), len(some), *shape[2:])
            bar.update(len(rows) * len(some))
    return found
