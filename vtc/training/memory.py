"""How a training spares memory: parts of a batch in turn, activations computed twice, weights in shards.

None of it changes what is learnt beyond rounding, so none of it is part of a recipe.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from vtc.training.device import in_bf16


@dataclass(frozen=True)
class Memory:
    """What is given up for memory; by default nothing."""

    accumulate: int = 1  # parts that a process's share of a batch is computed in, one after the other
    checkpointing: bool = False  # the LLM keeps the inputs of its layers alone, and computes them once more
    shard: bool = False  # each process keeps its part of every weight, gradient and optimiser state (FSDP2)


NOTHING_SPARED = Memory()


def llms(model: nn.Module) -> list[PreTrainedModel]:
    """The models of transformers inside a learner whose layers can be sharded or computed again."""
    return [
        m for m in model.modules() if isinstance(m, PreTrainedModel) and m.supports_gradient_checkpointing
    ]


@contextmanager
def recomputed(model: nn.Module, on: bool) -> Iterator[None]:
    """Gradient checkpointing (arXiv 1604.06174) of every layer of the LLM, where it is on."""
    inside = llms(model) if on else []
    for llm in inside:
        llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        for llm in inside:
            llm.gradient_checkpointing_disable()


def sharded(model: nn.Module, on: torch.device, processes: int, d: int) -> nn.Module:
    """A copy of a learner whose weights lie in shards on the devices, a group for each layer of the LLM.

    The model itself stays where it is; `gather` brings back what the copy learnt. Products are in bf16 where
    a model d wide gains by it, gradients are summed in float32. The frozen tower is not cut.
    """
    twin, mesh = copy.deepcopy(model), init_device_mesh(on.type, (processes,))
    kinds = {name for llm in llms(twin) for name in llm._no_split_modules or ()}
    towers = [part for name, part in twin.named_modules() if name.rpartition(".")[2] == "tower"]
    whole = {weight for tower in towers for weight in tower.to(on).parameters()}
    how = {"mesh": mesh}
    if in_bf16(on.type, d):
        how["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for layer in [part for part in twin.modules() if type(part).__name__ in kinds]:
        fully_shard(layer, **how)
    return fully_shard(twin, ignored_params=whole, **how)


@torch.no_grad()
def gather(learnt: dict[str, nn.Parameter], into: dict[str, nn.Parameter]) -> None:
    """Copy weights that lie in shards into those of the same names, which do not."""
    for name, weight in learnt.items():
        into[name].copy_(unsharded(weight))


def unsharded(x: torch.Tensor) -> torch.Tensor:
    """A tensor whole; all processes must ask for it where it lies in shards."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def cut_like(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor on `like`'s device, cut into shards as `like` is; a number stays whole."""
    x = x.to(like.device)
    if not isinstance(like, DTensor) or x.shape != like.shape:
        return x
    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)
