"""Nothing lost, nothing executed: runs and data folders under damage, refusals of the system and lies in their files.

`benchmarks/reliability.py` does the same at length; here each of its claims runs small.
"""

import contextlib
import errno
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import load_file, save_file

from quadrivium import checkpoint
from quadrivium import prepare as preparing
from quadrivium.data import shards
from quadrivium.data.mixture import Mixture, MixtureConfig
from quadrivium.data.shards import Dataset, map_shard, read_json, write_atomic, write_json
from quadrivium.data.sources import IMAGES, SUBTITLES, TEXTS, VIDEOS, read_clips
from quadrivium.errors import ConfigError, DataError, ItemError, RunError
from quadrivium.model import Model, ModelConfig
from quadrivium.text import TextTokenizer
from quadrivium.train import RouteTask, TrainConfig, fit, make_optimizers, train_routes
from quadrivium.visual import VisualConfig, VisualTask, VisualTokenizer
from tests.conftest import TINY, apart, ended, script, started

ROOT = Path(__file__).parent.parent
SHAPE = ModelConfig(layers=2, width=32, heads=2, patch=2)
MIX = MixtureConfig(positions=300, context=32)


def task(data, bad=None, value=float("nan")):
    """A small learner whose loss is multiplied by ``value`` at the steps in ``bad``."""
    model = Model(replace(SHAPE, vocab=320, codes=64, rows=2, columns=2))
    learner = RouteTask(model, Mixture(Dataset(data), MIX, 0, seed=0, patch=2), np.ones(320, np.int64))
    plain, draw, drawn = learner.loss, learner.batch, {}

    def batch(step, part=0, parts=1):
        made = draw(step, part, parts)
        drawn[id(made)] = (step, made)  # kept, so that no two batches have one id
        return made

    def loss(made):
        result, log = plain(made)
        return (result * value if drawn[id(made)][0] in (bad or ()) else result), log

    learner.batch, learner.loss = batch, loss
    return learner


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def last(run):
    found = checkpoint.latest(run / "checkpoints")
    assert found is not None
    return {n: (found / n).read_bytes() for n in ("model.safetensors", "optimizer.safetensors")}


# ------------------------------------------------------------------------------------------------------- numbers


def test_a_bad_batch_is_named_with_its_items(data, tmp_path):
    learner = task(data, bad=[5])
    with pytest.raises(RunError, match=r"nan.* at step 0 .*there is no checkpoint yet"):
        fit(task(data, bad=[0]), TrainConfig(steps=20), tmp_path / "none", progress=False)
    with pytest.raises(RunError, match=r"nan.* at step 5 \(routes .*items mine/.*checkpoint is kept.*--skip-bad-batches"):
        fit(learner, TrainConfig(steps=20, save_every=4), tmp_path, progress=False)
    (found,) = lines(tmp_path / "bad-batches.jsonl")
    names = learner.batch(5)[1]
    assert found["step"] == 6 and len(found["items"]) == len(names)
    assert [i.rsplit("(", 1)[1][:-1] for i in found["items"]] == names  # each item with its own route, in order
    assert int(checkpoint.latest(tmp_path / "checkpoints").name[5:]) == 4


def test_bad_batches_are_skipped_and_a_resumed_run_skips_alike(data, tmp_path):
    config = TrainConfig(steps=14, save_every=1, keep=99, skip_bad_batches=True)
    fit(task(data, bad=[3, 8, 9]), config, tmp_path / "whole", progress=False)
    assert [x["step"] for x in lines(tmp_path / "whole" / "bad-batches.jsonl")] == [4, 9, 10]
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for path in checkpoint.checkpoints(tmp_path / "cut" / "checkpoints")[7:]:
        shutil.rmtree(path)
    fit(task(data, bad=[3, 8, 9]), config, tmp_path / "cut", resume=True, progress=False)
    assert last(tmp_path / "cut") == last(tmp_path / "whole")
    assert lines(tmp_path / "cut" / "bad-batches.jsonl") == lines(tmp_path / "whole" / "bad-batches.jsonl")
    before, after = (tmp_path / "whole" / "checkpoints" / f"step-{n:08d}" / "model.safetensors" for n in (3, 4))
    assert before.read_bytes() == after.read_bytes()  # the skipped step changed nothing
    assert all(torch.isfinite(p).all() for p in task(data).model.parameters())


def test_nothing_but_bad_batches_stops_all_the_same(data, tmp_path):
    with pytest.raises(RunError, match="20 batches in a row"):
        fit(task(data, bad=range(6, 99)), TrainConfig(steps=60, skip_bad_batches=True), tmp_path, progress=False)
    assert len(lines(tmp_path / "bad-batches.jsonl")) == 20


def test_a_loss_that_explodes_stops(data, tmp_path):
    with pytest.raises(RunError, match=r"explodes to .* at step 9"):
        fit(task(data, bad=[9], value=30.0), TrainConfig(steps=20), tmp_path / "a", progress=False)
    assert fit(task(data, bad=[9], value=30.0), TrainConfig(steps=12, explode=0), tmp_path / "b", progress=False)["finished"]
    assert fit(task(data, bad=[9], value=2.0), TrainConfig(steps=12), tmp_path / "c", progress=False)["finished"]


def test_a_stopped_run_goes_on_without_its_bad_batch(data, tmp_path, monkeypatch):
    """The option that the message offers is the one that may be given to a run that was started without it."""
    run = tmp_path / "run"
    judge = RouteTask.loss

    def bad_once(self, batch):
        loss, log = judge(self, batch)
        return (loss * float("nan") if batch[0].positions == at_fault else loss), log

    mixed = Mixture(Dataset(data), MIX, TextTokenizer.load(data / "tokenizers" / "text").end, seed=0, patch=2)
    at_fault = sum(s.positions for sequence in mixed.step(4) for s in sequence)
    monkeypatch.setattr(RouteTask, "loss", bad_once)
    with pytest.raises(RunError, match="--resume --skip-bad-batches"):
        train_routes(data, run, SHAPE, MIX, TrainConfig(steps=6, save_every=1), progress=False)
    done = train_routes(data, run, SHAPE, MIX, TrainConfig(skip_bad_batches=True), resume=True, progress=False)
    assert done["finished"] and done["step"] == 6


def test_the_visual_tokenizer_names_its_frames(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3)).astype(np.uint8)
    of, held = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 0, 0, 1], bool)
    learner = VisualTask(VisualTokenizer(VisualConfig(size=16)), frames, of, held, 0, 2, ["clips", "stills"])
    assert set(learner.items(3)) <= {"clips, frame 0", "clips, frame 1", "stills, frame 3", "stills, frame 4"}
    assert learner.cost({"clips psnr": 20.0, "stills psnr": 30.0, "stills ssim": 9.0}) == -25


# --------------------------------------------------------------------------------------------------- checkpoints


def test_the_best_checkpoint_is_kept_and_can_be_named(data, tmp_path):
    run = tmp_path / "run"
    config = TrainConfig(steps=8, eval_every=2, keep=1, keep_best=True, save_minutes=99)
    costs = iter([3.0, 1.0, 2.0, 4.0])
    learner = task(data)
    learner.cost = lambda held: next(costs)
    fit(learner, config, run, progress=False)
    assert [int(p.name[5:]) for p in checkpoint.checkpoints(run / "checkpoints")] == [4, 8]

    whole = tmp_path / "whole"
    train_routes(data, whole, SHAPE, MIX, TrainConfig(steps=3, save_every=1, keep=9), progress=False)
    assert checkpoint.Run(whole).step == 3
    one = checkpoint.Run(whole / "checkpoints" / "step-00000002")
    assert one.step == 2 and one.config["data"] == checkpoint.Run(whole).config["data"]


def test_a_damaged_checkpoint_never_pushes_out_a_good_one(data, tmp_path):
    """It is later than the one that is written after it was passed over, and `keep` counts from the end."""
    fit(task(data), TrainConfig(steps=6, save_every=2, keep=3), tmp_path, progress=False)
    for step in (4, 6):
        path = tmp_path / "checkpoints" / f"step-{step:08d}" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    checkpoint.save(tmp_path / "checkpoints", task(data).model, {}, {"step": 3}, keep=1)
    assert [int(p.name[5:]) for p in checkpoint.checkpoints(tmp_path / "checkpoints")] == [3]


def test_a_changed_state_is_damage(data, tmp_path, capsys):
    fit(task(data), TrainConfig(steps=4, save_every=2, keep=9), tmp_path, progress=False)
    path = checkpoint.latest(tmp_path / "checkpoints") / "state.json"
    path.write_text(path.read_text().replace('"step": 4', '"step": 5'))
    assert int(checkpoint.latest(tmp_path / "checkpoints").name[5:]) == 2
    assert "damaged" in capsys.readouterr().err
    with pytest.raises(RunError, match=r"step-00000004: this checkpoint is damaged; give another"):
        checkpoint.weights(path.parent)


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    (tmp_path / "checkpoints" / ".step-00000007.part").mkdir(parents=True)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    living = f".results.json.{os.getpid()}.part"
    for name in (f".metrics.jsonl.{gone.pid}.part", ".corpus.jsonl.part", living):
        (tmp_path / name).touch()
    with checkpoint.locked(tmp_path):
        pass
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert left == [".corpus.jsonl.part", ".lock", living, "checkpoints"]  # the first is a command's own, to go on from


@pytest.mark.parametrize("damage", [b"\xff\xfe{", b"[1]\n", b'{"step": "x"}\n', b'{"step": 9'])
def test_a_damaged_log_is_cut_where_it_is_damaged(tmp_path, damage):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n' + damage)
    checkpoint.last_metrics(tmp_path / "metrics.jsonl", 5)
    assert [x["step"] for x in lines(tmp_path / "metrics.jsonl")] == [1, 2]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_one_sentence_and_costs_nothing_that_was_written(data, tmp_path, monkeypatch, call):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_json(tmp_path / "a.json", {"kept": 1})
    fit(task(data), TrainConfig(steps=2, save_every=2), tmp_path, progress=False)
    before = last(tmp_path)
    monkeypatch.setattr(os, call, full)
    with pytest.raises(RunError, match=r"a\.json: could not be written \(No space left on device\)"):
        write_json(tmp_path / "a.json", {"lost": 1})
    with pytest.raises(RunError, match="could not be written"):
        checkpoint.save(tmp_path / "checkpoints", task(data).model, {}, {"step": 3})
    monkeypatch.undo()
    assert read_json(tmp_path / "a.json", "a thing") == {"kept": 1} and last(tmp_path) == before
    assert not list(tmp_path.rglob("*.part"))


def test_frames_take_their_space_before_they_are_written(tmp_path, monkeypatch):
    """Writing into a hole of a file for which the disk has no room ends the process (SIGBUS), with no sentence."""
    made = preparing._blank(tmp_path / "frames.npy", (64, 64, 64, 3))
    assert made.shape == (64, 64, 64, 3) and (tmp_path / "frames.npy").stat().st_blocks * 512 >= 64 * 64 * 64 * 3

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=r"frames\.npy: could not be written \(No space left"):
        preparing._blank(tmp_path / "frames.npy", (64, 64, 64, 3))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\0\x02\0{}"])
def test_a_damaged_frame_sample_is_one_sentence(folder, tmp_path, content):
    (tmp_path / ".work").mkdir()
    (tmp_path / ".lock").touch()
    write_json(tmp_path / ".work" / "sample.json", {"of": [0, 0], "held": [False, True]})
    (tmp_path / ".work" / "frames.npy").write_bytes(content)
    with pytest.raises(RunError, match=r"\.work: damaged"):
        preparing.prepare([folder], tmp_path, TINY, progress=False)


def test_of_two_started_at_once_one_keeps_the_folder(data, tmp_path):
    command = ["train", data, "--out", tmp_path / "run", "--steps", "30",
               "--positions", "300", "--context", "32", "--layers", "2", "--width", "32", "--heads", "2", "--patch", "2"]  # fmt: skip
    errors = [tmp_path / f"errors-{i}" for i in range(2)]
    both = [started(*command, "--seed", i, errors=errors[i]) for i in range(2)]
    status, said = [ended(process) for process in both], [path.read_text() for path in errors]
    assert sorted(status) == [0, 2], said
    loser = status.index(2)
    assert ("in use" in said[loser] or "already holds" in said[loser]) and "Traceback" not in said[loser]
    assert read_json(tmp_path / "run" / "config.json", "a run")["train"]["seed"] == 1 - loser
    assert checkpoint.Run(tmp_path / "run").step == 30


# ---------------------------------------------------------------------------------------------------------- lies


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train_routes(data, folder, SHAPE, MIX, TrainConfig(steps=2), progress=False)
    return folder


@pytest.mark.parametrize(
    "lie",
    [
        {"model": {"layers": 10**9}},
        {"model": {"width": 10**7, "head_size": 16}},
        {"model": {"vocab": 2**40}},
        {"model": {"patch": 10**9}},
        {"model": {"heads": 2**62, "kv_heads": 1}},
        {"model": {"layers": 1}},
        {"model": {"layers": "2"}},
        {"model": None},
        {"train": []},
        {"data": 5},
    ],
    ids=str,
)
def test_a_config_that_lies_takes_no_memory(run, tmp_path, lie):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = read_json(copy / "config.json", "a run")
    for key, value in lie.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    write_json(copy / "config.json", config)
    with pytest.raises((RunError, ConfigError), match=r"config\.json|weights do not fit"):
        checkpoint.Run(copy)


@pytest.mark.parametrize("lie", [{"width": 8000}, {"size": 4096, "down": 1}, {"decoder_depth": 200}, {"width": 10**9}], ids=str)
def test_a_visual_tokenizer_that_lies_takes_no_memory(data, tmp_path, lie):
    copy = tmp_path / "copy"
    shutil.copytree(data / "tokenizers" / "visual", copy)
    write_json(copy / "config.json", {**read_json(copy / "config.json", "a tokenizer"), **lie})
    with pytest.raises(RunError):
        VisualTokenizer.load(copy)


def test_weights_of_another_shape_are_refused_by_their_header(run, tmp_path):
    """The header of a sparse file claims 4 GB that the disk does not hold and memory shall not."""
    path = tmp_path / "model.safetensors"
    header = json.dumps({"embed_text.weight": {"dtype": "F32", "shape": [1 << 20, 1 << 10], "data_offsets": [0, 1 << 32]}})
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + (1 << 32))
    with pytest.raises(RunError, match="do not fit this model"):
        checkpoint.load_weights(path, checkpoint.Run(run).model)


def test_a_tokenizer_with_an_id_beyond_reason_is_refused(data, tmp_path):
    layout = json.loads((data / "tokenizers" / "text" / "tokenizer.json").read_text())
    layout["model"]["vocab"]["zzz"] = 2**32 - 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(layout))
    with pytest.raises(ConfigError, match="ids above"):
        TextTokenizer.load(tmp_path)


def test_long_texts_are_encoded_in_pieces_to_the_same_ids(data, monkeypatch):
    tokenizer = TextTokenizer.load(data / "tokenizers" / "text")
    texts = [f"The red ball {i} rolls." * (i % 7) for i in range(40)]
    whole = tokenizer.encode_all(texts)
    monkeypatch.setattr("quadrivium.text._BATCH", 50)
    assert all((a == b).all() for a, b in zip(whole, tokenizer.encode_all(texts), strict=True))


def arrays(**change):
    """A shard of two documents, with some arrays changed."""
    plain = {
        "ids": np.arange(5, dtype=np.uint16),
        "id_ends": np.array([2, 5]),
        "text_ends": np.array([1, 2]),
        "codes": np.zeros((0, 2, 2), np.uint16),
        "frame_ends": np.zeros(2, np.int64),
        "held": np.zeros(2, np.uint8),
        "group": np.zeros(2, np.uint64),
        "keys": np.frombuffer(b"a\nb", np.uint8),
    }
    return {k: v for k, v in {**plain, **change}.items() if v is not None}


@pytest.mark.parametrize(
    "change",
    [
        {"id_ends": np.array([2, 9])},
        {"id_ends": np.array([5, 2])},
        {"id_ends": np.array([-2, 5])},
        {"text_ends": np.array([1, 3])},
        {"frame_ends": np.array([0, 1])},
        {"held": np.zeros(3, np.uint8)},
        {"keys": None},
        {"more": np.zeros(1, np.uint8)},
        {"codes": np.zeros((0, 4), np.uint16)},
        {"id_ends": np.array([2, 5], np.uint8)},
    ],
    ids=str,
)
def test_arrays_that_do_not_belong_together_are_damage(tmp_path, change):
    write_atomic(tmp_path / "fine.safetensors", save(arrays()))
    assert set(map_shard(tmp_path / "fine.safetensors")) == set(arrays())
    write_atomic(tmp_path / "x.safetensors", save(arrays(**change)))
    with pytest.raises(RunError, match="damaged shard"):
        map_shard(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "header", [b"[1]", b'{"ids": 3}', b'{"ids": {"dtype": "U8", "shape": [0, 1e999], "data_offsets": [0, 0]}}']
)
def test_headers_of_shards_that_are_no_headers(tmp_path, header):
    """Found by mutation: a list has no items, an infinite side is no number."""
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(RunError, match="damaged shard"):
        map_shard(tmp_path / "x.safetensors")


def test_a_manifest_that_names_an_impossible_file(data, tmp_path):
    """Found by mutation: a name longer than the system takes."""
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    manifest = read_json(copy / "manifest.json", "a data folder")
    manifest["sources"][0]["shards"][0]["file"] = "x" * 5000
    write_json(copy / "manifest.json", manifest)
    with pytest.raises(RunError, match="damaged"):
        Dataset(copy)


def test_moments_without_their_step_are_damage(data, tmp_path):
    """Found by mutation: torch loads them and fails with a KeyError."""
    config = TrainConfig(steps=2, save_every=2)
    learner = task(data)
    fit(learner, config, tmp_path, progress=False)
    path = checkpoint.latest(tmp_path / "checkpoints")
    moments = load_file(path / "optimizer.safetensors")
    save_file({k: v for k, v in moments.items() if k != next(iter(moments))}, path / "optimizer.safetensors")
    with pytest.raises(RunError, match="moments are missing"):
        checkpoint.load(path, learner.model, make_optimizers(learner.model, config))


def test_what_a_damaged_file_puts_into_a_message_is_printable(run):
    """Found by mutation: the safetensors library quotes an unknown type with its control characters."""
    path = run / "x.safetensors"
    header = b'{"a": {"dtype": "\\u0000\\u202e", "shape": [], "data_offsets": [0, 0]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(RunError) as error:
        shards.tensor_shapes(path)
    assert str(error.value).isprintable()


def test_a_json_file_too_large_for_what_it_is_is_not_read(tmp_path):
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(RunError, match="larger than"):
        read_json(tmp_path / "config.json", "a run folder")


class Evil:
    """What, unpickled, makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


ENDINGS = sorted({*TEXTS, *IMAGES, *VIDEOS, *SUBTITLES, ".tar", ".parquet", ".arrow", ".json", ".toml", ".csv"})


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_pickle_under_every_ending_that_is_read_is_not_executed(ending, tmp_path):
    marker, raw = tmp_path / "EXECUTED", io.BytesIO()
    torch.save(Evil(marker), raw)
    forms = {"pickle": pickle.dumps(Evil(marker)), "torch": raw.getvalue()}
    pickle.loads(forms["pickle"])
    assert marker.exists(), "the pickle is harmless, so nothing is proved"
    marker.unlink()
    for form, data in forms.items():
        home = tmp_path / form
        home.mkdir()
        for name in ("metadata.csv" if ending == ".csv" else f"x{ending}", "x.mp4"):
            (home / name).write_bytes(data)
        for path in (home, home / f"x{ending}"):
            with contextlib.suppress(DataError, ConfigError):
                for source in preparing.find([path], TINY):
                    for item in source.items:
                        with contextlib.suppress(ItemError, ValueError):
                            read_clips(item, TINY.read)
        assert not marker.exists(), form


# -------------------------------------------------------------------------------------------------- the long script


@pytest.mark.parametrize(
    "claim",
    [["kills", "--train", "1", "--prepare", "1"], ["broken"], ["fuzz", "--media", "100", "--other", "160", "--formats", "160"]],
    ids=lambda c: c[0],
)
def test_the_claims_hold_in_small(claim, tmp_path):
    """What `docs/reliability.md` states with large numbers."""
    out, errors = tmp_path / "out", tmp_path / "errors"
    status = ended(apart(script, ROOT / "benchmarks" / "reliability.py", *claim, out=out, errors=errors, OMP_NUM_THREADS="1"))
    assert status == 0, errors.read_text()[-3000:]
    said = [json.loads(line) for line in out.read_text().splitlines() if line.startswith("{")]
    assert said[-1]["done"] == claim[0]
    assert not any(line.get("found") or line.get("died") or line.get("outside") for line in said), said
