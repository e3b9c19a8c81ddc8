"""Imagining: shared prefixes change nothing, votes are what scoring by hand gives, the judge knows a real clip."""

import itertools
from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch

from quadrivium import evaluate
from quadrivium import sequence as seq
from quadrivium.ask import ask, credit, free, imagined, outcomes_told, tell, votes
from quadrivium.data.judge import clip_frames, film, judge_clip, placed
from quadrivium.data.machine import DEVICES, FINISHES, MachineSpec
from quadrivium.data.questions import make_questions
from quadrivium.data.sources import ReadOptions, frames_read
from quadrivium.data.world import FPS, WorldConfig, make_kinds, simulate
from quadrivium.errors import ConfigError
from quadrivium.generate import Engine, Sampling, choose, generate
from quadrivium.imagine import Imagining, _generators, imagine
from quadrivium.model import Model, ModelConfig
from quadrivium.text import TextTokenizer

SHAPE = dict(codes=30, rows=3, columns=2, patch=2, layers=2, width=32, heads=4, kv_heads=2, head_size=8, hidden=48)
WORLD = WorldConfig(seed=5, kinds=16, devices=("ramp", "seesaw"))
SHARINGS = ("all", "attention", "none", "cross")


def tiny(sharing="all", vocab=60):
    layers = {"layers": 4} if sharing == "cross" else {}  # so that an encoder and a decoder layer each follow another
    return Model(ModelConfig(**{**SHAPE, **layers}, vocab=vocab, sharing=sharing), seed=1).eval()


def openings(rng, lengths=(3, 7, 4, 7)):
    return [np.array([0, *rng.integers(1, 60, n), 0]) for n in lengths]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    "sharing, forget, tries",
    [*itertools.product(("none", "cross"), (False, True), (1, 3)), ("all", False, 3), ("attention", True, 1)],
)
def test_what_shares_a_prefix_is_what_each_imagines_alone(sharing, forget, tries, rng):
    """One batch of everything, one opening at a time, other company, another order: equal clips."""
    model, texts, sampling, how = tiny(sharing), openings(rng), Sampling(seed=3), {"forget": forget, "tries": tries}
    together = imagine(model, texts, 2, 3, sampling, **how)
    assert together.shape == (4, 3, 2, 3, 2, 4)
    for batch in (1, 2, 7):  # fewer at once than an opening has samples, or a clip tries, too
        assert np.array_equal(together, imagine(model, texts, 2, 3, sampling, batch=batch, **how))
    assert np.array_equal(together[::-1], imagine(model, texts[::-1], 2, 3, sampling, **how))
    assert np.array_equal(together[1, :2], imagine(model, texts[1:2], 2, 2, sampling, **how)[0])
    assert not np.array_equal(together[0, 0], together[0, 1])
    assert not np.array_equal(together, imagine(model, texts, 2, 3, Sampling(seed=4), **how))


@pytest.mark.parametrize("jointly", [False, True])
@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize("sharing", SHARINGS)
def test_a_clip_goes_on_from_the_try_off_which_the_words_are_read_best(sharing, forget, jointly, rng):
    """Twin: every try drawn by itself, priced as evaluation prices v2t, or t2v and v2t together, and the best gone on from."""
    model, (opening,), sampling = tiny(sharing), openings(rng, (6,)), Sampling(temperature=0.6)
    clip = imagine(model, [opening], 3, 1, sampling, forget=forget, tries=8, jointly=jointly)[0, 0]
    tries = []
    for generator in _generators(opening, [f"0.{t}" for t in range(8)], 0):
        with torch.no_grad():
            tries.append(Engine(model, [(seq.text(opening),)], 7).frames(1, Sampling(1.0, 1.0), [generator])[0])
    bits = evaluate.bits(model, [(seq.frames(frame), seq.text(opening, wanted=True)) for frame in tries])
    if jointly:
        both = bits + evaluate.bits(model, [(seq.text(opening), seq.frames(frame, wanted=True)) for frame in tries])
        assert (both.argmin() != bits.argmin()) or sharing == "cross"  # of whose tries both choose the same one
        bits = both
    assert len({frame.tobytes() for frame in tries}) == 8 and np.ptp(bits) > 0.01
    best = tries[int(np.argmin(bits))]
    given = (seq.frames(best),) if forget else (seq.text(opening), seq.frames(best))
    with torch.no_grad():
        later = Engine(model, [given], 14).frames(2, sampling, _generators(opening, range(1), 0))[0]
    assert np.array_equal(clip, np.concatenate([best, later]))
    assert np.array_equal(best, imagine(model, [opening], 1, 1, sampling, tries=8, jointly=jointly)[0, 0])
    surest = [imagine(model, [opening], 3, 1, Sampling(temperature=0), forget=forget, tries=n) for n in (1, 8)]
    assert np.array_equal(*surest)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_imagining_is_the_route_t2v(sharing, rng):
    model, (opening,), sampling = tiny(sharing), openings(rng, (6,)), Sampling(temperature=0.8)
    clips = imagine(model, [opening], 2, 3, sampling)[0]
    for j, generator in enumerate(_generators(opening, range(3), 0)):
        engine = Engine(model, [(seq.text(opening),)], 14)
        with torch.no_grad():
            assert np.array_equal(engine.frames(2, sampling, [generator])[0], clips[j])


@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize("sharing", SHARINGS)
def test_later_frames_follow_the_words_unless_they_are_forgotten(sharing, forget, rng):
    model, (opening,), surest = tiny(sharing), openings(rng, (6,)), Sampling(temperature=0)
    clip = imagine(model, [opening], 3, 1, surest, forget=forget)[0, 0]
    given = (seq.frames(clip[:1]),) if forget else (seq.text(opening), seq.frames(clip[:1]))
    with torch.no_grad():
        assert np.array_equal(Engine(model, [given], 14).frames(2, surest, [torch.Generator()])[0], clip[1:])


def test_a_model_without_frames_imagines_nothing(rng):
    with pytest.raises(ValueError, match="without frames"):
        imagine(Model(ModelConfig(layers=1, width=16, heads=1, vocab=60)), openings(rng), 2)
    for wrong in ({"samples": 0}, {"tries": 0}, {"frames": -1}, {"top_p": 0.0}, {"batch": 0}):
        with pytest.raises(ValueError):
            Imagining(**wrong)


@pytest.fixture(scope="module")
def asked():
    """Questions, a tokenizer and an untrained model."""
    questions = make_questions(WORLD, "both", each=1)[::3]
    text = TextTokenizer.train([t for q in questions for t in (*q.texts, q.opening)], 400)
    return questions, text, tiny(vocab=text.size)


def test_votes_are_those_of_scoring_by_hand(asked):
    questions, text, model = asked
    few = questions[:4]
    clips = imagined(model, text, few, Imagining(samples=3, frames=2, seed=1))
    cast = votes(model, text, few, clips)
    assert cast.shape == (4, 3) and np.allclose(cast.sum(1), 3)
    for q, row, count in zip(few, clips, cast, strict=True):
        won = Counter()
        for clip in row:
            told = [[(seq.frames(clip), seq.text(text.document(t), True)) for t in wordings] for wordings in q.sights]
            likelihood = [np.logaddexp2.reduce(-evaluate.bits(model, wordings)) for wordings in told]
            won[int(np.argmax(likelihood))] += 1
        assert [won[k] for k in range(3)] == count.tolist()
    results = ask(model, text, few, clips=clips)
    assert results["all"]["accuracy"] == pytest.approx(credit(cast, np.array([q.answer for q in few])).mean())
    assert np.allclose(results["votes"], cast, atol=1e-4) and 1 / 3 <= results["all"]["agreement"] <= 1


def test_ties_share_in_a_vote_and_in_the_count(asked):
    """A model of equal weights everywhere and options of equal length: every option ties, and chance is what is left."""
    questions, text, _ = asked
    model = tiny(vocab=text.size)
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    even = [replace(q, beginning="a", sights=(("b", "e"), ("c", "f"), ("d", "g"))) for q in questions[:2]]
    cast = votes(model, text, even, np.zeros((2, 4, 1, 3, 2, 4), int))
    assert np.allclose(cast, 4 / 3) and np.allclose(credit(cast, np.array([0, 2])), 1 / 3)
    with pytest.raises(ValueError, match="rows of clips"):
        votes(model, text, even, np.zeros((1, 4, 1, 3, 2, 4), int))


def test_free_answers_are_read_and_counted(asked, monkeypatch):
    questions, text, model = asked
    kinds = make_kinds(WORLD)
    told = [[*q.options[q.answer][:2], q.options[0][0], "Nothing."] for q in questions]
    counts = outcomes_told(questions, told, kinds)
    assert (counts.sum(1) == 4).all() and (counts[:, 3] == 1).all()
    assert (counts[np.arange(len(questions)), [q.answer for q in questions]] >= 2).all()
    monkeypatch.setattr("quadrivium.ask.tell", lambda *_: told)
    results = free(model, text, questions, kinds)
    assert results["all"]["accuracy"] == 1 and results["all"]["unparsed"] == 0.25


def test_own_words_end_at_a_blank_line(asked, monkeypatch):
    questions, text, model = asked
    told, more = (forms[0] for forms in questions[0].options[:2])
    made = text.encode(f" {told}\n\n{more}")
    monkeypatch.setattr("quadrivium.ask.generate", lambda model, given, *_, **__: [made] * len(given))
    assert tell(model, text, questions[:2], samples=2) == [[told] * 2] * 2


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_draws_are_as_frequent_as_they_are_likely(top_p):
    """Evenly spread draws give every id its share of what is not cut, and the ends of [0, 1) never one that cannot be."""
    logits = torch.tensor([-torch.inf, 1.0, 3.0, -torch.inf, 2.0, 0.0, -torch.inf])
    likely, order = logits.softmax(0), [2, 4, 1, 5]  # 0.64, 0.24, 0.09, 0.03
    kept = order if top_p == 1 else order[:2]
    want = torch.zeros(7).index_copy(0, torch.tensor(kept), likely[kept] / likely[kept].sum())
    draw = (torch.arange(20_000) + 0.5) / 20_000
    drawn = choose(logits.expand(20_000, 7), Sampling(top_p=top_p), draw)
    assert torch.allclose(drawn.bincount(minlength=7) / 20_000, want, atol=2e-4)
    ends = torch.tensor([0.0, 1 - 2**-24, 1.0])
    assert set(choose(logits.expand(3, 7), Sampling(top_p=top_p), ends).tolist()) <= set(kept)


def test_ids_that_are_as_likely_are_drawn_as_often():
    """0.8 of all is held by four ids of one probability, and one of them is cut; what is less likely is never drawn."""
    logits = torch.tensor([0.05, 0.2, 0.05, 0.2, 0.05, 0.2, 0.05, 0.2]).log()
    drawn = choose(logits.expand(9000, 8), Sampling(top_p=0.55), (torch.arange(9000) + 0.5) / 9000)
    assert drawn.bincount(minlength=8).tolist() == [0, 3000, 0, 3000, 0, 3000, 0, 0]


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_a_draw_falls_where_it_does_on_sorted_ids(temperature, rng):
    """The definition: ids sorted by probability, the others cut, and the draw's place on the running sum."""
    logits = torch.from_numpy(rng.normal(size=(200, 50)).astype(np.float32)) * 3
    draw = torch.from_numpy(rng.random(200, dtype=np.float32))
    for top_p in (0.05, 0.6, 0.95, 0.9999999):
        drawn = choose(logits, Sampling(temperature=temperature, top_p=top_p), draw)
        ranked, ids = (logits / temperature).softmax(-1).sort(dim=-1, descending=True)
        kept = ranked * (ranked.cumsum(-1) - ranked < top_p)
        at = (kept.cumsum(-1) > draw[:, None] * kept.sum(-1, keepdim=True)).int().argmax(-1, keepdim=True)
        assert (drawn == ids.gather(1, at).squeeze(1)).float().mean() > 0.99  # sums round otherwise now and then


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_text_ends_before_its_least_length(temperature, rng, monkeypatch):
    """A model that always wants to end does so as soon as it may."""
    model, given = tiny(), [(seq.text([0, *rng.integers(1, 60, n)]),) for n in (3, 8, 2)]
    plain = model.text_logits
    monkeypatch.setattr(model, "text_logits", lambda hidden: plain(hidden) + 100 * torch.eye(60)[0])
    for least in (0, 1, 4):
        made = generate(model, given, "text", 0, sampling=Sampling(temperature, max_ids=9, min_ids=least))
        assert [len(ids) for ids in made] == [least] * 3
    with pytest.raises(ValueError, match="min_ids"):
        Sampling(max_ids=3, min_ids=4)


def test_an_untrained_model_tells_nothing_and_is_wrong(asked):
    questions, text, model = asked
    clips = np.zeros((3, 2, 2, 3, 2, 4), int)
    for seen in (None, clips):
        results = free(model, text, questions[:3], make_kinds(WORLD), seen, sampling=Sampling(max_ids=6))
        assert results["all"]["accuracy"] == 0 and results["all"]["unparsed"] == 1


def test_the_frames_read_are_those_of_the_reader():
    for fps, most, want in ((8.0, 8, 8), (4.0, 8, 4), (3.0, 8, 3), (8.0, 5, 5), (20.0, 8, 8)):
        options = ReadOptions(fps=fps, clip_frames=most)
        assert clip_frames(WORLD, options) == want
        clip = film(WORLD, MachineSpec("ramp", 0, 1), options)
        assert len(clip) == want
        drawn = simulate(WORLD, MachineSpec("ramp", 0, 1)).frames[frames_read(WORLD.frames, FPS, options)]
        assert np.abs(clip.astype(int) - drawn).mean() < 2


@pytest.mark.parametrize("device", DEVICES)
def test_the_judge_knows_what_a_real_clip_shows(device):
    """Clips of all pairs of masses, any placing, finish and side; of 320 more, 3 were mistaken: dominoes that barely lean."""
    config, options, rng = WorldConfig(size=32), ReadOptions(size=32, fps=4.0), Random(device)
    kinds, right, n = make_kinds(config), 0, 9
    for k in range(n):
        level = [[i for i, kind in enumerate(kinds) if kind.level == lv] for lv in (k % 3, k // 3 % 3)]
        first = rng.choice(level[0])
        second = rng.choice([i for i in level[1] if i != first])
        jitter = (rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(-1, 1))
        spec = MachineSpec(device, first, second, rng.choice(FINISHES[device]), jitter, rng.random() < 0.5)
        right += judge_clip(config, spec, film(config, spec, options), options) == simulate(config, spec, draw=False).outcome
    assert right >= n - 1
    with pytest.raises(ConfigError, match="one frame"):
        judge_clip(config, spec, film(config, spec, replace(options, clip_frames=1)), options)


@pytest.mark.parametrize("device", DEVICES)
def test_exchanged_pieces_are_told_from_placed_ones(device):
    """Real clips, with the small accidents of placing that the judge does not know of."""
    config, options = WorldConfig(size=32), ReadOptions(size=32, fps=4.0)
    for k in range(6):
        spec = MachineSpec(device, k, 2 * k + 1, jitter=(0.7, -0.7, 0.7), mirror=k % 2 == 0)
        clip = film(config, spec, options)
        assert placed(config, spec, clip)
        assert not placed(config, replace(spec, first=spec.second, second=spec.first), clip)
    assert placed(config, replace(spec, second=spec.first), clip)  # two of a kind are never the other way round
