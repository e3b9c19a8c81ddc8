"""Distil: write down, as ordinary text, what the model can imagine.

    situations (every ordered pair of kinds x device x language) --imagine--> clips --read off--> votes for an outcome
        --enough samples agree--> several wordings of it, a line each in a .jsonl that `prepare` reads like any text

Nothing but the model decides what is written. The simulator judges afterwards, for ``CORPUS.report.json`` beside the corpus: how
often what was kept is so, at every level of agreement. What was voted on is kept in a file beside the corpus until
it is whole, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from quadrivium.ask import check_sight, frames_of, imagined, outcomes_told, tell, votes
from quadrivium.checkpoint import Run
from quadrivium.data import language as words
from quadrivium.data.machine import DEVICES, Scene
from quadrivium.data.questions import Question, situations
from quadrivium.data.shards import Dataset, read_json, write_atomic, write_json
from quadrivium.data.world import WorldConfig, make_kinds, stream
from quadrivium.errors import ConfigError, QuadriviumError
from quadrivium.imagine import Imagining

CHUNK = 32  # situations between two records of where the work stands


@dataclass(frozen=True)
class DistilConfig:
    """Which situations are imagined and what is kept of them."""

    groups: tuple[Literal["read", "seen", "both", "neither"], ...] = ("seen",)  # both kinds of a situation are of one group
    agree: float = 0.75  # share of samples that have to tell the same outcome
    free: bool = False  # the model's own words tell the outcome, not a choice between sentences
    wordings: int = 4  # texts for each situation that is kept
    limit: int = 0  # situations, drawn by chance; 0: all

    def __post_init__(self) -> None:
        if not 0 < self.agree <= 1 or self.wordings < 1 or self.limit < 0 or not self.groups:
            raise ValueError("agree lies in (0, 1], wordings is at least 1, limit is not negative (0: all), groups are named")


def distil(
    run: Run, world: WorldConfig, out: Path, config: DistilConfig, imagining: Imagining, progress: bool = True
) -> dict[str, Any]:
    """Write the corpus to ``out`` and its report, .report.json for .jsonl, beside it; returns the report. Work that is done is not done again.

    ConfigError where the run has no frames, was trained on another world, or something else stands at ``out``.
    """
    if out.suffix != ".jsonl":
        raise ConfigError(f"{out}: the corpus is a .jsonl file, which prepare reads; name it so")
    imagining = replace(imagining, frames=imagining.frames or frames_of(run, world))
    check_sight(run, imagining.frames)
    work = _identity(run, world, config, imagining)
    judged, part = out.with_suffix(".report.json"), out.with_name(f".{out.name}.part")
    if out.exists():
        with contextlib.suppress(QuadriviumError):
            if (found := read_json(judged, "a report")).get("identity") == work:
                return found
        raise ConfigError(f"{out} is already there and holds something else; choose another --out or delete it")
    check_names(run, world)
    asked = [q for group in config.groups for q in situations(world, group, world.languages)]
    stream(world, "distil", *config.groups).shuffle(asked)
    asked = asked[: config.limit or None]
    if not asked:
        raise ConfigError(f"groups {', '.join(config.groups)} of this world hold no two kinds; choose others")
    counts = _count(run, world, asked, config, imagining, part, work, progress)
    best, share = counts.argmax(axis=1), counts.max(axis=1) / imagining.samples
    single = (counts == counts.max(axis=1, keepdims=True)).sum(axis=1) == 1
    kept = single & (share >= config.agree - 1e-9)
    written = [
        json.dumps(line, ensure_ascii=False)
        for i in np.flatnonzero(kept)
        for line in lines(world, asked[i], int(best[i]), float(share[i]), config.wordings)
    ]
    report = {
        **judge(asked, best, share, kept),
        "texts": len(written),
        "config": {
            **asdict(config),
            "groups": list(config.groups),
            "imagining": asdict(imagining),
            "run": str(run.folder),
            "step": run.step,
        },
        "identity": work,
    }
    write_json(judged, report)
    write_atomic(out, "".join(line + "\n" for line in written).encode())  # last: its presence says complete
    part.unlink(missing_ok=True)
    return report


def _identity(run: Run, world: WorldConfig, config: DistilConfig, imagining: Imagining) -> str:
    """Changes when anything does that the corpus is made of: weights, world, options."""
    said = repr((replace(world, processes=1), config, imagining))
    for unchosen in ("tries=1, ", "jointly=False, "):  # corpora from before there was a choice stay what they are
        said = said.replace(unchosen, "")
    digest = hashlib.sha256(said.encode())
    for weight in run.model.state_dict().values():
        digest.update(weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _count(
    run: Run,
    world: WorldConfig,
    asked: Seq[Question],
    config: DistilConfig,
    imagining: Imagining,
    part: Path,
    work: str,
    progress: bool,
) -> np.ndarray:
    """Samples (n, k) that tell each outcome of each situation. Goes on from ``part`` if that holds the same work."""
    counts: list[list[float]] = []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(part.read_text(encoding="utf-8"))
        counts = stored["counts"] if stored["identity"] == work else []
    with tqdm(total=len(asked), initial=len(counts), desc="distil", unit="situation", disable=not progress) as bar:
        while len(counts) < len(asked):
            few = asked[len(counts) : len(counts) + CHUNK]
            clips = imagined(run.model, run.text, few, imagining)
            if config.free:
                told = tell(run.model, run.text, few, clips)
                counts += outcomes_told(few, told, make_kinds(world))[:, :-1].tolist()
            else:
                counts += votes(run.model, run.text, few, clips).tolist()
            write_json(part, {"identity": work, "counts": counts})
            bar.update(len(few))
    return np.array(counts)


def lines(world: WorldConfig, q: Question, best: int, share: float, wordings: int) -> Iterator[dict[str, Any]]:
    """One situation in several wordings: by turns a thing to know and an account of what happened."""
    kinds = make_kinds(world)
    first, second, what = kinds[q.first], kinds[q.second], DEVICES[q.device][best]
    for i in range(wordings):
        rng = stream(world, "distil", q.language, q.device, q.first, q.second, i)
        if i % 2:
            scene = Scene(q.spec, what, (), False, False, np.zeros((0, 1, 1, 3), np.uint8))
            text = words.account(scene, first, second, rng, q.language, world.nameless)
        else:
            text = words.knowledge(q.device, what, first, second, rng, q.language, q.mirror, world.nameless)
        yield {
            "text": text,
            "language": q.language,
            "confidence": round(share, 4),
            "device": q.device,
            "kinds": [first.name, second.name],
            "outcome": what,
            "group": f"{q.device} {first.name} {second.name}",  # stays on one side of the held-out split
        }


def judge(asked: Seq[Question], best: np.ndarray, share: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    """How often the simulator agrees: ``precision`` of what was kept, at every confidence, by device and by language."""
    right = best == np.array([q.answer for q in asked])

    def part(chosen: np.ndarray) -> dict[str, Any]:
        return {"n": int(chosen.sum()), "precision": float(right[chosen].mean()) if chosen.any() else None}

    found: dict[str, Any] = {"situations": len(asked), "kept": int(kept.sum()), "precision": part(kept)["precision"]}
    found["by_confidence"] = {f"{s:.3f}": part(share.round(3) == s) for s in np.unique(share.round(3))[::-1]}
    for by in ("device", "language"):
        values = np.array([getattr(q, by) for q in asked])
        found[f"by_{by}"] = {value: part(kept & (values == value)) for value in dict.fromkeys(values.tolist())}
    return found


def check_names(run: Run, world: WorldConfig) -> None:
    """Refuse a world whose kinds the run's data hardly names. Where the data is gone, nothing can be checked."""
    try:
        sources = Dataset(Path(run.config["data"])).sources
    except (QuadriviumError, OSError, KeyError, TypeError):
        return
    read = []
    for source in sources:
        told = np.flatnonzero(source.texts)
        read += [source.text(int(i), int(w)) for i in told[:: 1 + len(told) // 500] for w in range(int(source.texts[i]))]
    everything = " ".join(map(run.text.decode, read)).lower()
    kinds = make_kinds(world)
    named = sum(kind.name in everything or kind.kana in everything for kind in kinds)
    if named < len(kinds) / 4:
        raise ConfigError(
            f"{run.folder} was trained on texts that name {named} of the {len(kinds)} kinds of this world; "
            "give the world that its data was prepared from"
        )


def table(report: dict[str, Any]) -> str:
    """Lines for people."""
    lines = [f"{'':<16}{'situations':>11}{'as simulated':>14}"]
    blocks = {"kept": {"kept": {"n": report["kept"], "precision": report["precision"]}}}
    blocks |= {name: report[f"by_{name}"] for name in ("confidence", "device", "language")}
    for name, block in blocks.items():
        for value, row in block.items():
            label = value if name == "kept" else f"{name} {value}"
            shown = "-" if row["precision"] is None else f"{row['precision']:.3f}"
            lines.append(f"{label:<20}{row['n']:>7}{shown:>14}")
    return "\n".join(lines)
