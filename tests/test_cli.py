"""What a user may get wrong ends in one clear line; the whole way from folder to export runs."""

import gc
import json
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

from quadrivium import cli, evaluate
from quadrivium.checkpoint import Run
from quadrivium.cli import main
from quadrivium.data.mixture import MixtureConfig
from quadrivium.data.shards import read_json, write_json
from quadrivium.data.sources import ReadOptions
from quadrivium.data.world import WorldConfig
from quadrivium.demo import DemoConfig, run_demo
from quadrivium.distil import DistilConfig
from quadrivium.experiment import ExperimentConfig
from quadrivium.imagine import Imagining
from quadrivium.model import ModelConfig
from quadrivium.sequence import ROUTES
from quadrivium.train import TrainConfig, train_routes
from tests.conftest import TINY, apart, ball

TRAIN = ["--steps", "2", "--layers", "1", "--width", "16", "--heads", "1", "--positions", "200"]


def test_no_memory_is_one_line_and_other_defects_keep_their_traceback(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_call", lambda *_: torch.empty(1 << 55))
    fails(["eval"], capsys, "not enough memory: can't allocate memory", "train --dry-run")
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), RuntimeError("a defect")):
        monkeypatch.setattr(cli, "_call", Mock(side_effect=error))
        with pytest.raises(RuntimeError) if "defect" in str(error) else nullcontext():
            fails(["eval"], capsys, "not enough memory: CUDA out of memory")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A trained run, to be read only."""
    return trained(data, tmp_path_factory.mktemp("run") / "mine")


@pytest.fixture(scope="module")
def crossed(data, tmp_path_factory):
    """The same with sharing cross."""
    return trained(data, tmp_path_factory.mktemp("run") / "cross", sharing="cross")


def trained(data, folder, **shape):
    small = ModelConfig(layers=2, width=32, heads=2, **shape)
    train_routes(data, folder, small, MixtureConfig(positions=400, context=32), TrainConfig(steps=30, lr=5e-3), progress=False)
    return folder


def only(folder, pattern):
    """The one file that is so called."""
    (path,) = folder.glob(pattern)
    return path


def fails(arguments, capsys, *words):
    """A command that the user got wrong: status 2, one line on stderr that holds the words, no traceback."""
    capsys.readouterr()
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as left:  # the option parser leaves by itself, with a box around its sentence
        assert left.code == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error and all(w in error for w in words), error
        return
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("quadrivium: ")]
    assert status == 2 and len(error) == 1, (status, error)
    assert all(w in error[0] for w in words), error[0]


# --- thirty ways to get a source folder wrong; those of single items stand in test_sources.py ---


def empty(root):
    pass


def only_a_licence(root):
    (root / "LICENSE").write_text("free")


def no_file_name(root):
    (root / "metadata.jsonl").write_text('{"text": "a ball"}\n')
    Image.fromarray(ball((9, 9, 9))).save(root / "a.png")


def metadata_is_a_list(root):
    (root / "metadata.jsonl").write_text("[1, 2]\n" * 3)


def rows_point_outside(root):
    (root / "metadata.jsonl").write_text('{"file_name": "../../etc/passwd", "text": "x"}\n' * 2)


def all_pictures_empty(root):
    for i in range(3):
        (root / f"{i}.png").touch()


def all_videos_cut(root):
    for i in range(3):
        (root / f"{i}.mp4").write_bytes(b"\x00\x00\x00\x20ftypisom" + b"\x00" * 30)


def a_bomb_among_few(root):
    Image.new("1", (60_000, 20_000)).save(root / "wide.png")


def types_that_lie(root):
    (root / "a.png").write_text("<html>not a picture</html>")
    (root / "b.mp4").write_text("neither")


def invalid_text(root):
    (root / "a.txt").write_bytes(b"\xff\xfe\xfa" * 50)


def all_rows_broken(root):
    (root / "a.jsonl").write_text("{\n" * 30)


def jsonl_without_text(root):
    (root / "a.jsonl").write_text('{"words": "x"}\n' * 30)


def deep_json(root):
    (root / "a.jsonl").write_text("[" * 200_000 + "\n")


def blank_text(root):
    (root / "a.txt").write_text("\n \n\n")


SOURCES = [empty, only_a_licence, no_file_name, metadata_is_a_list, rows_point_outside, all_pictures_empty, all_videos_cut]
SOURCES += [a_bomb_among_few, types_that_lie, invalid_text, all_rows_broken, jsonl_without_text, deep_json, blank_text]


@pytest.mark.parametrize("make", SOURCES, ids=lambda f: f.__name__)
def test_a_source_that_cannot_be_used_is_one_line(make, tmp_path, capsys):
    root = tmp_path / "broken"
    root.mkdir()
    make(root)
    out = tmp_path / "out"
    fails(["prepare", root, "--out", out, "--visual-train.steps", "2"], capsys)
    manifest = out / "manifest.json"
    assert not manifest.exists() or not read_json(manifest, "a data folder")["complete"]
    fails(["train", out, "--out", tmp_path / "run", *TRAIN], capsys)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["fly"], ["unknown command", "prepare"]),
        (["prepare", "{tmp}/nowhere", "--out", "{tmp}/o"], ["nowhere"]),
        (["prepare", "--out", "{tmp}/o"], ["at least one folder"]),
        (["prepare", "{folder}", "--out", "{tmp}/o", "--held", "2"], ["held is 2"]),
        (["prepare", "{folder}", "--out", "{tmp}/o", "--vocab", "12"], ["257"]),
        (["prepare", "{folder}", "--out", "{tmp}/o", "--read.fps", "-1"], ["fps"]),
        (["prepare", "{folder}", "--out", "{tmp}/o", "--read.size", "30", "--visual-train.steps", "1"], ["multiple of"]),
        (["prepare", "{folder}", "{folder}", "--out", "{tmp}/o"], ["named"]),
        (["prepare", "{folder}", "--out", "{tmp}/o", "--text-tokenizer", "{tmp}/none.json"], ["none.json"]),
        (["prepare", "{folder}", "--out", "{tmp}/o", "--text-tokenizer", "{run}/config.json"], ["tokenizer"]),
        (["prepare", "{folder}", "--out", "{tmp}/o", "--visual-tokenizer", "{tmp}"], ["not found"]),
        (["prepare", "{folder}", "--out", "{data}", "--vocab", "999"], ["another"]),
        (["train", "{tmp}/nowhere", "--out", "{tmp}/r", *TRAIN], ["not found"]),
        (["train", "{data}", "--out", "{data}", *TRAIN], ["prepared data folder"]),
        (["train", "{data}", "--out", "{tmp}/r", "--stepps", "3"], ["--stepps"]),
        (["train", "{data}", "--out", "{tmp}/r", "--seed", "-1"], ["seed"]),
        (["train", "{data}", "--out", "{tmp}/r", "--betas", "1.0", "0.9"], ["betas"]),
        (["train", "{data}", "--out", "{tmp}/r", "--weight-decay", "-1"], ["weight_decay"]),
        (["train", "{data}", "--out", "{tmp}/r", "--steps", "0"], ["steps is 0"]),
        (["train", "{data}", "--out", "{tmp}/r", "--steps", "many"], ["many"]),
        (["train", "{data}", "--out", "{tmp}/r", "--routes", "t2x"], ["t2x", "v2v"]),
        (["train", "{data}", "--out", "{tmp}/r", "--heads", "3", "--kv-heads", "2"], ["multiple"]),
        (["train", "{data}", "--out", "{tmp}/r", "--sharing", "most"], ["most"]),
        (["train", "{data}", "--out", "{tmp}/r", "--patch", "3"], ["patch"]),
        (["train", "{data}", "--out", "{tmp}/r", "--source-weights", "nobody", "2"], ["nobody", "mine/text"]),
        (["train", "{data}", "--out", "{run}", *TRAIN], ["--resume"]),
        (["train", "{data}", "--out", "{tmp}/r", "--resume"], ["not found"]),
        (["train", "{data}", "--out", "{tmp}/r", "--device", "cuda"], ["no GPU"]),
        (["eval", "{tmp}"], ["not a run folder", "quadrivium train"]),
        (["eval", "{tmp}/nowhere"], ["nor is its folder"]),
        (["generate", "{run}", "--want", "image", "--image", "{tmp}/none.png"], ["none.png"]),
        (["generate", "{run}", "--want", "image", "--image", "{run}/config.json"], ["config.json"]),
        (["generate", "{run}", "--text", "a ball"], ["--want"]),
        (["generate", "{run}", "--want", "text", "--image", "a.png", "--video", "b.mp4"], ["--image or --video, not both"]),
        (["generate", "{run}", "--want", "text", "--text", "a", "--top-p", "3"], ["top_p"]),
        (["generate", "{run}", "--want", "image", "--n", "0"], ["--n is 0", "10,000"]),
        (["generate", "{run}", "--want", "text", "--text", "a", "--max-ids", "100000000000"], ["GiB", "--max-ids"]),
        (["generate", "{run}", "--want", "video", "--text", "a", "--frames", "50000000"], ["GiB", "--frames"]),
        (["generate", "{run}", "--want", "image", "--text", "a", "--out", "{run}/config.json"], ["is a file"]),
        (["train", "{data}", "--out", "{tmp}/r", "--positions", "100000000000"], ["at most"]),
        (["train", "{data}", "--dry-run", "--width", "1000000", "--layers", "1000"], ["width", "at most 65,536"]),
        (["transfer", "{data}", "--out", "{tmp}/t", "--seeds", "1", "1"], ["seeds are 1 1"]),
        (["experiment", "{tmp}/e", "--seeds", "2", "2"], ["seeds are 2 2"]),
        (["generate", "{run}", "--imagine"], ["nothing to imagine"]),
        (["generate", "{run}", "--n", "0"], ["--n is 0"]),
        (["generate", "{run}", "--want", "text", "--forget"], ["--imagine"]),
        (["generate", "{run}", "--want", "text", "--seed", "99999999999999999999"], ["seed"]),
        (["eval", "{run}", "--limit", "0"], ["at least 1"]),
        (["eval", "{run}", "--lm-eval-limit", "3"], ["--lm-eval"]),
        (["eval", "{run}", "--alignment", "--lm-eval", "coda"], ["apart"]),
        (["eval", "{run}", "--world", "{tmp}"], ["--alignment"]),
        (["ask", "{run}", "{tmp}", "--forget"], ["--imagine"]),
        (["ask", "{run}", "{folder}"], ["is no world", "no world.json", "that `quadrivium world` wrote"]),
        (["ask", "{run}", "{tmp}/none"], ["write one with `quadrivium world"]),
        (["distil", "{run}", "{folder}", "--out", "{tmp}/c.jsonl"], ["is no world"]),
        (["eval", "{run}", "--alignment", "--world", "{folder}"], ["is no world"]),
        (["ask", "{run}", "{tmp}", "--tries", "2"], ["--imagine"]),
        (["ask", "{run}", "{tmp}", "--imagine", "2", "--tries", "0"], ["--tries"]),
        (["generate", "{run}", "--want", "image", "--text", "a", "--tries", "2"], ["--imagine"]),
        (["generate", "{run}", "--imagine", "--text", "a", "--tries", "0"], ["--tries"]),
        (["distil", "{run}", "{tmp}", "--out", "{tmp}/c.jsonl", "--tries", "0"], ["tries"]),
        (["train", "{data}", "--out", "{tmp}/r", "--source-weights", "mine/text", "-1"], ["source weight -1"]),
        (["train", "{data}", "--out", "{tmp}/r", "--source-weights", "mine/text", "nan"], ["source weight nan"]),
        (["train", "{data}", "--out", "{tmp}/r", "--balance", "nan"], ["balance"]),
        (["train", "{data}", "--out", "{tmp}/r", "--ahead-pictures"], ["ahead"]),
        (["generate", "{run}", "--imagine", "--text", " "], ["nothing to imagine"]),
        (["generate", "{run}", "--imagine", "--text", "a", "--want", "image"], ["from text to text"]),
        (["generate", "{run}", "--imagine", "--text", "a", "--frames", "-1"], ["--frames"]),
        (["ask", "{run}", "{tmp}", "--imagine", "-1"], ["--imagine"]),
        (["ask", "{run}", "{tmp}", "--imagine", "2", "--temperature", "-1"], ["temperature"]),
        (["distil", "{run}", "{tmp}", "--out", "{tmp}/c.jsonl", "--samples", "0"], ["samples"]),
        (["export", "{run}", "--out", "{run}"], ["not empty"]),
        (["world", "{tmp}/w", "--kinds", "2"], ["kinds"]),
    ],
)
def test_a_wrong_call_is_one_line(arguments, words, folder, data, run, tmp_path, capsys):
    import torch

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("a GPU is here, so asking for it is no mistake")
    places = {"tmp": tmp_path, "folder": folder, "data": data, "run": run}
    fails([a.format(**places) for a in arguments], capsys, *words)


def test_what_comes_next_can_be_typed_where_folders_have_spaces(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    nothing = ["--clips", "0", "--told", "0", "--stills", "0", "--narrations", "0"]
    assert main(["world", "my world", *nothing]) == 0

    def following():
        return shlex.split(capsys.readouterr().out.rpartition("next: quadrivium ")[2])

    assert following() == ["prepare", "my world", "--out", "data/world"]
    Path("my words").mkdir()
    Path("my words/a.txt").write_text("\n\n".join(f"The ball number {i} rolls down the hill." for i in range(40)))
    line, small = ["prepare", "my words", "--out", "data/my words"], ["--limit", "2"]
    sizes = {"prepare": ["--vocab", "300", "--read.doc-bytes", "40"], "train": TRAIN, "eval": small, "generate": ["--n", "1"]}
    for name, options in sizes.items():
        assert line[0] == name and main([*line, *options]) == 0
        line = following()
    assert Path("runs/my words/samples/t2t.png").is_file()


def test_data_that_was_prepared_anew_is_not_taken_for_what_a_run_was_trained_on(data, tmp_path, capsys):
    there, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data, there)
    trained(there, run)
    assert main(["eval", str(run)]) == 0
    path = there / "tokenizers" / "text" / "tokenizer.json"
    path.write_text(path.read_text().replace('"red"', '"der"').replace(" ", "  ", 1))
    fails(["eval", run], capsys, "other tokenizers", "--text-tokenizer")
    fails(["train", there, "--out", run, "--resume"], capsys, "other tokenizers", "--text-tokenizer")


def test_a_run_is_told_where_its_data_was_moved_to(data, tmp_path, capsys):
    """The message says both ways out, and both are."""
    there, new, run = tmp_path / "data", tmp_path / "new", tmp_path / "run"
    shutil.copytree(data, there)
    trained(there, run)
    there.rename(new)
    once, stored = f"quadrivium eval {run} --data NEW", f"quadrivium train NEW --out {run} --resume"
    for call in (["eval", run], ["generate", run]):
        fails(call, capsys, f"{there}, the data", once, stored)
    for said in (f"{once} --limit 2", stored, f"quadrivium eval {run} --limit 2"):
        assert main(said.replace("NEW", str(new)).split()[1:]) == 0


def test_what_is_held_out_of_other_data_is_said(run, data, tmp_path, capsys):
    """More than where it was trained: some of it was learnt. Nothing at all: there is nothing to measure."""
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"held": 0.5}))
    Run(run).mixture(copy)
    assert "prepare it with --held 0.2" in capsys.readouterr().err
    Run(run).mixture()
    assert capsys.readouterr().err == ""
    (tmp_path / "one.txt").write_text("One document, which is not held out.\n" * 9)
    tokenizer = ["--text-tokenizer", str(run / "tokenizers" / "text"), "--visual-tokenizer", str(run / "tokenizers" / "visual")]
    assert main(["prepare", str(tmp_path / "one.txt"), "--out", str(tmp_path / "one"), "--read.size", "16", *tokenizer]) == 0
    assert main(["eval", str(run), "--data", str(tmp_path / "one")]) == 2
    assert "holds nothing out of what" in capsys.readouterr().err


def test_a_run_says_that_its_data_has_changed(data, tmp_path, capsys):
    there, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data, there)
    trained(there, run)
    manifest = read_json(there / "manifest.json", "a folder")
    first = manifest["sources"][0]["shards"].pop(0)
    (there / "manifest.json").write_text(json.dumps(manifest))
    assert first and main(["train", str(there), "--out", str(run), "--resume"]) == 0
    assert "has changed since" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 3}', '{"model": {"wings": 2}}', '{"model": {"width": "wide"}}'])
def test_a_damaged_run_is_one_line(content, run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "config.json").write_text(content)
    fails(["eval", copy], capsys, "config.json")
    fails(["train", tmp_path, "--out", copy, "--resume"], capsys, "config.json")


def test_options_are_read_without_collections_and_commands_run_with_them(monkeypatch):
    """A collection while source code is parsed can end in a SystemError (CPython before 3.11.8): see `cli._call`."""
    seen, read = [], tyro.cli

    def watched(command, **options):
        seen.append(gc.isenabled())
        return read(command, **options)

    monkeypatch.setattr(tyro, "cli", watched)
    monkeypatch.setitem(cli._FACTORIES, "eval", lambda: lambda: seen.append(gc.isenabled()))
    assert main(["eval"]) == 0 and seen == [False, True]
    with pytest.raises(SystemExit):
        main(["eval", "--no-such"])
    assert gc.isenabled()


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(folder, data, tmp_path):
    """A file size limit stands in for the disk's end: the system refuses the write in the middle of a file."""
    limit = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, ({n}, {n})); from quadrivium.cli import main; sys.exit(main(sys.argv[1:]))"
    small = [
        "--read.size",
        "16",
        "--read.clip-frames",
        "4",
        "--vocab",
        "320",
        "--visual-train.steps",
        "2",
        "--visual.width",
        "16",
    ]
    for n, arguments in (
        (3000, ["prepare", folder, "--out", tmp_path / "out", *small]),
        (20_000, ["train", data, "--out", tmp_path / "run", *TRAIN]),
    ):
        done = subprocess.run([sys.executable, "-c", limit.format(n=n), *map(str, arguments)], capture_output=True, text=True)
        lines = [line for line in done.stderr.splitlines() if line.startswith("quadrivium: ")]
        assert done.returncode == 2 and len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert not list(tmp_path.rglob("*.part")) and not list((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert (
        not (tmp_path / "out" / "manifest.json").exists()
        or not read_json(tmp_path / "out" / "manifest.json", "a folder")["complete"]
    )


@pytest.mark.parametrize("sharing", ["run", "crossed"])
def test_generate_walks_every_route(sharing, request, folder, tmp_path, capsys):
    run = request.getfixturevalue(sharing)
    picture, clip = folder / "bare" / "0.jpg", folder / "clips" / "0.mp4"
    out = tmp_path / "made"
    assert main(["generate", str(run), "--text", "The red ball", "--want", "text", "--n", "2", "--max-ids", "8"]) == 0
    assert capsys.readouterr().out.count("The red ball") == 2
    assert main(["generate", str(run), "--image", str(picture), "--want", "text", "--n", "1", "--max-ids", "8"]) == 0
    assert main(["generate", str(run), "--text", "a red ball", "--want", "image", "--out", str(out)]) == 0
    with Image.open(only(out, "t2v-a-red-ball-seed0-??????.png")) as image:
        assert image.size == (4 * 16 * 4, 16 * 4)
    assert (
        main(["generate", str(run), "--video", str(clip), "--want", "video", "--frames", "3", "--n", "1", "--out", str(out)])
        == 0
    )
    with Image.open(only(out, "v2v-0-seed0-*-0.gif")) as image:
        assert image.n_frames == 3
    assert (
        main(
            [
                "generate",
                str(run),
                "--text",
                "a",
                "--video",
                str(clip),
                "--want",
                "video",
                "--frames",
                "2",
                "--n",
                "1",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert only(out, "tv2v-a-0-seed0-*-0.mp4").stat().st_size > 500


def test_what_is_asked_otherwise_takes_no_other_pictures_place(run, folder, tmp_path):
    """The readable part of a name is cut and says only some of what was asked; the same call writes the same name."""
    long, twin = "a very long sentence about apples and pears and", tmp_path / "twin" / "0.mp4"
    twin.parent.mkdir()
    shutil.copy(folder / "clips" / "0.mp4", twin)
    asked = [
        ["--text", f"{long} a red box", "--want", "image"],
        ["--text", f"{long} a blue box", "--want", "image"],
        ["--text", f"{long} a blue box", "--want", "image", "--temperature", "0.5"],
        ["--video", str(folder / "clips" / "0.mp4"), "--want", "video", "--frames", "2"],
        ["--video", str(folder / "clips" / "0.mp4"), "--want", "video", "--frames", "3"],
        ["--video", str(twin), "--want", "video", "--frames", "2"],
        ["--text", f"{long} a red box", "--imagine", "--tries", "1", "--max-ids", "4"],
        ["--text", f"{long} a blue box", "--imagine", "--tries", "1", "--max-ids", "4"],
    ]
    for made in (tmp_path / "first", tmp_path / "second"):
        for number, call in enumerate(asked, 1):
            for _ in range(2):
                assert main(["generate", str(run), *call, "--n", "1", "--out", str(made)]) == 0
            assert len({path.stem.removesuffix("-sheet").removesuffix("-0") for path in made.iterdir()}) == number
    assert {p.name for p in (tmp_path / "first").iterdir()} == {p.name for p in (tmp_path / "second").iterdir()}


def test_generate_says_when_a_route_was_never_learnt(run, folder, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    assert set(config["routes"]) == set(ROUTES)
    config["routes"] = ["t2t", "v2t"]
    (copy / "config.json").write_text(json.dumps(config))
    few = ["--n", "1", "--max-ids", "4", "--out", str(tmp_path / "made")]
    assert main(["generate", str(copy), "--text", "a red ball", "--want", "image", *few]) == 0
    assert "never on t2v" in capsys.readouterr().err
    picture = str(folder / "bare" / "0.jpg")
    assert main(["generate", str(copy), "--image", picture, "--text", "a", "--want", "text", *few]) == 0
    assert "never on" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red ball sits at the top of a ramp.", "A-red-ball-sits-at-the-top-of-a-ramp"),
        ("坂の上に赤い玉がある。", "坂の上に赤い玉がある"),
    ],
)
def test_generate_imagines_and_tells(run, tmp_path, capsys, prompt, name):
    out = tmp_path / "made"
    call = ["generate", str(run), "--text", prompt, "--imagine", "--n", "2", "--max-ids", "6", "--out", str(out)]
    assert main([*call, "--frames", "3"]) == 0
    said = capsys.readouterr().out
    assert said.count(prompt) == 2 and said.count("as a caption") == 2
    for i in range(2):
        made = only(out, f"imagined-{name}-seed0-*-{i}.gif")
        assert str(made) in said
        with Image.open(made) as gif, Image.open(made.with_suffix(".png")) as strip:
            assert gif.n_frames == 3 and strip.size == (3 * 16 * 4, 16 * 4)
    first = only(out, "*-0.png")
    assert main([*call, "--out", str(tmp_path / "long")]) == 0  # frames as the clips of the data have
    with Image.open(only(tmp_path / "long", "*-0.png")) as strip:
        assert strip.width == 4 * 16 * 4
    assert main([*call, "--frames", "3", "--forget", "--out", str(tmp_path / "forgot")]) == 0
    assert only(tmp_path / "forgot", "*-0.png").read_bytes() != first.read_bytes()


def test_an_eval_keeps_what_another_wrote_meanwhile(run, monkeypatch):
    measured = evaluate.retrieval

    def meanwhile(*given):
        write_json(run / "results.json", {"alignment": {"layers": 1}})
        return measured(*given)

    monkeypatch.setattr(evaluate, "retrieval", meanwhile)
    assert main(["eval", str(run), "--limit", "2"]) == 0
    results = read_json(run / "results.json", "results")
    assert results["alignment"] == {"layers": 1} and results["routes"]
    (run / "results.json").unlink()


def test_cross_is_evaluated_sampled_and_exported(crossed, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(crossed, run)
    assert main(["eval", str(run), "--limit", "3"]) == 0
    results = read_json(run / "results.json", "results")
    assert set(results["routes"]) == {"t2t", "t2v", "v2t", "v2v", "tv2v"}
    assert results["retrieval"]["mine/pictures"]["n"] == 3 and "frames by their text" in capsys.readouterr().out
    assert main(["generate", str(run), "--out", str(tmp_path / "made"), "--max-ids", "6"]) == 0
    assert (tmp_path / "made" / "tv2v.png").stat().st_size > 1000
    capsys.readouterr()
    assert main(["export", str(run), "--out", str(tmp_path / "hf")]) == 0
    assert "trust_remote_code=True) loads it" in capsys.readouterr().out
    card = (tmp_path / "hf" / "README.md").read_text()
    assert 'from_pretrained("hf", trust_remote_code=True)' in card and "order-0" in card


def test_equal_seeds_draw_equal_pictures(run, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        main(
            [
                "generate",
                str(run),
                "--text",
                "a red ball",
                "--want",
                "image",
                "--seed",
                str(seed),
                "--out",
                str(tmp_path / name),
            ]
        )
    a, b, c = (next((tmp_path / n).glob("*seed?-??????.png")).read_bytes() for n in "abc")
    assert a == b != c


def test_the_whole_way_of_the_demo_shrunk(tmp_path, capsys):
    """World -> prepare -> train, killed, resumed -> ask -> imagine -> distil -> samples -> export, as `make demo` runs it."""
    size = ExperimentConfig(
        world=WorldConfig(
            kinds=28, shares=(0.25, 0.25, 0.25, 0.25), devices=("seesaw",), links=1, clips=60, told=40, stills=40,
            narrations=400, size=16, frames=6, jitter=0.2,
        ),
        prepare=replace(
            TINY, read=ReadOptions(fps=8 / 3, size=16), vocab=400, visual_train=TrainConfig(steps=20), sample_frames=100, held=0.1
        ),
        model=ModelConfig(layers=2, width=32, heads=2),
        mixture=MixtureConfig(positions=600, context=64),
        train=TrainConfig(steps=40, lr=5e-3, save_every=5, log_every=1),
        distil_train=TrainConfig(steps=3),
        distil=DistilConfig(limit=4, agree=0.3),
        imagining=Imagining(samples=2, tries=2),
        each=1,
    )  # fmt: skip
    config, out = DemoConfig(size, samples=2, imagined=2), tmp_path / "demo"
    process = apart(run_demo, out, config, False)
    run, world = out / "seed-0" / "four", out / "seed-0" / "world"
    metrics = run / "metrics.jsonl"
    while process.is_alive() and not (metrics.exists() and len(metrics.read_text().splitlines()) > 8):
        time.sleep(0.01)
    assert process.is_alive() and process.pid, "the demo ended before it could be killed"
    process.kill()
    process.join()
    time.sleep(2)  # what it started ends by itself
    results = run_demo(out, config, progress=False)
    assert set(results["arms"]) == {"text", "captions", "four", "distil"}
    cell = json.loads((out / "results" / "four-seed-0.json").read_text())
    assert set(cell["routes"]) == {"t2t", "t2v", "v2t", "v2v", "tv2v"}
    for route, row in cell["routes"].items():
        assert {"stderr", "n", "order0", "bits_per_byte" if route.endswith("t") else "bits_per_frame"} <= set(row)
        assert ("wrong_source" in row) == (route != "t2t")
        assert all(np.isfinite(v) for v in row.values())
    assert (out / "samples" / "index.html").stat().st_size > 5000
    said = capsys.readouterr().out
    assert "demo finished" in said and "What was only ever seen, asked in text alone (chance 33%)" in said
    with Image.open(out / "imagined.png") as sheet, Image.open(out / "imagined.gif") as gif:
        assert sheet.width > 300 and gif.n_frames >= 2

    assert main(["eval", str(run), "--limit", "3"]) == 0
    assert main(["ask", str(run), str(world), "--each", "1"]) == 0
    first = (run / "questions.json").read_text()
    looking = ["--groups", "seen", "--each", "1", "--imagine", "2", "--shown", "--free"]
    assert main(["ask", str(run), str(world), *looking]) == 0
    asked = json.loads((run / "questions.json").read_text())["seen"]
    assert list(asked) == ["direct", "direct, free", "checked", "checked, free", "shown", "shown, free"]
    assert asked["direct"] == json.loads(first)["seen"]["direct"]
    assert all(abs(sum(votes) - 2) < 1e-3 for votes in asked["checked"]["votes"])
    corpus = tmp_path / "corpus.jsonl"
    assert main(["distil", str(run), str(world), "--out", str(corpus), "--limit", "4", "--samples", "2"]) == 0
    report = json.loads(next(tmp_path.glob("*.report.json")).read_text())
    assert report["situations"] == 4 and report["texts"] == len(corpus.read_text().splitlines()) == 4 * report["kept"]
    assert main(["ask", str(run), str(out / "seed-0" / "data")]) == 2
    assert "no world.json" in capsys.readouterr().err
    nothing = ["--clips", "0", "--told", "0", "--stills", "0", "--narrations", "0"]
    assert main(["world", str(tmp_path / "other"), "--seed", "7", *nothing]) == 0
    assert main(["ask", str(run), str(tmp_path / "other"), "--each", "1"]) == 2
    assert "give the world that its data was prepared from" in capsys.readouterr().err
    assert main(["eval", str(run), "--alignment", "--world", str(tmp_path / "other")]) == 2
    assert "give the world that its data was prepared from" in capsys.readouterr().err
    assert main(["export", str(run), "--out", str(tmp_path / "hf")]) == 0
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install -c constraints.txt -e '.[hf]'"
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert words("玉がころがる。")["input_ids"] and model.config.model_type == "qwen3"
