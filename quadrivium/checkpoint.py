"""What a run leaves on disk, and how it is found again.

    RUN/config.json                        everything the run was started with, resolved
    RUN/metrics.jsonl                      one line a log step
    RUN/tokenizers/text, tokenizers/visual
    RUN/checkpoints/step-00001000/         model.safetensors, optimizer.safetensors, state.json
    RUN/results.json, samples/             written by eval and generate

A checkpoint is written under another name and renamed when it is complete, so it is whole or absent; ``state.json``
holds the checksums of its neighbours and of itself. Nothing that is loaded can be executed: safetensors and JSON only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from quadrivium.config import from_dict
from quadrivium.data.mixture import Mixture, MixtureConfig
from quadrivium.data.shards import (
    MANIFEST,
    Dataset,
    alive,
    read_json,
    sha256,
    sync,
    tensor_shapes,
    to_json,
    unwritten,
    write_atomic,
    write_json,
)
from quadrivium.dist import like, whole
from quadrivium.errors import ConfigError, RunError, command, one_line
from quadrivium.model import Model, ModelConfig
from quadrivium.text import TextTokenizer
from quadrivium.visual import VisualTokenizer

Optimizers = dict[str, torch.optim.Optimizer]
_DTYPES = {torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_WEIGHTS, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process, and clear away what a killed one left half written. Raises RunError when another
    process holds it, and when the folder cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise unwritten(folder, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{folder} is in use by another process; wait for it or choose another folder") from None
        except OSError as error:
            raise RunError(f"{folder} cannot be locked ({error.strerror}); choose a folder on another disk") from None
        for part in folder.glob("checkpoints/.step-*.part"):
            shutil.rmtree(part, ignore_errors=True)
        for part in folder.glob(".*.[0-9]*.part"):  # others write here without the lock, as eval does
            pid = part.name.split(".")[-2]
            if pid.isdigit() and not alive(int(pid)):
                part.unlink(missing_ok=True)
        yield  # the system lets go of the lock when the process ends, however it ends


def check_own(folder: Path, *own: str) -> None:
    """Raise RunError where a folder that is to be written to holds other things and none of what a command writes there first."""
    if folder.is_file():
        raise RunError(f"{folder} is a file; --out is a folder")
    if folder.is_dir() and not any((folder / name).exists() for name in own) and any(folder.iterdir()):
        raise RunError(f"{folder} holds something else; choose an empty or new folder for --out")


def named(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    """An optimizer's parameters with their names, in its order."""
    by_id = {id(p): name for name, p in model.named_parameters()}
    return [(by_id[id(p)], p) for group in optimizer.param_groups for p in group["params"]]


def save(
    folder: Path, model: nn.Module, optimizers: Optimizers, state: dict[str, Any], keep: int = 2, first: bool = True
) -> Path:
    """Write checkpoint ``step-N`` (N = state["step"]) into ``folder``.

    All ranks call this, and the ``first`` writes: tensors are gathered one at a time, so that none holds more than one whole, and
    the files are the same for any number of ranks. The last ``keep`` stay, and the one of step state["best"], where there is one. Raises RunError when it cannot be written;
    those before it stay then.
    """
    final = folder / f"step-{state['step']:08d}"
    part = folder / f".{final.name}.part"
    tensors = model.state_dict()  # which also shards again what an evaluation has gathered
    moments: dict[str, Tensor] = {}
    for key, optimizer in optimizers.items():
        for name, p in named(model, optimizer):
            for field, value in optimizer.state.get(p, {}).items():
                moments[f"{key}|{name}|{field}"] = torch.as_tensor(value)
    tensors, moments = _aligned(tensors), _aligned(moments)  # one order on all ranks
    if not first:
        for tensor in (*tensors.values(), *moments.values()):
            whole(tensor)
        return final
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        _write_tensors(part / _WEIGHTS, tensors)
        _write_tensors(part / _OPTIMIZER, moments)
        sums = {name: sha256(part / name) for name in (_WEIGHTS, _OPTIMIZER)}
        write_json(part / _STATE, {**state, "sha256": {**sums, _STATE: _sum_of(state)}})
        for path in (part / _WEIGHTS, part / _OPTIMIZER, part):
            sync(path)
        shutil.rmtree(final, ignore_errors=True)  # only when it was damaged, and its step is written again
        os.replace(part, final)
        sync(folder)
    except OSError as error:
        raise unwritten(final, error) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    every = checkpoints(folder)
    later = [p for p in every if p.name > final.name]  # passed over as damaged when the run was resumed
    kept = [p for p in every if p not in later][-keep:]
    best = folder / f"step-{state.get('best') or 0:08d}"
    for old in every:
        if old not in (*kept, best):
            shutil.rmtree(old, ignore_errors=True)
    return final


def _aligned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In an order in which each can be written where a file is aligned for it."""
    return dict(sorted(tensors.items(), key=lambda entry: -entry[1].element_size()))


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file, in which every tensor is gathered, moved to memory and written before the next."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(whole(tensor.detach()).cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def _sum_of(state: dict[str, Any]) -> str:
    """Checksum of a state without its checksums."""
    plain = {k: v for k, v in state.items() if k != "sha256"}
    return hashlib.sha256(to_json(plain).encode()).hexdigest()


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-" + 8 * "[0-9]") if (p / _STATE).is_file())


def latest(folder: Path) -> Path | None:
    """The newest checkpoint whose files match their checksums; a damaged one is named on stderr and passed over."""
    for path in reversed(checkpoints(folder)):
        if is_whole(path):
            return path
        print(f"warning: {path} is damaged and passed over", file=sys.stderr)
    return None


def is_whole(path: Path) -> bool:
    """Whether the files of a checkpoint match their checksums."""
    try:
        state = read_json(path / _STATE, "a checkpoint")
        sums = state["sha256"]
        own = sums.pop(_STATE, None)  # those of the first versions have none
        return (
            own in (None, _sum_of(state))
            and isinstance(state["step"], int)
            and set(sums) == {_WEIGHTS, _OPTIMIZER}
            and all(sha256(path / name) == total for name, total in sums.items())
        )
    except (RunError, OSError, AttributeError, KeyError, TypeError, RecursionError):
        return False


def weights(run: Path) -> Path:
    """The weights of a run's newest complete checkpoint, or of the one that is given itself. Raises RunError: none."""
    given = (run / _STATE).is_file()
    if given and not is_whole(run):
        raise RunError(f"{run}: this checkpoint is damaged; give another one, or the run's folder for its newest whole one")
    path = run if given else latest(run / "checkpoints")
    if path is None:
        if checkpoints(run / "checkpoints"):
            raise RunError(f"{run}: every checkpoint is damaged; put a whole one back, or train again into another folder")
        raise RunError(
            f"{run}: no complete checkpoint here; {command('train', 'DATA', '--out', run, '--resume')} goes on with it"
        )
    return path / _WEIGHTS


def load(path: Path, model: nn.Module, optimizers: Optimizers | None = None) -> dict[str, Any]:
    """Put a checkpoint's weights (and optimizer moments) into place and return its state."""
    load_weights(path / _WEIGHTS, model)
    if optimizers is not None:
        sizes = {f"{key}|{name}": tuple(p.shape) for key, o in optimizers.items() for name, p in named(model, o)}
        for name, shape in tensor_shapes(path / _OPTIMIZER).items():
            if sizes.get(name.rpartition("|")[0]) != shape and shape != ():
                raise RunError(f"{path / _OPTIMIZER}: {name[:100]} does not fit this model; delete {path} and resume")
        moments = load_file(path / _OPTIMIZER)
        for key, optimizer in optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for i, (name, p) in enumerate(named(model, optimizer)):
                prefix = f"{key}|{name}|"
                mine = {k.removeprefix(prefix): v for k, v in moments.items() if k.startswith(prefix)}
                mine = {k: like(v, p) if v.shape == p.shape else v for k, v in mine.items()}
                if mine:
                    state[i] = mine
            if len({frozenset(fields) for fields in state.values()}) > 1:  # torch would take it and fail at the next step
                raise RunError(f"{path / _OPTIMIZER}: moments are missing; delete {path} and resume")
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return read_json(path / _STATE, "a checkpoint")


def load_weights(path: Path, model: nn.Module, prefix: str = "", fresh: tuple[str, ...] = ()) -> None:
    """Fill a model from a safetensors file, whose names may begin with ``prefix``. Raises RunError when names or shapes differ,
    before memory is taken for them. ``fresh``: how names begin that may stand in the model alone, and keep their values then."""
    own = model.state_dict()
    for start in fresh:
        if not any(name.startswith(prefix + start) for name in tensor_shapes(path)):
            own = {name: value for name, value in own.items() if not name.startswith(start)}
    check_shapes(path, {prefix + name: tuple(value.shape) for name, value in own.items()})
    try:
        found = {name.removeprefix(prefix): value for name, value in load_file(path).items()}
        known = {name: like(value, own[name]) for name, value in found.items()}
        model.load_state_dict(known, strict=False)  # names were checked
    except (SafetensorError, RuntimeError) as error:
        raise RunError(f"{path}: weights do not fit this model ({one_line(error, 200)})") from None


def check_shapes(path: Path, wanted: dict[str, tuple[int, ...]]) -> None:
    """Raises RunError where a safetensors file holds other names or shapes than are wanted."""
    found = tensor_shapes(path)
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            what = f"{name[:100]}: {found.get(name, 'nothing')} where {wanted.get(name, 'nothing')} belongs"
            raise RunError(f"{path}: weights do not fit this model ({what:.200})")


def build(shape: ModelConfig, path: Path, where: str, seed: int = 0, prefix: str = "") -> Model:
    """A model of a shape that a file of weights confirms. Raises RunError before a shape that is a lie takes memory."""
    try:
        if shape.layers > len(tensor_shapes(path)):
            raise RunError(f"{where}: {shape.layers} layers; {path} has fewer")
        with torch.device("meta"):
            wanted = {prefix + name: tuple(value.shape) for name, value in Model(shape).state_dict().items()}
    except (RuntimeError, ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise RunError(f"{where}: not the shape of a model ({one_line(error, 200)})") from None
    check_shapes(path, wanted)
    return Model(shape, seed)


def last_metrics(path: Path, step: int) -> None:
    """Cut a file of JSON lines back to those up to ``step``: a resumed run writes the rest again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            break  # a line half written when the process was killed
    write_atomic(path, b"".join(line + b"\n" for line in kept))


@dataclass
class Trained:
    """A model with the tokenizers that it reads and writes by."""

    model: Model
    text: TextTokenizer
    visual: VisualTokenizer | None
    step: int = 0

    @property
    def patch(self) -> int:
        return self.model.config.patch or 1


def same_tokenizers(data: Path, run: Path, seen: bool) -> None:
    """Raise RunError where a data folder was prepared with other tokenizers than a run was trained with: equal ids and codes would
    mean other things. ``seen``: the one of frames too."""
    for part in ("text/tokenizer.json", "visual/model.safetensors") if seen else ("text/tokenizer.json",):
        ours, theirs = data / "tokenizers" / part, run / "tokenizers" / part
        if not (ours.is_file() and theirs.is_file()) or sha256(ours) != sha256(theirs):
            raise RunError(f"{data} was prepared with other tokenizers than {run}; prepare it with --text-tokenizer "
                           f"{run / 'tokenizers' / 'text'} --visual-tokenizer {run / 'tokenizers' / 'visual'}")  # fmt: skip


class Run(Trained):
    """A run with its ``config``, read from its folder, with the newest checkpoint, from the folder of one of its checkpoints, or
    from what `quadrivium export --full` made of it."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder = folder
        self.home = home = folder.resolve().parents[1] if (folder / _STATE).is_file() else folder
        where = f"{home / 'config.json'}: model"
        self.config = read_json(home / "config.json", "a run folder")
        if self.config.get("model_type") == "quadrivium":
            self._read_export(home)
            words, seen, path, prefix = home, home / "visual", home / _WEIGHTS, "network."
        else:
            for name, kind in (("data", str), ("model", dict), ("mixture", dict), ("train", dict)):
                if not isinstance(self.config.get(name), kind):
                    raise RunError(f"{home / 'config.json'}: {name} is missing or damaged; this is not a run folder")
            words, seen, prefix = home / "tokenizers" / "text", home / "tokenizers" / "visual", ""
            path = weights(folder)
        text = TextTokenizer.load(words)
        shape = from_dict(ModelConfig, self.config["model"], where)
        visual = VisualTokenizer.load(seen).to(device).eval() if shape.codes else None
        model = build(shape, path, where, prefix=prefix).to(device).eval()
        load_weights(path, model, prefix)
        self.device = device
        step: int = self.config.get("step", 0) if prefix else read_json(path.parent / _STATE, "a checkpoint")["step"]
        super().__init__(model, text, visual, step)

    def mixture(self, data: Path | None = None, **other: Any) -> Mixture:
        """The mixture that the run was trained on, or that of another data folder, with ``other`` fields of its config changed.
        Without ``begin`` and ``source_weights``, which say nothing of held-out items.

        Raises ConfigError for an export, which does not know it, and RunError where the data is no longer where it was."""
        if "mixture" not in self.config:
            raise ConfigError(f"{self.folder} was exported and says nothing of its data; give the run folder")
        config = from_dict(MixtureConfig, self.config["mixture"], f"{self.folder / 'config.json'}: mixture")
        seed = self.config["train"].get("seed", 0)
        if not isinstance(seed, int) or seed < 0:
            raise RunError(f"{self.folder / 'config.json'}: train: seed is {seed!r}; it is a number that is not negative")
        place = data or Path(self.config["data"])
        if data is None and not (place / MANIFEST).is_file():
            raise RunError(
                f"{place}, the data that {self.home} was trained on, is not there; if it was moved to NEW, "
                f"`{command('train', 'NEW', '--out', self.home, '--resume')}` writes that down, and "
                f"`{command('eval', self.folder, '--data', 'NEW')}` reads it once"
            )
        prepared = Dataset(place)
        same_tokenizers(prepared.folder, self.home, self.visual is not None and prepared.has_frames)
        share, its = self.config.get("held"), prepared.manifest.get("held")
        if isinstance(share, float) and isinstance(its, float) and its > share:
            print(
                f"note: {prepared.folder} holds out {its:.0%} and {self.folder} was trained where {share:.0%} was: what both have in "
                f"common may count as held out here and have been learnt there; prepare it with --held {share:g}",
                file=sys.stderr,
            )
        return Mixture(
            prepared, replace(config, **{"begin": (), "source_weights": (), **other}), self.text.end, seed, self.patch
        )

    def _read_export(self, home: Path) -> None:
        """The config of an exported folder, as far as it goes: it says neither what the run was trained on nor how."""
        if not isinstance(self.config.get("shape"), dict) or not (home / _WEIGHTS).is_file():
            raise RunError(f"{home / 'config.json'}: shape or weights are missing; export the run again with --full")
        read = read_json(home / "processor_config.json", "an exported model").get("read", {})
        kept = {key: value for key, value in self.config.items() if key in ("step", "routes")}
        self.config = {"step": 0, **kept, "model": self.config["shape"], "read": read}
