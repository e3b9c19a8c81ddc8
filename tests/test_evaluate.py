"""Findings in bits: what earlier frames save on the last one. Retrieval: planted pairs are found, others are not."""

import json

import numpy as np
import pytest
import torch

from quadrivium import evaluate, findings
from quadrivium.data.mixture import Mixture, MixtureConfig
from quadrivium.data.shards import Dataset, Record, is_held, to_json, write_json, write_shard
from quadrivium.model import Batch, ContrastConfig, Model, ModelConfig, cells
from quadrivium.sequence import apart, frames, group, pack, text
from quadrivium.train import Pairs, RouteTask


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Forty clips of four frames, of 2 x 2 codes; half of each clip's earlier frames are alike."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    records = []
    for i in range(40):
        codes = rng.integers(0, 9, (4, 2, 2)).astype(np.uint16)
        codes[1:3] = codes[0] if i % 2 else codes[1:3]
        records.append(Record(f"{i}", i, is_held(f"{i}", 0.3), (), codes))
    entry = write_shard(folder / "shards" / "a.safetensors", records, np.uint16, (2, 2))
    source = {"name": "a", "shards": [entry | {"problems": []}]}
    write_json(folder / "manifest.json", {"version": 1, "complete": True, "grid": [2, 2], "held": 0.3, "sources": [source]})
    return Dataset(folder)


def test_the_table_of_one_item_is_the_same_from_a_file(clips):
    """One item has no error: not a number in memory, null in results.json, left out of either table."""
    model = Model(cells(ModelConfig(vocab=5, layers=1, width=32, heads=2), 2, 2, 9), seed=1)
    mixture = Mixture(clips, MixtureConfig(routes=("v2v",)), 0, 0, model.config.patch)
    found = evaluate.routes(model, mixture, np.ones(5), limit=1, progress=False)
    assert np.isnan(found["routes"]["v2v"]["stderr"])
    shown = evaluate.table(found)
    assert shown == evaluate.table(json.loads(to_json(found))) and "nan" not in shown and "±" not in shown


def test_earlier_frames_are_given_as_they_are_named(clips):
    model = Model(cells(ModelConfig(vocab=5, layers=1, width=32, heads=2), 2, 2, 9), seed=1)
    mixture = Mixture(clips, MixtureConfig(routes=("v2v",)), 0, 0, model.config.patch)
    rows = findings.visual_context(model, mixture)["v2v/a"]
    assert list(rows) == ["0", "1", "2", "3", "shuffled", "other clip"]
    held = mixture.held["v2v/a"]
    whole = [group(held.source.codes(int(i)), mixture.patch) for i in held.unit[:, 0]]
    for k in range(4):
        by_hand = [(*((frames(c[:k]),) if k else ()), frames(c[k : k + 1], wanted=True)) for c in whole]
        assert rows[str(k)]["bits_per_frame"] == pytest.approx(evaluate.bits(model, by_hand).mean(), rel=1e-6)
    for wrong in ("shuffled", "other clip"):
        more = rows[wrong]["bits_per_frame"] - rows["3"]["bits_per_frame"]
        assert rows[wrong]["dearer"] == pytest.approx(more, abs=1e-4) and abs(more) > 1e-6
    assert "those of another clip" in findings.context_table({"v2v/a": rows})
    short = Mixture(clips, MixtureConfig(routes=("v2v",), frames=2), 0, 0, model.config.patch)
    assert list(findings.visual_context(model, short)["v2v/a"]) == ["0", "1", "other clip"]  # no longer than in training


def test_frames_that_say_nothing_of_each_other_save_nothing(tmp_path):
    """Clips of independent frames: a run that has learnt as much finds its own earlier frames worth no more than another clip's."""
    rng = np.random.default_rng(0)
    records = [Record(f"{i}", i, i % 4 == 0, (), rng.integers(0, 4, (3, 2, 2)).astype(np.uint16)) for i in range(400)]
    entry = write_shard(tmp_path / "data" / "shards" / "a.safetensors", records, np.uint16, (2, 2))
    source = {"name": "a", "shards": [entry | {"problems": []}]}
    write_json(
        tmp_path / "data" / "manifest.json", {"version": 1, "complete": True, "grid": [2, 2], "held": 0.25, "sources": [source]}
    )
    data = Dataset(tmp_path / "data")
    model = Model(cells(ModelConfig(vocab=5, layers=1, width=32, heads=2), 2, 2, 4), seed=1)
    mixture = Mixture(data, MixtureConfig(routes=("v2v",), positions=400), 0, 0, model.config.patch)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(150):
        batch = Batch.of(pack(mixture.step(step)))
        model.nats(batch)[1].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    rows = findings.visual_context(model, mixture)["v2v/a"]
    assert 7.5 < rows["2"]["bits_per_frame"] < 9  # four codes of two bits
    for wrong in ("shuffled", "other clip"):
        assert abs(rows[wrong]["dearer"]) < 4 * rows[wrong]["dearer_stderr"] + 0.1


def test_a_source_that_says_the_same_is_no_wrong_one():
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 9, (1, 2, 2, 1)) for _ in range(4)]
    said = [[0, 1, 0], [0, 1, 0], [0, 2, 0], [0, 1, 0]]
    for given, wanted in (
        (lambda i: text(said[i]), lambda i: frames(clips[i], True)),
        (lambda i: frames(clips[i]), lambda i: text(said[i], True)),
    ):
        rows = [(given(i), wanted(i)) for i in range(4)]
        wrong = evaluate.wrong_source(rows, np.arange(4))
        assert all(np.array_equal(wrong[i][0].data, rows[2][0].data) for i in (0, 1, 3))
    assert evaluate.wrong_source(rows[:2], np.arange(2)) == [None, None]


def items_of(groups, length=3):
    rng = np.random.default_rng(0)
    return [(np.array([0, 1 + i, 0]), rng.integers(0, 9, (length, 2, 2, 1)), g) for i, g in enumerate(groups)]


def priced(monkeypatch, price):
    """Costs that are known: ``price`` of what kinds of segment are given, and of which item's caption is."""

    def bits(model, sequences):
        return np.array([price([s.modality for s in q[:-1]], [s.data for s in q[:-1]], q[-1].data) for q in sequences], float)

    monkeypatch.setattr(findings, "bits", bits)


def test_what_was_seen_and_not_said_is_the_share_that_a_caption_leaves(monkeypatch):
    """A last frame of 60 bits beside its earlier frames, of which the caption says 6."""
    costs = {("frames",): 60, ("text", "frames"): 54}
    priced(monkeypatch, lambda kinds, given, wanted: costs[tuple(kinds)] if len(wanted) == 1 else 1 / 0)
    row = findings.unspoken(None, items_of(range(9)))
    assert row["share"] == pytest.approx(54 / 60) and row["n"] == 9
    assert row["interval"] == pytest.approx([row["share"]] * 2) and (row["seen"], row["both"]) == (60, 54)
    mixed = items_of(range(6)) + items_of(range(6, 9), 5) + items_of(range(9, 12), 1)  # only those of the commonest length
    assert findings.unspoken(None, mixed)["n"] == 6
    assert findings.unspoken(None, items_of(range(4), 1)) == {}
    assert findings.unspoken(None, items_of([3] * 4))["interval"] is None  # one group: one draw
    costs[("frames",)] = 0
    assert findings.unspoken(None, items_of(range(9)))["share"] is None and findings.percent(None, None) == "-"


def test_a_caption_saves_bits_of_its_own_frame_and_not_of_anothers(monkeypatch):
    items = items_of([0, 0, 1, 1, 2, 2])
    own = {clip[:1].tobytes(): words[1] for words, clip, _ in items}

    def price(kinds, given, wanted):
        return 100 if not kinds else 70 if given[0][1] == own[wanted.tobytes()] else 110

    priced(monkeypatch, price)
    row = findings.lossy(None, items)
    assert row["share"] == pytest.approx(0.3) and row["wrong"] == pytest.approx(-0.1) and row["n"] == 6
    assert row["own"] == pytest.approx(0.4) and row["own_interval"][0] > 0  # told apart by pairs
    alone = findings.lossy(None, items_of([1, 1, 1]))
    assert "wrong" not in alone and alone["interval"] is None


@pytest.mark.parametrize("count", [4, 10, 30])
def test_shares_have_intervals_over_groups(count):
    """Items of groups that differ, five a group: the interval is that of so many draws, and covers the truth as often as it says."""
    rng, covered, trials = np.random.default_rng(count), 0, 400
    groups = np.repeat(np.arange(count), 5)
    for _ in range(trials):
        of_group, whole = rng.normal(0.4, 0.1, count), rng.uniform(50, 150, 5 * count)
        _, interval = findings._share(of_group[groups] * whole, whole, groups)
        covered += interval[0] < 0.4 < interval[1]
    assert 0.91 < covered / trials < 0.98


def test_psnr_is_that_of_the_textbook():
    a = np.full((1, 4, 4, 3), 100, np.uint8)
    assert findings.psnr(a, a) == 60 and findings.psnr(a, a + 10) == pytest.approx(10 * np.log10(255**2 / 100))


KINDS = 12


def told(folder, planted, n=260):
    """Stills of 2 x 2 codes whose kind stands in two ids of their caption, or, not planted, in those of another item's."""
    rng, records = np.random.default_rng(1), []
    kinds = rng.integers(0, KINDS, n)
    said = kinds if planted else rng.permutation(kinds)
    for i in range(n):
        caption = np.array([1 + said[i] % 3, 4 + said[i] // 3, *rng.integers(8, 20, 3)], np.uint16)
        codes = np.array([[[kinds[i] % 3, 3 + kinds[i] // 3], rng.integers(7, 12, 2)]], np.uint16)
        records.append(Record(f"{i}", i, is_held(f"{i}", 0.2), (caption,), codes))
    entry = write_shard(folder / "shards" / "a.safetensors", records, np.uint16, (2, 2))
    source = {"name": "a", "shards": [entry | {"problems": []}]}
    write_json(folder / "manifest.json", {"version": 1, "complete": True, "grid": [2, 2], "held": 0.2, "sources": [source]})
    return Dataset(folder)


def matcher(data, sharing="all", weight=1.0):
    contrast = ContrastConfig(weight, layer=2)
    shape = ModelConfig(
        vocab=20, layers=2, width=32, heads=2, rows=2, columns=2, codes=12, patch=1, sharing=sharing, contrast=contrast
    )
    mixture = Mixture(data, MixtureConfig(routes=("t2v", "v2t"), positions=900), 0, 0)
    return RouteTask(Model(shape, seed=1), mixture, np.ones(20, np.int64))


@pytest.mark.parametrize("sharing", ["all", "none", "cross"])
def test_planted_pairs_are_found_and_others_are_not(sharing, tmp_path):
    """About 50 held-out items are of 12 kinds, so whoever knows the kind, and no more, nearly always has it among ten."""
    found = {}
    for planted in (True, False):
        task = matcher(told(tmp_path / f"{planted}", planted), sharing)
        before = evaluate.retrieval(task.model, task.mixture)["a"]
        optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-2)
        for step in range(25):
            loss, log = task.loss(task.batch(step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        after = evaluate.retrieval(task.model, task.mixture)["a"]
        assert "contrast" in log and task.model.sharpness.item() != 1
        found[planted] = before, after
    (before, after), (_, null) = found[True], found[False]
    assert after["n"] > 30 and after["layer"] == 2 and after["chance"]["r10"] == pytest.approx(10 / after["n"])
    for way in ("text_to_frames", "frames_to_text"):
        assert after[way]["r10"] > 0.85 and after[way]["r1"] > 3 * after["chance"]["r1"]
        # Four standard errors of a share p = 10 / n of n: about one false alarm in 15,000.
        p, n = null["chance"]["r10"], null["n"]
        assert abs(null[way]["r10"] - p) < 4 * (p * (1 - p) / n) ** 0.5
        assert before[way]["r10"] < 0.6 < after[way]["r10"]
    assert "frames by their text" in evaluate.retrieval_table({"a": after})


def test_ties_find_by_chance_only():
    """States that are all alike, whose right answers stand first: k of n, not all."""
    for k in (1, 5, 10):
        assert evaluate.recall(np.zeros((20, 20)), k).mean() == pytest.approx(k / 20)
        assert evaluate.recall(np.zeros((4, 4)), k).mean() == pytest.approx(min(1, k / 4))
    assert evaluate.recall(np.eye(20), 1).all() and not evaluate.recall(-np.eye(20), 10).any()
    with pytest.raises(ValueError, match="not numbers"):
        evaluate.recall(np.full((2, 2), np.nan), 1)


@pytest.mark.parametrize("sharing", ["all", "attention", "none", "cross"])
def test_what_is_pooled_saw_nothing_else(sharing, tmp_path):
    """Texts and clips in one batch have the states that each has alone: no neighbour, no padding, no counterpart."""
    rng = np.random.default_rng(0)
    model = matcher(told(tmp_path, True), sharing).model
    told_of = [
        (
            text([0, *rng.integers(1, 20, n), 0]),
            frames(rng.integers(0, 12, (n, 2, 2, 1))),
            frames([[[[n], [1]], [[2], [3]]]], True),
        )
        for n in (1, 2, 5)
    ]
    texts, clips = zip(*map(apart, told_of), strict=True)
    together = model.pooled(Batch.of(pack([*texts, *clips])))
    for row, sequence in zip(together, [*texts, *clips], strict=True):
        torch.testing.assert_close(row, model.pooled(Batch.of(pack([sequence])))[0], rtol=1e-5, atol=1e-5)


def test_the_contrast_is_infonce_and_equal_captions_are_no_negatives(tmp_path):
    model = matcher(told(tmp_path, True)).model
    captions, clip = ([0, 5, 0], [0, 6, 7, 0], [0, 5, 0]), lambda i: np.full((1, 2, 2, 1), i)
    sequences = [(text(c), frames(clip(i), True)) for i, c in enumerate(captions)]
    pairs = Pairs.of([*sequences, (text([0, 9, 0], True),), (frames(clip(1)), text(captions[1], True))], "cpu")
    same = [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
    assert pairs.same.tolist() == [[bool(v) for v in row] for row in same]
    sides = [side - side.mean(0) for side in model.pooled(pairs.batch).detach().chunk(2)]
    scores = torch.cosine_similarity(sides[0][:, None], sides[1], dim=-1) / 0.07
    costs = [-(way.softmax(1) * pairs.same).sum(1).log().mean() for way in (scores, scores.T)]
    torch.testing.assert_close(model.contrast(pairs.batch, pairs.same).detach(), sum(costs) / 2, rtol=1e-5, atol=1e-5)
    assert Pairs.of(sequences[:1], "cpu") is None


def test_without_a_weight_there_is_no_contrast(tmp_path):
    """Neither a weight, nor a position, nor a number to log; and the objective of the routes is untouched by it."""
    data = told(tmp_path, True)
    with_it, without = matcher(data), matcher(data, weight=0.0)
    assert set(with_it.model.state_dict()) - set(without.model.state_dict()) == {"sharpness"}
    batches = with_it.batch(3), without.batch(3)
    assert batches[1][2] is None and with_it.positions(batches[0])[0] > without.positions(batches[1])[0]
    (total, log), (plain, bare) = with_it.loss(batches[0]), without.loss(batches[1])
    contrast, whole = log.pop("contrast")
    assert log == bare and whole == 1 and total.item() == pytest.approx(plain.item() + contrast, rel=1e-6)
