"""How the small tower learns to see: what every patch shows. It is then frozen, as CLIP is in LLaVA.

A caption loss was near chance after five times as long.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vtc import data
from vtc.models.tower import Tower, load_checkpoint
from vtc.profiles import Profile
from vtc.training.checkpoints import build_once, notes_of
from vtc.training.device import Batch, Share, device
from vtc.training.loop import Stage, fit

FORMS = 1 + len(data.SHAPES) + len(data.DIGITS)  # what a patch can show: nothing, a shape, a digit
TINTS = 1 + len(data.COLORS)


def pretrained(p: Profile) -> Tower:
    """The profile's frozen tower: from its checkpoint, else trained once and kept in the profile's cache."""
    if p.tower.checkpoint:
        return load_checkpoint(p.tower.checkpoint, p.tower.levels)
    file = p.cache / "tower.safetensors"
    build_once(file, lambda: pretrain(p))
    tower = Tower(p.tower)
    tower.load_state_dict(load_file(file))
    return tower.eval().requires_grad_(False)


def accuracy(p: Profile) -> dict[str, float]:
    """How well the frozen tower's features tell shapes, colours and unseen digits, measured when trained."""
    pretrained(p)
    return notes_of(p.cache / "tower.safetensors")


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


def pretrain(p: Profile) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train the small tower on dense labels of training images -> its weights and its accuracy."""
    torch.manual_seed(0)
    model, recipe = _Dense(Tower(p.tower)), p.tower_recipe
    scenes = data.make_scenes(p.images_train, "train", seed=1)
    images = torch.from_numpy(data.render(scenes, "train", p.pixels))
    form, tint = map(torch.from_numpy, data.dense_labels(scenes, p.g))

    def batch(step: int, share: Share) -> Batch:
        rows = np.random.default_rng(step).integers(0, len(scenes), recipe.batch)[share.mine]
        mine = torch.from_numpy(rows)
        return Batch((images[mine], form[mine], tint[mine]), share.of * len(rows) / recipe.batch)

    stage = Stage("tower", recipe.steps, recipe.lr, ("tower", "head"), p.recipe.checkpoint_every)
    # on a CPU the fused attention's backward pass takes longer at these widths
    with sdpa_kernel(SDPBackend.MATH) if device().type == "cpu" else nullcontext():
        fit(model, stage, batch, p.cache / "tower")
    tower = model.tower.eval().requires_grad_(False)
    return tower.state_dict(), _dense_accuracy(tower, model.head, p)


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


def images_of(p: Profile, split: str) -> data.Scenes:
    """The scenes that the profile trains on ("train"), chooses by ("validation") or is tested on ("test")."""
    return data.make_scenes(getattr(p, f"images_{split}"), split, seed=3)
