"""What the second world teaches, batch by batch: facts and scenes in words, then the same scenes as images.

Batches are made from the step's number, as `vtc.training.loop` wants them.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from vtc import InputError
from vtc.compressors.base import Features
from vtc.data.gridqa.ask import NONE, Questions, about, in_words
from vtc.data.gridqa.binding import ask_any
from vtc.data.gridqa.facts import Facts
from vtc.data.gridqa.words import WORDS, X, Y
from vtc.data.gridqa.world import SIDE, Scenes
from vtc.models.prompt import NOBODY, Packed
from vtc.models.vlm import VLM
from vtc.training.batches import Bank
from vtc.training.checkpoints import save
from vtc.training.device import Batch, Share

# Weights of the tasks read, fact, chain, land. Text has its facts from lessons of their own.
TEXT_MIX, IMAGE_MIX = (4, 1, 1, 1), (3, 3, 1, 1)
BINDING = 1 / 8  # of the questions bind several marks


class Reader:
    """Questions and scenes as rows of word numbers -> what the LLM reads.

    Raises `InputError` where the tokenizer splits or lacks a word of GridQA, as a checkpoint's does.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.end = len(WORDS)  # stands for the end of an answer in a row of word numbers
        every = [*WORDS, tokenizer.eos_token, tokenizer.pad_token]
        ids = tokenizer.convert_tokens_to_ids(every)
        unknown = [word for word, i in zip(every, ids) if i is None or i == tokenizer.unk_token_id]
        if unknown:
            problem = f"GridQA's word {unknown[0]!r} is not one token of this LLM's tokenizer"
            raise InputError(f"{problem}: train it on your own data, see `vtc train --data`")
        self.ids = np.array(ids)  # NONE, -1, is the last of them
        self.pad = tokenizer.pad_token_id

    def packed(self, questions: Questions, told: np.ndarray) -> Packed:
        """Questions, equally many about each of the scenes in words (rows, p, 4) that stand before them.

        The same as `prompt.pack` of them, for all rows at once: one by one it took a quarter of a step.
        """
        n, b = len(questions), len(told)
        m = n // b
        ends = np.full((n, 1), self.end)
        words = np.concatenate([questions.question, questions.answer, ends], 1)  # (n, 10)
        there = words != NONE
        asks = (questions.question != NONE).sum(1)  # (n,) tokens of each question
        length = there.sum(1)  # of question and answer
        start = (np.cumsum(length.reshape(b, m), 1) - length.reshape(b, m)).ravel()  # column in its row
        which, _ = np.nonzero(there)  # (tokens,) the question of each token
        place = np.concatenate([np.arange(k) for k in length])  # within its question
        row, column = which // m, start[which] + place
        t = int(length.reshape(b, m).sum(1).max())

        ids, segment = np.full((b, t), self.pad), np.full((b, t), NOBODY)
        position, weight = np.zeros((b, t), np.int64), np.zeros((b, t), np.float32)
        ids[row, column], segment[row, column], position[row, column] = (
            self.ids[words[there]],
            which % m,
            place,
        )
        weight[row, column] = (place >= asks[which]) / (length - asks)[which]
        alone = np.full((n, asks.max()), self.pad)
        read = place < asks[which]
        alone[which[read], place[read]] = self.ids[words[there][read]]
        parts = (
            *(ids, segment, position, weight, np.flatnonzero(weight), alone.reshape(b, m, -1)),
            *(asks.reshape(b, m), (start + length - 1).reshape(b, m), self.ids[told]),
        )
        return Packed(*map(torch.from_numpy, parts))


@dataclass(frozen=True)
class TextLessons:
    """The text stage: a batch of facts and one of scenes told in words, in turn."""

    scenes: Scenes
    facts: Facts
    reader: Reader
    seed: int
    facts_a_step: int  # each about a scene of one mark
    scenes_a_step: int
    questions: int  # about each of those scenes

    def batch(self, step: int, share: Share) -> Batch:
        rng = np.random.default_rng([self.seed, 0, step])
        if step % 2:
            fact = self.facts.draw(self.facts_a_step, "text", rng)
            questions, told = about(self.facts, fact, rng)
        else:
            rows = rng.integers(0, len(self.scenes), self.scenes_a_step)
            each = np.repeat(rows, self.questions)
            questions = ask_any(self.scenes, each, self.facts, "text", rng, TEXT_MIX, BINDING)
            told = in_words(self.scenes, rows)
        return _shared(self.reader, questions, told, share)


@dataclass(frozen=True)
class ImageLessons:
    """The instruct stage: images, questions about them, and how many visual tokens this step has."""

    scenes: Scenes
    facts: Facts
    reader: Reader
    features: Features
    seed: int
    images: int  # a step
    questions: int  # about each
    budgets: dict[int, float]  # V -> how often (nested budgets); 0: no image
    stage: int = 2  # with seed and step it fixes what a batch holds

    def batch(self, step: int, share: Share) -> Batch:
        rng = np.random.default_rng([self.seed, self.stage, step])
        rows = rng.integers(0, len(self.scenes), self.images)
        often = np.array(list(self.budgets.values()))
        V = int(rng.choice(list(self.budgets), p=often / often.sum()))
        each = np.repeat(rows, self.questions)
        questions = ask_any(self.scenes, each, self.facts, "train", rng, IMAGE_MIX, BINDING)
        seen = self.features[torch.from_numpy(rows[share.mine])]
        return _shared(self.reader, questions, in_words(self.scenes, rows), share, seen, V)


def _shared(reader: Reader, questions: Questions, told: np.ndarray, share: Share, *more: object) -> Batch:
    """The rows of a batch that this process computes, with what else the model is given."""
    mine = np.arange(len(told))[share.mine]
    if not len(mine):
        raise InputError(f"a batch of {len(told)} is too small for {share.of} processes")
    m = len(questions) // len(told)
    part = questions.take((mine[:, None] * m + np.arange(m)).ravel())
    return Batch((reader.packed(part, told[mine]), *more), share.of * len(mine) / len(told))


class InWords(nn.Module):
    """A VLM whose visual tokens should be, to its LLM, the words of what their windows show: the align stage.

    The target of a token is the sum of the embeddings of the marks that stand in its window (place and
    digit) and of the land once, as in a scene told in words; both are compared at length 1. The LLM is not
    run, so a step costs a quarter of one of the next stage.
    """

    def __init__(self, model: VLM, empty: float = 0.2) -> None:
        super().__init__()
        self.model, self.empty = model, empty  # weight of a token whose window holds no mark

    def forward(self, packed: Packed, features: Features, V: int) -> Tensor:
        model, told = self.model, packed.scene_text.to(self.model.device)
        if not V:  # without an image there is nothing to align
            return 0 * sum(p.sum() for p in model.compressor.parameters())
        packed = packed.to(model.device)
        z = model.at(V).encode_image(model.here(features), packed)  # (b, m V, d), m = 1 if not steered
        if order := model.at(V).slot.order:
            z = z.unflatten(1, (-1, V))[:, :, np.argsort(order)].flatten(1, 2)  # in raster order again
        m = z.shape[1] // V
        target, marks = (x.repeat(1, m, *[1] * (x.dim() - 2)) for x in self.target(told, V))
        apart = (F.normalize(z.float(), dim=-1) - F.normalize(target, dim=-1)).square().sum(-1)  # (b, m V)
        weight = torch.where(marks > 0, 1.0, self.empty)
        return (apart * weight).sum() / weight.sum()

    @torch.no_grad()
    def target(self, told: Tensor, V: int) -> tuple[Tensor, Tensor]:
        """A scene in words (b, p, 4) -> what V tokens should be (b, V, d), and how many marks each holds."""
        embed, n = self.model.llm.get_input_embeddings(), math.isqrt(V)
        real = told[..., 0] != self.model.tokenizer.pad_token_id  # (b, p)
        x, y = ((told[..., i] - self.first[i]).clamp_min(0) * n // SIDE for i in (0, 1))
        words = embed(told[..., :3]).sum(2) * real[..., None]
        land = embed(told[:, :1, 3]).repeat(1, V, 1)
        window = y * n + x  # (b, p)
        marks = torch.zeros(len(told), V, device=told.device).scatter_add(1, window, real.float())
        return land.scatter_add(1, window[..., None].expand_as(words), words), marks

    @property
    def first(self) -> tuple[int, int]:
        """Token ids of the first names of columns and rows."""
        return tuple(self.model.tokenizer.convert_tokens_to_ids([X[0], Y[0]]))


class InCaption(nn.Module):
    """A VLM whose visual tokens should be, to its LLM, the words of their image's caption: the align stage.

    The target of each token is m + r u. u has length 1 and the direction of the sum of the embeddings of the
    caption's tokens, less the mean of that sum over all captions, for what they share ("a") tells nothing of
    an image. m is the mean of all embeddings, without which an LLM takes u for no word, and r gives the
    target the length that embeddings have. The LLM is not run. Answers to questions are captions too.
    """

    def __init__(self, model: VLM, captions: Bank) -> None:
        super().__init__()
        self.model, embed = model, model.llm.get_input_embeddings().weight.detach().float()
        said = np.concatenate([row.ids[row.weight > 0] for row in captions.rows])
        often = torch.from_numpy(np.bincount(said, minlength=len(embed))).to(embed)  # (vocabulary,)
        self.register_buffer("common", often @ embed / len(captions.rows), persistent=False)  # (d,)
        self.register_buffer("middle", embed.mean(0), persistent=False)  # m (d,)
        self.r = (embed.norm(dim=-1).mean() ** 2 - self.middle.norm() ** 2).sqrt().item()

    def forward(self, packed: Packed, features: Features, V: int | None = None) -> Tensor:
        """The mean over visual tokens of their squared distance to the target, in units of r."""
        model, packed = self.model if V is None else self.model.at(int(V)), packed.to(self.model.device)
        z = model.encode_image(model.here(features), packed).float()  # (b, m V, d), m = 1 if not steered
        return ((z - self.middle) / self.r - self.target(packed)[:, None]).square().sum(-1).mean()

    @torch.no_grad()
    def target(self, packed: Packed) -> Tensor:
        """Packed captions (b, t) -> u of their images (b, d)."""
        words = self.model.llm.get_input_embeddings()(packed.ids).float() * (packed.weight > 0)[..., None]
        captions = (packed.lengths > 0).sum(1, keepdim=True)  # (b, 1) of each image
        return F.normalize(words.sum(1) - captions * self.common, dim=-1)


class Distilled(nn.Module):
    """A VLM that should answer about an image as its own LLM, before it saw images, does when told the scene.

    The loss is KL(told || seen) plus `share` times the cross-entropy of the right answers; without an image
    the latter alone. kept: a folder for what the LLM says when it is told the scene. Which questions a step
    asks does not depend on the compressor, and asking the LLM anew was a quarter of a step on a CPU.
    """

    def __init__(self, model: VLM, teacher: VLM, share: float = 0.5, kept: Path | None = None) -> None:
        super().__init__()
        self.model, self.share, self.kept = model, share, kept
        self.teacher = [teacher.requires_grad_(False).eval()]  # in a list: no part of what learns

    def forward(self, packed: Packed, features: Features, V: int) -> Tensor:
        packed, features = packed.to(self.model.device), self.model.here(features)
        weight, right = (x.flatten()[packed.answers] for x in (packed.weight, packed.ids))
        seen = seen_logits(self.model, packed, features, V)
        loss = self.share * F.cross_entropy(seen, right, reduction="none")  # (answer tokens,)
        if V:
            told = self.told(packed).to(seen)
            loss = loss + F.kl_div(seen.log_softmax(-1), told, reduction="none", log_target=True).sum(-1)
        return (loss * weight).sum() / weight.sum()

    @torch.no_grad()
    def told(self, packed: Packed) -> Tensor:
        """Log-probabilities of answer tokens to the LLM that is told the scene, (answer tokens, vocabulary).

        They are read from the folder where the same batch was asked before.
        """
        if not self.kept:
            return self.teacher[0].logits(packed).log_softmax(-1)
        said = b"".join(part.cpu().numpy().tobytes() for part in (packed.ids, packed.scene_text))
        name = hashlib.sha256(said).hexdigest()[:24]
        file = self.kept / name[:2] / f"{name[2:]}.safetensors"  # thousands in one folder slow its writers
        if not file.exists():
            save({"told": self.teacher[0].logits(packed).log_softmax(-1)}, file)
        return load_file(file)["told"]


def seen_logits(model: VLM, packed: Packed, features: Features, V: int) -> Tensor:
    """Logits of answer tokens with V visual tokens in place of the scene in words; V = 0: with neither."""
    if not V:
        nothing = torch.full_like(packed.scene_text[:, :1], model.tokenizer.pad_token_id)
        return model.logits(replace(packed, scene_text=nothing))
    return model.at(V).logits(replace(packed, scene_text=None), features)
