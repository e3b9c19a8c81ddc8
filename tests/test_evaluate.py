"""Findings in bits: what earlier frames save on the last one."""

import numpy as np
import pytest

from quadrivium import evaluate
from quadrivium.data.mixture import Mixture, MixtureConfig
from quadrivium.data.shards import Dataset, Record, is_held, write_json, write_shard
from quadrivium.model import Model, ModelConfig, cells
from quadrivium.sequence import frames


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Forty clips of four frames, of 2 x 2 codes; half of each clip's earlier frames are alike."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    records = []
    for i in range(40):
        codes = rng.integers(0, 9, (4, 2, 2)).astype(np.uint16)
        codes[1:3] = codes[0] if i % 2 else codes[1:3]
        records.append(Record(f"{i}", i, is_held(f"{i}", 0.3), (), codes))
    entry = write_shard(folder / "shards" / "a.safetensors", records, np.uint16, (2, 2))
    source = {"name": "a", "shards": [entry | {"problems": []}]}
    write_json(folder / "manifest.json", {"version": 1, "complete": True, "grid": [2, 2], "held": 0.3, "sources": [source]})
    return Dataset(folder)


def test_earlier_frames_are_given_as_they_are_named(clips):
    model = Model(cells(ModelConfig(vocab=5, layers=1, width=32, heads=2), 2, 2, 9), seed=1)
    mixture = Mixture(clips, MixtureConfig(routes=("v2v",)), 0, 0, model.config.patch)
    rows = evaluate.visual_context(model, mixture)["v2v/a"]
    assert list(rows) == ["0", "1", "2", "3", "shuffled", "other clip"]
    held = mixture.held["v2v/a"]
    whole = [evaluate.group(held.source.codes(int(i)), mixture.patch) for i in held.unit[:, 0]]
    for k in range(4):
        by_hand = [(*((frames(c[3 - k : 3]),) if k else ()), frames(c[3:], wanted=True)) for c in whole]
        assert rows[str(k)]["bits_per_frame"] == pytest.approx(evaluate.bits(model, by_hand).mean(), rel=1e-6)
        assert rows[str(k)]["saved"] == pytest.approx(rows["0"]["bits_per_frame"] - rows[str(k)]["bits_per_frame"], abs=1e-6)
    assert rows["0"]["saved"] == rows["0"]["saved_stderr"] == 0
    assert rows["other clip"]["bits_per_frame"] != pytest.approx(rows["3"]["bits_per_frame"], rel=1e-6)
    assert "other clip" in evaluate.context_table({"v2v/a": rows})
