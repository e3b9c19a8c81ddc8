"""Datasets of the hub: streamed once into tables, going on where it was stopped. Local folders stand for the hub, whose code path is
the same; names that only a hub could know are refused in a sentence."""

import gc
import io
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quadrivium.cli import main
from quadrivium.data import hub
from quadrivium.data.formats import scan
from quadrivium.data.sources import ReadOptions, read_clips
from quadrivium.errors import DataError, ItemError
from quadrivium.pictures import save_mp4

from .conftest import COLOURS, ball

datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install -c constraints.txt -e '.[data]'")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install -c constraints.txt -e '.[data]'")
import pyarrow as pa  # noqa: E402

# datasets' pickling of tables warns, and its streams leave files to the collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore:Cannot (locate|pickle)", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
READ = ReadOptions(size=16)


@pytest.fixture(autouse=True)
def _files_that_the_library_leaves_open():
    """It leaves a metadata.csv open in a cycle; where that is collected, in whatever test, the warning would count as that test's error."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "quadrivium"


def png(i):
    out = io.BytesIO()
    Image.fromarray(ball(COLOURS[list(COLOURS)[i % 4]], x=3 + i % 9)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def repository(tmp_path):
    """A dataset's repository: parquet of two splits."""
    made = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": png(i), "path": None} for i in range(20)],
            "text": [f"ball {i}" for i in range(20)],
            "n": range(20),
        },
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string"), "n": datasets.Value("int32")}),
    )
    folder = tmp_path / "repository" / "data"
    folder.mkdir(parents=True)
    made.select(range(16)).to_parquet(str(folder / "train-00000-of-00001.parquet"))
    made.select(range(16, 20)).to_parquet(str(folder / "test-00000-of-00001.parquet"))
    return folder.parent


def items_of(folder):
    (source,) = scan(folder, READ)
    assert not source.problems
    return source.items


@pytest.mark.parametrize("split,want", [(None, range(16)), ("test", range(16, 20)), ("train+test", range(20))])
def test_a_stream_is_read_like_the_table_it_came_from(repository, split, want):
    items = items_of(hub.stream(str(repository), split=split))
    assert [i.texts for i in items] == [(f"ball {n}",) for n in want]
    got = read_clips(items[3], READ)[0][0]
    (repository / "x.png").write_bytes(png(want[3]))
    assert np.array_equal(got, read_clips(scan(repository / "x.png", READ)[0].items[0], READ)[0][0])


def test_only_the_rows_that_are_asked_for_are_taken(repository):
    assert len(items_of(hub.stream(str(repository), rows=5))) == 5
    assert len(items_of(hub.stream(str(repository), split="test", rows=50))) == 4


def test_what_was_fetched_is_not_fetched_again(repository, monkeypatch):
    folder = hub.stream(str(repository))
    monkeypatch.setattr(datasets, "load_dataset", None)
    assert hub.stream(str(repository)) == folder


def test_two_at_once_fetch_it_once(repository, monkeypatch):
    plain, asked = datasets.load_dataset, []

    def slow(*args, **how):
        asked.append(args)
        time.sleep(0.3)
        return plain(*args, **how)

    monkeypatch.setattr(datasets, "load_dataset", slow)
    with ThreadPoolExecutor(2) as pool:  # a lock holds between two openings of a file, in one process or in two
        folder, same = pool.map(hub.stream, [str(repository)] * 2)
    assert folder == same and len(asked) == 1 and len(items_of(folder)) == 16


def test_it_goes_on_where_it_was_stopped(repository, monkeypatch, cache):
    monkeypatch.setattr(hub, "_ROWS", 3)
    plain, written = datasets.Dataset.to_parquet, []

    def full(self, path, **how):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(path)
        return plain(self, path, **how)

    monkeypatch.setattr(datasets.Dataset, "to_parquet", full)
    with pytest.raises(DataError, match=r"No space left.*goes on"):
        hub.stream(str(repository))
    monkeypatch.setattr(datasets.Dataset, "to_parquet", plain)
    folder = hub.stream(str(repository))
    assert [i.texts[0] for i in items_of(folder)] == [f"ball {n}" for n in range(16)]
    assert [pq.read_metadata(f).num_rows for f in sorted(folder.glob("*.parquet"))] == [3, 3, 3, 3, 3, 1]


def test_media_that_are_files_come_along(tmp_path):
    folder = tmp_path / "shapes"
    folder.mkdir()
    lines = ["file_name,text"]
    for i in range(3):
        save_mp4(np.stack([ball(COLOURS["red"], x=3 + 2 * t) for t in range(5)]), folder / f"{i}.mp4", fps=4)
        lines.append(f"{i}.mp4,clip {i}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    stored = hub.stream(str(folder))
    for file in folder.iterdir():
        file.unlink()
    items = items_of(stored)
    assert [(i.kind, i.texts) for i in items] == [("video", (f"clip {n}",)) for n in range(3)]
    assert len(read_clips(items[1], READ)[0]) == 5


def test_files_outside_the_dataset_are_not_read(tmp_path):
    """A row may name any file of this machine, or any address."""
    (tmp_path / "private.png").write_bytes(png(0))
    folder = tmp_path / "named"
    folder.mkdir()
    (folder / "own.png").write_bytes(png(1))
    named = [
        folder / "own.png",
        tmp_path / "private.png",
        f"file://{tmp_path}/private.png",
        folder / "../private.png",
        "/dev/zero",
    ]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": None, "path": str(n)} for n in named], "text": [f"text {i}" for i in range(len(named))]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train.parquet"))
    stored = hub.stream(str(folder))
    cells = pq.read_table(next(stored.glob("*.parquet"))).to_pydict()["image"]
    assert cells[0]["bytes"] == png(1) and cells[1:] == [None] * 4
    own, *others = items_of(stored)
    assert len(read_clips(own, READ)) == 1
    for item in others:  # which prepare skips and lists
        with pytest.raises(ItemError):
            read_clips(item, READ)


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("hf://datasets/some/where@1a2b/images/1.png", True),
        ("zip://1.png::hf://datasets/some/where@1a2b/images.zip", True),
        ("hf://datasets/some/else@1a2b/1.png", False),
        ("hf://datasets/other/where@1a2b/1.png", False),
        ("zip://1.png::file:///home/a.zip", False),
        ("filecache://1.png::hf://datasets/some/where@1a2b/1.png", False),
        ("http://169.254.169.254/latest", False),
    ],
)
def test_whose_an_address_is(address, inside):
    assert hub._inside(address, "some/where") is inside
    assert hub._inside("hf://datasets/uoft-cs/cifar10@1a2b/x.png", "cifar10")


def test_rows_of_one_picture_stay_one_group(tmp_path):
    (tmp_path / "asked").mkdir()
    shown = {"image": [{"bytes": png(i // 2), "path": None} for i in range(4)], "text": [f"question {i}" for i in range(4)]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(shown, features=features).to_parquet(str(tmp_path / "asked" / "train.parquet"))
    groups = [i.group for i in items_of(hub.stream(str(tmp_path / "asked")))]
    assert groups[0] == groups[1] != groups[2] == groups[3]


def test_text_alone_and_sounds_left_out(tmp_path):
    (tmp_path / "heard").mkdir()
    sound = datasets.Features({"audio": datasets.Audio(decode=False), "text": datasets.Value("string")})
    rows = {"audio": [{"bytes": b"RIFF", "path": None}], "text": ["a bell"]}
    pq.write_table(pa.table(rows, schema=sound.arrow_schema), tmp_path / "heard" / "train.parquet")
    stored = hub.stream(str(tmp_path / "heard"))
    assert pq.read_schema(next(stored.glob("*.parquet"))).names == ["text"] and items_of(stored)[0].texts == ("a bell",)
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(f'{{"text": "line {i}"}}\n' for i in range(7)))
    assert [i.texts for i in items_of(hub.stream(str(folder)))] == [(f"line {i}",) for i in range(7)]


def test_an_address_is_a_source(repository, monkeypatch, tmp_path, capsys):
    plain = datasets.load_dataset
    asked = []

    def load(name, config, **how):
        asked.append((name, config, how["split"]))
        return plain(str(repository), **how)

    monkeypatch.setattr(datasets, "load_dataset", load)
    address = "hf://someone/balls?split=train&rows=6"
    assert main(["prepare", address, "--inspect", "--read.size", "16"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("balls")).split()
    assert line[1:4] == ["0", "6", "0"] and asked == [("someone/balls", None, "train")]
    (source,) = scan(Path("hf://datasets/someone/balls"), READ)
    assert source.name == "balls" and len(source.items) == 16
    assert len(scan(Path("hf://someone/balls?split=train+test"), READ)[0].items) == 20


def test_what_cannot_be_fetched_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="cannot be fetched"):
        hub.stream(str(tmp_path / "none"))
    for address, why in (("hf://a/b?rows=0", "rows is '0'"), ("hf://a/b?spilt=x", "unknown key 'spilt'")):
        assert main(["prepare", address, "--inspect"]) == 2
        assert why in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert main(["prepare", "hf://someone/balls", "--inspect"]) == 2
    assert "pip install -c constraints.txt -e '.[data]'" in capsys.readouterr().err
