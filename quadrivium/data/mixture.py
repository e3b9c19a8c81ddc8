"""Which sequences a step trains on: a pure function of (seed, step).

Every (route, source) pair is a *stream*: its units (a window of text, a captioned picture, a clip) in an order drawn
anew for every epoch, laid out as an endless tape measured in model positions:

    epoch 0, permuted by (seed, stream, 0)   epoch 1, permuted by (seed, stream, 1)
    |--unit--|-unit-|----unit----|--unit--|  |-unit-|----unit----|--unit--|--unit--|  ...
         ^ step s reads the units that begin in [phase + s * share, phase + (s + 1) * share)

A step's batch is what all streams yield. Shares are positions a step, so weights mean compute; every unit is read once an
epoch (of a stream that begins late, from then on); nothing has to be remembered to resume; and a stream that is taken away
moves no other stream.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from quadrivium.data.shards import Dataset, SourceData, stable_hash
from quadrivium.errors import ConfigError, DataError
from quadrivium.sequence import ROUTES, Sequence, frames, group, text


@dataclass(frozen=True)
class MixtureConfig:
    """What a step reads."""

    routes: tuple[str, ...] = ROUTES  # routes to train; those that the data cannot feed are left out
    positions: int = 4096  # positions a step when every route is trained; a route that is left out leaves its share unused
    context: int = 256  # ids of text in a window of a document, and at most in a caption
    frames: int = 0  # frames of a clip that are used, a window drawn anew each epoch; 0: all
    # compute of each route
    weights: tuple[tuple[str, float], ...] = (("t2t", 1.0), ("t2v", 1.0), ("v2t", 1.0), ("v2v", 1.0), ("tv2v", 0.5))
    balance: float = 0.5  # a source's share within a route goes with its size to this power: 1 by size, 0 equal
    source_weights: tuple[tuple[str, float], ...] = ()  # factors on that share, by SOURCE, or by ROUTE/SOURCE for one route
    # First step that reads a SOURCE, or ROUTE/SOURCE, so that the others come before it; what is not named is read from the first step on.
    # Its tape runs on meanwhile, so that nothing else moves.
    begin: tuple[tuple[str, int], ...] = ()
    # Share of captioned clips of which t2v wants the last frame alone. Left out frames count as read, so that an epoch stays an epoch.
    foresee: float = 0.0
    # Weight of a further objective of t2v on clips: the state of the caption's last word alone foretells the last frame, so that what
    # happens is worked out where text is.
    ahead: float = 0.0
    ahead_layer: int = 0  # after which layer of the model; 0: the last but one
    ahead_pictures: bool = False  # captions of single pictures foretell these too, and not only those of clips the last frame
    rendered: bool = False  # pages that `prepare --render` drew of documents are read too (v2v) and told what they say (v2t)
    captions: bool = False  # captions are read as texts too (t2t), without what they describe: a control of what pictures add
    text: float = 1.0  # share of the training documents that is read, drawn by seed; a smaller share lies inside a larger one
    # Frames that training reads, a control of what they add: as they are; those of another captioned item of the source with as
    # many frames; or noise, every code drawn from what stands at its place in the source's frames, the same in every epoch.
    scramble: Literal["none", "shuffled", "noise"] = "none"

    def __post_init__(self) -> None:
        for route in self.routes:
            if route not in ROUTES:
                raise ConfigError(f"route {route!r} is unknown; routes are {', '.join(ROUTES)}")
        if not self.routes:
            raise ConfigError(f"no route is chosen; routes are {', '.join(ROUTES)}")
        for name, low in (("positions", 1), ("context", 2), ("frames", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}; it has to be at least {low}")
        if self.positions > 1 << 24:
            raise ConfigError(f"positions is {self.positions}; a step holds at most {1 << 24:,}")
        for name, factor in self.source_weights:
            if not 0 <= factor < float("inf"):
                raise ConfigError(f"source weight {factor} of {name}: a factor that is not negative")
        if not 0 <= self.balance < float("inf"):
            raise ConfigError(f"balance is {self.balance}; it is a power, and not negative")
        for name, step in self.begin:
            if step < 0:
                raise ConfigError(f"begin is {step} for {name}; the first step is 0")
        if not 0 <= self.foresee <= 1:
            raise ConfigError(f"foresee is {self.foresee}; it is a share, from 0 to 1")
        if not 0 <= self.ahead < float("inf"):
            raise ConfigError(f"ahead is {self.ahead}; it is a weight, and not negative")
        if self.ahead_pictures and not self.ahead:
            raise ConfigError("ahead_pictures foretells nothing without a weight; set ahead too")
        if self.ahead_layer < 0:
            raise ConfigError(f"ahead_layer is {self.ahead_layer}; it is a layer from 1 on (0: the last but one)")
        if self.frames == 1:
            raise ConfigError("frames is 1; a clip has at least 2 frames (0: all)")
        if not 0 < self.text <= 1:
            raise ConfigError(f"text is {self.text}; the share of the documents that is read lies above 0 and is at most 1")
        if self.rendered and self.frames:
            raise ConfigError("frames would cut pages away from the text that they show; leave it at 0 with rendered")
        if self.rendered and self.text < 1:
            raise ConfigError("rendered shows all documents as pages, also those that a share of the text leaves out")
        named = [route for route, _ in self.weights]
        if bare := [route for route in self.routes if named.count(route) != 1]:
            raise ConfigError(
                f"weights names {', '.join(bare)} not once; give each route that is trained its weight, or choose routes"
            )
        if not any(weight for route, weight in self.weights if route in self.routes):
            raise ConfigError("weights are 0 for all routes; one at least is above it")
        for route, weight in self.weights:
            if route not in ROUTES or not 0 <= weight < float("inf"):
                raise ConfigError(
                    f"weight {weight} of route {route!r}: routes are {', '.join(ROUTES)}, weights are not negative"
                )


@dataclass
class Stream:
    """The units of one route from one source: ``unit`` (n, 2) item and part, ``positions`` (n,) what each costs."""

    route: str
    source: SourceData
    unit: np.ndarray
    positions: np.ndarray
    told: bool = False  # captions that are read as texts
    _epochs: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        beside = self.told and (self.source.frames == 0).any()  # which are a stream of their own
        return f"{self.route}/{self.source.name}{', captions' if beside else ''}"

    @property
    def length(self) -> int:
        """Positions of one epoch."""
        return int(self.positions.sum())

    def read(self, seed: int, low: int, high: int) -> list[tuple[int, int]]:
        """Units that begin in [low, high) of the tape, as (unit, epoch)."""
        found = []
        for epoch in range(low // self.length, -(-high // self.length)):
            order, begins = self._epoch(seed, epoch)
            first, last = np.searchsorted(begins, [low - epoch * self.length, high - epoch * self.length])
            found += [(int(u), epoch) for u in order[first:last]]
        return found

    def at(self, seed: int, place: int) -> tuple[int, int]:
        """The unit that ``place`` of the tape lies in, and its epoch."""
        epoch, place = divmod(place, self.length)
        order, begins = self._epoch(seed, epoch)
        return int(order[np.searchsorted(begins, place, side="right") - 1]), epoch

    def _epoch(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        # Two threads may ask: the one that makes the next batch, and one that names a bad batch's items.
        found = self._epochs.get(epoch)
        if found is None:
            order = np.random.default_rng([seed, stable_hash(self.name), epoch]).permutation(len(self.unit))
            costs = self.positions[order]
            found = order, np.cumsum(costs) - costs
            for old in sorted(self._epochs)[:-1]:  # a step straddles at most a few epochs; older ones are not asked for again
                self._epochs.pop(old, None)
            self._epochs[epoch] = found
        return found


def read_documents(source: SourceData, share: float, seed: int) -> np.ndarray:
    """Training documents (n,) of a source that make up ``share`` of their ids; at least one where there are any."""
    documents = np.flatnonzero((source.frames == 0) & ~source.held)
    if share == 1:
        return documents
    order = np.random.default_rng([seed, stable_hash(f"text/{source.name}")]).permutation(documents)
    spent = np.cumsum(source.text_ids[source.text_first[order]])
    return np.sort(order[: max(1, int(np.searchsorted(spent, share * (spent[-1] if len(spent) else 0), side="right")))])


def streams_of(data: Dataset, config: MixtureConfig, held: bool, patch: int = 1, seed: int = 0) -> list[Stream]:
    """Every (route, source) pair that the data can feed, over training items or held-out ones. ``seed`` draws a share of the text."""
    streams = []
    for source in data.sources:
        if source.rendered and not config.rendered:
            continue
        mine = np.flatnonzero(source.held == held)
        rows, columns = data.manifest["grid"]
        still = mine[source.frames[mine] == 1]
        clips = mine[source.frames[mine] > 1]
        documents = mine[source.frames[mine] == 0] if held else read_documents(source, config.text, seed)
        frame_cost = rows * columns // patch**2 + 1

        def per_text(items: np.ndarray, source: SourceData = source) -> tuple[np.ndarray, np.ndarray]:
            """Units (item, text) of captioned items and how many ids each caption has, both marks counted, cut to fit."""
            counts = source.texts[items]
            item = np.repeat(items, counts)
            which = np.arange(len(item)) - np.repeat(np.cumsum(counts) - counts, counts)
            ids = np.minimum(source.text_ids[source.text_first[item] + which] + 2, config.context + 1)
            return np.stack([item, which], axis=1), ids

        def cost(items: np.ndarray, source: SourceData = source, frame_cost: int = frame_cost) -> np.ndarray:
            used = source.frames[items]
            return (np.minimum(used, config.frames) if config.frames else used) * frame_cost

        def windows(items: np.ndarray, source: SourceData = source) -> tuple[np.ndarray, np.ndarray]:
            """Units (item, window) of documents; a document of n ids has n + 1 predictions."""
            predictions = source.text_ids[source.text_first[items]] + 1
            counts = -(-predictions // config.context)
            item = np.repeat(items, counts)
            which = np.arange(len(item)) - np.repeat(np.cumsum(counts) - counts, counts)
            return np.stack([item, which], axis=1), np.minimum(
                config.context, np.repeat(predictions, counts) - which * config.context
            )

        def alone(items: np.ndarray) -> np.ndarray:
            return np.stack([items, np.zeros_like(items)], axis=1)

        told, ids = per_text(np.concatenate([still, clips]))
        told_clips, clip_ids = per_text(clips)
        bare = np.concatenate([clips, still[source.texts[still] == 0]])
        made = {
            "t2t": windows(documents),
            "t2v": (told, ids - 1 + cost(told[:, 0])),
            "v2t": (told, ids - 1 + cost(told[:, 0])),
            "v2v": (alone(bare), cost(bare)),
            "tv2v": (told_clips, clip_ids - 1 + cost(told_clips[:, 0])),
        }
        read = ("v2t", "v2v") if source.rendered else ROUTES
        for route in read:
            if len(made[route][0]):
                streams.append(Stream(route, source, *made[route]))
            if route == "t2t" and config.captions and len(told):
                streams.append(Stream(route, source, told, ids - 1, told=True))
    return streams


def _captioned(source: SourceData) -> np.ndarray:
    """Training items (m,) that have frames and a caption."""
    return np.flatnonzero((source.frames > 0) & (source.texts > 0) & ~source.held)


def _marks(source: SourceData) -> dict[int, set[object]]:
    """Of every captioned training item, its group and its captions."""
    return {
        i: {int(source.group[i]), *(source.text(i, t).tobytes() for t in range(int(source.texts[i])))}
        for i in _captioned(source).tolist()
    }


def deal(costs: Seq[int], parts: int) -> list[int]:
    """To which of ``parts`` each thing goes, so that parts cost nearly the same: the dearest first, to the part with least."""
    owner, spent = [0] * len(costs), [0] * parts
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owner[i] = spent.index(min(spent))
        spent[owner[i]] += costs[i]
    return owner


class Mixture:
    """The training sequences of each step, and the held-out ones."""

    def __init__(self, data: Dataset, config: MixtureConfig, end: int, seed: int, patch: int = 1) -> None:
        """``end``: id of the text's end mark; ``patch``: side of the model's cells, in codes."""
        self.config, self.seed, self.end, self.patch = config, seed, end, patch
        every = streams_of(data, config, held=False, patch=patch, seed=seed)
        self.streams = [s for s in every if s.route in config.routes]
        if not self.streams:
            able = sorted({s.route for s in every}, key=ROUTES.index)
            raise DataError(f"{data.folder} cannot feed {', '.join(config.routes)}; it can feed {', '.join(able) or 'nothing'}")
        for option, named in (("source_weights", config.source_weights), ("begin", config.begin)):
            unknown = {name for name, _ in named} - {s.name for s in data.sources} - {s.name for s in every}
            if unknown:
                known = ", ".join(s.name for s in data.sources)
                raise ConfigError(f"{option} names {', '.join(sorted(unknown))}; the data has {known}")
        begin = dict(config.begin)
        self.held = {s.name: s for s in streams_of(data, config, held=True, patch=patch) if s.route in config.routes}
        whole = every if config.text == 1 else streams_of(data, replace(config, text=1.0), held=False, patch=patch)
        self.shares = self._shares(whole)  # less text is read more often, not more slowly
        read = [s for s in self.streams if self.shares[s.name]]
        if not read:
            raise ConfigError(
                f"weights are 0 for all that the data can feed ({', '.join(s.name for s in self.streams)}); raise one"
            )
        waits = {s.name: begin.get(s.name, begin.get(s.source.name, 0)) for s in self.streams}
        first = min(waits[s.name] for s in read)  # where what would come before is not read, nothing is waited for
        self.begin = {name: step - first for name, step in waits.items()}
        self._other: dict[str, np.ndarray] = {}  # source name -> item whose frames stand for each item's
        self._pool: dict[str, np.ndarray] = {}  # source name -> frames that noise is drawn from

    def _shares(self, every: list[Stream]) -> dict[str, float]:
        """Positions a step of each stream. Normalised over all the data can feed, trained or not: no stream moves another."""
        weights, factors = dict(self.config.weights), dict(self.config.source_weights)
        routes = sorted({s.route for s in every})  # a set has another order in every process, and so would a sum its last bit
        total = sum(weights.get(route, 0.0) for route in routes)
        shares = {}
        for route in routes:
            counted = [s for s in every if s.route == route and not s.told]
            sizes = {
                s.name: s.length**self.config.balance * factors.get(s.name, factors.get(s.source.name, 1.0)) for s in counted
            }
            for name, size in sizes.items():
                share = self.config.positions * weights.get(route, 0.0) / max(total, 1e-9)
                shares[name] = share * size / max(sum(sizes.values()), 1e-9)
        # Captions that are read as text leave the documents their share and get what their pictures would have had, and that of
        # pictures without captions in proportion: the compute of all routes.
        told = [s for s in every if s.told]
        for stream in told:
            shares[stream.name] = sum(shares[s.name] for s in every if s.source is stream.source and s.route != "t2t")
        given = sum(shares[s.name] for s in told)
        bare = sum(shares[s.name] for s in every if s.route != "t2t") - given
        if told and given and bare > 1e-6 * given:
            for stream in told:
                shares[stream.name] *= 1 + bare / given
        return shares

    def step(self, step: int, part: int = 0, parts: int = 1) -> list[Sequence]:
        """Sequences of one step, or of one of the ``parts`` that it is dealt into: a pure function of (seed, step).

        Parts hold nearly equal numbers of positions; those of a short step may be empty.
        """
        units = self.units(step)
        costs = [int(stream.positions[unit]) for stream, unit, _ in units]
        return [
            self.sequence(stream, unit, np.random.default_rng([self.seed, stable_hash(stream.name), epoch, unit]))
            for (stream, unit, epoch), owner in zip(units, deal(costs, parts), strict=True)
            if owner == part
        ]

    def units(self, step: int) -> list[tuple[Stream, int, int]]:
        """Stream, unit and epoch of every sequence of a step, in its order."""
        found = []
        for stream in self.streams:
            if step < self.begin[stream.name]:
                continue
            low, high = self._place(stream, step), self._place(stream, step + 1)
            found += [(stream, unit, epoch) for unit, epoch in stream.read(self.seed, low, high)]
        if not found:  # so few positions that no unit begins in them: the one that they lie in is read again
            stream = max((s for s in self.streams if step >= self.begin[s.name]), key=lambda s: self.shares[s.name])
            found = [(stream, *stream.at(self.seed, self._place(stream, step)))]
        return found

    def came_to(self, stream: Stream, steps: int) -> np.ndarray:
        """Units of a stream that the first so many steps read, each once."""
        low, high = self._place(stream, 0), self._place(stream, steps)
        if high // stream.length > -(-low // stream.length):  # a whole epoch lies between; parts of two leave something out
            return np.arange(len(stream.unit))
        return np.unique(np.array([unit for unit, _ in stream.read(self.seed, low, high)], np.int64))

    def _place(self, stream: Stream, step: int) -> int:
        """Where a step begins on a stream's tape. A phase of its own, so that streams with long units do not all fire at step 0."""
        phase = stable_hash(f"phase/{self.seed}/{stream.name}") % stream.length
        return phase + int(step * self.shares[stream.name])

    def sequence(self, stream: Stream, unit: int, rng: np.random.Generator | None = None) -> Sequence:
        """Build one unit. ``rng`` draws the window and the cut of a clip; without it, both are in the middle."""
        source, (item, part) = stream.source, map(int, stream.unit[unit])
        if stream.told:
            return (text(self._enclose(source.text(item, part))[: self.config.context + 1], wanted=True),)
        if stream.route == "t2t":
            whole = self._enclose(source.text(item, 0))
            begin = part * self.config.context
            return (text(whole[begin : begin + self.config.context + 1], wanted=True),)
        clip = group(self._frames(stream, item), self.patch)
        limit = self.config.frames or len(clip)
        if len(clip) > limit:
            begin = int(rng.integers(len(clip) - limit + 1)) if rng else (len(clip) - limit) // 2
            clip = clip[begin : begin + limit]
        # v2v may be given nothing, so that what frames cost without earlier ones is learned and not merely asked.
        low = 0 if stream.route == "v2v" else 1
        cut = 0 if len(clip) == 1 else int(rng.integers(low, len(clip))) if rng else len(clip) // 2
        shown = (frames(clip[:cut]),) if cut else ()
        if stream.route == "v2v":
            return (*shown, frames(clip[cut:], wanted=True))
        caption = self._enclose(source.text(item, part))[: self.config.context + 1]
        if stream.route == "t2v":
            last, foretold, first = len(clip) - 1, None, 0
            if rng is not None and self.config.ahead and (last or self.config.ahead_pictures):
                foretold = clip[last]
            if rng is not None and last:
                # Names have to carry what happens where no frame shows who is meant.
                first = last if rng.random() < self.config.foresee else 0
            return (text(caption, ahead=foretold), frames(clip[first:], wanted=True, skip=first))
        if stream.route == "v2t":
            return (frames(clip), text(caption, wanted=True))
        return (text(caption), *shown, frames(clip[cut:], wanted=True))

    def _frames(self, stream: Stream, item: int) -> np.ndarray:
        """Codes (F, R, C) that stand for an item's: its own, except while training on scrambled ones."""
        source, how = stream.source, self.config.scramble
        if how == "none" or source.held[item]:
            return source.codes(item)
        if how == "shuffled":
            shown = item if stream.route == "v2v" else int(self._others(source)[item])
            return source.codes(shown)[: source.frames[item]]
        if source.name not in self._pool:
            items = np.flatnonzero((source.frames > 0) & ~source.held)
            chosen = np.random.default_rng([self.seed, stable_hash(f"pool/{source.name}")]).permutation(items)[:1000]
            self._pool[source.name] = np.concatenate([source.codes(int(i)) for i in chosen])
        pool = self._pool[source.name]
        shape = (int(source.frames[item]), *pool.shape[1:])
        draw = np.random.default_rng([self.seed, stable_hash(f"noise/{source.name}"), item]).integers(len(pool), size=shape)
        return pool[draw, np.arange(shape[1])[:, None], np.arange(shape[2])]

    def _others(self, source: SourceData) -> np.ndarray:
        """For every captioned training item another one, of as many frames or more, that shares neither a caption nor the group with
        it; one that does, or itself, where none is found (see `still_paired`)."""
        if source.name not in self._other:
            other, rng = np.arange(len(source)), np.random.default_rng([self.seed, stable_hash(f"shuffled/{source.name}")])
            captioned, marks = _captioned(source), _marks(source)
            number: dict[bytes, int] = {}  # of each caption
            first = {i: number.setdefault(source.text(i, 0).tobytes(), len(number)) for i in captioned.tolist()}
            for length in np.unique(source.frames[captioned]):
                ring = rng.permutation(captioned[source.frames[captioned] == length])
                # Equal captions stand side by side, and each item gets the frames of one as far off as the longest row of them.
                alike = np.array([first[i] for i in ring.tolist()])
                _, row, size = np.unique(alike, return_inverse=True, return_counts=True)
                ring = ring[np.argsort(rng.permutation(len(size))[row], kind="stable")]
                other[ring] = np.roll(ring, size.max() if len(size) > 1 else 1)
            longest = captioned[np.argsort(-source.frames[captioned], kind="stable")]
            shorter = -source.frames[longest]
            for item in captioned.tolist():
                if not marks[item].isdisjoint(marks[int(other[item])]):
                    enough = longest[: np.searchsorted(shorter, -source.frames[item], side="right")]
                    drawn = rng.choice(enough, 64).tolist()
                    other[item] = next((o for o in drawn if marks[item].isdisjoint(marks[o])), other[item])
            self._other[source.name] = other
        return self._other[source.name]

    def still_paired(self) -> float:
        """Share of captioned training items that `shuffled` leaves frames of their own caption or group."""
        kept = every = 0
        for source in {s.source.name: s.source for s in self.streams if s.route == "v2t"}.values():
            other, marks, captioned = self._others(source), _marks(source), _captioned(source).tolist()
            kept += sum(not marks[i].isdisjoint(marks[int(other[i])]) for i in captioned)
            every += len(captioned)
        return kept / max(every, 1)

    def _enclose(self, ids: np.ndarray) -> np.ndarray:
        return np.concatenate([[self.end], ids, [self.end]]).astype(np.int64)

    def held_units(self, stream: Stream, limit: int) -> Seq[int]:
        """At most ``limit`` held-out units of a stream, drawn once and for all: a sorted folder's first items are no sample."""
        order = np.random.default_rng([stable_hash(stream.name)]).permutation(len(stream.unit))
        return [int(u) for u in order[:limit]]
