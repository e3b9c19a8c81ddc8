"""The experiment on the chain-reaction world: arms x seeds -> one table. Can text answer what was only ever seen?

    OUT/looks                     a visual tokenizer for all seeds, learnt from every look that a world can have
    OUT/seed-S/world, data        a world and its shards; data-oracle and data-distil hold one more folder of text
    OUT/seed-S/ARM                a run
    RESULTS/ARM-seed-S.json       what a finished cell measured. The grid goes on from these files alone, so it can be finished
                                  over several sittings and on several machines

An arm differs from the others in what it reads, and in nothing else: same first weights, tokenizers, steps and order of text.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import quadrivium
from quadrivium import ask, distil, evaluate
from quadrivium.checkpoint import Run
from quadrivium.config import to_dict
from quadrivium.data import language as words
from quadrivium.data.machine import LOOKS
from quadrivium.data.mixture import Mixture, MixtureConfig
from quadrivium.data.questions import make_questions
from quadrivium.data.shards import Dataset, read_json, write_atomic, write_json
from quadrivium.data.sources import ReadOptions
from quadrivium.data.world import GROUPS, WorldConfig, facts, make_kinds, stream, write_world
from quadrivium.distil import DistilConfig
from quadrivium.errors import ConfigError, DataError, QuadriviumError, RunError
from quadrivium.imagine import Imagining
from quadrivium.model import ModelConfig
from quadrivium.prepare import PrepareConfig, prepare
from quadrivium.sequence import ROUTES
from quadrivium.train import TrainConfig, train_routes
from quadrivium.visual import VisualConfig


@dataclass(frozen=True)
class Arm:
    """What one training condition reads."""

    says: str  # for people
    routes: tuple[str, ...] = ROUTES
    full: bool = False  # text gets the whole compute of all routes: more epochs
    captions: bool = False  # captions are read as text, without pictures
    extra: str = ""  # one more folder of text: "oracle" or "distil"
    after: str = ""  # go on from this arm's run


def _without(*gone: str) -> tuple[str, ...]:
    return tuple(r for r in ROUTES if r not in gone)


ARMS: dict[str, Arm] = {
    "text": Arm("text alone", ("t2t",)),
    "text-equal": Arm("text alone, at the compute of all routes", ("t2t",), full=True),
    "captions": Arm("text and captions, no pixels, at the compute of all routes", ("t2t",), full=True, captions=True),
    "four": Arm("all routes"),
    "distil": Arm("all routes, then its own imaginations as text", extra="distil", after="four"),
    "oracle": Arm("all routes, and the seen facts written down", extra="oracle"),
    "no-t2t": Arm("without text to text", _without("t2t")),
    "no-t2v": Arm("without text to frames", _without("t2v", "tv2v")),
    "no-v2t": Arm("without frames to text", _without("v2t")),
    "no-v2v": Arm("without frames to frames", _without("v2v", "tv2v")),
}


@dataclass(frozen=True)
class ExperimentConfig:
    """Size of one cell. The primary endpoint is declared here, before any run: direct accuracy on *seen* facts, arm "four"."""

    world: WorldConfig = field(
        default_factory=lambda: WorldConfig(
            links=1, frames=7, clips=7000, told=5000, stills=9000, portraits=0.3, narrations=5000, knowledge=0.7,
            jitter=0.2, variation=0.2,
        )
    )  # fmt: skip
    prepare: PrepareConfig = field(
        default_factory=lambda: PrepareConfig(
            read=ReadOptions(fps=8 / 3),  # the first, the middle and the last frame of a world's clip of seven
            vocab=2048,
            # Cells of small context give codes that are easy to predict: sky is one code wherever it is.
            visual=VisualConfig(levels=(4, 4, 4, 4), encoder_depth=0),
            visual_train=TrainConfig(minutes=2.5, lr=2e-3, weight_decay=0.0, betas=(0.9, 0.99)),
            sample_frames=6000,
        )
    )
    model: ModelConfig = field(default_factory=lambda: ModelConfig(layers=4, width=128, heads=2, patch=4))
    mixture: MixtureConfig = field(
        default_factory=lambda: MixtureConfig(
            positions=2048,
            # What each kind is called is learnt from stills, how a clip is told from few clips: both get more than their size.
            source_weights=(("world/stills", 5.0), ("world/told", 1.5)),
            weights=(("t2t", 1.0), ("t2v", 1.5), ("v2t", 1.0), ("v2v", 0.75), ("tv2v", 0.25)),
        )
    )
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=3000, lr=3e-3))
    distil_train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=400, lr=1e-3))
    imagining: Imagining = field(default_factory=lambda: Imagining(samples=4))
    distil: DistilConfig = field(default_factory=DistilConfig)
    each: int = 2  # questions for every template, language, device and outcome
    primary: str = "four/seen/direct"


def run_experiment(
    out: Path,
    config: ExperimentConfig | None = None,
    seeds: Iterable[int] = range(5),
    arms: Iterable[str] = ("text", "captions", "four", "distil"),
    results: Path | None = None,
    workers: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Run the cells that ``results`` (by default OUT/results) does not hold yet; returns `summary` of all that it holds.

    ``workers``: cells at a time, each on its share of the cores; 0: one a core. Raises ConfigError for an unknown arm and
    RunError where ``results`` holds cells of another size, or where a cell failed (the others are finished first).
    """
    config, results = config or ExperimentConfig(), results or out / "results"
    arms = list(arms)
    for arm in arms:
        if arm not in ARMS:
            raise ConfigError(f"arm {arm!r} is unknown; arms are {', '.join(ARMS)}")
    _declare(results, config)
    jobs: dict[str, _Job] = {}
    for seed in seeds:
        for arm in arms:
            _plan(jobs, out, results, config, arm, seed)
    if jobs:
        _run_jobs(jobs, workers or len(os.sched_getaffinity(0)), progress)
    found = summary(results)
    write_json(out / "results.json", found)
    return found


def _declare(results: Path, config: ExperimentConfig) -> None:
    """Write down what is measured before the first run, and refuse to mix cells of different sizes."""
    path, now = results / "experiment.json", json.loads(json.dumps(to_dict(config), default=str))
    now["world"].pop("processes")
    if not path.exists():
        write_json(path, now)
    elif (before := read_json(path, "an experiment")) != now:
        keys = [k for k in now if before.get(k) != now[k]]
        raise RunError(f"{path}: these results were measured with another {', '.join(keys)}; choose another --results")


# ---- cells --------------------------------------------------------------------------------------------------------


@dataclass
class _Job:
    name: str
    work: Callable[..., None]
    arguments: tuple
    needs: tuple[str, ...]
    cost: float  # positions, or what takes as long
    run: Path | None = None  # where its progress is to be read


def _plan(jobs: dict[str, _Job], out: Path, results: Path, config: ExperimentConfig, arm: str, seed: int) -> None:
    """Add a cell and what it needs to ``jobs``, if it is not finished."""
    name, run = f"{arm}-seed-{seed}", out / f"seed-{seed}" / arm
    trained = config.train.steps or 0
    done = (results / f"{name}.json").is_file()
    if name in jobs or (done and not any(j.arguments[-2:] == (arm, seed) for j in jobs.values())):
        return
    needs = [_plan_data(jobs, out, config, seed)]
    if ARMS[arm].after:
        before = ARMS[arm].after
        if not _finished(out / f"seed-{seed}" / before):
            jobs_before = f"{before}-seed-{seed}"
            if jobs_before not in jobs:
                jobs[jobs_before] = _Job(
                    jobs_before, _cell, (out, results, config, before, seed), tuple(needs),
                    config.mixture.positions * trained, out / f"seed-{seed}" / before,
                )  # fmt: skip
            needs.append(jobs_before)
        trained = config.distil_train.steps or 0
    share = 1.0 if ARMS[arm].full or len(ARMS[arm].routes) > 1 else 0.25
    cost = share * config.mixture.positions * trained
    jobs[name] = _Job(name, _cell, (out, results, config, arm, seed), tuple(n for n in needs if n in jobs), cost, run)


def _plan_data(jobs: dict[str, _Job], out: Path, config: ExperimentConfig, seed: int) -> str:
    if "looks" not in jobs and not (out / "looks" / "data" / "tokenizers" / "visual" / "config.json").is_file():
        jobs["looks"] = _Job("looks", _looks, (out, config), (), 1e6)
    name, world = f"shards-seed-{seed}", f"world-seed-{seed}"
    if name not in jobs and not (out / f"seed-{seed}" / ".prepared").is_file():
        jobs[world] = _Job(world, _world, (out, config, seed), (), 4e5)
        jobs[name] = _Job(name, _data, (out, config, seed), (world, *(["looks"] if "looks" in jobs else [])), 2e5)
    return name


def _run_jobs(jobs: dict[str, _Job], workers: int, progress: bool) -> None:
    """Run jobs as soon as what they need is there, ``workers`` at a time; the bar counts positions and estimates the end."""
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read in the fresh processes
    waiting, done, failed = dict(jobs), set[str](), dict[str, str]()
    running: dict[Future, _Job] = {}
    bar = tqdm(total=sum(j.cost for j in jobs.values()), unit="pos", unit_scale=True, disable=not progress, dynamic_ncols=True,
               bar_format="{percentage:3.0f}%|{bar:20}| {elapsed}<{remaining} {postfix}")  # fmt: skip
    with bar, ProcessPoolExecutor(workers, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        while waiting or running:
            for name, job in list(waiting.items()):
                if any(n in failed for n in job.needs):
                    failed[name] = f"needs {', '.join(n for n in job.needs if n in failed)}"
                    del waiting[name]
                elif len(running) < workers and all(n in done or n not in jobs for n in job.needs):
                    running[pool.submit(_logged, job.work, job.arguments, job.name, threads)] = waiting.pop(name)
            if not running:
                continue
            for future in wait(running, timeout=2.0, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                error = future.exception()
                if error is not None:
                    failed[job.name] = " ".join(str(error).split())[:300] or type(error).__name__
                    bar.write(f"{job.name}: failed ({failed[job.name]})", file=sys.stderr)
                done |= {job.name} if error is None else set()
            at = sum(jobs[n].cost for n in done) + sum(_progress(j) for j in running.values())
            bar.set_postfix_str(", ".join(j.name for j in running.values()), refresh=False)
            bar.update(max(0.0, min(at, bar.total) - bar.n))
    if failed:
        raise RunError("; ".join(f"{name}: {why}" for name, why in failed.items()) + "; the same command goes on")


def _progress(job: _Job) -> float:
    """Positions that a running job has trained, off the last line of its metrics."""
    try:
        assert job.run is not None
        with open(job.run / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4000))
            lines = [json.loads(line) for line in file.read().splitlines()[1:]]
        return min(job.cost, max(line.get("positions", 0) for line in lines))
    except (AssertionError, OSError, ValueError):
        return 0.0


def _logged(work: Callable[..., None], arguments: tuple, name: str, threads: int) -> None:
    """Run a job on so many threads, with what it prints in a file of its own."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # which `train.threads` respects
    torch.set_num_threads(threads)
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    log = arguments[0] / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            work(*arguments)
        except QuadriviumError:
            raise
        except BaseException:
            traceback.print_exc()
            raise RunError(f"see {log}") from None


def _leave_with(parent: int) -> None:
    """End this process when its parent is gone: a cell that nobody waits for would hold its folder against the next sitting."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _looks(out: Path, config: ExperimentConfig) -> None:
    """Learn the visual tokenizer from a world that has every look; no cell is measured on it."""
    world = replace(config.world, seed=10_000 + config.world.seed, kinds=LOOKS, clips=1500, told=0, stills=3000, narrations=0)
    write_world(replace(world, processes=1), out / "looks" / "world", progress=False)
    prepare([out / "looks" / "world"], out / "looks" / "data", config.prepare, progress=False)


def _world(out: Path, config: ExperimentConfig, seed: int) -> None:
    """A seed's world, and what the oracle reads of it."""
    home, world = out / f"seed-{seed}", replace(config.world, seed=seed, processes=1)
    write_world(world, home / "world", progress=False)
    write_atomic(home / "oracle" / "seen.jsonl", _lines(_seen_facts(world)))


def _data(out: Path, config: ExperimentConfig, seed: int) -> None:
    """A seed's shards, on the visual tokenizer of all seeds."""
    home = out / f"seed-{seed}"
    visual = out / "looks" / "data" / "tokenizers" / "visual"
    base = replace(config.prepare, visual_tokenizer=visual)
    prepare([home / "world"], home / "data", base, progress=False)
    write_json(home / ".prepared", {"seed": seed})


def _seen_facts(config: WorldConfig, wordings: int = 4) -> Iterable[dict[str, str]]:
    """Every seen fact as text, in every language: what the oracle reads and no other arm does."""
    kinds = make_kinds(config)
    rows = [(*fact, tongue, k) for fact in facts(config, "seen") for tongue in config.languages for k in range(wordings)]
    Random(config.seed).shuffle(rows)
    for first, second, device, outcome, tongue, k in rows:
        rng = stream(config, "oracle", first, second, device, tongue, k)
        yield {"text": words.knowledge(device, outcome, kinds[first], kinds[second], rng, tongue)}


def _lines(rows: Iterable[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _more_data(home: Path, config: ExperimentConfig, extra: str) -> Path:
    """The shards of a seed with one more folder of text, on the same tokenizers."""
    tokenizers = home / "data" / "tokenizers"
    options = replace(config.prepare, visual_tokenizer=tokenizers / "visual", text_tokenizer=tokenizers / "text")
    prepare([home / "world", home / extra], home / f"data-{extra}", options, progress=False)
    return home / f"data-{extra}"


def _finished(run: Path) -> bool:
    return (run / ".finished").is_file()


def _cell(out: Path, results: Path, config: ExperimentConfig, name: str, seed: int) -> None:
    """Train one arm on one seed, ask it everything, write the cell."""
    began, arm, home = time.monotonic(), ARMS[name], out / f"seed-{seed}"
    run, world = home / name, replace(config.world, seed=seed)
    mixture = replace(config.mixture, routes=arm.routes, captions=arm.captions)
    if arm.full:
        mixture = replace(mixture, weights=tuple((r, float(r == "t2t")) for r in ROUTES))
    corpus: dict[str, Any] | None = None
    if arm.extra == "distil":
        path = home / "distil" / "corpus.jsonl"
        corpus = distil.distil(Run(home / arm.after), world, path, config.distil, config.imagining, progress=False)
    data = _more_data(home, config, arm.extra) if arm.extra else home / "data"
    schedule = replace(config.distil_train if arm.after else config.train, seed=seed)
    state = train_routes(
        data, run, config.model, mixture, schedule, resume=(run / "config.json").exists(), progress=False,
        init=home / arm.after if arm.after else None,
    )  # fmt: skip
    if not state["finished"]:
        raise RunError(f"{run} was stopped; the same command goes on")
    loaded = Run(run)
    cell = {"arm": name, "seed": seed, "facts": measure_facts(loaded, world, config)}
    mixed = Mixture(Dataset(home / "data"), replace(config.mixture, routes=ROUTES), loaded.text.end, seed, loaded.patch)
    mixed.streams = [s for s in mixed.streams if s.route in arm.routes]
    routes = evaluate.routes(loaded.model, mixed, loaded.text.id_bytes, 200)["routes"]
    cell |= {"routes": routes, "distilled": corpus, "steps": state["step"], "positions": state["positions"]}
    cell |= {"seconds": round(time.monotonic() - began, 1), "training_seconds": round(state["seconds"], 1)}
    cell |= {"threads": torch.get_num_threads(), "versions": {"quadrivium": quadrivium.__version__, "torch": torch.__version__}}
    write_json(run / ".finished", {"step": state["step"]})
    write_json(results / f"{name}-seed-{seed}.json", cell)


def measure_facts(run: Run, world: WorldConfig, config: ExperimentConfig, progress: bool = False) -> dict[str, dict]:
    """Group of facts -> read-out -> accuracy with its error: *direct*, and *imagine* where the run has t2v and v2t."""
    routes = run.config["mixture"]["routes"]
    sees = {"t2v", "v2t"} <= set(routes)
    found: dict[str, dict] = {}
    for group in GROUPS:
        questions = make_questions(world, group, config.each, world.languages)
        found[group] = {"direct": ask.ask(run.model, run.text, questions, progress)}
        if sees:
            imagining = replace(config.imagining, frames=config.imagining.frames or ask.frames_of(run, world))
            found[group]["imagine"] = ask.ask(run.model, run.text, questions, progress, imagine=imagining)
            clips = ask.shown(run, world, questions, imagining.frames)
            found[group]["shown"] = ask.ask(run.model, run.text, questions, progress, clips=clips)
            for read_out in ("imagine", "shown"):
                found[group][read_out].pop("votes")
    return found


# ---- statistics ---------------------------------------------------------------------------------------------------


def interval(values: Iterable[float], level: float = 0.95) -> tuple[float, float]:
    """Mean and half-width of its t-interval; the half-width of a single value is not known (nan)."""
    from scipy.stats import t

    x = np.array(list(values), float)
    if len(x) < 2:
        return float(x.mean()), math.nan
    return float(x.mean()), float(t.ppf(0.5 + level / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))


def read_cells(results: Path) -> dict[str, dict[int, dict]]:
    """Arm -> seed -> finished cell."""
    found: dict[str, dict[int, dict]] = {}
    for path in sorted(results.glob("*-seed-*.json")):
        cell = read_json(path, "a cell of an experiment")
        found.setdefault(cell["arm"], {})[cell["seed"]] = cell
    return {arm: dict(sorted(found[arm].items())) for arm in ARMS if arm in found}


def summary(results: Path) -> dict[str, Any]:
    """Means over seeds with t-intervals, by arm, group of facts and read-out, and paired differences from the arm "captions"."""
    cells = read_cells(results)
    if not cells:
        raise DataError(f"{results}: no finished cell here")
    arms: dict[str, Any] = {}
    for arm, by_seed in cells.items():
        rows: dict[str, Any] = {"seeds": list(by_seed), "facts": {}}
        for group in GROUPS:
            for read_out in ("direct", "imagine"):
                values = {
                    s: c["facts"][group][read_out]["all"]["accuracy"]
                    for s, c in by_seed.items()
                    if read_out in c["facts"][group]
                }
                if not values:
                    continue
                mean, half = interval(values.values())
                row = {"accuracy": mean, "half": half, "n": len(values)}
                base = {
                    s: c["facts"][group]["direct"]["all"]["accuracy"]
                    for s, c in cells.get("captions", {}).items()
                    if s in values
                }
                if arm != "captions" and base:
                    row["gain"], row["gain_half"] = interval(values[s] - base[s] for s in base)
                rows["facts"].setdefault(group, {})[read_out] = row
        text = [c["routes"]["t2t"]["bits_per_byte"] for c in by_seed.values() if "t2t" in c["routes"]]
        if text:
            rows["t2t"] = dict(zip(("bits_per_byte", "half"), interval(text), strict=True))
        rows["seconds"] = float(np.mean([c["seconds"] for c in by_seed.values()]))
        arms[arm] = rows
    first = next(iter(next(iter(cells.values())).values()))
    chance = first["facts"]["seen"]["direct"]["all"]["chance"]
    return {"chance": chance, "arms": arms, "primary": read_json(results / "experiment.json", "an experiment")["primary"]}


def table(found: dict[str, Any]) -> str:
    """Lines for people: an arm a line, accuracy and half-width of its 95 % interval."""

    def show(row: dict | None) -> str:
        if row is None:
            return "-"
        return f"{row['accuracy']:.3f}" + ("" if math.isnan(row["half"]) else f" ± {row['half']:.3f}")

    columns = [(g, "direct") for g in GROUPS] + [(g, "imagine") for g in ("seen", "both")]
    head = f"{'arm':<12}{'seeds':>6}" + "".join(f"{g + ' ' + ('' if r == 'direct' else r):>17}" for g, r in columns)
    lines = [head + f"{'text bits/byte':>20}", "-" * (len(head) + 20)]
    for arm, rows in found["arms"].items():
        cells = "".join(f"{show(rows['facts'].get(g, {}).get(r)):>17}" for g, r in columns)
        text = rows.get("t2t")
        cost = (
            "-"
            if text is None
            else f"{text['bits_per_byte']:.4f}" + ("" if math.isnan(text["half"]) else f" ± {text['half']:.4f}")
        )
        lines.append(f"{arm:<12}{len(rows['seeds']):>6}{cells}{cost:>20}")
    return "\n".join(
        [*lines, "", f"chance {found['chance']:.3f}; a dash: the arm cannot be asked so; intervals: 95 %, over seeds"]
    )
