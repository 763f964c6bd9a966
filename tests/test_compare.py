"""Paired comparisons: a planted difference is found, none is not, intervals cover, Holm by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from vtc import data, profiles
from vtc.benchmark import speed
from vtc.evaluation import compare
from vtc.experiments import sweep

TASKS = [t for t in data.TASKS for _ in range(200)]


def cells(rng, gain, seeds=3):
    """Two compressors on the same questions, each of its own difficulty; `gain` is the planted difference."""
    hard = rng.random(len(TASKS))
    made = []
    for name, extra in (("tokenpacker", 0.0), ("other", gain)):
        for seed in range(seeds):
            right = (rng.random(len(TASKS)) < np.clip(hard + extra, 0, 1)).astype(float)
            made.append({"compressor": name, "V": 4, "seed": seed, "scores": sweep.packed(list(right))})
    return pd.DataFrame(made)


def test_a_planted_difference_is_found_and_none_is_not():
    rng = np.random.default_rng(0)
    table = compare.differences(cells(rng, 0.15), TASKS, "tokenpacker")
    assert (table["low"] > 0).all() and (table["p_holm"] < 0.05).all()
    table = compare.differences(cells(rng, 0.0), TASKS, "tokenpacker")
    assert (table["p_holm"] > 0.05).all()


@pytest.mark.parametrize("seeds", [1, 3, 8])
def test_intervals_cover_the_planted_difference(seeds):
    """Questions that differ for all seeds alike, seeds that differ on all questions, and chance beside."""
    rng, hits, truth = np.random.default_rng(seeds), [], 0.05
    luck = 0.03 if seeds > 1 else 0.0  # of training; one seed can't tell it from the difference
    for _ in range(400):
        of_question, of_seed = rng.normal(0, 0.5, (7, 1, 100)), rng.normal(0, luck, (1, seeds, 1))
        apart = truth + of_question + of_seed + rng.normal(0, 0.4, (7, seeds, 100))
        _, low, high, _ = compare._interval(list(apart))
        hits.append(low <= truth <= high)
    assert 0.91 <= np.mean(hits) <= 0.985


def test_seeds_that_disagree_widen_the_interval():
    """Two compressors that differ by luck of training alone: +.15, 0, -.15 over three seeds."""
    rng, made = np.random.default_rng(3), []
    for seed, luck in enumerate((0.15, 0.0, -0.15)):
        made.append(cells(rng, luck, seeds=1).assign(seed=seed))
    together = compare.differences(pd.concat(made), TASKS, "tokenpacker").set_index("family")
    lucky = compare.differences(made[0], TASKS, "tokenpacker").set_index("family")
    assert lucky.loc["all", "low"] > 0.08
    assert together.loc["all", "low"] < -0.08 and together.loc["all", "high"] > 0.08


def test_duels_name_the_cost_beside_the_other():
    p, rng = profiles.get("laptop"), np.random.default_rng(0)
    rows = cells(rng, 0.2).replace({"compressor": {"tokenpacker": "quecc", "other": "glances_steered"}})
    rows = rows.assign(size="m", Q=8.0, error_reasoning=0.3, error_ocr=0.2)
    (row,) = compare.duels(rows, TASKS, p, ("glances_steered",), ("quecc",)).to_dict("records")
    assert row["low"] > 0.1 and row["cost"] < 1
    (claim,) = compare.claims(pd.DataFrame(columns=["against"]), pd.DataFrame([row]))
    assert claim["verdict"] == "held" and "of the cost" in claim["ours"]
    (claim,) = compare.claims(pd.DataFrame(columns=["against"]), pd.DataFrame([row | {"cost": 1.2}]))
    assert claim["verdict"] == "does not hold"  # better, but for more


def test_quecc_is_judged_beside_the_papers_own_table():
    """By hand from Table 1: at one token +.1 .7 .6 .5 .6 3.0 .4 points over TokenPacker, mean .84."""
    assert compare.in_table_1("tokenpacker", 1) == "+0.008, 7 benchmarks"
    assert compare.in_table_1("mqt", 1) == "+0.036, 6 benchmarks, MQT at 2"
    assert compare.in_table_1("prumerge", 16) == "not tested"
    row = {"V": 1, "compressor": "quecc", "against": "tokenpacker", "difference": 0.03, "low": -0.01,
           "high": 0.07, "p_holm": 0.4, "cost": 1.3, "seeds": 3}  # fmt: skip
    (claim,) = compare.claims(pd.DataFrame([row]), pd.DataFrame(columns=["compressor", "against"]))
    assert claim["verdict"] == "open" and claim["paper"].startswith("+0.008")
    assert claim["ours"] == "+0.030 [-0.010, +0.070], 3 seeds"


def test_the_frontier_holds_what_nothing_cheaper_equals():
    rows = pd.DataFrame({"compressor": list("abcde"), "V": 1, "mflop": [1.0, 2.0, 2.0, 3.0, 4.0],
                         "error": [0.5, 0.6, 0.4, 0.4, 0.1]})  # fmt: skip
    assert compare.frontier(rows)["compressor"].tolist() == ["a", "c", "e"]


def test_beside_a_large_llm_the_question_pass_doubles_the_bill():
    """At 7B a token counts 2N operations and QueCC's pass 2NQ, whatever a compressor does by itself."""
    rows = pd.DataFrame({"compressor": ["pool", "pool", "quecc"], "V": [1, 36, 1]})
    table, per_token = compare.tflop_beside(rows, "7B"), 2 * 6.5e9 / 1e12
    assert (table.loc["pool", 36] - table.loc["pool", 1]) / 35 == pytest.approx(per_token, rel=0.05)
    assert table.loc["quecc", 1] - table.loc["pool", 1] == pytest.approx(50 * per_token, rel=0.05)


def test_a_misled_compressor_is_compared_with_itself():
    """Right everywhere when asked, wrong everywhere when misled: the whole score is lost."""
    right, wrong = (sweep.packed([score] * len(TASKS)) for score in (1.0, 0.0))
    rows = pd.DataFrame([{"compressor": "quecc", "V": 1, "seed": 0, "scores": right, "shuffled": wrong}])
    table = compare.differences(compare.with_misled(rows, "quecc"), TASKS, "quecc")
    assert set(table["compressor"]) == {"quecc, misled"} and (table["difference"] == -1).all()
    before = rows.drop(columns="shuffled")  # rows from before the control was there
    assert compare.with_misled(before, "quecc").equals(before)


def test_clocks_are_compared_by_what_was_taken_in_turn():
    """The second was clocked in a busy moment, twice as slow for all; by its ratio it is as quick."""
    clock = pd.DataFrame(
        {"size": "m", "compressor": ["pool", "quecc"], "V": 1, "first_token_ms": [2.0, 4.0]}
    ).assign(tokenpacker_ms=[4.0, 8.0], ratio=0.5)
    rows = clock[["size", "compressor", "V"]].assign(error=0.5)
    assert compare.with_clock(rows, clock)["first_token_ms"].tolist() == [3.0, 3.0]


def test_a_zoo_of_names_is_these_alone():
    p = replace(profiles.get("laptop"), zoo=("tokenpacker", "lookup"), zoo_V=(1, 4), seeds=(3,))
    assert [(case["compressor"], case["V"], case["size"]) for case in sweep.zoo(p)] == [
        ("tokenpacker", 1, "m"), ("tokenpacker", 4, "m"), ("lookup", 1, "m"), ("lookup", 4, "m"),
    ]  # fmt: skip


def test_the_zoo_leaves_out_what_cannot_be_given_and_doubles():
    p = replace(profiles.get("laptop"), zoo=("rivals", "ablations", "others"))
    cases = sweep.zoo(p)
    pairs = [(case["compressor"], case["V"]) for case in cases]
    assert len(set(pairs)) == len(pairs)
    assert ("visionzip", 1) not in pairs and ("visionzip", 4) in pairs  # it needs a token beside the rest
    assert ("quecc_unasked", 4) in pairs and ("quecc_unasked", 16) not in pairs
    assert [case["compressor"] for case in cases].count("identity") == len(p.seeds)


def test_holm_by_hand():
    assert compare.holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])


def test_quecc_is_as_published_and_its_speed_a_ratio():
    case = speed.cases(profiles.get("smoke"))[1]
    row = speed.measure(case, turns=1)
    assert row["difference"] < 1e-5
    assert all(row[f"{name}_ratio"] > 0 for name in ("one", "many", "bf16"))
