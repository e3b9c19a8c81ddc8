"""Distilling: what is kept is what samples agree on, the simulator only judges, stopped work goes on."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from quadrivium import distil as distilling
from quadrivium.ask import ask, frames_of, shown
from quadrivium.cli import main
from quadrivium.data.language import parse_outcome
from quadrivium.data.machine import DEVICES
from quadrivium.data.questions import make_questions, situations
from quadrivium.data.sources import ReadOptions, scan
from quadrivium.data.world import WorldConfig, make_kinds
from quadrivium.distil import DistilConfig, distil, judge, table
from quadrivium.errors import ConfigError
from quadrivium.imagine import Imagining
from quadrivium.model import Model, ModelConfig
from quadrivium.text import TextTokenizer
from quadrivium.visual import VisualConfig, VisualTokenizer

WORLD = WorldConfig(seed=5, kinds=12, devices=("ramp", "table"), size=16, frames=6)
IMAGINING = Imagining(samples=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was never trained, with everything a run has."""
    asked = situations(WORLD, "seen")
    text = TextTokenizer.train([t for q in asked for t in (*q.texts, q.opening)], 400)
    visual = VisualTokenizer(VisualConfig(size=16, down=4, levels=(4, 4, 4), width=16, encoder_depth=1, decoder_depth=1))
    shape = ModelConfig(vocab=text.size, codes=64, rows=2, columns=2, patch=2, layers=1, width=32, heads=2)
    return SimpleNamespace(
        folder=tmp_path_factory.mktemp("run"),
        config={"read": {"size": 16, "fps": 4.0}, "mixture": {}, "data": "/nowhere"},
        text=text,
        visual=visual.eval(),
        model=Model(shape).eval(),
        patch=2,
        step=7,
    )


def agreeing(monkeypatch, counts):
    monkeypatch.setattr(distilling, "imagined", lambda model, text, few, imagining: np.zeros((len(few), 4)))
    monkeypatch.setattr(distilling, "votes", lambda model, text, few, clips: np.array([counts(q) for q in few]))


def test_every_pair_of_seen_kinds_is_imagined_in_every_device_and_language():
    kinds = make_kinds(WORLD)
    seen = sum(kind.group == "seen" for kind in kinds)
    asked = situations(WORLD, "seen")
    assert len({(q.first, q.second, q.device, q.language) for q in asked}) == len(asked) == seen * (seen - 1) * 2 * 2


def test_what_enough_samples_agree_on_is_written_as_text_that_prepare_reads(run, tmp_path, monkeypatch):
    """All samples of ramps tell the last outcome, half of those of tables: one is kept, right or wrong, the other is not."""
    agreeing(monkeypatch, lambda q: [0, 0, 4] if q.device == "ramp" else [2, 1, 1])
    report = distil(run, WORLD, tmp_path / "corpus.jsonl", DistilConfig(wordings=3), IMAGINING, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [q for q in situations(WORLD, "seen") if q.device == "ramp"]
    assert report["kept"] == len(kept) and report["texts"] == len(lines) == 3 * len(kept)
    name = {k.name: k for k in make_kinds(WORLD)}
    for line in lines:
        first, second = (name[n] for n in line["kinds"])
        spoken = (first.name, second.name) if line["language"] == "en" else (first.kana, second.kana)
        assert parse_outcome(line["text"], "ramp", line["language"], *spoken) == line["outcome"] == DEVICES["ramp"][2]
        assert line["confidence"] == 1 and line["device"] == "ramp"
    (source,) = scan(tmp_path / "corpus.jsonl", ReadOptions())
    assert [i.texts[0] for i in source.items] == [line["text"] for line in lines] and not source.problems
    assert len({i.group for i in source.items}) == len(kept) / 2  # both languages of a situation stay together
    right = np.mean([q.answer == 2 for q in kept])
    assert report["precision"] == pytest.approx(right) == report["by_device"]["ramp"]["precision"]
    assert report["by_confidence"]["0.500"]["n"] == len(kept) and report["by_device"]["table"]["precision"] is None
    assert json.loads(next(tmp_path.glob("*.report.json")).read_text())["kept"] == len(kept)
    assert "confidence 1.000" in table(report)
    assert not list(tmp_path.glob(".*"))
    again = DistilConfig(wordings=1)
    distil(run, WORLD, tmp_path / "other.jsonl", again, IMAGINING, progress=False)  # two in a folder do not meet
    assert distil(run, WORLD, tmp_path / "corpus.jsonl", DistilConfig(wordings=3), IMAGINING, progress=False) == json.loads(
        json.dumps(report)
    )


def test_the_simulator_selects_nothing(run, tmp_path, monkeypatch):
    """Other answers, equal corpus."""
    agreeing(monkeypatch, lambda q: [3, 1, 0])
    config = DistilConfig(limit=10)
    distil(run, WORLD, tmp_path / "a.jsonl", config, IMAGINING, progress=False)
    other = [replace(q, answer=(q.answer + 1) % 3) for q in situations(WORLD, "seen")]
    monkeypatch.setattr(distilling, "situations", lambda *_: list(other))
    distil(run, WORLD, tmp_path / "b.jsonl", config, IMAGINING, progress=False)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes() != b""


@pytest.mark.parametrize("free", [False, True])
def test_stopped_and_begun_again_is_undisturbed(run, tmp_path, monkeypatch, free):
    monkeypatch.setattr(distilling, "CHUNK", 3)
    config = DistilConfig(agree=0.3, free=free, limit=7)
    whole = distil(run, WORLD, tmp_path / "whole.jsonl", config, IMAGINING, progress=False)
    real, calls = distilling.imagined, []

    def stops(*arguments):
        calls.append(len(arguments[2]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(distilling, "imagined", stops)
    with pytest.raises(KeyboardInterrupt):
        distil(run, WORLD, tmp_path / "stopped.jsonl", config, IMAGINING, progress=False)
    assert not (tmp_path / "stopped.jsonl").exists()
    again = distil(run, WORLD, tmp_path / "stopped.jsonl", config, IMAGINING, progress=False)
    assert calls == [3, 3, 3, 1]  # the first three situations are not imagined twice
    assert distil(run, WORLD, tmp_path / "stopped.jsonl", config, IMAGINING, progress=False) == again  # at once
    assert len(calls) == 4
    assert again == whole and (tmp_path / "stopped.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_ties_are_not_kept_and_precision_is_counted():
    asked = situations(WORLD, "seen")[:4]
    best = np.array([asked[0].answer, asked[1].answer, (asked[2].answer + 1) % 3, asked[3].answer])
    share = np.array([1.0, 0.75, 0.75, 0.5])
    found = judge(asked, best, share, np.array([True, True, True, False]))
    assert found["kept"] == 3 and found["precision"] == pytest.approx(2 / 3)
    assert found["by_confidence"]["0.750"] == {"n": 2, "precision": 0.5}


def test_a_tie_is_not_kept(run, tmp_path, monkeypatch):
    agreeing(monkeypatch, lambda q: [2, 2, 0])
    report = distil(run, WORLD, tmp_path / "c.jsonl", DistilConfig(agree=0.5), IMAGINING, progress=False)
    assert report["kept"] == 0 and report["precision"] is None and (tmp_path / "c.jsonl").read_bytes() == b""


def test_what_does_not_fit_is_one_sentence(run, tmp_path, monkeypatch):
    out = tmp_path / "c.jsonl"
    for wrong, words in (
        (SimpleNamespace(**{**vars(run), "visual": None}), "text alone"),
        (SimpleNamespace(**{**vars(run), "config": {"read": {"size": 16, "clip_frames": 1}}}), "one frame"),
    ):
        with pytest.raises(ConfigError, match=words):
            distil(wrong, WORLD, out, DistilConfig(), IMAGINING)
    with pytest.raises(ConfigError, match=r"\.jsonl"):
        distil(run, WORLD, tmp_path / "c.txt", DistilConfig(), IMAGINING)
    out.write_text("")
    with pytest.raises(ConfigError, match="already there"):
        distil(run, WORLD, out, DistilConfig(), IMAGINING)
    texts = [f"A {kind.name}." for kind in make_kinds(replace(WORLD, seed=6))]
    ids = run.text.encode_all(texts)
    source = SimpleNamespace(texts=np.ones(len(ids), int), text=lambda item, which: ids[item])
    monkeypatch.setattr(distilling, "Dataset", lambda folder: SimpleNamespace(sources=[source]))
    with pytest.raises(ConfigError, match="name 0 of the 12 kinds"):
        distil(run, WORLD, tmp_path / "d.jsonl", DistilConfig(), IMAGINING)
    for wrong_values in ({"agree": 0.0}, {"wordings": 0}, {"groups": ()}):
        with pytest.raises(ValueError):
            DistilConfig(**wrong_values)


def test_shown_clips_are_the_real_ones_as_the_run_reads_them(run):
    questions = make_questions(replace(WORLD, kinds=16), "both", each=1)[:6]
    world = replace(WORLD, kinds=16)
    count = frames_of(run, world)
    clips = shown(run, world, questions, count)
    assert count == 3 and clips.shape == (6, 1, 3, 2, 2, 4)  # six frames at 8 a second, read at 4
    limited = SimpleNamespace(**{**vars(run), "config": {**run.config, "mixture": {"frames": 2}}})
    assert frames_of(limited, world) == 2
    rows = ask(run.model, run.text, questions, clips=clips)
    assert rows["all"]["n"] == 6 and rows["all"]["agreement"] == pytest.approx(1)


def test_distil_says_what_is_wrong(tmp_path, capsys):
    assert main(["distil", str(tmp_path), str(tmp_path), "--out", str(tmp_path / "c.jsonl")]) == 2
    assert "no world.json" in capsys.readouterr().err
    assert main(["distil", str(tmp_path), str(tmp_path), "--out", "c.jsonl", "--agree", "2"]) == 2
    assert "agree lies in" in capsys.readouterr().err
