"""Weights on disk: written whole, made once, and the state of a stage in flight. No pickles."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from vtc.files import file_lock, replacing
from vtc.training.device import processes
from vtc.training.memory import cut_like


def save(tensors: dict[str, Tensor], file: Path, notes: dict[str, float] | None = None) -> None:
    """Write tensors, and numbers that `notes_of` reads back, so that the file is whole or not there."""
    texts = {name: repr(float(value)) for name, value in (notes or {}).items()}
    with replacing(file) as part:
        save_file({k: v.contiguous() for k, v in tensors.items()}, part, metadata=texts)


def notes_of(file: Path) -> dict[str, float]:
    """The numbers that were saved beside the tensors."""
    with safe_open(file, "pt") as opened:
        return {name: float(value) for name, value in (opened.metadata() or {}).items()}


def build_once(file: Path, make: Callable[[], tuple[dict[str, Tensor], dict[str, float]]]) -> None:
    """Save the tensors and notes that `make` returns, unless the file is there.

    Of several programs that ask, one makes it while the others wait; one that is killed leaves no lock. The
    processes of one torchrun make it together, since training is their joint work, and the first saves it.
    """
    state = processes()
    with file_lock(file) if state.is_main_process else nullcontext():
        [missing] = broadcast_object_list([not file.exists()])
        if missing:
            made = make()
            if state.is_main_process:
                save(made[0], file, made[1])
        state.wait_for_everyone()


def keep(file: Path, learns: dict, optimizers: list, step: int, seconds: float, losses: list[Tensor]) -> None:
    """Save a stage in flight: weights (`w.NAME`), what the optimisers remember of each, the last losses.

    The first process writes; where weights lie in shards, the others hand it theirs.
    """
    first, state = processes().is_main_process, {"losses.": torch.stack(losses)}
    for name, p in learns.items():
        remembered = next((o.state[p] for o in optimizers if p in o.state), {})
        for what, value in {"w": p.detach(), **remembered}.items():
            if isinstance(value, DTensor):  # one at a time, for a device may not hold them all
                whole = value.full_tensor()
                value = whole.cpu() if first else None
            if torch.is_tensor(value):
                state[f"{what}.{name}"] = value
    if first:
        save(state, file, {"step": step, "seconds": seconds})


@torch.no_grad()
def resume(file: Path | None, learns: dict, optimizers: list) -> tuple[int, float, list[Tensor]]:
    """Put back what `keep` saved, if it did; returns the steps done, their seconds and the last losses."""
    if file is None or not file.exists():
        return 0, 0.0, []
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(file).items():
        what, name = key.split(".", 1)
        state.setdefault(name, {})[what] = value
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    for name, p in learns.items():
        p.copy_(cut_like(state[name].pop("w"), p))
        owner[p].state[p] = {what: cut_like(v, p) for what, v in state[name].items()}
    notes, on = notes_of(file), next(iter(learns.values())).device
    return int(notes["step"]), notes["seconds"], list(state[""]["losses"].to(on))
