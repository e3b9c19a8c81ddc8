"""Is the verdict of `quadrivium transfer` right where the truth is known? Real small runs on data sets with a planted answer.

    python benchmarks/planted.py --out runs/planted

    sight     every name has a colour. Pictures show it and captions give the name alone; documents tell it of seven names in ten,
              and held-out documents of the others. What text can gain, only pictures hold: visual profit. The endpoint is right
              answers to questions for these colours (chance .25). sight-1, sight-2 ..: other names and pictures.
    caption   captions tell the colour and pictures show another one, drawn anew; documents tell it once, held out or not: caption profit.
    compute   documents of one made-up language, of which a run reads less than half. Captions are more of it, under pictures of
              nothing: text alone that reads as much gains as much: compute or regularisation profit.
    null-0 .. pictures of nothing, without captions, beside documents that say nothing of them: none detected.

Every finished cell is kept in the folder, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from quadrivium import transfer
from quadrivium.data.language import invent_names
from quadrivium.data.mixture import MixtureConfig
from quadrivium.data.shards import Dataset, is_held, write_json
from quadrivium.data.sources import ReadOptions
from quadrivium.endpoints import EndpointConfig
from quadrivium.model import ModelConfig
from quadrivium.prepare import PrepareConfig, prepare
from quadrivium.statistics import CAPTION, COMPUTE, NONE, VISUAL, rightly
from quadrivium.train import TrainConfig
from quadrivium.transfer import MAIN, TransferConfig, possible, run_transfer
from quadrivium.visual import VisualConfig

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 70, 220), "yellow": (230, 210, 40)}
EXPECTED = {"sight": VISUAL, "caption": CAPTION, "compute": COMPUTE}
PREPARE = PrepareConfig(
    read=ReadOptions(size=16),
    vocab=1200,
    visual=VisualConfig(levels=(4, 4), width=8, encoder_depth=0, decoder_depth=1),
    visual_train=TrainConfig(steps=60, lr=4e-3, optimizer="adamw"),
    visual_batch=16,
    held=0.3,
)
CONFIG = TransferConfig(
    model=ModelConfig(sharing="all", layers=1, width=32, heads=2, patch=4),
    mixture=MixtureConfig(positions=400, context=32),
    train=TrainConfig(steps=200, lr=5e-3, optimizer="adamw", warmup=10, eval_every=10**6),
    text=1.0,
)
# To compose name -> look -> word takes more than to hear a word.
SIGHT = replace(
    CONFIG,
    model=replace(CONFIG.model, width=64),
    mixture=replace(
        CONFIG.mixture, positions=500, weights=(("t2t", 1.0), ("t2v", 0.5), ("v2t", 2.0), ("v2v", 0.0), ("tv2v", 0.0))
    ),
    train=replace(CONFIG.train, steps=1200, lr=8e-3),
)


def tile(colour: str | None, rng: random.Random) -> Image.Image:
    """A picture of a colour, or of nothing: 16 x 16 pixels of noise."""
    noise = np.random.default_rng(rng.getrandbits(32))
    if colour is None:
        return Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return Image.fromarray(np.clip(np.array(COLOURS[colour]) + noise.normal(0, 12, (16, 16, 3)), 0, 255).astype(np.uint8))


def write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write(folder: Path, documents: list[dict[str, str]], pictures: list[tuple[Image.Image, str]]) -> None:
    """A folder as a user has it: documents, and pictures with captions or without."""
    for part in ("text", "pictures"):
        (folder / part).mkdir(parents=True)
    write_lines(folder / "text" / "documents.jsonl", documents)
    rows = []
    for i, (picture, caption) in enumerate(pictures):
        picture.save(folder / "pictures" / f"{i:05d}.png")
        rows.append({"file_name": f"{i:05d}.png", "text": caption})
    write_lines(folder / "pictures" / "metadata.jsonl", rows)


def shown(folder: Path, seed: int) -> None:
    """Names and their colours, in pictures: a hundred names, of which documents that are trained on tell the colour of seventy, and
    held-out ones, and `questions.jsonl` beside the folder, that of the others. Documents that name a name alone are as many for every name,
    so that spelling costs every arm alike."""
    rng = random.Random(f"planted/{seed}")
    colours = list(COLOURS)
    colour = {name: colours[i % len(colours)] for i, (name, _) in enumerate(invent_names(rng, 100))}
    # A group's side of the split is a function of its name, so a document's side is chosen by naming its group.
    trained = (str(i) for i in count() if not is_held(str(i), PREPARE.held))
    held = (str(i) for i in count() if is_held(str(i), PREPARE.held))
    documents = [{"text": name, "group": next(trained)} for name in colour for _ in range(8)]
    for i, (name, c) in enumerate(colour.items()):
        for group in [next(trained), next(trained)] if i < 70 else [next(held)]:
            documents.append({"text": f"{name} {c}", "group": group})
    pictures = [(tile(c, rng), name) for name, c in colour.items() for _ in range(6)]
    rng.shuffle(documents)
    rng.shuffle(pictures)
    write(folder, documents, pictures)
    asked = [{"choices": [f"{name} {c}" for c in colours], "answer": colours.index(colour[name])} for name in list(colour)[70:]]
    write_lines(folder.parent / "questions.jsonl", asked)


def told(folder: Path, seed: int) -> None:
    """Names and their colours, in captions under pictures of other colours. A document a name tells its colour, and any may be held out."""
    rng = random.Random(f"planted/{seed}")
    colour = {name: rng.choice(list(COLOURS)) for name, _ in invent_names(rng, 120)}
    documents = [{"text": f"{name} {c}"} for name, c in colour.items()] + [{"text": name} for name in colour for _ in range(2)]
    pictures = [(tile(rng.choice(list(COLOURS)), rng), f"{name} {c}") for name, c in colour.items() for _ in range(4)]
    rng.shuffle(documents)
    rng.shuffle(pictures)
    write(folder, documents, pictures)


def language(folder: Path, seed: int, documents: int, captions: int, bare: int) -> None:
    """Texts of a made-up language, each word likely after some others; captions of it, or none, under pictures of nothing."""
    rng = random.Random(f"language/{seed}")
    words = [name for name, _ in invent_names(rng, 60)]
    after = {w: rng.sample(words, 4) for w in words}

    def sentence() -> str:
        said = [rng.choice(words)]
        while len(said) < 8:
            said.append(rng.choice(after[said[-1]]))
        return " ".join(said)

    pictures = [(tile(None, rng), sentence() if i < captions else "") for i in range(captions + bare)]
    write(folder, [{"text": sentence()} for _ in range(documents)], pictures)


def make(name: str, folder: Path, seed: int) -> None:
    if name.startswith("sight"):
        shown(folder, seed)
    elif name == "caption":
        told(folder, seed)
    elif name == "compute":
        language(folder, seed, 3000, 1000, 0)
    else:
        language(folder, seed, 1500, 0, 300)


def judge(name: str, out: Path, seeds: int, number: int = 0) -> dict:
    """Make the data set, run what is missing of its grid, and return its verdict."""
    folder = out / name
    if not (folder / "source").exists():
        make(name, folder / "source", number)
    prepare([folder / "source"], folder / "data", PREPARE, progress=False)
    config = CONFIG
    if name.startswith("sight"):
        config = replace(SIGHT, primary="questions", endpoints=EndpointConfig(questions=folder / "questions.jsonl"))
    (folder / "samples").mkdir(exist_ok=True)  # so that none are drawn
    arms = [a for a in possible(Dataset(folder / "data"), config) if a in MAIN]
    for arm in arms:
        for seed in range(seeds):
            if not (folder / "cells" / f"{arm}-seed-{seed}.json").exists():
                # In this process: to start one takes longer than the cell.
                transfer._cell(folder, folder / "data", config, arm, seed, "cpu", False)
    return run_transfer([folder / "data"], folder, config, range(seeds), arms, progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/planted"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--nulls", type=int, default=5)
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for name in options.only or [*EXPECTED, *(f"null-{i}" for i in range(options.nulls))]:
        found = judge(name, options.out, options.seeds, int(name.partition("-")[2] or 0))
        rows[name] = {"verdict": found["verdict"]["words"], "expected": EXPECTED.get(name.partition("-")[0], NONE),
                      "gains": {a: [g["mean"], g["low"], g["high"]] for a, g in found["gains"].items()},
                      "bits": {a: r["bits_per_byte"] for a, r in found["arms"].items()}}  # fmt: skip
        gains = ", ".join(f"{a} {g[0]:+.3f} ({g[1]:+.3f} to {g[2]:+.3f})" for a, g in rows[name]["gains"].items())
        if right := rightly(found):
            rows[name]["right"] = {a: r["mean"] for a, r in right.items()}
        print(f"{name}: {rows[name]['verdict']} (planted: {rows[name]['expected']}); four is better than {gains}", flush=True)
    write_json(options.out / "planted.json", rows)


if __name__ == "__main__":
    main()
