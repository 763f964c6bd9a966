"""The prompt: which token stands where and who sees whom. One layout for training and for answering.

Visual tokens come first, the text after them. What a chat template writes before any question (a system
prompt) has positions before the image, as in LLaVA: an LLM makes a sink of its first token. Several
questions about an image are packed in one row behind one set of visual tokens; they do not see each other
and their positions restart, so each is answered as if it had been asked alone. A row with V = 2 and two
questions, "a b" and "c", the first with an answer "x" (`#`: this row's token sees that column's token):

    segment     shared shared   0   0   0   1
    position_id      0      1   2   3   4   2        sees:  v1 v2  a  b  x  c
    token           v1     v2   a   b   x   c           v1   #
                                                        v2   #  #
    A token sees what is shared and its own             a    #  #  #
    question, as far as that stands before it.          b    #  #  #  #
                                                        x    #  #  #  #  #
                                                        c    #  #           #

Compressors that read the question give each question visual tokens of its own (segment 0, 1, ... in place of
shared). Where the question's vector comes from the prompt itself ("prompt_prefix"), all of the question but
its last token stands before the image: same columns, other positions. A conversation is one segment, so each
turn sees the turns before it. A scene told in words can stand in the image's place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

SHARED, NOBODY = -1, -2  # segments: a token that every question sees; padding that none sees
HIDDEN = -1e4  # added to an attention weight that must vanish; finite, so that a row of padding stays finite


@dataclass(frozen=True)
class Asked:
    """One question with its answer, if it has one yet; or a conversation, question after answer."""

    ids: np.ndarray  # (t,) tokens
    weight: np.ndarray  # (t,) above 0 where a token is part of an answer; of one answer they add up to 1
    question: int  # how many tokens, from the first, the compressor reads


def asked(question: Sequence[int], answer: Sequence[int] = ()) -> Asked:
    """Token ids of a question and of its answer."""
    n, a = len(question), len(answer)
    weight = np.zeros(n + a, np.float32)
    weight[n:] = 1 / max(a, 1)
    return Asked(np.array([*question, *answer], np.int64), weight, n)


def conversation(turns: list[tuple[Sequence[int], Sequence[int]]], steered: bool) -> list[Asked]:
    """Turns of token ids (question, answer; the last answer may be empty) -> what is packed for them.

    One sequence, where the image's tokens depend on no question; else (`steered`) one a turn, each with all
    that was said before, so that its visual tokens know the whole of it.
    """
    whole = [asked(*turn) for turn in turns]
    ids, weight = (np.concatenate([getattr(turn, part) for turn in whole]) for part in ("ids", "weight"))
    if not steered:
        return [Asked(ids, weight, whole[0].question)]
    ends = np.cumsum([len(turn.ids) for turn in whole])
    starts = ends - [len(turn.ids) for turn in whole]
    return [
        Asked(ids[:end], np.where(np.arange(end) < start, 0, weight[:end]), start + turn.question)
        for turn, start, end in zip(whole, starts.tolist(), ends.tolist())
    ]


@dataclass(frozen=True)
class Packed:
    """A batch of rows, each several questions (with their answers) about one image."""

    ids: Tensor  # (b, t) token ids
    segment: Tensor  # (b, t) which question a token belongs to; NOBODY for padding
    position: Tensor  # (b, t) place within its own question
    weight: Tensor  # (b, t) above 0 where a token is part of an answer; the weights of one answer add up to 1
    answers: Tensor  # (n,) where those tokens are in the flattened (b t); found on the host, a GPU would wait
    questions: Tensor  # (b, m, q) the questions alone, padded on the right; for steered compressors
    lengths: Tensor  # (b, m) tokens of each question; 0 where a row has fewer
    last: Tensor  # (b, m) column of each question's last token
    scene_text: Tensor | None = None  # (b, p, w) a scene told in words: up to w words a place

    def to(self, device: torch.device | str) -> Packed:
        parts = self.__dict__.values()
        return Packed(*(v if v is None else v.to(device, non_blocking=True) for v in parts))


def pack(
    rows: list[list[Asked]], pad: int, scene_text: np.ndarray | None = None, left=False, shared: int = 0
) -> Packed:
    """Questions, one list a row -> a batch, padded on the right (`left`: on the left) to the longest row.

    shared: so many tokens that all questions begin with, such as a system prompt, stand once a row.
    """
    used = [shared + sum(len(one.ids) - shared for one in row) for row in rows]
    b, t = len(rows), max(used, default=0)
    m = max(map(len, rows))
    q = max((one.question for row in rows for one in row), default=0)
    ids, segment = np.full((b, t), pad), np.full((b, t), NOBODY)
    position, weight = np.zeros((b, t), np.int64), np.zeros((b, t), np.float32)
    questions, lengths, last = np.full((b, m, q), pad), np.zeros((b, m), int), np.zeros((b, m), int)
    for i, row in enumerate(rows):
        at = t - used[i] if left else 0
        if shared and row:
            ids[i, at : at + shared], segment[i, at : at + shared] = row[0].ids[:shared], SHARED
            position[i, at : at + shared] = np.arange(shared)
            at += shared
        for k, one in enumerate(row):
            n = len(one.ids) - shared
            ids[i, at : at + n], segment[i, at : at + n] = one.ids[shared:], k
            position[i, at : at + n], weight[i, at : at + n] = shared + np.arange(n), one.weight[shared:]
            questions[i, k, : one.question], lengths[i, k] = one.ids[: one.question], one.question
            at += n
            last[i, k] = at - 1
    answers = np.flatnonzero(weight)
    parts = (ids, segment, position, weight, answers, questions, lengths, last, scene_text)
    return Packed(*(v if v is None else torch.from_numpy(v) for v in parts))


def without_last(packed: Packed) -> tuple[Packed, Tensor]:
    """The text less each question's last token, and where, flattened, the token before each answer token is.

    No token follows the last one, so nobody reads what an LLM makes of it: of GridQA's text one in eight.
    """
    t, segment = packed.ids.shape[1], packed.segment
    after = torch.cat([segment[:, 1:], torch.full_like(segment[:, :1], NOBODY)], 1)
    last = (segment != after) & (segment >= 0)
    column = torch.arange(t, device=segment.device) - last.cumsum(1)  # of a token that stays
    kept = (segment != NOBODY) & ~last
    n = max(int(torch.where(kept, column, -1).max()) + 1, 1)
    to = torch.where(kept, column, n)  # the others: to a column that is cut off
    parts = {"ids": 0, "segment": NOBODY, "position": 0}
    for name, fill in parts.items():
        x = getattr(packed, name)
        parts[name] = x.new_full((len(x), n + 1), fill).scatter(1, to, x)[:, :n]
    before = packed.answers // t * n + column.flatten()[packed.answers - 1]
    return replace(packed, **parts), before


def one_a_row(packed: Packed) -> Packed:
    """The same questions, (b, m) of them, each in a row of its own (b m, n), answer tokens in the same order.

    For questions that share no token, each having visual tokens of its own. Attention then has m times fewer
    weights: in a packed row nearly all of them are hidden.
    """
    (b, m), there = packed.lengths.shape, packed.segment >= 0  # (b, t) which columns hold a token
    n = int(torch.where(there, packed.position, -1).max()) + 1
    row = torch.arange(b, device=there.device)[:, None] * m + packed.segment
    place = row * n + packed.position  # (b, t) in the flattened (b m, n)

    def moved(x: Tensor, fill: int) -> Tensor:
        return x.new_full((b * m * n,), fill).scatter(0, place[there], x[there]).view(b * m, n)

    return Packed(
        ids=moved(packed.ids, 0),
        segment=moved(torch.zeros_like(packed.segment), NOBODY),
        position=moved(packed.position, 0),
        weight=moved(packed.weight, 0),
        answers=place.flatten()[packed.answers],
        questions=packed.questions.flatten(0, 1).unsqueeze(1),  # (b m, 1, q)
        lengths=packed.lengths.view(-1, 1),
        last=packed.position.gather(1, packed.last).view(-1, 1),
    )


@dataclass(frozen=True)
class ImageSlot:
    """How the visual tokens of an image stand in the prompt."""

    V: int
    span: int | None = None  # positions that they take up at most; None: one each
    steered: bool = False  # each question has visual tokens of its own
    question_first: bool = False  # all of the question but its last token stands before them
    prefix: int = 0  # tokens of the text, the same for all questions, that stand before them

    @property
    def text_offset(self) -> int:
        """The position that follows the visual tokens."""
        return min(self.V, self.span or self.V)

    @property
    def order(self) -> list[int] | None:
        """Raster index of the first, second, ... visual token in the prompt; None: as they come."""
        return raster_order(self.V, self.text_offset)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Positions (V,) of visual tokens in the prompt, rising, and `order`, on a device."""
        return places_on(self.V, self.text_offset, device)


@lru_cache
@torch.inference_mode(False)  # kept for training too
def places_on(V: int, offset: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """`raster_positions`, rising, and `raster_order`: made once, so that no step waits for the host."""
    positions = torch.arange(V) if offset == V else torch.tensor(sorted(raster_positions(V, offset)))
    order = raster_order(V, offset)
    return positions.to(device), None if order is None else torch.tensor(order, device=device)


@lru_cache
def raster_positions(V: int, offset: int) -> tuple[float, ...]:
    """Positions of V visual tokens in raster order: one apart or, if they have fewer, block by block.

    The grid of tokens is then read as `offset` square blocks, one position each; tokens of a block share it
    out row by row. So neighbours of two rows stand close, as the places of a scene told in words do.
    """
    n, blocks = math.isqrt(V), math.isqrt(offset)
    if n * n != V or offset == V:
        return tuple(i * offset / V for i in range(V))
    yx = [(i // n * blocks / n, i % n * blocks / n) for i in range(V)]  # in blocks
    return tuple(y // 1 * blocks + x // 1 + y % 1 + x % 1 * blocks / n for y, x in yx)


@lru_cache
def raster_order(V: int, offset: int) -> list[int] | None:
    """Indices that put V visual tokens in the order of their positions; None where they are in it."""
    order = sorted(range(V), key=raster_positions(V, offset).__getitem__)
    return None if order == list(range(V)) else order


@dataclass(frozen=True)
class Layout:
    """Segment and position of every column of a prompt: visual tokens (or a scene in words), then text."""

    segment: Tensor  # (b, n)
    position_ids: Tensor  # (b, n), whole numbers or (blocks of an image) fractions

    def mask(self, dtype: torch.dtype) -> Tensor:
        """What is added to attention weights, (b, 1, n, n)."""
        return block_mask(self.segment, self.position_ids).to(dtype)

    def decode_mask(self, m: int, steps: int, dtype: torch.dtype) -> Tensor:
        """The same for answers that follow, m new columns a step, one a question: (b, 1, m, n + steps m).

        It serves every step: no column of a later one is there yet.
        """
        own = torch.arange(m, device=self.segment.device)
        columns = torch.cat([self.segment, own.repeat(steps).expand(len(self.segment), -1)], 1)[:, None]
        seen = (columns == own[:, None]) | (columns == SHARED)  # (b, m, n + steps m)
        return torch.where(seen, 0.0, HIDDEN)[:, None].to(dtype)

    def columns(self, index: Tensor) -> Layout:
        """Other columns, or in another order: index (n,)."""
        return Layout(self.segment[:, index], self.position_ids[:, index])

    def reordered(self, order: Tensor) -> Layout:
        """The columns of each row in an order of its own: (b, n)."""
        return Layout(self.segment.gather(1, order), self.position_ids.gather(1, order))


def lay_out(packed: Packed, real: Tensor, slot: ImageSlot) -> Layout:
    """Where the tokens before the text, (b, p), of which some are `real`, and the text's own stand."""
    (b, p), position = real.shape, packed.position
    column = torch.arange(p, device=real.device)
    if packed.scene_text is not None:
        whose, place = torch.where(real, SHARED, NOBODY), column.expand(b, -1)
        position = position + real.sum(1, keepdim=True)
    else:
        place = slot.on(real.device)[0].repeat(p // max(slot.V, 1)).expand(b, -1)  # (b, p)
        whose = torch.where(real, SHARED, NOBODY)
        if slot.steered:
            whose = (column // max(slot.V, 1)).expand(b, -1)
        if slot.question_first:
            before = (packed.lengths - 1).clamp_min(0)  # (b, m) tokens of a question before the image
            place = place + before.gather(1, whose)
            behind = position >= before.gather(1, packed.segment.clamp_min(0))
            position = position + behind * slot.text_offset
        else:
            place, behind = place + slot.prefix, position >= slot.prefix
            position = position + behind * slot.text_offset
    return Layout(torch.cat([whose, packed.segment], 1), torch.cat([place, position], 1))


def block_mask(segment: Tensor, position: Tensor) -> Tensor:
    """Segments and positions (b, n) -> additive mask (b, 1, n, n).

    A token sees itself, and of its own question and of what all may see (SHARED) whatever stands before it.
    """
    mine, theirs = segment[:, :, None], segment[:, None, :]
    earlier = position[:, None, :] <= position[:, :, None]
    allow = ((mine == theirs) | (theirs == SHARED)) & earlier & (theirs != NOBODY)
    allow |= torch.eye(segment.shape[1], dtype=torch.bool, device=segment.device)  # padding: no row is empty
    return torch.where(allow, 0.0, HIDDEN)[:, None]
