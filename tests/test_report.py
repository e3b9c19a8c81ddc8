"""The page: from results.json alone, self-contained, the verdict first, nulls and one seed included."""

import json

import pytest

from quadrivium.errors import RunError
from quadrivium.report import render, write_report

ARM = {
    "says": "text & <frames>",
    "bits_per_byte": 1.8,
    "half": None,
    "seeds": {"0": 1.8},
    "epochs": 5.0,
    "positions": 9,
    "seconds": 2.0,
}
GAIN = {"mean": 0.1, "low": 0.05, "high": 0.15, "sd": 0.02, "p": 0.01, "n": 5, "detectable": 0.03, "holm": None}
TRANSFER = {
    "kind": "transfer",
    "primary": "four against all",
    "arms": {"text": ARM, "four": {**ARM, "half": 0.01}},
    "gains": {"text": GAIN, "noise": {**GAIN, "low": None, "high": None, "p": None, "detectable": None}},
    "verdict": {"words": "visual profit", "why": "", "detectable": 0.03, "sentence": "Visual profit. <b>"},
    "ladder": {
        "tokens": [1e5, 2e5, 4e5],
        "costs": [1.9, 1.8, 1.75],
        "four": 1.78,
        "read": 2000,
        "captions": 10,
        "frames": 50,
        "effective": {"tokens": 3e5, "tokens_bound": "", "low": 2e5, "low_bound": "", "high": 4e5, "high_bound": "at least",
                      "curve": {"floor": 1.7, "scale": 0.1, "exponent": 1.0, "unit": 2e5}, "n": 5},
        "tokens_per_frame": {"tokens": 3.0, "low": -1.0, "high": 5.0},
    },
    "routes": {"t2t": {"bits_per_byte": 1.8, "order0": 4.0}, "v2v": {"bits_per_frame": 90.0, "order0": 200.0}},
    "notes": ["Read their text more than four times: text."],
    "documents": [{"document": f"story {i}", "gain": 0.1 - i / 100} for i in range(20)],
    "samples": {"t2v": "iVBORw0KGgo="},
    "config": {"limit": 8},
    "versions": {"torch": "2"},
    "command": "quadrivium transfer mine --out there",
}  # fmt: skip
FACTS = {g: {"direct": {"accuracy": 0.5, "half": 0.1, "n": 5}} for g in ("read", "seen", "both", "neither")}
WORLD = {"chance": 1 / 3, "differences": [], "harm": [], "primary": "seen, direct", "arms": {"four": {"seeds": [0], "facts": FACTS, "seconds": 3.0,
         "bits": {"t2t": {"mean": 1.0, "half": None}}}}}  # fmt: skip


def test_a_page_is_written_from_the_file_alone_and_needs_nothing_else(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(TRANSFER))
    page = write_report(tmp_path).read_text()
    assert (
        page.count("src=") == page.count('src="data:image/png;base64,iVBORw0KGgo=') == 1
        and "href" not in page.replace('xlink:href="#', "")
        and "@import" not in page
    )
    assert page.index("Visual profit. &lt;b&gt;") < page.index("<section>")
    for words in (
        "−1.00",
        "at least +5.00",
        "story 0",
        "story 19",
        "quadrivium transfer mine",
        "text &amp; &lt;frames&gt;",
        "more than four times",
    ):
        assert words in page, words
    assert page.count("<svg") == 2 and not any(stand_in in page for stand_in in ("#010203", "#040506", "#070809"))


@pytest.mark.parametrize(
    "gain, half, words",
    [(0.2, 0.1, "Gain:"), (0.2, 0.3, "No difference detected"), (-0.2, 0.1, "Loss:"), (0.2, None, "one seed")],
)
def test_an_experiment_is_rendered_with_its_facts(gain, half, words):
    row = {"arm": "four", "base": "captions", "group": "seen", "primary": True, "difference": gain, "half": half, "n": 5}
    page = render(
        {
            **WORLD,
            "differences": [row],
            "harm": [{"arm": "distil", "base": "four", "difference": 0.01, "half": half, "n": 5, "harmless": False}],
        }
    )
    assert "distil minus four: +0.0100" in page and "not shown to be harmless" in page
    assert words in page and "0.500 ± 0.100" in page and "0.333" in page and "± +" not in page  # a half width has no sign


def test_results_without_ladder_routes_or_intervals_render():
    bare = {**TRANSFER, "ladder": None, "routes": {}, "documents": [], "gains": {}}
    assert "<svg" not in render(bare)


@pytest.mark.parametrize("content", ["{}", '{"arms": 3}', "[]", "{", '{"kind": "transfer", "arms": {}}'])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(RunError) as error:
        write_report(tmp_path / "results.json")
    assert "\n" not in str(error.value)


def test_the_same_results_give_the_same_page():
    assert render(TRANSFER) == render(json.loads(json.dumps(TRANSFER)))
