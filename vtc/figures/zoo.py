"""Figures of notebook 05: compressors side by side at few tokens, and their differences with intervals."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from vtc import compressors, data, figures
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
    base = _against_v(beside(rows))
    whiskers = base.mark_rule(opacity=0.5).encode(y="low:Q", y2="high:Q")
    title = alt.Title("One recipe, one LLM, several compressors", subtitle=figures.provenance(rows, p))
    return _panels(base.mark_line(point=True) + whiskers, title)


def _against_v(frame: pd.DataFrame) -> alt.Chart:
    """Rows of `beside` -> error against V, a colour a compressor; the caller chooses marks."""
    ticks = sorted(int(v) for v in frame["V"].unique())
    return alt.Chart(frame).encode(
        x=alt.X(
            "V:Q",
            title="visual tokens V",
            scale=alt.Scale(type="log", padding=12),
            axis=alt.Axis(values=ticks, format="d", labelOverlap=False, grid=False),
        ),
        y=alt.Y("error:Q", title="error, 1 - mean score", scale=alt.Scale(zero=False)),
        color=alt.Color("compressor:N", title="compressor"),
    )


def _panels(chart: alt.Chart | alt.LayerChart, title: alt.Title) -> alt.FacetChart:
    """A panel a family."""
    column = alt.Column("family:N", title=None, sort=list(FAMILIES.values()))
    return chart.properties(width=300, height=250).facet(column).properties(title=title)


def tasks(rows: pd.DataFrame, p: Profile) -> alt.FacetChart:
    """Score of each task (mean over seeds), a column a compressor, a panel a V: what a token is good for."""
    long = rows.melt(["compressor", "V"], [f"score_{task}" for task in data.TASKS], "task", "score")
    mean = long.groupby(["compressor", "V", "task"])["score"].mean().reset_index()
    mean["task"] = mean["task"].str.removeprefix("score_")
    base = alt.Chart(mean).encode(
        x=alt.X("compressor:N", title=None), y=alt.Y("task:N", title=None, sort=list(data.TASKS))
    )
    blues = alt.Color("score:Q", title="score", scale=alt.Scale(scheme="blues", domain=[0, 1]))
    shade = alt.condition("datum.score > 0.6", alt.value("white"), alt.value("black"))
    numbers = base.mark_text(fontSize=8).encode(text=alt.Text("score:Q", format=".2f"), color=shade)
    chart = (base.mark_rect().encode(color=blues) + numbers).properties(
        width=25 * mean["compressor"].nunique(), height=210
    )
    title = alt.Title("Task by task", subtitle=figures.provenance(rows, p))
    return chart.facet(alt.Column("V:O", title="V")).properties(title=title)


def differences(table: pd.DataFrame, against: str) -> alt.FacetChart:
    """Differences with 95 % intervals, one panel a V; an interval across the line shows no difference."""
    frame = table.copy()
    frame["row"] = frame["compressor"] + ", " + frame["family"].replace(FAMILIES)
    base = alt.Chart(frame).encode(y=alt.Y("row:N", title=None, sort=list(dict.fromkeys(frame["row"]))))
    x = alt.X("difference:Q", title="difference in score")
    points = base.mark_point(size=70).encode(x=x, color=alt.Color("compressor:N", legend=None))
    bars = base.mark_rule().encode(x="low:Q", x2="high:Q", color=alt.Color("compressor:N", legend=None))
    zero = alt.Chart(frame).mark_rule(strokeDash=[4, 4], color="#999999").encode(x=alt.datum(0))
    tests = f"{len(frame)} comparisons, 95 % intervals each by itself"
    title = alt.Title(f"Paired by question, against {against}", subtitle=tests)
    chart = (zero + bars + points).properties(width=210, height=28 * frame["row"].nunique())
    return chart.facet(alt.Column("V:O", title="V")).properties(title=title)


COSTS = {
    "mflop": ("The same at equal operations", "MFLOP a question, tower left out (the same for all)"),
    "first_token_ms": ("The same at equal time", "ms to the first token on one core, tower left out"),
}


def at_cost(rows: pd.DataFrame, p: Profile, cost: str = "mflop") -> alt.LayerChart:
    """Mean error over both families against a cost of one question, one line a compressor, V at its ends."""
    heading, words = COSTS[cost]
    frame = rows.groupby(["compressor", "V"])[["error", cost]].mean().reset_index()
    base = alt.Chart(frame).encode(
        x=alt.X(f"{cost}:Q", title=words, scale=alt.Scale(type="log", nice=False, padding=15)),
        y=alt.Y("error:Q", title="error, mean of both families", scale=alt.Scale(zero=False)),
        color=alt.Color("compressor:N", title="compressor"),
    )
    ends = alt.FieldOneOfPredicate("V", [int(frame["V"].min()), int(frame["V"].max())])
    numbers = base.mark_text(dy=-10, fontSize=11).encode(text="V:O").transform_filter(ends)
    subtitle = [figures.provenance(rows, p), "numbers: the V at both ends of a line"]
    lines = base.mark_line(point=True).encode(order="V:Q", tooltip=["compressor", "V", cost, "error"])
    title = alt.Title(heading, subtitle=subtitle)
    return (lines + numbers).properties(title=title, width=430, height=300)


def frontier(rows: pd.DataFrame, best: pd.DataFrame, p: Profile) -> alt.LayerChart:
    """Every compressor at every V (grey) by operations and error, and those that nothing cheaper equals.

    best: from `vtc.evaluation.compare.frontier`.
    """
    every = rows.groupby(["compressor", "V"])[["error", "mflop"]].mean().reset_index()
    named = best.assign(name=best["compressor"] + " " + best["V"].astype(str))
    apart = named["error"].diff().fillna(-1) < -0.01  # names of near points would cover each other
    x = alt.X("mflop:Q", title=COSTS["mflop"][1], scale=alt.Scale(type="log", nice=False, padding=15))
    y = alt.Y("error:Q", title="error, mean of both families", scale=alt.Scale(zero=False))
    grey = alt.Chart(every).mark_point(color="#999999", size=25).encode(x, y, tooltip=["compressor", "V"])
    base = alt.Chart(named).encode(x, y)
    words = base.mark_text(align="left", dx=8, dy=-6, fontSize=11).encode(text="name:N")
    words = words.properties(data=named[apart])
    count = f"{len(named)} of {len(every)}: no other is as good for as little"
    title = alt.Title("The whole zoo at equal operations", subtitle=[count, figures.provenance(rows, p)])
    line = base.mark_line(point=True, interpolate="step-after").encode(order="mflop:Q")
    return (grey + line + words).properties(title=title, width=560, height=380)


def ranked(rows: pd.DataFrame, p: Profile) -> alt.FacetChart:
    """Every compressor by its error, a panel a V, a colour a family; whiskers from least to greatest seed."""
    frame = beside(rows)
    most = frame["V"].mode().iloc[0]  # where most were measured; those that were not stand last
    order = frame.assign(error=frame["error"].where(frame["V"] == most)).groupby("compressor")["error"].mean()
    order = order.sort_values().index.to_list()
    base = alt.Chart(frame).encode(
        y=alt.Y("compressor:N", title=None, sort=order), color=alt.Color("family:N", title="error in")
    )
    x = alt.X("error:Q", title="error, 1 - mean score", scale=alt.Scale(zero=False))
    chart = (
        base.mark_rule().encode(x="low:Q", x2="high:Q") + base.mark_point(size=60).encode(x=x)
    ).properties(width=200, height=17 * len(order))
    title = alt.Title(f"The whole zoo, the best at V = {most} on top", subtitle=figures.provenance(rows, p))
    return chart.facet(alt.Column("V:O", title="V")).properties(title=title)


def once_or_each(rows: pd.DataFrame, p: Profile) -> alt.FacetChart:
    """Error against V: one training for every V (dashed), and one for each (solid)."""
    pairs = {name: line.one_V for name, line in compressors.REGISTRY.items() if line.one_V}
    frame = beside(rows[rows["compressor"].isin([*pairs, *pairs.values()])])
    frame["training"] = (
        frame["compressor"].isin(list(pairs)).map({True: "once, every V", False: "each V by itself"})
    )
    frame["compressor"] = frame["compressor"].replace(pairs)
    base = _against_v(frame).encode(strokeDash=alt.StrokeDash("training:N", title="trained"))
    title = alt.Title("One training for every V, or one each", subtitle=figures.provenance(rows, p))
    return _panels(base.mark_line(point=True), title)


def keeps(frame: pd.DataFrame, image: np.ndarray, p: Profile) -> alt.HConcatChart:
    """One image, one question, and what each compressor's tokens take from each patch: a map a compressor.

    frame: columns compressor, question, x, y, weight; image (pixels, pixels, 3).
    """
    greatest = frame.groupby(["compressor", "x", "y"])["weight"].max().reset_index()
    maps = _map(greatest, side=95).facet(alt.Facet("compressor:N", title=None), columns=6)
    asked = f"profile {p.name}, one seed; those that are steered were asked: {frame['question'].iloc[0]}"
    title = alt.Title("What a token takes from where", subtitle=asked)
    return _beside_picture(image, maps, title)


def looks(frame: pd.DataFrame, image: np.ndarray, p: Profile) -> alt.HConcatChart:
    """One image, and where each compressor's tokens look in it: a row a compressor, a column a question.

    frame: columns compressor, question, x, y, weight (of all tokens together); image (pixels, pixels, 3).
    """
    maps = _map(frame, side=150).facet(
        row=alt.Row("compressor:N", title=None), column=alt.Column("question:N", title=None, sort=None)
    )
    title = alt.Title("Where tokens look, as the question changes", subtitle=f"profile {p.name}, one seed")
    return _beside_picture(image, maps, title)


CORNER = {"x": alt.X("x:O", axis=None), "y": alt.Y("y:O", axis=None)}


def _map(frame: pd.DataFrame, side: int) -> alt.Chart:
    """Columns x, y, weight -> a square a patch, the darker the more is taken."""
    blues = alt.Color("weight:Q", title="of the greatest", scale=alt.Scale(scheme="blues"))
    return alt.Chart(frame).mark_rect().encode(**CORNER, color=blues).properties(width=side, height=side)


def _beside_picture(image: np.ndarray, maps: alt.FacetChart, title: alt.Title) -> alt.HConcatChart:
    """An image (pixels, pixels, 3), a rectangle a pixel, and maps of it."""
    y, x = np.indices(image.shape[:2]).reshape(2, -1)
    color = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in image.reshape(-1, 3)]
    dots = alt.Chart(pd.DataFrame({"x": x, "y": y, "color": color})).mark_rect()
    picture = dots.encode(**CORNER, color=alt.Color("color:N", scale=None))
    picture = picture.properties(width=150, height=150, title="the image")
    return alt.hconcat(picture, maps).resolve_scale(color="independent").properties(title=title)
