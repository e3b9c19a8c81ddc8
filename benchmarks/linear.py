"""Does cost grow with the data and no faster? Ten times the text to prepare; one shard and a hundred to train from.

    PYTHONPATH=. python benchmarks/linear.py [--documents 400]

Every measurement is a process of its own, so that its peak memory is its own. Processor seconds, so that a busy machine counts less.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def prepare(source: str, out: str, items: str, tokenizer: str) -> dict:
    from quadrivium.prepare import PrepareConfig
    from quadrivium.prepare import prepare as run
    from quadrivium.train import threads

    threads()
    config = PrepareConfig(vocab=512, shard_items=int(items), text_tokenizer=Path(tokenizer) if tokenizer else None)
    before = time.process_time()
    data = run([Path(source)], Path(out), config, progress=False)
    shards = sum(len(s["shards"]) for s in data.manifest["sources"])
    return {"seconds": time.process_time() - before, "shards": shards}


def train(data: str) -> dict:
    from quadrivium.data.mixture import Mixture, MixtureConfig
    from quadrivium.data.shards import Dataset
    from quadrivium.model import Model, ModelConfig
    from quadrivium.text import TextTokenizer
    from quadrivium.train import RouteTask, autocast, threads

    threads()
    prepared, text = Dataset(Path(data)), TextTokenizer.load(Path(data) / "tokenizers" / "text")
    model = Model(ModelConfig(vocab=text.size, width=128, layers=2, heads=2))
    task = RouteTask(model, Mixture(prepared, MixtureConfig(positions=2048), text.end, 0), text.id_bytes)
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
    parser.add_argument("--only", nargs="+")
    options = parser.parse_args()
    if options.only:
        name, *rest = options.only
        found = {"prepare": prepare, "train": train}[name](*rest)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**found, "peak": peak}))
        return
    with tempfile.TemporaryDirectory() as folder:
        root, costs = Path(folder), {}
        for times in (1, 10):
            source = root / f"text-{times}"
            source.mkdir()
            lines = (f"The {i} ball struck the {i * 7 % 101} ball and rolled on, past house {i % 13}." for i in range(10**9))
            documents = (" ".join(next(lines) for _ in range(40)) for _ in range(options.documents * times))
            (source / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
        apart("prepare", str(root / "text-1"), str(root / "first"), "2000", "")
        tokenizer = str(root / "first" / "tokenizers" / "text")
        for times in (1, 10):
            runs = [
                apart("prepare", str(root / f"text-{times}"), str(root / f"{times}-{n}"), "2000", tokenizer) for n in range(3)
            ]
            costs[times] = sorted(runs, key=lambda run: run["seconds"])[1]
            print(f"prepare {times:>2} x: {costs[times]['seconds']:.2f} CPU s, peak {costs[times]['peak']:.0f} MB")
        print(f"  ten times the data: {costs[10]['seconds'] / costs[1]['seconds']:.2f} times the time")
        for items in (10**6, max(1, options.documents * 10 // 100)):
            made = apart("prepare", str(root / "text-10"), str(root / f"shards-{items}"), str(items), tokenizer)
            runs = sorted((apart("train", str(root / f"shards-{items}")) for _ in range(3)), key=lambda run: run["us"])
            print(
                f"train from {made['shards']:>3} shards: {runs[1]['us']:.2f} us of CPU a position, peak {runs[1]['peak']:.0f} MB"
            )


if __name__ == "__main__":
    main()
