"""QueCC's speed against the algorithm run as published; the rows stand in notebook 05.

Both run in turn in one process with the same weights, so the ratios hold on a busy machine; the LLM's
question pass is in neither. Outputs are compared first.
"""

from __future__ import annotations

import copy
import math
import statistics

import torch
from torch import Tensor, nn

from vtc.benchmark.clock import in_turn, ratio
from vtc.compressors import build
from vtc.compressors.base import Features
from vtc.machine import device_name, has_cuda
from vtc.profiles import Profile


class Published(nn.Module):
    """QueCC step by step as section 4 of the paper and its configuration describe it, names as released."""

    def __init__(self, d: int, d_levels: int, d_question: int, grid: int, k: int, heads: int = 8):
        super().__init__()

        def mapped(d_in):
            return nn.Sequential(nn.Linear(d_in, d), nn.GELU(), nn.Linear(d, d), nn.LayerNorm(d, eps=1e-6))

        self.grid, self.k = grid, k
        self.text_projection = nn.Sequential(nn.Linear(d_question, d), nn.LayerNorm(d, eps=1e-6))
        self.q_proj, self.k_proj, self.v_proj = mapped(d), mapped(d_levels), mapped(d_levels)
        self.q_downsample = nn.Conv2d(d, d, k, k, groups=d)
        self.clip_attn = nn.MultiheadAttention(d, heads)

    def regions(self, x: Tensor) -> Tensor:
        """(b, s, d) -> (k*k, b*V, d), patches of a window first, as torch's attention wants them."""
        b, s, d = x.shape
        n, k = self.grid // self.k, self.k
        return x.view(b, n, k, n, k, d).permute(2, 4, 0, 1, 3, 5).reshape(k * k, b * n * n, d)

    def forward(self, x: Tensor, levels: Tensor, text: Tensor) -> Tensor:
        b, s, d = x.shape
        query = self.q_proj(x + self.text_projection(text).unsqueeze(1))  # (b, s, d)
        query = query.transpose(1, 2).reshape(b, d, self.grid, self.grid)
        query = self.q_downsample(query).flatten(2).transpose(1, 2)  # (b, V, d)
        keys, values = self.regions(self.k_proj(levels)), self.regions(self.v_proj(levels))
        out = self.clip_attn(query.reshape(1, -1, d), keys, values)[0]
        return out.view(b, -1, d)


def cases(p: Profile) -> list[dict]:
    """The paper's widths (CLIP-L, a 7B LLM) on a 24 x 24 grid; at smoke the profile's own."""
    small = p.name == "smoke"
    widths = (p.tower.d, p.size(p.zoo_size).d) if small else (1024, 4096)
    shape = {"batch": 8, "grid": p.g if small else 24, "d": widths[0], "d_question": widths[1]}
    return [{"V": V, **shape, "questions": 8} for V in (1, 4, 16, 36)]


@torch.no_grad()
def measure(case: dict, turns: int = 3) -> dict[str, float]:
    """One V: seconds and ratios for one question, several an image, and bfloat16; largest difference."""
    torch.manual_seed(0)
    V, b, grid, d, d_question = (case[name] for name in ("V", "batch", "grid", "d", "d_question"))
    device = "cuda" if has_cuda() else "cpu"
    old = Published(d, 4 * d, d_question, grid, grid // math.isqrt(V)).to(device).eval()
    new = build("quecc", tokens=V, grid=grid, d=d, d_levels=4 * d, d_question=d_question).to(device).eval()
    new.load_official(old.state_dict())
    small = copy.deepcopy(new).to(torch.bfloat16)
    features = Features(torch.randn(b, grid**2, d), torch.randn(b, grid**2, 4 * d)).to(device)
    text = torch.randn(b, case["questions"], d_question).to(device)
    coarse, ask = features.to(torch.bfloat16), text[:, 0]

    def published(asked: Tensor) -> Tensor:
        return old(features.last, features.levels, asked)

    def published_each() -> Tensor:
        return torch.stack([published(one) for one in text.unbind(1)], 1).flatten(0, 1)

    row = {"difference": float((new(features, text) - published_each()).abs().max())}
    for name, slow, fast, n in (
        ("one", lambda: published(ask), lambda: new(features, ask), turns),
        ("many", published_each, lambda: new(features, text), max(1, turns // 2)),
        ("bf16", lambda: new(features, ask), lambda: small(coarse, ask.bfloat16()), turns),
    ):
        taken = in_turn({"slow": slow, "fast": fast}, device, fewest=n, most=n)
        row |= {f"{name}_{which}_s": statistics.median(ms) / 1e3 for which, ms in taken.items()}
        row |= {f"{name}_{what}": x for what, x in ratio(taken["slow"], taken["fast"]).items()}
    return row | {"device": device_name(device), "threads": torch.get_num_threads()}
