"""Held-out cost of every route in bits, beside references that show whether a route uses its source.

For a route such as v2t the table holds, on the same held-out items:

    bits            what the wanted part costs, given its source
    without source  the same wanted part, given nothing
    wrong source    the same wanted part, given the source of another item of the same folder
    order-0         a coder that knows only how often each id or code occurs in the training items of that stream

A route that ignores its source has `bits` equal to `wrong source`. Differences are paired item by item. Standard errors
are clustered: items of one group (a story, a video) count as one draw. Text is in bits per byte, end mark paid for;
vision in bits per frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from quadrivium.data.mixture import Mixture, Stream
from quadrivium.model import Batch, Model, likeness
from quadrivium.sequence import Segment, Sequence, apart, only_wanted, pack, positions_of
from quadrivium.statistics import partly, plus_minus

UNITS = {"t": "bits_per_byte", "v": "bits_per_frame"}


@torch.no_grad()
def bits(model: Model, sequences: Seq[Sequence], budget: int = 4096, progress: tqdm | None = None) -> np.ndarray:
    """Bits (n,) that the wanted part of each sequence costs. ``budget`` positions are computed at a time."""
    device = next(model.parameters()).device
    out = np.zeros(len(sequences))
    order = sorted(range(len(sequences)), key=lambda i: -positions_of(sequences[i]))
    while order:
        rows: list[int] = []
        spent = 0
        while order and (not rows or spent + positions_of(sequences[order[0]]) <= budget):
            spent += positions_of(sequences[order[0]])
            rows.append(order.pop(0))
        batch = Batch.of(pack([sequences[i] for i in rows]), device)
        text, codes = model.nats(batch)
        total = torch.zeros(len(rows), dtype=torch.float64, device=device)
        total.index_add_(0, batch.text_row, text.double())
        total.index_add_(0, batch.codes_row, codes.double().sum(1))
        if not torch.isfinite(total).all():
            raise ValueError("the model gives a cost that is not a number")
        out[rows] = total.cpu().numpy() / math.log(2)
        if progress is not None:
            progress.update(len(rows))
    return out


@torch.no_grad()
def token_bits(model: Model, sequences: Seq[Sequence]) -> list[np.ndarray]:
    """Bits of every wanted id (n,) or code (F, R, C, G) of sequences whose last segment alone is wanted, all in one batch."""
    batch = Batch.of(pack(sequences), next(model.parameters()).device)
    text, codes = (nats.double().cpu().numpy() / math.log(2) for nats in model.nats(batch))
    rows = {"text": batch.text_row.cpu().numpy(), "frames": batch.codes_row.cpu().numpy()}
    return [
        text[rows["text"] == row] if s.modality == "text" else codes[rows["frames"] == row].reshape(s.data.shape)
        for row, (*_, s) in enumerate(sequences)
    ]


def units(sequence: Sequence, id_bytes: np.ndarray) -> int:
    """Bytes of wanted text, or wanted frames: what bits are counted per."""
    return sum(int(id_bytes[s.data[1:]].sum()) if s.modality == "text" else len(s.data) for s in sequence if s.wanted)


def ratio(bits: np.ndarray, units: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Sum of bits over sum of units, and its standard error with items clustered by group (linearised ratio estimator)."""
    total = float(units.sum())
    if total == 0:
        return math.nan, math.nan
    mean = float(bits.sum()) / total
    _, index = np.unique(groups, return_inverse=True)
    residual = np.bincount(index, bits - mean * units)
    n = len(residual)
    if n < 2:
        return mean, math.nan
    return mean, math.sqrt(n / (n - 1) * float((residual**2).sum())) / total


def wrong_source(sequences: Seq[Sequence], groups: np.ndarray) -> list[Sequence | None]:
    """Each sequence with the source of another one of another group and, for frames, of the same length; None: none fits.

    One that gives the same, or of which the same is wanted, is no other: equal captions, and frames of equal captions."""

    def shape(sequence: Sequence) -> tuple:
        return tuple((s.modality, len(s.data) if s.modality == "frames" else 0) for s in sequence)

    def content(sequence: Sequence, wanted: bool) -> bytes:
        return b"".join(s.data.tobytes() for s in sequence if s.wanted == wanted)

    shapes = [shape(q) for q in sequences]
    given, wanted = ([content(q, side) for q in sequences] for side in (False, True))

    def wrong(i: int, j: int) -> bool:
        return groups[j] != groups[i] and shapes[j] == shapes[i] and given[j] != given[i] and wanted[j] != wanted[i]

    out: list[Sequence | None] = []
    n = len(sequences)
    for i, sequence in enumerate(sequences):
        j = next((j for k in range(n) if wrong(i, j := (i + n // 2 + k) % n)), None)
        out.append(None if j is None else (*(s for s in sequences[j] if not s.wanted), *only_wanted(sequence)))
    return out


class Order0:
    """A coder that knows only how often each id and each code occurs among the wanted parts of some sequences."""

    def __init__(self, sequences: Seq[Sequence], vocab: int, codes: int) -> None:
        def cost(modality: str, size: int) -> np.ndarray:
            seen = [self._targets(s) for q in sequences for s in q if s.wanted and s.modality == modality]
            # A tenth of a count for what never occurred: one count would tax small folders with the whole vocabulary.
            counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *seen]), minlength=size) + 0.1
            return -np.log2(counts / counts.sum())

        self._cost = {"text": cost("text", vocab), "frames": cost("frames", codes)}

    @staticmethod
    def _targets(segment: Segment) -> np.ndarray:
        return segment.data[1:] if segment.modality == "text" else segment.data.ravel()

    def bits(self, sequence: Sequence) -> float:
        return sum(float(self._cost[s.modality][self._targets(s)].sum()) for s in sequence if s.wanted)


@dataclass(frozen=True)
class Measured:
    """Costs of one stream's held-out units: arrays (n,), nan where a reference does not apply."""

    stream: str
    route: str
    units: np.ndarray
    groups: np.ndarray
    bits: np.ndarray
    without: np.ndarray
    wrong: np.ndarray
    order0: np.ndarray

    def summary(self) -> dict[str, float | int]:
        """The numbers of one row of the route table."""
        of = partial(ratio, units=self.units, groups=self.groups)
        mean, error = of(self.bits)
        row: dict[str, float | int] = {UNITS[self.route[-1]]: mean, "stderr": error, "n": len(self.bits)}
        row["n_groups"] = len(np.unique(self.groups))
        row["order0"] = of(self.order0)[0]
        for name, reference in (("without_source", self.without), ("wrong_source", self.wrong)):
            fits = ~np.isnan(reference)
            if not fits.any():
                continue
            cut = partial(ratio, units=self.units[fits], groups=self.groups[fits])
            row[name] = cut(reference[fits])[0]
            row[f"{name}_gain"], row[f"{name}_gain_stderr"] = cut(reference[fits] - self.bits[fits])
            if not fits.all():
                row[f"{name}_n"] = int(fits.sum())
        return row


def measure(
    model: Model, mixture: Mixture, stream: Stream, id_bytes: np.ndarray, limit: int, progress: tqdm | None = None
) -> Measured:
    """Cost of a stream's held-out units beside the three references."""
    held = mixture.held[stream.name]
    chosen = mixture.held_units(held, limit)
    sequences = [mixture.sequence(held, u) for u in chosen]
    groups = held.source.group[held.unit[chosen, 0]]
    sourced = [i for i, q in enumerate(sequences) if any(not s.wanted for s in q)]
    training = [mixture.sequence(stream, u) for u in mixture.held_units(stream, 2000)]
    order0 = Order0(training, model.config.vocab, model.config.codes)

    without, wrong = np.full((2, len(sequences)), np.nan)
    costs = bits(model, sequences, progress=progress)
    if sourced:
        without[sourced] = bits(model, [only_wanted(sequences[i]) for i in sourced], progress=progress)
        swapped = wrong_source([sequences[i] for i in sourced], groups[sourced])
        pairs = [(i, q) for i, q in zip(sourced, swapped, strict=True) if q is not None]
        if pairs:
            wrong[[i for i, _ in pairs]] = bits(model, [q for _, q in pairs], progress=progress)
    return Measured(
        stream.name,
        stream.route,
        np.array([units(q, id_bytes) for q in sequences]),
        groups,
        costs,
        without,
        wrong,
        np.array([order0.bits(q) for q in sequences]),
    )


def join(parts: Seq[Measured]) -> Measured:
    """All streams of one route as one."""
    arrays = ("units", "groups", "bits", "without", "wrong", "order0")
    joined: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in parts]) for name in arrays}
    return replace(parts[0], stream=parts[0].route, **joined)


def routes(model: Model, mixture: Mixture, id_bytes: np.ndarray, limit: int = 256, progress: bool = True) -> dict[str, dict]:
    """Every route and every stream: {"routes": {route: row}, "streams": {"route/source": row}}; rows as in `Measured`."""
    model.eval()
    streams = [s for s in mixture.streams if s.name in mixture.held]
    total = sum(min(limit, len(mixture.held[s.name].unit)) * (1 if s.route == "t2t" else 3) for s in streams)
    parts = []
    with tqdm(total=total, desc="eval", unit="seq", disable=not progress) as bar:
        for stream in streams:
            bar.set_postfix_str(stream.name)
            parts.append(measure(model, mixture, stream, id_bytes, limit, bar))
    by_route: dict[str, list[Measured]] = {}
    for part in parts:
        by_route.setdefault(part.route, []).append(part)
    return {
        "routes": {route: join(found).summary() for route, found in by_route.items()},
        "streams": {p.stream: p.summary() for p in parts},
    }


RECALL = (1, 5, 10)


def captioned(mixture: Mixture, limit: int) -> Iterator[tuple[str, list[tuple[Sequence, Sequence]], np.ndarray]]:
    """Source, held-out items as text alone and frames alone, and their groups. No caption and no clip is there twice."""
    met_sources = set[str]()
    for route in ("t2v", "v2t", "tv2v"):  # the same captioned items
        for held in (s for s in mixture.held.values() if s.route == route and s.source.name not in met_sources):
            pairs: list[tuple[Sequence, Sequence]] = []
            groups, met = [], set[bytes]()
            for unit in mixture.held_units(held, len(held.unit)):
                if len(pairs) == limit:
                    break
                pair = apart(mixture.sequence(held, unit))
                keys = {b"".join(s.data.tobytes() for s in side) for side in pair}
                if not keys & met:
                    pairs.append(pair)
                    groups.append(int(held.source.group[held.unit[unit, 0]]))
                    met |= keys
            met_sources.add(held.source.name)
            yield held.source.name, pairs, np.array(groups)


@torch.no_grad()
def retrieval(model: Model, mixture: Mixture, limit: int = 256) -> dict[str, dict]:
    """Held-out frames found by their text, and text by its frames: source -> a row. Read from the states that the contrast
    compares (`Model.pooled`), in every run, so that one with the objective can be laid beside one without.

    Rows have ``n``, ``layer``, ``chance`` and, for ``text_to_frames`` and ``frames_to_text``, ``r1``, ``r5``, ``r10`` and
    ``r1_stderr``, ... : how often what belongs to it is among the 1, 5, 10 most alike.
    """
    model.eval()
    device = next(model.parameters()).device
    found: dict[str, dict] = {}
    for source, pairs, groups in captioned(mixture, limit):
        if len(pairs) < 2:
            continue
        sides = []
        for k in (0, 1):
            parts = (Batch.of(pack([p[k] for p in pairs[i : i + 32]]), device) for i in range(0, len(pairs), 32))
            sides.append(torch.cat([model.pooled(part) for part in parts]))
        scores = likeness(*sides).cpu().numpy()
        row: dict[str, Any] = {"n": len(pairs), "layer": model.config.contrast.layer}
        row["chance"] = {f"r{k}": min(1.0, k / len(pairs)) for k in RECALL}
        for name, way in (("text_to_frames", scores), ("frames_to_text", scores.T)):
            row[name] = {}
            for k in RECALL:
                cut = ratio(recall(way, k), np.ones(len(pairs)), groups)
                row[name] |= dict(zip((f"r{k}", f"r{k}_stderr"), cut, strict=True))
        found[source] = row
    return found


def recall(scores: np.ndarray, k: int) -> np.ndarray:
    """Credit (n,) for having the i-th thing among the k highest of row i of ``scores`` (n, n); ties share the places left."""
    if np.isnan(scores).any():
        raise ValueError("the model gives states that are not numbers")
    own = np.diagonal(scores)[:, None]
    above, level = (scores > own).sum(axis=1), (scores == own).sum(axis=1)
    return np.clip((k - above) / level, 0.0, 1.0)


def retrieval_table(found: dict[str, dict]) -> str:
    """`retrieval` as text: a source a block, a way a line."""
    lines = []
    for source, row in found.items():
        lines.append(f"{source}: {row['n']} texts and frames found by their states after layer {row['layer']}, %")
        lines.append(f"  {'':<24}" + "".join(f"{f'R@{k}':>16}" for k in RECALL))
        for name, way in (("text_to_frames", "frames by their text"), ("frames_to_text", "text by its frames")):
            cells = (plus_minus(100 * row[name][f"r{k}"], 100 * row[name][f"r{k}_stderr"], 1) for k in RECALL)
            lines.append(f"  {way:<24}" + "".join(f"{cell:>16}" for cell in cells))
        lines.append(f"  {'chance':<24}" + "".join(f"{100 * row['chance'][f'r{k}']:>16.1f}" for k in RECALL))
    return "\n".join(lines)


READING = "A route uses its source where `gain over wrong`, what another item's source makes dearer, is above two of its standard errors."


def table(results: dict[str, dict], streams: bool = True) -> str:
    """The route table as text."""
    head = f"{'route':<26}{'unit':<11}{'held-out':>16}{'order-0':>10}{'without':>10}{'wrong':>10}{'gain over wrong':>22}{'items':>13}"
    lines = [head, "-" * len(head)]
    blocks = [results["routes"], results["streams"]] if streams else [results["routes"]]
    for block in blocks:
        for name, row in block.items():
            route = name.split("/")[0]
            unit = UNITS[route[-1]]
            digits = 3 if unit == "bits_per_byte" else 1
            cells = [plus_minus(row[unit], row["stderr"], digits)]
            cells += [plus_minus(row.get(k), None, digits) for k in ("order0", "without_source", "wrong_source")]
            gain = plus_minus(row.get("wrong_source_gain"), row.get("wrong_source_gain_stderr"), digits)
            label = name if block is results["routes"] else f"  {name}"
            items = f"{row['n']}" + (f" ({row['wrong_source_n']})" if "wrong_source_n" in row else "")
            lines.append(
                f"{label:<26.26}{unit.replace('bits_per_', 'bits/'):<11}{cells[0]:>16}{cells[1]:>10}{cells[2]:>10}{cells[3]:>10}{gain:>22}{items:>13}"
            )
        lines.append("")
    if any("wrong_source_n" in row for block in blocks for row in block.values()):
        lines.append(
            "In brackets: items that another one of the same folder can be a wrong source of; `wrong` and the gain are of those alone."
        )
    if said := partly({name: row for block in blocks for name, row in block.items()}):
        lines.append(said)
    return "\n".join(lines).rstrip()
