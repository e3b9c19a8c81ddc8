"""The loop: killed and resumed is undisturbed, bit for bit; budgets, schedules, refusals."""

import json
import math
import os
import random
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quadrivium import checkpoint
from quadrivium.checkpoint import Run
from quadrivium.data.mixture import Mixture, MixtureConfig
from quadrivium.data.shards import Dataset
from quadrivium.errors import ConfigError, RunError
from quadrivium.model import Batch, ContrastConfig, Model, ModelConfig
from quadrivium.muon import Muon, orthogonal
from quadrivium.prepare import prepare
from quadrivium.sequence import ROUTES, frames, pack, text
from quadrivium.train import RouteTask, TrainConfig, fit, learning_rate, train_routes
from tests.conftest import TINY, ended, started

MODEL = ["--layers", "2", "--width", "32", "--heads", "2", "--patch", "2"]
SMALL = ModelConfig(layers=2, width=32, heads=2, patch=2)
MIX = MixtureConfig(positions=300, context=32)


def command(data, run, steps, *more):
    base = ["train", data, "--out", run, "--steps", steps, "--save-every", "3"]
    return [*base, "--log-every", "1", "--positions", "300", "--context", "32", *MODEL, *more]


def weights(run):
    """Bytes of the last checkpoint."""
    last = checkpoint.latest(run / "checkpoints")
    assert last is not None
    return {n: (last / n).read_bytes() for n in ("model.safetensors", "optimizer.safetensors")}


def steps_logged(run):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if '"loss"' in line and line.endswith("}")]


def test_killed_at_ten_random_steps_it_ends_as_if_undisturbed(data, tmp_path):
    """One run is killed with SIGKILL at ten different random steps, resumed each time, and compared bit for bit."""
    steps = 60
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert ended(started(*command(data, whole, steps))) == 0
    chance = random.Random(os.urandom(8))
    moments = sorted(chance.sample(range(2, steps - 1), 10))
    killed = []
    for moment in moments:
        resume = ["--resume"] if (cut / "config.json").exists() else []
        process = started(*command(data, cut, steps, *resume))
        while process.is_alive() and (steps_logged(cut) or [0])[-1] < moment:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)  # anywhere within the step, or within a checkpoint being written
        process.kill()
        if ended(process) == -signal.SIGKILL:
            killed.append(moment)
    assert len(killed) >= 8, f"the run was over before it could be killed: {killed} of {moments}"
    assert ended(started(*command(data, cut, steps, "--resume"))) == 0
    assert weights(cut) == weights(whole), f"killed at {killed}"
    assert steps_logged(cut) == list(range(1, steps + 1)) == steps_logged(whole)


def test_sigterm_saves_and_leaves(data, tmp_path):
    run, errors = tmp_path / "run", tmp_path / "errors"
    process = started(*command(data, run, 4000), errors=errors)
    while process.is_alive() and len(steps_logged(run)) < 4:
        time.sleep(0.01)
    process.terminate()
    assert ended(process) == 130
    words = errors.read_text()
    assert "SIGTERM: saved step" in words and "--resume" in words
    last = checkpoint.latest(run / "checkpoints")
    assert last is not None and int(last.name[5:]) == steps_logged(run)[-1]


def task(data, routes=ROUTES, **shape):
    prepared = Dataset(data)
    model = Model(replace(SMALL, vocab=320, codes=64, rows=2, columns=2, **shape))
    return RouteTask(model, Mixture(prepared, replace(MIX, routes=routes), 0, seed=0, patch=2), np.ones(320, np.int64))


@pytest.mark.parametrize("sharing", ["all", "cross"])
@pytest.mark.parametrize("removed", ROUTES)
def test_a_route_removed_leaves_the_losses_of_the_others(data, removed, sharing):
    whole, rest = task(data, sharing=sharing), task(data, tuple(r for r in ROUTES if r != removed), sharing=sharing)
    for step in range(4):
        with torch.no_grad():
            logs = whole.loss(whole.batch(step))[1], rest.loss(rest.batch(step))[1]
        a, b = ({route: cost / size for route, (cost, size) in log.items() if size} for log in logs)
        assert removed not in b
        assert {k: v for k, v in a.items() if k != removed} == pytest.approx(b, rel=1e-5)


def test_a_run_that_foretells_resumes_exactly_and_needs_a_layer_that_is_there(data, tmp_path):
    foretelling, config = replace(MIX, ahead=4.0), TrainConfig(steps=8, save_every=3, keep=9)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run in (whole, cut):
        train_routes(data, run, SMALL, foretelling, config, progress=False)
    assert any("ahead" in json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines())
    for path in checkpoint.checkpoints(cut / "checkpoints")[1:]:
        shutil.rmtree(path)
    train_routes(data, cut, SMALL, foretelling, config, resume=True, progress=False)
    assert weights(cut) == weights(whole)
    with pytest.raises(ConfigError, match="ahead_layer is 3; the model has 2 layers"):
        train_routes(data, tmp_path / "deep", SMALL, replace(foretelling, ahead_layer=3), config, progress=False)
    assert not (tmp_path / "deep").exists()
    source = next(name for name in Dataset(data).manifest["sources"])["name"]
    with pytest.raises(ConfigError, match=f"{source} would never be read: begin is not before step 8"):
        train_routes(data, tmp_path / "deep", SMALL, replace(MIX, begin=((f"t2v/{source}", 8),)), config, progress=False)
    assert not (tmp_path / "deep").exists()
    with pytest.raises(ConfigError, match="ahead_layer is -1"):
        MixtureConfig(ahead_layer=-1)


def test_a_run_that_never_foretold_begins_one_that_does(data, tmp_path):
    """And the other way round: the head stays, so that no weight is lost on the way."""
    config, shapes = TrainConfig(steps=2), []
    for name, ahead, init in (("plain", 0.0, None), ("ahead", 4.0, "plain"), ("again", 0.0, "ahead")):
        train_routes(
            data, tmp_path / name, SMALL, replace(MIX, ahead=ahead), config, progress=False, init=init and tmp_path / init
        )
        shapes.append({n: s for n, s in Run(tmp_path / name).model.state_dict().items() if n.startswith("head_ahead")})
    assert not shapes[0] and shapes[1].keys() == shapes[2].keys() != set()


def test_what_is_foretold_counts_with_its_weight(data):
    learner = task(data, foretells=True)
    frame, ids = np.arange(16).reshape(2, 2, 4), [0, 5, 9, 0]
    plain, ahead = ((text(ids, ahead=a), frames(frame[None], wanted=True)) for a in (None, frame))

    def cost(sequence, weight):
        learner.mixture.config = replace(learner.mixture.config, ahead=weight)
        loss, log = learner.loss((Batch.of(pack([sequence])), ["t2v"], None))
        return loss.item(), log

    (none, bare), (one, logged), (eight, _) = cost(plain, 0.0), cost(ahead, 1.0), cost(ahead, 8.0)
    assert eight - none == pytest.approx(8 * (one - none), rel=1e-4) and one > none
    bits, count = logged.pop("ahead")
    assert logged == bare and count == 1
    assert one - none == pytest.approx(
        bits * math.log(2) / 4 / 4, rel=1e-4
    )  # a mean over the codes of a cell, and over the wanted cells


@pytest.mark.parametrize(("optimizer", "sharing"), [("adamw", "all"), ("muon", "all"), ("adamw", "cross")])
def test_every_route_learns(data, tmp_path, optimizer, sharing):
    learner = task(data, sharing=sharing)
    before = learner.evaluate()
    after = fit(learner, TrainConfig(steps=60, lr=5e-3, optimizer=optimizer, warmup=5), tmp_path, progress=False)["held"]
    assert set(after) == set(ROUTES) and all(after[r] < 0.9 * before[r] for r in ROUTES), (before, after)


def test_muon_steps_as_torch_does_whatever_is_taken_together(monkeypatch):
    drawn = torch.Generator().manual_seed(0)
    first = [torch.randn(shape, generator=drawn) for shape in ((96, 40), (40, 96), (96, 40), (8, 8))]

    def trained(make) -> list[torch.Tensor]:
        noise, moved = torch.Generator().manual_seed(1), [w.clone().requires_grad_() for w in first]
        optimizer = make(moved)
        for _ in range(10):
            for w in moved[:3]:  # the last one gets no gradient
                w.grad = torch.randn(w.shape, generator=noise)
            optimizer.step()
        return moved

    ours = trained(lambda moved: Muon(moved, 1e-2, 0.1))
    twin = trained(lambda moved: torch.optim.Muon(moved, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"))
    for start, a, b in zip(first, ours, twin, strict=True):
        assert (a - b).norm() <= 0.03 * (b - start).norm()  # torch rounds to bf16
    assert torch.equal(ours[3], first[3])
    monkeypatch.setattr("quadrivium.muon.TOGETHER", 1)
    for a, b in zip(ours, trained(lambda moved: Muon(moved, 1e-2, 0.1)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(30, 90), (200, 30), (40, 40), (40, 60)])
def test_matrices_are_made_orthogonal_as_in_double_precision(shape):
    """Whether they are wide, high or square, also where singular values fall by a factor of a thousand."""
    group = torch.optim.Muon([torch.nn.Parameter(torch.ones(2, 2))]).param_groups[0]
    a, b, c = group["ns_coefficients"]
    u, s, v = torch.linalg.svd(
        torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64), full_matrices=False
    )
    for fall in (0, 3):
        x = (u * torch.logspace(0, -fall, s.shape[1])) @ v
        got, s = orthogonal(x.float(), group), torch.linalg.svdvals(x / x.norm(dim=(1, 2), keepdim=True))
        for _ in range(group["ns_steps"]):
            s = a * s + b * s**3 + c * s**5
        want = (u * s[:, None]) @ v
        assert (got - want).norm() < 1e-3 * want.norm()


def test_text_without_a_single_frame_trains(folder, tmp_path):
    prepare([folder / "text"], tmp_path / "data", TINY, progress=False)
    state = train_routes(tmp_path / "data", tmp_path / "run", SMALL, MIX, TrainConfig(steps=2), progress=False)
    assert state["finished"] and set(state["held"]) == {"t2t"}


@pytest.mark.parametrize(("optimizer", "sharing"), [("muon", "all"), ("adamw", "cross"), ("muon", "cross")])
def test_other_optimizers_and_sharings_resume_exactly(data, tmp_path, optimizer, sharing):
    config = TrainConfig(steps=12, optimizer=optimizer, save_every=5)
    fit(task(data, sharing=sharing), config, tmp_path / "whole", progress=False)
    fit(task(data, sharing=sharing), replace(config, keep=9), tmp_path / "cut", progress=False)
    for path in checkpoint.checkpoints(tmp_path / "cut" / "checkpoints")[1:]:
        shutil.rmtree(path)
    fit(task(data, sharing=sharing), config, tmp_path / "cut", resume=True, progress=False)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_run_with_contrast_resumes_exactly_and_is_read_back(data, tmp_path):
    shape = replace(SMALL, contrast=ContrastConfig(0.3))
    config = TrainConfig(steps=8, save_every=3, keep=9)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run in (whole, cut):
        train_routes(data, run, shape, MIX, config, progress=False)
    for path in checkpoint.checkpoints(cut / "checkpoints")[1:]:
        shutil.rmtree(path)
    train_routes(data, cut, shape, MIX, config, resume=True, progress=False)
    assert weights(cut) == weights(whole)
    read = checkpoint.Run(cut).model
    assert read.config.contrast == ContrastConfig(0.3, layer=1) and read.sharpness.item() != 1


def test_a_mean_that_a_checkpoint_cuts_is_logged_whole(data, tmp_path):
    config = TrainConfig(steps=12, log_every=4, save_every=5, keep=9)
    fit(task(data), config, tmp_path / "whole", progress=False)
    fit(task(data), config, tmp_path / "cut", progress=False)
    for path in checkpoint.checkpoints(tmp_path / "cut" / "checkpoints")[1:]:
        shutil.rmtree(path)
    fit(task(data), config, tmp_path / "cut", resume=True, progress=False)
    logs = [[json.loads(x) for x in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("whole", "cut")]
    timed = ("seconds", "positions_per_second")
    assert len({json.dumps([{k: v for k, v in x.items() if k not in timed} for x in log]) for log in logs}) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over(data, tmp_path, name, capsys):
    fit(task(data), TrainConfig(steps=9, save_every=4, keep=9), tmp_path, progress=False)
    last = checkpoint.checkpoints(tmp_path / "checkpoints")[-1]
    (last / name).write_bytes((last / name).read_bytes()[:-9])
    found = checkpoint.latest(tmp_path / "checkpoints")
    assert found is not None and int(found.name[5:]) == 8
    assert "damaged" in capsys.readouterr().err


def test_a_run_resumes_from_the_newest_whole_checkpoint_or_refuses(data, tmp_path):
    """A file that was cut off, in the newest; then in all: a run is never begun anew over what is left of it."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    config = TrainConfig(steps=6, save_every=2, keep=9)
    for run in (whole, cut):
        train_routes(data, run, SMALL, MIX, config, progress=False)
    every = checkpoint.checkpoints(cut / "checkpoints")
    for path in every[::-1]:
        weights = path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        if path == every[-1]:
            train_routes(data, cut, SMALL, MIX, TrainConfig(), resume=True, progress=False)
            assert load_file(checkpoint.weights(cut)).keys() == load_file(checkpoint.weights(whole)).keys()
            assert all(
                torch.equal(a, b)
                for a, b in zip(*(load_file(checkpoint.weights(r)).values() for r in (whole, cut)), strict=True)
            )
            weights.write_bytes(weights.read_bytes()[:99])
    log = (cut / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match="every checkpoint is damaged"):
        train_routes(data, cut, SMALL, MIX, TrainConfig(), resume=True, progress=False)
    with pytest.raises(RunError, match="every checkpoint is damaged"):
        Run(cut)
    assert (cut / "metrics.jsonl").read_bytes() == log


def test_the_state_says_what_was_evaluated_last_after_resuming_too(data, tmp_path):
    before = fit(task(data), TrainConfig(steps=2), tmp_path, progress=False)
    again = fit(task(data), TrainConfig(steps=2), tmp_path, resume=True, progress=False)
    assert before["held"] == again["held"] != {}


def test_only_the_last_checkpoints_are_kept(data, tmp_path):
    fit(task(data), TrainConfig(steps=9, save_every=2, keep=2), tmp_path, progress=False)
    assert [p.name[-2:] for p in checkpoint.checkpoints(tmp_path / "checkpoints")] == ["08", "09"]


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_checkpoint(data, tmp_path):
    learner = task(data)
    calls = []
    plain = learner.loss

    def loss(batch):
        calls.append(1)
        value, log = plain(batch)
        return (value * float("nan") if len(calls) == 6 else value), log

    learner.loss = loss
    with pytest.raises(RunError, match=r"step 5 .*t2t"):
        fit(learner, TrainConfig(steps=20, save_every=4), tmp_path, progress=False)
    last = checkpoint.latest(tmp_path / "checkpoints")
    assert last is not None and last.name.endswith("04")


def test_a_folder_in_use_is_refused(data, tmp_path):
    with checkpoint.locked(tmp_path), pytest.raises(RunError, match="in use"):
        fit(task(data), TrainConfig(steps=2), tmp_path, progress=False)


def test_a_run_is_not_overwritten_and_nothing_is_resumed_from_nowhere(data, tmp_path):
    train_routes(data, tmp_path / "run", SMALL, MIX, TrainConfig(steps=1), progress=False)
    with pytest.raises(RunError, match="--resume"):
        train_routes(data, tmp_path / "run", SMALL, MIX, TrainConfig(steps=1), progress=False)
    with pytest.raises(RunError, match="not found"):
        train_routes(data, tmp_path / "none", SMALL, MIX, TrainConfig(steps=1), resume=True, progress=False)


def test_a_resumed_run_says_which_options_it_does_not_heed(data, tmp_path, capsys):
    train_routes(data, tmp_path, SMALL, MIX, TrainConfig(steps=2), progress=False)
    capsys.readouterr()
    train_routes(data, tmp_path, SMALL, MIX, TrainConfig(steps=2), resume=True, progress=False)
    train_routes(data, tmp_path, ModelConfig(), MixtureConfig(), TrainConfig(), resume=True, progress=False)
    assert "goes on as it was begun" not in capsys.readouterr().err
    train_routes(data, tmp_path, replace(SMALL, layers=7), MIX, TrainConfig(steps=3), resume=True, progress=False)
    said = capsys.readouterr().err
    assert f"goes on as it was begun, with layers {SMALL.layers} (not 7), steps 2 (not 3);" in said
    none = tmp_path / "none"
    train_routes(none, tmp_path, SMALL, MIX, TrainConfig(steps=2), resume=True, progress=False, init=none)
    assert f"with data {data} (not {none}), init None (not {none});" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(line["positions_per_second"] > 0 for line in lines if "positions_per_second" in line)


def test_budgets_in_tokens_and_minutes_end(data, tmp_path):
    spent = fit(task(data), TrainConfig(tokens=3000), tmp_path / "a", progress=False)
    assert spent["finished"] and spent["positions"] == pytest.approx(3000, rel=0.25)
    timed = fit(task(data), TrainConfig(minutes=0.03), tmp_path / "b", progress=False)
    assert timed["finished"] and 1 < timed["seconds"] < 20
    first = fit(task(data), TrainConfig(steps=3, minutes=60.0), tmp_path / "c", progress=False)
    assert first["finished"] and first["step"] == 3
    many = fit(task(data), TrainConfig(steps=15, minutes=60.0), tmp_path / "d", progress=False)  # 12 / (12 / 15) is above 15
    assert many["finished"] and many["step"] == 15


def test_the_schedule_warms_up_stays_and_falls_to_nothing():
    config = TrainConfig(steps=100, lr=1.0, warmup=10, decay=0.2)
    rates = [learning_rate(s, 100, config) for s in range(100)]
    assert rates[0] == 0.1 and rates[9:80] == [1.0] * 71 and rates[99] == pytest.approx(0.05)
    assert learning_rate(50, None, config) == 1.0


@pytest.mark.parametrize("change", [{"steps": 0}, {"minutes": -1.0}, {"lr": float("nan")}, {"decay": 2.0}, {"keep": 0}])
def test_impossible_budgets_are_refused(change):
    with pytest.raises(ConfigError):
        TrainConfig(**change)


def test_a_run_that_begins_with_another_resumes_with_its_weights_too(data, tmp_path):
    """Killed before its first checkpoint, it has only its config to go on from."""
    first, then, killed = tmp_path / "first", tmp_path / "then", tmp_path / "killed"
    options = MixtureConfig(positions=300, context=32)
    train_routes(data, first, SMALL, options, TrainConfig(steps=3, lr=5e-3), progress=False)
    train_routes(data, then, SMALL, options, TrainConfig(steps=2, lr=5e-3, seed=7), progress=False, init=first)
    killed.mkdir()
    for name in ("config.json", "tokenizers"):
        (shutil.copytree if (then / name).is_dir() else shutil.copy)(then / name, killed / name)
    train_routes(data, killed, SMALL, options, TrainConfig(), resume=True, progress=False)
    weights = [load_file(checkpoint.weights(run)) for run in (then, killed)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_a_run_begins_another_in_its_own_shape_and_may_add_a_contrast(data, tmp_path):
    first = tmp_path / "first"
    train_routes(data, first, SMALL, MIX, TrainConfig(steps=2), progress=False)
    with pytest.raises(ConfigError, match=r"layers is 3, and 2 in .*first"):
        train_routes(data, tmp_path / "deep", replace(SMALL, layers=3), MIX, TrainConfig(steps=1), progress=False, init=first)
    contrast = replace(SMALL, contrast=ContrastConfig(weight=0.5))
    train_routes(data, tmp_path / "then", contrast, MIX, TrainConfig(steps=1), progress=False, init=first)
    assert Run(tmp_path / "then").model.config.contrast.weight == 0.5
    shutil.rmtree(first / "checkpoints")
    with pytest.raises(RunError, match="no complete checkpoint"):
        train_routes(data, tmp_path / "none", SMALL, MIX, TrainConfig(steps=1), progress=False, init=first)
    assert not (tmp_path / "none").exists()  # so that the same command works once the cause is mended


def test_other_tokenizers_are_refused(data, tmp_path):
    run = tmp_path / "run"
    train_routes(data, run, SMALL, MixtureConfig(positions=300, context=32), TrainConfig(steps=1), progress=False)
    path = run / "tokenizers" / "text" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(RunError, match="prepared with other tokenizers"):
        train_routes(data, tmp_path / "more", SMALL, MixtureConfig(), TrainConfig(steps=1), progress=False, init=run)
