"""A law fitted to points: how it ended, what it leaves over, what the points identify and what they don't."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from vtc import InputError
from vtc.scaling import intervals
from vtc.scaling.intervals import LEVEL
from vtc.scaling.laws import LAWS, TOKENS, Design, Law
from vtc.scaling.scores import Points
from vtc.scaling.varpro import Problem, Solution

STARTS = {"alpha": (0.02, 0.1, 0.5), "beta": (0.02, 0.1, 0.5), "gamma": (0.0,), "ln_c": (0.0, 3.0)}
LEAST_R2 = 0.9  # below this a fit is bad, and no verdict follows from it
FEW = 8  # with fewer LLMs than this, clustered intervals are said to rest on few


@dataclass(frozen=True)
class Fit:
    """A law with the points it was fitted to."""

    law: Law
    points: Points
    problem: Problem
    solution: Solution  # of a batch of one
    seconds: float

    @property
    def n(self) -> int:
        return self.problem.n

    @property
    def k(self) -> int:
        return self.problem.k

    @property
    def sse(self) -> float:
        return float(self.solution.sse[0])

    @property
    def rmse(self) -> float:
        return float(np.sqrt(self.sse / self.n))

    @property
    def r2(self) -> float:
        total = ((self.points.Y - self.points.Y.mean()) ** 2).sum()
        return float(1 - self.sse / total) if total > 0 else float("nan")

    @property
    def aicc(self) -> float:
        """AIC with the small-sample term; parameters at a bound don't count, the variance does."""
        k = self.k - int((self.solution.free[0] == 0).sum()) + 1
        if self.n - k - 1 <= 0 or self.sse <= 0:
            return float("nan")
        return float(self.n * np.log(self.sse / self.n) + 2 * k + 2 * k * (k + 1) / (self.n - k - 1))

    @property
    def predicted(self) -> np.ndarray:
        return self.law.error(self.points.N, self.points.V, self.points.Q)

    @property
    def residual(self) -> np.ndarray:
        return self.points.Y - self.predicted

    # -------------------------------------------------------------------------------------- how it ended

    @property
    def converged(self) -> bool:
        s = self.solution
        return bool(s.converged[0] and np.isfinite(s.coef).all() and np.isfinite(s.theta).all())

    @cached_property
    def at_bound(self) -> dict[str, float]:
        """Parameters that ended at a bound -> that bound."""
        exponents = zip(self.law.exponents, self.solution.theta[0], self.problem.box)
        ends = {}
        for name, value, box in exponents:
            for end in box[np.isclose(value, box, 1e-6, 1e-6)]:
                ends[name] = float(end)
        free = zip(self.law.coefficients, self.solution.free[0])
        return ends | {name: 0.0 for name, f in free if not f}

    @cached_property
    def unidentified(self) -> list[str]:
        """Parameters that the points leave open: an interval of theirs has no end on some side."""
        names = [name for name in ("alpha", "beta", "D") if hasattr(self.law, name)]
        return [name for name in names if not np.isfinite(self.interval(name)).all()]

    @property
    def fault(self) -> str:
        """Why no verdict follows from this fit: not converged, alpha or beta at a bound, or R2 below .9."""
        if not self.converged:
            return "not converged"
        stuck = [name for name in ("alpha", "beta") if name in self.at_bound]
        if stuck:
            return f"{' and '.join(stuck)} at a bound"
        if np.isnan(self.r2):
            return "fits badly: all errors are the same"
        return "" if self.r2 >= LEAST_R2 else f"fits badly: R2 {self.r2:.2f} is below {LEAST_R2:g}"

    @property
    def usable(self) -> bool:
        return not self.fault

    @cached_property
    def status(self) -> str:
        """All of that in words."""
        said = ["converged" if self.converged else "not converged"]
        said += [f"{name} at its bound {end:.3g}" for name, end in self.at_bound.items()]
        if self.fault.startswith("fits badly"):
            said.append(self.fault)
        low, high = self.interval("beta")
        if self.unidentified:
            said.append(f"not identified: {', '.join(self.unidentified)}")
        elif low <= 0 <= high:
            said.append("beta not told from 0: no effect of V is seen")
        return "; ".join(said)

    # ----------------------------------------------------------------------------------------- intervals

    def threshold(self, level: float = LEVEL) -> float:
        """SSE up to which a held value stays in the profile interval."""
        return intervals.threshold(self.problem, self.sse, level)

    def along(self, name: str, values) -> Solution:
        """The best fits with one parameter (or "ratio") held at each of `values` (m,)."""
        return intervals.profile(self.problem, self.solution, name, values)

    def interval(self, name: str, level: float = LEVEL) -> tuple[float, float]:
        """Profile-likelihood interval of a parameter or "ratio"; infinite where the points set no end.

        The additive law's ratio has no profile: its interval comes from bootstrap draws.
        """
        if (name, level) not in self._intervals:
            self._intervals[name, level] = self._interval(name, level)
        return self._intervals[name, level]

    @cached_property
    def _intervals(self) -> dict[tuple[str, float], tuple[float, float]]:
        return {}

    def _interval(self, name: str, level: float) -> tuple[float, float]:
        if name == "c":
            return tuple(float(np.exp(end)) for end in self.interval("ln_c", level))
        if self.n <= self.k:
            return -np.inf, np.inf
        if not self.law.exponents:
            return intervals.linear_interval(self.problem, self.law, self.sse, name, level)
        if name == "ratio" and min(self.law.alpha, self.law.beta) <= 0:
            return -np.inf, np.inf
        if name == "ratio" and self.law.name == "additive":
            return intervals.central(self.draws.ratio, level)
        end = (self.problem, self.solution, name, float(getattr(self.law, name)))
        low, high = (intervals.profile_end(*end, side, self.threshold(level)) for side in (-1, 1))
        return low, high

    @property
    def llms(self) -> int:
        """LLMs (a size and a seed each) that the points come from."""
        return len(np.unique(self.points.llm))

    @property
    def shared(self) -> bool:
        """Several points come from one LLM, so that their errors are not independent."""
        return self.llms < self.n

    @cached_property
    def without_each_llm(self) -> Law:
        """The law fitted without each LLM, one law whose fields are (llms,)."""
        return self._made(intervals.left_out(self.problem, self.solution, self.points.llm))

    def clustered_interval(self, name: str, level: float = LEVEL) -> tuple[float, float]:
        """The interval of a parameter or "ratio" when all V of one LLM share its luck (see `intervals`).

        Never narrower than `interval`, and the same where no points share an LLM; infinite for fewer than
        three LLMs.
        """
        low, high = self.interval(name, level)
        if not self.shared or not np.isfinite([low, high]).any():
            return low, high
        value, others = float(getattr(self.law, name)), getattr(self.without_each_llm, name)
        below, above = intervals.jackknife(value, others, name in intervals.POSITIVE, level)
        least = 0.0 if name in ("D", *intervals.POSITIVE) else -np.inf
        return max(min(low, below), least), max(high, above)

    @cached_property
    def draws(self) -> Law:
        """2,000 residual draws."""
        return self.bootstrap()

    def bootstrap(self, draws: int = 2000, by: str = "residual", seed: int = 0) -> Law:
        """The law refitted to resampled points, one law whose fields are (draws,).

        by: "residual", "size" (whole model sizes redrawn) or "seed" (whole training seeds redrawn). Raises
        InputError when there is only one of them.
        """
        if by not in ("residual", "size", "seed"):
            raise InputError(f"bootstrap by {by!r} is unknown; choose residual, size or seed")
        groups = {"size": self.points.N, "seed": self.points.seed}.get(by)
        if groups is not None and len(np.unique(groups)) < 2:
            raise InputError(f"bootstrap by {by}: the points hold one {by} only; choose residual")
        return self._made(intervals.redrawn(self.problem, self.solution, self.predicted, draws, groups, seed))

    def _made(self, s: Solution) -> Law:
        return self.problem.made(s, self.law.tokens)


def fit(points: Points, law: str = "power", tokens: str = "V") -> Fit:
    """Fit one law to points by variable projection, from several starts.

    law: a name of `LAWS`; tokens: what T is, "V" or "Q+V". Points without a token (T = 0) are left out unless
    the law is "offset", the only one that has a value there. Raises InputError for fewer than 4 points, a
    single N or a single V.
    """
    if law not in LAWS:
        raise InputError(f"law {law!r} is unknown; choose {', '.join(LAWS)}")
    if tokens not in TOKENS:
        raise InputError(f"tokens {tokens!r} is unknown; choose {' or '.join(TOKENS)}")
    began = time.perf_counter()
    cls, T = LAWS[law], points.V + (points.Q if tokens == "Q+V" else 0.0)
    if law != "offset":
        points, T = points.keep(T > 0), T[T > 0]
    _check(points)
    n, t = np.log(points.N), np.log(np.maximum(T, 1))
    problem = Problem(cls, Design(n, T, float(n.mean()), float(t.mean())), points.Y)
    starts = [*itertools.product(*(STARTS[name] for name in cls.exponents))]  # one, empty, for a linear law
    first = problem.solve(starts, rounds=12)
    likely = np.argsort(np.nan_to_num(first.sse, nan=np.inf))[:3]
    best = problem.solve(first.theta[likely], rounds=300).best_of(len(likely))
    made = problem.made(best, tokens)
    made = replace(made, **{x: float(getattr(made, x)[0]) for x in (*cls.exponents, *cls.coefficients)})
    return Fit(made, points, problem, best, time.perf_counter() - began)


def _check(points: Points) -> None:
    if len(points) < 4:
        raise InputError(f"family {points.family}: {len(points)} usable points; a law needs at least 4")
    for name in ("N", "V"):
        values = np.unique(getattr(points, name))
        if len(values) < 2:
            every = f"all points have {name} = {values[0]:g}"
            raise InputError(f"family {points.family}: {every}; give at least two {name}")
