"""Rows -> claims and observations: the numbers that the project holds against what `vtc/said.csv` quotes.

Each function takes rows, so the same code speaks about recorded rows and about those just measured. Rows that
were made from uncommitted code are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import cache

import numpy as np
import pandas as pd

from vtc import InputError, compressors, files, scaling
from vtc.evaluation import compare, summary
from vtc.evaluation.scores import FAMILIES, overall_error
from vtc.experiments import predictions
from vtc.experiments.claims import NOT_TESTABLE, Claim, Observation, corrected
from vtc.scaling import frames

TABLES = ("02_errors", "02_twin", "05_zoo", "03_clock")  # the tables that claims follow from
PUBLISHED = {name: line.published for name, line in compressors.REGISTRY.items() if line.published}
RIVALS = tuple(name for name in PUBLISHED if name != "quecc")  # beside QueCC in the paper's Table 1
HEADLINE = (("quecc", "tokenpacker"), ("lookup", "quecc"), ("lookup", "tokenpacker"))  # fixed before the runs
OURS = (("quecc_light", "quecc"), ("seek", "quecc_light"))  # what this project adds, step by step
REMARKS = {
    "lookup": "each word of the question looks for its own patches",
    "quecc_light": "QueCC without the LLM's pass over the question",
    "seek": "the question searches the whole image, with one map for keys and values",
}
Said = list[Claim | Observation]


def every(
    rows: Callable[[str], pd.DataFrame], tasks: list[str], foretold: pd.DataFrame | None = None
) -> Said:
    """All claims and observations that the tables allow; `rows(stem)` is one, empty if it is missing.

    tasks: the task of each test question, in the order of the rows' `scores`. foretold: the predictions that
    were committed before the sweep, see `vtc.experiments.predictions`.
    """
    sweep, twin, zoo, clock = map(rows, TABLES)
    said = recomputed()
    said += replicated(sweep, foretold) if len(sweep) else []
    said += _turned(sweep, twin)
    if len(zoo):
        both = pd.concat([zoo, sweep], ignore_index=True)
        said += pairs(both, tasks) + betas(both)
    said += clocked(clock) if len(clock) else []
    return said + [stated(id) for id, line in _lines().items() if line["evidence"] == NOT_TESTABLE]


def committed(rows: pd.DataFrame) -> pd.DataFrame:
    """Without the rows that were made from uncommitted code."""
    return rows[~rows["commit"].astype(str).str.endswith("-dirty")] if "commit" in rows else rows


@cache
def _lines() -> dict[str, dict[str, str]]:
    """What is said, by id."""
    return {line["id"]: line for line in files.packaged("said.csv")}


def stated(
    line_id: str, value: float = math.nan, low: float = math.nan, high: float = math.nan, words=None, **more
) -> Claim | Observation:
    """A line of said.csv with the number found here; one that has no place in the paper is an observation.

    words: what takes the place of {names} in its texts. more: other fields.
    """
    line = {name: text.format(**words or {}) for name, text in _lines()[line_id].items()}
    main = line.pop("main") == "yes"
    number = {"value": float(value), "low": float(low), "high": float(high)}
    if not line["where"]:
        said = {"id": line_id, "evidence": line["evidence"], "says": line["says"], "means": line["if_so"]}
        return Observation(**said | number | {"main": main} | more)
    sign, denial = int(line.pop("sign") or 0), line.pop("denial")
    test = {"sign": sign, "denial": float(denial) if denial else None, "main": main}
    return Claim(**line | number | test | more)


# ------------------------------------------------------------------------------- the paper's own points


def recomputed() -> Said:
    """The law fitted to the paper's 28 points a family, beside what the paper prints of it.

    Intervals are clustered, since seven points share an LLM (`Fit.clustered_interval`).
    """
    printed = {(r["task"], r["quantity"]): float(r["value"]) for r in scaling.published_rows("law")}
    claims, fits = [], {task: scaling.fit(scaling.published(task)) for task in FAMILIES}
    for task, f in fits.items():
        paper = {name: printed[task, name] for name in ("alpha", "beta")}
        paper["ratio"] = paper["alpha"] / paper["beta"]
        claims += [_of_a_law(f"law-{task}-{name}", f, name, paper=number) for name, number in paper.items()]
        claims += [_of_a_law(f"law-{task}-order", f, "ratio"), _separable(f"law-{task}-separable", f)]
    f = fits["reasoning"]
    ends = scaling.v_star_interval(f, 50, clustered=True)
    best = {"paper": printed["reasoning", "V_opt at Q=50"], "fault": f.fault}
    claims.append(stated("law-v-star", scaling.v_star(f.law, 50), *ends, **best))
    p = f.points
    whole = scaling.fit(scaling.points(p.N, p.V, p.Y, np.full(len(p), 50.0)), tokens="Q+V")
    miss = scaling.leave_one_size_out(p)[-1]["worst miss"]
    return [*corrected(claims), stated("law-tokens", whole.sse / f.sse), stated("law-largest", miss)]


def _of_a_law(id: str, f: scaling.Fit, name: str, **more) -> Claim:
    """A parameter of a fitted law, or its "ratio": an interval without a number where beta may be 0."""
    value, ends = getattr(f.law, name), f.clustered_interval(name)
    if name == "ratio" and np.isinf(ends).any():
        value = math.nan
    return stated(id, value, *ends, fault=f.fault, **more)


def _separable(id: str, f: scaling.Fit) -> Claim:
    """The law is a product, so beta is the same for every N: the trend of each LLM's beta with ln N."""
    trend = scaling.slope_by_size(f.points)
    return stated(id, trend["slope"], trend["lo"], trend["hi"], paper=0.0)


# --------------------------------------------------------------------------------- models trained here


def replicated(rows: pd.DataFrame, foretold: pd.DataFrame | None = None) -> Said:
    """The sweep over N and V: slopes over seeds, then the law on cell means. V = 0 is no point of the law."""
    rows, claims = committed(rows), []
    if rows.empty:
        return []
    tasks = {family: task for task, family in FAMILIES.items()}
    for row in summary.slope_table(rows).itertuples():
        id = f"own-{tasks[row.family]}-{row.slope.replace(' ', '-')}"
        claims.append(stated(id, row.mean, row.low, row.high, p=row.p))
    for task, f in frames.own_sweep(rows).items():
        claims += [_of_a_law(f"own-{task}-order", f, "ratio"), _separable(f"own-{task}-separable", f)]
        with suppress(InputError):  # too few sizes to leave one out
            missed = [
                scaling.leave_one_size_out(scaling.sweep(part, task))[-1]["mean miss"]
                for _, part in rows[rows["V"] > 0].groupby("seed")
            ]
            claims.append(stated(f"own-{task}-largest", *compare.mean_interval(missed)[:3], fault=f.fault))
    error = rows.assign(error=overall_error(rows)).groupby(["V", "seed"])["error"].mean().unstack()
    if 0 not in error.index or len(error) < 2:
        return [*corrected(claims), *_predicted(foretold, rows)]
    gain = compare.mean_interval((error.loc[0] - error.loc[max(error.index)]).dropna())[:3]
    return [*corrected(claims), stated("own-without-image", *gain), *_predicted(foretold, rows)]


def _predicted(foretold: pd.DataFrame | None, rows: pd.DataFrame) -> Said:
    """How far the committed predictions of cells were off, beside two other guesses."""
    if foretold is None:
        return []
    table = predictions.cells(foretold, rows)
    table = table[table["label"] != "measured marginal"].dropna(subset="copied")
    miss = {way: float((table[way] - table["measured"]).abs().mean()) for way in predictions.WAYS}
    words = {"cells": len(table), "hits": int(table["hit"].sum()), "tolerance": table["tolerance"].max()}
    return [stated("own-predicted", miss["predicted"], words=words | miss)]


def _turned(rows: pd.DataFrame, twin: pd.DataFrame) -> Said:
    """Whether the flipped twin turned the order of N and V for facts, as we had foretold."""
    rows, twin = committed(rows), committed(twin)
    if rows.empty or twin.empty:
        return []
    table = summary.turned(rows, twin)
    table = table[table["slope"] == "more with N than with V"].set_index(["world", "questions"])
    before, row = table.loc[("world", "facts")], table.loc[("twin", "facts")]
    wrong = "Our prediction was wrong: the order did not turn round."
    outcome = wrong if row["low"] > 0 else "As foretold." if row["high"] < 0 else "Open."
    words = {"before": before["mean"], "outcome": outcome}
    return [stated("own-twin", row["mean"], row["low"], row["high"], words=words)]


def pairs(rows: pd.DataFrame, tasks: list[str]) -> Said:
    """Pairs of compressors under one recipe, by question and over seeds.

    A pair in which the paper's Table 1 has QueCC ahead is a claim, any other an observation. tasks: the task
    of each test question, in the order of the rows' `scores`.
    """
    rows = committed(rows)
    size = rows.loc[rows["compressor"] == "quecc", "size"].mode()  # of the LLM that they share
    rows = rows[rows["size"].isin(size) & (rows["V"] > 0)]
    said, least = [], rows["V"].min()
    for family in (HEADLINE, tuple(("quecc", other) for other in RIVALS if other != "tokenpacker"), OURS):
        table = compare.pairwise(rows, tasks, family)
        for row in table.itertuples():
            ours = row.compressor in REMARKS
            ahead = (None, REMARKS[row.compressor]) if ours else in_table_1(row.against, row.V)
            said.append(_pair(row, *ahead, len(table), least))
    return said


def _pair(row, ahead: float | None, remark: str, tests: int, least: int) -> Claim | Observation:
    """One row of `compare.pairwise`; ahead: by how much the paper has the first one ahead, if it does."""
    names = compressors.label(row.compressor), compressors.label(row.against)
    words = {"one": names[0], "other": names[1], "V": row.V, "remark": remark}
    words["seeds"] = f"{row.seeds} seed{'s' * (row.seeds > 1)}"
    of = {"id": f"pair-{row.compressor}-{row.against}-{row.V}", "words": words}
    claimed = ahead is not None and ahead > 0
    shown = (row.compressor, row.against) in OURS or (claimed and row.against == "tokenpacker")
    of["main"] = row.V == least and shown
    if not claimed:
        return stated("pair-seen", row.difference, row.low, row.high, **of)
    if row.seeds == 1:  # says nothing of another training run
        return stated("pair-claim", row.difference, -np.inf, np.inf, tests=tests, **of)
    return stated("pair-claim", row.difference, row.low, row.high, tests=tests, p_holm=row.p_holm, **of)


def betas(rows: pd.DataFrame) -> Said:
    """Whether beta depends on the compressor: the two whose betas are furthest apart, several LLMs and V."""
    table = frames.beta_pairs(committed(rows))
    if table.empty:
        return []
    row = table.iloc[0]
    words = {"one": row["compressor"], "other": row["against"], "tests": len(table), "seeds": row["seeds"]}
    ends = {"low": row["low"], "high": row["high"], "p_holm": row["p"], "tests": len(table)}
    return [stated("own-ocr-beta-compressor", row["difference"], words=words, **ends)]


def in_table_1(other: str, V: int) -> tuple[float | None, str]:
    """QueCC's mean score minus another's in the paper's Table 1, over what both report in percent."""
    table = [r for r in scaling.published_rows("compressors") if r["unit"] == "percent" and r["value"]]
    mine = {(int(r["V"]), r["task"]): float(r["value"]) for r in table if r["method"] == "QueCC"}
    groups = sorted({v for v, _ in mine})
    apart, at = [], set()
    for r in table:  # that table groups by V, nearly: MQT's two tokens stand beside one, PruMerge's 32 by 36
        group = min(groups, key=lambda v: abs(np.log(v / int(r["V"]))))
        if r["method"] == PUBLISHED[other] and group == V:
            apart.append((mine[V, r["task"]] - float(r["value"])) / 100)
            at.add(int(r["V"]))
    if not apart:
        return None, "not in the paper's Table 1"
    tokens = "" if at == {V} else f", {PUBLISHED[other]} at {max(at)} tokens"
    return float(np.mean(apart)), f"{np.mean(apart):+.3f}, {len(apart)} benchmarks{tokens}"


# ------------------------------------------------------------------------------------------- the clock


def clocked(clock: pd.DataFrame, llm: str = "") -> Said:
    """Time to the first token at the most and the fewest tokens, one image and one question, QueCC.

    llm: by default the one clocked at the most V. Ratios have the interval of both medians at their worst.
    """
    one = {"status": "ok", "batch": 1, "repeat": 0, "compressor": "quecc", "question": "paid"}
    timed = committed(clock).query(" and ".join(f"{name} == {value!r}" for name, value in one.items()))
    timed = timed[timed["tokens"] > 0]
    if timed.empty:
        return []
    most_V = timed.groupby("llm")["tokens"].agg(["max", "nunique"]).sort_values(["max", "nunique"])
    timed = timed[timed["llm"] == (llm or most_V.index[-1])]
    timed = timed[timed["dtype"] == timed["dtype"].iloc[0]]
    at, (least, most) = timed.set_index(["tokens", "stage"]), timed["tokens"].agg(["min", "max"])
    words = {"llm": timed["llm"].iloc[0], "least": least, "most": most}
    words["counted"] = (timed["Q"].iloc[0] + most) / (timed["Q"].iloc[0] + least)
    asked = {
        "clock-first-token": ((most, "ttft"), (least, "ttft")),
        "clock-prefill": ((most, "prefill"), (least, "prefill")),
        "clock-question": ((least, "question"), (least, "ttft")),
    }
    said = []
    for id, (above, below) in asked.items():
        a, b = at.loc[above], at.loc[below]
        ends = a["low_ms"] / b["high_ms"], a["high_ms"] / b["low_ms"]
        said.append(stated(id, a["median_ms"] / b["median_ms"], *ends, words=words))
    return said
