"""The one data type that passes between data, model, generation and evaluation, and the one place that names a route.

Shape letters used in this project:

    S  sequences in a batch        N  positions in a batch (all sequences end to end, no padding)
    F  frames of a clip            R, C  rows and columns of cells in a frame, G codes in a cell
    L  positions of one sequence   D  model width

A *segment* is a run of text ids or of frames, *given* (read, no loss) or *wanted* (predicted, loss).

Text segment: ids ``x_0 x_1 ... x_n``. The first is only read; every later one is predicted from all before it. A whole
document or caption is ``[end, x_1, ..., x_n, end]``; a window of a longer document starts with the id before it.
The last id is never read by what follows, so it costs no position: n positions, n predictions.

Frames segment: codes (F, R, C, G), G codes in each of R x C cells (`group` makes cells of the codes of neighbours; the
model reads a cell in one position and predicts its codes one after the other). Each frame is read as ``begin, c_1, ...,
c_RC`` in row order, and each position but the last predicts the next cell: RC + 1 positions, RC predictions a frame.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal

import numpy as np

Modality = Literal["text", "frames"]
LETTER: dict[Modality, str] = {"text": "t", "frames": "v"}
ROUTES = ("t2t", "t2v", "v2t", "v2v", "tv2v")  # what `prepare` can feed; `route_of` names any other mixture by its parts
# Arrays of `pack` that say what is wanted, of each modality: where, what, of which sequence; and what is foretold, from where.
WANTED = ("text_at", "text_want", "text_row", "codes_at", "codes_want", "codes_row", "ahead_at", "ahead_want")


@dataclass(frozen=True, eq=False)
class Segment:
    """A run of text ids, int (n,), or of frames, int codes (F, R, C, G); *wanted* or merely given."""

    modality: Modality
    data: np.ndarray
    wanted: bool
    skip: int = 0  # frames of the clip that come before these and are left out; they keep their place in time
    ahead: np.ndarray | None = None  # of a text: cells (R, C, G) of a frame that the state of its last position has to foretell

    def __post_init__(self) -> None:
        if self.modality == "text":
            if self.data.ndim != 1 or len(self.data) < 2:
                raise ValueError(f"a text segment is a run of at least two ids, not an array of shape {self.data.shape}")
        elif self.data.ndim != 4 or 0 in self.data.shape:
            raise ValueError(f"a frames segment has shape (frames, rows, columns, codes a cell), not {self.data.shape}")

    @property
    def positions(self) -> int:
        """Positions that the model computes for this segment."""
        if self.modality == "text":
            return len(self.data) - 1
        frames, rows, columns, _ = self.data.shape
        return frames * (rows * columns + 1)


Sequence = tuple[Segment, ...]


def text(ids: Iterable[int] | np.ndarray, wanted: bool = False, ahead: np.ndarray | None = None) -> Segment:
    """Text ids as a segment; see the head of this file for what the first and the last id mean."""
    return Segment("text", np.asarray(ids, dtype=np.int64), wanted, ahead=ahead)


def frames(codes: np.ndarray, wanted: bool = False, skip: int = 0) -> Segment:
    """Codes (F, R, C, G) as a segment; the clip's first ``skip`` frames are not in it."""
    return Segment("frames", np.asarray(codes, dtype=np.int64), wanted, skip)


def group(codes: np.ndarray, patch: int) -> np.ndarray:
    """Codes (F, R, C) -> cells of ``patch`` x ``patch`` codes: (F, R / patch, C / patch, patch^2), int64."""
    f, r, c = codes.shape
    cells = codes.reshape(f, r // patch, patch, c // patch, patch).transpose(0, 1, 3, 2, 4)
    return cells.reshape(f, r // patch, c // patch, patch * patch).astype(np.int64)


def ungroup(cells: np.ndarray, patch: int) -> np.ndarray:
    """The inverse of `group`."""
    f, r, c, _ = cells.shape
    return cells.reshape(f, r, c, patch, patch).transpose(0, 1, 3, 2, 4).reshape(f, r * patch, c * patch)


def route_of(sequence: Sequence) -> str:
    """Name the route of a sequence: modalities given, "2", modalities wanted, e.g. ``t2v`` or ``tv2v``.

    Where nothing is given, a thing is predicted from its own known part: plain text is ``t2t``, a bare picture ``v2v``.
    """
    given = {LETTER[s.modality] for s in sequence if not s.wanted}
    wanted = {LETTER[s.modality] for s in sequence if s.wanted}
    if not wanted:
        raise ValueError("a sequence in which nothing is wanted has no route")
    return "".join(sorted(given or wanted)) + "2" + "".join(sorted(wanted))


def positions_of(sequence: Sequence) -> int:
    """Positions that the model computes for a sequence."""
    return sum(s.positions for s in sequence)


def only_wanted(sequence: Sequence) -> Sequence:
    """The sequence without its source: what is wanted, given nothing."""
    return tuple(s for s in sequence if s.wanted)


def apart(sequence: Sequence) -> tuple[Sequence, Sequence]:
    """The text of a sequence, and its frames: two sequences, neither of which sees anything of the other."""
    return tuple(s for s in sequence if s.modality == "text"), tuple(s for s in sequence if s.modality == "frames")


@dataclass
class Walk:
    """Where segments are placed on the rotary axes (time, row, column), one after the other.

    A segment starts beyond everything before it, on every axis. Only frames that follow frames stay on the same rows and
    columns and go on in time, as if they were one clip, so that a clip is placed alike wherever it is cut.
    """

    end: int = 0  # beyond everything so far
    base: int = 0  # rows and columns of the clip that is open
    time: int = 0  # frames of the clip that is open; 0: none is

    def text(self, positions: int) -> int:
        """Pass over text; returns its first place."""
        start, self.end, self.time = self.end, self.end + positions, 0
        return start

    def frames(self, count: int, rows: int, columns: int, skip: int = 0) -> tuple[int, int]:
        """Pass over ``skip`` frames that are left out and ``count`` that are there; returns their base on rows and columns, and
        their first place in time."""
        if not self.time:
            self.base = self.end
        first, self.time = self.base + self.time + skip, self.time + skip + count
        self.end = self.base + max(self.time, rows, columns)
        return self.base, first

    def over(self, sequence: Sequence) -> Walk:
        """Pass over all segments of a sequence."""
        for s in sequence:
            if s.modality == "text":
                self.text(s.positions)
            else:
                count, rows, columns, _ = s.data.shape
                self.frames(count, rows, columns, s.skip)
        return self


def pack(sequences: Seq[Sequence]) -> dict[str, np.ndarray]:
    """Lay sequences end to end into the arrays that the model reads. Nothing is padded.

    Positions are kept *grouped*: all text positions of the batch first, then all visual ones, so that weights which
    the modalities do not share are applied to two contiguous blocks. ``order`` leads back to reading order.

    Returns (Nt text positions, Nv visual positions, N = Nt + Nv):
        text            (Nt,)    ids read
        codes           (Nv, G)  codes read; -1 is the begin mark of a frame
        slots           (Nv,)    how many cells of the frame are already known, 0..RC: where the next one belongs
        places          (N, 3)   rotary place on the axes (time, row, column), grouped order; equal axes on text
        order           (N,)     grouped index of the i-th position in reading order
        lengths         (S,)     positions of each sequence
        text_at, text_want, text_row      (Wt,)  text positions with a prediction, the id wanted, the sequence
        codes_at, codes_want, codes_row   (Wv,)  likewise for visual positions, ``codes_want`` (Wv, G);
                                                 ``codes_at`` counts from 0 within Nv
        ahead_at, ahead_want              (A,), (A, RC, G) text positions that foretell a frame, and its cells
    """
    ids: list[np.ndarray] = []
    codes: list[np.ndarray] = []
    slots: list[np.ndarray] = []
    text_places: list[np.ndarray] = []
    code_places: list[np.ndarray] = []
    is_text: list[np.ndarray] = []
    want: dict[str, list[np.ndarray]] = {name: [] for name in WANTED}
    n_text = n_codes = 0
    for row, sequence in enumerate(sequences):
        walk = Walk()
        for segment in sequence:
            n = segment.positions
            if segment.modality == "text":
                ids.append(segment.data[:-1])
                line = walk.text(n) + np.arange(n)
                text_places.append(np.stack([line] * 3, axis=1))
                if segment.wanted:
                    want["text_at"].append(np.arange(n_text, n_text + n))
                    want["text_want"].append(segment.data[1:])
                    want["text_row"].append(np.full(n, row))
                if segment.ahead is not None:
                    want["ahead_at"].append(np.array([n_text + n - 1]))
                    want["ahead_want"].append(segment.ahead.reshape(1, -1, segment.ahead.shape[-1]))
                n_text += n
            else:
                f, r, c, g = segment.data.shape
                flat = segment.data.reshape(f, r * c, g)
                codes.append(np.concatenate([np.full((f, 1, g), -1), flat], axis=1).reshape(n, g))
                slots.append(np.tile(np.arange(r * c + 1), f))
                # The begin mark sits on the first code's place; its embedding and slot tell the two apart.
                grid = np.concatenate([np.zeros((1, 2), np.int64), np.stack(np.divmod(np.arange(r * c), c), axis=1)])
                base, time = walk.frames(f, r, c, segment.skip)
                place = np.empty((f, r * c + 1, 3), np.int64)
                place[:, :, 0] = time + np.arange(f)[:, None]
                place[:, :, 1:] = base + grid
                code_places.append(place.reshape(n, 3))
                if segment.wanted:
                    at = np.arange(n_codes, n_codes + n).reshape(f, r * c + 1)
                    want["codes_at"].append(at[:, :-1].ravel())
                    want["codes_want"].append(flat.reshape(f * r * c, g))
                    want["codes_row"].append(np.full(f * r * c, row))
                n_codes += n
            is_text.append(np.full(n, segment.modality == "text"))

    def join(parts: list[np.ndarray], shape: tuple[int, ...] = (0,)) -> np.ndarray:
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(shape, np.int64)

    cell = codes[0].shape[1] if codes else 1
    none = {"codes_want": (0, cell), "ahead_want": (0, 0, cell)}
    textual = np.concatenate(is_text) if is_text else np.zeros(0, bool)
    order = np.empty(n_text + n_codes, np.int64)
    order[textual] = np.arange(n_text)
    order[~textual] = np.arange(n_text, n_text + n_codes)
    return {
        "text": join(ids),
        "codes": join(codes, (0, 1)),
        "slots": join(slots),
        "places": np.concatenate([join(text_places, (0, 3)), join(code_places, (0, 3))]),
        "order": order,
        "lengths": np.array([positions_of(s) for s in sequences], np.int64),
        **{name: join(parts, none.get(name, (0,))) for name, parts in want.items()},
    }
