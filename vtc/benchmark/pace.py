"""Speed here: of training beside a plain loop (notebook 02), and of a first token (notebook 05).

The plain loop is what one writes first: one question a sequence, float32, transformers as it comes, AdamW. It
learns from the same questions, so the two rates can be compared; both are timed in turn, in one process, on
one thread or one GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vtc import data
from vtc.benchmark.clock import in_turn, ratio, summary
from vtc.machine import device_name, has_cuda
from vtc.models.llm import empty_llm, make_llm, make_tokenizer
from vtc.models.prompt import Packed
from vtc.models.tower import Tower
from vtc.models.vlm import VLM
from vtc.profiles import Profile
from vtc.training.device import in_bf16
from vtc.training.features import features
from vtc.training.lessons import BINDING, IMAGE_MIX, Reader
from vtc.training.optim import make_optimizers
from vtc.training.stages import Case, assemble, build

SIDE = 2048  # of the square product that measures the peak


def cases(p: Profile) -> list[dict]:
    """What notebook 02 clocks: every LLM of the profile at the middle V of the sweep."""
    middle = sorted(p.V)[len(p.V) // 2]
    return [{"size": size.name, "V": middle, "compressor": "tokenpacker"} for size in p.sizes]


def measure(p: Profile, case: dict, rounds: int = 5) -> dict[str, float | str]:
    """Clock a cell's training step, ours and the plain one in turn -> questions/s, ratio, share of peak."""
    with _one_thread() as device:
        cell, seen = Case(**case, seed=p.seeds[0]), features(p, "train")
        packed, alone, rows, whose = _asked(p)
        ours, plain = build(p, cell).to(device), build(p, cell)
        plain.llm = empty_llm(plain.llm.config, "sdpa")  # transformers' as it comes, no part replaced
        plain.to(device)
        low = in_bf16(device, p.size(case["size"]).d)
        muon = make_optimizers(dict(ours.named_parameters()), 1e-4)
        adam = [torch.optim.AdamW(plain.parameters())]
        seen, each = (seen[torch.from_numpy(which)].to(device, torch.float32) for which in (rows, whose))
        square = torch.ones(SIDE, SIDE, dtype=torch.bfloat16 if low else torch.float32, device=device)
        calls = {
            "ours": _stepper(ours, muon, (packed.to(device), seen), low),
            "plain": _stepper(plain, adam, (alone.to(device), each), False),
            "peak": lambda: square @ square,
        }
        with FlopCounterMode(display=False) as counter:
            calls["ours"]()
        taken = in_turn(calls, device, fewest=rounds, most=rounds)
        name = device_name(device)
    ours_s, plain_s, peak_s = (summary(ms)["median_ms"] / 1e3 for ms in taken.values())
    asked, flops, peak = len(alone.ids), counter.get_total_flops(), 2 * SIDE**3 / peak_s
    return {
        "N": p.size(case["size"]).N,
        "questions_per_s": asked / ours_s,
        "plain_questions_per_s": asked / plain_s,
        "speedup": plain_s / ours_s,
        "flops_per_step": flops,
        "peak_flops": peak,
        "share_of_peak": flops / ours_s / peak,
        "dtype": "bf16" if low else "float32",
        "device": name,
    }


def first_token_cases(rows: pd.DataFrame) -> list[dict]:
    """What notebook 05 clocks: each compressor at each V of these cells."""
    return rows[["size", "V", "compressor"]].drop_duplicates().to_dict("records")


@torch.no_grad()
def first_token(p: Profile, case: dict, rounds: int = 40) -> dict[str, float | str]:
    """Features of one image and one question -> first token, ms, in turn with TokenPacker's at one token.

    Weights are random, which changes no time; the tower is the same for all and left out.
    """
    with _one_thread() as device:
        usual = {"compressor": "tokenpacker", "V": 1}
        models = {"ours": _untrained(p, case, device), "other": _untrained(p, case | usual, device)}
        images = torch.zeros(1, p.pixels, p.pixels, 3, dtype=torch.uint8)
        eyes, question, calls = Tower(p.tower), ["x5 y7 owl ?"], {}
        for name, model in models.items():
            seen = eyes(images, **model.compressor.of_tower).to(device)
            calls[name] = partial(model.generate, seen, question, 1)
        taken = in_turn(calls, device, fewest=rounds, most=rounds, warm_up=5)
        name = device_name(device)
    ours, other = summary(taken["ours"]), summary(taken["other"])
    times = {"first_token_ms": ours["median_ms"], "q25_ms": ours["q25_ms"], "q75_ms": ours["q75_ms"]}
    times["tokenpacker_ms"] = other["median_ms"]
    return {**times, **ratio(taken["ours"], taken["other"]), "device": name}


def _untrained(p: Profile, case: dict, device: str) -> VLM:
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    llm = make_llm(p.size(case["size"]), len(tokenizer))
    return assemble(p, Case(**case, seed=0), llm, tokenizer).to(device).eval()


def _asked(p: Profile) -> tuple[Packed, Packed, np.ndarray, np.ndarray]:
    """One step's questions, packed and one a sequence, and the image of each sequence."""
    scenes, facts, reader = data.scenes_of(p, "train"), data.Facts(p.world), Reader(make_tokenizer())
    rows = np.arange(p.recipe.instruct.batch)
    whose = rows.repeat(p.recipe.instruct.pack)
    questions = data.ask_any(scenes, whose, facts, "train", np.random.default_rng(0), IMAGE_MIX, BINDING)
    packed, alone = (
        replace(reader.packed(questions, data.in_words(scenes, which)), scene_text=None)
        for which in (rows, whose)
    )
    return packed, alone, rows, whose


def _stepper(model: nn.Module, optimizers: list, batch: tuple, bf16: bool) -> Callable[[], None]:
    """One whole training step as a call."""
    device = next(model.parameters()).device.type

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = model(*batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()

    for group in (g for o in optimizers for g in o.param_groups):
        group["lr"] = 1e-4
    return step


@contextmanager
def _one_thread() -> Iterator[str]:
    """Yields the device that things are clocked on: the GPU, or the CPU with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield "cuda" if has_cuda() else "cpu"
    finally:
        torch.set_num_threads(before)
