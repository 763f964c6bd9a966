"""Token merging after the tower (ToMe, arXiv 2210.09461, section 3).

The reference implementation is non-commercial; written from the paper: even positions (A) propose their most
similar odd position (B), the r best pairs merge, sizes are carried so that every mean is over patches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.compressors.base import Compressor, Features, pick


class Matching(NamedTuple):
    """Which of A stay, which merge and into which of B; the output is [A that stay, B]."""

    stay: Tensor  # (b, |A| - r) positions in A
    source: Tensor  # (b, r) positions in A, by falling similarity
    target: Tensor  # (b, r) positions in B
    tokens: int  # t

    def sum(self, x: Tensor) -> Tensor:
        """(b, t, d) -> (b, t - r, d): members of a merged token added up."""
        a, b = x[:, ::2], x[:, 1::2]
        moved = pick(a, self.source)
        b = b.scatter_add(1, self.target.unsqueeze(-1).expand_as(moved), moved)
        return torch.cat([pick(a, self.stay), b], 1)

    def groups(self) -> Tensor:
        """(b, t): the output position in which each token ended."""
        images, stays = self.stay.shape
        groups = torch.empty(images, self.tokens, dtype=torch.long, device=self.stay.device)
        of_a, of_b = groups[:, ::2], groups[:, 1::2]  # views
        of_b.copy_(torch.arange(self.tokens // 2, device=groups.device) + stays)
        of_a.scatter_(1, self.stay, torch.arange(stays, device=groups.device).expand(images, -1))
        of_a.scatter_(1, self.source, of_b.gather(1, self.target))
        return groups


def similarity(metric: Tensor) -> Tensor:
    """metric (b, t, d_k) -> cosine of every even position with every odd one, (b, |A|, |B|)."""
    unit = metric / metric.norm(dim=-1, keepdim=True)
    return unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)


def match(scores: Tensor, r: int) -> Matching:
    """scores (b, |A|, |B|) -> the r best pairs; the A that stay come by falling similarity, as released."""
    best, partner = scores.max(-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    source, stay = order[:, :r], order[:, r:]
    return Matching(stay, source, partner.gather(1, source), sum(scores.shape[1:]))


def merge(x: Tensor, matching: Matching, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(b, t, d) -> (b, t - r, d), means weighted with sizes (b, t, 1), and the new sizes."""
    size = torch.ones_like(x[..., :1]) if size is None else size
    total = matching.sum(size)
    return matching.sum(x * size) / total, total


class Merging(NamedTuple):
    """What repeated merging left; `groups` is the output position of each patch, `steps` each step's r."""

    tokens: Tensor
    size: Tensor
    groups: Tensor
    steps: list[int]


def merge_to(x: Tensor, tokens: int, metric: Tensor | None = None) -> Merging:
    """Merge (b, s, d), at most half at a time, until `tokens` are left.

    metric: (b, s, d_k), merged along with the tokens; None takes the tokens themselves at each step.
    """
    size = torch.ones_like(x[..., :1])
    groups = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    steps = []
    while (t := x.shape[1]) > tokens:
        steps.append(min(t // 2, t - tokens))
        matching = match(similarity(x if metric is None else metric), steps[-1])
        if metric is not None:
            metric, _ = merge(metric, matching, size)
        x, size = merge(x, matching, size)
        groups = matching.groups().gather(1, groups)
    return Merging(x, size, groups, steps)


class ToMe(Compressor):
    """Patches merged by similarity, of keys where the tower gives them, else of features, until V remain."""

    nested = True

    def merging(self, features: Features) -> Merging:
        metric = None if features.keys is None else features.keys.float().mean(2)
        return merge_to(features.last.float(), self.tokens, metric)

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        return self.merging(features).tokens.to(features.last.dtype)

    def attention_map(self, features: Features, question: Tensor | None = None) -> Tensor:
        merged = self.merging(features)
        return F.one_hot(merged.groups, self.tokens).transpose(1, 2) / merged.size  # (b, V, s)
