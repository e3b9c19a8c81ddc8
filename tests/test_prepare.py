"""From folders to shards: what is found, what a second run does, what damage costs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from quadrivium.data.shards import Dataset, map_shard, read_json
from quadrivium.errors import ConfigError, DataError, RunError
from quadrivium.prepare import prepare
from quadrivium.text import TextTokenizer
from quadrivium.visual import VisualTokenizer
from tests.conftest import TINY, write_folder


def contents(folder):
    """Bytes of all shards and tokenizers by name."""
    return {
        p.relative_to(folder): p.read_bytes()
        for d in ("shards", "tokenizers")
        for p in sorted((folder / d).rglob("*"))
        if p.is_file()
    }


def test_everything_is_found_and_feeds_its_routes(data, capsys):
    prepared = Dataset(data)
    prepared.verify()
    counts = {
        s.name: (int((s.frames == 0).sum()), int((s.frames == 1).sum()), int((s.frames > 1).sum()), int(s.texts.sum()))
        for s in prepared.sources
    }
    assert counts["mine/pictures"] == (0, 24, 0, 48)
    assert counts["mine/clips"] == (0, 0, 32, 24)  # every third clip of 24 is two clips long; every fourth has no caption
    assert counts["mine/media"] == (0, 24, 0, 0)
    assert counts["mine/text"][0] > 100
    assert (data / "skipped.jsonl").read_text() == ""


def test_frames_and_texts_come_back(data, folder):
    prepared = Dataset(data)
    text, visual = TextTokenizer.load(data / "tokenizers" / "text"), VisualTokenizer.load(data / "tokenizers" / "visual")
    pictures = next(s for s in prepared.sources if s.name == "mine/pictures")
    rows = [json.loads(line) for line in (folder / "pictures" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    by_name = {r["file_name"]: r for r in rows}
    for i in range(len(pictures)):
        row = by_name[pictures.key(i).split("/")[-1]]
        assert [text.decode(pictures.text(i, t)) for t in range(2)] == [row["text"], row["text_ja"]]
    assert visual.decode(pictures.codes(0)).shape == (1, 16, 16, 3)


def test_groups_are_never_split(data):
    for source in Dataset(data).sources:
        for group in np.unique(source.group):
            assert len(set(source.held[source.group == group])) == 1
    pictures = next(s for s in Dataset(data).sources if s.name == "mine/pictures")
    assert len(np.unique(pictures.group)) == 12  # two pages a story


def test_a_second_run_writes_nothing(data, folder, capsys):
    before = {p: p.stat().st_mtime_ns for p in data.rglob("*") if p.is_file() and p.name != ".lock"}
    prepare([folder], data, TINY, progress=False)
    assert "nothing to do" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in data.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_only_what_is_missing_or_damaged_is_written_again(data, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    lost, damaged, *kept = sorted((copy / "shards").iterdir())
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"oops")
    stamps = {p: p.stat().st_mtime_ns for p in kept}
    prepare([folder], copy, TINY, progress=False)
    assert {p: p.stat().st_mtime_ns for p in kept} == stamps
    assert contents(copy) == contents(data)


def test_killed_anywhere_and_run_again_it_is_as_if_undisturbed(folder, data, tmp_path):
    """SIGKILL at four moments: while tokenizers are learned, while shards are written."""
    out = tmp_path / "killed"
    code = f"import sys; from pathlib import Path; from tests.conftest import SAVING; from quadrivium.prepare import prepare; prepare([Path({str(folder)!r})], Path({str(out)!r}), SAVING, progress=False)"
    moments = [
        lambda: (out / "tokenizers" / "text").exists(),
        lambda: (out / ".work" / "sample.json").exists(),
        lambda: any((out / ".work").glob("visual/checkpoints/step*")),
        lambda: any(out.glob("shards/*.safetensors")),
    ]
    killed = 0
    for reached in moments:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not reached():
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        if not read_json(out / "manifest.json", "a data folder")["complete"]:
            with pytest.raises(RunError, match="did not finish"):
                Dataset(out)
    assert killed >= 2
    prepare([folder], out, TINY, progress=False)
    assert contents(out) == contents(data)


def broken(root, n_bad, n=100):
    """A folder of n text rows of which n_bad are damaged."""
    root.mkdir()
    rows = [
        json.dumps({"text": f"this is row number {i} of a folder of text"}) if i >= n_bad else "{not json" for i in range(n)
    ]
    (root / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return root


def test_three_percent_damage_is_listed_and_the_rest_used(tmp_path):
    found = prepare([broken(tmp_path / "three", 3)], tmp_path / "out", TINY, progress=False)
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and all("json" in p["reason"].lower() for p in lines)
    assert len(found.sources[0]) == 97


def test_six_percent_damage_stops_and_says_so(tmp_path):
    with pytest.raises(DataError, match="6 of 100 items"):
        prepare([broken(tmp_path / "six", 6)], tmp_path / "out", TINY, progress=False)
    assert len((tmp_path / "out" / "skipped.jsonl").read_text().splitlines()) == 6
    with pytest.raises(RunError, match="did not finish"):
        Dataset(tmp_path / "out")
    assert len(prepare([tmp_path / "six"], tmp_path / "out", replace(TINY, max_bad=0.1), progress=False).sources[0]) == 94


def test_damaged_media_are_found_while_decoding(tmp_path):
    root = write_folder(tmp_path / "mine", n=20)
    (root / "clips" / "3.mp4").write_bytes((root / "clips" / "3.mp4").read_bytes()[:200])
    found = prepare([root], tmp_path / "out", TINY, progress=False)
    (problem,) = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert problem["item"].endswith("3.mp4")
    clips = next(s for s in found.sources if s.name == "mine/clips")
    assert not any(clips.key(i).split("#")[0] == "3.mp4" for i in range(len(clips)))


def test_other_options_are_refused_in_the_same_folder(data, folder):
    with pytest.raises(RunError, match="prepared with another vocab"):
        prepare([folder], data, replace(TINY, vocab=400), progress=False)


def test_a_folder_of_something_else_is_not_written_into(tmp_path, folder):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="something else"):
        prepare([folder], tmp_path, TINY, progress=False)


def test_a_run_is_not_written_into(tmp_path, folder):
    """It is locked as a data folder is, and has tokenizers."""
    words = tmp_path / "tokenizers" / "text" / "tokenizer.json"
    words.parent.mkdir(parents=True)
    for path in (words, tmp_path / ".lock", tmp_path / "config.json"):
        path.write_text("{}")
    with pytest.raises(RunError, match="something else"):
        prepare([folder], tmp_path, TINY, progress=False)
    assert words.read_text() == "{}" and not (tmp_path / "manifest.json").exists()


def test_a_data_folder_whose_manifest_was_deleted_begins_anew(tmp_path, folder):
    out = prepare([folder / "text"], tmp_path / "out", TINY, progress=False).folder
    before = contents(out)
    (out / "manifest.json").unlink()
    (out / ".work").mkdir()
    prepare([folder / "text"], out, TINY, progress=False)
    assert contents(out) == before


def test_what_is_left_out_is_said(tmp_path, folder, capsys):
    (tmp_path / "mine").mkdir()
    shutil.copy(folder / "text" / "en.txt", tmp_path / "mine")
    (tmp_path / "mine" / "photo.heic").write_bytes(b"x")
    prepare([tmp_path / "mine"], tmp_path / "out", TINY, progress=False)
    assert "mine: note: ignored by their ending: 1 .heic\n" in capsys.readouterr().err


def test_other_limits_read_again_what_was_refused(data, folder, tmp_path, capsys):
    root = tmp_path / "bare"
    shutil.copytree(folder / "bare", root)
    (root / "3.jpg").write_bytes((root / "3.jpg").read_bytes()[:200])
    given = replace(TINY, text_tokenizer=data / "tokenizers" / "text", visual_tokenizer=data / "tokenizers" / "visual")
    more = replace(given, limits=replace(given.limits, seconds=60.0))
    done = []
    for config in (given, given, more, more):
        prepare([root], tmp_path / "out", config, progress=False)
        done.append("nothing to do" in capsys.readouterr().err)
    assert done == [False, True, False, True]


def test_tokenizers_can_be_given(data, folder, tmp_path):
    given = replace(TINY, text_tokenizer=data / "tokenizers" / "text", visual_tokenizer=data / "tokenizers" / "visual")
    out = prepare([folder], tmp_path / "given", given, progress=False).folder
    assert {p.name: p.read_bytes() for p in (out / "shards").iterdir()} == {
        p.name: p.read_bytes() for p in (data / "shards").iterdir()
    }
    with pytest.raises(ConfigError, match=r"--read\.size 16"):
        prepare([folder], tmp_path / "other", replace(given, read=replace(TINY.read, size=32)), progress=False)


def test_text_alone_needs_no_visual_tokenizer(folder, tmp_path):
    found = prepare([folder / "text"], tmp_path / "text", TINY, progress=False)
    assert not found.has_frames and not (tmp_path / "text" / "tokenizers" / "visual").exists()
    assert (
        not list((tmp_path / "text").glob(".*.part"))
        and map_shard(next((tmp_path / "text" / "shards").iterdir()))["codes"].size == 0
    )
