"""The only training loop. Whatever learns here (the four-route model, the visual tokenizer) is a `Task` of it.

A step is: batch(step) -> loss -> gradients, clipped -> optimizer. The batch is a function of (seed, step) and the
schedule a function of the step, so a run that is killed and resumed gives the numbers of one that was not.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import itertools
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import quadrivium
from quadrivium import checkpoint, evaluate
from quadrivium.config import from_dict, to_dict
from quadrivium.data.mixture import Mixture, MixtureConfig
from quadrivium.data.shards import MANIFEST, Dataset, read_json, unwritten, write_json
from quadrivium.dist import ALONE, Ranks
from quadrivium.errors import ConfigError, QuadriviumError, RunError, command
from quadrivium.huggingface import Weights, check, fetch, fill, is_model, shape_of
from quadrivium.model import Batch, Model, ModelConfig, cells
from quadrivium.muon import Muon, ShardedMuon
from quadrivium.sequence import Sequence, apart, pack, route_of
from quadrivium.text import TextTokenizer
from quadrivium.tracking import Sheets, Tracking
from quadrivium.visual import VisualTokenizer


class Task(Protocol):
    """What the loop needs to know of something that learns."""

    @property
    def model(self) -> nn.Module:
        """What learns."""

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Any:
        """Training data of a step, or of one of the ``parts`` that it is dealt into: a pure function of (seed, step)."""

    def positions(self, batch: Any) -> tuple[int, int]:
        """Real positions in a batch, and positions computed with padding (of attention, where padding exists)."""

    def wanted(self, batch: Any) -> float:
        """How many things the loss of a batch is the mean of; 0 where a part is empty."""

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, tuple[float, float]]]:
        """What to minimise, and what to log: sums with what they are divided by, under the same names for every part."""

    def items(self, step: int) -> list[str]:
        """Names of what the batch of a step is made of, to tell which data a loss comes from."""

    def evaluate(self) -> dict[str, float]:
        """Held-out numbers."""

    def cost(self, held: dict[str, float]) -> float:
        """Held-out numbers as one: the checkpoint where it is least is the best."""


@dataclass(frozen=True)
class Computing:
    """How a step is computed: other values change memory and time, and numbers by no more than rounding."""

    accumulate: int = 1  # parts that a step's batch is dealt into on each rank, one computed after the other
    recompute: bool = False  # keep what goes into each block, compute its inside again on the way back: less memory, more time
    compile: bool = False  # torch.compile; the first steps take a minute or more

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ConfigError(f"accumulate is {self.accumulate}; it has to be at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast, how often. The budget is ``steps``, ``tokens`` or ``minutes``, or whichever is spent first;
    without any, 10 minutes."""

    steps: int | None = None  # the budget: steps, tokens or minutes, or whichever is spent first; without any, 10 minutes
    tokens: int | None = None  # model positions, all routes together
    minutes: float | None = None  # of the clock; the number of steps is fixed from measured speed when the decay begins
    lr: float = 2e-3  # learning rate, between warmup and decay
    optimizer: Literal["adamw", "muon"] = "muon"  # muon: hidden matrices by Muon, all else by AdamW; half as many steps do
    weight_decay: float = 0.1  # of matrices, decoupled (Loshchilov and Hutter 2019, arXiv 1711.05101)
    betas: tuple[float, float] = (0.9, 0.95)  # of AdamW: how slowly its means of gradients and of their squares forget
    warmup: int = 50  # steps
    decay: float = 0.3  # share of the budget, at its end, in which the learning rate falls to 0
    clip: float = 1.0  # largest norm of the gradient
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 autocast where the hardware computes it
    seed: int = 0  # of first weights and of the order of the data
    log_every: int = 10  # steps
    eval_every: int = 0  # steps; 0: ten times in the run
    save_minutes: float = 5.0  # at most this much work is lost to a power cut
    save_every: int = 0  # steps; besides the clock
    keep: int = 2  # checkpoints: the last so many
    keep_best: bool = False  # also save at evaluations, and keep the best by the geometric mean of all routes' held-out cost
    skip_bad_batches: bool = False  # leave out a batch whose loss is no number or explodes, and go on, instead of stopping
    explode: float = 5.0  # a loss explodes when it is so many times its running mean and above the first; 0: never

    def __post_init__(self) -> None:
        for name in ("steps", "tokens", "minutes"):
            if (budget := getattr(self, name)) is not None and not 0 < budget < math.inf:
                raise ConfigError(f"{name} is {budget}; a budget has to be positive")
        for name in ("lr", "clip", "log_every", "save_minutes", "keep"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it has to be positive")
        for name in ("weight_decay", "warmup", "seed", "eval_every", "save_every"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it is not negative")
        if not 0 <= self.decay <= 1:
            raise ConfigError(f"decay is {self.decay}; it lies between 0 and 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas are {self.betas}; each is at least 0 and below 1")
        if not (self.explode == 0 or 1 < self.explode < math.inf):
            raise ConfigError(f"explode is {self.explode}; it is a factor above 1, or 0 for never")


def learning_rate(step: int, steps: int | None, config: TrainConfig) -> float:
    """Warm-up, then constant, then linear to 0 (a trapezoid; Hägele et al. 2024, arXiv 2405.18392).

    ``steps`` None: the end is not known yet, which a budget in minutes allows because the middle is constant.
    """
    factor = min(1.0, (step + 1) / max(config.warmup, 1))
    if steps is not None and config.decay > 0:
        factor = min(factor, (steps - step) / (config.decay * steps))
    return config.lr * factor


def make_optimizers(model: nn.Module, config: TrainConfig) -> checkpoint.Optimizers:
    """AdamW, or Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for hidden matrices and AdamW for the rest."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hidden = {n for n, p in parameters.items() if config.optimizer == "muon" and p.ndim == 2 and "blocks." in n}
    groups = [
        {"params": [p for n, p in parameters.items() if n not in hidden and p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    made: checkpoint.Optimizers = {"adamw": torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)}
    if hidden:
        sharded = any(hasattr(p, "placements") for p in parameters.values())
        matrices = [p for n, p in parameters.items() if n in hidden]
        made["muon"] = (ShardedMuon if sharded else Muon)(matrices, config.lr, config.weight_decay)
    return made


def compile_parts(model: Model, backend: str = "inductor") -> None:
    """Compile what works position by position, for any number of positions: of every block, what comes before attention and what
    comes after it. Attention between is a kernel of its own. A copy of a compiled model would call the original's weights."""
    # All layers share what is compiled: with gradients and without, of text alone, of frames alone and of both, of all
    # positions and of what is wanted, in either precision.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    blocks: Any = model.blocks
    for block in blocks:
        block.ask, block.tell = (torch.compile(part, dynamic=True, backend=backend) for part in (block.ask, block.tell))


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """bf16 where it is asked for, or where the hardware multiplies it natively."""
    cuda = device.type == "cuda"
    native = torch.cuda.is_bf16_supported(including_emulation=False) if cuda else torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16" or (precision == "auto" and native))


@dataclass
class Pairs:
    """The captioned sequences of a step for `Model.contrast`: P texts alone and P clips alone, and which belong together."""

    batch: Batch
    same: Tensor  # (P, P): text i tells of frames j

    @classmethod
    def of(cls, sequences: list[Sequence], device: str) -> Pairs | None:
        """None where fewer than two sequences have both text and frames."""
        told = [(text, frames) for text, frames in map(apart, sequences) if text and frames]
        if len(told) < 2:
            return None
        # One item is read by several routes, and several items share a caption.
        (texts, clips), same = zip(*told, strict=True), np.zeros((len(told), len(told)), bool)
        for side in (texts, clips):
            met: dict[bytes, int] = {}
            kind = np.array([met.setdefault(b"".join(s.data.tobytes() for s in q), len(met)) for q in side])
            same |= kind[:, None] == kind
        return cls(Batch.of(pack([*texts, *clips]), device), torch.from_numpy(same).to(device))


class RouteTask:
    """The four-route model learning from a mixture."""

    def __init__(self, model: Model, mixture: Mixture, id_bytes: np.ndarray, device: str = "cpu", held: int = 16_000) -> None:
        """``held``: held-out positions an evaluation while training reads; `quadrivium eval` reads more."""
        self.model, self.mixture, self.device = model.to(device), mixture, device
        self.id_bytes = torch.from_numpy(id_bytes).to(device)
        share = held / max(len(mixture.held), 1)
        self.limits = {name: max(4, int(share / s.positions.mean())) for name, s in mixture.held.items()}

    @property
    def tap(self) -> int:
        """After how many layers captions foretell; 0: they do not."""
        config = self.mixture.config
        return (config.ahead_layer or max(1, self.model.config.layers - 1)) if config.ahead else 0

    def batch(self, step: int, part: int = 0, parts: int = 1) -> tuple[Batch, list[str], Pairs | None]:
        """Sequences, their routes and pairs to tell apart. An empty part reads a sequence that counts for nothing: ranks compute
        together."""
        sequences = self.mixture.step(step, part, parts)
        read = sequences or self.mixture.step(step)[:1]
        pairs = Pairs.of(sequences, self.device) if self.model.config.contrast.weight else None
        return Batch.of(pack(read), self.device), [route_of(s) for s in sequences], pairs

    def positions(self, batch: tuple[Batch, list[str], Pairs | None]) -> tuple[int, int]:
        """Those of pairs are counted too, though they run through the layers up to that of the contrast only."""
        data, names, pairs = batch
        both = [data, *([pairs.batch] if pairs else [])]
        real = sum(b.positions for b in both) - (0 if names else data.positions)
        return real, sum(b.attended if self.model.padded else b.positions for b in both)

    def wanted(self, batch: tuple[Batch, list[str], Pairs | None]) -> float:
        return len(batch[0].text_want) + len(batch[0].codes_want) if batch[1] else 0

    def loss(self, batch: tuple[Batch, list[str], Pairs | None]) -> tuple[Tensor, dict[str, tuple[float, float]]]:
        """Mean nats of a wanted position, an id or a cell's mean code; logged in bits per byte or per frame of each route.

        By codes alone, the few ids of a caption would drown in the hundreds of codes of its frames. What captions foretell is added
        with its weight, a cell as a position, and logged in bits a frame; a contrast likewise, in nats.
        """
        data, names, pairs = batch
        made = self.model(data, tap=self.tap, at=data.wanted)
        hidden, told = made if self.tap else (made, None)
        text, codes = self.model.nats(data, hidden)
        loss = (text.sum() + codes.sum() / codes.shape[1]) / max(len(text) + len(codes), 1)
        with torch.no_grad():
            total, unit = torch.zeros(2, len(data.lengths), dtype=torch.float64, device=loss.device)
            total.index_add_(0, data.text_row, text.double()).index_add_(0, data.codes_row, codes.double().sum(1))
            unit.index_add_(0, data.text_row, self.id_bytes[data.text_want].double())
            per_frame = self.model.config.rows * self.model.config.columns
            unit.index_add_(0, data.codes_row, torch.full_like(data.codes_row, 1 / max(per_frame, 1), dtype=torch.float64))
            cost, size = (total / math.log(2)).tolist(), unit.tolist()
        log = {}
        for route in sorted({s.route for s in self.mixture.streams}):
            rows = [i for i, name in enumerate(names) if name == route]
            log[route] = sum(cost[i] for i in rows), sum(size[i] for i in rows)
        if told is not None:
            ahead = self.model.foretold(data, told) if len(data.ahead_at) else codes.new_zeros(0, 1, 1)
            loss = loss + self.mixture.config.ahead * ahead.sum() / ahead.shape[2] / max(len(text) + len(codes), 1)
            log["ahead"] = ahead.sum().item() / math.log(2), float(len(ahead))
        if pairs is not None:
            contrast = self.model.contrast(pairs.batch, pairs.same)
            loss = loss + self.model.config.contrast.weight * contrast
            log["contrast"] = contrast.item(), 1.0
        return loss, log

    def items(self, step: int) -> list[str]:
        """Source, item and route of every sequence of a step's batch, in its order."""
        drawn = self.mixture.units(step)
        return [f"{s.source.name}/{s.source.key(int(s.unit[u][0]))} ({s.route})" for s, u, _ in drawn]

    def evaluate(self) -> dict[str, float]:
        self.model.eval()
        id_bytes, out = self.id_bytes.cpu().numpy(), {}
        for route in {s.route for s in self.mixture.streams}:
            cost, size = 0.0, 0
            for held in (s for s in self.mixture.held.values() if s.route == route):
                sequences = [self.mixture.sequence(held, u) for u in self.mixture.held_units(held, self.limits[held.name])]
                cost += float(evaluate.bits(self.model, sequences).sum())
                size += sum(evaluate.units(s, id_bytes) for s in sequences)
            if size:
                out[route] = cost / size
        self.model.train()
        return dict(sorted(out.items()))

    def cost(self, held: dict[str, float]) -> float:
        """Mean logarithm of the routes' costs: bits per byte and bits per frame have no common unit."""
        return sum(math.log(max(v, 1e-9)) for v in held.values()) / max(len(held), 1)


def fit(
    task: Task,
    config: TrainConfig,
    run: Path,
    resume: bool = False,
    name: str = "train",
    progress: bool = True,
    tracking: Tracking | None = None,
    ranks: Ranks = ALONE,
    accumulate: int = 1,
) -> dict[str, Any]:
    """Train until the budget is spent, or until Ctrl-C or SIGTERM, which save and leave.

    Every rank computes ``accumulate`` parts of a step's batch, and all parts together are the batch of one process; the first rank
    measures time and writes.

    Writes ``run/metrics.jsonl`` and ``run/checkpoints``, and ``run/bad-batches.jsonl`` where a loss is not a number or explodes:
    its step, routes and items; ``tracking`` is told every line of the first. Returns the final state: ``step``, ``steps``, ``seconds``,
    ``positions``, ``real`` (their share of all computed), ``finished`` and, where it was evaluated, ``held``. Raises RunError when the loss is not a number or
    explodes (the last checkpoint stays), when the disk is full, and when another process holds the folder.
    """
    with checkpoint.locked(run) if ranks.first else contextlib.nullcontext():
        ranks.wait()  # until what a killed process left is cleared away
        return _Loop(task, config, run, resume, name, progress and ranks.first, tracking or Tracking(), ranks, accumulate).go()


def _newest(folder: Path, ranks: Ranks) -> int:
    """The step of the newest whole checkpoint, on all ranks; -1 where there is none. Raises RunError where all are damaged."""
    last = checkpoint.latest(folder) if ranks.first else None
    at = int(ranks.of_first(int(last.name[5:]) if last else -2 if checkpoint.checkpoints(folder) else -1))
    if at == -2:
        raise RunError(f"{folder}: every checkpoint is damaged; put a whole one back, or delete the folder to begin anew")
    return at


_PATIENCE = 20  # bad batches in a row after which nothing but the model itself can be at fault


class _Loop:
    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        run: Path,
        resume: bool,
        name: str,
        progress: bool,
        tracking: Tracking,
        ranks: Ranks,
        accumulate: int,
    ) -> None:
        self.task, self.config, self.run, self.name, self.progress = task, config, run, name, progress
        self.tracking, self.ranks, self.accumulate = tracking, ranks, accumulate
        self.optimizers = make_optimizers(task.model, config)
        self.folder = run / "checkpoints"
        self.state: dict[str, Any] = {"step": 0, "steps": None, "seconds": 0.0, "positions": 0, "computed": 0, "tenth": 0}
        # The first loss, its running mean, bad batches in a row, and the best checkpoint: its step and its cost.
        self.state |= {"first": None, "usual": None, "bad": 0, "best": None, "cost": None}
        self.state |= {"sums": {}}  # of what is logged next
        self.asked: str | None = None  # name of the signal that asked this process to leave
        self.stop: str | None = None  # the same, when all ranks know
        if config.steps and not config.tokens and not config.minutes:
            self.state["steps"] = config.steps
        at = _newest(self.folder, ranks)
        if at >= 0 and not resume:
            raise RunError(f"{run} already holds step {at}; go on with --resume or choose another --out")
        if at >= 0:
            loaded = checkpoint.load(self.folder / f"step-{at:08d}", task.model, self.optimizers)
            self.state.update({k: loaded[k] for k in (*self.state, "held") if k in loaded})
        for name in ("metrics.jsonl", "bad-batches.jsonl") if ranks.first else ():
            checkpoint.last_metrics(run / name, self.state["step"])

    def go(self) -> dict[str, Any]:
        config, state, ranks = self.config, self.state, self.ranks
        device = next(self.task.model.parameters()).device
        cast = autocast(config.precision, device)
        self.task.model.train()
        with (
            self._signals(),
            self._bar() as bar,
            ThreadPoolExecutor(1) as ahead,
            self.tracking,
        ):
            began, seconds, saved = time.monotonic(), state["seconds"], state["seconds"]
            shown: tuple[float, int] | None = None  # since when speed is counted: not before the first step is done
            said = began
            pending = ahead.submit(self._parts, state["step"])
            while not self._done() and not self.stop:
                step = state["step"]
                parts = pending.result()
                pending = ahead.submit(self._parts, step + 1)
                rate = learning_rate(step, state["steps"], config)
                for optimizer in self.optimizers.values():
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                loss, log = self._backward(parts, cast)
                norm = ranks.clip(self.task.model.parameters(), config.clip).item()
                bad = self._judge(loss, norm)
                if bad:
                    self._refuse(bad, log)
                for optimizer in self.optimizers.values():
                    if not bad:
                        optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                state["step"] = step = step + 1
                state["seconds"] = ranks.of_first(seconds + time.monotonic() - began)
                self._plan()
                for key, value in (*log.items(), ("loss", loss), ("norm", norm)) if not bad else ():
                    state["sums"].setdefault(key, []).append(float(value))
                bar.update(min(self._progress(), bar.total) - bar.n)
                now, logged = (time.monotonic(), state["positions"]), step % config.log_every == 0 or self._done()
                shown = shown or now
                if logged or now[0] - said > 3:  # a bar that says nothing for long looks stuck
                    means = {k: sum(v) / len(v) for k, v in state["sums"].items()}
                    since, done = shown if now[1] > shown[1] else (now[0] - state["seconds"], 0)
                    speed, said = (now[1] - done) / max(now[0] - since, 1e-9), now[0]
                    skipped = ("loss", "norm")
                    bar.set_postfix_str(
                        " ".join(f"{k} {v:.4g}" for k, v in means.items() if k not in skipped)
                        + f" | {speed / 1000:.1f}k pos/s, {self._real():.0%} real",
                        refresh=False,
                    )
                if logged:
                    shown, state["sums"] = now, {}
                    self._write(
                        {"step": step, "seconds": round(state["seconds"], 3), "lr": rate, **means}
                        | {"positions": state["positions"], "positions_per_second": round(speed, 1), "real": self._real()}
                    )
                better = False
                if self._due(config.eval_every, step) or self._done():
                    state["held"] = self.task.evaluate()
                    self.task.model.train()
                    self._write({"step": step, "held": state["held"]})
                    # Of many held-out numbers, those that are also logged while training.
                    shown_held = [
                        f"{k} {v:.4g}" for k, v in state["held"].items() if k.split()[-1] in log or len(state["held"]) < 8
                    ]
                    self._say(f"step {step}: held-out {', '.join(shown_held)}")
                    better = config.keep_best and self._is_best(step)
                every = config.save_every and step % config.save_every == 0
                if every or better or self._done() or self.stop or state["seconds"] - saved > 60 * config.save_minutes:
                    state["finished"] = self._done()
                    self.tracking.flush()  # a resumed run does not write again what lies before its checkpoint
                    checkpoint.save(self.folder, self.task.model, self.optimizers, state, config.keep, ranks.first)
                    saved = state["seconds"]
            pending.cancel()
        if self.stop:
            self._say(f"{self.stop}: saved step {state['step']} in {self.folder}; go on with the same command and --resume")
        return {**state, "finished": self._done(), "real": self._real()}

    def _parts(self, step: int) -> list[Any]:
        """This rank's parts of the batch of a step."""
        first = self.ranks.rank * self.accumulate
        return [self.task.batch(step, first + i, self.ranks.world * self.accumulate) for i in range(self.accumulate)]

    def _backward(self, parts: list[Any], cast: torch.autocast) -> tuple[float, dict[str, float]]:
        """Gradients of the loss of a step's whole batch, which all ranks hold parts of; returns that loss and what to log."""
        weights = [self.task.wanted(part) for part in parts]
        (total,) = self.ranks.sum([sum(weights)])
        rows = []
        for part, weight in zip(parts, weights, strict=True):
            with cast:
                loss, log = self.task.loss(part)
            loss = loss * (weight / total)
            loss.backward()
            rows.append([loss.item(), *self.task.positions(part), bool(self.asked), *itertools.chain(*log.values())])
        mean, positions, computed, asked, *sums = self.ranks.sum(np.sum(rows, axis=0).tolist())
        self.state["positions"] += int(positions)
        self.state["computed"] += int(computed)
        self.stop = (self.asked or "another rank was told to stop") if asked else None
        return mean, {name: cost / size for name, cost, size in zip(log, sums[::2], sums[1::2], strict=True) if size}

    def _judge(self, loss: float, norm: float) -> str:
        """What is wrong with a step, or nothing. What is usual is part of the state, so that a resumed run judges alike."""
        state, explode = self.state, self.config.explode
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"the loss is {loss}, the norm of its gradient {norm}"
        if state["first"] is None:
            state["first"] = state["usual"] = loss
        if explode and loss > max(explode * state["usual"], state["first"]) > 0:
            return f"the loss explodes to {loss:.4g}, where {state['usual']:.4g} is usual"
        state["usual"] += 0.02 * (loss - state["usual"])
        state["bad"] = 0
        return ""

    def _refuse(self, why: str, log: dict[str, float]) -> None:
        """Write down what a bad batch is made of; raises RunError unless it is to be skipped."""
        step, items = self.state["step"], self.task.items(self.state["step"])
        self.state["bad"] += 1
        costs = ", ".join(f"{route} {value:.4g}" for route, value in log.items())
        path = self.run / "bad-batches.jsonl"
        self._write({"step": step + 1, "why": why, "routes": {k: repr(v) for k, v in log.items()}, "items": items}, path.name)
        shown = "; ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
        told = f"{self.run}: {why} at step {step} (routes {costs}; items {shown}, all in {path.name})"
        if self.state["bad"] >= _PATIENCE:
            raise RunError(f"{told}; {_PATIENCE} batches in a row were bad, so it is not the data; lower --lr and train again")
        if not self.config.skip_bad_batches:
            kept = "the last checkpoint is kept" if checkpoint.checkpoints(self.folder) else "there is no checkpoint yet"
            raise RunError(
                f"{told}; {kept}: look at the items, train again with a lower --lr, or go on without "
                "such batches with --resume --skip-bad-batches"
            )
        self._say(f"warning: {told}; skipped")

    def _say(self, line: str) -> None:
        if self.ranks.first:
            tqdm.write(line, file=sys.stderr)

    def _write(self, line: dict[str, Any], name: str = "metrics.jsonl") -> None:
        if not self.ranks.first:
            return
        try:
            with open(self.run / name, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise unwritten(self.run / name, error) from None
        if name == "metrics.jsonl":
            self.tracking.line(line)

    def _is_best(self, step: int) -> bool:
        cost = self.ranks.of_first(self.task.cost(self.state["held"]))  # by which all ranks save, or none
        better = bool(self.state["held"]) and math.isfinite(cost) and (self.state["cost"] is None or cost < self.state["cost"])
        if better:
            self.state |= {"best": step, "cost": cost}
        return better

    def _real(self) -> float:
        """Share of the positions computed, padding inside attention included, that are real."""
        return self.state["positions"] / max(self.state["computed"], 1)

    def _plan(self) -> None:
        """A budget in positions or minutes becomes a number of steps once its decay begins; from then on it is fixed."""
        state, config = self.state, self.config
        if state["steps"] is None and self._progress() >= 1 - config.decay:
            steps = max(state["step"], math.ceil(state["step"] / max(self._progress(), 1e-9)))
            state["steps"] = min(steps, config.steps or steps)  # what the quotient rounds up may be one more

    def _progress(self) -> float:
        """Share of the budget that is spent."""
        state, config = self.state, self.config
        if state["steps"] is not None:
            return state["step"] / state["steps"]
        spent = ((state["step"], config.steps), (state["positions"], config.tokens), (state["seconds"] / 60, config.minutes))
        shares = [used / budget for used, budget in spent if budget]
        return max(shares) if shares else state["seconds"] / 600

    def _done(self) -> bool:
        return self.state["steps"] is not None and self.state["step"] >= self.state["steps"]

    def _due(self, every: int, step: int) -> bool:
        """Every so many steps, or ten times in the run."""
        if every:
            return step % every == 0
        tenth = int(10 * self._progress() + 1e-9)
        due = tenth > self.state["tenth"]
        self.state["tenth"] = tenth
        return due

    def _bar(self) -> tqdm:
        shape = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining} {postfix}"
        slow = 0.5 if sys.stderr.isatty() else 20.0  # a log file is read by people too: not a line every half second
        return tqdm(
            total=1.0, desc=self.name, bar_format=shape, disable=not self.progress, mininterval=slow, dynamic_ncols=True
        )

    def _signals(self) -> Any:
        """Ctrl-C and SIGTERM ask the loop to save and leave; a second Ctrl-C leaves at once."""
        return _Signals(lambda name: setattr(self, "asked", name))


class _Signals:
    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell

    def __enter__(self) -> None:
        self.old: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not the main thread: the program that embeds the loop handles signals
                self.old[number] = signal.signal(number, self._catch)

    def _catch(self, number: int, frame: Any) -> None:
        self.tell(signal.Signals(number).name)
        signal.signal(number, self.old[number])

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)


def _where(data: Path, stored: dict[str, Any]) -> Path:
    """The data of a run that goes on: where it began, or ``data`` that is the same, so that a folder can be moved."""
    with contextlib.suppress(QuadriviumError, OSError):
        if Dataset(data).checksum == stored.get("shards"):
            return data
    return Path(stored.get("data", data))


def _taken(run: Path) -> RunError:
    none = "" if checkpoint.checkpoints(run / "checkpoints") else ", or delete it: it has no checkpoint yet"
    return RunError(f"{run} already holds a run; go on with --resume or choose another --out{none}")


def _place(init: str | Path | None) -> str | None:
    """What to begin with as a run notes it: a folder wherever the command is given again, or a hub id."""
    return str(Path(init).resolve() if Path(init).exists() else init) if init is not None else None


def _unheeded(given: Seq[Any], kept: Seq[Any], more: Seq[tuple[str, Any, Any, Any]]) -> str:
    """Options that were given and are others than those of the run, which it keeps. ``more``: of no config, as name, value, the run's, and
    what it is where nothing is given."""
    every = list(more)
    for new, old in zip(given, kept, strict=True):
        names = [f.name for f in dataclasses.fields(new) if f.name != "skip_bad_batches"]
        every += [(name, getattr(new, name), getattr(old, name), getattr(type(new)(), name)) for name in names]
    return ", ".join(f"{name} {mine} (not {value})" for name, value, mine, usual in every if value not in (usual, mine))


def train_routes(
    data: Path,
    run: Path,
    model: ModelConfig,
    mixture: MixtureConfig,
    config: TrainConfig,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = True,
    init: str | Path | None = None,
    init_vision: Literal["copy", "fresh"] = "copy",
    track: Seq[str] = (),
    computing: Computing = Computing(),
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Train the four-route model on a data folder into a run folder; with ``resume``, as the run was configured.

    All ranks call this; when they were started again because one was lost, the run goes on as with ``resume``.

    ``init``: what to begin with, on data prepared with its tokenizers. A finished run gives its weights and shape; a Hugging
    Face folder or hub id fills the text stream, and ``init_vision`` says whether visual weights of their own begin as copies.
    ``track``: names of `tracking`'s trackers; when resuming, those of the start, if none is named.
    Returns the final state (see `fit`). Raises RunError when the run folder exists without ``resume``, or the reverse.
    """
    threads()
    path = run / "config.json"
    resume = resume or (ranks.restarts > 0 and path.exists())
    if not ranks.first:  # they begin with what the first has written down
        ranks.wait()
        resume = True
    if resume:
        stored, given = read_json(path, "a run folder"), (model, mixture, config)
        model = from_dict(ModelConfig, stored.get("model", {}), f"{path}: model")
        mixture = from_dict(MixtureConfig, stored.get("mixture", {}), f"{path}: mixture")
        skip = config.skip_bad_batches  # the one option that can be given later: the message about a bad batch offers it
        config = from_dict(TrainConfig, stored.get("train", {}), f"{path}: train")
        asked, data = data, _where(data, stored)
        kept = stored.get("init")
        if init is not None and kept is not None and Path(kept).is_absolute() and not Path(kept).exists():  # it was moved
            kept = _place(init)
        more = [
            ("data", str(asked.resolve()), str(data.resolve()), None),
            ("init", _place(init), kept, None),
            ("init_vision", init_vision, stored.get("init_vision", "copy"), "copy"),
        ]
        if ranks.first and (other := _unheeded(given, (model, mixture, config), more)):
            print(f"note: {run} goes on as it was begun, with {other}; for others choose another --out", file=sys.stderr)
        config = dataclasses.replace(config, skip_bad_batches=skip or config.skip_bad_batches)
        moved = {**stored, "data": str(data.resolve()), "init": kept}  # what is asked of the run later looks there
        if ranks.first and moved != stored:
            write_json(path, moved)
        init, init_vision = kept, stored.get("init_vision", init_vision)
        track = track or tuple(map(str, stored.get("track") or ()))
    elif path.exists():
        raise _taken(run)
    elif (run / MANIFEST).exists():
        raise RunError(f"{run} is a prepared data folder; choose another --out")
    if ranks.first and not resume:
        checkpoint.check_own(run, ".lock", "config.json")
    Tracking(track)  # a library that is missing is said before anything is written
    if model.contrast.weight and ranks.world * computing.accumulate > 1:
        raise ConfigError(
            "contrast tells the texts and frames of a whole step apart, which are not together where a step is computed in parts: "
            "train on one rank without --accumulate, or leave out --contrast.weight"
        )
    begun = init is not None and resume and bool(checkpoint.checkpoints(run / "checkpoints"))
    prepared = Dataset(data)
    if ranks.first:
        prepared.verify()
    if resume:
        text = TextTokenizer.load(data / "tokenizers" / "text")
        checkpoint.same_tokenizers(data, run, model.codes > 0 and prepared.has_frames)
        if stored.get("shards", prepared.checksum) != prepared.checksum:
            print(f"note: {data} has changed since {run} began; training goes on with what is there now", file=sys.stderr)
        if stored.get("bf16") not in (None, autocast(config.precision, torch.device(device))._enabled) and ranks.first:
            was, now = ("bf16", "fp32") if stored["bf16"] else ("fp32", "bf16")
            print(
                f"note: {run} was begun in {was} and goes on in {now}, which is what --precision auto is here", file=sys.stderr
            )
        source = None if init is None or begun else fetch(init)
        mixed = Mixture(prepared, mixture, text.end, config.seed, model.patch)
    else:
        model, visual, text, source = shape_on(data, prepared, model, mixture, init)
        mixed = Mixture(prepared, mixture, text.end, config.seed, model.patch)
        late = [name for name, step in mixed.begin.items() if config.steps and step >= config.steps]
        if late:
            raise ConfigError(
                f"{', '.join(late)} would never be read: begin is not before step {config.steps}, where training ends"
            )
        described = {
            "version": quadrivium.__version__,
            "data": str(data.resolve()),
            "init": _place(init),
            "init_vision": init_vision,
            "read": prepared.manifest["options"]["read"],
            "held": prepared.manifest.get("held"),  # share of the groups that is held out
            "shards": prepared.checksum,
            "routes": sorted({stream.route for stream in mixed.streams}),
        }
        described["bf16"] = autocast(config.precision, torch.device(device))._enabled  # what auto came to
        described |= {"model": to_dict(model), "mixture": to_dict(mixture), "train": to_dict(config)}
        described |= {"track": list(track)} if track else {}
        with checkpoint.locked(run):
            if path.exists():  # two were started at once, and the other was first
                raise _taken(run)
            text.save(run / "tokenizers" / "text")
            if visual:
                visual.save(run / "tokenizers" / "visual")
            write_json(path, described)
    if ranks.first:
        ranks.wait()
    if source is not None and resume and is_model(source):
        check(model, Weights(source))
    at = _newest(run / "checkpoints", ranks)  # asked by all ranks, of which the first may have begun the run just now
    saved = run / "checkpoints" / f"step-{at:08d}" / "model.safetensors"
    network = checkpoint.build(model, saved, str(path), config.seed) if at >= 0 else Model(model, config.seed)
    if source is not None:
        begin_with(network, source, init_vision)
    size = sum(p.numel() for p in network.parameters())
    network.recompute = computing.recompute
    if computing.compile:
        compile_parts(network)
    ranks.shard(network, network.blocks, device)
    task = RouteTask(network, mixed, text.id_bytes, device)
    read = {s.route for s in mixed.streams}
    told = (("--ahead", mixture.ahead, {"t2v"}), ("--contrast.weight", model.contrast.weight, {"t2v", "v2t", "tv2v"}))
    for option, asked_for, routes in told:
        if ranks.first and asked_for and not read & routes:
            print(f"note: {option} changes nothing: no route that is read has frames with captions", file=sys.stderr)
    if ranks.first:
        shares = ", ".join(f"{s.name} {mixed.shares[s.name]:.0f}" for s in mixed.streams)
        on = f" on {ranks.world} ranks" if ranks.world > 1 else ""
        print(f"{size / 1e6:.2f}M parameters{on}, sharing {model.sharing}; positions a step: {shares}", file=sys.stderr)
    draws = bool(track) and ranks.world == 1  # samples of a sharded model would need every rank
    seen = VisualTokenizer.load(run / "tokenizers" / "visual").to(device).eval() if draws and model.codes else None

    def draw(step: int) -> Sheets:
        from quadrivium import samples  # which brings the world's simulator along

        shown = checkpoint.Trained(network, text, seen, step)
        rows = samples.draw(shown, mixed, 4, samples.SOBER, progress=False)
        sheets = {f"samples/{route}": samples.sheet_of(route, cells, step) for route, cells in rows}
        network.train()
        return sheets

    tracking = Tracking(track if ranks.first else (), run, read_json(path, "a run folder"), draw if draws else None)
    state = fit(task, config, run, resume, progress=progress, tracking=tracking, ranks=ranks, accumulate=computing.accumulate)
    if state["finished"] and ranks.first:
        speed = state["positions"] / max(state["seconds"], 1e-9)
        best = (
            f"; best at step {state['best']}: {run}/checkpoints/step-{state['best']:08d}" if state["best"] is not None else ""
        )
        print(
            f"{state['step']} steps, {state['positions']:,} positions in {state['seconds']:.0f} s ({speed:.0f} a second), "
            f"{state['real']:.1%} of the positions computed were real; run written to {run}{best}; next: {command('eval', run)}"
        )
    return state


def begin_with(model: Model, source: Path, init_vision: Literal["copy", "fresh"] = "copy") -> None:
    """Put the weights of a run, or of a Hugging Face model, into a model of the shape that `shape_on` gives for it."""
    if is_model(source):
        fill(model, Weights(source), copy=init_vision == "copy")
    else:
        checkpoint.load_weights(checkpoint.weights(source), model, fresh=("head_ahead.", "sharpness"))


def shape_on(
    data: Path, prepared: Dataset, model: ModelConfig, mixture: MixtureConfig, init: str | Path | None = None
) -> tuple[ModelConfig, VisualTokenizer | None, TextTokenizer, Path | None]:
    """The resolved shape of a model for a mixture of a data folder, the folder's tokenizers, and where the weights to begin with lie.

    Raises ConfigError where the shape is impossible, RunError where ``init`` has other tokenizers than the data, or weights that do not fit."""
    source = None if init is None else fetch(init)
    foreign = source is not None and is_model(source)
    text = TextTokenizer.load(data / "tokenizers" / "text")
    visual = VisualTokenizer.load(data / "tokenizers" / "visual") if prepared.has_frames else None
    if source is not None and foreign:
        model = shape_of(source, model)
        if not text.same(TextTokenizer.load(source)):
            raise RunError(f"{data} was prepared with another tokenizer than {init}; prepare it with --text-tokenizer {init}")
        if text.size > model.vocab:
            raise RunError(f"{init}: its tokenizer has {text.size} ids and its weights {model.vocab}; take another model")
    elif source is not None:
        model = _begin_with_run(source, data, visual is not None, model)
        if visual is None and model.codes:  # the run still reads and draws frames, though this data has none
            visual = VisualTokenizer.load(source / "tokenizers" / "visual")
    if source is None and model.vocab:
        raise ConfigError(f"vocab is {model.vocab}, and is set from the data; leave it out")
    foretells = model.foretells or (mixture.ahead > 0 and visual is not None)
    model = dataclasses.replace(model, vocab=model.vocab if foreign else text.size, foretells=foretells)
    for name in ("codes", "rows", "columns") if source is None else ():
        if getattr(model, name):
            raise ConfigError(f"{name} is {getattr(model, name)}, and is set from the data; leave it out")
    try:
        model = cells(model, visual.rows, visual.columns, visual.n_codes) if visual else model
    except ValueError as error:
        raise ConfigError(str(error)) from None
    model = shaped(model, mixture)
    if source is not None:  # what cannot be begun with is refused before anything is written
        check(model, Weights(source)) if foreign else checkpoint.weights(source)
    return model, visual, text, source


def shaped(model: ModelConfig, mixture: MixtureConfig) -> ModelConfig:
    """The resolved shape. Raises ConfigError where it is impossible, or lacks the layer after which captions foretell."""
    try:
        model = model.resolve()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if mixture.ahead_layer > model.layers:
        raise ConfigError(f"ahead_layer is {mixture.ahead_layer}; the model has {model.layers} layers")
    return model


def _begin_with_run(source: Path, data: Path, seen: bool, asked: ModelConfig) -> ModelConfig:
    """The shape of the run to begin with; a contrast is an objective, and may be added. Raises RunError where the data was prepared
    with other tokenizers, ConfigError where another shape is ``asked`` for."""
    stored = read_json(source / "config.json", "a run folder")
    checkpoint.same_tokenizers(data, source, seen)
    shape = from_dict(ModelConfig, stored.get("model", {}), f"{source}: model")
    for field in dataclasses.fields(ModelConfig):
        mine, its = getattr(asked, field.name), getattr(shape, field.name)
        if field.name != "contrast" and mine not in (field.default, its):
            raise ConfigError(f"{field.name} is {mine}, and {its} in {source}, which training begins with; leave it out")
    return dataclasses.replace(shape, contrast=asked.contrast) if asked.contrast.weight else shape


def threads(tuned: bool = True) -> int:
    """Use every core this process may run on (a container's share is smaller than the machine), or OMP_NUM_THREADS.

    The number changes the order of sums, so runs are bit-equal only with equal numbers of threads. ``tuned``: also `tune`.
    """
    if tuned:
        tune()
    if os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads()
    torch.set_num_threads(cores())
    return cores()


def tune() -> None:
    """Settings of the process that make it faster and change no number beyond rounding."""
    _keep_memory()
    _quick_products()


def _keep_memory() -> None:
    """Keep what a step frees for the next one: glibc gives it back to the system and takes it again, which costs a page fault
    for every 4 kB, up to a third of a step. Elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for option, size in ((-3, 1 << 25), (-1, 1 << 30), (-2, 1 << 26)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD
            mallopt(option, size)


def _quick_products() -> None:
    """Let oneDNN multiply in fp32 where it does so in full precision: with AVX-512 it is twice as fast as MKL on AMD.

    torch offers it as what may multiply in bf16. It does on processors with tiles (AMX), so the precision is measured.
    """
    if torch.cuda.is_available():  # whose products the same switch would change
        return
    a, b = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.set_float32_matmul_precision("medium")
    if (a @ b - a.double() @ b.double()).abs().max() > 1e-4:  # in bf16 it is 0.1
        torch.set_float32_matmul_precision("highest")


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
