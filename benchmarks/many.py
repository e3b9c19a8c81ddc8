"""What `docs/many-machines.md` claims, done again: one process beside many, killed, and gone on with on other numbers of ranks.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/many.py OUT

Prints one line of JSON for each claim. OUT keeps the data and the runs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from quadrivium.data.shards import sha256

STEPS = 50
WORLD = "--clips 160 --told 80 --stills 80 --narrations 160 --size 32"
PREPARE = "--read.size 32 --vocab 512 --visual.down 8 --visual.width 32 --visual-train.steps 60 --visual-train.minutes None --shard-items 60"
TRAIN = f"--layers 2 --width 64 --heads 2 --positions 1024 --steps {STEPS} --log-every 1 --save-every 10 --keep 9 --eval-every {STEPS}"


def command(*words: Any, ranks: int = 1, restarts: int = 0) -> list[str]:
    many = ["torch.distributed.run", "--nproc-per-node", ranks, "--max-restarts", restarts, "--rdzv-backend", "c10d",
            "--rdzv-endpoint", "localhost:0", "-m", "quadrivium"]  # fmt: skip
    return [sys.executable, "-m", *map(str, many if ranks > 1 else ["quadrivium"]), *map(str, words)]


def run(*words: Any, **how: int) -> None:
    subprocess.run(command(*words, **how), check=True, capture_output=True)


def read(folder: Path, key: str) -> dict[int, Any]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {line["step"]: line[key] for line in map(json.loads, filter(lambda w: w.endswith("}"), lines)) if key in line}


def compare(what: str, one: Path, other: Path, **more: Any) -> None:
    a, b = (read(folder, "loss") for folder in (one, other))
    held = [read(folder, "held")[STEPS] for folder in (one, other)]
    told = {
        "what": what,
        "steps": len(b),
        "largest difference of the loss": max(abs(a[step] - b[step]) for step in range(1, STEPS + 1)),
        "largest relative difference of held-out bits": max(abs(held[1][k] / held[0][k] - 1) for k in held[0]),
    }
    print(json.dumps(told | more), flush=True)


def train(out: Path, data: Path, name: str, *more: str, ranks: int = 1) -> Path:
    shutil.rmtree(out / name, ignore_errors=True)
    run("train", data, "--out", out / name, *TRAIN.split(), *more, ranks=ranks)
    return out / name


def cut(run: Path, to: Path, step: int) -> Path:
    """The run as it was when it had saved ``step``."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(run, to)
    for path in (to / "checkpoints").iterdir():
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    return to


def killed(folder: Path, data: Path, ranks: int, step: int) -> int:
    """Train on ranks of which one is killed after ``step``, and which are started again; returns the steps that were lost."""
    shutil.rmtree(folder, ignore_errors=True)
    words = command("train", data, "--out", folder, *TRAIN.split(), "--precision", "fp32", ranks=ranks, restarts=1)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while max(read(folder, "loss"), default=0) < step and process.poll() is None:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [int(c) for c in children if b"quadrivium" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(workers[-1], signal.SIGKILL)
    at = max(read(folder, "loss"))
    assert process.wait() == 0
    return at % 10


def main(out: Path) -> None:
    world, data = out / "world", out / "data"
    if not (data / "manifest.json").exists():
        run("world", world, *WORLD.split())
        run("prepare", world, "--out", data, *PREPARE.split())
    shutil.rmtree(out / "data-2", ignore_errors=True)
    run("prepare", world, "--out", out / "data-2", *PREPARE.split(), ranks=2)
    sums = [
        {p.relative_to(d): sha256(p) for p in d.rglob("*") if p.is_file() and p.name != ".lock"} for d in (data, out / "data-2")
    ]
    print(json.dumps({"what": "prepare on 2 ranks", "files": len(sums[0]), "same bytes": sums[0] == sums[1]}), flush=True)
    adamw = ("--optimizer", "adamw")
    fp32 = (*adamw, "--precision", "fp32")
    one, two = (train(out, data, f"fp32-{n}", *fp32, ranks=n) for n in (1, 2))
    compare("2 ranks", one, two)
    compare("1 process in 3 parts", one, train(out, data, "parts", *fp32, "--accumulate", "3"))
    for ranks in (1, 4):
        folder = cut(two, out / f"resumed-{ranks}", 20)
        run("train", data, "--out", folder, "--resume", ranks=ranks)
        compare(f"saved on 2 ranks, resumed on {ranks}", one, folder)
    lost = killed(out / "killed", data, 2, 25)
    compare("2 ranks, one killed, started again", one, out / "killed", **{"steps done twice": lost})
    for name, more in (
        ("muon", ("--precision", "fp32", "--optimizer", "muon")),
        ("none", (*fp32, "--sharing", "none")),
        ("bf16", (*adamw, "--precision", "bf16")),
    ):
        alone, both = (train(out, data, f"{name}-{n}", *more, ranks=n) for n in (1, 2))
        compare(f"2 ranks, {' '.join(more)}", alone, both)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
