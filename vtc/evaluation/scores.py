"""Metrics: the score of one answer, errors per task and family, and the one overall score.

The overall score is the mean over the two families of the mean over their tasks, so that seven reasoning
tasks do not outvote three OCR-like ones. Every table, figure and claim uses it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from vtc import data
from vtc.evaluation.benchmarks import edit_distance

FAMILIES = {"reasoning": "reasoning", "ocr": "OCR-like"}  # as columns have them, as readers see them


def _weights() -> dict[str, dict[str, float]]:
    of = {name: {task: 1 / len(tasks) for task in tasks} for name, tasks in data.FAMILIES.items()}
    return of | {"all": {task: w / len(of) for family in of.values() for task, w in family.items()}}


WEIGHTS = _weights()  # of each task in a family's score, and in the overall score ("all")


def edit_similarity(answer: str, right: str) -> float:
    """1 - edit distance / longer length, in words; what DocVQA's ANLS averages (there, under 0.5 is 0)."""
    a, b = answer.split(), right.split()
    return 1 - edit_distance(a, b) / max(len(a), len(b), 1)


def score(question: data.Question, answer: str) -> float:
    """1 for the right answer, 0 for a wrong one; reading is scored by edit similarity."""
    if question.task == "read":
        return edit_similarity(answer, question.answer)
    return float(answer == question.answer)


def errors(asked: list[data.Question], scores: list[float]) -> dict[str, float]:
    """Mean score of each task, error (1 - mean over tasks) of each family, and the number of questions."""
    of = {t: [s for q, s in zip(asked, scores) if q.task == t] for t in data.TASKS}
    row = {f"score_{t}": float(np.mean(v)) for t, v in of.items()}
    for family in data.FAMILIES:
        row[f"error_{family}"] = 1 - sum(w * row[f"score_{t}"] for t, w in WEIGHTS[family].items())
    return row | {"questions": len(asked)}


def overall_error(rows: pd.DataFrame) -> pd.Series:
    """1 - overall score of each row, from its families' errors."""
    return rows[[f"error_{family}" for family in data.FAMILIES]].mean(axis=1)


def pack(scores: list[float]) -> str:
    """Scores in 0..1 as a character each, in twentieths (`a` 0, `u` 1), so rows can be paired by question."""
    return "".join(chr(ord("a") + round(20 * s)) for s in scores)


def unpack(text: str) -> np.ndarray:
    """What `pack` wrote, to the nearest twentieth."""
    return (np.frombuffer(text.encode(), np.uint8).astype(float) - ord("a")) / 20
