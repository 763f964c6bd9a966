"""Speed here: of training beside a plain loop (notebook 02), and of a first token (notebook 05).

The plain loop is what one writes first: one question a sequence, float32, transformers as it comes, AdamW. It
learns from the same questions, so the two rates can be compared; both are taken in turn, in one process, on
one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2ForCausalLM

from vtc import data
from vtc.compressors.base import Features
from vtc.models.llm import make_llm, make_tokenizer
from vtc.models.vlm import VLM
from vtc.profiles import Profile
from vtc.training import tower
from vtc.training.loop import BF16, make_optimizers
from vtc.training.stages import Bank, Case, assemble, build


def cases(p: Profile) -> list[dict]:
    """What notebook 02 clocks: every LLM of the profile at the middle V of the sweep."""
    middle = sorted(p.V)[len(p.V) // 2]
    return [{"size": size.name, "V": middle, "compressor": "tokenpacker"} for size in p.sizes]


def measure(p: Profile, case: dict, rounds: int = 5) -> dict[str, float]:
    """Clock a cell's training step, ours and the plain one in turn -> questions/s, ratio, share of peak."""
    with _threads(1):
        return _measure(p, Case(**case, seed=p.seeds[0]), rounds)


def _measure(p: Profile, case: Case, rounds: int) -> dict[str, float]:
    ours, bank, features = build(p, case), _bank(p), tower.features(p, "train")
    plain = _plainly(p, case)
    packed, rows = bank.draw(p.recipe.batch, p.recipe.pack, np.random.default_rng(0))
    seen = features[torch.from_numpy(rows)].to(torch.float32)
    alone, whose = _unpacked(bank, p, rows)
    each = features[torch.from_numpy(whose)].to(torch.float32)
    quick = _stepper(ours, make_optimizers(dict(ours.named_parameters()), 1e-4), (packed, seen), BF16)
    slow = _stepper(plain, [torch.optim.AdamW(plain.parameters(), lr=1e-4)], (alone, each), False)
    with FlopCounterMode(display=False) as counter:
        quick()
    slow()
    times: dict[str, list[float]] = {"ours": [], "plain": [], "peak": []}
    for _ in range(rounds):  # in turn, so that a busy moment meets all three
        for name, call in (("ours", quick), ("plain", slow), ("peak", _product)):
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    ours_s, plain_s, peak_s = (statistics.median(times[name]) for name in ("ours", "plain", "peak"))
    asked = int((packed.position == 0).logical_and(packed.segment >= 0).sum())
    peak = 2 * _SIDE**3 / peak_s
    return {
        "N": p.size(case.size).N,
        "questions_per_s": asked / ours_s,
        "plain_questions_per_s": len(alone.ids) / plain_s,
        "speedup": (asked / ours_s) / (len(alone.ids) / plain_s),
        "flops_per_step": counter.get_total_flops(),
        "peak_flops": peak,
        "share_of_peak": counter.get_total_flops() / ours_s / peak,
        "dtype": "bf16" if BF16 else "float32",
    }


def first_token_cases(rows: pd.DataFrame) -> list[dict]:
    """What notebook 05 clocks: each compressor at each V of these cells."""
    return rows[["size", "V", "compressor"]].drop_duplicates().to_dict("records")


def first_token(p: Profile, case: dict, rounds: int = 40) -> dict[str, float]:
    """Features of one image and one question -> first token, ms, in turn with TokenPacker's at one token.

    Weights are random, which changes no time; the tower is the same for all and left out.
    """
    with _threads(1):
        model, other = (_untrained(p, case | same) for same in ({}, {"compressor": "tokenpacker", "V": 1}))
        draw = torch.Generator().manual_seed(0)
        levels = torch.randn(1, p.s, p.tower.d_levels, generator=draw)
        heads, d = p.tower.heads, p.tower.d
        seen = Features(
            last=levels[..., :d],
            levels=levels,
            attention=torch.rand(1, heads, p.s, generator=draw) / p.s,
            keys=torch.randn(1, p.s, heads, d // heads, generator=draw),
        )
        times: dict[str, list[float]] = {"ours": [], "other": []}
        for i in range(rounds + 5):
            for name, which in (("ours", model), ("other", other)):
                start = time.perf_counter()
                which.generate(seen, ["what shape is the red one ?"], 1)
                if i >= 5:  # the first ones warm up
                    times[name].append(1e3 * (time.perf_counter() - start))
    ours, tokenpacker = (np.array(times[name]) for name in ("ours", "other"))
    low, high = np.quantile(ours, [0.25, 0.75])
    return {
        "first_token_ms": float(np.median(ours)),
        "q25_ms": float(low),
        "q75_ms": float(high),
        "tokenpacker_ms": float(np.median(tokenpacker)),
        "ratio": float(np.median(ours) / np.median(tokenpacker)),
    }


def _untrained(p: Profile, case: dict) -> VLM:
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    llm = make_llm(p.size(case["size"]), len(tokenizer))
    return assemble(p, Case(**case, seed=0), llm, tokenizer).eval()


_SIDE = 2048  # of the square product that measures the peak


def _product() -> torch.Tensor:
    kind = torch.bfloat16 if BF16 else torch.float32
    return torch.ones(_SIDE, _SIDE, dtype=kind) @ torch.ones(_SIDE, _SIDE, dtype=kind)


def _plainly(p: Profile, case: Case) -> VLM:
    """The same cell with transformers' LLM as it comes, no part of it replaced."""
    model = build(p, case)
    config = model.llm.config
    config._attn_implementation = "sdpa"
    model.llm = Qwen2ForCausalLM(config)
    return model


def _bank(p: Profile) -> Bank:
    asked = data.ask(tower.images_of(p, "train"), tuple(data.MAKERS), "train", seed=4, each=2)
    return Bank(asked, make_tokenizer())


def _unpacked(bank: Bank, p: Profile, rows: np.ndarray) -> tuple:
    """As many questions about the same images, one a sequence."""
    rng = np.random.default_rng(0)
    picks = [
        (int(i), int(j)) for i in rows for j in rng.choice(bank.of[int(i)], p.recipe.pack, replace=False)
    ]
    whose = np.array([i for i, _ in picks])
    return bank.pack([[j] for _, j in picks], whose), whose


def _stepper(model: nn.Module, optimizers: list, batch: tuple, bf16: bool) -> Callable[[], None]:
    """One whole training step as a call."""

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
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
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
