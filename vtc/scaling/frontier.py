"""The inference-optimal split: V* in closed form, and the frontier under any cost of (N, V).

`vtc.scaling.laws` derives V* = beta Q / (alpha - beta) at a fixed N (Q + V). Output tokens G and the
tokens q' of a question pass cost as much as those of the prompt, and a law may add something to V before it
takes the power (shift: Q, or the offset law's c). Then

    V* = (beta (Q + G + q') - alpha shift) / (alpha - beta),      alpha > beta.

With Q = G = q' = 0 or alpha <= beta no inner optimum exists and a boundary wins; `words` says which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vtc.scaling.fitting import Fit
from vtc.scaling.intervals import central, jackknife
from vtc.scaling.laws import Law

GRID = np.geomspace(0.25, 4096, 1500)  # token counts tried where there is no closed form, 0.65 % apart


def v_star(law: Law, Q=0.0, G=0.0, q_prime=0.0):
    """Tokens at which the error is least at fixed N (V + Q + G + q').

    Law (fields may be draws) -> V*, infinite where more tokens always pay. For laws without a closed form
    the budget is that of the centre of the points.
    """
    text = np.asarray(Q, float) + G + q_prime
    if law.closed:
        alpha, beta = np.asarray(law.alpha, float), np.asarray(law.beta, float)
        with np.errstate(divide="ignore", invalid="ignore"):
            inner = (beta * text - alpha * law.shift(Q)) / (alpha - beta)
        return np.where(alpha > beta, np.maximum(inner, 0.0), np.inf)[()]
    N = np.exp(law.n0) * (np.exp(law.t0) + text) / (GRID + text)
    Y = law.error(N, GRID, Q)  # (..., grid)
    best = GRID[np.argmin(Y, -1)]
    return np.where(best >= GRID[-1], np.inf, np.where(best <= GRID[0], 0.0, best))[()]


def words(law: Law, Q=0.0, G=0.0, q_prime=0.0) -> str:
    """What the optimum is, with its boundary cases said."""
    best, text = float(v_star(law, Q, G, q_prime)), Q + G + q_prime
    if not np.isfinite(best):
        return "as many tokens as fit: alpha <= beta, so the error falls faster with V than with N"
    if best < 1:
        if law.beta <= 0:
            why = "in these scores more tokens do not lower the error (beta <= 0)"
            return f"the fewest tokens there are: {why}"
        why = "no text or output token shares the cost" if text == 0 else "too few text tokens share the cost"
        return f"one token, the fewest there are: {why}, and alpha > beta"
    return f"{best:.3g} tokens where {text:g} text, output and question-pass tokens share the cost"


def v_star_interval(
    fit: Fit, Q=0.0, G=0.0, q_prime=0.0, draws: Law | None = None, clustered: bool = False
) -> tuple[float, float]:
    """95 % interval of V*, by that of alpha / beta where V* depends on nothing else, else by draws.

    clustered: of points that share LLMs (`Fit.clustered_interval`); never narrower than the plain one.
    """
    if fit.unidentified:
        return 0.0, np.inf
    if fit.law.closed and not fit.law.exponents[2:]:  # power and log-linear: V* falls as the ratio grows
        low, high = fit.clustered_interval("ratio") if clustered else fit.interval("ratio")
        if low < 0:  # a slope is not told from none
            return 0.0, np.inf
        text, shift = Q + G + q_prime, fit.law.shift(Q)
        at = lambda r: max((text - r * shift) / (r - 1), 0.0) if r > 1 else np.inf  # noqa: E731
        return (0.0 if np.isinf(high) else at(high)), at(low)
    low, high = central(v_star(fit.draws if draws is None else draws, Q, G, q_prime))
    if not clustered or not fit.shared:
        return low, high
    value, others = (v_star(law, Q, G, q_prime) for law in (fit.law, fit.without_each_llm))
    below, above = jackknife(float(value), others, log=True)
    return max(min(low, below), 0.0), max(high, above)


@dataclass(frozen=True)
class Frontier:
    """The best split at every budget; arrays (budgets,), NaN where nothing fits."""

    budget: np.ndarray  # in the unit of the cost
    N: np.ndarray  # billions
    V: np.ndarray  # tokens
    Y: np.ndarray  # error there


def frontier(law: Law, cost: Callable, budgets, V, N=None, Q=0.0) -> Frontier:
    """The (N, V) of least error at every budget, for a cost that grows with N.

    cost(N (1, n), V (v, 1)) -> (v, n). For each V the largest affordable N is interpolated (in logarithms)
    on the grid N, then the V of least error wins.
    """
    N = np.geomspace(0.5, 14, 120) if N is None else np.asarray(N, float)
    V, budgets = np.asarray(V, float), np.asarray(budgets, float)
    spent = np.log(np.broadcast_to(cost(N[None], V[:, None]), (len(V), len(N))))  # (v, n)
    out = np.full((3, len(budgets)), np.nan)
    for i, budget in enumerate(np.log(budgets)):
        can = spent[:, 0] <= budget
        if not can.any():
            continue
        most = np.array([np.interp(budget, row, np.log(N)) for row in spent[can]])
        Y = law.error(np.exp(most), V[can], Q)
        j = int(np.argmin(Y))
        out[:, i] = np.exp(most[j]), V[can][j], Y[j]
    return Frontier(budgets, *out)
