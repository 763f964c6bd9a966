"""Does the law hold? One row a fit, forms compared, sizes left out and predicted, separability."""

from __future__ import annotations

import math

import numpy as np

from vtc import InputError
from vtc.scaling.fitting import Fit, fit
from vtc.scaling.frontier import v_star, v_star_interval, words
from vtc.scaling.intervals import central
from vtc.scaling.laws import LAWS
from vtc.scaling.scores import Points

SHOWN = ("A", "alpha", "beta", "D", "B", "gamma", "c", "ratio", "V_opt")  # numbers of a row, in this order


def summary(
    f: Fit, Q: float | None = None, G=0.0, q_prime=0.0, by: str | None = "profile", draws: int = 2000
) -> dict:
    """One flat row of a fit: every parameter, ratio and V_opt, how well it fits, how it ended, seconds.

    Q: text tokens of V_opt (None: the mean of the points', or 50 where they have none). by: how the intervals
    `_lo`, `_hi` are made: "profile", a bootstrap ("residual", "size", "seed"), or None for none.
    `_lo_clustered` and `_hi_clustered` allow for points that share an LLM. Infinite ends mean unbounded.
    """
    text = (float(f.points.Q.mean()) or 50.0 if Q is None else Q, G, q_prime)
    row = {"family": f.points.family, "law": f.law.name, "tokens": f.law.tokens}
    row |= {"points": f.n, "LLMs": f.llms}
    made = f.bootstrap(draws, by) if by not in (None, "profile") else None
    for name in [x for x in SHOWN if x == "V_opt" or hasattr(f.law, x)]:
        row[name] = float(v_star(f.law, *text) if name == "V_opt" else getattr(f.law, name))
        for kind, clustered in (("", False), ("_clustered", True)):
            if by is not None:
                row[f"{name}_lo{kind}"], row[f"{name}_hi{kind}"] = _ends(f, name, text, made, clustered)
    row |= dict(zip(("Q", "G", "q_prime"), text)) | {"interval": by, "V_opt_words": words(f.law, *text)}
    row |= {"sse": f.sse, "rmse": f.rmse, "r2": f.r2, "aicc": f.aicc}
    return row | {"status": f.status, "fault": f.fault, "usable": f.usable, "seconds": f.seconds}


def _ends(f: Fit, name: str, text: tuple, made, clustered: bool = False) -> tuple[float, float]:
    """One interval of a row; `made`: bootstrap draws that take the place of the profile."""
    if name in f.unidentified or (f.unidentified and name in ("ratio", "V_opt")):
        return (0.0 if name == "V_opt" else -np.inf), np.inf
    if made is not None and not clustered:
        return central(np.asarray(v_star(made, *text) if name == "V_opt" else getattr(made, name), float))
    if name == "V_opt":
        return v_star_interval(f, *text, clustered=clustered)
    return f.clustered_interval(name) if clustered else f.interval(name)


def finite(value):
    """JSON has no infinity: unbounded and undefined become null."""
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def compare(points: Points, Q: float | None = None) -> list[dict]:
    """All laws on the same points (without V = 0, where most have no value), best AICc first."""
    points = points.keep(points.V > 0)
    rows = [summary(fit(points, law), Q, by=None) for law in LAWS]
    return sorted(rows, key=lambda row: np.nan_to_num(row["aicc"], nan=np.inf))


def leave_one_size_out(points: Points, Q: float = 50.0) -> list[dict]:
    """Each model size predicted from the others by the power law: mean and worst miss, and V* without it.

    A miss is relative to the error (but to .01 at least).
    """
    rows = []
    for N in np.unique(points.N):
        f = fit(points.keep(points.N != N))
        out = points.keep((points.N == N) & (points.V > 0))
        miss = np.abs(f.law.error(out.N, out.V, out.Q) - out.Y) / np.maximum(out.Y, 0.01)
        row = {"N left out": N, "largest": bool(N == points.N.max())}
        row |= {"mean miss": miss.mean(), "worst miss": miss.max()}
        rows.append(row | {"ratio": float(f.law.ratio), "V_opt": float(v_star(f.law, Q))})
    return rows


def separability(points: Points) -> dict:
    """Do larger LLMs gain more from tokens? The interaction law against the power law nested in it.

    gamma with its interval and the F test of gamma = 0, both as if points were independent; and `p by size`,
    which asks the same of one slope a size (`slope_by_size`).
    """
    from scipy.special import fdtrc

    whole, plain = fit(points, "interaction"), fit(points, "power")
    left = whole.n - whole.k
    F = (plain.sse - whole.sse) / (whole.sse / left) if left > 0 else np.nan
    low, high = whole.interval("gamma")
    found = {"gamma": whole.law.gamma, "gamma_lo": low, "gamma_hi": high, "F": float(F)}
    found["p"] = float(fdtrc(1, left, max(F, 0))) if left > 0 else float("nan")
    return found | {f"{name} by size": value for name, value in slope_by_size(points).items()}


def slopes(points: Points) -> list[dict]:
    """The slope of ln Y on -ln V at every N, with its standard error (infinite for two points)."""
    from scipy.stats import linregress

    rows = []
    for N in np.unique(points.N):
        p = points.keep((points.N == N) & (points.V > 0) & (points.Y > 0))
        if len(np.unique(p.V)) > 1:
            line = linregress(np.log(p.V), np.log(p.Y))
            se = float(line.stderr) if len(p) > 2 else float("inf")
            rows.append({"N": float(N), "beta": -float(line.slope), "se": se})
    return rows


def slope_by_size(points: Points) -> dict:
    """Does beta grow with ln N? A line through one beta a size: slope, lo, hi, p (t, sizes - 2).

    Sizes are the unit: the V of a size share its LLM. NaN for fewer than three sizes.
    """
    from scipy.stats import linregress

    from vtc.evaluation.compare import student_interval

    rows, names = slopes(points), ("slope", "lo", "hi", "p")
    if len(rows) < 3:
        return dict.fromkeys(names, float("nan"))
    line = linregress(np.log([row["N"] for row in rows]), [row["beta"] for row in rows])
    return dict(zip(names, student_interval(float(line.slope), float(line.stderr), len(rows) - 2)))


def check_draws(draws: int) -> None:
    """Raise `InputError` where so many draws give no 95 % interval, or would fill the memory."""
    if not 40 <= draws <= 1_000_000:
        raise InputError(f"--draws {draws}: a 95 % interval takes 40 draws to a million")
