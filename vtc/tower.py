"""The vision tower: open_clip's ViT, frozen, giving features of several layers in one call.

The small tower is an open_clip model like any other, by a config of our own. It learns here what every patch
shows (dense cell labels) and is then frozen, as CLIP is in LLaVA. A caption loss was near chance after five
times as long.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vtc import InputError, data
from vtc.compressors.base import Features
from vtc.loop import BF16, Stage, fit, once, save_whole
from vtc.profiles import Profile, TowerSize
from vtc.progress import bar

FORMS = 1 + len(data.SHAPES) + len(data.DIGITS)  # what a patch can show: nothing, a shape, a digit
TINTS = 1 + len(data.COLORS)


class Tower(nn.Module):
    """Pixels -> features: `levels` (b, s, d * levels) side by side, `last` the last of them (b, s, d).

    The paper's CLIP gives layers 12, 16, 22 and 23 of 24 (QueCC, `quecc.py`); `last` is layer 23, LLaVA's
    h[-2].
    """

    def __init__(self, size: TowerSize, pixels: int, visual: nn.Module | None = None) -> None:
        super().__init__()
        self.size, self.pixels = size, pixels
        self.visual = visual if visual is not None else _visual(size, pixels)
        self.register_buffer("mean", torch.tensor([0.4814, 0.4578, 0.4082]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.2686, 0.2613, 0.2758]).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, selecting: bool = False, side: int | None = None) -> Features:
        """(b, pixels, pixels, 3) uint8 -> Features of (b, s, d) and (b, s, d_levels).

        selecting: also what the training-free selectors read of the layer of `last`: attention (b, heads, s),
        keys (b, s, heads, d / heads) and a checkpoint's class token (b, d). side: the images are shrunk to so
        many patches a side first.
        """
        images = images.to(self.mean.device)
        x = images.permute(0, 3, 1, 2).float().div(255).sub(self.mean).div(self.std)  # (b, 3, pixels, pixels)
        if side is not None:
            return self._smaller(side)._of(_shrunk(x, side * self.size.patch), selecting)
        return self._of(x, selecting)

    def _smaller(self, side: int) -> Tower:
        """The same weights for side x side patches: the table of places is shrunk as the image is."""
        twin, visual, d = copy.copy(self), copy.copy(self.visual), self.size.d
        g, table = self.pixels // self.size.patch, visual.positional_embedding.detach()
        places = _shrunk(table[1:].T.reshape(1, d, g, g), side).flatten(2)[0].T  # (side * side, d)
        visual._parameters = {**visual._parameters, "positional_embedding": torch.cat([table[:1], places])}
        twin._modules = {**self._modules, "visual": visual}
        return twin

    def _of(self, x: Tensor, selecting: bool) -> Features:
        """Normalised pixels (b, 3, h, h) -> Features."""
        block, read = self.visual.transformer.resblocks[self.size.levels[-1] - 1], []
        hook = block.ln_1.register_forward_hook(lambda module, given, out: read.append(out))
        with hook:
            out = self.visual.forward_intermediates(
                x.to(self.visual.conv1.weight.dtype), indices=[i - 1 for i in self.size.levels],
                stop_early=True, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True,
            )  # fmt: skip
        levels = torch.cat(out["image_intermediates"], -1)  # (b, s, d * levels)
        more = self._selecting(read[0], block.attn) if selecting else {}
        if selecting and self.size.checkpoint:
            more["cls"] = out["image_intermediates_prefix"][-1][:, 0]  # (b, d)
        return Features(levels=levels, last=levels[..., -self.size.d :], **more)

    def _selecting(self, x: Tensor, attn: nn.MultiheadAttention) -> dict[str, Tensor]:
        """Normed input (b, 1 + s, d) of a layer -> who is attended to, and keys.

        CLIP's class token says what matters. The tower trained here never asks its own, so a patch counts by
        the attention all patches pay it, as VisionZip (arXiv 2412.04467) does for towers without one.
        """
        d = x.shape[-1]
        q, k = F.linear(x, attn.in_proj_weight[: 2 * d], attn.in_proj_bias[: 2 * d]).chunk(2, -1)
        q, k = (
            part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in (q, k)
        )  # (b, h, 1 + s, c)
        weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
        row = weights[:, :, 0] if self.size.checkpoint else weights[:, :, 1:].mean(2)  # (b, h, 1 + s)
        return {"attention": row[..., 1:], "keys": k[:, :, 1:].transpose(1, 2)}


def _shrunk(x: Tensor, side: int) -> Tensor:
    """(b, c, h, h) -> (b, c, side, side), each pixel a mean of what it covers."""
    return F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)


def _visual(size: TowerSize, pixels: int) -> nn.Module:
    from open_clip.transformer import VisionTransformer

    visual = VisionTransformer(
        image_size=pixels, patch_size=size.patch, width=size.d, layers=size.layers, heads=size.heads,
        mlp_ratio=4.0, output_dim=size.d,
    )  # fmt: skip
    g, quarter = pixels // size.patch, size.d // 4
    y, x = (
        axis.flatten()[:, None] for axis in torch.meshgrid(*2 * [torch.arange(g).float()], indexing="ij")
    )  # (s, 1)
    waves = 1.5 / 20.0 ** (torch.arange(quarter) / quarter)
    with (
        torch.no_grad()
    ):  # start from sines and cosines of the place: neighbours are then near each other at once
        visual.positional_embedding[1:] = 0.3 * torch.cat(
            [f(a * waves) for a in (x, y) for f in (torch.sin, torch.cos)], 1
        )
    return visual


def load_checkpoint(name: str, levels: tuple[int, ...]) -> Tower:
    """A frozen tower by open_clip id ("ViT-L-14-336", OpenAI's weights) or by a local path to its weights."""
    import open_clip

    local = Path(name)
    try:
        if local.exists():
            config = json.loads((local / "open_clip_config.json").read_text())["model_cfg"]
            model = open_clip.model.CLIP(**config)
            model.load_state_dict(load_file(local / "open_clip_model.safetensors"))
        else:
            model = open_clip.create_model(name, pretrained="openai")
    except (OSError, RuntimeError, KeyError, ValueError) as e:
        known = "an open_clip id such as ViT-L-14-336, or a folder with open_clip_config.json and its weights"
        raise InputError(
            f"tower {name!r} could not be loaded ({str(e).splitlines()[0]}); expected {known}"
        ) from None
    visual = model.visual
    patch, pixels = visual.patch_size[0], visual.image_size[0]
    size = TowerSize(
        visual.conv1.out_channels, len(visual.transformer.resblocks), 0, patch, levels, 0, 0, checkpoint=name
    )
    return Tower(size, pixels, visual).eval().requires_grad_(False)


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
    tower = Tower(p.tower, p.pixels)
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
        self.head = nn.Linear(tower.size.d * len(tower.size.levels), FORMS + TINTS)

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
    model = _Dense(Tower(p.tower, p.pixels))
    scenes = data.make_scenes(p.images_train, "train", seed=1)
    images = torch.from_numpy(data.render(scenes, "train", p.pixels))
    form, tint = map(torch.from_numpy, data.dense_labels(scenes, p.g))

    def batch(step: int) -> tuple[Tensor, ...]:
        rows = torch.from_numpy(np.random.default_rng(step).integers(0, len(scenes), p.tower.batch))
        return images[rows], form[rows], tint[rows]

    stage = Stage("tower", p.tower.steps, p.tower.lr, ("tower", "head"), p.recipe.checkpoint_every)
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
    """The scenes that the profile trains on ("train") or is tested on ("test")."""
    return data.make_scenes(p.images_train if split == "train" else p.images_test, split, seed=3)
