"""What a training will take, counted before it starts; and a dry run of its very code at a small width.

Operations are `vtc.cost`'s. Of what learns, a pass back costs twice a pass forth; through what is frozen it
costs as much, and the tower and a question pass have none. Memory and storage are bytes of weights, gradients
and optimiser, and of what the LLM's layers keep for the pass back.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from vtc import cost, data
from vtc.models.tower import Tower
from vtc.models.vlm import VLM
from vtc.profiles import GB, Profile, Schedule
from vtc.shapes import LLMShape, TowerShape
from vtc.training import user_data
from vtc.training.features import size_in_bytes
from vtc.training.memory import NOTHING_SPARED, Memory
from vtc.training.stages import Case

# Of a device's peak, in training. LLaVA-1.5's 7B took 28 and 80 hours of an A100 at 576 tokens (its README,
# 8 devices for 3.5 and 10 hours), which is what this share and these tokens give.
SHARE = 0.3
TEXT_TOKENS = (40, 250)  # of an image's text in the two stages: assumed, where no data are looked at
ANSWERS = 0.5  # of the text that is answers
MASTER, LEARNT, KEPT = 4, 16, 12  # bytes a weight: float32; with gradient and AdamW's two; in a checkpoint
LIMIT = 500 * GB  # of storage
WIDTH = 64  # of the dry run's LLM and tower


@dataclass(frozen=True)
class Outlook:
    """One stage: how much is learnt from how much, and what that takes."""

    name: str
    steps: int
    images: int
    learns: float  # parameters
    flops: float
    device_hours: float
    device_bytes: float


def stages(
    p: Profile,
    case: Case,
    hardware: cost.Hardware,
    devices: int,
    learns: str,
    memory: Memory = NOTHING_SPARED,
) -> list[Outlook]:
    """The two stages of a case on so many devices; learns: of the LLM, see `user_data.LEARNS`.

    Raises InputError where the compressor cannot give V.
    """
    llm, made = p.size(case.size), []
    between, tower = _between(p, case), p.tower.params if case.V else 0
    for name, tokens, more in zip(("align", "instruct"), TEXT_TOKENS, (0, _of_llm(llm, learns))):
        schedule: Schedule = getattr(p.recipe, name)
        images, learnt, whole = schedule.steps * schedule.batch, between + more, more == llm.params
        flops = images * _flops(p, case, tokens, whole, memory.checkpointing)
        held = (2 * llm.params * (not whole) + LEARNT * learnt) / (devices if memory.shard else 1) + 2 * tower
        held += -(-schedule.batch // (devices * memory.accumulate)) * _kept(llm, case.V, tokens, memory)
        hours = flops / (hardware.peak["bf16"] * SHARE) / 3600
        made.append(Outlook(name, schedule.steps, images, learnt, flops, hours, held))
    return made if case.V else made[1:]


def _of_llm(llm: LLMShape, learns: str) -> int:
    """Parameters of the LLM that learn; LoRA has rank (d_in + d_out) for each matrix of the layers."""
    sides = 4 * llm.d + 2 * (llm.d + llm.d_kv) + 3 * (llm.d + llm.d_ff)
    return {"all": llm.params, "frozen": 0, "lora": llm.layers * user_data.RANK * sides}[learns]


def _flops(p: Profile, case: Case, tokens: float, learnt: bool, twice: bool = False) -> float:
    """Operations of one image and its text: forth and back; twice: forth once more, for the pass back."""
    pipe = cost.Pipeline(p.size(case.size), p.tower, case.compressor)
    work = {name: float(w.flops) for name, w in cost.stages(pipe, case.V, tokens).items()}
    through = work["prefill"] + tokens * ANSWERS * work["first"]  # a head for each answer token
    new = work["compressor"] + work["projector"]
    again = work["prefill"] if twice else 0.0
    return work["tower"] + work["question"] + 3 * new + (3 if learnt else 2) * through + again


def _between(p: Profile, case: Case) -> float:
    """Parameters of compressor and projector."""
    d_llm = p.size(case.size).d
    part = cost.compressor(case.compressor, p.tower, case.V, d_llm)
    projector = 0 if part.at_llm_width or not case.V else (p.tower.d + d_llm + 2) * d_llm
    return float(part.weights) + projector


def _kept(llm: LLMShape, V: int, tokens: float, memory: Memory) -> float:
    """Bytes that one image keeps for the pass back: inputs of the layers' products in bf16, and logits.

    With gradient checkpointing: the inputs of the layers, and one layer's inside.
    """
    inside = 2 * (6 * llm.d + 2 * llm.d_kv + 4 * llm.d_ff)
    layers = llm.layers * 2 * llm.d + inside if memory.checkpointing else llm.layers * inside
    return layers * (V + tokens) + 10 * llm.vocab * tokens * ANSWERS


def storage(p: Profile, case: Case, learns: str) -> dict[str, float]:
    """Bytes on the disk: what is downloaded, kept features, the checkpoints in flight, the model."""
    llm, between = p.size(case.size), _between(p, case)
    features = size_in_bytes(p, p.images_train)
    return {
        "LLM and tower": 2 * llm.params * bool(llm.checkpoint) + MASTER * p.tower.params,
        "features": features * (features <= p.feature_bytes),
        "checkpoints": KEPT * (2 * between + _of_llm(llm, learns)),
        "model": 2 * llm.params + MASTER * between,
    }


def lines(
    p: Profile, case: Case, hardware: cost.Hardware, devices: int, learns: str = "all",
    memory: Memory = NOTHING_SPARED,
) -> list[str]:  # fmt: skip
    """The outlook in words: a line a stage, then hours and storage."""
    found, disk = stages(p, case, hardware, devices, learns, memory), storage(p, case, learns)
    llm, hours, total = p.size(case.size), sum(one.device_hours for one in found), sum(disk.values())
    said = [
        f"LLM {llm.name}, N = {llm.N:,}; {case.compressor}, V = {case.V} of {p.s} patches; "
        f"{devices} x {hardware.name}, {TEXT_TOKENS[0]} and {TEXT_TOKENS[1]} text tokens an image assumed"
    ]
    for one in found:
        more = f", more than its {hardware.memory / GB:.0f}" if one.device_bytes > hardware.memory else ""
        said.append(
            f"  {one.name}: {one.steps:,} steps, {one.images:,} images, {one.learns / 1e6:,.1f} M parameters "
            f"learn, {one.flops:.2g} operations, {_short(one.device_hours)} device-hours, "
            f"{_short(one.device_bytes / GB)} GB a device{more}"
        )
    parts = ", ".join(f"{name} {_short(size / GB)}" for name, size in disk.items())
    over = f", more than {LIMIT / GB:.0f}" if total > LIMIT else ""
    return [
        *said,
        f"  together {_short(hours)} device-hours at {SHARE:.0%} of peak, {_short(hours / devices)} hours",
        f"  storage {_short(total / GB)} GB{over}: {parts}",
    ]


def _short(x: float) -> str:
    """Two digits, or all before the point."""
    return f"{x:,.0f}" if x >= 10 else f"{x:.2g}"


# --- the dry run ---


def shrunken(p: Profile, case: Case) -> Profile:
    """The profile with an LLM and a tower of `WIDTH`, fresh, and one step of two images a stage.

    Grid, V, compressor and recipe stay; the LLM has layers enough for every compressor.
    """
    size = LLMShape(p.size(case.size).name, 4, WIDTH, d_ff=2 * WIDTH, heads=2, tied=True)
    tower = TowerShape(WIDTH, 4, 2, p.tower.patch, levels=(1, 2, 3, 4), pixels=p.tower.pixels)

    def short(stage: Schedule) -> Schedule:
        return replace(stage, steps=1, batch=2)

    recipe = replace(p.recipe, align=short(p.recipe.align), instruct=short(p.recipe.instruct))
    return replace(p, sizes=(size,), tower=tower, recipe=recipe, run=f"dry-run-{os.getpid()}")


def dry_run(p: Profile, case: Case, learns: str = "all", memory: Memory = NOTHING_SPARED) -> str:
    """Train both stages for a step, save, load and ask, by the code of a real run -> what came out."""
    small, memory = shrunken(p, case), replace(memory, accumulate=min(memory.accumulate, 2))
    try:
        small.runs.mkdir(parents=True, exist_ok=True)
        talks = [_noise(small.runs / f"{i}.png", small.pixels, i) for i in range(2)]
        eyes = Tower(small.tower).eval().requires_grad_(False)
        model, notes = user_data.train(small, case, talks, eyes, learns, memory)
        model.save_pretrained(small.runs / "model")
        again = VLM.from_pretrained(small.runs / "model")
        pixels = np.stack([data.load_image(talk.image, small.pixels) for talk in talks])
        answers = again.generate(
            torch.from_numpy(pixels) if case.V else None, [talk.turns[0][0] for talk in talks]
        )
    finally:
        shutil.rmtree(small.runs, ignore_errors=True)
    done = "align and instruct" if case.V else "instruct"
    loss = f"a step of each, loss {notes['loss']:.2f}"
    return f"dry run {WIDTH} wide: {done}, {loss}; saved, loaded and asked, {len(answers)} answers"


def _noise(file: Path, pixels: int, seed: int) -> data.Conversation:
    """An image that shows nothing, and a question with its answer about it."""
    from PIL import Image

    shown = np.random.default_rng(seed).integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)
    Image.fromarray(shown).save(file)
    return data.Conversation(file, (("what is in the image ?", "nothing but noise"),))
