"""A model's answers to the questions of a split, one question at a time.

Split "test" is for what is reported. Split "validation" is for every choice (a recipe, a learning rate, a
compressor to go on with), so that nothing is chosen by the questions that it is then judged on.
"""

from __future__ import annotations

import numpy as np
import torch

from vtc import InputError, data
from vtc.evaluation.scores import edit_similarity, errors, score
from vtc.models.vlm import VLM
from vtc.profiles import Profile
from vtc.progress import bar
from vtc.training import features, tower
from vtc.training.device import autocast

MAX_NEW_TOKENS = 9  # the longest answer: eight digits and the end


def questions(p: Profile, split: str = "test") -> list[data.Question]:
    """The profile's questions of a split; the same for every cell, to compare question by question."""
    limit = p.questions_validation if split == "validation" else p.questions_test
    return data.ask(tower.images_of(p, split), data.TASKS, split, seed=6, limit=limit)


def example(p: Profile) -> tuple[int, list[str]]:
    """A test image and three questions about it, to see where a token looks as the question changes."""
    about: dict[int, list[str]] = {}
    for q in data.ask(tower.images_of(p, "test"), ("attribute", "read"), "test", seed=6, each=2):
        if q.text not in about.setdefault(q.image, []):
            about[q.image].append(q.text)
    return next((i, texts) for i, texts in about.items() if len(texts) == 3 and texts[-1].startswith("read"))


@torch.no_grad()
def answers(
    p: Profile,
    model: VLM,
    asked: list[data.Question],
    batch: int = 128,
    split: str = "test",
    shuffled: bool = False,
) -> list[str]:
    """The model's answer to each question of that split, asked alone about its image.

    shuffled: a control; the compressor reads a question of another task, the LLM the one that is asked.
    """
    images, said = features.features(p, split, **model.compressor.of_tower), []
    # questions of one length side by side need less padding
    order = sorted(range(len(asked)), key=lambda i: (asked[i].task, len(asked[i].text)))
    other = [asked[i].text for i in (*order[len(order) // 2 :], *order[: len(order) // 2])]
    for start in range(0, len(order), batch):
        part = [asked[i] for i in order[start : start + batch]]
        read = other[start : start + batch] if shuffled else None
        seen = images[torch.tensor([q.image for q in part])].to(torch.float32)
        with autocast(model.device.type):
            said += model.generate(seen, [q.text for q in part], MAX_NEW_TOKENS, read)
    back = np.empty(len(order), object)
    back[order] = said
    return list(back)


def scored(p: Profile, model: VLM, split: str = "test", shuffled: bool = False) -> list[float]:
    """The score of each question of that split."""
    asked = questions(p, split)
    return [score(q, a) for q, a in zip(asked, answers(p, model, asked, split=split, shuffled=shuffled))]


def measured(p: Profile, model: VLM, split: str = "test") -> dict[str, float]:
    """Scores of tasks and errors of families on a split; choices are made on "validation"."""
    return errors(questions(p, split), scored(p, model, split))


def own(model: VLM, said: list[data.Conversation]) -> dict[str, float]:
    """A saved model on people's own conversations -> share exactly right, mean edit similarity, questions.

    Turn by turn: each question is asked behind those before it and the model's own answers to them.
    """
    talks = [talk for talk in said if talk.image is not None]
    if not talks:
        raise InputError('no entry has an image: expected at least one with the field "image"')
    scores = []
    for start in bar(range(0, len(talks), 32), "conversations"):
        part = talks[start : start + 32]
        seen = features.of_files(model.eyes(), [talk.image for talk in part], **model.compressor.of_tower)
        texts, right = ([[turn[i] for turn in talk.turns] for talk in part] for i in (0, 1))
        longest = max(len(ids) for ids in model.tokenizer(sum(right, []))["input_ids"]) + 1
        answers = model.generate(seen, texts, longest, conversation=True)
        pairs = zip(sum(answers, []), sum(right, []))
        scores += [(answer == truth, edit_similarity(answer, truth)) for answer, truth in pairs]
    exact, similar = np.mean(scores, axis=0)
    return {"exact": float(exact), "edit_similarity": float(similar), "questions": len(scores)}
