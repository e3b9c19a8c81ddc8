"""Questions about the world: balanced, answered by the simulator, scored with a strict margin."""

from collections import Counter
from dataclasses import replace
from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quadrivium import evaluate
from quadrivium import sequence as seq
from quadrivium.ask import ask, credit, score, table
from quadrivium.data import questions
from quadrivium.data.language import LANGUAGES, outcome_words
from quadrivium.data.machine import DEVICES
from quadrivium.data.questions import TEMPLATES, alone, even_quotas, make_questions
from quadrivium.data.world import WorldConfig, facts, make_kinds, outcome_of
from quadrivium.errors import ConfigError
from quadrivium.model import Model, ModelConfig
from quadrivium.text import TextTokenizer

WORLD = WorldConfig(seed=5, mirror=True, kinds=40)
GROUPS = ("read", "seen", "both", "neither")


@pytest.fixture(scope="module")
def seen():
    return make_questions(WORLD, "seen", each=2)


def test_every_template_asks_for_every_outcome_equally_often(seen):
    assert len(TEMPLATES) >= 5
    for template, language, device in product(TEMPLATES, LANGUAGES, DEVICES):
        part = [q for q in seen if (q.template, q.language, q.device) == (template, language, device)]
        assert Counter(q.answer for q in part) == dict.fromkeys(range(3), 2)
    assert all(len(q.options) == 3 for q in seen)


def test_of_many_kinds_a_sample_of_pairs_is_asked_about(monkeypatch):
    every = facts(WORLD, "seen")
    assert facts(WORLD, "seen", most=len(every)) == every, "where there are no more pairs, all of them"
    some = facts(WORLD, "seen", most=30)
    assert len(some) == 30 * len(WORLD.devices) and set(some) < set(every) and some == facts(WORLD, "seen", most=30)
    monkeypatch.setattr(questions, "PAIRS", 30)
    asked = {(q.device, q.first, q.second) for q in make_questions(WORLD, "seen", each=2)}
    assert asked <= {(device, first, second) for first, second, device, _ in some}


@pytest.mark.parametrize("group", GROUPS)
def test_answers_are_what_the_simulator_does(group):
    kinds = make_kinds(WORLD)
    for q in make_questions(WORLD, group, each=1):
        assert {kinds[q.first].group, kinds[q.second].group} == {group}
        assert DEVICES[q.device][q.answer] == outcome_of(WORLD, q.first, q.second, q.device)


def test_beginnings_name_both_kinds_and_options_name_nobody_and_differ(seen):
    kinds = make_kinds(WORLD)
    for q in seen:
        assert len(set(q.texts)) == len(q.texts) == 9
        assert all(outcome_words(told) for forms in q.options for told in forms), q.options
        if q.language == "en":
            assert q.beginning.endswith(" ")
        names = [kind.name if q.language == "en" else kind.kana for kind in kinds]
        assert {names[q.first], names[q.second]} == {n for n in names if n in q.beginning.lower()}, q.beginning
        assert not any(n in told.lower() for n in names for forms in q.options for told in forms), q.options
        assert "{" not in "".join(q.texts)


def test_the_same_questions_every_time_and_others_for_another_seed(seen):
    assert make_questions(WORLD, "seen", each=2) == seen
    assert make_questions(replace(WORLD, seed=6), "seen", each=2) != seen


def test_one_kind_alone_does_not_tell_the_answer():
    """At the bound of three levels: a half where two masses are compared, 2/3 where a light first kind settles dominoes."""
    questions = make_questions(WORLD, "seen", each=4)
    for device in DEVICES:
        part = [q for q in questions if q.device == device]
        bound = 2 / 3 if device == "dominoes" else 1 / 2
        first, second = alone(part, "level")
        assert 1 / 3 < first < bound + 1e-9 and 1 / 3 < second < 0.5 + 1e-9
        assert max(alone(part)) < (0.8 if device == "dominoes" else 0.55)  # friction sets single kinds of a level apart there
        for template, language in product(TEMPLATES, LANGUAGES):
            few = [q for q in part if (q.template, q.language) == (template, language)]
            assert max(alone(few, "level")) < bound + 1 / len(few) + 1e-9


@given(st.sets(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=4), st.integers(0, 4))
def test_quotas_are_the_evenest_there_are(cells, total):
    def cost(drawn):
        return sum(n * n for place in (0, 1) for n in Counter(cell[place] for cell in drawn).values())

    quota = even_quotas(sorted(cells), total)
    assert sum(quota.values()) == total and set(quota) == cells
    best = min(map(cost, combinations_with_replacement(sorted(cells), total)))
    assert cost(list(Counter(quota).elements())) == best


def test_an_opening_shows_the_situation_and_tells_nothing(seen):
    kinds = make_kinds(WORLD)
    for q in seen:
        name = "name" if q.language == "en" else "kana"
        assert all(getattr(kinds[k], name).lower() in q.opening.lower() for k in (q.first, q.second))
        assert not outcome_words(q.opening) and q.spec.finish == ""
        assert (kinds[q.first].level, kinds[q.second].level) == q.levels
    assert {q.mirror for q in seen} == {False, True}


def test_a_group_without_an_outcome_is_named():
    with pytest.raises(ConfigError, match="neither kinds"):
        make_questions(WorldConfig(kinds=8), "neither")


@given(arrays(float, (4, 3), elements=st.floats(-5, 5)), arrays(int, 4, elements=st.integers(0, 2)))
def test_credit_sums_to_one_over_the_answers(scores, answers):
    total = sum(credit(scores, np.full(4, answer)) for answer in range(3))
    assert np.allclose(total, 1)
    right = credit(scores, answers)
    alone_on_top = (scores >= scores[np.arange(4), answers][:, None]).sum(1) == 1
    assert (right[alone_on_top] == 1).all()
    assert (right[~alone_on_top] <= 0.5).all()


def test_a_score_that_is_no_number_is_an_error():
    with pytest.raises(ValueError, match="1 questions"):
        credit(np.array([[0.0, np.nan, 1.0], [0.0, 1.0, 2.0]]), np.array([0, 1]))


def test_scores_are_the_bits_of_the_whole_text_and_ask_counts_them(seen):
    text = TextTokenizer.train([t for q in seen for t in q.texts], 512)
    model = Model(ModelConfig(layers=1, width=32, heads=2, vocab=text.size, codes=0)).eval()
    few = seen[::29]
    scores = score(model, text, few)
    assert scores.shape == (len(few), 3)
    bits = evaluate.bits(model, [(seq.text(text.document(told), wanted=True),) for told in few[3].texts]).reshape(3, 3)
    together = np.log2(np.exp2(-bits).sum(1))  # an outcome is as likely as its wordings together
    np.testing.assert_allclose(scores[3] - scores[3, 0], together - together[0], rtol=1e-5, atol=1e-4)
    results = ask(model, text, few)
    expected = credit(scores, np.array([q.answer for q in few])).mean()
    assert results["all"]["accuracy"] == pytest.approx(expected)
    assert results["all"]["n"] == len(few) == sum(row["n"] for name, row in results.items() if name.startswith("device"))
    assert results["all"]["chance"] == pytest.approx(1 / 3)
    assert "seen" in table({"seen": {"direct": results}})
