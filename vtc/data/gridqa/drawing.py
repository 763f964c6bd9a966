"""How scenes of the second world are drawn, and what each patch of a drawing shows."""

from __future__ import annotations

import numpy as np

from vtc.data.gridqa.world import SPLITS, Scenes, handwriting

# One dark colour a hue, so that light handwriting stands out on all of them.
_PAINT = (
    (115, 35, 35), (35, 95, 40), (40, 50, 130), (100, 95, 25), (90, 40, 110), (25, 95, 105),
    (110, 65, 30), (80, 80, 80),
)  # fmt: skip
TEXTURES = ("plain", "barred", "striped", "checked")


def _pattern(texture: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where the ground is lighter; every pattern repeats within 8 pixels, a patch of the small tower."""
    return {
        "plain": np.zeros(np.broadcast(x, y).shape),
        "barred": y // 2 % 2 + 0 * x,
        "striped": x // 2 % 2 + 0 * y,
        "checked": (x // 2 + y // 2) % 2,
    }[texture].astype(np.float32)


def _mark(split: str, glyph: int, side: int) -> np.ndarray:
    """That handwritten digit at side x side pixels, 0..1."""
    from PIL import Image

    small = Image.fromarray((handwriting(split)[0][glyph] * 255).astype(np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255


def render(scenes: Scenes, split: str, pixels: int, rows: range | None = None) -> np.ndarray:
    """Draw the scenes -> (n, pixels, pixels, 3) uint8; same seed, same pixels, whichever rows are drawn."""
    rows = range(len(scenes)) if rows is None else rows
    images = np.empty((len(rows), pixels, pixels, 3), np.uint8)
    y, x = np.ogrid[:pixels, :pixels]
    for j, i in enumerate(rows):
        rng = np.random.default_rng([scenes.seed, SPLITS.index(split), i])
        shift = rng.integers(0, 8, 2)
        lighter = _pattern(TEXTURES[scenes.land[i] % 4], x + shift[0], y + shift[1])[..., None]
        paint = np.float32(_PAINT[scenes.land[i] // 4]) * rng.uniform(0.9, 1.1)
        canvas = paint * (1 + 0.45 * lighter) + rng.normal(0, 5, (pixels, pixels, 3)).astype(np.float32)
        ink = np.float32(240) - rng.uniform(0, 25, 3).astype(np.float32)
        for k in range(scenes.marks[i]):
            centre_x, centre_y, side = scenes.box[i, k]
            side = max(round(side * pixels), 2)
            left = min(max(round(centre_x * pixels - side / 2), 0), pixels - side)
            top = min(max(round(centre_y * pixels - side / 2), 0), pixels - side)
            patch = canvas[top : top + side, left : left + side]
            patch += _mark(split, int(scenes.glyph[i, k]), side)[..., None] * (ink - patch)
        images[j] = canvas.clip(0, 255)
    return images


def dense_labels(scenes: Scenes, g: int) -> np.ndarray:
    """What covers the centre of each of g x g patches -> (n, s): 0 the ground, 1 to 10 a digit."""
    n = len(scenes)
    label = np.zeros((n, g, g), np.int64)
    centres = (np.arange(g) + 0.5) / g
    x, y, side = np.moveaxis(scenes.box, -1, 0)  # each (n, m)
    for k in range(x.shape[1]):
        half = side[:, k, None] / 2
        near_x, near_y = abs(centres - x[:, k, None]) < half, abs(centres - y[:, k, None]) < half  # (n, g)
        here = near_y[:, :, None] & near_x[:, None, :] & (k < scenes.marks)[:, None, None]
        label = np.where(here, scenes.digit[:, k, None, None] + 1, label)
    return label.reshape(n, g * g)
