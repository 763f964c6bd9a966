"""One loop trains tower, LLM and compressor: any device, any number of processes, killed at any moment.

A batch follows from the number of its step, so a stage has no state but weights, optimiser and step: one that
was killed goes on from its last checkpoint with the batches it would have had, and ends with the same weights
bit for bit.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from vtc import InputError
from vtc.progress import bar
from vtc.training import checkpoints
from vtc.training.device import WIDE, Batch, Share, autocast, device, keep_freed_memory, prefetched, processes
from vtc.training.memory import NOTHING_SPARED, Memory, gather, recomputed, sharded
from vtc.training.optim import make_optimizers


@dataclass(frozen=True)
class Stage:
    """What one stage trains, for how long and how fast."""

    name: str
    steps: int
    lr: float  # peak learning rate
    trains: tuple[str, ...]  # names under the model whose parameters learn; the others are frozen
    checkpoint_every: int  # steps
    warmup: float = 0.05  # share of the steps in which the rate rises from nothing to its peak
    muon: bool = True  # see `make_optimizers`
    slow: tuple[str, ...] = ()  # of those that learn, names under the model at `slow_share` of the rate
    slow_share: float = 0.05
    d: int = WIDE  # width of the model, by which its precision is chosen, see `in_bf16`

    def share_of_peak(self, step: int) -> float:
        """The learning rate at that step over its peak: up along a line, then down along a cosine to zero."""
        warm = max(int(self.steps * self.warmup), 1)
        return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / self.steps)))


def fit(
    model: nn.Module,
    stage: Stage,
    batch: Callable[[int, Share], Batch],
    folder: Path | None,
    memory: Memory = NOTHING_SPARED,
) -> dict[str, float]:
    """Train a stage, from its last checkpoint in the folder if there is one.

    batch(step, share): what is computed at once of that step. Returns the mean loss of the last 20 steps and
    the seconds that all steps took, those before an interruption included. Raises InputError where Muon
    should learn from shards.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(stage.trains))
    learns, file = _learning(model), folder and folder / f"{stage.name}.safetensors"
    with _float32_masters(learns), recomputed(model, memory.checkpointing):
        if memory.shard and stage.muon:
            raise InputError("shards learn by AdamW, this recipe by Muon: leave --shard out, or give --llm")
        of = processes().num_processes
        if not memory.shard or of == 1:  # the one shard is the whole
            return _fit(model, learns, stage, batch, file, replace(memory, shard=False))
        twin = sharded(model, device(), of, stage.d)
        notes = _fit(twin, _learning(twin), stage, batch, file, memory)
        gather(_learning(twin), learns)
        return notes


def _learning(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _fit(
    model: nn.Module, learns: dict, stage: Stage, batch: Callable, file: Path | None, memory: Memory
) -> dict:
    # some steps may leave some weights out: without an image the compressor has no part
    processes()  # first: it stops where they would not work together
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    on, rank, of = accelerator.device, accelerator.process_index, accelerator.num_processes
    parts = [Share(rank + i * of, of * memory.accumulate) for i in range(memory.accumulate)]
    slow = {name: p for name, p in learns.items() if stage.slow and name.startswith(stage.slow)}
    rest = {name: p for name, p in learns.items() if name not in slow}
    optimizers = make_optimizers(rest, stage.lr, stage.muon)
    optimizers += make_optimizers(slow, stage.lr * stage.slow_share, stage.muon)
    # they step by themselves: accelerate's wrapper looks for a package on the disk at each step
    if not memory.shard:  # what lies in shards is on its device
        model.to(on)
    if on.type == "cpu":
        keep_freed_memory()
    model.train()
    first, before, recent = checkpoints.resume(file, learns, optimizers)
    prepared = model if memory.shard else accelerator.prepare(model)
    losses, began = deque(recent, maxlen=20), time.perf_counter()  # on the device: reading one would wait
    steps = range(first, stage.steps)
    coming = prefetched(lambda step: tuple(batch(step, part) for part in parts), steps, on)
    shown = bar(steps, stage.name)
    for step, given in zip(shown, coming):
        loss = torch.zeros((), device=on)
        for i, part in enumerate(given):
            last = i + 1 == len(given)  # gradients are averaged over processes once, shards' each time
            with nullcontext() if last or memory.shard else accelerator.no_sync(prepared):
                with autocast(on.type, stage.d):
                    piece = prepared(*part.inputs) * (part.weight / len(given))
                accelerator.backward(piece)
            loss += piece.detach()
        accelerator.clip_grad_norm_(learns.values(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * stage.share_of_peak(step)
            optimizer.step()
        for p in learns.values():
            p.grad = None
        losses.append(loss)
        done = step + 1
        due = done % stage.checkpoint_every == 0 or done == stage.steps
        if due:
            shown.set_postfix(loss=f"{float(torch.stack(list(losses)).mean()):.3f}")
        if file and due and (memory.shard or accelerator.is_main_process):
            seconds = before + time.perf_counter() - began
            checkpoints.keep(file, learns, optimizers, done, seconds, list(losses))
    loss = accelerator.reduce(torch.stack(list(losses)).mean(), "mean") if losses else math.nan
    accelerator.free_memory()
    return {"loss": float(loss), "seconds": before + time.perf_counter() - began}


@contextmanager
def _float32_masters(learns: dict[str, nn.Parameter]) -> Iterator[None]:
    """Learn in float32 what is kept in less, and give it its own dtype back.

    A bf16 weight has eight bits: at a learning rate of 2e-5 nearly every update would round to nothing.
    """
    own = {name: p.dtype for name, p in learns.items()}
    for p in learns.values():
        p.data = p.data.float()
    try:
        yield
    finally:
        for name, p in learns.items():
            p.data, p.grad = p.data.to(own[name]), None
