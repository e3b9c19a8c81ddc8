"""Ranks: the processes that `torchrun` starts, which train one model together. On one process every call here does nothing.

Weights, gradients and moments are sharded (FSDP2; Zhao et al. 2023, arXiv 2304.11277): every rank holds some rows of every
matrix, gathers a block's whole weights while it computes that block, and sums gradients over ranks as it goes back. What is
sharded is a DTensor; `whole` and `like` lead from one to a plain tensor and back.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from quadrivium.errors import ConfigError, RunError


@dataclass(frozen=True)
class Ranks:
    """This process among ``world`` ones. What is called here has to be called by all of them, in the same order."""

    rank: int = 0
    world: int = 1
    restarts: int = 0  # times that `torchrun` has started all ranks again after one was lost

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all ranks, the same bits on each."""
        return list(values) if self.world == 1 else self._reduced(torch.tensor(values, dtype=torch.float64)).tolist()

    def of_first(self, value: float) -> float:
        """The first rank's value, on every rank."""
        return self.sum([value if self.first else 0.0])[0]

    def wait(self) -> None:
        """Go on when every rank has come so far."""
        self.sum([0.0])

    def shard(self, model: nn.Module, blocks: Iterable[nn.Module], device: str = "cpu") -> nn.Module:
        """Leave this rank its rows of the weights, on ``device``. ``blocks`` are gathered one at a time, all other weights once a
        step. A model larger than a GPU has to come in memory: each block goes to the GPU when it is cut."""
        if self.world == 1:
            return model.to(device)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
            raise ConfigError(f"torch {torch.__version__} cannot train on many ranks here; it needs 2.13 or later")
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # which nothing here writes into
        mesh = init_device_mesh(torch.device(device).type, (self.world,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # The loop divides by what is wanted on all ranks together, so that gradients are sums.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
                # Where a rank's batch lacks a modality, its weights have no gradient there and one elsewhere.
                module.set_reduce_scatter_unused_params(True)
        return model

    def clip(self, parameters: Iterable[nn.Parameter], most: float) -> Tensor:
        """Scale gradients so that the norm of all together is at most ``most``; returns the norm before."""
        parameters = [p for p in parameters if p.grad is not None]
        if self.world == 1:
            return torch.nn.utils.clip_grad_norm_(parameters, most)
        mine: list[Tensor] = [p.grad.to_local() for p in parameters]  # type: ignore[union-attr]
        squares = self._reduced(torch.stack(torch._foreach_norm(mine)).double().square().cpu())
        norm = squares.sum().sqrt()
        torch._foreach_mul_(mine, min(1.0, most / (norm.item() + 1e-6)))
        for p, square in zip(parameters, squares.tolist(), strict=True):
            if square == 0:  # nothing in the whole batch reaches it, which on one process is no gradient: no decay, no step
                p.grad = None
        return norm.float()

    def _reduced(self, values: Tensor) -> Tensor:
        torch.distributed.all_reduce(values)
        return values


ALONE = Ranks()


def device_of(name: str) -> str:
    """The device that is meant: auto is a GPU where there is one, else the processor. Raises ConfigError where the GPU is absent."""
    if name != "auto":
        try:
            device = torch.device(name)
        except RuntimeError:
            raise ConfigError(f"device {name!r} is unknown; use auto, cpu or cuda") from None
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"device {name}: torch sees {torch.cuda.device_count() or 'no'} GPU here; use device cpu")
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def joined(device: str = "cpu") -> Iterator[tuple[Ranks, str]]:
    """The ranks that `torchrun` started, and the device of this one; without `torchrun`, one rank. Raises ConfigError."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if world == 1:
        yield Ranks(restarts=restarts), device
        return
    local = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigError(f"{torch.cuda.device_count()} GPUs here and more ranks; give torchrun --nproc-per-node so many")
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    # Numbers that steer the loop go over gloo on every machine, so that the GPU does not wait for them. The first rank may
    # learn tokenizers for hours while the others wait; `torchrun` ends them when it is lost.
    backend, patience = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timedelta(days=7)
    store, rank, world = next(torch.distributed.rendezvous("env://"))
    # The store outlives a restart: without a name of their own, ranks would find the addresses of those that were lost.
    store = torch.distributed.PrefixStore(f"start-{restarts}", store)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)
    try:
        yield Ranks(rank, world, restarts), device
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            raise RunError(
                f"rank {rank} lost another one; torchrun --max-restarts N starts all again, and they go on from the last "
                f"checkpoint ({error!s:.200})"
            ) from None
        raise
    finally:
        torch.distributed.destroy_process_group()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, as one. All ranks call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(tensor: Tensor, model: Any) -> Tensor:
    """A plain tensor sharded as ``model`` is, where that is; every rank has it and keeps its rows."""
    if not hasattr(model, "placements"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements, src_data_rank=None)
