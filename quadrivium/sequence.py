"""The one data type that passes between data, model, generation and evaluation, and the one place that names a route.

Shape letters used in this project:

    S  sequences in a batch        N  positions in a batch (all sequences end to end, no padding)
    F  frames of a clip            R, C  rows and columns of codes in a frame
    L  positions of one sequence   D  model width

A *segment* is a run of text ids or of frames, *given* (read, no loss) or *wanted* (predicted, loss).

Text segment: ids ``x_0 x_1 ... x_n``. The first is only read; every later one is predicted from all before it. A whole
document or caption is ``[end, x_1, ..., x_n, end]``; a window of a longer document starts with the id before it.
The last id is never read by what follows, so it costs no position: n positions, n predictions.

Frames segment: codes (F, R, C). Each frame is read as ``begin, c_1, ..., c_RC`` in row order, and each position but the
last predicts the next code: RC + 1 positions, RC predictions a frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence as Seq
from dataclasses import dataclass
from typing import Literal

import numpy as np

Modality = Literal["text", "frames"]
LETTER: dict[Modality, str] = {"text": "t", "frames": "v"}
ROUTES = ("t2t", "t2v", "v2t", "v2v", "tv2v")  # what `prepare` can feed; `route_of` names any other mixture by its parts
MAIN_ROUTES = ROUTES[:4]


@dataclass(frozen=True, eq=False)
class Segment:
    """A run of text ids, int (n,), or of frames, int codes (F, R, C); *wanted* or merely given."""

    modality: Modality
    data: np.ndarray
    wanted: bool

    def __post_init__(self) -> None:
        if self.modality == "text":
            if self.data.ndim != 1 or len(self.data) < 2:
                raise ValueError(f"a text segment is a run of at least two ids, not an array of shape {self.data.shape}")
        elif self.data.ndim != 3 or 0 in self.data.shape:
            raise ValueError(f"a frames segment has shape (frames, rows, columns), not {self.data.shape}")

    @property
    def extent(self) -> int:
        """How far on the next segment is placed, on every rotary axis."""
        return self.positions if self.modality == "text" else max(self.data.shape)

    @property
    def positions(self) -> int:
        """Positions that the model computes for this segment."""
        if self.modality == "text":
            return len(self.data) - 1
        frames, rows, columns = self.data.shape
        return frames * (rows * columns + 1)


Sequence = tuple[Segment, ...]


def text(ids: Iterable[int] | np.ndarray, wanted: bool = False) -> Segment:
    """Text ids as a segment; see the head of this file for what the first and the last id mean."""
    return Segment("text", np.asarray(ids, dtype=np.int64), wanted)


def frames(codes: np.ndarray, wanted: bool = False) -> Segment:
    """Codes (F, R, C) as a segment."""
    return Segment("frames", np.asarray(codes, dtype=np.int64), wanted)


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


def pack(sequences: Seq[Sequence]) -> dict[str, np.ndarray]:
    """Lay sequences end to end into the arrays that the model reads. Nothing is padded.

    Positions are kept *grouped*: all text positions of the batch first, then all visual ones, so that weights which
    the modalities do not share are applied to two contiguous blocks. ``order`` leads back to reading order.

    Returns (Nt text positions, Nv visual positions, N = Nt + Nv):
        text            (Nt,)    ids read
        codes           (Nv,)    codes read; -1 is the begin mark of a frame
        slots           (Nv,)    how many codes of the frame are already known, 0..RC: where the next code belongs
        places          (N, 3)   rotary place on the axes (time, row, column), grouped order; equal axes on text
        order           (N,)     grouped index of the i-th position in reading order
        lengths         (S,)     positions of each sequence
        text_at, text_want, text_row      (Wt,)  text positions with a prediction, the id wanted, the sequence
        codes_at, codes_want, codes_row   (Wv,)  likewise for visual positions; ``codes_at`` counts from 0 within Nv
    """
    ids: list[np.ndarray] = []
    codes: list[np.ndarray] = []
    slots: list[np.ndarray] = []
    text_places: list[np.ndarray] = []
    code_places: list[np.ndarray] = []
    is_text: list[np.ndarray] = []
    want: dict[str, list[np.ndarray]] = {k: [] for k in ("text_at", "text_want", "text_row", "codes_at", "codes_want", "codes_row")}
    n_text = n_codes = 0
    for row, sequence in enumerate(sequences):
        start = 0  # place of the segment's first position; a segment starts after everything before it, on every axis
        for segment in sequence:
            n = segment.positions
            if segment.modality == "text":
                ids.append(segment.data[:-1])
                line = np.arange(start, start + n)
                text_places.append(np.stack([line] * 3, axis=1))
                if segment.wanted:
                    want["text_at"].append(np.arange(n_text, n_text + n))
                    want["text_want"].append(segment.data[1:])
                    want["text_row"].append(np.full(n, row))
                n_text += n
            else:
                f, r, c = segment.data.shape
                flat = segment.data.reshape(f, r * c)
                codes.append(np.concatenate([np.full((f, 1), -1), flat], axis=1).ravel())
                slots.append(np.tile(np.arange(r * c + 1), f))
                # The begin mark sits on the first code's place; its embedding and slot tell the two apart.
                grid = np.concatenate([np.zeros((1, 2), np.int64), np.stack(np.divmod(np.arange(r * c), c), axis=1)])
                place = np.empty((f, r * c + 1, 3), np.int64)
                place[:, :, 0] = start + np.arange(f)[:, None]
                place[:, :, 1:] = start + grid
                code_places.append(place.reshape(n, 3))
                if segment.wanted:
                    at = np.arange(n_codes, n_codes + n).reshape(f, r * c + 1)
                    want["codes_at"].append(at[:, :-1].ravel())
                    want["codes_want"].append(flat.ravel())
                    want["codes_row"].append(np.full(f * r * c, row))
                n_codes += n
            start += segment.extent
            is_text.append(np.full(n, segment.modality == "text"))

    def join(parts: list[np.ndarray], shape: tuple[int, ...] = (0,)) -> np.ndarray:
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(shape, np.int64)

    textual = np.concatenate(is_text) if is_text else np.zeros(0, bool)
    order = np.empty(n_text + n_codes, np.int64)
    order[textual] = np.arange(n_text)
    order[~textual] = np.arange(n_text, n_text + n_codes)
    return {
        "text": join(ids),
        "codes": join(codes),
        "slots": join(slots),
        "places": np.concatenate([join(text_places, (0, 3)), join(code_places, (0, 3))]),
        "order": order,
        "lengths": np.array([positions_of(s) for s in sequences], np.int64),
        **{name: join(parts) for name, parts in want.items()},
    }
