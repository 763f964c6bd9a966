"""Figures of notebook 04: the law, what the points identify, where the optimum lies.

The rows drawn come from `vtc.scaling.frames`, where every number is computed.
"""

from __future__ import annotations

import altair as alt

from vtc import cost, figures  # figures registers the theme
from vtc.scaling import frames
from vtc.scaling.fitting import Fit

SIZE = alt.Color("N:O", title="N, billions")
BOUND = {"reading weights": "#9ecae1", "arithmetic": "#fdae6b", "does not fit": "#d9d9d9"}


def _axis(channel, field: str, title: str, kind: str = "linear", ticks=None, **scale):
    """A quantitative axis that need not start at 0, with exactly these ticks when they are given."""
    axis = alt.Axis()
    if ticks is not None:  # tickCount keeps the theme from thinning them out
        shown = {"values": list(ticks), "tickCount": len(ticks), "labelOverlap": False}
        axis = alt.Axis(labelAngle=0, format="~f", **shown)
    rest = {"zero": False} if kind == "linear" else {"nice": False} if kind == "log" else {}
    return channel(f"{field}:Q", title=title, axis=axis, scale=alt.Scale(type=kind, **(rest | scale)))


def scaling(f: Fit, Q: float = 50.0) -> alt.LayerChart:
    """The paper's Figure 1: error against 2N(Q + V), one curve a model size, and the computed frontier."""
    points, lines, best = frames.measured(f, Q), frames.curves(f, Q), frames.best_split(f, Q)
    ends = [points["TFLOP"].min() * 0.75, points["TFLOP"].max() * 1.3]
    best = best[best["TFLOP"].between(*ends)]
    x = _axis(alt.X, "TFLOP", "inference cost 2N(Q + V), TFLOP", "log", domain=ends)
    y = _axis(alt.Y, "error", "average error, 1 - score")
    legend = alt.Legend(values=[1, 16, 144, 576])
    size = alt.Size("V:Q", title="V", scale=alt.Scale(type="log", range=[20, 220]), legend=legend)
    curve = alt.Chart(lines).mark_line(opacity=0.75).encode(x, y, SIZE)
    dots = alt.Chart(points).mark_point(filled=True, opacity=1).encode(x, y, SIZE, size)
    front = alt.Chart(best).mark_line(color="black", strokeDash=[5, 4]).encode(x, y)
    law = f.law
    said = f"alpha {law.alpha:.4f}, beta {law.beta:.4f}, D {getattr(law, 'D', 0):.3f}, all computed"
    about = [said, "dashed: the (N, V) of least predicted error at every cost"]
    words = f"Error against cost, {f.points.family}, Q = {Q:g}: the paper's {f.n} points"
    title = {"text": words, "subtitle": about}
    return (curve + front + dots).properties(title=title, width=460, height=320)


def _size(N: float) -> str:
    """Billions of parameters as people write them: 7B, 400M, 25k."""
    unit, scale = ("B", 1.0) if N >= 0.1 else ("M", 1e-3) if N >= 1e-3 else ("k", 1e-6)
    return f"{N / scale:.3g}{unit}"


def fitted(f: Fit) -> alt.LayerChart:
    """Points and law of any scores: error against V, one curve a model size."""
    points, lines = (rows.assign(LLM=rows["N"].map(_size)) for rows in (frames.measured(f), frames.curves(f)))
    kind = "symlog" if (points["V"] == 0).any() else "log"
    size = alt.Color("LLM:O", title="N", sort=[_size(N) for N in sorted(points["N"].unique())])
    x = _axis(alt.X, "V", "visual tokens V", kind, sorted(points["V"].unique().tolist()))
    y = _axis(alt.Y, "error", "error, 1 - score")
    curve = alt.Chart(lines).mark_line().encode(x, y, size)
    dots = alt.Chart(points).mark_point(filled=True).encode(x, y, size)
    title = {"text": f"{f.points.family}: {f.law.name} law, R2 {f.r2:.3f}", "subtitle": f.status}
    return (curve + dots).properties(title=title, width=420, height=280)


def wandering(f: Fit, seeds: int = 10) -> alt.Chart:
    """Where the official procedure ends, seed by seed, against the exact optimum."""
    rows = frames.wandering(f, seeds)
    names = ["random fifth of the grid", "whole grid", "paper", "exact optimum"]
    colour = alt.Scale(domain=names, range=figures.PALETTE[:4])
    shape = alt.Scale(domain=names, range=["circle", "square", "diamond", "triangle-up"])
    title = {
        "text": f"The official procedure, {seeds} seeds",
        "subtitle": "same points and law; the shuffle differs",
    }
    return (
        alt.Chart(rows, title=title, width=420, height=280)
        .mark_point(filled=True, size=130, opacity=0.75)
        .encode(
            _axis(alt.X, "alpha", "alpha"),
            _axis(alt.Y, "beta", "beta"),
            alt.Color("what:N", title=None, sort=names, scale=colour),
            alt.Shape("what:N", title=None, sort=names, scale=shape),
        )
    )


def identifiability(f: Fit, Q: float = 50.0) -> alt.ConcatChart:
    """Hold D anywhere: alpha and beta follow it, alpha / beta and V* hardly move."""
    rows = frames.profiled(f, Q)
    names = list(dict.fromkeys(rows["quantity"]))

    def panel(name):
        part = rows[rows["quantity"] == name]
        y = _axis(alt.Y, "value", name, zero=name in names[-2:])
        x = alt.X("D:Q", title="D held at")
        every = alt.Chart(part).mark_line(color="#999999").encode(x, y)
        allowed = alt.Chart(part[part["inside"]]).mark_line(strokeWidth=4, color=figures.PALETTE[0])
        return (every + allowed.encode(x, y)).properties(width=190, height=130)

    said = "blue: what the points allow at 95 %; the best D lies below 0, so D >= 0 puts the fit on its bound"
    if f.solution.free[0].all():
        said = "blue: what the points allow at 95 %"
    title = {"text": f"What {f.n} points identify, {f.points.family}", "subtitle": said}
    return alt.concat(*map(panel, names), columns=3).properties(title=title)


def separability(fits: dict[str, Fit]) -> alt.LayerChart:
    """Do larger LLMs gain more from tokens? The slope in V at every N, by task."""
    rows = frames.token_slopes(fits)
    x = _axis(alt.X, "N", "N, billions", "log", sorted(rows["N"].unique().tolist()), padding=20)
    colour, y = alt.Color("task:N", title=None), _axis(alt.Y, "beta", "slope of ln error on ln V", zero=True)
    base = alt.Chart(rows)
    bars = base.mark_rule(strokeWidth=2).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), color=colour)
    dots = base.mark_line(point={"size": 80}).encode(x, y, colour)
    said = "a separable law needs one number for all N; bars: two standard errors"
    return (dots + bars).properties(
        title={"text": "The slope in V, size by size", "subtitle": said}, width=400
    )


def optimum(f: Fit, others: dict[str, Fit] | None = None) -> alt.LayerChart:
    """V* against Q in closed form, with its interval, for a fit and for what is compared with it."""
    rows = frames.optimum_by_text(f, others=others)
    x = _axis(alt.X, "Q", "text tokens Q", "symlog", [0, 5, 10, 25, 50, 100, 200, 500], constant=5)
    ticks = [0, 1, 2, 5, 10, 20, 50, 100, 200]
    y, low = (
        _axis(alt.Y, name, "optimal visual tokens V*", "symlog", ticks, constant=2) for name in ("V*", "low")
    )
    colour = alt.Color("law:N", title=None, legend=alt.Legend(orient="bottom"))
    band = alt.Chart(rows).mark_area(opacity=0.2).encode(x, low, alt.Y2("high:Q"), colour)
    line = alt.Chart(rows).mark_line(point=True).encode(x, y, colour)
    title = {"text": f"V* against Q, {f.points.family}", "subtitle": "closed form, 95 % interval"}
    return (band + line).properties(title=title, width=440, height=280)


def true_cost(f: Fit, device: cost.Hardware, Q: int = 50, G: int = 32, **options) -> alt.Chart:
    """The best V along the frontier when everything is paid for, in operations and in seconds."""
    rows = frames.true_optimum(f, device, Q, G, **options)
    names = list(dict.fromkeys(rows["cost"]))
    x = _axis(alt.X, "N", "N of the best split, billions", "log", [0.5, 1, 2, 4, 7, 14], domain=[0.45, 15])
    y = _axis(alt.Y, "V", "V of the best split", "log", [1, 4, 16, 36, 64, 144, 576], domain=[0.9, 700])
    colour = alt.Color("cost:N", title="cost held fixed", sort=names, scale=alt.Scale(domain=names))
    said = f"{device.name}, Q = {Q}, G = {G}; seconds are roofline seconds"
    title = {"text": f"The optimum under the whole cost, {f.points.family}", "subtitle": said}
    mark = alt.Chart(rows, title=title, width=440, height=300).mark_line(point={"size": 30}, opacity=0.85)
    return mark.encode(x, y, colour)


def binding(device: cost.Hardware, Q: int = 50, G: int = 32, sizes=(0.5, 1.8, 7.0, 14.0)) -> alt.FacetChart:
    """What binds the LLM's prefill, batch x V x N, and the time to the first token over that at V = 1."""
    rows = frames.binding(device, Q, G)
    x = alt.X("V:O", title="visual tokens V", axis=alt.Axis(labelAngle=0))
    y = alt.Y("batch:O", title="batch", sort="descending")
    scale = alt.Scale(domain=list(BOUND), range=list(BOUND.values()))
    colour = alt.Color("binds:N", title="prefill waits for", scale=scale, legend=alt.Legend(orient="bottom"))
    base = alt.Chart(rows[rows["N"].isin(sizes)])
    cells = base.mark_rect(stroke="white").encode(x, y, colour)
    text = base.mark_text(fontSize=9).encode(x, y, alt.Text("slower:Q", format=".2~f"))
    said = "numbers: seconds to the first token, vision tower included, over those with one visual token"
    title = {"text": f"When do tokens cost time? {device.name}, Q = {Q}", "subtitle": said}
    each = (cells + text).properties(width=250, height=190)
    return each.facet(alt.Facet("N:O", title="N, billions"), columns=2).properties(title=title)


def own(fits: dict[str, Fit]) -> alt.ConcatChart:
    """This project's own sweep, one panel a family; says so while there are no rows."""
    panels = [fitted(f) for f in fits.values()]
    if not panels:
        text = alt.Chart(frames.table([{"said": frames.own_words(fits)}]))
        panels = [text.mark_text(fontSize=12).encode(text="said:N").properties(width=560, height=60)]
    return (
        alt.hconcat(*panels).resolve_scale(color="independent").properties(title="This project's own sweep")
    )
