"""Where training runs, in which precision, and how its batches get there."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from os import environ

import torch
from accelerate import PartialState

from vtc import InputError


@dataclass(frozen=True)
class Share:
    """The part of every step's batch that this process computes: sequences rank, rank + of, ..."""

    rank: int = 0
    of: int = 1  # processes

    @property
    def mine(self) -> slice:
        return slice(self.rank, None, self.of)


@dataclass(frozen=True)
class Batch:
    """What one process computes of one step."""

    inputs: tuple  # the model's arguments
    # Answers here over those of an average process. Gradients are averaged over processes; with this weight
    # that is the gradient of the mean over all answers, as one process would have it.
    weight: float = 1.0


def processes() -> PartialState:
    """This process among those of its torchrun; InputError where they would not work together."""
    told = environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    state = PartialState(cpu=told or not torch.accelerator.is_available())
    asked = int(environ.get("WORLD_SIZE", 1))
    if state.num_processes != asked:
        found = f"{asked} processes were asked for, {state.num_processes} work together"
        raise InputError(f"{found}: use torchrun")
    return state


def device() -> torch.device:
    """Where this process computes: its accelerator if there is one, else the CPU."""
    return processes().device


def is_main_process() -> bool:
    """Whether this is the first process of its torchrun, the one that writes; alone, it is."""
    return processes().is_main_process


@cache
def bf16_is_fast(kind: str) -> bool:
    """Whether that kind of device multiplies bf16 faster than float32; of CPUs only some do."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    ask = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # not in every build of torch
    return kind == "cpu" and torch.backends.mkldnn.is_available() and ask is not None and bool(ask())


def keep_freed_memory() -> None:
    """Let the C library keep what tensors on a CPU give back, up to 1 GB, for those that come after them.

    As it comes, glibc hands large blocks back to the system, and every page of the next step costs a fault:
    a product of 1,344 x 16 and 16 x 96 takes 285 microseconds in place of 77. Elsewhere nothing happens.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    trim_threshold, mmap_threshold = -1, -3  # M_..., malloc.h
    libc.mallopt(mmap_threshold, 32 << 20)  # the largest that it takes
    libc.mallopt(trim_threshold, 1 << 30)


WIDE = 96  # from this width a CPU gains by bf16; below, conversions cost more than products save


def in_bf16(kind: str, d: int = WIDE) -> bool:
    """Whether matrix products of a model d wide are done in bf16 on that kind of device.

    A text step on a CPU takes .5, .8, 1.0 times as long in float32 for d = 16, 32, 64.
    """
    return bf16_is_fast(kind) and (kind != "cpu" or d >= WIDE)


def autocast(kind: str, d: int = WIDE) -> torch.autocast:
    """Matrix products in bf16 where a model d wide gains by it; everything else stays float32."""
    return torch.autocast(kind, torch.bfloat16, enabled=in_bf16(kind, d))


def prefetched(batch: Callable[[int], Batch], steps: range, on: torch.device) -> Iterator[Batch]:
    """The batches of these steps, on the device.

    An accelerator works on one while a thread makes and sends the next. On a CPU both would need the same
    cores, and the thread would only hold up the computation.
    """
    if on.type == "cpu":
        yield from map(batch, steps)
        return
    with ThreadPoolExecutor(1) as thread:
        coming = [thread.submit(lambda step: _sent(batch(step), on), step) for step in steps[:1]]
        for step in steps:
            ready = coming.pop().result()
            if step + 1 in steps:
                coming.append(thread.submit(lambda step: _sent(batch(step), on), step + 1))
            yield ready


def _sent(value: object, on: torch.device):
    """Every tensor in a batch on the device, in its own dtype; the copy does not wait for the device."""
    if isinstance(value, torch.Tensor):
        pinned = value.pin_memory() if value.device.type == "cpu" and on.type == "cuda" else value
        return pinned.to(on, non_blocking=True)
    if isinstance(value, tuple):
        return tuple(_sent(part, on) for part in value)
    if is_dataclass(value):
        return type(value)(**{f.name: _sent(getattr(value, f.name), on) for f in fields(value)})
    return value
