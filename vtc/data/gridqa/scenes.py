"""What an image of GridQA shows and how it is drawn: shapes and real handwriting on a grid, from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

COLORS = {
    "red": (220, 50, 47), "green": (60, 160, 60), "blue": (50, 90, 220), "yellow": (225, 205, 40),
    "purple": (150, 60, 190), "cyan": (50, 190, 200), "orange": (240, 140, 30), "pink": (240, 140, 190),
}  # fmt: skip
COLOR_NAMES = tuple(COLORS)
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
DIGITS = tuple("0123456789")
EMPTY, SHAPE, DIGIT = 0, 1, 2
_MOST = 8  # objects of one kind in an image; a count stays one token


@dataclass(frozen=True)
class Scenes:
    """What n images show, a row a scene, a column a cell in reading order (16 columns, unused ones EMPTY)."""

    rows: np.ndarray  # (n,) 3 or 4
    cols: np.ndarray  # (n,) 3 or 4
    kind: np.ndarray  # (n, 16) EMPTY, SHAPE or DIGIT
    shape: np.ndarray  # (n, 16) index into SHAPES
    color: np.ndarray  # (n, 16) index into COLORS
    digit: np.ndarray  # (n, 16) 0..9
    glyph: np.ndarray  # (n, 16) which handwritten digit is drawn
    box: np.ndarray  # (n, 16, 3) centre x, centre y, side, as shares of the image's side
    seed: int  # of the noise

    def __len__(self) -> int:
        return len(self.rows)

    def cells(self, i: int) -> list[tuple[int, int, str | None, str | None, str | None]]:
        """The filled cells of scene i in reading order: row, column, color, shape, digit."""
        rows = []
        for c in range(int(self.rows[i] * self.cols[i])):
            where = divmod(c, int(self.cols[i]))
            if self.kind[i, c] == SHAPE:
                rows.append((*where, COLOR_NAMES[self.color[i, c]], SHAPES[self.shape[i, c]], None))
            elif self.kind[i, c] == DIGIT:
                rows.append((*where, None, None, DIGITS[self.digit[i, c]]))
        return rows


SPLITS = ("train", "test", "validation")  # their places are part of a scene's seed


@cache
def handwriting(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Real handwritten digits (n, 8, 8) in 0..1 and their values; 1/4 for tests alone, 3/4 for the rest."""
    from sklearn.datasets import load_digits

    images, values = load_digits(return_X_y=True)
    order = np.random.default_rng(7).permutation(len(values))
    cut = len(order) * 3 // 4
    rows = order[cut:] if split == "test" else order[:cut]
    return images[rows].reshape(-1, 8, 8).astype(np.float32) / 16, values[rows]


def make_scenes(n: int, split: str, seed: int) -> Scenes:
    """n scenes of that split (train, validation, test), the same for the same seed.

    Validation scenes are drawn apart from both others, in the handwriting of training.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    rows, cols = rng.integers(3, 5, n), rng.integers(3, 5, n)
    used = np.arange(16)[None] < (rows * cols)[:, None]  # (n, 16)
    shapes = rng.integers(2, _MOST + 1, n)
    digits = np.minimum(rng.integers(2, _MOST + 1, n), rows * cols - shapes)
    rank = np.where(used, rng.random((n, 16)), 2).argsort(1).argsort(1)  # a random order of the used cells
    kind = np.where(rank < shapes[:, None], SHAPE, np.where(rank < (shapes + digits)[:, None], DIGIT, EMPTY))
    # Colours and shapes come from six a scene, so that counts above one and ties are common.
    palette = rng.permuted(np.tile(np.arange(len(COLORS)), (n, 1)), axis=1)[:, :6]
    forms = rng.permuted(np.tile(np.arange(len(SHAPES)), (n, 1)), axis=1)[:, :6]
    color = np.take_along_axis(palette, rng.integers(0, 6, (n, 16)), 1)
    shape = np.take_along_axis(forms, rng.integers(0, 6, (n, 16)), 1)
    _, values = handwriting(split)
    glyph = rng.integers(0, len(values), (n, 16))
    cell = np.arange(16)[None]
    y, x = cell // cols[:, None] + 0.5, cell % cols[:, None] + 0.5
    room = (
        0.5 * np.stack([1 / cols, 1 / rows], -1)[:, None] - 0.095
    )  # how far a centre may leave its cell's centre
    jitter = rng.uniform(-1, 1, (n, 16, 2)) * np.maximum(room, 0.03)
    centre = np.stack([x / cols[:, None], y / rows[:, None]], -1) + jitter
    side = rng.uniform(0.17, 0.21, (n, 16, 1))
    return Scenes(
        rows, cols, kind, shape, color, values[glyph], glyph, np.concatenate([centre, side], -1), seed
    )


@cache
def _shape_mask(name: str, side: int) -> np.ndarray:
    """The shape's pixels, (side, side) in 0..1; drawn four times finer and averaged, so edges are smooth."""
    fine = (np.arange(side * 4) + 0.5) / (side * 2) - 1
    x, y = np.meshgrid(fine, fine)
    r = np.hypot(x, y)
    inside = {
        "circle": r < 0.95,
        "square": np.maximum(abs(x), abs(y)) < 0.82,
        "triangle": (y < 0.85) & (y > 2 * abs(x) - 0.95),
        "cross": (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 0.95),
        "diamond": abs(x) + abs(y) < 1,
        "ring": (r < 0.98) & (r > 0.5),
    }[name]
    return inside.reshape(side, 4, side, 4).mean((1, 3)).astype(np.float32)


@cache
def _digit_mask(split: str, glyph: int, side: int) -> np.ndarray:
    """That handwritten digit at side x side pixels, 0..1."""
    from PIL import Image

    small = Image.fromarray((handwriting(split)[0][glyph] * 255).astype(np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255


def render(scenes: Scenes, split: str, pixels: int, rows: range | None = None) -> np.ndarray:
    """Draw the scenes -> (n, pixels, pixels, 3) uint8; same seed, same pixels, whichever rows are drawn."""
    rows = range(len(scenes)) if rows is None else rows
    images = np.empty((len(rows), pixels, pixels, 3), np.uint8)
    inks = np.array(list(COLORS.values()), np.float32)
    for j, i in enumerate(rows):
        rng = np.random.default_rng([scenes.seed, i])
        canvas = rng.normal(40, 6, (pixels, pixels, 3)).astype(np.float32)
        tints = rng.uniform(-18, 18, (16, 3)).astype(np.float32)
        for c in np.flatnonzero(scenes.kind[i]):
            x, y, side = scenes.box[i, c]
            side = round(side * pixels)
            left = min(max(round(x * pixels - side / 2), 0), pixels - side)
            top = min(max(round(y * pixels - side / 2), 0), pixels - side)
            if scenes.kind[i, c] == SHAPE:
                mask, ink = _shape_mask(SHAPES[scenes.shape[i, c]], side), inks[scenes.color[i, c]]
            else:
                mask, ink = _digit_mask(split, int(scenes.glyph[i, c]), side), np.float32(225)
            patch = canvas[top : top + side, left : left + side]
            patch += mask[..., None] * (ink + tints[c] - patch)
        images[j] = canvas.clip(0, 255)
    return images


def dense_labels(scenes: Scenes, g: int) -> tuple[np.ndarray, np.ndarray]:
    """What each of g x g patches shows -> form (0 nothing, then SHAPES, digits) and colour, each (n, g*g)."""
    n = len(scenes)
    form, tint = np.zeros((n, g, g), np.int64), np.zeros((n, g, g), np.int64)
    centres = (np.arange(g) + 0.5) / g
    x, y, side = np.moveaxis(scenes.box, -1, 0)  # each (n, 16)
    for c in range(16):
        near_x = abs(centres - x[:, c, None]) < side[:, c, None] / 2  # (n, g)
        near_y = abs(centres - y[:, c, None]) < side[:, c, None] / 2
        here = (near_y[:, :, None] & near_x[:, None, :]) & (scenes.kind[:, c] > 0)[:, None, None]
        is_shape = scenes.kind[:, c] == SHAPE
        what = np.where(is_shape, 1 + scenes.shape[:, c], 1 + len(SHAPES) + scenes.digit[:, c])
        form = np.where(here, what[:, None, None], form)
        tint = np.where(here, np.where(is_shape, 1 + scenes.color[:, c], 0)[:, None, None], tint)
    return form.reshape(n, -1), tint.reshape(n, -1)
