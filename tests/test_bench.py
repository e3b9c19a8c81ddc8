"""Speed: what a step costs, counted and not timed; fast ways beside their plain twins; the bench's own arithmetic."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from quadrivium.bench import BenchConfig, Case, _attended, _row, _size, four_routes, ours, peak_of, products, run_bench, table
from quadrivium.errors import ConfigError
from quadrivium.generate import Engine, continuations
from quadrivium.model import Batch, _Attend, attention, rms_norm, rotate
from quadrivium.peers import Size, count, matched
from quadrivium.sequence import frames, pack, text
from quadrivium.train import tune

TINY = Size(width=64, layers=2, heads=2, vocab=60, codes=40, batch=4, words=6, side=2)


class _Calls(TorchDispatchMode):
    """Kernels that are called, views left out."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def step(model):
    batch = Batch.of(pack(four_routes(TINY, np.random.default_rng(0))))
    text_nats, code_nats = model.nats(batch)
    (text_nats.sum() + code_nats.sum()).backward()


# Floating-point operations in products, and kernels called, of one step: forward and backward, four routes, two layers.
COUNTED = {
    "all": (21445632, 526),
    "attention": (21445632, 606),
    "none": (21445632, 795),
    "cross": (21419520, 839),
}


@pytest.mark.parametrize("sharing", COUNTED)
def test_a_step_costs_what_it_did(sharing):
    """A change that makes a step dearer has to be meant: fewer is welcome, then lower the number."""
    model = ours(TINY, sharing)
    with FlopCounterMode(display=False) as flops:
        step(model)
    with _Calls() as calls:
        step(model)
    most_flops, most_calls = COUNTED[sharing]
    assert flops.get_total_flops() == most_flops
    assert calls.count <= most_calls


def test_products_of_a_step_are_what_the_counter_counts():
    """Six operations a weight and position, forward and backward, and attention over all positions; products stand still where nothing is wanted."""
    model = ours(TINY, "all")
    batch = Batch.of(pack(four_routes(TINY, np.random.default_rng(0))))
    weights = 6 * sum(n * i * o for n, i, o in products(model, batch))
    with FlopCounterMode(display=False) as flops:
        step(model)
    padded = sum(float(index.shape[0] * index.shape[1] ** 2) for index in batch.buckets)
    square = 2 * _attended(model, batch) * padded / float((batch.lengths.double() ** 2).sum())  # the whole square, padding too
    assert flops.get_total_flops() == pytest.approx(weights + square, rel=1e-6)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("lengths", [(5, 5), (9, 3, 2, 7), (1,)])
def test_attention_of_packed_sequences_is_attention(lengths, kv_heads):
    """The value and the gradient, sequence by sequence, whatever is padded."""
    draw = torch.Generator().manual_seed(4)
    qkv = torch.randn(sum(lengths), 4 + 2 * kv_heads, 8, generator=draw).requires_grad_()
    batch = Batch.of(pack([(text(np.arange(n + 1), True),) for n in lengths]))
    upstream = torch.randn(sum(lengths), 4, 8, generator=draw)
    got = _Attend.apply(*qkv.split([4 + kv_heads, kv_heads], dim=1), batch.ways)
    parts = []
    for rows in qkv.split(list(lengths)):
        q, k, v = rows.transpose(0, 1)[None].split([4, kv_heads, kv_heads], dim=1)
        parts.append(attention(q, k, v, causal=True)[0].transpose(0, 1))
    want = torch.cat(parts)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    mine, theirs = (torch.autograd.grad(y, qkv, upstream)[0] for y in (got, want))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_rotation_turns_pairs_and_its_gradient_turns_back():
    draw = torch.Generator().manual_seed(5)
    x, angle = torch.randn(7, 5, 8, generator=draw).requires_grad_(), torch.randn(7, 1, 4, generator=draw)
    got = rotate(x, angle.cos(), angle.sin())
    a, b = x.chunk(2, -1)
    want = torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)
    torch.testing.assert_close(got, want)
    upstream = torch.randn(got.shape, generator=draw)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, upstream)[0] for y in (got, want)))


def test_a_norm_of_heads_has_a_weight_for_each():
    draw = torch.Generator().manual_seed(6)
    x, weight = torch.randn(9, 3, 8, generator=draw).requires_grad_(), torch.randn(3, 8, generator=draw).requires_grad_()
    twin = F.rms_norm(x, (8,), eps=1e-6) * weight
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), twin)
    upstream = torch.randn(x.shape, generator=draw)
    mine, theirs = (torch.autograd.grad(y, (x, weight), upstream) for y in (rms_norm(x, weight, 1e-6), twin))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, weight, 1e-6), twin)


@pytest.mark.parametrize("sharing", COUNTED)
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_a_tree_of_texts_costs_what_each_text_costs_alone(sharing, data):
    """Texts that are equal, that begin alike, that go on from one another, and that
    have nothing to predict; after frames, text, both and nothing."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    model = ours(TINY, sharing).eval()
    options = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=3, max_size=3)
    texts = [[np.array(ids) for ids in data.draw(options)] for _ in range(4)]
    ways = [(), (frames(rng.integers(0, 40, (3, 2, 2, 1))),), (text(rng.integers(0, 60, 4)),)]
    before = [sum((ways[i] for i in data.draw(st.sampled_from([[0], [1], [2], [1, 2], [2, 1]]))), ()) for _ in texts]
    nats, likeliest = continuations(model, before, texts, budget=data.draw(st.sampled_from([20, 60, 4096])))
    for i, row in enumerate(texts):
        for j, ids in enumerate(row):
            if len(ids) == 1:
                assert nats[i, j] == 0 and likeliest[i, j]
                continue
            batch = Batch.of(pack([(*before[i], text(ids, True))]))
            assert nats[i, j] == pytest.approx(model.nats(batch)[0].sum().item(), rel=1e-4)
            logits = model.text_logits(model(batch)[batch.text_at])
            assert likeliest[i, j] == bool((logits.argmax(-1) == batch.text_want).all())


def test_generation_in_bf16_stays_near_that_in_fp32():
    model = ours(TINY, "none").eval()
    low = ours(TINY, "none").eval().bfloat16()
    ids = torch.tensor([3, 4])
    hidden = []
    for m in (model, low):
        with torch.inference_mode():
            engine = Engine(m, [(text([1, 2, 3]),), (text([5, 4]),)], 3)
            hidden.append(engine._add(ids, ids.new_empty(0, 1), ids[:0], torch.tensor([[2] * 3, [1] * 3])).float())
    torch.testing.assert_close(hidden[1], hidden[0], rtol=0.1, atol=0.1)


def test_settings_of_the_process_keep_the_precision_of_products():
    before = torch.get_float32_matmul_precision()
    try:
        tune()
        a, b = torch.randn(2, 128, 128, generator=torch.Generator().manual_seed(8))
        assert (a @ b - a.double() @ b.double()).abs().max() < 1e-4  # in bf16 it would be above 0.1
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_bench_measures_ours_without_anybody_else(tmp_path):
    config = BenchConfig(
        parts=("train", "generate", "world"), widths=(64,), layers=2, batch=4, batches=(2,), prompt=3, more=4,
        precisions=("fp32",), peers=False, rounds=3, minutes=0.01,
    )  # fmt: skip
    before = torch.get_float32_matmul_precision()
    try:
        found = run_bench(config, tmp_path / "bench.json", progress=False)
    finally:
        torch.set_float32_matmul_precision(before)
    assert json.loads((tmp_path / "bench.json").read_text())["rows"] == found["rows"]
    names = [row["name"] for row in found["rows"]]
    assert "matrix products alone" in names and "ours, text" in names and "clips of 8 frames" in names
    assert all(row["rounds"] == 3 and row["cpu"]["low"] <= row["cpu"]["median"] <= row["cpu"]["high"] for row in found["rows"])
    assert all(name[:20] in table(found) for name in names)


def test_ratios_are_over_the_fastest_of_the_others_and_an_absent_one_is_a_line():
    case = Case("train 64", "ours, all", "bf16", "position", None, cpu=[20.0, 30.0, 40.0], wall=[1.0] * 3)
    others = [
        replace(case, name="slow", precision="fp32", theirs=True, cpu=[5.0] * 3),
        replace(case, name="fast", precision="fp32", theirs=True, cpu=[10.0] * 3),
        replace(case, name="absent", precision="-", theirs=True, cpu=[], wall=[], note="not installed"),
    ]
    rows = [_row(c, [case, *others], "cpu") for c in (case, *others)]
    assert rows[0]["over_fastest_peer_fp32"] == 3.0 and "over_fastest_peer" not in rows[0]
    shown = table({"machine": {}, "rows": rows})
    assert "not installed" in shown and "3.00" in shown
    assert _row(case, [case, *others], "cuda")["over_fastest_peer_fp32"] == 1.0


def test_parameters_are_matched_where_numbers_are_read_while_they_are_made():
    """transfusion-pytorch reads ids off a tensor, which a device without numbers does not have."""

    def build(hidden: int) -> torch.nn.Module:
        assert torch.arange(3).tolist() == [0, 1, 2]
        return torch.nn.Linear(hidden, 10, bias=False)

    assert matched(build, 2000).in_features == 200


@pytest.mark.parametrize("sharing", ["attention", "none", "cross"])
def test_parameters_are_matched(sharing):
    size = Size(width=96, layers=2, heads=3)
    target = count(ours(size, "all"))
    assert count(ours(size, sharing, target)) == pytest.approx(target, rel=0.02)


def test_every_width_has_whole_heads_and_only_known_cards_a_peak():
    for width in range(64, 1300, 32):
        size = _size(BenchConfig(), width)
        assert size.width % size.heads == 0 and size.width // size.heads in (32, 64)
    assert peak_of("NVIDIA H200") == peak_of("NVIDIA H100 80GB HBM3") == 989.5e12
    assert peak_of("NVIDIA H100 PCIe") == peak_of("Some Card") == 0


def test_impossible_benches_are_refused():
    for wrong in ({"batch": 6}, {"widths": (50,)}, {"rounds": 0}, {"minutes": -1.0}):
        with pytest.raises(ConfigError):
            BenchConfig(**wrong)
