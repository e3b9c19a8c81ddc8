"""The text stream to and from Hugging Face: with sharing `all`, `attention` and `none` it has the exact shape of Qwen3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from quadrivium.checkpoint import Run
from quadrivium.data.shards import write_json
from quadrivium.errors import RunError
from quadrivium.model import Model


def qwen3_config(model: Model, end: int) -> dict[str, Any]:
    """``config.json`` of the text stream as a Qwen3 causal language model."""
    c = model.config
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": c.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_base},
        "rope_theta": c.rope_base,  # where readers older than transformers 5 look
        "tie_word_embeddings": c.tied,
        "attention_bias": False,
        "bos_token_id": end,
        "eos_token_id": end,
        "dtype": "float32",
    }


def _places(model: Model) -> list[tuple[str, Tensor, slice]]:
    """(Qwen3 name, our matrix, rows of it) for every weight of the text stream: we keep q, k, v and gate, up as one product."""
    c = model.config
    if c.encoders:
        raise RunError(
            "the text stream of sharing cross is an encoder and a decoder, which no Qwen3 is; export a run that was trained "
            "with --sharing all, attention or none"
        )
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
        add(prefix + "self_attn.q_proj.weight", project.qkv.weight, 0, q)
        add(prefix + "self_attn.k_proj.weight", project.qkv.weight, q, q + kv)
        add(prefix + "self_attn.v_proj.weight", project.qkv.weight, q + kv)
        add(prefix + "self_attn.q_norm.weight", project.q_norm.weight)
        add(prefix + "self_attn.k_norm.weight", project.k_norm.weight)
        add(prefix + "self_attn.o_proj.weight", out.weight)
        add(prefix + "post_attention_layernorm.weight", feed.norm.weight)
        add(prefix + "mlp.gate_proj.weight", feed.gate_up.weight, 0, hidden)
        add(prefix + "mlp.up_proj.weight", feed.gate_up.weight, hidden)
        add(prefix + "mlp.down_proj.weight", feed.down.weight)
    last: Any = model.norm.parts[0]
    add("model.norm.weight", last.weight)
    add("lm_head.weight", model.embed_text.weight if model.head_text is None else model.head_text.weight)
    return found


def to_qwen3(model: Model) -> dict[str, Tensor]:
    """The text stream's weights under Qwen3's names."""
    return {name: weight.detach()[rows].clone() for name, weight, rows in _places(model)}


@torch.no_grad()
def from_qwen3(model: Model, weights: dict[str, Tensor]) -> None:
    """Fill the text stream from Qwen3 weights; with shared weights the visual stream gets them too. Raises RunError."""
    for name, weight, rows in _places(model):
        if name == "lm_head.weight" and (model.head_text is None or name not in weights):
            continue
        if name not in weights or weights[name].shape != weight[rows].shape:
            got = tuple(weights[name].shape) if name in weights else "nothing"
            raise RunError(f"{name}: {got} where {tuple(weight[rows].shape)} belongs; the shapes of the two models differ")
        weight[rows] = weights[name]


def export_text(run: Run, out: Path) -> None:
    """Write the text route of a run as a Qwen3 folder that transformers loads without any code of ours."""
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out} is not empty; choose another --out")
    weights = to_qwen3(run.model)
    out.mkdir(parents=True, exist_ok=True)
    if run.model.config.tied:
        del weights["lm_head.weight"]
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", qwen3_config(run.model, run.text.end))
    write_json(out / "generation_config.json", {"bos_token_id": run.text.end, "eos_token_id": run.text.end})
    run.text.save(out)
    names = {"eos_token": run.text.end_name, "bos_token": run.text.end_name, "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(out / "tokenizer_config.json", names)
