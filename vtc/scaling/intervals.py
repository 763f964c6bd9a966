"""How far the points pin a parameter down: profile likelihood, leaving one LLM out, and redrawing.

Profile: hold the parameter at a value, fit all others anew, and keep every value whose SSE stays below
SSE (1 + F(1, n - k) / (n - k)). Exact for a linear law; it takes the points' errors as independent.

Clustered: all V of one LLM share that LLM's luck. Fit again without each of the G LLMs; the spread of these
fits (the jackknife) gives a standard error, and t with G - 1 degrees of freedom the interval. It is never
given narrower than the profile interval. On planted laws with an error shared by all V of a size, 4 or 7
sizes, it covers the truth in 91 to 100 % of draws, where profiles cover 61 to 96 %, redrawing whole sizes 85
to 98 %, and a wild cluster bootstrap (Webb's weights) 51 to 87 %.
"""

from __future__ import annotations

import numpy as np

from vtc import InputError
from vtc.scaling.laws import Law
from vtc.scaling.varpro import Problem, Solution

LEVEL = 0.95
POSITIVE = ("ratio", "A", "B", "c", "V_opt")  # looked at in logarithms


def threshold(problem: Problem, sse: float, level: float = LEVEL) -> float:
    """SSE up to which a held value stays in the interval; infinite when no points are left over."""
    from scipy.special import fdtri

    left = problem.n - problem.k
    return sse * (1 + fdtri(1, left, level) / left) if left > 0 else np.inf


def steeper(problem: Problem, best: Solution) -> np.ndarray:
    """Exponents to start from: the fit's own, and steeper ones with a higher floor, (2, p)."""
    theta = best.theta[0]
    return np.stack([theta, theta * np.where(np.array(problem.law.exponents) == "ln_c", 1, 3)])


def profile(problem: Problem, best: Solution, name: str, values) -> Solution:
    """The best fits with a parameter (or "ratio") held at each of `values` (m,); D may be below zero."""
    values, starts = np.asarray(values, float), steeper(problem, best)
    every = np.tile(starts, (len(values), 1))
    many = problem.solve(every, held=(name, np.repeat(values, len(starts))), rounds=60)
    return many.best_of(len(starts))


def profile_end(problem: Problem, best: Solution, name: str, centre: float, side: int, limit: float) -> float:
    """Where the profile crosses `limit` below (side -1) or above (1) the estimate; infinite if nowhere.

    A ladder of values whose rungs widen away from the estimate, then looked at more closely twice.
    """
    into, back = (np.log, np.exp) if name in POSITIVE else (np.asarray, np.asarray)
    stop, nowhere = into(centre) + side * np.log(1e4), 0.0 if side < 0 else np.inf
    if name == "D":
        stop = 0.0 if side < 0 else problem.Y.max()
    elif name in problem.law.exponents:
        stop = problem.box[problem.law.exponents.index(name), int(side > 0)]
        nowhere = side * np.inf
    room = side * (stop - into(centre))
    if room < 1e-9:
        return nowhere
    rungs = into(centre) + side * np.append(0, np.geomspace(min(1e-4, room / 2), room, 16))
    for closer in range(3):
        sse = profile(problem, best, name, back(rungs)).sse
        above = sse > limit
        if not closer and not above[1:].any():
            return nowhere
        i = int(above[1:].argmax()) + 1 if above[1:].any() else len(rungs) - 1
        sse, ends = sse[i - 1 : i + 1], rungs[i - 1 : i + 1]
        rungs = np.linspace(*ends, 9)
    return float(back(np.interp(limit, sse, ends)))


def linear_interval(problem: Problem, law: Law, sse: float, name: str, level: float) -> tuple[float, float]:
    """Exact t intervals of a linear law; Fieller's for the ratio."""
    from scipy.special import fdtri

    X = problem.law.columns(np.empty((1, 0)), problem.at)[0]
    cov = np.linalg.pinv(X.T @ X) * sse / (problem.n - problem.k)
    cut = fdtri(1, problem.n - problem.k, level)
    if name != "ratio":
        j = problem.law.coefficients.index(name)
        half = np.sqrt(cut * cov[j, j])
        return float(getattr(law, name) - half), float(getattr(law, name) + half)
    a, b, S = law.alpha, law.beta, cov[1:, 1:]
    p, q, r = b * b - cut * S[1, 1], a * b - cut * S[0, 1], a * a - cut * S[0, 0]
    if p <= 0 or q * q < p * r:
        return -np.inf, np.inf
    root = np.sqrt(q * q - p * r)
    return float((q - root) / p), float((q + root) / p)


def jackknife(value: float, others, log: bool = False, level: float = LEVEL) -> tuple[float, float]:
    """t interval of an estimate from the estimates (G,) that leave one of G groups out."""
    from scipy.special import stdtrit

    both = np.append(value, others)
    if len(both) < 4 or not np.isfinite(both).all() or (log and (both <= 0).any()):
        return -np.inf, np.inf
    value, *others = np.log(both) if log else both
    free = len(others) - 1
    se = np.sqrt(free / len(others) * ((np.array(others) - value) ** 2).sum())
    half = stdtrit(free, (1 + level) / 2) * se
    ends = np.array([value - half, value + half])
    return tuple((np.exp(ends) if log else ends).tolist())


def left_out(problem: Problem, best: Solution, groups: np.ndarray) -> Solution:
    """The fit without each group of points: labels (n,) -> a batch (G,)."""
    starts = steeper(problem, best)
    weights = (groups != np.unique(groups)[:, None]).astype(float)  # (G, n)
    every = np.tile(starts, (len(weights), 1))
    return problem.solve(every, weights=weights.repeat(len(starts), 0)).best_of(len(starts))


def redrawn(problem: Problem, best: Solution, predicted, draws: int, groups=None, seed: int = 0) -> Solution:
    """Fits to resampled points, a batch (draws,).

    Without `groups` the residuals are redrawn, widened for the parameters spent; with labels (n,) whole
    groups are, at least two of them a draw. Raises InputError for a single group.
    """
    rng, weights, Y = np.random.default_rng(seed), None, None
    if groups is None:
        left_over = problem.Y - predicted
        wide = np.sqrt(problem.n / max(problem.n - problem.k, 1))
        Y = predicted + rng.choice((left_over - left_over.mean()) * wide, (draws, problem.n))
    else:
        labels, which = np.unique(groups, return_inverse=True)
        if len(labels) < 2:
            raise InputError("a bootstrap of one group only: choose another --interval")
        counts = np.zeros((0, len(labels)))
        while len(counts) < draws:
            new = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=draws)
            counts = np.concatenate([counts, new[(new > 0).sum(1) >= 2]])
        weights = counts[:draws][:, which].astype(float)
    return problem.solve(np.repeat(best.theta, draws, 0), Y, weights, rounds=40)


def central(draws, level: float = LEVEL) -> tuple[float, float]:
    """The middle share of some draws; infinite ones are kept, undefined ones left out."""
    draws = np.sort(draws[~np.isnan(draws)])
    tail = (1 - level) / 2
    return float(draws[int(tail * len(draws))]), float(draws[max(int((1 - tail) * len(draws)) - 1, 0)])
