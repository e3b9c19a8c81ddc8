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
    cross       nothing, and they meet in the second half of the layers only, by cross-attention: an encoder for each
                modality, then a decoder for each

With ``cross`` the first ``layers // 2`` blocks are the two encoders: a position attends to those of its own modality. The
others are the two decoders. Their queries come from the decoder of the position's modality, their keys and values from where
the encoder of the key's modality ends, however deep the decoder layer, in the manner of YOCO (Sun et al. 2024, arXiv
2405.05254):

    text encoder ---- K1 V1 --+--> visual decoder   Q1 asks the text encoder (t2v), Q2 the visual one (v2v): one query weight
                              x
    visual encoder -- K2 V2 --+--> text decoder     Q3 asks both (t2t, v2t); K3 V3 (v2t) are the K2 V2 of v2v: one key weight

Encoders are causal, and what is wanted passes through the encoder of its modality too, as what was given did: the next
position is wanted given all before it. So plain text, given nothing, is Text(K1 V1) -> Text(Q3) at full depth; a prompt is
computed alike as the known part of a text and as one that is given; a clip is computed alike wherever it is cut; and a
cached position stays true when more is read. A bidirectional encoder would have to read anew whenever what is given grows,
and would train on no plain text. Names and shapes of all weights are those of ``none``, so the two cost the same.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

FORM = 3  # raised where equal options make other cells of experiments than before, which do not mix. 3: the world's second form
Sharing = Literal["all", "attention", "none", "cross"]
_MOST = {"layers": 1024, "width": 1 << 16}
_POSITIVE = ("layers", "width", "heads", "head_size", "code_width")
AXES = 3  # time, row, column


@dataclass(frozen=True)
class ContrastConfig:
    """A further objective: of all frames in a step, which belong to this text, and the reverse (see `Model.contrast`)."""

    weight: float = 0.0  # of its nats, beside those of a wanted position; 0: off
    layer: int = 0  # compared is the mean state after so many layers; 0: half of them

    def __post_init__(self) -> None:
        if not (0 <= self.weight < math.inf and self.layer >= 0):
            raise ValueError(f"contrast has weight {self.weight} and layer {self.layer}; neither is negative")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the model. ``vocab``, ``codes``, ``rows`` and ``columns`` are set from the tokenizers, ``foretells`` from the mixture."""

    patch: int = 0  # a cell is patch x patch codes, read in one position; 0: the least that leaves at most 64 cells a frame
    sharing: Sharing = "none"  # weights that text and vision have in common (docs/figures.md compares)
    layers: int = 4  # with sharing cross: half of them in encoders, half in decoders (2 + 2)
    width: int = 256  # of the residual stream
    heads: int = 4  # of attention, for queries
    kv_heads: int = 0  # 0: as many as heads
    head_size: int = 0  # 0: width / heads
    hidden: int = 0  # feed-forward size; 0: 8/3 of width rounded up to 64, which costs what a plain 4x one does
    rope_base: float = 10_000.0  # of rotary positions: the larger, the slower the slowest of them turn
    rope_scaling: tuple[float, ...] = ()  # of Llama 3: factor, low and high frequency factor, positions before; (): none
    qk_norm: bool = True  # normalise queries and keys, as Qwen3 does; Qwen2 and Llama do not
    qkv_bias: bool = False  # as Qwen2 has
    norm_eps: float = 1e-6  # added to the mean square in RMSNorm
    code_width: int = 0  # of the head that reads a cell's codes one after the other; 0: half of width
    tied: bool = True  # text head and text embedding are one matrix, as in the small Qwen3 models
    contrast: ContrastConfig = ContrastConfig()
    vocab: int = 0  # text ids; set from the data
    codes: int = 0  # values that a visual code can take; set from the data
    rows: int = 0  # cells in a column of a frame; set from the data
    columns: int = 0  # cells in a row of a frame; set from the data
    foretells: bool = False  # has a head by which states of words foretell a frame; set by --ahead

    def resolve(self) -> ModelConfig:
        """Fill in what follows from other fields, and check that the shape is possible. Raises ValueError."""
        full = replace(
            self,
            patch=self.patch or 1,
            kv_heads=self.kv_heads or self.heads,
            head_size=self.head_size or self.width // max(self.heads, 1),
            hidden=self.hidden or 64 * math.ceil(self.width * 8 / 3 / 64),
            code_width=self.code_width or self.width // 2,
            contrast=replace(self.contrast, layer=self.contrast.layer or (self.layers + 1) // 2),
        )
        full._check()
        return full

    @property
    def encoders(self) -> int:
        """Layers in which a position attends to its own modality only."""
        return self.layers // 2 if self.sharing == "cross" else 0

    @property
    def apart(self) -> bool:
        """Whether no weight is shared by the modalities."""
        return self.sharing in ("none", "cross")

    def _check(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (value < 0 or (value == 0 and field.name in _POSITIVE)):
                raise ValueError(f"{field.name} is {value}; it has to be positive")
            if field.name in _MOST and value > _MOST[field.name]:
                raise ValueError(f"{field.name} is {value}; it is at most {_MOST[field.name]:,}")
        if not (self.rope_base > 0 and self.norm_eps > 0):  # states that are 0 are normalised too (`Model.states`)
            raise ValueError(f"rope_base is {self.rope_base}, norm_eps {self.norm_eps}; both are positive")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) has to be a multiple of kv_heads ({self.kv_heads})")
        if len(self.rope_scaling) not in (0, 4):
            raise ValueError(f"rope_scaling is {self.rope_scaling}; it has four numbers or none")
        if self.head_size % 2:
            raise ValueError(f"head_size ({self.head_size}) has to be even: rotary positions turn pairs")
        if self.sharing not in get_args(Sharing):
            raise ValueError(f"sharing is {self.sharing!r}; it is one of {', '.join(get_args(Sharing))}")
        if self.contrast.layer > self.layers:
            raise ValueError(f"contrast.layer is {self.contrast.layer}; the model has {self.layers} layers")
        if self.sharing == "cross" and self.layers < 2:
            raise ValueError("layers is 1; sharing cross needs at least 2, for an encoder and a decoder")


def cells(config: ModelConfig, rows: int, columns: int, codes: int) -> ModelConfig:
    """The config for frames of rows x columns codes of so many values: picks ``patch`` where it is 0, and counts cells. Raises ValueError
    for a patch that does not divide a frame."""
    fits = [p for p in range(1, 1 + max(rows, 1)) if rows % p == columns % p == 0]
    patch = config.patch or next((p for p in fits if rows * columns <= 64 * p * p), fits[-1])
    if patch not in fits:
        raise ValueError(f"patch is {patch}; {rows} x {columns} codes are cut into patches of {', '.join(map(str, fits))}")
    return replace(config, rows=rows // patch, columns=columns // patch, codes=codes, patch=patch)


@dataclass
class Runs:
    """Where sequences that lie end to end begin."""

    ends: Tensor  # (S + 1,) int32: 0, and where each ends
    longest: int

    @classmethod
    def of(cls, lengths: Tensor, buckets: list[Tensor]) -> Runs:
        return cls(F.pad(lengths.cumsum(0), (1, 0)).int(), max((index.shape[1] for index in buckets), default=0))


@dataclass
class Some:
    """Some positions of a batch, in grouped order."""

    rows: Tensor  # (W,) where they stand among all
    own: Tensor  # (W,) where they stand among those of their modality
    n_text: int  # of them textual, which come first

    @classmethod
    def of(cls, rows: Tensor, n_text: int) -> Some:
        """``rows`` (W,), each once and in order, of a batch of which ``n_text`` are textual."""
        textual = rows < n_text
        return cls(rows, torch.where(textual, rows, rows - n_text), int(textual.sum()))

    def to(self, device: torch.device | str) -> Some:
        return Some(self.rows.to(device), self.own.to(device), self.n_text)


@dataclass
class Batch:
    """The arrays of `sequence.pack` as tensors, and the buckets in which attention sees them."""

    text: Tensor  # (Nt,) ids
    codes: Tensor  # (Nv, J) codes, -1 where a frame begins
    slots: Tensor  # (Nv,) cells of the frame that are already known
    places: Tensor  # (N, 3)
    order: Tensor  # (N,) grouped index of the i-th position in reading order
    lengths: Tensor  # (S,)
    text_at: Tensor  # (Wt,) textual positions that predict an id
    text_want: Tensor  # (Wt,) that id
    text_row: Tensor  # (Wt,) the sequence
    codes_at: Tensor  # (Wv,) visual positions that predict a cell
    codes_want: Tensor  # (Wv, J) its codes
    codes_row: Tensor  # (Wv,)
    ahead_at: Tensor  # (A,) textual positions that foretell a frame
    ahead_want: Tensor  # (A, R C, J) its codes
    buckets: list[Tensor]  # each (S', P): grouped indices of whole sequences; padding repeats index 0 at the end of a row
    back: Tensor  # (N,) where the buckets' flattened outputs hold each grouped position
    own_buckets: list[Tensor]  # the same for the positions of one modality in a sequence, which encoders see
    own_back: Tensor
    wanted: Some | None = None  # that predict or foretell something; None: not known
    until: Tensor | None = (
        None  # (N,) where in reading order a position is no longer seen; None: its sequence sees it to the end
    )

    @classmethod
    def of(cls, arrays: dict, device: torch.device | str = "cpu", slack: float = 0.85) -> Batch:
        """Arrays of `sequence.pack` -> Batch. Sequences shorter than ``slack`` of the longest open a new bucket."""
        t: dict[str, Any] = {name: torch.from_numpy(value) for name, value in arrays.items()}
        order, lengths, n_text = t["order"], t["lengths"], len(t["text"])
        t["wanted"] = Some.of(torch.cat([t["text_at"], n_text + t["codes_at"], t["ahead_at"]]).unique(), n_text)
        t["buckets"], t["back"] = _buckets(order, lengths, slack)
        # Grouped order is that of the text of each sequence, then of the frames of each.
        row = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        parts = [torch.bincount(row[kind], minlength=len(lengths)) for kind in (order < n_text, order >= n_text)]
        own = torch.cat(parts)
        t["own_buckets"], t["own_back"] = _buckets(torch.arange(len(order)), own[own > 0], slack)
        return cls(**t).to(device)

    def to(self, device: torch.device | str) -> Batch:
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = (
                [v.to(device) for v in value] if isinstance(value, list) else value if value is None else value.to(device)
            )
        return Batch(**moved)

    @property
    def positions(self) -> int:
        """Real positions in the batch."""
        return len(self.order)

    @cached_property
    def inverse(self) -> Tensor:
        """(N,) where reading order has the i-th grouped position."""
        return torch.empty_like(self.order).scatter_(0, self.order, torch.arange(len(self.order), device=self.order.device))

    @cached_property
    def runs(self) -> Runs:
        """Whole sequences, in reading order."""
        return Runs.of(self.lengths, self.buckets)

    @cached_property
    def own_runs(self) -> Runs:
        """The positions of one modality in a sequence, in grouped order, in which they lie together."""
        row = torch.repeat_interleave(
            torch.arange(len(self.lengths), device=self.order.device), self.lengths, output_size=self.positions
        )
        textual = self.order < len(self.text)
        counts = [torch.zeros_like(self.lengths).index_add_(0, row, kind.long()) for kind in (textual, ~textual)]
        return Runs.of(torch.cat(counts), self.own_buckets)

    @cached_property
    def ways(self) -> Ways:
        return Ways(self.buckets, self.back)

    @cached_property
    def own_ways(self) -> Ways:
        return Ways(self.own_buckets, self.own_back)

    @cached_property
    def seen(self) -> list[tuple[int, Tensor]]:
        """For every bucket (S', P), how many columns see all before them in every row, and what the others see: (S', P', P)."""
        return [self._seen(index) for index in self.buckets]

    @cached_property
    def own_seen(self) -> list[tuple[int, Tensor]]:
        return [self._seen(index) for index in self.own_buckets]

    def _seen(self, index: Tensor) -> tuple[int, Tensor]:
        assert self.until is not None
        until, width = self.until[index], index.shape[1]
        plain = int((until >= self.positions).all(0).long().cumprod(0).sum())
        column = torch.arange(width, device=index.device)
        causal = column <= column[plain:, None]
        return plain, causal & (self.inverse[index[:, plain:]][:, :, None] < until[:, None])

    @property
    def attended(self) -> int:
        """Positions that attention computes, padding included."""
        return sum(b.numel() for b in self.buckets)


def _buckets(order: Tensor, lengths: Tensor, slack: float) -> tuple[list[Tensor], Tensor]:
    """Runs of ``order`` (N,) of these ``lengths`` as a few index arrays (S', P), and where each of N is found in them."""
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
    return buckets, back


_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**62


class Cache:
    """Keys and values of every layer for S sequences that grow together.

    Sequences end at the same column: shorter ones begin later (``starts``), so that one column is written at each step.
    """

    def __init__(self, config: ModelConfig, sequences: int, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.layers, 2, sequences, config.kv_heads, capacity, config.head_size)
        size = math.prod(shape) * dtype.itemsize
        whole = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else _MEMORY
        if size > whole:
            raise MemoryError(
                f"{sequences} sequences of {capacity:,} positions take {size / 2**30:,.0f} GiB of keys and values, of {whole / 2**30:.0f} "
                "that are here; generate fewer at a time, or shorter ones (--n, --max-ids, --frames)"
            )
        self.store = torch.zeros(shape, device=device, dtype=dtype)
        self.textual = torch.zeros((sequences, capacity), device=device, dtype=torch.bool)  # what a column is
        self.starts = torch.zeros(sequences, dtype=torch.long, device=device)
        self.new = self.starts[:, None]  # (S, L) grouped index of the position that each column of the last `open` holds
        self.used = 0  # columns filled
        self.ragged = False  # some sequence begins after column 0, so attention needs a mask

    @property
    def capacity(self) -> int:
        return self.store.shape[4]

    def open(self, batch: Batch) -> None:
        """Take note of what the columns hold that this batch is about to fill."""
        longest = int(batch.lengths.max())
        blank = longest - batch.lengths
        self.starts, self.ragged = blank, bool(blank.any())
        first = torch.cumsum(batch.lengths, 0) - batch.lengths - blank
        column = torch.arange(longest, device=blank.device)
        self.new = batch.order[torch.where(column < blank[:, None], 0, first[:, None] + column)]
        self.textual[:, :longest] = self.new < len(batch.text)


class _Rotate(torch.autograd.Function):
    """What is turned comes back by turning the other way, so backward costs what forward does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _Rotate.turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _Rotate.turn(upstream[0], cos, -sin), None, None

    @staticmethod
    def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        wide = x.to(cos.dtype)
        turned = (wide * torch.cat([cos, cos], -1)).addcmul_(wide.roll(x.shape[-1] // 2, -1), torch.cat([-sin, sin], -1))
        return turned.type_as(x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864). x (N, heads, K); cos, sin (N, 1, K / 2) -> as x."""
    return _Rotate.apply(x, cos, sin)


class _Regroup(torch.autograd.Function):
    """Positions in another order. The gradient of a permutation is its inverse, a gather too, where that of an index is a scatter
    that adds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream[0].index_select(0, ctx.saved_tensors[0]), None, None


def regroup(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """x (N, ...) -> x[order], ``inverse`` being the order that leads back."""
    return _Regroup.apply(x, order, inverse)


class _Pick(torch.autograd.Function):
    """Some rows, each at most once, so that their gradients are laid where they came from and nothing has to be added."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.whole = len(x)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return lay(upstream[0], ctx.saved_tensors[0], ctx.whole), None


def pick(x: Tensor, rows: Tensor) -> Tensor:
    """x (N, ...), different rows (W,) -> x[rows] (W, ...)"""
    return _Pick.apply(x, rows)


def lay(x: Tensor, rows: Tensor, whole: int) -> Tensor:
    """x (W, ...) -> (whole, ...), with x at ``rows`` and 0 elsewhere."""
    return x.new_zeros(whole, *x.shape[1:]).index_copy(0, rows, x)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Grouped-query attention. q (S, H, P, K), k and v (S, G, P', K) -> (S, H, P, K)."""
    if q.shape[1] != k.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    if mask is not None and q.device.type == "cpu" and q.shape[2] > 1:  # torch's kernel takes ten times as long with a mask
        scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
        return scores.masked_fill_(~mask, -torch.inf).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


@cache
def varlen() -> Callable[..., Any] | None:
    """torch's attention of sequences that lie end to end, or None where it has none that knows a window.

    Asked for on GPUs alone, since importing it takes the compiler along: as long as torch itself.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None


def end_to_end(x: Tensor, head_size: int) -> bool:
    """Whether `along` can attend to sequences as they lie: on a GPU whose kernels can, where products are made in half precision."""
    if not (x.is_cuda and head_size % 8 == 0 and head_size <= 256):
        return False
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    able = dtype in (torch.bfloat16, torch.float16) and torch.cuda.get_device_capability(x.device) >= (8, 0)
    return able and varlen() is not None


def along(q: Tensor, k: Tensor, v: Tensor, runs: Runs) -> Tensor:
    """Causal attention of sequences that lie end to end: on GPUs, in bf16 or fp16, without padding, however unequal they are.

    q (N, H, K), k and v (N, G, K) -> (N, H, K)
    """
    if q.shape[1] != k.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    attend = varlen()
    assert attend is not None  # as `end_to_end` saw
    heard = attend(q, k, v, runs.ends, runs.ends, runs.longest, runs.longest, window_size=(-1, 0))
    assert isinstance(heard, Tensor)  # and not, as it can be asked for, more
    return heard


class Ways:
    """How `_Attend` gets from flat positions to whole sequences, heads first, and back: worked out once for all layers of a step."""

    def __init__(self, buckets: list[Tensor], back: Tensor) -> None:
        self.buckets, self.back = buckets, back
        self._there: dict[int, list[Tensor]] = {}
        self._home: dict[int, Tensor] = {}
        self._ahead: dict[tuple[int, torch.dtype], Tensor] = {}

    def there(self, x: Tensor, i: int) -> Tensor:
        """x (N, heads, K) -> its part in the i-th bucket, (heads, S', P, K)"""
        heads = x.shape[1]
        if heads not in self._there:
            each = torch.arange(heads, device=x.device)[:, None]
            self._there[heads] = [(index.flatten() * heads + each).flatten() for index in self.buckets]
        gathered = x.reshape(-1, x.shape[2]).index_select(0, self._there[heads][i])
        return gathered.view(heads, *self.buckets[i].shape, x.shape[2])

    def home(self, parts: list[Tensor]) -> Tensor:
        """Buckets (heads, S' P, K), in order -> (N, heads, K)"""
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        heads = len(x)
        if heads not in self._home:
            each = torch.arange(heads, device=x.device) * x.shape[1]
            self._home[heads] = (self.back[:, None] + each).flatten()
        return x.view(-1, x.shape[2]).index_select(0, self._home[heads]).view(-1, heads, x.shape[2])

    def ahead(self, i: int, like: Tensor) -> Tensor:
        """(P, P) of the i-th bucket: 0 where a position is seen, minus infinity where it lies ahead."""
        size = self.buckets[i].shape[1]
        if (size, like.dtype) not in self._ahead:
            blank = torch.full((size, size), -torch.inf, dtype=like.dtype, device=like.device)
            self._ahead[size, like.dtype] = blank.triu(1)
        return self._ahead[size, like.dtype]

    @cached_property
    def padding(self) -> list[Tensor | None]:
        """(S' P, 1) of every bucket: what stands in for nothing; None where nothing does."""
        used = sum(index.numel() for index in self.buckets)
        if used == len(self.back):
            return [None] * len(self.buckets)
        blank = torch.ones(used, dtype=torch.bool, device=self.back.device).index_fill_(0, self.back, False)
        return [part[:, None] for part in blank.split([index.numel() for index in self.buckets])]


class _Attend(torch.autograd.Function):
    """Causal attention of whole sequences as plain products, from flat positions to flat positions: queries and keys
    (N, H + G, K) and values (N, G, K) -> (N, H, K).

    On CPU in bf16, torch's fused kernel takes ten times as long backward. Heads come first, so that every product reads and
    writes one block of memory; and the way from flat to bucketed and back is a gather each way, forward and backward, where
    the gradient of an index is a scatter that adds.
    """

    @staticmethod
    def forward(ctx: Any, qk: Tensor, v: Tensor, ways: Ways) -> Tensor:
        ctx.kv_heads, ctx.heads, ctx.ways = v.shape[1], qk.shape[1] - v.shape[1], ways
        outputs, saved = [], []
        for i in range(len(ways.buckets)):
            asked, values = ways.there(qk, i), ways.there(v, i)
            q, k, told = _Attend.alike(ctx, asked, values)
            weights = torch.baddbmm(ways.ahead(i, q), q, k.transpose(1, 2), alpha=q.shape[2] ** -0.5).softmax(-1)
            outputs.append((weights @ told).view(ctx.heads, -1, q.shape[2]))
            saved += [asked, values, weights]
        ctx.save_for_backward(*saved)
        return ways.home(outputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        saved, ways, repeat = ctx.saved_tensors, ctx.ways, ctx.heads // ctx.kv_heads
        asking, telling = [], []
        for i, (asked, values, weights) in enumerate(zip(saved[::3], saved[1::3], saved[2::3], strict=True)):
            dy = ways.there(upstream[0], i)
            blank = ways.padding[i]
            if blank is not None:  # which has no gradient
                dy.view(ctx.heads, -1, dy.shape[3]).masked_fill_(blank, 0.0)
            dy = dy.flatten(0, 1)
            q, k, v = _Attend.alike(ctx, asked, values)
            scores = torch._softmax_backward_data(dy @ v.transpose(1, 2), weights, -1, weights.dtype).mul_(q.shape[2] ** -0.5)
            dq, dk, dv = (
                t.view(ctx.heads, -1, q.shape[2])
                for t in (scores @ k, scores.transpose(1, 2) @ q, weights.transpose(1, 2) @ dy)
            )
            if repeat > 1:
                dk, dv = (t.unflatten(0, (ctx.kv_heads, repeat)).sum(1) for t in (dk, dv))
            asking.append(torch.cat([dq, dk]))
            telling.append(dv)
        return ways.home(asking), ways.home(telling), None

    @staticmethod
    def alike(ctx: Any, asked: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(H + G, S', P, K) and (G, S', P, K) -> queries, keys and values, each (H S', P, K)"""
        (q, k), v = asked.split([ctx.heads, ctx.kv_heads]), values
        if ctx.heads > ctx.kv_heads:
            k, v = (t.repeat_interleave(ctx.heads // ctx.kv_heads, 0) for t in (k, v))
        return q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)


class _CrossEntropy(torch.autograd.Function):
    """Nats of wanted ids under a linear head, a block of rows at a time, so that logits never leave the cache.

    The gradient of the logits (softmax minus one-hot) is made while they are there and kept in the precision of the product.
    """

    BLOCK = 1 << 18  # logits at a time: 1 MB in fp32

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, want: Tensor) -> Tensor:
        block = _CrossEntropy.BLOCK if hidden.device.type == "cpu" else _CrossEntropy.BLOCK << 8
        rows = min(1 << 14, max(64, block // len(weight)))
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
        share = upstream[0][:, None].type_as(hidden)  # scales rows, so narrow arrays carry it
        return (gradient @ weight) * share, gradient.T @ (hidden * share), None


def cross_entropy(hidden: Tensor, weight: Tensor, want: Tensor) -> Tensor:
    """Cost in nats (W,) of ids ``want`` (W,) under the head ``weight`` (V, D) at hidden states (W, D).

    The result of ``F.cross_entropy`` on ``hidden @ weight.T``. Logits are held a block at a time; where gradients are wanted, those of
    the logits (W, V) are kept, in the precision of the product. Products run in bf16 under autocast, sums in fp32.
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

    def forward(self, x: Tensor, n_text: int, *more: tuple[Tensor, int]) -> Any:
        """x (N, ...) of which the first ``n_text`` positions are textual, and further arguments of the module, each with how many of its
        own are. Gives what the module does."""
        given = ((x, n_text), *more)
        if len(self.parts) == 1 or all(n == len(t) for t, n in given):
            return self.parts[0](*(t for t, _ in given))
        if not any(n for _, n in given):
            return self.parts[1](*(t for t, _ in given))
        # The gradients of a split are joined; those of two slices would be added.
        text, frames = zip(*(t.split([n, len(t) - n]) for t, n in given), strict=True)
        made = self.parts[0](*text), self.parts[1](*frames)
        return torch.cat(made) if isinstance(made[0], Tensor) else tuple(map(torch.cat, zip(*made, strict=True)))


class _RMSNorm(torch.autograd.Function):
    """RMSNorm a block of rows at a time: on CPU torch's own is made of many passes and takes up to ten times as long backward.

    With x' = x / rms(x): y = w x'; dx = (w g - x' mean(w g x')) / rms(x); dw = sum of g x' over rows.
    """

    BLOCK = 1 << 17  # numbers at a time: 512 kB in fp32

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        """x (..., *weight.shape), normalised over its last axis -> the same in ``dtype``"""
        rows = x.reshape(-1, *weight.shape)
        out, step = torch.empty_like(rows, dtype=dtype), max(1, _RMSNorm.BLOCK // weight.numel())
        inverse = rows.new_empty((*rows.shape[:-1], 1), dtype=weight.dtype)
        for part in _RMSNorm.parts(rows, step):
            block = rows[part].to(weight.dtype)
            length = torch.linalg.vector_norm(block, dim=-1, keepdim=True)
            inverse[part] = length.square_().div_(weight.shape[-1]).add_(eps).rsqrt_()
            out[part] = (block * inverse[part]).mul_(weight)
        ctx.save_for_backward(rows, weight, inverse)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, weight, inverse = ctx.saved_tensors
        g, dx, dw = upstream[0].reshape(rows.shape), torch.empty_like(rows), torch.zeros_like(weight)
        for part in _RMSNorm.parts(rows, max(1, _RMSNorm.BLOCK // weight.numel())):
            unit = rows[part].to(weight.dtype) * inverse[part]
            block = g[part].to(weight.dtype)
            product = block * unit
            dw += product.sum(0)
            mean = product.mul_(weight).mean(-1, keepdim=True)
            dx[part] = (block * weight).addcmul_(unit, mean, value=-1).mul_(inverse[part])
        return dx.view(upstream[0].shape), dw, None, None

    @staticmethod
    def parts(rows: Tensor, step: int) -> list[slice]:
        return [slice(start, start + step) for start in range(0, len(rows), step)]


def rms_norm(x: Tensor, weight: Tensor, eps: float, product: bool = False) -> Tensor:
    """RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) over the last axis, in the precision of the weight.

    x (..., *weight.shape) -> the same, in its own precision, or in that of a ``product`` which reads it and nothing else does.
    """
    dtype, device = x.dtype, x.device.type
    if product and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if device == "cpu" and torch.is_grad_enabled() and x.numel() and not torch.compiler.is_compiling():
        return _RMSNorm.apply(x, weight, eps, dtype)
    return (F.rms_norm(x.type_as(weight), weight.shape[-1:], eps=eps) * weight).to(dtype)


class Norm(nn.RMSNorm):
    """`rms_norm` with a weight that is learnt. (..., D) -> (..., D)."""

    eps: float

    def forward(self, x: Tensor, product: bool = False) -> Tensor:
        return rms_norm(x, self.weight, self.eps, product)


class Project(nn.Module):
    """Norm, then queries, keys and values in one product; queries and keys may be normalised.

    (N, D) -> queries and keys (N, H + G, K), values (N, G, K). With ``source`` (N, D), keys and values are those of source, and the queries those of x,
    which may be (W, D), of the positions ``rows`` (W,) alone: the others ask for nothing.
    """

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.asked = c.heads, c.kv_heads, c.heads * c.head_size
        self.norm = Norm(c.width, c.norm_eps)
        self.qkv = nn.Linear(c.width, (c.heads + 2 * c.kv_heads) * c.head_size, bias=c.qkv_bias)
        self.q_norm = Norm(c.head_size, c.norm_eps) if c.qk_norm else nn.Identity()
        self.k_norm = Norm(c.head_size, c.norm_eps) if c.qk_norm else nn.Identity()

    def forward(self, x: Tensor, source: Tensor | None = None, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if source is None:
            made = self.qkv(self.norm(x, product=True))
        else:
            weight, bias = (
                (None, None) if w is None else w.tensor_split([self.asked]) for w in (self.qkv.weight, self.qkv.bias)
            )
            asked, told = (F.linear(self.norm(y, product=True), weight[i], bias[i]) for i, y in enumerate((x, source)))
            made = torch.cat([asked if rows is None else lay(asked, rows, len(source)), told], dim=-1)
        made = made.unflatten(-1, (self.heads + 2 * self.kv_heads, -1))
        qk, v = made.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        if isinstance(self.q_norm, Norm) and isinstance(self.k_norm, Norm):
            scale = torch.cat([self.q_norm.weight.expand(self.heads, -1), self.k_norm.weight.expand(self.kv_heads, -1)])
            qk = rms_norm(qk, scale, self.q_norm.eps)
        return qk, v


class FeedForward(nn.Module):
    """Norm, then SwiGLU (Shazeer 2020, arXiv 2002.05202). (N, D) -> (N, D)."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.norm = Norm(c.width, c.norm_eps)
        self.gate_up = nn.Linear(c.width, 2 * c.hidden, bias=False)
        self.down = nn.Linear(c.hidden, c.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(self.norm(x, product=True)).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class CodeHead(nn.Module):
    """The codes of a cell, one after the other: each is predicted from the hidden state and the cell's codes before it.

    The trunk runs once a cell while every code keeps an exact cost of its own, as in the depth transformer of
    RQ-Transformer (Lee et al. 2022, arXiv 2203.01941), with a feed-forward layer in the place of attention. Every code looks at
    the hidden state in its own way (or all in a ``common`` one), which lets all that runs once a code be narrower than the trunk: E is
    ``code_width``, and D where a cell is a single code.
    """

    def __init__(self, c: ModelConfig, common: bool = False) -> None:
        super().__init__()
        self.codes, self.cell = c.codes, c.patch**2
        width = c.code_width if self.cell > 1 else c.width
        self.out = nn.Linear(width, max(c.codes, 1), bias=False)
        if self.cell > 1:
            self.look = nn.Linear(c.width, (1 if common else self.cell) * width, bias=False)
            self.which = nn.Embedding(self.cell, width)
            self.known = nn.Embedding((self.cell - 1) * c.codes, width)
            self.feed = FeedForward(replace(c, width=width, hidden=width))
            self.norm = Norm(width, c.norm_eps)

    def enter(self, hidden: Tensor) -> Tensor:
        """(W, D) -> (W, J, E): what each code of the cell sees of it."""
        if self.cell == 1:
            return hidden[:, None]
        return self.look(hidden).unflatten(-1, (-1, self.which.embedding_dim)) + self.which.weight

    def forward(self, hidden: Tensor, known: Tensor) -> Tensor:
        """hidden (W, D), all of the cell's codes but the last (W, J - 1) -> (W, J, E), of which ``out`` makes logits."""
        x = self.enter(hidden)
        if self.cell > 1:
            before = self.known(known + self.codes * torch.arange(self.cell - 1, device=known.device))
            x = F.pad(before.cumsum(1), (0, 0, 1, 0)) + x
            x = self.norm(x + self.feed(x))
        return x

    def next(self, entered: Tensor, known: Tensor) -> Tensor:
        """What `enter` gave (W, J, E), the cell's first j codes (W, j) -> logits of the next one (W, C)."""
        j = known.shape[1]
        x = entered[:, j]
        if self.cell > 1:
            x = self.known(known + self.codes * torch.arange(j, device=known.device)).sum(1) + x
            x = self.norm(x + self.feed(x))
        return self.out(x)


class Foretell(nn.Module):
    """States of single positions -> the codes of every cell of a frame."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.place = nn.Embedding(max(c.rows * c.columns, 1), c.width)
        self.head = CodeHead(replace(c, code_width=c.width), common=True)

    def forward(self, states: Tensor, codes: Tensor) -> Tensor:
        """states (A, D), the frame's cells (A, RC, J) -> (A, RC, J, D), of which ``head.out`` makes logits."""
        at = F.rms_norm(states, states.shape[-1:])[:, None] + self.place.weight
        return self.head(at.flatten(0, 1), codes.flatten(0, 1)[:, :-1]).unflatten(0, codes.shape[:2])


class Block(nn.Module):
    def __init__(self, c: ModelConfig, layer: int) -> None:
        super().__init__()
        self.c, self.layer = c, layer
        self.own = layer < c.encoders  # a position attends to its own modality only
        self.project = Apart(lambda: Project(c), apart=c.apart)
        self.out = Apart(lambda: nn.Linear(c.heads * c.head_size, c.width, bias=False), apart=c.apart)
        self.feed = Apart(lambda: FeedForward(c), apart=c.apart or c.sharing == "attention")

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None,
        batch: Batch,
        cos: Tensor,
        sin: Tensor,
        cache: Cache | None,
        flat: bool = False,
        some: Some | None = None,
    ) -> Tensor:
        """x (N, D) -> (N, D). Keys and values are read from ``memory`` (N, D), or from x where there is none. With ``some``, x is (W, D), of
        these positions alone.

        ``flat``: attend along sequences as they lie, end to end. Where no weight tells the modalities apart, x is then in reading
        order already; else queries, keys and values are brought into it, and their answers back.
        """
        n_text = len(batch.text)
        away = (batch.order, batch.inverse) if flat and not self.own and self.c.sharing != "all" else None
        first, *rest = self.ask(x, memory, n_text, cos, sin, away, flat, some)
        if flat:
            heard = along(first, rest[0], rest[1], batch.own_runs if self.own else batch.runs)
        else:
            heard = self._attend(first, rest[0], batch, cache)
        return self.tell(x, heard, n_text, away and away[::-1], some)

    def ask(
        self,
        x: Tensor,
        memory: Tensor | None,
        n_text: int,
        cos: Tensor,
        sin: Tensor,
        order: tuple[Tensor, Tensor] | None,
        parted: bool = True,
        some: Some | None = None,
    ) -> tuple[Tensor, ...]:
        """Queries (N, H, K), keys and values (N, G, K), in another ``order``, which comes with its inverse. Not ``parted``: queries and keys
        as one, (N, H + G, K)."""
        if some is not None:
            assert memory is not None
            rows = some.own if self.c.apart else some.rows
            qk, v = self.project(x, some.n_text, (memory, n_text), (rows, some.n_text))
        else:
            qk, v = self.project(x, n_text, *(() if memory is None else ((memory, n_text),)))
        qk = rotate(qk, cos, sin)
        if order is not None:
            qk, v = regroup(qk, *order), regroup(v, *order)
        if not parted:
            return qk, v
        q, k = qk.split([self.c.heads, self.c.kv_heads], dim=1)
        # What leaves a compiled part as a view would come back through it as several passes.
        return (q.contiguous(), k.contiguous(), v.contiguous()) if torch.compiler.is_compiling() else (q, k, v)

    def tell(
        self, x: Tensor, heard: Tensor, n_text: int, order: tuple[Tensor, Tensor] | None, some: Some | None = None
    ) -> Tensor:
        """x (N, D), and what attention gave (N, H, K), which ``order`` brings back -> (N, D); of ``some`` alone (W, D)"""
        if order is not None:
            heard = regroup(heard, *order)
        if some is not None:
            heard, n_text = pick(heard, some.rows), some.n_text
        x = x + self.out(heard.flatten(1), n_text)
        return x + self.feed(x, n_text)

    def _attend(self, qk: Tensor, v: Tensor, batch: Batch, cache: Cache | None) -> Tensor:
        """(N, H + G, K), (N, G, K) -> (N, H, K)"""
        c, buckets = self.c, batch.own_buckets if self.own else batch.buckets
        if cache is None and batch.until is None and qk.device.type == "cpu" and max(b.shape[1] for b in buckets) <= 512:
            return _Attend.apply(qk, v, batch.own_ways if self.own else batch.ways)  # as long as the square still fits
        qkv = torch.cat([qk, v], dim=1)
        if cache is not None:
            self._fill(qkv, cache)
        seen = None if batch.until is None else batch.own_seen if self.own else batch.seen
        outputs = []
        for i, index in enumerate(buckets):
            q, k, v = qkv[index].transpose(1, 2).split([c.heads, c.kv_heads, c.kv_heads], dim=1)  # (S', H, P, K)
            # Padding stands after the real positions, and nothing looks ahead: the causal rule masks it.
            plain, mask = seen[i] if seen is not None else (index.shape[1], None)
            parts = [attention(q[:, :, :plain], k[:, :, :plain], v[:, :, :plain], causal=True)] if plain else []
            if mask is not None and mask.shape[1]:
                parts.append(attention(q[:, :, plain:], k, v, mask[:, None]))
            outputs.append(torch.cat(parts, dim=2).transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)[batch.own_back if self.own else batch.back]

    def _fill(self, qkv: Tensor, cache: Cache) -> None:
        """Store the keys and values of a first pass, each sequence ending at the same column."""
        longest = cache.new.shape[1]
        kv = qkv[:, self.c.heads :][cache.new].transpose(1, 2)  # (S, 2G, L, K)
        cache.store[self.layer, 0, :, :, :longest], cache.store[self.layer, 1, :, :, :longest] = kv.chunk(2, dim=1)


class Model(nn.Module):
    """Four routes in one transformer. See the head of this file."""

    watch: Callable[[], object] | None = None  # called at every pass and generated position; may raise to end the work
    padded = True  # whether the last pass attended in buckets, which are padded
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
        self.norm = Apart(lambda: Norm(c.width, c.norm_eps), apart=c.apart)
        self.head_text = None if c.tied else nn.Linear(c.width, c.vocab, bias=False)
        self.head_codes = CodeHead(c)
        # Of its own, so that frames cost what they do without it (docs/LOG.md).
        self.head_ahead = Foretell(c) if c.foretells else None
        if c.contrast.weight:
            self.sharpness = nn.Parameter(torch.ones(1))  # the temperature of `contrast` is 0.07 to this power
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Draw fresh weights, a function of ``seed`` and each weight's name: a weight two arms have in common is equal. Heads of codes
        begin as small as what the residual stream is added to, which is close to even odds."""
        scale = 0.02 / math.sqrt(2 * self.config.layers)  # so that the residual sum does not grow with depth
        for name, weight in self.named_parameters():
            if weight.is_meta:
                continue
            if weight.ndim < 2:
                nn.init.constant_(weight, 0.0 if name.endswith(".bias") else 1.0)
                continue
            generator = torch.Generator().manual_seed(_name_seed(name, seed))
            residual = name.endswith(("down.weight",)) or ".out." in name
            with torch.no_grad():
                weight.copy_(torch.randn(weight.shape, generator=generator) * (scale if residual else 0.02))

    def forward(
        self, batch: Batch, cache: Cache | None = None, tap: int = 0, at: Some | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Hidden states (N, D), grouped order, after the last norm. An empty cache is filled with their keys and values, from which
        `Steps` goes on.

        ``at``: only what the states of these W positions need is computed, and the others' mean nothing (`states`).
        ``tap``: the residual stream (N, D) after so many layers is returned beside them; 0: it is not. Raises ValueError where the cache
        is too small, or not empty.
        """
        c, n_text = self.config, len(batch.text)
        if cache is not None:
            longest = int(batch.lengths.max())
            if cache.used:
                raise ValueError("the cache is in use; positions are added to it by Steps")
            if longest > cache.capacity:
                raise ValueError(f"the cache holds {cache.capacity} positions, {longest} are needed")
            cache.open(batch)
        taken: dict[int, Tensor | None] = {tap: None} if tap else {}
        x = self.states(batch, c.layers, cache, taken, at)
        if cache is not None:
            cache.used = longest
        hidden = self.norm(x, n_text)
        middle = taken.get(tap)
        return hidden if middle is None else (hidden, middle)

    def states(
        self,
        batch: Batch,
        layers: int,
        cache: Cache | None = None,
        taken: dict[int, Tensor | None] | None = None,
        at: Some | None = None,
    ) -> Tensor:
        """The residual stream (N, D), grouped order, after the first so many layers. ``taken``: what it is after as many as a key
        says is written there.

        ``at``: the W positions whose stream is asked for; the others' is 0, or what it is where nearly all are asked for. Nobody reads
        keys and values of what the last layer gives, or a decoder layer of ``cross``. So these compute queries, feed-forward and
        the stream itself at W positions alone, and the result is the same.
        """
        c = self.config
        x, places = self.embed(batch.text, batch.codes, batch.slots), batch.places
        flat = cache is None and batch.until is None and end_to_end(x, c.head_size)
        self.padded = not flat
        ordered = flat and c.sharing == "all"
        if ordered:
            x, places = regroup(x, batch.order, batch.inverse), places[batch.order]
        cos, sin = self.rotary(places)
        memory, some = None, None
        fewer = at is not None and 10 * len(at.rows) < 9 * len(x)  # by so many that it is worth its calls
        last = (c.encoders or c.layers - 1) if fewer else c.layers  # the first layer that computes some positions only
        again = self.recompute and cache is None and torch.is_grad_enabled()
        for i, block in zip(range(layers), self.blocks, strict=False):
            if i == last:
                assert at is not None
                some = replace(at, rows=batch.inverse[at.rows]) if ordered else at
                memory, x = x, pick(x, some.rows)
            inputs = (x, memory, batch, cos, sin, cache, flat, some)
            before = x
            x = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False) if again else block(*inputs)
            if c.encoders and i == c.encoders and some is None:
                memory = before  # the first decoder layer reads where the encoders end, and so do all after it
            if taken and i + 1 in taken:
                taken[i + 1] = self._whole(x, batch, some, ordered)
        return self._whole(x, batch, some, ordered)

    @staticmethod
    def _whole(x: Tensor, batch: Batch, some: Some | None, ordered: bool) -> Tensor:
        """The stream of all positions, in grouped order."""
        x = x if some is None else lay(x, some.rows, batch.positions)
        return regroup(x, batch.inverse, batch.order) if ordered else x

    def embed(self, text: Tensor, codes: Tensor, slots: Tensor) -> Tensor:
        """Ids (Nt,), cells (Nv, J) and where in the frame the next one belongs (Nv,) -> (Nt + Nv, D)"""
        if self.watch is not None:
            self.watch()
        c, parts = self.config, []
        if len(text):
            parts.append(self.embed_text(text))
        if len(codes):
            where = self.where(slots)
            shift = 1 + c.codes * torch.arange(codes.shape[1], device=where.device)
            cell = torch.where(codes < 0, 0, codes + shift)  # (Nv, J)
            # The begin mark stands in every place of its cell: count it once.
            share = torch.where(codes[:, :1] < 0, 1 / cell.shape[1], 1.0).type_as(where)
            parts.append(self.embed_codes(cell).sum(1) * share + where)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def where(self, slots: Tensor) -> Tensor:
        """How many cells of a frame are known -> what says where the next one belongs. (...,) -> (..., D)"""
        columns = self.config.columns
        return self.embed_row(torch.div(slots, columns, rounding_mode="floor")) + self.embed_column(slots % columns)

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

    def nats(self, batch: Batch, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cost in nats of everything wanted: text (Wt,), codes (Wv, J). Heads, and layers as far as they can, run at wanted positions and nowhere else.

        ``hidden``: what `forward` gave for this batch, where that is known.
        """
        hidden = self(batch, at=batch.wanted) if hidden is None else hidden
        n_text = len(batch.text)
        text, codes = hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(batch.codes_want.shape, dtype=torch.float32)
        if len(batch.text_at):
            head = self.embed_text if self.head_text is None else self.head_text
            text = cross_entropy(hidden.index_select(0, batch.text_at), head.weight, batch.text_want)
        if len(batch.codes_at):
            states = self.head_codes(hidden.index_select(0, n_text + batch.codes_at), batch.codes_want[:, :-1])
            codes = cross_entropy(states.flatten(0, 1), self.head_codes.out.weight, batch.codes_want.flatten()).view_as(codes)
        return text, codes

    def foretold(self, batch: Batch, states: Tensor) -> Tensor:
        """Cost in nats (A, RC, J) of frames that the state of a single text position has to foretell, every cell from that state.

        No position of the frame is computed: what happens then has to be worked out where the text is, in weights and states that
        plain text is continued from. ``states`` (N, D): the residual stream after a layer, best one that is not the last: what
        the layers after it say of this position, and of those that follow, can then rest on what it foretells.
        """
        assert self.head_ahead is not None
        told = self.head_ahead(states.index_select(0, batch.ahead_at).float(), batch.ahead_want)
        out = self.head_ahead.head.out.weight
        return cross_entropy(told.flatten(0, 2), out, batch.ahead_want.flatten()).view_as(batch.ahead_want)

    def pooled(self, batch: Batch) -> Tensor:
        """The mean of each sequence's normalised states at the layer of ``contrast``: (S, D), fp32."""
        x = F.rms_norm(self.states(batch, self.config.contrast.layer).float(), (self.config.width,))
        row = torch.repeat_interleave(torch.arange(len(batch.lengths), device=x.device), batch.lengths)
        total = x.new_zeros(len(batch.lengths), x.shape[1]).index_add(0, row, x[batch.order])
        return total / batch.lengths[:, None]

    def contrast(self, batch: Batch, same: Tensor) -> Tensor:
        """Mean nats of finding P texts by their frames, and frames by their texts, each among all P of the batch.

        batch: P sequences of text alone, then P of frames alone, so that neither was computed from the other.
        same (P, P): which frames a text belongs to. Equal captions are no negatives of each other.
        InfoNCE with a learnt temperature, as in CLIP (Radford et al. 2021, arXiv 2103.00020): its start, 0.07, and its
        bound, 0.01, but on the states themselves, with no projection between: it is they that are to become alike.
        """
        scores = likeness(*self.pooled(batch).chunk(2)) * (self.sharpness * -math.log(0.07)).clamp(max=-math.log(0.01)).exp()
        right = scores.masked_fill(~same, -torch.inf)
        by_text, by_frames = ((scores.logsumexp(i) - right.logsumexp(i)).mean() for i in (1, 0))
        return (by_text + by_frames) / 2


def likeness(text: Tensor, frames: Tensor) -> Tensor:
    """Cosines (P, P) between pooled states of P texts and P clips (P, D), of each side the mean taken off.

    What all texts have in common, marks and little words, says nothing of the frames they belong to, and at first is nearly
    all there is: without this the objective stays for long where it begins.
    """
    text, frames = (F.normalize(side - side.mean(0), dim=1) for side in (text, frames))
    with torch.autocast(text.device.type, enabled=False):
        return text @ frames.T


class Steps:
    """One position more in every row of a cache, all of one modality: the last state that `Model.forward` gives of the whole.

    A step has so few numbers that its time goes into calls. Weights are looked up once, nothing is bucketed or joined, and the
    only masks are those of rows that begin late and of encoders. The twin is `Model.forward`.
    """

    def __init__(self, model: Model, cache: Cache, visual: bool) -> None:
        self.c, self.cache, self.visual = model.config, cache, visual

        def of(apart: Any) -> Any:
            return apart.parts[-1 if visual else 0]

        self.layers = []
        blocks: Any = model.blocks
        for block in blocks:
            project, out, feed = of(block.project), of(block.out), of(block.feed)
            scale = None
            if self.c.qk_norm:
                both = ((self.c.heads, project.q_norm), (self.c.kv_heads, project.k_norm))
                scale = torch.cat([norm.weight.expand(heads, -1) for heads, norm in both])
            weight, bias = project.qkv.weight, project.qkv.bias
            # A decoder layer makes queries of its own stream, keys and values of what the encoders give.
            sizes = [project.asked, len(weight) - project.asked] if 0 < self.c.encoders <= block.layer else [len(weight)]
            into = list(zip(weight.split(sizes), bias.split(sizes) if bias is not None else [None] * len(sizes), strict=True))
            self.layers.append(
                (project.norm.weight, into, scale, out.weight.t(), feed.norm.weight, feed.gate_up.weight, feed.down.weight.t())
            )
        self.last = of(model.norm).weight

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, at: Tensor | None = None) -> Tensor:
        """Embedded x (S, D), cos and sin (S, 1, K / 2) -> hidden states (S, D) after the last norm.

        With ``at`` (1,), the column to fill, every call does the same on arrays of the same shapes, whatever is filled, so that a
        GPU can record one and repeat it; counting ``cache.used`` is then the caller's.
        """
        c, cache, start = self.c, self.cache, self.cache.used
        if start >= cache.capacity:
            raise ValueError(f"the cache holds {cache.capacity} positions, {start + 1} are needed")
        end = start + 1
        if at is None:
            cache.used = end
        size, eps, both = c.head_size, c.norm_eps, c.heads + c.kv_heads
        cos, sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        low = x.dtype == torch.bfloat16 and x.device.type == "cpu"  # where torch attends four times as fast in fp32
        mask, column = None, torch.arange(end if at is None else cache.capacity, device=x.device)
        if at is not None:
            mask = ((column >= cache.starts[:, None]) & (column <= at))[:, None, None]  # (S, 1, 1, capacity)
        elif cache.ragged:
            mask = (column >= cache.starts[:, None])[:, None, None]  # (S, 1, 1, end)
        own, memory = None, x  # what encoders see of the cache, and what they give
        if c.encoders:
            cache.textual.index_fill_(1, column[start:end] if at is None else at, not self.visual)
            own = (cache.textual[:, : len(column)] ^ self.visual)[:, None, None]
            own = own if mask is None else own & mask
        for layer, (norm, into, scale, out, feed_norm, gate_up, down) in enumerate(self.layers):
            if layer == c.encoders:
                memory = x
            keys, values = cache.store[layer, 0], cache.store[layer, 1]
            made = [F.linear(torch.rms_norm(s, norm.shape, norm, eps), *w) for s, w in zip((x, memory), into, strict=False)]
            y = (made[0] if len(made) == 1 else torch.cat(made, dim=-1)).view(len(x), -1, size)
            turned, v = y[:, :both], y[:, both:]
            if scale is not None:
                turned = torch.rms_norm(turned, (size,), None, eps) * scale
            turned = torch.addcmul(turned * cos, turned.roll(size // 2, -1), sin).type_as(v)
            if at is None:
                keys[:, :, start], values[:, :, start] = turned[:, c.heads :], v
                k, v = keys[:, :, :end], values[:, :, :end]
            else:
                k, v = keys.index_copy_(2, at, turned[:, c.heads :, None]), values.index_copy_(2, at, v[:, :, None])
            q = turned[:, : c.heads, None]
            if low:
                q, k, v = q.float(), k.float(), v.float()
            y = F.scaled_dot_product_attention(
                q, k, v, own if layer < c.encoders else mask, enable_gqa=c.heads != c.kv_heads
            ).type_as(x)
            x = torch.addmm(x, y.flatten(1), out)  # product and sum in one call
            gate, up = F.linear(torch.rms_norm(x, feed_norm.shape, feed_norm, eps), gate_up).chunk(2, dim=-1)
            x = torch.addmm(x, F.silu(gate) * up, down)
        return torch.rms_norm(x, self.last.shape, self.last, eps)


def _name_seed(name: str, seed: int) -> int:
    value = 1469598103934665603 ^ seed  # FNV-1a: the same on every machine, unlike Python's hash of a string
    for byte in name.encode():
        value = ((value ^ byte) * 1099511628211) % 2**63
    return value
