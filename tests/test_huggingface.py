"""To and from Hugging Face: equal logits with equal weights, both ways, for every family; what an export loads as."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from quadrivium import export
from quadrivium.checkpoint import Run
from quadrivium.cli import main
from quadrivium.data.mixture import MixtureConfig
from quadrivium.data.shards import read_json, write_json
from quadrivium.errors import ConfigError, RunError
from quadrivium.generate import Sampling, generate
from quadrivium.huggingface import Weights, check, code_of, config_of, fetch, fill, shape_of, weights_of
from quadrivium.model import Batch, Model, ModelConfig
from quadrivium.play import pieces
from quadrivium.prepare import prepare
from quadrivium.sequence import frames, group, pack, text
from quadrivium.text import TextTokenizer
from quadrivium.train import TrainConfig, train_routes
from quadrivium.transfer import TransferConfig, run_transfer

from .conftest import TINY

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install -c constraints.txt -e '.[hf]'"
)

FAMILIES = ("qwen3", "qwen2", "llama", "llama3")
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
SHAPE = dict(codes=30, rows=3, columns=2)


def theirs(family, vocab=60, tied=True, seed=0):
    """A tiny random model of a family, no weight of it one or zero, which would hide a swapped one."""
    shape = dict(vocab_size=vocab, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
    shape |= dict(num_key_value_heads=2, tie_word_embeddings=tied, rms_norm_eps=1e-5)
    rope = {"rope_type": "default", "rope_theta": 1e5}
    if family == "qwen3":
        config = transformers.Qwen3Config(**shape, head_dim=16, rope_parameters=rope)
        made = transformers.Qwen3ForCausalLM(config)
    elif family == "qwen2":
        made = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape, rope_parameters=rope))
    else:
        rope |= {"rope_type": "llama3", **LLAMA3} if family == "llama3" else {}
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, rope_parameters=rope))
    torch.manual_seed(seed)
    for name, p in made.named_parameters():
        torch.nn.init.normal_(p, 1.0 if p.ndim == 1 and not name.endswith("bias") else 0.0, 0.2)
    return made.eval()


def logits_of(model, ids):
    batch = Batch.of(pack([(text(np.append(row, 0), True),) for row in ids]))
    with torch.no_grad():
        return model.text_logits(model(batch))[batch.order].view(*ids.shape, -1)


def compare(model, twin, vocab=60, note=None):
    """Our logits, when they are the twin's; ``note`` takes the largest difference."""
    ids = np.random.default_rng(0).integers(0, vocab, (3, 90))
    with torch.no_grad():
        want = twin(torch.from_numpy(ids)).logits
    got = logits_of(model, ids)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    if note is not None:
        note(f"{(got - want).abs().max():.1e} of {want.abs().max():.2f}")
    return got


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sharing", ["all", "attention", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_equal_both_ways(family, sharing, tied, tmp_path):
    twin = theirs(family, tied=tied)
    twin.save_pretrained(tmp_path)
    shape = shape_of(tmp_path, ModelConfig(sharing=sharing, **SHAPE))
    model = Model(shape, seed=3).eval()
    fill(model, Weights(tmp_path))
    before = compare(model, twin)
    back = transformers.AutoConfig.for_model(**config_of(model, 0))
    twin = transformers.AutoModelForCausalLM.from_config(back).eval()
    model = Model(shape, seed=4).eval()
    missing, unexpected = twin.load_state_dict(weights_of(model), strict=False)
    assert not unexpected and missing == (["lm_head.weight"] if tied else [])
    twin.tie_weights()
    assert not torch.equal(compare(model, twin), before)


@pytest.mark.parametrize("copy", [True, False])
def test_the_visual_stream_begins_as_a_copy_or_fresh(copy):
    twin = theirs("qwen2")
    shape = ModelConfig(vocab=60, layers=3, width=32, heads=4, kv_heads=2, hidden=48, qk_norm=False, qkv_bias=True, **SHAPE)
    model = Model(ModelConfig(**{**shape.__dict__, "sharing": "none"}), seed=3)
    fresh = model.blocks[1].project.parts[1].qkv.weight.clone()
    fill(model, twin.state_dict(), copy)
    seen, read = (model.blocks[1].project.parts[i].qkv.weight for i in (1, 0))
    assert torch.equal(seen, read) == copy and torch.equal(seen, fresh) != copy


def test_weights_of_another_shape_are_refused():
    model = Model(ModelConfig(vocab=60, layers=2, width=32, heads=4, hidden=48))
    weights = weights_of(model)
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(2, 2)
    with pytest.raises(RunError, match="up_proj"):
        fill(model, weights)


def test_cross_begins_as_no_language_model_and_says_so(tmp_path):
    model = Model(ModelConfig(vocab=60, layers=2, width=32, heads=4, hidden=48, sharing="cross"))
    for refused in (lambda: fill(model, {}), lambda: shape_of(tmp_path, model.config)):
        with pytest.raises(RunError, match=r"sharing cross.*--sharing all"):
            refused()


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """Where transformers keeps code that came with models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr("sys.path", [*sys.path])
        yield


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")  # the name that transformers 5.0 knows
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_cross_leaves_with_the_code_that_it_needs(family, tied, modules, tmp_path):
    qk_norm, qkv_bias = family == "qwen3", family == "qwen2"
    scaled = tuple(LLAMA3.values()) if family == "llama3" else ()
    shape = dict(vocab=60, layers=5, width=32, heads=4, kv_heads=2, hidden=48, tied=tied, sharing="cross")
    model = Model(ModelConfig(**shape, **SHAPE, qk_norm=qk_norm, qkv_bias=qkv_bias, rope_scaling=scaled), seed=3).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():  # norms and biases are ones and zeros at first
            p.add_(0.2 * torch.randn_like(p))

    save_file(weights_of(model), tmp_path / "model.safetensors", metadata={"format": "pt"})
    write_json(tmp_path / "config.json", config_of(model, 0))
    for name, code in code_of(model.config).items():
        (tmp_path / name).write_text(code)
    with pytest.raises(ValueError, match="trust_remote_code"):  # nothing loads it as a model that it is not
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)
    twin = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert isinstance(twin, type(theirs(family)))
    compare(model, twin)
    load = dict(trust_remote_code=True, attn_implementation="eager")
    compare(model, transformers.AutoModelForCausalLM.from_pretrained(tmp_path, **load).eval())

    rows = [np.arange(1, 21), np.arange(30, 37)]
    ours = generate(model, [(text(row),) for row in rows], "text", 0, sampling=Sampling(0.0, max_ids=20))
    ids, mask = torch.zeros(2, 20, dtype=torch.long), torch.zeros(2, 20, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, 20 - len(row) :], mask[i, 20 - len(row) :] = torch.from_numpy(row), 1
    made = twin.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=20, pad_token_id=0)
    assert [row[row != 0].tolist() for row in made[:, 20:]] == [row.tolist() for row in ours]
    fixed = dict(do_sample=False, max_new_tokens=20, pad_token_id=0, cache_implementation="static")
    assert torch.equal(made, twin.generate(ids, attention_mask=mask, **fixed))

    slopes = []
    for again in (False, True):  # activations kept, and computed anew
        if again:
            twin.train().gradient_checkpointing_enable()
        twin.zero_grad()
        twin(ids, labels=ids, use_cache=False).loss.backward()
        slopes.append([p.grad.clone() for p in twin.parameters()])
    torch.testing.assert_close(*slopes)
    twin.eval().save_pretrained(tmp_path / "again")
    compare(model, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True).eval())


@pytest.mark.parametrize("lie", [{"layers": 10**9}, {"hidden": 10**9}, {"vocab": 10**11}, {"layers": 4}])
def test_a_config_that_lies_about_the_weights_takes_no_memory(lie, tmp_path):
    theirs("qwen3").save_pretrained(tmp_path)
    shape = shape_of(tmp_path, ModelConfig(**SHAPE))
    check(shape, Weights(tmp_path))
    with pytest.raises(RunError, match="belong"):
        check(replace(shape, **lie), Weights(tmp_path))


@pytest.mark.parametrize(
    "change, what",
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}, "rope scaling 'linear'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"use_sliding_window": True, "sliding_window": 128}, "sliding window"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"hidden_size": None}, "not the config"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(change, what, tmp_path):
    config = {**theirs("llama").config.to_dict(), **change}
    write_json(tmp_path / "config.json", config)
    with pytest.raises(RunError, match=what):
        shape_of(tmp_path, ModelConfig())


@pytest.mark.parametrize("junk", [None, "x", "", -1, 0, 1.5, True, [], ["x"], {}, {"rope_type": "llama3"}], ids=repr)
def test_a_config_of_nonsense_is_refused_in_a_sentence(junk, tmp_path):
    config, read = theirs("llama3").config.to_dict(), 0
    for key in config:
        write_json(tmp_path / "config.json", {**config, key: junk})
        try:
            shape_of(tmp_path, ModelConfig(**SHAPE))
            read += 1  # a key that says nothing of the shape
        except RunError as error:
            assert "config.json" in str(error)
    assert 0 < read < len(config)


def test_what_the_config_does_not_say_stays_open(tmp_path):
    theirs("qwen2").save_pretrained(tmp_path)
    shape = shape_of(tmp_path, ModelConfig(sharing="none"))
    assert shape.patch == 0 and shape.sharing == "none" and shape.width == 32


def test_what_is_neither_folder_nor_hub_id_is_refused_before_the_network():
    with pytest.raises(RunError, match="no hub id either"):
        fetch("no/such/folder")


def test_a_hub_id_is_fetched_without_code(monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: asked.update(how, name=name) or str(tmp_path))
    assert fetch("someone/small-model") == tmp_path
    assert asked["name"] == "someone/small-model" and not any(p.endswith((".py", ".bin")) for p in asked["allow_patterns"])


# --- tokenizers ---

WORDS = ["The red ball struck the blue ball and it rolled away.", "玉が3個ころがった。", "Äpfel, naïve — ½ €"]


def sentencepiece(path: Path) -> Path:
    """A tokenizer as the first Llama models have it: letters, ▁ for spaces, bytes where no letter is known."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=["<unk>", "<s>", "</s>", *raw], show_progress=False)
    tokenizer.train_from_iterator(WORDS[:1] * 20, trainer)
    layout = json.loads(tokenizer.to_str())
    layout["added_tokens"] = layout["added_tokens"][:3]
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.json").write_text(json.dumps(layout), encoding="utf-8")
    return path


def bytelevel(path: Path) -> Path:
    """A byte-level tokenizer as Qwen has it: accents are composed, some marks are special and some are not."""
    made = TextTokenizer.train(WORDS * 20, 320)._tokenizer
    made.normalizer = normalizers.NFC()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made.add_tokens(["<think>"])
    path.mkdir(parents=True, exist_ok=True)
    made.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize("make, extra", [(bytelevel, 0), (sentencepiece, 1)])
def test_published_tokenizers_write_every_text_and_count_its_bytes(make, extra, tmp_path):
    tokenizer = TextTokenizer.load(make(tmp_path))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for words in [*WORDS, "<think> of </s> and <|im_end|> as letters", "👩‍🚀 x"]:
        ids = tokenizer.encode(words)
        assert tokenizer.decode(ids) == words
        assert tokenizer.id_bytes[ids].sum() == len(words.encode()) + extra  # the space that SentencePiece puts in front
        if "<" not in words:
            assert theirs.encode(words, add_special_tokens=False) == ids.tolist()
    assert tokenizer.id_bytes[tokenizer.end] == 0
    whole = tokenizer.encode("The red ball struck the cube.")
    for k in range(1, len(whole)):
        before = tokenizer.decode(whole[:k])
        if tokenizer.encode(before).tolist() == whole[:k].tolist():
            assert before + tokenizer.continued(before, whole[k:]) == "The red ball struck the cube."
            shown = pieces(tokenizer, whole[k:], np.ones(len(whole) - k), before)
            assert before + "".join(letters for letters, _ in shown) == "The red ball struck the cube."


def test_a_tokenizer_that_cannot_write_every_text_is_refused(tmp_path):
    Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match="cannot write every text"):
        TextTokenizer.load(tmp_path)


# --- a whole life: their model -> our run -> their model ---


def life(family, folder, tmp_path):
    make = sentencepiece if family == "llama" else bytelevel
    vocab = TextTokenizer.load(make(tmp_path / "theirs")).size + 13  # published models have rows that no id uses
    twin = theirs(family, vocab)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(0.3 if p.ndim > 1 else 1.0)
    twin.save_pretrained(tmp_path / "theirs")
    data, run = tmp_path / "data", tmp_path / "run"
    prepare([folder], data, replace(TINY, text_tokenizer=tmp_path / "theirs"), progress=False)
    shape = ModelConfig(sharing="attention", patch=2)
    mixture = MixtureConfig(positions=600, context=64)
    went = dict(init=str(tmp_path / "theirs"), progress=False)
    train_routes(data, run, shape, mixture, TrainConfig(steps=20, lr=1e-3, precision="fp32"), **went)
    return twin, data, Run(run)


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_init_train_export_load(family, folder, tmp_path, monkeypatch, capsys, record_property):
    twin, _, run = life(family, folder, tmp_path)
    first = Model(run.model.config, 0).eval()
    fill(first, Weights(tmp_path / "theirs"))
    vocab = run.model.config.vocab
    before = compare(first, twin, vocab, lambda value: record_property("begun", value))
    routes = {k for line in (run.folder / "metrics.jsonl").read_text().splitlines() for k in json.loads(line)}
    assert {"t2t", "t2v", "v2t", "v2v"} <= routes

    assert main(["eval", str(run.folder), "--limit", "4"]) == 0
    assert main(["export", str(run.folder), "--out", str(tmp_path / "out")]) == 0
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(loaded) is type(twin)
    after = compare(run.model, loaded, vocab, lambda value: record_property("exported", value))
    assert not torch.allclose(after, before, atol=1e-2)  # it has learned something
    card = (tmp_path / "out" / "README.md").read_text()
    assert type(twin).__name__ in card and "v2t" in card and "order-0" in card

    words = "The red ball"
    ids = run.text.encode(words)
    assert tokenizer.encode(words) == [run.text.end, *ids.tolist()]
    ours = generate(run.model, [(text([run.text.end, *ids]),)], "text", run.text.end, sampling=Sampling(0.0, max_ids=24))[0]
    prompt = torch.tensor([[run.text.end, *ids.tolist()]])
    made = loaded.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=24)[0]
    new = [t for t in made[prompt.shape[1] :].tolist() if t != run.text.end]
    assert new == ours.tolist() and tokenizer.decode(new) == run.text.decode(ours)
    with pytest.raises(RunError, match="not empty"):
        export.export_text(run, tmp_path / "out")
    with monkeypatch.context() as patch:  # an export that fails leaves nothing that the next one would stumble over
        patch.setattr(export, "_card", lambda *_: (_ for _ in ()).throw(RunError("the disk is full")))
        with pytest.raises(RunError, match="full"):
            export.export_text(run, tmp_path / "late")
    assert not list(tmp_path.glob("*late*"))
    export.export_text(run, tmp_path / "late")
    assert (tmp_path / "late" / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def four(folder, tmp_path_factory):
    """A run that began as a Qwen3, and where it began."""
    tmp_path = tmp_path_factory.mktemp("four")
    return *life("qwen3", folder, tmp_path)[1:], tmp_path


def test_arms_begin_as_their_model(four, folder, tmp_path):
    """Raw folders are prepared with its tokenizer, and a cell of which no step learns has its logits."""
    theirs = four[2] / "theirs"
    config = TransferConfig(
        prepare=TINY, model=ModelConfig(sharing="attention", patch=2), mixture=MixtureConfig(positions=200, context=32), limit=4,
        train=TrainConfig(steps=1, lr=1e-20, precision="fp32"), init=str(theirs),
    )  # fmt: skip
    run_transfer([folder], tmp_path / "out", config, seeds=(0,), arms=("text",), progress=False)
    twin = transformers.AutoModelForCausalLM.from_pretrained(theirs).eval()
    compare(Run(tmp_path / "out" / "seed-0" / "text").model, twin, twin.config.vocab_size)


def test_data_of_another_tokenizer_is_refused(data, four, tmp_path):
    with pytest.raises(RunError, match="--text-tokenizer"):
        train_routes(data, tmp_path, ModelConfig(), MixtureConfig(), TrainConfig(steps=1), init=four[2] / "theirs")


WHOLE = """
import sys, json, numpy as np, torch
assert not any(n == "quadrivium" for n in sys.modules)
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer
folder, picture = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
words = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
assert words("The red ball")["input_ids"] == processor(text="The red ball")["input_ids"][0].tolist()
said = processor(text=["a red ball", "The"], images=[picture, picture])
with torch.no_grad():
    logits = model(**said).logits
    order = said["attention_mask"].argsort(dim=1, descending=True, stable=True)  # padding on the right
    right = {k: said[k].gather(1, order) for k in ("input_ids", "attention_mask")}
    assert torch.equal(model(**right, frames=said["frames"]).logits[right["attention_mask"].bool()], logits[said["attention_mask"].bool()])
assert words.padding_side == "left"
assert torch.equal(processor(images=np.stack([np.zeros((9, 9, 3), np.uint8)] * 2))["frames"][0], processor(images=np.zeros((9, 9, 3), np.uint8))["frames"][0])
processor.save_pretrained(folder + "/again")
again = type(processor).from_pretrained(folder + "/again")
assert torch.equal(again(images=[picture])["frames"], processor(images=[picture])["frames"]) and again(text="The")["input_ids"].equal(processor(text="The")["input_ids"])
assert not model.accepts_loss_kwargs
draw = model.draw(processor(text="a red ball")["input_ids"], frames_wanted=2, temperature=0.0)
told = model.generate(**processor(text="The red"), do_sample=False, max_new_tokens=8)
assert processor.pictures(draw).shape == (1, 2, 16, 16, 3)
twin = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
assert not any(n.split(".")[0] == "quadrivium" for n in sys.modules)
np.savez(sys.argv[1] + "/made.npz", logits=logits, draw=draw, told=told, **{k: v for k, v in said.items()})
"""


def test_the_whole_model_loads_where_this_project_is_not_installed(four, folder, tmp_path):
    _, run, _ = four
    out, picture = tmp_path / "whole", folder / "pictures" / "0.png"
    export.export_full(run, out)
    (tmp_path / "hide").mkdir()  # a path on which nothing of ours lies; the environment may have us installed
    code = "import sys; sys.path[:] = [p for p in sys.path if not __import__('os').path.isdir(p + '/quadrivium')]\n" + WHOLE
    env = {"HF_HOME": str(tmp_path / "home"), "PATH": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    done = subprocess.run([sys.executable, "-c", code, out, picture], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    made = np.load(out / "made.npz")
    clip = group(made["frames"][0], run.patch)
    for i, words in enumerate(["a red ball", "The"]):
        ids = run.text.encode(words)
        batch = Batch.of(pack([(frames(clip), text([run.text.end, *ids, 0]))]))
        with torch.no_grad():
            want = run.model.text_logits(run.model(batch)[: len(batch.text)])
        torch.testing.assert_close(torch.from_numpy(made["logits"][i, -len(want) :]), want, rtol=1e-4, atol=1e-4)
    opening = text(run.text.document("a red ball"))
    ours = generate(run.model, [(opening,)], "frames", run.text.end, 2, Sampling(0.0))[0]
    assert np.array_equal(group(made["draw"][0], run.patch), ours)
    begun = run.text.encode("The red")
    ours = generate(run.model, [(text([run.text.end, *begun]),)], "text", run.text.end, 1, Sampling(0.0, max_ids=8))[0]
    told = made["told"][0][len(begun) + 1 :]
    assert told[told != run.text.end].tolist() == ours.tolist()


def test_push_uploads_the_folder_and_makes_it_private(four, tmp_path, monkeypatch, capsys):
    import huggingface_hub

    calls = []

    class Hub:
        def create_repo(self, name, **how):
            calls.append((name, how))

        def upload_folder(self, repo_id, folder_path):
            calls.append((repo_id, sorted(p.name for p in Path(folder_path).iterdir())))
            return "https://huggingface.co/me/mine"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert main(["export", str(four[1].folder), "--out", str(tmp_path / "out"), "--push", "me/mine"]) == 0
    assert calls[0] == ("me/mine", {"exist_ok": True, "private": True})
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "generation_config.json"} <= set(calls[1][1])
    assert "https://huggingface.co/me/mine" in capsys.readouterr().out

    def refuse(self, *a, **k):
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(RunError, match="401"):
        export.push(tmp_path / "out", "me/mine")


def test_a_stopped_run_resumes_without_its_beginning(four, tmp_path):
    _, run, _ = four
    assert read_json(run.folder / "config.json", "a run")["init"].endswith("theirs")
    state = train_routes(
        Path("ignored"), run.folder, ModelConfig(), MixtureConfig(), TrainConfig(), resume=True, progress=False
    )
    assert state["step"] == 20
