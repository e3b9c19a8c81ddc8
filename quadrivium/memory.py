"""How much memory a training step takes, counted before it is run, and the largest model that fits.

A step is run on tensors that have shapes and no contents (torch's fake tensors). What lives at each moment is counted as it is
made and let go, so the count is that of the code that trains, not of a formula beside it. Blocks are alike and arrays are as
wide as the model, so that a few small counts give every larger one:

    weights, gradients, moments    in proportion to parameters, whose number is exact
    everything else at the peak    linear in layers (in encoders and in decoders, with sharing cross), linear in width

Counted are tensors; Python, its libraries and what the allocator leaves unused come on top (`AROUND`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from quadrivium.data.mixture import Mixture, MixtureConfig
from quadrivium.data.shards import Dataset
from quadrivium.model import Batch, Model, ModelConfig
from quadrivium.sequence import pack
from quadrivium.train import Computing, Pairs, TrainConfig, autocast, make_optimizers, shape_on

AROUND = 1_000_000_000  # bytes of the process itself
CPU, GPU = 24 << 30, 80_000_000_000  # bytes of the two machines that the largest model is computed for


class _Living(TorchDispatchMode):
    """Counts bytes of tensors: those that live ``now``, and the ``most`` since it was last set."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata)
        return out

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


@dataclass(frozen=True)
class Counted:
    """Bytes of one training step."""

    parameters: int  # their number
    weights: int
    gradients: int
    moments: int  # of the optimizer
    activations: int  # at most besides weights and moments, while the loss and its gradients are computed
    update: int  # at most besides weights, gradients and moments, while the optimizer moves

    @property
    def peak(self) -> int:
        return self.weights + self.moments + max(self.activations, self.gradients + self.update)


def count(shape: ModelConfig, batch: Batch, train: TrainConfig, recompute: bool = False) -> Counted:
    """Count a step of a model of this shape on a batch, as the CPU computes it. Takes no memory for either."""
    with FakeTensorMode(allow_non_fake_inputs=True), _Living() as living:
        model = Model(shape)
        model.recompute = recompute
        weights = living.now
        optimizers = make_optimizers(model, train)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        gradients = living.now - weights
        living.most = 0
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        moments = living.now - weights
        update = living.most - weights - gradients - moments
        living.most = 0
        with autocast(train.precision, torch.device("cpu")):
            tap = max(1, shape.layers - 1) if len(batch.ahead_at) else 0
            made = model(batch, tap=tap, at=batch.wanted)
            hidden, states = made if tap else (made, None)
            text, codes = model.nats(batch, hidden)
            loss = text.sum() + codes.sum()
            if states is not None:
                loss = loss + model.foretold(batch, states).sum()
        loss.backward()
        activations = living.most - weights - moments
    return Counted(sum(p.numel() for p in model.parameters()), weights, gradients, moments, activations, update)


def _deep(shape: ModelConfig, layers: int) -> ModelConfig:
    """The shape with another number of layers, in half of which a contrast then looks."""
    return replace(shape, layers=layers, contrast=replace(shape.contrast, layer=0))


class Forecast:
    """What models of one family take on one batch: the given shape with other numbers of layers and other widths."""

    def __init__(self, shape: ModelConfig, batch: Batch, train: TrainConfig, recompute: bool = False) -> None:
        self.shape, self.train = shape, train
        self.bf16 = autocast(train.precision, torch.device("cpu"))._enabled
        self._count: Callable[[ModelConfig], Counted] = lru_cache(maxsize=None)(
            lambda shape: count(shape, batch, train, recompute)
        )
        self._empty: Callable[[ModelConfig], tuple[int, int, int]] = lru_cache(maxsize=None)(self._built)

    def scaled(self, k: int) -> ModelConfig:
        """The member of the family with ``k`` key/value heads: width, feed-forward size and layers grow in proportion."""
        c = self.shape
        return replace(
            _deep(c, max(1, round(c.layers * k / c.kv_heads))),
            kv_heads=k,
            heads=c.heads // c.kv_heads * k,
            width=max(8, 8 * round(c.width * k / c.kv_heads / 8)),
            hidden=max(8, 8 * round(c.hidden * k / c.kv_heads / 8)),
            code_width=max(4, 4 * round(c.code_width * k / c.kv_heads / 4)),
        )

    def at(self, shape: ModelConfig) -> Counted:
        """What a member of the family takes: counted where it has few layers, otherwise extended from 2 and 3 of them."""
        if shape.layers <= 3:
            return self._count(shape)
        few = {n: self._count(_deep(shape, n)) for n in self.depths}
        values = {
            name: int(self._grown(shape.layers, {n: getattr(found, name) for n, found in few.items()}))
            for name in (field.name for field in fields(Counted))
        }
        return Counted(**{**values, "update": few[3].update})

    @property
    def depths(self) -> tuple[int, ...]:
        """Numbers of layers that are counted; encoders and decoders of ``cross`` take unlike amounts."""
        return (2, 3, 4) if self.shape.sharing == "cross" else (2, 3)

    @staticmethod
    def _grown(layers: int, few: dict[int, float]) -> float:
        """What so many layers take, from what 2 and 3 of them do, and 4 where encoders and decoders differ: these have one of each, one more
        decoder, one more encoder."""
        if 4 not in few:
            return few[2] + (layers - 2) * (few[3] - few[2])
        encoders = layers // 2
        return few[2] + (layers - encoders - 1) * (few[3] - few[2]) + (encoders - 1) * (few[4] - few[3])

    def peak(self, shape: ModelConfig) -> int:
        """Bytes at most, from counts at the family's own width and at twice that width."""
        parameters, moments, matrices = self._static(shape)
        s, wide = shape.width / self.shape.width, self.scaled(2 * self.shape.kv_heads)
        spent = {}
        for layers in self.depths:
            narrow, broad = _deep(self.shape, layers), _deep(wide, layers)
            a, b = (self._count(x).activations - self._casts(self._empty(x)[2]) for x in (narrow, broad))
            spent[layers] = a + (b - a) * (s - 1) / (wide.width / self.shape.width - 1)
        activations = self._grown(shape.layers, spent) + self._casts(matrices)
        return int(4 * parameters + moments + max(activations, 4 * parameters))

    def largest(self, budget: int) -> tuple[ModelConfig, int, int]:
        """The largest member that fits in ``budget`` bytes: its shape, its parameters and its peak in bytes."""
        low, high = 0, 1
        while self.peak(self.scaled(high)) <= budget:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.peak(self.scaled(middle)) <= budget else (low, middle)
        shape = self.scaled(max(low, 1))
        return shape, self._static(shape)[0], self.peak(shape)

    def _casts(self, matrices: int) -> int:
        """Bytes of the copies of matrices that bf16 products are computed with."""
        return 2 * matrices if self.bf16 else 0

    def _static(self, shape: ModelConfig) -> tuple[int, int, int]:
        """Parameters, bytes of moments, and numbers in the blocks' matrices."""
        two, three = (self._empty(_deep(shape, n)) for n in (2, 3))
        p, m, n = (a + (shape.layers - 2) * (b - a) for a, b in zip(two, three, strict=True))
        return p, m, n

    def _built(self, shape: ModelConfig) -> tuple[int, int, int]:
        with torch.device("meta"):
            model = Model(shape)
            optimizers = make_optimizers(model, self.train)
        kept = {"adamw": 8, "muon": 4}
        moments = sum(
            kept[key] * p.numel() for key, o in optimizers.items() for group in o.param_groups for p in group["params"]
        )
        matrices = sum(p.numel() for name, p in model.named_parameters() if "blocks." in name and p.ndim == 2)
        return sum(p.numel() for p in model.parameters()), moments, matrices


def dry_run(
    data: Path,
    model: ModelConfig,
    mixture: MixtureConfig,
    train: TrainConfig,
    computing: Computing = Computing(),
    init: str | None = None,
) -> str:
    """What training would take, as text; nothing is trained and nothing is written."""
    prepared = Dataset(data)
    shape, _, text, _ = shape_on(data, prepared, model, mixture, init)
    mixed = Mixture(prepared, replace(mixture, begin=()), text.end, train.seed, shape.patch)
    parts = [mixed.step(step, 0, computing.accumulate) for step in range(32)]
    packed = [pack(sequences) for sequences in parts if sequences]
    # What is wanted costs more than what is given.
    largest = max(packed, key=lambda arrays: sum(len(arrays[name]) for name in ("order", "text_at", "codes_at")))
    batch, mean = Batch.of(largest), np.mean([len(arrays["order"]) for arrays in packed])
    pairs = [p.batch.positions for sequences in parts if (p := Pairs.of(sequences, "cpu"))] if shape.contrast.weight else []
    forecast = Forecast(shape, batch, train, computing.recompute)
    found, n = forecast.at(shape), batch.positions
    arrays = [a for s in (*prepared.sources, *mixed.streams, *mixed.held.values()) for a in vars(s).values()]
    index = sum(a.nbytes for a in arrays if isinstance(a, np.ndarray))
    index += sum(2 * 16 * len(stream.unit) for stream in mixed.streams)  # the order of two epochs
    kind = "bf16" if forecast.bf16 else "fp32"

    def row(name: str, size: float, note: str = "") -> str:
        return f"{name:<14}{size / 1e6:>12,.1f} MB   {note}".rstrip()

    lines = [
        f"{found.parameters:,} parameters: {shape.layers} layers of width {shape.width}, sharing {shape.sharing}, {kind}",
        f"{n:,} positions in the largest of 32 batches, {len(batch.lengths)} sequences; {mean:,.0f} on average",
        "",
        row("weights", found.weights, f"{found.weights / found.parameters:.1f} bytes a parameter"),
        row("gradients", found.gradients, f"{found.gradients / found.parameters:.1f} bytes a parameter"),
        row("optimizer", found.moments, f"{found.moments / found.parameters:.1f} bytes a parameter"),
        row("activations", found.activations, f"{found.activations / n:,.0f} bytes a position"),
        row("peak", found.peak, "of tensors; Python and libraries come on top"),
        *([f"contrast reads up to {max(pairs):,} positions more in a step, which are not counted above"] if pairs else []),
        row("data", index, f"of indices, {sum(map(len, prepared.sources)):,} items; ids and codes are mapped, not read"),
        "",
        "largest model of these proportions that trains on such batches (computed):",
    ]
    for name, budget, precision in (("24 GiB of CPU memory", CPU, train.precision), ("one 80 GB GPU, bf16", GPU, "bf16")):
        same = (
            forecast
            if precision == train.precision
            else Forecast(shape, batch, replace(train, precision=precision), computing.recompute)
        )
        fit, parameters, peak = same.largest(budget - AROUND)
        lines.append(
            f"  {name:<22}{parameters / 1e6:>10,.0f}M parameters, {fit.layers} layers of width {fit.width}; {peak / 1e9:.1f} GB"
        )
    return "\n".join(lines)
