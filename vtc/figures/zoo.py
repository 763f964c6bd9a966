"""Figures of notebook 05: compressors side by side at few tokens, and their differences with intervals."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from vtc import data, figures
from vtc.profiles import Profile

FAMILIES = {"reasoning": "reasoning", "ocr": "OCR-like"}


def beside(rows: pd.DataFrame) -> pd.DataFrame:
    """Cells -> one row a compressor, V and family: mean error over seeds, the least and the greatest seed."""
    parts = [
        rows.groupby(["compressor", "V"])[f"error_{family}"].agg(
            error="mean", low="min", high="max", seeds="count"
        )
        for family in data.FAMILIES
    ]
    return pd.concat(parts, keys=FAMILIES.values(), names=["family"]).reset_index()


def errors(rows: pd.DataFrame, p: Profile) -> alt.FacetChart:
    """Error against V, a line a compressor, a panel a family; whiskers from least to greatest seed."""
    frame = beside(rows)
    ticks = sorted(int(v) for v in frame["V"].unique())
    x = alt.X(
        "V:Q",
        title="visual tokens V",
        scale=alt.Scale(type="log", padding=12),
        axis=alt.Axis(values=ticks, format="d", labelOverlap=False, grid=False),
    )
    base = alt.Chart(frame).encode(x=x, color=alt.Color("compressor:N", title="compressor"))
    y = alt.Y("error:Q", title="error, 1 - mean score", scale=alt.Scale(zero=False))
    lines = base.mark_line(point=True).encode(y=y)
    whiskers = base.mark_rule(opacity=0.5).encode(y="low:Q", y2="high:Q")
    title = alt.Title("One recipe, one LLM, several compressors", subtitle=figures.provenance(rows, p))
    chart = (lines + whiskers).properties(width=300, height=250)
    return chart.facet(alt.Column("family:N", title=None, sort=list(FAMILIES.values()))).properties(
        title=title
    )


def differences(table: pd.DataFrame, against: str) -> alt.FacetChart:
    """Differences with 95 % intervals, one panel a V; an interval across the line shows no difference."""
    frame = table.copy()
    frame["row"] = frame["compressor"] + ", " + frame["family"].replace(FAMILIES)
    base = alt.Chart(frame).encode(y=alt.Y("row:N", title=None, sort=list(dict.fromkeys(frame["row"]))))
    x = alt.X("difference:Q", title="difference in score")
    points = base.mark_point(size=70).encode(x=x, color=alt.Color("compressor:N", legend=None))
    bars = base.mark_rule().encode(x="low:Q", x2="high:Q", color=alt.Color("compressor:N", legend=None))
    zero = alt.Chart(frame).mark_rule(strokeDash=[4, 4], color="#999999").encode(x=alt.datum(0))
    tests = f"{len(frame)} comparisons, 95 % intervals each by itself; Holm's correction is in the table"
    title = alt.Title(f"Paired by question, against {against}", subtitle=tests)
    chart = (zero + bars + points).properties(width=210, height=28 * frame["row"].nunique())
    return chart.facet(alt.Column("V:O", title="V")).properties(title=title)


def at_cost(rows: pd.DataFrame, p: Profile) -> alt.LayerChart:
    """Mean error over both families against counted operations a question, one line a compressor."""
    frame = rows.groupby(["compressor", "V"])[["error", "mflop"]].mean().reset_index()
    base = alt.Chart(frame).encode(
        x=alt.X(
            "mflop:Q",
            title="MFLOP a question, tower left out (the same for all)",
            scale=alt.Scale(type="log"),
        ),
        y=alt.Y("error:Q", title="error, mean of both families", scale=alt.Scale(zero=False)),
        color=alt.Color("compressor:N", title="compressor"),
    )
    words = base.mark_text(dy=-10, fontSize=11).encode(text="V:O")
    title = alt.Title("The same at equal cost", subtitle=[figures.provenance(rows, p), "numbers: V"])
    return (base.mark_line(point=True) + words).properties(title=title, width=430, height=300)


def looks(frame: pd.DataFrame, image: np.ndarray, p: Profile) -> alt.HConcatChart:
    """One image, and where each compressor's tokens look in it: a row a compressor, a column a question.

    frame: columns compressor, question, x, y, weight (of all tokens together); image (pixels, pixels, 3).
    """
    y, x = np.indices(image.shape[:2]).reshape(2, -1)
    color = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in image.reshape(-1, 3)]
    corner = {"x": alt.X("x:O", axis=None), "y": alt.Y("y:O", axis=None)}
    dots = alt.Chart(pd.DataFrame({"x": x, "y": y, "color": color})).mark_rect()
    picture = dots.encode(**corner, color=alt.Color("color:N", scale=None))
    blues = alt.Color("weight:Q", title="of the greatest", scale=alt.Scale(scheme="blues"))
    seen = alt.Chart(frame).mark_rect().encode(**corner, color=blues).properties(width=150, height=150)
    maps = seen.facet(
        row=alt.Row("compressor:N", title=None), column=alt.Column("question:N", title=None, sort=None)
    )
    title = alt.Title("Where tokens look, as the question changes", subtitle=f"profile {p.name}, one seed")
    whole = picture.properties(width=150, height=150, title="the image")
    return alt.hconcat(whole, maps).resolve_scale(color="independent").properties(title=title)
