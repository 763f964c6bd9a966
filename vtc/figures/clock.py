"""Charts of notebook 03: measured milliseconds beside what they must be at least, and what follows from it.

*Measured* comes from a clock on the device named below the title, *counted* from operations and bytes. Each
takes a tidy frame of `vtc.benchmark` or `vtc.scaling.seconds`; nothing drawn is computed or typed in here.
"""

from __future__ import annotations

import altair as alt
import pandas as pd

from vtc import benchmark, cost, figures
from vtc.profiles import Profile

STAGES = [s for s in cost.STAGES if s != "decode"]
V_TICKS = pd.Series([1, 4, 16, 64, 144, 576])  # where V runs over all numbers


def first_token(clock: pd.DataFrame, p: Profile) -> alt.FacetChart:
    """Milliseconds to the first token of one request against V, a panel an LLM, a curve a batch."""
    rows = benchmark.tidy(clock).query("compressor == 'quecc' and dtype == 'bf16'")
    order = rows[rows["stage"] == "prefill"].groupby("LLM")["flops"].min().sort_values().index.tolist()
    rows = rows[rows["stage"] == "ttft"]
    each = {name: rows[name] / rows["batch"] for name in ("median_ms", "low_ms", "high_ms", "floor_ms")}
    kept = rows[["V", "LLM", "batch", "binds"]].assign(**each)
    y, color = {"title": "ms a request, measured", "scale": alt.Scale(zero=True)}, alt.Color("batch:O")
    base = alt.Chart(kept).encode(figures.tokens(kept["V"]), color=color)
    line = base.mark_line(point=True).encode(alt.Y("median_ms:Q", **y), tooltip=list(kept.columns))
    bars = base.mark_rule(opacity=0.6).encode(alt.Y("low_ms:Q", **y), y2="high_ms:Q")
    floor = base.mark_line(strokeDash=[4, 3], strokeWidth=1.3).encode(alt.Y("floor_ms:Q", **y))
    how = "measured, from features, with QueCC; dashed: the least it can take here, counted"
    by = alt.Facet("LLM:N", title=None, sort=order)
    several = kept[kept["V"] > 0].groupby("LLM")["V"].nunique().reindex(order[::-1])
    llm = several.idxmax() if len(several) else ""  # clocked at the most V, the larger of several
    one = kept[(kept["LLM"] == llm) & (kept["V"] > 0)].sort_values(["batch", "V"])
    one, title = one[one["batch"] == one["batch"].min()], "Time to first token, measured"
    if one["V"].nunique() > 1:
        ratio = one["median_ms"].iloc[-1] / one["median_ms"].iloc[0]
        sooner = f"{ratio:.1f} times sooner with V = {one['V'].min()} than {one['V'].max()}"
        title = f"{llm}: the first token comes {sooner}"
    said, size = (how, figures.provenance(rows, p)), {"columns": 3, "width": 230, "height": 170}
    chart = figures.panels(floor + bars + line, by, title, *said, **size)
    return chart.resolve_scale(y="independent")


def shares(clock: pd.DataFrame, p: Profile, llm: str, batch: int = 1) -> alt.Chart:
    """Where the time to first token goes, from pixels: milliseconds of each stage, a bar a V."""
    rows = benchmark.with_tower(benchmark.tidy(clock))
    rows = rows[(rows["llm"] == llm) & (rows["batch"] == batch)]
    rows = rows.query("compressor == 'quecc' and dtype == 'bf16' and stage in @STAGES")
    parts = rows[["V", "stage", "median_ms"]].assign(order=rows["stage"].map(STAGES.index))
    chart = alt.Chart(parts).mark_bar().encode(
        alt.X("median_ms:Q", title="milliseconds, measured; stages in the order of the request"),
        alt.Y("V:O", title="visual tokens V"),
        alt.Color("stage:N", sort=STAGES, scale=alt.Scale(domain=STAGES)),
        alt.Order("order:Q"),
        tooltip=["V", "stage", "median_ms"],
    )  # fmt: skip
    least = parts.loc[parts["V"] > 0, "V"].min()
    few = parts[parts["V"] == least].groupby("stage")["median_ms"].sum()
    share = f"{few.max() / few.sum():.0%} of the time to the first token"
    title = f"At V = {least} the {few.idxmax()} takes {share}"
    said = f"measured: {llm} with QueCC, batch {batch}, from pixels", figures.provenance(rows, p)
    return figures.titled(chart, title, *said, width=460, height=alt.Step(34))


def _bars(rows: pd.DataFrame, x: alt.X, group: str, y_title: str) -> alt.LayerChart:
    """Bars of what was measured, ticks for what was counted, a line where nothing is gained."""
    base = alt.Chart(rows).encode(x, xOffset=f"{group}:N")
    y = {"title": y_title, "scale": alt.Scale(domainMin=0)}
    bars = base.mark_bar().encode(alt.Y("measured:Q", **y), alt.Color(f"{group}:N", title=None))
    ticks = base.mark_tick(color="black", thickness=2.5).encode(alt.Y("counted:Q", **y))
    one = alt.Chart(rows).mark_rule(strokeDash=[3, 3]).encode(alt.YDatum(1))
    if "low" in rows:
        bars += base.mark_rule().encode(alt.Y("low:Q", **y), y2="high:Q")
    return bars + ticks + one


def speedup(clock: pd.DataFrame, p: Profile, llm: str, batch: int = 1) -> alt.FacetChart:
    """How much sooner the first token comes than with all tokens, by compressor."""
    name = llm.replace("qwen1.5-", "Qwen1.5-").split(":")[-1]
    rows = benchmark.speedups(clock)
    rows = rows[(rows["LLM"] == name) & (rows["batch"] == batch) & (rows["dtype"] == "bf16")]
    x = alt.X("V:O", title="visual tokens V", axis=alt.Axis(labelAngle=0))
    chart = _bars(rows, x, "compressor", f"speed-up over V = {rows['over'].max():.0f}")
    how = "bars: measured, question pass included, with 95 % intervals; ticks: counted"
    if len(rows) < rows[["V", "compressor", "what"]].nunique().prod():
        how += "; no bar: not clocked"
    title = f"How much sooner the first token comes: {llm}, batch {batch}"
    by, said = alt.Column("what:N", title=None), (how, figures.provenance(clock, p))
    return figures.panels(chart, by, title, *said, width=230, height=240)


def prompts(clock: pd.DataFrame, p: Profile) -> alt.HConcatChart:
    """What is left of the gain as the text grows (left) and as the answer grows (right)."""
    rows, charts = benchmark.gains(clock), []
    for axis, other, words in (("Q", "G", "text tokens Q"), ("G", "Q", "answer tokens G")):
        usual = rows.groupby(other)[axis].nunique().idxmax()
        part = rows[rows[other] == usual]
        x = alt.X(f"{axis}:O", title=f"{words} ({other} = {usual})", axis=alt.Axis(labelAngle=0))
        title = f"time at V = {part['V'].max()} over V = {part['least'].min()}"
        charts.append(_bars(part, x, "time", title).properties(width=235, height=240))
    chart = alt.hconcat(*charts).resolve_scale(y="shared")
    last = rows[rows["time"] == "whole answer"].sort_values("G").iloc[-1]
    sooner = f"{last['measured']:.1f} times sooner with V = {last['least']} than {last['V']}"
    title = f"An answer of {last['G']} tokens is complete only {sooner}"
    said = f"{last['LLM']}, batch 1; bars: measured; ticks: counted", figures.provenance(clock, p)
    return figures.titled(chart, title, *said)


def prediction(clock: pd.DataFrame, p: Profile) -> alt.LayerChart:
    """Predicted against measured milliseconds; open marks were held out of the fit of the two shares."""
    rows = benchmark.predicted(clock)
    kept = rows[["llm", "tokens", "batch", "stage", "dtype", "median_ms", "predicted_ms"]]
    used = kept.assign(fit=rows["held_out"].map({True: "held out", False: "used"}))
    titles = "measured, ms", "predicted from counts, ms"
    base, line = figures.against(used, "median_ms", "predicted_ms", titles, type="log")
    shape = alt.Shape("fit:N", title="shares fitted on")
    marks = base.mark_point(filled=False).encode(alt.Color("stage:N"), shape, tooltip=list(used.columns))
    title = "Counted work and two shares against the clock"
    return figures.titled(line + marks, title, figures.provenance(rows, p), width=380, height=340)


def _over_all(rows: pd.DataFrame, y: alt.Y, **size: int) -> alt.Chart:
    """A counted quantity over all V, a curve an LLM."""
    tooltip = [name for name in rows.columns if name != "device"]
    base = alt.Chart(rows).mark_line().encode(figures.tokens(V_TICKS), y, tooltip=tooltip)
    return base.encode(alt.Color("N:O", title="N, billions")).properties(**size)


def batch_that_pays(rows: pd.DataFrame, Q: int = 50, saving: float = 0.1) -> alt.FacetChart:
    """From which batch on one token instead of V makes the first answer token come sooner."""
    doubling = {"scale": alt.Scale(type="log", base=2), "axis": alt.Axis(format="d")}
    y = alt.Y("batch:Q", title="smallest batch", **doubling)
    said = f"counted: first token at least {saving:.0%} sooner, Q = {Q}, bf16, from features"
    title = "The batch at which one token instead of V begins to pay"
    by = alt.Column("device:N", title=None)
    return figures.panels(_over_all(rows, y), by, title, said, width=180, height=260)


def kv_room(rows: pd.DataFrame, device: str, Q: int = 50, G: int = 128) -> alt.HConcatChart:
    """Two panels: memory that one request's KV cache takes, and how many requests fit at once."""
    log, size = alt.Scale(type="log"), {"width": 235, "height": 260}
    cache = _over_all(rows, alt.Y("kv_mib:Q", title="KV cache of a request, MiB", scale=log), **size)
    fits = alt.Y("batch:Q", title="largest batch that fits", scale=log)
    fits = _over_all(rows[rows["batch"] > 0], fits, **size)
    said = f"counted; Q = {Q}, G = {G}, bf16, weights and tower included"
    return figures.titled(cache | fits, f"What visual tokens take of the memory of one {device}", said)


def pareto(rows: pd.DataFrame, title: str, *subtitle: str) -> alt.FacetChart:
    """Error against milliseconds a request; the line joins the points that nothing beats."""
    axis = {"title": "milliseconds a request", "scale": alt.Scale(type="log")}
    there = sorted(int(v) for v in rows["V"].unique())
    size = alt.Size("V:Q", scale=alt.Scale(type="symlog", range=[20, 260]), legend=alt.Legend(values=there))
    order = rows.groupby("N")["ms"].min().sort_values().index.to_list()  # from small to large
    base = alt.Chart(rows).encode(alt.X("ms:Q", **axis), figures.error("error, 1 - score"))
    color = alt.Color("N:O", title="N", sort=order)
    dots = base.mark_point(filled=True).encode(color, size, tooltip=list(rows.columns))
    line = base.mark_line(color="black", strokeDash=[4, 3], strokeWidth=1.2)
    chart = line.transform_filter("datum.frontier") + dots
    if "low_ms" in rows:
        chart += base.mark_rule(opacity=0.4).encode(alt.X("low_ms:Q", **axis), x2="high_ms:Q")
    by = alt.Column("batch:O", title="batch")
    return figures.panels(chart, by, title, *subtitle, width=240, height=280).resolve_scale(x="independent")
