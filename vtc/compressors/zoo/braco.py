"""Braco: low frequencies of the image, and what they leave out (arXiv 2609.35232, section 3).

V = C^2 + S tokens. The first C^2 are the lowest C x C coefficients of the grid's two-dimensional cosine
transform, each told its frequency by a polar code. The other S are residual tokens: each is a sparse weighted
sum of patches, chosen by a small scorer. Reference implementation: https://github.com/zrrraa/Braco.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.compressors.base import Compressor, Features, Official, fill
from vtc.compressors.zoo.controls import both_ways, cosines

PARTS = {1: (1, 0), 4: (1, 3), 9: (2, 5), 16: (3, 7), 25: (4, 9)}  # V -> (C, S)
BANDS = 8  # frequencies of the polar code, each twice the one before
INVERSE_FROM = 25  # from so many tokens on, the kept coefficients are transformed back to C x C points


def polar_code(g: int) -> Tensor:
    """Polar code of g x g coefficients (g*g, 4 BANDS): sines, cosines of the radius, then of the angle."""
    u, v = torch.meshgrid(*2 * [torch.arange(g, dtype=torch.float64)], indexing="ij")
    radius = torch.hypot(u, v) / (math.sqrt(2) * max(g - 1, 1))  # 0 at the lowest frequency, 1 at the highest
    angle = torch.atan2(v, u)
    octaves = 2.0 ** torch.arange(BANDS, dtype=torch.float64)
    waves = (math.pi * radius[..., None] * octaves, angle[..., None] * octaves)  # (g, g, BANDS) each
    return torch.cat([f(x) for x in waves for f in (torch.sin, torch.cos)], -1).flatten(0, 1).float()


def sparsemax(scores: Tensor) -> Tensor:
    """The point of the simplex nearest to the scores, along the last axis; most weights are exactly 0.

    (..., s) -> (..., s), rows add up to 1. Source: arXiv 1602.02068, algorithm 1.
    """
    ranked = scores.sort(-1, descending=True).values
    sums = ranked.cumsum(-1)
    k = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
    inside = (1 + k * ranked > sums).sum(-1, keepdim=True)  # how many weights stay above 0
    threshold = (sums.gather(-1, inside - 1) - 1) / inside
    return (scores - threshold).clamp_min(0)


def energy(x: Tensor, g: int) -> Tensor:
    """How much each patch differs from its two to four neighbours, standardised: (b, s, d) -> (b, s)."""
    image = x.unflatten(1, (g, g))
    down = (image[:, 1:] - image[:, :-1]).square().sum(-1)  # (b, g - 1, g)
    right = (image[:, :, 1:] - image[:, :, :-1]).square().sum(-1)  # (b, g, g - 1)
    total = F.pad(down, (0, 0, 1, 0)) + F.pad(down, (0, 0, 0, 1))  # (b, g, g)
    total = (total + F.pad(right, (1, 0)) + F.pad(right, (0, 1))).flatten(1)
    return (total - total.mean(1, keepdim=True)) / (total.std(1, keepdim=True) + 1e-6)


class Braco(Compressor):
    """C x C low frequencies and S residual tokens of the last layer: (b, s, d) -> (b, V, d); the projector
    follows.

    temperature: of the residual tokens' choice; the release lowers it from 2.0 over 1.2 to .8 while it
    trains. One token is the mean of all patches, scaled.
    """

    @classmethod
    def possible(cls, grid: int) -> list[int]:
        return [V for V, (c, _) in PARTS.items() if c <= grid and V <= grid * grid]

    def __init__(self, *, temperature: float = 0.8, **shape):
        super().__init__(**shape)
        self.temperature = temperature
        self.side_kept, residuals = PARTS[self.tokens]  # C, S
        self.register_buffer("code", polar_code(self.grid), persistent=False)
        self.polar_scale = nn.Parameter(torch.full((1,), 0.1))
        self.polar_projection = nn.Linear(self.code.shape[1], self.d, bias=False)
        self.residuals = residuals
        if residuals:
            self.residual_scorer = nn.Sequential(
                nn.LayerNorm(self.d), nn.Linear(self.d, self.d), nn.GELU(), nn.Linear(self.d, residuals)
            )
            self.residual_norm = nn.LayerNorm(self.d)
            self.residual_scale = nn.Parameter(torch.ones(1))
            self.residual_prior_scale = nn.Parameter(torch.zeros(1))

    def low_frequencies(self, x: Tensor) -> Tensor:
        """The C x C lowest coefficients (b, C*C, d); no gradient reaches the features through them."""
        g, c = self.grid, self.side_kept
        code = self.code.view(g, g, -1)[:c, :c].flatten(0, 1).to(x)
        kept = both_ways(cosines(g)[:c], x.detach()) + self.polar_scale * self.polar_projection(code)
        return kept if self.tokens < INVERSE_FROM else both_ways(cosines(c).T, kept)

    def residual_weights(self, x: Tensor) -> Tensor:
        """Where the residual tokens take from: (b, s, d) -> (b, S, s), rows add up to 1."""
        logits = self.residual_scorer(x)  # (b, s, S)
        logits = logits + self.residual_prior_scale * energy(x, self.grid).unsqueeze(-1)
        return sparsemax((logits / self.temperature).transpose(1, 2))

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        x = features.last
        kept = self.low_frequencies(x)
        if not self.residuals:
            return kept
        detail = self.residual_norm(self.residual_weights(x) @ x) * self.residual_scale  # (b, S, d)
        return torch.cat([kept, detail], 1)

    def attention_map(self, features: Features, question: Tensor | None = None) -> Tensor:
        """A frequency reads each patch by the size of its wave there, a residual token by its weight."""
        waves = cosines(self.grid)[: self.side_kept]  # (C, g)
        if self.tokens >= INVERSE_FROM:
            waves = cosines(self.side_kept).T @ waves
        read = torch.kron(waves, waves).abs().to(features.last)  # (C * C, s)
        read = (read / read.sum(-1, keepdim=True)).expand(len(features), -1, -1)
        return torch.cat([read, self.residual_weights(features.last)], 1) if self.residuals else read

    def load_official(self, state: dict[str, Tensor]) -> None:
        """Read a released `BracoCompressor`, whose names are those of this class."""
        given = Official(state, "Braco")
        fill(self, {name: given[name] for name, _ in self.named_parameters()})
