"""Laws of the error Y in LLM parameters N (billions) and tokens T, and why they have a best V.

The paper's law is a product: each axis scales the error of the other,

    Y(N, T) = A / N^alpha * 1 / T^beta + D.

At a fixed inference cost C = N (Q + V) one may pay for a larger LLM with fewer visual tokens. The best V,
with T = V, follows in four lines:

    minimise    -alpha ln N - beta ln V                  (D and A do not matter)
    with        ln N = ln C - ln(Q + V)                  (the cost is fixed)
    derivative  alpha / (Q + V) - beta / V = 0
    so          V* = beta Q / (alpha - beta) = Q / (alpha/beta - 1)     if alpha > beta, else as many as fit.

C has dropped out: V* is the same for every budget. Only the ratio alpha / beta decides it.

The other forms are ours, for comparison. In the additive one a question is answered if the facts are seen and
known, so that the two errors add up (while both are small): A / N^alpha + B / T^beta + D.

A law is an object whose docstring is its equation. It is linear in its coefficients once its exponents are
given, Y = sum_k coef_k * column_k(exponents), and `columns` and `slopes` are all that the fit needs. Fields
may be arrays (bootstrap draws): `error` then broadcasts. T is V or Q + V (`tokens`): the paper's text says
Q + V, its official code fits V. Source: arXiv 2411.03312, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

TOKENS = ("V", "Q+V")


@dataclass(frozen=True)
class Design:
    """Where a law is evaluated: ln N (billions), T tokens, and the centre where exponents are quoted."""

    n: np.ndarray  # (n,) ln N
    T: np.ndarray  # (n,) tokens the law sees, V or Q + V
    n0: float = 0.0  # mean ln N of the fitted points
    t0: float = 0.0  # mean ln T of the fitted points

    @property
    def t(self) -> np.ndarray:
        """ln T, (n,)."""
        return np.log(self.T)


@dataclass(frozen=True)
class Law:
    """What every law can say; `tokens` is "V" or "Q+V"."""

    tokens: str = field(default="V", kw_only=True)
    n0: float = field(default=0.0, kw_only=True)  # centre, ln N
    t0: float = field(default=0.0, kw_only=True)  # centre, ln T

    name: ClassVar[str]
    exponents: ClassVar[tuple[str, ...]]  # nonlinear parameters
    coefficients: ClassVar[tuple[str, ...]]  # linear ones
    bounded: ClassVar[tuple[bool, ...]]  # coefficients that must not be negative
    closed: ClassVar[bool] = True  # V* has a closed form that no budget enters
    box: ClassVar[tuple[float, float]] = (-2.0, 4.0)  # where exponents are looked for

    @classmethod
    def make(cls, theta, coef, **kw) -> Law:
        """Exponents (..., p) and coefficients (..., k) -> law with fields (...)."""
        values = dict(zip(cls.exponents, np.moveaxis(np.asarray(theta, float), -1, 0)))
        values |= dict(zip(cls.coefficients, np.moveaxis(np.asarray(coef, float), -1, 0)))
        return cls(**values, **kw)

    @classmethod
    def powers(cls, at: Design) -> list[tuple]:
        """What each exponent (row) multiplies in each column: column_k = exp(-sum_j theta_j powers_jk)."""
        raise NotImplementedError

    @classmethod
    def _powers(cls, at: Design) -> np.ndarray:
        return np.stack([np.stack(np.broadcast_arrays(*row), -1) for row in cls.powers(at)])  # (p, n, k)

    @classmethod
    def columns(cls, theta: np.ndarray, at: Design) -> np.ndarray:
        """Exponents (m, p) -> columns (m, n, k)."""
        return np.exp(-np.tensordot(theta, cls._powers(at), 1))

    @classmethod
    def slopes(cls, theta: np.ndarray, at: Design) -> np.ndarray:
        """Exponents (m, p) -> derivative of the columns by each exponent (m, p, n, k)."""
        return -cls._powers(at) * cls.columns(theta, at)[:, None]

    def error(self, N, V, Q=0.0) -> np.ndarray:
        """Predicted error 1 - score at N (billions), V visual, Q text tokens; draws come first: (m, ...)."""
        T = np.asarray(V, float) + (np.asarray(Q, float) if self.tokens == "Q+V" else 0.0)
        n, T = np.broadcast_arrays(np.log(np.asarray(N, float)), T)
        pick = lambda names: np.stack([np.atleast_1d(getattr(self, x)) for x in names], -1)  # noqa: E731
        coef = pick(self.coefficients)  # (m, k)
        theta = pick(self.exponents) if self.exponents else np.empty((len(coef), 0))  # (m, p)
        at = Design(n.reshape(-1), T.reshape(-1), self.n0, self.t0)
        out = np.einsum("mnk,mk->mn", self.columns(theta, at), coef).reshape(-1, *n.shape)
        return out if np.ndim(self.alpha) else out[0]

    @property
    def ratio(self):
        """alpha / beta: how many times faster the error moves with ln N than with ln T, at the centre."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.alpha) / np.asarray(self.beta)

    def shift(self, Q=0.0):
        """T - V: what the law adds to V before taking the power."""
        return np.asarray(Q, float) if self.tokens == "Q+V" else 0.0


@dataclass(frozen=True)
class Power(Law):
    """Y(N, T) = A / N^alpha * 1 / T^beta + D, with A >= 0 and D >= 0 (the paper's law)."""

    A: float
    alpha: float
    beta: float
    D: float
    name, exponents, coefficients, bounded = "power", ("alpha", "beta"), ("A", "D"), (True, True)

    @classmethod
    def powers(cls, at):
        return [(at.n, 0), (at.t, 0)]


@dataclass(frozen=True)
class LogLinear(Law):
    """Y(N, T) = A - alpha ln N - beta ln T: the power law's limit for small exponents; no floor, linear."""

    A: float
    alpha: float
    beta: float
    name, exponents, coefficients, bounded = "log-linear", (), ("A", "alpha", "beta"), (False, False, False)

    @classmethod
    def columns(cls, theta, at):
        one = np.stack([np.ones_like(at.n), -at.n, -at.t], -1)
        return np.broadcast_to(one, (len(theta), *one.shape))

    @classmethod
    def slopes(cls, theta, at):
        return np.zeros((len(theta), 0, len(at.n), 3))


@dataclass(frozen=True)
class Additive(Law):
    """Y(N, T) = A / N^alpha + B / T^beta + D, with A, B, D >= 0: to know and to see.

    `ratio` is that of the slopes at the centre.
    """

    A: float
    alpha: float
    B: float
    beta: float
    D: float
    name, exponents, coefficients = "additive", ("alpha", "beta"), ("A", "B", "D")
    bounded, closed = (True, True, True), False

    @classmethod
    def powers(cls, at):
        return [(at.n, 0, 0), (0, at.t, 0)]

    @property
    def ratio(self):
        with np.errstate(all="ignore"):
            by_n = np.asarray(self.alpha) * self.A * np.exp(-np.asarray(self.alpha) * self.n0)
            return by_n / (np.asarray(self.beta) * self.B * np.exp(-np.asarray(self.beta) * self.t0))


@dataclass(frozen=True)
class Interaction(Law):
    """Y(N, T) = A N^-alpha T^-beta exp(-gamma ln(N/N0) ln(T/T0)) + D, with A, D >= 0.

    alpha and beta are the exponents at the centre (N0, T0); gamma > 0 means that larger LLMs gain more from
    tokens.
    """

    A: float
    alpha: float
    beta: float
    gamma: float
    D: float
    name, exponents, coefficients = "interaction", ("alpha", "beta", "gamma"), ("A", "D")
    bounded, closed = (True, True), False

    @classmethod
    def powers(cls, at):
        return [(at.n, 0), (at.t, 0), ((at.n - at.n0) * (at.t - at.t0), 0)]


@dataclass(frozen=True)
class Offset(Law):
    """Y(N, T) = A / N^alpha * 1 / (T + c)^beta + D, with A, D >= 0 and c > 0: V = 0 has an error too."""

    A: float
    alpha: float
    beta: float
    ln_c: float
    D: float
    name, exponents, coefficients = "offset", ("alpha", "beta", "ln_c"), ("A", "D")
    bounded = (True, True)

    @property
    def c(self):
        """Tokens that the question seems worth by itself."""
        return np.exp(self.ln_c)

    def shift(self, Q=0.0):
        return super().shift(Q) + self.c

    @classmethod
    def columns(cls, theta, at):
        T = at.T + np.exp(theta[:, 2:])  # (m, n)
        f = np.exp(-theta[:, :1] * at.n - theta[:, 1:2] * np.log(T))
        return np.stack([f, np.ones_like(f)], -1)

    @classmethod
    def slopes(cls, theta, at):
        c = np.exp(theta[:, 2:])
        f = cls.columns(theta, at)[..., 0]
        by = np.stack([-at.n * f, -np.log(at.T + c) * f, -theta[:, 1:2] * c / (at.T + c) * f], 1)
        return np.stack([by, np.zeros_like(by)], -1)


LAWS: dict[str, type[Law]] = {law.name: law for law in (Power, LogLinear, Additive, Interaction, Offset)}
