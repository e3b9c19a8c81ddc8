"""What may be said, and what may not: openings tell nothing, accounts tell something, every form fills."""

from random import Random

import pytest

from quadrivium.data import language as words
from quadrivium.data.machine import DEVICES, FINISHES, Kind, MachineSpec, Scene
from quadrivium.data.machine import run as run_machine

A = Kind("zopeka", "ゾペカ", "red", "banded", "round", 1.0, 0.95, 0.18, 0, "both")
B = Kind("mirudo", "ミルド", "blue", "plain", "square", 3.0, 0.95, 0.18, 1, "both")
SPECS = [
    MachineSpec(device, 0, 1, finish, mirror=mirror)
    for device in DEVICES
    for finish in FINISHES[device]
    for mirror in (False, True)
]


def every(forms: object) -> list[str]:
    """All forms in a nested table, with all their wordings written out."""
    if isinstance(forms, dict):
        return [form for value in forms.values() for form in every(value)]
    if isinstance(forms, tuple):
        return [form for value in forms for form in every(value)]
    assert isinstance(forms, str)
    match = words._CHOICE.search(forms)
    if match is None:
        return [forms]
    return [f for choice in match.group(1).split("|") for f in every(forms[: match.start()] + choice + forms[match.end() :])]


@pytest.mark.parametrize("tongue", words.LANGUAGES)
def test_openings_and_portraits_tell_no_outcome(tongue: words.Language) -> None:
    quiet = [words.OPENINGS, words.FINISH_OPENINGS, words.LOOK_SENTENCES, words.PORTRAITS, words.PAIRS]
    for table in quiet:
        for form in every(table[tongue]):
            assert not words.outcome_words(form), form
    patterns = words._PATTERN_EN if tongue == "en" else words._PATTERN_JA
    for phrase in every(patterns):
        assert not words.outcome_words(phrase), phrase


@pytest.mark.parametrize("tongue", words.LANGUAGES)
def test_every_form_about_what_happens_is_seen_by_the_audit(tongue: words.Language) -> None:
    for table in (words.OUTCOMES, words.FINISH_ACCOUNTS):
        for form in every(table[tongue]):
            assert words.OUTCOME_WORDS[tongue].search(form), form


@pytest.mark.parametrize("tongue", words.LANGUAGES)
def test_what_leads_up_to_an_outcome_tells_none_and_hides_none(tongue: words.Language) -> None:
    rng = Random(0)
    for spec in SPECS:
        for template in words.TEMPLATES:
            for _ in range(20):
                lead = words.question(template, spec, A, B, rng, tongue)
                assert not words.outcome_words(words.without_leads(lead)), lead
                for what in DEVICES[spec.device]:
                    told = lead + words.outcome(spec.device, what, A, B, rng, tongue, spec.mirror)
                    assert words.outcome_words(words.without_leads(told)), told
    for told in ("Down slides the heavy zopeka, and hits the mirudo.", "重いゾペカが坂を滑りおりてミルドにぶつかる。"):
        assert words.outcome_words(words.without_leads(told)), told


@pytest.mark.parametrize("tongue", words.LANGUAGES)
def test_tables_cover_every_device_outcome_and_finish(tongue: words.Language) -> None:
    for device, outcomes in DEVICES.items():
        assert set(words.OUTCOMES[tongue][device]) == set(outcomes)
        for table in (words.OPENINGS, words.ACTIONS, words.KNOWLEDGE):
            assert len(table[tongue][device]) >= 3
    finishes = {finish for options in FINISHES.values() for finish in options if finish}
    assert set(words.FINISH_OPENINGS[tongue]) == finishes
    assert set(words.FINISH_ACCOUNTS[tongue]) == {(finish, happened) for finish in finishes for happened in (True, False)}
    assert words.form_count(tongue) >= 40


@pytest.mark.parametrize("tongue", words.LANGUAGES)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.device}-{spec.finish or 'end'}-{spec.mirror}")
def test_all_registers_fill_without_leftovers(spec: MachineSpec, tongue: words.Language) -> None:
    for outcome in DEVICES[spec.device]:
        for happened in (False, True):
            scene = Scene(spec, outcome, (), happened, happened, None)
            for trial in range(12):
                rng = Random(f"{outcome}{trial}")
                texts = [
                    words.opening(spec, A, B, rng, tongue),
                    words.account(scene, A, B, rng, tongue),
                    words.knowledge(spec.device, outcome, A, B, rng, tongue, spec.mirror),
                    words.portrait(A, None, rng, tongue),
                    words.portrait(A, B, rng, tongue),
                ]
                assert not words.outcome_words(texts[0])
                assert words.outcome_words(texts[1])
                assert words.outcome_words(texts[2])
                for text in texts:
                    assert not set("{}[|]") & set(text), text
                    assert text[-1] in ('.!?")' if tongue == "en" else "。」？"), text
                    if tongue == "en":
                        assert text[0].isupper() or text[0] == "(", text
                        assert all(ord(c) < 128 for c in text), text
                    else:
                        assert not any("a" <= c.lower() <= "z" for c in text), text


def test_both_sides_are_named_as_drawn() -> None:
    for tongue, left in (("en", "left"), ("ja", "左")):
        seesaw = [MachineSpec("seesaw", 0, 1, mirror=mirror) for mirror in (False, True)]
        plain, turned = (words.opening(spec, A, B, Random(3), tongue) for spec in seesaw)
        assert plain != turned
        assert left in plain


def test_names_are_distinct_words() -> None:
    names = words.invent_names(Random(0), 160)
    assert len({latin for latin, _ in names}) == len({kana for _, kana in names}) == 160
    for latin, kana in names:
        assert latin.isascii()
        assert latin.isalpha()
        assert len(kana) == 3
        assert not words.outcome_words(latin + " " + kana)
    everything = [latin for latin, _ in names]
    assert not any(a != b and a in b for a in everything for b in everything)
    assert not any(
        "domino" in pair or "ドミノ" in pair for pair in words.invent_names(Random(2099), 64)
    )  # drawn once, and a device


def test_accounts_tell_what_the_simulation_did() -> None:
    scene = run_machine(MachineSpec("seesaw", 0, 1), (A, B), draw=False)
    assert scene.outcome == "second"
    text = words.account(scene, A, B, Random(1), "en")
    assert any(words._fill(form, Random(0), "en", A, B, False) in text for form in words.OUTCOMES["en"]["seesaw"]["second"])


def names(tongue: words.Language) -> tuple[str, str]:
    return (A.name, B.name) if tongue == "en" else (A.kana, B.kana)


@pytest.mark.parametrize("tongue", words.LANGUAGES)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.device}-{spec.finish or 'end'}-{spec.mirror}")
def test_every_telling_is_read_back_and_openings_tell_nothing(spec: MachineSpec, tongue: words.Language) -> None:
    for outcome in DEVICES[spec.device]:
        for trial in range(20):
            rng = Random(f"{outcome}{trial}")
            scene = Scene(spec, outcome, (), trial % 2 == 0, trial % 2 == 0, None)
            for text in (
                words.outcome(spec.device, outcome, A, B, rng, tongue, spec.mirror),
                words.account(scene, A, B, rng, tongue),
                words.knowledge(spec.device, outcome, A, B, rng, tongue, spec.mirror),
                words.outcome(spec.device, outcome, None, None, rng, tongue, spec.mirror),
                words.account(scene, A, B, rng, tongue, nameless=1.0),
                words.knowledge(spec.device, outcome, A, B, rng, tongue, spec.mirror, nameless=1.0),
            ):
                assert words.parse_outcome(text, spec.device, tongue, *names(tongue), spec.mirror) == outcome, text
            assert words.parse_outcome(words.opening(spec, A, B, rng, tongue), spec.device, tongue, *names(tongue)) is None


@pytest.mark.parametrize(
    "device, tongue, text, outcome",
    [
        ("ramp", "en", "the zopeka pushed it along", "push"),
        ("ramp", "en", "It bounced, after it had come to a stop.", None),  # two outcomes that exclude each other
        ("ramp", "ja", "ゾペカは跳ね返ってきた", "bounce"),
        ("seesaw", "en", "The mirudo slowly sinks.", "second"),
        ("seesaw", "en", "The kanato goes down and the rimoru goes up.", None),  # of other pieces
        ("seesaw", "ja", "ゾペカが下がった。", "first"),
        ("catapult", "en", "Nothing is told here.", None),
        ("table", "en", "Then the coil broke.", "break"),
        ("table", "en", "The table does not sink.", "bear"),
        ("dominoes", "ja", "ドミノは倒れなかった、一枚も倒れない。", "stand"),
        ("dominoes", "en", "", None),
    ],
)
def test_free_tellings(device: str, tongue: words.Language, text: str, outcome: str | None) -> None:
    assert words.parse_outcome(text, device, tongue, *names(tongue)) == outcome


def test_a_piece_called_by_the_other_name_is_not_meant() -> None:
    text = "The mirudo goes down and the zopeka goes up."
    assert words.parse_outcome(text, "seesaw", "en", "zopeka", "mirudo") == "second"
    assert words.parse_outcome(text, "seesaw", "en", "mirudo", "zopeka") == "first"
    assert words.parse_outcome(text, "seesaw", "en") is None
    assert words.parse_outcome("The zopeka bounces back from the mirudo.", "ramp", "en") == "bounce"


def test_pieces_called_by_their_places_are_told_apart() -> None:
    text = "The left piece goes down and the right piece goes up."
    assert words.parse_outcome(text, "seesaw", "en", "zopeka", "mirudo") == "first"
    assert words.parse_outcome(text, "seesaw", "en", "zopeka", "mirudo", mirror=True) == "second"
    assert words.parse_outcome("The right piece slowly sinks.", "seesaw", "en") == "second"
    assert words.parse_outcome("左の駒が下がった。", "seesaw", "ja", mirror=True) == "second"


def test_the_share_of_outcomes_that_name_nobody() -> None:
    told = [words.knowledge("ramp", "stop", A, B, Random(i), "en", nameless=0.5) for i in range(200)]
    unnamed = [text for text in told if "piece" in text]
    assert 70 < len(unnamed) < 130
    for text in told:
        assert A.name in text and B.name in text  # who meets is always said
        assert ("upper piece" in text) == (text.count(A.name) + text.count(B.name) == 2)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.device}-{spec.finish or 'end'}-{spec.mirror}")
def test_an_account_whose_outcome_names_nobody_has_named_both_before(spec: MachineSpec) -> None:
    scene = Scene(spec, next(iter(DEVICES[spec.device])), (), True, True, None)
    for tongue in words.LANGUAGES:
        for trial in range(40):
            told = words.account(scene, A, B, Random(trial), tongue, nameless=1.0).lower()
            assert all(name in told for name in names(tongue)), told


def test_no_outcome_has_more_wordings_than_another():
    """What is read off a clip sums over wordings, so an outcome with more of them, or with a choice inside one, would be favoured."""
    for tongue in words.LANGUAGES:
        for device in words.OUTCOMES[tongue].values():
            assert {len(forms) for forms in device.values()} == {3}
            assert not any("[" in form for forms in device.values() for form in forms)
