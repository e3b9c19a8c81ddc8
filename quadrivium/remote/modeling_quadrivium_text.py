"""The text route of sharing ``cross`` for transformers: a Qwen3 whose decoder layers read keys and values off where its encoder ends.

Everything else, caches, masks and attention kernels too, is that of transformers. An export for weights of another family puts
that family's name in the place of Qwen3.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM


class QuadriviumTextConfig(Qwen3Config):
    """``encoders``: how many of the layers are the encoder's."""

    model_type = "quadrivium_text"
    encoders: int = 0


class _Encoded:
    """What the encoder gave, in the pass that is under way."""

    states: Tensor | None = None

    def note(self, layer: nn.Module, given: tuple[Any, ...]) -> None:
        self.states = given[0]

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Encoded, ()  # a copy of the model is in no pass


def _normed(encoded: _Encoded, norm: nn.Module, projection: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor]:
    return (norm(encoded.states),)


class QuadriviumTextForCausalLM(Qwen3ForCausalLM):
    """One pass at a time: what the encoder gave is kept in the model until the pass is over."""

    config_class = QuadriviumTextConfig

    def __init__(self, config: QuadriviumTextConfig) -> None:
        super().__init__(config)
        encoded = _Encoded()
        layers: Any = self.model.layers[config.encoders :]
        layers[0].register_forward_pre_hook(encoded.note)
        for layer in layers:
            for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
                projection.register_forward_pre_hook(partial(_normed, encoded, layer.input_layernorm))
