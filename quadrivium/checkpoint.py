"""What a run leaves on disk, and how it is found again.

    RUN/config.json                        everything the run was started with, resolved
    RUN/metrics.jsonl                      one line a log step
    RUN/tokenizers/text, tokenizers/visual
    RUN/checkpoints/step-00001000/         model.safetensors, optimizer.safetensors, state.json
    RUN/results.json, samples/             written by eval and generate

A checkpoint is written under another name and renamed when it is complete, so it is whole or absent; ``state.json``
holds the checksums of its neighbours. Nothing that is loaded can be executed: safetensors and JSON only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quadrivium.config import from_dict
from quadrivium.data.shards import read_json, sha256, write_json
from quadrivium.errors import RunError
from quadrivium.model import Model, ModelConfig
from quadrivium.text import TextTokenizer
from quadrivium.visual import VisualTokenizer

Optimizers = dict[str, torch.optim.Optimizer]
_WEIGHTS, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process. Raises RunError when another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{folder} is in use by another process; wait for it or choose another folder") from None
        yield  # the system lets go of the lock when the process ends, however it ends


def names_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of an optimizer's parameters, in its order."""
    by_id = {id(p): name for name, p in model.named_parameters()}
    return [by_id[id(p)] for group in optimizer.param_groups for p in group["params"]]


def save(folder: Path, model: nn.Module, optimizers: Optimizers, state: dict[str, Any], keep: int = 2) -> Path:
    """Write checkpoint ``step-N`` (N = state["step"]) into ``folder`` and drop all but the last ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{state['step']:08d}"
    part = folder / f".{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        save_file({k: v.detach().contiguous() for k, v in model.state_dict().items()}, part / _WEIGHTS)
        moments: dict[str, Tensor] = {}
        for key, optimizer in optimizers.items():
            for name, p in zip(
                names_of(model, optimizer), (p for g in optimizer.param_groups for p in g["params"]), strict=True
            ):
                for field, value in optimizer.state.get(p, {}).items():
                    moments[f"{key}|{name}|{field}"] = torch.as_tensor(value).detach().contiguous()
        save_file(moments, part / _OPTIMIZER)
        for name in (_WEIGHTS, _OPTIMIZER):
            with open(part / name, "rb") as file:
                os.fsync(file.fileno())
        write_json(part / _STATE, {**state, "sha256": {n: sha256(part / n) for n in (_WEIGHTS, _OPTIMIZER)}})
        shutil.rmtree(final, ignore_errors=True)  # only when the same step is written again
        os.replace(part, final)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, SafetensorError):  # its message is the operating system's, a full disk among them
            raise RunError(f"{final}: could not be written ({error}); free some space and resume") from None
        raise
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*") if (p / _STATE).is_file())


def latest(folder: Path) -> Path | None:
    """The newest checkpoint whose files match their checksums; a damaged one is named on stderr and passed over."""
    for path in reversed(checkpoints(folder)):
        try:
            sums = read_json(path / _STATE, "a checkpoint").get("sha256", {})
            if set(sums) == {_WEIGHTS, _OPTIMIZER} and all(sha256(path / n) == s for n, s in sums.items()):
                return path
        except (RunError, OSError, AttributeError):
            pass
        print(f"warning: {path} is damaged and passed over", file=sys.stderr)
    return None


def weights(run: Path) -> Path:
    """The weights of a run's newest complete checkpoint. Raises RunError where there is none."""
    path = latest(run / "checkpoints")
    if path is None:
        raise RunError(f"{run}: no complete checkpoint here; train it with quadrivium train --out {run} --resume")
    return path / _WEIGHTS


def load(path: Path, model: nn.Module, optimizers: Optimizers | None = None) -> dict[str, Any]:
    """Put a checkpoint's weights (and optimizer moments) into place and return its state."""
    load_weights(path / _WEIGHTS, model)
    if optimizers is not None:
        moments = load_file(path / _OPTIMIZER)
        for key, optimizer in optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for i, name in enumerate(names_of(model, optimizer)):
                prefix = f"{key}|{name}|"
                mine = {k.removeprefix(prefix): v for k, v in moments.items() if k.startswith(prefix)}
                if mine:
                    state[i] = mine
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return read_json(path / _STATE, "a checkpoint")


def load_weights(path: Path, model: nn.Module) -> None:
    """Fill a model from a safetensors file. Raises RunError when names or shapes differ."""
    try:
        model.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise RunError(f"{path}: weights are missing") from None
    except (SafetensorError, RuntimeError) as error:
        raise RunError(f"{path}: weights do not fit this model ({' '.join(str(error).split())[:200]})") from None


def last_metrics(run: Path, step: int) -> None:
    """Cut ``metrics.jsonl`` back to lines before ``step``: a resumed run writes the rest again."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            break  # a line half written when the process was killed
    part = path.with_suffix(".part")
    part.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(part, path)


class Run:
    """A trained run, read from its folder: ``model``, ``text`` and ``visual`` tokenizers, ``config``, ``step``."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder = folder
        self.config = read_json(folder / "config.json", "a run folder")
        path = weights(folder).parent
        self.text = TextTokenizer.load(folder / "tokenizers" / "text")
        shape = from_dict(ModelConfig, self.config.get("model", {}), f"{folder / 'config.json'}: model")
        seen = folder / "tokenizers" / "visual"
        self.visual = VisualTokenizer.load(seen).to(device).eval() if shape.codes else None
        self.model = Model(shape).to(device).eval()
        self.patch = shape.patch or 1
        self.device = device
        self.step: int = load(path, self.model)["step"]
