"""How the small tower learns to see, and what all the profile's images look like to it, made once and kept.

It learns what every patch shows (dense cell labels) and is then frozen, as CLIP is in LLaVA. A caption
loss was near chance after five times as long.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vtc import data
from vtc.compressors.base import Features
from vtc.models.tower import Tower, load_checkpoint
from vtc.profiles import Profile
from vtc.progress import bar
from vtc.training.loop import BF16, Stage, fit, once, save_whole

FORMS = 1 + len(data.SHAPES) + len(data.DIGITS)  # what a patch can show: nothing, a shape, a digit
TINTS = 1 + len(data.COLORS)


def pretrained(p: Profile) -> Tower:
    """The profile's frozen tower: from its checkpoint, else trained once and kept in the profile's cache."""
    if p.tower.checkpoint:
        return load_checkpoint(p.tower.checkpoint, p.tower.levels)
    file = p.cache / "tower.safetensors"
    with once(file) as missing:
        if missing:
            tower, accuracy = pretrain(p)
            facts = {name: f"{share:.4f}" for name, share in accuracy.items()}
            save_whole(tower.state_dict(), file, facts)
    tower = Tower(p.tower)
    tower.load_state_dict(load_file(file))
    return tower.eval().requires_grad_(False)


def accuracy(p: Profile) -> dict[str, float]:
    """How well the frozen tower's features tell shapes, colours and unseen digits, measured when trained."""
    pretrained(p)
    with safe_open(p.cache / "tower.safetensors", "pt") as file:
        return {name: float(value) for name, value in file.metadata().items()}


class _Dense(nn.Module):
    """The tower with a linear map per patch; its loss is that of naming each patch's form and colour."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(tower.shape.d_levels, FORMS + TINTS)

    def forward(self, images: Tensor, form: Tensor, tint: Tensor) -> Tensor:
        """(b, pixels, pixels, 3), (b, s), (b, s) -> the loss."""
        logits = self.head(self.tower(images).levels).float()  # (b, s, FORMS + TINTS)
        losses = []
        for part, label in ((logits[..., :FORMS], form), (logits[..., FORMS:], tint)):
            weight = torch.ones(part.shape[-1], device=part.device)
            weight[0] = 0.3  # two thirds of the patches show nothing
            losses.append(F.cross_entropy(part.flatten(0, 1), label.flatten(), weight))
        return sum(losses)


def pretrain(p: Profile) -> tuple[Tower, dict[str, float]]:
    """Train the small tower on dense labels of training images: the form and the colour each patch shows."""
    torch.manual_seed(0)
    model, recipe = _Dense(Tower(p.tower)), p.tower_recipe
    scenes = data.make_scenes(p.images_train, "train", seed=1)
    images = torch.from_numpy(data.render(scenes, "train", p.pixels))
    form, tint = map(torch.from_numpy, data.dense_labels(scenes, p.g))

    def batch(step: int) -> tuple[Tensor, ...]:
        rows = torch.from_numpy(np.random.default_rng(step).integers(0, len(scenes), recipe.batch))
        return images[rows], form[rows], tint[rows]

    stage = Stage("tower", recipe.steps, recipe.lr, ("tower", "head"), p.recipe.checkpoint_every)
    with sdpa_kernel(
        SDPBackend.MATH
    ):  # on a CPU the fused attention's backward pass takes longer at these widths
        fit(model, stage, batch, p.cache / "tower")
    tower = model.tower.eval().requires_grad_(False)
    return tower, _dense_accuracy(tower, model.head, p)


@torch.no_grad()
def _dense_accuracy(tower: Tower, head: nn.Module, p: Profile) -> dict[str, float]:
    """Share of patches named rightly on test images (handwriting never trained on), by what they show."""
    scenes = data.make_scenes(p.images_test, "test", seed=2)
    images = torch.from_numpy(data.render(scenes, "test", p.pixels))
    form, tint = map(torch.from_numpy, data.dense_labels(scenes, p.g))
    logits = torch.cat([head(tower(part).levels).cpu() for part in images.split(256)])
    right, hue = logits[..., :FORMS].argmax(-1) == form, logits[..., FORMS:].argmax(-1) == tint
    shape, digit = (form > 0) & (form <= len(data.SHAPES)), form > len(data.SHAPES)
    return {"shape": right[shape].float().mean().item(), "color": hue[shape].float().mean().item(),
            "digit": right[digit].float().mean().item()}  # fmt: skip


def features(p: Profile, split: str, selecting: bool = False, side: int | None = None) -> Features:
    """Features of all the profile's images of that split, made once, kept as bf16; see `Tower.forward`.

    The files are mapped, not read, so several processes share one copy; `last` is a view into `levels`.
    """
    name = "features" if side is None else f"features-{side}"
    levels = _kept(p, split, name, ("levels",), side)["levels"]  # (n, s, d_levels)
    parts = ("attention", "keys", "cls") if p.tower.checkpoint else ("attention", "keys")
    more = _kept(p, split, "selecting", parts) if selecting else {}
    return Features(levels=levels, last=levels[..., -p.tower.d :], **more)


def _kept(p: Profile, split: str, name: str, parts: tuple[str, ...], side=None) -> dict[str, Tensor]:
    """Those parts of all images' features, from the cache, where they are put first if need be."""
    file = p.cache / f"{name}-{split}.safetensors"
    with once(file) as missing:
        if missing:
            save_whole(_over_images(pretrained(p), p, split, parts, side), file)
    return load_file(file)


@torch.no_grad()
def _over_images(tower: Tower, p: Profile, split: str, parts: tuple[str, ...], side) -> dict[str, Tensor]:
    """Those parts of the features of all images of that split, as bf16."""
    scenes, chunk, found = images_of(p, split), 256, {part: [] for part in parts}
    for start in bar(range(0, len(scenes), chunk), f"{split} features"):
        rows = range(start, min(start + chunk, len(scenes)))
        images = torch.from_numpy(data.render(scenes, split, p.pixels, rows))
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            seen = tower(images, "keys" in parts, side)
        for part in parts:
            found[part].append(getattr(seen, part).bfloat16())
    return {part: torch.cat(pieces) for part, pieces in found.items()}


@torch.no_grad()
def of_files(tower: Tower, files: list[Path], selecting: bool = False, side: int | None = None) -> Features:
    """Features of images on disk, each resized to the tower's square; InputError names one it cannot read."""
    seen = []
    for start in bar(range(0, len(files), 64), "features"):
        images = np.stack([data.load_image(f, tower.pixels) for f in files[start : start + 64]])
        seen.append(tower(torch.from_numpy(images), selecting, side))
    return Features.cat(seen)


def images_of(p: Profile, split: str) -> data.Scenes:
    """The scenes that the profile trains on ("train"), chooses by ("validation") or is tested on ("test")."""
    return data.make_scenes(getattr(p, f"images_{split}"), split, seed=3)
