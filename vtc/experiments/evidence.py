"""Rows -> claims and observations: every number that the project holds against the paper, in one place.

Each function takes rows, so the same code speaks about recorded rows and about those just measured. Rows that
were made from uncommitted code are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pandas as pd

from vtc import InputError, compressors, scaling
from vtc.evaluation import compare, summary
from vtc.evaluation.scores import FAMILIES, overall_error
from vtc.experiments.claims import (
    CLOCKED,
    NOT_TESTABLE,
    RECOMPUTED,
    REPLICATED,
    Claim,
    Observation,
    corrected,
)
from vtc.scaling import frames

TABLES = ("02_errors", "05_zoo", "03_clock", "02_asked")  # the tables that claims follow from
LAW, TABLE = "section 3, Figures 1 and 3", "Table 1 of v1"
FASTER = {
    "reasoning": '"error varies 5x faster with N than with V"',
    "ocr": "for OCR-like tasks V counts more than N",
}
SIGN = {"reasoning": 1, "ocr": -1}  # of alpha / beta - 1, as the paper has it
MORE_LESS = {"reasoning": ("N", "V"), "ocr": ("V", "N")}  # what counts more, and what less
PUBLISHED = {name: line.published for name, line in compressors.REGISTRY.items() if line.published}
RIVALS = tuple(name for name in PUBLISHED if name != "quecc")  # beside QueCC in the paper's Table 1
Said = list[Claim | Observation]


def every(rows: Callable[[str], pd.DataFrame]) -> Said:
    """All claims and observations that the tables allow; `rows(stem)` is one, empty if it is missing."""
    sweep, zoo, clock, asked = map(rows, TABLES)
    said = recomputed()
    said += replicated(sweep) if len(sweep) else []
    if len(zoo) and len(asked):
        said += pairs(pd.concat([zoo, sweep], ignore_index=True), asked["tasks"].iloc[0].split())
    said += clocked(clock) if len(clock) else []
    return said + not_testable()


def committed(rows: pd.DataFrame) -> pd.DataFrame:
    """Without the rows that were made from uncommitted code."""
    return rows[~rows["commit"].astype(str).str.endswith("-dirty")] if "commit" in rows else rows


# ------------------------------------------------------------------------------- the paper's own points


def recomputed() -> Said:
    """The law fitted to the paper's 28 points a family, beside what the paper prints of it.

    Intervals are clustered, since seven points share an LLM (`Fit.clustered_interval`).
    """
    printed = {(r["task"], r["quantity"]): float(r["value"]) for r in scaling.published_rows("law")}
    fits = {task: scaling.fit(scaling.published(task)) for task in FAMILIES}
    claims = []
    for task, f in fits.items():
        paper = {name: printed[task, name] for name in ("alpha", "beta")}
        paper["ratio"] = paper["alpha"] / paper["beta"]
        for name, number in paper.items():
            shown = "alpha / beta" if name == "ratio" else name
            so, no = (f"The published points {do} this {shown}." for do in ("allow", "do not allow"))
            claim = _of_a_law(
                f"law-{task}-{name}", f"{shown} = {number:.3g}, {FAMILIES[task]}", RECOMPUTED, f, name,
                denial=float(name == "ratio"), paper=number, if_so=so, if_not=no,
            )  # fmt: skip
            claims.append(claim)
        claims += [_order(claim, task), _separable(f.points, task, RECOMPUTED)]
    f = fits["reasoning"]
    low, high = scaling.v_star_interval(f, 50, clustered=True)
    v_star = Claim(
        "law-v-star", "with 50 text tokens the best V is no longer 1 (the plots mark 14)", LAW, RECOMPUTED,
        float(scaling.v_star(f.law, 50)), low, high, denial=1.0, paper=printed["reasoning", "V_opt at Q=50"],
        fault=f.fault, question=claims[0].question, main=True,
        if_so="With 50 text tokens some ten to twenty visual ones are best.",
        if_not="The published points put the best V elsewhere.",
    )  # fmt: skip
    return [*corrected([*claims, v_star]), *_about_the_form(f)]


def _of_a_law(id: str, says: str, evidence: str, f: scaling.Fit, name: str, **more) -> Claim:
    """A parameter of a fitted law, or its "ratio", with the interval of points that share an LLM."""
    whose = "the paper's points" if evidence == RECOMPUTED else "our own errors"
    low, high = f.clustered_interval(name)
    value, question = float(getattr(f.law, name)), f"What do {whose} say of the law?"
    return Claim(id, says, LAW, evidence, value, low, high, fault=f.fault, question=question, **more)


def _order(ratio: Claim, task: str) -> Claim:
    """The same alpha / beta as a claim of order: above or below 1."""
    family, (more, less) = FAMILIES[task], MORE_LESS[task]
    so = f"For {family} tasks {more} counts more: at a fixed budget give up {less} first."
    no = f"For {family} tasks {less} counts more than {more} here."
    id = ratio.id.replace("ratio", "order")
    of = {"id": id, "says": FASTER[task], "sign": SIGN[task], "paper": None, "main": True}
    return replace(ratio, **of, if_so=so, if_not=no)


def _separable(points: scaling.Points, task: str, evidence: str) -> Claim:
    """The law is a product, so beta is the same for every N: the trend of each LLM's beta with ln N."""
    trend = scaling.slope_by_size(points)
    says = f"N and V act separately, {FAMILIES[task]}: beta does not change with N"
    no = "Larger LLMs gain more from tokens, or less: the law is no simple product."
    id = f"{'law' if evidence == RECOMPUTED else 'own'}-{task}-separable"
    numbers = trend["slope"], trend["lo"], trend["hi"]
    return Claim(id, says, "section 3, the law's form", evidence, *numbers, paper=0.0, if_not=no)


def _about_the_form(f: scaling.Fit) -> list[Observation]:
    """Nobody claims these in print: which T the law means, how well the largest published LLM is foretold."""
    p = f.points
    whole = scaling.fit(scaling.points(p.N, p.V, p.Y, np.full(len(p), 50.0)), tokens="Q+V").sse / f.sse
    last = scaling.leave_one_size_out(p)[-1]
    tokens = "squared error of the law with T = Q + V over that with T = V, Q = 50"
    miss = f"worst miss when the {last['N left out']:g}B errors are predicted from the smaller LLMs"
    alone = "The law is about visual tokens alone; text enters through the cost."
    easy = "A neighbouring size is foretold well, but errors vary little."
    return [
        Observation("law-tokens", tokens, RECOMPUTED, float(whole), means=alone),
        Observation("law-largest", miss, RECOMPUTED, float(last["worst miss"]), means=easy, main=True),
    ]


# --------------------------------------------------------------------------------- models trained here


def replicated(rows: pd.DataFrame) -> Said:
    """The sweep over N and V: slopes over seeds, then the law on cell means. V = 0 is no point of the law."""
    rows = committed(rows)
    claims = [_slope(row) for row in summary.slope_table(rows).itertuples()]
    for task, f in frames.own_sweep(rows).items():
        with suppress(InputError):  # too few sizes
            claims += _own_law(f, rows[rows["V"] > 0], task)
    return [*corrected(claims), *_without_image(rows)]


def _slope(row) -> Claim:
    """One row of `summary.slope_table`: does the error fall with N, with V, and with which of them more?"""
    task = next(task for task, family in FAMILIES.items() if family == row.family)
    more, less = MORE_LESS[task]
    if row.slope.startswith("with "):
        axis, sign, says = row.slope[-1], -1, f"{row.family} error falls with {row.slope[-1]}"
        so, no = (f"More {axis} {verb} the {row.family} error." for verb in ("lowers", "raises"))
    else:
        axis, sign, says = more, SIGN[task], f"{FASTER[task]}, as slopes of the error in ln N and ln V"
        so, no = (f"Of N and V, {one} lowers the {row.family} error more." for one in (more, less))
    return Claim(
        f"own-{task}-{row.slope.replace(' ', '-')}", says, LAW, REPLICATED, row.mean, row.low, row.high,
        denial=0.0, sign=sign, p=row.p, question="How does the error of our models fall?",
        if_so=so, if_not=no, main=axis == more,
    )  # fmt: skip


def _own_law(f: scaling.Fit, rows: pd.DataFrame, task: str) -> list[Claim]:
    """The law on the mean of every cell, and the largest LLM left out of it, seed by seed."""
    ratio = _of_a_law(f"own-{task}-ratio", "", REPLICATED, f, "ratio", denial=1.0, sign=SIGN[task])
    largest = [
        scaling.leave_one_size_out(scaling.sweep(part, task))[-1]["mean miss"]
        for _, part in rows.groupby("seed")
    ]
    value, low, high, _ = compare.mean_interval(largest)
    says = f"the largest LLM's {FAMILIES[task]} errors are predicted within 2 %"
    so, no = (f"A larger LLM's errors {follow} from smaller ones." for follow in ("follow", "do not follow"))
    missed = Claim(
        f"own-{task}-largest", says, "Figure 2", REPLICATED, value, low, high, denial=0.02, sign=-1,
        fault=f.fault, question=ratio.question, if_so=so, if_not=no,
    )  # fmt: skip
    return [_order(ratio, task), _separable(f.points, task, REPLICATED), missed]


def _without_image(rows: pd.DataFrame) -> list[Observation]:
    """The control V = 0: how much larger the error is without an image than with the most tokens."""
    error = rows.assign(error=overall_error(rows)).groupby(["V", "seed"])["error"].mean().unstack()
    if 0 not in error.index or len(error) < 2:
        return []
    value, low, high, _ = compare.mean_interval((error.loc[0] - error.loc[max(error.index)]).dropna())
    means = "The questions need the image: most of the score is seen, not guessed."
    says = "overall error without an image minus that with the most tokens"
    return [Observation("own-without-image", says, REPLICATED, value, low, high, means, main=True)]


def pairs(rows: pd.DataFrame, tasks: list[str]) -> Said:
    """Pairs of compressors under one recipe, by question and over seeds.

    A pair in which the paper's Table 1 has QueCC ahead is a claim, any other an observation. tasks: the task
    of each test question, in the order of the rows' `scores`.
    """
    rows = committed(rows)
    size = rows.loc[rows["compressor"] == "quecc", "size"].mode()  # of the LLM that they share
    rows = rows[rows["size"].isin(size) & (rows["V"] > 0)]
    table = compare.pairwise(rows, tasks, ("quecc",), RIVALS)
    said = [_pair(row, *in_table_1(row.against, row.V), tests=len(table)) for row in table.itertuples()]
    why = "each word of the question looks for its own patches"
    others = compare.pairwise(rows, tasks, ("lookup",), ("quecc", "tokenpacker"))
    said += [_pair(row, None, why, tests=len(others)) for row in others.itertuples()]
    least = rows["V"].min()
    shown = [one.id.endswith(f"-{least}") and (isinstance(one, Claim) or "lookup" in one.id) for one in said]
    return [replace(one, main=main) for one, main in zip(said, shown)]


def _pair(row, ahead: float | None, remark: str, tests: int) -> Claim | Observation:
    """One row of `compare.pairwise`; ahead: by how much the paper has the first one ahead, if it does."""
    one, other = compressors.label(row.compressor), compressors.label(row.against)
    id, seeds = f"pair-{row.compressor}-{row.against}-{row.V}", f"{row.seeds} seed{'s' * (row.seeds > 1)}"
    if ahead is None or ahead <= 0:
        says = f"overall score, {one} minus {other}, V = {row.V}"
        return Observation(id, says, REPLICATED, row.difference, row.low, row.high, f"{seeds}; {remark}.")
    alone = row.seeds == 1  # a single seed says nothing of another training run
    low, high, p_holm = (-np.inf, np.inf, None) if alone else (row.low, row.high, row.p_holm)
    so, no = (f"Trained alike, {one} answers {better} here ({seeds})." for better in ("better", "worse"))
    return Claim(
        id, f"{one} scores higher than {other} at V = {row.V}", f"{TABLE}: {remark}", REPLICATED,
        row.difference, low, high, denial=0.0, sign=1, question="Does QueCC beat its rivals?",
        tests=tests, p_holm=p_holm, if_so=so, if_not=no,
    )  # fmt: skip


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
    llm, Q, most, least = (*timed.iloc[0][["llm", "Q"]], timed["tokens"].max(), timed["tokens"].min())
    at = timed.set_index(["tokens", "stage"])

    def ratio(*two: tuple[int, str]) -> tuple[float, float, float]:
        a, b = (at.loc[where] for where in two)
        ends = (("median_ms", "median_ms"), ("low_ms", "high_ms"), ("high_ms", "low_ms"))
        return tuple(float(a[above] / b[below]) for above, below in ends)

    ends = f"V = {most} over V = {least}, {llm}, batch 1"
    so = "From features on, fewer tokens bring the first token sooner on this machine."
    no = "Fewer tokens do not bring the first token sooner on this machine."
    sooner = Claim(
        "clock-first-token", f'"high latency" comes from many visual tokens: first token, {ends}', "abstract",
        CLOCKED, *ratio((most, "ttft"), (least, "ttft")), denial=1.0, sign=1, if_so=so, if_not=no, main=True,
    )  # fmt: skip
    counted = f"Counted operations, 2 N (Q + V), fall {(Q + most) / (Q + least):.1f} times; seconds may not."
    free = "The pass is not free, and the paper's cost does not count it."
    share = f"QueCC's pass over the question, share of the time to the first token at V = {least}, {llm}"
    prefill, question = ((most, "prefill"), (least, "prefill")), ((least, "question"), (least, "ttft"))
    return [
        sooner,
        Observation("clock-prefill", f"prefill time, {ends}", CLOCKED, *ratio(*prefill), counted, main=True),
        Observation("clock-question", share, CLOCKED, *ratio(*question), free, main=True),
    ]


def not_testable() -> list[Claim]:
    """What the paper says that nothing here can test, with what a test would take."""
    retrain = "the five Qwen1.5 LLMs trained at seven V (`vtc sweep --profile paper`; a cluster)"
    scores = f"the 14B scores, which are not published, or {retrain}"
    stages = "LLaVA's two training stages at 7B; the paper's checkpoints are not released"
    largest, beside = "the 14B errors are predicted within 2 %", "QueCC's scores beside LLaVA-1.5-7B"
    return [
        Claim("open-14b", largest, "Figure 2", NOT_TESTABLE, needs=scores, main=True),
        Claim("open-retrain", "the law's 28 scores themselves", LAW, NOT_TESTABLE, needs=retrain),
        Claim("open-quecc", beside, TABLE, NOT_TESTABLE, needs=stages, main=True),
    ]
