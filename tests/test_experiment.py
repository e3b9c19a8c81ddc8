"""The experiment: arms differ in what they read, finished cells are kept, intervals cover what they promise."""

import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from quadrivium import experiment, grid
from quadrivium.cli import main
from quadrivium.data import questions
from quadrivium.data.machine import DEVICES
from quadrivium.data.questions import make_questions
from quadrivium.data.shards import Dataset, sha256, write_json
from quadrivium.data.sources import ReadOptions
from quadrivium.data.world import GROUPS, WorldConfig, facts, make_kinds
from quadrivium.distil import DistilConfig
from quadrivium.errors import ConfigError, DataError, RunError
from quadrivium.experiment import ARMS, ExperimentConfig, read_cells, run_experiment, small, summary, table
from quadrivium.imagine import Imagining
from quadrivium.model import FORM, ContrastConfig, ModelConfig
from quadrivium.prepare import PrepareConfig
from quadrivium.sequence import ROUTES
from quadrivium.statistics import holm, paired
from quadrivium.train import TrainConfig
from quadrivium.visual import VisualConfig
from tests.conftest import apart, ended, script

TINY = ExperimentConfig(
    world=WorldConfig(
        kinds=28,
        shares=(0.25, 0.25, 0.25, 0.25),
        devices=("ramp",),
        links=1,
        frames=6,
        size=16,
        clips=30,
        told=15,
        stills=20,
        narrations=400,
        languages=("en",),
        jitter=0.2,  # five times as few ways for the simulator to compare a clip with
    ),
    prepare=PrepareConfig(
        read=ReadOptions(fps=8 / 3, size=16),
        vocab=400,
        visual=VisualConfig(levels=(4, 4), width=8, encoder_depth=0, decoder_depth=1),
        visual_train=TrainConfig(steps=5),
        visual_batch=4,
        sample_frames=60,
    ),
    model=ModelConfig(layers=1, width=16, heads=1, patch=2),
    train=TrainConfig(steps=4),
    distil_train=TrainConfig(steps=2),
    distil=DistilConfig(agree=0.3, limit=6, wordings=1),
    imagining=Imagining(samples=2, tries=2),
    each=1,
)


DATA = (experiment._looks, experiment._world, experiment._data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Three arms on one seed, the second of which goes on from the first, in two sittings."""
    out = tmp_path_factory.mktemp("experiment")
    run_experiment(out, TINY, seeds=(0,), arms=("four",), progress=False)
    found = run_experiment(out, TINY, seeds=(0,), arms=("four", "distil", "captions"), progress=False)
    return out, found


def test_a_grid_is_finished_over_several_sittings(finished):
    out, found = finished
    cells = read_cells(out / "results")
    assert {arm: list(seeds) for arm, seeds in cells.items()} == {"captions": [0], "four": [0], "distil": [0]}
    written = (out / "results" / "four-seed-0.json").stat().st_mtime_ns
    again = run_experiment(out, TINY, seeds=(0,), arms=("four",), progress=False)
    assert (out / "results" / "four-seed-0.json").stat().st_mtime_ns == written
    assert table(again) == table(found)
    assert "0.333" in table(found)
    bits, (row,) = (
        found["arms"]["four"]["bits"],
        (line for line in table(found).splitlines() if line.startswith("four") and " min" in line),
    )
    assert row.split()[1:3] == [f"{bits['t2t']['mean']:.{4 if bits['t2t']['mean'] < 1 else 1}f}", f"{bits['t2v']['mean']:.1f}"]


def test_cells_say_what_they_measured(finished):
    out, _ = finished
    cells = read_cells(out / "results")
    looked = {"direct", "imagine", "shown", "drawn", "placed"}
    for arm, by_seed in cells.items():
        facts = by_seed[0]["facts"]
        assert set(facts) == {"read", "seen", "both", "neither"}
        for group, read_outs in facts.items():
            checked = {"checked"} if group in ("seen", "neither") else set()
            assert set(read_outs) == ({"direct"} if arm == "captions" else looked | checked)
            assert all(0 <= r["all"]["accuracy"] <= 1 for r in read_outs.values())
    assert cells["distil"][0]["distilled"]["situations"] == 6
    assert cells["captions"][0]["routes"].keys() == {"t2t"}


@pytest.mark.parametrize("stopped", ["before its first checkpoint", "while it was measured"])
def test_arms_with_text_of_their_own_go_on_where_they_were_stopped(finished, tmp_path, stopped):
    """What distil wrote, and the oracle's facts, lie where `prepare` reads and no run stands; and the folder may be moved."""
    out = tmp_path / "moved"
    shutil.copytree(finished[0], out)
    whole = read_cells(out / "results")["distil"][0]
    (out / "results" / "distil-seed-0.json").unlink()
    if stopped == "before its first checkpoint":
        shutil.rmtree(out / "seed-0" / "distil" / "checkpoints")
        run_experiment(out, TINY, seeds=(0,), arms=("oracle",), progress=False)
        (out / "results" / "oracle-seed-0.json").unlink()
    twice = ["distil-twice"] * (stopped == "before its first checkpoint")
    run_experiment(out, TINY, seeds=(0,), arms=("distil", "oracle", *twice), progress=False)
    again = read_cells(out / "results")
    for arm in twice:
        assert again[arm][0]["distilled"]["situations"] == 6
        config = json.loads((out / "seed-0" / arm / "config.json").read_text())
        assert config["data"].endswith("data-distil-twice") and config["init"].endswith("seed-0/distil")
    assert again["distil"][0]["facts"] == whole["facts"] and again["distil"][0]["distilled"] == whole["distilled"]
    assert again["oracle"][0]["steps"] == TINY.train.steps
    if stopped == "while it was measured":
        assert all(c[0]["seconds"] >= c[0]["training_seconds"] for c in again.values())
        assert again["distil"][0]["training_seconds"] == whole["training_seconds"]


def test_what_a_run_knows_and_what_it_says(finished, tmp_path):
    out, _ = finished
    root, home = Path(__file__).parents[1], out / "seed-0"
    words = [home / "four", home / "world", "--each", 1, "--readers", 1]
    assert ended(apart(script, root / "benchmarks" / "said.py", *words, out=tmp_path / "made")) == 0
    head, *lines = (line.split() for line in (tmp_path / "made").read_text().splitlines())
    assert head[:2] == ["said", "one"] and [line[0] for line in lines] == ["read", "seen", "both", "neither"]
    facts = read_cells(out / "results")["four"][0]["facts"]
    for group, said, *others in lines:
        assert float(said) == pytest.approx(facts[group]["direct"]["all"]["accuracy"], abs=6e-4)
        assert len(others) == 7 and all(np.isfinite(float(value)) for value in others)


def test_where_imagined_pieces_are_placed(finished, tmp_path):
    """The script draws the first clip of every question that the cell has looked at."""
    out, _ = finished
    root, home = Path(__file__).parents[1], out / "seed-0"
    words = [home / "four", home / "world", "--each", 1]
    assert ended(apart(script, root / "benchmarks" / "placed.py", *words, out=tmp_path / "made")) == 0
    head, *lines = (line.split() for line in (tmp_path / "made").read_text().splitlines())
    found = {(device, first): list(map(float, values)) for device, first, *values in lines}
    assert head[3:] == ["n", "placed", "imagine", "goes", "on"] and found["all", "either"][0] == 15
    cell = read_cells(out / "results")["four"][0]["facts"]["seen"]["placed"]["all"]
    assert found["all", "either"][1] == pytest.approx(cell["accuracy"], abs=6e-4) and cell["chance"] == 0.5
    assert sum(n for (device, first), (n, *_) in found.items() if device == "ramp") == 15


def test_how_first_frames_are_stored_is_told_apart(finished, tmp_path):
    out, _ = finished
    root, home = Path(__file__).parents[1], out / "seed-0"
    words = [root / "benchmarks" / "stored.py", home / "four", home / "world"]
    assert ended(apart(script, *words, out=tmp_path / "made", errors=tmp_path / "errors")) == 0, (
        tmp_path / "errors"
    ).read_text()
    head, *lines = (line.split() for line in (tmp_path / "made").read_text().splitlines())
    assert head[:3] == ["frame", "read", "drawn"]
    found = {name: list(map(float, values)) for name, *values in lines}
    assert list(found) == ["png", "mp4", "reading", "jointly", "unchecked"]
    assert found["png"][3] == found["mp4"][4] == 0 and found["png"][4] == found["mp4"][3]
    read, drawn, *_ = found["jointly"]
    assert read + drawn <= sum(found["reading"][:2]) and found["reading"][0] <= read  # each is the least of what it goes by


def test_arms_read_what_they_say(finished):
    out, _ = finished
    config = {arm: json.loads((out / "seed-0" / arm / "config.json").read_text()) for arm in read_cells(out / "results")}
    assert config["captions"]["mixture"]["captions"] and not config["four"]["mixture"]["captions"]
    assert config["captions"]["mixture"]["routes"] == ["t2t"]
    assert config["distil"]["data"].endswith("data-distil")
    assert config["four"]["model"] == config["distil"]["model"] == config["captions"]["model"]
    for name, arm in ARMS.items():
        assert not arm.after or arm.after in ARMS, name
        assert arm.model(TINY.model).sharing == (arm.sharing or TINY.model.sharing)
        assert arm.sharing == {"cross-distil": "cross", "cross-distil-twice": "cross", "contrast": "cross"}.get(
            name, name[6:] if name.startswith("share-") else None
        )
        assert (arm.model(TINY.model).contrast.weight > 0) == (name == "contrast")
        assert arm.model(replace(TINY.model, contrast=ContrastConfig(0.5))).contrast.weight == (arm.contrast or 0.5)
        mixture = arm.mixture(replace(TINY.mixture, ahead=3.0), 2)
        assert mixture.ahead == (0.0 if name == "no-ahead" else 3.0)
        at_once = name in ("text", "text-equal", "captions") or arm.after
        drawn = {"pages": (("world/text, rendered", 2),), "oracle": (("oracle", 2),)}.get(name, ())
        assert mixture.begin == (() if at_once else (("world/text", 2), *drawn))
        assert mixture.rendered == (name == "pages")
        assert arm.mixture(replace(TINY.mixture, rendered=True)).rendered  # what all arms are given
    assert config["four"]["mixture"]["begin"] == [["world/text", 1]] and not config["distil"]["mixture"]["begin"]


def test_documents_are_pages_too(tmp_path):
    """The arm reads them as pictures of text, on a tokenizer of its own; what is measured is asked of the world alone. Clips are without
    captions here, and weights of the streams that are then not there are left out."""
    world = replace(TINY.world, size=32, narrated=False)
    weights = replace(TINY.mixture, source_weights=(("t2v/world/clips", 2.0), ("v2v/world/clips", 2.0)))
    sized = replace(TINY, world=world, mixture=weights, prepare=replace(TINY.prepare, read=replace(TINY.prepare.read, size=32)))
    run_experiment(tmp_path, sized, seeds=(0,), arms=("pages",), progress=False)
    config = json.loads((tmp_path / "seed-0" / "pages" / "config.json").read_text())
    assert config["data"].endswith("data-pages") and config["mixture"]["rendered"]
    assert config["mixture"]["source_weights"] == [["v2v/world/clips", 2.0]]
    names = [s.name for s in Dataset(tmp_path / "seed-0" / "data-pages").sources]
    assert "world/text, rendered" in names and "world/text" in names
    cell = read_cells(tmp_path / "results")["pages"][0]
    assert set(cell["routes"]) == set(ROUTES)
    looks = tmp_path / "looks" / "data" / "tokenizers" / "visual" / "model.safetensors"
    assert cell["visual_tokenizer"] != sha256(looks)


def test_cells_of_another_size_are_not_mixed_in(finished):
    out, _ = finished
    with pytest.raises(RunError, match=r"with each \d+ \(not 2\); give the options it was begun with"):
        run_experiment(out, replace(TINY, each=2), seeds=(1,), arms=("text",), progress=False)


@dataclass(frozen=True)
class Part:
    depth: int = 2
    warm: float = 0.0
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Whole:
    size: int
    part: Part = field(default_factory=lambda: Part(depth=5))


@pytest.mark.parametrize(
    "stored, config, refused",
    [
        ({"size": 1, "part": {"depth": 5}}, Whole(1), ""),  # warm and marks are options of today
        ({"size": 1}, Whole(1), ""),
        ({"size": 1, "part": {"depth": 5}}, Whole(1, Part(5, 0.1)), "part"),
        ({"size": 1, "part": {}}, Whole(1), "part"),  # a part's own default is 2
        ({"size": 1, "part": {"depth": 5, "gone": 1}}, Whole(1), "part"),
        ({"size": 2, "part": {"depth": 5}}, Whole(1), "size"),
        ({"part": {"depth": 5}}, Whole(1), "size"),
        ({"size": 1, "part": {"depth": 5}, "data": "a"}, Whole(1), "data"),
    ],
)
def test_an_option_added_since_then_counts_as_its_default(stored, config, refused, tmp_path):
    path = tmp_path / "experiment.json"
    write_json(path, {"form": FORM, **stored})
    written = path.read_bytes()
    with pytest.raises(RunError, match=f" {refused}[ .;]") if refused else nullcontext():
        grid.declare([path], config, grid.plain(config))
    assert path.read_bytes() == written
    write_json(path, stored)  # of a time when equal options made another model
    with pytest.raises(RunError, match="begun with another form of the model"):
        grid.declare([path], config, grid.plain(config))


def test_cells_from_before_clips_were_checked_count_as_unchecked(tmp_path):
    path, config = tmp_path / "experiment.json", small()
    before = grid.plain(config)
    del before["imagining"]["tries"]
    path.write_text(json.dumps({"form": FORM, **before, "device": "cpu"}))
    unchecked = replace(config, imagining=replace(config.imagining, tries=1))
    grid.declare([path], unchecked, grid.plain(unchecked) | {"device": "cpu"})
    with pytest.raises(RunError, match=r"imagining\.tries 1"):
        grid.declare([path], config, grid.plain(config) | {"device": "cpu"})


def test_cells_of_processors_and_of_a_gpu_are_not_mixed(tmp_path):
    """Grids from before it was declared were computed on processors."""
    path, config = tmp_path / "experiment.json", ExperimentConfig()
    grid.declare([path], config, grid.plain(config))
    grid.declare([path], config, grid.plain(config) | {"device": "cpu"})
    with pytest.raises(RunError, match="device cpu"):
        grid.declare([path], config, grid.plain(config) | {"device": "cuda"})


def test_cells_that_docs_keep_are_of_the_experiment_that_is_run_today(tmp_path):
    kept = Path(__file__).parents[1] / "docs" / "results" / "small"
    for path in kept.glob("*.json"):
        shutil.copy(path, tmp_path)
    cells = len(list(tmp_path.glob("*-seed-1.json")))
    found = run_experiment(tmp_path / "out", small(), (1,), ("text", "four"), tmp_path, progress=False)
    assert cells > 1 and 1 in found["arms"]["four"]["seeds"] and not (tmp_path / "out" / "looks").exists()


def test_the_small_experiment_can_be_asked_on_every_seed(monkeypatch):
    monkeypatch.setattr(questions, "PAIRS", 150)  # what can be asked of a part of the pairs can be asked of all
    config = small()
    for seed in range(6):
        for group in GROUPS:
            asked = make_questions(replace(config.world, seed=seed), group, config.each, config.world.languages)
            assert len(asked) == 180


def test_small_changes_the_defaults_and_no_option_that_is_given(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(experiment, "run_experiment", lambda out, config, *rest, **more: asked.append(config))
    monkeypatch.setattr(experiment, "table", lambda found: "")
    for more in ([], ["--small"], ["--small", "--train.steps", "5", "--world.leads", "0.7"]):
        assert main(["experiment", str(tmp_path), *more]) == 0
    full, less, changed = asked
    assert full == ExperimentConfig() and less == small() != full
    assert changed == replace(less, train=replace(less.train, steps=5), world=replace(less.world, leads=0.7))


def test_arms_that_pages_name_exist():
    root = Path(__file__).parents[1]
    pages = [page.read_text(encoding="utf-8") for page in (*root.glob("*.md"), *root.glob("docs/*.md"))]
    named = [
        arms.split() for page in pages for arms in re.findall(r"quadrivium experiment [^`\n]*?--arms((?: [a-z][^\s`]*)+)", page)
    ]
    assert named and not {arm.strip("`,.") for arms in named for arm in arms} - set(ARMS)


def test_an_unknown_arm_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="arms are text, text-equal"):
        run_experiment(tmp_path, TINY, arms=("txt",), progress=False)


def test_a_failed_cell_is_named_and_the_others_are_finished(tmp_path):
    for name in ("looks", "seed-0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "world").write_text("in the way")
    with pytest.raises(RunError, match=r"looks: .*; the same command goes on"):
        run_experiment(tmp_path, TINY, seeds=(0,), arms=("text",), progress=False)


def test_the_oracle_reads_every_seen_fact_and_nothing_else():
    world = replace(TINY.world, seed=3)
    kinds = make_kinds(world)
    names = {k.name for k in kinds if k.group == "seen"}
    others = {k.name for k in kinds if k.group != "seen"}
    texts = [row["text"].lower() for row in experiment._seen_facts(world, 4)]
    known = [f for f in facts(world, "seen") if f[3] in DEVICES[f[2]]]
    assert len(texts) == len(known) * len(world.languages) * 4
    assert all(any(name in text for name in names) for text in texts)
    assert not any(name in text for text in texts for name in others)


def cell(arm, seed, seen, looks="a"):
    facts = {
        g: {"direct": {"all": {"accuracy": seen, "chance": 1 / 3, "first alone": 0.5, "second alone": 0.4}}} for g in GROUPS
    }
    return {"arm": arm, "seed": seed, "facts": facts, "routes": {}, "seconds": 1.0, "training_seconds": 1.0, "positions": 1,
            "visual_tokenizer": looks}  # fmt: skip


def test_what_was_not_declared_is_corrected_for_its_number_and_what_differs_besides_is_said(tmp_path):
    draw = np.random.default_rng(0)
    level = {"text": 0.34, "captions": 0.36, "four": 0.7, "four-more": 0.74, "distil": 0.8}
    for arm, mean in level.items():
        for seed in range(3):
            write_json(tmp_path / f"{arm}-seed-{seed}.json", cell(arm, seed, mean + 0.1 * draw.random()))
    write_json(tmp_path / "experiment.json", {"primary": "four minus captions"})
    found = summary(tmp_path)
    pairs = {(d["arm"], d["base"], d["group"]): d for d in found["differences"]}
    raw = {
        k: paired(
            *({s: read_cells(tmp_path)[a][s]["facts"][k[2]]["direct"]["all"]["accuracy"] for s in range(3)} for a in k[:2])
        ).p
        for k in pairs
    }
    first = next(k for k, d in pairs.items() if d["primary"])
    assert pairs[first]["p"] == pytest.approx(raw[first])
    others = holm({str(k): p for k, p in raw.items() if k != first})
    assert all(pairs[k]["p"] == pytest.approx(others[str(k)]) for k in pairs if k != first)
    assert any(pairs[k]["p"] > 1.5 * raw[k] for k in pairs if k != first)
    assert not found["notes"] and "; p " in table(found)
    write_json(tmp_path / "four-seed-1.json", cell("four", 1, 0.7, looks="b"))
    assert "2 visual tokenizers (14, 1 cells)" in summary(tmp_path)["notes"][0] and "visual tokenizers" in table(
        summary(tmp_path)
    )


@pytest.mark.parametrize("trained", [False, True])
def test_arms_that_go_on_from_another_do_not_wait_until_it_is_measured(tmp_path, monkeypatch, trained):
    planned = {}
    monkeypatch.setattr(experiment, "run_jobs", lambda jobs, *_: planned.update(jobs))
    monkeypatch.setattr(grid, "finished", lambda run: trained)
    with pytest.raises(DataError, match="no finished cell"):
        run_experiment(tmp_path, TINY, seeds=(0,), arms=("four", "captions", "distil", "four-more"), progress=False)
    needs = {name: set(job.needs) - {"shards-seed-0"} for name, job in planned.items() if job.work not in DATA}
    first = set() if trained else {"train-four-seed-0"}
    assert list(needs) == [*first, "distil-seed-0", "four-more-seed-0", "four-seed-0", "captions-seed-0"]  # in which they begin
    assert all(needs[f"{arm}-seed-0"] == first for arm in ("distil", "four-more", "four"))
    assert not needs["captions-seed-0"] and not any(needs[name] for name in first)
    assert sum(job.run == tmp_path / "seed-0" / "four" for job in planned.values()) == 1  # a bar counts its progress once


def test_of_a_chain_of_arms_each_is_trained_once(tmp_path, monkeypatch):
    planned = {}
    monkeypatch.setattr(experiment, "run_jobs", lambda jobs, *_: planned.update(jobs))
    with pytest.raises(DataError, match="no finished cell"):
        run_experiment(tmp_path, TINY, seeds=(0,), arms=("four", "distil", "distil-twice"), progress=False)
    needs = {name: [n for n in job.needs if n != "shards-seed-0"] for name, job in planned.items() if job.work not in DATA}
    assert needs == {
        "train-four-seed-0": [],
        "train-distil-seed-0": ["train-four-seed-0"],
        "distil-twice-seed-0": ["train-distil-seed-0"],
        "distil-seed-0": ["train-distil-seed-0", "train-four-seed-0"],
        "four-seed-0": ["train-four-seed-0"],
    }


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"train": TrainConfig(steps=4, minutes=1.0)}, "train.steps"),
        ({"distil_train": TrainConfig(minutes=1.0)}, "distil-train.steps"),
        ({"train": TrainConfig(steps=4, seed=1)}, "train.seed"),
        ({"mixture": replace(TINY.mixture, scramble="noise")}, "mixture.scramble"),
        ({"mixture": replace(TINY.mixture, ahead_layer=9)}, "ahead_layer is 9"),
        ({"model": replace(TINY.model, heads=3, kv_heads=2)}, "multiple of kv_heads"),
        ({"imagining": Imagining(frames=1)}, "imagining.frames"),
        ({"imagining": Imagining(frames=8)}, "clips are read as 2 frames"),
    ],
)
def test_what_could_not_be_measured_afterwards_is_refused_at_once(tmp_path, change, named):
    with pytest.raises(ConfigError, match=named):
        run_experiment(tmp_path / "out", replace(TINY, **change), seeds=(0,), arms=("four",), progress=False)
    assert not (tmp_path / "out").exists()


def test_a_command_that_is_refused_declares_nothing(tmp_path):
    ours, theirs = tmp_path / "out" / "experiment.json", tmp_path / "results" / "experiment.json"
    grid.declare([theirs], TINY, grid.plain(TINY))
    other = replace(TINY, each=2)
    with pytest.raises(RunError, match=r"results/experiment\.json: this is another experiment"):
        grid.declare([ours, theirs], other, grid.plain(other))
    assert not ours.exists()


def test_summaries_need_a_finished_cell(tmp_path):
    with pytest.raises(Exception, match="no finished cell"):
        summary(tmp_path)
