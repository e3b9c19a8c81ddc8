"""The transfer experiment end to end on a folder made on the spot: arms differ in what they read, cells are kept."""

import json
from dataclasses import replace

import pytest

from quadrivium.data.mixture import MixtureConfig
from quadrivium.data.shards import Dataset, write_json
from quadrivium.errors import ConfigError, DataError, RunError
from quadrivium.model import ModelConfig
from quadrivium.report import write_report
from quadrivium.train import TrainConfig
from quadrivium.transfer import TransferConfig, _power, measure_speed, possible, run_transfer, table

SMALL = TransferConfig(
    model=ModelConfig(layers=1, width=16, heads=1),
    mixture=MixtureConfig(positions=200, context=32),
    train=TrainConfig(steps=2),
    limit=8,
)
ARMS = ("text", "four", "captions", "shuffled", "noise")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("transfer")
    return out, run_transfer([data], out, SMALL, seeds=(0,), arms=ARMS, workers=1, progress=False)


def test_a_grid_ends_with_a_verdict_and_goes_on_from_its_cells(finished, data):
    out, found = finished
    assert found["verdict"]["words"] == "undecided" and "text-equal" in found["verdict"]["why"]
    assert set(found["arms"]) == set(ARMS) and "one seed, no interval" in table(found)
    written = {p: p.stat().st_mtime_ns for p in (out / "cells").iterdir()}
    run_transfer([data], out, SMALL, seeds=(0,), arms=ARMS, progress=False)
    assert {p: p.stat().st_mtime_ns for p in (out / "cells").iterdir()} == written
    assert {"t2v", "v2t", "v2v", "t2t"} <= set(found["samples"])
    assert found["verdict"]["sentence"] in write_report(out).read_text()
    assert (
        json.loads((out / "results.json").read_text())["primary"] == json.loads((out / "transfer.json").read_text())["primary"]
    )


def test_arms_read_what_they_say(finished):
    out, _ = finished
    read = {a: json.loads((out / "seed-0" / a / "config.json").read_text())["mixture"] for a in ARMS}
    assert {a: (m["scramble"], m["captions"], len(m["routes"])) for a, m in read.items()} == {
        "text": ("none", False, 1),
        "four": ("none", False, 5),
        "captions": ("none", True, 1),
        "shuffled": ("shuffled", False, 5),
        "noise": ("noise", False, 5),
    }
    assert {m["text"] for m in read.values()} == {0.25}


def test_cells_of_another_size_are_not_mixed_in(finished, data):
    with pytest.raises(RunError, match="another limit"):
        run_transfer([data], finished[0], replace(SMALL, limit=9), arms=("text",), progress=False)


def test_the_ladder_has_five_rungs_where_the_text_allows(data):
    for share, rungs in ((0.25, {0.25, 0.5, 1, 2, 4}), (1.0, {0.0625, 0.125, 0.25, 0.5, 1})):
        able = possible(Dataset(data), replace(SMALL, text=share))
        assert {a.text for n, a in able.items() if n == "text" or n.startswith("text-x")} == rungs


def test_data_without_frames_or_arms_that_do_not_exist_are_refused(data, tmp_path):
    with pytest.raises(ConfigError, match="arms are text"):
        run_transfer([data], tmp_path, SMALL, arms=("txt",), progress=False)
    blind = Dataset(data)
    blind.sources = [s for s in blind.sources if not s.frames.any()]
    with pytest.raises(DataError, match="pictures or clips"):
        possible(blind, SMALL)


def test_a_budget_is_measured_and_says_what_it_can_detect(finished, data, tmp_path):
    for config in (SMALL, replace(SMALL, mixture=replace(SMALL.mixture, ahead=2.0))):
        assert measure_speed(data, config, 1, seconds=0.2) > 0
    assert "no two seeds yet" in _power(finished[0], 5) and "5 seeds 1.68" in _power(finished[0], 5)
    for arm, bits in (("text", (1.8, 1.9)), ("four", (1.7, 1.79))):
        for seed, x in enumerate(bits):
            write_json(tmp_path / "cells" / f"{arm}-seed-{seed}.json", {"arm": arm, "seed": seed, "bits_per_byte": x})
    assert "in bits per byte" in _power(tmp_path, 5)
    with pytest.raises(ConfigError, match="allow more"):
        run_transfer([data], tmp_path / "new", SMALL, arms=("four",), budget=1e-7, progress=False)
