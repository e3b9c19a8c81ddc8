"""Datasets of the Hugging Face hub: streamed once into tables beside the library's own cache, and read there like any other.

    hf://OWNER/NAME                                     its split "train", or all splits where none is called so
    hf://OWNER/NAME?config=en&split=train&rows=10000    one configuration, one split, the first rows

Only rows that are asked for are fetched, and the same command goes on where it was stopped. No code of a dataset is run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from tqdm import tqdm

from quadrivium.errors import DataError, one_line

_ROWS, _BYTES = 1000, 1 << 28  # of a table that is written at once
_LARGEST = 1 << 30  # bytes of a picture or video that a row only names
_PACKED = ("zip", "tar", "gzip", "bz2", "xz", "zstd")  # ways into a file of the dataset


def is_hub(path: Path) -> bool:
    """Whether a source is a dataset's address; a path has made one slash of the two."""
    return path.parts[:1] == ("hf:",)


def fetch(path: Path) -> tuple[str, Path]:
    """A dataset's name without its owner, and the folder that holds its tables. Raises DataError."""
    name, _, query = str(path).removeprefix("hf:").lstrip("/").removeprefix("datasets/").partition("?")
    chosen = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True))  # in train+test it stands for itself
    for key in chosen:
        if key not in ("config", "split", "rows"):
            raise DataError(f"{path}: unknown key {key!r}; after the question mark stand config, split and rows")
    rows = chosen.get("rows")
    if rows is not None and not (rows.isdecimal() and int(rows)):
        raise DataError(f"{path}: rows is {rows!r}; give a whole number of at least 1")
    return name.rpartition("/")[2], stream(name, chosen.get("config"), chosen.get("split"), int(rows) if rows else None)


def stream(name: str, config: str | None = None, split: str | None = None, rows: int | None = None) -> Path:
    """Fetch a dataset, or what is missing of it, into a folder of parquet files. ``name``: on the hub, or a local folder."""
    try:
        import datasets
    except ImportError:
        raise DataError(f"{name}: the hub needs its library: pip install -c constraints.txt -e '.[data]'") from None
    mark = hashlib.sha256(repr((name, config, split, rows)).encode()).hexdigest()[:12]
    slug = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)[-60:]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "quadrivium" / f"{slug}-{mark}"
    done = folder / ".complete"
    if done.exists():
        return folder
    shown = not datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()  # one bar is enough
    try:
        with _alone(folder, name):
            if done.exists():  # by the process that was waited for
                return folder
            found: Any = datasets.load_dataset(name, config, split=split, streaming=True)
            if isinstance(found, dict):
                found = {"train": found["train"]} if "train" in found else dict(found)
            else:
                found = {split or "train": found}
            left = rows
            for label, part in found.items():
                left = _write(part, folder, name, label, left)
            done.touch()
    except DataError:
        raise
    except Exception as error:  # network, permission, absence, a damaged file: the library raises many types
        why = one_line(error or type(error).__name__, 300)
        raise DataError(f"{name}: cannot be fetched ({why}); check name and network, the same command goes on") from None
    finally:
        if shown:
            datasets.enable_progress_bars()
    return folder


@contextlib.contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Hold a folder, after any other process that fetches into it: ranks of one command all come here at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{name}: waiting for another process that fetches it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # the system lets go of the lock when the process ends, however it ends


def _write(part: Any, folder: Path, name: str, label: str, left: int | None) -> int | None:
    """Write a split, beginning after what lies there already; returns how many rows may still be taken."""
    import datasets
    from pyarrow import parquet

    title, label = f"{name} {label}", label.replace("/", "-")
    part = part.decode(False)  # bytes stay as they were packed
    here = sum(parquet.read_metadata(f).num_rows for f in folder.glob(f"{label}-*.parquet"))
    info = (getattr(part.info, "splits", None) or {}).get(label)
    total = info.num_examples if info else None
    total = left if total is None or (left is not None and left < total) else total
    taken = part.skip(here) if here else part
    taken = taken if left is None else taken.take(max(left - here, 0))
    features = part.features
    sounds = [k for k, v in (features or {}).items() if isinstance(v, datasets.Audio)]
    if sounds:
        taken, features = taken.remove_columns(sounds), None
    with tqdm(total=total, initial=here, desc=title, unit="row") as bar:
        for batch in _batches(iter(taken), name):
            file = folder / f"{label}-{len(list(folder.glob(f'{label}-*.parquet'))):05d}.parquet"
            half = file.with_name(f".{file.name}.part")
            datasets.Dataset.from_list(batch, features=features).to_parquet(str(half), batch_size=100)
            os.replace(half, file)
            here += len(batch)
            bar.update(len(batch))
    return None if left is None else left - here


def _batches(rows: Iterator[dict[str, Any]], name: str) -> Iterator[list[dict[str, Any]]]:
    """Rows of the dataset ``name`` in lists that fit in memory."""
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        batch.append({column: _whole(value, name) for column, value in row.items()})
        size += sum(map(_size, batch[-1].values()))
        if len(batch) >= _ROWS or size >= _BYTES:
            yield batch
            batch, size = [], 0
    yield from (batch,) if batch else ()


def _whole(value: Any, dataset: str) -> Any:
    """A cell with the bytes of the pictures and videos that it only names; for a name, by which `tables` knows equal ones, their checksum:
    the library would prefer a file of the old name to them. Of what lies outside the ``dataset`` nothing is kept: whoever wrote it may name
    any file of this machine."""
    if isinstance(value, list):
        return [_whole(part, dataset) for part in value]
    if not isinstance(value, dict):
        return value
    if value.keys() != {"bytes", "path"}:
        return {key: _whole(part, dataset) for key, part in value.items()}
    data = value["bytes"]
    if data is None and value["path"] and _inside(str(value["path"]), dataset):
        import fsspec

        with fsspec.open(value["path"], "rb") as file:
            data = file.read(_LARGEST + 1)
        data = data if len(data) <= _LARGEST else None
    return {"bytes": data, "path": hashlib.sha256(data).hexdigest()} if data else None


def _inside(address: str, dataset: str) -> bool:
    """Whether an address, as the library gives it, is that of a file of the dataset, or of one inside an archive of it."""
    *packed, place = address.split("::")
    if not all(hop.partition("://")[0] in _PACKED for hop in packed):
        return False
    if place.startswith("hf://datasets/"):
        owner_and_name = place.removeprefix("hf://datasets/").partition("@")[0].split("/")[:2]
        # A name without an owner is an old one, which the hub leads on to one with an owner.
        return owner_and_name == dataset.split("/") if "/" in dataset else owner_and_name[-1] == dataset
    folder, file = os.path.realpath(dataset), os.path.realpath(place)
    return os.path.isdir(folder) and file.startswith(os.path.join(folder, "")) and os.path.isfile(file)


def _size(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else len(value) if isinstance(value, str | bytes) else 8
