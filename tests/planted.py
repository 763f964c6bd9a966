"""Rows such as a sweep of the second world writes, with scores by a law that the tests know."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vtc.evaluation import exam, scores
from vtc.profiles import Profile

TASKS = [task for task in exam.TASKS for _ in range(60)]  # of each question
ASKED = exam.Exam(None, (), pd.DataFrame({"task": TASKS}))
KNOWS = ("know", "recall", "fact", "chain")


def cells(
    p: Profile, names: tuple[str, ...], V: tuple[int, ...], sizes: tuple, seeds=(0, 1, 2)
) -> pd.DataFrame:
    """One row a cell: what is known grows with ln N, what is seen with ln V, the same for each compressor."""
    rows = []
    for name, size, v, seed in ((n, s, v, seed) for n in names for s in sizes for v in V for seed in seeds):
        rng = np.random.default_rng([seed, v, size.d, len(name)])
        knows, sees = 0.12 * np.log10(size.N), 0.1 + 0.15 * np.log(v + 1)
        chance = np.array(
            [min(knows if task in KNOWS else 1, sees if task != "know" else 1) for task in TASKS]
        )
        right = (rng.random(len(TASKS)) < chance).astype(float)
        row = {"size": size.name, "V": v, "compressor": name, "seed": seed, "N": size.N, "Q": 5.0}
        row |= scores.errors(ASKED, right) | {"scores": scores.pack(right), "shuffled": ""}
        rows.append(row | {"device": "abacus", "commit": "abc1234"})
    return pd.DataFrame(rows)
