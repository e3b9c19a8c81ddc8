"""The whole model for transformers: a thin wrapper around ``model.py``, which lies beside it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from quadrivium.config import from_dict
from quadrivium.generate import Sampling, generate
from quadrivium.model import Batch, Model, ModelConfig
from quadrivium.remote.configuration_quadrivium import QuadriviumConfig
from quadrivium.sequence import Sequence, frames, group, pack, text, ungroup


class _Network(Model):
    def reset(self, seed: int) -> None:
        """The weights are about to be loaded."""


class QuadriviumForCausalLM(PreTrainedModel, GenerationMixin):
    """Text after text or frames by `forward` and `generate`; frames after text or frames by `draw`.

    Frames are codes, int (B, F, R, C), as the processor makes them of pictures and clips.
    """

    config_class = QuadriviumConfig
    base_model_prefix = "network"
    main_input_name = "input_ids"
    _supports_sdpa = True
    accepts_loss_kwargs = False  # the loss is a mean over this batch: whoever accumulates has to divide it

    def __init__(self, config: QuadriviumConfig) -> None:
        super().__init__(config)
        self.network = _Network(from_dict(ModelConfig, config.shape, "config.json: shape"))
        self.post_init()

    def _given(self, frames_given: Tensor | None, rows: int) -> list[Sequence]:
        if frames_given is None:
            return [()] * rows
        return [(frames(group(clip, self.network.config.patch)),) for clip in frames_given.cpu().numpy()]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        frames: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Logits (B, L, V) after each of the ids (B, L), which stand after ``frames`` where those are given.

        Padding, on either side, is told by ``attention_mask``; its logits are zero. ``labels`` (B, L), -100 where nothing is wanted.
        """
        real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        each = zip(self._given(frames, len(real)), input_ids.cpu().numpy(), real.cpu().numpy(), strict=True)
        rows = [(*given, text(np.append(ids[read], 0))) for given, ids, read in each]  # the last id of a segment is not read
        batch = Batch.of(pack(rows), input_ids.device)
        hidden = self.network(batch)[: len(batch.text)]
        made = self.network.text_logits(hidden)
        logits = made.new_zeros(*real.shape, made.shape[1])
        logits[real] = made
        loss = None
        if labels is not None:
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask"), "frames": kwargs.get("frames")}

    @torch.no_grad()
    def draw(
        self,
        input_ids: Tensor | None = None,
        frames: Tensor | None = None,
        frames_wanted: int = 1,
        temperature: float = 1.0,
        top_p: float = 0.95,
        seed: int = 0,
        **kwargs: Any,
    ) -> np.ndarray:
        """Codes (B, ``frames_wanted``, R, C) that follow text, frames, or text and then frames."""
        rows = len(input_ids) if input_ids is not None else len(frames) if frames is not None else 1
        shown, end = self._given(frames, rows), self.config.eos_token_id
        words: list[Sequence] = [()] * rows
        if input_ids is not None:
            closed = [np.append(ids[ids != end], end) for ids in input_ids.cpu().numpy()]
            words = [(text(np.append(end, ids)),) for ids in closed]
        made = generate(
            self.network,
            [w + s for w, s in zip(words, shown, strict=True)],
            "frames",
            end,
            frames_wanted,
            Sampling(temperature, top_p, seed),
        )
        return np.stack([ungroup(clip, self.network.config.patch) for clip in made])
