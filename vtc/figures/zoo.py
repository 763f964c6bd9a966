"""Figures of notebook 05: compressors side by side at few tokens, and their differences with intervals."""

from __future__ import annotations

import itertools

import altair as alt
import numpy as np
import pandas as pd

from vtc import compressors, figures
from vtc.compressors.ideas import READERS
from vtc.evaluation import compare, summary
from vtc.evaluation.exam import TASKS
from vtc.evaluation.scores import FAMILIES
from vtc.profiles import Profile

BY_V = alt.Column("V:O", title="V")
CELL = ("compressor", "V")
FIRST = ("tokenpacker", "quecc", "lookup", "quecc_light")  # they keep their colours in every figure


def _colour(names: pd.Series) -> alt.Color:
    """A colour a compressor: the first four always the same, then the others as the registry has them."""
    there, known = set(names), [name for name in compressors.names() if name not in FIRST]
    others = [name for name in known if name in there] + sorted(there.difference(known, FIRST))
    of = dict(zip(FIRST, figures.PALETTE)) | dict(zip(others, itertools.cycle(figures.PALETTE[len(FIRST) :])))
    domain = [name for name in of if name in there]
    scale = alt.Scale(domain=domain, range=[of[name] for name in domain])
    return alt.Color("compressor:N", title="compressor", scale=scale)


def _along_v(frame: pd.DataFrame) -> alt.Chart:
    """Errors against V, a colour a compressor; the caller chooses marks."""
    return alt.Chart(frame).encode(
        x=figures.tokens(frame["V"]), y=figures.error(), color=_colour(frame["compressor"])
    )


def errors(rows: pd.DataFrame, p: Profile) -> alt.FacetChart:
    """Error against V, a line a compressor, a panel a family; whiskers from least to greatest seed."""
    cells = summary.by_family(rows, CELL)
    few = cells[cells["V"] == cells["V"].min()].sort_values("error").drop_duplicates("family")
    best = ", ".join(f"{row.compressor} {row.error:.2f} ({row.family})" for row in few.itertuples())
    title = f"The least error at V = {few['V'].iloc[0]}: {best}"
    said = "one recipe, one LLM; whiskers from the least to the greatest seed", figures.provenance(rows, p)
    chart = figures.seeds(_along_v(cells))
    return figures.panels(chart, figures.FAMILY, title, *said, width=235, height=250)


def tasks(rows: pd.DataFrame, p: Profile) -> alt.FacetChart:
    """Score of each task (mean over seeds), a column a compressor, a panel a V: what a token is good for.

    Tasks of the two families come first and say so.
    """
    mean = summary.by_task(rows, CELL)
    few = mean[mean["V"] == mean["V"].min()].groupby("task")["score"].agg(["min", "max"])
    most = (few["max"] - few["min"]).idxmax()
    ends = "from {min:.2f} to {max:.2f}".format(**few.loc[most])
    title = f"At V = {mean['V'].min()} compressors differ most in {most}, {ends}"
    named = {t: t if of == summary.PANEL else f"{t} ({of})" for t, of in summary.FAMILY_OF.items()}
    order = [named[task] for task in TASKS]
    mean = mean.assign(task=mean["task"].replace(named))
    x, y = alt.X("compressor:N", title=None), alt.Y("task:N", title=None, sort=order)
    base = alt.Chart(mean).encode(x, y)
    blues = alt.Color("score:Q", title="score", scale=alt.Scale(scheme="blues", domain=[0, 1]))
    shade = alt.condition("datum.score > 0.6", alt.value("white"), alt.value("black"))
    many = mean["compressor"].nunique()
    side, size = (44, 11) if many <= 8 else (25, 8)
    numbers = base.mark_text(fontSize=size).encode(text=alt.Text("score:Q", format=".2f"), color=shade)
    said = "mean score of each task; those without a family count in no error", figures.provenance(rows, p)
    chart = base.mark_rect().encode(color=blues) + numbers
    return figures.panels(chart, BY_V, title, *said, width=side * many, height=230)


VERDICTS = {"better": figures.PALETTE[0], "worse": figures.PALETTE[1], "no difference shown": "#8a8a8a"}


def differences(table: pd.DataFrame, against: str) -> alt.FacetChart:
    """Overall differences with 95 % intervals, one panel a V, coloured by whether the interval crosses 0."""
    frame = table[table["family"] == "all"]
    told = np.select([frame["low"] > 0, frame["high"] < 0], list(VERDICTS)[:2], list(VERDICTS)[2])
    frame = frame.assign(interval=told)
    scale = alt.Scale(domain=list(VERDICTS), range=list(VERDICTS.values()))
    color = alt.Color("interval:N", title=None, scale=scale, legend=alt.Legend(orient="bottom"))
    order = frame.groupby("compressor")["difference"].mean().sort_values(ascending=False).index.to_list()
    names = alt.Y("compressor:N", title=None, sort=order)
    x = alt.X("difference:Q", title=None, axis=alt.Axis(values=[-0.4, -0.2, 0, 0.2, 0.4]))
    base = alt.Chart(frame).encode(y=names, color=color)
    bars = base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q")
    zero = alt.Chart(frame).mark_rule(strokeDash=[4, 4], color="#999999").encode(x=alt.datum(0))
    counts = [int((told == name).sum()) for name in list(VERDICTS)[:2]]
    title = f"Against {against}: {counts[0]} of {len(frame)} are better, {counts[1]} are worse"
    sure = frame["difference"][frame["p_holm"] < 0.05] > 0
    holm = f"each by its own 95 % interval; after Holm's correction {sure.sum()} and {(~sure).sum()}"
    said = "difference in overall score, paired by question", holm
    chart = zero + bars + base.mark_point(size=80).encode(x=x)
    step = 30 if len(order) <= 12 else 18
    size = {"width": max(118, 420 // frame["V"].nunique()), "height": step * len(order)}
    return figures.panels(chart, BY_V, title, *said, **size)


COSTS = {
    "mflop": ("Error against operations", "MFLOP a question, tower left out (the same for all)"),
    "first_token_ms": ("Error against time", "ms to the first token on one core, tower left out"),
}
OVERALL = figures.error("error, mean of both families").scale(zero=False, padding=8)


def _paid(cost: str, values: pd.Series) -> alt.X:
    """The axis of a cost of one question, logarithmic, with ticks near enough to place a dot by."""
    step = 0.5 if values.max() < 3 * values.min() else 1
    ticks = [a * 10**k for k in (-1, 0, 1, 2) for a in (1, 1.5, *np.arange(2, 9, step))]
    ticks = [tick for tick in ticks if values.min() <= tick <= values.max()]
    axis = alt.Axis(values=ticks, tickCount=len(ticks), format="~g")  # the theme's count would thin them out
    scale = alt.Scale(type="log", nice=False, padding=15)
    return alt.X(f"{cost}:Q", title=COSTS[cost][1], scale=scale, axis=axis)


def at_cost(rows: pd.DataFrame, p: Profile, cost: str = "mflop") -> alt.LayerChart:
    """Overall error against a cost of one question, one line per compressor, a shape for each V."""
    frame = rows.groupby(list(CELL))[["error", cost]].mean().reset_index()
    base = alt.Chart(frame).encode(_paid(cost, frame[cost]), OVERALL, _colour(frame["compressor"]))
    lines = base.mark_line(opacity=0.6).encode(order="V:Q")
    shape = alt.Shape("V:O", title="V", legend=alt.Legend(symbolFillColor="#666666"))
    points = base.mark_point(size=95, filled=True, opacity=0.9)
    points = points.encode(shape=shape, tooltip=["compressor", "V", cost, "error"])
    best = compare.frontier(rows, cost)["compressor"].unique()
    title = f"{COSTS[cost][0]}: on the frontier {'are' if len(best) > 1 else 'is'} {', '.join(best)}"
    said = [figures.provenance(rows, p)]
    if cost == "first_token_ms":  # rows name the machine that trained them
        said = [f"ratios to TokenPacker, times its ms on {rows['clocked_on'].iloc[0]}", f"errors: {said[0]}"]
    return figures.titled(lines + points, title, *said, width=430, height=300)


def frontier(rows: pd.DataFrame, best: pd.DataFrame, p: Profile) -> alt.LayerChart:
    """Every compressor at every V (grey) by operations and error, and those that nothing cheaper equals.

    best: from `vtc.evaluation.compare.frontier`.
    """
    costs = [name for name in ("mflop", "parameters", "kbit", "first_token_ms") if name in rows]
    every = rows.groupby(list(CELL))[["error", *costs]].mean().reset_index()
    named = best.assign(name=best["compressor"] + " at V = " + best["V"].astype(str))
    apart = named["error"].diff().fillna(-1) < -0.01  # names of near points would cover each other
    grey = alt.Chart(every).mark_point(color="#999999", size=25)
    words = alt.Chart(named[apart]).mark_text(align="left", dx=8, dy=-6, fontSize=11).encode(text="name:N")
    line = alt.Chart(named).mark_line(point=True, interpolate="step-after").encode(order="mflop:Q")
    grey = grey.encode(tooltip=list(CELL))
    chart = alt.layer(grey, line, words).encode(_paid("mflop", every["mflop"]), OVERALL)
    last = named.iloc[-1]
    title = f"{last['name']} has the least error, {last['error']:.2f}, for {last['mflop']:.1f} MFLOP"
    count = f"blue, {len(named)} of {len(every)}: no other is as good for as little"
    return figures.titled(chart, title, count, figures.provenance(rows, p), width=560, height=380)


def ranked(rows: pd.DataFrame, p: Profile, edges: dict[str, float] | None = None) -> alt.LayerChart:
    """Every compressor by its error, mean of both families, a colour a V; the best on top.

    edges: errors to hold them against, by name, as dashed lines; see `summary.edges`.
    """
    frame = summary.by_family(rows, CELL).groupby(list(CELL))["error"].mean().reset_index()
    most = frame["V"].mode().iloc[0]  # where most were measured; those that were not stand last
    order = frame.assign(error=frame["error"].where(frame["V"] == most)).groupby("compressor")["error"].mean()
    order = order.sort_values()
    reads = [name for name in order.index if name in READERS]
    bold = alt.condition(f"indexof({reads}, datum.value) >= 0", alt.value("bold"), alt.value("normal"))
    axis = alt.Axis(grid=True, labelFontWeight=bold, labelLimit=220)
    names = alt.Y("compressor:N", title=None, sort=order.index.to_list(), axis=axis)
    x = figures.error("error, mean of both families", alt.X)
    marks = alt.Chart(frame).mark_point(size=95, opacity=0.9)
    title = f"At V = {most}, {order.index[0]} has the least error, {order.iloc[0]:.2f}"
    said = (
        f"all {len(order)} that are recorded, sorted by their error at V = {most}; bold: reads the question",
        figures.provenance(rows, p),
    )
    chart = marks.encode(names, x, alt.Color("V:O", title="V"), tooltip=["compressor", "V", "error"])
    held = alt.Chart(pd.DataFrame(list((edges or {}).items()), columns=["name", "error"]))
    lines = held.mark_rule(strokeDash=[4, 4], color="#777777").encode(x=x)
    words = held.mark_text(dy=-8, color="#555555").encode(x=x, y=alt.value(0), text="name:N")
    chart = chart + lines + words if edges else chart
    return figures.titled(chart, title, *said, width=430, height=22 * len(order))


def once_or_each(rows: pd.DataFrame, p: Profile) -> alt.FacetChart:
    """Error against V: nested budgets, one training for every V (dashed), and one for each V (solid)."""
    there = set(rows["compressor"])
    pairs = {name: line.one_V for name, line in compressors.REGISTRY.items() if line.one_V}
    pairs = {name: one for name, one in pairs.items() if {name, one} <= there}
    frame = summary.by_family(rows[rows["compressor"].isin([*pairs, *pairs.values()])], CELL)
    trained = frame["compressor"].isin(list(pairs)).map({True: "once, every V", False: "each V by itself"})
    frame = frame.assign(training=trained, compressor=frame["compressor"].replace(pairs))
    dash = alt.StrokeDash("training:N", title="trained")
    lines = _along_v(frame).mark_line(point=True).encode(strokeDash=dash)
    where = figures.provenance(rows, p)
    return figures.panels(lines, figures.FAMILY, _lost(frame), where, width=235, height=250)


def _lost(frame: pd.DataFrame) -> str:
    """Who loses most by one training for every V: rows compressor, V, training, family, error -> a title."""
    ocr = frame[frame["family"] == FAMILIES["ocr"]]
    error = ocr.pivot_table(index=["compressor", "V"], columns="training", values="error").dropna()
    title = "One training for every V, or one each"
    if len(error.columns) < 2 or error.empty:
        return title
    lost = error["once, every V"] - error["each V by itself"]
    name, V = lost.idxmax()
    return f"One training for every V costs {name} most: {lost.max():.2f} more OCR-like error at V = {V}"


def betas(table: pd.DataFrame) -> alt.FacetChart:
    """beta of each compressor with its 95 % interval over seeds, a panel a family (`frames.betas`)."""
    names = [compressors.label(name) for name in table["compressor"]]
    base = alt.Chart(table.assign(name=names)).encode(y=alt.Y("name:N", title=None))
    ends = base.mark_rule(strokeWidth=2).encode(x="beta_low:Q", x2="beta_high:Q")
    middle = base.mark_point(size=80, filled=True).encode(x=alt.X("beta:Q", title="beta"))
    zero = alt.Chart().mark_rule(strokeDash=[4, 4], color="#999999").encode(x=alt.datum(0))
    most = table[table["family"] == FAMILIES["ocr"]].sort_values("beta").iloc[-1]
    name = compressors.label(most["compressor"]).removesuffix(" for every V")
    title = f"OCR-like errors fall fastest with V for {name}: beta {most['beta']:.2f}"
    said = "beta: minus the slope of ln error in ln V; 95 % intervals over seeds; one training serves every V"
    chart = alt.layer(zero, ends, middle, data=base.data)
    return figures.panels(chart, figures.FAMILY, title, said, width=260, height=120)
