"""Where a run's numbers and pictures go besides ``metrics.jsonl``: TensorBoard, Weights & Biases, trackio.

    RUN/tensorboard     event files; tensorboard --logdir RUN
    RUN/wandb           Weights & Biases; without an account, or with WANDB_MODE=offline, kept there for ``wandb sync``
    TRACKIO_DIR         trackio, all runs in one place; trackio show
    RUN/tracking.json   the run's name in the last two

A tracker gets one row a step, made of the lines of ``metrics.jsonl``, and each row once: when a run is resumed, however it ended, the
tracker is asked what it holds. That is passed over, as a resumed run gives the same numbers again, and what it lacks is sent first. A
tracker that fails is told of once and left alone; training goes on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from PIL import Image
from tqdm import tqdm

from quadrivium.data.shards import read_json, write_json
from quadrivium.errors import ConfigError, RunError, one_line

PROJECT = "quadrivium"
Numbers = dict[str, float]
Sheets = dict[str, Image.Image]


class Tracker(Protocol):
    """One place where rows go. Whatever it raises costs this tracker and nothing else."""

    last: int  # last step that it holds

    def log(self, step: int, numbers: Numbers, sheets: Sheets) -> None:
        """Take the row of a step."""

    def close(self) -> None:
        """Finish what is under way."""


class _TensorBoard:
    """Event files, written here and at once: the library's own writer is a thread, whose failures are told late or never."""

    def __init__(self, run: Path, name: str, config: dict[str, Any]) -> None:
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = run / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        files = sorted(folder.glob("events.out.tfevents.*"))
        steps = [e.step for f in files for e in LegacyEventFileLoader(str(f)).Load() if e.HasField("summary")]
        self.last = max(steps, default=0)
        # They are read in the order of their names, which clocks that jump must not turn round.
        stamp = max([int(time.time()), *(1 + int(f.name.split(".")[3]) for f in files if f.name.split(".")[3].isdigit())])
        self.file = open(folder / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}", "wb")  # noqa: SIM115
        self.event, self.summary, self.writer = event_pb2.Event, summary_pb2.Summary, RecordWriter(self.file)
        self._write(file_version="brain.Event:2")

    def _write(self, **event: Any) -> None:
        self.writer.write(self.event(wall_time=time.time(), **event).SerializeToString())
        self.file.flush()

    def log(self, step: int, numbers: Numbers, sheets: Sheets) -> None:
        values = [self.summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        for tag, sheet in sheets.items():
            png = io.BytesIO()
            sheet.save(png, "PNG")
            image = self.summary.Image(
                height=sheet.height, width=sheet.width, colorspace=3, encoded_image_string=png.getvalue()
            )
            values.append(self.summary.Value(tag=tag, image=image))
        self._write(step=step, summary=self.summary(value=values))

    def close(self) -> None:
        self.file.close()


class _Wandb:
    def __init__(self, run: Path, name: str, config: dict[str, Any]) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        kept = [] if mode == "online" else [_last_step(f) for f in run.glob(f"wandb/offline-run-*-{name}/*.wandb")]
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=name,
            name=name,
            dir=str(run),
            mode=mode,
            config=config,
            resume="allow" if mode == "online" else None,  # offline, each life is a folder, and the id joins them
            settings=wandb.Settings(console="off", silent=True),
        )
        self.image = wandb.Image
        self.last = max([self.run.starting_step - 1, *kept])
        if mode == "offline":
            print(f"wandb keeps {name} here for now; send it with: wandb sync {run}/wandb/offline-run-*", file=sys.stderr)

    def log(self, step: int, numbers: Numbers, sheets: Sheets) -> None:
        self.run.log({**numbers, **{tag: self.image(sheet) for tag, sheet in sheets.items()}}, step=step, commit=True)

    def close(self) -> None:
        self.run.finish()


def _last_step(file: Path) -> int:
    """Last step on the disk in the log of an offline run, of which W&B leaves the end in memory, so that a kill takes it.

    The log is LevelDB's: blocks of 32 KiB; 4 bytes of checksum, 2 of size and 1 of kind before each piece of a record.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, record, last = file.read_bytes(), 7, b"", 0
    while at + 7 <= len(raw):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6]
        record = (record if kind in (3, 4) else b"") + raw[at + 7 : at + 7 + size]  # 1: whole, 2: first, 3: middle, 4: last
        at += 7 + size
        if kind in (1, 4) and at <= len(raw):
            last = max(last, Record.FromString(record).history.step.num)
    return last


class _Trackio:
    def __init__(self, run: Path, name: str, config: dict[str, Any]) -> None:
        import trackio

        with contextlib.redirect_stdout(sys.stderr):
            self.run = trackio.init(project=PROJECT, name=name, config=config, resume="allow")
        self.image = trackio.Image
        # What it holds it says nowhere else.
        self.last = self.run._next_step - 1

    def log(self, step: int, numbers: Numbers, sheets: Sheets) -> None:
        self.run.log({**numbers, **{tag: self.image(sheet) for tag, sheet in sheets.items()}}, step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.run.finish()


_MAKE: dict[str, Callable[[Path, str, dict[str, Any]], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "trackio": _Trackio,
}


class Tracking:
    """The trackers of a run; without names, nothing. To be entered once ``metrics.jsonl`` ends where the run goes on."""

    def __init__(
        self,
        names: Seq[str] = (),
        run: Path = Path(),
        config: dict[str, Any] | None = None,
        draw: Callable[[int], Sheets] | None = None,
    ) -> None:
        """``draw``: pictures to go with the held-out numbers of a step. Raises ConfigError where a name or its library is unknown."""
        for name in names:
            if name not in _MAKE:
                raise ConfigError(f"track {name!r} is unknown; trackers are {', '.join(_MAKE)}")
            if importlib.util.find_spec(name) is None:
                raise ConfigError(f"--track {name} needs {name}: pip install -c constraints.txt -e '.[track]'")
        self.names, self.run, self.config, self.draw = names, run, config or {}, draw
        self.trackers: dict[str, Tracker] = {}
        self.row: tuple[int, Numbers, Sheets] = (0, {}, {})

    def __enter__(self) -> Tracking:
        if not self.names:
            return self
        path = self.run / "tracking.json"
        try:
            name = str(read_json(path, "the name of a tracked run")["name"])
        except (RunError, KeyError):
            name = re.sub(r"[^\w-]+", "-", self.run.resolve().name)[:60] + "-" + secrets.token_hex(3)
            write_json(path, {"name": name})
        for tracker in self.names:
            with self._guarded(tracker):
                self.trackers[tracker] = _MAKE[tracker](self.run, name, self.config)
        metrics = self.run / "metrics.jsonl"
        for line in metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else ():
            self._add(json.loads(line))
        self.flush()
        return self

    def line(self, line: dict[str, Any]) -> None:
        """Take a line of ``metrics.jsonl``."""
        if not self.trackers:
            return
        self._add(line)
        if "held" in line and self.draw is not None:
            try:
                self.row[2].update(self.draw(line["step"]))
            except Exception as error:
                self._warn("samples", error)
                self.draw = None

    def _add(self, line: dict[str, Any]) -> None:
        if line["step"] != self.row[0]:
            self.flush()
            self.row = (line["step"], {}, {})
        train = {f"train/{k}": float(v) for k, v in line.items() if k not in ("step", "held")}
        self.row[1].update(train | {f"held-out/{k}": float(v) for k, v in line.get("held", {}).items()})

    def flush(self) -> None:
        """Send what is known of the last step."""
        step, numbers, sheets = self.row
        self.row = (step, {}, {})
        if not numbers:
            return
        for name, tracker in list(self.trackers.items()):
            with self._guarded(name):
                if step > tracker.last:
                    tracker.log(step, numbers, sheets)
                    tracker.last = step

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:  # else a row may lack its held-out part, and --resume sends it whole
            self.flush()
        for name, tracker in list(self.trackers.items()):
            with self._guarded(name):
                tracker.close()
        self.trackers.clear()

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # network, disk, a server of another version: the libraries raise many types
            self.trackers.pop(name, None)
            self._warn(name, error)

    def _warn(self, what: str, error: Exception) -> None:
        why = one_line(str(error) or type(error).__name__)
        told = f"warning: {what}: {why}; training goes on without, metrics.jsonl has every number, and --resume sends what is missing"
        tqdm.write(told, file=sys.stderr)
