"""Many processes are one: the same losses, the same checkpoints, the same prepared bytes, whoever is killed in between.

Losses of ranks differ from those of one process in the order of sums alone: measured 1e-6 in fp32; the laws allow 1e-5. An
error in sharding, dealing or normalising changes them in the second digit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from quadrivium import checkpoint
from quadrivium.cli import main
from quadrivium.data.mixture import Mixture, MixtureConfig, deal
from quadrivium.data.shards import Dataset
from quadrivium.model import Model, ModelConfig
from quadrivium.train import Computing, RouteTask, TrainConfig, compile_parts, fit, train_routes

SMALL = ModelConfig(layers=2, width=32, heads=2, patch=2, sharing="attention")
MIX = MixtureConfig(positions=300, context=32)
TRAIN = TrainConfig(steps=30, log_every=1, save_every=6, keep=9, precision="fp32", eval_every=30)
OPTIONS = "--layers 2 --width 32 --heads 2 --patch 2 --sharing attention --positions 300 --context 32 --steps 30 --log-every 1 "
OPTIONS += "--save-every 6 --keep 9 --precision fp32 --eval-every 30"


def launch(ranks, *words, restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--monitor-interval", "0.05"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "-m", "quadrivium", *map(str, words)], stderr=subprocess.PIPE, text=True, env=env)


def ended(process, status=0):
    words = process.communicate(timeout=300)[1]
    assert process.returncode == status, words[-3000:]
    return words


def lines(run, key):
    """Step -> value of a key of metrics.jsonl, whose steps stand once each and in their order."""
    path = run / "metrics.jsonl"
    text = path.read_text().splitlines() if path.exists() else []
    found = [(line["step"], line[key]) for line in map(json.loads, filter(lambda w: w.endswith("}"), text)) if key in line]
    assert [step for step, _ in found] == sorted({step for step, _ in found})
    return dict(found)


def wait_for(process, run, step):
    while process.poll() is None and max(lines(run, "loss"), default=0) < step:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1][-3000:]


def agree(run, other):
    ours, theirs = lines(run, "loss"), lines(other, "loss")
    assert list(ours) == list(range(1, 31)) and ours == pytest.approx(theirs, abs=1e-5)
    assert lines(run, "held")[30] == pytest.approx(lines(other, "held")[30], rel=1e-5)
    last, same = (checkpoint.weights(r) for r in (run, other))
    for name in ("model.safetensors", "optimizer.safetensors"):
        mine, its = load_file(last.parent / name), load_file(same.parent / name)
        assert mine.keys() == its.keys()
        for key, value in mine.items():
            assert torch.allclose(value, its[key], atol=2e-5, rtol=1e-3), key


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """The run of one process."""
    run = tmp_path_factory.mktemp("one") / "run"
    train_routes(data, run, SMALL, MIX, TRAIN, progress=False)
    return run


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    """A run on two ranks that was told to leave in the middle."""
    run = tmp_path_factory.mktemp("two") / "run"
    process = launch(2, "train", data, "--out", run, *OPTIONS.split())
    wait_for(process, run, 8)
    process.send_signal(signal.SIGTERM)
    words = process.communicate(timeout=120)[1]
    assert "SIGTERM: saved step" in words and "--resume" in words
    steps = lines(run, "loss")
    last = checkpoint.latest(run / "checkpoints")
    assert last is not None and int(last.name[5:]) == max(steps) < 30, "all ranks left after the same step, and saved it"
    return run


def copy(run, to):
    shutil.copytree(run, to)
    return to


def test_adamw_on_two_ranks_is_that_of_one_process(data, tmp_path):
    """All others here are by Muon, the default, whose matrices are gathered, each orthogonalised by one rank and sent to the other.
    What captions foretell counts on whichever rank they are."""
    train_routes(data, tmp_path / "one", SMALL, replace(MIX, ahead=4.0), replace(TRAIN, optimizer="adamw"), progress=False)
    ended(launch(2, "train", data, "--out", tmp_path / "two", *OPTIONS.split(), "--optimizer", "adamw", "--ahead", "4"))
    agree(tmp_path / "two", tmp_path / "one")


def test_saved_on_two_ranks_it_goes_on_on_one(data, one, two, tmp_path):
    run = copy(two, tmp_path / "run")
    train_routes(data, run, SMALL, MIX, TrainConfig(), resume=True, progress=False)
    agree(run, one)


def test_saved_on_two_ranks_it_goes_on_on_three_though_one_of_them_is_killed(data, one, two, tmp_path):
    run = copy(two, tmp_path / "run")
    process = launch(3, "train", data, "--out", run, "--resume", restarts=1)
    wait_for(process, run, max(lines(run, "loss")) + 8)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [p for p in map(int, children) if b"quadrivium" in Path(f"/proc/{p}/cmdline").read_bytes()]
    assert len(ranks) == 3
    os.kill(ranks[1], signal.SIGKILL)
    assert "3 ranks" in ended(process)
    agree(run, one)


def test_shards_dealt_to_ranks_are_those_of_one_process(data, folder, tmp_path):
    """Also where a rank had written some when all were killed: its note of them is taken over, and what is missing is written."""
    out = copy(data, tmp_path / "out")
    manifest = json.loads((out / "manifest.json").read_text())
    noted = [{**s, "shards": s["shards"][:1]} for s in manifest["sources"][-1:]]
    (out / ".shards-1.json").write_text(json.dumps({"sources": noted}))
    (out / "manifest.json").write_text(json.dumps({**manifest, "complete": False, "sources": []}))
    kept = out / "shards" / noted[0]["shards"][0]["file"]
    for path in (out / "shards").iterdir():
        if path != kept:
            path.unlink()
    stamp = kept.stat().st_mtime_ns
    small = "--read.size 16 --read.fps 4 --read.clip-frames 4 --read.doc-bytes 200 --vocab 320 --visual.down 4 --visual.levels 4 4 4 "
    small += "--visual.width 16 --visual.encoder-depth 1 --visual.decoder-depth 1 --held 0.2 --shard-items 20"
    ended(launch(2, "prepare", folder, "--out", out, *small.split()))
    assert kept.stat().st_mtime_ns == stamp
    before, after = (
        {p.relative_to(d): p.read_bytes() for p in sorted(d.rglob("*")) if p.is_file() and p.name != ".lock"}
        for d in (data, out)
    )
    assert before == after


@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 9))
def test_a_step_is_dealt_out_evenly(costs, parts):
    owner = deal(costs, parts)
    spent = [sum(c for c, o in zip(costs, owner, strict=True) if o == p) for p in range(parts)]
    assert sum(spent) == sum(costs) and len(owner) == len(costs)
    assert max(spent) - min(spent) <= max(costs, default=0)


def task(data, sharing="none"):
    model = Model(replace(SMALL, vocab=320, codes=64, rows=2, columns=2, sharing=sharing))
    return RouteTask(model, Mixture(Dataset(data), MIX, 0, seed=0, patch=2), np.ones(320, np.int64))


@pytest.mark.parametrize("parts", [3, 40])
def test_accumulated_parts_are_the_whole_batch(data, tmp_path, parts):
    """With 40, most parts are empty."""
    config = replace(TRAIN, steps=3)
    for name, accumulate in (("whole", 1), ("parts", parts)):
        fit(task(data), config, tmp_path / name, progress=False, accumulate=accumulate)
    for key in ("loss", "norm", "t2t", "tv2v", "positions"):
        assert lines(tmp_path / "parts", key) == pytest.approx(lines(tmp_path / "whole", key), rel=1e-5)


def test_recomputed_blocks_give_the_same_loss_and_gradients_from_less_memory(data):
    """What is kept from the way there is counted; recomputing keeps the input of each block, of about 20 arrays as large."""
    learner, found = task(data), {}
    learner.model = Model(replace(SMALL, vocab=320, codes=64, rows=2, columns=2, layers=6))
    batch = learner.batch(0)
    for learner.model.recompute in (False, True):
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor, kept=kept):
            return kept.setdefault(tensor.data_ptr(), tensor)

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss, _ = learner.loss(batch)
        learner.model.zero_grad()
        loss.backward()
        size = sum(t.numel() * t.element_size() for t in kept.values())
        found[learner.model.recompute] = (loss.item(), [p.grad.clone() for p in learner.model.parameters()], size)
    assert found[True][0] == found[False][0]
    assert all(torch.equal(a, b) for a, b in zip(found[True][1], found[False][1], strict=True))
    assert found[True][2] < 0.4 * found[False][2]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which the compiler reads of what is between
def test_compiled_parts_give_the_same_loss_and_gradients_for_every_batch(data):
    """With a compiler that only traces: what is traced is what a GPU's compiler is given. Batches of three sizes, few graphs."""
    shape = replace(SMALL, vocab=320, codes=64, rows=2, columns=2)
    learner, plain, compiled = task(data), Model(shape), Model(shape)
    compile_parts(compiled, backend="aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for step in range(3):
        batch = learner.batch(step)[0]
        for model in (plain, compiled):
            text, codes = model.nats(batch)
            model.zero_grad()
            (text.sum() + codes.sum()).backward()
        for (name, p), q in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-3), name
    counters = torch._dynamo.utils.counters
    assert 0 < counters["stats"]["unique_graphs"] <= 4 and not counters["graph_break"]


def test_one_rank_that_was_started_again_goes_on(data, tmp_path, monkeypatch, capsys):
    """As `torchrun --nproc-per-node 1 --max-restarts N` starts it, without --resume."""
    words = ["train", str(data), "--out", str(tmp_path / "run"), *OPTIONS.split(), "--steps", "4"]
    assert main(words) == 0 and main(words) == 2
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(words) == 0 and len(lines(tmp_path / "run", "loss")) == 4
    assert "already holds a run" in capsys.readouterr().err


def test_parts_have_to_be_whole_numbers_of_at_least_one():
    with pytest.raises(Exception, match="accumulate is 0"):
        Computing(accumulate=0)
