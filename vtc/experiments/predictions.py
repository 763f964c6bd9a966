"""What the sweep will show, said before it is trained; and, after it, which of that came true.

Two cheap marginals are measured on a pilot seed that the sweep does not use: K(N), the errors of text-trained
LLMs of some sizes that are told the scene in words, and E(V), the errors of one model over all V. From these
follow all cells (`vtc.scaling.marginals`), the law's exponents and the best cell of every budget. The file
results/<profile>/predictions.csv was committed before the first recorded seed was trained.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pandas as pd

from vtc import InputError, scaling
from vtc.evaluation.compare import mean_interval
from vtc.evaluation.scores import FAMILIES
from vtc.evaluation.summary import seed_spread, winners
from vtc.profiles import Profile
from vtc.scaling import frames
from vtc.scaling.marginals import Marginal, predict

FORM = "see and know"  # the form that is predicted to hold; the product is given beside it
FILE = "predictions.csv"
COLUMNS = ("kind", "family", "N", "V", "Q", "predicted", "product", "label", "refuted_if")
SPREAD = 2.0  # tolerance of a cell: so many standard deviations of a seed, pooled over the family's cells
LARGEST_SPREAD = 0.02  # ... which are taken as so much where seeds differ by more
REFUTED = {
    "cell": "the mean over seeds is off by more than the tolerance",
    "alpha": "the interval over LLMs excludes it",
    "beta": "the interval over LLMs excludes it",
    "order": "the interval of alpha / beta lies on the other side of 1",
    "winner": "another cell has the least error within the budget",
}


def predicted(p: Profile, told: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    """Pilot rows -> one row a prediction, the columns of predictions.csv.

    told: one row a size, N and error_<family>. seen: one row a V, the same columns, of one size.
    """
    V = [v for v in p.V if v > 0]
    N = [size.N * 1e-9 for size in p.sizes]
    rows = []
    for family in FAMILIES:
        error, shown = f"error_{family}", seen[seen["V"] > 0]
        know = Marginal.of("N", told["N"] * 1e-9, told[error])
        see = Marginal.of("V", shown["V"], shown[error])
        made = pd.DataFrame(predict(know, see, float(shown["N"].iloc[0]) * 1e-9, N, V))
        made = made.assign(N=made["N"] * 1e9).rename(columns={"error": error})
        grid, product = (made[made["form"] == form].reset_index() for form in (FORM, "product"))
        cells = grid[["N", "V", "label"]].assign(predicted=grid[error], product=product[error])
        rows += cells.assign(kind="cell", family=family).to_dict("records")
        rows += _consequences(p, family, grid, product)
    frame = pd.DataFrame(rows).assign(refuted_if=lambda f: f["kind"].map(REFUTED))
    return frame.reindex(columns=list(COLUMNS))


def _consequences(p: Profile, family: str, *grids: pd.DataFrame) -> list[dict]:
    """Exponents of the law through the predicted cells, and the best cells of four budgets at two Q."""
    rows = []
    with suppress(InputError):  # too few cells for a law
        laws = [scaling.fit(scaling.sweep(grid, family).cells).law for grid in grids]
        for kind, name in (("alpha", "alpha"), ("beta", "beta"), ("order", "ratio")):
            both = (float(getattr(law, name)) for law in laws)
            rows.append({"kind": kind} | dict(zip(("predicted", "product"), both)))
    for Q in p.winners_Q:
        best = [winners(grid, family, Q) for grid in grids]
        for one, other in zip(*(frame.itertuples() for frame in best)):
            named = [f"{row.N:.0f} {row.V:.0f}" for row in (one, other)]
            rows.append({"kind": "winner", "N": one.budget, "Q": Q, "label": " | ".join(named)})
    return [{"family": family} | row for row in rows]


def cells(said: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Predicted cells beside the measured means over seeds: family, N, V, predicted, product, copied,
    measured, low, high, tolerance, hit.

    copied: the guess that a size errs as the next smaller one does at the same V (none for the smallest).
    """
    found = []
    for family in FAMILIES:
        error = rows[rows["V"] > 0].pivot_table(index=["N", "V"], columns="seed", values=f"error_{family}")
        spread = np.fmin(seed_spread(error), LARGEST_SPREAD)  # one seed: no sd
        mean, sizes = error.mean(axis=1), sorted(rows["N"].unique())
        for cell in said[(said["kind"] == "cell") & (said["family"] == family)].itertuples():
            N = min(sizes, key=lambda size: abs(size - cell.N))
            if (N, cell.V) not in mean.index:
                continue
            below = sizes.index(N) - 1
            _, low, high, _ = mean_interval(error.loc[N, cell.V].dropna())
            row = {"family": family, "N": N, "V": int(cell.V), "label": cell.label}
            row |= {"predicted": cell.predicted, "product": cell.product}
            row |= {"copied": mean.get((sizes[below], cell.V), np.nan) if below >= 0 else np.nan}
            row |= {"measured": mean[N, cell.V], "low": low, "high": high, "tolerance": SPREAD * spread}
            found.append(row | {"hit": abs(cell.predicted - mean[N, cell.V]) <= SPREAD * spread})
    return pd.DataFrame(found)


def committed(p: Profile) -> pd.DataFrame | None:
    """predictions.csv as it was committed; None where nothing was predicted."""
    path = p.results / FILE
    return pd.read_csv(path) if path.exists() else None


def of(p: Profile, parts: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The committed predictions; of a profile without any: made in hindsight, which is said.

    In hindsight they follow from this run's own marginals: the LLMs told in words, and the model of one size.
    """
    if (said := committed(p)) is not None:
        return said
    print(f"nothing was predicted for profile {p.name}: these follow from marginals of the same run")
    return predicted(p, parts[parts["part"] == "llm"], rows[rows["N"] == p.size(p.zoo_size).N])


def consequences(p: Profile, said: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Predictions but those of cells beside what was measured: exponents with their intervals, best cells."""
    found = []
    fits = frames.own_sweep(rows)
    for line in said[said["kind"] != "cell"].itertuples():
        row = {"kind": line.kind, "family": FAMILIES[line.family], "Q": line.Q, "predicted": line.predicted}
        if line.kind == "winner":
            best = winners(rows, line.family, line.Q).set_index("budget")
            nearest = best.iloc[np.abs(np.log(best.index.to_numpy() / line.N)).argmin()]
            row |= {"predicted": line.label.split(" | ")[0], "measured": f"{nearest.N:.0f} {nearest.V:.0f}"}
            row["hit"] = row["predicted"] == row["measured"]
        elif line.family in fits:
            f, name = fits[line.family], "ratio" if line.kind == "order" else line.kind
            low, high = f.clustered_interval(name)
            row |= {"measured": float(getattr(f.law, name)), "low": low, "high": high, "fault": f.fault}
            row["hit"] = None if f.fault else _holds(line.kind, line.predicted, low, high)
        found.append(row)
    return pd.DataFrame(found)


def _holds(kind: str, predicted: float, low: float, high: float) -> bool:
    """Whether an exponent's interval holds the prediction, or a ratio's lies on its side of 1."""
    if kind == "order":
        return low > 1 if predicted > 1 else high < 1
    return low <= predicted <= high


def scoreboard(table: pd.DataFrame) -> pd.DataFrame:
    """By family and kind of prediction: cells, hits, mean absolute miss of each way to predict."""
    parts = []
    for (family, label), part in table.groupby(["family", "label"], sort=False):
        misses = {way: float((part[way] - part["measured"]).abs().mean()) for way in WAYS}
        row = {"family": FAMILIES[family], "label": label, "cells": len(part), "hits": int(part["hit"].sum())}
        parts.append(row | misses)
    return pd.DataFrame(parts)


WAYS = ("predicted", "product", "copied")
