"""From the user's folders to token shards.

    scan      list every item of every source, decode nothing
    text      learn (or load) the text tokenizer on training items
    visual    learn (or load) the visual tokenizer on a sample of training frames, by the one training loop
    encode    decode, tokenize and write shard after shard; what is already written is kept

Whatever stops it, the same command goes on: finished tokenizers and shards stand in the manifest with their checksums.

Under `torchrun` the first rank scans, learns and writes the manifest; every rank encodes its share of the shards and notes
them in a file of its own, from which the first takes them over as if it had written them before. The bytes are those of one process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from quadrivium import checkpoint
from quadrivium.config import to_dict
from quadrivium.data import shards
from quadrivium.data.decoding import Decoders
from quadrivium.data.formats import scan
from quadrivium.data.hub import is_hub
from quadrivium.data.mixture import MixtureConfig, streams_of
from quadrivium.data.mixture_file import MixtureFile
from quadrivium.data.shards import MANIFEST, Dataset, Record, SourceData, is_held, read_json, stable_hash, write_json
from quadrivium.data.sources import Item, Limits, ReadOptions, Source, fingerprint, longer, rendered
from quadrivium.dist import ALONE, Ranks
from quadrivium.errors import ConfigError, DataError, ItemError, RunError, one_line
from quadrivium.huggingface import fetch
from quadrivium.sequence import ROUTES
from quadrivium.text import TextTokenizer
from quadrivium.train import TrainConfig, fit, threads
from quadrivium.visual import VisualConfig, VisualTask, VisualTokenizer, picture_sheet

# What it may find of its own without a manifest: stopped before writing one, or the manifest deleted to begin anew.
_OWN = re.compile(r"\.lock|\.work|tokenizers|shards|skipped\.jsonl|\.shards-\d+\.json|\..+\.part")
_SEEN = ("log_every", "eval_every", "save_minutes", "save_every", "keep")  # of training: what is seen of it, not what is learnt


@dataclass(frozen=True)
class PrepareConfig:
    """How sources become shards."""

    read: ReadOptions = field(default_factory=ReadOptions)
    limits: Limits = field(default_factory=Limits)
    vocab: int = 8192  # ids of the text tokenizer
    text_tokenizer: Path | None = None  # a tokenizer.json to use instead of learning one; its folder, or a hub id
    visual_tokenizer: Path | None = None  # a visual tokenizer folder to use instead of learning one
    render: bool = False  # also draw documents as pages of pixels, for `train --rendered`; the visual tokenizer learns them too
    visual: VisualConfig = field(default_factory=VisualConfig)
    # No weight decay: nothing is repeated often enough here to be learned by heart.
    visual_train: TrainConfig = field(
        default_factory=lambda: TrainConfig(minutes=9.0, lr=1.5e-3, weight_decay=0.0, betas=(0.9, 0.99))
    )
    visual_batch: int = 16  # frames a step
    sample_frames: int = 20_000  # frames the visual tokenizer learns from
    held: float = 0.05  # share of groups (stories, videos, documents) that are held out
    max_bad: float = 0.05  # stop when more than this share of the items cannot be used
    shard_items: int = 2000  # items in a file of the data folder

    def __post_init__(self) -> None:
        if not 0 < self.held < 1:
            raise ConfigError(f"held is {self.held}; it lies between 0 and 1")
        if not 0 <= self.max_bad <= 1:
            raise ConfigError(f"max_bad is {self.max_bad}; it is a share, from 0 to 1")
        for name in ("shard_items", "sample_frames", "visual_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it has to be at least 1")
        if not self.visual_tokenizer and (self.read.size % self.visual.down or self.read.size > 4096):
            raise ConfigError(
                f"--read.size is {self.read.size}; it has to be a multiple of {self.visual.down} (--visual.down), at most 4096"
            )
        if self.vocab < 257:
            raise ConfigError(f"vocab is {self.vocab}; a byte-level vocabulary has at least 257 ids (256 bytes and one mark)")


def find(paths: list[Path], config: PrepareConfig) -> list[Source]:
    """What lies under ``paths``, listed and not decoded. Raises DataError where that is nothing, or two have one name.

    A path is a folder, a file, a dataset's address (hf://OWNER/NAME) or a mixture file (.toml).
    """
    sources: list[Source] = []
    for path in paths:
        one = MixtureFile(path).scan if _is_mixture(path) else partial(scan, path)
        sources += one(config.read, config.limits)
    if config.render:
        drawn = [rendered(s, config.read) for s in sources if any(i.kind == "text" for i in s.items)]
        sources += [s for s in drawn if s.items or s.notes]
    names = [s.name for s in sources]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two sources are named {name!r}; rename one folder: names tell their shards apart")
    if not any(s.items for s in sources):
        why = next((f"; {p.item}: {p.reason}" for s in sources for p in s.problems), "")
        raise DataError(
            f"no usable items in {', '.join(map(str, paths))}{why}; give folders that hold text, pictures or videos"
        )
    return sources


def changed(paths: list[Path], out: Path, config: PrepareConfig) -> list[str]:
    """Sources of a finished data folder that are others now, or were read under other options; nothing is written."""
    manifest = read_json(out / MANIFEST, "a prepared data folder", most=1 << 30)
    before = {s["name"]: s["fingerprint"] for s in manifest["sources"]}
    now = {s.name: fingerprint([s], config.read) for s in find(paths, config)}
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _is_mixture(path: Path) -> bool:
    return path.suffix == ".toml" and not path.is_dir()


def _check_apart(paths: list[Path], out: Path) -> None:
    """Raise ConfigError where a source and ``out`` lie in one another: what is written would be read, or lie among what is deleted."""
    home = out.resolve()
    for place in (p for path in paths for p in (MixtureFile(path).places() if _is_mixture(path) else [path]) if not is_hub(p)):
        real = place.resolve()
        if real == home or real in home.parents:
            raise ConfigError(f"--out {out} lies in the source {place}; choose a folder beside it")
        if home in real.parents:
            raise ConfigError(f"the source {place} lies in --out {out}; choose another --out")


def prepare(paths: list[Path], out: Path, config: PrepareConfig, progress: bool = True, ranks: Ranks = ALONE) -> Dataset:
    """Prepare ``paths`` into the data folder ``out`` and print what was found. All ranks call this. Raises ConfigError, DataError, RunError."""
    if out.is_file():
        raise RunError(f"{out} is a file; --out is a folder")
    _check_apart(paths, out)
    if ranks.first and out.is_dir() and not (out / MANIFEST).exists():
        found = {p.name for p in out.iterdir()}
        if found and not (".lock" in found and all(map(_OWN.fullmatch, found))):  # a run is locked too, and has tokenizers
            raise RunError(f"{out} holds something else; choose an empty or new folder for --out")
    sources = find(paths, config)
    if ranks.first:
        for source in sources:
            for note in source.notes:
                print(f"{source.name}: note: {note}", file=sys.stderr)
    threads()
    with checkpoint.locked(out) if ranks.first else contextlib.nullcontext(), contextlib.ExitStack() as stack:
        ways = {source.options or config.read for source in sources}
        pools = {options: stack.enter_context(Decoders(options, config.limits)) for options in ways}
        decoders = {source.name: pools[source.options or config.read] for source in sources}
        if ranks.first:
            _Preparation(sources, out, config, progress, decoders, ranks).go()
        elif ranks.of_first(0):  # when the tokenizers are there, and something is left to do
            _Preparation(sources, out, config, False, decoders, ranks).share()
        ranks.wait()  # until the manifest is whole
    return Dataset(out)


class _Preparation:
    def __init__(
        self,
        sources: list[Source],
        out: Path,
        config: PrepareConfig,
        progress: bool,
        decoders: dict[str, Decoders],  # by source
        ranks: Ranks,
    ) -> None:
        self.sources, self.out, self.config, self.progress, self.decoders = sources, out, config, progress, decoders
        self.ranks = ranks
        self.marks = {s.name: fingerprint([s], config.read) for s in sources}
        self.total = sum(len(s.items) + len(s.problems) for s in sources)
        options = to_dict(config)
        # What shapes the tokens: with other values, the shards that exist would not fit the new ones.
        kept = ["read", "vocab", "visual", "held", "text_tokenizer", "visual_tokenizer"] + ["render"] * config.render
        self.options = json.loads(json.dumps({k: options[k] for k in kept}, default=str))
        # What the visual tokenizer is learnt with: with other values, the one that exists stays.
        learning = {f"visual_train.{k}": v for k, v in options["visual_train"].items() if k not in _SEEN}
        learning |= {k: options[k] for k in ("visual_batch", "sample_frames")}
        self.learning = json.loads(json.dumps(learning))
        self.manifest: dict[str, Any] = {
            "version": shards.VERSION,
            "complete": False,
            "options": self.options,
            "held": config.held,
            "sources": [],
        }
        path = out / MANIFEST
        before = read_json(path, "a prepared data folder", most=1 << 30) if path.exists() else None
        if before and (before.get("version"), before.get("tokenizers"), before.get("sources")) == (shards.VERSION, {}, []):
            before = None  # refused before anything was made, it binds nobody to its options
        if before is not None:
            if before.get("version") != shards.VERSION or before.get("options") != self.options:
                old = before["options"] if isinstance(before.get("options"), dict) else {}
                differ = [k for k in {**self.options, **old} if old.get(k) != self.options.get(k)]
                raise RunError(
                    f"{out} was prepared with another {', '.join(differ) or 'version'}; choose another --out or delete it"
                )
            try:
                self.before = {s["name"]: s for s in before.get("sources", [])}
            except (KeyError, TypeError):
                raise RunError(f"{path}: damaged; delete it and give the same command again") from None
            self.was_complete = bool(before.get("complete"))
            self.manifest["tokenizers"] = before.get("tokenizers", {})
            self.manifest["grid"] = before.get("grid", [0, 0])
        else:
            self.before, self.was_complete = {}, False
            self.manifest["tokenizers"], self.manifest["grid"] = {}, [0, 0]
            write_json(path, self.manifest)
            for stale in self._notes():  # of a folder whose manifest was deleted to begin anew
                stale.unlink()
        if ranks.first:
            self._take_over()

    def go(self) -> None:
        self._check_bad(sum(len(s.problems) for s in self.sources))
        text = self._text_tokenizer()
        known = self.manifest["tokenizers"].get("visual", {}).get("options", self.learning)
        differ = [f"--{k.replace('_', '-')}" for k in self.learning if known.get(k) != self.learning[k]]
        if differ and not self.config.visual_tokenizer:
            changed = ", ".join(differ)
            print(
                f"{self.out}: note: its visual tokenizer was learnt with another {changed} and stays; choose another --out for a new one",
                file=sys.stderr,
            )
        if self._unchanged():
            print(f"{self.out}: nothing to do, everything is written already", file=sys.stderr)
            self.ranks.of_first(False)
        else:
            visual = self._visual_tokenizer()
            self.ranks.of_first(True)
            if self.ranks.world > 1:
                self.share()
                self._take_over()
            grid = (visual.rows, visual.columns) if visual else (0, 0)
            self.manifest["grid"] = list(grid)
            for source in self.sources:
                self.manifest["sources"].append(self._encode(source, text, visual))
                write_json(self.out / MANIFEST, self.manifest)
            self._finish()
            if both := doubled(Dataset(self.out)):
                print(f"{self.out}: note: {both}", file=sys.stderr)
        print(table(Dataset(self.out)))
        for note in self._not_read():
            print(note, file=sys.stderr)

    # --- ranks ---

    def share(self) -> None:
        """Write this rank's share of the shards, and wait until all ranks have written theirs."""
        text, folder = TextTokenizer.load(self.out / "tokenizers" / "text"), self.out / "tokenizers" / "visual"
        visual = VisualTokenizer.load(folder) if "visual" in self.manifest["tokenizers"] else None
        noted: list[dict[str, Any]] = []
        numbers = [(source, number) for source in self.sources for number in range(len(self._chunks(source)))]
        mine = numbers[self.ranks.rank :: self.ranks.world]
        for source, number in tqdm(mine, desc="this rank's shards", unit="shard", disable=not self.progress):
            if self._written(source, number) is None:
                if not noted or noted[-1]["name"] != source.name:
                    noted.append(self._entry(source))
                noted[-1]["shards"].append(self._write(source, number, text, visual))
                write_json(self.out / f".shards-{self.ranks.rank}.json", {"sources": noted})
        self.ranks.wait()

    def _notes(self) -> list[Path]:
        return sorted(self.out.glob(".shards-*.json"))

    def _take_over(self) -> None:
        """Put into the manifest what ranks have noted of shards that they wrote, now or before they were killed."""
        for path in self._notes():
            for entry in read_json(path, "a rank's note", most=1 << 30)["sources"]:
                before = self.before.get(entry["name"])
                if before and before["fingerprint"] == entry["fingerprint"]:
                    by_number = {e["number"]: e for e in (*before["shards"], *entry["shards"])}
                    entry = {**before, "shards": [by_number[n] for n in sorted(by_number)]}
                self.before[entry["name"]] = entry
            write_json(self.out / MANIFEST, {**self.manifest, "sources": list(self.before.values())})
            path.unlink()

    # --- tokenizers ---

    def _text_tokenizer(self) -> TextTokenizer:
        folder, config = self.out / "tokenizers" / "text", self.config
        if "text" in self.manifest["tokenizers"]:
            return TextTokenizer.load(folder)
        if config.text_tokenizer:
            tokenizer = TextTokenizer.load(fetch(config.text_tokenizer, ["tokenizer.json"]))
        else:
            texts = (i for s in self.sources for i in s.items if i.kind != "rendered")  # a second reading of the same words
            training = (t for i in texts if not is_held(i.group, config.held) for t in i.texts)
            budget = 200_000_000  # characters; a vocabulary of thousands of ids does not change with more
            tokenizer = TextTokenizer.train(
                _at_most(tqdm(training, desc="text tokenizer", unit="text", disable=not self.progress), budget), config.vocab
            )
        tokenizer.save(folder)
        self._done("text", {"ids": tokenizer.size, "learned": not config.text_tokenizer})
        return tokenizer

    def _visual_tokenizer(self) -> VisualTokenizer | None:
        folder, config = self.out / "tokenizers" / "visual", self.config
        media = [i for s in self.sources for i in s.items if i.kind != "text"]
        if not media:
            return None
        if "visual" in self.manifest["tokenizers"]:
            return VisualTokenizer.load(folder)
        if config.visual_tokenizer:
            tokenizer = VisualTokenizer.load(config.visual_tokenizer)
            if tokenizer.config.size != config.read.size:
                raise ConfigError(
                    f"{config.visual_tokenizer} reads frames of {tokenizer.config.size} pixels; add --read.size {tokenizer.config.size}"
                )
            tokenizer.save(folder)
            self._done("visual", {"learned": False})
            return tokenizer
        work = self.out / ".work"
        frames, source_of, held, names = self._sample(work)
        with torch.random.fork_rng(devices=[]):  # the first weights are a function of the seed, wherever this runs
            torch.manual_seed(config.visual_train.seed)
            tokenizer = VisualTokenizer(replace(config.visual, size=config.read.size))
        task = VisualTask(tokenizer, frames, source_of, held, config.visual_train.seed, config.visual_batch, names)
        done = fit(task, config.visual_train, work / "visual", resume=True, name="visual tokenizer", progress=self.progress)
        if not done["finished"]:
            raise RunError(f"{self.out}: stopped while the visual tokenizer learnt; the same command goes on")
        if config.visual_train.keep_best and done["best"]:
            checkpoint.load(work / "visual" / "checkpoints" / f"step-{done['best']:08d}", tokenizer)
        tokenizer.eval()
        report = task.evaluate(most=1000)
        tokenizer.save(folder)
        shown = {
            name: frames[np.flatnonzero((source_of == i) & held if ((source_of == i) & held).any() else source_of == i)[:8]]
            for i, name in enumerate(names)
        }
        picture_sheet(tokenizer, shown, folder / "sheet.png")
        write_json(folder / "report.json", report)
        self._done("visual", {"learned": True, "options": self.learning, **report})
        shutil.rmtree(work, ignore_errors=True)
        return tokenizer

    def _sample(self, work: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """A sample of frames as one memory-mapped file: every source an equal quota, a few frames a clip."""
        config, size = self.config, self.config.read.size
        sources = [s for s in self.sources if any(i.kind != "text" for i in s.items)]
        done = work / "sample.json"
        marks = [[s.name, self.marks[s.name]] for s in sources]
        drawn_from = {"sources": marks, "size": size, "learning": self.learning}
        if done.exists() and read_json(done, "a frame sample", most=1 << 30).get("from", drawn_from) != drawn_from:
            print(
                f"{self.out}: note: other sources or options: the visual tokenizer is learnt from the beginning",
                file=sys.stderr,
            )
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
        if not done.exists():
            quota, chosen = max(1, config.sample_frames // len(sources)), []
            for index, source in enumerate(sources):
                media = [i for i in source.items if i.kind != "text"]
                order = np.random.default_rng([stable_hash(source.name)]).permutation(len(media))
                each = max(1, min(8, -(-quota // len(media))))
                chosen += [(index, media[j], each) for j in order[:quota]]
            wanted = max(config.sample_frames, len(sources))
            failed: list[dict[str, str]] = []
            blank = _blank(work / "frames.npy", (wanted, size, size, 3))
            filled, of, held = 0, [], []
            of_source = [[item for n, item, _ in chosen if n == index] for index in range(len(sources))]
            reader = chain.from_iterable(self.decoders[s.name].read_all(i) for s, i in zip(sources, of_source, strict=True))
            for (index, item, each), clips in zip(
                chosen,
                tqdm(reader, total=len(chosen), desc="sampling frames", unit="item", disable=not self.progress),
                strict=True,
            ):
                if isinstance(clips, ItemError):
                    failed.append({"source": item.source, "item": one_line(item.key), "reason": str(clips)})
                    continue  # it is counted when it is encoded
                every = np.concatenate(clips)
                picked = every[np.linspace(0, len(every) - 1, min(each, len(every))).round().astype(int)][: wanted - filled]
                blank[filled : filled + len(picked)] = picked
                filled += len(picked)
                of += [index] * len(picked)
                held += [is_held(item.group, config.held)] * len(picked)
            blank.flush()
            if not filled:
                self._skipped(failed)
                raise DataError(
                    f"none of {len(failed)} pictures and videos could be read, the first: {failed[0]['reason']}; "
                    f"{self.out / 'skipped.jsonl'} lists all"
                )
            write_json(done, {"of": of, "held": held, "from": drawn_from})
        state = read_json(done, "a frame sample", most=1 << 30)
        try:
            source_of, is_out = np.array(state["of"], np.int64), np.array(state["held"], bool)
            sample: np.ndarray = np.lib.format.open_memmap(work / "frames.npy", mode="r")[: len(source_of)]
            if sample.dtype != np.uint8 or sample.shape != (len(is_out), size, size, 3):
                raise ValueError(f"frames are {sample.dtype} {sample.shape}")
        except (OSError, ValueError, KeyError, TypeError, SyntaxError) as error:
            raise RunError(f"{work}: damaged ({error}); delete this folder and give the same command again") from None
        if not is_out.any() or is_out.all():  # a handful of pictures: the last one in ten stands for what is held out
            n = len(source_of)
            is_out = np.arange(n) % 10 == 9 if n > 9 else np.arange(n) == max(n - 1, 1)  # a single one is learnt from
        return sample, source_of, is_out, [s.name for s in sources]

    def _done(self, which: str, entry: dict[str, Any]) -> None:
        self.manifest["tokenizers"][which] = entry
        write_json(self.out / MANIFEST, {**self.manifest, "sources": list(self.before.values())})

    # --- shards ---

    def _unchanged(self) -> bool:
        same = self.was_complete and set(self.before) == {s.name for s in self.sources}
        return same and all(self.before[s.name]["fingerprint"] == self.marks[s.name] for s in self.sources) and self._intact()

    def _intact(self) -> bool:
        entries = [e for s in self.before.values() for e in s["shards"]]
        return not any(map(self._allowed_now, entries)) and all(map(self._whole, entries))

    def _allowed_now(self, entry: dict[str, Any]) -> bool:
        """Whether something in a shard was refused under other limits, and may be allowed under these."""
        return bool(entry["problems"]) and entry.get("limits") != to_dict(self.config.limits)

    def _whole(self, entry: dict[str, Any]) -> bool:
        path = self.out / "shards" / entry["file"]
        return path.is_file() and path.stat().st_size == entry["bytes"] and shards.sha256(path) == entry["sha256"]

    def _chunks(self, source: Source) -> range:
        """Where the items of each shard begin."""
        return range(0, len(source.items), self.config.shard_items)

    def _items(self, source: Source, number: int) -> list[Item]:
        return source.items[self._chunks(source)[number] :][: self.config.shard_items]

    def _entry(self, source: Source) -> dict[str, Any]:
        """What the manifest says of a source, before its shards."""
        entry: dict[str, Any] = {"name": source.name, "path": str(source.path), "fingerprint": self.marks[source.name]}
        if source.items and source.items[0].kind == "rendered":
            entry["rendered"] = True
        return entry | {"shards": []}

    def _written(self, source: Source, number: int) -> dict[str, Any] | None:
        """The manifest's entry of a shard that is written and still right."""
        before = self.before.get(source.name, {})
        if before.get("fingerprint") != self.marks[source.name]:
            return None
        first, count = self._chunks(source)[number], len(self._items(source, number))
        same = (e for e in before["shards"] if e["number"] == number and e["count"] == count and e.get("first", first) == first)
        kept = next(same, None)
        return kept if kept and not self._allowed_now(kept) and self._whole(kept) else None

    def _write(
        self, source: Source, number: int, text: TextTokenizer, visual: VisualTokenizer | None, bar: tqdm | None = None
    ) -> dict[str, Any]:
        """Decode, tokenize and write one shard; returns its entry."""
        slug = "".join(c if c.isalnum() or c in "-_" else "-" for c in source.name)[:60]
        path = self.out / "shards" / f"{slug}-{stable_hash(source.name) % 16**4:04x}-{number:05d}.safetensors"
        grid = (visual.rows, visual.columns) if visual else (0, 0)
        items = self._items(source, number)
        problems: list[dict[str, str]] = []
        lengths: Counter[str] = Counter(videos=0, cut=0)
        records = list(self._records(items, text, visual, grid, problems, lengths, bar))
        entry = shards.write_shard(path, records, text.dtype, grid)
        entry |= {"number": number, "first": self._chunks(source)[number], "count": len(items), "problems": problems}
        entry |= {"limits": to_dict(self.config.limits), **lengths}
        entry["text_bytes"] = int(sum(text.id_bytes[t].sum() for r in records for t in r.texts))
        return entry

    def _encode(self, source: Source, text: TextTokenizer, visual: VisualTokenizer | None) -> dict[str, Any]:
        entry, last, due = self._entry(source), len(self._chunks(source)) - 1, 0.0
        bad = sum(len(s.problems) for s in self.sources)
        bad += sum(len(e["problems"]) for s in self.manifest["sources"] for e in s["shards"])
        with tqdm(total=len(source.items), desc=source.name, unit="item", disable=not self.progress) as bar:
            for number in range(last + 1):
                kept = self._written(source, number)
                if kept is None:
                    kept = self._write(source, number, text, visual, bar)
                else:
                    bar.update(kept["count"])
                entry["shards"].append(kept)
                bad += len(kept["problems"])
                refused = self._too_many(bad)
                # The manifest grows with the shards: written after each, it would cost their number squared.
                if refused or number == last or time.monotonic() > due:
                    began = time.monotonic()
                    current = {**self.manifest, "sources": [*self.manifest["sources"], entry, *self._later(source)]}
                    write_json(self.out / MANIFEST, current)
                    due = time.monotonic() + 20 * (time.monotonic() - began)
                self._check_bad(bad)
        return entry

    def _later(self, source: Source) -> list[dict[str, Any]]:
        """Entries of an earlier run for sources that are still to come."""
        index = [s.name for s in self.sources].index(source.name)
        return [self.before[s.name] for s in self.sources[index + 1 :] if s.name in self.before]

    def _records(
        self,
        items: list[Item],
        text: TextTokenizer,
        visual: VisualTokenizer | None,
        grid: tuple[int, int],
        problems: list[dict[str, str]],
        lengths: Counter[str],
        bar: tqdm | None,
    ) -> Iterator[Record]:
        """Records of items: one for a text or picture, one for each clip of a video."""
        reader = self.decoders[items[0].source].read_all(items)
        while batch := list(islice(zip(items, reader, strict=False), 64)):
            items = items[len(batch) :]
            texts = iter(text.encode_all([t for item, _ in batch for t in item.texts]))
            clips = [c for _, read in batch if not isinstance(read, ItemError) for c in read]
            ends = np.cumsum([len(c) for c in clips])
            codes = iter(np.split(visual.encode(np.concatenate(clips)), ends[:-1]) if visual and clips else [])
            for item, read in batch:
                mine = tuple(ids for ids in islice(texts, len(item.texts)) if len(ids))
                if bar is not None:
                    bar.update()
                key, group = item.key, stable_hash(f"{item.source}/{item.group}")
                held = is_held(item.group, self.config.held)
                if isinstance(read, ItemError):
                    problems.append({"source": item.source, "item": one_line(item.key), "reason": str(read)})
                elif item.kind == "text":
                    for t in mine:
                        yield Record(key, group, held, (t,), np.zeros((0, *grid), np.uint16))
                else:
                    lengths["videos"] += sum(map(len, read)) > 1
                    lengths["cut"] += read.cut
                    for n, _ in enumerate(read):
                        yield Record(f"{key}#{n}" if len(read) > 1 else key, group, held, mine, next(codes))

    # --- the end ---

    def _too_many(self, bad: int) -> bool:
        return bad > self.config.max_bad * self.total

    def _check_bad(self, bad: int) -> None:
        if self._too_many(bad):
            self._skipped()
            raise DataError(
                f"{bad} of {self.total} items cannot be used so far, more than {self.config.max_bad:.0%}; "
                f"{self.out / 'skipped.jsonl'} lists these; mend them or allow more with --max-bad"
            )

    def _skipped(self, more: Sequence[dict[str, str]] = ()) -> None:
        """Write one line for every item that was skipped, and for ``more`` of which no shard says it."""
        found = self._problems()
        said = {(p["source"], p["item"]) for p in found}
        found += [p for p in more if (p["source"], p["item"]) not in said]
        lines = "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in found)
        shards.write_atomic(self.out / "skipped.jsonl", lines.encode("utf-8", "replace"))

    def _problems(self) -> list[dict[str, str]]:
        """Source, item and reason of everything that was skipped so far."""
        found = [{"source": p.source, "item": p.item, "reason": p.reason} for s in self.sources for p in s.problems]
        manifest = read_json(self.out / MANIFEST, "a prepared data folder", most=1 << 30)
        return found + [p for s in manifest["sources"] for e in s["shards"] for p in e["problems"]]

    def _not_read(self) -> Iterator[str]:
        """What a finished folder lacks of its sources, a line each."""
        entries = {s["name"]: s["shards"] for s in Dataset(self.out).manifest["sources"]}
        for source in self.sources:
            cut, videos = (sum(e.get(key, 0) for e in entries[source.name]) for key in ("cut", "videos"))
            if line := longer(cut, videos, source, self.config.read):
                yield f"{source.name}: note: {line}"
        found = self._problems()
        if found:
            lost = [name for name in dict.fromkeys(p["source"] for p in found) if not any(e["items"] for e in entries[name])]
            one = next((p for p in found if p["source"] in lost), found[0])
            why = one["reason"] if one["item"] in one["reason"] else f"{one['item']}: {one['reason']}"
            among = f", all of {', '.join(lost)} among them" if lost else ""
            yield (
                f"{self.out}: note: {len(found):,} items were skipped{among}, such as {one_line(why)}; "
                f"{self.out / 'skipped.jsonl'} lists all"
            )

    def _finish(self) -> None:
        named = {e["file"] for s in self.manifest["sources"] for e in s["shards"]}
        for path in (self.out / "shards").iterdir():
            if path.name not in named:
                path.unlink()  # of a source that was changed or taken away
        for part in (self.out / "tokenizers").rglob(".*.part"):
            part.unlink()  # of a run that was killed while it wrote
        for source, entry in zip(self.sources, self.manifest["sources"], strict=True):
            entry["skipped"] = len(source.problems) + sum(len(e["problems"]) for e in entry["shards"])
        self.manifest["complete"] = True
        write_json(self.out / MANIFEST, self.manifest)
        self._skipped()


def _blank(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A memory-mapped file of zeros whose space is taken at once: on a full disk, writing into a hole ends the process."""
    try:
        made = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        return made
    except OSError as error:
        raise shards.unwritten(path, error) from None


def _at_most(texts: Any, characters: int) -> Iterator[str]:
    for text in texts:
        characters -= len(text)
        if characters < 0:
            return
        yield text


def table(data: Dataset) -> str:
    """What a data folder holds, a line a source, as text."""
    head = ("source", "documents", "pictures", "clips", "captions", "frames", "text bytes", "held out", "skipped", "routes")
    rows: list[tuple[str, ...]] = []
    taught, held = (streams_of(data, MixtureConfig(rendered=True), out) for out in (False, True))
    streams = [*taught, *held]
    for source, entry in zip(data.sources, data.manifest["sources"], strict=True):
        routes = {s.route for s in streams if s.source is source}
        media = source.frames > 0
        counts = (
            (~media).sum(),
            (source.frames == 1).sum(),
            (source.frames > 1).sum(),
            source.texts[media].sum(),
            source.frames.sum(),
            sum(e["text_bytes"] for e in entry["shards"]),
            source.held.sum(),
            entry["skipped"],
        )
        rows.append((source.name, *(f"{int(c):,}" for c in counts), " ".join(r for r in ROUTES if r in routes)))
    totals = [sum(int(r[c].replace(",", "")) for r in rows) for c in range(1, 9)]
    rows.append(("all", *(f"{t:,}" for t in totals), ""))
    widths = [max(len(r[c]) for r in (head, *rows)) for c in range(len(head))]

    def line(row: tuple[str, ...]) -> str:
        return "  ".join(
            v.ljust(w) if c in (0, 9) else v.rjust(w) for c, (v, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()

    lines = [line(head), "-" * len(line(head)), *map(line, rows), lacking({s.route for s in streams})]
    lines.append(one_sided({s.route for s in taught}, {s.route for s in held}))
    return "\n".join(filter(None, lines))


def lacking(routes: set[str]) -> str:
    """What data that feeds these routes does not teach, and what would: a line, or nothing."""
    missing = {
        "t2t": "t2t (documents: .txt, .jsonl, .tsv)",
        "t2v": "t2v and v2t (captions: metadata.jsonl with file_name and text, beside the pictures or clips)",
        "v2v": "v2v (clips, or pictures without captions)",
    }
    found = [told for route, told in missing.items() if route not in routes]
    return f"nothing here teaches {', '.join(found)}" if found else ""


def one_sided(taught: set[str], held: set[str]) -> str:
    """What to do about routes that have items on one side of the held-out split alone: a line for each side, or nothing."""
    cure = "give more items, documents cut at blank lines, or smaller groups"
    lines = []
    for routes, what in (
        (taught - held, "nothing is held out for {}, so what is learnt there cannot be measured: raise --held, or"),
        (held - taught, "all that there is for {} is held out, so nothing is learnt there: lower --held, or"),
    ):
        if routes:
            lines.append(f"{what.format(' '.join(r for r in ROUTES if r in routes))} {cure}")
    return "\n".join(lines)


def doubled(data: Dataset) -> str:
    """How many held-out items are trained on as well, under another name: a line, or nothing. Pages of text are not counted again."""

    def mark(source: SourceData, item: int) -> bytes:
        seen = source.frames[item] > 0
        what = source.codes(item) if seen else source.text(item, 0)
        return hashlib.sha256((b"frames" if seen else b"text") + what.tobytes()).digest()[:16]

    plain = [s for s in data.sources if not s.rendered]
    held = Counter(mark(s, int(i)) for s in plain for i in np.flatnonzero(s.held))
    found = {m for s in plain for i in np.flatnonzero(~s.held) if (m := mark(s, int(i))) in held}
    if not found:
        return ""
    return (
        f"{sum(held[m] for m in found):,} of {held.total():,} held-out items are also trained on (the same frames or text under another "
        "name); give rows of one picture a common group"
    )
