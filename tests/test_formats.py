"""Other people's formats: the same items give the same shards and the same bits as the plain folder, and damage is said."""

import contextlib
import io
import json
import random
import sys
import tarfile
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from quadrivium import evaluate
from quadrivium.checkpoint import Run
from quadrivium.cli import main
from quadrivium.data.formats import scan
from quadrivium.data.mixture import Mixture, MixtureConfig
from quadrivium.data.shards import Dataset
from quadrivium.data.sources import Limits, ReadOptions, read_clips
from quadrivium.data.subtitles import read_cues
from quadrivium.errors import DataError, ItemError
from quadrivium.inspect import routes_of
from quadrivium.model import ModelConfig
from quadrivium.pictures import save_mp4
from quadrivium.prepare import find, lacking, prepare, table
from quadrivium.sequence import ROUTES
from quadrivium.train import TrainConfig, train_routes

from .conftest import COLOURS, TINY, ball

wds = pytest.importorskip("webdataset", reason="webdataset is not installed: pip install webdataset")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install -c constraints.txt -e '.[data]'")
import pyarrow as pa  # noqa: E402

# webdataset leaves files to the collector; datasets' pickling of tables warns.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore:Cannot (locate|pickle)", "ignore::DeprecationWarning"
)


def encoded(frame, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(frame).save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="session")
def pages(request):
    """(story, page, picture, ending, text): 60 of the real storybook where it is, else drawn ones."""
    try:
        root = request.getfixturevalue("real") / "storybook"
        rows = [json.loads(line) for line in (root / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = [r for r in rows if r["text"] and isinstance(r["text"], str)][:60]
        return [
            (r["story"], f"{i:02}", (root / r["file_name"]).read_bytes(), "webp", r["text"].strip()) for i, r in enumerate(rows)
        ]
    except (pytest.skip.Exception, OSError):
        names = list(COLOURS)
        drawn = [(f"s{i // 5}", f"{i:02}", ball(COLOURS[names[i % 4]], x=3 + i % 9), names[i % 4]) for i in range(60)]
        return [(story, page, encoded(frame), "png", f"Page {page}: a {name} ball.") for story, page, frame, name in drawn]


def as_plain(root, pages):
    (root / "story" / "images").mkdir(parents=True)
    with open(root / "story" / "metadata.jsonl", "w", encoding="utf-8") as out:
        for story, page, data, ending, text in pages:
            (root / "story" / "images" / f"{page}.{ending}").write_bytes(data)
            out.write(json.dumps({"file_name": f"images/{page}.{ending}", "text": text, "story": story}) + "\n")


def as_tars(root, pages):
    (root / "story").mkdir(parents=True)
    with wds.ShardWriter(str(root / "story" / "%05d.tar"), maxcount=25, verbose=0) as sink:
        for story, page, data, ending, text in pages:
            sink.write({"__key__": f"{story}/{page}", ending: data, "txt": text, "json": {"story": story, "url": "http://x"}})
    pq.write_table(pa.table({"url": ["http://x"]}), root / "story" / "00000.parquet")  # as img2dataset leaves them beside


def as_parquet(root, pages):
    (root / "story" / "data").mkdir(parents=True)
    columns = {
        "image": [{"bytes": p[2], "path": None} for p in pages],
        "caption": [p[4] for p in pages],
        "story": [p[0] for p in pages],
    }
    pq.write_table(pa.table(columns), root / "story" / "data" / "train-00000-of-00001.parquet", row_group_size=17)


def as_documents(root, pages):
    (root / "story" / "pictures").mkdir(parents=True)
    stories = {}
    for story, page, data, ending, text in pages:
        (root / "story" / "pictures" / f"{page}.{ending}").write_bytes(data)
        stories.setdefault(story, []).extend([{"image": f"pictures/{page}.{ending}"}, {"text": text}])
    with open(root / "story" / "stories.jsonl", "w", encoding="utf-8") as out:
        out.writelines(json.dumps({"story": story, "content": parts}) + "\n" for story, parts in stories.items())


def life(source, tmp_path):
    """Shards without keys, and the held-out bits of every route after 50 steps."""
    data = prepare([source], tmp_path / "data", TINY, progress=False)
    mixture = MixtureConfig(positions=300, context=48)
    shape = ModelConfig(layers=2, width=48, heads=2, patch=2)
    train_routes(data.folder, tmp_path / "run", shape, mixture, TrainConfig(steps=50, precision="fp32"), progress=False)
    run = Run(tmp_path / "run")
    mixed = Mixture(Dataset(data.folder), mixture, run.text.end, 0, run.patch)
    shards = [{k: v for k, v in s.items() if k != "keys"} for source in data.sources for s in source._shards]
    return shards, evaluate.routes(run.model, mixed, run.text.id_bytes, 32, progress=False)["routes"]


@pytest.fixture(scope="module")
def plain(pages, tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    as_plain(root, pages)
    return life(root / "story", root)


def same(ours, theirs):
    assert len(ours[0]) == len(theirs[0])
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert all(np.array_equal(a[k], b[k]) for k in a), "shards differ"
    assert ours[1] == theirs[1] and ours[1]


@pytest.mark.parametrize("write", [as_tars, as_parquet, as_documents])
def test_stories_cost_the_same_bits_in_every_format(write, pages, plain, tmp_path):
    write(tmp_path, pages)
    same(life(tmp_path / "story", tmp_path), plain)
    assert set(plain[1]) == {"t2v", "v2t"}


def clips_of(request, tmp_path):
    try:
        root = request.getfixturevalue("real") / "movingshapes"
        rows = [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()][:30]
        return [(f"{i:03}", (root / r["file_name"]).read_bytes(), r["text"]) for i, r in enumerate(rows)]
    except (pytest.skip.Exception, OSError):
        found = []
        for i in range(30):
            name = list(COLOURS)[i % 4]
            save_mp4(np.stack([ball(COLOURS[name], x=2 + 2 * t, y=2 + i % 9) for t in range(6)]), tmp_path / "clip.mp4", 4)
            found.append((f"{i:03}", (tmp_path / "clip.mp4").read_bytes(), f"a {name} ball rolls"))
        return found


def test_clips_cost_the_same_bits_in_tars_of_video2dataset(request, tmp_path):
    clips = clips_of(request, tmp_path)
    folder = tmp_path / "plain" / "shapes"
    (folder / "videos").mkdir(parents=True)
    with open(folder / "metadata.jsonl", "w") as out:
        for key, data, text in clips:
            (folder / "videos" / f"{key}.mp4").write_bytes(data)
            out.write(json.dumps({"file_name": f"videos/{key}.mp4", "text": text, "group": key}) + "\n")
    (tmp_path / "tars" / "shapes").mkdir(parents=True)
    with wds.TarWriter(str(tmp_path / "tars" / "shapes" / "00000.tar")) as sink:
        for key, data, text in clips:
            more = {"key": key, "group": key, "caption": text, "status": "success", "error_message": None}
            sink.write({"__key__": key, "mp4": data, "txt": text, "json": more, "m4a": b"sound"})
    (tmp_path / "tars" / "shapes" / "00000_stats.json").write_text('{"count": 30}')
    ours = life(tmp_path / "tars" / "shapes", tmp_path / "tars")
    same(ours, life(folder, tmp_path / "plain"))
    assert set(ours[1]) == {"t2v", "v2t", "v2v", "tv2v"}


READ = ReadOptions(size=16)


def test_datasets_of_hugging_face_are_read_from_their_folders(pages, tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "text_ja": datasets.Value("string")}
    )
    table = pa.table(
        {
            "image": [{"bytes": p[2], "path": f"{p[1]}.{p[3]}"} for p in pages[:7]],
            "text": [p[4] for p in pages[:7]],
            "text_ja": ["玉"] * 6 + [None],
        }
    )
    made = datasets.Dataset(table.cast(features.arrow_schema), fingerprint="a" * 16)
    made.save_to_disk(str(tmp_path / "saved" / "train"))
    made.to_parquet(str(tmp_path / "table.parquet"))
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / f"0.{pages[3][3]}").write_bytes(pages[3][2])
    want = read_clips(scan(tmp_path / "plain", READ)[0].items[0], READ)[0]
    for path in (tmp_path / "saved", tmp_path / "table.parquet"):
        (source,) = scan(path, READ)
        assert len(source.items) == 7 and not source.problems
        assert source.items[3].texts == (pages[3][4], "玉") and source.items[6].texts == (pages[6][4],)
        assert np.array_equal(read_clips(source.items[3], READ)[0], want)


def test_tables_of_text_and_of_paths(tmp_path):
    pq.write_table(pa.table({"text": ["one", "two", None], "id": [1, 2, 3]}), tmp_path / "words.parquet")
    (source,) = scan(tmp_path / "words.parquet", READ)
    assert [i.texts for i in source.items] == [("one",), ("two",)] and routes_of(source.items) == ["t2t"]
    assert "holds no text" in source.problems[0].reason
    Image.fromarray(ball((9, 9, 9))).save(tmp_path / "a.png")
    rows = {"file_name": ["a.png", "../a.png", "b.txt"], "caption": ["grey", "out", "not"]}
    pq.write_table(pa.table(rows), tmp_path / "paths.parquet")
    (source,) = scan(tmp_path / "paths.parquet", READ)
    assert [i.texts for i in source.items] == [("grey",)] and read_clips(source.items[0], READ)
    assert "outside its folder" in source.problems[0].reason and "names no picture" in source.problems[1].reason
    pq.write_table(pa.table({"number": [1]}), tmp_path / "none.parquet")
    assert "no column of pictures" in scan(tmp_path / "none.parquet", READ)[0].problems[0].reason


@pytest.mark.parametrize("arrow", [False, True])
def test_rows_of_one_picture_are_one_group(arrow, tmp_path):
    """By its path and its bytes: tables call different pictures by one name, and a row with a group of its own keeps it."""
    red, blue = (encoded(ball(COLOURS[n])) for n in ("red", "blue"))
    shown = [(red, "a.png"), (blue, "a.png"), (red, "a.png"), (blue, None), (blue, "b.png"), (red, "a.png"), (None, "a.png")]
    table = pa.table({
        "image": [{"bytes": data, "path": path} for data, path in shown],
        "text": [f"row {i}" for i in range(7)],
        "group": [None, None, None, None, None, "mine", None],
    })  # fmt: skip
    for part in range(2):  # and in both files of a folder
        if arrow:
            with pa.OSFile(str(tmp_path / f"{part}.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
                out.write_table(table, max_chunksize=2)
        else:
            pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=2)
    (source,) = scan(tmp_path, READ)
    keys = [i.key for i in source.items]
    want = [keys[0], keys[1], keys[0], keys[3], keys[1], "mine", keys[6]]
    assert [i.group for i in source.items] == [*want, *want[:3], keys[10], *want[4:6], keys[13]] and not source.problems


@pytest.fixture
def pictures(tmp_path):
    for i, colour in enumerate(COLOURS.values()):
        Image.fromarray(ball(colour)).save(tmp_path / f"p{i}.png")
    return tmp_path


def told(folder, rows, name="docs.jsonl"):
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(r) + "\n" for r in rows)
    (folder / name).write_text(text, encoding="utf-8")
    (source,) = scan(folder, READ)
    return [(i.file.name if i.kind != "text" else None, i.texts, i.group) for i in source.items], source.problems


def test_what_follows_a_picture_is_told_of_it(pictures):
    content = [{"text": "Before."}, {"image": "p0.png"}, {"text": "One."}, {"text": "More."}, {"image": "p1.png"}]
    content += [{"image": "p2.png"}, {"text": "Two."}]
    found, problems = told(pictures, [{"id": "a", "content": content}])
    want = [(None, ("Before.",)), ("p0.png", ("One.\nMore.",)), ("p1.png", ()), ("p2.png", ("Two.",))]
    assert found == [(*w, "a") for w in want] and not problems


@pytest.mark.parametrize(
    "row",
    [
        {"images": ["p0.png", None, "p1.png", None], "texts": [None, "One.", None, "Two."]},
        {
            "text_list": ["One.", "Two."],
            "image_info": [
                {"image_name": "p1.png", "matched_text_index": 1},
                {"image_name": "p0.png", "matched_text_index": 0},
            ],
        },
    ],
)
def test_published_interleaved_layouts(row, pictures):
    found, _ = told(pictures, [row])
    assert [f[:2] for f in found] == [("p0.png", ("One.",)), ("p1.png", ("Two.",))]


def test_rows_that_speak_of_one_picture_are_one_group(pictures):
    """Directly or by way of others, so that neither a picture nor a text lands on both sides of the held-out split."""
    rows = [
        {"id": "a", "content": [{"image": "p0.png"}, {"text": "One."}]},
        {
            "id": "b",
            "content": [{"text": "Two."}, {"image": "p1.png"}, {"text": "Three."}, {"image": "./p0.png"}, {"text": "Four."}],
        },
        {"id": "c", "image": ["p1.png", "p2.png"], "conversations": [{"from": "human", "value": "Compare."}]},
        {"id": "d", "content": [{"text": "Apart."}]},
        {"id": "e", "image": ["p3.png"], "conversations": [{"from": "human", "value": "Alone."}]},
    ]
    found, problems = told(pictures, rows)
    groups = {group for _, texts, group in found if texts[0] not in ("Apart.", "Alone.")}
    assert len(groups) == 1 and len(found) == 8 and not problems
    assert {texts[0]: group for _, texts, group in found}["Apart."] == "d"
    named, _ = told(pictures, [rows[0] | {"story": "s"}, rows[1] | {"group": "", "story": "t"}])
    assert {group for *_, group in named} == {"s", "t"}  # a row's own name for its group counts


@pytest.mark.parametrize(
    "row, why",
    [
        ({"images": ["p0.png", None], "texts": [None, "One.", "lost"]}, "2 images and 3 texts"),
        ({"text_list": ["One."], "image_info": [{"image_name": "p0.png"}]}, "matched_text_index"),
        ({"text_list": ["One."], "image_info": [{"image_name": "p0.png", "matched_text_index": 1}]}, "matched_text_index"),
    ],
)
def test_parts_that_belong_to_nothing_are_said(row, why, pictures):
    found, problems = told(pictures, [row])
    assert not found and why in problems[0].reason


def test_a_last_picture_is_told_by_what_stands_before(pictures):
    found, _ = told(pictures, [{"content": [{"text": "Look:"}, {"image": "p0.png"}]}])
    assert [f[:2] for f in found] == [("p0.png", ("Look:",))]


@pytest.mark.parametrize("name", ["chat.json", "chat.jsonl"])
def test_conversations_as_llava_has_them(name, pictures):
    (pictures / "images").mkdir()
    (pictures / "p3.png").rename(pictures / "images" / "p3.png")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A ball."}]
    rows = [
        {"id": "1", "image": "p0.png", "conversations": turns},
        {"id": "2", "image": "p0.png", "conversations": turns[1:]},
        {"id": "3", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]},
        {"id": "4", "image": "p3.png", "conversations": turns},
        {"id": "5", "image": "gone.png", "conversations": turns},
        {"id": "6", "conversations": [{"from": "human"}]},
    ]
    found, problems = told(pictures, rows, name)
    both = ("What is it?\nA ball.",)
    assert found[0] == ("p0.png", both, "p0.png") and found[1] == ("p0.png", ("A ball.",), "p0.png")
    assert found[2] == (None, ("Hello\nHi",), "3") and found[3][:2] == ("p3.png", both)
    assert [p.reason for p in problems] == ["the file is missing", "a turn of the conversation has no text under value"]


def test_a_row_that_is_none_costs_itself(pictures):
    rows = ['{"content": [{"image": "p0.png"}, {"text": "One."}]}', "{nonsense", '"words"', '{"content": [7]}', "[" * 99_999]
    rows += ['{"content": [{"text": "' + "a" * 600 + '"}]}', '{"content": [{"image": "p1.png"}, {"text": "Two."}]}']
    (pictures / "docs.jsonl").write_text("\n".join(rows))
    (source,) = scan(pictures, READ, Limits(row_bytes=500))
    assert [i.texts for i in source.items] == [("One.",), ("Two.",)]
    assert [p.item for p in source.problems] == [f"docs.jsonl#{i}" for i in (2, 3, 4, 5, 6)]
    assert "row_bytes" in source.problems[4].reason


CHAT = {"image": "p0.png", "conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A ball."}]}


@pytest.mark.parametrize(
    "text,options,why",
    [
        (json.dumps([CHAT] * 9), replace(READ, max_text_bytes=500), "larger than max_text_bytes"),
        (json.dumps([CHAT] * 9)[:-40], READ, "is not JSON"),
    ],
)
def test_a_file_of_conversations_that_cannot_be_read_is_said(text, options, why, pictures):
    """Its pictures are not read without what is said of them."""
    (pictures / "chat.json").write_text(text)
    (source,) = scan(pictures, options)
    assert not source.items and [p.item for p in source.problems] == ["chat.json"] and why in source.problems[0].reason
    assert source.notes[0].startswith("left out 4 pictures or videos beside the documents")
    with pytest.raises(DataError, match=rf"no usable items.*chat\.json: .*{why}"):
        find([pictures], replace(TINY, read=options))


@pytest.mark.parametrize("first", ["{nonsense", '"words"', '{"_comment": "made by hand"}'])
def test_a_first_row_that_is_none_costs_itself(first, pictures):
    (pictures / "pages.jsonl").write_text(first + '\n{"content": [{"image": "p0.png"}, {"text": "One."}]}\n')
    (source,) = scan(pictures, READ)
    assert [i.texts for i in source.items] == [("One.",)] and [p.item for p in source.problems] == ["pages.jsonl#1"]


def test_what_is_not_read_beside_tars_tables_or_documents_is_counted(pages, tmp_path):
    root = tmp_path / "story"
    as_tars(tmp_path, pages[:3])
    (root / "more.txt").write_text("words")
    (root / "LICENSE.txt").write_text("none")
    (root / "sub").mkdir()
    (root / "sub" / "a.png").write_bytes(encoded(ball((9, 9, 9))))
    (source,) = scan(root, READ)
    assert len(source.items) == 3
    want = "left out 1 tables, 1 texts, 1 pictures or videos beside the tars; give them as sources of their own to read them"
    assert source.notes == [want]
    (root / "00000.tar").unlink()
    assert scan(root, READ)[0].notes == [want.replace("1 tables, ", "").replace("tars", "tables")]
    (root / "00000.parquet").unlink()
    (root / "pages.jsonl").write_text('{"content": [{"image": "sub/a.png"}, {"text": "One."}]}')
    (source,) = scan(root, READ)  # the picture is read
    assert source.items[0].kind == "image" and source.notes[0].startswith("left out 1 texts beside the documents;")


@pytest.mark.parametrize("stray", ["old/backup.tar", "old/table.parquet", "pages.jsonl"])
def test_one_stray_file_does_not_hide_a_folder_with_metadata(stray, pages, tmp_path):
    as_plain(tmp_path, pages[:3])
    (tmp_path / "stories.txt").write_text("words")
    (tmp_path / "old").mkdir()
    (tmp_path / stray).write_text('{"content": [{"text": "One."}]}')
    with pytest.raises(DataError, match=rf"\({stray}\) and a folder with metadata \(story\); give each as a source of its own"):
        scan(tmp_path, READ)
    (tmp_path / stray).unlink()
    assert [len(s.items) for s in scan(tmp_path, READ)] == [3, 1]


SRT = """1
00:00:00,000 --> 00:00:01,900
<i>It is</i> red.

2
00:00:02,000 --> 00:00:04,000
It is &lt;green&gt;
now.

3
00:00:04,100 --> 00:00:06,000
{\\an8}It is blue.

4
00:00:09,000 --> 00:00:08,000
Backwards.
"""


def test_narrated_clips_show_what_is_said(tmp_path):
    colours = [COLOURS[n] for n in ("red", "green", "blue")]
    film = np.concatenate([np.full((16, 32, 32, 3), c, np.uint8) for c in colours])
    save_mp4(film, tmp_path / "talk.mp4", fps=8)
    save_mp4(film, tmp_path / "silent.mp4", fps=8)
    (tmp_path / "talk.en.srt").write_text(SRT, encoding="utf-8")
    (source,) = scan(tmp_path, READ)
    assert [i.texts for i in source.items] == [(), ("It is red.",), ("It is <green> now.",), ("It is blue.",)]
    assert not source.notes and routes_of(source.items) == ["t2v", "v2t", "v2v", "tv2v"]
    assert {i.group for i in source.items[1:]} == {"talk.mp4"}
    for item, colour in zip(source.items[1:], colours, strict=True):
        frames = np.concatenate(read_clips(item, READ))
        assert 7 <= len(frames) <= 9  # two seconds at four frames a second
        assert np.abs(frames.astype(int) - colour).mean() < 12


def test_subtitles_of_another_part_are_not_those_of_a_language(tmp_path):
    film = np.full((32, 32, 32, 3), 90, np.uint8)
    for name in ("talk", "talk.part2", "show", "show.en"):
        save_mp4(film, tmp_path / f"{name}.mp4", fps=8)
    for name in ("talk.part2", "talk.de", "talk.pt-BR", "talk.zh_Hant", "talk.english", "show.en"):
        (tmp_path / f"{name}.srt").write_text(f"1\n00:00:00,000 --> 00:00:02,000\n{name}\n")
    (source,) = scan(tmp_path, READ)
    assert {i.key: i.texts for i in source.items} == {
        "show.en.mp4@1": ("show.en",),
        "show.mp4": (),
        "talk.mp4@1": ("talk.de", "talk.pt-BR", "talk.zh_Hant"),
        "talk.part2.mp4@1": ("talk.part2",),
    }
    (note,) = source.notes
    assert note.startswith("left out 1 subtitles that belong to no video (talk.english.srt);")


def test_subtitles_of_a_video_whose_name_a_mac_wrote(tmp_path):
    name = "K\u00e4se"
    save_mp4(np.full((32, 32, 32, 3), 90, np.uint8), tmp_path / f"{unicodedata.normalize('NFD', name)}.mp4", fps=8)
    (tmp_path / f"{name}.de.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nja\n")
    (source,) = scan(tmp_path, READ)
    assert [i.texts for i in source.items] == [("ja",)] and not source.notes


def test_narrated_clips_stay_in_the_group_of_their_video(tmp_path):
    save_mp4(np.full((48, 32, 32, 3), 90, np.uint8), tmp_path / "talk.mp4", fps=8)
    (tmp_path / "talk.srt").write_text(SRT, encoding="utf-8")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "talk.mp4", "group": "kitchen"}')
    (source,) = scan(tmp_path, READ)
    assert [i.group for i in source.items] == ["kitchen"] * 3


stamps = st.integers(0, 3_000_000)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(stamps, st.integers(600, 9000), st.text("abc é玉.'", min_size=1, max_size=20)), max_size=6),
    st.booleans(),
)
def test_cues_are_read_as_they_were_written(tmp_path_factory, cues, webvtt):
    def stamp(ms):
        return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{'.' if webvtt else ','}{ms % 1000:03}"

    begin, want, lines = 0, [], ["WEBVTT\nKind: captions\n"] if webvtt else []
    for gap, length, words in cues:
        begin += gap + 600
        lines.append(f"{stamp(begin)} --> {stamp(begin + length)}{' align:start' if webvtt else ''}\n{words}\n")
        if words.split():
            want.append((begin / 1000, (begin + length) / 1000, " ".join(words.split())))
        begin += length
    path = tmp_path_factory.mktemp("cues") / f"a.{'vtt' if webvtt else 'srt'}"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert [(pytest.approx(a), pytest.approx(b), t) for a, b, t in read_cues(path, READ)] == want


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("ab éё玉", min_size=1, max_size=9).filter(str.strip), min_size=1, max_size=5), st.randoms())
def test_what_webdataset_writes_is_read_back(tmp_path_factory, captions, rng):
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    frames = [np.full((8, 8, 3), rng.randrange(256), np.uint8) for _ in captions]
    with wds.TarWriter(str(path)) as sink:
        for i, (frame, text) in enumerate(zip(frames, captions, strict=True)):
            sink.write({"__key__": f"{i:04}", "png": encoded(frame), "txt": text})
    (source,) = scan(path, replace(READ, size=8))
    assert [i.texts for i in source.items] == [(t.strip(),) for t in captions]
    for item, frame in zip(source.items, frames, strict=True):
        assert np.array_equal(read_clips(item, replace(READ, size=8))[0][0], frame)


def test_damage_costs_a_sample_or_what_is_behind_it(pages, tmp_path):
    path = tmp_path / "a.tar"
    with wds.TarWriter(str(path)) as sink:
        sink.write({"__key__": "0", pages[0][3]: pages[0][2], "json": b'"a string"'})
        sink.write({"__key__": "1", "npy": b"no picture"})
        sink.write({"__key__": "2", pages[0][3]: pages[0][2], "json": b"{nonsense"})
        sink.write({"__key__": "3", "txt": "words alone"})
        sink.write({"__key__": "4", "png": b"not a picture"})
    (source,) = scan(path, READ)
    assert [i.kind for i in source.items] == ["image", "text", "image"]
    assert [p.item for p in source.problems] == ["a.tar:1", "a.tar:2"]
    with pytest.raises(ItemError, match=r"a\.tar \(a\.tar:4\)"):
        read_clips(source.items[2], READ)
    whole = path.read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: 700 + len(pages[0][2]) // 2])
    (source,) = scan(tmp_path / "cut.tar", READ)
    assert not source.items and "cut short" in source.problems[-1].reason
    (tmp_path / "text.tar").write_text("I am no tar")
    assert "no plain tar" in scan(tmp_path / "text.tar", READ)[0].problems[0].reason
    (tmp_path / "text.parquet").write_text("I am no table")
    assert "no parquet table" in scan(tmp_path / "text.parquet", READ)[0].problems[0].reason
    with tarfile.open(tmp_path / "z.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match="compressed tar"):
        scan(tmp_path / "z.tar.gz", READ)
    link = tarfile.TarInfo("5.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        archive.addfile(link)
    assert not scan(tmp_path / "link.tar", READ)[0].items


@pytest.mark.parametrize("size", [b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777\0", b"-0000000001\0"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_SPARSE])
def test_members_of_tars_that_lie_about_their_size(kind, size, tmp_path):
    """Found by mutation: the library raises ValueError, or asks for all the memory there is."""
    info = tarfile.TarInfo("0.txt")
    info.type = kind
    head = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    head[124:136], head[148:156] = size, b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    whole = tarfile.TarInfo("1.txt")
    whole.size = 6
    body = whole.tobuf() + b"a ball" + bytes(506)
    (tmp_path / "a.tar").write_bytes(body + bytes(head) + bytes(512) + body.replace(b"1.txt", b"2.txt") + bytes(1024))
    (source,) = scan(tmp_path / "a.tar", READ)
    assert [i.texts for i in source.items][:1] == [("a ball",)]
    assert source.problems or len(source.items) == 2


def test_a_cell_that_cannot_be_read_costs_its_row(tmp_path):
    """Found by mutation: text that is not UTF-8, a time that no calendar has."""
    text = pa.Array.from_buffers(pa.string(), 3, pa.array([b"one", b"\xff\xfe", b"three"]).buffers())
    for kind, column in (("text", text), ("caption", pa.array(["one", "two", "three"]))):
        when = pa.array([0, 2**62, 0] if kind == "caption" else [0, 0, 0]).cast(pa.timestamp("ms"))
        table = pa.table({kind: column, "story": when})
        pq.write_table(table, tmp_path / f"{kind}.parquet")
        with pa.ipc.new_stream(str(tmp_path / f"{kind}.arrow"), table.schema) as sink:
            sink.write_table(table)
        for ending in ("parquet", "arrow"):
            (source,) = scan(tmp_path / f"{kind}.{ending}", READ)
            assert [i.texts for i in source.items] == [("one",), ("three",)]
            assert [p.item for p in source.problems] == [f"{kind}.{ending}#1"]


def test_a_row_group_that_is_damaged_costs_itself(tmp_path):
    """Found by mutation: pages are read long after the file was opened."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"line {i} " * 9 for i in range(90)]}), path, row_group_size=30, compression="gzip")
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    raw = bytearray(path.read_bytes())
    raw[start : start + 60] = bytes(60)
    path.write_bytes(raw)
    (source,) = scan(path, READ)
    assert [i.texts[0].split()[1] for i in source.items] == [str(i) for i in [*range(30), *range(60, 90)]]
    assert "row group 1 is damaged" in source.problems[0].reason
    table = pa.table({"text": ["one"] * 9})
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as sink:
        sink.write_table(table, max_chunksize=3)
    raw = (tmp_path / "a.arrow").read_bytes()
    (tmp_path / "a.arrow").write_bytes(raw[: len(raw) * 2 // 3] + b"\xff" * 40)
    (source,) = scan(tmp_path / "a.arrow", READ)
    assert 3 <= len(source.items) < 9 and "what lies before is read" in source.problems[0].reason


def test_columns_of_one_name_are_refused(tmp_path):
    """Found by mutation: which of the two is meant, the library does not say."""
    table = pa.table([["one"], ["two"]], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as sink:
        sink.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        (source,) = scan(tmp_path / name, READ)
        assert not source.items and "several columns named text" in source.problems[0].reason


def test_names_of_columns_that_are_no_text_are_refused(tmp_path):
    """Found by mutation: the library shows the schema, and raises at a look at its names."""
    table = pa.table([["one"]], names=["caption"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as sink:
        sink.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        raw = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(raw.replace(b"caption", b"capti\xfen"))
        (source,) = scan(tmp_path / name, READ)
        assert not source.items and "damaged" in source.problems[0].reason


@pytest.mark.parametrize("row", [{"content": [{"image": "9" * 300 + ".png"}]}, {"text_list": ["a"], "image_info": 3}])
def test_documents_that_name_nothing(row, pictures):
    """Found by mutation: a name longer than the system takes, a number in the place of a list."""
    found, problems = told(pictures, [row, {"content": [{"image": "p0.png"}, {"text": "One."}]}])
    assert ("p0.png", ("One.",)) in [f[:2] for f in found] and len(found) + len(problems) == 2


def test_bytes_that_are_random_raise_nothing_unforeseen(tmp_path):
    rng = random.Random(0)
    for i in range(30):
        for ending in ("tar", "parquet", "arrow", "json", "srt"):
            path = tmp_path / f"{i}.{ending}"
            path.write_bytes(rng.randbytes(rng.randrange(1, 1500)))
            if ending == "srt":
                assert isinstance(read_cues(path, READ), list)
                continue
            with contextlib.suppress(DataError):
                assert all(not s.items for s in scan(path, READ))


def test_without_pyarrow_one_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "words.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["prepare", str(tmp_path / "words.parquet"), "--out", str(tmp_path / "out")]) == 2
    assert "pip install -c constraints.txt -e '.[data]'" in capsys.readouterr().err


def test_inspect_shows_and_writes_nothing(pages, tmp_path, capsys, monkeypatch):
    as_tars(tmp_path / "a", pages)
    with tarfile.open(tmp_path / "a" / "story" / "00000.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("zz.png"))
    before = sorted(tmp_path.rglob("*"))
    assert main(["prepare", str(tmp_path / "a" / "story"), "--inspect", "--out", str(tmp_path / "out")]) == 0
    report = capsys.readouterr().out
    line = next(x for x in report.splitlines() if x.startswith("story")).split()
    assert line[1:5] == ["0", "60", "0", "60"] and line[-2:] == ["t2v", "v2t"] and line[-3] == "1"
    assert report.count("(1 frames)") == 5 and "left out 1 tables" in report and "problem: 00000.tar:zz" in report
    sheets = [x.removeprefix("samples: ") for x in report.splitlines() if x.startswith("samples: ")]
    assert len(sheets) == 1 and Image.open(sheets[0]).size[1] > 5 * 2 * 64
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["prepare", str(tmp_path / "a" / "story")]) == 2
    assert "--out is missing" in capsys.readouterr().err


def test_what_the_data_does_not_teach_is_said(data, tmp_path, capsys):
    """The commonest folder of a newcomer: pictures without captions, of which no text can be learnt to be drawn."""
    assert lacking(set(ROUTES)) == "" and "nothing here teaches" not in table(Dataset(data))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert main(["prepare", str(tmp_path), "--inspect"]) == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("nothing here teaches"))
    assert "t2v and v2t (captions" in said and "t2t (documents" in said and "v2v" not in said
