"""From folders to shards: what is found, what a second run does, what damage costs."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import quadrivium.prepare as preparing
from quadrivium import checkpoint
from quadrivium.data.shards import Dataset, map_shard, read_json
from quadrivium.data.sources import ReadOptions
from quadrivium.errors import ConfigError, DataError, RunError
from quadrivium.inspect import look, write_sheets
from quadrivium.pictures import save_mp4
from quadrivium.prepare import PrepareConfig, doubled, find, prepare, table
from quadrivium.text import TextTokenizer
from quadrivium.visual import VisualTokenizer
from tests.conftest import COLOURS, SAVING, TINY, apart, ball, ended, write_folder


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


def _prepare(folder, out):
    prepare([folder], out, SAVING, progress=False)


def test_killed_anywhere_and_run_again_it_is_as_if_undisturbed(folder, data, tmp_path):
    """SIGKILL at four moments: while tokenizers are learned, while shards are written."""
    out = tmp_path / "killed"
    moments = [
        lambda: (out / "tokenizers" / "text").exists(),
        lambda: (out / ".work" / "sample.json").exists(),
        lambda: any((out / ".work").glob("visual/checkpoints/step*")),
        lambda: any(out.glob("shards/*.safetensors")),
    ]
    killed = 0
    for reached in moments:
        process = apart(_prepare, folder, out)
        while process.is_alive() and not reached():
            time.sleep(0.002)
        process.kill()
        killed += ended(process) == -signal.SIGKILL
        if not read_json(out / "manifest.json", "a data folder")["complete"]:
            with pytest.raises(RunError, match="did not finish"):
                Dataset(out)
    assert killed >= 2
    prepare([folder], out, TINY, progress=False)
    assert contents(out) == contents(data)


def drawn(root, n=12, first=0):
    """A folder of pictures, all different, without captions."""
    root.mkdir(parents=True)
    for i in range(first, first + n):
        Image.fromarray(ball(COLOURS["red"], x=1 + i % 14, y=1 + i // 14)).save(root / f"{i:02d}.png")
    return root


def test_a_stopped_sample_of_other_sources_is_drawn_again(tmp_path, monkeypatch):
    a, b = drawn(tmp_path / "a_first"), drawn(tmp_path / "b_second", first=20)

    def stopped(sources, out, config=TINY):
        with monkeypatch.context() as patch:
            patch.setattr(preparing, "fit", lambda *_, **__: {"finished": False})
            with pytest.raises(RunError, match="the same command goes on"):
                prepare(sources, out, config, progress=False)
        noted = out / ".work" / "sample.json"
        return read_json(noted, "a sample")["of"], noted.stat().st_mtime_ns

    more = tmp_path / "more"
    of, written = stopped([b], more)
    assert set(of) == {0} and stopped([b], more) == (of, written)  # the same command goes on
    of, _ = stopped([a, b], more)
    assert len(of) == 24 and set(of) == {0, 1}
    assert len(stopped([a, b], more, replace(TINY, sample_frames=10))[0]) == 10
    (more / ".work" / "visual").mkdir()
    shorter = replace(TINY, visual_train=replace(TINY.visual_train, steps=3))
    assert len(stopped([a, b], more, shorter)[0]) == 24 and not (more / ".work" / "visual").exists(), "nor was it learnt so"
    fewer = tmp_path / "fewer"
    stopped([a, b], fewer)
    assert len(prepare([b], fewer, TINY, progress=False).sources) == 1
    assert contents(fewer) == contents(prepare([b], tmp_path / "fresh", TINY, progress=False).folder)


def test_a_stopped_folder_goes_on_with_other_shards(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    mine, options = tmp_path / "mine", replace(TINY, shard_items=10)
    mine.mkdir()
    (mine / "a.jsonl").write_text("".join(json.dumps({"text": f"story {i} of a fox"}) + "\n" for i in range(40)))
    with monkeypatch.context() as patch:
        patch.setattr(preparing._Preparation, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare([mine], tmp_path / "out", options, progress=False)
    (source,) = prepare([mine], tmp_path / "out", replace(options, shard_items=15), progress=False).sources
    assert len({source.key(i) for i in range(len(source))}) == len(source) == 40


def test_sources_and_out_do_not_lie_in_one_another(tmp_path):
    mine = drawn(tmp_path / "mine", 1)
    (tmp_path / "mix.toml").write_text('[sources.a]\npath = "mine"')
    (tmp_path / "link").symlink_to(mine)
    for sources in ([mine], [tmp_path / "mix.toml"], [tmp_path / "link"]):
        for out in (mine, mine / "out" / "data"):
            with pytest.raises(ConfigError, match=r"lies in the source .*choose a folder beside it"):
                prepare(sources, out, TINY, progress=False)
    with pytest.raises(ConfigError, match="mine lies in --out"):
        prepare([mine], tmp_path, TINY, progress=False)
    assert not (mine / "out").exists() and not (tmp_path / ".lock").exists()


def test_routes_without_held_out_items_are_named(tmp_path, capsys):
    root = tmp_path / "mine"
    drawn(root / "pictures", 40)
    (root / "log.txt").write_text("a line of a log\n" * 300)
    held, told = (
        look(find([root], TINY), TINY.read, TINY.limits, TINY.held)[0],
        "all that there is for t2t is held out, so nothing",
    )
    assert (
        preparing.is_held("log.txt#1", TINY.held)
        and told in held
        and told not in look(find([root], TINY), TINY.read, TINY.limits, 0.05)[0]
    )
    (root / "log.txt").rename(root / "log2.txt")
    told = "nothing is held out for t2t, so what is learnt there cannot be measured: raise --held"
    assert told in look(find([root], TINY), TINY.read, TINY.limits, TINY.held)[0]
    assert told in table(prepare([root], tmp_path / "out", TINY, progress=False))
    assert "log2.txt: hundreds of lines and no blank one" in capsys.readouterr().err
    (root / "log2.txt").write_text("a line of a log\n\n" * 1000)
    assert "nothing is held out" not in look(find([root], TINY), TINY.read, TINY.limits, TINY.held)[0]


def test_what_is_trained_on_and_held_out_is_counted(tmp_path, capsys):
    root, copies = drawn(tmp_path / "mine", 40), tmp_path / "copies"
    copies.mkdir()
    held = [p for p in sorted(root.iterdir()) if preparing.is_held(p.name, TINY.held)]
    free = (f"{i}.png" for i in range(100) if not preparing.is_held(f"{i}.png", TINY.held))
    shutil.copy(held[0], copies / next(free))
    data = prepare([root], tmp_path / "one", replace(TINY, visual=replace(TINY.visual, levels=(8, 8, 8, 8))), progress=False)
    if alike := doubled(data):  # a tokenizer of 30 steps may not tell all pictures apart
        pytest.skip(alike)
    capsys.readouterr()
    data = prepare(
        [root, copies], tmp_path / "two", replace(TINY, visual_tokenizer=data.folder / "tokenizers" / "visual"), progress=False
    )
    told = f"1 of {len(held)} held-out items are also trained on"
    assert doubled(data).startswith(told) and told in capsys.readouterr().err


def test_documents_that_are_trained_on_and_held_out_are_counted(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {i // 2}"}) + "\n" for i in range(100)))
    data = prepare([tmp_path / "rows.jsonl"], tmp_path / "out", TINY, progress=False)
    held = data.sources[0].held
    parted = sum(bool(held[i] != held[i ^ 1]) for i in range(100)) // 2
    assert parted and doubled(data).startswith(f"{parted} of {held.sum()} held-out items are also trained on")
    (tmp_path / "grouped.jsonl").write_text(
        "".join(json.dumps({"text": f"row {i // 2}", "group": i // 2}) + "\n" for i in range(100))
    )
    assert doubled(prepare([tmp_path / "grouped.jsonl"], tmp_path / "whole", TINY, progress=False)) == ""


def test_sizes_and_batches_that_cannot_be_are_refused_at_once():
    with pytest.raises(ConfigError, match=r"--read\.size is 50; it has to be a multiple of 4 \(--visual\.down\)"):
        PrepareConfig(read=ReadOptions(size=50))
    for batch in (0, -3):
        with pytest.raises(ConfigError, match="visual_batch is"):
            PrepareConfig(visual_batch=batch)


def test_frames_smaller_than_a_window_and_the_best_step(tmp_path, monkeypatch):
    loaded = []
    plain = checkpoint.load
    monkeypatch.setattr(preparing.checkpoint, "load", lambda path, *a: loaded.append(path.name) or plain(path, *a))
    training = replace(TINY.visual_train, steps=12, eval_every=2, keep_best=True)
    small = replace(TINY, read=replace(TINY.read, size=8), visual_train=training)
    prepare([drawn(tmp_path / "mine")], tmp_path / "out", small, progress=False)
    assert len(loaded) == 1 and 0 < int(loaded[0].removeprefix("step-")) <= 12


def test_other_options_of_a_learnt_tokenizer_are_said(tmp_path, capsys):
    root, out = drawn(tmp_path / "mine"), tmp_path / "out"
    prepare([root], out, TINY, progress=False)
    seen = replace(TINY, visual_train=replace(TINY.visual_train, log_every=3, save_every=5))
    other = replace(TINY, visual_train=replace(TINY.visual_train, steps=31), visual_batch=4, sample_frames=50)
    for config, told in (
        (TINY, ""),
        (seen, ""),
        (other, "another --visual-train.steps, --visual-batch, --sample-frames and stays"),
    ):
        capsys.readouterr()
        prepare([root], out, config, progress=False)
        said = capsys.readouterr().err
        assert "nothing to do" in said and ("note:" in said) == bool(told) and told in said
    manifest = read_json(out / "manifest.json", "a data folder")
    del manifest["tokenizers"]["visual"]["options"]  # as it was written before they were remembered
    (out / "manifest.json").write_text(json.dumps(manifest))
    prepare([root], out, other, progress=False)
    assert "note:" not in capsys.readouterr().err


def test_a_folder_whose_name_is_not_utf8(tmp_path, capsys):
    root = drawn(tmp_path / os.fsdecode(b"caf\xe9"))
    out = prepare([root], tmp_path / "out", TINY, progress=False).folder
    assert read_json(out / "manifest.json", "a data folder")["sources"][0]["path"] == str(root)
    capsys.readouterr()
    prepare([root], out, TINY, progress=False)
    assert "nothing to do" in capsys.readouterr().err


def test_when_every_picture_is_bad_the_first_is_named(tmp_path, capsys):
    root = drawn(tmp_path / "mine", 3)
    for path in root.iterdir():
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(
        DataError, match=r"none of 3 pictures and videos could be read, the first: .*\.png.*skipped\.jsonl lists all"
    ):
        prepare([root], tmp_path / "out", TINY, progress=False)
    assert len((tmp_path / "out" / "skipped.jsonl").read_text().splitlines()) == 3
    told = look(find([root], TINY), TINY.read, TINY.limits, TINY.held)[0]
    assert (
        "prepare would stop: at least 3 of 3 items cannot be used, more than 5%; mend them or allow more with --max-bad" in told
    )
    assert "prepare would stop" not in look(find([root], TINY), TINY.read, TINY.limits, TINY.held, max_bad=1.0)[0]


def test_one_frame_is_enough_to_learn_from(tmp_path):
    roots = [drawn(tmp_path / name, 2, first) for name, first in (("a", 0), ("b", 5))]
    assert len(prepare(roots, tmp_path / "out", replace(TINY, sample_frames=1), progress=False).sources) == 2
    assert len(prepare([drawn(tmp_path / "c", 1)], tmp_path / "one", TINY, progress=False).sources[0]) == 1


def test_sheets_of_an_earlier_look_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    sources = find([drawn(tmp_path / "mine")], TINY)
    _, rows = look(sources, TINY.read, TINY.limits, TINY.held)
    (first,), (second,) = write_sheets(rows), write_sheets(rows)
    assert first.is_file() and second.is_file()  # of two at once, neither loses its own
    os.utime(first.parent, (0, 0))
    (third,) = write_sheets(rows)
    assert not first.parent.exists() and second.is_file() and third.is_file()
    assert write_sheets([(sources[0], [])]) == [] and len(list((tmp_path / "temporary").iterdir())) == 2


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


def test_what_was_skipped_is_said_at_the_end(tmp_path, capsys):
    """A team's whole text may be one file."""
    root, out = drawn(tmp_path / "team", 30), tmp_path / "out"
    (root / "handbook.txt").write_bytes("Öl prüfen".encode("cp1252"))
    (root / "00.png").write_bytes((root / "00.png").read_bytes()[:60])
    for _ in range(2):  # also where nothing is left to do
        prepare([root], out, replace(TINY, max_bad=0.1), progress=False)
        said = capsys.readouterr()
        assert said.err.splitlines()[-1] == (
            f"{out}: note: 2 items were skipped, all of team/text among them, such as handbook.txt: is not UTF-8 at character 0; "
            f"save it as UTF-8; {out / 'skipped.jsonl'} lists all"
        )
        assert "nothing here teaches t2t" in said.out


def test_videos_that_are_cut_are_counted(tmp_path, capsys):
    """Of 8 frames that are read: a ninth alone would be dropped anyway, two more are a clip."""
    root, out = tmp_path / "films", tmp_path / "out"
    root.mkdir()
    for n, name in ((8, "whole"), (9, "rest"), (10, "cut"), (40, "long"), (40, "told")):
        save_mp4(np.stack([ball(COLOURS["red"], x=3 + t % 9) for t in range(n)]), root / f"{name}.mp4", fps=4)
    cues = ("00:00:00,000 --> 00:00:01,800", "00:00:03,000 --> 00:00:07,000")
    (root / "told.srt").write_text("".join(f"{i}\n{cue}\nwords {i}\n\n" for i, cue in enumerate(cues, 1)))
    config = replace(TINY, read=replace(TINY.read, max_clips=2), shard_items=4)
    told = "3 of 6 videos or cues are longer than 2 clips; --read.max-clips reads more"
    for _ in range(2):  # also where nothing is left to do
        found = prepare([root], out, config, progress=False)
        assert capsys.readouterr().err.splitlines()[-1] == f"films: note: {told}"
    assert sorted({found.sources[0].key(i).split("#")[0] for i in range(len(found.sources[0]))}) == [
        "cut.mp4",
        "long.mp4",
        "rest.mp4",
        "told.mp4@1",
        "told.mp4@2",
        "whole.mp4",
    ]
    report = look(find([root], config), config.read, config.limits, config.held, samples=6)[0]
    assert f"films: note: of these samples, {told}" in report
    assert "longer than" not in look(find([root], TINY), TINY.read, TINY.limits, TINY.held, samples=6)[0]


def test_six_percent_damage_stops_and_says_so(tmp_path):
    with pytest.raises(DataError, match="6 of 100 items"):
        prepare([broken(tmp_path / "six", 6)], tmp_path / "out", TINY, progress=False)
    assert len((tmp_path / "out" / "skipped.jsonl").read_text().splitlines()) == 6
    with pytest.raises(RunError, match="did not finish"):
        Dataset(tmp_path / "out")
    other = replace(TINY, max_bad=0.1, held=0.3, vocab=300)  # nothing was made with the options of before
    assert len(prepare([tmp_path / "six"], tmp_path / "out", other, progress=False).sources[0]) == 94
    with pytest.raises(RunError, match="prepared with another vocab, held"):
        prepare([tmp_path / "six"], tmp_path / "out", TINY, progress=False)


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
