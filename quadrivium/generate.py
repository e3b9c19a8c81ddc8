"""One engine for every route: read what is given once, then add one position at a time to the key-value cache.

What is given is a sequence; what is wanted is text or frames. Rows of a batch may be given different things. Each row has
a random generator of its own, so a sample does not depend on its neighbours in the batch.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from quadrivium.model import Batch, Cache, Model, Some, Steps
from quadrivium.sequence import Modality, Sequence, Walk, frames, pack, positions_of, text


@dataclass(frozen=True)
class Sampling:
    """How the next id or code is drawn."""

    temperature: float = 1.0  # 0: always the most likely
    # draw from the most likely ids that hold this much probability (Holtzman et al. 2020, arXiv 1904.09751)
    top_p: float = 0.95
    seed: int = 0  # the same one draws the same
    max_ids: int = 160  # of text, where no end mark comes earlier
    min_ids: int = 0  # of text, before which no end mark is drawn

    def __post_init__(self) -> None:
        if not 0 <= self.min_ids <= self.max_ids:
            raise ValueError(f"min_ids is {self.min_ids}; it lies between 0 and max_ids ({self.max_ids})")
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}; it is not negative")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it lies above 0 and is at most 1")
        if self.max_ids < 1:
            raise ValueError(f"max_ids is {self.max_ids}; it has to be at least 1")
        if not 0 <= self.seed < 2**40:
            raise ValueError(f"seed is {self.seed}; it lies between 0 and 2^40")


def draws(count: int, generators: Seq[torch.Generator]) -> Tensor:
    """``count`` numbers from [0, 1) of every row's own generator, (count, S)."""
    return torch.stack([torch.rand(count, generator=g) for g in generators], dim=1)


def choose(logits: Tensor, sampling: Sampling, draw: Tensor) -> Tensor:
    """Draw one id a row. logits (S, V), draw (S,) from [0, 1) -> (S,)"""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probability = (logits.float() / sampling.temperature).softmax(dim=-1)
    if sampling.top_p == 1:  # nothing is cut, so nothing has to be sorted
        reach = probability.cumsum(dim=-1)
        return _fall(reach, reach[:, -1:].contiguous(), draw).squeeze(1)
    ranked = descending(probability)
    reach = ranked.cumsum(dim=-1)
    before = reach - ranked  # what more likely ids hold: 0 for the first, which always stays
    kept = torch.searchsorted(before, before.new_full((len(before), 1), sampling.top_p))
    rank = _fall(reach, reach.gather(1, kept - 1), draw)
    value = ranked.gather(1, rank)
    # Of ids that are as likely as each other, the one before which as many of them stand as ranks do.
    nth = rank - (ranked > value).sum(dim=-1, keepdim=True)
    return torch.searchsorted((probability == value).cumsum(dim=-1), nth + 1).squeeze(1)


def _fall(reach: Tensor, total: Tensor, draw: Tensor) -> Tensor:
    """Where draws (S,) from [0, 1) fall on weights whose running sums are ``reach`` (S, V), up to the sum ``total`` (S, 1): (S, 1)"""
    pick = torch.searchsorted(reach, draw.to(reach.device)[:, None] * total, right=True)
    return torch.minimum(
        pick, torch.searchsorted(reach, total)
    )  # a draw may round up to the very end, which is past what can be


def descending(values: Tensor) -> Tensor:
    """The values of each row (S, V), the largest first. On CPU by numpy, which has vector instructions for it: torch, which sorts their
    places along, takes 15 times as long."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.detach().numpy(), axis=-1)).flip(-1)
    return values.sort(dim=-1, descending=True).values


class Recording:
    """A function of tensors that always makes the same calls, recorded on a GPU as a graph: one position is so little work that
    asking for its hundreds of kernels takes longer than they do.

    What it returns lies where the next call writes.
    """

    _one_at_a_time = threading.Lock()

    def __init__(self, function: Callable[..., Tensor], *inputs: Tensor) -> None:
        """Called twice before it is recorded, so that calling it again has to change nothing."""
        self.inputs = [t.clone() for t in inputs]
        self.graph = torch.cuda.CUDAGraph()
        device = self.inputs[0].device  # which need not be the one that this thread uses otherwise
        # Other threads may use the GPU meanwhile: what reads the next batch, or another visitor's pictures.
        with self._one_at_a_time, torch.cuda.device(device):
            aside = _aside(torch.cuda.current_device())
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(2):
                    function(*self.inputs)
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(self.graph, stream=aside, capture_error_mode="thread_local"):
                self.out = function(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.out


@functools.cache
def _aside(device: int) -> torch.cuda.Stream:
    """The stream on which a GPU's steps are recorded: one, since libraries keep memory for every stream that they meet."""
    return torch.cuda.Stream(device)


class _AsItLies(contextlib.AbstractContextManager):
    """Products by MKL. The switch is one for the whole process, so the first of several threads turns it and the last turns it back."""

    def __init__(self) -> None:
        self.lock, self.users, self.before = threading.Lock(), 0, "highest"

    def __enter__(self) -> None:
        with self.lock:
            if not self.users:
                self.before = torch.get_float32_matmul_precision()
                torch.set_float32_matmul_precision("highest")
            self.users += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                torch.set_float32_matmul_precision(self.before)


_AS_IT_LIES = _AsItLies()


class Engine:
    """Sequences that are being continued: a cache and where each row stands."""

    def __init__(self, model: Model, given: Seq[Sequence], more: int) -> None:
        """Read ``given`` (all rows something, or all rows nothing); leave room for ``more`` positions a row."""
        self.model, self.rows = model, len(given)
        weight = model.embed_text.weight
        longest = max(positions_of(g) for g in given)
        if longest and not all(given):
            raise ValueError("some rows of the batch are given something and some nothing; generate them apart")
        # A GPU repeats a step on all columns, filled or not; its kernels read eight at a time.
        self.fixed = weight.is_cuda
        capacity = 8 * -(-(longest + more) // 8) if self.fixed else longest + more
        self.cache = Cache(model.config, self.rows, capacity, weight.device, weight.dtype)
        self.at = torch.zeros(1, dtype=torch.long, device=weight.device)  # the column that a fixed step fills
        self.device: torch.device = weight.device
        self.walks = [Walk().over(g) for g in given]
        self.steps: dict[bool, Steps] = {}  # of words, and of cells
        if longest:
            read = Batch.of(pack(given), weight.device)
            model(read, self.cache, at=Some.of(read.order[:0], len(read.text)))  # its keys and values are all that is needed

    def take(self, rows: np.ndarray) -> None:
        """Go on from these ``rows`` (n,) only, from one that stands there several times in as many ways."""
        cache, chosen = self.cache, torch.as_tensor(rows, device=self.device)
        cache.store = cache.store.index_select(2, chosen)
        cache.starts = cache.starts[chosen]
        cache.textual = cache.textual[chosen]
        self.walks = [replace(self.walks[row]) for row in rows]
        self.rows = len(rows)

    def _add(self, ids: Tensor, codes: Tensor, slots: Tensor, places: Tensor) -> Tensor:
        """One more position in every row -> hidden states (S, D)."""
        model, visual = self.model, len(codes) > 0
        if visual not in self.steps:
            self.steps[visual] = Steps(model, self.cache, visual)
        return self.steps[visual](model.embed(ids, codes, slots), *model.rotary(places), self.at if self.fixed else None)

    def _repeated(self, step: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A function that adds one position to every row, to be called often; on a GPU, as a recording."""
        recording: Recording | None = None

        def run(*inputs: Tensor) -> Tensor:
            nonlocal recording
            if not self.fixed:
                with self._few():
                    return step(*inputs)
            if self.model.watch is not None:
                self.model.watch()
            if self.cache.used >= self.cache.capacity:
                raise ValueError(f"the cache holds {self.cache.capacity} positions, {self.cache.used + 1} are needed")
            self.at.fill_(self.cache.used)
            if self.device.type == "cuda" and recording is None:
                recording = Recording(step, *inputs)
            out = recording(*inputs).clone() if recording else step(*inputs)
            self.cache.used += 1
            return out

        return run

    def _few(self) -> contextlib.AbstractContextManager[None]:
        """MKL multiplies a few rows with a matrix as it lies; oneDNN, which `train.tune` chooses, first lays it out anew."""
        return _AS_IT_LIES if self.rows <= 4 and self.device.type == "cpu" else contextlib.nullcontext()

    def text(
        self, first: Tensor, end: int, sampling: Sampling, generators: Seq[torch.Generator], bar: tqdm | None = None
    ) -> list[np.ndarray]:
        """Text that follows the ids ``first`` (S,), up to an end mark: a list of ids (n,), without it.

        Rows that have ended are computed on until all have, on a GPU for up to 15 positions more."""

        def one(last: Tensor, place: Tensor, draw: Tensor, early: Tensor) -> Tensor:
            logits = self.model.text_logits(self._add(last, last.new_empty(0, 1), last[:0], place[:, None].expand(-1, 3)))
            if sampling.min_ids:
                logits[:, end].masked_fill_(early, -torch.inf)
            return choose(logits, sampling, draw)

        step, often = self._repeated(one), 16 if self.fixed else 1  # asking whether all are done waits for the GPU
        last, done, out = first, torch.zeros(self.rows, dtype=torch.bool, device=first.device), []
        start = torch.tensor([w.end for w in self.walks], device=self.device)
        early = torch.arange(sampling.max_ids, device=self.device) < sampling.min_ids
        for count, draw in enumerate(draws(sampling.max_ids, generators).to(self.device), 1):
            last = step(last, start + (count - 1), draw, early[count - 1])
            done |= last == end
            out.append(torch.where(done, -1, last))
            if bar is not None:
                bar.update(self.rows)
            if count % often == 0 and done.all():
                break
        for walk in self.walks:
            walk.text(len(out))
        ids = torch.stack(out, dim=1).cpu().numpy()
        return [row[row >= 0] for row in ids]

    def frames(self, count: int, sampling: Sampling, generators: Seq[torch.Generator], bar: tqdm | None = None) -> np.ndarray:
        """The next ``count`` frames: codes (S, F, R, C, G)."""
        c, cell = self.model.config, self.model.config.patch**2
        plan = pack([(frames(np.zeros((count, c.rows, c.columns, cell), np.int64), wanted=True),)])
        places = torch.from_numpy(plan["places"]).to(self.device)
        starts = [w.frames(count, c.rows, c.columns) for w in self.walks]
        start = torch.tensor([(time, base, base) for base, time in starts], device=self.device)

        def one(last: Tensor, slot: Tensor, place: Tensor, draw: Tensor) -> Tensor:
            hidden = self._add(last[:0, 0], last, slot, place)
            codes, entered = last[:, :0], self.model.head_codes.enter(hidden)
            for share in draw:
                logits = self.model.head_codes.next(entered, codes)
                codes = torch.cat([codes, choose(logits, sampling, share)[:, None]], dim=1)
            return codes

        step, out = self._repeated(one), list[Tensor]()
        begin = torch.full((self.rows, cell), -1, device=self.device)
        for slot, place in zip(plan["slots"].tolist(), places, strict=True):
            if slot == 0:
                last = begin
                draw = draws(c.rows * c.columns * cell, generators).view(-1, cell, self.rows).to(self.device)
            # After a frame's last cell the next thing is no cell: what is drawn there is left.
            last = step(last, torch.full_like(last[:, 0], slot), start + place, draw[min(slot, len(draw) - 1)])
            if slot < len(draw):
                out.append(last)
            if bar is not None:
                bar.update(self.rows)
        return torch.stack(out, dim=1).reshape(self.rows, count, c.rows, c.columns, cell).cpu().numpy()


@torch.inference_mode()
def generate(
    model: Model,
    given: Seq[Sequence],
    want: Modality,
    end: int,
    count: int = 1,
    sampling: Sampling | None = None,
    batch: int = 32,
    progress: bool = False,
) -> list[np.ndarray]:
    """Generate what each given sequence asks for.

    given: sequences of given segments. A last text segment is continued where text is wanted; otherwise a new text
        opens with the end mark. Frames that end the given are continued by later frames.
    want: ``text`` or ``frames``; ``count`` frames.
    Returns ids (n,) without marks, or codes (F, R, C, G), for each row. Raises ValueError where some rows of a batch are given something
    and some nothing.
    """
    sampling = sampling or Sampling()
    model.eval()
    config = model.config
    more = sampling.max_ids + 1 if want == "text" else count * (config.rows * config.columns + 1)
    found: list[np.ndarray] = []
    with tqdm(total=len(given) * (more - (want == "text")), desc=f"generate {want}", unit="pos", disable=not progress) as bar:
        for start in range(0, len(given), batch):
            rows = list(given[start : start + batch])
            generators = [torch.Generator().manual_seed(sampling.seed * 1_000_003 + start + i) for i in range(len(rows))]
            if want == "text":
                first = [opening(r, end) for r in rows]
                engine = Engine(model, rows, more)
                found += engine.text(torch.tensor(first, device=engine.device), end, sampling, generators, bar)
            else:
                engine = Engine(model, rows, more)
                found += list(engine.frames(count, sampling, generators, bar))
    return found


def opening(given: Sequence, end: int) -> int:
    """The id from which a text after ``given`` is predicted: the last of a text that it goes on from, else the end mark."""
    return int(given[-1].data[-1]) if given and given[-1].modality == "text" else end


@torch.inference_mode()
def continuations(
    model: Model, given: Seq[Sequence], texts: Seq[Seq[np.ndarray]], budget: int = 4096, progress: tqdm | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Nats (n, k) that each of k texts costs after what is given, and whether (n, k) each of its ids was the likeliest.

    texts: ids ``[x_0, x_1, ...]`` of which the first is only read. What is given is read once for its k texts, and so is every
    beginning that some of them share: they are one sequence, in which a branch sees what leads to it and no other branch.
    About ``budget`` positions are computed at a time. Raises ValueError where rows have unequal numbers of texts, and for a cost that is
    not a number.
    """
    model.eval()
    k = len(texts[0]) if len(texts) else 0
    if any(len(options) != k for options in texts):
        raise ValueError(f"rows have {sorted({len(options) for options in texts})} texts; ask those with as many together")
    nats, likeliest = np.zeros((len(given), k)), np.ones((len(given), k), bool)
    trees = [Tree.of(options) for options in texts]
    size = [positions_of(g) + len(tree.ids) for g, tree in zip(given, trees, strict=True)]
    rows: list[int] = []
    order = sorted((i for i, tree in enumerate(trees) if tree.ids), key=size.__getitem__)  # in the others nothing is predicted
    for i, after in itertools.zip_longest(order, order[1:]):
        rows.append(i)
        if after is None or (len(rows) + 1) * size[after] > budget:
            cost, first = _branching(model, [given[j] for j in rows], [texts[j] for j in rows], [trees[j] for j in rows])
            nats[rows], likeliest[rows] = cost.reshape(-1, k), first.reshape(-1, k)
            if progress is not None:
                progress.update(len(rows))
            rows = []
    if progress is not None:
        progress.update(len(given) - len(order))
    return nats, likeliest


@dataclass
class Tree:
    """Texts as the tree of what they begin with, every branch complete before the next."""

    ids: list[int]  # of every node
    depth: list[int]
    until: list[int]  # the first node after all that go on from a node
    paths: list[list[int]]  # of each text, the nodes that read all its ids but the last

    @classmethod
    def of(cls, texts: Seq[np.ndarray]) -> Tree:
        known: dict[tuple[int, int], int] = {}  # the node before, and an id -> a node
        tree = cls([], [], [], [[] for _ in texts])
        for row in sorted(range(len(texts)), key=lambda row: texts[row].tolist()):  # texts that begin alike are neighbours
            node, path = -1, tree.paths[row]
            for depth, number in enumerate(texts[row][:-1].tolist()):
                node = known.setdefault((node, number), len(known))
                path.append(node)
                if node == len(tree.ids):
                    tree.ids.append(number)
                    tree.depth.append(depth)
                    tree.until.append(0)
            for node in path:
                tree.until[node] = len(known)
        return tree


def _branching(
    model: Model, given: Seq[Sequence], texts: Seq[Seq[np.ndarray]], trees: Seq[Tree]
) -> tuple[np.ndarray, np.ndarray]:
    """Costs (n k,) of all texts, and whether all their ids were the likeliest."""
    device, k = model.embed_text.weight.device, len(texts[0])
    arrays = pack([(*g, text([*tree.ids, 0])) for g, tree in zip(given, trees, strict=True)])
    until = np.full(len(arrays["order"]), len(arrays["order"]))
    at, want, row = [], list[int](), []
    end = textual = 0  # positions, and those of text, up to the end of a sequence
    for i, (g, options, tree) in enumerate(zip(given, texts, trees, strict=True)):
        n = len(tree.ids)
        end, textual = end + positions_of(g) + n, textual + n + sum(s.positions for s in g if s.modality == "text")
        nodes = slice(textual - n, textual)
        arrays["places"][nodes] = (Walk().over(g).end + np.array(tree.depth, np.int64))[:, None]
        last = np.array(tree.until, np.int64)
        until[nodes] = np.where(last < n, end - n + last, len(until))  # what all that follow see is an ordinary position
        for j, (option, path) in enumerate(zip(options, tree.paths, strict=True)):
            at += [textual - n + node for node in path]
            want += option[1:].tolist()
            row += [i * k + j] * len(path)
    batch = Batch.of({**arrays, **({"until": until} if (until < len(until)).any() else {})}, device)
    nodes_at, back = torch.unique(torch.tensor(at, dtype=torch.long, device=device), return_inverse=True)
    hidden = model(batch, at=Some.of(nodes_at, len(batch.text))).index_select(0, nodes_at)
    return _costs(
        model, hidden, back, torch.tensor(want, dtype=torch.long), torch.tensor(row, dtype=torch.long), len(texts) * k
    )


def _costs(model: Model, hidden: Tensor, at: Tensor, want: Tensor, row: Tensor, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Nats of the ids ``want`` (W,) where hidden states (U, D) ``at`` (W,) predict them, summed over each of ``rows``; and whether
    all were the likeliest."""
    device, order = hidden.device, at.argsort()
    at, want, row = at[order], want.to(device)[order], row.to(device)[order]
    total = torch.zeros(rows, dtype=torch.float64, device=device)
    first = torch.ones(rows, dtype=torch.bool, device=device)
    for start in range(0, len(hidden), 512):  # logits are the largest array: 512 rows of them at a time
        logits = model.text_logits(hidden[start : start + 512]).float()
        low, high = torch.searchsorted(at, torch.tensor([start, start + 512], device=device)).tolist()
        here, wanted, rowed = at[low:high] - start, want[low:high], row[low:high]
        nats = logits.logsumexp(-1)[here] - logits[here, wanted]
        total.index_add_(0, rowed, nats.double())
        first[rowed[logits.argmax(-1)[here] != wanted]] = False
    if not torch.isfinite(total).all():
        raise ValueError("the model gives a cost that is not a number")
    return total.cpu().numpy(), first.cpu().numpy()
