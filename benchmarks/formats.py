"""The same items in other people's formats: are the tokens and the bits those of the plain folder? Writes one table.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/formats.py DATA --out runs/formats --clips 300

``storybook``: every picture, as the folder it comes as, as tars that the webdataset library writes, as a parquet table; and without
its Japanese captions, which a document cannot hold apart, as a folder and as interleaved stories. ``movingshapes``: its first clips
(--clips) as a folder and as tars laid out like video2dataset's. Each is prepared (its own tokenizers learned), trained for 50 steps
and measured by the same options. A life that is measured already is kept in --out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from quadrivium import evaluate
from quadrivium.checkpoint import Run
from quadrivium.data.mixture import Mixture, MixtureConfig
from quadrivium.data.shards import Dataset, read_json, write_json
from quadrivium.model import ModelConfig
from quadrivium.prepare import PrepareConfig, prepare
from quadrivium.train import TrainConfig, train_routes
from quadrivium.visual import VisualConfig

PREPARE = PrepareConfig(
    vocab=2048,
    visual=VisualConfig(width=32, encoder_depth=0),
    visual_train=TrainConfig(steps=100, lr=2e-3, optimizer="adamw", weight_decay=0.0),
    sample_frames=2000,
)
MIX = MixtureConfig(positions=1024)
SHAPE = ModelConfig(layers=2, width=64, heads=2, patch=4)
TRAIN = TrainConfig(steps=50, precision="fp32", optimizer="adamw")
Rows = list[dict[str, Any]]


def rows_of(folder: Path) -> Rows:
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [{**row, "bytes": (folder / row["file_name"]).read_bytes()} for row in map(json.loads, lines)]


def as_folder(out: Path, rows: Rows) -> None:
    described = []
    for row in rows:
        (out / row["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        (out / row["file_name"]).write_bytes(row["bytes"])
        described.append(json.dumps({k: v for k, v in row.items() if k != "bytes"}, ensure_ascii=False) + "\n")
    (out / "metadata.jsonl").write_text("".join(described), encoding="utf-8")


def as_tars(out: Path, rows: Rows) -> None:
    from webdataset import ShardWriter

    out.mkdir(parents=True)
    with ShardWriter(str(out / "%05d.tar"), maxcount=1000, verbose=0) as sink:
        for i, row in enumerate(rows):
            known = {k: v for k, v in row.items() if k not in ("bytes", "text")}
            words = {"txt": row["text"]} if row["text"] else {}
            sink.write({"__key__": f"{i:09}", Path(row["file_name"]).suffix[1:]: row["bytes"], **words, "json": known})


def as_video2dataset(out: Path, rows: Rows) -> None:
    """Tars of clips as video2dataset lays them out, with what it leaves beside them."""
    from webdataset import ShardWriter

    out.mkdir(parents=True)
    with ShardWriter(str(out / "%05d.tar"), maxcount=100, verbose=0) as sink:
        for i, row in enumerate(rows):
            known = {
                "key": f"{i:09}",
                "status": "success",
                "caption": row["text"],
                "group": row["file_name"],
                "error_message": None,
            }
            sink.write({"__key__": f"{i:09}", "mp4": row["bytes"], "txt": row["text"], "json": known})
    (out / "00000_stats.json").write_text(json.dumps({"count": len(rows), "successes": len(rows)}))


def as_parquet(out: Path, rows: Rows) -> None:
    import pyarrow
    from pyarrow import parquet

    out.mkdir(parents=True)
    columns = {
        "image": [{"bytes": r["bytes"], "path": r["file_name"]} for r in rows],
        "text": [r["text"] or None for r in rows],
        "text_ja": [r.get("text_ja") for r in rows],
        "story": [r["story"] for r in rows],
    }
    parquet.write_table(pyarrow.table(columns), out / "train-00000-of-00001.parquet", row_group_size=500)


def as_stories(out: Path, rows: Rows) -> None:
    """A document a story: its pictures and their texts in order."""
    stories: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        (out / row["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        (out / row["file_name"]).write_bytes(row["bytes"])
        stories.setdefault(row["story"], []).extend(
            [{"image": row["file_name"]}, *([{"text": row["text"]}] if row["text"] else [])]
        )
    lines = [json.dumps({"story": k, "content": v}, ensure_ascii=False) + "\n" for k, v in stories.items()]
    (out / "stories.jsonl").write_text("".join(lines), encoding="utf-8")


def told(rows: Rows) -> Rows:
    """Storybook as documents can say it: one language, and no story that ends with a picture without words."""
    last = {row["story"]: row for row in rows}
    silent = {story for story, row in last.items() if not row["text"]}
    return [{k: v for k, v in r.items() if k != "text_ja"} for r in rows if r["story"] not in silent]


def grouped(rows: Rows) -> Rows:
    return [{"file_name": r["file_name"], "text": r["text"], "group": r["file_name"], "bytes": r["bytes"]} for r in rows]


def live(name: str, home: Path, write: Callable[[Path, Rows], None], rows: Rows) -> dict[str, Any]:
    """Write, prepare, train, measure: what came out, as JSON keeps it."""
    kept = home / "result.json"
    if kept.is_file():
        return read_json(kept, "a life")
    shutil.rmtree(home, ignore_errors=True)
    source = home / name  # the name of the folder is the name of the source, which draws what is held out
    write(source, rows)
    data = prepare([source], home / "data", PREPARE)
    train_routes(data.folder, home / "run", SHAPE, MIX, TRAIN)
    run = Run(home / "run")
    mixed = Mixture(Dataset(data.folder), MIX, run.text.end, 0, run.patch)
    digest = hashlib.sha256()
    for shard in (s for found in data.sources for s in found._shards):
        for key in sorted(set(shard) - {"keys"}):  # which name places, and differ as they should
            digest.update(key.encode() + np.ascontiguousarray(shard[key]).tobytes())
    routes = evaluate.routes(run.model, mixed, run.text.id_bytes, 128)["routes"]
    found = {"items": sum(len(s) for s in data.sources), "skipped": sum(e["skipped"] for e in data.manifest["sources"])}
    write_json(kept, {**found, "shards": digest.hexdigest(), "routes": routes})
    for part in ("data", "run", name):
        shutil.rmtree(home / part)
    return read_json(kept, "a life")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that holds storybook and movingshapes")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=300, help="clips of movingshapes that are read")
    given = parser.parse_args()
    pages = rows_of(given.data / "storybook")
    clips = grouped(rows_of(given.data / "movingshapes")[: given.clips])
    lives: list[tuple[str, str, str, Callable[[Path, Rows], None], Rows]] = [
        ("storybook", "pages", "the plain folder", as_folder, pages),
        ("storybook", "pages", "WebDataset tars", as_tars, pages),
        ("storybook", "pages", "parquet", as_parquet, pages),
        ("storybook", "stories", "the plain folder, English alone", as_folder, told(pages)),
        ("storybook", "stories", "interleaved stories", as_stories, told(pages)),
        ("movingshapes", "clips", "the plain folder", as_folder, clips),
        ("movingshapes", "clips", "video2dataset tars", as_video2dataset, clips),
    ]
    first: dict[str, dict[str, Any]] = {}
    table = ["| source | as | items | skipped | tokens | bits | equal |", "|" + "---|" * 7]
    for name, which, how, write, rows in lives:
        found = live(name, given.out / f"{which}-{write.__name__}", write, rows)
        plain = first.setdefault(which, found)
        routes = found["routes"]
        bits = ", ".join(f"{r} {next(v for k, v in row.items() if k.startswith('bits_')):.6g}" for r, row in routes.items())
        equal = "" if plain is found else "yes" if routes == plain["routes"] and found["shards"] == plain["shards"] else "NO"
        table.append(
            f"| {name} | {how} | {found['items']:,} | {found['skipped']} | {found['shards'][:12]} | {bits} | {equal} |"
        )
        print(table[-1], flush=True)
    (given.out / "table.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    main()
