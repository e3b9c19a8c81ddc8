"""Alignment of keys and queries: what is planted is found, what is not is null at the stated rate, and the probe touches text alone."""

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quadrivium import alignment, evaluate
from quadrivium.alignment import PAIRS, angles, changed, compare, matched, overlap, pairs_of, principal, read, share
from quadrivium.checkpoint import Run
from quadrivium.cli import main
from quadrivium.data.mixture import Mixture, MixtureConfig
from quadrivium.data.world import WorldConfig, make_kinds, world_config, write_world
from quadrivium.errors import ConfigError
from quadrivium.model import Batch, Model, ModelConfig
from quadrivium.prepare import prepare
from quadrivium.sequence import frames, pack, text
from quadrivium.text import TextTokenizer
from quadrivium.train import TrainConfig, train_routes
from tests.conftest import TINY
from tests.test_evaluate import told
from tests.test_huggingface import bytelevel, sentencepiece


class Blind:
    rows = columns = 4

    def encode(self, pictures):
        return np.zeros((len(pictures), 4, 4), np.int64)


@pytest.mark.parametrize("make", [sentencepiece, bytelevel])
def test_a_kind_is_read_where_its_name_ends(make, tmp_path):
    """Also by tokenizers that open a text with a space of their own."""
    words = TextTokenizer.load(make(tmp_path))
    world = WorldConfig(kinds=16, shares=(0.25, 0.25, 0.25, 0.25), languages=("en", "ja"))
    run = SimpleNamespace(text=words, visual=Blind(), patch=1, config={"read": {"size": 16}}, folder=tmp_path)
    texts, at, _ = alignment.kind_pairs(run, world, 2)
    kinds = make_kinds(world)
    for i, (sequence, end) in enumerate(zip(texts, at, strict=True)):
        name = kinds[i // 2].kana if i % 2 else kinds[i // 2].name
        ids = sequence[0].data[1 : end + 1]
        assert name in words.decode(ids).casefold() and name not in words.decode(ids[:-1]).casefold()


SHAPE = ModelConfig(vocab=20, layers=2, width=32, heads=4, kv_heads=2, head_size=16, rows=2, columns=2, codes=12, patch=1)


def planted(data, sharing="all"):
    """A model that takes a word and the code of the same meaning for one thing, before it has learnt anything."""
    model = Model(replace(SHAPE, sharing=sharing), seed=1).eval()
    with torch.no_grad():
        model.embed_codes.weight[1:8] = model.embed_text.weight[1:8]  # see `told`: code c is meant by the word c + 1
    return model, pairs_of(Mixture(data, MixtureConfig(routes=("t2v",)), 0, 0), 256)["a"]


def both(model, pairs):
    return [read(model, [p[side] for p in pairs]) for side in (0, 1)]


def test_planted_alignment_is_found_and_a_wrong_caption_is_not(tmp_path):
    rows = {}
    for right in (True, False):
        model, pairs = planted(told(tmp_path / f"{right}", right, 400))
        rows[right] = compare(*both(model, pairs), rank=2)
    for pair in PAIRS:
        assert len(rows[True][pair]) == 2
        for layer in rows[True][pair]:
            assert layer["overlap"] > 1.4 * layer["null"] and layer["p"] == 1 / (1 + alignment.DRAWS)
    for pair in ("K1 K2", "Q3 K2"):
        assert all(layer["p"] > 0.01 for layer in rows[False][pair])  # four dependent tests: at most one false alarm in 25
    assert rows[False]["Q3 K1"][0]["p"] < 0.01  # one text's queries and keys


def test_permuted_items_are_null_at_the_stated_rate():
    """300 pairs of clouds that have nothing in common: p <= .05 in 5 % of them; outside 3 to 30 once in 10,000 or less."""
    rng = np.random.default_rng(0)
    found = [overlap(*rng.normal(size=(2, 30, 6)), k=5, draws=59, seed=i) for i in range(300)]
    assert 3 <= sum(row["p"] <= 0.05 for row in found) <= 30
    assert np.mean([row["overlap"] for row in found]) == pytest.approx(5 / 29, abs=0.01)
    assert np.mean([row["null"] for row in found]) == pytest.approx(5 / 29, abs=0.01)


def test_overlap_knows_equal_clouds_turned_ones_and_what_is_no_number():
    rng = np.random.default_rng(1)
    cloud = rng.normal(size=(40, 8))
    turned = cloud @ np.linalg.qr(rng.normal(size=(8, 8)))[0] * 3 + 5
    assert overlap(cloud, turned, 10)["overlap"] == 1.0
    with pytest.raises(ValueError, match="not numbers"):
        overlap(cloud, np.full((40, 8), np.nan), 10)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.floats(0.05, 0.95))
@example(700, 1, 0.9375)
def test_controls_hold_as_much_of_the_variance(seed, rank, wanted):
    draw = torch.randn(3, 60, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    covariance = draw.transpose(1, 2) @ (draw * torch.arange(1, 61)[:, None]) / 60
    least, most = (share(principal(c, rank), covariance) for c in (-covariance, covariance))
    target = least + wanted * (most - least)
    basis = matched(covariance, target, rank, seed)
    torch.testing.assert_close(share(basis, covariance), target, rtol=0, atol=0.02)
    torch.testing.assert_close(basis.transpose(1, 2) @ basis, torch.eye(rank).double().expand(3, -1, -1))


def test_angles_are_one_for_one_subspace_and_rank_over_size_for_random_ones():
    draw = torch.linalg.qr(torch.randn(400, 16, 8, generator=torch.Generator().manual_seed(0)))[0]
    one, other = draw[..., :4], draw[..., 4:]
    turn = torch.linalg.qr(torch.randn(400, 4, 4, generator=torch.Generator().manual_seed(1)))[0]
    torch.testing.assert_close(angles(one, one @ turn), torch.ones(400))
    assert angles(one, other).abs().max() < 1e-5
    assert angles(one[:200], one[200:]).mean() == pytest.approx(4 / 16, abs=0.02)


@pytest.mark.parametrize("sharing", ["all", "none", "cross"])
def test_what_is_read_is_what_the_layers_compute(sharing, tmp_path):
    """Batches of different lengths, one position or all, heads in groups: equal to each sequence alone."""
    model, rng = Model(replace(SHAPE, sharing=sharing), seed=1).eval(), np.random.default_rng(0)
    sequences = [(text([0, *rng.integers(1, 20, n), 0]),) for n in (3, 9, 1, 6)]
    at = [2, 5, 0, 4]
    seen = []
    model.blocks[1].project.register_forward_hook(lambda module, inputs, made: seen.append(made[0].detach()))
    for budget in (8, 4096):
        every, one = read(model, sequences, budget=budget), read(model, sequences, at, budget=budget)
        alone, c = [], model.config
        for i, sequence in enumerate(sequences):
            seen.clear()
            model.states(Batch.of(pack([sequence])), 2)
            keys = seen[0][:, c.heads : c.heads + c.kv_heads]
            alone.append(keys)
            np.testing.assert_allclose(every.pooled["K"][1, i], keys.mean(0).flatten(), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(one.pooled["K"][1, i], keys[at[i]].flatten(), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(every.pooled["Q"][1, i], seen[0][:, : c.heads].mean(0).flatten(), rtol=1e-4, atol=1e-5)
        keys = torch.cat(alone)
        for g in range(c.kv_heads):
            torch.testing.assert_close(
                every.covariance["K"][1, g].float(), keys[:, g].T.cov(correction=0), rtol=1e-3, atol=1e-4
            )


def test_bf16_and_fp32_agree(tmp_path):
    model, pairs = planted(told(tmp_path, True, 400))
    plain = compare(*both(model, pairs), rank=2)
    with torch.autocast("cpu", torch.bfloat16):
        rough = compare(*both(model, pairs), rank=2)
    for pair in PAIRS:
        for a, b in zip(plain[pair], rough[pair], strict=True):
            assert a["overlap"] == pytest.approx(b["overlap"], abs=0.05) and a["angles"] == pytest.approx(b["angles"], abs=0.05)


@pytest.mark.parametrize("how", ["zero", "swap"])
def test_the_probe_changes_keys_of_text_and_nothing_else(how, tmp_path):
    model, pairs = planted(told(tmp_path, True))
    words, seen = both(model, pairs)
    texts = [(text([0, *range(1, 18), 0], True),)]
    clips = [(frames(np.arange(8).reshape(2, 2, 2, 1), True),)]
    before = evaluate.bits(model, texts), evaluate.bits(model, clips)
    with changed(model, principal(seen.covariance["K"], 2), words.mean, how):
        now = evaluate.bits(model, texts), evaluate.bits(model, clips)
    assert now[0] != before[0] and now[1] == before[1]
    with changed(model, torch.zeros(2, 2, 16, 2), words.mean, how):  # no direction at all
        assert evaluate.bits(model, texts) == pytest.approx(before[0], rel=1e-5)
    assert evaluate.bits(model, texts) == before[0]


def test_what_text_relies_on_is_told_from_what_it_does_not():
    """A planted cost: text pays for one direction of its keys. Where that is the visual part it pays, controls pay less."""
    model = Model(SHAPE, seed=1).eval()
    rng, layers, heads, size = np.random.default_rng(0), 2, 2, 16
    covariance = torch.eye(size).double().expand(layers, heads, -1, -1).clone()
    covariance[..., 0, 0] = 2.0
    side = alignment.Reading(
        {}, torch.zeros(layers, heads, size), {"K": torch.eye(size).double().expand(layers, heads, -1, -1)}
    )
    visual = alignment.Reading({}, side.mean, {"K": covariance})
    ids = [(text([0, *rng.integers(1, 20, 12), 0]),) for _ in range(20)]

    def costs():
        keys = torch.tensor(read(model, ids).pooled["K"]).unflatten(-1, (heads, size))
        return {"bits_per_byte": (1 - keys[1, :, :, 0].abs().sum(1).double().numpy(), np.ones(20), np.arange(20))}

    found = alignment.probe(model, side, visual, costs, rank=1)
    assert found["share"] == pytest.approx(1 / size)
    zero = found["zero"]["bits_per_byte"]
    assert zero["change"] > 2 * max(zero["controls"]) and zero["change"] > 4 * zero["stderr"]
    assert len(zero["controls"]) == 19 and zero["p"] == 0.05  # the least that they can give


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A tiny world and a run on it that keeps a checkpoint on the way."""
    root = tmp_path_factory.mktemp("alignment")
    world = WorldConfig(
        shares=(0.25, 0.25, 0.25, 0.25),
        kinds=28,
        devices=("ramp",),
        links=1,
        frames=6,
        size=16,
        clips=0,
        told=0,
        stills=150,
        narrations=60,
    )
    write_world(world, root / "world", progress=False)
    config = replace(TINY, held=0.5, visual_train=TrainConfig(steps=20, lr=4e-3))
    prepare([root / "world"], root / "data", config, progress=False)
    shape = ModelConfig(layers=2, width=16, heads=2, patch=2)
    train = TrainConfig(steps=4, save_every=2, keep=9)
    train_routes(root / "data", root / "run", shape, MixtureConfig(routes=("t2t",), positions=2000), train, progress=False)
    return root


def test_a_run_is_measured_from_its_first_step_on_and_shown(seen, capsys, monkeypatch):
    """Also one that was trained on text alone; its frames are those of the data it stands on."""
    monkeypatch.setattr(alignment, "probe", partial(alignment.probe, controls=3))  # of 19, which take their time
    run = seen / "run"
    assert main(["eval", str(run), "--alignment", "--world", str(seen / "world"), "--limit", "40"]) == 0
    out = capsys.readouterr().out
    assert "K1 ~ K2" in out and "declared" in out and "visual part" in out
    found = json.loads((run / "results.json").read_text())["alignment"]
    assert [s["step"] for s in found["steps"]] == [0, 2, 4] and found["layer"] == 2
    assert set(found["steps"][0]["sources"]) == {"kinds", "world/stills"}
    assert found["steps"][0]["sources"]["kinds"]["n"] == 28
    assert set(found["probe"]["zero"]) == {"bits_per_byte", "read", "both", "seen"}
    half = alignment.measure(
        run / "checkpoints" / "step-00000002", limit=40, progress=False
    )  # of a checkpoint, as far as it goes
    assert [s["step"] for s in half["steps"]] == [0, 2]
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Alignment through training: kinds" in page and "without the visual part" in page and "declared beforehand" in page
    assert main(["eval", str(run), "--limit", "4"]) == 0  # and the alignment is kept
    results = json.loads((run / "results.json").read_text())
    assert results["alignment"] == found
    assert not any(results["findings"].values()) and not (run / "samples").exists()  # it was trained on text alone


def test_an_exported_model_is_refused(seen, tmp_path, capsys):
    """It says nothing of its data, and keeps no checkpoints."""
    assert main(["export", str(seen / "run"), "--out", str(tmp_path / "whole"), "--full"]) == 0
    assert main(["eval", str(tmp_path / "whole"), "--alignment"]) == 2
    assert "was exported and says nothing of its data" in capsys.readouterr().err


def test_the_name_of_a_kind_is_found_where_it_stands(seen):
    run, world = Run(seen / "run"), world_config(seen / "world")
    texts, at, portraits = alignment.kind_pairs(run, world, each=4)
    kinds = make_kinds(world)
    assert len(texts) == 4 * len(kinds) == len(portraits)
    for i, ((segment,), place) in enumerate(zip(texts, at, strict=True)):
        kind = kinds[i // 4]
        before, upto = (run.text.decode(segment.data[1:end]).casefold() for end in (place, place + 1))
        name = kind.kana if i % 2 else kind.name
        assert name in upto and name not in before


def test_a_run_without_frames_is_refused(folder, tmp_path):
    prepare([folder / "text"], tmp_path / "data", replace(TINY, visual_train=TrainConfig(steps=1)), progress=False)
    train_routes(tmp_path / "data", tmp_path / "run", ModelConfig(layers=1, width=16, heads=1), MixtureConfig(positions=200),
                 TrainConfig(steps=1), progress=False)  # fmt: skip
    with pytest.raises(ConfigError, match="text alone"):
        alignment.measure(tmp_path / "run", progress=False)
