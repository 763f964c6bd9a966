"""A question vector without a pass of the LLM: a small learned pooling of the question's input embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtc import InputError

SOURCES = ("llm_last", "prompt_prefix", "embeddings")


def check_source(name: str, source: str) -> None:
    """Raise `InputError` where the question's vector cannot come from there."""
    if source not in SOURCES:
        raise InputError(f"{name}: source '{source}' is unknown, use one of {', '.join(SOURCES)}")


class QuestionPool(nn.Module):
    """Embeddings (b, [m,] q, d), mask (b, [m,] q), True where real -> (b, [m,] d_out).

    `heads` weighted means side by side; the weights come from a word and its place (a learned table of
    `longest` places, the last one serves what is beyond), so that "left of" and its operands can be told
    apart.
    """

    def __init__(self, d: int, heads: int = 4, longest: int = 64):
        super().__init__()
        self.d_out = heads * d
        self.score = nn.Linear(d, heads)
        self.place = nn.Parameter(torch.randn(longest, heads) * 0.5)

    def forward(self, words: Tensor, mask: Tensor | None = None) -> Tensor:
        at = torch.arange(words.shape[-2], device=words.device).clamp_max(len(self.place) - 1)
        scores = self.score(words) + self.place[at]  # (..., q, heads)
        if mask is not None:
            scores = scores.masked_fill(~mask.bool().unsqueeze(-1), -1e4)
        return (scores.softmax(-2).transpose(-1, -2).to(words.dtype) @ words).flatten(-2)  # (..., heads d)
