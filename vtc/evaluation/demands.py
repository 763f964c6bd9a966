"""How fast the error falls with N and with V, question by question: exponents over the plane of demands.

The paper gives one alpha and one beta a family. Here every cell of the sweep answers the same questions, each
with its own demands, so both exponents can be read for any region of the plane.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from vtc.evaluation import summary
from vtc.evaluation.exam import Exam
from vtc.evaluation.scores import unpack

# Regions: marks that fit a side, and the rank of the fact that must be known (none: the mark alone is asked).
FITS = ((1.0, 1.6), (1.6, 2.5), (2.5, 4.0), (4.0, 6.3), (6.3, 10.0))
RANKS = {"no fact": (-1, 0), "1-100": (0, 100), "101-1,000": (100, 1000), "1,001-": (1000, 10**9)}
COLUMNS = [
    *("fit", "rank", "questions", "error", "alpha", "alpha_low", "alpha_high"),
    *("beta", "beta_low", "beta_high"),
]
FEWEST = 40  # questions of a region that is shown
LEAST = 0.005  # an error below this has no useful logarithm


def regions(made: Exam) -> dict[tuple[str, str], np.ndarray]:
    """The questions of each region, by (marks that fit a side, rank) as readers see them."""
    frame, found = made.frame, {}
    alone = frame["kind"].isin(["read", "fact", "common"])  # about one mark
    for low, high in FITS:
        for name, (first, last) in RANKS.items():
            here = frame["fit"].between(low, high, inclusive="left")
            here &= frame["rank"].between(first, last, inclusive="left")
            questions = np.flatnonzero(alone & here)
            if len(questions) >= FEWEST:
                found[f"{low:g} to {high:g}", name] = questions
    return found


def exponents(rows: pd.DataFrame, made: Exam) -> pd.DataFrame:
    """One row a region: alpha and beta with their 95 % intervals over seeds, and the number of questions.

    Both are slopes of the logarithm of the error, ln Y = a - alpha ln N - beta ln V, at V > 0, fitted seed by
    seed: the power law without a floor, which needs no search.
    """
    return _of(rows[rows["V"] > 0], regions(made))


def _of(rows: pd.DataFrame, regions: dict[tuple[str, str], np.ndarray]) -> pd.DataFrame:
    scores, found = np.stack([unpack(text) for text in rows["scores"]]), []  # (rows, questions)
    for (fit, rank), questions in regions.items():
        error = 1 - scores[:, questions].mean(1)
        row = {"fit": fit, "rank": rank, "questions": len(questions), "error": float(error.mean())}
        found.append(row | summary.exponents(rows, error.clip(LEAST)))
    return pd.DataFrame(found, columns=COLUMNS)


def of_facts(rows: pd.DataFrame, made: Exam) -> pd.DataFrame:
    """Exponents of all questions about facts together, large marks and small: one row, as in `exponents`.

    The flipped twin asks the same kind of question of another world, so its row can stand beside this one.
    """
    return _of(rows[rows["V"] > 0], {("every", "every"): np.flatnonzero(made.frame["kind"] == "fact")})
