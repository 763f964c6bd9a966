"""Numbers in the prose of notebooks 01 to 04 are computed from recorded rows and laws."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from vtc import cost, data, profiles, scaling
from vtc.evaluation import demands, exam, summary
from vtc.experiments import predictions, store, sweep
from vtc.figures import drawings
from vtc.scaling import elsewhere, frames, seconds

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
P = profiles.get("laptop")  # whose recorded rows prose speaks of


def prose(name: str) -> str:
    """What a notebook says, without its code, in one line."""
    cells = nbformat.read(next(FOLDER.glob(f"{name}*.ipynb")), as_version=4).cells
    return re.sub(r"\s+", " ", " ".join(cell.source for cell in cells if cell.cell_type == "markdown"))


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


@pytest.mark.parametrize("name, made", [("01", of_01), ("02", of_02), ("03", of_03), ("04", of_04)])
def test_numbers_in_prose_are_computed(name, made):
    text = prose(name)
    for sentence in made():
        assert sentence in text, sentence
