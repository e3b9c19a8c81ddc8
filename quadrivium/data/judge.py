"""What a clip shows, judged by the simulator: the real clip of a machine, and the outcome whose real clips look most alike.

A machine's look and its outcome are apart: the same two pieces, given other masses, end in every outcome their device
knows. `judge_clip` runs them all and takes the nearest, so an imagined clip is judged without any reader of its own.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from quadrivium.data.machine import DEVICES, Kind, MachineSpec, opening
from quadrivium.data.machine import run as run_machine
from quadrivium.data.sources import Item, ReadOptions, frames_read, read_clips
from quadrivium.data.world import FPS, MASSES, WorldConfig, encode_video, make_kinds
from quadrivium.errors import ConfigError

JITTERS = ((0.0, 0.0, 0.0), (0.7, 0.7, 0.7), (-0.7, -0.7, -0.7), (0.7, -0.7, 0.0), (-0.7, 0.7, 0.0))


def clip_frames(config: WorldConfig, options: ReadOptions) -> int:
    """How many frames of a world's clip are read with ``options``."""
    return len(frames_read(config.frames, FPS, options))


def film(config: WorldConfig, spec: MachineSpec, options: ReadOptions) -> np.ndarray:
    """The real clip of a machine, uint8 (F, S, S, 3), written and read as a world's clips are."""
    scene = run_machine(spec, make_kinds(config), config.frames, config.size)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.mp4"
        encode_video(scene.frames, file)
        return read_clips(Item("world", file.name, file.name, "video", (), file), options)[0]


@lru_cache(maxsize=256)
def _references(
    config: WorldConfig, spec: MachineSpec, looks: tuple[Kind, Kind], size: int, taken: tuple[int, ...]
) -> tuple[tuple[str, np.ndarray], ...]:
    """(outcome, later frames (F - 1, S, S, 3)) of the machine with every pair of masses and a few accidents of placing."""
    found = []
    jitters = JITTERS if config.jitter > 0.25 else JITTERS[:1]  # where little is out of place, one placing stands for all
    for masses, jitter in itertools.product(itertools.product(MASSES, repeat=2), jitters):
        kinds = [replace(kind, mass=mass) for kind, mass in zip(looks, masses, strict=True)]
        scene = run_machine(replace(spec, first=0, second=1, jitter=jitter), kinds, config.frames, size)
        if scene.outcome in DEVICES[spec.device]:
            found.append((scene.outcome, scene.frames[list(taken[1:])]))
    return tuple(found)


def judge_clip(config: WorldConfig, spec: MachineSpec, clip: np.ndarray, options: ReadOptions) -> str:
    """The outcome that ``clip``, uint8 (F, S, S, 3), of the machine ``spec`` shows.

    That of the nearest real clip: mean squared error of the frames after the first, best over masses and placings. Frames
    beyond those that a clip of the world has are not looked at.
    """
    taken = tuple(frames_read(config.frames, FPS, options))[: len(clip)]
    if len(taken) < 2:
        raise ConfigError("a clip of one frame shows how things stand and no outcome; read or imagine at least two frames")
    kinds = make_kinds(config)
    looks = (kinds[spec.first], kinds[spec.second])
    references = _references(config, replace(spec, jitter=(0.0, 0.0, 0.0)), looks, clip.shape[1], taken)
    later = clip[1 : len(taken)].astype(np.float32)
    return min(references, key=lambda known: float(((later - known[1]) ** 2).mean()))[0]


def placed(config: WorldConfig, spec: MachineSpec, clip: np.ndarray) -> bool:
    """Whether ``clip``, uint8 (F, S, S, 3), opens as the machine ``spec`` does, rather than as that machine with its two pieces
    exchanged: mean squared error of the first frame. Where the two are one, as for two equal pieces, it does."""
    exchanged = replace(spec, first=spec.second, second=spec.first)
    as_told, other = (opening(s, make_kinds(config), clip.shape[1]).astype(np.float32) for s in (spec, exchanged))
    return bool(((clip[0] - as_told) ** 2).mean() <= ((clip[0] - other) ** 2).mean())


def judge_clips(
    config: WorldConfig, specs: Sequence[MachineSpec], clips: Sequence[np.ndarray], options: ReadOptions
) -> list[str]:
    """`judge_clip` for many."""
    return [judge_clip(config, spec, clip, options) for spec, clip in zip(specs, clips, strict=True)]
