"""`quadrivium bench`: speed beside other people's models, in one run.

Everything of a part is built first and warmed up; then one round after the other runs each once, in alternation, so that
whatever else the machine does falls on all alike. Other people's models run in a process of their own, with torch's settings as
they come, since ours are settings of a process. Beside seconds stands processor time, which counts what was computed and not
what was waited for: on a machine that is busy it is the number to read. Medians and quartiles are over rounds.

    train WIDTH        a full step (forward, backward, clip, AdamW) on a batch of four routes; ours includes packing the batch
    generate BATCH     greedy ids after a prompt, with everybody's own cache; and codes of frames
    score              forced choice, four answers to a question: ours against lm-eval's own path on the export, one by one
    prepare, world     frames and text to shards; clips simulated, drawn and written

The ceiling is the rate of the bare matrix products of our step, forward and backward, as this machine's torch does them.
"""

from __future__ import annotations

import contextlib
import gc
import io
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

import quadrivium
from quadrivium.config import to_dict
from quadrivium.data.shards import write_json
from quadrivium.data.world import WorldConfig, write_world
from quadrivium.errors import ConfigError, RunError
from quadrivium.export import export_text
from quadrivium.generate import Sampling, generate
from quadrivium.harness import language_model
from quadrivium.huggingface import config_of, weights_of
from quadrivium.model import Batch, Model, ModelConfig, Sharing
from quadrivium.peers import PEERS, Peer, Size, count, matched, qwen_of
from quadrivium.prepare import PrepareConfig, prepare
from quadrivium.sequence import Sequence, frames, pack, text
from quadrivium.text import TextTokenizer
from quadrivium.train import TrainConfig, autocast, compile_parts, make_optimizers, tune

# Dense bf16 operations a second that vendors' datasheets state, for the utilisation of a model's operations (MFU; Chowdhery et al.
# 2022, arXiv 2204.02311, appendix B).
PEAKS = {"H200": 989.5e12, "H100": 989.5e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165.2e12}
Part = Literal["train", "generate", "score", "prepare", "world"]
CEILING = "matrix products alone"
_WARM = 2  # runs before the first that counts


@dataclass(frozen=True)
class BenchConfig:
    """What is measured."""

    parts: tuple[Part, ...] = get_args(Part)  # what is measured
    widths: tuple[int, ...] = (192, 512)  # of the models that train; those that generate have the first
    layers: int = 4  # of every model
    batch: int = 8  # samples of a step, four routes in turn: a multiple of 4
    batches: tuple[int, ...] = (1, 16)  # sequences that are generated together
    prompt: int = 32  # ids that are given
    more: int = 64  # ids, or codes of a frame, that are generated
    items: int = 100  # forced-choice questions a round
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")  # each is run in alternation with the other
    peers: bool = True  # without them, ours and the ceiling alone
    only: tuple[str, ...] = ()  # names of the peers that train, as the table has them; all of them, if none is named
    compile: bool = False  # torch.compile for models that train: of ours the parts around attention, of others all
    tuned: bool = False  # peers too get the settings of a process that ours has: memory kept, oneDNN's products in fp32
    rounds: int = 15  # at most
    minutes: float = 10.0  # after which no further round begins; every part has at least three
    threads: int = 1  # of a process

    def __post_init__(self) -> None:
        if self.batch < 4 or self.batch % 4:
            raise ConfigError(f"batch is {self.batch}; four routes in turn need a multiple of 4")
        if any(w < 64 or w % 32 for w in self.widths) or not self.widths:
            raise ConfigError(f"widths are {self.widths}; each is a multiple of 32, from 64 on")
        if unknown := set(self.only) - {peer.name for peer in PEERS}:
            raise ConfigError(f"{', '.join(sorted(unknown))}: no such peer; there are {', '.join(p.name for p in PEERS)}")
        counts = (self.rounds, self.threads, self.items, self.prompt - 1, self.more, self.layers, *self.batches)
        if min(counts) < 1 or self.minutes <= 0:
            raise ConfigError("rounds, threads, items, prompt, more, layers, batches and minutes have to be positive")


@dataclass
class Case:
    """One thing that is measured: a function that does some work and says how many units it was."""

    part: str
    name: str
    precision: str
    unit: str
    run: Callable[[], float] | None  # None: there is nothing to run, and the note says why
    theirs: bool = False
    parameters: int = 0
    active: int = 0  # of them, those that one position meets in products
    flops: float = 0.0  # floating-point operations of a unit; of peers, where every weight meets every position
    note: str = ""
    cpu: list[float] = field(default_factory=list)  # units a second of processor time, a round each
    wall: list[float] = field(default_factory=list)  # units a second


def spent() -> float:
    """Seconds of processor time of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(case: Case, device: str) -> tuple[float, float]:
    """Run a case once: units a second of processor time, and units a second."""
    assert case.run is not None
    if device == "cuda":
        torch.cuda.synchronize()
    cpu, wall = spent(), time.perf_counter()
    done = case.run()
    if device == "cuda":
        torch.cuda.synchronize()
    return done / max(spent() - cpu, 1e-9), done / (time.perf_counter() - wall)


# --- training ---


def four_routes(size: Size, rng: np.random.Generator) -> list[Sequence]:
    """A batch of four routes in turn: half of every sample is given, half wanted."""

    def ids(positions: int) -> np.ndarray:
        return rng.integers(0, size.vocab, positions + 1)

    def frame() -> np.ndarray:
        return rng.integers(0, size.codes, (1, size.side, size.side, 1))

    made: list[Sequence] = []
    for _ in range(size.batch // 4):
        made.append((text(ids(size.words)), text(ids(size.cells), True)))
        made.append((text(ids(size.words)), frames(frame(), True)))
        made.append((frames(frame()), text(ids(size.words), True)))
        made.append((frames(frame()), frames(frame(), True)))
    return made


def ours(size: Size, sharing: Sharing, parameters: int = 0) -> Model:
    """Our model; with ``parameters``, of the width and feed-forward size that come nearest to so many in the usual shape."""
    shape = ModelConfig(
        vocab=size.vocab, codes=size.codes, rows=size.side, columns=size.side, patch=1, sharing=sharing, layers=size.layers,
        width=size.width, heads=size.heads,
    )  # fmt: skip
    if not parameters:
        return Model(shape)
    head = size.width // size.heads

    def with_heads(heads: int) -> ModelConfig:
        here = replace(shape, width=heads * head, heads=heads)
        with torch.device("meta"):
            return matched(lambda hidden: Model(replace(here, hidden=hidden)), parameters).config

    return Model(min(map(with_heads, range(1, size.heads + 1)), key=lambda c: abs(c.hidden / c.width - 8 / 3)))


class _Products(TorchDispatchMode):
    """Notes the shapes of products with a weight, those of attention being batched."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, int, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            left, right = args[-2:]
            self.found.append((len(left), *right.shape))
        return function(*args, **(kwargs or {}))


def products(model: Model, batch: Batch) -> list[tuple[int, int, int]]:
    """(rows, in, out) of every product with a weight in one forward pass."""
    with torch.no_grad(), _Products() as seen:
        model.nats(batch)
    return [p for p in seen.found if p[0]]


def _attended(model: Model, batch: Batch) -> float:
    """Floating-point operations of attention, forward and backward: two causal products of L positions, half of each needed. Positions that
    nothing is wanted of are counted too: attention runs for all."""
    c = model.config
    return 3 * 2 * 2 * c.layers * c.heads * c.head_size * float((batch.lengths.double() ** 2).sum()) / 2


def _step(model: nn.Module, loss: Callable[[], Tensor], precision: str, device: str) -> Callable[[], None]:
    """A full training step, the same for everybody."""
    optimizers = make_optimizers(model, TrainConfig(steps=1, optimizer="adamw")).values()
    parameters = list(model.parameters())

    def run() -> None:
        with autocast(precision, torch.device(device)):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def _counted(step: Callable[[], None], positions: int) -> Callable[[], float]:
    def run() -> float:
        step()
        return positions

    return run


def _ceiling(shapes: list[tuple[int, int, int]], precision: str, device: str) -> Callable[[], float]:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    made = [tuple(torch.randn(shape, device=device).to(dtype) for shape in ((n, i), (o, i), (n, o))) for n, i, o in shapes]

    def run() -> float:
        for x, weight, gradient in made:
            torch.nn.functional.linear(x, weight)
            gradient @ weight
            gradient.T @ x
        return 6.0 * sum(n * i * o for n, i, o in shapes)

    return run


def _ours_training(config: BenchConfig, width: int, folder: Path, device: str) -> Iterator[Case]:
    part, size = f"train {width}", _size(config, width)
    sequences = four_routes(size, np.random.default_rng(0))

    def packed() -> Batch:
        return Batch.of(pack(sequences), device)

    ahead, batch, parameters = ThreadPoolExecutor(1), packed(), 0
    pending = [ahead.submit(packed)]  # as training has the next batch made while it computes
    for sharing in get_args(Sharing):
        model = ours(size, sharing, parameters).to(device)
        parameters = parameters or count(model)

        def loss(model: Model = model) -> Tensor:
            text, codes = model.nats(pending.pop().result())
            pending.append(ahead.submit(packed))
            return (text.sum() + codes.sum() / codes.shape[1]) / (len(text) + len(codes))

        shapes = products(model, batch)
        work = 6.0 * sum(n * i * o for n, i, o in shapes)
        active, flops = round(work / 6 / batch.positions), (work + _attended(model, batch)) / batch.positions
        if config.compile:
            compile_parts(model)
        for precision in config.precisions:
            if model.config.sharing == get_args(Sharing)[0]:
                yield Case(part, CEILING, precision, "flop", _ceiling(shapes, precision, device), flops=1.0)
            run = _counted(_step(model, loss, precision, device), batch.positions)
            yield Case(part, f"ours, {sharing}", precision, "position", run, False, count(model), active, flops)


def _their_training(config: BenchConfig, width: int, folder: Path, device: str) -> Iterator[Case]:
    part, size = f"train {width}", _size(config, width)
    parameters = count(ours(size, "all"))
    for peer in PEERS:
        if config.only and peer.name not in config.only:
            continue
        module = _built(peer, size, parameters)
        if isinstance(module, str):
            yield Case(part, peer.name, "-", "position", None, True, note=module)
            continue
        loss = peer.loss(module.to(device), size, device)
        if config.compile:
            module.compile()
        # Every weight of a decoder meets every position, and it attends to half of a rectangle.
        active = count(module) if peer.dense else 0
        flops = 6.0 * active + 6 * size.layers * size.width * size.length if active else 0.0
        for precision in config.precisions:
            run = _counted(_step(module, loss, precision, device), peer.positions(size))
            yield Case(part, peer.name, precision, "position", run, True, count(module), active, flops)


def _size(config: BenchConfig, width: int) -> Size:
    # Heads of 64 where the model is large: of 32 they leave half of a GPU's matrix units idle.
    return Size(width, config.layers, width // (64 if width > 512 and width % 64 == 0 else 32), batch=config.batch)


def _built(peer: Peer, size: Size, parameters: int) -> nn.Module | str:
    """A peer's model of so many parameters, or why there is none."""
    try:
        return matched(lambda hidden: peer.build(size, hidden), parameters)
    except ImportError as error:
        return _absent(peer, error)


def _absent(peer: Peer, error: ImportError) -> str:
    own = (error.name or "").split(".")[0] == peer.package.replace("-", "_")
    return "not installed: pip install -c constraints.txt -e '.[bench]'" if own else f"does not import: {error}"


# --- generation ---


def _ours_generation(config: BenchConfig, rows: int, folder: Path, device: str) -> Iterator[Case]:
    part, given = f"generate {rows}", _prompts(config, rows)
    model = ours(_size(config, config.widths[0]), "all").eval().to(device)
    side = max(2, round(config.more**0.5))
    seer = Model(replace(model.config, rows=side, columns=side)).eval().to(device)
    sampling = Sampling(temperature=0.0, max_ids=config.more)
    for precision in config.precisions:
        one, two = (m if precision == "fp32" else _low(m) for m in (model, seer))

        def told(network: Model = one) -> float:
            return sum(map(len, generate(network, given, "text", end=-1, sampling=sampling, batch=rows)))  # no id ends a text

        def drawn(network: Model = two) -> float:
            return sum(f.size for f in generate(network, given, "frames", end=-1, sampling=sampling, batch=rows))

        yield Case(part, "ours, text", precision, "id", told, False, count(one))
        yield Case(part, "ours, frames", precision, "code", drawn, False, count(two))


def _their_generation(config: BenchConfig, rows: int, folder: Path, device: str) -> Iterator[Case]:
    part, size, given = f"generate {rows}", _size(config, config.widths[0]), _prompts(config, rows)
    ids = torch.from_numpy(np.stack([g[0].data for g in given])).to(device)
    model = ours(size, "all").eval().to(device)
    parameters = count(model)

    def case(name: str, precision: str, module: nn.Module, generating: Callable[..., Tensor], note: str = "") -> Case:
        def run() -> float:
            with torch.no_grad(), _silent():
                generating(module, ids, config.more)
            return len(ids) * config.more

        return Case(part, name, precision, "id", run, True, count(module), note=note)

    for peer in PEERS:
        if peer.generate is None:
            continue
        if peer.package != "transformers":
            module = _built(peer, size, parameters)
            if isinstance(module, str):
                yield Case(part, peer.name, "-", "id", None, True, note=module)
            else:
                yield case(peer.name, "fp32", module.eval().to(device), peer.generate)
            continue
        try:
            qwen = qwen_of(config_of(model, 0), weights_of(model)).to(device)
        except ImportError as error:
            yield Case(part, peer.name, "-", "id", None, True, note=_absent(peer, error))
            continue
        sampling = Sampling(temperature=0.0, max_ids=config.more)
        with torch.no_grad():
            theirs = peer.generate(qwen, ids, config.more).cpu().numpy()
        same = np.mean(theirs == np.stack(generate(model, given, "text", end=-1, sampling=sampling, batch=rows)))
        for precision in config.precisions:
            low = qwen if precision == "fp32" else _low(qwen)
            yield case(peer.name, precision, low, peer.generate, f"our weights; {same:.0%} of the ids are ours")


def _prompts(config: BenchConfig, rows: int) -> list[Sequence]:
    drawn = np.random.default_rng(0).integers(0, Size.vocab, (rows, config.prompt))
    return [(text(p),) for p in drawn]


def _low(model: Any) -> Any:
    """A copy in bf16."""
    import copy

    return copy.deepcopy(model).to(torch.bfloat16)


# --- forced choice ---


def _choices(n: int) -> list[tuple[str, list[str]]]:
    """Questions of the world, and four answers to each."""
    from quadrivium.data.questions import make_questions

    asked = [q for q in make_questions(WorldConfig(), "read", 1 + n // 50, ("en",)) if len(q.options) > 2][:n]
    told = [[forms[0] for forms in q.options[:3]] for q in asked]
    return [
        (q.beginning, [*first, then[0] + then[1]]) for q, first, then in zip(asked, told, [*told[1:], told[0]], strict=True)
    ]


def _asked(config: BenchConfig, device: str) -> tuple[Any, list[Any]]:
    """A run with an untrained model, and requests to lm-eval: four answers to every question. Raises ImportError."""
    from lm_eval.api.instance import Instance

    asked = _choices(config.items)
    tokenizer = TextTokenizer.train([b + a for b, answers in asked for a in answers], 512)
    size = replace(_size(config, config.widths[0]), vocab=tokenizer.size)
    run = SimpleNamespace(model=ours(size, "all").eval().to(device), text=tokenizer, folder=Path("bench"), config={}, step=0)
    pairs = [(beginning, answer) for beginning, answers in asked for answer in answers]
    return run, [Instance("loglikelihood", {}, pair, i // 4) for i, pair in enumerate(pairs)]


def _ours_scoring(config: BenchConfig, number: int, folder: Path, device: str) -> Iterator[Case]:
    try:
        run, requests = _asked(config, device)
    except ImportError:
        yield Case(
            "score",
            "ours, in memory",
            "-",
            "item",
            None,
            note="lm-eval is not installed: pip install -c constraints.txt -e '.[eval]'",
        )
        return
    scorer = language_model(run)
    score = lambda: len(scorer.loglikelihood(requests, disable_tqdm=True)) / 4  # noqa: E731
    yield Case("score", "ours, in memory", "fp32", "item", score, False, count(run.model))


def _their_scoring(config: BenchConfig, number: int, folder: Path, device: str) -> Iterator[Case]:
    try:
        from lm_eval.models.huggingface import HFLM

        run, requests = _asked(config, device)
    except ImportError:
        return
    export_text(run, folder / "text")
    mine = [value for value, _ in language_model(run).loglikelihood(requests, disable_tqdm=True)]
    for batch in (1, 16):
        scorer: Any = HFLM(str(folder / "text"), batch_size=batch, device=device, dtype="float32")
        theirs = [value for value, _ in scorer.loglikelihood(requests, disable_tqdm=True)]
        off = max(abs(a - b) for a, b in zip(mine, theirs, strict=True))
        name = "lm-eval on the export, " + ("one by one" if batch == 1 else f"{batch} at a time")

        def score(scorer: Any = scorer) -> float:
            return len(scorer.loglikelihood(requests, disable_tqdm=True)) / 4

        yield Case("score", name, "fp32", "item", score, True, count(run.model), note=f"largest difference {off:.1e} nats")


# --- data ---

_SMALL = WorldConfig(clips=60, told=20, stills=60, narrations=300, processes=1)


def _world(config: BenchConfig, number: int, folder: Path, device: str) -> Iterator[Case]:
    small = replace(_SMALL, told=0, stills=0, narrations=0)

    def write() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as out, _silent():
            write_world(small, Path(out) / "world", progress=False)
        return small.clips

    yield Case("world", "clips of 8 frames", "-", "clip", write)


def _prepare(config: BenchConfig, number: int, folder: Path, device: str) -> Iterator[Case]:
    source, first = folder / "world", folder / "first"
    recipe = PrepareConfig(vocab=1024, visual_train=TrainConfig(steps=30, optimizer="adamw"))
    with _silent():
        if not source.exists():
            write_world(_SMALL, source, progress=False)
        data = prepare([source], first, recipe, progress=False)
    known = replace(recipe, text_tokenizer=first / "tokenizers" / "text", visual_tokenizer=first / "tokenizers" / "visual")
    size = {
        "frame": float(sum(s.frames.sum() for s in data.sources)),
        "MB": sum(e["text_bytes"] for s in data.manifest["sources"] for e in s["shards"]) / 1e6,
    }
    for what, which in (("frame", ("clips", "told", "stills")), ("MB", ("text",))):

        def again(unit: str = what, names: tuple[str, ...] = which) -> float:
            with tempfile.TemporaryDirectory(dir=folder) as out, _silent():
                prepare([source / name for name in names], Path(out) / "data", known, progress=False)
            return size[unit]

        name = "frames, decoded and coded" if what == "frame" else "text"
        yield Case("prepare", name, "-", what, again, note="tokenizers at hand")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# --- the run ---

Build = Callable[[BenchConfig, int, Path, str], Iterator[Case]]
_OURS: dict[str, Build] = {
    "train": _ours_training,
    "generate": _ours_generation,
    "score": _ours_scoring,
    "prepare": _prepare,
    "world": _world,
}
_THEIRS: dict[str, Build] = {"train": _their_training, "generate": _their_generation, "score": _their_scoring}


def parts_of(config: BenchConfig) -> list[tuple[Part, int]]:
    """Parts in the order in which they run: a width or a batch is a part of its own."""
    numbers: dict[str, tuple[int, ...]] = {"train": config.widths, "generate": config.batches}
    return [(part, n) for part in config.parts for n in numbers.get(part, (0,))]


def _ready(cases: Iterator[Case]) -> list[Case]:
    """Build and warm up. Somebody else's model that fails is a line of the table, not an error."""
    made = []
    for case in cases:
        try:
            for _ in range(_WARM if case.run else 0):
                case.run()  # type: ignore[misc]
        except Exception as error:
            if not case.theirs:
                raise
            case.run, case.note = None, f"fails: {type(error).__name__}: {str(error)[:120]}"
        made.append(case)
    return made


def _serve(pipe: Connection, config: BenchConfig, part: Part, number: int, folder: Path, device: str) -> None:
    """The other process: builds other people's cases, and measures the one that it is asked for."""
    torch.set_num_threads(config.threads)
    if config.tuned:
        tune()
    cases = _ready(_THEIRS[part](config, number, folder, device))
    pipe.send([replace(case, run=case.run and _elsewhere) for case in cases])
    for index in iter(pipe.recv, None):
        pipe.send(measure(cases[index], device))


def _elsewhere() -> float:
    raise RuntimeError("this case runs in the other process")


@contextlib.contextmanager
def _others(*arguments: Any) -> Iterator[Callable[[], tuple[list[Case], Callable[[int], tuple[float, float]]]]]:
    """A function that waits for other people's cases of a part, built in a process of their own, and gives what measures one."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, *arguments), daemon=True)
    process.start()
    there.close()

    def take(index: int) -> tuple[float, float]:
        here.send(index)
        return here.recv()

    try:
        yield lambda: (here.recv(), take)
        here.send(None)
    except EOFError:
        raise RunError("the process that runs other people's models ended; --no-peers leaves them out") from None
    finally:
        here.close()
        process.join(10)
        process.kill()


def run_bench(config: BenchConfig, out: Path | None = None, device: str = "cpu", progress: bool = True) -> dict[str, Any]:
    """Measure, and write ``out`` where it is given. Returns what `table` shows."""
    tune()
    torch.set_num_threads(config.threads)
    plan = parts_of(config)
    done: list[Case] = []
    shape = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"
    bar = tqdm(total=float(len(plan)), desc="bench", bar_format=shape, disable=not progress, file=sys.stderr)
    for part, number in plan:
        bar.set_postfix_str(f" {part} {number or ''}")
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
            others = None
            if config.peers and part in _THEIRS:  # they are built while ours are
                others = stack.enter_context(_others(config, part, number, Path(temporary), device))
            mine = _ready(_OURS[part](config, number, Path(temporary), device))
            theirs, take = others() if others else ([], None)
            shown = 0.0
            for n in range(config.rounds):
                share = (time.monotonic() - began) / (60 * config.minutes / len(plan))
                if n >= 3 and share >= 1:
                    break
                for index, case in [*enumerate(mine), *enumerate(theirs)]:
                    if case.run:
                        cpu, wall = take(index) if case.theirs and take else measure(case, device)
                        case.cpu.append(cpu)
                        case.wall.append(wall)
                now = min(1.0, max((n + 1) / config.rounds, share))
                bar.update(now - shown)
                shown = now
            bar.update(1.0 - shown)
        for case in mine:
            case.run = None  # lets go of its model
        done += mine + theirs
        gc.collect()
    bar.close()
    found: dict[str, Any] = {
        "version": quadrivium.__version__,
        "machine": machine(device),
        "config": to_dict(config),
        "rows": [_row(case, done, device) for case in done],
    }
    peak = found["machine"].get("peak")
    for row, case in zip(found["rows"], done, strict=True) if peak else ():
        if case.cpu and case.flops and case.precision == "bf16":
            row["of_peak"] = row["wall"]["median"] * case.flops / peak
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, found)
    return found


def peak_of(gpu: str) -> float:
    """Dense bf16 operations a second of a GPU by its datasheet; 0 where it is not known."""
    slower = any(kind in gpu for kind in ("PCIe", "NVL"))  # cards of the same name with lower clocks
    return 0.0 if slower else next((peak for model, peak in PEAKS.items() if model in gpu), 0.0)


def machine(device: str) -> dict[str, Any]:
    """What it was measured on."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
        # A name may be that of a whole family, whose members differ twofold.
        kind = f", family {told['cpu family']}, model {told['model']}" if {"cpu family", "model"} <= told.keys() else ""
        name = told.get("model name", name) + kind
    gpu = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {
        "processor": name,
        "device": gpu,
        "peak": peak_of(gpu),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "bf16": bool(torch.cpu._is_avx512_bf16_supported()),
    }


def _speed(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": statistics.median(values), "low": low, "high": high}


def _row(case: Case, everything: list[Case], device: str) -> dict[str, Any]:
    """A case as JSON, with its speed over that of the fastest peer of its part, in its own precision and in fp32: by processor
    time, or on a GPU, which does the work while the processor waits, by seconds."""
    row: dict[str, Any] = {"part": case.part, "name": case.name, "precision": case.precision, "unit": case.unit}
    row |= {"parameters": case.parameters, "active": case.active, "rounds": len(case.cpu), "note": case.note}
    if not case.cpu:
        return row
    row |= {"cpu": _speed(case.cpu), "wall": _speed(case.wall)}
    clock = "wall" if device == "cuda" else "cpu"
    mine = getattr(case, clock)
    rivals = [c for c in everything if c.part == case.part and c.cpu and c.theirs]
    if case.name == CEILING:
        return row
    for key, precision in (("over_fastest_peer", case.precision), ("over_fastest_peer_fp32", "fp32")):
        speeds = [getattr(c, clock) for c in rivals if c.precision == precision]
        if speeds:
            row[key] = statistics.median(mine) / max(map(statistics.median, speeds))
    for top in everything:
        if top.name == CEILING and top.part == case.part and top.precision == case.precision and case.flops:
            row["of_ceiling"] = statistics.median(mine) * case.flops / statistics.median(getattr(top, clock))
    return row


def table(found: dict[str, Any]) -> str:
    """The run as text: a part a block, a case a line, speeds a second of processor time with quartiles, and a second."""
    head = (
        f"{'':<34}{'':<6}{'weights':>9}{'active':>8}{'a CPU second':>14}{'quartiles':>21}{'a second':>12}"
        f"{'/ peer':>8}{'/ fp32':>8}{'ceiling':>9}" + ("     peak" if found["machine"].get("peak") else "")
    )
    lines = [", ".join(f"{k} {_short(v) if k == 'peak' else v}" for k, v in found["machine"].items() if v or k != "peak")]
    last = ""
    for row in found["rows"]:
        if row["part"] != last:
            last = row["part"]
            unit = next((r["unit"] for r in found["rows"] if r["part"] == last and r["unit"] not in ("", "flop")), "")
            lines += ["", f"{last} ({unit}s)", head, "-" * len(head)]
        start = f"{row['name']:<34.34}{row['precision']:<6}"
        if "cpu" not in row:
            lines.append(f"{start}{row['note']}")
            continue
        size = [f"{row[k] / 1e6:.2f}M" if row[k] else "" for k in ("parameters", "active")]
        speed = row["cpu"]
        middle = (
            f"{size[0]:>9}{size[1]:>8}{_short(speed['median']):>14}{_short(speed['low']) + ' .. ' + _short(speed['high']):>21}"
        )
        ratios = [f"{row[k]:.2f}" if k in row else "" for k in ("over_fastest_peer", "over_fastest_peer_fp32")]
        part = f"{row['of_ceiling']:.0%}" if "of_ceiling" in row else ""
        line = f"{start}{middle}{_short(row['wall']['median']):>12}{ratios[0]:>8}{ratios[1]:>8}{part:>9}"
        line += f"{row['of_peak']:>9.0%}" if "of_peak" in row else ""
        lines.append(f"{line}  {row['note']}".rstrip())
    lines += ["", "/ peer: over the fastest of other people's models in the same precision; / fp32: over their fastest in fp32; "
              "ceiling: of the rate of the matrix products alone"
              + ("; peak: of what the datasheet states" if found["machine"].get("peak") else "")]  # fmt: skip
    return "\n".join(lines)


def _short(value: float) -> str:
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / {'G': 1e9, 'M': 1e6, 'k': 1e3}[letter]:.2f}{letter}"
    return f"{value:.4g}"
