"""Pictures for people: what no font can draw is said, not drawn as boxes."""

import numpy as np

from quadrivium import pictures


def test_letters_that_no_font_has_are_named_and_others_are_left(monkeypatch):
    monkeypatch.setattr(pictures, "_FONTS", ())
    assert "no font" in pictures.legible("坂の上") and pictures.legible("a ramp, naïve") == "a ramp, naïve"
    monkeypatch.setattr(pictures, "_FONTS", (__file__,))  # anything that is there counts as a font
    assert pictures.legible("坂の上") == "坂の上"


def test_a_sheet_holds_texts_frames_and_gaps(monkeypatch):
    monkeypatch.setattr(pictures, "_FONTS", ())
    image = np.asarray(
        pictures.sheet([["坂の上", None, np.tile(np.uint8((7, 200, 90)), (2, 8, 8, 1))]], ("a", "b", "c"), "title", scale=2)
    )
    assert (image == (7, 200, 90)).all(-1).sum() == 2 * 16 * 16


def test_what_a_model_that_has_learnt_little_writes_can_be_drawn():
    """Any bytes, read as text: a separator beside a letter that is not Latin is more than Pillow's layout takes."""
    for text in ("x\x1c�", "\x1d坂", "\r玉", "\u2028a\u202e", "".join(map(chr, range(300)))):
        assert pictures.sheet([[text]], ("generated",), "title").width > 0
