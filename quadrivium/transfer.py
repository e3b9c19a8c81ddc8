"""The transfer experiment on anybody's data: what does text gain from training on pictures and clips?

    OUT/data                  shards, where raw folders were given
    OUT/transfer.json         what is measured, written before the first run
    OUT/seed-S/ARM            a run
    OUT/cells/ARM-seed-S.json what a finished cell measured; the grid goes on from these files
    OUT/results.json          arms, comparisons, ladder, exchange rate, verdict: all that a report needs

Arms differ in what they read, and in nothing else: same first weights, tokenizers, steps and order of text. A seed draws the
first weights, the order, and which share of the documents is read. With ``init`` all begin with one and the same model.
"""

from __future__ import annotations

import base64
import hashlib
import math
import platform
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import quadrivium
from quadrivium import checkpoint, endpoints, errors, evaluate, findings, grid
from quadrivium.checkpoint import Run
from quadrivium.data.mixture import Mixture, MixtureConfig, read_documents, streams_of
from quadrivium.data.shards import MANIFEST, Dataset, read_json, write_json
from quadrivium.endpoints import EndpointConfig
from quadrivium.errors import ConfigError, DataError, RunError
from quadrivium.grid import Job, run_jobs, threads_each, without
from quadrivium.huggingface import fetch, is_model
from quadrivium.model import Model, ModelConfig
from quadrivium.prepare import PrepareConfig, changed, prepare
from quadrivium.samples import write_samples
from quadrivium.statistics import (
    CONTROLS,
    VISUAL,
    Contrast,
    detectable,
    effective_text,
    fit_ladder,
    holm,
    interval,
    paired,
    plus_minus,
    rightly,
    verdict,
    worth,
)
from quadrivium.train import RouteTask, TrainConfig, autocast, begin_with, cores, make_optimizers, shape_on, train_routes


@dataclass(frozen=True)
class Arm(grid.Arm):
    """What one training condition reads."""

    scramble: Literal["none", "shuffled", "noise"] = "none"
    text: float = 1.0  # unique text, in units of that of the other arms

    def mixture(self, config: MixtureConfig) -> MixtureConfig:
        """What this arm reads of what all arms could read."""
        return replace(super().mixture(config), scramble=self.scramble, text=config.text * self.text)


RUNGS = (0.0625, 0.125, 0.25, 0.5, 2.0, 4.0)  # of the ladder of text, besides 1
ARMS: dict[str, Arm] = {
    "text": Arm("A0: text alone", ("t2t",)),
    "text-equal": Arm("A1: text alone, at the compute of all routes", ("t2t",), full=True),
    "four": Arm("A2: all routes"),
    "captions": Arm("A3: text and captions, no pixels, at the compute of all routes", ("t2t",), captions=True),
    "shuffled": Arm("A4: all routes, frames shuffled across captions", scramble="shuffled"),
    "noise": Arm("A5: all routes, codes of frames drawn at random by place", scramble="noise"),
    "unpaired": Arm("text, and frames without captions", ("t2t", "v2v")),
    "no-t2v": Arm("without text to frames", without("t2v", "tv2v")),
    "no-v2t": Arm("without frames to text", without("v2t")),
    "no-v2v": Arm("without frames to frames", without("v2v", "tv2v")),
    **{f"text-x{x:g}": Arm(f"A6: text alone, {x:g} times as much of it", ("t2t",), text=x)
       for x in RUNGS},
}  # fmt: skip
MAIN = ("text", *CONTROLS, "four")
_START = 5.0  # seconds before a cell trains: imports, shards, first step


Primary = Literal["bits", "questions"]
_JUDGED = (
    "four against text and every control, paired by seed, all intervals above 0"  # no option: it is what `verdict` computes
)
# Declared before any run.
PRIMARY: dict[Primary, str] = {
    "bits": f"held-out text in bits per byte: {_JUDGED}",
    "questions": f"own questions, share that is answered wrongly: {_JUDGED}",
}
UNIT: dict[Primary, str] = {"bits": "bits per byte", "questions": "share of right answers"}


def price(cell: dict[str, Any], primary: Primary) -> float:
    """What a cell's verdict is made of, the less the better: bits per byte of held-out text, or the share of wrong answers."""
    return cell["bits_per_byte"] if primary == "bits" else 1.0 - cell["endpoints"]["tasks"]["own"]["accuracy"]


@dataclass(frozen=True)
class TransferConfig:
    """Size of one cell."""

    prepare: PrepareConfig = field(default_factory=PrepareConfig)  # of raw folders
    model: ModelConfig = field(default_factory=lambda: ModelConfig(layers=4, width=128, heads=4))
    mixture: MixtureConfig = field(default_factory=lambda: MixtureConfig(positions=2048))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=2000))
    # What all arms begin with: a run, or a Qwen3, Qwen2 or Llama model as a folder or hub id. The data has its tokenizers.
    init: str | None = None
    init_vision: Literal["copy", "fresh"] = "copy"  # visual weights of their own begin as copies of the model's, or fresh
    text: float = 0.25  # share of the documents that arms read, D; the ladder then reaches from D/4 to all of them
    limit: int = 400  # held-out windows of text of each source
    endpoints: EndpointConfig = field(default_factory=EndpointConfig)
    primary: Primary = "bits"  # what the verdict is about: held-out text, or right answers to --endpoints.questions

    def __post_init__(self) -> None:
        if self.primary == "questions" and self.endpoints.questions is None:
            raise ConfigError("--primary questions takes questions; name a file of them with --endpoints.questions")
        if not 0 < self.text <= 1:
            raise ConfigError(f"text is {self.text}; the share of the documents that is read lies above 0 and is at most 1")
        if self.limit < 1:
            raise ConfigError(f"limit is {self.limit}; it has to be at least 1")
        grid.equal_steps(self.train)
        if self.mixture.text != MixtureConfig().text:
            raise ConfigError("--mixture.text is set by the arms; give --text for the share of the documents")
        grid.comparable(self.mixture)
        if self.mixture.frames:  # a frame that no window held would count in what a frame is worth
            raise ConfigError("--mixture.frames reads parts of clips; prepare shorter ones with --read.clip-frames")
        for name in ("begin", "rendered"):  # text that waits for frames, or is shown as frames, is another experiment
            if getattr(self.mixture, name) != getattr(MixtureConfig(), name):
                raise ConfigError(f"--mixture.{name} would part the arms by more than their names say; leave it out")

    @property
    def shape(self) -> ModelConfig:
        """The shape that is asked for. What ``init`` has counts, and of a width that nobody named nothing is asked."""
        usual = self.init and self.model.width == TransferConfig().model.width
        return replace(self.model, width=ModelConfig().width) if usual else self.model

    @property
    def sources(self) -> PrepareConfig:
        """How raw folders are prepared: with the tokenizers of ``init``, where no others are named."""
        if not self.init:
            return self.prepare
        home, ours = Path(self.init), Path(self.init) / "tokenizers"
        text, visual = (
            (home, None) if is_model(home) else (ours / "text", ours / "visual" if (ours / "visual").is_dir() else None)
        )
        asked = self.prepare
        return replace(asked, text_tokenizer=asked.text_tokenizer or text, visual_tokenizer=asked.visual_tokenizer or visual)


def possible(data: Dataset, config: TransferConfig) -> dict[str, Arm]:
    """The arms that the data can feed. Raises DataError where text or frames are missing altogether."""
    fed = {s.route for s in streams_of(data, config.mixture, held=False)}
    if "t2t" not in fed or not fed - {"t2t"}:
        raise DataError(
            f"{data.folder} needs documents of text and, beside them, pictures or clips; it feeds {', '.join(sorted(fed))}"
        )
    if "t2t" not in {s.route for s in streams_of(data, config.mixture, held=True)}:
        raise DataError(f"{data.folder} holds no text out; prepare more documents or a larger share with --prepare.held")
    ladder = [x for x in RUNGS if x * config.text <= 1]
    ladder = [x for x in ladder if x >= 0.25] if 4.0 in ladder else ladder  # five rungs with "text" itself
    found = {}
    for name, arm in ARMS.items():
        captioned = arm.captions or arm.scramble == "shuffled" or name in ("no-t2v", "no-v2t")
        if (captioned and "v2t" not in fed) or (name in ("unpaired", "no-v2v") and "v2v" not in fed):
            continue
        if arm.text == 1.0 or arm.text in ladder:
            found[name] = arm
    return found


def run_transfer(
    paths: list[Path],
    out: Path,
    config: TransferConfig | None = None,
    seeds: Iterable[int] = range(5),
    arms: Iterable[str] = (),
    budget: float | None = None,
    workers: int = 0,
    progress: bool = True,
    command: str = "",
    device: str = "cpu",
) -> dict[str, Any]:
    """Run the cells that OUT/cells does not hold yet; returns `summary`. ``arms``: all that the data can feed, if empty: the main
    ones on every seed, the rest on the first three. ``budget``: hours, which choose the steps of a new grid."""
    config, out, seeds = config or TransferConfig(), out.resolve(), list(seeds)
    if config.init:  # downloaded once, and the same for jobs in other folders
        config = replace(config, init=str(fetch(config.init).resolve()))
    if budget is not None and not 0 < budget < math.inf:
        raise ConfigError(f"--budget is {budget:g}; it is a number of hours")
    asked = config.endpoints.declared()  # what cannot be asked is said before anything is prepared
    grid.check(seeds, workers)
    if not seeds:
        raise ConfigError("there is no seed; give at least a seed")
    plan = out / "transfer.json"
    checkpoint.check_own(out, plan.name, "data", "cells")
    ready = [path for path in paths if (path / MANIFEST).is_file()]
    if ready:
        if len(paths) > 1:
            raise ConfigError(f"{ready[0]} is prepared already; give it alone, or the raw folders")
        if config.prepare != PrepareConfig():
            raise ConfigError(f"{paths[0]} is prepared already; --prepare options are of raw folders")
        folder = paths[0].resolve()
    else:
        folder = out / "data"
        begun = plan.is_file() and (folder / MANIFEST).is_file()  # cells rest on what is there: it stays
        if begun and (others := changed(paths, folder, config.sources)):
            raise RunError(
                f"{', '.join(others)}: changed, or prepared with other options, since {out} was begun; "
                f"`{errors.command('transfer', folder, '--out', out)}`, with its other options and none of --prepare, goes on with "
                "the data as it was; another --out begins anew"
            )
        prepare(paths, folder, config.sources, progress)
    data = Dataset(folder)
    able = possible(data, config)
    for arm in arms:
        if arm not in able:
            raise ConfigError(f"arm {arm!r} is unknown or not for this data; arms are {', '.join(able)}")
    grid_of = [(a, s) for a in (list(arms) or able) for i, s in enumerate(seeds) if list(arms) or a in MAIN or i < 3]
    workers = workers or min(cores(), len(grid_of))
    if budget is not None:
        if plan.is_file():
            print("the grid has its size already; --budget changes nothing", file=sys.stderr)
            config = replace(config, train=replace(config.train, steps=read_json(plan, "an experiment")["train"]["steps"]))
        else:
            speed = measure_speed(folder, config, threads_each(workers), device)
            weight = sum(able[a].share for a, _ in grid_of) * config.mixture.positions
            # A tenth is for measuring, and every process takes its seconds to start. Cells on one GPU share its speed.
            apart = workers if device == "cpu" else 1
            seconds = 0.9 * budget * 3600 * apart - _START * len(grid_of)
            steps = max(0, int(seconds * speed / weight))
            if steps < 10:
                enough = (10 * weight / speed + _START * len(grid_of)) / (0.9 * 3600 * apart)
                raise ConfigError(
                    f"--budget {budget:g} hours give {steps} steps a cell; ten of them take {enough:.1g} hours here: allow more, or "
                    "fewer --arms or --seeds"
                )
            config = replace(config, train=replace(config.train, steps=steps))
            print(
                f"{speed:.0f} positions a second and process, {workers} at a time: {len(grid_of)} cells of {steps} steps",
                file=sys.stderr,
            )
    # What is in the data and what computes count, not where the data lies and how it was made.
    low = autocast(config.train.precision, torch.device(device))._enabled
    declared = {**grid.plain(config), "data": data.checksum, "controls": [c for c in CONTROLS if c in able], "bf16": low}
    declared |= {"device": torch.device(device).type, "primary": PRIMARY[config.primary]}
    del declared["prepare"]
    declared["endpoints"] = asked
    declared["init"] = _weights(config.init)
    shape_on(folder, data, config.shape, config.mixture, config.init)  # what no cell could be trained with is not declared
    grid.declare([plan], config, declared)
    if budget is not None:
        print(_power(out, len(seeds), config.primary), file=sys.stderr)
    jobs = {}
    for arm, seed in grid_of:
        name = f"{arm}-seed-{seed}"
        if not (out / "cells" / f"{name}.json").is_file():
            cost = able[arm].share * config.mixture.positions * (config.train.steps or 0)
            arguments = (out, folder, config, arm, seed, device, seed == seeds[0])
            jobs[name] = Job(name, _cell, arguments, (), cost, out / f"seed-{seed}" / arm)
    if jobs:
        run_jobs(jobs, workers, progress)
    found = summary(out, data, config) | {"command": command}
    write_json(out / "results.json", found)
    return found


def measure_speed(folder: Path, config: TransferConfig, threads: int, device: str = "cpu", seconds: float = 8.0) -> float:
    """Positions a second of one process that trains all routes, with its optimizer."""
    torch.set_num_threads(threads)
    data = Dataset(folder)
    shape, _, text, _ = shape_on(folder, data, config.shape, config.mixture, config.init)
    task = RouteTask(Model(shape, 0), Mixture(data, config.mixture, text.end, 0, shape.patch), text.id_bytes, device)
    optimizers = make_optimizers(task.model, config.train)
    done, step, began = 0, 0, time.monotonic()
    while step < 3 or time.monotonic() - began < seconds:
        batch = task.batch(step)
        with autocast(config.train.precision, torch.device(device)):
            loss, _ = task.loss(batch)
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
        task.model.zero_grad()
        if step == 0:  # the first step warms up
            began = time.monotonic()
        else:
            done += task.positions(batch)[0]
        step += 1
    return done / (time.monotonic() - began)


def _power(out: Path, n: int, primary: Primary = "bits") -> str:
    """What so many seeds can detect, in the scatter between seeds seen so far."""
    found = grid.read_cells(out / "cells", MAIN)
    costs = {a: {s: price(c, primary) for s, c in by.items()} for a, by in found.items()}
    four = costs.pop("four", {})
    grain = _grain(found, primary)
    known = [paired(by, four, grain).sd for by in costs.values() if len(by.keys() & four.keys()) > 1]
    sd, unit = (max(known), UNIT[primary]) if known else (1.0, "standard deviations of a paired difference (no two seeds yet)")
    sizes = ", ".join(f"{k} seeds {detectable(sd, k):.3g}" for k in sorted({3, 5, max(n, 2)}))
    return f"minimal detectable effect of each comparison at 80 % power, in {unit}: {sizes}"


def _cell(out: Path, folder: Path, config: TransferConfig, name: str, seed: int, device: str, first: bool) -> None:
    """Train one arm on one seed, measure held-out text and the arm's routes, write the cell. ``first``: of the seeds, on which what
    pictures hold is measured."""
    arm, run, began = ARMS[name], out / f"seed-{seed}" / name, time.monotonic()
    _same_data(out, folder, config.endpoints)
    mixture = arm.mixture(replace(config.mixture, text=config.text))
    schedule = replace(config.train, seed=seed)
    state = train_routes(
        folder, run, config.shape, mixture, schedule, resume=(run / "config.json").exists(), device=device, progress=False,
        init=config.init, init_vision=config.init_vision,
    )  # fmt: skip
    if not state["finished"]:
        raise RunError(f"{run} was stopped; the same command goes on")
    loaded, data = Run(run, device), Dataset(folder)
    plain = Mixture(data, replace(config.mixture, routes=("t2t",)), loaded.text.end, seed, loaded.patch)
    read = Mixture(data, mixture, loaded.text.end, seed, loaded.patch)
    bits: list[np.ndarray] = []
    size: list[np.ndarray] = []
    groups: list[np.ndarray] = []
    documents: dict[str, list[float]] = {}
    for held in plain.held.values():
        chosen = plain.held_units(held, config.limit)
        sequences = [plain.sequence(held, u) for u in chosen]
        bits.append(evaluate.bits(loaded.model, sequences))
        size.append(np.array([evaluate.units(s, loaded.text.id_bytes) for s in sequences]))
        groups.append(held.source.group[held.unit[chosen, 0]])
        for unit, b, n in zip(chosen, bits[-1], size[-1], strict=True):
            row = documents.setdefault(f"{held.source.name}/{held.source.key(int(held.unit[unit, 0]))}", [0.0, 0])
            row[0], row[1] = row[0] + float(b), row[1] + int(n)
    mean, error = evaluate.ratio(np.concatenate(bits), np.concatenate(size), np.concatenate(groups))
    routes = evaluate.routes(
        loaded.model, _as_they_are(data, config, arm, loaded, seed), loaded.text.id_bytes, 100, progress=False
    )
    found: dict[str, Any] = {}
    untrained = partial(_untrained, loaded, config, seed, device) if name == "text" else None
    asked = endpoints.measure(
        loaded.model, loaded.text, data, plain, config.endpoints, config.text, config.limit, seed, untrained
    )
    measured = (read_json(path, "a cell of an experiment") for path in (out / "cells").glob("four-seed-*.json"))
    if name == "four" and first and not any("findings" in cell for cell in measured):  # nor on the first of another sitting
        shown = _as_they_are(data, config, arm, loaded, seed)
        write_samples(loaded, shown, out / "samples", 4, progress=False)
        found = {"findings": findings.measure(loaded, shown, 128, out / "samples")}
    texts = [s for s in read.streams if s.route == "t2t"]
    taken = [(int(s.positions[read.came_to(s, state["step"])].sum()), s.length) for s in texts if not s.told]
    frames, captions = _seen(read, state["step"])
    _same_data(out, folder, config.endpoints)
    write_json(out / "cells" / f"{name}-seed-{seed}.json", {
        "arm": name, "seed": seed, "bits_per_byte": mean, "stderr": error, "documents": documents, "routes": routes["routes"],
        "epochs": max(state["step"] * read.shares[s.name] / s.length for s in texts),
        "read": sum(n for n, _ in taken) / sum(length for _, length in taken),  # share of its documents that was read at all
        "frames": frames, "captions": captions,
        "still_paired": read.still_paired() if arm.scramble == "shuffled" else 0.0,
        "steps": state["step"], "positions": state["positions"], "seconds": round(time.monotonic() - began, 1),
        "threads": torch.get_num_threads(), "endpoints": asked, **found,
    })  # fmt: skip


def _weights(init: str | None) -> str | None:
    """A digest of the weights that all arms begin with, wherever they lie."""
    if init is None:
        return None
    files = sorted(Path(init).glob("*.safetensors")) if is_model(Path(init)) else [checkpoint.weights(Path(init))]
    found = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def _untrained(run: Run, config: TransferConfig, seed: int, device: str) -> Model:
    """The model of a run before its first step."""
    model = Model(run.model.config, seed)
    if config.init:
        begin_with(model, Path(config.init), config.init_vision)
    return model.to(device).eval()


def _same_data(out: Path, folder: Path, asked: EndpointConfig | None = None) -> None:
    """Cells of one grid are of one data folder, and asked the same, though other commands may write while this one runs."""
    if not (out / "transfer.json").is_file():
        return
    plan = read_json(out / "transfer.json", "an experiment")
    if Dataset(folder).checksum != plan["data"]:
        raise RunError(f"{folder} has changed since {out} was begun; prepare it as it was, or choose another --out")
    if asked is not None and any(plan["endpoints"].get(key, now) != now for key, now in asked.declared().items()):
        raise RunError(f"the files of --endpoints have changed since {out} was begun; lay them back, or choose another --out")


def _seen(read: Mixture, steps: int) -> tuple[int, int]:
    """Frames of the training items, and ids of their captions, as many of each as are read, that so many steps came to, each once."""
    shown: dict[str, np.ndarray] = {}
    told = set[tuple[str, int]]()
    sources = {s.source.name: s.source for s in read.streams if s.route != "t2t"}
    for s in (s for s in read.streams if s.route != "t2t"):
        units = s.unit[read.came_to(s, steps)]
        shown.setdefault(s.source.name, np.zeros(len(s.source.frames), bool))[units[:, 0]] = True
        if s.route != "v2v":
            told |= {(s.source.name, int(s.source.text_first[item] + part)) for item, part in units}
    return (
        sum(int(sources[name].frames[mine].sum()) for name, mine in shown.items()),
        sum(min(int(sources[name].text_ids[which]), read.config.context) for name, which in told),
    )


def _as_they_are(data: Dataset, config: TransferConfig, arm: Arm, run: Run, seed: int) -> Mixture:
    """The arm's routes over frames as they are."""
    return Mixture(data, replace(config.mixture, routes=arm.routes), run.text.end, seed, run.patch)


def summary(out: Path, data: Dataset, config: TransferConfig) -> dict[str, Any]:
    """Everything a report needs of the cells in OUT/cells."""
    found = grid.read_cells(out / "cells", ARMS)
    if not found:
        raise DataError(f"{out / 'cells'}: no finished cell here")
    bits = {arm: {s: price(c, "bits") for s, c in by.items()} for arm, by in found.items()}
    costs = {arm: {s: price(c, config.primary) for s, c in by.items()} for arm, by in found.items()}
    arms: dict[str, Any] = {}
    for arm, by in found.items():
        mean, half = interval(bits[arm].values())
        arms[arm] = {"says": ARMS[arm].says, "bits_per_byte": mean, "half": half, "seeds": bits[arm]}
        for key in ("epochs", "positions", "seconds", "read", "still_paired"):
            arms[arm][key] = float(np.mean([c[key] for c in by.values()]))
        if config.primary == "questions":
            arms[arm]["right"] = {s: c["endpoints"]["tasks"]["own"]["accuracy"] for s, c in by.items()}
    came = [(c["frames"], c["captions"]) for c in found.get("four", {}).values() if "frames" in c]
    seen = (round(np.mean([f for f, _ in came])), round(np.mean([c for _, c in came]))) if came else (0, 0)
    grain = _grain(found, config.primary)
    gains = {a: g for a in costs if a != "four" and (g := _paired(costs, a, "four", grain))}
    rest = holm({a: g.p for a, g in gains.items() if a not in MAIN})
    able = possible(data, config)
    judged = verdict(costs, [c for c in CONTROLS if c in able], grain)
    told = endpoints.summary(found, "all" if config.primary == "bits" else "own")
    asked = told["tasks"]["own"] if config.primary == "questions" else None
    notes = _notes(arms, config.init)
    equal = _paired(bits, "text-equal", "text")
    if asked is None and equal and equal.above and (often := arms["text-equal"]["epochs"]) > 4:
        others = " and ".join(a for a in ("shuffled", "noise") if a in arms)
        notes.append(
            f"text-equal is shown to be worse than text: having read it {often:.0f} times it knows it by heart, and says little of "
            "compute here" + (f"; {others} do." if others else ".")
        )
    if asked and (harm := _paired(bits, "text", "four")):
        p = told["words"]["all"]["saved"]["text"]["p"]
        notes.append(
            "Besides, and not declared: a" + _beside_text(harm)[1:-2] + ("" if math.isnan(p) else f"; p {p:.2g} by Holm") + ")."
        )
    rows = {a: asdict(g) | {"detectable": g.detectable, "holm": rest.get(a)} for a, g in gains.items()}
    return {
        "kind": "transfer", "primary": PRIMARY[config.primary], "unit": UNIT[config.primary], "arms": arms, "gains": rows,
        "verdict": {"words": judged.words, "why": judged.why, "detectable": judged.detectable, "sentence": sentence(judged, asked)},
        "ladder": _ladder(bits, {a: row["read"] for a, row in arms.items()}, seen, data, config), "routes": next(iter(found["four"].values()))["routes"] if "four" in found else {},
        "samples": {p.stem: base64.b64encode(p.read_bytes()).decode() for p in sorted((out / "samples").glob("*.png"))},
        "endpoints": told, "findings": next((c["findings"] for c in found.get("four", {}).values() if "findings" in c), None),
        "documents": _documents(found), "notes": notes, "config": grid.plain(config),
        "versions": {"quadrivium": quadrivium.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }  # fmt: skip


def _grain(found: dict[str, dict[int, dict]], primary: Primary) -> float:
    """The step in which a cell's price comes."""
    cell = next((c for by in found.values() for c in by.values()), None)
    return 1 / cell["endpoints"]["tasks"]["own"]["n"] if cell and primary == "questions" else 0.0


def _paired(costs: dict[str, dict[int, float]], a: str, b: str, grain: float = 0.0) -> Contrast | None:
    """a - b over the seeds that both have; None where they share none."""
    return paired(costs[a], costs[b], grain) if costs.get(a, {}).keys() & costs.get(b, {}).keys() else None


def _notes(arms: dict[str, Any], init: str | None = None) -> list[str]:
    """What a reader has to know of the arms, in sentences."""
    found, kept = [], arms.get("shuffled", {}).get("still_paired", 0.0)
    if init:
        found.append(
            f"Every arm began with {init}. What that had read before counts nowhere here; held-out text may be among it."
        )
    if often := [a for a, r in arms.items() if r["epochs"] > 4]:
        found.append(f"Read their text (documents, or captions as text) more than four times: {', '.join(often)}.")
    if part := [a for a, r in arms.items() if r["read"] < 0.999]:
        found.append(f"Read a part of their documents only, so that more of them would change nothing: {', '.join(part)}.")
    if kept > 0.02:
        found.append(
            f"{kept:.0%} of the captioned items had frames of their own caption or group in shuffled: it is no full control."
        )
    return found


def sentence(judged: Any, asked: dict[str, Any] | None = None) -> str:
    """The verdict in one sentence, in its fixed words. ``asked``: the row of the questions that it is about, if it is."""
    words = judged.words
    if words not in (VISUAL, "undecided") and not math.isnan(judged.detectable):
        words += f", minimal detectable effect {judged.detectable:.4f} " + (
            f"in the {UNIT['questions']}" if asked else UNIT["bits"]
        )
    said = words[0].upper() + words[1:] + (f" ({judged.why})" if judged.why else "") + "."
    if "text" in judged.gains:
        said += " " + _beside_text(judged.gains["text"], asked)
    return said


def _beside_text(g: Contrast, asked: dict[str, Any] | None = None) -> str:
    """What all routes gained over text alone, in a sentence."""
    low, high = (g.low, g.high) if g.mean >= 0 else (-g.high, -g.low)
    ends = "one seed, no interval" if math.isnan(low) else f"95 % interval {low:+.4f} to {high:+.4f}, {g.n} seeds"
    more = g.mean >= 0
    if asked is None:
        how = f"{'save' if more else 'cost'} {abs(g.mean):.4f} bits per byte of held-out text {'over' if more else 'more than'}"
    else:
        size, than = (f"{abs(g.mean):.4f} {'more' if more else 'fewer'}", "than") if round(g.mean, 4) else ("as many", "as")
        how = f"are right in {size} of the answers to {asked['n']:,} questions (chance {asked['chance']:.3f}) {than}"
    return f"All routes {how} text alone ({ends})."


def _ladder(
    costs: dict[str, dict[int, float]], read: dict[str, float], seen: tuple[int, int], data: Dataset, config: TransferConfig
) -> dict[str, Any] | None:
    """The text ladder, and how many ids of text a frame is worth, captions counted as text. None with fewer than three rungs,
    and where more text saves nothing.

    ``read``: arm -> share of its documents that its steps came to. Text that no step read is worth nothing yet. ``seen``: frames, and ids
    of captions, that the steps of "four" came to."""
    rungs = {ARMS[a].text: a for a in costs if a == "text" or a.startswith("text-x")}
    if len(rungs) < 3 or "four" not in costs:
        return None
    seeds = sorted(set.intersection(*(set(costs[a]) for a in [*rungs.values(), "four"])))
    if not seeds:
        return None

    def ids(share: float) -> int:  # of seed 0; another seed's documents add up to nearly the same
        return sum(int(s.text_ids[s.text_first[read_documents(s, share, 0)]].sum()) for s in data.sources)

    amount = {x: ids(min(1.0, config.text * x)) * read[rungs[x]] for x in sorted(rungs)}
    order: list[float] = []
    for x, n in amount.items():  # rungs whose steps came no further than those of the one below are no rungs
        if not order or n > 1.1 * amount[order[-1]]:
            order.append(x)
    if len(order) < 3:
        return None
    tokens = np.array([amount[x] for x in order]).round()
    table = np.array([[costs[rungs[x]][s] for x in order] for s in seeds])
    frames, captions = seen
    if not frames or not fit_ladder(tokens, table.mean(0)).scale > 0:
        return None
    found = effective_text(tokens, table, np.array([costs["four"][s] for s in seeds]))
    own = round(ids(config.text) * read["four"]) + captions
    rate = {k: (found[k] - own) / frames for k in ("tokens", "low", "high")}
    return {"tokens": tokens.tolist(), "costs": table.mean(0).tolist(), "four": float(np.mean([costs["four"][s] for s in seeds])),
            "read": own, "captions": captions, "frames": frames, "effective": found, "tokens_per_frame": rate}  # fmt: skip


def _documents(found: dict[str, dict[int, dict]]) -> list[dict[str, Any]]:
    """Held-out documents by what "four" saves on them over "text", in bits per byte, mean over common seeds."""
    both = found.get("four", {}).keys() & found.get("text", {}).keys()
    gains: dict[str, list[float]] = {}
    for s in both:
        four, text = found["four"][s]["documents"], found["text"][s]["documents"]
        for key in four:
            gains.setdefault(key, []).append((text[key][0] - four[key][0]) / max(four[key][1], 1))
    return sorted(({"document": k, "gain": float(np.mean(v))} for k, v in gains.items()), key=lambda r: -r["gain"])


def table(found: dict[str, Any]) -> str:
    """Lines for people: the verdict, then an arm a line."""
    right = rightly(found)
    head, better = (f"{'right':>18}", "four has more right by") if right else ("", "four is better by")
    lines = [
        found["verdict"]["sentence"],
        "",
        f"{'arm':<14}{'seeds':>6}{'bits/byte':>20}{head}{better:>30}{'epochs':>8}",
    ]
    for arm, row in found["arms"].items():
        cost, g = plus_minus(row["bits_per_byte"], row["half"], 4), found["gains"].get(arm)
        gain = (
            "-"
            if g is None
            else f"{g['mean']:+.4f}" + ("" if math.isnan(g["low"]) else f" ({g['low']:+.4f} to {g['high']:+.4f})")
        )
        answers = f"{plus_minus(right[arm]['mean'], right[arm]['half'], 3):>18}" if right else ""
        lines.append(f"{arm:<14}{len(row['seeds']):>6}{cost:>20}{answers}{gain:>30}{row['epochs']:>8.1f}")
    if found["ladder"]:
        lines.append(("in bits of held-out text, " if right else "") + worth(found["ladder"]))
    lines += found["notes"]
    return "\n".join([*lines, "", *(f"{a}: {r['says']}" for a, r in found["arms"].items())])
