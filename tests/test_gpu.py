"""What a GPU computes is what a processor computes. Without a GPU the first half runs, on stand-ins for its kernels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from quadrivium import model as models
from quadrivium.bench import BenchConfig, run_bench
from quadrivium.cli import main
from quadrivium.generate import Engine, Sampling, continuations, generate
from quadrivium.model import Batch, Model, ModelConfig
from quadrivium.sequence import frames, pack, text
from quadrivium.train import compile_parts

SHARINGS = ["all", "attention", "none", "cross"]
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tiny(sharing, **more):
    # Heads of 16: what GPUs' kernels of attention take at least.
    shape = dict(vocab=60, codes=30, rows=3, columns=2, patch=2, layers=4, width=64, heads=4, kv_heads=2, head_size=16)
    model = Model(ModelConfig(sharing=sharing, **shape | more), seed=2)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4.0)  # so that positions differ
    return model


def mixed(rng, n=9):
    """Sequences of all routes and of very unequal lengths."""
    found = []
    for i in range(n):
        words, clip = text(rng.integers(1, 60, 2 + 5 * i), bool(i % 2)), rng.integers(0, 30, (1 + i % 3, 3, 2, 4))
        found.append([(words,), (words, frames(clip, True)), (frames(clip), text(rng.integers(1, 60, 6), True))][i % 3])
    return found


def costs(model, sequences, device="cpu"):
    model.zero_grad()
    told, drawn = model.nats(Batch.of(pack(sequences), device))
    (told.sum() + drawn.sum()).backward()
    return told.detach().cpu(), drawn.detach().cpu(), [None if p.grad is None else p.grad.cpu() for p in model.parameters()]


def agree(one, other, within):
    for a, b in zip(one[:2], other[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=within, atol=within)
    for a, b in zip(one[2], other[2], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a - b).norm() <= within * max(float(a.norm()), 1e-3)


def one_by_one(q, k, v, runs):
    """`along` as it is said: each sequence by itself."""
    heard = []
    for start, end in zip(runs.ends[:-1].tolist(), runs.ends[1:].tolist(), strict=True):
        assert end - start <= runs.longest
        here = (t[start:end].transpose(0, 1)[None] for t in (q, k, v))
        heard.append(F.scaled_dot_product_attention(*here, is_causal=True, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(heard)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_sequences_end_to_end_cost_what_they_cost_in_buckets(sharing, rng, monkeypatch):
    """Reading order, runs, and the ways there and back, forward and backward; a layer's states as they are tapped."""
    model, sequences = tiny(sharing), mixed(rng)
    want, tapped = costs(model, sequences), model(Batch.of(pack(sequences)), tap=2)[1]
    calls = []
    monkeypatch.setattr(models, "end_to_end", lambda x, head_size: True)
    monkeypatch.setattr(models, "along", lambda *given: calls.append(1) or one_by_one(*given))
    agree(costs(model, sequences), want, 1e-4)
    assert len(calls) == 4
    batch = Batch.of(pack(sequences))
    assert len(batch.wanted.rows) < 0.9 * batch.positions  # so the costs above were of part of the positions
    whole, part = (model(batch, at=at)[batch.wanted.rows] for at in (None, batch.wanted))
    torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(Batch.of(pack(sequences)), tap=2)[1], tapped, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_step_of_fixed_shape_is_a_step(sharing, temperature, rng):
    """What a GPU records: every column attended to, filled or not, with rows that begin late."""
    model, given = tiny(sharing).eval(), [(text(rng.integers(1, 60, n)),) for n in (3, 8, 2)]
    found, sampling = [], Sampling(temperature=temperature, max_ids=9)
    with torch.inference_mode():
        for fixed in (False, True):
            drawn = [torch.Generator().manual_seed(i) for i in range(3)]
            engine = Engine(model, given, 24)
            engine.fixed = fixed
            engine.take(np.array([1, 0, 0, 2, 2]))
            first = engine.frames(1, sampling, [*drawn, *(torch.Generator().manual_seed(i) for i in (3, 4))])
            engine.take(np.array([4, 0, 1]))  # as imagining chooses among first frames
            clips = np.concatenate([first[[4, 0, 1]], engine.frames(1, sampling, drawn)], axis=1)
            told = engine.text(torch.zeros(3, dtype=torch.long), 5, sampling, drawn)
            found.append((clips, told, engine.cache.used))
    (clips, told, used), (again, retold, reused) = found
    assert np.array_equal(clips, again) and used <= reused
    assert all(np.array_equal(a, b) for a, b in zip(told, retold, strict=True))


@gpu
@pytest.mark.parametrize("sharing", SHARINGS)
def test_a_gpu_computes_what_a_processor_does(sharing, rng):
    here, there, sequences = tiny(sharing), tiny(sharing).cuda(), mixed(rng)
    agree(costs(here, sequences), costs(there, sequences, "cuda"), 1e-4)
    given = [(text(rng.integers(1, 60, n)),) for n in (3, 8, 2)]
    for want in ("text", "frames"):
        drawn = [generate(m, given, want, end=0, sampling=Sampling(temperature=0.0, max_ids=12)) for m in (here, there)]
        assert all(np.array_equal(a, b) for a, b in zip(*drawn, strict=True))
    options = [[np.array([9, 3, 4, 5]), np.array([9, 7, 8])]] * 3
    np.testing.assert_allclose(*(continuations(m, given, options)[0] for m in (here, there)), rtol=1e-4, atol=1e-4)


@gpu
@pytest.mark.parametrize("sharing", SHARINGS)
def test_attention_along_sequences_is_that_in_buckets(sharing, rng, monkeypatch):
    """In bf16, where `along` is what runs: nearer to fp32 than twice what buckets are."""
    sequences, model = mixed(rng), tiny(sharing).cuda()
    exact = costs(model, sequences, "cuda")
    off, kernel = [], models.varlen()
    for flat in (kernel, None):
        monkeypatch.setattr(models, "varlen", lambda flat=flat: flat)
        with torch.autocast("cuda", torch.bfloat16):
            got = costs(model, sequences, "cuda")
        off.append(
            max((a - b).norm() / b.norm() for a, b in zip(got[2], exact[2], strict=True) if b is not None and b.norm() > 0)
        )
    assert off[0] < max(2 * off[1], 0.02), off


@gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sharing", SHARINGS)
def test_what_is_compiled_for_a_gpu_costs_the_same(sharing, precision, rng):
    """Costs and gradients of batches of three sizes."""
    torch._dynamo.reset()
    plain, compiled = tiny(sharing).cuda(), tiny(sharing).cuda()
    compile_parts(compiled)
    with torch.autocast("cuda", precision, enabled=precision != torch.float32):
        for n in (6, 9, 12):
            sequences = mixed(rng, n)
            agree(
                costs(compiled, sequences, "cuda"), costs(plain, sequences, "cuda"), 1e-3 if precision == torch.float32 else 0.1
            )


@gpu
def test_commands_on_a_gpu(data, tmp_path):
    run, small = (
        tmp_path / "run",
        ["--layers", "2", "--width", "64", "--heads", "4", "--patch", "2", "--positions", "300", "--context", "32"],
    )
    assert main(["train", str(data), "--out", str(run), "--steps", "20", "--device", "cuda", "--compile", *small]) == 0
    assert main(["eval", str(run), "--device", "cuda"]) == 0
    assert main(["generate", str(run), "--text", "a red ball", "--device", "cuda"]) == 0


@gpu
def test_a_bench_on_a_gpu_states_its_utilisation():
    shape = dict(parts=("train",), widths=(64,), layers=2, precisions=("bf16",), rounds=3, minutes=0.01, peers=False)
    rows = run_bench(BenchConfig(**shape, compile=True), device="cuda", progress=False)["rows"]
    assert all("wall" in row and (row["name"].startswith("matrix") or 0 < row.get("of_peak", 0.5) < 1) for row in rows)
