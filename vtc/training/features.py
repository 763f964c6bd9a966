"""What the frozen tower sees in all images: computed once and kept, or computed when asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from vtc import data
from vtc.compressors.base import Features
from vtc.models.tower import Tower
from vtc.profiles import Profile
from vtc.progress import bar
from vtc.training.checkpoints import build_once
from vtc.training.device import autocast, device
from vtc.training.tower import pretrained

CHUNK = 256  # images that the tower sees at once


class OnDemand:
    """Features of n images that are computed when they are asked for; indexed as `Features` are.

    images: rows (k,) -> pixels (k, pixels, pixels, 3). wants: further arguments of the tower.
    """

    def __init__(self, tower: Tower, images: Callable[[Tensor], Tensor], n: int, wants: dict) -> None:
        self.tower, self.images, self.n, self.wants = tower.to(device()), images, n, wants

    def __len__(self) -> int:
        return self.n

    @torch.no_grad()
    def __getitem__(self, rows: Tensor | list[int]) -> Features:
        rows = torch.as_tensor(rows)
        with autocast(device().type):
            pieces = [self.tower(self.images(part), **self.wants) for part in rows.split(CHUNK)]
        return Features.cat(pieces).to(torch.bfloat16)

    def whole(self, parts: tuple[str, ...]) -> dict[str, Tensor]:
        """Those parts of the features of all images, on the host."""
        found: dict[str, Tensor] = {}
        for start in bar(range(0, self.n, CHUNK), "features"):
            rows = torch.arange(start, min(start + CHUNK, self.n))
            seen = self[rows]
            for part in parts:
                piece = getattr(seen, part)
                if part not in found:
                    found[part] = torch.empty(self.n, *piece.shape[1:], dtype=piece.dtype)
                found[part][rows] = piece.cpu()
        return found


def features(p: Profile, split: str, selecting: bool = False, side: int | None = None) -> Features | OnDemand:
    """Features of all the profile's images of that split in bf16; see `Tower.forward`.

    Up to `p.feature_bytes` they are made once and kept. The files are mapped, not read, so several processes
    share one copy; `last` is a view into `levels`.
    """
    scenes = data.scenes_of(p, split)

    def images(rows: Tensor) -> Tensor:
        return torch.from_numpy(data.render(scenes, split, p.pixels, rows.tolist()))

    def seen(selecting: bool) -> OnDemand:
        return OnDemand(pretrained(p), images, len(scenes), {"selecting": selecting, "side": side})

    if size_in_bytes(p, len(scenes), selecting, side) > p.feature_bytes:
        return seen(selecting)
    name = "features" if side is None else f"features-{side}"
    file = p.cache_before_align / f"{name}-{split}.safetensors"
    build_once(file, lambda: (seen(False).whole(("levels",)), {}))
    levels = load_file(file)["levels"]  # (n, s, d_levels)
    more: dict[str, Tensor] = {}
    if selecting:
        file = p.cache_before_align / f"selecting-{split}.safetensors"
        parts = ("attention", "keys", "cls") if p.tower.checkpoint else ("attention", "keys")
        build_once(file, lambda: (seen(True).whole(parts), {}))
        more = load_file(file)
    return Features(levels=levels, last=levels[..., -p.tower.d :], **more)


def size_in_bytes(p: Profile, n: int, selecting: bool = False, side: int | None = None) -> int:
    """Bytes of n images' features in bf16: the levels and, for selectors, attention and keys."""
    a_patch = p.tower.d * len(p.tower.levels) + selecting * (p.tower.d + p.tower.heads)
    return 2 * n * (side or p.g) ** 2 * a_patch


def of_files(tower: Tower, files: list[Path], selecting: bool = False, side: int | None = None) -> Features:
    """Features of images on disk, each resized to the tower's square; InputError names one it cannot read."""
    images = reader(tower, files)
    pieces = torch.arange(len(files)).split(64)
    with torch.no_grad():
        return Features.cat([tower(images(part), selecting, side) for part in bar(pieces, "features")])


def of_user_images(p: Profile, tower: Tower, files: list[Path], **wants) -> Features | OnDemand:
    """As `of_files`, computed when asked for where it would be more than `p.feature_bytes`."""
    if 2 * size_in_bytes(p, len(files), **wants) > p.feature_bytes:  # kept in float32
        return OnDemand(tower, reader(tower, files), len(files), wants)
    return of_files(tower, files, **wants)


def reader(tower: Tower, files: list[Path]) -> Callable[[Tensor], Tensor]:
    """Rows of image files -> pixels (k, pixels, pixels, 3), each resized to the tower's square."""

    def images(rows: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([data.load_image(files[i], tower.pixels) for i in rows.tolist()]))

    return images
