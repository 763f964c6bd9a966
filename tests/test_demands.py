"""Exponents over the plane of demands: planted ones come back, region by region."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from vtc import profiles
from vtc.evaluation import demands, exam, scores, summary

P = profiles.get("laptop")
N, V = (10_000, 40_000, 160_000), (1, 4, 16, 36)


@pytest.fixture(scope="module")
def planted() -> pd.DataFrame:
    """Every question is missed with chance .8 (N / 10,000)^-a V^-b; a from its rank, b from its marks."""
    frame, rng = exam.exam(P).frame, np.random.default_rng(0)
    a, b = np.where(frame["rank"] < 0, 0.0, 0.3), np.where(frame["fit"] < 2.5, 0.02, 0.25)
    rows = []
    for n in N:
        for v in V:
            for seed in range(3):
                miss = 0.8 * (n / N[0]) ** -a * v**-b
                right = (rng.random(len(frame)) > miss).astype(float)
                rows.append({"N": n, "V": v, "seed": seed, "scores": scores.pack(right)})
    return pd.DataFrame(rows)


def test_planted_exponents_come_back_region_by_region(planted: pd.DataFrame) -> None:
    table = demands.exponents(planted, exam.exam(P))
    assert len(table) >= 15
    for row in table.itertuples():
        alpha = 0.0 if row.rank == "no fact" else 0.3
        beta = 0.02 if float(row.fit.split(" to ")[1]) <= 2.5 else 0.25
        near = 3 / row.questions**0.5  # chance
        assert abs(row.alpha - alpha) < near and abs(row.beta - beta) < near
        assert row.alpha_low < row.alpha < row.alpha_high


def test_all_facts_together_are_one_row(planted: pd.DataFrame) -> None:
    (row,) = demands.of_facts(planted, exam.exam(P)).itertuples()
    assert row.questions == exam.EACH["fact"] * P.images_test
    assert row.alpha == pytest.approx(0.3, abs=0.03) and 0.02 < row.beta < 0.25


def test_steps_are_counted_along_both_axes() -> None:
    """The error falls with N everywhere, and with V but for the last step, which rises beyond the seeds."""
    rows = []
    for (i, n), (j, v), seed in itertools.product(enumerate(N), enumerate(V), range(3)):
        error = 0.5 - 0.05 * i - 0.03 * j + 0.08 * (v == 36) + 0.001 * seed
        rows.append({"N": n, "V": v, "seed": seed, "error_reasoning": error, "error_ocr": error})
    frame = pd.DataFrame(rows)
    table = summary.steps_table(frame).set_index(["family", "along", "V up to"])
    along_n, up_to_9, all_v = (
        table.loc["reasoning", along, to] for along, to in (("N", 36), ("V", 9), ("V", 36))
    )
    assert (along_n.steps, along_n.falls, along_n.rises) == (8, 8, 0)
    assert (up_to_9.steps, up_to_9.falls, up_to_9.rises) == (3, 3, 0)
    assert (all_v.steps, all_v.falls, all_v.rises) == (9, 6, 3)
