"""Three ways to attend to sequences of unequal lengths on a GPU, from positions in grouped order and back to it, in bf16:

buckets     padded rectangles of nearly equal lengths, torch's scaled_dot_product_attention on each
end to end  `quadrivium.model.along`: variable-length kernels on sequences as they lie
flex        FlexAttention, compiled, with a mask of documents, which has to be made for every batch

python benchmarks/attention.py
"""

import itertools

import numpy as np
import torch

from quadrivium.model import Runs, _buckets, along, attention, regroup

LENGTHS = {
    "512 of 112": [112] * 512,
    "180 of 40 to 600": np.random.default_rng(0).integers(40, 600, 180).tolist(),
    "16 of 2048": [2048] * 16,
}
HEADS, SIZE = 16, 64


def milliseconds(run, rounds: int = 20) -> float:
    for _ in range(3):
        run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return float(np.median([a.elapsed_time(b) for a, b in itertools.pairwise(marks)]))


def compare(name: str, given: list[int], flex, blocks) -> None:
    lengths = torch.tensor(given)
    order = torch.randperm(sum(given), generator=torch.Generator().manual_seed(0))
    buckets, back = _buckets(order, lengths, 0.85)
    buckets, back, lengths, order = [b.cuda() for b in buckets], back.cuda(), lengths.cuda(), order.cuda()
    inverse, runs = torch.argsort(order), Runs.of(lengths, buckets)
    shape = (len(order), HEADS, SIZE)
    q, k, v, upstream = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    parts = [t.requires_grad_() for t in (q, k, v)]

    def bucketed() -> torch.Tensor:
        asked, keys, values = ([t[b].transpose(1, 2) for b in buckets] for t in parts)
        found = [attention(*heads, causal=True) for heads in zip(asked, keys, values, strict=True)]
        return torch.cat([x.transpose(1, 2).flatten(0, 1) for x in found])[back]

    def end_to_end() -> torch.Tensor:
        asked, keys, values = (regroup(t, order, inverse) for t in parts)
        return regroup(along(asked, keys, values, runs), inverse, order)

    row = torch.repeat_interleave(torch.arange(len(lengths), device="cuda"), lengths)

    def seen(b, h, i, j):
        return (row[i] == row[j]) & (i >= j)

    def masked():
        return blocks(seen, None, None, len(order), len(order), device="cuda")

    mask = masked()

    def flexed() -> torch.Tensor:
        moved = (regroup(t, order, inverse)[None].transpose(1, 2) for t in parts)
        return regroup(flex(*moved, block_mask=mask)[0].transpose(0, 1), inverse, order)

    padded = sum(b.numel() for b in buckets)
    print(
        f"\n{name}: {len(order)} positions, {padded} with padding, {len(buckets)} buckets; a mask takes {milliseconds(masked, 5):.1f} ms"
    )
    want = bucketed().float()
    for what, way in (("buckets", bucketed), ("end to end", end_to_end), ("flex", flexed)):
        off = ((way().float() - want).norm() / want.norm()).item()
        there, both = milliseconds(way), milliseconds(lambda way=way: torch.autograd.grad(way(), parts, upstream))
        print(f"  {what:<12}{there:>8.3f}{both:>8.3f}   differs by {off:.1e}")


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("this compares kernels of GPUs; torch sees none here")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; ms forward, and forward and backward; {HEADS} heads of {SIZE}"
    )
    compiled = [torch.compile(f, dynamic=True) for f in (flex_attention, create_block_mask)]
    for name, given in LENGTHS.items():
        compare(name, given, *compiled)


if __name__ == "__main__":
    main()
