"""Variable projection, many at once: exponents by Levenberg-Marquardt, coefficients solved exactly inside.

For given exponents every law is linear, so the coefficients (with their bounds) have a closed solution;
what is left is a search over two or three exponents. Bootstrap draws and profile points are problems of one
batch (m), so that thousands of fits cost about as much as a few. Source: Golub & Pereyra 1973; Kaufman's
Jacobian 1975.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from vtc.scaling.laws import Design, Law

RIDGE = 1e-14  # relative; keeps the normal equations of coinciding columns solvable


@dataclass(frozen=True)
class Solution:
    """Best exponents and coefficients of every problem of a batch."""

    theta: np.ndarray  # (m, p)
    coef: np.ndarray  # (m, k)
    sse: np.ndarray  # (m,)
    converged: np.ndarray  # (m,) bool
    free: np.ndarray  # (m, k) coefficients that are not at their bound

    def __getitem__(self, i) -> Solution:
        return Solution(self.theta[i], self.coef[i], self.sse[i], self.converged[i], self.free[i])


def _solve(columns, y, mask) -> np.ndarray:
    """Least squares on the columns that `mask` (m, k) keeps: (m, n, k), (m, n) -> coefficients (m, k)."""
    kept = columns * mask[:, None, :]
    size = np.sqrt((kept**2).sum(1)) + (mask == 0)  # (m, k), 1 for those left out
    kept = kept / size[:, None, :]
    gram = kept.swapaxes(1, 2) @ kept + (np.eye(kept.shape[2]) * (1 - mask)[:, None, :])
    gram += RIDGE * np.eye(kept.shape[2])
    return np.linalg.solve(gram, (kept.swapaxes(1, 2) @ y[..., None]))[..., 0] / size * mask


def inner(columns, y, bounded, fixed=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact coefficients under their bounds: (m, n, k), (m, n) -> coef (m, k), residual (m, n), free (m, k).

    bounded: k flags, coefficient >= 0. fixed: (m, k) with NaN where the coefficient is to be found. Every
    face of the bounds is tried, which for k <= 3 is exact and cheap.
    """
    m, _, k = columns.shape
    given = np.zeros((m, k)) if fixed is None else np.nan_to_num(fixed)
    open_ = np.ones((m, k)) if fixed is None else np.isnan(fixed).astype(float)
    y = y - (columns @ given[..., None])[..., 0]
    limited = np.array(bounded)
    best, coef, free = np.full(m, np.inf), np.zeros((m, k)), open_.copy()
    todo = np.arange(m)
    faces = (itertools.combinations(np.flatnonzero(limited), r) for r in range(k))  # never all of them off
    for off in itertools.chain.from_iterable(faces):
        mask = open_[todo].copy()
        mask[:, list(off)] = 0
        c = _solve(columns[todo], y[todo], mask)
        loss = ((y[todo] - (columns[todo] @ c[..., None])[..., 0]) ** 2).sum(1)
        good = (c[:, limited] >= 0).all(1) & (loss < best[todo])
        at = todo[good]
        best[at], coef[at], free[at] = loss[good], c[good], mask[good]
        if not off:  # those inside their bounds are done
            todo = todo[~good]
        if not len(todo):
            break
    return coef + given, y - (columns @ coef[..., None])[..., 0], free


def _jacobian(law, theta, at, columns, coef, free, root) -> np.ndarray:
    """Kaufman's derivative of the projected residual by the exponents, (m, n, p)."""
    slope = np.einsum("mpnk,mk->mnp", law.slopes(theta, at), coef) * root[..., None]
    kept = columns * free[:, None, :]
    size = np.sqrt((kept**2).sum(1)) + (free == 0)
    kept = kept / size[:, None, :]
    eye = np.eye(kept.shape[2])
    gram = kept.swapaxes(1, 2) @ kept + eye * (1 - free)[:, None, :] + RIDGE * eye
    return -(slope - kept @ np.linalg.solve(gram, kept.swapaxes(1, 2) @ slope))


def solve(law: type[Law], at: Design, Y, start, weights=None, fixed=None, D_min=0.0, rounds=100) -> Solution:
    """Fit a batch of problems that share a design.

    Y (m, n) errors, start (m, p) exponents, weights (m, n) or None. fixed: parameter name -> (m,) values
    that are held (an exponent, a coefficient, or "ratio" = alpha / beta). D_min shifts the floor's bound.
    Converged where the last step moved no exponent by more than 1e-9.
    """
    Y, theta = np.atleast_2d(Y).astype(float), np.array(start, float)
    m, p = theta.shape
    fixed = {name: np.broadcast_to(np.asarray(value, float), m) for name, value in (fixed or {}).items()}
    held = np.full((m, len(law.coefficients)), np.nan)
    for name in set(fixed) & set(law.coefficients):
        held[:, law.coefficients.index(name)] = fixed[name] - (D_min if name == "D" else 0.0)
    floor = D_min if "D" in law.coefficients else 0.0
    root = np.ones_like(Y) if weights is None else np.sqrt(weights)
    lift, theta, moving = _lift(law, theta, fixed)  # d theta / d psi (m, p, r)
    theta = _inside(law, theta, fixed, slice(None))

    def evaluate(th, i):
        columns = law.columns(th, at) * root[i][..., None]
        coef, residual, free = inner(columns, (Y[i] - floor) * root[i], law.bounded, held[i])
        return columns, coef, residual, free, (residual**2).sum(1)

    every = np.arange(m)
    columns, coef, residual, free, sse = evaluate(theta, every)
    done, damp, live = np.zeros(m, bool), np.full(m, 1e-3), every
    if not moving:
        done[:], live = np.isfinite(sse), every[:0]
    for _ in range(rounds):
        if not len(live):
            break
        J = _jacobian(law, theta[live], at, columns[live], coef[live], free[live], root[live]) @ lift[live]
        JJ, g = J.swapaxes(1, 2) @ J, (J.swapaxes(1, 2) @ residual[live][..., None])[..., 0]
        diag = np.einsum("mrr->mr", JJ)
        scale = np.sqrt(np.maximum(diag, 1e-30))
        JJ = JJ / scale[:, :, None] / scale[:, None, :] + damp[live, None, None] * np.eye(J.shape[2])
        step = -np.linalg.solve(JJ, (g / scale)[..., None])[..., 0] / scale
        step = np.clip(step, -1.0, 1.0)
        trial = _inside(law, theta[live] + (lift[live] @ step[..., None])[..., 0], fixed, live)
        new = evaluate(trial, live)
        better = new[4] <= sse[live]
        small = np.abs(trial - theta[live]).max(1) < 1e-9 * (1 + np.abs(theta[live]).max(1))
        gain = live[better]
        theta[gain] = trial[better]
        for whole, part in zip((columns, coef, residual, free, sse), new):
            whole[gain] = part[better]
        damp[live] = np.where(better, np.maximum(damp[live] / 8, 1e-12), np.minimum(damp[live] * 6, 1e12))
        stuck = ~better & (damp[live] > 1e10)
        done[live] |= small | stuck
        live = live[~(small | stuck)]
    done &= np.isfinite(sse)
    if "D" in law.coefficients:
        coef = coef + floor * (np.array(law.coefficients) == "D")
    return Solution(theta, coef, sse, done, free)


def _box(law: type[Law]) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds of the exponents; ln c runs from .01 to 1,000 tokens."""
    low = [np.log(0.01) if name == "ln_c" else law.box[0] for name in law.exponents]
    high = [np.log(1000.0) if name == "ln_c" else law.box[1] for name in law.exponents]
    return np.array(low), np.array(high)


def _inside(law: type[Law], theta, fixed, which) -> np.ndarray:
    """Exponents (m, p) moved into their box; a held ratio stays held."""
    low, high = _box(law)
    theta = np.clip(theta, low, high)
    if "ratio" in fixed:
        a, b = law.exponents.index("alpha"), law.exponents.index("beta")
        ratio = np.asarray(fixed["ratio"])[which]
        theta[:, b] = np.clip(
            theta[:, b], law.box[0] / np.maximum(ratio, 1), law.box[1] / np.maximum(ratio, 1)
        )
        theta[:, a] = ratio * theta[:, b]
    return theta


def _lift(law, theta, fixed) -> tuple[np.ndarray, np.ndarray, int]:
    """Directions in which the exponents may move when some are held, (m, p, r); theta obeys what is held."""
    m, p = theta.shape
    names = list(law.exponents)
    rows = np.eye(p)[None].repeat(m, 0)
    drop = [names.index(name) for name in fixed if name in names]
    for j in drop:
        theta[:, j] = fixed[names[j]]
    if "ratio" in fixed:
        a, b = names.index("alpha"), names.index("beta")
        theta[:, b] = np.sqrt(np.abs(theta[:, a] * theta[:, b] / fixed["ratio"]))
        theta[:, a] = fixed["ratio"] * theta[:, b]
        rows[:, a, b] = fixed["ratio"]
        drop.append(a)
    kept = [j for j in range(p) if j not in drop]
    return rows[:, :, kept], theta, len(kept)
