"""Tidy rows for the figures and tables of notebook 04: every number computed here, drawn elsewhere.

Functions return pandas frames; `attrs` says what they are of (the fit as in `summary`, or device, Q and G).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import combinations

import numpy as np
import pandas as pd

from vtc import InputError, cost
from vtc.evaluation.compare import mean_interval
from vtc.evaluation.scores import FAMILIES
from vtc.evaluation.summary import exponents
from vtc.scaling.checks import slopes, summary
from vtc.scaling.fitting import Fit, fit
from vtc.scaling.frontier import frontier, v_star, v_star_interval
from vtc.scaling.official import best_of_fifth
from vtc.scaling.scores import published_rows, sweep

EVERY_V = np.unique(np.geomspace(1, 576, 120).round())


def _frame(rows, **about) -> pd.DataFrame:
    out = pd.DataFrame(rows)
    out.attrs = about
    return out


def plane(f: Fit, Q: float = 50.0) -> pd.DataFrame:
    """Error over N, V and the paper's cost 2N(Q + V): rows drawn | N | LLM | V | TFLOP | error.

    drawn: "points", the "law" along V for every N, and the "frontier": the best of N from the smallest to the
    largest of the points (no extrapolation) and of whole V from 1 to the most of the points.
    """
    p, one = f.points, max(1.0, f.points.V[f.points.V > 0].min())
    V = np.geomspace(one, p.V.max(), 80)
    if f.law.name == "offset":
        V = np.unique(np.concatenate([np.linspace(0, one, 6), V]))
    N, V = (grid.ravel() for grid in np.meshgrid(np.unique(p.N), V, indexing="ij"))
    sizes, tokens = np.geomspace(p.N.min(), p.N.max(), 160), np.arange(1, max(p.V.max(), 1) + 1)
    budgets = np.geomspace(2 * sizes[0] * (Q + 1), 2 * sizes[-1] * (Q + tokens[-1]), 120)
    best = frontier(f.law, lambda n, v: 2 * n * (Q + v), budgets, tokens, sizes, Q)
    parts = {
        "points": (p.N, p.V, p.Y),
        "law": (N, V, f.law.error(N, V, Q)),
        "frontier": (best.N, best.V, best.Y),
    }
    drawn = [pd.DataFrame(dict(zip(("N", "V", "error"), part))) for part in parts.values()]
    rows = pd.concat(drawn, keys=parts, names=["drawn"]).reset_index("drawn")
    rows["TFLOP"], rows["LLM"] = 2e-3 * rows["N"] * (Q + rows["V"]), rows["N"].map(size)
    rows.attrs = summary(f, Q, by=None)
    return rows.reset_index(drop=True)


def size(N: float) -> str:
    """Billions of parameters as people write them: 7B, 400M, 25k."""
    unit, scale = ("B", 1.0) if N >= 0.1 else ("M", 1e-3) if N >= 1e-3 else ("k", 1e-6)
    return f"{N / scale:.3g}{unit}"


def wandering(f: Fit, seeds: int = 10) -> pd.DataFrame:
    """What a random fifth of the official grid answers, by seed, beside the whole grid, the paper, and us."""
    task = f.points.family
    rows = [best_of_fifth(task, seed) | {"what": "random fifth of the grid"} for seed in range(seeds)]
    rows.append(best_of_fifth(task, None) | {"what": "whole grid"})
    printed = [r for r in published_rows("law") if r["task"] == task and r["quantity"] in ("alpha", "beta")]
    rows.append({r["quantity"]: float(r["value"]) for r in printed} | {"what": "paper"})
    ours = {name: getattr(f.law, name) for name in ("A", "alpha", "beta", "D")}
    return _frame([*rows, ours | {"sse": f.sse, "what": "exact optimum"}], seeds=seeds)


def profiled(f: Fit, Q: float = 50.0) -> pd.DataFrame:
    """The fit with D held at each value: long rows D | quantity | value | inside.

    `inside`: the points allow that D at 95 %.
    """
    floors = np.linspace(-0.4, 0.9 * f.points.Y.min(), 60)
    s = f.along("D", floors)
    law = f.problem.made(s, f.law.tokens)
    shown = {"alpha": law.alpha, "beta": law.beta, "A": law.A, "RMSE": np.sqrt(s.sse / f.n)}
    shown |= {"alpha / beta": law.ratio, f"V* at Q = {Q:g}": v_star(law, Q)}
    wide = _frame(shown).assign(D=floors, inside=s.sse <= f.threshold())
    rows = wide.melt(["D", "inside"], var_name="quantity")
    rows.attrs = summary(f, Q, by=None)
    return rows


def token_slopes(fits: dict[str, Fit]) -> pd.DataFrame:
    """beta at every N, by task: rows task | N | beta | low | high (two standard errors)."""
    rows = _frame([{"task": task} | row for task, f in fits.items() for row in slopes(f.points)])
    return rows.assign(low=rows["beta"] - 2 * rows["se"], high=rows["beta"] + 2 * rows["se"])


def optimum_by_text(
    f: Fit, Q=(0, 1, 5, 10, 25, 50, 100, 200, 500), others: dict[str, Fit] | None = None
) -> pd.DataFrame:
    """V* in closed form against Q with its interval, for a fit and others by name (T = Q + V, other law)."""
    rows = []
    for name, one in ({f"{f.law.name}, T = {f.law.tokens}": f} | (others or {})).items():
        for q in Q:
            low, high = v_star_interval(one, q)
            rows.append({"law": name, "Q": q, "V*": float(v_star(one.law, q)), "low": low, "high": high})
    return _frame(pd.DataFrame(rows).replace(np.inf, np.nan), family=f.points.family)


def true_optimum(
    f: Fit, device: cost.Hardware, Q=50, G=32, batches=(1, 32), compressor="tokenpacker", points=24
) -> pd.DataFrame:
    """Best V along the budget under four kinds of cost: rows cost | N | V | error.

    The paper's 2N(Q+V); all operations counted; roofline seconds to the first and to the last token, by
    batch.
    """
    N = np.geomspace(0.5, 14, 100)

    def pipe(n):
        return cost.Pipeline(cost.llm_like(n), compressor=compressor)

    def seconds(batch, what):
        return lambda n, v: cost.latency(pipe(n), device, v, Q, G, batch)[what]

    kinds = {
        "paper: 2N(Q + V)": lambda n, v: 2 * n * (Q + v),
        "all operations": lambda n, v: cost.flops(pipe(n), v, Q, G),
    }
    for b in batches:
        kinds[f"first token, batch {b}"] = seconds(b, "ttft")
        kinds[f"last token, batch {b}"] = seconds(b, "total")
    rows = []
    for name, paid in kinds.items():
        ends = [float(np.ravel(paid(np.array([[n]]), np.array([[16]])))[0]) for n in (0.55, 13.5)]
        got = frontier(f.law, paid, np.geomspace(*ends, points), EVERY_V, N, Q)
        for n, v, y in zip(got.N, got.V, got.Y):
            if np.isfinite(n) and n < N[-1] * 0.99:
                rows.append({"cost": name, "N": n, "V": v, "error": y})
    return _frame(rows, device=device.name, Q=Q, G=G, family=f.points.family)


def binding(device: cost.Hardware, Q=50, G=32, V=(1, 4, 16, 36, 64, 144, 256, 576)) -> pd.DataFrame:
    """What an LLM's prefill waits for, and what tokens cost there: rows N | V | batch | binds | slower.

    binds: reading weights, arithmetic, or does not fit; slower: seconds to the first token over those at
    V = 1.
    """
    v, b = (x.ravel() for x in np.meshgrid(V, 2 ** np.arange(8), indexing="ij"))
    parts = []
    for shape in cost.QWEN15:
        pipe = cost.Pipeline(shape)
        work = cost.stages(pipe, v, Q, G, b)["prefill"]
        room = cost.memory(pipe, v, Q, G, b)["total"] <= device.memory
        waits = np.where(cost.binds(work, device) == "compute", "arithmetic", "reading weights")
        first = [cost.latency(pipe, device, tokens, Q, G, b)["ttft"] for tokens in (v, 1)]
        rows = {"N": shape.nominal, "V": v, "batch": b, "binds": np.where(room, waits, "does not fit")}
        parts.append(pd.DataFrame(rows | {"slower": first[0] / first[1]}))
    return _frame(pd.concat(parts, ignore_index=True), device=device.name, Q=Q, G=G)


def own_sweep(rows) -> dict[str, Fit]:
    """This project's own errors under the power law, by family; without those whose rows are too few yet.

    The points are means over seeds at V > 0. Where the sweep holds several compressors, the one with most
    rows is taken.
    """
    if rows is None or not len(rows):
        return {}
    rows = rows[rows["V"].astype(float) > 0]
    if "compressor" in rows and len(rows):
        rows = rows[rows["compressor"] == rows["compressor"].mode().iloc[0]]
    fits = {}
    for family in ("reasoning", "ocr"):
        if f"error_{family}" in rows:
            with suppress(InputError):  # too few points, or a single N or V so far
                fits[family] = fit(sweep(rows, family).cells)
    return fits


def betas(rows: pd.DataFrame, Q: float = 50.0) -> pd.DataFrame:
    """How the error of each compressor falls with V, over several LLMs: a row a compressor and family.

    beta: minus the slope of ln error in ln V beside ln N, seed by seed, with its 95 % interval over seeds
    (alpha alike in ln N); only V up to s/4, s being the most tokens in the rows, and only cells that all of
    these compressors have. V*: the best V at Q text tokens by the law fitted to cell means, `fault` where it
    fits badly.
    """
    few, found = _few(rows), []
    for (name, family), part in ((key, few[few["compressor"] == key[0]]) for key in _pairs(few)):
        f = fit(sweep(part, family).cells)
        row = {"family": FAMILIES[family], "compressor": name, "seeds": part["seed"].nunique(), "R2": f.r2}
        row |= exponents(part, part[f"error_{family}"])
        found.append(row | {"V*": float(v_star(f.law, Q)) if not f.fault else np.nan, "fault": f.fault})
    return pd.DataFrame(found)


def beta_pairs(rows: pd.DataFrame, family: str = "ocr") -> pd.DataFrame:
    """Differences of compressors' betas, paired by seed, the larger minus the smaller; the greatest on top.

    Cells as in `betas`. Columns: compressor, against, difference, low, high, p, seeds; interval and p are
    corrected for the number of pairs (Bonferroni), so that any of them may be singled out.
    """
    few, each = _few(rows), {}
    for name in {name for name, of in _pairs(few) if of == family}:
        by_seed = few[few["compressor"] == name].groupby("seed")
        each[name] = pd.Series({s: exponents(part, part[f"error_{family}"])["beta"] for s, part in by_seed})
    pairs = list(combinations(sorted(each, key=lambda name: -each[name].mean()), 2))
    found = []
    for one, other in pairs:
        apart = (each[one] - each[other]).dropna()
        if len(apart) > 1:
            *ends, p = mean_interval(apart, 1 - 0.05 / len(pairs))
            found.append((one, other, *ends, min(1.0, p * len(pairs)), len(apart)))
    columns = ["compressor", "against", "difference", "low", "high", "p", "seeds"]
    return pd.DataFrame(found, columns=columns).sort_values("difference", ascending=False, ignore_index=True)


def betas_alone(rows: pd.DataFrame) -> pd.DataFrame:
    """beta of each compressor beside one LLM: family, compressor, seeds, beta and its 95 % interval.

    rows: cells of one LLM at V that all compressors have (`vtc.evaluation.compare.beside`); one V gives no
    row. As in `betas`, but without N there is neither an alpha nor a best V.
    """
    found, kept = [], ("beta", "beta_low", "beta_high")
    for family, name in FAMILIES.items() if rows["V"].nunique() > 1 else ():
        for compressor, part in rows.groupby("compressor"):
            of = exponents(part, part[f"error_{family}"])
            row = {"family": name, "compressor": compressor, "seeds": part["seed"].nunique()}
            found.append(row | {key: of[key] for key in kept})
    return pd.DataFrame(found, columns=["family", "compressor", "seeds", *kept])


def _few(rows: pd.DataFrame) -> pd.DataFrame:
    """Of compressors with several LLMs, the cells (LLM, V up to s/4, seed) that all of them have."""
    rows = rows[(rows["V"] > 0) & (rows["V"] <= max(rows["V"].max() // 4, 1))]
    rows = rows[rows.groupby("compressor")["N"].transform("nunique") > 1]
    there = rows.groupby(["N", "V", "seed"])["compressor"].transform("nunique")
    return rows[there == rows["compressor"].nunique()]


def _pairs(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """(compressor, family) of compressors with at least two LLMs and two V."""
    several = rows.groupby("compressor")[["N", "V"]].nunique().min(axis=1) > 1
    return [(name, family) for family in FAMILIES for name in several.index[several]]


def table(rows, digits: int = 4, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Rows as a frame (of some columns), numbers to a few significant digits: machines then agree on it."""

    def short(x):
        return float(f"{x:.{digits}g}") if isinstance(x, (float, np.floating)) else x

    shown = [{name: short(value) for name, value in row.items()} for row in rows]
    return pd.DataFrame(shown, columns=columns)
