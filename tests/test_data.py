"""Shards and mixture: what is written is read back, steps are functions of (seed, step), routes do not move each other."""

import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadrivium.data.mixture import Mixture, MixtureConfig, Stream, read_documents
from quadrivium.data.shards import VERSION, Dataset, Record, is_held, map_shard, read_json, write_json, write_shard
from quadrivium.errors import ConfigError, DataError, RunError
from quadrivium.sequence import ROUTES, positions_of, route_of

END = 0


def records(kind, n, rng, grid=(4, 4)):
    for i in range(n):
        frames = {"text": 0, "still": 1, "bare": 1, "clip": 3, "mute": 4}[kind]
        texts = {"text": 1, "still": 2, "bare": 0, "clip": 1, "mute": 0}[kind]
        length = rng.integers(1, 60) if kind == "text" else rng.integers(1, 12)
        yield Record(
            f"{kind}/{i}",
            i // 2,
            i % 5 == 0,
            tuple(rng.integers(1, 99, length).astype(np.uint16) for _ in range(texts)),
            rng.integers(0, 30, (frames, *grid)).astype(np.uint16),
        )


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    sources = []
    for kind, n in (("text", 40), ("still", 25), ("bare", 11), ("clip", 30), ("mute", 13)):
        every = list(records(kind, n, rng))
        half = n // 2
        shards = [
            write_shard(tmp_path / "shards" / f"{kind}-{k}.safetensors", part, np.uint16, (4, 4))
            for k, part in enumerate((every[:half], every[half:]))
        ]
        sources.append({"name": kind, "shards": shards})
    write_json(tmp_path / "manifest.json", {"version": 1, "complete": True, "grid": [4, 4], "sources": sources})
    return Dataset(tmp_path)


def mixture(data, seed=0, patch=2, **options):
    return Mixture(data, MixtureConfig(**{"positions": 800, "context": 32, **options}), END, seed, patch)


def same(a, b):
    return len(a) == len(b) and all(
        len(p) == len(q)
        and all(
            s.modality == t.modality and s.wanted == t.wanted and np.array_equal(s.data, t.data)
            for s, t in zip(p, q, strict=True)
        )
        for p, q in zip(a, b, strict=True)
    )


def test_shards_give_back_what_was_written(tmp_path):
    every = [r for k in ("text", "still", "clip") for r in records(k, 9, np.random.default_rng(1))]
    entry = write_shard(tmp_path / "a.safetensors", every, np.uint16, (4, 4))
    write_json(
        tmp_path / "manifest.json",
        {
            "version": 1,
            "complete": True,
            "grid": [4, 4],
            "sources": [{"name": "a", "shards": [{**entry, "file": "../a.safetensors"}]}],
        },
    )
    (tmp_path / "shards").mkdir()
    (tmp_path / "a.safetensors").rename(tmp_path / "shards" / "a.safetensors")
    source = Dataset(tmp_path).sources[0]  # a manifest that points outside its folder is read inside it
    for i, record in enumerate(every):
        assert source.key(i) == record.key and np.array_equal(source.codes(i), record.frames)
        assert all(np.array_equal(source.text(i, t), ids) for t, ids in enumerate(record.texts))
        assert source.held[i] == record.held and int(source.group[i]) == record.group


def test_each_kind_of_item_feeds_its_routes(data):
    fed = {}
    for stream in mixture(data).streams:
        fed.setdefault(stream.source.name, set()).add(stream.route)
    assert fed == {"text": {"t2t"}, "still": {"t2v", "v2t"}, "bare": {"v2v"}, "clip": set(ROUTES) - {"t2t"}, "mute": {"v2v"}}


def test_every_sequence_is_of_its_stream_and_costs_what_was_planned(data):
    mixed = mixture(data)
    for stream in [*mixed.streams, *mixed.held.values()]:
        for unit in range(len(stream.unit)):
            sequence = mixed.sequence(stream, unit, np.random.default_rng(unit))
            assert route_of(sequence) == stream.route
            assert positions_of(sequence) == stream.positions[unit]
        assert set(stream.source.held[stream.unit[:, 0]]) == {stream is mixed.held.get(stream.name)}


def test_what_is_not_shown_has_to_be_foreseen(data):
    """A share of t2v wants the last frame alone, at its place in time; all else is whole."""
    mixed = mixture(data, foresee=0.5)
    for route, counts in (("t2v", {3, 1}), ("v2t", {3})):
        stream, found = next(s for s in mixed.streams if s.name == f"{route}/clip"), set()
        for unit in range(len(stream.unit)):
            clip = next(s for s in mixed.sequence(stream, unit, np.random.default_rng(unit)) if s.modality == "frames")
            whole = next(s for s in mixture(data).sequence(stream, unit) if s.modality == "frames")
            found.add(len(clip.data))
            assert np.array_equal(clip.data, whole.data[clip.skip :])
            assert clip.skip == (2 if len(clip.data) == 1 else 0)
        assert found == counts
    held = mixed.held["t2v/clip"]
    assert all(len(mixed.sequence(held, u)[1].data) == 3 for u in range(len(held.unit)))


def test_captions_of_clips_foretell_the_last_frame_where_that_is_asked_for(data):
    mixed, plain = mixture(data, ahead=4.0), mixture(data)
    for stream in mixed.streams:
        for unit in range(len(stream.unit)):
            sequence = mixed.sequence(stream, unit, np.random.default_rng(unit))
            ahead = [s.ahead for s in sequence if s.ahead is not None]
            assert len(ahead) == (stream.name == "t2v/clip")
            if ahead:
                assert np.array_equal(ahead[0], sequence[-1].data[-1])
    every = mixture(data, ahead=4.0, ahead_pictures=True)
    for stream in (s for s in every.streams if s.route == "t2v"):
        told, wanted = every.sequence(stream, 0, np.random.default_rng(0))
        assert np.array_equal(told.ahead, wanted.data[-1])
    stream = next(s for s in plain.streams if s.name == "t2v/clip")
    assert plain.sequence(stream, 0, np.random.default_rng(0))[0].ahead is None
    held = mixed.held["t2v/clip"]
    assert all(mixed.sequence(held, u)[0].ahead is None for u in range(len(held.unit)))


def test_what_begins_later_moves_nothing_else(data):
    plain, later = mixture(data), mixture(data, begin=(("v2t/clip", 5), ("t2v/clip", 3)))
    for step in range(8):
        gone = {name for name, begin in (("v2t/clip", 5), ("t2v/clip", 3)) if step < begin}
        names = [(stream.name, unit, epoch) for stream, unit, epoch in plain.units(step) if stream.name not in gone]
        assert [(stream.name, unit, epoch) for stream, unit, epoch in later.units(step)] == names
    source = next(s.source.name for s in plain.streams if s.route == "t2t")
    alone = mixture(data, routes=("t2t",), begin=tuple((s.name, 4) for s in plain.streams))  # waits for nothing
    assert [u[1:] for u in alone.units(0)] == [u[1:] for u in mixture(data, routes=("t2t",)).units(0)] != []
    with pytest.raises(ConfigError, match=f"begin names sky; the data has .*{source}"):
        mixture(data, begin=(("sky", 1),))
    with pytest.raises(ConfigError, match="begin is -1 for clip"):
        mixture(data, begin=(("clip", -1),))


def test_a_step_too_small_for_a_unit_to_begin_in_it_reads_the_one_it_lies_in(data):
    small, first = mixture(data, positions=6), mixture(data, positions=60, begin=(("clip", 9), ("text", 9)))
    for mixed, steps in ((small, 200), (first, 9)):
        units = [mixed.units(step) for step in range(steps)]
        assert all(units) and all(s.name in mixed.begin for step in units for s, _, _ in step)
        # Only the unit that began before is read again: every other one as on the tape.
        for stream in mixed.streams:
            tape = [u for step in range(steps) if step >= mixed.begin[stream.name]
                    for u in stream.read(0, mixed._place(stream, step), mixed._place(stream, step + 1))]  # fmt: skip
            read = [(u, e) for step in units for s, u, e in step if s is stream]
            assert [u for i, u in enumerate(read) if u in tape and u not in read[:i]] == tape
    assert sum(len(step) == 1 for step in map(small.units, range(200))) > 100


def test_every_process_deals_the_same_shares(data):
    """Hashes of strings differ by process, and with them the order of a set, and with it the last bit of a sum of its weights."""
    code = """
import sys
from pathlib import Path
from quadrivium.data.mixture import Mixture, MixtureConfig
from quadrivium.data.shards import Dataset
weights = (("t2t", 1.0), ("t2v", 2.6), ("v2t", 0.9), ("v2v", 0.4), ("tv2v", 0.2))
print(sorted(Mixture(Dataset(Path(sys.argv[1])), MixtureConfig(weights=weights), 0, 0).shares.items()))
"""
    found = set()
    for seed in "0", "1":  # in which five such weights came to 5.1000000000000005 and 5.1
        process = [sys.executable, "-c", code, str(data.folder)]
        found.add(subprocess.run(process, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout)
    assert len(found) == 1


def test_documents_are_cut_into_windows_that_predict_every_id_once(data):
    mixed = mixture(data)
    stream = next(s for s in mixed.streams if s.route == "t2t")
    seen = {}
    for unit, (item, _) in enumerate(stream.unit):
        seen.setdefault(int(item), []).extend(mixed.sequence(stream, unit)[0].data[1:].tolist())
    for item, predicted in seen.items():
        assert predicted == [*stream.source.text(item, 0).tolist(), END]


def test_captions_are_read_as_texts_where_that_is_asked_for(data):
    """Every caption once an epoch beside the documents, alone."""
    count = {c: sum(len(s.unit) for s in mixture(data, captions=c).streams if s.route == "t2t") for c in (True, False)}
    told = sum(len(s.unit) for s in mixture(data).streams if s.route == "v2t")
    assert told > 0
    assert count[True] == count[False] + told
    mixed, all_routes = mixture(data, captions=True, routes=("t2t",)), mixture(data)
    assert mixed.shares["t2t/text"] == all_routes.shares["t2t/text"]  # documents are read at the same rate
    assert sum(mixed.shares[s.name] for s in mixed.streams) == pytest.approx(sum(all_routes.shares.values()))  # all the compute
    for stream in mixed.streams:
        for unit, positions in enumerate(stream.positions):
            sequence = mixed.sequence(stream, unit)
            assert [s.modality for s in sequence] == ["text"]
            assert positions_of(sequence) == positions


@pytest.mark.parametrize("how", ["shuffled", "noise"])
def test_scrambled_frames_change_nothing_but_frames(data, how):
    """Same texts, positions and order; held-out items stay as they are, and so do bare clips that no caption goes with."""
    plain, other = mixture(data), mixture(data, scramble=how)
    changed = dict.fromkeys(ROUTES, 0)
    for step in range(6):
        for a, b in zip(plain.step(step), other.step(step), strict=True):
            assert [(s.modality, s.data.shape, s.wanted) for s in a] == [(s.modality, s.data.shape, s.wanted) for s in b]
            assert same([tuple(s for s in a if s.modality == "text")], [tuple(s for s in b if s.modality == "text")])
            changed[route_of(a)] += not same([a], [b])
    assert changed["t2t"] == 0 and changed["t2v"] and changed["v2t"]
    assert bool(changed["v2v"]) == (how == "noise")
    for name, held in plain.held.items():
        assert same([plain.sequence(held, 0)], [other.sequence(other.held[name], 0)])


def test_shuffled_frames_are_those_of_another_item(data):
    mixed = mixture(data, scramble="shuffled")
    for source in (s for s in data.sources if s.name in ("still", "clip")):
        other, mine = mixed._others(source), np.flatnonzero(~source.held)
        assert (other[mine] != mine).all() and (source.frames[other[mine]] >= source.frames[mine]).all()
        assert not source.held[other[mine]].any()
        if len({source.text(i, 0).tobytes() for i in mine}) == len(mine):
            assert set(other[mine]) == set(mine)  # each stands for one


@pytest.mark.parametrize(
    "captions, frames, groups, kept",
    [
        (range(12), [3] * 12, range(12), 0.0),
        ([0] * 6 + [1] * 6, [1] * 12, range(12), 0.0),  # two classes
        ([0] * 9 + [1, 2, 3], [1] * 12, range(12), 0.0),  # one makes up most: its items get frames of the few others
        (
            range(12),
            [*range(1, 12), 11],
            range(12),
            0.0,
        ),  # hardly any length occurs twice: later frames of a longer one are left out
        (range(12), [2] * 12, [0] * 4 + [1] * 4 + [2] * 4, 0.0),  # shots of three scenes
        ([0] * 12, [1] * 12, range(12), 1.0),  # one caption for all: nothing can be shuffled, and that is said
    ],
)
def test_shuffled_frames_belong_to_another_caption_and_group(captions, frames, groups, kept):
    source = Captioned(captions, frames, groups)
    mixed = object.__new__(Mixture)
    mixed.seed, mixed._other, mixed.streams = 0, {}, [Stream("v2t", source, np.zeros((1, 2), int), np.ones(1, int))]
    mixed.config = MixtureConfig(scramble="shuffled")
    assert mixed.still_paired() == kept
    for item in range(12):
        shown = mixed._frames(mixed.streams[0], item)
        assert len(shown) == source.frames[item]
        assert kept or shown[0, 0, 0] != item


def test_captions_beside_documents_of_one_source_are_a_stream_of_their_own():
    """As in interleaved pages: documents keep their share, and captions take the compute of all that frames would have had."""
    frames = np.array([0] * 6 + [1] * 6 + [2] * 3)
    pages = SimpleNamespace(
        name="pages", rendered=False, held=np.zeros(15, bool), frames=frames, texts=(frames < 2).astype(int)
    )
    pages.text_ids, pages.text_first = np.full(12, 20), np.minimum(np.arange(15), 11)
    data = SimpleNamespace(manifest={"grid": [4, 4]}, sources=[pages], folder="here")
    four = Mixture(data, MixtureConfig(positions=900), END, 0)
    told = Mixture(data, MixtureConfig(positions=900, routes=("t2t",), captions=True), END, 0)
    assert {s.name for s in told.streams} == {"t2t/pages", "t2t/pages, captions"}
    assert told.shares["t2t/pages"] == four.shares["t2t/pages"]
    assert sum(told.shares[s.name] for s in told.streams) == pytest.approx(900)
    read = [{(stream.unit[u, 0], epoch) for stream, u, epoch in m.units(3) if stream.name == "t2t/pages"} for m in (four, told)]
    assert read[0] == read[1]


class Captioned:
    """A source of 12 captioned items, whose frames hold the item's number."""

    name, held = "them", np.zeros(12, bool)

    def __init__(self, captions, frames, groups):
        self.captions, self.frames, self.group, self.texts = (
            list(captions),
            np.array(frames),
            np.array(groups),
            np.ones(12, int),
        )

    def __len__(self):
        return 12

    def text(self, item, which):
        return np.array([self.captions[item]])

    def codes(self, item):
        return np.full((self.frames[item], 2, 2), item)


def test_noise_has_the_marginals_of_the_frames(data):
    """Every code of noise stands at the same place in some training frame of the source, and noise does not change by epoch."""
    mixed = mixture(data, scramble="noise")
    stream = next(s for s in mixed.streams if s.name == "v2t/clip")
    source = stream.source
    pool = np.concatenate([source.codes(i) for i in np.flatnonzero(~source.held)])
    item = int(stream.unit[0, 0])
    noise = mixed._frames(stream, item)
    assert (noise[:, None] == pool[None]).any(1).all() and not np.array_equal(noise, source.codes(item))
    assert np.array_equal(noise, mixture(data, scramble="noise")._frames(stream, item))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_share_of_the_text_lies_inside_a_larger_one_and_moves_no_other_stream(data, share):
    source = next(s for s in data.sources if s.name == "text")
    few, more, whole = (set(read_documents(source, x, 3)) for x in (share, 0.7, 1.0))
    assert few < more < whole and not source.held[list(whole)].any()
    ids = source.text_ids[source.text_first]
    assert ids[list(few)].sum() <= share * ids[list(whole)].sum() or len(few) == 1
    plain, less = mixture(data), mixture(data, text=share)
    assert less.shares == plain.shares
    for step in range(4):
        assert same(*([q for q in m.step(step) if route_of(q) != "t2t"] for m in (plain, less)))
    read = {int(s.unit[u, 0]) for s in less.streams if s.route == "t2t" for u in range(len(s.unit))}
    assert read == set(read_documents(source, share, 0))


def test_a_step_is_a_function_of_seed_and_step(data):
    a, b = mixture(data), mixture(data)
    late = [b.step(s) for s in (7, 3, 0)]
    assert all(same(a.step(s), got) for s, got in zip((7, 3, 0), late, strict=True))
    assert not same(a.step(3), mixture(data, seed=1).step(3))


@pytest.mark.parametrize("removed", ROUTES)
def test_a_route_that_is_removed_moves_no_other(data, removed):
    whole = mixture(data)
    rest = mixture(data, routes=tuple(r for r in ROUTES if r != removed))
    for step in range(5):
        assert same([s for s in whole.step(step) if route_of(s) != removed], rest.step(step))


def test_every_unit_is_read_once_an_epoch_and_weights_are_positions(data):
    mixed = mixture(data, positions=500)
    stream = next(s for s in mixed.streams if s.name == "v2t/still")
    share = mixed.shares[stream.name]
    steps = int(3 * stream.length / share)
    units = [u for step in range(steps) for u, _ in stream.read(0, int(step * share), int((step + 1) * share))]
    counts = np.bincount(units, minlength=len(stream.unit))
    assert counts.min() >= 2 and counts.max() <= 4
    assert sum(mixed.shares.values()) == pytest.approx(500)
    total = sum(sum(map(positions_of, mixed.step(s))) for s in range(200))
    assert total / 200 == pytest.approx(500, rel=0.1)


@pytest.mark.parametrize("epochs", [0.3, 1.0, 1.3, 2.2])
def test_what_steps_came_to_is_what_they_read(data, epochs):
    """They begin anywhere in an epoch, so that as many positions as it has are not all of its units."""
    for seed in range(6):
        mixed = mixture(data, seed, positions=300)
        for stream in mixed.streams:
            steps = round(epochs * stream.length / mixed.shares[stream.name])
            seen = {unit for step in range(steps) for s, unit, _ in mixed.units(step) if s is stream}
            assert mixed.came_to(stream, steps).tolist() == sorted(seen)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 10**6), st.integers(0, 10**9), st.integers(1, 50))
def test_a_tape_read_in_pieces_is_the_tape_read_at_once(seed, low, pieces):
    from quadrivium.data.mixture import Stream

    costs = np.random.default_rng(seed).integers(1, 40, 17)
    stream = Stream("t2t", type("S", (), {"name": "x"})(), np.zeros((17, 2), int), costs)
    cuts = np.sort(np.random.default_rng(low).integers(low, low + 900, pieces))
    marks = [low, *cuts.tolist(), low + 900]
    assert [u for a, b in itertools.pairwise(marks) for u in stream.read(seed, a, b)] == stream.read(seed, low, low + 900)


def test_held_out_items_are_no_prefix_of_a_sorted_folder(data):
    """A limit takes a sample drawn once and for all, the same for every seed; by chance it is the first 4 of 8 once in 70."""
    for name, held in mixture(data).held.items():
        every = mixture(data).held_units(held, 10**6)
        assert sorted(every) == list(range(len(held.unit)))
        few = mixture(data, seed=1).held_units(held, 4)
        assert list(few) == list(every[:4])
        if len(every) > 7:
            assert sorted(few) != list(range(4)), name


def test_a_text_without_context_is_read_after_the_end_mark(data):
    mixed = mixture(data)
    for stream in mixed.streams:
        for unit, (_, part) in enumerate(stream.unit):
            for segment in mixed.sequence(stream, unit):
                if segment.modality == "text" and (part == 0 or stream.route != "t2t"):
                    assert segment.data[0] == END


def test_split_is_by_group_and_near_its_share():
    held = [is_held(f"story {i}", 0.05) for i in range(4000)]
    assert 0.035 < np.mean(held) < 0.065  # four standard errors: a false alarm once in 16,000 hash functions


@pytest.mark.parametrize(
    "options, words",
    [
        ({"routes": ("t2x",)}, "routes are"),
        ({"routes": ()}, "no route"),
        ({"frames": 1}, "at least 2"),
        ({"positions": 0}, "at least 1"),
        ({"text": 0.0}, "above 0"),
        ({"weights": (("t2v", 2.0),)}, "weights names t2t, v2t, v2v, tv2v not once"),
        ({"routes": ("t2t",), "weights": (("t2t", 1.0), ("t2t", 5.0))}, "weights names t2t not once"),
        ({"weights": tuple((r, 0.0) for r in ROUTES)}, "0 for all routes"),
    ],
)
def test_impossible_mixtures_are_refused(data, options, words):
    with pytest.raises(ConfigError, match=words):
        mixture(data, **options)


def test_a_route_without_data_is_named(data):
    data.sources = [s for s in data.sources if s.name == "text"]
    with pytest.raises(DataError, match="can feed t2t"):
        mixture(data, routes=ROUTES[1:4])


def damage(path, how):
    raw = bytearray(path.read_bytes())
    if how == "cut":
        raw = raw[: len(raw) // 2]
    elif how == "header":
        raw[:8] = (2**40).to_bytes(8, "little")
    elif how == "shape":
        raw = raw.replace(b'"shape":[', b'"shape":[9', 1)
    elif how == "json":
        raw[9:12] = b"\xff\xfe{"
    elif how == "empty":
        raw = bytearray()
    path.write_bytes(raw)


@pytest.mark.parametrize("how", ["cut", "header", "shape", "json", "empty"])
def test_a_damaged_shard_is_one_clear_error(data, how):
    path = next((data.folder / "shards").glob("clip-0*"))
    damage(path, how)
    with pytest.raises(RunError, match="again"):
        map_shard(path)
    with pytest.raises(RunError):
        Dataset(data.folder)


def test_a_flipped_bit_is_found_by_its_checksum(data):
    data.verify()
    path = next((data.folder / "shards").glob("clip-0*"))
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(RunError, match="checksum"):
        data.verify()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"version": 9}',
        '{"version": 1}',
        '{"version": 1, "complete": true, "sources": 3}',
        "[" * 100_000,
        f'{{"version": {VERSION}, "complete": true, "grid": [1e999, 1], "sources": []}}',  # found by mutation
    ],
)
def test_a_damaged_manifest_is_one_clear_error(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises((RunError, DataError)) as error:
        Dataset(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [b"\xf5", b"x"])
def test_damaged_names_of_items_are_one_clear_error(data, damage):
    """Found by mutation: names that are no UTF-8, or fewer than there are items."""
    source = data.sources[0]
    assert source.key(len(source) - 1).isprintable()
    for shard in source._shards:
        shard["keys"] = np.frombuffer(damage, np.uint8)
    with pytest.raises(RunError, match="names of its items are damaged"):
        source.key(len(source) - 1)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(RunError, match="not found"):
        Dataset(tmp_path / "nowhere")
    assert json.loads((write_json(tmp_path / "a.json", {"x": 1}), (tmp_path / "a.json").read_text())[1]) == {"x": 1}
    assert read_json(tmp_path / "a.json", "a thing") == {"x": 1}
