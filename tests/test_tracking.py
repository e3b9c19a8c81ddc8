"""Trackers: what they hold is what metrics.jsonl holds, each step once, whatever happens on the way."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from quadrivium import checkpoint, tracking
from quadrivium.cli import main
from quadrivium.data.mixture import MixtureConfig
from quadrivium.errors import ConfigError
from quadrivium.model import ModelConfig
from quadrivium.train import TrainConfig, train_routes

SMALL = ModelConfig(layers=2, width=32, heads=2, patch=2)
MIX = MixtureConfig(positions=300, context=32)
TRAIN = TrainConfig(steps=12, log_every=2, eval_every=4, save_every=3, keep=9)
needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed: pip install {name}")
    for name in tracking._MAKE
}
TRACKERS = [pytest.param(name, marks=mark) for name, mark in needs.items()]
# The libraries leave files and processes to the collector and speak of what they are about to drop.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def offline(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")  # one for all: trackio reads the name of its folder once
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("TRACKIO_DIR", str(home / "trackio"))
        patch.setenv("HF_HOME", str(home / "hf"))
        yield


def train(data, run, *names, config=TRAIN, resume=False):
    return train_routes(data, run, SMALL, MIX, config, resume, progress=False, track=names)


def written(run):
    """(step, key) -> number, of metrics.jsonl."""
    found = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        held = {f"held-out/{k}": v for k, v in line.pop("held", {}).items()}
        step = line.pop("step")
        found |= {(step, k): v for k, v in ({f"train/{k}": v for k, v in line.items()} | held).items()}
    return found


def read_tensorboard(run, purge=True):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "images": 0}, purge_orphaned_data=purge)
    events.Reload()
    numbers = [((e.step, tag), e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
    return numbers, [(e.step, tag) for tag in events.Tags()["images"] for e in events.Images(tag)]


def read_wandb(run):
    """Rows of all offline folders: a log of records, 7 bytes of head each, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    def records(path):
        raw, at, record = path.read_bytes(), 7, b""
        while at + 7 <= len(raw):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            size, kind = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6]
            record += raw[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # whole, or its last part
                yield Record.FromString(record)
                record = b""

    numbers, sheets = [], []
    paths = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    began = time.monotonic()
    while not any(r.HasField("exit") for r in records(paths[-1])) and time.monotonic() - began < 60:
        time.sleep(0.1)  # its own process ends a little later
    for record in (r for path in paths for r in records(path)):
        row = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
        step = row.pop("_step", None)
        sheets += [(step, k.split(".")[0]) for k in row if k.endswith("._type")]
        numbers += [((step, k), v) for k, v in row.items() if k.startswith(("train/", "held-out/"))]
    return numbers, sheets


def read_trackio(run):
    from trackio.sqlite_storage import SQLiteStorage

    name = json.loads((run / "tracking.json").read_text())["name"]
    rows = SQLiteStorage.get_logs(tracking.PROJECT, name)
    numbers = [((r["step"], k), v) for r in rows for k, v in r.items() if k.startswith(("train/", "held-out/"))]
    return numbers, [(r["step"], k) for r in rows for k, v in r.items() if isinstance(v, dict)]


READ = {"tensorboard": read_tensorboard, "wandb": read_wandb, "trackio": read_trackio}


def whole(name, run, timed=True):
    """The tracker holds every number of metrics.jsonl once; times may differ where a part was run twice."""
    numbers, sheets = READ[name](run)
    clocks = () if timed else ("train/seconds", "train/positions_per_second")
    assert len(numbers) == len(dict(numbers)), "a step was sent twice"
    want = written(run)
    assert dict(numbers).keys() == want.keys()
    for key, value in numbers:
        assert key[1] in clocks or value == pytest.approx(want[key], rel=1e-5), key
    return sheets


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_holds_what_the_loop_wrote(name, data, tmp_path, capsys):
    train(data, tmp_path / "run", name)
    sheets = whole(name, tmp_path / "run")
    assert sorted(sheets) == sorted((step, f"samples/{r}") for step in (4, 8, 12) for r in ("t2t", "t2v", "tv2v", "v2t", "v2v"))
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("name", TRACKERS)
def test_a_killed_run_goes_on_in_the_same_place(name, data, tmp_path):
    """Killed after steps that no checkpoint holds; the resumed run writes them again, and the tracker has them once."""
    run, steps = tmp_path / "run", 16
    base = ["train", str(data), "--out", str(run), "--steps", str(steps), "--save-every", "5", "--log-every", "1"]
    base += ["--eval-every", "8", "--positions", "300", "--context", "32", "--layers", "2", "--width", "32", "--heads", "2"]
    command = [sys.executable, "-m", "quadrivium", *base, "--patch", "2", "--track", name]
    alone = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}  # which would be that of the tests before
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=alone)
    metrics = run / "metrics.jsonl"
    while process.poll() is None and (not metrics.is_file() or metrics.read_text().count('"loss"') < 8):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = metrics.read_text().count('"loss"')
    assert 8 <= before < steps, "it was over before it was killed"
    time.sleep(1.5 if name == "wandb" else 0.0)  # the name of its folder has the second in it
    train(data, run, resume=True)  # what tracks it was said at the start
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == steps
    whole(name, run, timed=False)


def test_what_a_tracker_missed_is_sent_when_the_run_is_resumed(data, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install -c constraints.txt -e '.[track]'")
    run = tmp_path / "run"
    plain = tracking._TensorBoard.log

    def full(self, step, numbers, sheets):
        if step > 4:
            raise OSError(28, "No space left on device")
        plain(self, step, numbers, sheets)

    monkeypatch.setattr(tracking._TensorBoard, "log", full)
    train(data, run, "tensorboard")
    told = capsys.readouterr().err
    assert told.count("warning: tensorboard") == 1 and "No space left" in told and "--resume" in told
    last = checkpoint.latest(run / "checkpoints")
    assert last is not None and last.name.endswith("12")
    assert max(step for (step, _), _ in READ["tensorboard"](run)[0]) == 4
    monkeypatch.setattr(tracking._TensorBoard, "log", plain)
    train(data, run, resume=True)
    whole("tensorboard", run)


def test_a_step_that_was_not_held_out_is_sent_whole_at_resume(data, tmp_path, monkeypatch):
    """What ends training while a step is evaluated leaves no half of its row behind."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install -c constraints.txt -e '.[track]'")
    from quadrivium.train import RouteTask

    run, plain, calls = tmp_path / "run", RouteTask.evaluate, []

    def breaks(self):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(self)

    monkeypatch.setattr(RouteTask, "evaluate", breaks)
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        train(data, run, "tensorboard")
    monkeypatch.setattr(RouteTask, "evaluate", plain)
    train(data, run, resume=True)
    whole("tensorboard", run, timed=False)


def test_a_tracker_added_later_gets_the_whole_curve(data, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install -c constraints.txt -e '.[track]'")
    run = tmp_path / "run"
    train(data, run)
    for path in checkpoint.checkpoints(run / "checkpoints")[2:]:
        shutil.rmtree(path)
    train(data, run, "tensorboard", resume=True)
    whole("tensorboard", run)


def test_tracking_leaves_the_run_as_it_is(data, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install -c constraints.txt -e '.[track]'")
    train(data, tmp_path / "plain")
    train(data, tmp_path / "tracked", "tensorboard")
    a, b = (checkpoint.latest(tmp_path / n / "checkpoints") for n in ("plain", "tracked"))
    assert all((a / n).read_bytes() == (b / n).read_bytes() for n in ("model.safetensors", "optimizer.safetensors"))


def test_a_place_that_cannot_be_written_to_is_one_warning(data, tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install -c constraints.txt -e '.[track]'")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()  # as a run that was killed early leaves it
    (tmp_path / "run" / "tensorboard").write_text("in the way")
    train(data, tmp_path / "run", "tensorboard")
    assert capsys.readouterr().err.count("warning: tensorboard") == 1


def test_clocks_that_jump_do_not_turn_lives_round(data, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install -c constraints.txt -e '.[track]'")
    run, now = tmp_path / "run", time.time()
    train(data, run, "tensorboard")
    for path in checkpoint.checkpoints(run / "checkpoints")[2:]:
        shutil.rmtree(path)
    for file in (run / "tensorboard").iterdir():  # a machine that died took the end along
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    monkeypatch.setattr(tracking.time, "time", lambda: now - 1e6)
    train(data, run, resume=True)
    whole("tensorboard", run, timed=False)


def test_a_tracker_that_is_absent_is_said_before_anything_is_written(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["train", str(data), "--out", str(tmp_path / "run"), "--track", "wandb"]) == 2
    assert "pip install -c constraints.txt -e '.[track]'" in capsys.readouterr().err and not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="unknown"):
        train(data, tmp_path / "run", "mlflow")
