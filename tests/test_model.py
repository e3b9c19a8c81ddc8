"""Twins of the model: packed and alone, cached and uncached, ours and transformers'."""

import itertools

import numpy as np
import pytest
import torch

from quadrivium.generate import Engine, Sampling, generate
from quadrivium.model import Batch, Cache, ContrastConfig, Model, ModelConfig, Norm, Some, attention, cross_entropy
from quadrivium.sequence import ROUTES, frames, group, pack, route_of, text, ungroup

SHARINGS = ("all", "attention", "none", "cross")
SHAPE = dict(vocab=60, codes=30, rows=3, columns=2, patch=2, layers=2, width=32, heads=4, kv_heads=2, head_size=8, hidden=48)


def tiny(sharing="all", **changes):
    layers = {"layers": 4} if sharing == "cross" else {}  # so that an encoder and a decoder layer each follow another
    return Model(ModelConfig(**{**SHAPE, **layers, "sharing": sharing, **changes}), seed=1)


def sample(route, rng, length=None):
    ids = lambda: rng.integers(0, 60, length or rng.integers(2, 12))  # noqa: E731
    clip = lambda n: rng.integers(0, 30, (n, 3, 2, 4))  # noqa: E731
    cut = rng.integers(1, 3)
    return {
        "t2t": lambda: (text(ids(), True),),
        "t2v": lambda: (text(ids()), frames(clip(2), True)),
        "v2t": lambda: (frames(clip(cut)), text(ids(), True)),
        "v2v": lambda: (frames(clip(cut)), frames(clip(2), True)),
        "tv2v": lambda: (text(ids()), frames(clip(cut)), frames(clip(1), True)),
        "vt2t": lambda: (frames(clip(cut)), text(ids()), frames(clip(1)), text(ids(), True)),
        "vt2v": lambda: (frames(clip(1)), text(ids()), frames(clip(cut)), text(ids()), frames(clip(1), True)),
    }[route]()


MIXED = (*ROUTES, "vt2t", "vt2v")  # the last two: several given segments of both kinds


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_packed_costs_what_each_sequence_costs_alone(sharing, rng):
    model = tiny(sharing)
    sequences = [sample(r, rng) for r in MIXED for _ in range(4)]
    batch = Batch.of(pack(sequences))
    text_nats, code_nats = model.nats(batch)
    for i, sequence in enumerate(sequences):
        alone_text, alone_codes = model.nats(Batch.of(pack([sequence])))
        torch.testing.assert_close(text_nats[batch.text_row == i], alone_text, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(code_nats[batch.codes_row == i].flatten(), alone_codes.flatten(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("routes", [MIXED, ("v2t",), ("t2v",), ("t2t",), ("v2v", "vt2v")])
@pytest.mark.parametrize("sharing", SHARINGS)
def test_layers_that_compute_only_what_is_wanted_give_the_same(sharing, routes, recompute, rng):
    """Costs, states after a layer that is tapped, and gradients; what is not asked for is 0."""
    model = tiny(sharing, foretells=True)
    model.recompute = recompute
    told = (text(rng.integers(0, 60, 7), ahead=rng.integers(0, 30, (3, 2, 4))), frames(rng.integers(0, 30, (1, 3, 2, 4)), True))
    batch = Batch.of(pack([*(sample(r, rng) for r in routes for _ in range(3)), told]))
    wanted = batch.wanted.rows
    assert len(wanted) < 0.9 * batch.positions
    tap, found = model.config.layers - 1, []
    for at in (None, batch.wanted):
        hidden, middle = model(batch, tap=tap, at=at)
        costs = (*model.nats(batch, hidden), model.foretold(batch, middle))
        gradients = torch.autograd.grad(sum(c.sum() for c in costs), list(model.parameters()), materialize_grads=True)
        found.append([hidden[wanted], middle[wanted], *costs, *gradients])
    for whole, part in zip(*found, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5)
    others = torch.ones(batch.positions, dtype=torch.bool).index_fill(0, wanted, False)
    assert not hidden[others].any()
    assert not model(batch, at=Some.of(wanted[:0], 0)).any()


@pytest.mark.parametrize("sharing", SHARINGS)
def test_what_is_foretold_is_worked_out_by_text_alone(sharing, rng):
    """The same cost whatever else is in the batch and however the frame is shown; apart, no weight of the visual stream has a part."""
    model, frame = tiny(sharing, foretells=True), rng.integers(0, 30, (3, 2, 4))
    words, clip = rng.integers(0, 60, 7), rng.integers(0, 30, (2, 3, 2, 4))
    alone = Batch.of(pack([(text(words, ahead=frame),)]))
    among = Batch.of(pack([sample("v2t", rng), (text(words, ahead=frame), frames(clip, True)), sample("t2v", rng)]))
    layers = model.config.layers
    hidden, last = model(alone, tap=layers)
    torch.testing.assert_close(model.norm(last, 6), hidden)
    torch.testing.assert_close(model(alone), hidden)
    states = [model(batch, tap=layers - 1)[1] for batch in (alone, among)]
    costs = [model.foretold(batch, x) for batch, x in zip((alone, among), states, strict=True)]
    torch.testing.assert_close(*costs, rtol=1e-5, atol=1e-5)
    assert costs[0].shape == (1, 6, 4)
    told, foretell = states[0][-1], model.head_ahead  # after the last id that is read
    told = told / (told.square().mean() + torch.finfo(torch.float32).eps).sqrt()
    logits = foretell.head.out(foretell.head(told + foretell.place.weight, torch.from_numpy(frame.reshape(6, 4))[:, :-1]))
    twin = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(frame.reshape(-1)), reduction="none")
    torch.testing.assert_close(costs[0].flatten(), twin, rtol=1e-5, atol=1e-5)
    costs[1].sum().backward()
    if model.config.apart:
        moved = {n for n, p in model.named_parameters() if "parts." in n and p.grad is not None and p.grad.abs().sum() > 0}
        assert moved and all("parts.0" in name for name in moved)
        assert model.head_codes.out.weight.grad is None


@pytest.mark.parametrize("sharing", SHARINGS)
def test_nothing_looks_ahead_or_into_a_neighbour(sharing, rng):
    """Change one sequence's end: no cost before the change moves, and none of any other sequence."""
    model = tiny(sharing)
    a, b = (text(rng.integers(0, 60, 8)), frames(rng.integers(0, 30, (2, 3, 2, 4)), True)), sample("t2t", rng, 9)
    codes = a[1].data.copy()
    codes[-1, -1, -1, -1] = (codes[-1, -1, -1, -1] + 1) % 30
    changed = (a[0], frames(codes, True))
    old, new = (model.nats(Batch.of(pack([s, b]))) for s in (a, changed))
    assert torch.equal(old[0], new[0])
    old_codes, new_codes = old[1].flatten(), new[1].flatten()
    assert torch.equal(old_codes[:-1], new_codes[:-1]) and old_codes[-1] != new_codes[-1]


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("route", MIXED)
def test_cached_logits_are_uncached_logits(sharing, route, rng):
    """Sequences of different lengths, read in one pass and then one position at a time."""
    model = tiny(sharing)
    given = [tuple(s for s in sample(route, rng) if not s.wanted) for _ in range(5)]
    if route == "t2t":
        given = [(text(rng.integers(1, 60, n)),) for n in (2, 5, 9)]
    if route in ("v2t", "v2v"):
        given = [(frames(rng.integers(0, 30, (n, 3, 2, 4))),) for n in (1, 3, 2)]
    clips = rng.integers(0, 30, (len(given), 2, 3, 2, 4))
    words = rng.integers(0, 60, (len(given), 7))
    engine = Engine(model, given, 20)
    hidden = []
    if route[-1] == "t":
        whole = [
            (*(g if route != "t2t" else ()), text(np.concatenate([g[0].data[:-1] if route == "t2t" else [], w]), True))
            for g, w in zip(given, words, strict=True)
        ]
        for i in range(6):
            place = torch.tensor([w.text(1) for w in engine.walks])
            hidden.append(
                engine._add(torch.tensor(words[:, i]), place.new_empty(0, 1), place[:0], place[:, None].expand(-1, 3))
            )
        at = [q for q in range(6)]
    else:
        whole = [(*g, frames(c, True)) for g, c in zip(given, clips, strict=True)]
        plan = pack([(frames(np.zeros((2, 3, 2, 4), int), True),)])
        start = torch.tensor([(t, b, b) for b, t in (w.frames(2, 3, 2) for w in engine.walks)])
        for i in range(14):
            slot = int(plan["slots"][i])
            codes = torch.from_numpy(
                np.stack([np.full(4, -1) if slot == 0 else c.reshape(2, 6, 4)[i // 7, slot - 1] for c in clips])
            )
            hidden.append(
                engine._add(codes[:0, 0], codes, torch.full_like(codes[:, 0], slot), start + torch.tensor(plan["places"][i]))
            )
        at = list(range(14))
    for row, sequence in enumerate(whole):
        batch = Batch.of(pack([sequence]))
        want = model(batch)[batch.order][-len(at) :]
        got = torch.stack([hidden[i][row] for i in at])
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_sample_does_not_depend_on_its_neighbours(rng):
    model = tiny(tied=False)
    given = [(frames(rng.integers(0, 30, (n, 3, 2, 4))),) for n in (1, 2, 3)]
    together = generate(model, given, "text", end=0, sampling=Sampling(max_ids=12))
    alone = generate(model, given[:1], "text", end=0, sampling=Sampling(max_ids=12))
    assert np.array_equal(together[0], alone[0])
    clips = generate(model, given, "frames", end=0, count=2)
    assert clips[0].shape == (2, 3, 2, 4)


def test_three_axes_on_text_are_one_axis(rng):
    """On text the rotary angles are those of the usual single axis, place times base ** (-2i / head size)."""
    model = tiny()
    arrays = pack([sample("t2t", rng, 9)])
    cos, _ = model.rotary(torch.from_numpy(arrays["places"]))
    usual = torch.outer(torch.arange(8).float(), 10_000.0 ** (-torch.arange(0, 8, 2).float() / 8))
    torch.testing.assert_close(cos[:, 0], usual.cos())


def test_a_clip_is_placed_alike_wherever_it_is_cut(rng):
    clip = rng.integers(0, 30, (4, 3, 2, 4))
    whole = pack([(frames(clip, True),)])["places"]
    for cut in (1, 2, 3):
        assert np.array_equal(pack([(frames(clip[:cut]), frames(clip[cut:], True))])["places"], whole)
        assert np.array_equal(
            pack([(frames(clip[cut:], True, skip=cut),)])["places"], whole[-len(whole) * (len(clip) - cut) // len(clip) :]
        )


@pytest.mark.parametrize("sharing", SHARINGS)
def test_every_subset_of_routes_trains(sharing, rng):
    """15 subsets of the four routes: a step lowers the loss on its own batch, and no absent weight gets a gradient."""
    for n in range(1, 5):
        for subset in itertools.combinations(ROUTES[:4], n):
            model = tiny(sharing)
            batch = Batch.of(pack([sample(r, rng) for r in subset for _ in range(2)]))
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            losses = []
            for _ in range(4):
                loss = torch.cat([nats.flatten() for nats in model.nats(batch)]).mean()
                losses.append(loss.item())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            assert losses[-1] < losses[0], (subset, losses)
            if all(r[-1] == "t" for r in subset):
                assert model.head_codes.out.weight.grad is None
            if subset == ("t2t",):
                assert model.embed_codes.weight.grad is None


def test_arms_start_from_the_same_weights():
    """Weights that two sharing schemes have in common are equal, so arms differ by what they learn."""
    every = {sharing: tiny(sharing, layers=4).state_dict() for sharing in SHARINGS}
    for one, other in itertools.combinations(SHARINGS, 2):
        a, b = every[one], every[other]
        common = [k for k in a if k in b]
        assert len(common) > 10 and all(torch.equal(a[k], b[k]) for k in common)
    assert list(every["none"]) == list(every["cross"])


@pytest.mark.parametrize("sharing", SHARINGS)
def test_the_gradient_reaches_every_weight(sharing, rng):
    model = tiny(sharing, tied=False)
    text_nats, code_nats = model.nats(Batch.of(pack([sample(r, rng) for r in ROUTES for _ in range(2)])))
    (text_nats.sum() + code_nats.sum()).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("route", MIXED)
def test_what_is_wanted_never_leaks(sharing, route, rng):
    """Change a wanted id or code, any of them: no cost before it moves, and its own does."""
    model, sequence = tiny(sharing), sample(route, rng)
    old = torch.cat([nats.flatten() for nats in model.nats(Batch.of(pack([sequence])))])
    last = sequence[-1]
    size, first = (60, 1) if last.modality == "text" else (30, 0)
    for at in range(last.data.size - first):
        data = last.data.copy()
        data.flat[at + first] = (data.flat[at + first] + 1) % size
        changed = (*sequence[:-1], type(last)(last.modality, data, True))
        new = torch.cat([nats.flatten() for nats in model.nats(Batch.of(pack([changed])))])
        assert torch.equal(new[:at], old[:at]) and new[at] != old[at]


def test_cross_joins_the_modalities_in_the_decoders_alone(rng):
    """The encoders of a sequence see nothing of the other modality; the decoders see both, each way."""
    model = tiny("cross")
    plain = (text(rng.integers(0, 60, 6)), frames(rng.integers(0, 30, (2, 3, 2, 4))), text(rng.integers(0, 60, 6)))
    redrawn = (plain[0], frames(rng.integers(0, 30, (2, 3, 2, 4))), plain[2])
    retold = (text(rng.integers(0, 60, 6)), plain[1], plain[2])
    layers = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, out: layers.append(out.detach()))
    for sequence in (plain, redrawn, retold):
        model(Batch.of(pack([sequence])))
    whole, other_frames, other_text = layers[:4], layers[4:8], layers[8:]
    for layer, (a, b, c) in enumerate(zip(whole, other_frames, other_text, strict=True)):
        assert torch.equal(a[:5], b[:5])  # text before the frames
        assert torch.equal(a[5:10], b[5:10]) == (layer < 2)  # text after them
        assert torch.equal(a[10:], c[10:]) == (layer < 2)  # frames after text


@pytest.mark.parametrize("switches", [{}, {"qk_norm": False, "qkv_bias": True}])
def test_decoders_of_cross_read_where_the_encoders_end(switches, rng):
    """Keys and values of every decoder layer come from the last encoder layer, its queries from the layer before it."""
    model = tiny("cross", **switches)
    for name, weight in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(weight)
    c, seen = model.config, []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].detach()))
        block.project.register_forward_hook(lambda module, inputs, out: seen.append([t.detach() for t in out]))
    batch = Batch.of(pack([sample("tv2v", rng)]))
    model(batch)
    n_text = len(batch.text)
    for layer, block in enumerate(model.blocks):
        projected, x = seen[2 * layer : 2 * layer + 2]
        source = seen[2 * 2 + 1] if layer >= 2 else x
        (qk, v), (asked, _), (told, values) = projected, block.project(x, n_text), block.project(source, n_text)
        torch.testing.assert_close(qk, torch.cat([asked[:, : c.heads], told[:, c.heads :]], dim=1))
        torch.testing.assert_close(v, values)


def test_drawing_a_cell_code_by_code_is_reading_it_at_once(rng):
    """Generation asks for one code at a time; the loss for all of a cell at once."""
    head = tiny().head_codes
    hidden, want = torch.randn(5, 32), torch.from_numpy(rng.integers(0, 30, (5, 4)))
    whole = head.out(head(hidden, want[:, :3]))
    entered = head.enter(hidden)
    steps = torch.stack([head.next(entered, want[:, :j]) for j in range(4)], dim=1)
    torch.testing.assert_close(whole, steps, rtol=1e-5, atol=1e-5)
    changed = want.clone()
    changed[:, 1] = (changed[:, 1] + 1) % 30
    moved = (head.out(head(hidden, changed[:, :3])) != whole).any(-1).any(0)
    assert moved.tolist() == [False, False, True, True]


def test_codes_are_grouped_into_cells_and_back(rng):
    codes = rng.integers(0, 30, (3, 8, 6))
    cells = group(codes, 2)
    assert cells.shape == (3, 4, 3, 4) and np.array_equal(ungroup(cells, 2), codes)
    assert cells[1, 2, 1].tolist() == codes[1, 4:6, 2:4].ravel().tolist()


def test_routes_are_named_by_their_parts(rng):
    for route in ROUTES:
        assert route_of(sample(route, rng)) == route
    mixed = (frames(np.zeros((1, 3, 2, 4))), text([1, 2]), text([1, 2], True))
    assert route_of(mixed) == "tv2t"
    with pytest.raises(ValueError, match="no route"):
        route_of((text([1, 2]),))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"heads": 3}, "multiple"),
        ({"head_size": 7}, "even"),
        ({"sharing": "some"}, "one of"),
        ({"layers": 0}, "positive"),
        ({"sharing": "cross", "layers": 1}, "at least 2"),
        ({"contrast": ContrastConfig(1.0, 3)}, "2 layers"),
    ],
)
def test_impossible_shapes_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        tiny(**change)


def test_a_full_cache_is_an_error(rng):
    model = tiny()
    used = Cache(model.config, 1, 9, torch.device("cpu"), torch.float32)
    model(Batch.of(pack([(text([1, 2, 3]),)])), used)
    with pytest.raises(ValueError, match="in use"):
        model(Batch.of(pack([(text([4, 5]),)])), used)
    cache = Cache(model.config, 1, 3, torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="holds 3"):
        model(Batch.of(pack([sample("t2t", rng, 9)])), cache)


@pytest.mark.parametrize(("rows", "ids"), [(0, 7), (1, 7), (300, 5000), (2000, 300)])
def test_cross_entropy_in_blocks_is_cross_entropy(rows, ids):
    """The value and both gradients, under weights that differ by row."""
    draw = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(n, 16, generator=draw).requires_grad_() for n in (rows, ids))
    want = torch.randint(ids, (rows,), generator=draw)
    upstream = torch.randn(rows, generator=draw)
    ours = cross_entropy(hidden, weight, want)
    mine = torch.autograd.grad(ours, (hidden, weight), upstream)
    twin = torch.nn.functional.cross_entropy(hidden @ weight.T, want, reduction="none")
    theirs = torch.autograd.grad(twin, (hidden, weight), upstream)
    torch.testing.assert_close(ours, twin, rtol=1e-5, atol=1e-5)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_attention_in_bf16_has_two_ways_with_one_result():
    """Plain products where a gradient is wanted on CPU, the fused kernel elsewhere: equal within the precision of bf16."""
    q, k, v = torch.randn(3, 2, 4, 33, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    fused = attention(q, k, v, causal=True)
    products = attention(q.clone().requires_grad_(), k, v, causal=True)
    assert products.requires_grad
    torch.testing.assert_close(products.detach(), fused, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("shape", [(1, 8), (700, 4, 64), (3, 1 << 18)])
def test_rms_norm_in_blocks_is_rms_norm(shape):
    """The value and both gradients."""
    draw = torch.Generator().manual_seed(3)
    norm = Norm(shape[-1], 1e-6)
    torch.nn.init.normal_(norm.weight, generator=draw)
    x = torch.randn(shape, generator=draw).requires_grad_()
    upstream = torch.randn(shape, generator=draw)
    twin = torch.nn.functional.rms_norm(x, shape[-1:], norm.weight, 1e-6)
    torch.testing.assert_close(norm(x), twin, rtol=1e-5, atol=1e-5)
    theirs = torch.autograd.grad(twin, (x, norm.weight), upstream)
    for a, b in zip(torch.autograd.grad(norm(x), (x, norm.weight), upstream), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
