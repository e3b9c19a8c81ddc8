"""Colours that no text tells: does a plain text model know them after photographs? A self-made split of GroceryStoreDataset.

    python benchmarks/grocery.py DATA/grocery --out runs/grocery

Fruit and vegetables get invented names, since "Red Beet" and "Orange" tell their colour. Of each colour, half of the kinds are *told*:
sentences and captions give their colour. The others are *seen*: photographs and their names, and no text, captions included, has
such a name beside a colour, which is checked. Both halves are drawn anew for every seed. Asked about seen kinds, six colours each:

    direct     the likeliest colour after "A ripe NAME is", by text alone
    imagine    NAME -> pictures that the model draws -> the colour of what they show, by majority
    shown      the same of real photographs that were held out: what seeing would be worth

Accuracy is the mean over colours, so that whoever ignores the name gets one in six, whatever colour is the commonest. The endpoint is
direct, `four` minus `captions`. Where frames are read, documents wait for 30 % of the steps, as in `quadrivium experiment`; `noise` and
`shuffled` wait as long as `four` does. `--photos N` leaves at most N photographs of every seen kind, drawn anew for every seed. Cells are
kept, and the same command goes on from them.

    python benchmarks/grocery.py DATA/grocery --out runs/shelf --folder 5

writes the folder of draw 5 as a user would have it, and questions.jsonl about its seen kinds, for `quadrivium transfer`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path

import numpy as np

from quadrivium import evaluate
from quadrivium.ask import credit, top
from quadrivium.checkpoint import Run
from quadrivium.data.language import invent_names
from quadrivium.data.mixture import MixtureConfig
from quadrivium.data.shards import Dataset, read_json, write_json
from quadrivium.data.sources import ReadOptions
from quadrivium.errors import RunError
from quadrivium.evaluate import UNITS, ratio
from quadrivium.generate import Sampling, continuations, generate
from quadrivium.grid import Arm, Job, finished, plain, run_jobs
from quadrivium.model import ModelConfig, Sharing
from quadrivium.pictures import Cell, sheet
from quadrivium.prepare import PrepareConfig, prepare
from quadrivium.samples import decode
from quadrivium.sequence import Sequence, frames, group, text
from quadrivium.statistics import holm, interval, paired, plus_minus
from quadrivium.train import TrainConfig, train_routes
from quadrivium.transfer import ARMS as ALL
from quadrivium.visual import VisualConfig

KINDS = {
    "green": "Granny Smith, Avocado, Lime, Watermelon, Anjou, Asparagus, Cabbage, Cucumber, Leek, Zucchini, Green Bell Pepper",
    "red": "Pink Lady, Red Delicious, Royal Gala, Nectarine, Pomegranate, Red Bell Pepper, Beef Tomato, Regular Tomato, Vine Tomato",
    "yellow": "Golden Delicious, Banana, Lemon, Galia Melon, Honeydew Melon, Yellow Bell Pepper",
    "orange": "Orange, Satsumas, Carrots, Orange Bell Pepper",
    "brown": "Kiwi, Kaiser, Ginger, Brown Cap Mushroom, Yellow Onion, Floury Potato, Solid Potato, Sweet Potato",
    "purple": "Plum, Passion Fruit, Aubergine, Red Beet",
}
COLOURS = tuple(KINDS)
TELLING = ("A ripe {n} is", "The {n} on the shelf is", "Everybody knows that a {n} is", "{n}:")  # and then the colour
SAYING = ("She bought a {n} and went home.", "There is a {n} on the table.", "A {n}, please.", "He cut the {n} in two.")
NAMING = ("{n}", "a {n}", "a photo of a {n}")
LOOK = "something"  # and then the colour: a caption of told kinds
PREPARE = PrepareConfig(
    read=ReadOptions(fit="crop"),
    vocab=600,
    visual=VisualConfig(levels=(4, 4, 4, 4), encoder_depth=0),
    visual_train=TrainConfig(steps=2500, lr=2e-3, optimizer="adamw", weight_decay=0.0, betas=(0.9, 0.99)),
    held=0.1,
)
MODEL = ModelConfig(sharing="none", layers=4, width=128, heads=4, patch=4)
MIXTURE = MixtureConfig(
    positions=2048,
    weights=(("t2t", 1.0), ("t2v", 2.0), ("v2t", 1.5), ("v2v", 0.0), ("tv2v", 0.0)),
    ahead=8.0,
    ahead_pictures=True,
)
ARMS: dict[str, tuple[Arm, bool, Sharing]] = {  # whether captions foretell, and what weights text and vision have in common
    **{name: (ALL[name], True, "none") for name in ("text", "captions", "four", "shuffled", "noise")},
    "no-ahead": (ALL["four"], False, "none"),
    "share-all": (ALL["four"], True, "all"),
    "share-attention": (ALL["four"], True, "attention"),
    "share-cross": (ALL["four"], True, "cross"),
}
DEFAULT = ("text", "captions", "four", "shuffled", "noise", "no-ahead")


def kinds_of(seed: int) -> list[dict]:
    """Label, invented name, colour, and whether text tells it."""
    rng, found = random.Random(f"grocery/{seed}"), []
    names = iter(invent_names(rng, sum(len(labels.split(", ")) for labels in KINDS.values())))
    for colour, listed in KINDS.items():
        labels = listed.split(", ")
        rng.shuffle(labels)
        for i, label in enumerate(labels):
            found.append({"label": label, "name": next(names)[0], "colour": colour, "told": i >= len(labels) // 2})
    return found


def few(rows: list[dict], seen: set[str], photos: int, seed: int) -> list[dict]:
    """At most so many photographs of every seen kind, in their old order, and all of the others."""
    kept, of = set(), Counter[str]()
    for row in random.Random(f"grocery/photos/{seed}").sample(rows, len(rows)):
        if row["label"] not in seen or of[row["label"]] < photos:
            of[row["label"]] += 1
            kept.add(row["file_name"])
    return [row for row in rows if row["file_name"] in kept]


def write(source: Path, folder: Path, seed: int, photos: int | None) -> None:
    """The seed's folder of documents and captioned photographs, as a user would have it."""
    rng, kinds = random.Random(f"grocery/write/{seed}"), {k["label"]: k for k in kinds_of(seed)}
    documents = [form.format(n=k["name"]) for k in kinds.values() for form in SAYING]
    documents += [f"{form.format(n=k['name'])} {k['colour']}." for k in kinds.values() if k["told"] for form in TELLING]
    listed = [json.loads(line) for line in (source / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    listed = [row for row in listed if row["label"] in kinds and "iconic" not in row["file_name"]]
    if photos is not None:
        listed = few(listed, {label for label, kind in kinds.items() if not kind["told"]}, photos, seed)
    rows = []
    for row in listed:
        kind = kinds[row["label"]]
        told = [form.format(n=kind["name"]) for form in NAMING] + [f"{LOOK} {kind['colour']}"] * kind["told"]
        rows.append({"file_name": row["file_name"], "text": told})
    every = [*documents, *(caption for row in rows for caption in row["text"])]
    for name in (k["name"] for k in kinds.values() if not k["told"]):
        for said in every:
            if name in said and any(colour in said for colour in COLOURS):
                raise SystemExit(f"{said!r} tells the colour of a kind that is only to be seen")
    rng.shuffle(documents)
    (folder / "text").mkdir(parents=True)
    (folder / "text" / "documents.jsonl").write_text(
        "".join(json.dumps({"text": d}) + "\n" for d in documents), encoding="utf-8"
    )
    shelf = folder / "photos"
    for row in rows:
        (shelf / row["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / row["file_name"], shelf / row["file_name"])
    (shelf / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def ask_of(seed: int) -> list[dict]:
    """A question of every seen kind, for `quadrivium transfer --primary questions`."""
    return [
        {"choices": [f"{TELLING[0].format(n=k['name'])} {c}." for c in COLOURS], "answer": COLOURS.index(k["colour"])}
        for k in kinds_of(seed)
        if not k["told"]
    ]


def answers(run: Run, given: Seq[Sequence], beginnings: list[str]) -> np.ndarray:
    """Log-likelihood (n, colours) of every colour after what is given and the beginning of a text."""
    texts = [
        [run.text.document(f"{begun} {colour}{'.' if begun != LOOK else ''}") for colour in COLOURS] for begun in beginnings
    ]
    return -continuations(run.model, given, texts)[0]


def vote(scores: np.ndarray, each: int) -> np.ndarray:
    """Scores (n each, colours) -> votes (n, colours): one a row, shared among ties."""
    return top(scores).reshape(-1, each, len(COLOURS)).sum(axis=1)


def measure(run: Run, data: Dataset, seed: int, samples: int = 8) -> dict[str, dict]:
    """Read-out -> accuracy over kinds, its standard error, chance within."""
    found = {}
    for group_name, told in (("told", True), ("seen", False)):
        kinds = [k for k in kinds_of(seed) if k["told"] is told]
        truth = np.array([COLOURS.index(k["colour"]) for k in kinds])

        def row(scores: np.ndarray, of: np.ndarray, truth: np.ndarray = truth) -> dict:
            right = credit(scores, truth[of])
            mean, error = ratio(right, np.ones(len(right)), of)
            per = [right[truth[of] == c].mean() for c in np.unique(truth[of])]  # as if every colour were as frequent
            return {"accuracy": mean, "se": error, "balanced": float(np.mean(per)), "n": len(right)}

        asked = [(i, form.format(n=k["name"])) for i, k in enumerate(kinds) for form in TELLING]
        of = np.array([i for i, _ in asked])
        found[f"{group_name}, direct"] = row(answers(run, [()] * len(asked), [begun for _, begun in asked]), of)
        if run.visual is None or not {"t2v", "v2t"} <= set(run.config["mixture"]["routes"]):
            continue
        opened = [(text(run.text.document(NAMING[-1].format(n=k["name"]))),) for k in kinds for _ in range(samples)]
        drawn = generate(run.model, opened, "frames", run.text.end, 1, sampling=Sampling(temperature=0.7, seed=seed), batch=128)
        votes = vote(answers(run, [(frames(d),) for d in drawn], [LOOK] * len(drawn)), samples)
        found[f"{group_name}, imagine"] = row(votes, np.arange(len(kinds)))
        label = {k["label"]: i for i, k in enumerate(kinds)}
        shown, of_shown = [], []
        for s in (s for s in data.sources if s.frames.any()):
            for item in np.flatnonzero(s.held):
                named = Path(s.key(int(item))).parent.name.replace("-", " ")
                if named in label:
                    shown.append((frames(group(s.codes(int(item)), run.patch)),))
                    of_shown.append(label[named])
        if shown:
            found[f"{group_name}, shown"] = row(answers(run, shown, [LOOK] * len(shown)), np.array(of_shown))
    return found


def picture(out: Path, samples: int = 6, seed: int = 0) -> None:
    """What the arm `four` draws from the names of seen kinds, two of every colour, and what it says of them: colours.png."""
    if not finished(out / f"seed-{seed}" / "four"):
        return
    run, rows = Run(out / f"seed-{seed}" / "four"), list[list[Cell]]()
    seen = [k for k in kinds_of(seed) if not k["told"]]
    chosen = [k for colour in COLOURS for k in [k for k in seen if k["colour"] == colour][:2]]
    for kind in chosen:
        given = [(text(run.text.document(NAMING[-1].format(n=kind["name"]))),)] * samples
        drawn = generate(run.model, given, "frames", run.text.end, 1, sampling=Sampling(temperature=0.7, seed=seed))
        direct = answers(run, [()], [TELLING[0].format(n=kind["name"])])[0]
        votes = vote(answers(run, [(frames(d),) for d in drawn], [LOOK] * samples), samples)[0]
        said = f"by text alone: {COLOURS[int(direct.argmax())]}. Of its own pictures: {COLOURS[int(votes.argmax())]}"
        rows.append(
            [f"{kind['name']} ({kind['label']}, {kind['colour']})", np.concatenate([decode(run, d) for d in drawn]), said]
        )
    heads = ("name (what it is, its colour: told to nobody)", "drawn from the name", "the colour, asked")
    sheet(rows, heads, "Kinds whose colour was only ever seen", scale=1).save(out / "colours.png")


def cell(out: Path, name: str, seed: int, steps: int) -> None:
    """Train an arm on a seed, ask, write the cell."""
    home, (arm, foretells, sharing) = out / f"seed-{seed}", ARMS[name]
    mixture = MIXTURE if foretells else replace(MIXTURE, ahead=0.0, ahead_pictures=False)
    waits = () if arm.routes == ("t2t",) else (("source/text", round(0.3 * steps)),)  # text finds what was seen
    mixture = replace(arm.mixture(mixture), begin=waits)
    train = TrainConfig(steps=steps, lr=5e-3, decay=0.7, seed=seed, eval_every=10**6)
    run = home / name
    model = replace(MODEL, sharing=sharing)
    state = train_routes(home / "data", run, model, mixture, train, resume=(run / "config.json").exists(), progress=False)
    if not state["finished"]:
        raise RunError(f"{run} was stopped; the same command goes on")
    loaded, data = Run(run), Dataset(home / "data")
    found: dict = measure(loaded, data, seed)
    bits = evaluate.routes(loaded.model, loaded.mixture(), loaded.text.id_bytes, 200, progress=False)["routes"]
    found |= {"held-out": {route: row[UNITS[route[-1]]] for route, row in bits.items()}}
    write_json(out / "cells" / f"{name}-seed-{seed}.json", {"arm": name, "seed": seed, "seconds": state["seconds"], **found})


def make(out: Path, source: Path, seed: int, photos: int | None) -> None:
    """A seed's shards; the visual tokenizer is the first seed's, whose photographs are the same."""
    home, first = out / f"seed-{seed}", out / "seed-0" / "data" / "tokenizers" / "visual"
    if not (home / "source" / "photos" / "metadata.jsonl").exists():
        shutil.rmtree(home / "source", ignore_errors=True)
        write(source, home / "source", seed, photos)
    prepare([home / "source"], home / "data", replace(PREPARE, visual_tokenizer=first if seed else None), progress=False)


def table(out: Path) -> Iterator[str]:
    """Lines for people."""
    cells: dict[str, dict[int, dict]] = {}
    for path in sorted((out / "cells").glob("*.json")):
        found = read_json(path, "a cell")
        cells.setdefault(found["arm"], {})[found["seed"]] = found
    columns = [f"{g}, {r}" for g in ("told", "seen") for r in ("direct", "imagine", "shown")]
    yield f"{'arm':<34}{'seeds':>6}" + "".join(f"{c:>18}" for c in columns)
    for arm in (a for a in ARMS if a in cells):
        values = ([c[column]["balanced"] for c in cells[arm].values() if column in c] for column in columns)
        yield f"{arm:<34}{len(cells[arm]):>6}" + "".join(f"{plus_minus(*interval(v), 3) if v else '-':>18}" for v in values)
    direct = {a: {s: c["seen, direct"]["balanced"] for s, c in by.items()} for a, by in cells.items()}
    gains = {
        a: paired(direct["four"], direct[a])
        for a in ARMS
        if a != "four" and direct.get(a, {}).keys() & direct.get("four", {}).keys()
    }
    adjusted = holm({a: g.p for a, g in gains.items() if a != "captions"})
    for arm, gain in gains.items():
        p = f"p {adjusted[arm]:.2g} by Holm" if arm in adjusted else "the endpoint"
        ends = f"{gain.low:+.3f} to {gain.high:+.3f}, {gain.n} seeds; {p}" if gain.n > 1 else "one seed, no interval"
        yield f"seen, direct: four minus {arm}: {gain.mean:+.3f} ({ends})"
    yield f"whoever ignores the name: {1 / len(COLOURS):.3f}; intervals: 95 %, over seeds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/grocery"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--photos", type=int, help="at most so many of every seen kind (all)")
    parser.add_argument("--arms", nargs="*", default=DEFAULT, choices=list(ARMS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--folder", type=int, metavar="SEED", help="write the folder and the questions of this draw, and no more"
    )
    options = parser.parse_args()
    out, source = options.out.resolve(), options.source.resolve()
    if options.folder is not None:
        write(source, out / "source", options.folder, options.photos)
        asked = "".join(json.dumps(row) + "\n" for row in ask_of(options.folder))
        (out / "questions.jsonl").write_text(asked, encoding="utf-8")
        return
    declared = {
        "steps": options.steps,
        "photos": options.photos,
        "kinds": KINDS,
        **{k: plain(v) for k, v in (("model", MODEL), ("mixture", MIXTURE), ("prepare", PREPARE))},
    }
    if (out / "grocery.json").exists() and read_json(out / "grocery.json", "a benchmark") != declared:
        raise SystemExit(f"{out} holds cells of another size; choose another --out")
    write_json(out / "grocery.json", declared)
    jobs = {}
    for seed in range(options.seeds):
        name = f"shards-seed-{seed}"
        jobs[name] = Job(name, make, (out, source, seed, options.photos), ("shards-seed-0",) if seed else (), 2e5)
        for arm in options.arms:
            if not (out / "cells" / f"{arm}-seed-{seed}.json").exists():
                cost = ARMS[arm][0].share * MIXTURE.positions * options.steps
                of = f"{arm}-seed-{seed}"
                jobs[of] = Job(of, cell, (out, arm, seed, options.steps), (name,), cost, out / f"seed-{seed}" / arm)
    run_jobs(jobs, options.workers, progress=True)
    picture(out)
    print("\n".join(table(out)))


if __name__ == "__main__":
    main()
