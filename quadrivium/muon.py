"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): steps along an orthogonal matrix near the gradient's mean.

torch's own, computed otherwise: matrices of one shape go through the Newton-Schulz iteration together, and on a processor in
fp32. bf16, which torch takes everywhere, is several times slower where the processor does not multiply it, and rounds so
coarsely that the order of sums shows in the loss. State and options are those of `torch.optim.Muon`.
"""

from __future__ import annotations

from collections import defaultdict
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from quadrivium.dist import like, whole

# Numbers in the matrices that are taken together: large ones gain nothing by company, and memory is held for all of them.
TOGETHER = 1 << 22


def orthogonal(matrices: Tensor, group: dict[str, Any]) -> Tensor:
    """(n, A, B) -> the same shape with singular values near 1: five steps of a quintic Newton-Schulz iteration.

    Every step multiplies X from the left by a polynomial of its Gram matrix. Where X is twice as wide as high, these are multiplied
    with each other first (`_left`), which halves the work. That squares what is rounded, so it is left where products are in bf16.
    """
    a, b, c = group["ns_coefficients"]
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=group["eps"])  # so that no singular value is above 1
    if x.dtype == torch.float32 and x.shape[2] >= 2 * x.shape[1]:
        x = _left(x @ x.mT, group) @ x
    else:
        for _ in range(group["ns_steps"]):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).type_as(matrices)


def _left(gram: Tensor, group: dict[str, Any]) -> Tensor:
    """Gram matrices (n, A, A) -> what all steps together multiply from the left. A step with the polynomial p makes p G p of G."""
    a, b, c = group["ns_coefficients"]
    steps: list[Tensor] = []
    while len(steps) < group["ns_steps"]:
        gram = steps[-1] @ gram @ steps[-1] if steps else gram
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        steps.append(p)
    return reduce(lambda left, p: p @ left, steps)


class Muon(torch.optim.Muon):
    """Muon on whole matrices, with the learning rate of AdamW (Liu et al. 2025, arXiv 2502.16982)."""

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        # The steps are then as long as those of AdamW, so that one learning rate serves both.
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for shape, every in alike.items():
                count = max(1, TOGETHER // shape.numel())
                for some in (every[i : i + count] for i in range(0, len(every), count)):
                    towards = orthogonal(torch.stack([self.direction(p, group) for p in some]), group)
                    for p, matrix in zip(some, towards, strict=True):
                        self.move(p, matrix, group)

    def direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """The gradient with momentum."""
        state, gradient = self.state[p], p.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(mean, group["momentum"]) if group["nesterov"] else mean

    @staticmethod
    def move(p: Tensor, matrix: Tensor, group: dict[str, Any]) -> None:
        """Decay a weight and step along ``matrix``, of which every entry is then 0.2 in the mean square, as in AdamW."""
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(matrix, alpha=-0.2 * group["lr"] * max(p.shape) ** 0.5)


class ShardedMuon(Muon):
    """Muon on sharded matrices. Moments stay sharded; matrices are gathered, as many at a time as there are ranks, and each
    rank orthogonalises one of them. Torch's own does every product across ranks."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            for start in range(0, len(moved), world):
                some = moved[start : start + world]
                matrices = [whole(self.direction(p, group)) for p in some]
                if rank < len(some):
                    matrices[rank] = orthogonal(matrices[rank][None], group)[0].contiguous()  # broadcast sends it as it lies
                for owner, (p, matrix) in enumerate(zip(some, matrices, strict=True)):
                    torch.distributed.broadcast(matrix, owner)
                    self.move(p, like(matrix, p), group)
