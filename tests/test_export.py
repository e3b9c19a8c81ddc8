"""The text stream is Qwen3: equal logits with equal weights, copied either way."""

import numpy as np
import pytest
import torch

from quadrivium.errors import RunError
from quadrivium.export import from_qwen3, qwen3_config, to_qwen3
from quadrivium.model import Batch, Model, ModelConfig
from quadrivium.sequence import pack, text

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install 'quadrivium[hf]'")


def ours(sharing, tied):
    shape = dict(vocab=60, codes=30, rows=3, columns=2, layers=3, width=32, heads=4, kv_heads=2, head_size=16, hidden=48)
    return Model(ModelConfig(**shape, sharing=sharing, tied=tied, rope_base=1e6), seed=3)


def theirs(model, seed):
    torch.manual_seed(seed)
    twin = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**qwen3_config(model, 0))).eval()
    for p in twin.parameters():  # norms of ones would hide a swapped one
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 else 0.0, 0.2)
    return twin


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sharing", ["all", "attention", "none"])
def test_logits_equal_those_of_qwen3_both_ways(sharing, tied):
    model = ours(sharing, tied).eval()
    twin = theirs(model, 0)
    ids = np.random.default_rng(0).integers(0, 60, (3, 21))
    batch = Batch.of(pack([(text(row, True),) for row in ids]))

    def compare():
        with torch.no_grad():
            want = twin(torch.from_numpy(ids[:, :-1])).logits
            got = model.text_logits(model(batch))[batch.order].view(3, 20, -1)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        return got

    from_qwen3(model, twin.state_dict())
    before = compare()
    model = ours(sharing, tied).eval()
    missing, unexpected = twin.load_state_dict(to_qwen3(model), strict=False)
    assert not missing and not unexpected
    assert not torch.equal(compare(), before)


def test_weights_of_another_shape_are_refused():
    model = ours("all", True)
    weights = to_qwen3(model)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(2, 2)
    with pytest.raises(RunError, match="up_proj"):
        from_qwen3(model, weights)


def test_cross_is_no_qwen3_and_says_so():
    model = ours("cross", True)
    for refused in (lambda: to_qwen3(model), lambda: from_qwen3(model, {})):
        with pytest.raises(RunError, match=r"sharing cross.*--sharing all"):
            refused()
