"""Do keys of text and keys of frames become alike, and does text use what they have in common? Read off a trained model.

Captioned held-out items are read as text alone and as frames alone, so that neither side was computed from the other:

    K1   keys of text positions                  what is asked in t2v, and in t2t
    K2   keys of visual positions                what is asked in v2v
    K3   the same keys, asked by text (v2t)      one weight and one value for both: K3 is K2 here, in every sharing scheme
    Q3   queries of text positions               what asks, in t2t and v2t

Two measures, for every layer:

    overlap   items as points, their mean keys (or queries); of the k nearest neighbours among K1, how many are neighbours among
              K2 too (mutual k-nearest-neighbour overlap, Huh et al. 2024, arXiv 2405.07987). The null permutes items: it keeps
              both clouds and destroys which text belongs to which frames. It does not know of what lies in words and pixels
              alike before any learning, which the same model before its first step shows.
    angles    within a head, the subspaces that hold most of each side's variance, as mean squared cosine of their principal
              angles: 1 where one query reaches both sides through the same directions, rank / head size for random ones.

And a probe. The directions of most variance of the visual keys are the visual part of text's own keys. It is taken out of
them ("zero": its mean is put there) or exchanged between positions ("swap"), in every layer at once, and text pays in bits a byte
and in right answers. Controls are random directions that hold as much of the variance of text's keys.

Keys are taken after their norm and before rotary positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from quadrivium import ask, checkpoint, evaluate
from quadrivium import sequence as seq
from quadrivium.checkpoint import Run
from quadrivium.data import language as words
from quadrivium.data.machine import CELL, MachineSpec, portrait
from quadrivium.data.mixture import Mixture
from quadrivium.data.questions import make_questions
from quadrivium.data.world import WorldConfig, make_kinds, stream
from quadrivium.distil import check_names
from quadrivium.errors import ConfigError, DataError
from quadrivium.model import Batch, Model
from quadrivium.sequence import Sequence

PAIRS = ("K1 K2", "Q3 K1", "Q3 K2")
DRAWS = 199  # permutations
CONTROLS = 19  # subspaces of a probe, of which the last in rank has p .05
MIN_ITEMS = 12


@dataclass
class Reading:
    """Keys and queries of sequences of one modality: layers T, sequences S, key/value heads G, head size K."""

    pooled: dict[str, np.ndarray]  # "K", "Q" -> (T, S, .), the mean over positions, heads end to end
    mean: Tensor  # (T, G, K) of keys over all positions
    covariance: dict[str, Tensor]  # "K", "Q" -> (T, G, K, K); queries of all heads that ask a key's head together


@torch.no_grad()
def read(model: Model, sequences: Seq[Sequence], at: Seq[int] | None = None, budget: int = 4096) -> Reading:
    """Read sequences, text alone or frames alone. ``at``: the one position of each that counts, instead of all."""
    c, device = model.config, next(model.parameters()).device
    seen: list[Tensor] = []
    hooks = [p.register_forward_hook(lambda module, given, made: seen.append(made[0].float())) for p in _projections(model)]
    sizes = {"K": c.kv_heads, "Q": c.heads}
    pooled: dict[str, list[Tensor]] = {"K": [], "Q": []}
    count, total, outer = 0, dict[str, Any](K=0, Q=0), dict[str, Any](K=0, Q=0)
    try:
        for rows in _batches(sequences, budget):
            batch = Batch.of(seq.pack([sequences[i] for i in rows]), device)
            seen.clear()
            model.states(batch, c.layers)
            made = torch.stack(seen)[:, batch.order]  # (T, N, H + G, K), in reading order
            row = torch.repeat_interleave(torch.arange(len(rows), device=device), batch.lengths)
            if at is not None:
                starts = torch.cumsum(batch.lengths, 0) - batch.lengths
                place = starts + torch.tensor([at[i] for i in rows], device=device)
                made, row = made[:, place], torch.arange(len(rows), device=device)
            count += len(row)
            for side, part in zip(("Q", "K"), made.split([c.heads, c.kv_heads], dim=2), strict=True):
                sums = part.new_zeros(c.layers, len(rows), *part.shape[2:]).index_add_(1, row, part)
                pooled[side].append(sums.flatten(2) / torch.bincount(row, minlength=len(rows))[:, None])
                heads = part.unflatten(2, (c.kv_heads, sizes[side] // c.kv_heads)).double()
                total[side] = total[side] + heads.sum((1, 3))
                outer[side] = outer[side] + torch.einsum("tngik,tngil->tgkl", heads, heads)
    finally:
        for hook in hooks:
            hook.remove()
    means = {s: total[s] / (count * sizes[s] // c.kv_heads) for s in pooled}
    return Reading(
        {s: torch.cat(parts, 1).cpu().numpy() for s, parts in pooled.items()},
        means["K"],
        {s: outer[s] / (count * sizes[s] // c.kv_heads) - means[s][..., :, None] * means[s][..., None, :] for s in pooled},
    )


def _projections(model: Model) -> list[nn.Module]:
    """What makes queries and keys (N, H + G, K), and values, in each layer."""
    blocks: Any = model.blocks
    return [block.project for block in blocks]


def _batches(sequences: Seq[Sequence], budget: int) -> Iterator[list[int]]:
    rows: list[int] = []
    spent = 0
    for i, sequence in enumerate(sequences):
        if rows and spent + seq.positions_of(sequence) > budget:
            yield rows
            rows, spent = [], 0
        rows.append(i)
        spent += seq.positions_of(sequence)
    if rows:
        yield rows


# ---- measures -----------------------------------------------------------------------------------------------------


def neighbours(points: np.ndarray, k: int) -> np.ndarray:
    """Which of n points (n, d) are among the k most alike of each, by cosine about their mean: bool (n, n)."""
    if not np.isfinite(points).all():
        raise ValueError("the model gives keys that are not numbers")
    centred = points - points.mean(0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    likeness = centred @ centred.T
    np.fill_diagonal(likeness, -np.inf)
    found = np.zeros(likeness.shape, bool)
    np.put_along_axis(found, np.argpartition(-likeness, k - 1, axis=1)[:, :k], True, axis=1)
    return found


def overlap(a: np.ndarray, b: np.ndarray, k: int, draws: int = DRAWS, seed: int = 0) -> dict[str, float]:
    """Share of the k nearest neighbours that points a (n, d) and b (n, d') have in common, beside that of permuted items.

    ``overlap``; ``null``, the mean over permutations; ``high``, what 95 % of them stay below; ``p``, one-sided
    (Phipson & Smyth 2010: the true order counts as one of the draws).
    """
    near, there, rng = neighbours(a, k), neighbours(b, k), np.random.default_rng(seed)
    size = near.sum()
    found = float((near & there).sum() / size)
    null = np.empty(draws)
    for i in range(draws):
        order = rng.permutation(len(b))
        null[i] = (near & there[order][:, order]).sum() / size
    p = (1 + int((null >= found).sum())) / (1 + draws)
    return {"overlap": found, "null": float(null.mean()), "high": float(np.quantile(null, 0.95)), "p": p}


def principal(covariance: Tensor, rank: int) -> Tensor:
    """Directions of most variance, orthonormal: (..., K, K) -> (..., K, rank)."""
    return torch.linalg.eigh(covariance)[1][..., -rank:]


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared cosine of the principal angles between subspaces with orthonormal bases (..., K, rank): (...)."""
    return (a.transpose(-1, -2) @ b).square().sum((-1, -2)) / a.shape[-1]


def share(basis: Tensor, covariance: Tensor) -> Tensor:
    """Share of the variance that lies in a subspace (..., K, rank): (...)."""
    inside = torch.einsum("...kr,...kl,...lr->...", basis, covariance, basis)
    return inside / covariance.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=1e-12)


def matched(covariance: Tensor, wanted: Tensor, rank: int, seed: int) -> Tensor:
    """Random orthonormal directions (..., K, rank) that hold the ``wanted`` (...) share of the variance.

    Gaussian directions are stretched along the axes of the covariance by a power of its eigenvalues; the power is searched.
    """
    values, axes = torch.linalg.eigh(covariance)
    values = values.clamp(min=1e-9 * float(values.max().clamp(min=1e-9)))
    draw = torch.randn((*values.shape, rank), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(values)
    low, high = torch.full_like(wanted, -64.0), torch.full_like(wanted, 64.0)  # two axes may be nearly alike
    for _ in range(42):
        power = (low + high) / 2
        stretch = values.log().sub(values.log().mean(-1, keepdim=True)) * power[..., None]
        basis = axes @ torch.linalg.qr(stretch.clamp(-60, 60).exp()[..., None] * draw)[0]
        more = share(basis, covariance) < wanted
        low, high = torch.where(more, power, low), torch.where(more, high, power)
    return basis


# ---- what is compared ---------------------------------------------------------------------------------------------


def pairs_of(mixture: Mixture, limit: int) -> dict[str, list[tuple[Sequence, Sequence]]]:
    """Source -> held-out items as text alone and frames alone, at most ``limit`` and one of each group (a story)."""
    found = {}
    for source, pairs, groups in evaluate.captioned(mixture, limit):
        first = np.unique(groups, return_index=True)[1]
        if len(first) >= MIN_ITEMS:
            found[source] = [pairs[i] for i in sorted(first)]
    return found


def kind_pairs(run: Run, world: WorldConfig, each: int = 8) -> tuple[list[Sequence], list[int], list[Sequence]]:
    """Every kind of a world, ``each`` times as its name in a text that tells neither its looks nor what it does, with the
    position of the name's last id, and four times as its portrait, once at every place."""
    assert run.visual is not None
    texts: list[Sequence] = []
    at: list[int] = []
    kinds, pictures = make_kinds(world), []
    for k, kind in enumerate(kinds):
        for n in range(each):
            tongue = world.languages[n % len(world.languages)]
            rng = stream(world, "alignment", k, n)
            other = (k + rng.randrange(1, len(kinds))) % len(kinds)
            spec = MachineSpec(rng.choice(world.devices), k, other)
            told = words.opening(spec, kind, kinds[other], rng, tongue, looks=False)
            name = kind.kana if tongue == "ja" else kind.name
            begin = told.casefold().find(name)
            if begin < 0:
                raise DataError(f"a text about {name} does not name it; was {world} made by another version?")
            ids = run.text.encode(told)
            ends = np.cumsum(run.text.id_bytes[ids])
            ends += len(told.encode()) - ends[-1]  # SentencePiece opens a text with a space of its own
            texts.append((seq.text(run.text.enclose(ids)),))
            at.append(1 + int(np.searchsorted(ends, len(told[: begin + len(name)].encode()))))
        size = ask.read_options(run).size
        pictures += [portrait([(kind, CELL * (place + 0.5), 0.0)], size) for place in range(4)]
    codes = run.visual.encode(np.stack(pictures)).reshape(len(pictures), 1, run.visual.rows, run.visual.columns)
    return texts, at, [(seq.frames(seq.group(clip, run.patch)),) for clip in codes]


def compare(text: Reading, frames: Reading, rank: int, times: tuple[int, int] = (1, 1)) -> dict[str, Any]:
    """A row: ``n``, ``k``, and for each of `PAIRS` a list over layers. ``times``: readings of an item, which are averaged."""
    layers, n = len(text.mean), text.pooled["K"].shape[1] // times[0]
    sides = {"K1": (text, "K", times[0]), "Q3": (text, "Q", times[0]), "K2": (frames, "K", times[1])}
    points = {s: r.pooled[kind].reshape(layers, n, t, -1).mean(2) for s, (r, kind, t) in sides.items()}
    bases = {s: principal(r.covariance[kind], rank) for s, (r, kind, _) in sides.items()}
    k = min(10, n // 4)
    row: dict[str, Any] = {"n": n, "k": k}
    for pair in PAIRS:
        a, b = pair.split()
        row[pair] = [overlap(points[a][i], points[b][i], k) for i in range(layers)]
        for i, cosine in enumerate(angles(bases[a], bases[b]).mean(-1).tolist()):
            row[pair][i]["angles"] = cosine
    return row


# ---- the probe ----------------------------------------------------------------------------------------------------


@contextmanager
def changed(model: Model, bases: Tensor, mean: Tensor, how: Literal["zero", "swap"], seed: int = 0) -> Iterator[None]:
    """While this lasts, keys of text lack their part in ``bases`` (T, G, K, rank), or have that of another position's."""
    c = model.config

    def hook_of(layer: int) -> Callable[..., tuple[Tensor, Tensor]]:
        basis, middle = bases[layer].float(), mean[layer].float()

        def hook(module: Any, given: tuple, made: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            n_text, (qk, values) = given[1], made
            keys = qk[:n_text, c.heads :].float()
            part = torch.einsum("ngk,gkr->ngr", keys - middle, basis)
            new = torch.zeros_like(part)
            if how == "swap":
                order = torch.randperm(n_text, generator=torch.Generator().manual_seed(1000 * seed + layer))
                new = part[order.to(part.device)]
            qk = qk.clone()
            qk[:n_text, c.heads :] = (keys + torch.einsum("ngr,gkr->ngk", new - part, basis)).type_as(qk)
            return qk, values

        return hook

    hooks = [project.register_forward_hook(hook_of(i)) for i, project in enumerate(_projections(model))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


Costs = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]  # what is measured -> values, units and groups of items


def probe(
    model: Model,
    text: Reading,
    frames: Reading,
    costs: Callable[[], Costs],
    rank: int,
    controls: int = CONTROLS,
    bar: tqdm | None = None,
) -> dict[str, Any]:
    """What text loses without the visual part of its keys, and without as much of them elsewhere.

    ``share`` of the variance of text's keys that the visual part holds; ``plain``: what -> value; ``zero`` and ``swap``: what ->
    ``value``, ``change`` and ``stderr`` (paired by item, clustered by group), ``controls``, their changes, and ``p``, by rank: how many of
    controls and visual part lose at least as much as the visual part, of all; the least that c controls can give is 1 / (c + 1).
    """

    def measured() -> Costs:
        found = costs()
        if bar is not None:
            bar.update(1)
        return found

    seen = principal(frames.covariance["K"], rank)
    held = share(seen, text.covariance["K"])
    others = [matched(text.covariance["K"], held, rank, seed) for seed in range(controls)]
    plain = measured()
    row: dict[str, Any] = {"rank": rank, "share": float(held.mean())}
    row["plain"] = {what: evaluate.ratio(*found)[0] for what, found in plain.items()}
    for how in ("zero", "swap"):
        rows: dict[str, Any] = {}
        for basis in (seen, *others):
            with changed(model, basis, text.mean, how):
                now = measured()
            for what, (values, units, groups) in now.items():
                change, error = evaluate.ratio(values - plain[what][0], units, groups)
                if what not in rows:
                    rows[what] = {"value": row["plain"][what] + change, "change": change, "stderr": error, "controls": []}
                else:
                    rows[what]["controls"].append(change)
        for what, r in rows.items():
            loss = 1 if what == "bits_per_byte" else -1  # all others are right answers
            worse = sum(loss * c >= loss * r["change"] for c in r["controls"])
            r["p"] = (1 + worse) / (1 + controls)
        row[how] = rows
    return row


def _costs(run: Run, mixture: Mixture, world: WorldConfig | None, limit: int) -> Callable[[], Costs]:
    """Held-out documents in bits a byte; of a world also right answers about what was read, seen and both, by text alone."""
    held = [(s, u) for s in mixture.held.values() if s.route == "t2t" and not s.told for u in mixture.held_units(s, limit)]
    documents = [mixture.sequence(s, u) for s, u in held]
    bytes_of = np.array([evaluate.units(d, run.text.id_bytes) for d in documents])
    groups = np.array([int(s.source.group[s.unit[u, 0]]) for s, u in held])
    asked = {g: make_questions(world, g, 1, world.languages) for g in ("read", "both", "seen")} if world else {}

    def costs() -> Costs:
        found: Costs = {}
        if documents:
            found["bits_per_byte"] = evaluate.bits(run.model, documents), bytes_of, groups
        for group, questions in asked.items():
            right = ask.credit(ask.score(run.model, run.text, questions), np.array([q.answer for q in questions]))
            pair = np.array([min(q.first, q.second) * 10_000 + max(q.first, q.second) for q in questions])
            found[group] = right, np.ones(len(right)), pair
        return found

    return costs


# ---- a run --------------------------------------------------------------------------------------------------------


def measure(
    folder: Path,
    data: Path | None = None,
    world: WorldConfig | None = None,
    limit: int = 256,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Alignment in every checkpoint that a run keeps and before its first step, and the probe at its end.

    ``world``: the run's world; then every kind by its name and its portrait is one more source, "kinds". Raises ConfigError for
    a run that has no frames or was exported, and DataError where the data has too few captioned held-out items.
    """  # fmt: skip
    run = Run(folder, device)
    if run.visual is None:
        raise ConfigError(f"{folder} was prepared from text alone; there are no frames to be aligned with")
    if world:
        check_names(run, world)
    # Also of an arm that never read a caption.
    mixture = run.mixture(data, routes=("t2t", "t2v"), source_weights=())
    seed = mixture.seed
    pairs = pairs_of(mixture, limit)
    if not pairs:
        raise DataError(
            f"{data or run.config['data']}: no source has {MIN_ITEMS} captioned held-out items, in groups of their own, among {limit} (--limit)"
        )
    named = kind_pairs(run, world) if world else None
    rank = max(1, run.model.config.head_size // 8)
    steps: list[tuple[int, Path | None]] = [] if run.config.get("init") else [(0, None)]
    kept = [(int(p.name[5:]), p) for p in checkpoint.checkpoints(run.home / "checkpoints")]
    steps += [(step, path) for step, path in kept if step <= run.step]  # of a checkpoint, those before it
    rows = []
    with tqdm(total=len(steps) + 1 + 2 * (1 + CONTROLS), desc="alignment", unit="pass", disable=not progress) as bar:
        for step, path in steps:
            model = Model(run.model.config, seed).to(device).eval()
            if path is not None:
                checkpoint.load_weights(checkpoint.weights(path), model)
            row: dict[str, Any] = {"step": step, "sources": {}}
            if named and world:
                texts, at, portraits = named
                kinds = len(make_kinds(world))
                times = len(texts) // kinds, len(portraits) // kinds
                row["sources"]["kinds"] = compare(read(model, texts, at), read(model, portraits), rank, times)
            for source, items in pairs.items():
                text, frames = (read(model, [p[side] for p in items]) for side in (0, 1))
                row["sources"][source] = compare(text, frames, rank)
            rows.append(row)
            bar.update(1)
        text, frames = (read(run.model, [p[side] for items in pairs.values() for p in items]) for side in (0, 1))
        probed = probe(run.model, text, frames, _costs(run, mixture, world, limit), rank, bar=bar)
    return {
        "layer": run.model.config.layers // 2 + 1,
        "rank": rank,
        "head_size": run.model.config.head_size,
        "steps": rows,
        "probe": probed,
    }


def table(found: dict[str, Any]) -> str:
    """`measure` as text: the last checkpoint by layer, the declared layer through training, the probe."""
    lines, last, at = [], found["steps"][-1], found["layer"] - 1
    random = found["rank"] / found["head_size"]
    for source, row in last["sources"].items():
        lines.append(f"{source}, step {last['step']}: {row['n']} items, share of their {row['k']} nearest neighbours in common")
        lines.append(f"  {'':<10}" + "".join(f"{pair.replace(' ', ' ~ ') + ' (null)':>20}{'angles':>8}" for pair in PAIRS))
        for i in range(len(row[PAIRS[0]])):
            cells = [(f"{c['overlap']:.3f} ({c['null']:.3f})", c["angles"]) for c in (row[p][i] for p in PAIRS)]
            shown = "".join(f"{near:>20}{cosine:>8.3f}" for near, cosine in cells)
            lines.append(f"  layer {i + 1:<4}" + shown + ("  declared" if i == at else ""))
        for pair in PAIRS:
            told = (
                f"{s['step']}: {c['overlap']:.3f} (p {c['p']:.3f})"
                for s in found["steps"]
                for c in [s["sources"][source][pair][at]]
            )
            lines.append(f"  {pair.replace(' ', ' ~ ')}, layer {at + 1}, by step: {', '.join(told)}")
    lines.append(
        f"angles: mean squared cosine of {found['rank']} of {found['head_size']} directions a head; {random:.3f} for random ones"
    )
    probed = found["probe"]
    lines.append(
        f"\nvisual part of text's keys: {probed['share']:.1%} of their variance; without it, and without as much elsewhere"
    )
    lines.append(
        f"  {'':<16}{'plain':>9}" + "".join(f"{how:>9}{'change':>19}{'controls':>20}{'p':>7}" for how in ("zero", "swap"))
    )
    for what, plain in probed["plain"].items():
        line = f"  {what:<16}{plain:>9.3f}"
        for how in ("zero", "swap"):
            r = probed[how][what]
            change, others = (
                f"{r['change']:+.3f} ± {r['stderr']:.3f}",
                f"{min(r['controls']):+.3f} to {max(r['controls']):+.3f}",
            )
            line += f"{r['value']:>9.3f}{change:>19}{others:>20}{r['p']:>7.2f}"
        lines.append(line)
    return "\n".join(lines)
