"""Answers -> error per task and per family, one question at a time."""

from __future__ import annotations

import numpy as np
import torch

from vtc import data
from vtc.models.vlm import VLM
from vtc.profiles import Profile
from vtc.progress import bar
from vtc.training import tower
from vtc.training.loop import BF16

MAX_NEW_TOKENS = 9  # the longest answer: eight digits and the end


def edit_similarity(said: str, right: str) -> float:
    """1 - edit distance / longer length, in words; what DocVQA's ANLS averages (there, under 0.5 is 0)."""
    a, b = said.split(), right.split()
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return 1 - row[-1] / max(len(a), len(b), 1)


def score(question: data.Question, said: str) -> float:
    """1 for the right answer, 0 for a wrong one; reading is scored by edit similarity."""
    return (
        edit_similarity(said, question.answer) if question.task == "read" else float(said == question.answer)
    )


def questions(p: Profile) -> list[data.Question]:
    """The profile's test questions, the same for every cell, so that cells compare question by question."""
    return data.ask(tower.images_of(p, "test"), data.TASKS, "test", seed=6, limit=p.questions_test)


def looked_at(p: Profile) -> tuple[int, list[str]]:
    """A test image and three questions about it, to see where a token looks as the question changes."""
    about: dict[int, list[str]] = {}
    for q in data.ask(tower.images_of(p, "test"), ("attribute", "read"), "test", seed=6, each=2):
        if q.text not in about.setdefault(q.image, []):
            about[q.image].append(q.text)
    return next((i, texts) for i, texts in about.items() if len(texts) == 3 and texts[-1].startswith("read"))


@torch.no_grad()
def answers(
    p: Profile, model: VLM, asked: list[data.Question], batch: int = 128, misled: bool = False
) -> list[str]:
    """The model's answer to each question, asked alone about its image.

    misled: the compressor reads a question of another task, the LLM the one that is asked.
    """
    on = model.device.type
    features, said = tower.features(p, "test", **model.compressor.of_tower), []
    order = sorted(
        range(len(asked)), key=lambda i: (asked[i].task, len(asked[i].text))
    )  # alike in length, less padding
    other = [asked[i].text for i in (*order[len(order) // 2 :], *order[: len(order) // 2])]
    for start in range(0, len(order), batch):
        part = [asked[i] for i in order[start : start + batch]]
        read = other[start : start + batch] if misled else None
        seen = features[torch.tensor([q.image for q in part])].to(torch.float32)
        with torch.autocast(on, torch.bfloat16, enabled=BF16 or on == "cuda"):
            said += model.generate(seen, [q.text for q in part], MAX_NEW_TOKENS, read)
    back = np.empty(len(order), object)
    back[order] = said
    return list(back)


def errors(asked: list[data.Question], scores: list[float]) -> dict[str, float]:
    """Mean score of each task, error (1 - mean over tasks) of each family, and the number of questions."""
    of = {t: [s for q, s in zip(asked, scores) if q.task == t] for t in data.TASKS}
    row = {f"score_{t}": float(np.mean(v)) for t, v in of.items()}
    for family, tasks in data.FAMILIES.items():
        row[f"error_{family}"] = 1 - float(np.mean([row[f"score_{t}"] for t in tasks]))
    return row | {"questions": len(asked)}


def own(model: VLM, said: list[data.Conversation]) -> dict[str, float]:
    """A saved model on people's own conversations -> share exactly right, mean edit similarity, questions."""
    talks = [(c.image, q, a) for c in said if c.image is not None for q, a in c.turns]
    exact, similar = [], []
    for start in bar(range(0, len(talks), 32), "questions"):
        files, texts, right = zip(*talks[start : start + 32])
        features = tower.of_files(model.eyes(), list(files), **model.compressor.of_tower)
        longest = max(len(ids) for ids in model.tokenizer(list(right))["input_ids"]) + 1
        for answer, truth in zip(model.generate(features, list(texts), longest), right):
            exact.append(answer == truth)
            similar.append(edit_similarity(answer, truth))
    return {
        "exact": float(np.mean(exact)),
        "edit_similarity": float(np.mean(similar)),
        "questions": len(talks),
    }
