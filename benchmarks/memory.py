"""Counted memory beside the memory of the process, for the table of `docs/many-machines.md`. DATA is a folder that prepare wrote.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/memory.py DATA
    PYTHONPATH=. OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=65536 python benchmarks/memory.py DATA

Prints one line of JSON, plain and with --recompute: bytes counted, and the peak of the resident set over three steps above what
it was before the model was made, with the processor time that the steps took.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from quadrivium import memory
from quadrivium.data.mixture import Mixture, MixtureConfig
from quadrivium.data.shards import Dataset
from quadrivium.model import Batch, Model, ModelConfig
from quadrivium.sequence import pack
from quadrivium.train import TrainConfig, make_optimizers, shape_on

TRAIN = TrainConfig(precision="fp32", optimizer="adamw")


def status(name: str) -> int:
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))


def steps(shape: ModelConfig, batch: Batch, recompute: bool, number: int) -> None:
    model = Model(shape)
    model.recompute = recompute
    optimizers = make_optimizers(model, TRAIN)
    for _ in range(number):
        text, codes = model.nats(batch)
        (text.sum() + codes.sum()).backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        del text, codes


def main(data: Path, recompute: bool) -> None:
    prepared = Dataset(data)
    shape, _, text, _ = shape_on(data, prepared, ModelConfig(sharing="all"), MixtureConfig())
    mixed = Mixture(prepared, MixtureConfig(), text.end, 0, shape.patch)
    batch = Batch.of(pack(mixed.step(0)))
    torch.manual_seed(0)
    steps(
        shape_on(data, prepared, ModelConfig(sharing="all", layers=1, width=16, heads=1), MixtureConfig())[0],
        Batch.of(pack(mixed.step(0)[:3])),
        False,
        1,
    )
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began = time.process_time()
    steps(shape, batch, recompute, 3)
    spent, real = time.process_time() - began, status("VmHWM") - before
    counted = memory.count(shape, batch, TRAIN, recompute).peak
    print(json.dumps({"positions": batch.positions, "recompute": recompute, "gives back": "MALLOC_MMAP_THRESHOLD_" in os.environ,
                      "counted": counted, "process": real, "before": before, "seconds": round(spent, 1)}))  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 2:
        main(Path(sys.argv[1]), sys.argv[2] == "recompute")
    else:
        for how in ("plain", "recompute"):
            subprocess.run([sys.executable, __file__, sys.argv[1], how], check=True)
