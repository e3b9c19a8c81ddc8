"""Counted memory is the memory that training takes."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from quadrivium import memory
from quadrivium.cli import main
from quadrivium.model import Batch, ModelConfig
from quadrivium.sequence import frames, pack, text
from quadrivium.train import TrainConfig

SHAPE = ModelConfig(vocab=320, codes=64, rows=4, columns=4, patch=1, layers=3, width=64, heads=2, sharing="attention").resolve()
FP32, BF16 = (TrainConfig(precision=p) for p in ("fp32", "bf16"))


PATCHED = replace(SHAPE, rows=2, columns=2, patch=2, foretells=True)


def batch(copies=1, shape=SHAPE):
    draw, told = np.random.default_rng(0), []
    for _ in range(3):
        ids, clip = draw.integers(0, 320, 40), draw.integers(0, 64, (2, shape.rows, shape.columns, shape.patch**2))
        told.append((text(ids, ahead=clip[-1] if shape.foretells else None), frames(clip, wanted=True)))
    read = [(text(draw.integers(0, 320, 90), wanted=True),) for _ in range(3)]
    return Batch.of(pack(copies * (told + read)))


# Peak of the resident set over two steps, above what it was before the model. Freed arrays go back to the system at once
# here; glibc otherwise keeps what it may use again, which is measured on the page about many machines.
REAL = """
import json, sys, torch
from quadrivium.model import Model, ModelConfig
from quadrivium.train import TrainConfig, autocast, make_optimizers
from tests.test_memory import batch, SHAPE
from dataclasses import replace

def step(model, optimizers, data, train):
    with autocast(train.precision, torch.device("cpu")):
        text, codes = model.nats(data)
        loss = text.sum() + codes.sum()
    loss.backward()
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

train, recompute = TrainConfig(precision=sys.argv[1]), sys.argv[2] == "True"
data, small = batch(20), Model(SHAPE)
step(small, make_optimizers(small, train), batch(), train)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
model = Model(replace(SHAPE, layers=3, width=128, heads=4, kv_heads=4, hidden=384))
model.recompute = recompute
optimizers = make_optimizers(model, train)
for _ in range(2):
    step(model, optimizers, data, train)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system does not tell peaks of memory")
def test_counted_bytes_are_those_of_the_process():
    """Within 10 %, and 30 MB for what libraries take the first time that they compute something large."""
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", REAL, "fp32", "False"], capture_output=True, text=True, env=env)
    assert ran.returncode == 0, ran.stderr[-2000:]
    large = replace(SHAPE, layers=3, width=128, heads=4, kv_heads=4, hidden=384)
    counted, real = memory.count(large, batch(20), FP32).peak, int(ran.stdout)
    assert counted > 120_000_000 and 0.97 * counted < real < 1.1 * counted + 30_000_000


@pytest.mark.parametrize(
    "family, train",
    [(SHAPE, FP32), (PATCHED, BF16), (replace(SHAPE, sharing="cross"), replace(BF16, optimizer="muon"))],
    ids=["codes", "cells", "cross"],
)
def test_small_counts_foretell_large_ones(family, train):
    step = batch(shape=family)
    forecast = memory.Forecast(family, step, train)
    shape = replace(forecast.scaled(3), layers=7 if family.sharing == "cross" else 4)
    assert shape.code_width * 2 == shape.width
    counted = memory.count(shape, step, train)
    assert forecast.peak(shape) == pytest.approx(counted.peak, rel=0.02)
    assert forecast.at(shape).peak == pytest.approx(counted.peak, rel=0.005)
    assert counted.parameters == forecast._static(shape)[0]
    largest, parameters, peak = forecast.largest(200_000_000)
    assert peak <= 200_000_000 < forecast.peak(forecast.scaled(largest.kv_heads + 1))
    assert 10 * parameters < peak


def test_recomputed_blocks_and_smaller_parts_take_less():
    deep = replace(SHAPE, layers=5)
    whole, again, half = (memory.count(deep, batch(n), FP32, recompute) for n, recompute in ((2, False), (2, True), (1, False)))
    assert again.activations < 0.6 * whole.activations and again.peak < whole.peak
    assert half.activations == pytest.approx(whole.activations / 2, rel=0.2)


def test_a_dry_run_says_what_a_step_takes_and_writes_nothing(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    deep = ["--layers", "7", "--width", "32", "--heads", "2", "--contrast.weight", "0.1", "--contrast.layer", "6"]
    shape = [*deep, "--positions", "300", "--context", "32", "--precision", "fp32", "--accumulate", "2"]
    assert main(["train", str(data), "--dry-run", *shape]) == 0  # counted from two and three layers
    out = capsys.readouterr().out
    assert "7 layers" in out and "24 GiB of CPU memory" in out and "4.0 bytes a parameter" in out
    late = [arg for name in ("t2v", "v2t", "v2v", "tv2v") for arg in (f"{name}/clip", "40")]
    assert main(["train", str(data), "--dry-run", *shape, "--begin", *late]) == 0
    assert capsys.readouterr().out == out  # the largest batch may be one that is read later
    assert not list(tmp_path.iterdir())
    assert main(["train", str(data)]) == 2 and "--out is missing" in capsys.readouterr().err
    assert json.loads((data / "manifest.json").read_text())["complete"]
