"""Tidy rows for the figures and tables of notebook 04: every number computed here, drawn elsewhere.

Functions return pandas frames with readable column names; pandas is imported only when one is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from vtc import InputError, cost
from vtc.scaling.checks import compare, leave_one_size_out, separability, summary
from vtc.scaling.fitting import LEVEL, Fit, fit
from vtc.scaling.frontier import frontier, v_star, v_star_interval
from vtc.scaling.official import best_of_fifth
from vtc.scaling.scores import published_rows, sweep

EVERY_V = np.unique(np.geomspace(1, 576, 120).round())


def _frame(rows):
    import pandas as pd

    return pd.DataFrame(rows)


def measured(f: Fit, Q: float = 50.0):
    """Points and what the law says of them: N, V, cost 2N(Q+V) in TFLOP, error, predicted error."""
    p, say = f.points, f.predicted
    flop = 2e-3 * p.N * (Q + p.V)
    return _frame({"N": p.N, "V": p.V, "TFLOP": flop, "error": p.Y, "predicted": say, "odd": p.odd != ""})


def curves(f: Fit, Q: float = 50.0, sizes: Sequence[float] | None = None):
    """The law along V for every N of the points (or `sizes`): N, V, TFLOP, error."""
    sizes = np.unique(f.points.N) if sizes is None else sizes
    low = 0 if f.law.name == "offset" else max(1, f.points.V[f.points.V > 0].min())
    one = max(low, 1)
    V = np.unique(np.concatenate([np.linspace(low, one, 6), np.geomspace(one, f.points.V.max(), 80)]))
    rows = [{"N": N, "V": v, "TFLOP": 2e-3 * N * (Q + v)} for N in sizes for v in V]
    out = _frame(rows)
    return out.assign(error=f.law.error(out["N"], out["V"], Q))


def best_split(f: Fit, Q: float = 50.0, N=None):
    """The frontier at the paper's cost 2N(Q+V), V a whole number from 1 to 576: TFLOP, N, V, error."""
    N = np.geomspace(0.3, 20, 160) if N is None else N
    budgets = np.geomspace(2 * N[0] * (Q + 1), 2 * N[-1] * (Q + 1), 60)
    got = frontier(f.law, lambda n, v: 2 * n * (Q + v), budgets, np.arange(1, 577), N, Q)
    out = _frame({"TFLOP": got.budget * 1e-3, "N": got.N, "V": got.V, "error": got.Y}).dropna()
    return out[out["N"] < N[-1] * 0.999]


def wandering(f: Fit, seeds: int = 10):
    """What a random fifth of the official grid answers, by seed, beside the whole grid, the paper, and us."""
    task = f.points.family
    rows = [best_of_fifth(task, seed) | {"what": "random fifth of the grid"} for seed in range(seeds)]
    rows.append(best_of_fifth(task, None) | {"what": "whole grid"})
    printed = [r for r in published_rows("law") if r["task"] == task and r["quantity"] in ("alpha", "beta")]
    said = {r["quantity"]: float(r["value"]) for r in printed}
    rows.append(said | {"what": "paper"})
    law = f.law
    ours = {"A": law.A, "alpha": law.alpha, "beta": law.beta, "D": law.D, "sse": f.sse}
    return _frame([*rows, ours | {"what": "exact optimum"}])


def profiled(f: Fit, Q: float = 50.0, floors=None):
    """The fit with D held at each value: long rows (D, quantity, value, inside), quantities alpha ... V*.

    `inside`: the points allow that D at 95 %.
    """
    floors = np.linspace(-0.4, 0.9 * f.points.Y.min(), 60) if floors is None else np.asarray(floors, float)
    s, limit = f.along("D", floors), f.threshold(LEVEL)
    law = type(f.law).make(s.theta, s.coef, tokens=f.law.tokens, n0=f.at.n0, t0=f.at.t0)
    shown = {
        "alpha": law.alpha,
        "beta": law.beta,
        "A": law.A,
        "RMSE": np.sqrt(s.sse / f.n),
        "alpha / beta": law.ratio,
    }
    shown[f"V* at Q = {Q:g}"] = v_star(law, Q)
    return _frame(
        [
            {"D": d, "quantity": name, "value": float(v), "inside": bool(e <= limit), "D >= 0": bool(d >= 0)}
            for name, values in shown.items()
            for d, v, e in zip(floors, values, s.sse)
        ]
    )


def token_slopes(fits: dict[str, Fit]):
    """beta at every N, by task: the slope of ln error on ln V, with its standard error."""
    rows = []
    for task, f in fits.items():
        for N, slope in separability(f.points)["beta by N"].items():
            p = f.points.keep((f.points.N == N) & (f.points.V > 0) & (f.points.Y > 0))
            x = np.log(p.V) - np.log(p.V).mean()
            left = np.log(p.Y) - np.log(p.Y).mean() + slope * x
            se = float(np.sqrt((left**2).sum() / max(len(p) - 2, 1) / (x**2).sum()))
            rows.append({"task": task, "N": N, "beta": slope, "low": slope - 2 * se, "high": slope + 2 * se})
    return _frame(rows)


def optimum_by_text(f: Fit, Q=(0, 1, 5, 10, 25, 50, 100, 200, 500), others: dict[str, Fit] | None = None):
    """V* in closed form against Q with its interval, for a fit and others by name (T = Q + V, other law)."""
    rows = []
    for name, one in ({f"{f.law.name}, T = {f.law.tokens}": f} | (others or {})).items():
        for q in Q:
            low, high = v_star_interval(one, q)
            rows.append({"law": name, "Q": q, "V*": float(v_star(one.law, q)), "low": low, "high": high})
    return _frame(rows).replace(np.inf, np.nan)


def true_optimum(
    f: Fit, device: cost.Hardware, Q=50, G=32, batches=(1, 32), compressor="tokenpacker", points=24
):
    """Best V along the budget under four kinds of cost: cost, share of the range, N, V, error.

    The paper's 2N(Q+V); all operations counted; roofline seconds to the first and to the last token, by
    batch.
    """
    N = np.geomspace(0.5, 14, 100)

    def pipe(n):
        return cost.Pipeline(cost.llm_like(n), compressor=compressor)

    kinds = {"paper: 2N(Q + V)": lambda n, v: 2 * n * (Q + v)}
    kinds["all operations"] = lambda n, v: cost.flops(pipe(n), v, Q, G)
    for b in batches:
        kinds[f"first token, batch {b}"] = lambda n, v, b=b: cost.latency(pipe(n), device, v, Q, G, b)["ttft"]
        kinds[f"last token, batch {b}"] = lambda n, v, b=b: cost.latency(pipe(n), device, v, Q, G, b)["total"]
    rows = []
    for name, paid in kinds.items():
        ends = [
            float(np.ravel(paid(np.array([[n]]), np.array([[v]])))[0]) for n, v in ((0.55, 16), (13.5, 16))
        ]
        got = frontier(f.law, paid, np.geomspace(*ends, points), EVERY_V, N, Q)
        for n, v, y in zip(got.N, got.V, got.Y):
            if np.isfinite(n) and n < N[-1] * 0.99:
                rows.append({"cost": name, "N": n, "V": v, "error": y})
    return _frame(rows)


def binding(
    device: cost.Hardware,
    Q=50,
    G=32,
    V=(1, 4, 16, 36, 64, 144, 256, 576),
    batches=(1, 2, 4, 8, 16, 32, 64, 128),
):
    """What an LLM's prefill waits for, and what tokens cost there: rows (N, V, batch).

    binds: reading weights | arithmetic | does not fit; slower: seconds to the first token over those at V =
    1.
    """
    rows = []
    for shape in cost.QWEN15:
        pipe = cost.Pipeline(shape)
        v, b = (x.ravel() for x in np.meshgrid(V, batches, indexing="ij"))
        work = cost.stages(pipe, v, Q, G, b)["prefill"]
        room = cost.memory(pipe, v, Q, G, b)["total"] <= device.memory
        waits = np.where(cost.binds(work, device) == "compute", "arithmetic", "reading weights")
        waits = np.where(room, waits, "does not fit")
        slow = cost.latency(pipe, device, v, Q, G, b)["ttft"] / cost.latency(pipe, device, 1, Q, G, b)["ttft"]
        rows += [
            {"N": shape.nominal, "V": int(x), "batch": int(y), "binds": str(w), "slower": float(s)}
            for x, y, w, s in zip(v, b, waits, slow)
        ]
    return _frame(rows)


def own_sweep(rows, families=("reasoning", "ocr"), law: str = "offset") -> dict[str, Fit]:
    """This project's own errors under a law, by family; without those whose rows are too few yet.

    Where the sweep holds several compressors, the one with most rows is taken (and V = 0, which has none).
    """
    if rows is None or not len(rows):
        return {}
    seen = rows[rows["V"].astype(float) > 0]
    compressor = seen["compressor"].mode().iloc[0] if "compressor" in seen and len(seen) else None
    fits = {}
    for family in families:
        if f"error_{family}" in rows:
            with suppress(InputError):  # too few points, or a single N or V so far
                fits[family] = fit(sweep(rows, family, compressor), law)
    return fits


def own_table(fits: dict[str, Fit], Q: float | None = None):
    """Every law on this project's points (V > 0), by family, best AICc first; V* at Q text tokens.

    Q defaults to the mean length of the sweep's own questions.
    """
    rows, seen = [], [f.points.Q.mean() for f in fits.values()]
    Q = (round(float(np.mean(seen))) if seen else 10) if Q is None else Q
    for name, f in fits.items():
        with suppress(InputError):
            rows += [{"family": name} | row for row in compare(f.points, Q)]
    return table(rows, 3)


def own_words(fits: dict[str, Fit]) -> str:
    """What this project's sweep says so far, by family: ratio, the largest LLM foretold, separability."""
    if not fits:
        return "02_errors holds too few rows of the sweep yet (two N, two V at least): run notebook 02 first"
    lines = []
    for name, f in fits.items():
        row, seeds = summary(f), len(np.unique(f.points.seed))
        ends = ["unbounded" if np.isinf(row[e]) else f"{row[e]:.3g}" for e in ("ratio_lo", "ratio_hi")]
        lines.append(f"{name}: {f.n} points, {seeds} seed(s), {f.law.name} law, {f.status}")
        lines.append(f"    alpha / beta {row['ratio']:.3g} [{', '.join(ends)}], R2 {f.r2:.3f}")
        with suppress(InputError):  # too few sizes to leave one out
            last = leave_one_size_out(f.points, f.law.name)[-1]
            lines.append(f"    largest LLM from the others: {last['mean miss']:.1%} off in the mean")
        with suppress(InputError):
            found = separability(f.points)
            lines.append(f"    interaction gamma {found['gamma']:.3g}, p = {found['p']:.2g}")
    return "\n".join(lines)


def table(rows, digits: int = 4):
    """Rows as a frame, numbers to some significant digits, so that outputs compare between machines."""

    def short(x):
        return float(f"{x:.{digits}g}") if isinstance(x, (float, np.floating)) else x

    return _frame([{name: short(value) for name, value in row.items()} for row in rows])
