"""A question vector without a pass of the LLM: a small learned pooling of the question's input embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtc import InputError

SOURCES = ("llm_last", "prompt_prefix", "embeddings")


class Steered:
    """What compressors that read a question share: where its vector comes from, and its shape."""

    def take_question(self, source: str) -> int:
        """Set up the reading -> width of the vector. Raises `InputError` for an unknown source."""
        if source not in SOURCES:
            raise InputError(f"{self.name}: source '{source}' is unknown, use one of {', '.join(SOURCES)}")
        self.question_source, self.d_question = source, self.d_question or self.d_llm
        width = self.width_of("d_question")
        self.pool = QuestionPool(width) if source == "embeddings" else None
        return self.pool.d_out if self.pool else width

    def asked(self, question: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """A question as it is given -> vectors (b, m, width); None where none is read."""
        if not self.needs_question:
            return None
        if self.pool is not None:
            question = self.pool(question, mask)
        return question if question.dim() == 3 else question.unsqueeze(1)


def several(question: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Embeddings (b, q, d) or (b, m, q, d), mask alike or None -> both with m, which is 1 where it lacks."""
    if question.dim() == 4:
        return question, mask
    return question.unsqueeze(1), None if mask is None else mask.unsqueeze(1)


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
