"""Patches kept by attention, the others folded in: PruMerge, PruMerge+, VisionZip.

PruMerge: arXiv 2403.15388, https://github.com/42Shawn/LLaVA-PruMerge. VisionZip: arXiv 2412.04467,
https://github.com/dvlab-research/VisionZip. `keys` and `attention` come from the tower: released, PruMerge
reads those of its last layer as one wide head, VisionZip those of the layer before, head by head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.compressors.base import Compressor, Features, pick


def complement(index: Tensor, s: int) -> Tensor:
    """(b, n) -> (b, s - n): what is not in `index`, rising; a double there costs the lowest its place."""
    every = torch.arange(s, device=index.device).expand(len(index), -1)
    return every.scatter(1, index, -1).sort(-1).values[:, index.shape[1] :]


class Kept(NamedTuple):
    """Patches kept, in output order, and the rest, rising: (b, n) and (b, s - n)."""

    kept: Tensor
    rest: Tensor


def fold(
    x: Tensor, attention: Tensor, keys: Tensor, keep: Kept, normalise: bool = False, neighbours: int = 32
) -> Tensor:
    """Each kept patch plus its nearest others, and one token for the rest: (b, s, d) -> (b, n + 1, d).

    Nearest by cosine of keys among all others; each is weighted with its class attention. As released the
    weighted sum is added as it is; `normalise` makes it the mean that the paper writes, over the group with
    its centre.
    """
    n = keep.kept.shape[1]
    order = torch.cat(keep, 1)  # kept first
    x, attention = pick(x, order), attention.gather(1, order)
    unit = F.normalize(pick(keys, order), dim=-1)
    near = unit[:, :n] @ unit.transpose(1, 2)  # (b, n, s)
    near.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    near = near.topk(min(neighbours, near.shape[-1] - 1), -1).indices
    weights = torch.zeros_like(unit[:, :1, :1]).expand(-1, n, x.shape[1])
    weights = weights.scatter(2, near, attention.unsqueeze(1).expand(-1, n, -1).gather(2, near))  # (b, n, s)
    left = attention[:, n:].unsqueeze(1)  # (b, 1, s - n)
    if not normalise:
        return torch.cat([x[:, :n] + weights @ x, left @ x[:, n:]], 1)
    weights = weights + torch.diag_embed(attention)[:, :n]
    extra = left @ x[:, n:] / left.sum(-1, keepdim=True).clamp_min(1e-12)
    return torch.cat([weights @ x / weights.sum(-1, keepdim=True), extra], 1)


class PruMerge(Compressor):
    """V - 1 patches by falling class attention, neighbours folded in, and one token for the rest.

    plus: half of the kept are evenly spaced ones. normalise: weighted means in place of the release's sums.
    The release keeps as many as the batch has outliers; here V is given, so that it can be compared.

    Inside the VLM it reads the attention and keys of the layer of `last`, averaged over heads (keys side by
    side): an approximation to the release, which reads its last layer as one wide head. The tower trained
    here has no class token that means anything: attention is then what all patches pay a patch.
    """

    needs_attention = True
    needs_keys = True

    def __init__(self, *, plus: bool = False, normalise: bool = False, **shape):
        super().__init__(**shape)
        self.plus, self.normalise = plus, normalise

    def choose(self, attention: Tensor) -> Kept:
        """Class attention (b, s) -> which patches stay."""
        ranked, n = attention.argsort(dim=-1, descending=True, stable=True), self.tokens - 1
        top = self.half_spaced(ranked, n) if self.plus else ranked[:, :n]
        return Kept(top, complement(top, attention.shape[1]))

    @staticmethod
    def half_spaced(ranked: Tensor, n: int) -> Tensor:
        """Exactly n patches: half by attention, the others evenly spaced among the patches still left."""
        top = ranked[:, : (n + 1) // 2]
        left = complement(top, ranked.shape[1])
        more = n - top.shape[1]
        at = (torch.arange(more, device=left.device) + 0.5) * left.shape[1] / max(more, 1)
        return torch.cat([top, left[:, at.long()]], 1)

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        attention = features.attention.float().mean(1)
        keys = features.keys.float().flatten(2)
        tokens = fold(features.last.float(), attention, keys, self.choose(attention), self.normalise)
        return tokens.to(features.last.dtype)


class Zipped(NamedTuple):
    """VisionZip's choice, counted with the class token where there is one."""

    tokens: Tensor  # (b, V, d)
    dominant: Tensor  # (b, V - c) by falling attention
    target: Tensor  # (c,) positions among the patches that remain
    assigned: Tensor  # (b, rest) number of the target of each other remaining patch


class VisionZip(Compressor):
    """The class token and the patches it attends to most, then c tokens that gather the rest -> (b, V, d).

    c is the paper's share (10 of 64). A tower without a class token gives one patch more in its place. As
    released a contextual token is its target *plus* the mean of what joins it.
    """

    needs_attention = True
    needs_keys = True

    @classmethod
    def possible(cls, grid: int) -> list[int]:
        return list(range(2, grid * grid + 1))

    def __init__(self, **shape):
        super().__init__(**shape)
        self.contextual = max(1, round(self.tokens * 10 / 64))  # c

    def zip(self, features: Features) -> Zipped:
        attention = features.attention.float().sum(1)  # (b, s)
        metric = F.normalize(features.keys.float().mean(2), dim=-1)
        x = features.last.float()
        c, first = self.contextual, int(features.cls is not None)
        top = attention.topk(self.tokens - c - first, -1).indices
        rest = complement(top, x.shape[1])  # (b, M)
        step = max(1, rest.shape[1] // c)
        target = torch.arange(c, device=x.device) * step
        others = complement(target.unsqueeze(0), rest.shape[1]).expand(len(x), -1)
        near = pick(metric, rest.gather(1, others)) @ pick(metric, rest[:, target]).transpose(1, 2)
        assigned = near.argmax(-1)  # (b, M - c)
        joined = F.one_hot(assigned, c).transpose(1, 2).to(x)  # (b, c, M - c)
        count = joined.sum(-1, keepdim=True)
        total, centre = joined @ pick(x, rest.gather(1, others)), pick(x, rest[:, target])
        contextual = centre + total / count.clamp_min(1)
        dominant = pick(x, top.sort(-1).values)
        if first:
            dominant = torch.cat([features.cls.float().unsqueeze(1), dominant], 1)
            top = torch.cat([top.new_zeros(len(top), 1), top + 1], 1)
        return Zipped(torch.cat([dominant, contextual], 1), top, target, assigned)

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        return self.zip(features).tokens.to(features.last.dtype)
