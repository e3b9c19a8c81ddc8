"""A small folder of everything `prepare` reads, made on the spot, and what prepare makes of it."""

import json
import os
import runpy
import sys
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from quadrivium.cli import main
from quadrivium.data.sources import ReadOptions
from quadrivium.grid import context
from quadrivium.pictures import save_mp4
from quadrivium.prepare import PrepareConfig, prepare
from quadrivium.train import TrainConfig
from quadrivium.visual import VisualConfig

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 70, 220), "yellow": (230, 210, 40)}
TINY = PrepareConfig(
    read=ReadOptions(size=16, fps=4.0, clip_frames=4, doc_bytes=200),
    vocab=320,
    visual=VisualConfig(down=4, levels=(4, 4, 4), width=16, encoder_depth=1, decoder_depth=1),
    visual_train=TrainConfig(steps=30, lr=4e-3, log_every=10),
    visual_batch=8,
    held=0.2,
    shard_items=20,
)
SAVING = replace(TINY, visual_train=replace(TINY.visual_train, save_every=5))  # so that a kill finds something to go on from


def ball(colour, x=8, y=8, size=32):
    """A ball of a colour on a grey ground: uint8 (size, size, 3)."""
    grid = np.mgrid[0:size, 0:size]
    inside = (grid[0] - y * size / 16) ** 2 + (grid[1] - x * size / 16) ** 2 < (size / 5) ** 2
    return np.where(inside[..., None], np.array(colour), 205).astype(np.uint8)


def write_folder(root: Path, n=24) -> Path:
    """Captioned pictures, captioned and bare clips, bare pictures, English and Japanese text."""
    names = list(COLOURS)
    pictures, clips = root / "pictures", root / "clips"
    for folder in (pictures, clips, root / "bare", root / "text"):
        folder.mkdir(parents=True)
    rows = []
    for i in range(n):
        name = names[i % 4]
        Image.fromarray(ball(COLOURS[name], x=4 + i % 7)).save(pictures / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f"a {name} ball", "text_ja": f"{name}の玉", "story": f"s{i // 2}"})
        Image.fromarray(ball(COLOURS[name], y=4 + i % 7)).save(root / "bare" / f"{i}.jpg")
    (pictures / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    rows = []
    for i in range(n):
        name = names[i % 4]
        save_mp4(np.stack([ball(COLOURS[name], x=3 + 2 * t) for t in range(4 + 4 * (i % 3 == 0))]), clips / f"{i}.mp4", fps=4)
        rows.append({"file_name": f"{i}.mp4", "text": f"a {name} ball rolls to the right" if i % 4 else ""})
    (clips / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    sentences = [
        f"The {a} ball struck the {b} ball and it rolled away down the hill, number {i}."
        for i in range(20)
        for a in names
        for b in names
    ]
    (root / "text" / "en.txt").write_text("\n\n".join(sentences), encoding="utf-8")
    (root / "text" / "ja.tsv").write_text("".join(f"ball {i}\t玉が{i}個ころがった。\n" for i in range(60)), encoding="utf-8")
    return root


def apart(work, *arguments, out=os.devnull, errors=os.devnull, **environment) -> BaseProcess:
    """A process of its own that does this work; what it prints is in files. It is forked off one that has imported everything, which takes
    Python longer than most of what tests do in a process."""
    process = context().Process(target=_apart, args=(work, arguments, str(out), str(errors), environment))
    process.start()
    _BEGUN.append(process)
    return process


_BEGUN: list[BaseProcess] = []


@pytest.fixture(autouse=True)
def _none_is_left():
    """A test that fails leaves nothing running, for which Python would wait at its end."""
    yield
    while _BEGUN:
        process = _BEGUN.pop()
        process.kill()
        process.join()


def _apart(work, arguments, out, errors, environment) -> None:
    for path, descriptor in ((out, 1), (errors, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), descriptor)
    os.environ.update(environment)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 0)) or torch.get_num_threads())  # which was read at the import
    status = work(*arguments)
    sys.exit(status if isinstance(status, int) else 0)


def started(*words, **how) -> BaseProcess:
    """`quadrivium` of these words, in a process of its own."""
    return apart(main, [str(word) for word in words], **how)


def script(path, *words) -> None:
    """Run a file as Python does that is told to, with these words."""
    sys.argv = [str(path), *map(str, words)]
    runpy.run_path(str(path), run_name="__main__")


def ended(process: BaseProcess) -> int:
    """Its status, once it has ended."""
    process.join(800)
    assert process.exitcode is not None, "it does not end"
    return process.exitcode


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("source") / "mine")


@pytest.fixture(scope="session")
def data(folder, tmp_path_factory):
    """A prepared data folder; tests do not write into it."""
    return prepare([folder], tmp_path_factory.mktemp("data") / "mine", TINY, progress=False).folder


@pytest.fixture(scope="session")
def real():
    """The folder of real data, where there is one."""
    path = Path(os.environ.get("QUADRIVIUM_DATA", Path(__file__).parent.parent / ".." / "shared" / "data"))
    if not path.is_dir():
        pytest.skip("no folder of real data; set QUADRIVIUM_DATA to one")
    return path.resolve()
