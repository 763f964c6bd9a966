"""Glances: a token made of many attention heads, each by place, content and question. Made for V = 1 to 4.

    z_p = LN(MLP(l_p)),    a_ip = softmax over window v of (q_i + S_i t) . z_p + r_ip
    token v = MLP(W_1 sum_p a_1p z_p, ..., W_n sum_p a_np z_p)

t is the question, r a learned table of places. QueCC and TokenPacker give a window one query, whose 8 heads
attend to nearly the same patches, and have separate maps for keys and values. Here one map serves as both
(half the operations); what that saves pays for more heads, whose tables start spread over the window.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc import InputError
from vtc.compressors.base import Features, Windows, mlp2x, unwindows, windows
from vtc.compressors.question import Steered


def spread(glances: int, k: int) -> Tensor:
    """Start of the place table (glances, k*k): logits fall with the distance from a lattice of centres."""
    side = math.ceil(glances**0.5)
    at = (torch.arange(glances) + 0.5) * side**2 / glances
    rows, columns = (at // side + 0.5) * k / side, (at % side) * k / side
    patch = torch.arange(k) + 0.5
    far = (rows[:, None, None] - patch[:, None]) ** 2 + (columns[:, None, None] - patch) ** 2
    return (-far / (2 * (k / side) ** 2)).flatten(1)


class Glances(Steered, Windows):
    """(b, s, d_levels) and, with `steered`, a question -> (b, V, d_llm); ends at the LLM's width.

    steered: the question, the LLM's input embeddings (b, q, d_llm), moves every query and scales the values;
    source: or what else it is, see `QueCC`.
    nested: a table of places for every V, so that one training serves all of them. width: of the patches' map
    (d); a glance carries an eighth of it.
    """

    needs_levels = True
    ends_at_llm = True

    def __init__(self, *, glances=32, width=None, steered=False, nested=False, source="embeddings", **shape):
        super().__init__(**shape)
        if glances < 1:
            raise InputError(f"{self.name}: glances must be at least 1, got {glances}")
        width = width or self.d
        each = max(4, width // 8)
        self.needs_question, self.nested = steered, nested
        self.read = mlp2x(self.width_of("d_levels"), width, width)
        self.query = nn.Parameter(torch.randn(glances, width) * width**-0.5)
        sides = [self.grid // math.isqrt(v) for v in self.possible(self.grid)] if nested else [self.k]
        tables = {str(k): nn.Parameter(spread(glances, k)) for k in sides}
        self.place = nn.ParameterDict(tables) if nested else tables[str(self.k)]
        self.value = nn.Parameter(torch.randn(glances, width, each) * width**-0.5)
        self.project = mlp2x(glances * each, self.d_out, self.d_out)
        if steered:
            self.text = nn.Sequential(nn.Linear(self.take_question(source), width), nn.GELU())
            self.steer, self.scale = nn.Linear(width, glances * width), nn.Linear(width, width)
            nn.init.normal_(self.steer.weight, std=0.5 * width**-0.5)
            nn.init.zeros_(self.scale.weight)

    def patches(self, features: Features) -> Tensor:
        """Keys and values at once, by window: (b, V, k*k, width)."""
        z = self.read(features.levels)
        return windows(F.layer_norm(z, z.shape[-1:], eps=1e-6), self.n)

    def steering(self, question: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """A question -> (b, m, width); None where none is read."""
        return self.text(self.asked(question, mask)) if self.needs_question else None

    def weights(self, patches: Tensor, steer: Tensor | None) -> Tensor:
        """Patches (b, V, k*k, width), steer (b, m, width) -> weights (b, V, m glances, k*k)."""
        b, v, kk, width = patches.shape
        query = self.query.expand(b, 1, -1, -1)
        place = self.place[str(self.k)] if self.nested else self.place
        if steer is not None:
            moves = self.steer(steer).unflatten(-1, (-1, width))  # (b, m, glances, width)
            query = query + moves * width**-0.5
            place = place.repeat(steer.shape[1], 1)
        query = query.flatten(1, 2).unsqueeze(1)  # (b, 1, m glances, width)
        return ((query.to(patches.dtype) @ patches.transpose(2, 3)) + place).softmax(-1)

    def compress(self, features: Features, question: Tensor | None = None, mask=None) -> Tensor:
        """As `forward`. question: (b, q, d_llm) or (b, m, q, d_llm), mask alike."""
        return self.glanced(self.patches(features), self.steering(question, mask))

    def glanced(self, patches: Tensor, steer: Tensor | None) -> Tensor:
        """Patches (b, V, k*k, width), steer (b, m, width) -> (b m, V, d_llm)."""
        if self.k == 1:  # a glance at a single patch sees it whole: a step at V = s takes half as long
            return self.project(self.taken(patches.transpose(1, 2), steer))
        seen = self.weights(patches, steer) @ patches  # (b, V, m glances, width)
        seen = seen.unflatten(2, (-1, len(self.query))).transpose(1, 2)  # (b, m, V, glances, width)
        if steer is not None:
            seen = seen * (1 + self.scale(steer))[:, :, None, None]
        carried = torch.einsum("bmvhw,hwc->bmvhc", seen, self.value.to(seen.dtype))
        return self.project(carried.flatten(3).flatten(0, 1))  # (b m, V, d_llm)

    def taken(self, patches: Tensor, steer: Tensor | None) -> Tensor:
        """What all glances take from patches (b, 1, s, width) seen whole -> (b m, s, glances each)."""
        if steer is not None:
            patches = patches * (1 + self.scale(steer))[:, :, None]  # (b, m, s, width)
        return patches.flatten(0, 1) @ self.value.to(patches.dtype).transpose(0, 1).flatten(1)

    def attention_map(self, features: Features, question: Tensor | None = None, mask=None) -> Tensor:
        steer = self.steering(question, mask)
        return unwindows(self.weights(self.patches(features), steer).mean(2), self.n)
