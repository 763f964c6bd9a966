"""A law fitted to points: how it ended, what it leaves over, what the points identify and what they don't.

Point fits search from several starts with `varpro.solve` and are finished by scipy's least squares on the
projected residual; intervals are profile likelihoods (F quantiles) or bootstraps (residual, by model size,
by seed).
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from vtc import InputError
from vtc.scaling import varpro
from vtc.scaling.laws import LAWS, TOKENS, Design, Law
from vtc.scaling.scores import Points

STARTS = {"alpha": (0.02, 0.1, 0.5), "beta": (0.02, 0.1, 0.5), "gamma": (0.0,), "ln_c": (0.0, 3.0)}
LEVEL = 0.95
BAD_R2 = 0.8  # below this a fit is called bad


@dataclass(frozen=True)
class Fit:
    """A law with the points it was fitted to."""

    law: Law
    at: Design
    points: Points
    solution: varpro.Solution  # of a batch of one
    D_min: float
    seconds: float

    @property
    def n(self) -> int:
        return len(self.points)

    @property
    def k(self) -> int:
        """Parameters of the law, bounds or not."""
        return len(self.law.exponents) + len(self.law.coefficients)

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

    @cached_property
    def status(self) -> str:
        """How the fit ended: converged or not, which parameter is at which bound, what is not identified."""
        s = self.solution
        if not (np.isfinite(s.sse[0]) and np.isfinite(s.coef).all() and np.isfinite(s.theta).all()):
            return "not finite"
        said = ["converged" if s.converged[0] else "not converged"]
        low, high = varpro._box(type(self.law))
        for name, value, lo, hi in zip(self.law.exponents, s.theta[0], low, high):
            for bound in (lo, hi):
                if abs(value - bound) < 1e-6 * (1 + abs(bound)):
                    said.append(f"{name} at its bound {bound:.3g}")
        for name, free in zip(self.law.coefficients, s.free[0]):
            if not free:
                said.append(f"{name} at its bound {self.D_min if name == 'D' else 0:g}")
        if self.r2 < BAD_R2:
            said.append(f"fits badly (R2 {self.r2:.2f})")
        lost = self.unidentified
        if not lost and self.interval("beta")[0] <= 0 <= self.interval("beta")[1]:
            said.append("beta not told from 0: no effect of V is seen")
        return "; ".join(said + ([f"not identified: {', '.join(lost)}"] if lost else []))

    @cached_property
    def unidentified(self) -> list[str]:
        """Parameters that the points leave open: an interval of theirs has no end on some side."""
        if self.n <= self.k:
            return [*self.law.exponents, *self.law.coefficients]
        names = [x for x in (*self.law.exponents, *self.law.coefficients) if x in ("alpha", "beta", "D")]
        return [name for name in names if not np.isfinite(self.interval(name)).all()]

    # ----------------------------------------------------------------------------------------- intervals

    def threshold(self, level: float = LEVEL) -> float:
        """SSE up to which a held value stays in the interval: SSE (1 + F(1, n - k) / (n - k))."""
        from scipy.special import fdtri

        left = self.n - self.k
        return self.sse * (1 + fdtri(1, left, level) / left) if left > 0 else np.inf

    def profile(self, name: str, values) -> np.ndarray:
        """Least SSE when one parameter (or "ratio") is held at each of `values` (m,) -> (m,)."""
        return self.along(name, values).sse

    def along(self, name: str, values) -> varpro.Solution:
        """The whole solution at each held value (m,); D may be held anywhere, also below zero."""
        values = np.asarray(values, float)
        law, starts = type(self.law), self._warm()
        grid = np.repeat(values, len(starts))
        many = varpro.solve(
            law,
            self.at,
            np.broadcast_to(self.points.Y, (len(grid), self.n)),
            np.tile(starts, (len(values), 1)),
            fixed={name: grid},
            D_min=self.D_min,
            rounds=60,
        )
        best = many.sse.reshape(len(values), -1).argmin(1) + np.arange(len(values)) * len(starts)
        return many[best]

    def _warm(self) -> np.ndarray:
        """Exponents to start from: the fit's own, and steeper ones with a higher floor, (starts, p)."""
        theta = self.solution.theta[0]
        steeper = theta * np.where(np.array(self.law.exponents) == "ln_c", 1, 3)
        return np.stack([theta, steeper]) if len(theta) else theta[None]

    def interval(self, name: str, level: float = LEVEL) -> tuple[float, float]:
        """Profile-likelihood interval of a parameter or "ratio"; infinite where the points set no end."""
        if self.n <= self.k:
            return -np.inf, np.inf
        if not self.law.exponents:
            return self._linear_interval(name, level)
        if name == "ratio" and not (
            "A" in self.law.coefficients and self.law.beta > 0 and self.law.alpha > 0
        ):
            return (-np.inf, np.inf)
        centre = float(self.law.ratio if name == "ratio" else getattr(self.law, name))
        limit = self.threshold(level)
        return self._end(name, centre, -1, limit), self._end(name, centre, 1, limit)

    def _end(self, name: str, centre: float, side: int, limit: float) -> float:
        """Walk from the estimate till the profile crosses `limit`, then close in; a batched ladder a step."""
        open_end, stop = side * np.inf, None
        if name == "D":
            stop = self.D_min if side < 0 else float(self.points.Y.max())
            open_end = self.D_min if side < 0 else np.inf
            if side < 0 and centre <= self.D_min:
                return self.D_min
        elif name in self.law.exponents:
            j = self.law.exponents.index(name)
            stop = varpro._box(type(self.law))[side > 0][j]
        if name in ("ratio", "A", "B"):  # positive: a ladder in the logarithm
            out = centre * np.exp(side * np.geomspace(1e-3, np.log(1e4), 24))
            open_end = 0.0 if side < 0 else np.inf
        else:
            room = abs(stop - centre)
            if room < 1e-9:
                return open_end
            out = centre + side * np.geomspace(min(1e-4, room / 2), room, 24)
        inside = np.concatenate([[centre], out])
        for rung in range(3):
            sse = self.profile(name, inside)
            above = sse > limit
            above[0] = False
            if not above.any():
                return open_end if rung == 0 else float(inside[-1])
            i = int(above.argmax())
            inside, sse = inside[i - 1 : i + 1], sse[i - 1 : i + 1]
            if rung < 2:
                inside = np.linspace(*inside, 12)
        return float(np.interp(limit, sse, inside))

    def _linear_interval(self, name: str, level: float) -> tuple[float, float]:
        """Exact t intervals of a linear law; Fieller's for the ratio."""
        from scipy.special import fdtri

        X = type(self.law).columns(np.empty((1, 0)), self.at)[0]
        cov = np.linalg.pinv(X.T @ X) * self.sse / (self.n - self.k)
        cut = fdtri(1, self.n - self.k, level)
        if name != "ratio":
            j = self.law.coefficients.index(name)
            half = np.sqrt(cut * cov[j, j])
            return float(getattr(self.law, name) - half), float(getattr(self.law, name) + half)
        a, b, S = self.law.alpha, self.law.beta, cov[1:, 1:]
        p, q, r = b * b - cut * S[1, 1], a * b - cut * S[0, 1], a * a - cut * S[0, 0]
        if p <= 0 or q * q < p * r:
            return -np.inf, np.inf
        root = np.sqrt(q * q - p * r)
        return float((q - root) / p), float((q + root) / p)

    def bootstrap(self, draws: int = 2000, by: str = "residual", seed: int = 0) -> Law:
        """The law refitted to resampled points, one law whose fields are (draws,).

        by: "residual" (errors redrawn, widened for the parameters spent), "size" (whole model sizes
        redrawn) or "seed" (whole training seeds redrawn). Raises InputError when there are too few of them.
        """
        rng = np.random.default_rng(seed)
        Y, weights = np.broadcast_to(self.points.Y, (draws, self.n)), None
        if by == "residual":
            wide = np.sqrt(self.n / max(self.n - self.k, 1))
            e = (self.residual - self.residual.mean()) * wide
            Y = self.predicted + rng.choice(e, (draws, self.n))
        else:
            weights = self._cluster_weights(rng, draws, by)
        starts = np.repeat(self.solution.theta, draws, 0)
        s = varpro.solve(type(self.law), self.at, Y, starts, weights, D_min=self.D_min, rounds=40)
        return type(self.law).make(s.theta, s.coef, tokens=self.law.tokens, n0=self.at.n0, t0=self.at.t0)

    def _cluster_weights(self, rng, draws: int, by: str) -> np.ndarray:
        """How often every point is drawn when whole groups are, (draws, n); at least two sizes a draw."""
        label = {"size": self.points.N, "seed": self.points.seed}.get(by)
        if label is None:
            raise InputError(f"bootstrap by {by!r} is unknown; choose residual, size or seed")
        groups, which = np.unique(label, return_inverse=True)
        if len(groups) < 2:
            raise InputError(f"bootstrap by {by}: the points hold one {by} only; choose residual")
        need = 2 if by == "size" else 1
        counts = np.zeros((0, len(groups)))
        while len(counts) < draws:
            new = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=draws)
            counts = np.concatenate([counts, new[(new > 0).sum(1) >= need]])
        return counts[:draws][:, which].astype(float)


def fit(points: Points, law: str = "power", tokens: str = "V", D_min: float = 0.0) -> Fit:
    """Fit one law to points by variable projection.

    law: a name of `LAWS`; tokens: what T is, "V" or "Q+V"; D_min: bound of the floor D. Points at T = 0 are
    left out unless the law is "offset". Raises InputError for fewer than 4 points, a single N or a single V.
    """
    if law not in LAWS:
        raise InputError(f"law {law!r} is unknown; choose {', '.join(LAWS)}")
    if tokens not in TOKENS:
        raise InputError(f"tokens {tokens!r} is unknown; choose {' or '.join(TOKENS)}")
    began = time.perf_counter()
    cls = LAWS[law]
    if law != "offset":
        points = points.keep(points.V + (points.Q if tokens == "Q+V" else 0) > 0)
    _check(points)
    T = points.V + (points.Q if tokens == "Q+V" else 0.0)
    n, t = np.log(points.N), np.log(np.maximum(T, 1))
    at = Design(n, T, float(n.mean()), float(t.mean()))
    starts = np.array([*itertools.product(*(STARTS[name] for name in cls.exponents))])
    starts = starts.reshape(-1, len(cls.exponents)) if cls.exponents else np.empty((1, 0))
    found = varpro.solve(cls, at, np.repeat(points.Y[None], len(starts), 0), starts, D_min=D_min, rounds=12)
    best = found[[int(np.nanargmin(np.where(np.isfinite(found.sse), found.sse, np.inf)))]]
    best = _polish(cls, at, points.Y, best, D_min)
    made = cls.make(best.theta[0], best.coef[0], tokens=tokens, n0=at.n0, t0=at.t0)
    made = replace(made, **{f: float(getattr(made, f)) for f in (*cls.exponents, *cls.coefficients)})
    return Fit(made, at, points, best, D_min, time.perf_counter() - began)


def _polish(cls, at, Y, best: varpro.Solution, D_min: float) -> varpro.Solution:
    """scipy's least squares on the projected residual, from the best start; kept when it is no worse."""
    if not cls.exponents or not np.isfinite(best.sse[0]):
        return best
    from scipy.optimize import least_squares

    floor = D_min if "D" in cls.coefficients else 0.0
    low, high = varpro._box(cls)

    def residual(theta):
        return varpro.inner(cls.columns(theta[None], at), Y[None] - floor, cls.bounded)[1][0]

    start = np.clip(best.theta[0], low + 1e-9, high - 1e-9)
    out = least_squares(
        residual, start, bounds=(low, high), x_scale=0.1, xtol=1e-12, ftol=1e-14, gtol=1e-14, max_nfev=60
    )
    again = varpro.solve(cls, at, Y[None], out.x[None], D_min=D_min)
    return again if again.sse[0] <= best.sse[0] else best


def _check(points: Points) -> None:
    if len(points) < 4:
        raise InputError(f"family {points.family}: {len(points)} usable points; a law needs at least 4")
    for name in ("N", "V"):
        values = np.unique(getattr(points, name))
        if len(values) < 2:
            raise InputError(
                f"family {points.family}: all points have {name} = {values[0]:g}; give at least two {name}"
            )
