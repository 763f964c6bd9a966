"""Lookup: every word of the question looks for its own patches, in the space of the LLM's embeddings.

Its nearest relative is the context token of LLaMA-VID (arXiv 2311.17043, section 3): text queries attend to
the patches and are averaged to one token. Here the queries are the LLM's own word embeddings, patches are
mapped to the LLM's width, and `finds` weighted sums of what the words find are added to `glances.py`.

Why: a steered compressor has to learn where "red" lies in its features and in the question's vector, and to
bring the two together; at one token, 800 steps are too few for that (QueCC names 4 of 10 attributes).
Aligning at many tokens (`aligns_at`) teaches patches the LLM's words; it adds little (notebook 05). Whether
this helps where words and patches are less alike than in a small world is not known.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.compressors.base import Features, unwindows
from vtc.compressors.question import several
from vtc.compressors.zoo.glances import Glances


class Lookup(Glances):
    """(b, s, d_levels) and the question's input embeddings (b, [m,] q, d_llm) -> (b m, V, d_llm).

    source "llm_last": the question is one vector (b, [m,] d_llm), the only word (QueCC's).
    finds: how many mixtures of the words' attention are handed on, each a weighted mean of patches.
    aligned: the align stage has up to 16 tokens, whatever V is, for a token has to be of one place to learn
    its words; False: V tokens, as for every other compressor.
    """

    def __init__(self, *, finds=4, aligned=True, **options):
        super().__init__(steered=True, nested=True, width=options["d_llm"], **options)
        width = self.width_of("d_llm")
        self.aligns_at = max(v for v in self.possible(self.grid) if v <= 16) if aligned else None
        self.ask = nn.Parameter(torch.eye(width))  # a word's embedding is its query, to begin with
        self.gate = nn.Linear(width, finds)
        self.hand_on = nn.Parameter(torch.eye(width).repeat(finds, 1) * width**-0.5 / finds)

    def words(self, question: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Embeddings (b, [m,] q, d_llm) -> queries (b, m, q, d_llm), shares of the finds (b, m, finds, q)."""
        if self.pool is None:
            question = (question if question.dim() == 3 else question.unsqueeze(1)).unsqueeze(2)
        question, mask = several(question, mask)
        share = self.gate(question)  # (b, m, q, finds)
        if mask is not None:
            share = share.masked_fill(~mask.bool().unsqueeze(-1), -1e4)
        normal = F.layer_norm(question, question.shape[-1:])
        return normal @ self.ask, share.softmax(2).transpose(2, 3)

    def found(self, patches: Tensor, question: Tensor, mask: Tensor | None) -> Tensor:
        """Patches (b, V, k*k, d_llm) and words -> the attention of each find, (b, V, m, finds, k*k)."""
        query, share = self.words(question, mask)
        b, m, q, width = query.shape
        query = query.flatten(1, 2).unsqueeze(1).to(patches.dtype)  # (b, 1, m q, d_llm)
        scores = query @ patches.transpose(2, 3)  # (b, V, m q, k*k)
        weights = (scores * width**-0.5).softmax(-1).unflatten(2, (m, q))
        return share.unsqueeze(1).to(weights.dtype) @ weights

    def compress(self, features: Features, question: Tensor | None = None, mask=None) -> Tensor:
        patches = self.patches(features)  # (b, V, k*k, d_llm)
        glanced = self.glanced(patches, self.steering(question, mask))  # (b m, V, d_llm)
        if self.k == 1:  # of a single patch all words find the whole
            hand_on = self.hand_on.unflatten(0, (-1, patches.shape[-1])).sum(0)  # (d_llm, d_llm)
            found = patches.squeeze(2) @ hand_on.to(patches.dtype)  # (b, s, d_llm), for any question
            return glanced + found.repeat_interleave(len(glanced) // len(found), 0)
        weights = self.found(patches, question, mask)
        seen = weights.flatten(2, 3) @ patches  # (b, V, m finds, d_llm)
        seen = seen.unflatten(2, weights.shape[2:4]).flatten(3).transpose(1, 2)  # (b, m, V, finds d_llm)
        return glanced + (seen @ self.hand_on.to(seen.dtype)).flatten(0, 1)

    def attention_map(self, features: Features, question: Tensor | None = None, mask=None) -> Tensor:
        weights = self.found(self.patches(features), question, mask)  # of one question: (b, V, 1, finds, k*k)
        return unwindows(weights.mean((2, 3)), self.n)
