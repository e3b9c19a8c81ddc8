"""Decoders: the same clips as without them, and one item lost, no more, to whatever a file does to its decoder."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quadrivium.data import decoding
from quadrivium.data.decoding import Decoder, Decoders
from quadrivium.data.sources import Item, Limits, ReadOptions, read_clips, scan
from quadrivium.errors import ConfigError, ItemError

OPTIONS = ReadOptions(size=16)


def item(path: Path) -> Item:
    return Item("s", path.name, path.name, "image", (), path)


def picture(folder: Path) -> Item:
    Image.new("L", (20, 20), 90).save(folder / "fine.png")
    return item(folder / "fine.png")


def test_decoders_read_as_without_them(folder):
    items = [i for source in scan(folder, OPTIONS) for i in source.items]
    with Decoders(OPTIONS, Limits()) as decoders:
        found = list(decoders.read_all(items, ahead=5))
    for i, clips in zip(items, found, strict=True):
        wanted = [] if i.kind == "text" else read_clips(i, OPTIONS)
        assert len(clips) == len(wanted) and all((a == b).all() for a, b in zip(clips, wanted, strict=True))


def test_text_starts_no_process(folder):
    items = [i for source in scan(folder / "text", OPTIONS) for i in source.items]
    with Decoders(OPTIONS, Limits()) as decoders:
        assert list(decoders.read_all(items)) == [[]] * len(items)
        assert not any(d.process for d in decoders.every)


def test_a_file_that_takes_too_long_or_too_much_costs_itself_alone(tmp_path):
    Image.fromarray(np.zeros((5000, 5000), np.uint16)).save(tmp_path / "deep.png", compress_level=1)
    for limits, words in ((Limits(seconds=0.1), "processor time"), (Limits(memory=1 << 28), "memory")):
        decoder = Decoder(OPTIONS, limits)
        with pytest.raises(ItemError, match=words):
            decoder.read(item(tmp_path / "deep.png"))
        ((frame,),) = decoder.read(picture(tmp_path))
        assert (frame == 90).all()
        decoder.close()
    assert len(read_clips(item(tmp_path / "deep.png"), OPTIONS)) == 1  # without limits it is an ordinary picture


def test_a_decoder_killed_by_another_is_replaced_and_nothing_is_lost(tmp_path):
    decoder = Decoder(OPTIONS, Limits())
    for _ in range(3):
        ((frame,),) = decoder.read(picture(tmp_path))
        assert (frame == 90).all()
        os.kill(decoder.process.pid, signal.SIGKILL)
    decoder.close()


def test_a_file_that_ends_every_decoder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_SERVE", "import os; os.write(1, b'ready\\n'); os.read(0, 9); os.kill(os.getpid(), 11)")
    with pytest.raises(ItemError, match=r"fine\.png: ends the decoder \(SIGSEGV\)"):
        Decoder(OPTIONS, Limits()).read(picture(tmp_path))


DYING = """
import os, signal, sys
sys.path.append(sys.argv[1])
from contextlib import contextmanager
from quadrivium.data import decoding
plain = decoding.clips_and_more
@contextmanager
def dying(*asked):
    with plain(*asked) as (clips, _):
        yield clips, lambda: os.kill(os.getpid(), signal.SIGVTALRM)
decoding.clips_and_more = dying
decoding.serve(*sys.argv[2:])
"""


def test_what_lies_behind_the_last_clip_costs_nothing(tmp_path, monkeypatch):
    """Looking whether a video goes on may meet damage there, or end the decoder."""
    noise = np.random.default_rng(0).integers(0, 255, (24, 64, 64), np.uint8)
    first, *rest = map(Image.fromarray, noise)
    first.save(tmp_path / "whole.gif", save_all=True, append_images=rest, duration=250)
    raw = (tmp_path / "whole.gif").read_bytes()
    (tmp_path / "damaged.gif").write_bytes(raw[: int(len(raw) * 8.5 / 24)])
    options = replace(OPTIONS, max_clips=1)
    whole, damaged = item(tmp_path / "whole.gif"), item(tmp_path / "damaged.gif")
    with pytest.raises(ItemError, match="damaged"):
        read_clips(damaged, OPTIONS)
    found = []
    for file, code in ((whole, decoding._SERVE), (damaged, decoding._SERVE), (whole, DYING)):
        monkeypatch.setattr(decoding, "_SERVE", code)
        decoder = Decoder(options, Limits())
        clips = decoder.read(file)
        found.append((b"".join(c.tobytes() for c in clips), clips.cut))
        decoder.close()
    want = read_clips(whole, options)[0].tobytes()
    assert found == [(want, True), (want, False), (want, False)]


def test_a_disk_that_does_not_answer_is_not_waited_for_forever(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_SERVE", "import os, time; os.write(1, b'ready\\n'); time.sleep(99)")
    monkeypatch.setattr(decoding, "_WAIT", 2)
    with pytest.raises(ItemError, match="no answer"):
        Decoder(OPTIONS, Limits(seconds=0.1)).read(picture(tmp_path))


def test_a_decoder_leaves_when_its_owner_is_killed(tmp_path):
    picture(tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from tests.test_decoding import *;"
        f"d = Decoder(OPTIONS, Limits()); d.read(item(Path({str(tmp_path / 'fine.png')!r})));"
        "print(d.process.pid, flush=True); time.sleep(99)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    decoder = int(owner.stdout.readline())
    assert Path(f"/proc/{decoder}").exists()
    owner.kill()
    owner.communicate()
    until = time.monotonic() + 20
    while Path(f"/proc/{decoder}").exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not Path(f"/proc/{decoder}").exists()


def test_a_progressive_picture_is_refused_by_its_stored_size(tmp_path):
    """Decoded at an eighth of its size it would pass, but its coefficients are held in full."""
    Image.new("L", (900, 900)).save(tmp_path / "a.jpg", progressive=True)
    with pytest.raises(ItemError, match="900 x 900 pixels"):
        read_clips(item(tmp_path / "a.jpg"), replace(OPTIONS, max_pixels=500_000))


@pytest.mark.parametrize("wrong", [{"seconds": 0.0}, {"seconds": float("nan")}, {"memory": 5}, {"row_bytes": -1}])
def test_limits_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Limits(**wrong)
