"""What `docs/reliability.md` claims, done again: kill, mutate, break, fill, forbid. Prints one line of JSON for each claim.

    PYTHONPATH=. python benchmarks/reliability.py kills --train 120 --prepare 80
    PYTHONPATH=. python benchmarks/reliability.py fuzz --media 12000 --other 12000 --formats 6000
    PYTHONPATH=. python benchmarks/reliability.py broken
    PYTHONPATH=. python benchmarks/reliability.py system     # mounts small filesystems, so as root
    PYTHONPATH=. python benchmarks/reliability.py pickle

Run it from the repository's root with OMP_NUM_THREADS=1: sums of several threads have no fixed order, and processes are
forked here, so that a killed life costs its work and not its start.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from quadrivium import checkpoint, cli
from quadrivium.config import from_dict
from quadrivium.data import inside
from quadrivium.data.decoding import Decoder
from quadrivium.data.formats import scan as scan_any
from quadrivium.data.mixture import MixtureConfig
from quadrivium.data.mixture_file import MixtureFile
from quadrivium.data.shards import Dataset, map_shard, read_json, sha256
from quadrivium.data.sources import IMAGES, TEXTS, VIDEOS, Item, Limits, ReadOptions, Source, fingerprint, scan
from quadrivium.errors import DataError, ItemError, QuadriviumError
from quadrivium.model import ModelConfig
from quadrivium.pictures import save_mp4
from quadrivium.prepare import prepare
from quadrivium.text import TextTokenizer
from quadrivium.train import TrainConfig, train_routes
from quadrivium.visual import VisualTokenizer
from tests.conftest import SAVING, ball, write_folder

SHAPE = ModelConfig(layers=2, width=32, heads=2, patch=2)
MIX = MixtureConfig(positions=300, context=32)
TRAIN = TrainConfig(steps=12, save_every=1, log_every=1, keep=2)
TINY = replace(SAVING, sample_frames=200, visual_train=replace(SAVING.visual_train, steps=12))


def say(**found: Any) -> None:
    print(json.dumps(found, ensure_ascii=False), flush=True)


def fork(work: Callable[[], Any], quiet: bool = True) -> int:
    """A child that does the work and leaves with 0, or 1 after an error, or what the command line would leave with."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    errors = os.dup(2)
    status = 1
    try:
        if quiet:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
        status = int(work() or 0)
    except BaseException:
        os.write(errors, traceback.format_exc().encode())
    finally:
        os._exit(status)


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(data: Path, run: Path) -> None:
    train_routes(data, run, SHAPE, MIX, TRAIN, resume=(run / "config.json").exists(), progress=False)


def result(folder: Path) -> dict[str, str]:
    """Checksums of what a finished run or data folder is worth; of the log, all but times."""
    if (folder / "manifest.json").exists():
        assert not list(folder.rglob("*.part")), list(folder.rglob("*.part"))
        Dataset(folder).verify()
        return {str(p.relative_to(folder)): sha256(p) for d in ("shards", "tokenizers") for p in (folder / d).rglob("*.*")}
    last = checkpoint.latest(folder / "checkpoints")
    assert last is not None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "positions_per_second")
    log = json.dumps([{k: v for k, v in line.items() if k not in timed} for line in lines])
    return {"log": log} | {n: sha256(last / n) for n in ("model.safetensors", "optimizer.safetensors")} | {"step": last.name}


def whole(folder: Path) -> int:
    """Everything that a reader would take for complete is complete; how many such things there are."""
    found = checkpoint.checkpoints(folder / "checkpoints") + checkpoint.checkpoints(folder / ".work/visual/checkpoints")
    assert all(checkpoint.is_whole(p) for p in found), found
    shards = list((folder / "shards").glob("*.safetensors"))
    for path in shards:
        map_shard(path)
    if (folder / "manifest.json").exists():
        for source in read_json(folder / "manifest.json", "a data folder")["sources"]:
            assert all(sha256(folder / "shards" / e["file"]) == e["sha256"] for e in source["shards"])
    return len(found) + len(shards)


def inputs(root: Path) -> tuple[Path, Path]:
    """A small folder of everything, and what prepare makes of it."""
    folder = write_folder(root / "mine", n=12)
    assert finish(fork(lambda: prepare([folder], root / "data", TINY, progress=False) and None)) == 0
    return folder, root / "data"


# --------------------------------------------------------------------------------------------------------- kills


def kills(root: Path, trains: int, prepares: int, seed: int) -> None:
    folder, data = inputs(root)
    chance = random.Random(seed)
    jobs: dict[str, tuple[int, Callable[[Path], Any]]] = {
        "train": (trains, lambda out: train(data, out)),
        "prepare": (prepares, lambda out: prepare([folder], out, TINY, progress=False) and None),
    }
    for name, (count, job) in jobs.items():
        began = time.monotonic()
        assert finish(fork(lambda job=job, name=name: job(root / name))) == 0
        lasts, wanted = time.monotonic() - began, result(root / name)
        killed = checked = ended = 0
        while ended < count:
            out, mine = root / f"{name}-{ended}", 0
            for _ in range(1 + (chance.random() < 0.3)):
                child = fork(lambda job=job, out=out: job(out))
                time.sleep(chance.random() * lasts)
                if os.waitpid(child, os.WNOHANG)[0] == 0:
                    os.kill(child, signal.SIGKILL)
                    finish(child)
                    mine += 1
                    checked += whole(out)
            assert finish(fork(lambda job=job, out=out: job(out))) == 0, out
            assert result(out) == wanted, out
            shutil.rmtree(out)
            ended, killed = ended + (mine > 0), killed + mine
        say(claim=f"{name}: killed, resumed, bit-equal", runs=ended, kills=killed, whole=checked, undisturbed_s=round(lasts, 1))


# ---------------------------------------------------------------------------------------------------------- fuzz

NASTY = (
    None,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    True,
    "",
    "..",
    "/etc/passwd",
    "\0",
    [],
    {},
    [[]],
    "9" * 99,
)
NUMBERS = [
    n.to_bytes(w, o)
    for w in (1, 2, 4, 8)
    for n in (0, 1, 2 ** (8 * w - 1) - 1, 2 ** (8 * w - 1), 2 ** (8 * w) - 1)
    for o in ("big", "little")
]


def mutated(seeds: list[bytes], chance: random.Random) -> bytes:
    """One of the seeds with a few things done to it."""
    raw = bytearray(chance.choice(seeds))
    if chance.random() < 0.4 and raw[:1] in (b"{", b"["):
        with contextlib.suppress(ValueError, RecursionError):
            return twisted(bytes(raw), chance)
    size = int.from_bytes(raw[:8], "little")
    if chance.random() < 0.6 and raw[8:9] == b"{" and 8 + size <= len(raw):  # safetensors: 8 bytes of length, a JSON header
        with contextlib.suppress(ValueError, RecursionError):
            header = twisted(bytes(raw[8 : 8 + size]), chance)
            return len(header).to_bytes(8, "little") + header + bytes(raw[8 + size :])
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        at, end = sorted(chance.randrange(len(raw) + 1) for _ in range(2))
        what = chance.randrange(8)
        if what == 0:
            del raw[at:]  # cut short
        elif what == 1:
            del raw[at : min(end, at + 64)]
        elif what == 2:
            raw[at:at] = raw[at : min(end, at + 256)] * chance.choice((1, 2, 50))
        elif what == 3:
            number = chance.choice(NUMBERS)
            raw[at : at + len(number)] = number
        elif what == 4:
            other = chance.choice(seeds)
            raw[at:end] = other[at:end]
        elif what == 5:
            raw[at:at] = chance.choice(
                (
                    b"\xff",
                    b"\0" * 8,
                    b"[" * 3000,
                    b'{"a":' * 3000,
                    "\u202e\x1b[2J\ud800".encode("utf-8", "surrogatepass"),
                    b"9" * 5000,
                    b"\r\n",
                )
            )
        else:
            for _ in range(chance.choice((1, 4, 16))):
                if raw:
                    raw[chance.randrange(len(raw))] = chance.randrange(256)
    return bytes(raw)


def twisted(raw: bytes, chance: random.Random) -> bytes:
    """JSON, or the JSON head of a safetensors file's body, with values replaced, doubled or taken away."""
    lines = raw.split(b"\n") if raw.count(b"\n{") else [raw]
    which = chance.randrange(len(lines))
    value = json.loads(lines[which])
    for _ in range(chance.choice((1, 1, 2, 4))):
        node, inside = value, []
        while isinstance(node, dict | list) and node:
            key = chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
            inside.append((node, key))
            node = node[key]
        if not inside:
            break
        parent, key = chance.choice(inside)
        if chance.random() < 0.2:
            del parent[key]
        elif isinstance(parent, dict) and chance.random() < 0.1:
            parent[chance.choice(("file", "__class__", "text_xx", "x" * 300))] = copy.deepcopy(chance.choice(NASTY))
        else:
            parent[key] = copy.deepcopy(chance.choice(NASTY))
    lines[which] = json.dumps(value).encode()
    return b"\n".join(lines)


def media_seeds(root: Path) -> dict[str, list[bytes]]:
    """A few valid files of every form."""
    seeds: dict[str, list[bytes]] = {}
    small = Image.fromarray(ball((200, 40, 40), size=48))
    forms = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".avif": "AVIF", ".gif": "GIF"}
    for ending, form in forms.items():
        versions: list[dict[str, Any]] = [{}]
        versions += [{"progressive": True, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}] if form == "JPEG" else []
        versions += [{"compression": c} for c in ("tiff_lzw", "tiff_deflate", "jpeg", "group4")] if form == "TIFF" else []
        versions += (
            [{"save_all": True, "append_images": [small.rotate(r) for r in (30, 60, 90)], "duration": 250}]
            if form in ("GIF", "PNG", "WEBP", "AVIF")
            else []
        )
        for mode in ("RGB", "L", "P", "RGBA", "1", "I;16", "CMYK"):
            for options in versions:
                if mode not in {"group4": ("1",), "jpeg": ("RGB", "L", "CMYK")}.get(options.get("compression", ""), (mode,)):
                    continue  # what libtiff refuses to write, some versions of Pillow end the process over
                out = io.BytesIO()
                with contextlib.suppress(Exception):  # what the library cannot write, which differs by its version
                    small.convert(mode).save(out, form, **options)
                    seeds.setdefault(ending, []).append(out.getvalue())
    clip = np.stack([ball((40, 40, 220), x=3 + t) for t in range(9)])
    save_mp4(clip, root / "seed.mp4", fps=4)
    import av

    for ending, codec, form in (
        (".mp4", "mpeg4", "mp4"), (".mov", "libx264", "mov"), (".webm", "libvpx-vp9", "webm"), (".webm", "libvpx", "webm"),
        (".mkv", "libx264", "matroska"), (".avi", "mpeg4", "avi"), (".mpg", "mpeg1video", "mpeg"), (".mkv", "ffv1", "matroska"), (".avi", "mjpeg", "avi"),
    ):  # fmt: skip
        buffer = io.BytesIO()
        try:
            with av.open(buffer, "w", format=form) as container:
                stream = container.add_stream(codec, rate=25)
                stream.width = stream.height = 32
                stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
                for frame in clip:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode())
        except (av.error.FFmpegError, ValueError) as error:
            say(note=f"no seed of {codec} in {form}: {error}")
            continue
        seeds.setdefault(ending, []).append(buffer.getvalue())
    seeds[".mp4"].append((root / "seed.mp4").read_bytes())
    return seeds


def fuzz_media(root: Path, count: int, seed: int) -> None:
    seeds, chance, folder = media_seeds(root), random.Random(seed), root / "media"
    folder.mkdir()
    limits = Limits(seconds=5.0, memory=1 << 30)
    decoder, ends, slowest, peak = Decoder(ReadOptions(size=16), limits), Counter(), 0.0, 0
    before = sorted(str(p) for p in root.rglob("*"))
    for _ in range(count):
        ending = chance.choice(sorted(seeds))
        raw = mutated(seeds[ending], chance)
        path = folder / f"x{ending}"
        path.write_bytes(raw)
        began = time.monotonic()
        try:
            clips = decoder.read(Item("s", path.name, path.name, "image", (), path))
            assert all(c.dtype == np.uint8 and c.shape[1:] == (16, 16, 3) and len(c) for c in clips)
            ends["read"] += 1
        except ItemError as error:
            said = str(error)
            assert said.isprintable() and len(said) <= 600, said
            kind = next((k for k in ("ends the decoder", "processor time", "memory") if k in said), "refused")
            ends[kind] += 1
            if kind in ("ends the decoder", "processor time"):
                (root / f"found-{ends[kind]}-{kind.replace(' ', '-')}{ending}").write_bytes(raw)
                say(note=said[-160:], bytes=len(raw))
        slowest = max(slowest, time.monotonic() - began)
        path.unlink()
        if decoder.process:
            status = Path(f"/proc/{decoder.process.pid}/status").read_text()
            peak = max(peak, int(status.split("VmHWM:")[1].split()[0]) // 1024)
    decoder.close()
    after = sorted(str(p) for p in root.rglob("*") if not p.name.startswith("found-"))
    assert after == before, "files were made"
    say(
        claim="mutated pictures and videos",
        inputs=count,
        **ends,
        slowest_s=round(slowest, 2),
        peak_MB=peak,
        limit_s=5,
        limit_MB=1024,
    )


def check_listed(sources: list[Source], home: Path, options: ReadOptions) -> None:
    """What was listed can be shown, written down and told apart, and lies below ``home``."""
    fingerprint(sources, options)
    for source in sources:
        assert source.name.isprintable()
        assert all(p.item.isprintable() and p.reason.isprintable() for p in source.problems)
        "".join(t for i in source.items for t in (i.key, i.group, *i.texts)).encode()
        assert all(i.file is None or str(os.path.realpath(i.file)).startswith(str(home)) for i in source.items)


def fuzz_other(root: Path, count: int, seed: int) -> None:
    """Text, metadata, shards, manifests, tokenizers, configs, checkpoints: in a child that is watched."""
    folder, data = inputs(root)
    run = root / "run"
    assert finish(fork(lambda: train(data, run))) == 0
    png = (folder / "pictures" / "0.png").read_bytes()
    step = checkpoint.checkpoints(run / "checkpoints")[-1]
    shard = next((data / "shards").glob("*pictures*"))
    network = checkpoint.Run(run).model
    row = json.dumps({"file_name": "x.png", "text": ["a", "あ"], "story": {"a": [1, 2]}}).encode()

    def texts(home: Path) -> None:
        options, limits = ReadOptions(), Limits(row_bytes=1 << 20, document_bytes=1 << 18)
        check_listed(scan(home, options, limits), home, options)

    def whole_data(home: Path) -> None:
        found = Dataset(home)
        for source in found.sources:
            for i in range(min(len(source), 3)):
                source.key(i), source.codes(i), [source.text(i, t) for t in range(source.texts[i])]
        found.verify()

    def one_shard(home: Path) -> None:
        found = map_shard(home / "x.safetensors")
        sum(int(a.astype(np.int64).sum()) for a in found.values())

    def tokenizer(home: Path) -> None:
        found = TextTokenizer.load(home / "tokenizer.json")
        found.decode(found.encode("a red ball 玉"))

    def checkpoint_of(home: Path) -> None:
        checkpoint.latest(home / "checkpoints")
        checkpoint.Run(home)

    def copied(source: Path) -> Callable[[Path], None]:
        return lambda home: shutil.copytree(source, home, ignore=shutil.ignore_patterns(".lock", "samples"))

    def bare(home: Path) -> None:
        home.mkdir()
        (home / "x.png").write_bytes(png)

    optimizers = cli_optimizers(network)
    table: list[tuple[str, str, list[bytes], Callable[[Path], None], Callable[[Path], Any]]] = [
        ("metadata.jsonl", "metadata.jsonl", [row + b"\n" + row.replace(b"x.png", b"sub/../x.png")], bare, texts),
        ("metadata.csv", "metadata.csv", [b'file_name,text,story\nx.png,"a ""b"" c\nd",1\n'], bare, texts),
        ("rows.jsonl", "a.jsonl", [b'{"text": "one", "group": 3}\n{"text": "\\u3042", "text_ja": ["x"]}\n'], bare, texts),
        ("rows.tsv", "a.tsv", ["text\ttext_ja\na\tあ\n".encode(), b"a\tb\n"], bare, texts),
        ("text.txt", "a.txt", ["one\n\ntwo\r\n\n三".encode()], bare, texts),
        ("manifest.json", "manifest.json", [(data / "manifest.json").read_bytes()], copied(data), whole_data),
        ("shard", "x.safetensors", [p.read_bytes() for p in (data / "shards").iterdir()], bare, one_shard),
        ("shard of a data folder", f"shards/{shard.name}", [shard.read_bytes()], copied(data), whole_data),
        ("tokenizer.json", "tokenizer.json", [(data / "tokenizers/text/tokenizer.json").read_bytes()], bare, tokenizer),
        ("visual config.json", "config.json", [(data / "tokenizers/visual/config.json").read_bytes()], copied(data / "tokenizers/visual"), VisualTokenizer.load),
        ("visual weights", "model.safetensors", [(data / "tokenizers/visual/model.safetensors").read_bytes()], copied(data / "tokenizers/visual"), VisualTokenizer.load),
        ("run config.json", "config.json", [(run / "config.json").read_bytes()], copied(run), checkpoint_of),
        ("state.json", f"checkpoints/{step.name}/state.json", [(step / "state.json").read_bytes()], copied(run), checkpoint_of),
        ("weights", "model.safetensors", [(step / "model.safetensors").read_bytes()], bare, lambda h: checkpoint.load_weights(h / "model.safetensors", network)),
        ("optimizer", "optimizer.safetensors", [(step / "optimizer.safetensors").read_bytes()], copied(step), lambda h: checkpoint.load(h, network, optimizers)),
        ("train config", "c.json", [json.dumps(asdict(c)).encode() for c in (TRAIN, MIX, SHAPE, ReadOptions(), Limits())], bare, any_config),
    ]  # fmt: skip
    watch_all(
        root, count, seed, [(*row, None) for row in table], "mutated text, metadata, shards, tokenizers, configs, weights"
    )


Kind = tuple[str, str, list[bytes], Callable[[Path], None], Callable[[Path], Any], Callable[[random.Random], bytes] | None]


def watch_all(root: Path, count: int, seed: int, table: list[Kind], claim: str) -> None:
    """Inputs of every kind, each in a child that is watched: its name, its file, seeds, what lies beside, its reader, its growth."""
    total: Counter[str] = Counter()
    outcome = root / "outcome.json"
    for kind, name, seeds, make, read, grow in table:
        job = (root, count // len(table), seed, name, seeds, make, read, grow, outcome)
        status = finish(fork(lambda job=job: watched(*job), quiet=False))
        found = json.loads(outcome.read_text()) if status == 0 else {"died": 1, "status": status}
        say(kind=kind, **found)
        for key in ("inputs", "read", "refused", "found", "died"):
            total[key] += found.get(key, 0)
    say(claim=claim, **total)


# Names that readers of other people's formats look for, and values that they do not expect under them.
COLUMNS = (
    "image",
    "text",
    "text_ja",
    "caption",
    "captions",
    "file_name",
    "video",
    "story",
    "group",
    "path",
    "mp4",
    "audio",
    "n",
)


def odd_table(chance: random.Random) -> Any:
    """A table of columns that are called right and hold anything."""
    import pyarrow as pa

    rows = chance.choice((0, 1, 3, 40))
    makers: list[Callable[[], Any]] = [
        lambda: pa.array([chance.choice((None, "a ball", "", "x" * 5000, "a\0b", "玉")) for _ in range(rows)], pa.string()),
        lambda: pa.array([chance.choice((None, b"", b"\xff\xfe", b"\x89PNG", b"x" * 99)) for _ in range(rows)], pa.binary()),
        lambda: pa.array(
            [chance.choice((None, {"bytes": b"x", "path": "a.png"}, {"bytes": None, "path": "../x.png"})) for _ in range(rows)],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        lambda: pa.array([chance.choice((None, [], ["a", None], ["b"] * 9)) for _ in range(rows)], pa.list_(pa.string())),
        lambda: pa.array([chance.choice((None, 1.5, float("nan"))) for _ in range(rows)], pa.float64()),
        lambda: pa.array([chance.choice((None, -(2**63), 2**63 - 1)) for _ in range(rows)], pa.int64()),
        lambda: pa.array([chance.choice((-(2**63), 2**63 - 1, 0)) for _ in range(rows)], pa.int64()).cast(
            pa.timestamp(chance.choice(("s", "ms", "us", "ns")), tz=chance.choice((None, "UTC", "Mars/Olympus")))
        ),
        lambda: pa.array([{"bytes": "no bytes"}] * rows, pa.struct([("bytes", pa.string())])),
        lambda: pa.array([{"path": "x.png"}] * rows, pa.struct([("path", pa.string())])),
        lambda: pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int8()), pa.array(["one"])),
        lambda: pa.array([None] * rows, pa.null()),
        lambda: pa.array([[[b"x"]]] * rows, pa.list_(pa.list_(pa.binary()))),
        lambda: pa.array([b"\xff\xfe\xfd"] * rows, pa.binary()).view(pa.binary()).cast(pa.large_binary()),
        lambda: pa.Array.from_buffers(pa.string(), rows, pa.array([b"\xff\xfe"] * rows, pa.binary()).buffers()),  # no UTF-8
    ]
    names = [chance.choice(COLUMNS) for _ in range(chance.choice((1, 2, 2, 3, 5)))]
    return pa.table([chance.choice(makers)() for _ in names], names=names)


def grown_parquet(chance: random.Random) -> bytes:
    from pyarrow import parquet

    out = io.BytesIO()
    while True:
        with contextlib.suppress(Exception):  # what the library itself refuses to write
            how = chance.choice(("none", "snappy", "zstd", "gzip", "lz4"))
            parquet.write_table(odd_table(chance), out, compression=how, row_group_size=chance.choice((1, 2, 1000)))
            return out.getvalue()


def grown_arrow(chance: random.Random) -> bytes:
    import pyarrow as pa

    out = io.BytesIO()
    while True:
        with contextlib.suppress(Exception):
            table = odd_table(chance)
            with chance.choice((pa.ipc.new_stream, pa.ipc.new_stream, pa.ipc.new_file))(out, table.schema) as writer:
                writer.write_table(table, max_chunksize=chance.choice((1, 2, 1000)))
            return out.getvalue()


def grown_tar(chance: random.Random) -> bytes:
    """Members whose heads are sound by their checksums and say what is not so."""
    import tarfile

    out, png = b"", b"\x89PNG\r\n\x1a\n" + b"0" * 40
    names = ("a.png", "a.txt", "a.json", "b.mp4", "b.json", "../../x.png", "/etc/passwd.png", "x" * 300 + ".png", ".png", "a.b.c.png",
             "é.png", "d/", "a", "\udcff.txt", "__MACOSX/a.png", "a.npy")  # fmt: skip
    for _ in range(chance.choice((1, 2, 3, 6))):
        name = chance.choice(names)
        data = chance.choice(
            (png, b"a ball", b'{"caption": "a", "group": 3}', twisted(b'{"text": ["a"], "story": "s"}', chance), b"", b"\xff\0")
        )
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), chance.choice((0o644, 0))
        info.type = chance.choice((tarfile.REGTYPE,) * 6 + (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE,
                                                            tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.CONTTYPE))  # fmt: skip
        info.linkname = chance.choice(("", "/etc/passwd", "a.png"))
        head = bytearray(info.tobuf(chance.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)), errors="surrogateescape")
                         if len(name) < 99 else info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape"))  # fmt: skip
        if chance.random() < 0.4:  # a size, or any byte, that lies under a checksum that does not
            last = len(head) - 512
            if chance.random() < 0.5:
                lie = chance.choice(
                    (
                        b"77777777777\0",
                        b"00000000001\0",
                        b"\x80" + b"\xff" * 11,
                        b"\xff" * 12,
                        b"-0000000001\0",
                        b"           \0",
                    )
                )
                head[last + 124 : last + 136] = lie
            else:
                head[last + chance.randrange(512)] = chance.randrange(256)
            head[last + 148 : last + 156] = b" " * 8
            head[last + 148 : last + 156] = f"{sum(head[last:]):06o}\0 ".encode()
        out += bytes(head) + data + bytes(-len(data) % 512)
    return out + bytes(chance.choice((0, 512, 1024, 10240)))


def grown_toml(chance: random.Random) -> bytes:
    """A mixture file that is TOML and says what it may, here and there with another value under the right key."""
    odd = ("-1", "nan", "inf", "1e999", "true", "'x'", "[]", "{}", '["t2t", 3]', "1979-05-27", '"\\u202e"', "'../..'", "9" * 30)

    def line(key: str, *right: str) -> str:
        return f"{key} = {chance.choice(odd if chance.random() < 0.08 else right)}"

    lines = [line("routes", '["t2t"]', '["t2v", "v2v"]'), "[weights]", line("t2v", "2", "0.5")]
    for name in ("a", "b"):
        lines += [f"[sources.{name}]", line("path", '"x"'), line("weight", "0.5", "{ t2v = 1 }")]
        lines += [line("format", '"tars"', '"folder"'), line("read", "{ fps = 2 }")]
    return "\n".join(line for line in lines if chance.random() < 0.97).encode()


def fuzz_formats(root: Path, count: int, seed: int) -> None:
    """Tars, tables, documents, subtitles, mixture files: listed as `prepare` lists them, and the bytes of what is listed fetched."""
    clip, png = np.stack([ball((40, 40, 220), x=3 + t) for t in range(3)]), io.BytesIO()
    save_mp4(clip, root / "seed.mp4", fps=4)
    video = (root / "seed.mp4").read_bytes()
    Image.fromarray(clip[0]).save(png, "PNG")

    def seeds_of(grow: Callable[[random.Random], bytes]) -> list[bytes]:
        found = root / "seeds.json"  # written by a child: a library with threads is not to be forked from here

        def write() -> None:
            chance = random.Random(7)
            found.write_text(json.dumps([grow(chance).hex() for _ in range(12)]))

        assert finish(fork(write)) == 0
        return [bytes.fromhex(x) for x in json.loads(found.read_text())]

    def good_tar(chance: random.Random) -> bytes:
        import webdataset

        out = io.BytesIO()
        with webdataset.TarWriter(out) as sink:
            for i in range(3):
                sink.write(
                    {
                        "__key__": f"{i:04}",
                        "png": png.getvalue(),
                        "txt": "a ball",
                        "json": {"caption": "b", "story": chance.randrange(9)},
                    }
                )
            sink.write({"__key__": "clip", "mp4": video, "json": {"text": ["one", "two"], "text_ja": "玉"}})
        return out.getvalue()

    def bare(home: Path) -> None:
        home.mkdir()
        (home / "x.png").write_bytes(png.getvalue())
        (home / "x.mp4").write_bytes(video)

    def listed(home: Path, name: str = "") -> None:
        options, limits = ReadOptions(size=16), Limits(row_bytes=1 << 16, document_bytes=1 << 14)
        sources = scan_any(home / name, options, limits)
        check_listed(sources, home, options)
        for source in sources:
            assert all(all(len(t.encode()) <= limits.document_bytes for t in i.texts) for i in source.items)
            for item in source.items[:3]:
                if item.inside and item.kind != "text":
                    with contextlib.suppress(Exception):  # which costs the item, as its decoder says
                        inside.open_inside(item.file, item.inside).read(100)
        inside._column.cache_clear()  # a mapped file that is written over ends the process that looks at it

    def one(name: str) -> Callable[[Path], None]:
        return lambda home: listed(home, name)

    def mixed(home: Path) -> None:
        MixtureFile(home / "m.toml").mixture(MixtureConfig(), ["t2t/a", "t2v/b/c"])

    srt = (
        b"1\n00:00:00,000 --> 00:00:01,900\n<i>It is</i> red.\n\n2\n00:00:02,000 --> 00:00:04,000\n{\\an8}It is &lt;green&gt;\n"
    )
    vtt = "WEBVTT\nKind: captions\n\n00:00.000 --> 01:02.500 align:start\n玉\n\nNOTE x\n\n1:00:02.000 --> 1:00:04.000\nb\n".encode()
    chat = json.dumps([{"id": 1, "image": "x.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A ball."}]},
                       {"id": "2", "video": ["x.mp4", "x.png"], "conversations": [{"value": "Hi"}]}]).encode()  # fmt: skip
    documents = [
        json.dumps({"story": "s", "content": [{"text": "a"}, {"image": "x.png"}, {"text": "b"}, {"video": "x.mp4"}]}).encode()
        + b"\n",
        json.dumps({"images": ["x.png", None], "texts": [None, "a"], "id": 3}).encode() + b"\n",
        json.dumps({"text_list": ["a", "b"], "image_info": [{"image_name": "x.png", "matched_text_index": 1}]}).encode()
        + b"\n",
    ]
    toml = b'routes = ["t2t"]\n[weights]\nt2v = 2\n[sources.a]\npath = "x"\nweight = { t2v = 1 }\n[sources.b]\npath = "y"\nread = { fps = 2 }\nformat = "tars"\n'
    table: list[Kind] = [
        ("tar", "a.tar", [*seeds_of(good_tar), *seeds_of(grown_tar)], bare, listed, grown_tar),
        ("parquet", "a.parquet", seeds_of(grown_parquet), bare, listed, grown_parquet),
        ("arrow", "a.arrow", seeds_of(grown_arrow), bare, listed, grown_arrow),
        ("conversations, .json", "a.json", [chat], bare, one("a.json"), None),
        ("documents, .jsonl", "a.jsonl", [*documents, b"".join(documents)], bare, one("a.jsonl"), None),
        ("subtitles, .srt", "x.srt", [srt], bare, listed, None),
        ("subtitles, .vtt", "x.vtt", [vtt], bare, listed, None),
        ("mixture file", "m.toml", [toml], bare, mixed, grown_toml),
    ]  # fmt: skip
    watch_all(root, count, seed, table, "mutated tars, tables, documents, subtitles, mixture files")


def any_config(home: Path) -> None:
    for cls in (TrainConfig, MixtureConfig, ModelConfig, ReadOptions, Limits):
        with contextlib.suppress(QuadriviumError):
            made = from_dict(cls, read_json(home / "c.json", "a config"), "c.json")
            if isinstance(made, ModelConfig):
                with contextlib.suppress(ValueError):
                    made.resolve()


def cli_optimizers(network: torch.nn.Module) -> checkpoint.Optimizers:
    from quadrivium.train import make_optimizers

    return make_optimizers(network, TRAIN)


def watched(
    root: Path,
    count: int,
    seed: int,
    name: str,
    seeds: list[bytes],
    make: Callable[[Path], None],
    read: Callable[[Path], Any],
    grow: Callable[[random.Random], bytes] | None,
    outcome: Path,
) -> None:
    """Read inputs, grown or mutated, under limits of memory and time, note what is opened elsewhere, and keep inputs that reach new lines."""
    home, chance, corpus = root / "target", random.Random(f"{seed}/{name}"), list(seeds)
    allowed = tuple(
        map(
            str,
            (
                home,
                root / "found",
                outcome,
                sys.prefix,
                sys.base_prefix,
                Path(checkpoint.__file__).parents[1],
                "/proc",
                "/dev",
                "/sys",
                "/usr",
            ),
        )
    )
    outside: list[str] = []
    arcs: set[tuple[str, int, int]] = set()

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("pickle.find_class", "subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "socket.connect"):
            outside.append(event)
        elif event in ("open", "os.remove", "os.rename", "os.mkdir", "os.rmdir") and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith(allowed):
                outside.append(f"{event} {path}"[:200])

    def tracer(frame: Any, event: str, _: Any) -> Any:
        if "quadrivium" not in frame.f_code.co_filename:
            return None
        last = frame.f_lineno

        def inner(frame: Any, event: str, _: Any) -> Any:
            nonlocal last
            arcs.add((frame.f_code.co_filename, last, frame.f_lineno))
            last = frame.f_lineno
            return inner

        return inner

    resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    errors = os.open(os.devnull, os.O_WRONLY)
    shown = os.dup(1)
    os.dup2(errors, 2)  # a damaged checkpoint is named there, and a library that panics speaks there
    shutil.rmtree(home, ignore_errors=True)
    make(home)
    sys.addaudithook(audit)
    ends: Counter[str] = Counter()
    slowest, base = 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for n in range(count):
        raw = grow(chance) if grow and chance.random() < 0.4 else mutated(corpus, chance)
        (home / name).write_bytes(raw)
        began, known = time.monotonic(), len(arcs)
        signal.alarm(20)
        sys.settrace(tracer)
        try:
            read(home)
            ends["read"] += 1
        except QuadriviumError as error:
            sys.settrace(None)
            ends["refused"] += 1
            if not str(error).isprintable() or len(str(error)) > 1200:
                ends["found"] += 1
                os.write(shown, f"{name} {n}: unprintable {str(error)[:300]!r}\n".encode())
        except BaseException as error:
            sys.settrace(None)
            ends["found"] += 1
            if ends["found"] <= 5:
                where = traceback.extract_tb(error.__traceback__)
                mine = [f"{Path(f.filename).name}:{f.lineno}" for f in where if "quadrivium" in f.filename][-3:]
                os.write(shown, f"{name} {n}: {type(error).__name__} {str(error)[:200]} {mine}\n".encode())
                (root / "found").mkdir(exist_ok=True)
                (root / "found" / f"{Path(name).name}-{n}").write_bytes(raw)
        finally:
            sys.settrace(None)
            signal.alarm(0)
        slowest = max(slowest, time.monotonic() - began)
        if len(arcs) > known and len(corpus) < 400:
            corpus.append(raw)
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) // 1024
    with open(outcome, "w") as file:
        json.dump(
            {
                "inputs": count,
                **ends,
                "slowest_s": round(slowest, 2),
                "more_MB": more,
                "corpus": len(corpus),
                "outside": sorted(set(outside))[:5],
            },
            file,
        )


# -------------------------------------------------------------------------------------------------------- broken


def broken_folder(root: Path, n_bad: int, n: int = 200) -> tuple[Path, set[str]]:
    """n items (pictures, clips, rows of text) of which n_bad are broken, each in another way; the broken ones' names."""
    for name in ("pictures", "clips", "text"):
        (root / name).mkdir(parents=True)
    clip = np.stack([ball((40, 40, 220), x=3 + t) for t in range(5)])
    save_mp4(clip, root / "one.mp4", fps=4)
    video, rows, bad = (root / "one.mp4").read_bytes(), [], set()
    (root / "one.mp4").unlink()
    for i in range(n):
        broken = i * n_bad // n != (i + 1) * n_bad // n
        name = f"{i}.mp4" if i % 4 == 1 else f"{i}.png" if i % 2 == 0 else f"rows.jsonl#{i // 4 + 1}"
        if name.endswith(".mp4"):
            (root / "clips" / name).write_bytes(video[: len(video) // 3] if broken else video)
        elif name.endswith(".png"):
            out = io.BytesIO()
            Image.fromarray(ball((i, 255 - i, 99))).save(out, "PNG")
            raw = out.getvalue()
            wrong = (raw[: len(raw) // 2], b"", b"GIF89a" + raw, raw[:16] + b"\0\1\0\0" * 2 + raw[24:])[i % 3]
            (root / "pictures" / name).write_bytes(wrong if broken else raw)
        else:
            rows.append('{"text": "cut off' if broken else json.dumps({"text": f"row number {i} tells of a ball"}))
        if broken:
            bad.add(name)
    (root / "text" / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return root, bad


def broken(root: Path) -> None:
    for share, n_bad in ((0.03, 6), (0.06, 12)):
        folder, bad = broken_folder(root / f"broken-{n_bad}", n_bad)
        out = root / f"out-{n_bad}"
        try:
            used, said = len_of(prepare([folder], out, TINY, progress=False)), "used"
        except DataError as error:
            used, said = 0, str(error)
        listed = {
            Path(json.loads(line)["item"].replace(":", "#")).name for line in (out / "skipped.jsonl").read_text().splitlines()
        }
        enough = listed == bad if share < 0.05 else listed <= bad and len(listed) > 10  # it stops at the eleventh, not the last
        assert enough, (listed, bad)
        assert (used == 200 - n_bad) if share < 0.05 else ("of 200 items cannot be used" in said), (used, said)
        say(
            claim=f"{share:.0%} broken",
            items=200,
            broken=n_bad,
            listed=len(listed),
            all_of_them_broken=True,
            used=used,
            said=said[-90:],
        )


def len_of(data: Dataset) -> int:
    return sum(len(s) for s in data.sources)


# -------------------------------------------------------------------------------------------------------- system


def told(work: Callable[[], Any], log: Path) -> tuple[int, str]:
    """Status and words of a command in a child, as the command line would end it."""
    status = finish(fork(lambda: told_to(log, work), quiet=False))
    return status, log.read_text(errors="replace")


def told_to(log: Path, work: Callable[[], Any]) -> int:
    """Status of a command run here, as the command line would end it; what it says goes to ``log``."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        work()
    except QuadriviumError as error:
        print(f"quadrivium: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


@contextlib.contextmanager
def small_disk(root: Path, kilobytes: int) -> Any:
    where = Path(tempfile.mkdtemp(dir=root))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def remount(where: Path, *options: str) -> None:
    subprocess.run(["mount", "-o", ",".join(("remount", *options)), where], check=True)


def system(root: Path, sizes: int) -> None:
    folder, data = inputs(root)
    log = root / "log"
    jobs: dict[str, Callable[[Path], Any]] = {
        "train": lambda out: train(data, out),
        "prepare": lambda out: prepare([folder], out, TINY, progress=False),
    }
    for name, job in jobs.items():
        plain = root / f"plain-{name}"
        assert told(lambda job=job, plain=plain: job(plain), log)[0] == 0
        wanted = result(plain)
        with small_disk(root, 1 << 20) as disk:  # how much room the whole takes at its widest
            watch = fork(lambda job=job, disk=disk: job(disk / "out"))
            widest = 0
            while os.waitpid(watch, os.WNOHANG)[0] == 0:
                widest = max(widest, (1 << 20) - os.statvfs(disk).f_bavail * 4)
                time.sleep(0.001)
        full, words = 0, Counter()
        for i in range(sizes):
            with small_disk(root, max(8, int(widest * (i + 0.5) / sizes))) as disk:
                status, said = told(lambda job=job, disk=disk: job(disk / "out"), log)
                assert status in (0, 2) and "Traceback" not in said, (name, i, status, said[-2000:])
                if status == 2:
                    full += 1
                    assert "No space left" in said or "os error 28" in said, said
                    words[said.split("could not be written")[0].rsplit("/", 1)[-1].strip(": ")] += 1
                whole(disk / "out")
                remount(disk, "size=1g")
                status, said = told(lambda job=job, disk=disk: job(disk / "out"), log)
                assert status == 0, said
                assert result(disk / "out") == wanted
        say(claim=f"{name} on a disk that fills up", sizes=sizes, stopped=full, resumed_bit_equal=sizes, at=dict(words))
        with small_disk(root, 1 << 20) as disk:
            remount(disk, "ro")
            status, said = told(lambda job=job, disk=disk: job(disk / "out"), log)
            assert status == 2 and "Traceback" not in said, said
            say(claim=f"{name} into a read-only folder", status=status, said=said.strip()[-160:])
            remount(disk, "rw")
            child = fork(lambda job=job, disk=disk: job(disk / "out"))
            while not list((disk / "out").glob("checkpoints/step*")) and not list((disk / "out").glob("tokenizers/text/*")):
                time.sleep(0.001)
            os.kill(child, signal.SIGKILL)
            finish(child)
            remount(disk, "ro")
            status, said = told(lambda job=job, disk=disk: job(disk / "out"), log)
            assert status == 2 and "Traceback" not in said, said
            remount(disk, "rw")
            assert told(lambda job=job, disk=disk: job(disk / "out"), log)[0] == 0 and result(disk / "out") == wanted
            say(claim=f"{name}, permission lost between two lives, given back", bit_equal=True, said=said.strip()[-160:])
        out = root / f"twice-{name}"
        children = [fork(lambda job=job, out=out, i=i: told_to(root / f"log{i}", lambda: job(out))) for i in range(4)]
        statuses = sorted(finish(c) for c in children)
        says = [t for i in range(4) if "quadrivium:" in (t := (root / f"log{i}").read_text())]
        assert statuses == [0, 2, 2, 2] and all("in use" in t or "already holds" in t for t in says), (statuses, says)
        assert result(out) == wanted
        say(
            claim=f"{name} started four times at once on one folder",
            statuses=statuses,
            winner_bit_equal=True,
            said=says[0].strip()[-120:],
        )

        def jumping(job: Callable[[Path], Any] = job, out: Path = root / f"clock-{name}") -> None:
            real, jumps = time.time, random.Random(0)
            time.time = lambda: real() + jumps.uniform(-3e8, 3e8)
            job(out)

        assert told(jumping, log)[0] == 0 and result(root / f"clock-{name}") == wanted
        say(claim=f"{name} with a wall clock that jumps by years at every look", bit_equal=True)
    out, killed = root / "worker", 0
    child = fork(lambda: prepare([folder], out, TINY, progress=False) and None)
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        for line in decoders_of(child):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line), signal.SIGKILL)
                killed += 1
        time.sleep(2)
    assert result(out) == result(root / "plain-prepare") and not (out / "skipped.jsonl").read_text()
    say(claim="prepare whose decoders are killed again and again", decoders_killed=killed, bit_equal=True)


def decoders_of(parent: int) -> list[str]:
    with contextlib.suppress(OSError):
        return [
            c for t in os.listdir(f"/proc/{parent}/task") for c in Path(f"/proc/{parent}/task/{t}/children").read_text().split()
        ]
    return []


# -------------------------------------------------------------------------------------------------------- pickle


class Evil:
    """What, unpickled, makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def pickles(root: Path) -> None:
    marker = root / "EXECUTED"
    bare = pickle.dumps(Evil(marker))
    zipped, array = io.BytesIO(), io.BytesIO()
    torch.save(Evil(marker), zipped)
    np.save(array, np.array([Evil(marker)], object), allow_pickle=True)
    forms = {"pickle": bare, "torch.save": zipped.getvalue(), "npy": array.getvalue()}
    pickle.loads(bare)
    assert marker.exists(), "the pickle is harmless, so nothing is proved"
    marker.unlink()
    folder, data = inputs(root)
    run = root / "run"
    train(data, run)
    tried = 0
    for form, raw in forms.items():
        everything = [f"x{ending}" for ending in sorted({*TEXTS, *IMAGES, *VIDEOS})]
        # A format that is there hides others, so each has a folder to itself.
        alone = [
            ["metadata.jsonl"],
            ["metadata.csv"],
            ["b.srt"],
            ["b.vtt"],
            *([f"x{e}"] for e in (".tar", ".parquet", ".arrow", ".json", ".toml")),
        ]
        for names in (everything, *alone):
            home = root / "source"
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            for name in (*names, "a.png", "b.mp4"):
                (home / name).write_bytes(raw)
            (home / "fine.txt").write_text("so that there is something to read\n" * 3)
            tried += len(names)
            for source in (home, *([home / names[0]] if len(names) == 1 else [])):
                with contextlib.suppress(QuadriviumError):
                    prepare([source], root / "never", replace(TINY, max_bad=1.0), progress=False)
                shutil.rmtree(root / "never", ignore_errors=True)
        tried += wrapped(root / "wrapped", raw)
        for source in (data, run):
            for path in sorted(p for p in source.rglob("*") if p.is_file() and p.name != ".lock"):
                home = root / "copy"
                shutil.rmtree(home, ignore_errors=True)
                shutil.copytree(source, home)
                (home / path.relative_to(source)).write_bytes(raw)
                for read in readers(home, folder):
                    with contextlib.suppress(QuadriviumError):
                        read()
                tried += 1
        for name in ("frames.npy", "sample.json"):
            home = root / "copy"
            shutil.rmtree(home, ignore_errors=True)
            work = home / ".work"
            work.mkdir(parents=True)
            (work / "sample.json").write_text(json.dumps({"of": [0, 0], "held": [False, True]}))
            (work / name).write_bytes(raw)
            (home / ".lock").touch()
            with contextlib.suppress(QuadriviumError, ValueError):
                prepare([folder], home, TINY, progress=False)
            tried += 1
        assert not marker.exists(), form
    say(claim="pickles under every name that is read", forms=list(forms), places=tried, executed=marker.exists())


def wrapped(home: Path, raw: bytes) -> int:
    """A pickle inside sound containers, where their own libraries would look for one; how many places these are."""
    import tarfile

    import pyarrow as pa
    from pyarrow import parquet

    shutil.rmtree(home, ignore_errors=True)
    endings = ("pyd", "pickle", "pkl", "pth", "npy", "png", "mp4", "txt", "json", "cls")
    for part in ("tar", "parquet", "arrow"):
        (home / part).mkdir(parents=True)
    with tarfile.open(home / "tar" / "a.tar", "w") as archive:
        for ending in endings:
            info = tarfile.TarInfo(f"0.{ending}")
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    # A type that older versions of arrow unpickle from the schema.
    meta = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": raw}
    schema = pa.schema(
        [pa.field("text", pa.string(), metadata=meta), pa.field("image", pa.binary())],
        metadata={"pandas": raw, "huggingface": raw},
    )
    table = pa.table([["one"], [raw]], schema=schema)
    parquet.write_table(table, home / "parquet" / "a.parquet")
    with pa.ipc.new_stream(str(home / "arrow" / "a.arrow"), schema) as sink:
        sink.write_table(table)
    for part in ("tar", "parquet", "arrow"):
        with contextlib.suppress(QuadriviumError):
            prepare([home / part], home / "never", replace(TINY, max_bad=1.0), progress=False)
        shutil.rmtree(home / "never", ignore_errors=True)
    return len(endings) + 4 * 2


def readers(home: Path, folder: Path) -> list[Callable[[], Any]]:
    """Everything that reads a data or run folder."""
    if (home / "manifest.json").exists():
        return [
            lambda: Dataset(home).verify(),
            lambda: TextTokenizer.load(home / "tokenizers/text"),
            lambda: VisualTokenizer.load(home / "tokenizers/visual"),
            lambda: prepare([folder], home, TINY, progress=False),
        ]
    return [
        lambda: checkpoint.Run(home),
        lambda: checkpoint.latest(home / "checkpoints"),
        lambda: checkpoint.load_weights(next(home.rglob("step-*/model.safetensors")), checkpoint.Run(home).model),
        lambda: train(Path("nowhere"), home),
        lambda: cli.main(["eval", str(home), "--limit", "2"]) and None,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claim", choices=("kills", "fuzz", "broken", "system", "pickle"))
    parser.add_argument("--train", type=int, default=120, help="training runs to kill")
    parser.add_argument("--prepare", type=int, default=80, help="prepares to kill")
    parser.add_argument("--media", type=int, default=12_000, help="mutated pictures and videos")
    parser.add_argument("--other", type=int, default=12_000, help="mutated inputs of all other kinds")
    parser.add_argument("--formats", type=int, default=6_000, help="inputs in other people's formats")
    parser.add_argument("--sizes", type=int, default=12, help="sizes of the disk that fills up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the folder, with the inputs that found something")
    given = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="reliability-"))
    began = time.monotonic()
    try:
        if given.claim == "kills":
            kills(root, given.train, given.prepare, given.seed)
        elif given.claim == "fuzz":
            for fuzz, count in ((fuzz_media, given.media), (fuzz_other, given.other), (fuzz_formats, given.formats)):
                if count:
                    fuzz(root, count, given.seed)
        elif given.claim == "broken":
            broken(root)
        elif given.claim == "system":
            system(root, given.sizes)
        else:
            pickles(root)
        say(done=given.claim, minutes=round((time.monotonic() - began) / 60, 1))
    finally:
        if given.keep:
            say(kept=str(root))
        else:
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
