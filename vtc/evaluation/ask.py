"""A model's scores on the questions of a split, and on people's own conversations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vtc import InputError, data
from vtc.evaluation.benchmarks import edit_similarity
from vtc.evaluation.exam import exam
from vtc.evaluation.graded import graded
from vtc.evaluation.scores import errors
from vtc.models.prompt import Packed
from vtc.models.vlm import VLM
from vtc.profiles import Profile
from vtc.progress import bar
from vtc.training import features
from vtc.training.device import autocast
from vtc.training.lessons import Reader, seen_logits

IMAGES = 64  # asked about at once
SIDE_BY_SIDE = 16  # questions about one image that are asked at once


@torch.no_grad()
def scored(
    p: Profile, model: VLM, split: str = "test", shuffled: bool = False, told: bool = False
) -> np.ndarray:
    """Whether the model answers each question of the exam exactly, (questions,) of 0 and 1.

    shuffled: a control; the compressor reads a question about another image, the LLM the one that is asked.
    told: the scene stands in words where its image would; the model is then an LLM alone.
    """
    made, reader, found = exam(p, split), Reader(model.tokenizer), []
    seen = None if told or not model.V else features.features(p, split, **model.compressor.of_tower)
    for part in made.parts:
        for start in range(0, len(part.images), IMAGES):
            images = part.images[start : start + IMAGES]
            first = start * part.each
            asked = part.questions.take(np.arange(first, first + len(images) * part.each))
            here = None if seen is None else seen[torch.from_numpy(images)]
            if model.compressor.cost_class == "D" and here is not None:
                found.append(_said_right(model, asked, here))
                continue
            packed = reader.packed(asked, data.in_words(made.scenes, images)).to(model.device)
            packed = _with_other_questions(packed) if shuffled else packed
            with autocast(model.device.type, model.llm.config.hidden_size):
                logits = _logits(model, packed, here, told)
            found.append(graded(packed, logits).exact.cpu().numpy())
    return np.concatenate(found).astype(float)


def _said_right(model: VLM, asked: data.Questions, seen: features.Features) -> np.ndarray:
    """The same by decoding: what leaves inside the LLM (FastV) is chosen by each question, not by a pack."""
    texts = [asked.text(i) for i in range(len(asked))]
    each, longest = len(asked) // len(seen), asked.answer.shape[1] + 1
    questions = [[q for q, _ in texts[i : i + each]] for i in range(0, len(texts), each)]
    said = sum(model.generate(model.here(seen), questions, longest), [])
    return np.array([answer == right for answer, (_, right) in zip(said, texts)])


def _logits(model: VLM, packed: Packed, seen: features.Features | None, told: bool) -> Tensor:
    if told:
        return model.logits(packed)
    return seen_logits(model, packed, model.here(seen), model.compressor.tokens)


def _with_other_questions(packed: Packed) -> Packed:
    """The same, but steered compressors read the questions about the image before."""
    return replace(packed, questions=packed.questions.roll(1, 0), lengths=packed.lengths.roll(1, 0))


def measured(p: Profile, model: VLM, split: str = "test") -> dict[str, float]:
    """Scores of tasks and errors of families on a split; choices are made on "validation"."""
    return errors(exam(p, split), scored(p, model, split))


def own(model: VLM, said: list[data.Conversation]) -> dict[str, float]:
    """A saved model on people's own conversations -> share exactly right, mean edit similarity, questions.

    Turn by turn: each question is asked behind those before it and the model's own answers to them. Questions
    about one image that stand alone are asked side by side.
    """
    talks = [talk for talk in said if talk.image is not None]
    if not talks:
        raise InputError('no entry has an image: expected at least one with the field "image"')
    alone: dict[Path, list[tuple[str, str]]] = {}
    for talk in talks:
        if len(talk.turns) == 1:
            alone.setdefault(talk.image, []).extend(talk.turns)
    several = [(talk.image, talk.turns, True) for talk in talks if len(talk.turns) > 1]
    single = [
        (image, turns[i : i + SIDE_BY_SIDE], False)
        for image, turns in alone.items()
        for i in range(0, len(turns), SIDE_BY_SIDE)
    ]
    parts = [rows[i : i + 32] for rows in (several, single) for i in range(0, len(rows), 32)]
    scores = []
    for part in bar(parts, "conversations"):
        images, turns, conversation = zip(*part)
        seen = features.of_files(model.eyes(), list(images), **model.compressor.of_tower)
        texts, right = ([[turn[i] for turn in row] for row in turns] for i in (0, 1))
        longest = max(len(ids) for ids in model.tokenizer(sum(right, []))["input_ids"]) + 1
        with autocast(model.device.type, model.llm.config.hidden_size):
            answers = model.generate(seen, texts, longest, conversation=conversation[0])
        pairs = zip(sum(answers, []), sum(right, []))
        scores += [(answer == truth, edit_similarity(answer, truth)) for answer, truth in pairs]
    exact, similar = np.mean(scores, axis=0)
    return {"exact": float(exact), "edit_similarity": float(similar), "questions": len(scores)}
