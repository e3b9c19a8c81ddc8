"""Mixture files: what they name is what is read and how much; whatever is wrong with one is said with file, key and cure."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quadrivium.cli import main
from quadrivium.data.mixture import Mixture, MixtureConfig, streams_of
from quadrivium.data.mixture_file import MixtureFile
from quadrivium.data.shards import Dataset
from quadrivium.errors import ConfigError, DataError, QuadriviumError
from quadrivium.prepare import find, prepare
from quadrivium.sequence import ROUTES

from .conftest import TINY

FILE = """
routes = ["t2t", "v2t", "t2v", "v2v"]

[weights]
t2v = 3

[sources.words]
path = "mine/text"

[sources.seen]
path = "mine/clips"
weight = 0.5
routes = ["v2v", "t2v"]
read = { fps = 2.0, clip_frames = 2 }

[sources.told]
path = "mine/pictures"
weight = { v2t = 4.0 }
"""


@pytest.fixture
def file(folder, tmp_path):
    (tmp_path / "mine").symlink_to(folder)
    path = tmp_path / "mixture.toml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def mixed(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("mixed")
    (root / "mine").symlink_to(folder)
    (root / "mixture.toml").write_text(FILE)
    return prepare([root / "mixture.toml"], root / "data", TINY, progress=False)


def streams(data):
    return [s.name for s in streams_of(data, MixtureConfig(), held=False)]


def test_sources_have_their_names_and_ways_of_being_read(mixed, data):
    assert [s.name for s in mixed.sources] == ["words", "seen", "told"]
    plain = {s.name: s for s in Dataset(data).sources}
    assert len(mixed.sources[0]) == len(plain["mine/text"]) and len(mixed.sources[2]) == len(plain["mine/pictures"])
    seen, before = mixed.sources[1], plain["mine/clips"]
    assert set(before.frames) == {4} and set(seen.frames) == {2}
    assert int(before.frames.sum()) == 2 * int(seen.frames.sum())  # half the frames a second, of the same clips


def test_shares_are_those_of_the_file(mixed, tmp_path):
    config = MixtureFile(next(mixed.folder.parent.glob("*.toml"))).mixture(MixtureConfig(), streams(mixed))
    assert config.routes == ("t2t", "t2v", "v2t", "v2v") and dict(config.weights)["t2v"] == 3.0
    shares = Mixture(mixed, config, 0, 0).shares
    plain = Mixture(mixed, replace(config, source_weights=()), 0, 0).shares
    assert shares["t2t/words"] == plain["t2t/words"] > 0
    assert shares["v2t/seen"] == 0 and shares["v2t/told"] == plain["v2t/seen"] + plain["v2t/told"]
    assert shares["t2v/seen"] / shares["t2v/told"] == pytest.approx(0.5 * plain["t2v/seen"] / plain["t2v/told"])


def test_weights_that_leave_nothing_to_read_are_refused(mixed):
    """Of what the data can feed; routes that it cannot may have any weight."""
    text = [(name, 0.0) for name in ("words", "seen", "told")]
    with pytest.raises(ConfigError, match=r"weights are 0 for all that the data can feed \(t2t/words.*raise one"):
        Mixture(mixed, MixtureConfig(source_weights=tuple(text)), 0, 0)
    late = Mixture(mixed, MixtureConfig(source_weights=tuple(text[:1]), begin=(("seen", 9), ("told", 9))), 0, 0)
    assert late.begin["v2t/seen"] == 0  # nothing waits for what is not read


def test_the_commands_take_it(mixed, tmp_path, capsys):
    file = next(mixed.folder.parent.glob("*.toml"))
    assert main(["prepare", str(file), "--inspect", "--read.size", "16"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:5]]
    assert [row[0] for row in rows] == ["words", "seen", "told"]
    small = ["--steps", "2", "--positions", "300", "--patch", "2", "--width", "32", "--heads", "2", "--layers", "2"]
    command = ["train", str(mixed.folder), "--out", str(tmp_path / "run"), "--mixture-file", str(file)]
    assert main([*command, *small]) == 0
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["mixture"]
    assert ["v2t/seen", 0.0] in stored["source_weights"] and ["v2t/told", 4.0] in stored["source_weights"]
    assert main([*command, "--resume"]) == 0
    assert main([*command, *small, "--routes", "t2t", "--out", str(tmp_path / "other")]) == 2
    assert "--routes both say" in capsys.readouterr().err


def test_the_same_command_goes_on_and_a_changed_way_of_reading_is_seen(file, tmp_path, capsys):
    prepare([file], tmp_path / "data", TINY, progress=False)
    capsys.readouterr()
    prepare([file], tmp_path / "data", TINY, progress=False)
    assert "nothing to do" in capsys.readouterr().err
    file.write_text(FILE.replace("clip_frames = 2", "clip_frames = 4"))
    again = prepare([file], tmp_path / "data", TINY, progress=False)
    assert set(again.sources[1].frames) <= {2, 3, 4} and np.any(again.sources[1].frames > 2)


def test_a_byte_order_mark_is_no_part_of_it(tmp_path):
    (tmp_path / "mix.toml").write_text(FILE, encoding="utf-8-sig")
    assert list(MixtureFile(tmp_path / "mix.toml").sources) == ["words", "seen", "told"]


WRONG = {
    "routes = [": "is not TOML",
    "[weights]": "no source is named",
    "[sources]\na = 3": "sources.a is 3; a table belongs here",
    "[sources.a]": "sources.a.path is missing",
    'shapes = 1\n[sources.a]\npath = "x"': "unknown key shapes; known are routes, weights, sources",
    '[sources.a]\npath = "x"\nwieght = 2': "unknown key sources.a.wieght; known are path, format",
    '[sources.a]\npath = "x"\nweight = -1': "sources.a.weight is -1; a number that is not negative",
    '[sources.a]\npath = "x"\nweight = nan': "sources.a.weight is nan",
    '[sources.a]\npath = "x"\nweight = { t2x = 1 }': "unknown key sources.a.weight.t2x",
    '[sources.a]\npath = "x"\nroutes = ["t2x"]': "sources.a.routes is ['t2x']",
    '[sources.a]\npath = "x"\nformat = "zip"': "sources.a.format is 'zip'; it is one of folder, tars",
    '[sources.a]\npath = "x"\nread = { fsp = 2 }': "unknown key sources.a.read.fsp",
    '[sources.a]\npath = "x"\nread = 7': "sources.a.read is 7",
    '[sources."a/b"]\npath = "x"': "a name is made of letters",
    'routes = "t2t"\n[sources.a]\npath = "x"': "routes is 't2t'; a list",
    'weights = 3\n[sources.a]\npath = "x"': "weights is 3; a table",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_said_with_file_key_and_cure(text, tmp_path):
    path = tmp_path / "mix.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        MixtureFile(path)
    assert str(error.value).startswith(str(path)) and WRONG[text] in str(error.value)


def test_what_is_wrong_with_a_source_is_said_too(folder, mixed, tmp_path):
    path = tmp_path / "mix.toml"
    path.write_text('[sources.a]\npath = "gone"')
    with pytest.raises(DataError, match=r"mix\.toml: sources\.a: .*does not exist"):
        find([path], TINY)
    path.write_text(f'[sources.a]\npath = "{folder}"\nread = {{ size = 32 }}')
    with pytest.raises(ConfigError, match=r"sources\.a\.read\.size: all sources have frames of one size"):
        find([path], TINY)
    path.write_text(f'[sources.a]\npath = "{folder}"\nread = {{ fps = "fast" }}')
    with pytest.raises(ConfigError, match=r"sources\.a\.read: fps is 'fast'"):
        find([path], TINY)
    path.write_text(f'[sources.a]\npath = "{folder}"\nformat = "tars"')
    with pytest.raises(DataError, match=r"sources\.a: .* holds no tars to read"):
        find([path], TINY)
    path.write_text('[sources.a]\npath = "~nosuchuser/x"')
    with pytest.raises(ConfigError, match=r"sources\.a\.path begins with ~nosuchuser, a user that is not there"):
        find([path], TINY)
    path.write_text('[sources.b]\npath = "x"')
    with pytest.raises(ConfigError, match=r"sources\.b: the data has no such source \(it has seen, told, words\)"):
        MixtureFile(path).mixture(MixtureConfig(), streams(mixed))
    with pytest.raises(ConfigError, match="cannot be read"):
        MixtureFile(tmp_path / "none.toml")


names = st.sampled_from(["a", "b", "c"])
factors = st.floats(0, 8) | st.dictionaries(st.sampled_from(ROUTES), st.floats(0, 8), max_size=3)
routes = st.lists(st.sampled_from(ROUTES), min_size=1, unique=True)


def toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(names, st.tuples(factors, routes), min_size=1),
    routes,
    st.dictionaries(st.sampled_from(ROUTES), st.floats(0, 8)),
)
def test_factors_are_as_written_whatever_is_written(tmp_path_factory, sources, wanted, weights):
    assume(any({**dict(MixtureConfig().weights), **weights}[route] for route in wanted))  # nothing to train on is refused
    path = tmp_path_factory.mktemp("mix") / "mix.toml"
    lines = [f"routes = {toml(wanted)}", f"weights = {toml(weights)}"]
    for name, (factor, mine) in sources.items():
        lines += [f"[sources.{name}]", 'path = "x"', f"weight = {toml(factor)}", f"routes = {toml(mine)}"]
    path.write_text("\n".join(lines))
    known = [f"{r}/{n}" for r in ROUTES for n in ["other", *(f"{s}/{part}" for s in sources for part in ("text", "media"))]]
    config = MixtureFile(path).mixture(MixtureConfig(), known)
    assert set(config.routes) == set(wanted) and weights.items() <= dict(config.weights).items()
    got = dict(config.source_weights)
    assert not any("other" in key for key in got)
    for name, (factor, mine) in sources.items():
        for route in ROUTES:
            want = 0.0 if route not in mine else factor.get(route, 1.0) if isinstance(factor, dict) else factor
            assert all(got.get(f"{route}/{name}/{part}", 1.0) == want for part in ("text", "media"))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=80).map(lambda t: t.encode("utf-8", "replace")))
def test_a_file_of_anything_is_read_or_refused(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("mix") / "mix.toml"
    path.write_bytes(raw)
    try:
        MixtureFile(path)
    except QuadriviumError as error:
        assert str(error).isprintable()
