"""Variable projection, many at once: exponents by Levenberg-Marquardt, coefficients solved exactly inside.

For given exponents every law is linear, so the coefficients (with their bounds) have an exact solution; what
is left is a search over two or three exponents. Bootstrap draws and profile points are problems of one batch
(m), so that thousands of fits cost about as much as a few. Source: Golub & Pereyra 1973; Kaufman's Jacobian
1975.
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
        return Solution(*(getattr(self, name)[i] for name in self.__dataclass_fields__))

    def best_of(self, starts: int) -> Solution:
        """Of every `starts` neighbours of the batch the one of least SSE."""
        sse = np.where(np.isfinite(self.sse), self.sse, np.inf).reshape(-1, starts)
        return self[sse.argmin(1) + np.arange(len(sse)) * starts]


@dataclass(frozen=True)
class Problem:
    """What is minimised: the squared errors of a law at n points."""

    law: type[Law]
    at: Design
    Y: np.ndarray  # (n,)

    @property
    def n(self) -> int:
        return len(self.Y)

    @property
    def k(self) -> int:
        """Parameters of the law, at a bound or not."""
        return len(self.law.exponents) + len(self.law.coefficients)

    @property
    def box(self) -> np.ndarray:
        """Bounds of the exponents (p, 2); ln c runs from .01 to 1,000 tokens."""
        ln_c = np.log(0.01), np.log(1000.0)
        ends = [ln_c if name == "ln_c" else self.law.box for name in self.law.exponents]
        return np.array(ends).reshape(-1, 2)

    def made(self, s: Solution, tokens: str) -> Law:
        """The solutions as one law whose fields are (m,)."""
        return self.law.make(s.theta, s.coef, tokens=tokens, n0=self.at.n0, t0=self.at.t0)

    def solve(self, start, Y=None, weights=None, held=None, rounds: int = 100) -> Solution:
        """Fit a batch of problems that share the design.

        start (m, p) exponents; Y (m, n) other errors than the problem's own; weights (m, n); held: (name,
        values (m,)) of a parameter, or "ratio" = alpha / beta, that is not free. D may be held below its
        bound. Converged where the last step moved no exponent by more than 1e-9.
        """
        law, at, start = self.law, self.at, np.array(start, float)
        m = len(start)
        root = np.ones((m, self.n)) if weights is None else np.sqrt(weights)
        target = np.broadcast_to(self.Y if Y is None else Y, (m, self.n)) * root
        base, basis, box, given = self._held(m, held)

        def evaluate(free, i):  # free exponents (m, r) -> everything that follows from them
            theta = base[i] + (basis[i] @ free[..., None])[..., 0]
            columns = law.columns(theta, at) * root[i][..., None]
            coef, residual, open_ = inner(columns, target[i], law.bounded, given[i])
            return free, theta, columns, coef, residual, open_, (residual**2).sum(1)

        free = np.clip((np.linalg.pinv(basis) @ (start - base)[..., None])[..., 0], box[..., 0], box[..., 1])
        state = evaluate(free, slice(None))
        sse, done, damp = state[-1], np.zeros(m, bool), np.full(m, 1e-3)
        live = np.arange(m) if free.shape[1] else np.arange(0)
        done[:] = not len(live)
        for _ in range(rounds):
            if not len(live):
                break
            now = [part[live] for part in state]
            step = _step(law, at, now, root[live], basis[live], damp[live])
            trial = np.clip(now[0] + step, box[live, :, 0], box[live, :, 1])
            new = evaluate(trial, live)
            better = new[-1] <= sse[live]
            small = np.abs(trial - now[0]).max(1) < 1e-9 * (1 + np.abs(now[0]).max(1))
            for whole, part in zip(state, new):
                whole[live[better]] = part[better]
            damp[live] *= np.where(better, 1 / 8, 6)
            damp = np.clip(damp, 1e-12, 1e12)
            over = small | (~better & (damp[live] > 1e10))
            done[live] |= over
            live = live[~over]
        _, theta, _, coef, _, open_, sse = state
        return Solution(theta, coef, sse, done & np.isfinite(sse), open_)

    def _held(self, m: int, held) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What may still move when a value is held: exponents = base (m, p) + basis (m, p, r) @ free (m, r).

        And the box of the free ones (m, r, 2), and coefficients that are given (m, k; NaN: to be found).
        """
        law, p = self.law, len(self.law.exponents)
        base, basis, box = np.zeros((m, p)), np.tile(np.eye(p), (m, 1, 1)), np.tile(self.box, (m, 1, 1))
        given = np.full((m, len(law.coefficients)), np.nan)
        if held is None:
            return base, basis, box, given
        name, values = held[0], np.broadcast_to(np.asarray(held[1], float), m)
        if name in law.coefficients:
            given[:, law.coefficients.index(name)] = values
            return base, basis, box, given
        j = law.exponents.index("alpha" if name == "ratio" else name)
        if name == "ratio":  # alpha = ratio * beta: one direction for both
            b = law.exponents.index("beta")
            basis[:, j, b], box[:, b] = values, box[:, b] / np.maximum(values, 1)[:, None]
        else:
            base[:, j] = values
        return base, np.delete(basis, j, 2), np.delete(box, j, 1), given


def _least(columns, mask, y) -> np.ndarray:
    """Least squares on the columns that `mask` (m, k) keeps: (m, n, k), (m, n, r) -> (m, k, r)."""
    kept = columns * mask[:, None, :]
    size = np.sqrt((kept**2).sum(1)) + (mask == 0)  # (m, k), 1 for those left out
    kept = kept / size[:, None, :]
    eye = np.eye(kept.shape[2])
    gram = kept.swapaxes(1, 2) @ kept + eye * (1 - mask)[:, None, :] + RIDGE * eye
    return np.linalg.solve(gram, kept.swapaxes(1, 2) @ y) / size[..., None] * mask[..., None]


def inner(columns, y, bounded, given) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact coefficients under their bounds: (m, n, k), (m, n) -> coef (m, k), residual (m, n), free (m, k).

    bounded: k flags, coefficient >= 0; given: (m, k) with NaN where the coefficient is to be found. Every
    face of the bounds is tried, which for k <= 3 is exact and cheap.
    """
    m, _, k = columns.shape
    fixed, open_ = np.nan_to_num(given), np.isnan(given).astype(float)
    y = y - (columns @ fixed[..., None])[..., 0]
    limited = np.array(bounded)
    best, coef, free = np.full(m, np.inf), np.zeros((m, k)), open_.copy()
    todo = np.arange(m)
    faces = (itertools.combinations(np.flatnonzero(limited), r) for r in range(k))  # never all of them off
    for off in itertools.chain.from_iterable(faces):
        mask = open_[todo].copy()
        mask[:, list(off)] = 0
        c = _least(columns[todo], mask, y[todo][..., None])
        loss = ((y[todo] - (columns[todo] @ c)[..., 0]) ** 2).sum(1)
        good = (c[:, limited, 0] >= 0).all(1) & (loss < best[todo])
        at = todo[good]
        best[at], coef[at], free[at] = loss[good], c[good, :, 0], mask[good]
        if not off:  # those inside their bounds are done
            todo = todo[~good]
        if not len(todo):
            break
    return coef + fixed, y - (columns @ coef[..., None])[..., 0], free


def _step(law, at, now, root, basis, damp) -> np.ndarray:
    """Levenberg-Marquardt step of the free exponents (m, r), with Kaufman's derivative of the residual."""
    _, theta, columns, coef, residual, open_, _ = now
    slope = np.einsum("mpnk,mk->mnp", law.slopes(theta, at), coef) * root[..., None]
    J = -(slope - columns @ _least(columns, open_, slope)) @ basis  # (m, n, r)
    JJ, g = J.swapaxes(1, 2) @ J, J.swapaxes(1, 2) @ residual[..., None]
    size = np.sqrt(np.maximum(np.einsum("mrr->mr", JJ), 1e-30))
    JJ = JJ / size[:, :, None] / size[:, None, :] + damp[:, None, None] * np.eye(J.shape[2])
    return np.clip(-np.linalg.solve(JJ, g / size[..., None])[..., 0] / size, -1.0, 1.0)
