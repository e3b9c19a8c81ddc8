"""Token shards: written by `prepare`, memory-mapped by everything that trains or measures.

A data folder:

    manifest.json                 what was read from where, with which options; every shard with its checksum
    tokenizers/text/              tokenizer.json
    tokenizers/visual/            config.json, model.safetensors
    shards/SOURCE-00000.safetensors
    skipped.jsonl                 one line for every item that could not be used

A shard is one safetensors file (a JSON header and plain arrays; nothing in it can be executed). An *item* is one text
document, one picture or one clip. For n items with T texts of I ids together, and A frames:

    ids (I,)         ids of all texts, without marks        id_ends (T,)        where each text's ids end
    text_ends (n,)   where each item's texts end            codes (A, R, C)     codes of all frames
    frame_ends (n,)  where each item's frames end           held (n,)           1: held out, 0: train
    group (n,)       hash of what stays on one side of the split (a story, a video); the unit of standard errors
    keys             UTF-8 names of the items, one a line
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from quadrivium.errors import DataError, RunError, one_line

MANIFEST = "manifest.json"
VERSION = 1
_HEADER = 1 << 20  # bytes of a shard's header; ours take a thousand
_JSON = 1 << 26  # bytes of a JSON file that is read as a whole; parsed, it may take twenty times that
_ARRAYS = {"ids", "id_ends", "text_ends", "codes", "frame_ends", "held", "group", "keys"}
_NUMPY = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "I64": np.int64, "U64": np.uint64}


@dataclass(frozen=True)
class Record:
    """One item: its texts as ids without marks, its frames as codes (F, R, C)."""

    key: str
    group: int
    held: bool
    texts: tuple[np.ndarray, ...]
    frames: np.ndarray


def stable_hash(text: str) -> int:
    """64 bits of SHA-256: the same on every machine, unlike Python's hash of a string."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little")


def is_held(group: str, share: float) -> bool:
    """Whether everything of this group is held out: a function of its name alone, so that added data moves nothing."""
    return stable_hash("held-out/" + group) / 2**64 < share


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is whole or absent, also when the machine stops in between. Raises RunError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(data)
        sync(part)
        os.replace(part, path)
        sync(path.parent)
    except OSError as error:
        raise unwritten(path, error) from None
    finally:
        with contextlib.suppress(OSError):  # of a folder that may no longer be written to
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A folder to write in, which becomes ``out`` (new or empty) when all is written; otherwise nothing is left of it."""
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{out.name}.unfinished-*"):  # by a process that was killed
        pid = int(left.name.rpartition("-")[2])
        if pid == os.getpid() or not alive(pid):
            shutil.rmtree(left, ignore_errors=True)
    folder = out.parent / f".{out.name}.unfinished-{os.getpid()}"
    try:
        folder.mkdir()
        yield folder
        if out.exists():
            out.rmdir()
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk and not only on its way there."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def unwritten(path: Path, error: object) -> RunError:
    """What to tell the user when the system refuses to write."""
    why = getattr(error, "strerror", None) or " ".join(str(error).split())
    return RunError(f"{path}: could not be written ({why}); free space or mend the folder, then give the same command again")


def to_json(value: object) -> str:
    """Strict JSON; what is not a finite number becomes null."""

    def strict(x: object) -> object:
        if isinstance(x, dict):
            return {k: strict(v) for k, v in x.items()}
        if isinstance(x, list | tuple):
            return [strict(v) for v in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    return json.dumps(strict(value), indent=1, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, value: object) -> None:
    """Write `to_json` of a value, whole or not at all. Raises RunError."""
    # Of a path that is not UTF-8, JSON's own escape.
    write_atomic(path, (to_json(value) + "\n").encode("utf-8", "backslashreplace"))


_CURES = {  # what writes it
    "a run folder": "; `quadrivium train DATA --out RUN` writes one",
    "a prepared data folder": "; `quadrivium prepare FOLDER --out DATA` writes one",
    "results of an experiment": "; `quadrivium transfer`, `experiment` or `eval` write them",
}


def read_json(path: Path, what: str, most: int = _JSON) -> dict:
    """A JSON object from a file of at most ``most`` bytes; `RunError` with one line where it is absent or damaged."""
    try:
        if path.stat().st_size > most:
            raise RunError(f"{path}: larger than {most:,} bytes; this is not {what}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing = "not found" if path.parent.is_dir() else "not found, nor is its folder"
        raise RunError(f"{path}: {missing}; this is not {what}{_CURES.get(what, '')}") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); this is not {what}") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged JSON ({error}); make {what} again") from None
    if not isinstance(value, dict):
        raise RunError(f"{path}: holds a {type(value).__name__} where an object belongs; make {what} again")
    return value


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, read off its header and checked against its size. Raises RunError."""
    try:
        with safe_open(path, "numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise RunError(f"{path}: not found; the weights are missing") from None
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path}: damaged weights ({one_line(error, 200)})") from None


def write_shard(path: Path, records: Iterable[Record], id_type: type, grid: tuple[int, int]) -> dict:
    """Write records as one shard and return its manifest entry (file, bytes, sha256, counts)."""
    records = list(records)
    texts = [t for r in records for t in r.texts]
    held = np.array([r.held for r in records], np.uint8)
    arrays: dict[str, np.ndarray] = {
        "ids": np.concatenate([np.zeros(0, id_type), *texts]).astype(id_type),
        "id_ends": np.cumsum([len(t) for t in texts], dtype=np.int64),
        "text_ends": np.cumsum([len(r.texts) for r in records], dtype=np.int64),
        "codes": np.concatenate([np.zeros((0, *grid), np.uint16), *(r.frames for r in records)]).astype(np.uint16),
        "frame_ends": np.cumsum([len(r.frames) for r in records], dtype=np.int64),
        "held": held,
        "group": np.array([r.group for r in records], np.uint64),
        "keys": np.frombuffer("\n".join(r.key.replace("\n", " ") for r in records).encode("utf-8", "replace"), np.uint8),
    }
    data = save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
    write_atomic(path, data)
    return {
        "file": path.name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "items": len(records),
        "held": int(held.sum()),
        "ids": len(arrays["ids"]),
        "frames": len(arrays["codes"]),
    }


def map_shard(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file as views of memory-mapped bytes: constant memory, shared by processes.

    The header is checked against the file, and the arrays against one another, before they are believed. Raises RunError.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _HEADER):
                raise ValueError("header length")
            header = json.loads(file.read(length))
        data = np.memmap(path, np.uint8, "r", offset=8 + length) if size > 8 + length else np.zeros(0, np.uint8)
        arrays = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            kind, shape = np.dtype(_NUMPY[entry["dtype"]]), tuple(entry["shape"])
            if not all(isinstance(n, int) and n >= 0 for n in shape):
                raise ValueError(f"shape of array {name}")
            if not 0 <= begin <= end <= len(data) or end - begin != kind.itemsize * int(np.prod(shape, dtype=object)):
                raise ValueError(f"array {name}")
            arrays[name] = (
                np.frombuffer(data, kind, int(np.prod(shape)), begin).reshape(shape) if end > begin else np.zeros(shape, kind)
            )
        _check_arrays(arrays)
        return arrays
    except FileNotFoundError:
        raise RunError(f"{path}: shard is missing; run prepare again, it writes only what is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise RunError(f"{path}: damaged shard ({str(error)[:200]}); delete it and run prepare again") from None


def _check_arrays(arrays: dict[str, np.ndarray]) -> None:
    """Raises ValueError where the arrays of a shard do not belong together."""
    if set(arrays) != _ARRAYS:
        raise ValueError(f"it holds {', '.join(sorted(arrays))[:100]}")
    if any(a.ndim != (3 if name == "codes" else 1) for name, a in arrays.items()):
        raise ValueError("shapes of arrays")
    if len(arrays["held"]) != len(arrays["text_ends"]) or len({len(arrays[n]) for n in ("held", "group", "frame_ends")}) > 1:
        raise ValueError("numbers of items differ")
    for ends, what in (("id_ends", "ids"), ("text_ends", "id_ends"), ("frame_ends", "codes")):
        values = arrays[ends]
        if values.dtype != np.int64 or (len(values) > 0 and (values[0] < 0 or (np.diff(values) < 0).any())):
            raise ValueError(f"{ends} do not ascend")
        if (int(values[-1]) if len(values) else 0) != len(arrays[what]):
            raise ValueError(f"{ends} and {what} differ")


class SourceData:
    """All items of one prepared source, over all its shards."""

    def __init__(self, name: str, shards: list[dict[str, np.ndarray]], rendered: bool = False) -> None:
        self.name = name
        self.rendered = rendered  # its frames are pages of text
        self._shards = shards
        self.ends = np.cumsum([len(s["held"]) for s in shards], dtype=np.int64)

        def all_of(name: str) -> np.ndarray:
            return np.concatenate([s[name] for s in shards]) if shards else np.zeros(0, np.int64)

        def counts(name: str) -> np.ndarray:
            return np.concatenate([np.diff(s[name], prepend=0) for s in shards]) if shards else np.zeros(0, np.int64)

        self.held = all_of("held").astype(bool)  # (n,)
        self.group = all_of("group")  # (n,)
        self.frames = counts("frame_ends")  # (n,) frames of each item
        self.texts = counts("text_ends")  # (n,) texts of each item
        self.text_ids = counts("id_ends")  # (T,) ids of each text
        self.text_first = np.cumsum(self.texts) - self.texts  # (n,) index of each item's first text

    def __len__(self) -> int:
        return len(self.held)

    def text(self, item: int, which: int) -> np.ndarray:
        """Ids of one text of one item, without marks."""
        shard, i = self._at(item)
        t = (int(shard["text_ends"][i - 1]) if i else 0) + which
        ends = shard["id_ends"]
        return shard["ids"][int(ends[t - 1]) if t else 0 : int(ends[t])]

    def codes(self, item: int) -> np.ndarray:
        """Codes (F, R, C) of one item."""
        shard, i = self._at(item)
        ends = shard["frame_ends"]
        return shard["codes"][int(ends[i - 1]) if i else 0 : int(ends[i])]

    def key(self, item: int) -> str:
        """Its name. Raises RunError where the names are damaged."""
        shard, i = self._at(item)
        try:
            return bytes(shard["keys"]).decode().split("\n")[i]
        except (UnicodeDecodeError, IndexError):
            raise RunError(f"{self.name}: the names of its items are damaged; prepare the data again") from None

    def _at(self, item: int) -> tuple[dict[str, np.ndarray], int]:
        s = int(np.searchsorted(self.ends, item, side="right"))
        return self._shards[s], item - int(self.ends[s] - len(self._shards[s]["held"]))


class Dataset:
    """A prepared data folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_json(folder / MANIFEST, "a prepared data folder", most=1 << 30)
        if self.manifest.get("version") != VERSION:
            raise RunError(f"{folder / MANIFEST}: written by another version of prepare; prepare the data again")
        if not self.manifest.get("complete"):
            raise RunError(f"{folder}: prepare did not finish here; run the same prepare command again, it goes on")
        self.sources: list[SourceData] = []
        try:
            grid = [int(n) for n in self.manifest["grid"]]
            for entry in self.manifest["sources"]:
                shards = []
                for shard in entry["shards"]:
                    path = folder / "shards" / Path(shard["file"]).name
                    if path.is_file() and path.stat().st_size != shard["bytes"]:
                        raise RunError(
                            f"{path}: {path.stat().st_size} bytes where {shard['bytes']} were written; prepare again"
                        )
                    shards.append(map_shard(path))
                    if len(shards[-1]["codes"]) and list(shards[-1]["codes"].shape[1:]) != grid:
                        raise RunError(f"{path}: its frames are not of {grid} codes as the manifest says; prepare again")
                self.sources.append(SourceData(entry["name"], shards, bool(entry.get("rendered"))))
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, OSError) as error:
            raise RunError(f"{folder / MANIFEST}: damaged ({error!r:.200}); prepare the data again") from None
        if not any(len(s) for s in self.sources):
            raise DataError(f"{folder}: no items; prepare it from folders that hold text, pictures or clips")

    @property
    def has_frames(self) -> bool:
        return any(len(s) and s.frames.any() for s in self.sources)

    @property
    def checksum(self) -> str:
        """Of all that is in it."""
        every = [[shard.get("sha256") for shard in entry["shards"]] for entry in self.manifest["sources"]]
        return hashlib.sha256(json.dumps(every).encode()).hexdigest()

    def verify(self) -> None:
        """Compare every shard with its checksum. Raises RunError naming the first that differs."""
        for entry in self.manifest["sources"]:
            for shard in entry["shards"]:
                path = self.folder / "shards" / Path(shard["file"]).name
                if sha256(path) != shard.get("sha256"):
                    raise RunError(f"{path}: checksum differs from the manifest; delete it and run prepare again")
