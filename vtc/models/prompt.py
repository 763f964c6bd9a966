"""A batch as the LLM reads it: questions packed behind one set of visual tokens, and who sees whom."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SHARED, NOBODY = -1, -2  # segments: a token that every question sees; padding that none sees


@dataclass(frozen=True)
class Packed:
    """A batch of sequences, each several questions with their answers about one image."""

    ids: Tensor  # (b, t) token ids
    segment: Tensor  # (b, t) which question a token belongs to; NOBODY for padding
    position: Tensor  # (b, t) place within its own question
    weight: Tensor  # (b, t) above 0 where a token is part of an answer; the weights of one answer add up to 1
    questions: Tensor | None = (
        None  # (b, m, q) the questions alone, padded on the right; for steered compressors
    )
    prefix: Tensor | None = (
        None  # (b, p, 2) a scene told in words, in the image's place: one or two words a place
    )

    def to(self, device: torch.device | str) -> Packed:
        return Packed(*(v if v is None else v.to(device) for v in self.__dict__.values()))


def block_mask(segment: Tensor, position: Tensor) -> Tensor:
    """Segments and positions (b, t) -> additive mask (b, 1, t, t).

    A token sees itself, and of its own question and of what all may see (SHARED) whatever stands before it.
    """
    mine, theirs = segment[:, :, None], segment[:, None, :]
    earlier = position[:, None, :] <= position[:, :, None]
    allow = ((mine == theirs) | (theirs == SHARED)) & earlier & (theirs != NOBODY)
    allow |= torch.eye(segment.shape[1], dtype=torch.bool, device=segment.device)  # padding: no row is empty
    return torch.where(allow, 0.0, -1e4)[:, None]
