"""Paired comparisons: a planted difference is found, none is not, intervals cover, Holm by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from vtc import compressors, profiles
from vtc.benchmark import speed
from vtc.evaluation import compare, exam, scores, summary
from vtc.experiments import evidence, store, sweep
from vtc.figures import sweep as pictures

LAPTOP = profiles.get("laptop")
TASKS = [t for t in exam.TASKS for _ in range(200)]


def cells(rng, gain, seeds=3):
    """Two compressors on the same questions, each of its own difficulty; `gain` is the planted difference."""
    hard = rng.random(len(TASKS))
    made = []
    for name, extra in (("tokenpacker", 0.0), ("other", gain)):
        for seed in range(seeds):
            right = (rng.random(len(TASKS)) < np.clip(hard + extra, 0, 1)).astype(float)
            made.append({"compressor": name, "V": 4, "seed": seed, "scores": scores.pack(list(right))})
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
        _, low, high, _ = compare._interval(list(apart), [1 / 7] * 7)
        hits.append(low <= truth <= high)
    assert 0.91 <= np.mean(hits) <= 0.985


def test_seeds_that_disagree_widen_the_interval():
    """Two compressors that differ by luck of training alone: +.15, 0, -.15 over three seeds."""
    rng, made = np.random.default_rng(3), []
    for seed, luck in enumerate((0.15, 0.0, -0.15)):
        made.append(cells(rng, luck, seeds=1).assign(seed=seed))
    together = compare.differences(pd.concat(made), TASKS, "tokenpacker").set_index("family")
    lucky = compare.differences(made[0], TASKS, "tokenpacker").set_index("family")
    assert lucky.loc["all", "low"] > 0.05
    assert together.loc["all", "low"] < -0.08 and together.loc["all", "high"] > 0.08


def test_pairs_name_the_cost_beside_the_other():
    p, rng = LAPTOP, np.random.default_rng(0)
    rows = cells(rng, 0.2).replace({"compressor": {"tokenpacker": "quecc", "other": "glances_steered"}})
    rows = compare.with_cost(rows.assign(size=p.zoo_size, Q=8.0, error_reasoning=0.3, error_ocr=0.2), p)
    (row,) = compare.pairwise(rows, TASKS, (("glances_steered", "quecc"),)).to_dict("records")
    assert row["low"] > 0.1 and row["cost"] < 1


def test_a_score_stands_beside_what_it_costs():
    p, size = LAPTOP, LAPTOP.size(LAPTOP.zoo_size)
    rows = [{"size": size.name, "compressor": name, "V": 4, "Q": 6.0} for name in ("quecc", "pool", "fastv")]
    rows = pd.DataFrame(rows).assign(error_reasoning=0.3, error_ocr=0.1)
    priced = compare.with_cost(rows, p).set_index("compressor")
    shape = dict(
        grid=p.g, d=p.tower.d, d_levels=p.tower.d * len(p.tower.levels), d_llm=size.d, d_question=size.d
    )
    built = compressors.build("quecc", tokens=4, **shape)
    assert priced["parameters"].to_dict() == {
        "quecc": sum(weight.numel() for weight in built.parameters()), "pool": 0, "fastv": 0,
    }  # fmt: skip
    assert priced["kbit"].tolist() == [16 * n * size.d / 1000 for n in (4, 4, p.g**2)]


def test_there_is_one_overall_score():
    """Better in the one task of reasoning, worse in both OCR-like ones: families count alike, tasks do not.

    Two definitions were in use (mean of all tasks, mean of two families); 89 of 2,443 pairs changed order.
    """
    right = {"pool": {"reasoning": 0.8, "ocr": 0.5}, "quecc": {"reasoning": 0.5, "ocr": 0.7}}
    rows, asked = [], exam.Exam(None, (), pd.DataFrame({"task": TASKS}))
    for name, of in right.items():
        share = {task: of[family] for family, tasks in exam.FAMILIES.items() for task in tasks}
        mine = np.array([float(i % 10 < 10 * share.get(t, 0.5)) for i, t in enumerate(TASKS)])
        row = {"compressor": name, "V": 4, "seed": 0, "size": LAPTOP.zoo_size, "Q": 8.0}
        rows.append(row | {"scores": scores.pack(mine)} | scores.errors(asked, mine))
    rows = pd.DataFrame(rows)
    by_task = rows.set_index("compressor")[[f"score_{t}" for t in ("know", "read", "recall")]].mean(axis=1)
    assert by_task["pool"] < by_task["quecc"]
    table = compare.differences(rows, TASKS, "quecc").set_index("family")["difference"]
    error = scores.overall_error(rows.set_index("compressor"))
    assert table["all"] == pytest.approx(0.05) == error["quecc"] - error["pool"]
    frontier = compare.with_cost(rows, LAPTOP).set_index("compressor")["error"]
    assert frontier["quecc"] - frontier["pool"] == pytest.approx(table["all"])


@pytest.mark.skipif(not (LAPTOP.results / "05_zoo.csv").exists(), reason="no compressors are recorded")
def test_every_recorded_pair_compares_the_same_way_in_every_table():
    """All pairs of cells of the recorded zoo, by questions and by errors, to the rounding of scores."""
    zoo, tasks = store.recorded("05_zoo", LAPTOP), np.array(exam.exam(LAPTOP).tasks)
    weight = np.zeros(len(tasks))
    for task, w in scores.WEIGHTS["all"].items():
        weight[tasks == task] = w / (tasks == task).sum()
    by_question = np.array([scores.unpack(text) @ weight for text in zoo["scores"]])
    by_error = 1 - scores.overall_error(zoo).to_numpy()
    assert np.abs(by_question - by_error).max() < 0.002
    apart = np.subtract.outer(by_error, by_error)
    clear = np.abs(apart) > 0.004
    assert (np.sign(np.subtract.outer(by_question, by_question)) == np.sign(apart))[clear].all()


def test_a_seed_is_one_observation_of_a_slope():
    """Planted slopes -.03 and -.05 in ln N and ln V, and a shift of each seed: the slopes come back."""
    rng, rows = np.random.default_rng(0), []
    for seed, shift in enumerate((0.0, 0.2, -0.1, 0.05)):
        for N in (1e4, 1e5, 1e6):
            for V in (0, 1, 4, 16):
                error = 1 - 0.03 * np.log(N) - 0.05 * np.log(max(V, 1)) + shift + rng.normal(0, 0.002)
                rows.append({"N": N, "V": V, "seed": seed, "error_reasoning": error, "error_ocr": error})
    table = summary.slope_table(pd.DataFrame(rows)).set_index(["family", "slope"]).loc["reasoning"]
    for name, planted in (("with N", -0.03), ("with V", -0.05), ("more with N than with V", -0.02)):
        row = table.loc[name]
        assert row["low"] <= planted <= row["high"] and row["high"] - row["low"] < 0.01 and row["seeds"] == 4
    one = summary.slope_table(pd.DataFrame(rows)[lambda r: r["seed"] == 0])
    assert np.isinf(one["low"]).all() and np.isinf(one["high"]).all()  # one seed: nothing is known of others


def test_what_turns_round_in_the_twin_is_seen_to_turn():
    """Planted slopes in ln N and ln V: facts -.2 and 0 in the world, 0 and -.1 in the twin; reading alike."""

    def world(fact: str, with_N: float, with_V: float) -> pd.DataFrame:
        rng, rows = np.random.default_rng(1), []
        for seed in range(3):
            for N in (1e4, 4e4, 16e4):
                for V in (0, 1, 4, 16):
                    line = 0.9 + with_N * np.log(N / 1e4) + with_V * np.log(max(V, 1)) + rng.normal(0, 0.01)
                    row = {"N": N, "V": V, "seed": seed, f"score_{fact}": 1 - line, "score_read": 1 - line}
                    rows.append(row)
        return pd.DataFrame(rows)

    base, twin = world("know", -0.2, 0.0), world("fact", 0.0, -0.1)
    more = pd.DataFrame(base[base["N"] == 1e4].assign(N=9e9, score_know=0.0))  # a size that the twin lacks
    table = summary.turned(pd.concat([base, more]), twin)
    by = table.set_index(["world", "questions", "slope"])
    assert by.loc[("world", "facts", "with N"), "mean"] == pytest.approx(-0.2, abs=0.01)
    both = by.xs("more with N than with V", level="slope")["mean"]
    assert both["world", "facts"] == pytest.approx(0.2, abs=0.02)
    assert both["twin", "facts"] == pytest.approx(-0.1, abs=0.02)
    (said,) = evidence._turned(base, twin)  # as the table of claims says it, with its interval
    assert said.low < said.value < said.high < 0 and said.value == pytest.approx(-0.1, abs=0.02)
    title = pictures.turned(table, profiles.get("smoke")).to_dict()["title"]["text"]
    assert "more with N than with V in the world, more with V than with N in the twin" in str(title)


def test_training_longer_is_compared_seed_by_seed():
    rows = pd.DataFrame(
        {"N": 1e4, "V": V, "seed": seed, "error_reasoning": 0.5 + seed / 10, "error_ocr": 0.4}
        for V in (1, 4)
        for seed in range(3)
    )
    table = summary.longer(rows, rows[rows["V"] == 4].assign(error_ocr=0.3))
    by = table.set_index("family")
    assert table["V"].tolist() == [4, 4] and (table["seeds"] == 3).all()
    assert by.loc["OCR-like", ["difference", "low", "high"]].tolist() == pytest.approx([-0.1] * 3)
    assert by.loc["reasoning", "difference"] == pytest.approx(0)


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


def test_shuffled_questions_are_compared_with_the_compressor_itself():
    """Right everywhere when asked, wrong everywhere when questions are shuffled: the whole score is lost."""
    right, wrong = (scores.pack([score] * len(TASKS)) for score in (1.0, 0.0))
    rows = pd.DataFrame([{"compressor": "quecc", "V": 1, "seed": 0, "scores": right, "shuffled": wrong}])
    table = compare.differences(compare.with_shuffled(rows, "quecc"), TASKS, "quecc")
    assert set(table["compressor"]) == {"quecc, shuffled question"} and table[
        "difference"
    ].to_numpy() == pytest.approx(-1)
    before = rows.drop(columns="shuffled")  # rows from before the control was there
    assert compare.with_shuffled(before, "quecc").equals(before)


def test_clocks_are_compared_by_what_was_taken_in_turn():
    """The second was clocked in a busy moment, twice as slow for all; by its ratio it is as quick."""
    clock = pd.DataFrame(
        {"size": "x", "compressor": ["pool", "quecc"], "V": 1, "first_token_ms": [2.0, 4.0]}
    ).assign(tokenpacker_ms=[4.0, 8.0], ratio=0.5, device="one")
    rows = clock[["size", "compressor", "V"]].assign(error=0.5)
    assert compare.with_clock(rows, clock)["first_token_ms"].tolist() == [3.0, 3.0]
    assert compare.with_clock(rows, clock.head(1))["first_token_ms"].isna().tolist() == [False, True]
    assert compare.with_clock(rows, clock.head(0))["first_token_ms"].isna().all()  # not clocked
    slow = clock.head(1).assign(device="two", compressor="stride", tokenpacker_ms=40.0)
    both = compare.with_clock(rows, pd.concat([clock, slow], ignore_index=True))
    assert both["first_token_ms"].tolist() == [3.0, 3.0]  # another machine adds ratios, no milliseconds
    assert set(both["clocked_on"]) == {clock["device"].iloc[0]}


def test_a_zoo_of_names_is_these_alone():
    p = replace(LAPTOP, zoo=("tokenpacker", "lookup"), zoo_V=(1, 4), seeds=(3,))
    assert sweep.zoo(p) == [
        {"compressor": name, "V": V, "size": p.zoo_size, "seed": 3}
        for V in (1, 4)
        for name in ("tokenpacker", "lookup")
    ]


def test_the_zoo_leaves_out_what_cannot_be_given_and_doubles():
    p = replace(LAPTOP, zoo=("tokenpacker", "rivals", "ablations", "others"), zoo_V=LAPTOP.recorded_zoo_V)
    cases = sweep.zoo(p)
    pairs = [(case["compressor"], case["V"]) for case in cases]
    assert len(set(pairs)) == len(pairs)
    assert ("visionzip", 1) not in pairs and ("visionzip", 4) in pairs  # it needs a token beside the rest
    assert ("quecc_unasked", 4) in pairs and ("quecc_unasked", 16) not in pairs
    assert {("tokenpacker", V) for V in p.zoo_V} <= set(pairs)


def test_a_zoo_of_several_llms_and_the_cells_of_the_variants():
    p = replace(LAPTOP, zoo=("quecc_nested",), zoo_V=(1, 36), seeds=(0,))
    cells = [(case["size"], case["V"]) for case in sweep.zoo(p, ("d16", "d64"))]
    assert cells == [
        ("d16", 1),
        ("d64", 1),
        ("d16", 36),
        ("d64", 36),
    ]  # both are trained before any is asked again
    cells = sweep.variant_cells(p, "05_twice")
    assert {(case["compressor"], case["V"]) for case in cells} == {("quecc", 1), ("lookup", 1)}
    assert {case["size"] for case in sweep.variant_cells(p, "02_twin")} == {"d16", "d32", "d64"}
    fourfold, r = p.variants["05_fourfold"].recipe, p.recipe
    assert fourfold.text == r.text and fourfold.instruct.steps == 4 * r.instruct.steps
    assert len({variant.fingerprint for variant in (p, *p.variants.values())}) == 1 + len(p.variants)
    shared = {stem: variant.cache_before_align for stem, variant in p.variants.items()}
    curves = {shared.pop("05_twice"), shared.pop("05_fourfold")}  # their LLMs have read the same text
    assert curves == {p.cache_before_align} and not curves & set(shared.values()) and len(shared) == 2
    anew = replace(p, recompute=True)  # as `vtc reproduce` runs the notebooks: variants are replayed
    assert not any(variant.recompute for variant in anew.variants.values())
    assert len(store.stored("02_twin", anew.variants["02_twin"])) == 63 and not len(
        store.stored("02_errors", anew)
    )


def test_a_ranking_takes_the_seeds_of_most_and_leaves_out_who_lacks_one():
    have = {("a", 1): (0, 1, 2, 3, 4), ("b", 1): (0, 1, 2), ("c", 1): (0, 1, 2), ("d", 1): (0,)}
    have |= {("a", 4): (0, 1), ("b", 4): (0,), ("a", 0): (0,)}
    rows = [(name, V, seed, "d32") for (name, V), seeds in have.items() for seed in seeds]
    rows = pd.DataFrame([*rows, ("d", 1, 1, "d64")], columns=["compressor", "V", "seed", "size"])
    kept = compare.most(rows, "d32").groupby(["compressor", "V"])["seed"].agg(list).to_dict()
    three = dict.fromkeys([("a", 1), ("b", 1), ("c", 1)], [0, 1, 2])  # a's seeds 3 and 4 are not needed
    assert kept == three | {("a", 4): [0, 1]}


def test_side_by_side_stand_the_V_and_seeds_that_all_have():
    rows = pd.DataFrame(
        [
            *[("a", 1, 0, "d32"), ("a", 1, 1, "d32"), ("b", 1, 1, "d32"), ("b", 1, 2, "d32")],
            *[("a", 4, 0, "d32"), ("b", 4, 0, "d32"), ("c", 4, 0, "d32"), ("a", 4, 1, "d32")],
            *[("a", 9, 0, "d32"), ("a", 0, 0, "d32"), ("b", 0, 0, "d32"), ("b", 1, 1, "d64")],
        ],
        columns=["compressor", "V", "seed", "size"],
    )
    kept = compare.beside(rows, ["a", "b"], "d32")
    assert sorted(zip(kept["compressor"], kept["V"], kept["seed"])) == [
        *[("a", 1, 1), ("a", 4, 0), ("b", 1, 1), ("b", 4, 0)]
    ]


def test_holm_by_hand():
    assert compare.holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])


def test_quecc_is_as_published_and_its_speed_a_ratio():
    case = speed.cases(profiles.get("smoke"))[1]
    row = speed.measure(case, turns=1)
    assert row["difference"] < 1e-5
    assert all(row[f"{name}_ratio"] > 0 for name in ("one", "many", "bf16"))


@pytest.mark.parametrize("gain, margin, said", [(0.0, 0.1, "yes"), (0.25, 0.05, "no"), (0.0, 0.001, "open")])
def test_equivalence_needs_the_whole_interval_within_the_margin(gain, margin, said):
    rows = cells(np.random.default_rng(1), gain, seeds=5)
    (row,) = compare.equivalence(rows, TASKS, "other", "tokenpacker", margin).itertuples()
    assert row.equivalent == said and row.seeds == 5 and row.low < row.difference < row.high


def test_one_seed_leaves_equivalence_open():
    rows = cells(np.random.default_rng(1), 0.0, seeds=1)
    assert compare.equivalence(rows, TASKS, "other", "tokenpacker", 0.5)["equivalent"].tolist() == ["open"]


def test_equivalence_is_claimed_wrongly_in_one_case_of_twenty():
    """Two compressors that differ by the margin itself, over many sets of seeds."""
    rng, claimed = np.random.default_rng(0), 0
    for _ in range(400):
        apart = 0.05 + rng.normal(0, 0.02, (5, 1)) + rng.normal(0, 0.4, (5, 400))
        _, low, high, _ = compare._interval([apart], [1.0], level=0.9)
        claimed += compare._alike(low, high, 0.05) == "yes"
    assert claimed / 400 < 0.075
