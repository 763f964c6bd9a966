"""Figures of notebook 04: the law, what the points identify, where the optimum lies.

Each takes a frame of `vtc.scaling.frames`, where every number is computed, and returns a chart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import altair as alt
import pandas as pd

from vtc import figures  # registers the theme
from vtc.evaluation.scores import FAMILIES

SIZE = alt.Color("N:O", title="N, billions")
FAILS = "not converged|fits badly|not identified|no effect of V"  # in a fit's status
SAME = 0.05  # a quantity that varies by less than this share stays the same
BOUND = {"reading weights": "#9ecae1", "arithmetic": "#fdae6b", "does not fit": "#d9d9d9"}


def _axis(channel, field: str, title: str, kind: str = "linear", ticks=None, **scale):
    """A quantitative axis that need not start at 0, with exactly these ticks when they are given."""
    axis = alt.Axis()
    if ticks is not None:  # tickCount keeps the theme from thinning them out
        shown = {"values": list(ticks), "tickCount": len(ticks), "labelOverlap": False}
        axis = alt.Axis(labelAngle=0, format="~f", **shown)
    rest = {"zero": False} if kind == "linear" else {"nice": False} if kind == "log" else {}
    return channel(f"{field}:Q", title=title, axis=axis, scale=alt.Scale(type=kind, **(rest | scale)))


def _parts(rows: pd.DataFrame) -> list[alt.Chart]:
    """Charts of the points, the law and the frontier of `frames.plane`."""
    return [alt.Chart(rows[rows["drawn"] == part]) for part in ("points", "law", "frontier")]


def scaling(rows: pd.DataFrame) -> alt.LayerChart:
    """The paper's Figure 1: error against 2N(Q + V), one curve per model size, and the computed frontier.

    rows: `frames.plane`.
    """
    law, cost = rows.attrs, rows.loc[rows["drawn"] == "points", "TFLOP"]
    ends = [cost.min() * 0.75, cost.max() * 1.3]
    points, curves, best = _parts(rows[(rows["drawn"] != "frontier") | rows["TFLOP"].between(*ends)])
    x = _axis(alt.X, "TFLOP", "inference cost 2N(Q + V), TFLOP", "log", domain=ends)
    y = _axis(alt.Y, "error", "average error, 1 - score")
    legend = alt.Legend(values=[1, 16, 144, 576])
    size = alt.Size("V:Q", title="V", scale=alt.Scale(type="log", range=[20, 220]), legend=legend)
    curve = curves.mark_line(opacity=0.75).encode(x, y, SIZE)
    dots = points.mark_point(filled=True, opacity=1).encode(x, y, SIZE, size)
    front = best.mark_line(color="black", strokeDash=[5, 4]).encode(x, y)
    least, most = points.data["N"].agg(["min", "max"])
    more, less = ("N", "V") if law["ratio"] > 1 else ("V", "N")
    times, family = max(law["ratio"], 1 / law["ratio"]), FAMILIES.get(law["family"], law["family"])
    said = f"alpha {law['alpha']:.4f}, beta {law['beta']:.4f}, D {law.get('D', 0):.3f}; Q = {law['Q']:g}"
    return figures.titled(
        curve + front + dots,
        f"{family}: the error falls {times:.1f} times as fast with {more} as with {less}",
        f"the paper's {law['points']} points and the law fitted to them, {said}",
        f"dashed: the (N, V) of least predicted error at every cost, N from {least:g} to {most:g}",
        width=460,
        height=320,
    )


def fitted(rows: pd.DataFrame, **size: int) -> alt.LayerChart:
    """Points and law of any scores: error against V, one curve per model size; rows: `frames.plane`."""
    points, curves, _ = _parts(rows)
    seen = points.data
    kind, room = ("symlog", {}) if (seen["V"] == 0).any() else ("log", {"padding": 12})
    names = list(dict.fromkeys(seen.sort_values("N")["LLM"]))
    color = alt.Color("LLM:O", title="N", sort=names)
    x = _axis(alt.X, "V", "visual tokens V", kind, sorted(seen["V"].unique().tolist()), **room)
    y = _axis(alt.Y, "error", "error, 1 - score")
    law = rows.attrs
    status = law["status"].split("; ")
    return figures.titled(
        curves.mark_line().encode(x, y, color) + points.mark_point(filled=True).encode(x, y, color),
        f"{FAMILIES.get(law['family'], law['family'])}: R2 {law['r2']:.2f}",
        *("; ".join(status[i : i + 2]) for i in range(0, len(status), 2)),  # two remarks a line
        **size,
    )


def wandering(rows: pd.DataFrame) -> alt.Chart:
    """Where the official procedure ends, seed by seed, against the exact optimum."""
    names = ["random fifth of the grid", "whole grid", "paper", "exact optimum"]
    colour = alt.Scale(domain=names, range=figures.PALETTE[:4])
    shape = alt.Scale(domain=names, range=["circle", "square", "diamond", "triangle-up"])
    chart = alt.Chart(rows).mark_point(filled=True, size=130, opacity=0.75)
    ends = len(rows.loc[rows["what"] == names[0], ["alpha", "beta", "D"]].drop_duplicates())
    return figures.titled(
        chart.encode(
            _axis(alt.X, "alpha", "alpha"),
            _axis(alt.Y, "beta", "beta"),
            alt.Color("what:N", title=None, sort=names, scale=colour),
            alt.Shape("what:N", title=None, sort=names, scale=shape),
        ),
        f"{rows.attrs['seeds']} shuffles of the official search end at {ends} different fits",
        "same points, same law; the least squared error is the exact optimum's",
    )


def identifiability(rows: pd.DataFrame) -> alt.ConcatChart:
    """Hold D anywhere: alpha and beta follow it, alpha / beta and V* hardly move; rows: `frames.profiled`."""
    names, law = list(dict.fromkeys(rows["quantity"])), rows.attrs

    def panel(name):
        part = rows[rows["quantity"] == name]
        y = _axis(alt.Y, "value", name, zero=name in names[-2:])
        x = alt.X("D:Q", title="D held at")
        every = alt.Chart(part).mark_line(color="#999999").encode(x, y)
        allowed = alt.Chart(part[part["inside"]]).mark_line(strokeWidth=4, color=figures.PALETTE[0])
        return (every + allowed.encode(x, y)).properties(width=190, height=130)

    said = "blue: what the points allow at 95 %"
    if "D at its bound" in law["status"]:
        said += "; the best D lies below 0, so D >= 0 puts the fit on its bound"
    allowed = rows[rows["inside"]].groupby("quantity", sort=False)["value"]
    spread = (allowed.max() - allowed.min()) / allowed.median().abs()
    held = " and ".join(name for name in names if spread[name] < SAME and name != "RMSE")
    title = f"What {law['points']} points fix, whatever D is: {held or 'nothing'} ({law['family']})"
    return figures.titled(alt.concat(*map(panel, names), columns=3), title, said)


def separability(rows: pd.DataFrame) -> alt.LayerChart:
    """Do larger LLMs gain more from tokens? The slope in V at every N; rows: `frames.token_slopes`."""
    x = _axis(alt.X, "N", "N, billions", "log", sorted(rows["N"].unique().tolist()), padding=20)
    colour, y = alt.Color("task:N", title=None), _axis(alt.Y, "beta", "slope of ln error on ln V", zero=True)
    rows = rows.assign(task=rows["task"].replace(FAMILIES))
    base = alt.Chart(rows)
    bars = base.mark_rule(strokeWidth=2).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), color=colour)
    dots = base.mark_line(point={"size": 80}).encode(x, y, colour)
    ends = rows.groupby("task", sort=False)["beta"].agg(["min", "max"])
    title = ", ".join(f"{task} {low:.3f} to {high:.3f}" for task, low, high in ends.itertuples())
    said = "beta of each LLM by itself; a product law needs one for all N; bars: two standard errors"
    return figures.titled(dots + bars, f"beta by LLM: {title}", said)


def optimum(rows: pd.DataFrame) -> alt.LayerChart:
    """V* against Q in closed form, with its interval; rows: `frames.optimum_by_text`."""
    x = _axis(alt.X, "Q", "text tokens Q", "symlog", [0, 5, 10, 25, 50, 100, 200, 500], constant=5)
    ticks = [0, 1, 2, 5, 10, 20, 50, 100, 200]
    title = "optimal visual tokens V*"
    y, low = (_axis(alt.Y, name, title, "symlog", ticks, constant=2) for name in ("V*", "low"))
    colour = alt.Color("law:N", title=None, legend=alt.Legend(orient="bottom", symbolOpacity=1))
    band = alt.Chart(rows).mark_area(opacity=0.2).encode(x, low, alt.Y2("high:Q"), colour)
    line = alt.Chart(rows).mark_line(point=True).encode(x, y, colour)
    said = f"{rows.attrs['family']}: V* in closed form, with its 95 % interval"
    return figures.titled(band + line, "The best V grows in proportion to the text", said)


def true_cost(rows: pd.DataFrame) -> alt.Chart:
    """The best V along the frontier when everything is paid for; rows: `frames.true_optimum`."""
    names, about = list(dict.fromkeys(rows["cost"])), rows.attrs
    x = _axis(alt.X, "N", "N of the best split, billions", "log", [0.5, 1, 2, 4, 7, 14], domain=[0.45, 15])
    y = _axis(alt.Y, "V", "V of the best split", "log", [1, 4, 16, 36, 64, 144, 576], domain=[0.9, 700])
    colour = alt.Color("cost:N", title="cost held fixed", sort=names, scale=alt.Scale(domain=names))
    return figures.titled(
        alt.Chart(rows).mark_line(point={"size": 30}, opacity=0.85).encode(x, y, colour),
        "Which V is best depends on what is counted",
        f"{about['family']}: V of the best split at every cost, Q = {about['Q']}, G = {about['G']}",
        f"first and last token: seconds of the roofline, {about['device']}",
    )


def binding(rows: pd.DataFrame, sizes: Sequence[float] = (0.5, 1.8, 7.0, 14.0)) -> alt.FacetChart:
    """What binds the LLM's prefill, and the time to the first token over that at V = 1; `frames.binding`."""
    about = rows.attrs
    x = alt.X("V:O", title="visual tokens V", axis=alt.Axis(labelAngle=0))
    y = alt.Y("batch:O", title="batch", sort="descending")
    seen = [name for name in BOUND if (rows["binds"] == name).any()]
    scale = alt.Scale(domain=seen, range=[BOUND[name] for name in seen])
    colour = alt.Color("binds:N", title="prefill waits for", scale=scale, legend=alt.Legend(orient="bottom"))
    base = alt.Chart(rows[rows["N"].isin(sizes)])
    cells = base.mark_rect(stroke="white").encode(x, y, colour)
    text = base.mark_text(fontSize=9).encode(x, y, alt.Text("slower:Q", format=".2~f"))
    said = "numbers: seconds to the first token, vision tower included, over those with one visual token"
    title = alt.Title(f"When do tokens cost time? {about['device']}, Q = {about['Q']}", subtitle=said)
    each = (cells + text).properties(width=250, height=190)
    return each.facet(alt.Facet("N:O", title="N, billions"), columns=2).properties(title=title)


def own(planes: Sequence[pd.DataFrame]) -> alt.ConcatChart:
    """This project's own sweep, one panel per family; an empty chart that says so while there are no rows.

    A family is described if the law fits and its beta is told from 0: flat lines describe no effect of V.
    """
    panels = [fitted(rows, width=245, height=250) for rows in planes]
    if not panels:
        empty = pd.DataFrame([{"said": "too few rows of the sweep yet: run notebook 02 first"}])
        panels = [alt.Chart(empty).mark_text(fontSize=12).encode(text="said:N")]
        panels = [panels[0].properties(width=560, height=60)]
    good = sum(not re.search(FAILS, rows.attrs["status"]) for rows in planes)
    title = f"As a law of N and of V, the power law describes {good} of {len(planes)} families of our models"
    return figures.titled(alt.hconcat(*panels), title, "points: means over seeds; curves: the fitted law")
