"""The measure measured: simulated experiments with a planted effect, a planted null, and gains that are not vision's."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadrivium.statistics import (
    CAPTION,
    COMPUTE,
    CONTROLS,
    NONE,
    VISUAL,
    Curve,
    detectable,
    effective_text,
    fit_ladder,
    holm,
    interval,
    paired,
    power,
    verdict,
    worth,
)

ARMS = ("text", "text-equal", "captions", "four", "shuffled", "noise")
NOISE = 0.01  # of one arm on one seed; a paired difference scatters by sqrt(2) of it
SD = NOISE * math.sqrt(2)


def experiment(rng, gains, seeds=5):
    """Costs of arms over seeds: what seeds share, what each run draws for itself, and what was planted."""
    shared = rng.normal(1.8, 0.05, seeds)
    return {arm: dict(enumerate(shared + rng.normal(0, NOISE, seeds) - gains.get(arm, 0.0))) for arm in ARMS}


def called(gains, n=600, seeds=5):
    """Words -> share of ``n`` simulated experiments."""
    rng = np.random.default_rng(0)
    words = [verdict(experiment(rng, gains, seeds)).words for _ in range(n)]
    return {w: words.count(w) / n for w in words}


def test_t_intervals_cover_at_their_level():
    """2,000 experiments of five seeds: 95 % intervals hold the truth in 95 % of them; outside 93.0 to 97.0 % once in 40,000."""
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        mean, half = interval(draw.normal(0.4, 0.1, 5))
        held += abs(mean - 0.4) <= half
    assert 0.93 < held / 2000 < 0.97
    assert math.isnan(interval([0.5])[1])


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_a_planted_effect_is_found_at_the_computed_power(seeds):
    """The smallest detectable effect is found in 80 % of 1,500 experiments; outside 76.0 to 84.0 % once in 9,000."""
    effect, rng = detectable(SD, seeds), np.random.default_rng(seeds)
    assert power(effect, SD, seeds) == pytest.approx(0.8)
    found = 0
    for _ in range(1500):
        costs = experiment(rng, {"four": effect}, seeds)
        found += paired(costs["text"], costs["four"]).above
    assert 0.76 < found / 1500 < 0.84


def test_more_seeds_detect_less():
    sizes = [detectable(1.0, n) for n in (2, 3, 5, 8, 20)]
    assert sizes == sorted(sizes, reverse=True)
    assert math.isnan(detectable(1.0, 1)) and detectable(0.0, 5) == 0.0


def test_a_visual_profit_is_called_that():
    assert called({"four": 5 * SD}).get(VISUAL, 0) > 0.97


def test_a_null_is_called_null_at_the_stated_error_rate():
    """Any profit at all is claimed in at most 2.5 % of 1,000 experiments without one; above 4.0 % once in 500."""
    words = called({}, n=1000)
    assert 1 - words[NONE] < 0.04
    assert words.get(VISUAL, 0) < 0.01


def test_a_gain_of_captions_alone_is_called_caption_profit():
    """Shuffled and noise frames leave the captions as they are, so they gain too."""
    words = called({arm: 5 * SD for arm in ("four", "captions", "shuffled", "noise")})
    assert words.get(CAPTION, 0) > 0.94 and words.get(VISUAL, 0) < 0.02


def test_a_gain_of_compute_alone_is_called_that():
    words = called({arm: 5 * SD for arm in ARMS if arm != "text"})
    assert words.get(COMPUTE, 0) > 0.94 and words.get(VISUAL, 0) < 0.02


def test_what_adds_little_to_captions_is_called_either_way():
    """No verdict is an equality: a true gain of one standard deviation over captions is missed in more than half of the experiments."""
    words = called({"four": 6 * SD, "captions": 5 * SD}, n=800)
    assert 0.5 < words[CAPTION] < 0.66 and words[CAPTION] + words[VISUAL] > 0.98


def test_a_gain_whose_reason_cannot_be_told_is_none_detected():
    costs = {arm: {s: 2.0 + 0.001 * s for s in range(5)} for arm in ARMS}
    costs["four"] = {s: 1.9 + 0.002 * s for s in range(5)}
    costs["noise"] = {0: 1.5, 1: 2.3, 2: 1.6, 3: 2.2, 4: 1.95}  # scatters so much that it is told apart from neither
    found = verdict(costs)
    assert found.words == NONE and "noise can be told apart from neither" in found.why
    costs["noise"] = {s: 2.0 for s in range(4, 9)}  # of one common seed with the others
    assert verdict(costs).words == "undecided"


@pytest.mark.parametrize("arms", [("shuffled",), ("noise",), ("shuffled", "noise")])
def test_a_gain_of_any_frames_at_all_is_called_regularisation(arms):
    words = called({arm: 5 * SD for arm in ("four", *arms)})
    assert words.get(COMPUTE, 0) > 0.94 and words.get(VISUAL, 0) < 0.04


def test_harm_is_said():
    found = verdict(experiment(np.random.default_rng(0), {"four": -0.2}))
    assert (found.words, found.why) == (NONE, f"all routes are shown to be worse than text, {', '.join(CONTROLS)}")
    found = verdict(experiment(np.random.default_rng(0), {"captions": 0.2}))  # a control may gain what pictures do not
    assert found.words == NONE and "shown to be worse than" in found.why and "captions" in found.why


def test_a_verdict_waits_for_its_arms_and_seeds():
    costs = experiment(np.random.default_rng(0), {"four": 0.2})
    rest = {arm: c for arm, c in costs.items() if arm != "noise"}
    assert verdict(rest).words == "undecided" and "noise" in verdict(rest).why
    assert verdict(rest, controls=("text-equal", "captions", "shuffled")).words == VISUAL
    one = {arm: {0: c[0]} for arm, c in costs.items()}
    assert verdict(one).words == "undecided" and math.isnan(verdict(one).detectable)
    assert verdict({**costs, "noise": {9: 1.0}}).words == "undecided"


def test_differences_are_paired_by_seed():
    """Whatever seeds share cancels; seeds that only one arm has do not count."""
    shared = np.random.default_rng(1).normal(0, 100, 5)
    a = {s: float(shared[s] + 0.1 + 0.001 * s) for s in range(5)}
    b = {s: float(shared[s]) for s in range(4)}
    found = paired(a, b)
    assert found.n == 4 and found.mean == pytest.approx(0.1015) and found.above
    with pytest.raises(ValueError, match="common seed"):
        paired({0: 1.0}, {1: 1.0})


@pytest.mark.parametrize(("seeds", "found"), [(3, False), (5, True)])
def test_one_question_more_on_every_seed_is_no_certainty(seeds, found):
    """Shares of few questions come in steps, so that seeds that agree to the digit still leave room."""
    text, four = ({s: right / 12 for s in range(seeds)} for right in (5, 4))
    judged = paired(text, four, grain=1 / 12)
    assert judged.above == found and judged.detectable > 0.5 / 12 and judged.low < judged.mean < judged.high and judged.p > 1e-3
    assert paired(text, text, grain=1 / 12).detectable > 0  # that nothing differed does not mean that nothing could have


def test_holm_matches_its_definition():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert math.isnan(holm({"a": math.nan, "b": 0.02})["a"]) and holm({"a": math.nan, "b": 0.02})["b"] == 0.02


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_is_never_bolder(p):
    adjusted = holm(p)
    assert all(p[k] <= adjusted[k] <= 1 for k in p)
    names = sorted(p, key=p.get)
    assert [adjusted[k] for k in names] == sorted(adjusted.values())


def test_holm_holds_the_chance_of_one_false_alarm_among_all():
    """Eight comparisons without an effect, 800 times: one or more below 0.05 in at most 5 %; above 7.5 % once in 800."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(800):
        p = {str(i): paired(dict(enumerate(rng.normal(0, 1, 5))), dict.fromkeys(range(5), 0.0)).p for i in range(8)}
        alarms += min(holm(p).values()) < 0.05
    assert alarms / 800 < 0.075


# --- the ladder ---

RUNGS = np.array([0.25, 0.5, 1.0, 2.0, 4.0]) * 1e6
TRUE = Curve(floor=1.1, scale=0.5, exponent=0.35, unit=1e6)


@given(st.floats(0, 3), st.floats(0.1, 3), st.floats(0.1, 1.5), st.floats(3e5, 3.5e6))
def test_a_ladder_without_noise_gives_back_what_was_planted(floor, scale, exponent, tokens):
    curve = Curve(floor, scale, exponent, 1e6)
    found = effective_text(RUNGS, curve(RUNGS)[None], curve([tokens]))
    assert found["tokens"] == pytest.approx(tokens, rel=0.01) and found["tokens_bound"] == ""
    assert math.isnan(found["low"])


def test_the_interval_of_effective_text_covers_at_its_level():
    """200 ladders of five seeds: the planted amount lies inside in 95 % of them; outside 90 to 99.5 % once in 400."""
    rng, held, planted = np.random.default_rng(3), 0, 1.5e6
    for _ in range(200):
        seeds = rng.normal(0, 0.05, (5, 1))
        costs = TRUE(RUNGS) + seeds + rng.normal(0, 0.004, (5, 5))
        target = TRUE(planted) + seeds[:, 0] + rng.normal(0, 0.004, 5)
        found = effective_text(RUNGS, costs, target, draws=500)
        held += found["low"] <= planted <= found["high"]
    assert 0.90 <= held / 200 <= 0.995


def test_nothing_is_extrapolated():
    for tokens, bound in ((5e7, "at least"), (1e3, "at most")):
        costs = TRUE(RUNGS) + np.array([[0.0], [0.001], [-0.001]])
        found = effective_text(RUNGS, costs, TRUE(tokens) + np.array([0.0, 0.001, -0.001]))
        end = RUNGS.max() if bound == "at least" else RUNGS.min()
        assert (found["tokens"], found["tokens_bound"]) == (end, bound)
        assert RUNGS.min() <= found["low"] <= found["high"] <= RUNGS.max()
    beyond = effective_text(RUNGS, TRUE(RUNGS)[None], np.array([TRUE.floor - 0.1]))  # no amount of text costs so little
    assert beyond["tokens_bound"] == "at least"


def test_a_ladder_that_does_not_fall_gives_no_rate():
    """Where more text saves nothing, no amount of it stands for anything: an error, and never a bound that looks like a finding."""
    for costs in (np.full(5, 2.0), 2.0 + 0.01 * np.arange(5)):
        with pytest.raises(ValueError, match="saves nothing"):
            effective_text(RUNGS, costs[None], np.array([2.1]))
    rng = np.random.default_rng(0)  # falls in the mean by less than it scatters: drawn ladders that rise widen the interval
    costs = 2.0 - 0.001 * np.arange(5) + rng.normal(0, 0.01, (3, 1)) * np.arange(5)
    found = effective_text(RUNGS, costs - costs.mean(0) + 2.0 - 0.001 * np.arange(5), np.array([1.998, 1.9981, 1.9979]))
    assert (found["low_bound"], found["high_bound"]) == ("at most", "at least")


def test_what_a_frame_is_worth_is_said_with_its_bounds():
    ladder = {"tokens_per_frame": {"tokens": -1.0, "low": -2.0, "high": 5.0},
              "effective": {"tokens_bound": "", "low_bound": "at most", "high_bound": "at least"}}  # fmt: skip
    assert worth(ladder) == "a frame is worth -1.00 ids of text (95 % interval at most -2.00 to at least +5.00)"
    for unknown in (math.nan, None):  # from memory, and from a file
        ladder["tokens_per_frame"] |= {"low": unknown, "high": unknown}
        assert worth(ladder) == "a frame is worth -1.00 ids of text (one seed, no interval)"


def test_a_ladder_needs_three_rungs():
    with pytest.raises(ValueError, match="three rungs"):
        fit_ladder(RUNGS[:2], TRUE(RUNGS[:2]))
