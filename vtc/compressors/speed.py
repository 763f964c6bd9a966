"""QueCC's speed against the algorithm run as published: `python -m vtc.compressors.speed`, JSON on stdout.

Both run in turn in one process with the same weights, so the ratios hold on a busy machine; the LLM's
question pass is in neither. Outputs are compared first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from torch import Tensor, nn

from vtc.compressors import build
from vtc.compressors.base import Features


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


def median_ratio(slow, fast, turns: int) -> tuple[float, float, float]:
    """Median seconds of both, run in turn, and the median of the turns' ratios."""
    slow(), fast()
    seconds = []
    for _ in range(turns):
        at = [time.perf_counter()]
        for call in (slow, fast):
            call()
            at.append(time.perf_counter())
        seconds.append((at[1] - at[0], at[2] - at[1]))
    ratio = statistics.median(a / b for a, b in seconds)
    return statistics.median(a for a, _ in seconds), statistics.median(b for _, b in seconds), ratio


@torch.no_grad()
def compare(tokens: int, b=8, grid=24, d=1024, d_levels=4096, d_question=4096, questions=8, turns=5) -> dict:
    """One V: seconds and ratios for one question, several an image, and bfloat16; largest difference."""
    torch.manual_seed(0)
    old = Published(d, d_levels, d_question, grid, grid // int(tokens**0.5)).eval()
    new = build("quecc", tokens=tokens, grid=grid, d=d, d_levels=d_levels, d_question=d_question).eval()
    new.load_official(old.state_dict())
    x, levels = torch.randn(b, grid**2, d), torch.randn(b, grid**2, d_levels)
    text = torch.randn(b, questions, d_question)
    features, small, ask = Features(x, levels), new.to(torch.bfloat16), text[:, 0]
    new = build("quecc", tokens=tokens, grid=grid, d=d, d_levels=d_levels, d_question=d_question).eval()
    new.load_official(old.state_dict())
    coarse = features.to(torch.bfloat16)

    def published_each():
        return torch.stack([old(x, levels, one) for one in text.unbind(1)], 1).flatten(0, 1)

    row = {"V": tokens, "difference": float((new(features, text) - published_each()).abs().max())}
    for name, slow, fast, n in (
        ("one", lambda: old(x, levels, ask), lambda: new(features, ask), turns),
        ("many", published_each, lambda: new(features, text), max(1, turns // 3)),
        ("bf16", lambda: new(features, ask), lambda: small(coarse, ask.bfloat16()), turns),
    ):
        slow_s, fast_s, ratio = median_ratio(slow, fast, n)
        row |= {f"{name}_slow_s": slow_s, f"{name}_fast_s": fast_s, f"{name}_ratio": ratio}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vtc.compressors.speed", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 36])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    rows = [compare(v, b=args.batch, questions=args.questions, turns=args.turns) for v in args.tokens]
    print(
        json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
