"""The chain-reaction world: everything in it is a function of (seed, part, index).

    OUT/clips/     videos/*.mp4 + metadata.jsonl   clips; the text is how the clip opens, never how it ends
    OUT/told/      videos/*.mp4 + metadata.jsonl   clips of kinds that are spoken of; the text tells the whole event
    OUT/stills/    images/*.png + metadata.jsonl   what every kind is called and looks like, and openings
    OUT/text/      english.txt, japanese.txt       documents without pictures, divided by blank lines
    OUT/world.json                                 options, kinds with their hidden physics, counts, the audit

Kinds are parted into four groups, and with them the facts (kind, kind, device) -> outcome:

    read      spoken of, never shown moving        in stills, told in text
    seen      shown moving, never spoken of        in stills and clips
    both      shown moving and spoken of           in stills, clips, told clips and text
    neither   named and shown standing             in stills only

No text tells or implies how a *seen* or *neither* kind behaves, nor does how often it is named; ``audit_world`` counts that and a
world with a leak is not written. What happened in a clip is in no file beside it: ``simulate(config, index)`` computes it again.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import permutations
from multiprocessing import get_context
from pathlib import Path
from random import Random

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from quadrivium.config import from_dict
from quadrivium.data import language as words
from quadrivium.data.language import LANGUAGES, Language
from quadrivium.data.machine import CELL, COLOURS, DEVICES, FINISHES, LINKS, LOOKS, OUTLINES, PATTERNS, Kind, MachineSpec, Scene
from quadrivium.data.machine import opening as opening_picture
from quadrivium.data.machine import portrait as portrait_picture
from quadrivium.data.machine import run as run_machine
from quadrivium.data.shards import whole
from quadrivium.errors import ConfigError, DataError, command

GROUPS = ("read", "seen", "both", "neither")
SPOKEN = ("read", "both")
PARTS = ("clips", "told", "stills", "text")
MASSES = (1.0, 3.0, 7.5)  # far enough apart that the small accidents of placing do not decide
FPS = 8
FORM = 2  # raised where equal options write another world than before. 2: every kind is named as often as any other
CHUNK = 50  # items a worker does at a time; the result does not depend on it


@dataclass(frozen=True)
class WorldConfig:
    """Options of a world. The same options give the same bytes."""

    seed: int = 0  # of everything in it: kinds, machines, sentences
    kinds: int = 64  # of pieces, each with a name, a look and a hidden mass, bounce and friction
    shares: tuple[float, float, float, float] = (0.19, 0.25, 0.44, 0.12)  # of kinds: read, seen, both, neither
    devices: tuple[str, ...] = tuple(DEVICES)  # what machines are made of
    links: int = 3  # the longest machine; 1 leaves bells and buckets away
    jitter: float = 1.0  # how far the small accidents of placing go
    variation: float = 1.0  # how far mass, bounce and friction of kinds spread around their middle, within a level of mass
    mirror: bool = False  # half of the machines turned left to right
    clips: int = 2000  # whose text, if any, ends where the event begins
    clip_mix: tuple[float, float, float] = (0.5, 0.3, 0.2)  # clips of two seen kinds, of two both kinds, of one each
    narrated: bool = True  # clips carry a caption of how they open; without, text is only ever paired with what it shows
    leads: float = 0.0  # share of these captions that lead up to the outcome instead: what is set off, a question, an order
    told: int = 1000  # clips whose text tells the whole event, of kinds that are seen and spoken of
    nameless: float = 0.5  # share of told clips whose account, and of documents whose outcome, names nobody
    stills: int = 1500  # single frames with a caption, before anything happens
    portraits: float = 0.4  # share of stills that show one or two kinds alone; the rest are openings of machines
    narrations: int = 4000  # text documents in each language
    knowledge: float = 0.5  # share of documents that state or ask what happens; the rest tell what happened
    languages: tuple[Language, ...] = LANGUAGES  # of captions, documents and questions
    size: int = 64  # pixels a side
    frames: int = 8  # a clip; they always span the same time
    # no influence on what is written
    processes: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def __post_init__(self) -> None:
        def need(good: bool, message: str) -> None:
            if not good:
                raise ConfigError(f"world: {message}")

        need(
            8 <= self.kinds <= LOOKS,
            f"kinds must be 8 to {LOOKS}, the number of looks that can be told apart, not {self.kinds}",
        )
        need(
            len(self.shares) == 4 and min(self.shares) >= 0 and abs(sum(self.shares) - 1) < 1e-6,
            "shares must be four shares that sum to 1",
        )
        need(
            len(self.clip_mix) == 3 and min(self.clip_mix) >= 0 and abs(sum(self.clip_mix) - 1) < 1e-6,
            "clip_mix must be three shares that sum to 1",
        )
        need(bool(self.devices) and set(self.devices) <= set(DEVICES), f"devices must be some of {', '.join(DEVICES)}")
        need(
            bool(self.languages) and set(self.languages) <= set(LANGUAGES), f"languages must be some of {', '.join(LANGUAGES)}"
        )
        need(1 <= self.links <= 3, f"links must be 1 to 3, not {self.links}")
        need(6 <= self.frames <= 12, f"frames must be 6 to 12, not {self.frames}")
        need(16 <= self.size <= 512 and self.size % 16 == 0, f"size must be a multiple of 16 from 16 to 512, not {self.size}")
        need(min(self.clips, self.told, self.stills, self.narrations) >= 0, "counts must not be negative")
        for name in ("portraits", "knowledge", "nameless", "jitter", "variation", "leads"):
            need(0 <= getattr(self, name) <= 1, f"{name} lies between 0 and 1, it is not {getattr(self, name)}")
        need(self.processes >= 1, "processes must be at least 1")


def stream(config: WorldConfig, *key: str | int) -> Random:
    """A generator of its own for every (seed, key): a string seed is hashed by SHA-512, the same in every process."""
    return Random("/".join(map(str, ("quadrivium", config.seed, *key))))


# ---- kinds --------------------------------------------------------------------------------------------------------


def _group_sizes(config: WorldConfig) -> list[int]:
    """Kinds in each group: at least two in the groups whose kinds meet each other, at least one in *neither*."""
    sizes = [max(least, round(share * config.kinds)) for share, least in zip(config.shares, (2, 2, 2, 1), strict=True)]
    while sum(sizes) != config.kinds:
        step = 1 if sum(sizes) < config.kinds else -1
        sizes[2 if step > 0 or sizes[2] > 2 else sizes.index(max(sizes))] += step
    return sizes


def _looks(rng: Random, count: int) -> list[tuple[str, str, str]]:
    """Looks as different as ``count`` allows: each next one has the fewest neighbours that differ in one trait only."""
    free = [(c, p, o) for c in COLOURS for p in PATTERNS for o in OUTLINES]
    rng.shuffle(free)
    near = dict.fromkeys(free, 0)
    chosen: list[tuple[str, str, str]] = []
    while len(chosen) < count:
        best = min(near, key=lambda look: near[look])  # the first of equals, in shuffled order
        del near[best]
        chosen.append(best)
        for other in near:
            near[other] += sum(a != b for a, b in zip(best, other, strict=True)) == 1
    rng.shuffle(chosen)
    return chosen


@lru_cache(maxsize=16)
def make_kinds(config: WorldConfig) -> tuple[Kind, ...]:
    """The world's kinds. ``MachineSpec.first`` and ``.second`` are places in this tuple."""
    rng = stream(config, "kinds")
    names = words.invent_names(rng, config.kinds)
    looks = _looks(rng, config.kinds)
    kinds = []
    for group, size in zip(GROUPS, _group_sizes(config), strict=True):
        levels = [k % 3 for k in range(size)]
        rng.shuffle(levels)
        for level in levels:
            (name, kana), (colour, pattern, outline) = names.pop(), looks.pop()
            spread = [config.variation * rng.uniform(-1, 1) for _ in range(3)]
            mass, bounce, friction = MASSES[level] * (1 + 0.03 * spread[0]), 0.915 + 0.035 * spread[1], 0.18 + 0.02 * spread[2]
            kinds.append(
                Kind(name, kana, colour, pattern, outline, round(mass, 4), round(bounce, 4), round(friction, 4), level, group)
            )
    rng.shuffle(kinds)
    return tuple(kinds)


@lru_cache(maxsize=64)
def _members(config: WorldConfig, groups: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(k for k, kind in enumerate(make_kinds(config)) if kind.group in groups)


def _draw_pair(config: WorldConfig, rng: Random, first: tuple[str, ...], second: tuple[str, ...]) -> tuple[int, int]:
    """Two different kinds of the given groups, every kind as likely as any other: drawn by level of mass, the kinds of the level that
    has fewest would be named more often, and how often a name is met would tell what it weighs (docs/LOG.md, 2026-11-29)."""
    one, other = _members(config, first), _members(config, second)
    if not one or not other or (one == other and len(one) == 1):
        raise ConfigError(f"world: groups {first} and {second} hold no two different kinds; raise kinds or their shares")
    while True:
        a, b = rng.choice(one), rng.choice(other)
        if a != b:
            return a, b


# ---- machines -----------------------------------------------------------------------------------------------------


def draw_spec(config: WorldConfig, part: str, index: int) -> MachineSpec:
    """The machine of item ``index`` of ``part`` ("clips", "told", "stills", "text")."""
    rng = stream(config, part, index, "spec")
    groups: tuple[tuple[str, ...], tuple[str, ...]]
    if part == "clips":
        mixed = rng.choice(((("seen",), ("both",)), (("both",), ("seen",))))
        groups = rng.choices(((("seen",), ("seen",)), (("both",), ("both",)), mixed), config.clip_mix)[0]
    elif part == "told":
        groups = (("both",), ("both",))
    elif part == "text":
        one = rng.choices((("read",), ("both",)), (0.5, 0.5))[0]
        groups = (one, rng.choice((one, SPOKEN)))
    elif part == "stills":
        groups = (GROUPS, GROUPS)
    else:
        raise ConfigError(f"world: no part {part!r}; there are {', '.join(PARTS)}")
    first, second = _draw_pair(config, rng, *groups)
    device = rng.choice(config.devices)
    finish = rng.choice([finish for finish in FINISHES[device] if LINKS[finish] <= config.links])
    x, y, z = (round(config.jitter * rng.uniform(-1, 1), 3) for _ in range(3))
    return MachineSpec(device, first, second, finish, (x, y, z), config.mirror and rng.random() < 0.5)


def simulate(config: WorldConfig, machine: int | MachineSpec, part: str = "clips", draw: bool = True) -> Scene:
    """Run a machine: item ``machine`` of ``part``, or any machine at all. Frames uint8 (F, S, S, 3) unless ``draw`` is off."""
    spec = draw_spec(config, part, machine) if isinstance(machine, int) else machine
    return run_machine(spec, make_kinds(config), config.frames, config.size, draw)


@lru_cache(maxsize=1 << 16)
def _outcome(config: WorldConfig, first: int, second: int, device: str) -> str:
    return simulate(config, MachineSpec(device, first, second), draw=False).outcome


def outcome_of(config: WorldConfig, first: int, second: int, device: str) -> str:
    """The fact (first, second, device) -> outcome: what the simulator does when nothing is out of place."""
    return _outcome(config, first, second, device)


def group_of(config: WorldConfig, first: int, second: int) -> str:
    """Group of a fact: the group of its kinds if they share one, else the two names in order ("both+seen")."""
    groups = {make_kinds(config)[k].group for k in (first, second)}
    return "+".join(sorted(groups))


def facts(config: WorldConfig, group: str, most: int | None = None) -> list[tuple[int, int, str, str]]:
    """Every fact (first, second, device, outcome) whose two different kinds are both of ``group``; with ``most``, those of so many
    pairs, drawn by chance where there are more: a hundred kinds meet in ten thousand ways, each of which takes a simulation."""
    pairs = list(permutations((k for k, kind in enumerate(make_kinds(config)) if kind.group == group), 2))
    if most and len(pairs) > most:
        pairs = stream(config, "facts", group).sample(pairs, most)
    return [(a, b, d, outcome_of(config, a, b, d)) for d in config.devices for a, b in pairs]


def caption(config: WorldConfig, spec: MachineSpec, language: Language, rng: Random) -> str:
    """A caption of how ``spec`` opens."""
    kinds = make_kinds(config)
    return words.opening(spec, kinds[spec.first], kinds[spec.second], rng, language)


# ---- items --------------------------------------------------------------------------------------------------------

TEXT_KEY: dict[Language, str] = {"en": "text", "ja": "text_ja"}


def encode_video(frames: np.ndarray, path: Path) -> None:
    """Frames uint8 (F, S, S, 3) as H.264 in full colour resolution, the same bytes every time.

    That takes one thread and a constant quantiser: x264's rate control (crf) gave one clip in fifteen other bytes
    in another process, for files 6 % smaller.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options={"qp": "8", "preset": "veryfast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv444p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(buffer.getvalue())


def _row(config: WorldConfig, file_name: str, spec: MachineSpec, texts: dict[Language, str]) -> dict:
    kinds = make_kinds(config)
    return {
        "file_name": file_name,
        **{TEXT_KEY[tongue]: text for tongue, text in texts.items()},
        "kinds": [kinds[spec.first].name, kinds[spec.second].name],
        "kind_group": group_of(config, spec.first, spec.second),
        "devices": [spec.device, *spec.finish.split()],
        "mirror": spec.mirror,
    }


def _make_clip(config: WorldConfig, part: str, index: int, folder: Path) -> dict:
    spec = draw_spec(config, part, index)
    scene = simulate(config, spec)
    name = f"videos/{index:06d}.mp4"
    encode_video(scene.frames, folder / part / name)
    kinds = make_kinds(config)
    first, second = kinds[spec.first], kinds[spec.second]
    texts = {}
    for tongue in config.languages:
        rng = stream(config, part, index, tongue)
        if part == "told":
            named = rng.random() >= config.nameless
            texts[tongue] = words.account(scene, first if named else None, second if named else None, rng, tongue)
        elif not config.narrated:
            texts[tongue] = ""
        elif config.leads and rng.random() < config.leads:
            texts[tongue] = words.question(rng.choice(words.TEMPLATES), spec, first, second, rng, tongue).rstrip()
        else:
            texts[tongue] = words.opening(spec, first, second, rng, tongue)
    return _row(config, name, spec, texts)


def _make_still(config: WorldConfig, index: int, folder: Path) -> dict:
    spec = draw_spec(config, "stills", index)
    kinds = make_kinds(config)
    first, second = kinds[spec.first], kinds[spec.second]
    rng = stream(config, "stills", index, "picture")
    name = f"images/{index:06d}.png"
    row: dict
    if rng.random() < config.portraits:
        pair = rng.random() < 0.4
        places = sorted(rng.sample([CELL * (k + 0.5) for k in range(4)], 1 + pair))
        shown = [(kind, x, 0.0) for kind, x in zip((first, second), places, strict=False)]
        picture = portrait_picture(shown, config.size)
        other = second if pair else None
        texts = {t: words.portrait(first, other, stream(config, "stills", index, t), t) for t in config.languages}
        row = {
            "file_name": name,
            **{TEXT_KEY[t]: text for t, text in texts.items()},
            "kinds": [kind.name for kind, *_ in shown],
        }
        row |= {"kind_group": group_of(config, spec.first, spec.second if pair else spec.first), "devices": [], "mirror": False}
    else:
        picture = opening_picture(spec, kinds, config.size)
        texts = {t: caption(config, spec, t, stream(config, "stills", index, t)) for t in config.languages}
        row = _row(config, name, spec, texts)
    Image.fromarray(picture).save(folder / "stills" / name, optimize=False, compress_level=6)
    return row


def _make_document(config: WorldConfig, index: int) -> dict[Language, str]:
    """One document a language; the languages tell of different machines, so that neither is a crib for the other."""
    texts: dict[Language, str] = {}
    kinds = make_kinds(config)
    for tongue in config.languages:
        rng = stream(config, "text", index, tongue)
        place = 2 * index + (tongue == "ja")
        spec = draw_spec(config, "text", place)
        first, second = kinds[spec.first], kinds[spec.second]
        if rng.random() < config.knowledge:
            what = outcome_of(config, spec.first, spec.second, spec.device)
            texts[tongue] = words.knowledge(spec.device, what, first, second, rng, tongue, spec.mirror, config.nameless)
        else:
            scene = simulate(config, spec, draw=False)
            texts[tongue] = words.account(scene, first, second, rng, tongue, config.nameless)
    return texts


def _work(task: tuple[WorldConfig, str, int, int, str]) -> list[dict]:
    """Items ``start`` to ``stop`` of a part: writes their files, returns their rows."""
    config, part, start, stop, folder = task
    if part == "text":
        return [_make_document(config, index) for index in range(start, stop)]
    if part == "stills":
        return [_make_still(config, index, Path(folder)) for index in range(start, stop)]
    return [_make_clip(config, part, index, Path(folder)) for index in range(start, stop)]


# ---- the audit ----------------------------------------------------------------------------------------------------


def _texts(folder: Path) -> Iterator[tuple[str, str]]:
    """(where, text) for every line of every .jsonl and every paragraph of every .txt, in any depth."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".jsonl":
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                if line.strip():
                    row = json.loads(line)
                    # Keys are names of columns, said of every row alike; values are what a reader can learn from.
                    yield f"{path.relative_to(folder)} line {number}", "\n".join(map(str, row.values()))
        elif path.suffix in (".txt", ".tsv", ".csv", ".md"):
            for number, paragraph in enumerate(re.split(r"\n\s*\n", path.read_text("utf-8")), 1):
                yield f"{path.relative_to(folder)} paragraph {number}", paragraph


def audit_texts(texts: Iterable[tuple[str, str]], kinds: Sequence[Kind]) -> dict:
    """Count texts that name a *seen* or *neither* kind together with any outcome word.

    Returns texts, outcome texts, mentions of each group, co-occurrences and the first few of them, and the groups in which how often a
    kind is named goes with what it weighs (`_uneven`); raises nothing.
    """
    named: Counter[str] = Counter()
    group = {kind.name: kind.group for kind in kinds} | {kind.kana: kind.group for kind in kinds}
    name = re.compile("|".join(sorted(map(re.escape, group), key=len, reverse=True)), re.IGNORECASE)
    result: dict = {"texts": 0, "outcome_texts": 0, "mentions": dict.fromkeys(GROUPS, 0), "co_occurrences": 0, "examples": []}
    for where, text in texts:
        found = {match.lower() for match in name.findall(text)}
        told = words.outcome_words(words.without_leads(text))
        result["texts"] += 1
        result["outcome_texts"] += bool(told)
        for one in found:
            result["mentions"][group[one]] += 1
        named.update(found)
        leaks = sorted(one for one in found if group[one] not in SPOKEN)
        if leaks and told:
            result["co_occurrences"] += 1
            if len(result["examples"]) < 5:
                result["examples"].append(f"{where}: {', '.join(leaks)} with {', '.join(sorted(set(told)))}")
    result["uneven"] = [g for g in GROUPS if g not in SPOKEN and _uneven([k for k in kinds if k.group == g], named)]
    return result


def _uneven(kinds: Sequence[Kind], named: Counter[str]) -> bool:
    """Whether kinds of one level of mass are named more often than those of another, beyond chance: a chi-square test of the levels'
    totals against their numbers of kinds at p = 1e-4. A text names two, so that totals vary up to twice as much as single counts."""
    levels = sorted({kind.level for kind in kinds})
    counts = [sum(named[k.name] + named[k.kana] for k in kinds if k.level == level) for level in levels]
    if len(levels) < 2 or not sum(counts):
        return False
    expected = [sum(counts) * sum(k.level == level for k in kinds) / len(kinds) for level in levels]
    chi2 = sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True)) / 2
    return chi2 > {1: 15.14, 2: 18.42}[len(levels) - 1]


def audit_world(folder: Path, kinds: Sequence[Kind] | None = None) -> dict:
    """Audit every text and metadata file of a world; DataError if any text tells what a seen or neither kind does.

    ``world.json`` is the judge's record (it holds the hidden physics) and no source of text; ``prepare`` does not read it.
    """
    folder = Path(folder)
    if kinds is None:
        kinds = [Kind(**kind) for kind in read_world(folder)["kinds"]]
    result = audit_texts(_texts(folder), kinds)
    if result["co_occurrences"]:
        raise DataError(
            f"{folder}: {result['co_occurrences']} texts tell what a seen or neither kind does, for example {result['examples'][0]}; "
            "such a world measures nothing: remove these texts or write the world again"
        )
    if result["uneven"]:
        raise DataError(
            f"{folder}: how often a kind is named goes with its mass among {' and '.join(result['uneven'])} kinds, so that counting "
            "names tells how they behave; write the world again"
        )
    return result


# ---- writing ------------------------------------------------------------------------------------------------------


def _identity(config: WorldConfig) -> dict:
    """The options that decide what is written, as JSON keeps them."""
    options = json.loads(json.dumps(asdict(config)))
    del options["processes"]
    return options


def read_world(folder: Path) -> dict:
    """``world.json`` of a finished world."""
    path = Path(folder) / "world.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        other = path.parent.is_dir() and any(path.parent.iterdir())  # into which no world is written
        cure = "give the folder that `quadrivium world` wrote" if other else f"write one with `{command('world', folder)}`"
        raise DataError(f"{folder} is no world: it has no world.json; {cure}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: damaged ({error}); delete the folder and write the world again") from None


def world_config(folder: Path) -> WorldConfig:
    """Options that the world in ``folder`` was written with."""
    return from_dict(WorldConfig, read_world(folder).get("config", {}), f"{folder / 'world.json'}: config")


def _write_rows(path: Path, rows: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def write_world(config: WorldConfig, out: Path, progress: bool = True) -> dict:
    """Write the world to ``out`` and return what ``world.json`` holds, plus ``"already": True`` if it stood there.

    Everything is written beside ``out`` and moved there at the end, audited. DataError if ``out`` holds something else.
    """
    out = Path(out)
    if (out / "world.json").is_file():
        record = read_world(out)
        if record.get("config") == _identity(config) and record.get("form", 1) == FORM:
            if progress:
                print(f"{out}: this world is already there ({record['counts']['clips']} clips)")
            return {**record, "already": True}
        raise DataError(
            f"{out}: a world with other options, or of an older form, stands here; choose another folder or delete this one"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: holds something that is no world; choose an empty or new folder")

    with whole(out) as folder:
        record = _write(config, folder, progress)
    if progress:
        print(f"{out}: {record['counts']['clips']} clips, {record['counts']['told']} told, {record['counts']['stills']} stills, "
              f"{record['counts']['documents']} documents; audit: 0 leaks in {record['audit']['texts']} texts")  # fmt: skip
    return record


def _write(config: WorldConfig, folder: Path, progress: bool) -> dict:
    kinds = make_kinds(config)
    sizes = {"clips": config.clips, "told": config.told, "stills": config.stills, "text": config.narrations}
    for part in (part for part, total in sizes.items() if total):
        (folder / part / {"stills": "images", "text": ""}.get(part, "videos")).mkdir(parents=True, exist_ok=True)
    tasks = [
        (config, part, start, min(start + CHUNK, total), str(folder))
        for part, total in sizes.items()
        for start in range(0, total, CHUNK)
    ]
    rows: dict[str, list[dict]] = {part: [] for part in PARTS}
    with tqdm(total=sum(sizes.values()), desc="world", unit="item", disable=not progress) as bar:

        def take(results: Iterable[list[dict]]) -> None:
            for task, result in zip(tasks, results, strict=True):
                rows[task[1]] += result
                bar.update(len(result))

        if config.processes == 1 or len(tasks) <= 1:
            take(map(_work, tasks))
        else:
            # Fresh processes, not forked ones: a fork of a program that already runs threads of torch can hang.
            with ProcessPoolExecutor(min(config.processes, len(tasks)), mp_context=get_context("spawn")) as pool:
                take(pool.map(_work, tasks))

    for part in ("clips", "told", "stills"):
        if sizes[part]:
            _write_rows(folder / part / "metadata.jsonl", rows[part])
    for tongue, name in (("en", "english.txt"), ("ja", "japanese.txt")):
        documents = [document[tongue] for document in rows["text"] if tongue in document]
        if documents:
            (folder / "text" / name).write_text("\n\n".join(documents) + "\n", "utf-8")
    audit = audit_world(folder, kinds)
    record = {
        "form": FORM,
        "config": _identity(config),
        "counts": {
            "kinds": dict(Counter(kind.group for kind in kinds)),
            "clips": len(rows["clips"]),
            "told": len(rows["told"]),
            "stills": len(rows["stills"]),
            "documents": sum(map(len, rows["text"])),
            "clips_by_group": dict(sorted(Counter(row["kind_group"] for row in rows["clips"]).items())),
            "sentence_forms": {tongue: words.form_count(tongue) for tongue in config.languages},
        },
        "audit": audit,
        "kinds": [asdict(kind) for kind in kinds],
    }
    (folder / "world.json").write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", "utf-8")
    return record


def contact_sheet(config: WorldConfig, path: Path, n: int = 12, columns: int = 2, side: int = 128) -> Path:
    """``n`` clips as one picture: six of their frames in a row, the opening caption below. Returns the path."""
    shown, line, gap = 6, 3, 14
    side -= side % 16
    font = ImageFont.load_default(13)
    strip_width = shown * side + (shown - 1) * line
    width, height = strip_width + gap, side + 24 + gap
    sheet = Image.new("RGB", (columns * width + gap, -(-n // columns) * height + gap), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    # Every device and outcome once before any comes twice, and among these the machines in which most happens.
    pool = [draw_spec(config, "clips", index) for index in range(max(8 * n, 60))]
    met: Counter[tuple[str, str]] = Counter()
    order = []
    for index, spec in enumerate(pool):
        scene = simulate(config, spec, draw=False)
        key = (spec.device, scene.outcome)
        order.append((met[key], -len(scene.events), index))
        met[key] += 1
    for place, (*_, index) in enumerate(sorted(order)[:n]):
        spec = pool[index]
        x, y = gap + place % columns * width, gap + place // columns * height
        for k, frame in enumerate(run_machine(spec, make_kinds(config), shown, side).frames):
            sheet.paste(Image.fromarray(frame), (x + k * (side + line), y))
        text = caption(config, spec, "en", stream(config, "clips", index, "en"))
        while draw.textlength(text, font) > strip_width:
            text = text[:-4].rstrip(" .,") + "..."
        draw.text((x, y + side + 4), text, (70, 60, 50), font)
    sheet.save(path)
    return Path(path)
