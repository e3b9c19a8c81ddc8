"""The transfer experiment end to end on a folder made on the spot: arms differ in what they read, cells are kept."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from quadrivium import checkpoint
from quadrivium.cli import main
from quadrivium.data.mixture import Mixture, MixtureConfig
from quadrivium.data.shards import Dataset, is_held, write_json
from quadrivium.endpoints import EndpointConfig
from quadrivium.errors import ConfigError, DataError, RunError
from quadrivium.experiment import run_experiment
from quadrivium.model import ModelConfig
from quadrivium.prepare import PrepareConfig, prepare
from quadrivium.report import write_report
from quadrivium.train import TrainConfig, train_routes
from quadrivium.transfer import (
    TransferConfig,
    _ladder,
    _power,
    _same_data,
    _seen,
    measure_speed,
    possible,
    run_transfer,
    summary,
    table,
)
from tests.conftest import COLOURS, TINY

SMALL = TransferConfig(
    model=ModelConfig(layers=1, width=16, heads=1),
    mixture=MixtureConfig(positions=200, context=32),
    train=TrainConfig(steps=2),
    limit=8,
)
ARMS = ("text", "four", "captions", "shuffled", "noise")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("transfer")
    return out, run_transfer([data], out, SMALL, seeds=(0,), arms=ARMS, workers=1, progress=False)


def test_a_grid_ends_with_a_verdict_and_goes_on_from_its_cells(finished, data):
    out, found = finished
    assert found["verdict"]["words"] == "undecided" and "text-equal" in found["verdict"]["why"]
    assert set(found["arms"]) == set(ARMS) and "one seed, no interval" in table(found)
    written = {p: p.stat().st_mtime_ns for p in (out / "cells").iterdir()}
    run_transfer([data], out, SMALL, seeds=(0,), arms=ARMS, progress=False)
    assert {p: p.stat().st_mtime_ns for p in (out / "cells").iterdir()} == written
    assert {"t2v", "v2t", "v2v", "t2t", "round-trip"} <= set(found["samples"])
    seen = found["findings"]
    assert (
        seen["visual_context"]["v2v/mine/clips"] and seen["round_trip"]
    )  # of the few that are held out, no clip has a caption
    page = write_report(out).read_text()
    assert found["verdict"]["sentence"] in page and "two redrawings" in page
    assert (
        json.loads((out / "results.json").read_text())["primary"] == json.loads((out / "transfer.json").read_text())["primary"]
    )


@pytest.mark.parametrize(("equal", "said"), [((3.0, 3.02), True), ((1.75, 1.74), False)])
def test_more_epochs_that_only_make_text_worse_are_no_control(finished, data, tmp_path, equal, said):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    cell = json.loads((out / "cells" / "text-seed-0.json").read_text())
    for arm, bits in (("text", (1.8, 1.81)), ("text-equal", equal), ("four", (1.7, 1.72))):
        for seed, x in enumerate(bits):
            write_json(
                out / "cells" / f"{arm}-seed-{seed}.json", cell | {"arm": arm, "seed": seed, "bits_per_byte": x, "epochs": 9.0}
            )
    assert any("by heart" in note for note in summary(out, Dataset(data), SMALL)["notes"]) == said


def test_arms_read_what_they_say(finished):
    out, _ = finished
    read = {a: json.loads((out / "seed-0" / a / "config.json").read_text())["mixture"] for a in ARMS}
    assert {a: (m["scramble"], m["captions"], len(m["routes"])) for a, m in read.items()} == {
        "text": ("none", False, 1),
        "four": ("none", False, 5),
        "captions": ("none", True, 1),
        "shuffled": ("shuffled", False, 5),
        "noise": ("noise", False, 5),
    }
    assert {m["text"] for m in read.values()} == {0.25}


def test_cells_of_another_size_are_not_mixed_in(finished, data):
    with pytest.raises(RunError, match=r"limit 8 \(not 9\)"):
        run_transfer([data], finished[0], replace(SMALL, limit=9), arms=("text",), progress=False)


def test_cells_of_data_that_has_changed_are_not_mixed_in(finished, data, tmp_path):
    """Where it lies does not count, what is in it does."""
    out, there = tmp_path / "out", tmp_path / "data"
    shutil.copytree(finished[0], out)
    shutil.copytree(data, there)
    run_transfer([there], out, SMALL, seeds=(0,), arms=ARMS, progress=False)
    manifest = json.loads((there / "manifest.json").read_text())
    manifest["sources"][0]["shards"].pop()
    (there / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="other data than before"):
        run_transfer([there], out, SMALL, seeds=(0,), arms=ARMS, progress=False)


def test_a_folder_that_has_changed_costs_no_cell_its_data(folder, tmp_path):
    """A grid on raw folders: what they became stays, also for a command that runs meanwhile, until it is asked for elsewhere."""
    mine, out = tmp_path / "mine", tmp_path / "out"
    shutil.copytree(folder, mine)
    config = replace(SMALL, prepare=TINY)
    run_transfer([mine], out, config, seeds=(0,), arms=("text",), workers=1, progress=False)
    before = Dataset(out / "data").checksum
    (mine / "text" / "more.txt").write_text("A line that was not there.")
    with pytest.raises(RunError, match=r"mine/text: changed.* goes on with the data as it was"):
        run_transfer([mine], out, config, seeds=(0, 1), arms=("text",), workers=1, progress=False)
    assert Dataset(out / "data").checksum == before
    later = replace(config, prepare=PrepareConfig())
    found = run_transfer([out / "data"], out, later, seeds=(0, 1), arms=("text",), workers=1, progress=False)
    assert set(found["arms"]["text"]["seeds"]) == {0, 1}
    prepare([mine], out / "data", TINY, progress=False)  # by hand, against all advice
    with pytest.raises(RunError, match="has changed since"):
        _same_data(out, out / "data")
    (mine / "text" / "more.txt").unlink()
    shutil.rmtree(out / "data")  # as where cells alone were taken to another machine
    run_transfer([mine], out, config, seeds=(0, 1), arms=("text",), workers=1, progress=False)
    assert Dataset(out / "data").checksum == before


def test_all_arms_begin_with_a_model_that_is_given(finished, folder, tmp_path):
    """A run: raw folders take its tokenizers, its shape counts, and two cells of no step's learning are that run itself."""
    begun, out = finished[0] / "seed-0" / "four", tmp_path / "out"
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"choices": ["A red ball.", "A blue ball.", "Ball a red."], "answer": 0}) + "\n")
    still = replace(
        SMALL, model=TransferConfig().model, prepare=TINY, init=str(begun), endpoints=EndpointConfig(questions=questions),
        train=replace(SMALL.train, steps=1, lr=1e-20),
    )  # fmt: skip
    found = run_transfer([folder], out, still, seeds=(0, 1), arms=("text", "four"), workers=1, progress=False)
    assert "began with" in found["notes"][0]
    costs = {c for row in found["arms"].values() for c in row["seeds"].values()}
    assert max(costs) - min(costs) < 1e-5  # and not those of four models with first weights of their own
    asked = json.loads((out / "cells" / "text-seed-0.json").read_text())["endpoints"]
    assert asked["baselines"]["own"]["before the first step"] == asked["tasks"]["own"]["accuracy"]
    made = [json.loads((run / "config.json").read_text())["model"] for run in (begun, out / "seed-1" / "four")]
    assert made[0] == made[1]
    moved = shutil.copytree(begun, tmp_path / "elsewhere")  # where it lies does not count, what it knows does
    again = replace(still, init=str(moved), prepare=PrepareConfig())
    stopped = out / "seed-0" / "text"  # before its first checkpoint, and the model is no longer where it was
    shutil.rmtree(stopped / "checkpoints")
    write_json(stopped / "config.json", {**json.loads((stopped / "config.json").read_text()), "init": str(tmp_path / "gone")})
    (out / "cells" / "text-seed-0.json").unlink()
    anew = run_transfer([out / "data"], out, again, seeds=(0,), arms=("text",), progress=False)
    assert anew["arms"]["text"]["seeds"] == found["arms"]["text"]["seeds"]
    assert json.loads((stopped / "config.json").read_text())["init"] == str(moved)
    with pytest.raises(RunError, match="init"):
        run_transfer(
            [out / "data"],
            out,
            replace(again, init=str(finished[0] / "seed-0" / "text")),
            seeds=(0,),
            arms=("text",),
            progress=False,
        )
    with pytest.raises(RunError, match="no such file or folder"):
        run_transfer([folder], tmp_path / "new", replace(still, init="nowhere"), progress=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("wrong", [
    {"mixture": MixtureConfig(captions=True)}, {"mixture": MixtureConfig(routes=("t2t",))}, {"mixture": MixtureConfig(text=0.5)},
    {"mixture": MixtureConfig(begin=(("mine", 3),))}, {"mixture": MixtureConfig(frames=2)}, {"mixture": MixtureConfig(rendered=True)},
    {"train": TrainConfig(steps=5, seed=1)}, {"train": TrainConfig(steps=5, tokens=9)}, {"train": TrainConfig(steps=5, minutes=1)}, {"train": TrainConfig()},
])  # fmt: skip
def test_options_that_would_undo_the_design_are_refused(wrong):
    with pytest.raises(ConfigError):
        TransferConfig(**wrong)


@pytest.mark.parametrize("wrong, why", [({"workers": -1}, "not negative"), ({"seeds": (-1,)}, "not negative"), ({"seeds": ()}, "a seed"),
                                        ({"budget": float("nan")}, "hours"), ({"budget": float("inf")}, "hours")])  # fmt: skip
def test_a_grid_that_cannot_be_is_refused(wrong, why, data, tmp_path):
    with pytest.raises(ConfigError, match=why):
        run_transfer([data], tmp_path, SMALL, **wrong, progress=False)
    with pytest.raises(ConfigError, match="prepared already"):
        run_transfer([data], tmp_path, replace(SMALL, prepare=PrepareConfig(vocab=999)), progress=False)


def test_a_grid_stays_out_of_folders_of_something_else_and_its_endpoint_is_no_option(data, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").touch()
    for run in (run_transfer, run_experiment):
        with pytest.raises(RunError, match="mine holds something else"):
            run(*([[data]] if run is run_transfer else []), tmp_path / "mine", progress=False)
    with pytest.raises(RunError, match="mine holds something else"):
        train_routes(data, tmp_path / "mine", SMALL.model, SMALL.mixture, SMALL.train, progress=False)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["photo.png"]
    for command in (["transfer", str(data), "--out"], ["experiment"]):
        with pytest.raises(SystemExit) as left:
            main([*command, str(tmp_path / "out"), "--primary", "what came out"])
        assert left.value.code == 2 and "--primary" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="name a file of them"):
        replace(SMALL, primary="questions")


def test_a_verdict_on_questions_is_about_right_answers(data, tmp_path):
    """The same grid, asked what a user would ask: its verdict, table and page are of the questions, and held-out text is a note."""
    asked, out = tmp_path / "asked.jsonl", tmp_path / "out"
    rows = [
        {"choices": [f"{i} {a} balls", f"{i} {b} balls"], "answer": i % 2} for i, (a, b) in enumerate(permutations(COLOURS, 2))
    ]
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = replace(SMALL, primary="questions", endpoints=EndpointConfig(questions=asked))
    found = run_transfer([data], out, config, seeds=(0, 1), arms=("text", "four"), workers=1, progress=False)

    def right(arm, seeds=(0, 1)):
        cells = (json.loads((out / "cells" / f"{arm}-seed-{s}.json").read_text()) for s in seeds)
        return np.mean([cell["endpoints"]["tasks"]["own"]["accuracy"] for cell in cells])

    gain = found["gains"]["text"]["mean"]
    assert gain == pytest.approx(right("four") - right("text"), abs=1e-9)
    said = found["verdict"]["sentence"]
    size = f"{abs(gain):.4f} {'more' if gain > 0 else 'fewer'}" if gain else "as many"
    assert f"All routes are right in {size} of the answers to 12 questions (chance 0.500) th" in said.replace(") as", ") th")
    assert any("bits per byte of held-out text" in note for note in found["notes"]) and "bits per byte" not in said
    assert (
        re.search(r"bits/byte +right +four has more right by", table(found))
        and "more right answers" in write_report(out).read_text()
    )
    assert found["arms"]["four"]["right"][1] == right("four", (1,)) and found["unit"] == "share of right answers"
    assert found["gains"]["text"]["sd"] >= 1 / 12 / 6**0.5  # a question is the least that can be told apart
    assert json.loads((out / "transfer.json").read_text())["primary"].startswith("own questions")
    with pytest.raises(RunError, match="primary"):  # what was declared stays
        run_transfer([data], out, replace(config, primary="bits"), seeds=(0, 1), arms=("text", "four"), progress=False)
    assert "in share of right answers" in _power(out, 5, "questions")
    _same_data(out, data, config.endpoints)
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))  # while a cell is trained
    with pytest.raises(RunError, match="files of --endpoints have changed"):
        _same_data(out, data, config.endpoints)


def test_questions_that_cannot_be_asked_are_said_before_anything_is_prepared(folder, tmp_path):
    config = replace(SMALL, primary="questions", endpoints=EndpointConfig(questions=tmp_path / "none.jsonl"), prepare=TINY)
    with pytest.raises(DataError, match=r"none\.jsonl: not a readable file"):
        run_transfer([folder], tmp_path / "out", config, progress=False)
    assert not (tmp_path / "out").exists()


def test_a_grid_goes_on_where_its_data_was_moved_to(finished, data, tmp_path):
    out, there = tmp_path / "out", tmp_path / "data"
    shutil.copytree(finished[0], out)
    shutil.copytree(data, there)
    (out / "cells" / "text-seed-0.json").unlink()
    config = json.loads((out / "seed-0" / "text" / "config.json").read_text())
    (out / "seed-0" / "text" / "config.json").write_text(json.dumps(config | {"data": str(tmp_path / "gone")}))
    run_transfer([there], out, SMALL, seeds=(0,), arms=ARMS, workers=1, progress=False)
    assert (out / "cells" / "text-seed-0.json").read_text()


@pytest.mark.parametrize("temporary", ["short", "long" * 30], ids=["forked", "where no socket can be"])
def test_a_grid_that_is_told_to_leave_saves_what_it_trains(data, tmp_path, temporary):
    """SIGTERM, which schedulers send, to the command alone."""
    (tmp_path / temporary).mkdir()
    out, run = tmp_path / "out", tmp_path / "out" / "seed-0" / "four"
    sizes = "--arms four --seeds 0 --train.steps 9000 --train.log-every 1 --model.layers 1 --model.width 16 --model.heads 1"
    command = [sys.executable, "-m", "quadrivium", "transfer", str(data), "--out", str(out), *sizes.split()]
    command += ["--mixture.positions", "200", "--mixture.context", "32"]
    with open(tmp_path / "said", "w") as said:  # begun from nothing, as a process forked off ours keeps our temporary folder
        process = subprocess.Popen(command, stderr=said, env={**os.environ, "TMPDIR": str(tmp_path / temporary)})
    metrics = run / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        time.sleep(0.02)
    process.terminate()
    assert process.wait(120) == 130 and "is saved first" in (tmp_path / "said").read_text()
    last, logged = checkpoint.latest(run / "checkpoints"), metrics.read_text().splitlines()
    assert last is not None and int(last.name[5:]) == json.loads(logged[-1])["step"] < 9000
    assert not any((tmp_path / temporary).rglob("*"))


def test_text_that_no_step_came_to_is_worth_nothing_in_the_ladder(data):
    prepared = Dataset(data)
    costs = {
        "text-x0.25": {0: 1.9, 1: 1.91},
        "text-x0.5": {0: 1.8, 1: 1.81},
        "text": {0: 1.75, 1: 1.74},
        "four": {0: 1.76, 1: 1.75},
    }
    config = replace(SMALL, text=1.0)
    whole, half = (
        _ladder(costs, {a: 1.0 if a != "text" else x for a in costs}, (157, 300), prepared, config) for x in (1.0, 0.75)
    )
    rate = whole["tokens_per_frame"]["tokens"]
    assert rate == pytest.approx((whole["effective"]["tokens"] - whole["read"]) / 157) and whole["captions"] == 300
    assert half["tokens"][:2] == whole["tokens"][:2] and half["tokens"][2] == pytest.approx(0.75 * whole["tokens"][2], abs=1)
    few = {"text-x0.25": 0.5, "text-x0.5": 0.25, "text": 0.125, "four": 1.0}  # every rung read the same amount
    assert _ladder(costs, few, (157, 300), prepared, config) is None


def test_frames_that_no_step_came_to_are_not_counted(data):
    prepared = Dataset(data)
    mixed = Mixture(prepared, SMALL.mixture, 0, 0, 2)
    every = sum(int(s.frames[~s.held].sum()) for s in prepared.sources)
    assert _seen(mixed, 10**6)[0] == every and _seen(mixed, 0) == (0, 0)
    assert 0 < _seen(mixed, 2)[0] < every
    short = Mixture(prepared, replace(SMALL.mixture, context=4), 0, 0, 2)  # of longer captions no more is read
    assert 0 < _seen(short, 10**6)[1] < _seen(mixed, 10**6)[1]


def test_the_ladder_has_five_rungs_where_the_text_allows(data):
    for share, rungs in ((0.25, {0.25, 0.5, 1, 2, 4}), (1.0, {0.0625, 0.125, 0.25, 0.5, 1})):
        able = possible(Dataset(data), replace(SMALL, text=share))
        assert {a.text for n, a in able.items() if n == "text" or n.startswith("text-x")} == rungs


def test_data_without_frames_or_arms_that_do_not_exist_are_refused(data, tmp_path):
    with pytest.raises(ConfigError, match="arms are text"):
        run_transfer([data], tmp_path, SMALL, arms=("txt",), progress=False)
    blind = Dataset(data)
    blind.sources = [s for s in blind.sources if not s.frames.any()]
    with pytest.raises(DataError, match="pictures or clips"):
        possible(blind, SMALL)


def test_a_budget_is_measured_and_says_what_it_can_detect(finished, data, tmp_path):
    for config in (SMALL, replace(SMALL, mixture=replace(SMALL.mixture, ahead=2.0))):
        assert measure_speed(data, config, 1, seconds=0.2) > 0
    assert "no two seeds yet" in _power(finished[0], 5) and "5 seeds 1.68" in _power(finished[0], 5)
    for arm, bits in (("text", (1.8, 1.9)), ("four", (1.7, 1.79))):
        for seed, x in enumerate(bits):
            write_json(tmp_path / "cells" / f"{arm}-seed-{seed}.json", {"arm": arm, "seed": seed, "bits_per_byte": x})
    assert "in bits per byte" in _power(tmp_path, 5)
    with pytest.raises(ConfigError, match="allow more"):
        run_transfer([data], tmp_path / "new", SMALL, arms=("four",), budget=1e-7, progress=False)


def test_data_sets_with_a_known_answer_are_judged(tmp_path, monkeypatch):
    """The benchmark of the verdict, shrunk to two steps: it makes its data, runs its cells in this process, and ends with a verdict.
    Where pictures alone hold a fact, every held-out document tells it, of a name of which no other text does."""
    planted = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "planted.py"))
    few = replace(
        planted["CONFIG"],
        train=replace(planted["CONFIG"].train, steps=2),
        mixture=replace(planted["CONFIG"].mixture, positions=100),
        limit=4,
    )
    judge = planted["judge"].__globals__
    monkeypatch.setitem(judge, "CONFIG", few)
    monkeypatch.setitem(judge, "PREPARE", replace(planted["PREPARE"], visual_train=TrainConfig(steps=2)))
    monkeypatch.setitem(judge, "make", lambda name, folder, seed: planted["language"](folder, seed, 40, 0, 12))
    monkeypatch.setattr(sys, "argv", ["planted.py", "--out", str(tmp_path), "--seeds", "1", "--only", "null-0"])
    planted["main"]()
    row = json.loads((tmp_path / "planted.json").read_text())["null-0"]
    assert (row["verdict"], row["expected"]) == ("undecided", "none detected") and {"text", "four", "noise"} <= set(row["bits"])

    planted["make"].__globals__["shown"](tmp_path / "sight", 0)
    rows = [json.loads(line) for line in (tmp_path / "sight" / "text" / "documents.jsonl").read_text().splitlines()]
    sides = [[r["text"] for r in rows if is_held(r["group"], planted["PREPARE"].held) == out] for out in (False, True)]
    captions = (tmp_path / "sight" / "pictures" / "metadata.jsonl").read_text()
    assert len(sides[1]) == 30 and not any(colour in captions for colour in planted["COLOURS"])
    for name, colour in map(str.split, sides[1]):
        assert (
            [text for text in sides[0] if name in text.split()] == [name] * 8
            and colour in planted["COLOURS"]
            and name in captions
        )
