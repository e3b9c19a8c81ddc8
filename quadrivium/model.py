"""The model: one decoder-only transformer over text ids and visual codes, top to bottom, torch only.

Shape letters: N positions in a batch, Nt textual and Nv visual ones, S sequences, D width, H query heads, G key/value
heads, K head size, L positions of a sequence, P padded positions inside a bucket, V text vocabulary, C code values, J codes in a
cell (G in `sequence`), W wanted positions.

A batch is flat: sequences lie end to end, textual positions first, visual ones after them (`sequence.pack`). Everything
that works position by position (norms, projections, feed-forward, heads) therefore runs without padding, and weights
that the modalities do not share run on two contiguous blocks. Only attention needs whole sequences: it gathers them into
a few buckets of nearly equal length.

The text stream has the shape of Qwen3 (Yang et al. 2025, arXiv 2505.09388): RMSNorm before each block, SwiGLU, rotary
positions, grouped-query attention with normalised queries and keys, no biases; switches make it that of Qwen2 or Llama.
Rotary positions have three axes (time, row, column) dealt to the frequencies in turn, as in Qwen3-VL; on text the axes are
equal and collapse to one.

What the modalities share is `ModelConfig.sharing`:

    all         every weight but embeddings and heads
    attention   attention and its norm; feed-forward weights are apart
    none        nothing: they meet only where queries of one attend to keys of the other
                (Mixture-of-Transformers, Liang et al. 2024, arXiv 2411.04996)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Sharing = Literal["all", "attention", "none"]
AXES = 3  # time, row, column


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the model. ``vocab``, ``codes``, ``rows`` and ``columns`` are set from the tokenizers."""

    vocab: int = 0  # text ids
    codes: int = 0  # values that a visual code can take
    rows: int = 0  # cells in a column of a frame
    columns: int = 0  # cells in a row of a frame
    patch: int = 0  # a cell is patch x patch codes, read in one position; 0: the least that leaves at most 64 cells a frame
    sharing: Sharing = "all"
    layers: int = 4
    width: int = 256
    heads: int = 4
    kv_heads: int = 0  # 0: as many as heads
    head_size: int = 0  # 0: width / heads
    hidden: int = 0  # feed-forward size; 0: 8/3 of width rounded up to 64, which costs what a plain 4x one does
    rope_base: float = 10_000.0
    rope_scaling: tuple[float, ...] = ()  # of Llama 3: factor, low and high frequency factor, positions before; (): none
    qk_norm: bool = True  # normalise queries and keys, as Qwen3 does; Qwen2 and Llama do not
    qkv_bias: bool = False  # as Qwen2 has
    norm_eps: float = 1e-6
    tied: bool = True  # text head and text embedding are one matrix, as in the small Qwen3 models

    def resolve(self) -> ModelConfig:
        """Fill in what follows from other fields, and check that the shape is possible. Raises ValueError."""
        full = replace(
            self,
            patch=self.patch or 1,
            kv_heads=self.kv_heads or self.heads,
            head_size=self.head_size or self.width // max(self.heads, 1),
            hidden=self.hidden or 64 * math.ceil(self.width * 8 / 3 / 64),
        )
        full._check()
        return full

    def _check(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (value < 0 or (value == 0 and field.name in ("layers", "width", "heads"))):
                raise ValueError(f"{field.name} is {value}; it has to be positive")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) has to be a multiple of kv_heads ({self.kv_heads})")
        if len(self.rope_scaling) not in (0, 4):
            raise ValueError(f"rope_scaling is {self.rope_scaling}; it has four numbers or none")
        if self.head_size % 2:
            raise ValueError(f"head_size ({self.head_size}) has to be even: rotary positions turn pairs")
        if self.sharing not in get_args(Sharing):
            raise ValueError(f"sharing is {self.sharing!r}; it is one of {', '.join(get_args(Sharing))}")


def cells(config: ModelConfig, rows: int, columns: int, codes: int) -> ModelConfig:
    """The config for frames of rows x columns codes of so many values: picks ``patch`` where it is 0, and counts cells."""
    fits = [p for p in range(1, 1 + max(rows, 1)) if rows % p == columns % p == 0]
    patch = config.patch or next((p for p in fits if rows * columns <= 64 * p * p), fits[-1])
    if patch not in fits:
        raise ValueError(f"patch is {patch}; {rows} x {columns} codes are cut into patches of {', '.join(map(str, fits))}")
    return replace(config, rows=rows // patch, columns=columns // patch, codes=codes, patch=patch)


@dataclass
class Batch:
    """The arrays of `sequence.pack` as tensors, and the buckets in which attention sees them."""

    text: Tensor  # (Nt,) ids
    codes: Tensor  # (Nv, J) codes, -1 where a frame begins
    slots: Tensor  # (Nv,) cells of the frame that are already known
    places: Tensor  # (N, 3)
    order: Tensor  # (N,) grouped index of the i-th position in reading order
    lengths: Tensor  # (S,)
    text_at: Tensor
    text_want: Tensor
    text_row: Tensor
    codes_at: Tensor
    codes_want: Tensor
    codes_row: Tensor
    buckets: list[Tensor]  # each (S', P): grouped indices of whole sequences; padding repeats index 0 at the end of a row
    back: Tensor  # (N,) where the buckets' flattened outputs hold each grouped position

    @classmethod
    def of(cls, arrays: dict, device: torch.device | str = "cpu", slack: float = 0.85) -> Batch:
        """Arrays of `sequence.pack` -> Batch. Sequences shorter than ``slack`` of the longest open a new bucket."""
        t: dict[str, Any] = {name: torch.from_numpy(value) for name, value in arrays.items()}
        order, lengths = t["order"], t["lengths"]
        starts = torch.cumsum(lengths, 0) - lengths
        buckets, back, used = [], torch.empty(len(order), dtype=torch.long), 0
        by_length = torch.argsort(lengths, descending=True, stable=True).tolist()
        sizes = lengths.tolist()
        while by_length:
            longest = sizes[by_length[0]]
            # Few sequences are not worth a bucket of their own: the call costs more than the padding.
            rows = [r for i, r in enumerate(by_length) if sizes[r] >= slack * longest or (i < 4 and sizes[r] >= longest / 2)]
            by_length = by_length[len(rows) :]
            index = torch.arange(longest) + starts[rows, None]
            real = torch.arange(longest) < lengths[rows, None]
            index = torch.where(real, order[index.clamp_(max=len(order) - 1)], 0)
            back[index[real]] = used + real.flatten().nonzero().squeeze(1)
            buckets.append(index)
            used += index.numel()
        t |= {"buckets": buckets, "back": back}
        return cls(**t).to(device)

    def to(self, device: torch.device | str) -> Batch:
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = [v.to(device) for v in value] if isinstance(value, list) else value.to(device)
        return Batch(**moved)

    @property
    def positions(self) -> int:
        """Real positions in the batch."""
        return len(self.order)

    @property
    def attended(self) -> int:
        """Positions that attention computes, padding included."""
        return sum(b.numel() for b in self.buckets)


class Cache:
    """Keys and values of every layer for S sequences that grow together.

    Sequences end at the same column: shorter ones begin later (``starts``), so that one column is written at each step.
    """

    def __init__(self, config: ModelConfig, sequences: int, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.layers, 2, sequences, config.kv_heads, capacity, config.head_size)
        self.store = torch.zeros(shape, device=device, dtype=dtype)
        self.starts = torch.zeros(sequences, dtype=torch.long, device=device)
        self.used = 0  # columns filled
        self.ragged = False  # some sequence begins after column 0, so attention needs a mask

    @property
    def capacity(self) -> int:
        return self.store.shape[4]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864). x (N, heads, K); cos, sin (N, 1, K / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Grouped-query attention. q (S, H, P, K), k and v (S, G, P', K) -> (S, H, P, K)."""
    if q.shape[1] != k.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    if causal and q.requires_grad and q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[2] <= 512:
        return _causal_products(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def _causal_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention as two plain products: torch's fused kernel takes ten times as long backward in bf16 on CPU."""
    sequences, _, length, size = q.shape
    ahead = torch.full((length, length), -torch.inf, dtype=q.dtype).triu(1)
    scores = torch.baddbmm(ahead, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=size**-0.5)
    return (scores.softmax(-1, dtype=torch.float32).type_as(v) @ v.flatten(0, 1)).unflatten(0, (sequences, -1))


class _CrossEntropy(torch.autograd.Function):
    """Nats of wanted ids under a linear head, a block of rows at a time, so that logits never leave the cache.

    The gradient of the logits (softmax minus one-hot) is made while they are there and kept in the precision of the product.
    """

    BLOCK = 1 << 18  # logits at a time: 1 MB in fp32

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, want: Tensor) -> Tensor:
        rows = max(64, _CrossEntropy.BLOCK // len(weight)) if hidden.device.type == "cpu" else 1 << 14
        nats = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        needed = any(ctx.needs_input_grad)
        gradient = hidden.new_empty(len(hidden), len(weight)) if needed else None
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits, target = F.linear(hidden[part], weight).float(), want[part, None]
            top = logits.logsumexp(1, keepdim=True)
            nats[part] = (top - logits.gather(1, target)).squeeze(1)
            if gradient is not None:
                share = logits.sub_(top).exp_()
                share.scatter_add_(1, target, share.new_full(target.shape, -1.0))
                gradient[part] = share
        if gradient is not None:
            ctx.save_for_backward(hidden, weight, gradient)
        return nats

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight, gradient = ctx.saved_tensors
        gradient = gradient * upstream[0][:, None].type_as(gradient)
        return gradient @ weight, gradient.T @ hidden, None


def cross_entropy(hidden: Tensor, weight: Tensor, want: Tensor) -> Tensor:
    """Cost in nats (W,) of ids ``want`` (W,) under the head ``weight`` (V, D) at hidden states (W, D).

    The result of ``F.cross_entropy`` on ``hidden @ weight.T``, whose logits are the largest array of a step and are only held
    a block at a time. Products run in bf16 under autocast, sums in fp32.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if not torch.is_grad_enabled():  # which a Function cannot see: it would make gradients that nobody asks for
        hidden, weight = hidden.detach(), weight.detach()
    return _CrossEntropy.apply(hidden, weight, want)


class Apart(nn.Module):
    """One module for all positions, or one for each modality's block of positions."""

    def __init__(self, make: Callable[[], nn.Module], apart: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleList(make() for _ in range(2 if apart else 1))

    def forward(self, x: Tensor, n_text: int) -> Tensor:
        """x (N, ...), the first ``n_text`` positions textual."""
        if len(self.parts) == 1 or n_text == len(x):
            return self.parts[0](x)
        if n_text == 0:
            return self.parts[1](x)
        return torch.cat([self.parts[0](x[:n_text]), self.parts[1](x[n_text:])])


class _RMSNorm(torch.autograd.Function):
    """RMSNorm a block of rows at a time: on CPU torch's own is made of many passes and takes up to ten times as long backward.

    With x' = x / rms(x): y = w x'; dx = (w g - x' mean(w g x')) / rms(x); dw = sum of g x' over rows.
    """

    BLOCK = 1 << 17  # numbers at a time: 512 kB in fp32

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out, inverse, step = torch.empty_like(flat), flat.new_empty(len(flat), 1, dtype=weight.dtype), _RMSNorm.rows(flat)
        for start in range(0, len(flat), step):
            part = slice(start, start + step)
            block = flat[part].to(weight.dtype)
            length = torch.linalg.vector_norm(block, dim=1, keepdim=True)
            inverse[part] = length.square_().div_(flat.shape[1]).add_(eps).rsqrt_()
            out[part] = (block * inverse[part]).mul_(weight)
        ctx.save_for_backward(flat, weight, inverse)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        flat, weight, inverse = ctx.saved_tensors
        g, dx, dw, step = upstream[0].reshape(flat.shape), torch.empty_like(flat), torch.zeros_like(weight), _RMSNorm.rows(flat)
        for start in range(0, len(flat), step):
            part = slice(start, start + step)
            unit = flat[part].to(weight.dtype) * inverse[part]
            block = g[part].to(weight.dtype)
            product = block * unit
            dw += product.sum(0)
            mean = (product @ weight[:, None]).div_(flat.shape[1])
            dx[part] = (block * weight).addcmul_(unit, mean, value=-1).mul_(inverse[part])
        return dx.view(upstream[0].shape), dw, None

    @staticmethod
    def rows(flat: Tensor) -> int:
        return max(1, _RMSNorm.BLOCK // flat.shape[1])


class Norm(nn.RMSNorm):
    """RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) in the precision of its weight. (..., D) -> (..., D)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_grad_enabled() and x.numel() and not torch.compiler.is_compiling():
            return _RMSNorm.apply(x, self.weight, self.eps)
        return super().forward(x.type_as(self.weight)).type_as(x)


class Project(nn.Module):
    """Norm, then queries, keys and values in one product; queries and keys may be normalised. (N, D) -> (N, H + 2G, K)."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = c.heads, c.kv_heads
        self.norm = Norm(c.width, c.norm_eps)
        self.qkv = nn.Linear(c.width, (c.heads + 2 * c.kv_heads) * c.head_size, bias=c.qkv_bias)
        self.q_norm = Norm(c.head_size, c.norm_eps) if c.qk_norm else nn.Identity()
        self.k_norm = Norm(c.head_size, c.norm_eps) if c.qk_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(self.norm(x))
            .unflatten(-1, (self.heads + 2 * self.kv_heads, -1))
            .split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        )
        return torch.cat([self.q_norm(q), self.k_norm(k), v], dim=1)


class FeedForward(nn.Module):
    """Norm, then SwiGLU (Shazeer 2020, arXiv 2002.05202). (N, D) -> (N, D)."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.norm = Norm(c.width, c.norm_eps)
        self.gate_up = nn.Linear(c.width, 2 * c.hidden, bias=False)
        self.down = nn.Linear(c.hidden, c.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(self.norm(x)).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class CodeHead(nn.Module):
    """The codes of a cell, one after the other: each is predicted from the hidden state and the cell's codes before it.

    The trunk runs once a cell while every code keeps an exact cost of its own, as in the depth transformer of
    RQ-Transformer (Lee et al. 2022, arXiv 2203.01941), with a feed-forward layer in the place of attention.
    """

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.codes, self.cell = c.codes, c.patch**2
        self.out = nn.Linear(c.width, max(c.codes, 1), bias=False)
        if self.cell > 1:
            self.known = nn.Embedding((self.cell - 1) * c.codes, c.width)
            self.which = nn.Embedding(self.cell, c.width)
            self.feed = FeedForward(replace(c, hidden=c.width))
            self.norm = Norm(c.width, c.norm_eps)

    def forward(self, hidden: Tensor, known: Tensor) -> Tensor:
        """hidden (W, D), the cell's first j codes (W, j) -> logits (W, j + 1, C)."""
        return self.out(self.states(hidden, known))

    def states(self, hidden: Tensor, known: Tensor, last: bool = False) -> Tensor:
        """What `forward` gives to the last product: (W, j + 1, D), or (W, 1, D) for the ``last`` code alone."""
        x = hidden[:, None]
        if self.cell > 1:
            j = known.shape[1]
            step = torch.arange(j + 1, device=hidden.device)
            before = self.known(known + step[:-1] * self.codes)
            if last:
                x = before.sum(1, keepdim=True) + x + self.which(step[-1:])
            else:
                x = F.pad(before.cumsum(1), (0, 0, 1, 0)) + x + self.which(step)
            x = self.norm(x + self.feed(x))
        return x


class Block(nn.Module):
    def __init__(self, c: ModelConfig, layer: int) -> None:
        super().__init__()
        self.c, self.layer = c, layer
        self.project = Apart(lambda: Project(c), apart=c.sharing == "none")
        self.out = Apart(lambda: nn.Linear(c.heads * c.head_size, c.width, bias=False), apart=c.sharing == "none")
        self.feed = Apart(lambda: FeedForward(c), apart=c.sharing in ("attention", "none"))

    def forward(self, x: Tensor, batch: Batch, cos: Tensor, sin: Tensor, cache: Cache | None) -> Tensor:
        c, n_text = self.c, len(batch.text)
        qk, v = self.project(x, n_text).split([c.heads + c.kv_heads, c.kv_heads], dim=1)
        qkv = torch.cat([rotate(qk, cos, sin).type_as(v), v], dim=1)  # (N, H + 2G, K)
        prefill = cache is None or cache.used == 0
        outputs = []
        for index in batch.buckets:
            rows = qkv[index].transpose(1, 2)  # (S', H + 2G, P, K)
            q, k, v = rows.split([c.heads, c.kv_heads, c.kv_heads], dim=1)
            if prefill:
                # Padding stands after the real positions, and nothing looks ahead: the causal rule masks it.
                y = attention(q, k, v, causal=True)
            else:
                assert cache is not None
                y = self._extend(q, k, v, cache)
            outputs.append(y.transpose(1, 2).flatten(0, 1))
        if cache is not None and prefill:
            self._fill(qkv, batch, cache)
        y = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        x = x + self.out(y[batch.back].flatten(1), n_text)
        return x + self.feed(x, n_text)

    def _fill(self, qkv: Tensor, batch: Batch, cache: Cache) -> None:
        """Store the keys and values of a first pass, each sequence ending at the same column."""
        c, longest = self.c, int(batch.lengths.max())
        column = torch.arange(longest, device=qkv.device) - (longest - batch.lengths)[:, None]  # (S, L), negative before it
        first = torch.cumsum(batch.lengths, 0) - batch.lengths
        index = batch.order[(first[:, None] + column.clamp(min=0))]
        kv = qkv[:, c.heads :][index].transpose(1, 2)  # (S, 2G, L, K)
        cache.store[self.layer, 0, :, :, :longest] = kv[:, : c.kv_heads]
        cache.store[self.layer, 1, :, :, :longest] = kv[:, c.kv_heads :]

    def _extend(self, q: Tensor, k: Tensor, v: Tensor, cache: Cache) -> Tensor:
        """Attend from P new positions of every sequence to all that is stored and to themselves."""
        new, end = q.shape[2], cache.used + q.shape[2]
        store = cache.store[self.layer]
        store[0, :, :, cache.used : end] = k
        store[1, :, :, cache.used : end] = v
        mask = None
        if cache.ragged or new > 1:
            column = torch.arange(end, device=q.device)
            ahead = column <= torch.arange(cache.used, end, device=q.device)[:, None]  # (P, end)
            mask = ahead & (column >= cache.starts[:, None, None, None])  # (S, 1, P, end)
        return attention(q, store[0, :, :, :end], store[1, :, :, :end], mask)


class Model(nn.Module):
    """Four routes in one transformer. See the head of this file."""

    recompute = False  # while training, keep what goes into each block and compute its inside again on the way back

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = c = config.resolve()
        self.embed_text = nn.Embedding(c.vocab, c.width)
        self.embed_codes = nn.Embedding(c.patch**2 * c.codes + 1, c.width)  # index 0: a frame begins
        # The visual stream is told where the next cell belongs, which rotary positions only say relatively.
        self.embed_row = nn.Embedding(c.rows + 1, c.width)  # the last row: the frame is complete
        self.embed_column = nn.Embedding(max(c.columns, 1), c.width)
        self.blocks = nn.ModuleList(Block(c, i) for i in range(c.layers))
        self.norm = Apart(lambda: Norm(c.width, c.norm_eps), apart=c.sharing == "none")
        self.head_text = None if c.tied else nn.Linear(c.width, c.vocab, bias=False)
        self.head_codes = CodeHead(c)
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Draw fresh weights, a function of ``seed`` and each weight's name: a weight two arms have in common is equal."""
        scale = 0.02 / math.sqrt(2 * self.config.layers)  # so that the residual sum does not grow with depth
        for name, weight in self.named_parameters():
            if weight.ndim < 2:
                nn.init.constant_(weight, 0.0 if name.endswith(".bias") else 1.0)
                continue
            generator = torch.Generator().manual_seed(_name_seed(name, seed))
            residual = name.endswith(("down.weight",)) or ".out." in name
            with torch.no_grad():
                weight.copy_(torch.randn(weight.shape, generator=generator) * (scale if residual else 0.02))

    def forward(self, batch: Batch, cache: Cache | None = None) -> Tensor:
        """Hidden states (N, D), grouped order, after the last norm. With a cache, the batch continues what it holds."""
        c, n_text = self.config, len(batch.text)
        if cache is not None:
            longest = int(batch.lengths.max())
            if cache.used + longest > cache.capacity:
                raise ValueError(f"the cache holds {cache.capacity} positions, {cache.used + longest} are needed")
            if cache.used and len(batch.buckets) != 1:
                raise ValueError("sequences that continue a cache have to grow by the same number of positions")
        parts = []
        if n_text:
            parts.append(self.embed_text(batch.text))
        if len(batch.codes):
            row = torch.div(batch.slots, c.columns, rounding_mode="floor")
            where = self.embed_row(row) + self.embed_column(batch.slots % c.columns)
            shift = 1 + c.codes * torch.arange(batch.codes.shape[1], device=where.device)
            cell = torch.where(batch.codes < 0, 0, batch.codes + shift)  # (Nv, J)
            # The begin mark stands in every place of its cell: count it once.
            parts.append(self.embed_codes(cell).sum(1) * torch.where(batch.codes[:, :1] < 0, 1 / cell.shape[1], 1.0) + where)
        x = torch.cat(parts) if len(parts) > 1 else parts[0]
        cos, sin = self.rotary(batch.places)
        again = self.recompute and cache is None and torch.is_grad_enabled()
        for block in self.blocks:
            inputs = (x, batch, cos, sin, cache)
            x = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False) if again else block(*inputs)
        if cache is not None:
            if cache.used == 0:
                cache.starts = longest - batch.lengths
                cache.ragged = bool(cache.starts.any())
            cache.used += longest
        return self.norm(x, n_text)

    def rotary(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """places (N, 3) -> cos and sin, each (N, 1, K / 2): frequency i turns with axis i mod 3."""
        half = self.config.head_size // 2
        step = torch.arange(half, device=places.device)
        frequency = self.config.rope_base ** (-step.float() / half)
        if self.config.rope_scaling:  # slow turns are stretched (Llama 3, Grattafiori et al. 2024, arXiv 2407.21783)
            factor, low, high, before = self.config.rope_scaling
            kept = ((before * frequency / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
            frequency = frequency * (kept + (1 - kept) / factor)
        angle = places[:, step % AXES].float() * frequency
        return angle.cos()[:, None], angle.sin()[:, None]

    def text_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)"""
        return F.linear(hidden, self.embed_text.weight) if self.head_text is None else self.head_text(hidden)

    def code_logits(self, hidden: Tensor, known: Tensor) -> Tensor:
        """Hidden states (W, D) and the first j codes (W, j) of the cells that follow -> logits (W, j + 1, C)."""
        return self.head_codes(hidden, known)

    def next_code_logits(self, hidden: Tensor, known: Tensor) -> Tensor:
        """The last of `code_logits`, (W, C), without computing the others."""
        return self.head_codes.out(self.head_codes.states(hidden, known, last=True)[:, 0])

    def nats(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cost in nats of everything wanted: text (Wt,), codes (Wv, J). Heads run at wanted positions and nowhere else."""
        hidden = self(batch)
        n_text = len(batch.text)
        text, codes = hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(batch.codes_want.shape, dtype=torch.float32)
        if len(batch.text_at):
            head = self.embed_text if self.head_text is None else self.head_text
            text = cross_entropy(hidden[batch.text_at], head.weight, batch.text_want)
        if len(batch.codes_at):
            states = self.head_codes.states(hidden[n_text + batch.codes_at], batch.codes_want[:, :-1])
            codes = cross_entropy(states.flatten(0, 1), self.head_codes.out.weight, batch.codes_want.flatten()).view_as(codes)
        return text, codes


def _name_seed(name: str, seed: int) -> int:
    value = 1469598103934665603 ^ seed  # FNV-1a: the same on every machine, unlike Python's hash of a string
    for byte in name.encode():
        value = ((value ^ byte) * 1099511628211) % 2**63
    return value
