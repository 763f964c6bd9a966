"""Metrics: errors per task and family, and the one overall score.

The overall score is the mean over the two families of the mean over their tasks. Every table, figure and
claim uses it.
"""

from __future__ import annotations

from base64 import b64decode, b64encode

import numpy as np
import pandas as pd

from vtc.evaluation.exam import FAMILIES as TASKS_OF
from vtc.evaluation.exam import TASKS, Exam

FAMILIES = {"reasoning": "reasoning", "ocr": "OCR-like"}  # as columns have them, as readers see them


def _weights() -> dict[str, dict[str, float]]:
    of = {name: {task: 1 / len(tasks) for task in tasks} for name, tasks in TASKS_OF.items()}
    return of | {"all": {task: w / len(of) for family in of.values() for task, w in family.items()}}


WEIGHTS = _weights()  # of each task in a family's score, and in the overall score ("all")


def errors(exam: Exam, scores: np.ndarray) -> dict[str, float]:
    """Mean score of each task, error (1 - mean over tasks) of each family, and the number of questions."""
    tasks = exam.frame["task"].to_numpy()
    row = {f"score_{t}": float(scores[tasks == t].mean()) for t in TASKS if (tasks == t).any()}
    for family in TASKS_OF:
        scored = (w * row.get(f"score_{t}", np.nan) for t, w in WEIGHTS[family].items())
        row[f"error_{family}"] = 1 - sum(scored)  # not a number in a world that never asks one of its tasks
    return row | {"questions": len(exam)}


def overall_error(rows: pd.DataFrame) -> pd.Series:
    """1 - overall score of each row, from its families' errors."""
    return rows[[f"error_{family}" for family in TASKS_OF]].mean(axis=1)


def pack(scores) -> str:
    """Scores in 0..1 as text, so that rows can be paired by question.

    Where all are 0 or 1: how many, a colon, and their bits in base64, a sixth of the length. Otherwise a
    character each, in twentieths (`a` 0, `u` 1).
    """
    scores = np.asarray(scores, float)
    if scores.size and np.isin(scores, (0, 1)).all():
        return f"{scores.size}:{b64encode(np.packbits(scores.astype(bool))).decode()}"
    return "".join(chr(ord("a") + round(20 * s)) for s in scores)


def unpack(text: str) -> np.ndarray:
    """What `pack` wrote, in either form, to the nearest twentieth."""
    count, colon, bits = text.partition(":")
    if colon:
        return np.unpackbits(np.frombuffer(b64decode(bits), np.uint8), count=int(count)).astype(float)
    return (np.frombuffer(text.encode(), np.uint8).astype(float) - ord("a")) / 20
