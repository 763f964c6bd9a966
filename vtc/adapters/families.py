"""Where a vision-language model of transformers keeps its visual tokens, family by family.

Each family answers three questions. What does the compressor read? How many of the model's own tokens does an
image take up in the prompt? What does the LLM need besides the tokens (positions, deeper layers)? No class is
patched: the tower is asked by `get_image_features`, and the LLM takes what we hand it by `mm_encoder_outputs`
(transformers >= 5.18).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtc import InputError
from vtc.compressors.base import Features

DEPTHS = (12 / 24, 16 / 24, 22 / 24, 23 / 24)  # of the layers that QueCC reads side by side, in CLIP-L's 24


@dataclass
class Encoded:
    """What the tower saw, for any number of questions: features of all tiles, and whose they are."""

    features: Features  # (tiles, s, d)
    tiles: list[int]  # tiles of each image
    lengths: list[int]  # the model's own tokens of each image in the prompt
    deep: list[Tensor]  # the same tiles as deeper layers of the LLM get them, (tiles, s, d_llm) each
    own: object  # the model's own output


class Family:
    """LLaVA-1.5: a CLIP tower, then the projector; the compressor stands between the two."""

    names = ("llava",)

    def __init__(self, model: nn.Module, grid: int | None) -> None:
        self.model, self.config = model, model.config
        self.image_token = self.config.image_token_id
        self.d_llm = self.config.get_text_config().hidden_size
        self.g = grid or self.own_grid()
        self.d, self.d_levels = self.widths()

    def own_grid(self) -> int:
        """Side of the grid of what the compressor reads."""
        vision = self.config.vision_config
        return vision.image_size // vision.patch_size

    def widths(self) -> tuple[int, int]:
        """Width of what the compressor reads, and of the layers side by side."""
        d = self.config.vision_config.hidden_size
        layers = self.config.vision_feature_layer
        return d * (1 if isinstance(layers, int) else len(layers)), d * len(DEPTHS)

    @property
    def language_model(self) -> nn.Module:
        return self.model.language_model

    def projector(self) -> nn.Module:
        """A copy of what brings tokens of the tower's width to the LLM's; it may learn, the model's stays."""
        return copy.deepcopy(self.model.multi_modal_projector)

    def encode(self, **vision: Tensor) -> Encoded:
        """Pixels, as the model's processor gives them -> what the compressor reads."""
        out = self.model.get_image_features(**vision, return_dict=True, output_hidden_states=True)
        last, levels = self.read(out, vision)
        tiles = self.tiles(out, vision)
        return Encoded(
            Features(last=last, levels=levels), tiles, self.lengths(out), self.deep(out, vision), out
        )

    def read(self, out, vision: dict) -> tuple[Tensor, Tensor]:
        """The layer that the projector reads, (tiles, s, d), and the levels, (tiles, s, d_levels)."""
        layers = self.config.vision_feature_layer
        first = int(self.config.vision_feature_select_strategy == "default")  # leaves the class token out
        hidden = [h[:, first:] for h in out.hidden_states]
        chosen = [layers] if isinstance(layers, int) else layers
        return torch.cat([hidden[i] for i in chosen], -1), self.side_by_side(hidden)

    def side_by_side(self, hidden: list[Tensor]) -> Tensor:
        """The layers at `DEPTHS` of the tower, concatenated."""
        return torch.cat([hidden[round(depth * (len(hidden) - 1))] for depth in DEPTHS], -1)

    def tiles(self, out, vision: dict) -> list[int]:
        """Tiles of each image."""
        return [1] * len(out.pooler_output)

    def lengths(self, out) -> list[int]:
        """Placeholders of each image (or of each run of them) in a prompt of the model's own processor."""
        return [len(tokens) for tokens in out.pooler_output]

    def deep(self, out, vision: dict) -> list[Tensor]:
        return []

    def handed(self, tokens: list[Tensor], deep: list[list[Tensor]], own) -> object:
        """Tokens of each image, (n, d_llm) -> what `mm_encoder_outputs` takes; new at each call."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(pooler_output=tokens)

    def beside(self, ids: Tensor, V: int, images: int) -> dict[str, Tensor]:
        """What the model wants to know of the prompt besides ids and mask."""
        return {}


class LlavaNext(Family):
    """LLaVA-NeXT: several tiles an image; V is for each tile, and the newline tokens are left out."""

    names = ("llava_next",)

    def tiles(self, out, vision: dict) -> list[int]:
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        side, points = self.config.vision_config.image_size, self.config.image_grid_pinpoints
        return [image_size_to_num_patches(size, points, side) for size in vision["image_sizes"]]


class Idefics(Family):
    """SmolVLM, Idefics3: neighbouring patches are merged, then projected; the compressor reads what comes
    out.

    Each tile has placeholders of its own in the prompt, so V is for each tile.
    """

    names = ("smolvlm", "idefics3")

    def own_grid(self) -> int:
        return super().own_grid() // self.config.scale_factor

    def widths(self) -> tuple[int, int]:
        return self.d_llm, self.config.vision_config.hidden_size * self.config.scale_factor**2 * len(DEPTHS)

    @property
    def language_model(self) -> nn.Module:
        return self.model.text_model

    def projector(self) -> nn.Module:
        return nn.Identity()

    def read(self, out, vision: dict) -> tuple[Tensor, Tensor]:
        shuffle, factor = self.model.connector.pixel_shuffle, self.config.scale_factor
        merged = [shuffle(hidden.contiguous(), factor) for hidden in out.hidden_states]
        last = torch.cat(out.pooler_output).unflatten(0, (-1, self.own_grid() ** 2))
        return last, self.side_by_side(merged)

    def tiles(self, out, vision: dict) -> list[int]:
        return [1] * len(self.lengths(out))

    def lengths(self, out) -> list[int]:
        s = self.own_grid() ** 2
        return [s] * (sum(map(len, out.pooler_output)) // s)


class Qwen(Family):
    """Qwen2-VL, Qwen3-VL: images of any size; what comes out of the merger is brought to a square g x g grid.

    Positions are three-dimensional, so V = a b tokens stand as an image of a x b merged patches. Qwen3-VL's
    deeper layers get tokens of their own, compressed by the same weights.
    """

    names = ("qwen2_vl", "qwen3_vl")

    def own_grid(self) -> int:
        return 24  # a choice: images come in any size

    def widths(self) -> tuple[int, int]:
        vision = self.config.vision_config
        width = (
            getattr(vision, "embed_dim", None) or vision.hidden_size
        )  # Qwen2-VL's hidden_size is the LLM's
        return self.d_llm, width * vision.spatial_merge_size**2 * len(DEPTHS)

    def projector(self) -> nn.Module:
        return nn.Identity()

    def read(self, out, vision: dict) -> tuple[Tensor, Tensor]:
        merged = [h.unflatten(0, (-1, self.merge**2)).flatten(1) for h in out.hidden_states]
        levels = self.side_by_side(merged).split(self.lengths(out))
        return self.squared(out.pooler_output, vision), self.squared(levels, vision)

    @property
    def merge(self) -> int:
        return self.config.vision_config.spatial_merge_size

    def squared(self, images, vision: dict) -> Tensor:
        """Tokens (h w, d) of each image -> (images, g*g, d)."""
        grids = []
        for tokens, (t, h, w) in zip(images, vision["image_grid_thw"].tolist()):
            if t != 1:
                raise InputError("vtc.wrap compresses images; this input holds a video")
            image = tokens.T.unflatten(1, (h // self.merge, w // self.merge)).unsqueeze(0)  # (1, d, h, w)
            if image.shape[2:] != (self.g, self.g):
                image = F.interpolate(image.float(), (self.g, self.g), mode="bilinear", antialias=True).to(
                    tokens
                )
            grids.append(image.flatten(2)[0].T)
        return torch.stack(grids)

    def deep(self, out, vision: dict) -> list[Tensor]:
        return [self.squared(level, vision) for level in getattr(out, "deepstack_features", None) or []]

    def handed(self, tokens: list[Tensor], deep: list[list[Tensor]], own) -> object:
        if not deep:
            return super().handed(tokens, deep, own)
        return type(own)(pooler_output=tokens, deepstack_features=deep)

    def beside(self, ids: Tensor, V: int, images: int) -> dict[str, Tensor]:
        a = max(n for n in range(1, math.isqrt(V) + 1) if V % n == 0)
        grid = torch.tensor([[1, a * self.merge, V // a * self.merge]] * images, device=ids.device)
        return {"mm_token_type_ids": (ids == self.image_token).int()} | (
            {"image_grid_thw": grid} if images else {}
        )


FAMILIES = {name: family for family in (Family, LlavaNext, Idefics, Qwen) for name in family.names}


def family_of(model: nn.Module, grid: int | None) -> Family:
    """The family of a model; raises InputError, naming those there are, for any other."""
    kind = getattr(model.config, "model_type", type(model).__name__)
    if kind not in FAMILIES:
        raise InputError(f"vtc.wrap does not know {kind!r} models: it wraps {', '.join(FAMILIES)}")
    return FAMILIES[kind](model.base_model, grid)
