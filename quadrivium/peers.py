"""Other people's transformers at the size of ours, for `bench` to measure beside it. Each package is imported where it is built.

They are run as their own documentation has it, on the batch that suits them best: the decoders and the encoder-decoder read
rectangles of equal lengths, where ours reads the four routes as they come. Only transfusion-pytorch does the same work, and its
objective differs for frames (flow matching, where ours is cross-entropy over codes).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """What all have in common: shape of the trunk, and of a sample, half of it text and half a frame."""

    width: int = 192
    layers: int = 4
    heads: int = 6
    vocab: int = 512
    codes: int = 1024
    batch: int = 8
    words: int = 48  # text positions of a sample
    side: int = 8  # of a frame, in cells

    @property
    def cells(self) -> int:
        return self.side**2

    @property
    def ids(self) -> int:
        """One vocabulary for both modalities, and a few marks."""
        return self.vocab + self.codes + 4

    @property
    def length(self) -> int:
        return self.words + self.cells

    def draw(self, *shape: int) -> Tensor:
        """Ids of both modalities, the same for everyone."""
        return torch.randint(self.ids, shape, generator=torch.Generator().manual_seed(0))


Loss = Callable[[], Tensor]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Peer:
    """A model of somebody else."""

    name: str
    package: str  # on PyPI
    build: Callable[[Size, int], nn.Module]  # with a feed-forward layer of so many units, by which parameters are matched
    loss: Callable[[nn.Module, Size, str], Loss]  # on a batch that is made beforehand, on a device
    positions: Callable[[Size], int]  # of that batch
    generate: Callable[[nn.Module, Tensor, int], Tensor] | None = None  # prompts (S, n), how many more ids, greedily
    dense: bool = True  # every weight meets every position


def matched(build: Callable[[int], M], parameters: int) -> M:
    """The module whose feed-forward size makes it come nearest to so many parameters, in steps of 8."""
    try:
        with torch.device("meta"):  # to be counted, weights need no numbers
            few, more = (count(build(hidden)) for hidden in (64, 128))
    except NotImplementedError:  # unless, as in transfusion-pytorch, something is read off them while they are made
        few, more = (count(build(hidden)) for hidden in (64, 128))
    return build(max(8, 8 * round((64 + 64 * (parameters - few) / (more - few)) / 8)))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class _Plain(nn.Module):
    """A decoder of torch's own layers, causal by ``is_causal``, which takes its fused attention."""

    def __init__(self, size: Size, hidden: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            size.width, size.heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.embed, self.place = nn.Embedding(size.ids, size.width), nn.Embedding(size.length, size.width)
        self.layers = nn.TransformerEncoder(layer, size.layers, nn.LayerNorm(size.width), enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=ids.device)
        x = self.embed(ids) + self.place.weight[:length]
        return F.linear(self.layers(x, mask=mask, is_causal=True), self.embed.weight)


def _plain_loss(model: nn.Module, size: Size, device: str) -> Loss:
    ids = size.draw(size.batch, size.length + 1).to(device)
    return lambda: F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def _decoder(size: Size, hidden: int) -> nn.Module:
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    layers = Decoder(
        dim=size.width,
        depth=size.layers,
        heads=size.heads,
        attn_dim_head=size.width // size.heads,
        attn_flash=True,
        ff_mult=hidden / size.width,
    )
    return AutoregressiveWrapper(
        TransformerWrapper(num_tokens=size.ids, max_seq_len=2 * size.length, attn_layers=layers, tie_embedding=True)
    )


def _decoder_loss(model: nn.Module, size: Size, device: str) -> Loss:
    ids = size.draw(size.batch, size.length + 1).to(device)
    return lambda: model(ids)


def _decoder_generate(model: Any, prompt: Tensor, more: int) -> Tensor:
    return model.generate(prompt, more, temperature=0.0, cache_kv=True)


def _encoder_decoder(size: Size, hidden: int) -> nn.Module:
    from x_transformers import XTransformer

    half: dict[str, Any] = {
        "num_tokens": size.ids,
        "depth": size.layers // 2,
        "heads": size.heads,
        "max_seq_len": 2 * size.cells,
        "attn_dim_head": size.width // size.heads,
        "attn_flash": True,
        "ff_mult": hidden / size.width,
    }
    return XTransformer(
        dim=size.width, tie_token_emb=True, **{f"{side}_{key}": value for side in ("enc", "dec") for key, value in half.items()}
    )


def _encoder_decoder_loss(model: nn.Module, size: Size, device: str) -> Loss:
    ids = size.draw(size.batch, size.length + 1).to(device)
    return lambda: model(ids[:, : size.words], ids[:, size.words :])


def _encoder_decoder_generate(model: Any, prompt: Tensor, more: int) -> Tensor:
    return model.generate(prompt, prompt[:, :1], more, temperature=0.0)


def _transfusion(size: Size, hidden: int) -> nn.Module:
    from transfusion_pytorch import Transfusion

    dim = (
        size.width * 5 // 8 // 8 * 8
    )  # what has about as many parameters in as many layers with feed-forwards of the usual size
    return Transfusion(
        num_text_tokens=size.vocab,
        dim_latent=48,
        modality_default_shape=(size.side, size.side),
        modality_num_dim=2,
        add_pos_emb=True,
        modality_processing="flat",  # the default times every strategy on each new shape
        transformer={
            "dim": dim,
            "depth": size.layers,
            "dim_head": 32,
            "heads": max(1, dim // 30),
            "ff_expansion_factor": 1.5 * hidden / dim,
        },
    )


def _transfusion_loss(model: nn.Module, size: Size, device: str) -> Loss:
    draw = torch.Generator().manual_seed(0)

    def text(length: int) -> Tensor:
        return torch.randint(size.vocab, (length,), generator=draw).to(device)

    def frame() -> Tensor:
        return torch.randn(size.side, size.side, 48, generator=draw).to(device)

    batch: list[list[Any]] = []  # a trailing 0. means no loss on that item
    times = torch.rand(size.batch, 2, generator=draw).to(device)
    for i in range(size.batch):
        given: Any = (text(size.words), 0.0) if i % 4 < 2 else (0, frame(), 0.0)
        wanted: Any = (0, frame(), 1.0) if i % 2 else text(size.cells if i % 4 == 0 else size.words)
        batch.append([given, wanted])
        if i % 4 >= 2:
            times[i, 0] = 1.0  # else what is given is noised too
    return lambda: model(batch, times=times, return_breakdown=True)[0]


def _transfusion_generate(model: Any, prompt: Tensor, more: int) -> Tensor:
    return model.generate_text_only(prompt, prompt.shape[1] + more)


def four_routes(size: Size) -> int:
    """Positions of a batch in which each of the four routes has a quarter of the samples."""
    return size.batch // 4 * (4 * size.words + 4 * size.cells)


def _qwen(size: Size, hidden: int) -> nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=size.ids,
        hidden_size=size.width,
        intermediate_size=hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        head_dim=size.width // size.heads,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config)


def _qwen_loss(model: nn.Module, size: Size, device: str) -> Loss:
    ids = size.draw(size.batch, size.length).to(device)
    return lambda: model(input_ids=ids, labels=ids, use_cache=False).loss


def qwen_of(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """transformers' own model with these weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = Qwen3ForCausalLM(Qwen3Config(**{k: v for k, v in config.items() if k not in ("architectures", "model_type")}))
    model.load_state_dict(dict(weights), strict=False)  # a tied head is not among them
    return model.eval()


def qwen_generate(model: Any, prompt: Tensor, more: int) -> Tensor:
    return model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=more,
        min_new_tokens=more,
        do_sample=False,
        pad_token_id=0,
    )[:, prompt.shape[1] :]


def _rectangle(size: Size) -> int:
    return size.batch * size.length


PEERS = (
    Peer("x-transformers encoder-decoder", "x-transformers", _encoder_decoder, _encoder_decoder_loss, _rectangle, _encoder_decoder_generate, False),
    Peer("x-transformers decoder", "x-transformers", _decoder, _decoder_loss, _rectangle, _decoder_generate),
    Peer("plain torch decoder", "torch", _Plain, _plain_loss, _rectangle),
    Peer("transformers Qwen3", "transformers", _qwen, _qwen_loss, _rectangle, qwen_generate),
    Peer("transfusion-pytorch", "transfusion-pytorch", _transfusion, _transfusion_loss, four_routes, _transfusion_generate, False),
)  # fmt: skip
