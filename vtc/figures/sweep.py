"""Figures of notebook 02: error against visual tokens and LLM size, and which task needs which of the two."""

from __future__ import annotations

import altair as alt
import pandas as pd

from vtc import figures
from vtc.evaluation import summary
from vtc.evaluation.exam import TASKS
from vtc.evaluation.scores import FAMILIES
from vtc.profiles import Profile


def _by_size(frame: pd.DataFrame) -> alt.Chart:
    """Frame with N and V -> a chart along V, one colour per LLM; the caller chooses marks."""
    order = [f"{n:,.0f}" for n in sorted(frame["N"].unique())]
    color = alt.Color("LLM:N", title="LLM parameters N", sort=order)
    frame = frame.assign(LLM=frame["N"].map("{:,.0f}".format))
    return alt.Chart(frame).encode(x=figures.tokens(frame["V"]), color=color)


def errors(rows: pd.DataFrame, p: Profile) -> alt.FacetChart:
    """Error against V, one curve per LLM; whiskers from the least to the greatest seed."""
    base = _by_size(summary.by_family(rows))
    lines = base.mark_line(point=True).encode(y=figures.error())
    chart = lines + base.mark_rule(opacity=0.5).encode(y="low:Q", y2="high:Q")
    by = alt.Column("family:N", title=None, sort=list(FAMILIES.values()))
    title, where = "Error against visual tokens, one curve per LLM", figures.provenance(rows, p)
    return figures.panels(chart, by, title, where, width=330, height=260)


def tasks(rows: pd.DataFrame, p: Profile) -> alt.FacetChart:
    """Score against V for each task, one curve per LLM, mean over seeds."""
    score = alt.Y("score:Q", title="score", scale=alt.Scale(domain=[0, 1]))
    lines = _by_size(summary.by_task(rows)).mark_line(point=alt.OverlayMarkDef(size=25)).encode(y=score)
    facet = alt.Facet("task:N", title=None, sort=list(TASKS))
    where = figures.provenance(rows, p)
    return figures.panels(lines, facet, "Each task by itself", where, columns=4, width=190, height=130)


def regimes(rows: pd.DataFrame, p: Profile) -> alt.LayerChart:
    """Each task by gain from a larger LLM and from more tokens: the paper's two regimes, if there are two."""
    frame = summary.gains(rows)
    gains = frame[["gain from N", "gain from V"]].to_numpy()
    ends = [min(0.0, float(gains.min())), 1.1 * float(gains.max())]
    scale = alt.Scale(domain=ends)
    base = alt.Chart(frame).encode(
        x=alt.X("gain from N:Q", title="gain from the smallest to the largest LLM", scale=scale),
        y=alt.Y("gain from V:Q", title="gain from the fewest to the most tokens", scale=scale),
        color=alt.Color("family:N", title="family"),
    )
    words = base.mark_text(align="left", dx=8).encode(text="task:N")
    line = alt.Chart(pd.DataFrame({"x": [0, ends[1]], "y": [0, ends[1]]})).encode(x="x:Q", y="y:Q")
    even = line.mark_line(strokeDash=[4, 4], color="#999999", strokeWidth=1)
    title = "Which tasks want a larger LLM, which want more tokens"
    chart = even + base.mark_point(size=90) + words
    return figures.titled(chart, title, figures.provenance(rows, p), width=400, height=340)
