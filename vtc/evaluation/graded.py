"""Answers graded from one packed pass: whether greedy decoding would give them, without decoding.

Greedy decoding gives the right answer if and only if every token of it is the likeliest after the right
tokens before it. So one pass over many packed questions grades them all, and gives their probability besides.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vtc.models.prompt import Packed


class Grades(NamedTuple):
    """Of every question, row by row (b m,)."""

    read: Tensor  # whether the first word of the answer, what was read, is right
    exact: Tensor  # whether all of it is
    probability: Tensor  # of the right answer, its end included


def graded(packed: Packed, logits: Tensor) -> Grades:
    """Logits (answer tokens, vocabulary), as `VLM.logits` gives them for this batch -> grades."""
    t, m = packed.ids.shape[1], packed.lengths.shape[1]
    question = packed.answers // t * m + packed.segment.flatten()[packed.answers]
    target = packed.ids.flatten()[packed.answers]
    right = logits.argmax(-1) == target
    n = len(packed.ids) * m
    wrong = torch.zeros(n, dtype=torch.long, device=logits.device).index_add(0, question, (~right).long())
    told = logits.log_softmax(-1).gather(1, target[:, None])[:, 0]
    first = torch.ones_like(question, dtype=torch.bool)
    first[1:] = question[1:] != question[:-1]
    return Grades(
        right[first], wrong == 0, torch.zeros(n, device=logits.device).index_add(0, question, told).exp()
    )
