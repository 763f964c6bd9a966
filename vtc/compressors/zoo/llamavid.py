"""LLaMA-VID: one token of what the question asks for, others of what is there (arXiv 2311.17043, section 3).

    context = mean over words of softmax(Q K^T / sqrt(d)) X,   Q from the words, K = W X
    content = X averaged over V - 1 areas

Each of the two has a projector of its own. In the paper a frame is one context and one content token, and
the words are read by a small pretrained text model that may look at the image. Here one transformer layer
reads the question's input embeddings. Nearest relative in this zoo: `lookup.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vtc.compressors.base import Compressor, Features, check_heads, mlp2x
from vtc.compressors.question import several
from vtc.compressors.zoo.controls import areas


class LLaMAVID(Compressor):
    """(b, s, d) and the question's embeddings (b, [m,] q, d_llm) -> (b m, V, d_llm); V = 1: context alone.

    The areas of the content are those of the most nearly square grid of V - 1 cells, so every V can be had
    whose cells are no smaller than a patch.
    """

    needs_question = True
    ends_at_llm = True
    question_source = "embeddings"
    nested = True

    @classmethod
    def possible(cls, grid: int) -> list[int]:
        return [V for V in range(1, grid * grid + 2) if max(_sides(V - 1)) <= grid]

    def __init__(self, *, heads: int = 4, **shape):
        super().__init__(**shape)
        check_heads(heads, self.d)
        self.d_question = self.d_question or self.d_llm
        self.embed = nn.Linear(self.d_question, self.d)
        self.text = nn.TransformerEncoderLayer(self.d, heads, 2 * self.d, 0.0, "gelu", batch_first=True)
        self.key = nn.Linear(self.d, self.d)
        self.context, self.content = (mlp2x(self.d, self.d_out, self.d_out) for _ in range(2))

    def looks(self, x: Tensor, question: Tensor, mask: Tensor | None) -> Tensor:
        """Patches (b, s, d) and words (b, m, q, d_llm) -> what the context takes from where, (b, m, s)."""
        b, m, q, _ = question.shape
        real = torch.ones(b, m, q, dtype=torch.bool, device=x.device) if mask is None else mask.bool()
        real = real | ~real.any(-1, keepdim=True)  # a row of padding alone: nothing may be empty
        words = self.embed(question).flatten(0, 1)  # (b m, q, d)
        words = self.text(words, src_key_padding_mask=~real.flatten(0, 1)).unflatten(0, (b, m))
        scores = words.flatten(1, 2) @ self.key(x).transpose(1, 2) * x.shape[-1] ** -0.5  # (b, m q, s)
        each = scores.softmax(-1).unflatten(1, (m, q)) * real.unsqueeze(-1)
        return each.sum(2) / real.sum(-1, keepdim=True)

    def compress(self, features: Features, question: Tensor | None = None, mask=None) -> Tensor:
        """As `forward`. question: (b, q, d_llm) or (b, m, q, d_llm), mask alike."""
        x = features.last
        question, mask = several(question, mask)
        context = self.context(self.looks(x, question, mask) @ x).unsqueeze(2)  # (b, m, 1, d_llm)
        if self.tokens == 1:
            return context.flatten(0, 1)
        content = self.content(self.spread().to(x) @ x).unsqueeze(1)  # (b, 1, V - 1, d_llm)
        return torch.cat([context, content.expand(-1, question.shape[1], -1, -1)], 2).flatten(0, 1)

    def spread(self) -> Tensor:
        """The share of each patch in each content token, (V - 1, s); rows add up to 1."""
        rows, columns = (areas(n, self.grid) for n in _sides(self.tokens - 1))
        return torch.kron(rows, columns)

    def attention_map(self, features: Features, question: Tensor | None = None, mask=None) -> Tensor:
        looks = self.looks(features.last, *several(question, mask))  # (b, 1, s)
        if self.tokens == 1:
            return looks
        return torch.cat([looks, self.spread().to(looks).expand(len(looks), -1, -1)], 1)


def _sides(cells: int) -> tuple[int, int]:
    """Rows and columns of the most nearly square grid of so many cells."""
    rows = max((n for n in range(1, math.isqrt(cells) + 1) if cells % n == 0), default=0)
    return rows, cells // rows if rows else 0
