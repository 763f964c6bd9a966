"""A vision tower that transformers loads, CLIP or SigLIP, called as `vtc.models.tower.Tower` is."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel, PreTrainedModel, SiglipVisionModel

from vtc import InputError
from vtc.compressors.base import Features
from vtc.shapes import TowerShape

CLASSES = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}
CLIP_COLORS = (0.4814, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)  # mean and standard deviation of a pixel


class HFTower(nn.Module):
    """Pixels -> features of several layers, see `Tower`; layers behind the last of them are left out."""

    def __init__(self, shape: TowerShape, visual: PreTrainedModel, mean: list, std: list) -> None:
        super().__init__()
        self.shape, self.pixels, self.visual = shape, shape.pixels, visual
        visual.encoder.layers = visual.encoder.layers[: shape.depth]
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor, selecting: bool = False, side: int | None = None) -> Features:
        """(b, pixels, pixels, 3) uint8 -> Features of (b, s, d) and (b, s, d_levels); as `Tower.forward`."""
        x = images.to(self.mean.device).permute(0, 3, 1, 2).float().div(255)  # (b, 3, pixels, pixels)
        x = x.sub(self.mean).div(self.std)
        if side is not None:
            x = F.interpolate(x, (side * self.shape.patch,) * 2, mode="bilinear", antialias=True)
        attention, kept = self.visual.encoder.layers[self.shape.levels[-1] - 1].self_attn, {}
        hooks = [
            getattr(attention, name).register_forward_hook(lambda _, x, y, name=name: kept.update({name: y}))
            for name in ("q_proj", "k_proj")
        ]
        try:
            hidden = self.visual(
                pixel_values=x.to(self.visual.dtype), output_hidden_states=True,
                interpolate_pos_encoding=side is not None,
            ).hidden_states  # (b, extra + s, d) each  # fmt: skip
        finally:
            for hook in hooks:
                hook.remove()
        extra, last = self.shape.extra, hidden[self.shape.levels[-1]]
        levels = torch.cat([hidden[i][:, extra:] for i in self.shape.levels], -1)
        more = self._selecting(kept["q_proj"], kept["k_proj"]) if selecting else {}
        if selecting and extra:
            more["cls"] = last[:, 0]
        return Features(last=last[:, extra:], levels=levels, **more)

    def _selecting(self, q: Tensor, k: Tensor) -> dict[str, Tensor]:
        """Queries and keys (b, extra + s, d) -> attention (b, h, s), keys (b, s, h, d / h); see `Tower`."""
        extra = self.shape.extra
        q, k = (x.unflatten(-1, (self.shape.heads, -1)).transpose(1, 2) for x in (q, k))  # (b, h, n, c)
        weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
        row = weights[:, :, 0] if extra else weights.mean(2)  # (b, h, n)
        return {"attention": row[..., extra:], "keys": k[:, :, extra:].transpose(1, 2)}


def is_one(folder: Path) -> bool:
    """Whether the folder holds a model of transformers."""
    return (folder / "config.json").is_file()


def load(folder: Path, levels: tuple[int, ...] | None = None) -> HFTower:
    """A frozen tower from a folder of transformers; levels: see `vtc.models.tower.levels_of`.

    Raises InputError where it is neither CLIP nor SigLIP, or is not whole.
    """
    expected = "expected a folder that transformers saved of CLIP or SigLIP, with model.safetensors"
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type", "")
        made = CLASSES[kind.removesuffix("_vision_model")]
        visual, notes = made.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except KeyError:
        raise InputError(f"tower {folder}: a model of type {kind!r}; {expected}") from None
    except (OSError, ValueError, RuntimeError) as e:
        found = str(e).strip().splitlines()[0]
        raise InputError(f"tower {folder} could not be loaded ({found}); {expected}") from None
    if missing := sorted(notes["missing_keys"]):
        raise InputError(f"tower {folder} has no weights {missing[0]}; {expected}")
    config = visual.config
    places = visual.embeddings.position_embedding.num_embeddings
    shape = TowerShape(
        d=config.hidden_size, layers=config.num_hidden_layers, heads=config.num_attention_heads,
        patch=config.patch_size, levels=levels or levels_of(config.num_hidden_layers),
        pixels=config.image_size, d_ff=config.intermediate_size,
        extra=places - (config.image_size // config.patch_size) ** 2, checkpoint=str(folder),
    )  # fmt: skip
    mean, std = _colors(folder) or (CLIP_COLORS if shape.extra else ((0.5,) * 3, (0.5,) * 3))
    return HFTower(shape, visual, mean, std).eval().requires_grad_(False)


def levels_of(layers: int) -> tuple[int, ...]:
    """The layers that compressors read of a tower of that depth, as 12, 16, 22 and 23 of CLIP-L's 24."""
    wanted = (layers // 2, layers * 2 // 3, layers - 2, layers - 1)
    return tuple(dict.fromkeys(max(level, 1) for level in wanted))


def _colors(folder: Path) -> tuple | None:
    """Mean and standard deviation of a pixel, where an image processor was saved with the tower."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return None
    saved = json.loads(file.read_text())
    return (saved["image_mean"], saved["image_std"]) if "image_mean" in saved else None
