"""Does the law hold? Sizes left out and predicted, separability, forms compared, odd points in and out."""

from __future__ import annotations

import math

import numpy as np

from vtc.scaling.fitting import Fit, fit
from vtc.scaling.frontier import v_star, v_star_interval
from vtc.scaling.laws import LAWS
from vtc.scaling.scores import Points


def leave_one_size_out(points: Points, law: str = "power", Q: float = 50.0) -> list[dict]:
    """Each model size predicted from the others: mean and worst miss, and V* without it.

    A miss is relative to the error (but to .01 at least).
    """
    rows = []
    for N in np.unique(points.N):
        f = fit(points.keep(points.N != N), law)
        out = points.keep((points.N == N) & ((points.V > 0) | (law == "offset")))
        miss = np.abs(f.law.error(out.N, out.V, out.Q) - out.Y) / np.maximum(out.Y, 0.01)
        row = {
            "N left out": N,
            "largest": bool(N == points.N.max()),
            "mean miss": miss.mean(),
            "worst miss": miss.max(),
        }
        rows.append(row | {"ratio": float(f.law.ratio), "V_opt": float(v_star(f.law, Q))})
    return rows


def separability(points: Points) -> dict:
    """Do larger LLMs gain more from tokens? The interaction law against the power law nested in it.

    gamma with its interval, the F test of gamma = 0, and the slope of ln Y on ln V at every N.
    """
    from scipy.special import fdtrc

    whole, plain = fit(points, "interaction"), fit(points, "power")
    left = whole.n - whole.k
    F = (plain.sse - whole.sse) / (whole.sse / left) if left > 0 else np.nan
    used = points.keep((points.V > 0) & (points.Y > 0))
    slopes = {
        float(N): float(-np.polyfit(np.log(used.V[used.N == N]), np.log(used.Y[used.N == N]), 1)[0])
        for N in np.unique(used.N)
        if len(np.unique(used.V[used.N == N])) > 1
    }
    low, high = whole.interval("gamma")
    return {
        "gamma": whole.law.gamma,
        "gamma_lo": low,
        "gamma_hi": high,
        "F": float(F),
        "p": float(fdtrc(1, left, max(F, 0))) if left > 0 else float("nan"),
        "beta by N": slopes,
    }


def compare(points: Points, Q: float = 50.0, laws=tuple(LAWS)) -> list[dict]:
    """All laws on the same points (without V = 0, where most have no value), best AICc first."""
    points = points.keep(points.V > 0)
    rows = [_row(fit(points, law), Q) for law in laws]
    return sorted(rows, key=lambda row: np.nan_to_num(row["AICc"], nan=np.inf))


def _row(f: Fit, Q: float) -> dict:
    quality = {"SSE": f.sse, "RMSE": f.rmse, "R2": f.r2, "AICc": f.aicc}
    law = {"law": f.law.name, "ratio": float(f.law.ratio), f"V_opt(Q={Q:g})": float(v_star(f.law, Q))}
    return law | quality | {"status": f.status}


def summary(
    f: Fit, Q: float = 50.0, G: float = 0.0, q_prime: float = 0.0, by: str = "profile", draws=2000
) -> dict:
    """One flat row of a fit: every parameter, ratio and V_opt with _lo and _hi, quality, status, seconds.

    by: how intervals are made, "profile" or a bootstrap ("residual", "size", "seed"). Infinite ends mean
    unbounded.
    """
    names = [x for x in ("A", "alpha", "beta", "D", "B", "gamma", "c") if hasattr(f.law, x)]
    made = f.bootstrap(draws, by) if by != "profile" else None
    if made is None and not f.law.closed:
        made = f.bootstrap(draws)  # the ratio of some laws, and their V*, have no profile here
    row = {"family": f.points.family, "law": f.law.name, "tokens": f.law.tokens, "points": f.n}
    for name in (*names, "ratio", "V_opt"):
        value = v_star(f.law, Q, G, q_prime) if name == "V_opt" else getattr(f.law, name)
        row[name] = float(value)
        row[f"{name}_lo"], row[f"{name}_hi"] = _ends(f, name, by, made, (Q, G, q_prime))
    row |= {"Q": Q, "G": G, "q_prime": q_prime, "interval": by, "sse": f.sse, "rmse": f.rmse, "r2": f.r2}
    return row | {"aicc": f.aicc, "status": f.status, "seconds": f.seconds}


def _ends(f: Fit, name: str, by: str, made, text) -> tuple[float, float]:
    if name == "c":
        return tuple(float(np.exp(end)) for end in _ends(f, "ln_c", by, made, text))
    if name in f.unidentified or (f.unidentified and name in ("ratio", "V_opt")):
        return (0.0 if name == "V_opt" else -np.inf), np.inf
    if by == "profile" and name == "V_opt":
        return v_star_interval(f, *text, draws=made)
    if by == "profile" and (name != "ratio" or f.law.name != "additive"):
        return f.interval(name)
    many = v_star(made, *text) if name == "V_opt" else np.asarray(getattr(made, name), float)
    many = np.sort(many[~np.isnan(many)])
    return float(many[int(0.025 * len(many))]), float(many[max(int(0.975 * len(many)) - 1, 0)])


def finite(value):
    """JSON has no infinity: unbounded and undefined become null."""
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
