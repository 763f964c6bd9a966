"""Token merging after the tower, and the pieces that the tower's layers would use (ToMe, arXiv 2210.09461).

The reference implementation is non-commercial; written from the paper: even positions (A) propose their most
similar odd position (B), the r best pairs merge, sizes are carried so that every mean is over patches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.compressors.base import Compressor, Features


class Matching(NamedTuple):
    """Which of A stay, which merge and into which of B; the output is [A that stay, B]."""

    stay: Tensor  # (b, |A| - r) positions in A
    source: Tensor  # (b, r) positions in A, by falling similarity
    target: Tensor  # (b, r) positions in B
    tokens: int
    second_first: bool  # the distillation token, B's first, comes right after the class token

    def sum(self, x: Tensor) -> Tensor:
        """(b, t, d) -> (b, t - r, d): members of a merged token added up."""
        a, b = x[:, ::2], x[:, 1::2]
        moved = a.gather(1, self.source.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        b = b.scatter_add(1, self.target.unsqueeze(-1).expand_as(moved), moved)
        stay = a.gather(1, self.stay.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        if self.second_first:
            return torch.cat([stay[:, :1], b[:, :1], stay[:, 1:], b[:, 1:]], 1)
        return torch.cat([stay, b], 1)

    def groups(self) -> Tensor:
        """(b, t): the output position in which each token ended."""
        images, stays = self.stay.shape
        of_a = torch.empty(images, (self.tokens + 1) // 2, dtype=torch.long, device=self.stay.device)
        of_b = torch.arange(self.tokens // 2, device=self.stay.device).expand(images, -1) + stays
        at = torch.arange(stays, device=self.stay.device).expand(images, -1)
        if self.second_first:
            at, of_b = at + (at > 0), torch.where(of_b == stays, 1, of_b)
        of_a.scatter_(1, self.stay, at)
        of_a.scatter_(1, self.source, of_b.gather(1, self.target))
        groups = torch.empty(images, self.tokens, dtype=torch.long, device=self.stay.device)
        groups[:, ::2], groups[:, 1::2] = of_a, of_b
        return groups


def match(metric: Tensor, r: int, class_token: bool = False, distill_token: bool = False) -> Matching:
    """metric (b, t, d_k) -> the r best pairs by cosine; r is cut to half of what is not protected.

    Without a class token the A that stay are ordered by falling similarity, as the release has it.
    """
    t = metric.shape[1]
    r = max(0, min(r, (t - class_token - distill_token) // 2))
    unit = metric / metric.norm(dim=-1, keepdim=True)
    scores = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)  # (b, |A|, |B|)
    if class_token:
        scores[:, 0] = -torch.inf
    if distill_token:
        scores[:, :, 0] = -torch.inf
    best, partner = scores.max(-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    source, stay = order[:, :r], order[:, r:]
    if class_token:
        stay = stay.sort(-1).values
    return Matching(stay, source, partner.gather(1, source), t, distill_token)


def merge(x: Tensor, matching: Matching, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(b, t, d) -> (b, t - r, d), means weighted with sizes (b, t, 1), and the new sizes."""
    size = torch.ones_like(x[..., :1]) if size is None else size
    total = matching.sum(size)
    return matching.sum(x * size) / total, total


def unmerge(x: Tensor, matching: Matching) -> Tensor:
    """(b, t - r, d) -> (b, t, d): every token gets a copy of the one it was merged into."""
    return x.gather(1, matching.groups().unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def schedule(layers: int, r) -> list[int]:
    """Merges per layer from ToMe's short forms: a number, (mean, slope in -1..1), or a list to fill up."""
    if isinstance(r, list):
        return r + [0] * (layers - len(r))
    mean, slope = r if isinstance(r, tuple) else (r, 0)
    first = int(mean * (1 - slope))
    step = (2 * mean - first - first) / (layers - 1)
    return [int(first + step * layer) for layer in range(layers)]


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
        matching = match(x if metric is None else metric, steps[-1])
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

    def where(self, features: Features, question: Tensor | None = None) -> Tensor:
        merged = self.merging(features)
        return F.one_hot(merged.groups, self.tokens).transpose(1, 2) / merged.size  # (b, V, s)


class TowerAttention(nn.Module):
    """A tower layer's attention that also gives what the selectors read: the class row and the key metric.

    (b, t, d) -> output (b, t, d), class token's attention (b, heads, t), metric (b, t, d / heads), the mean
    of the keys over heads. size (b, t, 1): its logarithm is added to the scores (ToMe's proportional
    attention).
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (b, heads, t, c)
        scores = q @ k.transpose(2, 3) * (d // self.heads) ** -0.5
        if size is not None:
            scores = scores + size.log().view(b, 1, 1, t)
        weights = scores.softmax(-1)
        out = self.proj((weights @ v).transpose(1, 2).reshape(b, t, d))
        return out, weights[:, :, 0], k.mean(1)

    def load_official(self, state: dict[str, Tensor]) -> None:
        """Names of timm (`qkv`, `proj`) or transformers' CLIP (`q_proj`, `k_proj`, `v_proj`, `out_proj`)."""
        if "qkv.weight" in state:
            self.load_state_dict(state)
            return
        packed = {f"qkv.{p}": torch.cat([state[f"{i}_proj.{p}"] for i in "qkv"]) for p in ("weight", "bias")}
        self.load_state_dict({**packed, **{f"proj.{p}": state[f"out_proj.{p}"] for p in ("weight", "bias")}})
