"""What an image of the second world shows: a ground seen everywhere, and on it a block of handwritten marks.

One mark may fill the image, or a dozen small ones stand in two lines. How many visual tokens are needed to
tell them apart is drawn log-uniformly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from vtc.data.gridqa import words
from vtc.shapes import WorldConfig

SPLITS = ("train", "validation", "test")
SIDE = len(words.X)  # places are named on a SIDE x SIDE grid


@dataclass(frozen=True)
class Scenes:
    """What n images show; marks in reading order, `rows * cols` of them, the rest of the columns unused."""

    land: np.ndarray  # (n,)
    fit: np.ndarray  # (n,) marks that would fit a side of the image
    rows: np.ndarray  # (n,)
    cols: np.ndarray  # (n,)
    digit: np.ndarray  # (n, m) 0..9
    glyph: np.ndarray  # (n, m) which handwritten digit is drawn
    box: np.ndarray  # (n, m, 3) centre x, centre y, side, as shares of the image's side
    seed: int

    def __len__(self) -> int:
        return len(self.land)

    @property
    def marks(self) -> np.ndarray:
        return self.rows * self.cols

    @cached_property  # of all scenes at once: anew for each batch it took as long as the rest of it
    def place(self) -> np.ndarray:
        """(n, m, 2) x and y, 0..SIDE - 1."""
        return np.minimum((self.box[..., :2] * SIDE).astype(np.int64), SIDE - 1)

    def edges(self, row: int, mark: int) -> tuple[float, ...]:
        """Left, top, right and bottom of a mark, as shares of the image's side."""
        x, y, side = map(float, self.box[row, mark])
        return x - side / 2, y - side / 2, x + side / 2, y + side / 2


@cache
def handwriting(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Real handwritten digits (n, 8, 8) in 0..1 and their values: 5/8 train, 1/8 validation, 1/4 test."""
    from sklearn.datasets import load_digits

    images, values = load_digits(return_X_y=True)
    order = np.random.default_rng(7).permutation(len(values))
    cuts = {"train": (0, 5), "validation": (5, 6), "test": (6, 8)}[split]
    rows = order[cuts[0] * len(order) // 8 : cuts[1] * len(order) // 8]
    return images[rows].reshape(-1, 8, 8).astype(np.float32) / 16, values[rows]


def make_scenes(
    config: WorldConfig, n: int, split: str, seed: int, subjects: np.ndarray | None = None
) -> Scenes:
    """n scenes of that split (its handwriting), the same for the same seed.

    subjects: how often each digit stands in each land, (lands, 10), as `Facts.subjects` gives it, so that a
    question about any mark asks each fact as often as the world's law says; None: all alike.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    fit = np.exp(rng.uniform(np.log(config.least), np.log(config.most), n))
    rows, cols = (np.minimum(fit.astype(int), most) for most in (config.rows, config.cols))
    m = config.rows * config.cols
    pitch = 1 / fit[:, None]  # of the image's side
    corner = rng.random((n, 2)) * (1 - np.stack([cols, rows], -1) * pitch)  # of the block
    mark = np.arange(m)[None]  # in reading order
    cell = np.stack([mark % cols[:, None], mark // cols[:, None]], -1) + 0.5  # (n, m, 2)
    centre = corner[:, None] + (cell + rng.uniform(-0.08, 0.08, (n, m, 2))) * pitch[..., None]
    side = rng.uniform(0.8, 0.95, (n, m, 1)) * pitch[..., None]
    centre = np.clip(centre, side / 2, 1 - side / 2)
    box = np.concatenate([centre, side], -1)
    often = np.ones((config.lands, 10)) if subjects is None else subjects
    land = rng.choice(config.lands, n, p=often.sum(1) / often.sum())
    digits = np.cumsum(often / often.sum(1, keepdims=True), 1)[land]  # (n, 10)
    digit = np.minimum((rng.random((n, m))[..., None] > digits[:, None]).sum(-1), 9)
    _, values = handwriting(split)
    by_value, first = np.argsort(values, kind="stable"), np.searchsorted(np.sort(values), np.arange(11))
    glyph = by_value[(first[digit] + rng.random((n, m)) * np.diff(first)[digit]).astype(int)]
    return Scenes(land, fit, rows, cols, digit, glyph, box, seed)
