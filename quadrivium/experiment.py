"""The experiment on the chain-reaction world: arms x seeds -> one table. Can text answer what was only ever seen?

    OUT/looks                     a visual tokenizer for all seeds, learnt from every look that a world can have
    OUT/seed-S/world, data        a world and its shards; data-oracle and data-ARM of arms that distil hold one more folder of text,
                                  extra/ARM; data-pages its documents as pictures too, on a visual tokenizer that has learnt letters
    OUT/seed-S/ARM                a run
    RESULTS/ARM-seed-S.json       what a finished cell measured. The grid goes on from these files alone, so it can be finished
                                  over several sittings and on several machines

An arm differs from the others in what its name says and in nothing else: same first weights, tokenizers, steps and order of text.
Documents begin late where frames are read, and at once where none are: the arms without frames read more of the same documents.
Arms that go on from another (distil, four-more) take the same steps more, so that distil minus four-more is what its text is worth.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import quadrivium
from quadrivium import ask, checkpoint, distil, evaluate, grid
from quadrivium.checkpoint import Run
from quadrivium.data.judge import clip_frames, judge_clips, placed
from quadrivium.data.machine import DEVICES, LOOKS
from quadrivium.data.mixture import Mixture, MixtureConfig
from quadrivium.data.questions import make_questions, situations
from quadrivium.data.shards import Dataset, read_json, sha256, write_atomic, write_json
from quadrivium.data.sources import ReadOptions
from quadrivium.data.world import GROUPS, WorldConfig, stream, write_world
from quadrivium.distil import DistilConfig
from quadrivium.errors import ConfigError, DataError, RunError
from quadrivium.grid import Job, run_jobs, without
from quadrivium.imagine import TRIES, Imagining
from quadrivium.model import ModelConfig, Sharing
from quadrivium.prepare import PrepareConfig, prepare
from quadrivium.samples import decode
from quadrivium.sequence import ROUTES
from quadrivium.statistics import holm, interval, paired, plus_minus
from quadrivium.train import TrainConfig, autocast, cores, shaped, train_routes
from quadrivium.visual import VisualConfig


@dataclass(frozen=True)
class Arm(grid.Arm):
    """One training condition: what it reads, after what, and what else is another."""

    extra: str = ""  # one more folder of text, "oracle" or "distil"; "pages": documents drawn as pictures
    after: str = ""  # go on from this arm's run
    ahead: bool = True  # captions of clips foretell the last frame
    sharing: Sharing | None = None  # of weights, if it is not that of all arms
    contrast: float = 0.0  # weight of an objective by which captions and frames find each other, after half of the layers

    def mixture(self, config: MixtureConfig, wait: int = 0) -> MixtureConfig:
        """What this arm reads of what all arms could read. Documents ``wait`` for so many steps where frames come before them: not
        where none are read, nor where it goes on from another arm."""
        ahead = config.ahead if self.ahead else 0.0
        rendered = config.rendered or self.extra == "pages"
        waits = wait and not self.after and self.routes != ("t2t",)
        documents = ["world/text", *["world/text, rendered"] * rendered, *["oracle"] * (self.extra == "oracle")]
        begin = (*config.begin, *((source, wait) for source in documents if waits))
        return replace(super().mixture(config), ahead=ahead, begin=begin, rendered=rendered)

    def model(self, config: ModelConfig) -> ModelConfig:
        contrast = replace(config.contrast, weight=self.contrast) if self.contrast else config.contrast
        return replace(config, sharing=self.sharing or config.sharing, contrast=contrast)


ARMS: dict[str, Arm] = {
    "text": Arm("text alone", ("t2t",)),
    "text-equal": Arm("text alone, at the compute of all routes", ("t2t",), full=True),
    "captions": Arm("text and captions, no pixels, at the compute of all routes", ("t2t",), captions=True),
    "four": Arm("all routes"),
    "four-more": Arm("all routes, for as many steps more as distil takes", after="four"),
    "distil": Arm("all routes, then its own imaginations as text", extra="distil", after="four"),
    "oracle": Arm("all routes, and the seen facts written down", extra="oracle"),
    "no-ahead": Arm("all routes, captions foretell nothing", ahead=False),
    "no-t2t": Arm("without text to text", without("t2t")),
    "no-t2v": Arm("without text to frames", without("t2v", "tv2v")),
    "no-v2t": Arm("without frames to text", without("v2t")),
    "no-v2v": Arm("without frames to frames", without("v2v", "tv2v")),
    "share-all": Arm("all routes, text and vision in the same weights", sharing="all"),
    "share-attention": Arm("all routes, attention in the same weights", sharing="attention"),
    "share-cross": Arm("all routes, encoders and decoders joined by cross-attention", sharing="cross"),
    "cross-distil": Arm("share-cross, then its own imaginations as text", extra="distil", after="share-cross", sharing="cross"),
    "distil-twice": Arm("distil, then what it imagines after that as text", extra="distil", after="distil"),
    "cross-distil-twice": Arm(
        "cross-distil, then what it imagines after that as text", extra="distil", after="cross-distil", sharing="cross"
    ),
    # Of this weight its slope is a tenth of that of all routes in the text encoder; 0.1 cost text much (docs/how-it-works.md).
    "contrast": Arm(
        "share-cross, whose encoders also let captions and frames find each other", sharing="cross", contrast=0.003
    ),
    "pages": Arm("all routes, and documents as pictures of text too", extra="pages"),
}


PRIMARY = "seen facts, direct: four minus captions, paired by seed"  # declared before any run, and no option


@dataclass(frozen=True)
class ExperimentConfig:
    """Size of one cell."""

    world: WorldConfig = field(
        default_factory=lambda: WorldConfig(
            links=1, frames=7, clips=7000, told=5000, stills=9000, portraits=0.3, narrations=5000, knowledge=0.7,
            jitter=0.2, variation=0.2, leads=0.7,
        )
    )  # fmt: skip
    prepare: PrepareConfig = field(
        default_factory=lambda: PrepareConfig(
            read=ReadOptions(fps=8 / 3),  # the first, the middle and the last frame of a world's clip of seven
            vocab=2048,
            # Cells of small context give codes that are easy to predict: sky is one code wherever it is.
            visual=VisualConfig(levels=(4, 4, 4, 4), encoder_depth=0),
            # Not minutes: cells must agree.
            visual_train=TrainConfig(steps=8000, lr=2e-3, optimizer="adamw", weight_decay=0.0, betas=(0.9, 0.99)),
            sample_frames=6000,
        )
    )
    # Weights that the modalities do not share: with shared ones, naming what is seen was learnt half as fast (docs/LOG.md).
    model: ModelConfig = field(default_factory=lambda: ModelConfig(sharing="none", layers=4, width=128, heads=4, patch=4))
    mixture: MixtureConfig = field(
        default_factory=lambda: MixtureConfig(
            positions=2048,
            weights=(("t2t", 1.0), ("t2v", 2.6), ("v2t", 0.9), ("v2v", 0.4), ("tv2v", 0.2)),
            # Stills teach what each kind is called, clips of seen kinds what it does, told ones how an outcome is put into words.
            source_weights=(
                ("t2v/world/stills", 2.5), ("t2v/world/clips", 4.0), ("t2v/world/told", 0.3),
                ("v2t/world/stills", 2.0), ("v2t/world/clips", 0.4), ("v2t/world/told", 4.0),
                ("v2v/world/clips", 2.0),
            ),
            ahead=8.0,  # with it text knows about twice as much of what was only seen (docs/figures.md)
        )
    )  # fmt: skip
    seen_first: float = 0.3  # share of the steps before documents are read, so that they find there what was seen
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=6000, lr=5e-3, decay=0.7))
    distil_train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1500))
    imagining: Imagining = field(default_factory=lambda: Imagining(samples=4, tries=TRIES, batch=256))
    distil: DistilConfig = field(default_factory=lambda: DistilConfig(limit=1000))
    each: int = 2  # questions for every template, language, device and outcome
    looked: int = 1  # of these, how many are also answered by looking at clips, which takes longer


def small() -> ExperimentConfig:
    """The experiment at a third of its cost: three devices, one language, and what it takes to learn these.

    Two thirds of the kinds are both seen and told, as more of them helped in the first form of the experiment (docs/earlier.md), and
    documents are many, or they are learnt by heart.
    """
    full = ExperimentConfig()
    world = replace(
        full.world, kinds=64, shares=(0.0625, 0.125, 0.6875, 0.125), devices=("ramp", "seesaw", "table"), languages=("en",), clips=4000,
        told=3000, stills=4000, narrations=12000,
    )  # fmt: skip
    return replace(
        full,
        world=world,
        prepare=replace(full.prepare, visual_train=replace(full.prepare.visual_train, steps=3000)),
        mixture=replace(full.mixture, positions=2450, weights=(("t2t", 2.0), *full.mixture.weights[1:])),
        train=replace(full.train, steps=2000),
        distil_train=replace(full.distil_train, steps=1000),
        each=4,
        looked=2,
    )


def run_experiment(
    out: Path,
    config: ExperimentConfig | None = None,
    seeds: Iterable[int] = range(1, 6),  # options were chosen on seed 0
    arms: Iterable[str] = ("text", "captions", "four", "distil"),
    results: Path | None = None,
    workers: int = 0,
    progress: bool = True,
    device: str = "cpu",
) -> dict[str, Any]:
    """Run the cells that ``results`` (by default OUT/results) does not hold yet; returns `summary` of all that it holds.

    ``workers``: cells at a time, each on its share of the cores; 0: one a core. Raises ConfigError for an unknown arm and
    RunError where ``results`` holds cells of another size, or where a cell failed (the others are finished first).
    """
    config, out = config or ExperimentConfig(), out.resolve()
    results, arms, seeds = (results or out / "results").resolve(), list(arms), list(seeds)
    for arm in arms:
        if arm not in ARMS:
            raise ConfigError(f"arm {arm!r} is unknown; arms are {', '.join(ARMS)}")
    grid.check(seeds, workers)
    grid.equal_steps(config.train)
    grid.equal_steps(config.distil_train, "--distil-train")
    grid.comparable(config.mixture)
    if config.prepare.visual_tokenizer:
        raise ConfigError("--prepare.visual-tokenizer is set by the experiment, which learns one of every look; leave it out")
    shaped(replace(config.model, vocab=config.prepare.vocab), config.mixture)
    if config.each < 1 or not 1 <= config.looked <= config.each:
        raise ConfigError(f"each is {config.each} and looked {config.looked}; each is at least 1, and looked is 1 to each")
    if not 0 <= config.seen_first < 1:
        raise ConfigError(f"seen_first is {config.seen_first}; it is a share of the steps, from 0 to below 1")
    clip = clip_frames(config.world, config.prepare.read)
    if config.imagining.frames and not 2 <= config.imagining.frames <= clip:
        raise ConfigError(
            f"imagining.frames is {config.imagining.frames}; clips are read as {clip} frames, and one shows no outcome"
        )
    declared = grid.plain(config)
    declared["world"].pop("processes")
    declared |= {"device": torch.device(device).type, "primary": PRIMARY}
    checkpoint.check_own(out, "experiment.json", "looks", "results")
    grid.declare([folder / "experiment.json" for folder in (out, results)], config, declared)
    if not config.world.narrated:  # clips have no words then, and these streams are not there
        kept = (w for w in config.mixture.source_weights if w[0] not in ("t2v/world/clips", "v2t/world/clips"))
        config = replace(config, mixture=replace(config.mixture, source_weights=tuple(kept)))
    jobs: dict[str, Job] = {}
    for seed in seeds:
        for arm in sorted(arms, key=_after, reverse=True):  # what waits for another comes first once it can begin
            _plan(jobs, out, results, config, arm, seed, device)
    if jobs:
        run_jobs(jobs, workers or min(cores(), len(arms) * len(seeds)), progress)
    found = summary(results)
    write_json(out / "results.json", found)
    return found


# ---- cells --------------------------------------------------------------------------------------------------------


def _after(arm: str) -> int:
    """How many arms are trained before this one."""
    return 1 + _after(ARMS[arm].after) if ARMS[arm].after else 0


def _plan(
    jobs: dict[str, Job],
    out: Path,
    results: Path,
    config: ExperimentConfig,
    arm: str,
    seed: int,
    device: str,
    train: bool = False,
) -> None:
    """Add a cell that is not measured yet, and what it needs, to ``jobs``. With ``train``, the arm's training alone if it is not
    finished yet: a job of its own where another arm goes on from it, which then begins before the first is measured."""
    cell, before = f"{arm}-seed-{seed}", ARMS[arm].after
    training, home = f"train-{cell}", out / f"seed-{seed}" / arm
    name = training if train else cell
    if name in jobs or (grid.finished(home) if train else (results / f"{cell}.json").is_file()):
        return
    needs = [_plan_data(jobs, out, config, seed), training]
    if before:
        _plan(jobs, out, results, config, before, seed, device, train=True)
        needs.append(f"train-{before}-seed-{seed}")
    needs = [n for n in needs if n in jobs]
    steps = (config.distil_train if before else config.train).steps or 0
    cost, run = (4e5, None) if training in needs else (ARMS[arm].share * config.mixture.positions * steps, home)
    arguments = (out, config, arm, seed, device)
    jobs[name] = Job(name, _train if train else _cell, arguments if train else (*arguments, results), tuple(needs), cost, run)


def _plan_data(jobs: dict[str, Job], out: Path, config: ExperimentConfig, seed: int) -> str:
    name, world = f"shards-seed-{seed}", f"world-seed-{seed}"
    if name not in jobs and not (out / f"seed-{seed}" / ".prepared").is_file():
        looks = out / "looks" / "data" / "tokenizers" / "visual" / "config.json"
        if "looks" not in jobs and not looks.is_file():
            jobs["looks"] = Job("looks", _looks, (out, config), (), 1e6)
        jobs[world] = Job(world, _world, (out, config, seed), (), 4e5)
        jobs[name] = Job(name, _data, (out, config, seed), (world, *(["looks"] if "looks" in jobs else [])), 2e5)
    return name


def _looks(out: Path, config: ExperimentConfig) -> None:
    """Learn the visual tokenizer from a world that has every look; no cell is measured on it."""
    clips, stills = min(1500, config.world.clips), min(3000, config.world.stills)  # so many are plenty
    seed = 10_000 + config.world.seed
    world = replace(config.world, seed=seed, kinds=LOOKS, clips=clips, told=0, stills=stills, narrations=0, processes=1)
    write_world(world, out / "looks" / "world", progress=False)
    prepare([out / "looks" / "world"], out / "looks" / "data", config.prepare, progress=False)


def _world(out: Path, config: ExperimentConfig, seed: int) -> None:
    """A seed's world."""
    home, world = out / f"seed-{seed}", replace(config.world, seed=seed, processes=1)
    write_world(world, home / "world", progress=False)
    for group in GROUPS:  # a world that cannot be asked about is refused before anything is trained on it
        make_questions(world, group, config.each, world.languages)


def _data(out: Path, config: ExperimentConfig, seed: int) -> None:
    """A seed's shards, on the visual tokenizer of all seeds."""
    home = out / f"seed-{seed}"
    visual = out / "looks" / "data" / "tokenizers" / "visual"
    base = replace(config.prepare, visual_tokenizer=visual)
    prepare([home / "world"], home / "data", base, progress=False)
    write_json(home / ".prepared", {"seed": seed})


def _seen_facts(config: WorldConfig, wordings: int) -> list[dict[str, Any]]:
    """Every seen fact as text, in every language, worded as distilled ones are: what the oracle reads and no other arm does."""
    asked = situations(config, "seen", config.languages)
    rows = [line for q in asked for line in distil.lines(config, q, q.answer, 1.0, wordings)]
    stream(config, "oracle").shuffle(rows)
    return rows


def _lines(rows: Iterable[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _more_data(home: Path, config: ExperimentConfig, extra: Path | None) -> Path:
    """The shards of a seed with one more folder of text, on the same tokenizers; or with pages, for which frames get their own,
    since that of the other arms has never seen a letter."""
    tokenizers, name = home / "data" / "tokenizers", extra.name if extra else "pages"
    if not (home / f".prepared-{name}").is_file():
        options = replace(config.prepare, text_tokenizer=tokenizers / "text")
        options = replace(options, visual_tokenizer=tokenizers / "visual") if extra else replace(options, render=True)
        prepare([home / "world", *([extra] if extra else [])], home / f"data-{name}", options, progress=False)
        write_json(home / f".prepared-{name}", {})
    return home / f"data-{name}"


def _train(out: Path, config: ExperimentConfig, name: str, seed: int, device: str) -> dict[str, Any]:
    """Train one arm on one seed, or go on with it. Returns where its training stands, its ``data`` and the ``corpus`` it wrote."""
    arm, home = ARMS[name], out / f"seed-{seed}"
    run, world = home / name, replace(config.world, seed=seed)
    corpus: dict[str, Any] | None = None
    extra, data = home / "extra" / name, home / "data"  # no folder of a run, which `prepare` refuses to read
    if arm.extra == "distil":
        path = extra / "corpus.jsonl"
        report = distil.distil(Run(home / arm.after, device), world, path, config.distil, config.imagining, progress=False)
        corpus = {k: v for k, v in report.items() if k not in ("config", "identity")}  # which the experiment declares
    elif arm.extra == "oracle":
        write_atomic(extra / "seen.jsonl", _lines(_seen_facts(world, config.distil.wordings)))
    if arm.extra:
        data = _more_data(home, config, None if arm.extra == "pages" else extra)
    schedule = replace(config.distil_train if arm.after else config.train, seed=seed)
    mixture = arm.mixture(config.mixture, round(config.seen_first * (schedule.steps or 0)))
    state = train_routes(
        data, run, arm.model(config.model), mixture, schedule, resume=(run / "config.json").exists(), progress=False,
        device=device, init=home / arm.after if arm.after else None,
    )  # fmt: skip
    if not state["finished"]:
        raise RunError(f"{run} was stopped; the same command goes on")
    return {**state, "data": data, "corpus": corpus}


def _cell(out: Path, config: ExperimentConfig, name: str, seed: int, device: str, results: Path) -> None:
    """Train one arm on one seed, ask it everything, write the cell."""
    began, arm, home = time.monotonic(), ARMS[name], out / f"seed-{seed}"
    run, world = home / name, replace(config.world, seed=seed)
    earlier = grid.trained(run).get("seconds", 0.0)  # in other sittings, or in a job of its own
    state = _train(out, config, name, seed, device)
    loaded = Run(run, device)
    cell = {"arm": name, "seed": seed, "facts": measure_facts(loaded, world, config)}
    asked = state["data"] if arm.extra == "pages" else home / "data"  # codes of the run's own tokenizer; no extra text
    mixed = Mixture(Dataset(asked), replace(config.mixture, routes=arm.routes), loaded.text.end, seed, loaded.patch)
    routes = evaluate.routes(loaded.model, mixed, loaded.text.id_bytes, 200)["routes"]
    cell |= {"routes": routes, "distilled": state["corpus"], "steps": state["step"], "positions": state["positions"]}
    cell |= {"seconds": round(time.monotonic() - began + earlier, 1), "training_seconds": round(state["seconds"], 1)}
    cell |= {"visual_tokenizer": sha256(run / "tokenizers" / "visual" / "model.safetensors")}
    where = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "cpu"
    cell |= {
        "device": where,
        "threads": torch.get_num_threads(),
        "bf16": autocast((config.distil_train if arm.after else config.train).precision, torch.device(device))._enabled,
        "versions": {"quadrivium": quadrivium.__version__, "torch": torch.__version__},
    }
    write_json(results / f"{name}-seed-{seed}.json", cell)


LOOKED = ("imagine", "checked", "shown", "drawn", "placed")  # read-outs by clips


def measure_facts(run: Run, world: WorldConfig, config: ExperimentConfig, progress: bool = False) -> dict[str, dict]:
    """Group of facts -> read-out -> accuracy with its error: *direct* and, where the run has t2v and v2t, *imagine* (clips drawn
    straight away), *checked* (each goes on from the one of ``imagining.tries`` first frames off which the question is read best; of
    *seen* and *neither* kinds), *shown* (read off the real clip), *drawn* (what the clip of *imagine* shows in the eyes of the simulator)
    and *placed* (whether that opens with the two pieces where the words put them, or the other way round: chance 1/2)."""
    routes = run.config["mixture"]["routes"]
    sees = {"t2v", "v2t"} <= set(routes)
    found: dict[str, dict] = {}
    for group in GROUPS:
        questions = make_questions(world, group, config.each, world.languages)
        found[group] = {"direct": ask.ask(run.model, run.text, questions, progress)}
        questions = make_questions(world, group, config.looked, world.languages)
        if sees:
            count, options = config.imagining.frames or ask.frames_of(run, world), ask.read_options(run)
            imagining = replace(config.imagining, frames=count)
            clips = ask.imagined(run.model, run.text, questions, replace(imagining, tries=1), progress)
            found[group]["imagine"] = ask.ask(run.model, run.text, questions, progress, clips=clips)
            if imagining.tries > 1 and group in ("seen", "neither"):  # it takes three times as long
                checked = ask.imagined(run.model, run.text, questions, imagining, progress)
                found[group]["checked"] = ask.ask(run.model, run.text, questions, progress, clips=checked)
            shown = ask.shown(run, world, questions, count)
            found[group]["shown"] = ask.ask(run.model, run.text, questions, progress, clips=shown)
            some = np.random.default_rng(0).permutation(len(questions))[:60]  # simulating every way out takes its time
            few, seen = [questions[i] for i in some], [decode(run, clips[i][0]) for i in some]
            drawn = judge_clips(world, [q.spec for q in few], seen, options)
            right = np.array([d == DEVICES[q.device][q.answer] for q, d in zip(few, drawn, strict=True)], float)
            found[group]["drawn"] = ask.rows(few, right)
            right = np.array([placed(world, q.spec, clip) for q, clip in zip(few, seen, strict=True)], float)
            found[group]["placed"] = ask.rows(few, right, chance=0.5)
            for read_out in found[group].values():
                read_out.pop("votes", None)
    return found


# Differences between arms, paired by seed; the first is the primary endpoint. (arm, arm it is compared with, group of facts)
COMPARISONS = (
    ("four", "captions", "seen"),
    ("four", "text", "seen"),
    ("four", "text-equal", "seen"),
    ("four", "no-ahead", "seen"),
    ("no-ahead", "captions", "seen"),
    ("distil", "captions", "seen"),
    ("distil", "four", "seen"),
    ("distil", "four-more", "seen"),
    ("cross-distil", "share-cross", "seen"),  # its text and the steps more together: there is no share-cross-more
    ("distil-twice", "distil", "seen"),  # likewise
    ("cross-distil-twice", "cross-distil", "seen"),
    ("contrast", "share-cross", "seen"),
    ("four-more", "four", "seen"),
    ("distil", "four", "read"),
    ("distil", "four-more", "read"),
    ("oracle", "four", "seen"),
    *(("four", f"no-{route}", "seen") for route in ("t2t", "t2v", "v2t", "v2v")),
    *((other, "four", "seen") for other in ("share-all", "share-attention", "share-cross", "pages")),
)
# Bits a byte of held-out text: what an arm may cost beside another and still count as harmless. Beside four-more, after as many
# steps more on the other data, it is what distil's own text costs.
PRICES = (("distil", "four"), ("distil", "four-more"), ("distil-twice", "distil"), ("contrast", "share-cross"))
HARM = 0.02


# ---- statistics ---------------------------------------------------------------------------------------------------


def read_cells(results: Path) -> dict[str, dict[int, dict]]:
    """Arm -> seed -> finished cell."""
    return grid.read_cells(results, ARMS)


def summary(results: Path) -> dict[str, Any]:
    """Means over seeds with t-intervals, by arm, group of facts and read-out; paired differences, the primary one among them."""
    cells = read_cells(results)
    if not cells:
        raise DataError(f"{results}: no finished cell here")
    arms: dict[str, Any] = {}
    for arm, by_seed in cells.items():
        rows: dict[str, Any] = {"seeds": list(by_seed), "facts": {}}
        for group in GROUPS:
            for read_out in ("direct", *LOOKED):
                values = _accuracies(by_seed, group, read_out)
                if values:
                    mean, half = interval(values.values())
                    rows["facts"].setdefault(group, {})[read_out] = {"accuracy": mean, "half": half, "n": len(values)}
        for route in ROUTES:
            bits = [c["routes"][route][evaluate.UNITS[route[-1]]] for c in by_seed.values() if route in c["routes"]]
            if bits:
                rows.setdefault("bits", {})[route] = dict(zip(("mean", "half"), interval(bits), strict=True))
        for cost in ("seconds", "training_seconds", "positions"):
            rows[cost] = float(np.mean([c[cost] for c in by_seed.values()]))
        arms[arm] = rows
    first = next(iter(next(iter(cells.values())).values()))
    differences = []
    for arm, base, group in COMPARISONS:
        pair = _paired(*(_accuracies(cells.get(name, {}), group, "direct") for name in (arm, base)))
        if pair:
            declared = (arm, base, group) == COMPARISONS[0]
            differences.append({"arm": arm, "base": base, "group": group, "primary": declared, **pair})
    for i, p in holm({str(i): d["p"] for i, d in enumerate(differences) if not d["primary"]}).items():
        differences[int(i)]["p"] = p
    harm = []
    for arm, base in PRICES:
        pair = _paired(*(_text_bits(cells.get(name, {})) for name in (arm, base)))
        if pair:
            harmless = not math.isnan(pair["half"]) and pair["difference"] + pair["half"] < HARM
            harm.append({"arm": arm, "base": base, "harmless": harmless, **pair})
    asked = first["facts"]["seen"]["direct"]["all"]
    return {
        "chance": asked["chance"],
        "alone": max(asked["first alone"], asked["second alone"]),
        "arms": arms,
        "differences": differences,
        "harm": harm,
        "primary": read_json(results / "experiment.json", "an experiment")["primary"],
        "notes": _notes(cells),
    }


def _notes(cells: dict[str, dict[int, dict]]) -> list[str]:
    """What makes cells differ besides their arms: machines that finished a grid together may not have had all in common."""
    notes = []
    for key, what in (("visual_tokenizer", "visual tokenizers"), ("bf16", "precisions"), ("device", "devices")):
        by: dict[Any, int] = {}
        for arm in (a for a in cells if key != "visual_tokenizer" or ARMS[a].extra != "pages"):  # which has its own
            for cell in cells[arm].values():
                if key in cell:
                    by[cell[key]] = by.get(cell[key], 0) + 1
        if len(by) > 1:
            notes.append(
                f"These cells come from {len(by)} {what} ({', '.join(map(str, by.values()))} cells), which is in their differences too."
            )
    return notes


def _accuracies(by_seed: dict[int, dict], group: str, read_out: str) -> dict[int, float]:
    return {s: c["facts"][group][read_out]["all"]["accuracy"] for s, c in by_seed.items() if read_out in c["facts"][group]}


def _text_bits(by_seed: dict[int, dict]) -> dict[int, float]:
    return {s: c["routes"]["t2t"]["bits_per_byte"] for s, c in by_seed.items() if "t2t" in c["routes"]}


def _paired(values: dict[int, float], base: dict[int, float]) -> dict[str, Any]:
    """Mean difference over the seeds that both have, and the half-width of its interval; empty where they have none."""
    if not values.keys() & base.keys():
        return {}
    found = paired(values, base)
    return {"difference": found.mean, "half": found.high - found.mean, "n": found.n, "p": found.p}


def table(found: dict[str, Any]) -> str:
    """Lines for people: an arm a line, accuracy and half-width of its 95 % interval; then what its routes cost."""
    columns = [(g, "direct") for g in GROUPS] + [("seen", r) for r in LOOKED]
    head = f"{'arm':<16}{'seeds':>6}" + "".join(f"{g + ' ' + ('' if r == 'direct' else r):>16}" for g, r in columns)
    lines = [head, "-" * len(head)]
    for arm, rows in found["arms"].items():
        cells = (rows["facts"].get(g, {}).get(r) for g, r in columns)
        shown = "".join(f"{plus_minus(c['accuracy'], c['half'], 3) if c else '-':>16}" for c in cells)
        lines.append(f"{arm:<16}{len(rows['seeds']):>6}{shown}")
    head = f"{'arm':<16}" + "".join(f"{f'{r}, bits/' + evaluate.UNITS[r[-1]].split('_')[-1]:>18}" for r in ROUTES)
    head += f"{'training':>14}{'positions':>14}"
    lines += ["", head, "-" * len(head)]
    for arm, rows in found["arms"].items():
        bits = (rows.get("bits", {}).get(route) for route in ROUTES)
        shown = "".join(f"{plus_minus(b['mean'], b['half'], 4 if b['mean'] < 1 else 1) if b else '-':>18}" for b in bits)
        lines.append(f"{arm:<16}{shown}{rows['training_seconds'] / 60:>10.1f} min{rows['positions'] / 1e6:>13.2f}M")
    lines += [
        "",
        f"chance {found['chance']:.3f}, {found['alone']:.2f} for who knows all about one of the two kinds and nothing of the other; "
        "a dash: the arm cannot be asked so",
        "intervals: 95 %, over seeds; p: by Holm over all but the primary endpoint",
    ]
    lines += [f"{arm}: {ARMS[arm].says}" for arm in found["arms"]]
    for row in found["differences"]:
        what = f"primary endpoint, {found['primary']}"
        if not row["primary"]:
            what = f"{row['group']} facts, direct: {row['arm']} minus {row['base']}"
        p = "" if row["primary"] or math.isnan(row["p"]) else f"; p {row['p']:.2g}"
        lines.append(f"{what}: {row['difference']:+.3f} ({_half(row, 3)}{p})")
    for row in found["harm"]:
        judged = "harmless" if row["harmless"] else "not shown to be harmless"
        what = f"held-out text, {row['arm']} minus {row['base']}"
        lines.append(f"{what}: {row['difference']:+.4f} bits a byte ({_half(row, 4)}); {judged} within {HARM}")
    return "\n".join([*lines, *found["notes"]])


def _half(row: dict[str, Any], digits: int) -> str:
    return "one seed, no interval" if math.isnan(row["half"]) else f"± {row['half']:.{digits}f}, {row['n']} seeds"
