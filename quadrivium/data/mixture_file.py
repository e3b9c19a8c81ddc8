"""A file that names what is mixed: sources, where they lie and how they are read, how much of each, on which routes.

    routes = ["t2t", "t2v", "v2t", "v2v"]       # all, if not given

    [weights]                                   # compute of each route; as usual where nothing is said
    t2v = 2.0

    [sources.stories]                           # the name that its shards and streams get
    path = "storybook"                          # from this file's folder; or hf://OWNER/NAME

    [sources.shapes]
    path = "tars/shapes"
    format = "tars"                             # folder, tars, tables or documents, where what lies there leaves a choice
    weight = 0.5                                # factor on its share; { t2v = 2.0, v2t = 0.5 } for single routes
    routes = ["v2v", "t2v"]                     # that it is trained on; all that it can feed, if not given
    read = { fps = 8.0, clip_frames = 4 }       # where it is read otherwise than the rest

`prepare` reads the sources, and `train` the weights and routes.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from quadrivium.config import from_dict, to_dict
from quadrivium.data.formats import FORMATS, scan
from quadrivium.data.hub import is_hub
from quadrivium.data.mixture import MixtureConfig
from quadrivium.data.sources import Limits, ReadOptions, Source
from quadrivium.errors import ConfigError, DataError, one_line
from quadrivium.sequence import ROUTES


@dataclass(frozen=True)
class Entry:
    """One source of a mixture file."""

    path: str
    format: str  # auto, or one of FORMATS
    factors: dict[str, float]  # on its share of each route; 0 where it is not trained on
    read: dict[str, Any]  # where it is read otherwise than the rest


class MixtureFile:
    """A mixture file, read and checked. Raises ConfigError, naming file, key and cure."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:  # TOML, or UTF-8
            raise ConfigError(f"{path} is not TOML: {one_line(error, 200)}; see docs/formats.md for an example") from None
        self._known(raw, ("routes", "weights", "sources"), "")
        self.routes = self._routes(raw.get("routes", list(ROUTES)), "routes")
        self.weights = self._numbers(raw.get("weights", {}), "weights")
        sources = raw.get("sources")
        if not isinstance(sources, dict) or not sources:
            raise ConfigError(
                f'{path}: no source is named; write a table for each, such as [sources.mine] with path = "folder"'
            )
        for name in sources:
            if not re.fullmatch(r"[\w.-]{1,80}", name):
                raise ConfigError(f"{path}: sources.{one_line(name, 80)}: a name is made of letters, digits, dots and dashes")
        self.sources = {name: self._entry(entry, f"sources.{name}") for name, entry in sources.items()}

    def scan(self, options: ReadOptions, limits: Limits = Limits()) -> list[Source]:
        """What lies under every source, each under its name here. Raises DataError, ConfigError."""
        found = []
        for name, entry in self.sources.items():
            where = f"{self.path}: sources.{name}"
            read = from_dict(ReadOptions, {**to_dict(options), **entry.read}, f"{where}.read")
            if read.size != options.size:
                raise ConfigError(f"{where}.read.size: all sources have frames of one size; give it as --read.size")
            try:
                listed = scan(self._place(name), read, limits, entry.format)
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
            below = listed[0].name.split("/")[0]
            for source in listed:
                label = name + source.name.removeprefix(below)
                items = [replace(item, source=label) for item in source.items]
                problems = [replace(problem, source=label) for problem in source.problems]
                own = None if read == options else read
                found.append(replace(source, name=label, items=items, problems=problems, options=own))
        return found

    def places(self) -> list[Path]:
        """Where the sources lie: paths, or addresses of the hub. Raises ConfigError."""
        return [self._place(name) for name in self.sources]

    def mixture(self, config: MixtureConfig, streams: Seq[str]) -> MixtureConfig:
        """``config`` with this file's routes and weights, for data that feeds ``streams`` (ROUTE/SOURCE). Raises ConfigError."""
        default = MixtureConfig()
        for key, option in (("routes", "--routes"), ("weights", "--weights"), ("source_weights", "--source-weights")):
            if getattr(config, key) != getattr(default, key):
                raise ConfigError(f"{self.path} and {option} both say what is mixed; say it in one of the two")
        factors, names = [], sorted({stream.partition("/")[2] for stream in streams})
        for name, entry in self.sources.items():
            mine = [n for n in names if n in (name, f"{name}, rendered") or n.startswith(f"{name}/")]
            if not mine:
                known = ", ".join(names)
                raise ConfigError(
                    f"{self.path}: sources.{name}: the data has no such source (it has {known}); prepare it from this file"
                )
            for route, factor in entry.factors.items():
                factors += [(f"{route}/{n}", factor) for n in mine if factor != 1.0 and f"{route}/{n}" in streams]
        weights = {**dict(default.weights), **self.weights}
        return replace(config, routes=self.routes, weights=tuple(weights.items()), source_weights=tuple(factors))

    def _place(self, name: str) -> Path:
        path = Path(self.sources[name].path)
        try:
            path = path.expanduser()
        except RuntimeError:
            who = one_line(path.parts[0])
            raise ConfigError(
                f"{self.path}: sources.{name}.path begins with {who}, a user that is not there; mend it"
            ) from None
        return path if is_hub(path) else self.path.parent / path

    def _entry(self, raw: Any, where: str) -> Entry:
        if not isinstance(raw, dict):
            raise ConfigError(f'{self.path}: {where} is {raw!r:.60}; a table belongs here, such as {{ path = "folder" }}')
        self._known(raw, ("path", "format", "weight", "routes", "read"), where)
        if not isinstance(raw.get("path"), str) or not raw["path"]:
            raise ConfigError(f"{self.path}: {where}.path is missing; name the folder or file, or hf://OWNER/NAME")
        if raw.get("format", "auto") not in ("auto", *FORMATS):
            raise ConfigError(f"{self.path}: {where}.format is {raw['format']!r:.60}; it is one of {', '.join(FORMATS)}")
        weight, read = raw.get("weight", 1.0), raw.get("read", {})
        if isinstance(weight, dict):
            factors = dict.fromkeys(ROUTES, 1.0) | self._numbers(weight, f"{where}.weight")
        else:
            factors = dict.fromkeys(ROUTES, self._number(weight, f"{where}.weight"))
        if not isinstance(read, dict):
            raise ConfigError(f"{self.path}: {where}.read is {read!r:.60}; a table belongs here, such as {{ fps = 8.0 }}")
        self._known(read, tuple(f.name for f in fields(ReadOptions)), f"{where}.read")
        routes = self._routes(raw.get("routes", list(ROUTES)), f"{where}.routes")
        factors |= {route: 0.0 for route in ROUTES if route not in routes}
        return Entry(raw["path"], raw.get("format", "auto"), factors, read)

    def _known(self, raw: dict[str, Any], keys: Seq[str], where: str) -> None:
        for key in raw:
            if key not in keys:
                raise ConfigError(f"{self.path}: unknown key {f'{where}.{key}' if where else key}; known are {', '.join(keys)}")

    def _routes(self, raw: Any, where: str) -> tuple[str, ...]:
        if not isinstance(raw, list) or not raw or not all(isinstance(r, str) and r in ROUTES for r in raw):
            raise ConfigError(f"{self.path}: {where} is {raw!r:.80}; a list of some of {', '.join(ROUTES)} belongs here")
        return tuple(r for r in ROUTES if r in raw)

    def _numbers(self, raw: Any, where: str) -> dict[str, float]:
        if not isinstance(raw, dict):
            raise ConfigError(f"{self.path}: {where} is {raw!r:.60}; a table of routes belongs here, such as {{ t2v = 2.0 }}")
        self._known(raw, ROUTES, where)
        return {route: self._number(value, f"{where}.{route}") for route, value in raw.items()}

    def _number(self, raw: Any, where: str) -> float:
        if isinstance(raw, bool) or not isinstance(raw, int | float) or not 0 <= raw < math.inf:
            raise ConfigError(f"{self.path}: {where} is {raw!r:.60}; a number that is not negative belongs here")
        return float(raw)
