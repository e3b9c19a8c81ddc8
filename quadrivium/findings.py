"""What pictures hold that text does not, in bits and as pictures, on held-out items:

    visual context   what a frame costs after the frames before it, and how much dearer the last one is after these in another order and
                     after those of another clip
    unspoken         of a last frame's bits beside its earlier frames, the share that the caption does not say either
    lossy            the share of a first frame's bits that its caption saves
    round trip       frame -> its caption, as the model puts it -> frames drawn from that caption: how like the first they are, beside
                     how like two draws from one caption are, and two frames taken at random

All costs are the model's own, so what it has not learnt to use counts as not there; what it never learnt to price at all would count as
dear, so only kinds of sequence that the run was trained on are priced: frames are read from the first of a clip, or of its window, on, and
without a caption no other stands without those before it. Intervals are 95 %, over groups (a story, a video), which count
as one draw.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np

from quadrivium.checkpoint import Run
from quadrivium.data.mixture import Mixture
from quadrivium.evaluate import bits, captioned, ratio, wrong_source
from quadrivium.generate import Sampling, generate
from quadrivium.model import Model
from quadrivium.pictures import Cell, sheet
from quadrivium.samples import SOBER, cells, decode
from quadrivium.sequence import frames, only_wanted, text
from quadrivium.statistics import critical, plus_minus


def measure(run: Run, mixture: Mixture, limit: int = 128, pictures: Path | None = None) -> dict[str, Any]:
    """`visual_context`, `unspoken`, `lossy` and `round_trip`: finding -> source -> a row. ``pictures``: where a sheet of round trips
    is written, as round-trip.png."""
    run.model.eval()
    routes = {s.route: {h.source.name for h in mixture.held.values() if h.route == s.route} for s in mixture.held.values()}
    read, drawn, seen, led = (routes.get(r, set()) for r in ("v2t", "t2v", "v2v", "tv2v"))
    found: dict[str, dict[str, Any]] = {
        "visual_context": visual_context(run.model, mixture, limit),
        "unspoken": {},
        "lossy": {},
        "round_trip": {},
    }
    sheets: list[list[Cell]] = []
    for source, items in told_frames(mixture, limit):
        if source in seen & led:
            found["unspoken"][source] = unspoken(run.model, items)
        if source in seen & drawn:
            clips = [item for item in items if len(item[1]) > 1]  # captioned stills are never read bare
            found["lossy"][source] = lossy(run.model, clips)
        if source in read & drawn:
            found["round_trip"][source], shown = round_trip(run, items, min(limit, 32))
            sheets += shown
    if pictures is not None and sheets:
        pictures.mkdir(parents=True, exist_ok=True)
        heads = ("source", "frame", "its caption by the model", "drawn from that caption", "again", "and again")
        sheet(sheets, heads, f"frame, caption, frames again, step {run.step}").save(pictures / "round-trip.png")
    return {name: {source: row for source, row in rows.items() if row} for name, rows in found.items()}


Told = tuple[np.ndarray, np.ndarray, int]  # ids of a caption, the codes (F, R, C, G) of what it tells of, the item's group


def told_frames(mixture: Mixture, limit: int) -> Iterator[tuple[str, list[Told]]]:
    """Source, and captioned held-out items. No caption and no clip is there twice."""
    for source, pairs, groups in captioned(mixture, limit):
        yield (
            source,
            [
                (words[0].data, np.concatenate([s.data for s in shown]), int(g))
                for (words, shown), g in zip(pairs, groups, strict=True)
            ],
        )


def visual_context(model: Model, mixture: Mixture, limit: int = 128) -> dict[str, dict]:
    """What frames of held-out clips cost after those before them: stream -> condition -> a row in bits per frame.

    Conditions: the frame after 0, 1, 2, 4, ... earlier ones, up to the last ("F"); and the last one after these in another order
    ("shuffled"), and after those of another group's clip ("other clip"). Rows have ``bits_per_frame``, ``stderr``, ``n``; those two
    also, paired with the right frames, how much ``dearer`` they are and ``dearer_stderr``. Clips are cut as in training, and of
    their stream's commonest length F + 1.
    """
    found: dict[str, dict] = {}
    for held in mixture.held.values():
        if held.route != "v2v":
            continue
        units = np.array(mixture.held_units(held, 4 * limit))
        clips = [np.concatenate([s.data for s in mixture.sequence(held, int(unit))]) for unit in units]
        lengths = [len(c) for c in clips if len(c) > 1]
        if not lengths:
            continue
        usual = int(np.bincount(lengths).argmax())
        kept = [i for i, c in enumerate(clips) if len(c) == usual][:limit]
        clips, of = [clips[i] for i in kept], held.source.group[held.unit[units[kept], 0]]
        last, ones = usual - 1, np.ones(len(of))

        def cost(before: Seq[np.ndarray], wanted: Seq[np.ndarray]) -> np.ndarray:
            pairs = zip(before, wanted, strict=True)
            return bits(model, [(*((frames(b),) if len(b) else ()), frames(w[None], wanted=True)) for b, w in pairs])

        rows: dict[str, dict] = {}
        for k in [k for k in (0, 1, 2, 4, 8, 16) if k < last] + [last]:
            right = cost([c[:k] for c in clips], [c[k] for c in clips])
            mean, error = ratio(right, ones, of)
            rows[str(k)] = {"bits_per_frame": mean, "stderr": error, "n": len(right)}
        n = len(of)
        other = [
            next(
                (
                    j
                    for k in range(1, n)
                    if of[j := (i + k) % n] != of[i] and not np.array_equal(clips[j][:last], clips[i][:last])
                ),
                None,
            )
            for i in range(n)
        ]
        wrong: dict[str, list[np.ndarray | None]] = {"other clip": [None if j is None else clips[j][:last] for j in other]}
        if usual > 2:
            wrong = {"shuffled": [c[_moved(last, i)] for i, c in enumerate(clips)], **wrong}
        for name, before in wrong.items():
            some = [i for i, b in enumerate(before) if b is not None]
            if not some:
                continue
            paid = cost([b for b in before if b is not None], [clips[i][last] for i in some])
            mean, error = ratio(paid, ones[some], of[some])
            dearer, its = ratio(paid - right[some], ones[some], of[some])
            rows[name] = {"bits_per_frame": mean, "stderr": error, "n": len(some), "dearer": dearer, "dearer_stderr": its}
        found[held.name] = rows
    return found


def unspoken(model: Model, items: Seq[Told]) -> dict[str, Any]:
    """Of a last frame's bits beside its earlier frames, the share that the caption leaves: bits(V'|T, V) / bits(V'|V), over captioned clips
    of their commonest length. Empty without clips.

    Of what earlier frames save, the share that they still save beside the caption would take bits(V'), and no frame but a clip's first is ever
    read with nothing before it.

    A row has ``share`` with its ``interval``, ``n``, and bits a frame: ``seen``, ``both``."""
    lengths = [len(clip) for _, clip, _ in items if len(clip) > 1]
    if not lengths:
        return {}
    usual = int(np.bincount(lengths).argmax())
    kept = [(text(words), clip, g) for words, clip, g in items if len(clip) == usual]
    seen, both = (
        bits(model, [(*((words,) if told else ()), frames(clip[:-1]), frames(clip[-1:], True)) for words, clip, _ in kept])
        for told in (False, True)
    )
    share, interval = _share(both, seen, np.array([g for *_, g in kept]))
    return {"share": share, "interval": interval, "n": len(kept), "seen": float(seen.mean()), "both": float(both.mean())}


def lossy(model: Model, items: Seq[Told]) -> dict[str, Any]:
    """The share of a frame's bits that its caption saves, [bits(V) - bits(V|T)] / bits(V), of first frames of clips, which are also read
    without a caption; what the caption of an item of another group saves, and how much more the own one does. A row has ``share``, ``wrong``, ``own`` and their intervals,
    ``n``, and bits a frame: ``none``, ``told``."""
    if len(items) < 2:
        return {}
    groups = np.array([g for *_, g in items])
    given = [(text(words), frames(clip[:1], True)) for words, clip, _ in items]
    none, told = bits(model, [only_wanted(q) for q in given]), bits(model, given)
    share, interval = _share(none - told, none, groups)
    row = {"share": share, "interval": interval, "n": len(items), "none": float(none.mean()), "told": float(told.mean())}
    swapped = wrong_source(given, groups)
    some = [i for i, q in enumerate(swapped) if q is not None]
    if some:
        wrong = bits(model, [q for q in swapped if q is not None])
        row["wrong"], row["wrong_interval"] = _share(none[some] - wrong, none[some], groups[some])
        row["own"], row["own_interval"] = _share(wrong - told[some], none[some], groups[some])
        row["wrong_n"] = len(some)
    return row


def round_trip(
    run: Run, items: Seq[Told], n: int, sampling: Sampling = SOBER, shown: int = 4
) -> tuple[dict[str, Any], list[list[Cell]]]:
    """V -> T -> V', three times from one caption of the model's own, of first frames. A row has means over items, in decibels (PSNR) of
    decoded frames: ``again`` of V' and V, ``draws`` of two V' from one caption, ``random`` of V and another item's; with standard errors.
    Also rows of a sheet, of the first few."""
    items = list(items[:n])
    if len(items) < 2:
        return {}, []
    first = [clip[:1] for _, clip, _ in items]
    said = generate(run.model, [(frames(f),) for f in first], "text", run.text.end, sampling=sampling)
    words = [text([run.text.end, *ids, run.text.end]) for ids in said]
    draws = generate(run.model, [(w,) for w in words for _ in range(3)], "frames", run.text.end, 1, sampling)
    seen = [decode(run, f) for f in first]
    again = [[decode(run, d) for d in draws[3 * i : 3 * i + 3]] for i in range(len(items))]
    groups = np.array([g for *_, g in items])
    kinds = {
        "again": [float(np.mean([psnr(a, seen[i]) for a in made])) for i, made in enumerate(again)],
        "draws": [float(np.mean([psnr(made[a], made[b]) for a, b in ((0, 1), (0, 2), (1, 2))])) for made in again],
    }
    half = len(items) // 2  # no frame is in two pairs
    pairs = [(i, i + half) for i in range(half) if groups[i] != groups[i + half]]
    kinds["random"] = [psnr(seen[i], seen[j]) for i, j in pairs]
    row: dict[str, Any] = {"n": len(items), "random_n": len(pairs)}
    for name, values in kinds.items():
        of = groups[[i for i, _ in pairs]] if name == "random" else groups
        row[name], row[f"{name}_stderr"] = ratio(np.array(values), np.ones(len(values)), of)
    sheets: list[list[Cell]] = []
    for i in range(min(shown, len(items))):
        told = " / ".join(c for c in cells(run, (text(items[i][0]),)) if isinstance(c, str))
        sheets.append([told, seen[i], run.text.decode(said[i]), *again[i]])
    return row, sheets


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in decibels of two pictures uint8; 60 at most, which is where they are the same to the eye."""
    error = float(np.square(a.astype(np.float64) - b).mean())
    return min(60.0, 10 * float(np.log10(255**2 / error)) if error else 60.0)


def _share(part: np.ndarray, whole: np.ndarray, groups: np.ndarray) -> tuple[float | None, list[float] | None]:
    """sum(part) / sum(whole) and its 95 % interval over groups, by Student's t; None where the whole is nothing, or of one group."""
    if whole.sum() <= 0:
        return None, None
    share, error = ratio(part, whole, groups)
    count = len(np.unique(groups))
    if count < 2:
        return share, None
    half = critical(count) * error
    return share, [share - half, share + half]


def _moved(n: int, seed: int) -> np.ndarray:
    """An order of n things that is not their own, where there is one."""
    draw, own = np.random.default_rng(seed), np.arange(n)
    while n > 1 and np.array_equal(order := draw.permutation(n), own):
        pass
    return order if n > 1 else own


def context_table(found: dict[str, dict]) -> str:
    """`visual_context` as text: a stream a block, a condition a line."""
    lines = []
    for name, rows in found.items():
        lines += [f"frames of {name}, bits", f"  {'after':<34}{'held-out':>16}{'dearer':>16}{'clips':>7}"]
        for condition, row in rows.items():
            cost = plus_minus(row["bits_per_frame"], row["stderr"], 1)
            dearer = plus_minus(row["dearer"], row["dearer_stderr"], 1) if "dearer" in row else "-"
            lines.append(f"  {_after(condition):<34}{cost:>16}{dearer:>16}{row['n']:>7}")
    return "\n".join(lines)


def _after(condition: str) -> str:
    """A condition of `visual_context` in words."""
    named = {"0": "nothing, a clip's first frame", "1": "1 earlier frame", "shuffled": "these in another order"}
    return named.get(condition, f"{condition} earlier frames" if condition.isdigit() else "those of another clip")


def rows(found: dict[str, Any]) -> list[tuple[str, str, str, str, int]]:
    """`measure`, all but the visual context, for people: finding, source, what is measured, its value, and items."""
    made: list[tuple[str, str, str, str, int]] = []
    for source, row in found["unspoken"].items():
        value = percent(row["share"], row["interval"])
        made.append(
            ("unspoken", source, "of the last frame's bits beside earlier frames, not said by the caption", value, row["n"])
        )
    for source, row in found["lossy"].items():
        value = percent(row["share"], row["interval"])
        made.append(("text is lossy", source, "of a first frame's bits, saved by its caption", value, row["n"]))
        if "wrong" in row:
            value = percent(row["wrong"], row["wrong_interval"])
            made.append(("", source, "by the caption of another item", value, row["wrong_n"]))
        if "own" in row:
            value = percent(row["own"], row["own_interval"])
            made.append(("", source, "more by its own than by that of another item", value, row["wrong_n"]))
    said = {"again": "frame and its redrawing", "draws": "two redrawings", "random": "two frames at random"}
    for source, row in found["round_trip"].items():
        for key, what in said.items():
            value = f"{plus_minus(row[key], row[f'{key}_stderr'], 1)} dB"
            n = row.get("random_n", row["n"] // 2) if key == "random" else row["n"]
            made.append(("round trip", source, f"frame, caption, frame: {what}, ± standard error", value, n))
    return made


def table(found: dict[str, Any]) -> str:
    """`measure` as text."""
    lines = [context_table(found["visual_context"])] if found["visual_context"] else []
    for finding, source, what, value, n in rows(found):
        lines.append(f"{finding:<14}{source:<22.22}{what:<74}{value:>28}{n:>6}")
    return "\n".join(lines)


def percent(share: float | None, interval: list[float] | None) -> str:
    """A share and its interval, for people."""
    if share is None:
        return "-"
    return f"{share:.1%}" + ("" if interval is None else f" ({interval[0]:.1%} to {interval[1]:.1%})")
