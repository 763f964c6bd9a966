"""What reading images costs a training step, beside the same step with features in memory.

Both steps are those of `vtc train` on people's own data, taken in turn in one process, so their ratio holds
on a busy machine. The LLM has the shape of SmolLM2-135M and random weights, which changes no time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vtc.benchmark.clock import in_turn, ratio
from vtc.models.llm import make_llm, make_tokenizer
from vtc.models.tower import Tower
from vtc.profiles import Profile, Schedule
from vtc.shapes import LLMShape
from vtc.training import features
from vtc.training.batches import Bank, Question, batches
from vtc.training.device import Share, autocast, device, prefetched
from vtc.training.stages import Case, assemble

SMOLLM2 = LLMShape("SmolLM2-135M", 30, 576, 1536, 9, 3, 49152, tied=True, bias=False)
SIDES = 640, 480  # pixels of a photograph
STEP = Schedule(steps=1, batch=8, lr=1e-4)  # a question an image
WORDS = 40  # of a question: as many as tokens, a chat template's included


def measure(p: Profile, size: LLMShape = SMOLLM2, V: int = 16, images: int = 64, rounds: int = 5) -> dict:
    """The share of the step rate with features in memory that is left with images read at each step.

    JPEG photographs of `SIDES` are read, resized and seen by the profile's tower; the LLM is frozen. Returns
    `share` with its 95 % interval (`share_low`, `share_high`), the batch and the two medians in seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [_photograph(Path(folder) / f"{i}.jpg", i) for i in range(images)]
        eyes = Tower(p.tower).eval().requires_grad_(False)
        on_disk = features.OnDemand(eyes, features.reader(eyes, files), len(files), {})
        steps = _steps(p, size, V, {"disk": on_disk, "memory": on_disk[list(range(images))]})
        taken = in_turn(steps, device().type, fewest=rounds, most=rounds)
    found = ratio(taken["memory"], taken["disk"])
    seconds = {f"{name}_s": float(np.median(ms)) / 1e3 for name, ms in taken.items()}
    named = {name.replace("ratio", "share"): value for name, value in found.items()}
    return named | seconds | {"batch": STEP.batch, "V": V}


def _steps(p: Profile, size: LLMShape, V: int, seen: dict) -> dict[str, Callable[[], None]]:
    """By source of the features: a call that takes one more step of the same model."""
    tokenizer = make_tokenizer(tuple(map(str, range(WORDS))))
    said = " ".join(map(str, range(WORDS)))
    bank = Bank([Question(i, said, "1") for i in range(len(next(iter(seen.values()))))], tokenizer)
    torch.manual_seed(0)
    llm = make_llm(size, size.vocab or len(tokenizer)).requires_grad_(False)
    model = assemble(replace(p, sizes=(size,)), Case(size.name, V, "tokenpacker", 0), llm, tokenizer)
    model.to(device()).train()
    learns = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=1e-4)

    def of(source) -> Callable[[], None]:
        make = batches(bank, STEP, (0, 0), source)
        coming = prefetched(lambda step: make(step, Share()), range(1 << 20), device())

        def step() -> None:
            with autocast(device().type, size.d):
                loss = model(*next(coming).inputs)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return {name: of(source) for name, source in seen.items()}


def _photograph(file: Path, seed: int) -> Path:
    """A JPEG of smooth noise: as long to decode as a photograph."""
    small = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(small).resize(SIDES, Image.Resampling.BICUBIC).save(file, quality=90)
    return file
