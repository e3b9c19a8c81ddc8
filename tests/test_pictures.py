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


def test_whatever_a_model_writes_can_be_drawn():
    """Separators beside U+FFFD, which an untrained model writes, make the layout of text fail."""
    odd = [chr(c) for c in (*range(0x250), 0x2028, 0x2029, 0x202E, 0xFEFF, 0xFFFD, 0x1F600)]
    rows = [[f"a{''.join(odd[i : i + 8])}b"] for i in range(0, len(odd), 8)]
    rows += [[f"\ufffd{c}T"] for c in odd[:32]]
    pictures.sheet(rows, ("text",), "title")
