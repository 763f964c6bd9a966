"""Notebooks that teach: minutes, questions, exercises, tables as promised; numbers in prose are computed."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from vtc import compressors, cost, data, profiles, scaling
from vtc.evaluation import compare, confounds, demands, exam, summary
from vtc.evaluation.scores import overall_error
from vtc.experiments import evidence, expected, first_world, predictions, store, sweep
from vtc.figures import drawings
from vtc.scaling import elsewhere, frames, seconds

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = {
    path.name[:2]: nbformat.read(path, as_version=4).cells for path in sorted(FOLDER.glob("*.ipynb"))
}
PROSE = {
    name: "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for name, cells in NOTEBOOKS.items()
}
TAUGHT = [name for name, text in PROSE.items() if "**What you will learn.**" in text]
each = pytest.mark.parametrize("name", TAUGHT)
LESSONS = ("01", "02", "03", "04", "05")
P = profiles.get("laptop")  # whose recorded rows prose speaks of
each_lesson = pytest.mark.parametrize("name", LESSONS)
WORDS_A_MINUTE, SECONDS_A_FIGURE = 200, 20


def outputs(name: str, kind: str, cells: list | None = None) -> list[str]:
    """What the cells (all of a notebook, or these) show, of one MIME type."""
    cells = NOTEBOOKS[name] if cells is None else cells
    shown = (out.get("data", {}) for cell in cells for out in cell.get("outputs", []))
    return [data[kind] for data in shown if kind in data]


def test_these_are_lessons():
    assert set(LESSONS) <= set(TAUGHT)


@each
def test_reading_takes_the_minutes_that_are_said(name):
    """Words, folded ones too, and figures; an appendix is not counted."""
    text, _, appendix = PROSE[name].partition("\n# Appendix")
    said = int(re.search(r"\*\*Minutes\.\*\* (\d+) to read", text)[1])
    assert said <= 25
    if appendix:
        end = next(i for i, cell in enumerate(NOTEBOOKS[name]) if "# Appendix" in cell.source)
    figures = len(outputs(name, "image/png", NOTEBOOKS[name][: end if appendix else None]))
    minutes = len(re.findall(r"\w+", text)) / WORDS_A_MINUTE + figures * SECONDS_A_FIGURE / 60
    assert minutes <= said


@each
def test_a_notebook_that_teaches_has_its_parts(name):
    text = PROSE[name]
    for part in ("**What you need.**", "## Exercises", "What comes next"):
        assert part in text, part
    exercises = len(
        re.findall(r"^(?:\*\*)?\d\.", text.partition("## Exercises")[2].partition("\n## ")[0], re.M)
    )
    answers = text.count("<details><summary>Answer</summary>")
    assert 3 <= exercises == answers <= 5
    assert answers <= text.count("</details>")


@each_lesson
def test_a_lesson_asks_before_it_shows(name):
    text = PROSE[name]
    assert text.count("**Predict") >= 4 and "*The paper" in text and "glossary" in text
    assert "## Try it" in text and "## Sources" in text


@each_lesson
def test_cells_and_tables_are_short(name):
    for cell in NOTEBOOKS[name]:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 10, cell.source
    for table in outputs(name, "text/html"):
        rows = table.partition("<details")[0].count("<tr")
        assert rows <= 1 + 10 + 1, table[:300]  # names of columns (and of an index), ten rows


@each_lesson
def test_every_figure_is_described(name):
    shown = [out.get("data", {}) for cell in NOTEBOOKS[name] for out in cell.get("outputs", [])]
    pictures = [data for data in shown if "image/png" in data]
    assert pictures and all(len(data["text/plain"]) > 40 for data in pictures)


def of_04() -> list[str]:
    reasoning, ocr = (scaling.fit(scaling.published(task)) for task in ("reasoning", "ocr"))
    law, V = reasoning.law, np.arange(1, 577)

    def along(law: scaling.Law, budget: float) -> np.ndarray:
        return law.error(budget / (50 + V), V)

    above = along(law, 1000) / along(law, 1000).min() - 1
    assert above[4 - 1] < 0.01 and above[36 - 1] < 0.01 and 0.02 < above[0] < 0.05  # "a few per cent"
    assert along(law, 1000).argmin() == along(law, 10).argmin()
    additive = scaling.fit(reasoning.points, "additive").law
    best = [V[along(additive, budget).argmin()] for budget in (100, 1000, 10000)]
    betas = {row["task"]: row for row in elsewhere.benchmark_betas()}
    assert (
        betas["SQA"]["beta_lo"] < 0 < betas["SQA"]["beta_hi"]
        and max(betas, key=lambda t: betas[t]["beta"]) == "VQAv2"
    )
    left = scaling.leave_one_size_out(reasoning.points)
    assert left[-1]["largest"] and left[-1]["worst miss"] < 0.01
    at = [reasoning.points.Y[reasoning.points.N == n] for n in set(reasoning.points.N)]
    spread = [np.ptp(errors) / errors.max() for errors in at]
    assert 0.06 < min(spread) and max(spread) < 0.14  # "only about a tenth"
    assert ocr.law.ratio < 1
    at_576 = ocr.points.keep(ocr.points.V == 576)
    assert (at_576.Y < ocr.law.error(at_576.N, 576)).sum() == 3  # "three of the four LLMs err less"
    row = scaling.summary(reasoning, Q=50)
    for name in ("alpha", "ratio"):  # "nearly half as wide as its value"
        assert 0.4 < (row[f"{name}_hi_clustered"] - row[f"{name}_lo_clustered"]) / row[name] < 0.5
    assert row["V_opt_lo_clustered"] > 10 and 18 < row["V_opt_hi_clustered"] < 19
    served = frames.true_optimum(reasoning, cost.hardware("h200"), points=8).groupby("cost")["V"]
    one, many = (served.get_group(f"first token, batch {b}") for b in (1, 32))
    assert 100 <= one.median() <= 200 and 13 <= many.min() and many.max() <= 19
    halved = [round(2**x, 2) for f in (reasoning, ocr) for x in (f.law.alpha, f.law.beta)]
    found = [row["V_opt"] for row in scaling.compare(reasoning.points)]
    assert min(found) > 13 and max(found) < 15  # "nearly at the same place"
    return [
        f"by 2^alpha = {halved[0]}, half of the visual tokens by 2^beta = {halved[1]}",
        f"For OCR-like tasks it is {halved[2]} and {halved[3]}",
        f"The ratio is {law.ratio:.2f} for reasoning and {ocr.law.ratio:.2f} for OCR-like tasks",
        f"hold {cost.llm('4').matrices / 1e9:.1f} and {cost.llm('7').matrices / 1e9:.1f} billion",
        f"V\\* = {50 * 0.015 / (0.077 - 0.015):.1f} at Q = 50",
        f"the exact fit gives {scaling.v_star(law, 50):.1f}",
        f"= 250 / {law.ratio - 1:.2f} = {250 / (law.ratio - 1):.0f}",
        f"With a ratio of {law.ratio:.2f}",
        f"It rises: {best[0]}, {best[1]} and {best[2]}.",
        f"With 2 beta the ratio is {law.ratio / 2:.2f} and V\\* at Q = 50 is {50 / (law.ratio / 2 - 1):.0f}",
    ]


def of_03() -> list[str]:
    h200, qwen = cost.hardware("h200"), cost.llm("7")
    corner, V = drawings.ridge(h200), 576
    one, all_ = (cost.memory(cost.Pipeline(qwen), v, 50, 128)["kv"] for v in (1, V))
    assert 3.5 < all_ / one < 4.5  # "about four times as many requests"
    times = [row["published_ms"] / row["floor_ms"] for row in elsewhere.published_latency()]
    assert 2 <= min(times) and max(times) <= 6.05  # "two to six times the floor"
    cached = V * qwen.kv_bytes()
    pays = seconds.batch_that_pays(["h200", "a100", "l4"])
    first = {b: pays[pays["batch"] <= b].groupby("device")["V"].min() for b in (1, 8)}
    assert first[1].min() > 100 and first[8][["a100", "h200"]].max() < 12 and 12 < first[8]["l4"] < 28
    corners = {d.name: drawings.ridge(d) for d in cost.hardware_table().values() if "bf16" in d.peak}
    assert all(at > 100 for name, at in corners.items() if not name.endswith("2")) and corners["epyc2"] < 100
    assert round(cached / (2 * qwen.matrices), 2) == 0.02  # "two per cent"
    return [
        f"so t = {corner:.0f}.",
        f"shorter than {corner:.0f} tokens",
        f"are {(V + 50) / 51:.0f} times the operations of 1 beside 50",
        f"{V} visual tokens take {cached / 2**20:.0f} MiB a request",
        f"moves to {corner / 2:.0f} tokens",
        f"8 (V + 50) = {corner:.0f} gives V + 50 = {corner / 8:.0f}",
        f"{2 * qwen.matrices / 1e9:.0f} GB for the 7B LLM",
        f"{V} of them are {cached / 1e9:.1f} GB",
    ]


def swept() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Recorded rows of the sweep, and the mean error of every family, N and V > 0."""
    rows = store.recorded(sweep.STEM, P)
    return rows, summary.by_family(rows[rows["V"] > 0]).pivot_table(
        index=["family", "N"], columns="V", values="error"
    )


def of_01() -> list[str]:
    made, rows = exam.exam(P), swept()[0]
    asked = summary.asked(made).set_index("task")
    assert asked["question words"].min() == 2 and asked["question words"].max() == 5  # "two to five words"
    assert round(3 * asked["commonest answer"]["count"]) == 2  # "two of three counts are 1"
    read = rows[rows["V"] == 4]["score_read"].mean()
    assert 0.4 < read < 0.6  # "about half of the `read` questions"
    return [
        f"all {len(data.Facts(P.world)):,} facts",
        f"one of the {exam.COMMON} most common",
        f"one of {len(data.LANDS)} *lands*",
        f"36 tokens, a quarter of the {P.s} patches",
        f"drawn log-uniformly from {P.world.least:.0f} to {P.world.most:.0f}",
    ]


def of_02() -> list[str]:
    (rows, errors), everywhere = swept(), store.recorded(sweep.PARTS, P)
    parts, flipped = (everywhere[everywhere["recipe"] == p.fingerprint] for p in (P, P.variants["02_twin"]))
    tower = parts[parts["part"] == "tower"].iloc[0]
    assert tower["digit_5.5_7"] > 0.9 and 0.7 < tower["digit_8.5_10"] < 0.8  # "nearly all", "three of four"
    told, told_ocr = (summary.told_table(parts).set_index("N")[f"error_{f}"] for f in ("reasoning", "ocr"))
    slope = -np.polyfit(np.log(told.index[2:]), np.log(told[2:]), 1)[0]
    assert 0.25 < slope < 0.35  # "about as N^-0.3"
    each = parts[parts["N"] == parts["N"].max()]["error_ocr"]  # "one run of the largest is far off"
    assert (each > 2 * each.median()).sum() == 1
    assert (told_ocr.diff().iloc[1:4] < 0).all()  # "up to the fourth LLM"
    reasoning, ocr = (errors.loc[name] for name in ("reasoning", "OCR-like"))
    for family in (reasoning, ocr):
        assert (family.diff().iloc[1:] < 0).to_numpy().all()  # "fall with N at every step"
    assert (ocr.loc[:, :36].diff(axis=1).iloc[:, 1:] < 0).to_numpy().all()
    assert (reasoning[144] > reasoning[36]).all()  # "for every LLM"
    assert np.ptp(reasoning.loc[:, 4:36].mean()) < 0.02  # "hardly depend on V from 4 tokens on"
    said = predictions.cells(predictions.committed(P), rows)
    board = predictions.scoreboard(said).set_index(["family", "label"])
    assert board.loc[("reasoning", "extrapolation"), "hits"] == 1  # "in reasoning one of six is"
    assert board.loc[("OCR-like", "extrapolation"), "hits"] == 6  # "all its cells are hits"
    assert board.loc[("OCR-like", "extrapolation"), list(predictions.WAYS)].astype(float).idxmin() == "copied"
    between = board.loc[("OCR-like", "interpolation")]
    assert between["product"] > 4 * between["predicted"]  # "a fraction of that"
    largest = summary.looking(rows).set_index("task")
    guessed = summary.asked(exam.exam(P)).set_index("task")["commonest answer"]
    for task in ("count", "compare"):  # "stay near what can be guessed"
        assert abs(largest["most tokens"][task] - guessed[task]) < 0.05
    regions = demands.exponents(rows, exam.exam(P)).set_index(["fit", "rank"])
    small = regions.loc[[("4 to 6.3", "no fact"), ("6.3 to 10", "no fact")]]
    assert (small["beta_low"] > small["alpha_high"]).all()  # "their intervals lie apart"
    assert rows[rows["V"] == 1]["score_glance"].min() > 0.9  # "one token is enough"
    twin = store.recorded("02_twin", P)
    turned = summary.turned(rows, twin).set_index(["questions", "slope", "world"]).sort_index()
    more = turned.loc[("facts", "more with N than with V"), "mean"]
    with_V = turned.loc[("facts", "with V")]
    assert with_V.loc["twin", "high"] < 0 < with_V.loc["world", "high"]  # "in the world they do not"
    told = summary.told_table(flipped).iloc[0]
    assert 0.4 < told["fact"] < 0.5 and abs(told["read"] - told["fact"]) < 0.05  # "nearly half", "as often"
    shown = data.scenes_of(P.variants["02_twin"], "test")
    assert set(shown.marks) == {12}  # "Every scene of the twin holds twelve marks"
    large = data.scenes_of(P, "test")
    assert set(large.marks[large.fit < exam.LARGE]) == {1, 4}  # "one or four"
    longer = summary.longer(rows, store.recorded("02_doubled", P)).query("V > 0")
    assert longer["difference"].between(-0.09, -0.035).all()  # "by .04 to .09", "at every V with an image"
    assert (longer["high"] > 0).mean() > 0.5  # "most of the intervals still hold 0"
    by = longer.set_index("V")["difference"].groupby(longer.set_index("V")["family"]).agg(np.ptp)
    assert by["reasoning"] < 0.02 < by["OCR-like"]  # "alike at every V", "where there are more tokens"
    number = "from {:.3f} to {:.3f}".format(more["world"], more["twin"]).replace("0.", ".")
    return [f"{number} in favour of N"]


def of_05() -> list[str]:
    zoo, (rows, _) = store.recorded(sweep.ZOO, P), swept()
    family = summary.by_family(zoo, ("compressor", "V")).set_index(["family", "compressor", "V"])["error"]
    mine = rows[(rows["N"] == P.size(P.zoo_size).N) & (rows["V"] > 0)]
    assert family["OCR-like", "quecc", 1] < mine["error_ocr"].min()  # "than TokenPacker with any number"
    first = first_world.rows("05_zoo")
    first = first[first["V"] == 1].assign(error=lambda rows: rows.filter(regex="^error_").mean(axis=1))
    means = first.groupby("compressor")["error"].mean()
    assert round(means["quecc"] - means["lookup"], 2) == 0.12  # "the first world's lead of .12"
    names, every = [*compressors.sets()["headline"], sweep.SWEPT], pd.concat([zoo, rows], ignore_index=True)
    alone, zoo = zoo, compare.beside(every, names, P.zoo_size)
    seeds = {V: set(part["seed"]) for V, part in zoo.groupby("V")}
    assert seeds == dict.fromkeys((1, 4, 16), set(range(5)))  # "All this rests on five seeds"
    apart = zoo.pivot_table(index=["V", "seed"], columns="compressor", values="error_reasoning")
    apart = (apart["tokenpacker"] - apart["quecc"]).groupby("V").mean()
    assert round(apart[1], 2) == 0.06 and abs(apart[16]) < 0.01  # ".06 at one token, next to nothing at 16"
    task = summary.by_task(zoo, ("compressor", "V")).query("V == 1")
    task = task.pivot_table(index="task", columns="compressor", values="score")
    nothing = task.loc[["land", "count", "compare", "glance", "chain"]]
    assert (nothing.max(axis=1) - nothing.min(axis=1)).max() < 0.035  # "within .03 of each other"
    assert task.loc["read", ["tokenpacker", "quecc"]].round(2).tolist() == [0.32, 0.81]
    assert task.loc["right", ["quecc_light", "quecc"]].round(2).tolist() == [0.68, 0.49]
    ocr = zoo[zoo["compressor"] == "quecc"].pivot_table(index="seed", columns="V", values="error_ocr")
    assert (ocr[16] > ocr[1]).all()  # "worse than with one, in each seed"
    assert ocr[[1, 16]].mean().round(2).tolist() == [0.25, 0.31]  # ".31 against .25"
    tasks = exam.exam(P).tasks
    ahead = compare.pairwise(zoo, tasks, (("quecc", "tokenpacker"),)).set_index("V")
    assert ahead["difference"].round(2).loc[[1, 16]].tolist() == [0.24, 0.06]  # "by .24", "by .06 at 16"
    pairs = (("quecc", "tokenpacker"), ("lookup", "tokenpacker"), ("lookup", "quecc"))
    near = compare.pairwise(zoo, tasks, pairs).set_index(["against", "V"]).loc["quecc"]
    assert near["difference"].round(2).loc[[1, 16]].tolist() == [
        -0.06,
        0.02,
    ]  # "behind by .06", "ahead by .02"
    assert near["p_holm"].round(2).loc[[1, 16]].tolist() == [0.07, 0.08]
    few = every[(every["size"] == P.zoo_size) & (every["V"] > 0)]
    pairs = (("quecc_one_level", "quecc"), ("quecc_one_level", "lookup"), ("lookup_asked", "lookup"))
    part = (
        compare.pairwise(few, tasks, pairs).query("V == 1").set_index(["compressor", "against"])["difference"]
    )
    assert part.round(2).to_dict() == {
        ("quecc_one_level", "quecc"): -0.15,
        ("quecc_one_level", "lookup"): -0.09,
        ("lookup_asked", "lookup"): 0.0,
    }
    light = compare.equivalence(zoo, tasks, "quecc_light", "quecc", P.margin).set_index("V")
    assert set(light.index) == {1, 4, 16} and set(light["equivalent"]) == {"open"}  # "open at every V"
    assert light["difference"].between(0.015, 0.03).all()  # "scores .02 to .03 higher at every V"
    assert (light["low"] > 0).all() and (light["high"] > P.margin).all()  # "above 0 and reaches beyond"
    look = alone.groupby(["compressor", "V"])[["looks_asked", "looks_other"]].mean()
    look = look["looks_asked"] / look["looks_other"]
    for name, low, high in (("quecc", 5.5, 6.5), ("quecc_light", 5.5, 6.5), ("lookup", 2.7, 3.5)):
        assert low < look[name, 1] < high  # "six times", "three times"
        assert 1.9 < look[name, 4] < 3.4  # "At four tokens it is two to three"
    beside = compare.with_cost(compare.beside(every, [*names, "seek"], P.zoo_size), P)
    apart = beside.assign(score=1 - beside["error"])
    apart = apart.pivot_table(index=["V", "seed"], columns="compressor", values="score")
    apart = apart["seek"] - apart["quecc_light"]
    assert len(apart) == 6 and (apart > 0).all()  # "In each of the six pairs of runs"
    assert apart.groupby("V").mean().round(2).tolist() == [0.03, 0.04]  # ".03 at one token", ".04 at four"
    pairs = (("seek", "quecc_light"), ("seek", "quecc"), ("seek", "tokenpacker"))
    better = compare.pairwise(beside, tasks, pairs).set_index(["against", "V"])
    assert (better.loc["tokenpacker", "p_holm"] < 0.05).all()  # "its lead over TokenPacker is beyond doubt"
    assert (better.drop("tokenpacker", level="against")["p_holm"] > 0.05).all()  # "only"
    assert better.loc["quecc_light", "cost"].between(0.4, 0.5).all()  # "half of the operations"
    betas = frames.betas(every).set_index(["family", "compressor"])
    ocr = betas.loc["OCR-like"]
    once = [sweep.SWEPT, "lookup_nested", "quecc_nested", "m3"]
    assert ocr.loc[once, "beta"].round(2).tolist() == [0.15, 0.11, 0.09, 0.07] and set(ocr["seeds"]) == {3}
    assert betas.loc["reasoning", "beta_high"].max() < 0.03  # "no interval reaches .03"
    sizes = every[every["size"].isin(["d16", "d32", "d64"]) & every["V"].between(1, 36)]
    by_V = sizes[sizes["seed"] < 3].pivot_table(index="V", columns="compressor", values="error_ocr")[once]
    assert (by_V[once[1:3]].max(axis=1) < by_V[sweep.SWEPT]).all()  # "less error at each V from 1 to 36"
    pairs = frames.beta_pairs(every).query("low > 0")[["compressor", "against"]].to_numpy().tolist()
    assert pairs == [[sweep.SWEPT, "m3"], ["lookup_nested", "m3"]]  # "two are beyond doubt"
    assert ocr.loc["m3", "beta"] < 0.1 and ocr.loc[["quecc_nested", "lookup_nested"], "beta"].min() > 0.05
    assert sorted(ocr.index[ocr["fault"] != ""]) == ["m3", "quecc_nested"]  # "the law fits too badly"
    regimes = compare.beside(every, ["tokenpacker", "quecc", "lookup", *once[:3]], P.zoo_size)
    own = frames.betas_alone(regimes).set_index(["family", "compressor"])["beta"]["OCR-like"]
    assert own["quecc"] < 0 and round(own["quecc_nested"], 2) == 0.10
    foretold = expected.came(few, tasks)
    part = foretold[foretold["point"] < 3].set_index(["compressor", "against"])
    lost = {"quecc_unasked": -0.24, "quecc_one_level": -0.15, "quecc_one_head": -0.01, "quecc_pooled": 0.02}
    for name, difference in (lost | {"quecc_distilled": 0.0}).items():
        assert round(part.loc[(name, "quecc"), "difference"], 2) == difference
    decided = part[part["verdict"] != "open"].index.get_level_values("compressor")
    assert sorted(decided) == ["quecc_one_head", "quecc_one_level", "quecc_unasked"]
    assert (part["seeds"] == 3).all()
    ranking_of_05(every, foretold, tasks)
    five = foretold[foretold["point"] == 5].set_index(["compressor", "V"])
    costs = -five["difference"]
    assert costs["quecc_nested"].round(2).tolist() == [0.16, 0.1, 0.07]  # ".16 ... .10 at 4 and .07"
    assert set(five.loc["quecc_nested", "verdict"]) == {"disagrees"}
    assert costs["lookup_nested"].between(0.02, 0.05).all()
    known = compare.pairwise(few, tasks, ((sweep.SWEPT, "tokenpacker"),)).set_index("V").loc[[1, 4, 16]]
    assert (-known["difference"]).between(0.015, 0.03).all()  # "TokenPacker loses .02"
    pair = (("lookup_nested", "quecc_nested"),)
    turned = {
        size: compare.pairwise(
            compare.beside(every[every["V"].isin(zoo["V"])], once[:3], size), tasks, pair
        ).set_index("V")["difference"]
        for size in ("d16", "d32", "d64")
    }
    assert turned["d64"].round(2).loc[[1, 16]].tolist() == [0.12, 0.07]  # "by .12 at one token", ".07 at 16"
    assert turned["d32"].round(2).tolist() == [0.05] * 3 and turned["d16"].abs().max() < 0.015  # "by nothing"
    stems = {2: "05_twice", 4: "05_fourfold"}
    tables = {1: zoo} | {times: store.recorded(stem, P) for times, stem in stems.items()}
    longer = confounds.curves(tables, tasks, "lookup", "quecc").set_index("times")
    assert longer["seeds"].tolist() == [3, 3, 3]
    assert longer["difference"].round(2).tolist() == [-0.06, -0.07, -0.04]  # "by .06", "by .07", "by .04"
    assert (longer["high"].loc[[2, 4]] < 0).all()  # "the last two intervals exclude 0"
    alike = {times: rows[(rows["V"] == 1) & (rows["seed"] < 3)] for times, rows in tables.items()}
    alike = {times: rows.assign(error=overall_error) for times, rows in alike.items()}
    alike = {
        t: rows.pivot_table(index="seed", columns="compressor", values="error") for t, rows in alike.items()
    }
    assert all((rows["lookup"] > rows["quecc"]).all() for rows in alike.values())  # "In each seed"
    quecc, lookup = ([alike[times][name].mean() for times in (1, 2, 4)] for name in ("quecc", "lookup"))
    assert round(quecc[0] - quecc[1], 2) == 0.02 and quecc[2] > quecc[1] - 0.005  # "by .02", "by no more"
    assert lookup[1] - lookup[2] > 0.02  # "still gains between twice and four times"
    clock = store.recorded("05_first_token", P).groupby("compressor")["ratio"].agg(["min", "max"])
    assert clock.loc["seek"].round(2).tolist() == [1.03, 1.05]  # "1.03 to 1.05 times as long"
    clock = clock.round(1)
    assert clock.loc["quecc"].tolist() == [1.6, 1.6] and clock.loc["quecc_light"].tolist() == [1.2, 1.3]
    assert clock.loc["lookup"].tolist() == [1.1, 1.2]
    priced = compare.with_cost(zoo, P).groupby(["compressor", "V"])["mflop"].mean()
    part = priced["lookup"] / priced["quecc"]
    assert 0.24 < part.min() and part.max() < 0.35  # "a quarter to a third of QueCC's operations"
    beside = compare.tflop_beside(zoo, "7B")
    assert 1.8 < (beside.loc["quecc"] / beside.loc["tokenpacker"]).max() < 2.1  # "as much as all the rest"
    said = {(r["method"], r["V"]): r["published_ms"] for r in elsewhere.published_latency()}
    quecc, packer = (round(said[name, 16]) for name in ("QueCC", "TokenPacker"))
    quick = store.recorded("05_speed", P)
    assert (
        quick[["one_ratio", "many_ratio", "bf16_ratio"]].min().min() > 1 and quick["difference"].max() < 1e-5
    )
    ahead = 100 * evidence.in_table_1("tokenpacker", 1)[0]
    return [
        f"QueCC at {quecc} ms with 16 tokens and TokenPacker at {packer}",
        f"by {ahead:.1f} points in the mean of seven benchmarks",
    ]


def ranking_of_05(every: pd.DataFrame, foretold: pd.DataFrame, tasks: list[str]) -> None:
    """The numbers of its appendix: who stands where, against pooling, and by which align stage."""
    few = every[(every["size"] == P.zoo_size) & every["V"].isin((1, 4, 16))]
    whole = compare.most(few, P.zoo_size)
    error = whole.assign(error=overall_error).groupby(["V", "compressor"])["error"].mean()
    one, four = error[1], error[4]
    vid = next(name for name, entry in compressors.REGISTRY.items() if entry.label == "LLaMA-VID")
    shown = ["seek", vid, "fastv", "quecc_unasked", "stride", "llavamini_fused", "downsample_image"]
    assert one[shown].round(2).tolist() == [0.41, 0.65, 0.69, 0.70, 0.85, 0.90, 0.95]
    reads, others = (one[one.index.isin(names)] for names in (expected.READS, expected.READS_NOT))
    reads = reads.drop("llavamini_fused")  # "One reader falls out"
    assert reads.max() < one[vid] < others.min()
    assert others.idxmin() == "fastv" and len(one) == 41  # "Of 41 compressors"
    assert [round(four[name], 2) for name in (vid, "tokenpacker")] == [0.65, 0.61]
    edges = summary.edges(every, store.recorded("02_parts", P), P.zoo_size)
    assert round(edges["no image"], 2) == 0.96
    task = summary.by_task(whole, ("compressor", "V")).query("V == 1")
    task = task.pivot_table(index="task", columns="compressor", values="score")[
        ["llavamini_fused", "tokenpacker"]
    ]
    assert task.loc["read"].round(2).tolist() == [0.40, 0.32] and task.loc["know"].round(2).tolist() == [
        0.0,
        0.25,
    ]
    shared = compare.pairwise(few, tasks, (("quecc_shared", "quecc"),)).set_index("V")["difference"]
    assert round(shared[1], 2) == -0.15
    pool = compare.differences(whole, tasks, "pool").query("family == 'all'").set_index(["V", "compressor"])
    lead = pool["difference"]
    assert lead[1][["stride", "random"]].round(2).tolist() == [-0.09, -0.08]
    near = pool.loc[1].loc[["prumerge", "tome", "braco", "mqt", "perceiver", "llavamini"]]
    assert ((near["low"] < 0) & (near["high"] > 0)).all()  # "are not told apart from pooling"
    assert round(one["pool"] - four["pool"], 2) == 0.09 and four["prumerge"] > one["prumerge"]
    assert 0 < one["random"] - four["random"] < 0.04  # "little"
    assert lead[4][["prumerge", "random", "visionzip"]].between(-0.145, -0.12).all()
    assert lead[4][["mqt", "braco"]].round(2).tolist() == [-0.10, -0.08]
    assert (pool.loc[4].loc[["mqt", "braco"], "high"] < 0).all()  # "are .10 and .08 behind"
    assert [round(lead[V]["tokenpacker"], 2) for V in (1, 4)] == [0.05, 0.07]
    names = ("braco", "llavamini", "tome", "mqt", "perceiver")
    to = ("tokenpacker", "tokenpacker_by_questions")
    gaps = compare.pairwise(few[few["V"] == 1], tasks, tuple((name, other) for name in names for other in to))
    gaps = gaps.pivot_table(index="compressor", columns="against", values="difference").loc[list(names)]
    assert gaps["tokenpacker"].between(-0.104, -0.055).all()  # "by .06 to .10"
    assert gaps["tokenpacker_by_questions"].round(2).tolist() == [-0.01, -0.01, -0.01, -0.05, -0.05]
    six = foretold[foretold["point"] == 6]
    assert six["difference"].round(2).tolist() == [-0.05, -0.04] and set(six["verdict"]) == {"open"}
    three = foretold[foretold["point"] == 3].set_index(["V", "compressor"])
    assert three.loc[(1, "llavamini_fused"), "verdict"] == "disagrees"  # "refuted at one token"
    assert three.loc[4, "verdict"].tolist() == ["open"]
    assert (
        round(three.loc[(1, "fastv"), "difference"], 2) == 0.02
        and three.loc[(1, "fastv"), "verdict"] == "agrees"
    )
    four = foretold[foretold["point"] == 4].set_index(["V", "compressor"])["verdict"]
    assert (four == "agrees").sum() == 6 and four[1, "prumerge"] == "open" and len(four) == 7


@pytest.mark.parametrize(
    "name, made", [("01", of_01), ("02", of_02), ("03", of_03), ("04", of_04), ("05", of_05)]
)
def test_numbers_in_prose_are_computed(name, made):
    text = re.sub(r"\s+", " ", PROSE[name])
    for sentence in made():
        assert sentence in text, sentence


PAGES = [*FOLDER.glob("*.ipynb"), *(FOLDER.parent / "docs").glob("*.md"), FOLDER.parent / "README.md"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    """Files that prose points to are there; docs/planner_page.html is made by `make site`."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = PROSE[path.name[:2]]
    targets = re.findall(r"\]\(([^)#:\s]+?)(?:#[^)]*)?\)", text)
    inside = {target: path.parent / target for target in targets}
    if path.parent.name == "docs":  # pages of the book lie one folder higher there
        inside |= {target: FOLDER.parent / target for target in targets if target.startswith("notebooks/")}
    assert not [target for target, file in inside.items() if not file.exists()]
