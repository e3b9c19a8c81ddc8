"""The text route of sharing ``cross`` for transformers: a Qwen3 whose decoder layers make keys and values of what its encoder gives.

The rest, caches, masks, kernels of attention and generation, is that of transformers. What is exported has the name of its own
family in the place of this one.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3Attention,
    Qwen3DecoderLayer,
    apply_rotary_pos_emb,
    eager_attention_forward,
)


class QuadriviumTextConfig(Qwen3Config):
    """``encoders``: how many of the layers are the encoder's."""

    model_type = "quadrivium_text"
    encoders: int = 0


class _Attention(Qwen3Attention):
    def forward(
        self, hidden_states: Tensor, position_embeddings: Any, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Queries of the first half of ``hidden_states`` (B, L, 2 D), keys and values of the second -> (B, L, D), and its weights."""
        x, given = hidden_states.chunk(2, dim=-1)
        heads = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = self.q_proj(x).view(heads), self.k_proj(given).view(heads), self.v_proj(given).view(heads)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        cache = kwargs.pop("cache", kwargs.pop("past_key_values", None))  # as newer and older versions call it
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx, kwargs)  # which say to some caches where
        attend = ALL_ATTENTION_FUNCTIONS.get(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        made, weights = attend(self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.o_proj(made.reshape(*x.shape[:-1], -1).contiguous()), weights


class _Decoder(Qwen3DecoderLayer):
    def __init__(self, config: QuadriviumTextConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = _Attention(config, layer_idx)
        self.first, self.last = layer_idx == config.encoders, layer_idx + 1 == config.num_hidden_layers

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """What the encoder gave goes from layer to layer behind the decoder's own states: (B, L, 2 D), but (B, L, D) into the first
        and out of the last."""
        x, given = (hidden_states, hidden_states) if self.first else hidden_states.chunk(2, dim=-1)
        both = torch.cat([self.input_layernorm(x), self.input_layernorm(given)], dim=-1)
        x = x + self.self_attn(both, **kwargs)[0]
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x if self.last else torch.cat([x, given], dim=-1)


class QuadriviumTextForCausalLM(Qwen3ForCausalLM):
    """A causal language model; states between decoder layers (``output_hidden_states``) are twice as wide as others."""

    config_class = QuadriviumTextConfig
    _no_split_modules = ("Qwen3DecoderLayer", "_Decoder")

    def __init__(self, config: QuadriviumTextConfig) -> None:
        super().__init__(config)
        for i in range(config.encoders, config.num_hidden_layers):
            self.model.layers[i] = _Decoder(config, i)
        self.post_init()
