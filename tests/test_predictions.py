"""Predictions: they follow from the pilot's rows, and a grid that obeys see and know is predicted exactly."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vtc import profiles
from vtc.evaluation import summary
from vtc.experiments import predictions
from vtc.profiles import ROOT

P = profiles.get("laptop")
KNOW = {size.N: 0.9 * (size.N / P.sizes[0].N) ** -0.2 for size in P.sizes}
SEE = {V: 0.6 * V**-0.3 for V in P.V if V}


def planted(N: float, V: float, seed: int = 0) -> dict:
    error = 1 - (1 - KNOW[N]) * (1 - SEE[V])
    return {"N": N, "V": V, "seed": seed, "error_reasoning": error, "error_ocr": error}


def pilot() -> tuple[pd.DataFrame, pd.DataFrame]:
    some = [P.sizes[i].N for i in (0, 2, 4)]
    told = pd.DataFrame([{"N": N, "error_reasoning": KNOW[N], "error_ocr": KNOW[N]} for N in some])
    return told, pd.DataFrame([planted(some[1], V) for V in SEE])


def test_a_grid_of_see_and_know_is_predicted_cell_by_cell() -> None:
    said = predictions.predicted(P, *pilot())
    rows = pd.DataFrame([planted(N, V, seed) for N in KNOW for V in SEE for seed in (0, 1)])
    rows["error_reasoning"] += np.where(rows["seed"] == 0, 0.005, -0.005)  # seeds differ
    rows["error_ocr"] += np.where(rows["seed"] == 0, 0.005, -0.005)
    table = predictions.cells(said, rows)
    assert len(table) == 2 * len(KNOW) * len(SEE) and table["hit"].all()
    assert (table["predicted"] - table["measured"]).abs().max() < 1e-9  # a power law, also beyond the pilots
    apart = (table["product"] - table["measured"]).abs()
    assert apart.max() > 0.05  # the other form is not
    board = predictions.scoreboard(table).set_index(["family", "label"])
    assert (board["predicted"] <= board["product"]).all()


def test_a_cell_outside_the_tolerance_is_a_miss() -> None:
    said = predictions.predicted(P, *pilot())
    rows = pd.DataFrame([planted(N, V, seed) for N in KNOW for V in SEE for seed in (0, 1)])
    rows["error_ocr"] += np.where(rows["seed"] == 0, 0.001, -0.001) + 0.02
    table = predictions.cells(said, rows)
    assert not table.loc[table["family"] == "ocr", "hit"].any()


def test_winners_pay_no_more_than_the_budget() -> None:
    rows = pd.DataFrame([planted(N, V) for N in KNOW for V in SEE])
    table = summary.winners(rows, "ocr", 6)
    assert (table["N"] * (6 + table["V"]) <= table["budget"] * (1 + 1e-12)).all()
    assert (table["error"].diff().dropna() <= 0).all()  # more budget, no larger error
    for row in table.itertuples():
        affordable = rows[rows["N"] * (6 + rows["V"]) <= row.budget]
        assert row.error == pytest.approx(affordable["error_ocr"].min())


def test_the_committed_predictions_follow_from_the_pilots_rows() -> None:
    rows = pd.read_csv(ROOT / "results" / "pilots" / "laptop.csv")
    assert set(rows["seed"]).isdisjoint(P.recorded_seeds)
    again = predictions.predicted(P, rows[rows["kind"] == "told"], rows[rows["kind"] == "cell"])
    committed = predictions.of(P, pd.DataFrame(), pd.DataFrame())
    assert list(committed.columns) == list(again.columns) and len(committed) == len(again)
    assert np.allclose(committed["predicted"], again["predicted"], atol=1e-4, equal_nan=True)
    assert (committed["label"].fillna("") == again["label"].fillna("")).all()
