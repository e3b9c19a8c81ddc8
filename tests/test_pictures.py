"""Pictures for people: what no font can draw is said. Text as pixels: nothing is lost on pages, which are read and told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadrivium import pictures
from quadrivium.data.mixture import Mixture, MixtureConfig, streams_of
from quadrivium.data.shards import Dataset
from quadrivium.errors import ConfigError, RunError
from quadrivium.inspect import routes_of
from quadrivium.model import Model, ModelConfig, cells
from quadrivium.pictures import LETTER, pages, render
from quadrivium.prepare import find, prepare
from quadrivium.sequence import route_of
from quadrivium.text import TextTokenizer
from quadrivium.train import RouteTask, TrainConfig
from tests.conftest import TINY

LATIN = st.text(st.characters(max_codepoint=0xFF), max_size=80)


def test_letters_that_no_font_has_are_named_and_others_are_left(monkeypatch):
    monkeypatch.setattr(pictures, "_FONTS", ())
    assert "no font" in pictures.legible("坂の上。") and pictures.legible("a ramp, naïve") == "a ramp, naïve"
    assert pictures.legible("a 赤い ball 坂") == "a [ja] ball [ja]"
    monkeypatch.setattr(pictures, "_FONTS", (__file__,))  # anything that is there counts as a font
    assert pictures.legible("坂の上") == "坂の上"


def test_a_sheet_holds_texts_frames_and_gaps(monkeypatch):
    monkeypatch.setattr(pictures, "_FONTS", ())
    image = np.asarray(
        pictures.sheet([["坂の上", None, np.tile(np.uint8((7, 200, 90)), (2, 8, 8, 1))]], ("a", "b", "c"), "title", scale=2)
    )
    assert (image == (7, 200, 90)).all(-1).sum() == 2 * 16 * 16


@settings(max_examples=60, deadline=None)
@given(LATIN, st.integers(12, 70))
def test_pages_joined_are_the_text(text, size):
    """And a page, or any run of pages, is cut in the same places again."""
    parts = pages(text, size)
    assert "".join(parts) == text and all(parts)
    assert pages("".join(parts[1:]), size) == parts[1:]
    assert render(text, size).shape == (len(parts), size, size, 3)


@pytest.mark.parametrize("text", ["W\x1f3玉p\x17%\r?", "8\x1e�?", "a\u2029玉\u2029\u202e"])
def test_nonsense_is_drawn_whatever_fonts_are_here(text):
    assert np.asarray(pictures.sheet([[text]], ("told",), "玉\x1d玉")).min() == 0


def test_a_page_is_what_its_letters_are():
    width, height = LETTER
    frame = render("ab\na", 64)[0]
    assert len(pages("x" * 50, 64)) == 1 and len(pages("x" * 51, 64)) == 2  # ten letters a line, five lines

    def at(row, column):
        return frame[row * height : (row + 1) * height, column * width : (column + 1) * width]

    assert np.array_equal(at(0, 0), at(1, 0)) and not np.array_equal(at(0, 0), at(0, 1))
    assert (at(0, 0) == 0).any() and (at(1, 1) == 255).all() and set(np.unique(frame)) == {0, 255}
    with pytest.raises(ValueError, match="no line"):
        pages("a", 8)


def test_letters_without_a_font_are_named(monkeypatch):
    monkeypatch.setattr(pictures, "_FONTS", ())
    pictures._letter.cache_clear()
    with pytest.raises(ValueError, match="玉"):
        render("a玉", 64)
    sans = Path("/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf")
    if sans.is_file():  # a font that has Greek and no Japanese
        monkeypatch.setattr(pictures, "_FONTS", (str(sans),))
        assert not np.array_equal(render("λ", 64), render("μ", 64))
        with pytest.raises(ValueError, match="玉"):
            render("玉", 64)
    pictures._letter.cache_clear()


@pytest.fixture(scope="module")
def drawn(folder, tmp_path_factory):
    """The folder of the other tests with its documents drawn; frames of 24 pixels hold two lines of four letters."""
    read = replace(TINY.read, size=24)
    config = replace(TINY, read=read, render=True, visual_train=TrainConfig(steps=5))
    return prepare([folder / "text"], tmp_path_factory.mktemp("drawn") / "data", config, progress=False)


def test_pages_are_read_and_told_where_it_is_asked_for(drawn, folder):
    source = next(s for s in drawn.sources if s.rendered)
    other = next(s for s in drawn.sources if not s.rendered)
    assert {s.source.name for s in streams_of(drawn, MixtureConfig(), held=False)} == {other.name}
    mixture = Mixture(drawn, MixtureConfig(rendered=True, positions=400), 0, seed=0, patch=2)
    assert {s.name for s in mixture.streams} == {f"t2t/{other.name}", f"v2t/{source.name}", f"v2v/{source.name}"}
    looked = {s.name: routes_of(s.items) for s in find([folder / "text"], replace(TINY, render=True))}
    assert looked == {other.name: ["t2t"], source.name: ["v2t", "v2v"]}
    tokenizer = TextTokenizer.load(drawn.folder / "tokenizers" / "text")
    for item in range(0, len(source), 25):
        words = tokenizer.decode(source.text(item, 0))
        assert source.frames[item] == len(pages(words, 24))
    model = Model(cells(ModelConfig(vocab=tokenizer.size, layers=2, width=16, heads=2, patch=2), 6, 6, 64))
    task = RouteTask(model, mixture, tokenizer.id_bytes)
    met = {route for step in range(6) for route in task.loss(task.batch(step))[1]}
    assert met == {"t2t", "v2t", "v2v"}
    held = mixture.held[f"v2t/{source.name}"]
    assert route_of(mixture.sequence(held, 0)) == "v2t"
    with pytest.raises(ConfigError, match="pages"):
        MixtureConfig(rendered=True, frames=2)


def test_a_folder_with_pages_is_not_gone_on_with_without_them(drawn, folder):
    config = replace(TINY, read=replace(TINY.read, size=24), visual_train=TrainConfig(steps=5))
    with pytest.raises(RunError, match="prepared with another render;"):
        prepare([folder / "text"], drawn.folder, config, progress=False)


def test_a_document_and_its_pages_lie_on_one_side_of_the_split(drawn):
    """Else what is held out as text would have been read as pixels."""
    sides: dict[bool, dict[str, bool]] = {True: {}, False: {}}
    for source in drawn.sources:
        for i in range(len(source)):
            document = source.key(i).rpartition("/")[0] if source.rendered else source.key(i)
            assert sides[source.rendered].setdefault(document, bool(source.held[i])) == bool(source.held[i])
    pages_of, documents = sides[True], sides[False]
    assert len(pages_of) > 20 and any(pages_of.values())
    assert all(documents[document] == held for document, held in pages_of.items())


def test_the_text_tokenizer_reads_no_word_twice(drawn, folder, tmp_path):
    plain = prepare([folder / "text"], tmp_path / "data", replace(TINY, read=replace(TINY.read, size=24)), progress=False)
    name = Path("tokenizers") / "text" / "tokenizer.json"
    assert (drawn.folder / name).read_bytes() == (plain.folder / name).read_bytes()
    assert isinstance(plain, Dataset) and not plain.has_frames


def test_whatever_a_model_writes_can_be_drawn():
    """Separators beside U+FFFD, which an untrained model writes, make the layout of text fail."""
    odd = [chr(c) for c in (*range(0x250), 0x2028, 0x2029, 0x202E, 0xFEFF, 0xFFFD, 0x1F600)]
    rows = [[f"a{''.join(odd[i : i + 8])}b"] for i in range(0, len(odd), 8)]
    rows += [[f"\ufffd{c}T"] for c in odd[:32]]
    pictures.sheet(rows, ("text",), "title")
