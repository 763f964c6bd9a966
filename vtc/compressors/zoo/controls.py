"""Controls without weights that every learned compressor has to beat: random, stride, down-sampling, DCT.

Down-sampling beats many published compressors on standard benchmarks (arXiv 2510.07143), and random choice
beats choice by attention (arXiv 2502.11494). DCT truncation: arXiv 2508.06038.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vtc.compressors.base import Compressor, Features, Windows


class Random(Compressor):
    """V patches chosen once by `seed`, the same for every image, in raster order."""

    nested = True

    def __init__(self, *, seed: int = 0, **shape):
        super().__init__(**shape)
        order = torch.randperm(self.grid**2, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("order", order, persistent=True)

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        return features.last[:, self.order[: self.tokens].sort().values]


class Stride(Windows):
    """The patch in the middle of each window (the lower right of the four middle ones where k is even)."""

    nested = True

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        b, s, d = features.last.shape
        n, k = self.n, self.k
        return features.last.view(b, n, k, n, k, d)[:, :, k // 2, :, k // 2].reshape(b, n * n, d)


class Separable(Compressor):
    """Z = R X R^T on the grid, with R (n, g) from `matrix`; any n <= g, so V is any square."""

    nested = True
    windowed = True

    @classmethod
    def possible(cls, grid: int) -> list[int]:
        return [n * n for n in range(1, grid + 1)]

    def matrix(self, n: int) -> Tensor:
        """(n, g) in float64; rows add up to 1."""
        raise NotImplementedError

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        return both_ways(self.matrix(math.isqrt(self.tokens)), features.last)


class Downsample(Separable):
    """The grid of features shrunk: each token the mean of its area, fractions of patches included."""

    def matrix(self, n: int) -> Tensor:
        return areas(n, self.grid)


class DownsampleImage(Downsample):
    """The image shrunk: the tower sees n x n patches (`Tower`'s `side`), and all of them are handed on."""

    shrinks_image = True

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        return features.last

    def attention_map(self, features: Features, question: Tensor | None = None) -> Tensor:
        r = self.matrix(math.isqrt(self.tokens)).to(features.last)
        return torch.kron(r, r).expand(len(features), -1, -1)  # (b, V, s): the area that a token covers


class DCT(Separable):
    """The n x n lowest frequencies of the grid's 2-D cosine transform, transformed back at n x n points."""

    def matrix(self, n: int) -> Tensor:
        g = self.grid
        return cosines(n).T @ cosines(g)[:n] * (n / g) ** 0.5


def both_ways(r: Tensor, x: Tensor) -> Tensor:
    """R X R^T: the matrix r (n, g) on the rows and the columns of a grid, (b, g*g, d) -> (b, n*n, d)."""
    (n, g), (b, _, d) = r.shape, x.shape
    x = r.to(x) @ x.reshape(b, g, g * d)  # rows: (b, n, g d)
    x = r.to(x) @ x.view(b * n, g, d)  # columns: (b n, n, d)
    return x.view(b, n * n, d)


def cosines(n: int) -> Tensor:
    """The orthonormal DCT-II as a matrix (frequency, point)."""
    at = torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi / n * at[:, None] * (at[None] + 0.5)) * (2 / n) ** 0.5
    basis[0] /= 2**0.5
    return basis


def areas(n: int, g: int) -> Tensor:
    """The share that each of n cells of a row takes of each of g patches, (n, g); rows add up to 1."""
    edges = torch.arange(n + 1, dtype=torch.float64) * g / n
    low = torch.maximum(edges[:-1, None], torch.arange(g)[None])  # overlap of cell i with patch j
    high = torch.minimum(edges[1:, None], torch.arange(1, g + 1)[None])
    return (high - low).clamp_min(0) * n / g
