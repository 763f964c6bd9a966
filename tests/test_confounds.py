"""Rival explanations of a difference, learning curves and a beta per compressor: planted ones come back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import planted
import pytest

from vtc import profiles
from vtc.evaluation import confounds, scores
from vtc.figures import zoo as pictures
from vtc.scaling import frames

P = profiles.get("laptop")
NAMES = ("quecc", "lookup", "quecc_light", "quecc_one_level", "lookup_asked", "tokenpacker")


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """All alike, but `lookup` misses every question about the land, and shuffled questions miss all."""
    rows = planted.cells(P, NAMES, (1, 4), (P.size(P.zoo_size),))
    missed = rows["compressor"] == "lookup"
    rows.loc[missed, "score_land"] = rows.loc[missed, "score_land"] - 0.4
    steered = rows["compressor"].isin(["quecc", "lookup"])
    none = scores.pack([0.0] * len(planted.TASKS))
    return rows.assign(shuffled=[none if one else "" for one in steered])


def test_one_row_for_each_rival_explanation(rows):
    table = confounds.confounds(rows, planted.TASKS, P)
    assert list(table.columns) == confounds.COLUMNS
    seen = table.groupby("confound")["V"].nunique().to_dict()
    assert seen == {
        "parameters": 2, "question source": 2, "unnamed things": 2, "second question": 2, "untaught words": 2,
    }  # fmt: skip
    by = table.set_index(["confound", "one", "V"])
    assert abs(by.loc[("question source", "quecc_light", 1), "difference"]) < 0.1
    unnamed = by.loc[("unnamed things", "lookup", 4)]
    assert unnamed["difference"] == pytest.approx(-0.1, abs=0.06) and unnamed["seeds"] == 3
    right = 1 - scores.overall_error(rows[(rows["compressor"] == "quecc") & (rows["V"] == 1)]).mean()
    again = by.loc[("second question", "quecc, shuffled question", 1), "difference"]
    assert again == pytest.approx(-right, abs=0.01)
    (note,) = set(table.loc[table["confound"] == "untaught words", "note"])
    assert "name 0:" in note  # no word of a question in the two families is a label of the tower
    (sizes,) = table.loc[(table["other"] == "quecc_one_level") & (table["V"] == 1), "note"]
    assert "lookup" in sizes and "quecc_one_level" in sizes


def test_a_gap_that_closes_with_longer_training_is_seen_to_close():
    hard, tables = np.random.default_rng(0).random(len(planted.TASKS)), {}
    for times, gain in ((1, 0.2), (2, 0.1), (4, 0.0)):
        made = []
        for name, ahead in (("quecc", 0.0), ("lookup", gain)):
            for seed in range(3):
                right = (np.random.default_rng([times, seed]).random(len(hard)) < hard + ahead).astype(float)
                row = {"compressor": name, "V": 1, "seed": seed, "scores": scores.pack(right)}
                row |= dict.fromkeys(("error_reasoning", "error_ocr"), 1 - right.mean())
                made.append(row)
        more = [{"V": 4}, {"seed": 3}]  # a V and a seed that longer training has not: not compared
        made += [made[at] | other for at in (0, 3) for other in more] if times == 1 else []
        tables[times] = pd.DataFrame(made)
    table = confounds.curves(tables, planted.TASKS, "lookup", "quecc")
    assert table["times"].tolist() == [1, 2, 4] and set(table["V"]) == {1} and set(table["seeds"]) == {3}
    assert table["difference"].is_monotonic_decreasing and table["difference"].iloc[0] > 0.1
    assert abs(table["difference"].iloc[2]) < 0.01
    apart = table["quecc_error"] - table["lookup_error"]
    assert apart.iloc[0] > 0.1 and abs(apart.iloc[2]) < 0.01
    assert confounds.curves({1: pd.DataFrame()}, planted.TASKS, "lookup", "quecc").empty


def test_pairs_of_betas_allow_for_all_that_were_looked_at():
    """Three compressors of one beta, but for chance: the pair that stands on top is rarely beyond doubt."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(100):
        rows = [
            {"compressor": name, "N": N, "V": V, "seed": seed, "error_ocr": 0.5 * V**-beta}
            for name in ("m3", "quecc_nested", "lookup_nested")
            for seed, beta in enumerate(rng.normal(0.1, 0.02, 3))
            for N in (1e4, 4e4)
            for V in (1, 4, 16)
        ]
        rows = pd.DataFrame(rows).assign(error_reasoning=0.5)
        found += frames.beta_pairs(rows)["low"].iloc[0] > 0
    assert found <= 10  # at most 5 % of all, and chance


def test_a_planted_beta_of_each_compressor_comes_back():
    """Errors .9 N^-.1 V^-beta with beta .3 and .05, a shift for each seed; V* = Q beta / (alpha - beta)."""
    rows = [
        {"compressor": name, "N": N, "V": V, "seed": seed, "size": str(N)}
        | dict.fromkeys(("error_reasoning", "error_ocr"), 0.9 * shift * (N / 1e4) ** -0.1 * V**-beta)
        for name, beta in (("m3", 0.3), ("quecc_nested", 0.05))
        for N in (1e4, 4e4, 16e4)
        for V in (1, 4, 16, 144)
        for seed, shift in enumerate((1.0, 1.05, 0.97))
    ]
    wrong = dict.fromkeys(
        ("error_reasoning", "error_ocr"), 0.9
    )  # cells that only one of them has count nothing
    rows.append(rows[0] | wrong | {"V": 9})
    rows.append(
        rows[0] | wrong | {"compressor": "lookup"}
    )  # one LLM alone: no alpha, and it takes no cell away
    table = frames.betas(pd.DataFrame(rows)).set_index(["family", "compressor"])
    assert set(table.index.get_level_values("compressor")) == {"m3", "quecc_nested"}
    for name, beta in (("m3", 0.3), ("quecc_nested", 0.05)):
        row = table.loc[("OCR-like", name)]
        assert row["beta"] == pytest.approx(beta, abs=1e-6) and row["beta_low"] <= beta <= row["beta_high"]
        assert row["alpha"] == pytest.approx(0.1, abs=1e-6) and row["seeds"] == 3
    assert table.loc[("reasoning", "quecc_nested"), "V*"] == pytest.approx(50 * 0.05 / 0.05, rel=1e-3)
    assert "QueCC for every V" in pictures.betas(table.reset_index()).to_json()
    pair = frames.beta_pairs(pd.DataFrame(rows)).iloc[0]
    assert (pair["compressor"], pair["against"], pair["seeds"]) == ("m3", "quecc_nested", 3)
    assert pair["difference"] == pytest.approx(0.25) and pair["low"] > 0.2
    one = pd.DataFrame(rows[:-2]).query("N == 1e4")  # beside one LLM: no alpha, the same beta
    alone = frames.betas_alone(one).set_index(["family", "compressor"])
    assert alone.loc[("OCR-like", "m3"), "beta"] == pytest.approx(0.3) and (alone["seeds"] == 3).all()
    assert alone.loc[("reasoning", "quecc_nested"), "beta"] == pytest.approx(0.05)
