"""Seek: every token searches the whole image for what the question names. Made for V = 1 to 4.

    t    = LN(W pool(LN(words)))                                       one vector of the question
    z_p  = LN(MLP(l_p)),    k_p = z_p + r_y + c_x                      y, x: row and column of patch p
    o_vh = sum over all p of softmax_p((q_vh + S_h t) . k_p / sqrt(d)) z_p
    token v = MLP(o_v1, ..., o_vH, mean of z over window v, t)

QueCC adds the question to every patch before it shrinks the patches to one query a window. Here the question
itself is the query, as in the context token of LLaMA-VID (arXiv 2311.17043), and a key knows its place, so
that "third row" can be looked for like "red". One map serves as keys and values, which is half of QueCC's
operations. The words are normalised first: an LLM's embeddings are short, and what is pooled of them learns
slowly (docs/pilots.md has both halves apart). What is found tells of a detail, the window's mean of the gist.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.compressors.base import Features, Windows, mean_pool, mlp2x
from vtc.compressors.question import Steered


class Seek(Steered, Windows):
    """(b, s, d_levels) and the question's input embeddings (b, [m,] q, d_llm) -> (b m, V, d_llm).

    heads: searches of one token.
    """

    needs_question = True
    needs_levels = True
    ends_at_llm = True

    def __init__(self, *, heads: int = 4, **shape):
        super().__init__(**shape)
        d = self.d
        self.read = mlp2x(self.width_of("d_levels"), d, d)
        self.rows, self.columns = (nn.Parameter(torch.randn(self.grid, d) * 0.5**0.5) for _ in range(2))
        self.text = nn.Linear(self.take_question("embeddings"), d)
        self.query = nn.Parameter(torch.randn(self.tokens, heads, d))
        self.steer = nn.Parameter(torch.randn(heads, d, d) * d**-0.5)
        self.project = mlp2x((heads + 2) * d, 2 * d, self.d_out)

    def patches(self, features: Features) -> Tensor:
        """(b, s, d_levels) -> z (b, s, d)."""
        z = self.read(features.levels)
        return F.layer_norm(z, z.shape[-1:], eps=1e-6)

    def steering(self, question: Tensor, mask: Tensor | None) -> Tensor:
        """Words (b, [m,] q, d_llm) -> t (b, m, d)."""
        t = self.text(self.asked(F.layer_norm(question, question.shape[-1:]), mask))
        return F.layer_norm(t, t.shape[-1:])

    def looks(self, z: Tensor, t: Tensor) -> Tensor:
        """z (b, s, d), questions t (b, m, d) -> what each search takes from each patch, (b, m V heads, s)."""
        places = (self.rows.unsqueeze(1) + self.columns).flatten(0, 1)  # (s, d)
        moves = torch.einsum("bmd,hcd->bmhc", t, self.steer.to(t.dtype)).unsqueeze(2)  # (b, m, 1, heads, d)
        query = (self.query + moves).flatten(1, 3).to(z.dtype)  # (b, m V heads, d)
        scores = query @ (z + places.to(z.dtype)).transpose(1, 2)  # (b, m V heads, s)
        return (scores * z.shape[-1] ** -0.5).softmax(-1)

    def compress(self, features: Features, question: Tensor | None = None, mask=None) -> Tensor:
        """As `forward`. question: (b, q, d_llm) or (b, m, q, d_llm), mask alike."""
        z, t = self.patches(features), self.steering(question, mask)
        m, v = t.shape[1], self.tokens
        found = (self.looks(z, t).to(z.dtype) @ z).unflatten(1, (m, v, -1)).flatten(3)  # (b, m, V, heads d)
        gist = mean_pool(z, self.n).unsqueeze(1).expand(-1, m, -1, -1)  # (b, m, V, d)
        known = torch.cat([found, gist, t.to(z.dtype).unsqueeze(2).expand(-1, -1, v, -1)], -1)
        return self.project(known).flatten(0, 1)  # (b m, V, d_llm)

    def attention_map(self, features: Features, question: Tensor | None = None, mask=None) -> Tensor:
        looks = self.looks(self.patches(features), self.steering(question, mask))
        return looks.unflatten(1, (self.tokens, -1)).mean(2)  # of one question: (b, V, s)
