"""The error of a whole grid of N and V, predicted from two marginals.

A vision-language model errs because it does not see or because it does not know. Two cheap curves say how
much:

    K(N)   the error of an LLM of N parameters told in words what the image shows: what it does not know
    E(V)   the error of one vision-language model, its LLM of N0 parameters fixed, at V visual tokens

Two forms predict every other cell from them:

    product         Y(N, V) = E(V) K(N) / K(N0)                          the paper's law: two powers
    see and know    1 - Y(N, V) = (1 - E(V)) (1 - K(N)) / (1 - K(N0))    right where seen and known

The first is arXiv 2411.03312, section 3, without its floor; the second composes two independent chances to
fail. Between measured points the logarithm of the error is interpolated in ln N or ln V; beyond them it
goes on as the power law through all points, and the prediction is labelled an extrapolation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtc import InputError
from vtc.scaling.scores import records

FORMS = ("product", "see and know")
LEAST = 1e-4  # an error of 0 has no logarithm: it counts as so much
LEVEL = 0.95


@dataclass(frozen=True)
class Marginal:
    """One curve: at each size (N in billions, or V), the mean error and its standard error over seeds."""

    name: str  # "N" or "V"
    at: np.ndarray  # (n,) sizes, rising
    error: np.ndarray  # (n,) mean error over seeds
    spread: np.ndarray  # (n,) standard error of the mean; NaN where there is one seed
    seeds: int  # seeds at the size that has fewest

    @staticmethod
    def of(name: str, at, error) -> Marginal:
        """Rows (one a size and seed) -> the curve; InputError for fewer than two sizes or bad numbers."""
        at, error = np.asarray(at, float), np.asarray(error, float)
        if len(at) == 0 or not (np.isfinite(at).all() and (at > 0).all()):
            rule = f"every {name} must be a number above 0 (no image: leave it out)"
            raise InputError(f"marginal over {name}: {rule}")
        if not (np.isfinite(error).all() and (error >= 0).all() and (error <= 1).all()):
            raise InputError(f"marginal over {name}: every error must lie between 0 and 1")
        sizes = np.unique(at)
        if len(sizes) < 2:
            every = f"all rows have {name} = {sizes[0]:g}"
            raise InputError(f"marginal over {name}: {every}; give at least two {name}")
        groups = [error[at == size] for size in sizes]
        spread = [g.std(ddof=1) / len(g) ** 0.5 if len(g) > 1 else np.nan for g in groups]
        mean = np.array([g.mean() for g in groups])
        return Marginal(name, sizes, mean, np.array(spread), min(map(len, groups)))

    @property
    def exponent(self) -> float:
        """Of the power law through the points, by least squares on logarithms: error ~ size^-exponent."""
        return float(-np.polyfit(np.log(self.at), np.log(self.error.clip(LEAST)), 1)[0])

    @property
    def r2(self) -> float:
        """Of that power law, on logarithms."""
        x, y = np.log(self.at), np.log(self.error.clip(LEAST))
        left = y - np.polyval(np.polyfit(x, y, 1), x)
        return float(1 - left.var() / y.var()) if y.var() > 0 else float("nan")

    def inside(self, size: float) -> bool:
        """Whether a size lies between measured ones."""
        return bool(self.at[0] * (1 - 1e-9) <= size <= self.at[-1] * (1 + 1e-9))

    def read(self, sizes: np.ndarray, error: np.ndarray | None = None) -> np.ndarray:
        """Errors at sizes (m,) of this curve, or of drawn curves `error` (draws, n) -> (m,) or (draws, m)."""
        curves = np.atleast_2d(self.error if error is None else error).clip(LEAST)
        x, y, to = np.log(self.at), np.log(curves), np.log(np.asarray(sizes, float))
        slopes = np.polyfit(x, y.T, 1)[0]  # (draws,)
        found = np.stack([np.interp(to, x, row) for row in y])  # flat beyond the ends ...
        beyond = np.minimum(to - x[0], 0) + np.maximum(to - x[-1], 0)  # (m,) ... from where the power goes on
        out = np.exp(found + slopes[:, None] * beyond).clip(0, 1)
        return out[0] if error is None else out

    def draws(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Curves as other seeds might give them, (n, sizes); the curve itself where there is one seed."""
        spread = np.nan_to_num(self.spread)
        noise = rng.standard_t(max(self.seeds - 1, 1), (n, len(self.at))) if self.seeds > 1 else 0.0
        return (self.error + spread * noise).clip(0, 1) * np.ones((n, 1))


def predict(
    know: Marginal, see: Marginal, N0: float, N, V, draws: int = 2000, seed: int = 0
) -> list[dict[str, object]]:
    """Error of every cell of the grid N x V, both forms -> one row a cell and form.

    know: over N, told in words. see: over V, with an LLM of N0 (billions). N, V: the grid's sides. Rows hold
    N, V, form, error, low, high (95 %, over seeds; None where a marginal has one seed) and label: "measured
    marginal" (N = N0 at a measured V), "interpolation" or "extrapolation".
    """
    N, V = np.asarray(N, float), np.asarray(V, float)
    if not all((np.isfinite(x) & (x > 0)).all() for x in (N, V, np.asarray(N0, float))):
        raise InputError("N and V of a prediction must be finite and above 0: no image has no marginal")
    rng = np.random.default_rng(seed)
    known, seen = know.draws(draws, rng), see.draws(draws, rng)
    certain = know.seeds > 1 and see.seeds > 1
    rows = []
    for form in FORMS:
        best = _compose(form, know.read(N), know.read([N0]), see.read(V))  # (N, V)
        many = _compose(form, know.read(N, known), know.read([N0], known), see.read(V, seen))  # (draws, N, V)
        low, high = np.quantile(many, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        for i, n in enumerate(N):
            for j, v in enumerate(V):
                ends = (float(low[i, j]), float(high[i, j])) if certain else (None, None)
                row = {"N": float(n), "V": float(v), "form": form, "error": float(best[i, j])}
                rows.append(row | dict(zip(("low", "high"), ends)) | {"label": _label(know, see, N0, n, v)})
    return rows


def _compose(form: str, know: np.ndarray, know0: np.ndarray, see: np.ndarray) -> np.ndarray:
    """K(N) (..., n), K(N0) (..., 1), E(V) (..., v) -> errors (..., n, v)."""
    know, know0, see = know[..., :, None], know0[..., :, None], see[..., None, :]
    if form == "product":
        return (see * know / np.maximum(know0, LEAST)).clip(0, 1)
    return (1 - (1 - see) * (1 - know) / np.maximum(1 - know0, LEAST)).clip(0, 1)


def _label(know: Marginal, see: Marginal, N0: float, N: float, V: float) -> str:
    if not (know.inside(N) and see.inside(V)):
        return "extrapolation"
    there = np.isclose(see.at, V).any() and np.isclose(N, N0)
    return "measured marginal" if there else "interpolation"


def read(path: str | Path, name: str, unit: str = "billions") -> dict[str, Marginal]:
    """A CSV with columns N (or V), score and optionally family, seed -> one curve a family, in file order.

    `unit` is that of N; errors as in `vtc.scaling.scores.records`.
    """
    return {
        family: Marginal.of(name, [row[name] for row in rows], [1 - row["score"] for row in rows])
        for family, rows in records(path, (name, "score"), unit).items()
    }
