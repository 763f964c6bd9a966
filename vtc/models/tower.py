"""The vision tower: open_clip's ViT, frozen, giving features of several layers in one call.

The small tower is an open_clip model like any other, by a config of our own; `vtc.training.tower` trains it.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from vtc import InputError
from vtc.compressors.base import Features
from vtc.models import hf_tower
from vtc.shapes import TowerShape


class Tower(nn.Module):
    """Pixels -> features: `levels` (b, s, d * levels) side by side, `last` the last of them (b, s, d).

    The paper's CLIP gives layers 12, 16, 22 and 23 of 24 (QueCC, `quecc.py`); `last` is layer 23, LLaVA's
    h[-2].
    """

    def __init__(self, shape: TowerShape, visual: nn.Module | None = None) -> None:
        super().__init__()
        self.shape, self.pixels = shape, shape.pixels
        self.visual = visual if visual is not None else _visual(shape)
        self.register_buffer("mean", torch.tensor([0.4814, 0.4578, 0.4082]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.2686, 0.2613, 0.2758]).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, selecting: bool = False, side: int | None = None) -> Features:
        """(b, pixels, pixels, 3) uint8 -> Features of (b, s, d) and (b, s, d_levels).

        selecting: also what the training-free selectors read of the layer of `last`: attention (b, heads, s),
        keys (b, s, heads, d / heads) and a checkpoint's class token (b, d). side: the images are shrunk to so
        many patches a side first.
        """
        x = images.to(self.mean.device).permute(0, 3, 1, 2).float().div(255)  # (b, 3, pixels, pixels)
        x = x.sub(self.mean).div(self.std)
        if side is not None:
            return self._smaller(side)._of(_shrunk(x, side * self.shape.patch), selecting)
        return self._of(x, selecting)

    def _smaller(self, side: int) -> Tower:
        """The same weights for side x side patches: the table of places is shrunk as the image is."""
        twin, visual, d = copy.copy(self), copy.copy(self.visual), self.shape.d
        g, table = self.shape.g, visual.positional_embedding.detach()
        places = _shrunk(table[1:].T.reshape(1, d, g, g), side).flatten(2)[0].T  # (side * side, d)
        visual._parameters = {**visual._parameters, "positional_embedding": torch.cat([table[:1], places])}
        twin._modules = {**self._modules, "visual": visual}
        return twin

    def _of(self, x: Tensor, selecting: bool) -> Features:
        """Normalised pixels (b, 3, h, h) -> Features."""
        block, read = self.visual.transformer.resblocks[self.shape.levels[-1] - 1], []
        hook = block.ln_1.register_forward_hook(lambda module, given, out: read.append(out))
        with hook:
            out = self.visual.forward_intermediates(
                x.to(self.visual.positional_embedding.dtype), indices=[i - 1 for i in self.shape.levels],
                stop_early=True, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True,
            )  # fmt: skip
        levels = torch.cat(out["image_intermediates"], -1)  # (b, s, d * levels)
        more = self._selecting(read[0], block.attn) if selecting else {}
        if selecting and self.shape.checkpoint:
            more["cls"] = out["image_intermediates_prefix"][-1][:, 0]  # (b, d)
        return Features(levels=levels, last=levels[..., -self.shape.d :], **more)

    def _selecting(self, x: Tensor, attn: nn.MultiheadAttention) -> dict[str, Tensor]:
        """Normed input (b, 1 + s, d) of a layer -> who is attended to, and keys.

        CLIP's class token says what matters. The tower trained here never asks its own, so a patch counts by
        the attention all patches pay it, as VisionZip (arXiv 2412.04467) does for towers without one.
        """
        d = x.shape[-1]
        q, k = F.linear(x, attn.in_proj_weight[: 2 * d], attn.in_proj_bias[: 2 * d]).chunk(2, -1)
        q, k = (x.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for x in (q, k))  # (b, h, 1 + s, c)
        weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
        row = weights[:, :, 0] if self.shape.checkpoint else weights[:, :, 1:].mean(2)  # (b, h, 1 + s)
        return {"attention": row[..., 1:], "keys": k[:, :, 1:].transpose(1, 2)}


def _shrunk(x: Tensor, side: int) -> Tensor:
    """(b, c, h, h) -> (b, c, side, side), each pixel a mean of what it covers."""
    return F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)


def _visual(shape: TowerShape) -> nn.Module:
    from open_clip.transformer import VisionTransformer

    visual = VisionTransformer(
        image_size=shape.pixels, patch_size=shape.patch, width=shape.d, layers=shape.layers,
        heads=shape.heads, mlp_ratio=shape.d_ff / shape.d, output_dim=shape.d,
    )  # fmt: skip
    if shape.stem:
        visual.conv1 = _stem(shape)
    g, quarter = shape.g, shape.d // 4
    place = torch.arange(g).float()
    x, y = place.repeat(g)[:, None], place.repeat_interleave(g)[:, None]  # (s, 1) each
    waves = 1.5 / 20.0 ** (torch.arange(quarter) / quarter)
    # start from sines and cosines of the place: neighbours are then near each other at once
    table = torch.cat([f(a * waves) for a in (x, y) for f in (torch.sin, torch.cos)], 1)  # (s, d)
    visual.positional_embedding.data[1:] = 0.3 * table
    return visual


def _stem(shape: TowerShape) -> nn.Sequential:
    """Pixels (b, 3, h, h) -> patches (b, d, h / patch, h / patch), by convolutions that halve the side each.

    A small tower learns handwriting far sooner by it than by one linear map a patch: after 500 steps it
    tells .24 to .57 of the digits, by their size, against .19 to .25.
    """
    ins, outs = (3, *shape.stem), (*shape.stem, shape.d)
    layers: list[nn.Module] = []
    for i, o in zip(ins, outs):
        layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def load_checkpoint(name: str, levels: tuple[int, ...] | None = None) -> Tower | hf_tower.HFTower:
    """A frozen tower by open_clip id ("ViT-L-14-336", OpenAI's weights) or by a folder with its weights.

    The folder is one of open_clip or of transformers (CLIP, SigLIP). levels: the layers that are read; None:
    see `hf_tower.levels_of`. Raises InputError where there is no such tower.
    """
    import open_clip

    local = Path(name)
    if hf_tower.is_one(local):
        return hf_tower.load(local, levels)
    try:
        if local.exists():
            config = json.loads((local / "open_clip_config.json").read_text())["model_cfg"]
            model = open_clip.model.CLIP(**config)
            model.load_state_dict(load_file(local / "open_clip_model.safetensors"))
        else:
            # OpenAI's towers were trained with the quick GELU; open_clip has them under a name of their own
            quick = f"{name}-quickgelu"
            made = quick if quick in open_clip.list_models() else name
            model = open_clip.create_model(made, pretrained="openai")
    except (OSError, RuntimeError, KeyError, ValueError) as e:
        known = "an open_clip id such as ViT-L-14-336, or a folder of open_clip or transformers"
        problem = f"tower {name!r} could not be loaded ({str(e).splitlines()[0]})"
        raise InputError(f"{problem}; expected {known}") from None
    visual, blocks = model.visual, model.visual.transformer.resblocks
    shape = TowerShape(
        d=visual.conv1.out_channels, layers=len(blocks), heads=blocks[0].attn.num_heads,
        patch=visual.patch_size[0], levels=levels or hf_tower.levels_of(len(blocks)),
        pixels=visual.image_size[0], d_ff=blocks[0].mlp.c_fc.out_features, checkpoint=name,
    )  # fmt: skip
    return Tower(shape, visual).eval().requires_grad_(False)
