"""Reading users' folders: what is found, what frames come out, and that nothing malformed ends in a traceback."""

import io
import json
import os
import random
import re
import socket
import struct
import unicodedata
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from quadrivium.data.sources import Item, Limits, ReadOptions, Source, _documents, fingerprint, read_clips, scan
from quadrivium.errors import ConfigError, DataError, ItemError

# pytest resets the filters that the module sets for Pillow's warnings about odd files
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\..*")

OPTIONS = ReadOptions(size=16)
DATA = Path(os.environ.get("QUADRIVIUM_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))


# ---------------------------------------------------------------------------------------------------------- makers


def picture(width: int = 40, height: int = 30, mode: str = "RGB") -> Image.Image:
    """Left third red, middle green, right blue; darker at the bottom."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for channel in range(3):
        pixels[:, channel * width // 3 : (channel + 1) * width // 3, channel] = np.linspace(250, 100, height)[:, None]
    return Image.fromarray(pixels).convert(mode)


def save(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


@cache
def video(
    levels: tuple[int, ...] = tuple(range(0, 240, 12)), form: str = "mp4", times: tuple[int, ...] = (), rate: int = 8
) -> bytes:
    """Frames 48 x 32 of plain grey; ``times`` are milliseconds, otherwise constant ``rate``."""
    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        stream = container.add_stream("libvpx" if form == "webm" else "h264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.options = {"crf": "10", "b": "1M"} if form == "webm" else {"crf": "5"}
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, level in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), level, np.uint8), format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 1000), times[i] if times else i * 1000 // rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


@cache
def animation(form: str, durations: tuple[int, ...] = (250,) * 5) -> bytes:
    frames = [Image.new("RGB", (24, 24), (40 * i, 40 * i, 40 * i)) for i in range(len(durations))]
    options: dict[str, object] = {"lossless": True} if form == "WEBP" else {}
    return save(frames[0], form, save_all=True, append_images=frames[1:], duration=list(durations), loop=0, **options)


@cache
def sound() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A tiny png whose header claims another size."""
    raw = bytearray(save(picture(4, 4), "PNG"))
    raw[16:24] = struct.pack(">II", width, height)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    return bytes(raw)


def put(folder: Path, **files: bytes | str) -> Path:
    """Write files; in a name, ``__`` stands for a slash and ``_dot_`` for the dot."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def listed(folder: Path, rows: list[object], **files: bytes | str) -> Path:
    """A folder with a metadata.jsonl of these rows and files named in them."""
    return put(folder, metadata_dot_jsonl="".join(json.dumps(row) + "\n" for row in rows), **files)


def item(file: Path) -> Item:
    return Item("s", file.name, file.name, "image", (), file)


def clips_of(folder: Path, name: str, content: bytes, options: ReadOptions = OPTIONS) -> list[np.ndarray]:
    (folder / name).write_bytes(content)
    clips = read_clips(item(folder / name), options)
    assert all(c.dtype == np.uint8 and c.shape[1:] == (options.size, options.size, 3) and len(c) for c in clips)
    return clips


def levels_of(clips: list[np.ndarray]) -> list[list[int]]:
    return [[round(float(frame.mean())) for frame in clip] for clip in clips]


def summary(sources: list[Source]) -> dict[str, list[str]]:
    return {source.name: [i.key for i in source.items] for source in sources}


# ------------------------------------------------------------------------------------------------- what scan finds


def test_captions_groups_and_bare_items(tmp_path: Path) -> None:
    png = save(picture(), "PNG")
    rows = [
        {"file_name": "a.png", "text": "one", "text_ja": "一", "text_length": 3, "story": 7},
        {"file_name": "b.png", "text": ["two", "", None, "zwei"], "group": "g", "story": "s"},
        {"file_name": "sub/c.png", "text": ""},
        {"file_name": "./d.mp4", "text": None},
    ]
    listed(
        tmp_path,
        rows,
        a_dot_png=png,
        b_dot_png=png,
        sub__c_dot_png=png,
        d_dot_mp4=video(),
        e_dot_png=png,
        notes_dot_txt="no data",
    )
    (source,) = scan(tmp_path, OPTIONS)
    assert [(i.key, i.group, i.kind, i.texts) for i in source.items] == [
        ("a.png", "7", "image", ("one", "一")),
        ("b.png", "g", "image", ("two", "zwei")),
        ("sub/c.png", "sub/c.png", "image", ()),
        ("d.mp4", "d.mp4", "video", ()),
    ]
    assert source.name == tmp_path.name
    assert not source.problems
    assert source.notes == [
        "left out 1 pictures or videos that no row of metadata.jsonl names",
        "left out 1 text files beside metadata.jsonl (notes.txt); give each as a source of its own to read it as text",
    ]
    assert scan(tmp_path / "metadata.jsonl", OPTIONS)[0].items == source.items


def test_csv_metadata(tmp_path: Path) -> None:
    put(
        tmp_path,
        metadata_dot_csv='\ufefffile_name,text\r\na.png,"two\r\nlines, quoted"\r\nb.png,\r\n',
        a_dot_png=b"x",
        b_dot_png=b"x",
    )
    (source,) = scan(tmp_path, OPTIONS)
    assert [(i.key, i.texts) for i in source.items] == [("a.png", ("two\nlines, quoted",)), ("b.png", ())]


def test_cells_beyond_the_first_row_cost_their_row(tmp_path: Path) -> None:
    """An unquoted comma or a tab in a text would move the rest of it into another column, or away."""
    put(
        tmp_path,
        metadata_dot_csv='file_name,text\na.png,a red ball, on a ramp\nb.png,"a red ball, on a ramp"\n',
        a_dot_png=b"x",
        b_dot_png=b"x",
    )
    put(tmp_path / "words", c_dot_tsv="text\tgroup\na first part\tand a second\tg\nwhole\th\n")
    (media,), (words,) = scan(tmp_path / "metadata.csv", OPTIONS), scan(tmp_path / "words", OPTIONS)
    assert [i.key for i in media.items] == ["b.png"] and "more cells" in media.problems[0].reason
    assert [(i.texts, i.group) for i in words.items] == [(("whole",), "h")] and "more cells" in words.problems[0].reason


def test_an_empty_group_leaves_the_story(tmp_path: Path) -> None:
    rows = [{"file_name": f"{i}.png", "text": "t", "group": empty, "story": 0} for i, empty in enumerate(("", None))]
    listed(tmp_path, rows, **{f"{i}_dot_png": save(picture(), "PNG") for i in range(2)})
    assert [i.group for i in scan(tmp_path, OPTIONS)[0].items] == ["0", "0"]


def test_names_of_a_mixed_folder(tmp_path: Path) -> None:
    root = tmp_path / "mix"
    row = json.dumps({"file_name": "x.png", "text": "t"})
    for folder in ("text", "deep/er"):
        put(root / folder, metadata_dot_jsonl=row, x_dot_png=b"x")
    put(
        root,
        loose__a_dot_jpg=b"x",
        loose__b_dot_MP4=b"x",
        c_dot_txt="words",
        LICENSE_dot_txt="no",
        README_dot_md="no",
        d_dot_pdf=b"x",
    )
    put(root, license_plate_dot_png=b"x", _dot_hidden__z_dot_png=b"x")
    sources = scan(root, OPTIONS)
    assert list(summary(sources).items()) == [
        ("mix/deep/er", ["x.png"]),
        ("mix/text", ["x.png"]),
        ("mix/media", ["license_plate.png", "loose/a.jpg", "loose/b.MP4"]),
        ("mix/text_", ["c.txt#1"]),  # the plain name is taken by the subfolder
    ]
    told = "left out 2 as licence, read-me or .md (LICENSE.txt, README.md); rename what is data to another name in .txt"
    assert sources[-1].notes == ["ignored by their ending: 1 .pdf", told]
    assert summary(scan(root / "loose", OPTIONS)) == {"loose": ["a.jpg", "b.MP4"]}
    assert summary(scan(root / "c.txt", OPTIONS)) == {"c.txt": ["c.txt#1"]}
    assert summary(scan(root / "license_plate.png", OPTIONS)) == {"license_plate.png": ["license_plate.png"]}


def test_names_that_begin_like_a_licence_are_data(tmp_path: Path) -> None:
    """In capitals they are what they say: LICENSE-MIT.txt, ATTRIBUTION_stories.tsv."""
    data = ["notice-of-meeting.txt", "license-plates.txt", "readmes.txt", "Notice board.txt"]
    told = ["ATTRIBUTION_stories.tsv", "LICENSE-MIT.txt", "diary.md", "licence", "notice.txt", "readme.ja.txt"]
    for name in (*data, *told):
        (tmp_path / name).write_text("words")
    (source,) = scan(tmp_path, OPTIONS)
    assert [i.key for i in source.items] == [f"{name}#1" for name in sorted(data)]
    assert source.notes[0].startswith(
        "left out 6 as licence, read-me or .md (ATTRIBUTION_stories.tsv, LICENSE-MIT.txt, diary.md, ...);"
    )
    for name in data:
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"holds nothing to read \(left out 6 as licence"):
        scan(tmp_path, OPTIONS)


WRITTEN = {
    "data": ("manifest.json", "shards/a.png"),
    "run": ("config.json", "checkpoints/a.png", "samples/b.png"),
    "gain": ("transfer.json", "cells/four-seed-0.json", "seed-0/a.png"),
    "experiment": ("experiment.json", "results/x.json", "seed-0/world/a.png"),
}


@pytest.mark.parametrize("described", [False, True])
def test_what_a_command_has_written_is_no_source(tmp_path: Path, described: bool) -> None:
    png = save(picture(), "PNG")
    if described:
        listed(tmp_path, [{"file_name": "a.png"}], a_dot_png=png)
    else:
        put(tmp_path, a_dot_png=png, config_dot_json="{}")  # alone, it is the user's
    before = fingerprint(scan(tmp_path, OPTIONS), OPTIONS)
    for folder, files in WRITTEN.items():
        for file in files:
            put(tmp_path / "out" / folder, **{file.replace("/", "__").replace(".", "_dot_"): png})
    (source,) = scan(tmp_path, OPTIONS)
    assert [i.key for i in source.items] == ["a.png"] and fingerprint([source], OPTIONS) == before
    assert source.notes[-1] == "left out 4 folders that quadrivium wrote (out/data, out/experiment, out/gain, ...)"
    for folder in WRITTEN:
        with pytest.raises(DataError, match="was written by quadrivium and is no source"):
            scan(tmp_path / "out" / folder, OPTIONS)


def test_a_text_without_a_blank_line_is_said(tmp_path: Path) -> None:
    put(tmp_path, a_dot_txt="a line\n" * 300, b_dot_txt="a line\n\n" * 300, c_dot_txt="a line\n" * 50, d_dot_txt="x\n\n" * 110)
    (source,) = scan(tmp_path, OPTIONS)
    (note,) = source.notes
    assert note.startswith("a.txt: hundreds of lines and no blank one")


def test_texts_named_like_pictures_are_their_captions(tmp_path: Path) -> None:
    """Where most of a folder are, as trainers of pictures have it; not long ones, nor those beside subtitles, which are transcripts."""
    for i in range(3):
        put(
            tmp_path,
            **{f"set__{i}_dot_txt": f" a ball\r\nof {i}\n\n", f"set__{i}_dot_jpg": PNG, f"books__{i}_dot_txt": "words"},
        )
    put(
        tmp_path,
        books__0_dot_jpg=PNG,
        set__bare_dot_png=PNG,
        set__0_dot_webm=b"x",
        set__broken_dot_jpg=PNG,
        set__broken_dot_txt=b"\xff",
    )
    put(tmp_path, talks__a_dot_mp4=b"x", talks__a_dot_srt="1", talks__a_dot_txt="said", talks__b_dot_mp4=b"x")
    (tmp_path / "talks" / "b.txt").write_text("said " * 500)
    media, text = scan(tmp_path, OPTIONS)
    assert {i.key: i.texts for i in media.items if i.texts} == {
        "set/0.jpg": ("a ball\nof 0",), "set/0.webm": ("a ball\nof 0",), "set/1.jpg": ("a ball\nof 1",), "set/2.jpg": ("a ball\nof 2",)
    }  # fmt: skip
    assert {i.key for i in media.items if not i.texts} == {
        "books/0.jpg", "set/bare.png", "set/broken.jpg", "talks/a.mp4", "talks/b.mp4"
    }  # fmt: skip
    assert [p.item for p in media.problems] == ["set/broken.txt"] and "UTF-8" in media.problems[0].reason
    assert sorted({i.key.partition("#")[0] for i in text.items}) == [
        "books/0.txt", "books/1.txt", "books/2.txt", "talks/a.txt", "talks/b.txt"
    ]  # fmt: skip
    assert text.notes == [
        "4 .txt files are read as captions of the pictures and videos that have their names; in a folder of their own they would be documents"
    ]
    before = fingerprint([media], OPTIONS)
    (tmp_path / "set" / "1.txt").write_text("another")
    assert fingerprint([scan(tmp_path, OPTIONS)[0]], OPTIONS) != before


def test_letters_and_their_accents_together_or_apart(tmp_path: Path) -> None:
    """A Mac writes names in another form than metadata made elsewhere."""
    apart = [unicodedata.normalize("NFD", name) for name in ("K\u00e4se.png", "\u304c.png")]
    for name in apart:
        (tmp_path / name).write_bytes(PNG)
    rows = [{"file_name": unicodedata.normalize(form, name)} for form in ("NFC", "NFD") for name in apart]
    (source,) = scan(listed(tmp_path, rows), OPTIONS)
    assert [i.key for i in source.items] == apart and all(read_clips(i, OPTIONS) for i in source.items)
    assert [p.reason for p in source.problems] == ["the file is named by an earlier row; only the first one counts"] * 2
    assert source.notes == ["read without captions, as metadata.jsonl has no column text (found: file_name)"]


def test_every_ending_that_is_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(DataError, match=r"cannot be read as data.*\.arrow .*\.json .*\.parquet .*\.tar .*\.toml .*\.txt"):
        scan(tmp_path / "a.pdf", OPTIONS)


def test_text_rows(tmp_path: Path) -> None:
    put(
        tmp_path,
        a_dot_jsonl='{"text": "one", "text_ja": "一", "group": 3}\r\n\n{"text": "two\\r\\nlines"}\n',
        b_dot_tsv="hello\tこんにちは\r\nbye\t\n\nwell\tさて\n",
        c_dot_tsv="\nid\ttext\ttext_ja\tgroup\n9\tcat\t猫\tpets\n",
        d_dot_txt="\ufeffline\r\nline\n",
    )
    (source,) = scan(tmp_path, OPTIONS)
    assert [(i.key, i.group, i.texts[0]) for i in source.items] == [
        ("a.jsonl#1", "3", "one\n一"),
        ("a.jsonl#3", "a.jsonl#3", "two\nlines"),
        ("b.tsv#1", "b.tsv#1", "hello\nこんにちは"),
        ("b.tsv#2", "b.tsv#2", "bye"),
        ("b.tsv#4", "b.tsv#4", "さて\nwell"),
        ("c.tsv#3", "pets", "cat\n猫"),
        ("d.txt#1", "d.txt#1", "line\nline"),
    ]
    assert not source.problems


@given(st.lists(st.sampled_from(["a", "bb cc", "あい", "\n", "\n\n", "\n \t\n", " "]), max_size=60), st.integers(1, 20))
def test_documents_cut_only_at_blank_lines_and_keep_everything(parts: list[str], least: int) -> None:
    text = "".join(parts)
    documents = _documents(text, least)
    assert "".join("".join(documents).split()) == "".join(text.split())
    blocks = {line for line in text.split("\n") if line.strip()}
    assert all(line in blocks for d in documents for line in d.split("\n") if line.strip())
    if len(documents) > 1:
        assert all(len(d.encode()) >= least for d in documents[:-1])


def test_fingerprint(tmp_path: Path) -> None:
    listed(tmp_path, [{"file_name": "a.png", "text": "one"}], a_dot_png=b"x")

    def mark(options: ReadOptions = OPTIONS) -> str:
        return fingerprint(scan(tmp_path, options), options)

    first = mark()
    assert first == mark()
    assert mark(ReadOptions(size=32)) != first
    os.utime(tmp_path / "a.png", ns=(1, 1))
    second = mark()
    assert second != first
    listed(tmp_path, [{"file_name": "a.png", "text": "two"}])
    assert mark() != second
    gone = scan(tmp_path, OPTIONS)
    (tmp_path / "a.png").unlink()
    assert fingerprint(gone, OPTIONS) != second


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"fps": float("nan")}, {"fps": 0}, {"clip_frames": -1}, {"fit": "stretch"}, {"max_clips": 1.5}]
)
def test_options_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ReadOptions(**wrong)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ pictures


def near(frame: np.ndarray, wanted: np.ndarray, most: float = 6.0) -> None:
    assert np.abs(frame.astype(float) - wanted.astype(float)).mean() < most


MODES: dict[str, tuple[str, str]] = {
    "RGB": ("PNG", "RGB"),
    "grey": ("PNG", "L"),
    "one bit": ("PNG", "1"),
    "palette": ("PNG", "P"),
    "palette gif": ("GIF", "P"),
    "grey + alpha": ("PNG", "LA"),
    "RGBA": ("PNG", "RGBA"),
    "webp": ("WEBP", "RGB"),
    "jpeg": ("JPEG", "RGB"),
    "CMYK": ("JPEG", "CMYK"),
    "bmp": ("BMP", "RGB"),
    "tiff": ("TIFF", "RGB"),
}


@pytest.mark.parametrize("name", MODES)
def test_modes(tmp_path: Path, name: str) -> None:
    form, mode = MODES[name]
    ((frame,),) = clips_of(tmp_path, "x.png", save(picture(16, 16, mode), form))
    near(frame, np.asarray(picture(16, 16, mode).convert("RGB")), 12 if form == "PNG" else 20)


@pytest.mark.parametrize(
    ("dtype", "scale", "form"), [("uint16", 65535, "PNG"), ("int32", 60000, "TIFF"), ("float32", 1, "TIFF")]
)
def test_deep_greys_use_the_full_scale(tmp_path: Path, dtype: str, scale: float, form: str) -> None:
    ramp = np.tile(np.linspace(0, 1, 16), (16, 1))
    ((frame,),) = clips_of(tmp_path, "x.png", save(Image.fromarray((ramp * scale).astype(dtype)), form))
    near(frame[..., 0], ramp * (scale / 65535 if scale > 1 else 1) * 255, 2)


def test_transparency_is_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert (clips_of(tmp_path, "a.png", save(clear, "PNG"))[0] == 255).all()
    keyed = Image.new("RGB", (16, 16), (9, 9, 9))
    assert (clips_of(tmp_path, "b.png", save(keyed, "PNG", transparency=(9, 9, 9)))[0] == 255).all()
    half = Image.new("RGBA", (40, 20), (0, 0, 0, 128))
    assert np.allclose(clips_of(tmp_path, "c.png", save(half, "PNG"))[0], 127, atol=2)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_exif_orientation_as_pillow_applies_it(tmp_path: Path, turn: int, fit: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    turned = save(picture(48, 24), "JPEG", exif=exif, quality=95)
    upright = save(ImageOps.exif_transpose(Image.open(io.BytesIO(turned))), "PNG")
    options = ReadOptions(size=16, fit=fit)  # type: ignore[arg-type]
    near(clips_of(tmp_path, "a.jpg", turned, options)[0], clips_of(tmp_path, "b.png", upright, options)[0])


def test_crop_and_pad(tmp_path: Path) -> None:
    wide = save(picture(96, 32), "PNG")
    ((crop,),) = clips_of(tmp_path, "x.png", wide, ReadOptions(size=16, fit="crop"))
    assert (crop[:, 1:-1, 1] > 90).all()  # the middle third, green
    edged = Image.new("RGB", (32, 16), (200, 10, 10))
    edged.paste((0, 0, 255), (8, 4, 24, 12))
    ((pad,),) = clips_of(tmp_path, "y.png", save(edged, "PNG"), ReadOptions(size=16, fit="pad"))
    assert (pad[:4] == (200, 10, 10)).all()
    assert (pad[-4:] == (200, 10, 10)).all()
    assert pad[8, 8, 2] > 200


@pytest.mark.parametrize("shape", [(1, 1), (60000, 1), (1, 3000), (17, 16)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_odd_shapes(tmp_path: Path, shape: tuple[int, int], fit: str) -> None:
    ((frame,),) = clips_of(tmp_path, "x.png", save(Image.new("L", shape, 77), "PNG"), ReadOptions(size=16, fit=fit))  # type: ignore[arg-type]
    assert (frame == 77).all()


def test_a_large_photo_is_decoded_small_and_alike(tmp_path: Path) -> None:
    large, small = picture(1600, 1200), picture(160, 120)
    near(clips_of(tmp_path, "a.jpg", save(large, "JPEG"))[0], clips_of(tmp_path, "b.png", save(small, "PNG"))[0])


def test_content_and_not_the_name_decides(tmp_path: Path) -> None:
    assert levels_of(clips_of(tmp_path, "x.mp4", save(Image.new("L", (9, 9), 50), "PNG"))) == [[50]]
    assert len(clips_of(tmp_path, "x.png", video())[0]) == 8
    pages = [Image.new("L", (9, 9), i) for i in (10, 20)]
    assert levels_of(clips_of(tmp_path, "x.tif", save(pages[0], "TIFF", save_all=True, append_images=pages[1:]))) == [[10]]


# -------------------------------------------------------------------------------------------------------- videos


def assert_levels(clips: list[np.ndarray], wanted: list[list[int]]) -> None:
    found = levels_of(clips)
    assert [len(c) for c in found] == [len(c) for c in wanted]
    assert all(abs(a - b) <= 3 for x, y in zip(found, wanted, strict=True) for a, b in zip(x, y, strict=True)), found


@pytest.mark.parametrize("form", ["mp4", "webm"])
def test_frames_are_taken_by_time(tmp_path: Path, form: str) -> None:
    levels = list(range(0, 240, 12))  # 20 frames at 8 a second: every second one
    assert_levels(clips_of(tmp_path, "x", video(form=form)), [levels[0:16:2], levels[16:20:2]])
    fast = ReadOptions(size=16, fps=100, clip_frames=6)
    assert_levels(clips_of(tmp_path, "x", video(form=form), fast), [levels[0:6], levels[6:12], levels[12:18], levels[18:20]])


def test_variable_rate(tmp_path: Path) -> None:
    levels, times = (0, 40, 80, 120, 160, 200), (0, 100, 260, 270, 1900, 2100)
    assert_levels(clips_of(tmp_path, "x", video(levels, "webm", times)), [[0, 80, 160, 200]])


def test_last_clip_and_limits(tmp_path: Path) -> None:
    levels = list(range(0, 240, 12))
    three = ReadOptions(size=16, fps=8, clip_frames=19)
    assert_levels(clips_of(tmp_path, "x", video(), three), [levels[:19]])  # a rest of one frame is dropped
    two = ReadOptions(size=16, fps=8, clip_frames=3, max_clips=2)
    assert_levels(clips_of(tmp_path, "x", video(), two), [levels[:3], levels[3:6]])
    one = ReadOptions(size=16, fps=8, clip_frames=1, max_clips=3)
    assert_levels(clips_of(tmp_path, "x", video(), one), [[0], [12], [24]])
    assert_levels(clips_of(tmp_path, "x", video((90,))), [[90]])  # a video of one frame is a picture


def test_phone_rotation(tmp_path: Path) -> None:
    """A quarter turn written into the track header, as phones do."""
    out = io.BytesIO()
    upright = picture(32, 32)
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=8)
        stream.width, stream.height, stream.pix_fmt, stream.options = 32, 32, "yuv420p", {"crf": "1"}
        container.mux(stream.encode(av.VideoFrame.from_image(upright)))
        container.mux(stream.encode())
    raw = bytearray(out.getvalue())
    matrix = raw.find(b"tkhd") + 4 + 40  # version 0: flags 4, times and ids 20, reserved 8, layer to volume 8
    assert struct.unpack(">9i", raw[matrix : matrix + 36])[0] == 1 << 16
    one = 1 << 16
    raw[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)  # to be shown turned clockwise
    ((frame,),) = clips_of(tmp_path, "x.mp4", bytes(raw))
    near(frame, np.rot90(np.asarray(upright.resize((16, 16))), -1), 15)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animations(tmp_path: Path, form: str) -> None:
    assert_levels(clips_of(tmp_path, "x", animation(form)), [[0, 40, 80, 120, 160]])
    uneven = clips_of(tmp_path, "x", animation(form, (120, 120, 120, 500, 120)))  # shown from 0, 120, 240, 360, 860 ms
    assert_levels(uneven, [[0, 120, 160]])


def test_threads_read_alike(tmp_path: Path) -> None:
    files = []
    for i, content in enumerate([video(), video(form="webm"), animation("GIF"), save(picture(), "JPEG")] * 4):
        (tmp_path / str(i)).write_bytes(content)
        files.append(item(tmp_path / str(i)))
    alone = [read_clips(f, OPTIONS) for f in files]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda f: read_clips(f, OPTIONS), files))
    assert all((a == b).all() for x, y in zip(alone, together, strict=True) for a, b in zip(x, y, strict=True))


# ----------------------------------------------------------------------------------------------------- malformed

PNG = save(picture(), "PNG")
MALFORMED: dict[str, tuple[str, Callable[[Path], object]]] = {}


def malformed(end: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """Register a maker of a malformed folder. ``end`` is "data: words", "problem: words", "item: words" or "read"."""

    def register(make: Callable[[Path], object]) -> Callable[[Path], object]:
        MALFORMED[make.__name__] = (end, make)
        return make

    return register


def simple(name: str, end: str, make: Callable[[Path], object]) -> None:
    MALFORMED[name] = (end, make)


def one_row(name: object, **more: object) -> Callable[[Path], object]:
    return lambda d: listed(
        d, [{"file_name": name, **more}, {"file_name": "ok.png", "text": "fine"}], ok_dot_png=PNG, a_dot_png=PNG
    )


def one_file(name: str, content: bytes | str | Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda d: (d / name).write_bytes(
        content() if callable(content) else content.encode() if isinstance(content, str) else content
    )


# folders and metadata
simple("missing folder", "data: does not exist", lambda d: d.rmdir())
simple("empty folder", "data: holds nothing to read", lambda d: None)
simple("only other kinds", "data: ignored by their ending: 1 .pdf", one_file("a.pdf", b"x"))
simple(
    "missing column", "data: no row has the column file_name .*file, label", lambda d: listed(d, [{"file": "a", "label": 1}])
)
simple("one csv name twice", "data: names text twice", one_file("metadata.csv", "file_name,text,text\na.png,x,y\n"))
simple("one tsv name twice", "problem: names text_ja twice", one_file("a.tsv", "text_ja\ttext_ja\na\tb\n"))
simple("missing csv column", "data: no row has the column file_name", one_file("metadata.csv", "name,text\na.png,x\n"))
simple("csv of semicolons", "data: commas, not by ';'", one_file("metadata.csv", "file_name;text\na.png;a ball, red\n"))
simple("csv of tabs", "data: commas, not by '.t'", one_file("metadata.csv", "text\tfile_name\nred\ta.png\n"))
simple("UTF-16 csv", "data: metadata.csv is UTF-16; save", one_file("metadata.csv", "file_name\r\na.png\r\n".encode("utf-16")))
simple("empty metadata", "data: metadata.jsonl cannot be read: the file is empty", one_file("metadata.jsonl", b""))
simple("metadata of blank lines", "data: no row has the column file_name", one_file("metadata.jsonl", b"\n\n"))
simple("metadata is a folder", "data: nothing to read", lambda d: (d / "metadata.jsonl").mkdir())
simple("metadata is a pipe", "data: not an ordinary file", lambda d: os.mkfifo(d / "metadata.jsonl"))
simple("metadata is an array", "data: no row has .*not a JSON object", one_file("metadata.jsonl", '[{"file_name": "a.png"}]'))
simple("metadata of zeros", "data: no row has the column file_name", one_file("metadata.jsonl", b"\0" * 3000))
simple("huge csv field", "read", lambda d: put(d, metadata_dot_csv=f'file_name,text\na.png,"{"x" * 200_000}"\n', a_dot_png=PNG))
# rows
simple("row outside", "problem: points outside its folder", one_row("../a.png"))
simple("row outside by detour", "problem: points outside its folder", one_row("sub/../../a.png"))
simple("absolute row", "problem: points outside its folder", one_row("/etc/passwd.png"))
simple("missing file", "problem: the file is missing", one_row("none.png"))
simple("row of a folder", "problem: is a folder", lambda d: ((d / "x.png").mkdir(), one_row("x.png")(d)))
simple("row of an unknown kind", "problem: the name ends in none of", one_row("a.exe"))
simple("row without file_name", "problem: the row has no file_name", one_row(None))
simple("file_name is a number", "problem: the row has no file_name", one_row(3))
simple("NUL in file_name", "problem: not UTF-8", one_row("a\0.png"))
simple("surrogate in file_name", "problem: not UTF-8", one_row("a\ud800.png"))
simple("very long file_name", "problem: too long", one_row("a" * 5000 + ".png"))
simple("duplicate names", "problem: named by an earlier row", one_row("./ok.png"))
simple("text is NaN", "problem: text is nan", one_row("a.png", text=float("nan")))
simple("text is a number", "problem: text is 5", one_row("a.png", text=5))
simple("nested list", "problem: text is ", one_row("a.png", text=[["x"]]))
simple("caption in another language is a number", "problem: text_ja is 1", one_row("a.png", text_ja=1))
simple("NUL in text", "problem: NUL", one_row("a.png", text="a\0b"))
simple("lone surrogate in text", "problem: not UTF-8", one_row("a.png", text="a\ud83d"))
simple("odd group", "read", one_row("a.png", group={"a": [1]}))
simple("huge line", "read", one_row("a.png", text="x" * 3_000_000))


@malformed("problem: is not JSON")
def damaged_rows(d: Path) -> None:
    rows = [
        b'{"file_name": "ok.png"',
        b"[" * 100_000,
        b'{"file_name": 1' + b"0" * 5000 + b"}",
        b"\xff\xfe",
        b'{"file_name": "ok.png"}',
    ]
    put(d, metadata_dot_jsonl=b"\r\n".join(rows), ok_dot_png=PNG)


@malformed("problem: not UTF-8")
def invalid_utf8_row(d: Path) -> None:
    put(
        d,
        metadata_dot_jsonl=b'\xef\xbb\xbf{"file_name": "ok.png"}\r\n{"file_name": "a.png", "text": "caf\xe9"}',
        ok_dot_png=PNG,
        a_dot_png=PNG,
    )


@malformed("problem: leaves its folder")
def link_out(d: Path) -> None:
    out = d.parent / "out.png"
    out.write_bytes(PNG)
    (d / "a.png").symlink_to(out)
    (d / "b.png").write_bytes(PNG)


@malformed("problem: link to a folder")
def linked_folder(d: Path) -> None:
    (d / "b.png").write_bytes(PNG)
    (d / "round").symlink_to(d)


simple("link to itself", "problem: symbolic links", lambda d: (d / "a.png").symlink_to("a.png"))
simple("broken link", "problem: missing", lambda d: (d / "a.png").symlink_to("none.png"))


# text
simple("invalid UTF-8", "problem: not UTF-8", one_file("a.txt", b"caf\xe9 au lait"))
simple("UTF-16", "problem: is UTF-16; save it as UTF-8", one_file("a.txt", "words".encode("utf-16")))
simple("NUL in txt", "problem: NUL .*save it as UTF-8", one_file("a.txt", b"a\0b"))
simple("blank txt", "problem: holds no text", one_file("a.txt", " \n\n\t\n"))
simple("empty txt", "problem: empty", one_file("a.txt", b""))
simple("only a byte-order mark", "problem: holds no text", one_file("a.txt", b"\xef\xbb\xbf"))
simple("jsonl without text", "problem: no row has the key text", one_file("a.jsonl", '{"a": 1}\n{"a": 2}\n'))
simple("jsonl that is not", "problem: no row has the key text .*is not JSON", one_file("a.jsonl", '[\n"a",\n'))
simple("jsonl with an empty row", "problem: holds no text", one_file("a.jsonl", '{"text": "a"}\n{"text": " "}\n{"text": null}'))
simple("tsv with an empty row", "problem: holds no text", one_file("a.tsv", "a\tb\n\t\nc\n"))
simple("text too large", "problem: larger than max_text_bytes", one_file("a.txt", b"x" * 5_000_000))

# media
simple("zero-byte png", "problem: empty", one_file("a.png", b""))
simple("a pipe", "problem: ordinary file", lambda d: (os.mkfifo(d / "a.png"), (d / "b.png").write_bytes(PNG)))
simple("folder called x.png", "read", lambda d: put(d, x_dot_png__a_dot_png=PNG))
simple("60,000 pixels wide", "item: more pixels than can be opened safely", one_file("a.png", png_claiming(60_000, 60_000)))
simple("more than max_pixels", "item: 8000 x 8000 pixels", one_file("a.png", png_claiming(8000, 8000)))
simple("size zero", "item: ", one_file("a.png", png_claiming(0, 5)))
simple("truncated png", "item: truncated", one_file("a.png", PNG[: len(PNG) // 2]))
simple("truncated jpg", "item: truncated", one_file("a.jpg", save(picture(300, 300), "JPEG")[:900]))
simple("truncated gif", "item: ", one_file("a.gif", lambda: animation("GIF")[:-40]))
simple("png header only", "item: ", one_file("a.png", PNG[:33]))
simple("text named png", "item: neither a picture nor a video", one_file("a.png", "hello " * 99))
simple("png named mp4", "read", one_file("a.mp4", PNG))
simple("truncated mp4", "item: cut short", one_file("a.mp4", lambda: video()[: len(video()) // 2]))
simple("header-only mp4", "item: ", one_file("a.mp4", lambda: video()[:40]))
simple("mp4 without its pictures", "item: ", one_file("a.mp4", lambda: blanked(video())))
simple("html named mp4", "item: neither", one_file("a.mp4", "<html><body>404 not found</body></html>" * 20))
simple("playlist named mp4", "item: neither", one_file("a.mp4", "#EXTM3U\n#EXTINF:9,\n/etc/passwd\n#EXT-X-ENDLIST\n"))
simple("concat script named mp4", "item: neither", one_file("a.mp4", "ffconcat version 1.0\nfile '/etc/passwd'\n"))
simple(
    "postscript named png", "item: neither", one_file("a.png", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
)
simple("audio-only mp4", "item: holds no video", one_file("a.mp4", sound))
simple("zeros named webm", "item: ", one_file("a.webm", b"\0" * 10_000))


simple("unknown codec", "item: codec that is not known", one_file("a.mp4", lambda: video().replace(b"avc1", b"qqqq")))


def blanked(raw: bytes) -> bytes:
    """The same mp4 with its coded pictures overwritten."""
    at = raw.find(b"mdat") + 4
    end = raw.find(b"moov") - 4
    return raw[:at] + b"\x55" * (end - at) + raw[end:]


simple("vanished", "item: cannot be read .No such file", one_file("a.png", PNG))


@malformed("problem: ordinary file")
def a_socket(d: Path) -> None:
    here = os.getcwd()
    os.chdir(d)  # the path of a socket may not be long
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind("a.png")
    finally:
        os.chdir(here)


@malformed("problem: file name is not UTF-8")
def name_that_is_not_utf8(d: Path) -> None:
    Path(os.fsdecode(os.fsencode(d) + b"/caf\xe9.png")).write_bytes(PNG)


@malformed("item: one\\.png")
def line_break_in_a_name(d: Path) -> None:
    (d / "line\none.png").write_bytes(b"no picture")


@malformed("read")
def damaged_exif(d: Path) -> None:
    raw = save(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff\0\x06\0\0")
    (d / "a.jpg").write_bytes(raw)


@malformed("problem: Permission denied|cannot be read|cannot be listed")
def no_permission(d: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything, so permissions cannot be tested as root")
    put(d, a_dot_txt="words", b__c_dot_txt="words", d_dot_txt="words")
    (d / "a.txt").chmod(0)
    (d / "b").chmod(0)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Each input ends as stated, in one printable line, and writes nothing to the terminal."""
    end, make = MALFORMED[name]
    kind, _, words = end.partition(": ")
    folder = tmp_path / "folder"
    folder.mkdir()
    options = ReadOptions(size=16, max_text_bytes=4_000_000)
    found: dict[str, list[str]] = {"data": [], "problem": [], "item": []}
    make(folder)
    read = 0
    try:
        sources = scan(folder, options)
        found["problem"] = [f"{p.item} {p.reason}" for source in sources for p in source.problems]
        fingerprint(sources, options).encode()
        if name == "vanished":
            (folder / "a.png").unlink()
        for source in sources:
            assert len({i.key for i in source.items}) == len(source.items)
            for i in source.items:
                json.dumps([i.key, i.group, i.texts]).encode()
                "".join([i.key, i.group, *i.texts]).encode()
                try:
                    read += i.kind == "text" or len(read_clips(i, options)) > 0
                except ItemError as error:
                    found["item"].append(str(error))
    except DataError as error:
        found["data"].append(str(error))
    lines = [line for lines in found.values() for line in lines]
    assert all(line.isprintable() and 10 < len(line) < 1000 for line in lines), lines
    if kind == "read":
        assert read
        assert not lines
    else:
        assert [k for k, lines in found.items() if lines] == [kind], found
        assert all(re.search(words, line) for line in found[kind]) or name == "damaged_rows", found[kind]
    out = capfd.readouterr()
    assert not out.err
    assert not out.out


def test_thirty_malformed_inputs() -> None:
    assert len(MALFORMED) >= 30


SEEDS: dict[str, Callable[[], bytes]] = {
    "a.png": lambda: PNG,
    "a.gif": lambda: animation("GIF"),
    "a.webp": lambda: animation("WEBP"),
    "b.webp": lambda: save(picture(), "WEBP"),
    "a.jpg": lambda: save(picture(), "JPEG"),
    "a.mp4": video,
    "a.webm": lambda: video(form="webm"),
    "metadata.jsonl": lambda: json.dumps({"file_name": "x.png", "text": ["a", "あ"], "story": 1}).encode() * 2,
    "a.jsonl": lambda: b'{"text": "one"}\n{"text": "\\u3042"}\n',
    "a.tsv": lambda: "text\ttext_ja\na\tあ\n".encode(),
    "metadata.csv": lambda: b'file_name,text\nx.png,"a ""b"" c"\n',
}


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(SEEDS)),
    keep=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    added=st.binary(max_size=8),
)
@example(name="a.mp4", keep=1.0, changes=[(0.0, 255)], added=b"")
def test_mutations_never_end_in_another_exception(
    tmp_path: Path, name: str, keep: float, changes: list[tuple[float, int]], added: bytes
) -> None:
    raw = bytearray(SEEDS[name]())
    for place, value in changes:
        raw[min(int(place * len(raw)), len(raw) - 1)] = value
    folder = tmp_path / "fuzz"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (folder / "x.png").write_bytes(PNG)
    (folder / name).write_bytes(bytes(raw[: max(int(keep * len(raw)), keep > 0)]) + added)
    options, lines = ReadOptions(size=8, max_pixels=4_000_000), []
    try:
        sources = scan(folder, options)
    except DataError as error:
        sources, lines = [], [str(error)]
    fingerprint(sources, options)
    for source in sources:
        lines += [f"{p.item} {p.reason}" for p in source.problems]
        for i in source.items:
            "".join([i.key, i.group, *i.texts]).encode()
            if i.kind != "text":
                try:
                    assert all(c.shape[1:] == (8, 8, 3) for c in read_clips(i, options))
                except ItemError as error:
                    lines.append(str(error))
    assert all(line.isprintable() for line in lines)


def test_rows_and_documents_that_are_too_long_are_listed_and_the_rest_is_used(tmp_path: Path) -> None:
    rows = [json.dumps({"text": "x" * n}) for n in (10, 600, 20, 3000, 30)]
    put(tmp_path, a_dot_jsonl="\n".join(rows), b_dot_txt="short\n\n" + "y" * 600 + "\n\nshort", c_dot_tsv="a\n" + "b" * 3000)
    (source,) = scan(tmp_path, ReadOptions(doc_bytes=1), Limits(row_bytes=1000, document_bytes=500))
    assert [i.key for i in source.items] == ["a.jsonl#1", "a.jsonl#3", "a.jsonl#5", "b.txt#1", "b.txt#3", "c.tsv#1"]
    found = {p.item: p.reason for p in source.problems}
    assert "document_bytes" in found["a.jsonl#2"] and "document_bytes" in found["b.txt#2"]
    assert "row_bytes" in found["a.jsonl:4"] and "row_bytes" in found["c.tsv:2"] and len(found) == 4


def test_rows_nested_to_any_depth_are_read_or_listed(tmp_path: Path) -> None:
    """Some depths may just be parsed and then no longer be quoted."""
    depths = [10, 500, *range(940, 1010), 3000, 9000, 100_000]
    rows = [
        f'{{"file_name": "{key}{d}.png", "{key}": {"[" * d}{"]" * d}}}' for d in depths for key in ("group", "text", "other")
    ]
    for row in rows:
        (tmp_path / row[15:].split('"')[0]).write_bytes(b"x")
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    (source,) = scan(tmp_path, OPTIONS)
    assert len(source.items) + len(source.problems) == 3 * len(depths) and source.items and source.problems


def test_names_cannot_rewrite_the_line_they_stand_on(tmp_path: Path) -> None:
    """Escape sequences and marks that turn the direction of writing are not passed on to terminals and lists."""
    folder = tmp_path / "a\u202ebad"
    folder.mkdir()
    for name in ("gnp.\u202e.png", "\x1b[2J.png", "tab\t\r.png"):
        (folder / name).write_bytes(b"no picture")
    (source,) = scan(folder, OPTIONS)
    assert source.name.isprintable() and len(source.items) == 3
    for i in source.items:
        with pytest.raises(ItemError) as error:
            read_clips(i, OPTIONS)
        assert str(error.value).isprintable()


# ----------------------------------------------------------------------------------------------------- real data

REAL = {
    "movingshapes": 4061,
    "storybook": 3528,
    "emoji": 1385,
    "grocery": 5502,
    "realvideo": 35,
    "nlvr": 3964,
    "text_en": 1000,
    "text_ja": 51000,
}


LEFT = {
    "storybook": "left out 1 text files beside metadata.jsonl (stories.jsonl)",
    "text_en": "left out 2 as licence, read-me or .md (ATTRIBUTION_stories.tsv, SOURCE.md)",
    "text_ja": "left out 2 as licence, read-me or .md (ATTRIBUTION.tsv, SOURCE.md)",
}


@pytest.mark.parametrize("name", REAL)
def test_real_data(name: str) -> None:
    """All of the folder is found without a problem; a draw of its items can be read."""
    if not (DATA / name).is_dir():
        pytest.skip(f"no real data at {DATA / name}; set QUADRIVIUM_DATA to its folder")
    (source,) = scan(DATA / name, ReadOptions())
    assert source.name == name
    assert len(source.items) >= REAL[name]
    assert not source.problems
    assert [note.partition(";")[0] for note in source.notes] == [LEFT[name] for _ in range(name in LEFT)]
    for i in random.Random(0).sample(source.items, 12):
        if i.kind == "text":
            assert i.texts[0].strip()
        else:
            clips = read_clips(i, ReadOptions())
            assert len(clips) <= 16
            assert all(c.dtype == np.uint8 and c.shape[1:] == (64, 64, 3) and c.std() > 0 for c in clips)
