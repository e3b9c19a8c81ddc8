"""Does cost grow with the data and no faster? Ten times the text, and ten times the clips and stills, to prepare; one shard and a
hundred to train from.

    PYTHONPATH=. python benchmarks/linear.py [--documents 400] [--clips 200]

Every measurement is a process of its own, so that its peak memory is its own. Processor seconds, those of helpers too, so that a busy
machine counts less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path


def spent() -> float:
    """Processor seconds of this process and of its helpers that have ended."""
    return sum(os.times()[:4])


def prepare(source: str, out: str, items: str, tokenizers: str) -> dict:
    from quadrivium.prepare import PrepareConfig
    from quadrivium.prepare import prepare as run
    from quadrivium.train import TrainConfig, threads

    threads()
    config = PrepareConfig(vocab=512, shard_items=int(items), visual_train=TrainConfig(steps=60, optimizer="adamw"))
    if tokenizers:
        text, visual = (path if path.is_dir() else None for path in (Path(tokenizers) / "text", Path(tokenizers) / "visual"))
        config = replace(config, text_tokenizer=text, visual_tokenizer=visual)
    before = spent()
    data = run([Path(source)], Path(out), config, progress=False)
    return {"seconds": spent() - before, "shards": sum(len(s["shards"]) for s in data.manifest["sources"])}


def train(data: str) -> dict:
    from quadrivium.data.mixture import Mixture, MixtureConfig
    from quadrivium.data.shards import Dataset
    from quadrivium.model import Model, ModelConfig
    from quadrivium.train import RouteTask, autocast, shape_on, threads

    threads()
    prepared, mixture = Dataset(Path(data)), MixtureConfig(positions=2048)
    shape, _, text, _ = shape_on(Path(data), prepared, ModelConfig(sharing="all", width=128, layers=2, heads=2), mixture)
    model = Model(shape)
    task = RouteTask(model, Mixture(prepared, mixture, text.end, 0, shape.patch), text.id_bytes)
    speeds = []
    for step in range(40):
        before = time.process_time()
        batch = task.batch(step)
        with autocast("auto", next(model.parameters()).device):
            loss, _ = task.loss(batch)
        loss.backward()
        model.zero_grad(set_to_none=True)
        speeds.append((time.process_time() - before) / task.positions(batch)[0])
    return {"us": 1e6 * sorted(speeds[5:])[len(speeds[5:]) // 2]}


def apart(*arguments: str) -> dict:
    """One measurement in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--only", *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--only", nargs="+")
    options = parser.parse_args()
    if options.only:
        name, *rest = options.only
        found = prepare(*rest) if name == "prepare" else train(*rest)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**found, "peak": peak}))
        return
    with tempfile.TemporaryDirectory() as folder:
        for kind, make, count in (("text", write_text, options.documents), ("frames", write_frames, options.clips)):
            compare(Path(folder) / kind, kind, make, count)


def write_text(folder: Path, count: int) -> None:
    lines = (f"The {i} ball struck the {i * 7 % 101} ball and rolled on, past house {i % 13}." for i in range(10**9))
    documents = (" ".join(next(lines) for _ in range(40)) for _ in range(count))
    folder.mkdir(parents=True)
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")


def write_frames(folder: Path, count: int) -> None:
    from quadrivium.data.world import WorldConfig, write_world

    write_world(WorldConfig(clips=count, told=0, stills=2 * count, narrations=0), folder, progress=False)


def compare(root: Path, kind: str, make: Callable[[Path, int], None], count: int) -> None:
    """Prepare ``count`` and ten times as many, medians of three; train from the larger, in one shard and in a hundred."""
    costs = {}
    for times in (1, 10):
        make(root / f"{times}-times", count * times)
    apart("prepare", str(root / "1-times"), str(root / "first"), "2000", "")
    tokenizers = str(root / "first" / "tokenizers")
    for times in (1, 10):
        runs = [
            apart("prepare", str(root / f"{times}-times"), str(root / f"{times}-{n}"), "2000", tokenizers) for n in range(3)
        ]
        costs[times] = sorted(runs, key=lambda run: run["seconds"])[1]
        print(f"prepare {kind} {times:>2} x: {costs[times]['seconds']:.2f} CPU s, peak {costs[times]['peak']:.0f} MB")
    print(f"  ten times the {kind}: {costs[10]['seconds'] / costs[1]['seconds']:.2f} times the time")
    for items in (10**6, max(1, count * 10 // 100)):  # shards of one source; stills are twice as many as clips
        made = apart("prepare", str(root / "10-times"), str(root / f"shards-{items}"), str(items), tokenizers)
        runs = sorted((apart("train", str(root / f"shards-{items}")) for _ in range(3)), key=lambda run: run["us"])
        print(
            f"train {kind} from {made['shards']:>3} shards: {runs[1]['us']:.2f} us of CPU a position, peak {runs[1]['peak']:.0f} MB"
        )


if __name__ == "__main__":
    main()
