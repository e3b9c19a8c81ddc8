"""The text stream as Hugging Face knows it: the shapes and weights of Qwen3, Qwen2 and Llama, both ways.

    fetch(name)            a folder, or a hub id such as Qwen/Qwen3-0.6B -> folder
    shape_of(folder, ...)  its config.json -> ModelConfig
    check(shape, weights)  whether its weights have that shape, before memory is taken for it
    fill(model, weights)   its weights -> the text stream, and what the visual stream begins from
    config_of, weights_of  the text stream -> config.json and weights under their names

The three families differ in two switches: Qwen3 normalises queries and keys, Qwen2 has biases on queries, keys and values,
Llama has neither. Whatever this model cannot compute exactly is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quadrivium.data.shards import read_json
from quadrivium.errors import RunError, one_line
from quadrivium.model import Apart, Model, ModelConfig

_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json"]
_FAMILIES = {  # model_type -> (class, qk_norm, qkv_bias)
    "qwen3": ("Qwen3ForCausalLM", True, False),
    "qwen2": ("Qwen2ForCausalLM", False, True),
    "llama": ("LlamaForCausalLM", False, False),
    "mistral": ("MistralForCausalLM", False, False),  # which is Llama, where no window slides; exported as that
}
_CODE = "modeling_quadrivium_text"
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def fetch(name: str | Path, patterns: list[str] | None = None) -> Path:
    """The folder (or file) ``name``; where there is none, the hub's repository of that id, downloaded. Raises RunError."""
    path, repository = Path(name), str(name)
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise RunError(f"{name}: no such file or folder, and no hub id either, which looks like Qwen/Qwen3-0.6B")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise RunError(f"{name}: no such folder; to take it from the hub, pip install -c constraints.txt -e '.[hf]'") from None
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns or _FILES))
    except Exception as error:  # network, permission, absence: the library raises many types
        raise RunError(f"{name}: no such folder here, and the hub does not give it ({one_line(error, 200)})") from None


def is_model(folder: Path) -> bool:
    """Whether a folder holds a Hugging Face model, as opposed to a run of ours."""
    path = folder / "config.json"
    return path.is_file() and "model_type" in read_json(path, "a model folder")


def shape_of(folder: Path, ours: ModelConfig) -> ModelConfig:
    """The shape of a Hugging Face causal language model; what it does not say (sharing, frames) stays as in ``ours``.

    Raises RunError, naming what this model cannot compute.
    """
    _refuse_encoders(ours)
    path = folder / "config.json"
    c = read_json(path, "a Hugging Face model folder")
    try:
        return _shape(c, ours, path)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise RunError(f"{path}: not the config of a causal language model ({error!r:.200})") from None


def _shape(c: dict[str, Any], ours: ModelConfig, path: Path) -> ModelConfig:
    family = c.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise RunError(f"{path}: model_type {family!r}; a model to begin from is one of {', '.join(_FAMILIES)}")
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    sliding = c.get("use_sliding_window", family == "mistral") and c.get("sliding_window") is not None
    sliding = sliding or "sliding_attention" in (c.get("layer_types") or ())
    refused = {
        f"rope scaling {scaling!r} (only llama3 is computed here)": scaling not in ("default", "llama3"),
        f"hidden_act {c.get('hidden_act')!r}": c.get("hidden_act", "silu") not in ("silu", "swish"),
        "attention_bias": bool(c.get("attention_bias")),
        "mlp_bias": bool(c.get("mlp_bias")),
        "a sliding window": sliding,
        "partial rotary positions": (rope.get("partial_rotary_factor") or c.get("partial_rotary_factor") or 1.0) != 1.0,
        "quantised weights (take the full ones)": c.get("quantization_config") is not None,
    }
    for what, present in refused.items():
        if present:
            raise RunError(f"{path}: has {what}, which the text stream cannot compute; begin from another model")
    heads = int(c["num_attention_heads"])
    shape = replace(
        ours,
        vocab=int(c["vocab_size"]),
        layers=int(c["num_hidden_layers"]),
        width=int(c["hidden_size"]),
        heads=heads,
        kv_heads=int(c.get("num_key_value_heads") or heads),
        head_size=int(c.get("head_dim") or (128 if family == "qwen3" else c["hidden_size"] // heads)),
        hidden=int(c["intermediate_size"]),
        rope_base=float(rope.get("rope_theta", c.get("rope_theta", 10_000.0))),
        rope_scaling=tuple(float(rope[k]) for k in _LLAMA3) if scaling == "llama3" else (),
        norm_eps=float(c.get("rms_norm_eps", 1e-6)),
        tied=bool(c.get("tie_word_embeddings", False)),
        qk_norm=_FAMILIES[family][1],
        qkv_bias=_FAMILIES[family][2],
    )
    shape.resolve()  # which refuses what cannot be; sizes left open stay so, as they follow from the frames
    return shape


def config_of(model: Model, end: int) -> dict[str, Any]:
    """``config.json`` of the text stream, as the family that its switches make it. Raises RunError where they make none.

    With sharing ``cross``, whose text route is no model that transformers knows, it asks for the code of `remote`.
    """
    c = model.config
    family = _family(c)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rope_base}
    reach = 32768
    if c.rope_scaling:
        rope |= {"rope_type": "llama3", **dict(zip(_LLAMA3, c.rope_scaling, strict=True))}
        rope[_LLAMA3[3]] = int(c.rope_scaling[3])
        reach = max(reach, int(c.rope_scaling[0] * c.rope_scaling[3]))
    described = {
        "architectures": [_FAMILIES[family][0]],
        "model_type": family,
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": reach,
        "rms_norm_eps": c.norm_eps,
        "rope_parameters": rope,
        "rope_theta": c.rope_base,  # where readers older than transformers 5 look
        "tie_word_embeddings": c.tied,
        "attention_bias": False,
        "bos_token_id": end,
        "eos_token_id": end,
        "dtype": "float32",
    }
    if c.rope_scaling:
        described["rope_scaling"] = rope
    if c.encoders:
        described |= {
            "architectures": ["QuadriviumTextForCausalLM"],
            "model_type": "quadrivium_text",
            "auto_map": {
                "AutoConfig": f"{_CODE}.QuadriviumTextConfig",
                "AutoModelForCausalLM": f"{_CODE}.QuadriviumTextForCausalLM",
            },
            "encoders": c.encoders,
        }
    return described


def _family(c: ModelConfig) -> str:
    family = next((f for f, (_, norm, bias) in _FAMILIES.items() if (norm, bias) == (c.qk_norm, c.qkv_bias)), None)
    if family is None:
        raise RunError("normalised queries together with biases (--qk-norm, --qkv-bias) are no family that transformers knows")
    return family


def code_of(c: ModelConfig) -> dict[str, str]:
    """File name -> text of the code that loads the text stream, for the family of its switches; nothing where transformers has it."""
    if not c.encoders:
        return {}
    code = Path(__file__).parent / "remote" / f"{_CODE}.py"
    family = _FAMILIES[_family(c)][0].removesuffix("ForCausalLM")
    written = code.read_text(encoding="utf-8")
    return {code.name: written.replace("Qwen3", family).replace("qwen3", family.lower())}


def _refuse_encoders(c: ModelConfig) -> None:
    if c.encoders:
        raise RunError(
            "with sharing cross, text has an encoder and a decoder, which no published language model has; to begin from one, train "
            "with --sharing all, attention or none"
        )


def _places(model: Model) -> list[tuple[str, Tensor, slice]]:
    """(their name, our weight, rows of it) for every weight of the text stream: we keep q, k, v and gate, up as one product."""
    c = model.config
    q, kv, hidden = c.heads * c.head_size, c.kv_heads * c.head_size, c.hidden
    found: list[tuple[str, Tensor, slice]] = []

    def add(name: str, weight: Tensor, first: int = 0, last: int | None = None) -> None:
        found.append((name, weight, slice(first, last)))

    add("model.embed_tokens.weight", model.embed_text.weight)
    blocks: Any = model.blocks
    for i, block in enumerate(blocks):
        prefix = f"model.layers.{i}."
        project, out, feed = (part.parts[0] for part in (block.project, block.out, block.feed))
        add(prefix + "input_layernorm.weight", project.norm.weight)
        for kind in ("weight", "bias") if c.qkv_bias else ("weight",):
            qkv = getattr(project.qkv, kind)
            add(prefix + f"self_attn.q_proj.{kind}", qkv, 0, q)
            add(prefix + f"self_attn.k_proj.{kind}", qkv, q, q + kv)
            add(prefix + f"self_attn.v_proj.{kind}", qkv, q + kv)
        if c.qk_norm:
            add(prefix + "self_attn.q_norm.weight", project.q_norm.weight)
            add(prefix + "self_attn.k_norm.weight", project.k_norm.weight)
        add(prefix + "self_attn.o_proj.weight", out.weight)
        add(prefix + "post_attention_layernorm.weight", feed.norm.weight)
        add(prefix + "mlp.gate_proj.weight", feed.gate_up.weight, 0, hidden)
        add(prefix + "mlp.up_proj.weight", feed.gate_up.weight, hidden)
        add(prefix + "mlp.down_proj.weight", feed.down.weight)
    last: Any = model.norm.parts[0]
    add("model.norm.weight", last.weight)
    if model.head_text is not None:
        add("lm_head.weight", model.head_text.weight)
    return found


def weights_of(model: Model) -> dict[str, Tensor]:
    """The text stream's weights under their names; a tied head is not written twice."""
    return {name: weight.detach()[rows].clone() for name, weight, rows in _places(model)}


def check(shape: ModelConfig, weights: Weights) -> None:
    """Raises RunError where the weights that a folder holds are not those of a shape."""
    if shape.layers > len(weights):
        raise RunError(f"{shape.layers} layers and {len(weights)} weights; config.json and weights do not belong together")
    with torch.device("meta"):
        places = _places(Model(shape))
    for name, weight, rows in places:
        found, wanted = weights.shape(name) if name in weights else "nothing", tuple(weight[rows].shape)
        if found != wanted:
            raise RunError(f"{name}: {found} where {wanted} belongs; the shapes of the two models differ")


@torch.no_grad()
def fill(model: Model, weights: Mapping[str, Tensor], copy: bool = True) -> None:
    """Fill the text stream. Weights that the streams share serve both; the visual stream's own begin as copies, or stay fresh.

    Raises RunError where a weight is missing or of another shape.
    """
    _refuse_encoders(model.config)
    for name, weight, rows in _places(model):
        got = weights.get(name)
        if got is None or got.shape != weight[rows].shape:
            shape = "nothing" if got is None else tuple(got.shape)
            raise RunError(f"{name}: {shape} where {tuple(weight[rows].shape)} belongs; the shapes of the two models differ")
        weight[rows] = got.to(weight.dtype)
    for module in model.modules():
        if copy and isinstance(module, Apart) and len(module.parts) == 2:
            module.parts[1].load_state_dict(module.parts[0].state_dict())


class Weights(Mapping[str, Tensor]):
    """The weights in a folder's safetensors files, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        try:
            files = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))]
        except SafetensorError as error:
            raise RunError(f"{folder}: damaged weights ({error}); fetch the model again") from None
        if not files:
            raise RunError(f"{folder}: no .safetensors here; nothing else is loaded, as other formats can run code")
        self._where = {name: file for file in files for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        return self._where[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight, read off its file's header."""
        return tuple(self._where[name].get_slice(name).get_shape())

    def __len__(self) -> int:
        return len(self._where)
