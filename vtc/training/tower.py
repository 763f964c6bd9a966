"""How the small tower learns to see: what every patch shows. It is then frozen, as CLIP is in LLaVA.

A caption loss was near chance after five times as long.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

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

FORMS = 1 + len(data.DIGITS)  # what a patch can show: the ground, a digit
ROWS = 4  # lines of marks at most while it learns: more marks an image than the world has
SIZES = (1.0, 2.0, 3.0, 4.0, 5.5, 7.0, 8.5, 10.0)  # marks that fit a side, where its sight is measured
MEASURED = 1024  # images by which it is measured


def pretrained(p: Profile) -> Tower:
    """The profile's frozen tower: from its checkpoint, else trained once and kept in the profile's cache."""
    if p.tower.checkpoint:
        return load_checkpoint(p.tower.checkpoint, p.tower.levels)
    file = p.cache_before_align / "tower.safetensors"
    build_once(file, lambda: pretrain(p))
    tower = Tower(p.tower)
    tower.load_state_dict(load_file(file))
    return tower.eval().requires_grad_(False)


def accuracy(p: Profile) -> dict[str, float]:
    """How well the frozen tower's features tell lands and unseen digits, measured when it was trained."""
    pretrained(p)
    return notes_of(p.cache_before_align / "tower.safetensors")


class _Dense(nn.Module):
    """The tower with a linear map per patch; its loss is that of naming the patch's digit and the land."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(tower.shape.d_levels, FORMS + len(data.LANDS))

    def forward(self, images: Tensor, form: Tensor, land: Tensor) -> Tensor:
        """(b, pixels, pixels, 3), (b, s), (b,) -> the loss."""
        logits = self.head(self.tower(images).levels).float()  # (b, s, FORMS + lands)
        weight = torch.ones(FORMS, device=form.device)
        weight[0] = 0.3  # most patches show the ground alone
        forms, lands = logits.split([FORMS, len(data.LANDS)], -1)
        whose = land[:, None].expand(-1, form.shape[1])
        digits = F.cross_entropy(forms.flatten(0, 1), form.flatten(), weight)
        return digits + 0.3 * F.cross_entropy(lands.flatten(0, 1), whose.flatten())


def pretrain(p: Profile) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train the small tower on dense labels of training images -> its weights and its accuracy."""
    torch.manual_seed(0)
    model, recipe = _Dense(Tower(p.tower)), p.tower_recipe
    scenes = data.make_scenes(replace(p.world, rows=ROWS), p.images_train, "train", seed=1)
    images = torch.from_numpy(data.render(scenes, "train", p.pixels))
    form, land = torch.from_numpy(data.dense_labels(scenes, p.g)), torch.from_numpy(scenes.land)

    def batch(step: int, share: Share) -> Batch:
        rows = np.random.default_rng(step).integers(0, len(scenes), recipe.batch)[share.mine]
        mine = torch.from_numpy(rows)
        return Batch((images[mine], form[mine], land[mine]), share.of * len(rows) / recipe.batch)

    stage = Stage("tower", recipe.steps, recipe.lr, ("tower", "head"), p.recipe.checkpoint_every)
    # on a CPU the fused attention's backward pass takes longer at these widths
    with sdpa_kernel(SDPBackend.MATH) if device().type == "cpu" else nullcontext():
        fit(model, stage, batch, p.cache_before_align / "tower")
    tower = model.tower.eval().requires_grad_(False)
    return tower.state_dict(), _measured(tower, model.head, p)


@torch.no_grad()
def _measured(tower: Tower, head: nn.Module, p: Profile) -> dict[str, float]:
    """Shares named rightly on validation images (handwriting never trained on): lands, and digits by size.

    A digit counts as named if the patch at its centre names it. `digit_a_b`: where a to b marks fit a side.
    """
    scenes = data.make_scenes(p.world, min(MEASURED, p.images_validation), "validation", seed=2)
    images = torch.from_numpy(data.render(scenes, "validation", p.pixels))
    logits = torch.cat([head(tower(part).levels).float().cpu() for part in images.split(256)])
    forms, lands = (part.argmax(-1).numpy() for part in logits.split([FORMS, len(data.LANDS)], -1))
    x, y = np.moveaxis((scenes.box[..., :2] * p.g).astype(int).clip(0, p.g - 1), -1, 0)  # (n, m)
    right = np.take_along_axis(forms, y * p.g + x, 1) == scenes.digit + 1
    there = np.arange(right.shape[1])[None] < scenes.marks[:, None]
    found = {"land": float((lands == scenes.land[:, None]).mean()), "digit": float(right[there].mean())}
    for low, high in zip(SIZES, SIZES[1:]):
        these = there & ((scenes.fit >= low) & (scenes.fit < high))[:, None]
        found[f"digit_{low:g}_{high:g}"] = float(right[these].mean()) if these.any() else float("nan")
    return found
