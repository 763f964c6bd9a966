"""Charts of notebook 03: measured milliseconds beside what they must be at least, and what follows from it.

Each takes the clock's rows (`vtc.experiments.clock`) or a device (`vtc.cost`); nothing drawn is typed in.
"""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from vtc import benchmark, cost, figures
from vtc.profiles import Profile
from vtc.scaling import seconds

STAGES = [s for s in cost.STAGES if s != "decode"]
V_AXIS = {"title": "visual tokens V", "scale": alt.Scale(type="symlog", constant=1, nice=False)}


def _v(values) -> alt.X:
    ticks = alt.Axis(values=sorted(int(v) for v in set(values)), labelOverlap="greedy")
    return alt.X("V:Q", axis=ticks, **V_AXIS)


def _title(text: str, clock: pd.DataFrame, p: Profile) -> alt.TitleParams:
    return alt.TitleParams(text, subtitle=figures.provenance(clock, p))


def _order(rows: pd.DataFrame) -> list[str]:
    """LLMs from small to large, by what their prefill costs."""
    return rows[rows["stage"] == "prefill"].groupby("LLM")["flops"].min().sort_values().index.tolist()


def first_token(clock: pd.DataFrame, p: Profile) -> alt.Chart:
    """Time to first token against V, a curve an LLM, a panel a batch; dashed: its counted floor."""
    rows = benchmark.tidy(clock)
    order = _order(rows)
    rows = rows[(rows["stage"] == "ttft") & (rows["compressor"] == "quecc") & (rows["dtype"] == "bf16")]
    color = alt.Color("LLM:N", sort=order, scale=alt.Scale(domain=order))
    kept = rows[["V", "LLM", "batch", "median_ms", "low_ms", "high_ms", "floor_ms", "binds"]]
    x, y = _v(rows["V"]), {"title": "time to first token, ms", "scale": alt.Scale(type="log")}
    base = alt.Chart(kept).encode(x, color=color)
    line = base.mark_line(point=True).encode(alt.Y("median_ms:Q", **y), tooltip=list(kept.columns))
    bars = base.mark_rule(opacity=0.6).encode(alt.Y("low_ms:Q", **y), y2="high_ms:Q")
    floor = base.mark_line(strokeDash=[4, 3], strokeWidth=1.3).encode(alt.Y("floor_ms:Q", **y))
    panel = (floor + bars + line).properties(width=300, height=280)
    title = _title("Time to first token with QueCC; dashed: the least it can take here", rows, p)
    return panel.facet(column=alt.Column("batch:O", title="batch")).properties(title=title)


def shares(clock: pd.DataFrame, p: Profile, llm: str, batch: int = 1) -> alt.Chart:
    """Where the time to first token goes, from pixels: milliseconds of each stage, a bar a V."""
    rows = benchmark.with_tower(benchmark.tidy(clock))
    rows = rows[(rows["llm"] == llm) & (rows["batch"] == batch) & (rows["compressor"] == "quecc")]
    rows = rows[rows["dtype"] == "bf16"]
    parts = rows.loc[rows["stage"].isin(STAGES), ["V", "stage", "median_ms"]]
    chart = alt.Chart(parts.assign(order=parts["stage"].map(STAGES.index))).mark_bar()
    chart = chart.encode(
        alt.X("median_ms:Q", title="milliseconds, stages in the order of the request"),
        alt.Y("V:O", title="visual tokens V"),
        alt.Color("stage:N", sort=STAGES, scale=alt.Scale(domain=STAGES)),
        alt.Order("order:Q"),
        tooltip=["V", "stage", "median_ms"],
    )
    title = _title(f"Stage by stage with QueCC, {llm}, batch {batch}", rows, p)
    return chart.properties(title=title, width=460, height=alt.Step(34))


def speedup(clock: pd.DataFrame, p: Profile, llm: str, batch: int = 1) -> alt.Chart:
    """Bars: measured speed-up over all tokens; ticks: what the counted floors promise."""
    rows = benchmark.speedups(clock)
    name = llm.replace("qwen1.5-", "Qwen1.5-").split(":")[-1]
    rows = rows[(rows["LLM"] == name) & (rows["batch"] == batch) & (rows["dtype"] == "bf16")]
    x = alt.X("V:O", title="visual tokens V", axis=alt.Axis(labelAngle=0))
    base = alt.Chart(rows).encode(x, xOffset="compressor:N")
    y = {"title": f"speed-up over V = {rows['over'].max():.0f}", "scale": alt.Scale(domainMin=0)}
    bars = base.mark_bar().encode(alt.Y("measured:Q", **y), alt.Color("compressor:N"))
    ticks = base.mark_tick(color="black", thickness=2.5).encode(alt.Y("counted:Q", **y))
    one = alt.Chart(rows).mark_rule(strokeDash=[3, 3]).encode(alt.YDatum(1))
    panel = (bars + ticks + one).properties(width=230, height=240)
    title = _title(f"First token sooner, {llm}, batch {batch}; tick: counted", clock, p)
    return panel.facet(column=alt.Column("what:N", title=None)).properties(title=title)


def prompts(clock: pd.DataFrame, p: Profile) -> alt.HConcatChart:
    """What is left of the gain as the text grows (left) and as the answer grows (right); ticks: counted."""
    rows = benchmark.gains(clock)
    panels = []
    for axis, other, words in (("Q", "G", "text tokens Q"), ("G", "Q", "answer tokens G")):
        usual = rows.groupby(other)[axis].nunique().idxmax()
        part = rows[rows[other] == usual]
        base = alt.Chart(part).encode(
            alt.X(f"{axis}:O", title=f"{words} ({other} = {usual})", axis=alt.Axis(labelAngle=0)),
            xOffset="time:N",
        )
        y = {"title": f"V = {part['V'].max()} over V = {part['least'].min()}, times"}
        bars = base.mark_bar().encode(alt.Y("measured:Q", **y), alt.Color("time:N", title=None))
        ticks = base.mark_tick(color="black", thickness=2.5).encode(alt.Y("counted:Q", **y))
        one = alt.Chart(part).mark_rule(strokeDash=[3, 3]).encode(alt.YDatum(1))
        panels.append((bars + ticks + one).properties(width=270, height=240))
    title = _title(f"Longer texts and answers, {rows['LLM'].iloc[0]}, batch 1; tick: counted", clock, p)
    return alt.hconcat(*panels).resolve_scale(y="shared").properties(title=title)


def prediction(clock: pd.DataFrame, p: Profile) -> alt.LayerChart:
    """Predicted against measured milliseconds; open marks were held out of the fit of the two shares."""
    rows = benchmark.predicted(clock)
    kept = rows[["llm", "tokens", "batch", "stage", "dtype", "median_ms", "predicted_ms", "held_out"]]
    used = kept.assign(fit=np.where(kept["held_out"], "held out", "used"))
    ends = [
        float(used[["median_ms", "predicted_ms"]].min().min()),
        float(used[["median_ms", "predicted_ms"]].max().max()),
    ]
    scale = alt.Scale(type="log", domain=ends, nice=False)
    marks = (
        alt.Chart(used)
        .mark_point(filled=False)
        .encode(
            alt.X("median_ms:Q", title="measured, ms", scale=scale),
            alt.Y("predicted_ms:Q", title="predicted, ms", scale=scale),
            alt.Color("stage:N"),
            alt.Shape("fit:N", title="shares fitted on"),
            tooltip=list(used.columns),
        )
    )
    line = alt.Chart(pd.DataFrame({"x": ends, "y": ends})).mark_line(
        strokeDash=[4, 3], color="gray", strokeWidth=1
    )
    line = line.encode(alt.X("x:Q", scale=scale), alt.Y("y:Q", scale=scale))
    title = _title("Counted work and two shares against the clock", rows, p)
    return (line + marks).properties(title=title, width=380, height=340)


def batch_that_pays(devices: Sequence[str], Q: int = 50, saving: float = 0.1) -> alt.Chart:
    """From which batch on one token instead of V makes the first answer token come sooner."""
    rows = seconds.batch_that_pays(devices, Q, saving)
    chart = (
        alt.Chart(rows)
        .mark_line()
        .encode(
            alt.X(
                "V:Q",
                title="V that one token replaces",
                scale=alt.Scale(type="log"),
                axis=alt.Axis(values=[4, 16, 64, 144, 576]),
            ),
            alt.Y(
                "batch:Q",
                title="smallest batch",
                scale=alt.Scale(type="log", base=2),
                axis=alt.Axis(format="d"),
            ),
            alt.Color("N:O", title="N, billions"),
            tooltip=["device", "N", "V", "batch"],
        )
    )
    text = [
        f"first token at least {saving:.0%} sooner, Q = {Q}; counted, bf16, from features",
        "below a curve it is the weights that are waited for",
    ]
    title = alt.TitleParams("The batch at which one token begins to pay", subtitle=text)
    return (
        chart.properties(width=240, height=260)
        .facet(column=alt.Column("device:N", title=None))
        .properties(title=title)
    )


def kv_room(device: str, Q: int = 50, G: int = 128) -> alt.HConcatChart:
    """Two panels: memory that one request's KV cache takes, and how many requests fit at once."""
    rows = seconds.memory(device, Q, G)
    base = (
        alt.Chart(rows)
        .mark_line()
        .encode(
            alt.X(
                "V:Q",
                title="visual tokens V",
                scale=alt.Scale(type="log"),
                axis=alt.Axis(values=[1, 4, 16, 64, 144, 576]),
            ),
            alt.Color("N:O", title="N, billions"),
            tooltip=list(rows.columns),
        )
        .properties(width=270, height=260)
    )
    log = alt.Scale(type="log")
    cache = base.encode(alt.Y("kv_mib:Q", title="KV cache of a request, MiB", scale=log))
    fits = base.transform_filter("datum.batch > 0").encode(
        alt.Y("batch:Q", title="largest batch that fits", scale=log)
    )
    title = alt.TitleParams(
        f"Memory on {device}", subtitle=f"counted; Q = {Q}, G = {G}, bf16, weights and tower included"
    )
    return (cache | fits).properties(title=title)


def pareto(rows: pd.DataFrame, title: str, subtitle: str | list[str]) -> alt.FacetChart:
    """Error against milliseconds a request; the line joins the points that nothing beats."""
    x = alt.X("ms:Q", title="milliseconds a request", scale=alt.Scale(type="log"))
    y = alt.Y("error:Q", title="error, 1 - score", scale=alt.Scale(zero=False))
    size = alt.Size(
        "V:Q", scale=alt.Scale(type="symlog", range=[20, 260]), legend=alt.Legend(values=[1, 16, 144, 576])
    )
    base = alt.Chart(rows).encode(x, y)
    order = rows.groupby("N")["ms"].min().sort_values().index.to_list()  # from small to large
    color = alt.Color("N:O", title="N", sort=order)
    dots = base.mark_point(filled=True).encode(color, size, tooltip=list(rows.columns))
    line = base.mark_line(color="black", strokeDash=[4, 3], strokeWidth=1.2).transform_filter(
        "datum.frontier"
    )
    panel = (line + dots).properties(width=290, height=280)
    head = alt.TitleParams(title, subtitle=subtitle)
    return (
        panel.facet(column=alt.Column("batch:O", title="batch"))
        .resolve_scale(x="independent")
        .properties(title=head)
    )
