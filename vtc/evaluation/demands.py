"""How fast the error falls with N and with V, question by question: exponents over the plane of demands.

The paper gives one alpha and one beta a family. Here every cell of the sweep answers the same questions, each
with its own demands, so both exponents can be read for any region of the plane.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from vtc.evaluation.compare import mean_interval
from vtc.evaluation.exam import Exam
from vtc.evaluation.scores import unpack

# Regions: marks that fit a side, and the rank of the fact that must be known (none: the mark alone is asked).
FITS = ((1.0, 1.6), (1.6, 2.5), (2.5, 4.0), (4.0, 6.3), (6.3, 10.0))
RANKS = {"no fact": None, "1-100": (0, 100), "101-1,000": (100, 1000), "1,001-": (1000, 10**9)}
COLUMNS = [
    *("fit", "rank", "questions", "error", "alpha", "alpha_low", "alpha_high"),
    *("beta", "beta_low", "beta_high"),
]
FEWEST = 40  # questions of a region that is shown
LEAST = 0.005  # an error below this has no useful logarithm


def regions(made: Exam) -> dict[tuple[str, str], np.ndarray]:
    """The questions of each region, by (marks that fit a side, rank) as readers see them."""
    frame, found = made.frame, {}
    for low, high in FITS:
        here = (frame["fit"] >= low) & (frame["fit"] < high)
        for name, ranks in RANKS.items():
            if ranks is None:
                asked = frame["kind"] == "read"
            else:
                asked = frame["kind"].isin(["fact", "common"])
                asked &= (frame["rank"] >= ranks[0]) & (frame["rank"] < ranks[1])
            questions = np.flatnonzero(here & asked)
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
    scores = {row.Index: unpack(row.scores) for row in rows.itertuples()}
    found = []
    for (fit, rank), questions in regions.items():
        error = pd.Series({index: 1 - each[questions].mean() for index, each in scores.items()})
        slopes = [_slopes(part, error[part.index]) for _, part in rows.groupby("seed")]
        row = {"fit": fit, "rank": rank, "questions": len(questions), "error": float(error.mean())}
        for name, values in zip(("alpha", "beta"), np.transpose(slopes)):
            mean, low, high, _ = mean_interval(values)
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        found.append(row)
    return pd.DataFrame(found, columns=COLUMNS)


def of_facts(rows: pd.DataFrame, made: Exam) -> pd.DataFrame:
    """Exponents of all questions about facts together, large marks and small: one row, as in `exponents`.

    The flipped twin asks the same kind of question of another world, so its row can stand beside this one.
    """
    return _of(rows[rows["V"] > 0], {("every", "every"): np.flatnonzero(made.frame["kind"] == "fact")})


def _slopes(rows: pd.DataFrame, error: pd.Series) -> tuple[float, float]:
    X = np.column_stack([np.ones(len(rows)), -np.log(rows["N"]), -np.log(rows["V"])])
    _, alpha, beta = np.linalg.lstsq(X, np.log(error.clip(LEAST)), rcond=None)[0]
    return float(alpha), float(beta)
