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
from vtc.scaling import scores, undominated

STAGES = [s for s in cost.STAGES if s != "decode"]
V_AXIS = {"title": "visual tokens V", "scale": alt.Scale(type="symlog", constant=1, nice=False)}


def _v(values) -> alt.X:
    ticks = alt.Axis(values=sorted(int(v) for v in set(values)), labelOverlap="greedy")
    return alt.X("V:Q", axis=ticks, **V_AXIS)


def _title(text: str, clock: pd.DataFrame, p: Profile) -> alt.TitleParams:
    return alt.TitleParams(text, subtitle=figures.provenance(clock, p))


def _named(clock: pd.DataFrame) -> pd.DataFrame:
    """Rows with a time, V as a number, and LLM names ordered by size as they will be shown."""
    rows = benchmark.ok(clock).drop(columns="V", errors="ignore").rename(columns={"tokens": "V"})
    way = rows["compressor"] + np.where(rows["question"] == "paid", "", " (" + rows["question"] + ")")
    return rows.assign(
        LLM=rows["llm"].str.replace("qwen1.5-", "Qwen1.5-").str.split(":").str[-1], compressor=way
    )


def _order(rows: pd.DataFrame) -> list[str]:
    """LLMs from small to large, by what their prefill costs."""
    return rows[rows["stage"] == "prefill"].groupby("LLM")["flops"].min().sort_values().index.tolist()


def first_token(clock: pd.DataFrame, p: Profile) -> alt.Chart:
    """Time to first token against V, a curve an LLM, a panel a batch; dashed: its counted floor."""
    rows = _named(clock)
    order = _order(rows)
    rows = rows[(rows["stage"] == "ttft") & (rows["compressor"] == "quecc") & (rows["dtype"] == "bf16")]
    rows = rows[rows["repeat"] == 0]
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
    rows = _named(clock)
    rows = rows[(rows["llm"] == llm) & (rows["batch"] == batch) & (rows["compressor"] == "quecc")]
    rows = rows[(rows["dtype"] == "bf16") & (rows["repeat"] == 0)]
    parts = _with_tower(rows[rows["stage"].isin(STAGES)])[["V", "stage", "median_ms"]]
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


def _with_tower(rows: pd.DataFrame) -> pd.DataFrame:
    """The tower does the same at every V, so it is clocked once a process; here it stands at each V > 0."""
    tower = rows[rows["stage"] == "tower"]
    rest = rows[rows["stage"] != "tower"]
    if tower.empty:
        return rest
    copies = [tower.iloc[:1].assign(V=v) for v in sorted(rest["V"].unique()) if v > 0]
    return pd.concat([rest, *copies], ignore_index=True)


def speedups(clock: pd.DataFrame) -> pd.DataFrame:
    """Speed-up of each V over the largest, measured and predicted, question pass included, by compressor.

    Prediction: floors (both shares 1) of the same run. With and without the vision tower.
    """
    rows = _named(clock)
    rows = rows[(rows["repeat"] == 0) & (rows["dtype"] == "bf16")]
    out = []
    for (name, batch, compressor), group in rows.groupby(["LLM", "batch", "compressor"]):
        tower = group[group["stage"] == "tower"][["median_ms", "floor_ms"]].head(1)
        ttft = group[group["stage"] == "ttft"].set_index("V")[["median_ms", "floor_ms"]]
        if tower.empty or ttft.index.max() < 2:
            continue
        for what, extra in (("from features", 0 * tower.iloc[0]), ("from pixels", tower.iloc[0])):
            ratio = (ttft.loc[ttft.index.max()] + extra) / (ttft + extra)
            same = {"LLM": name, "batch": batch, "compressor": compressor, "what": what}
            of = ratio.rename(columns={"median_ms": "measured", "floor_ms": "counted"}).reset_index()
            out.append(of.assign(**same, over=int(ttft.index.max())))
    found = pd.concat(out, ignore_index=True)
    return found[(found["V"] > 0) & (found["V"] < found["over"])]


def speedup(clock: pd.DataFrame, p: Profile, llm: str, batch: int = 1) -> alt.Chart:
    """Bars: measured speed-up over all tokens; ticks: what the counted floors promise."""
    rows = speedups(clock)
    name = llm.replace("qwen1.5-", "Qwen1.5-").split(":")[-1]
    rows = rows[(rows["LLM"] == name) & (rows["batch"] == batch)]
    x = alt.X("V:O", title="visual tokens V", axis=alt.Axis(labelAngle=0))
    base = alt.Chart(rows).encode(x, xOffset="compressor:N")
    y = {"title": f"speed-up over V = {rows['over'].max():.0f}", "scale": alt.Scale(domainMin=0)}
    bars = base.mark_bar().encode(alt.Y("measured:Q", **y), alt.Color("compressor:N"))
    ticks = base.mark_tick(color="black", thickness=2.5).encode(alt.Y("counted:Q", **y))
    one = alt.Chart(rows).mark_rule(strokeDash=[3, 3]).encode(alt.YDatum(1))
    panel = (bars + ticks + one).properties(width=230, height=240)
    title = _title(f"First token sooner, {llm}, batch {batch}; tick: counted", clock, p)
    return panel.facet(column=alt.Column("what:N", title=None)).properties(title=title)


def gains(clock: pd.DataFrame) -> pd.DataFrame:
    """Time at the most V over time at the least, by Q and G: to the first token, and of the whole answer."""
    rows = _named(clock)
    wide = rows[rows["stage"].isin(["ttft", "decode"])].pivot_table(
        index=["LLM", "Q", "G", "V"], columns="stage", values=["median_ms", "floor_ms"]
    )
    times = {}
    for what, column in (("measured", "median_ms"), ("counted", "floor_ms")):
        first, later = wide[column, "ttft"], wide[column, "decode"]
        steps = wide.index.get_level_values("G") - 1
        times[what] = pd.concat({"first token": first, "whole answer": first + steps * later}, names=["time"])
    frame = pd.DataFrame(times)
    V = frame.index.get_level_values("V")
    least, most = (frame[V == v].droplevel("V") for v in (V.min(), V.max()))
    return (most / least).assign(V=int(V.max()), least=int(V.min())).reset_index()


def prompts(clock: pd.DataFrame, p: Profile) -> alt.HConcatChart:
    """What is left of the gain as the text grows (left) and as the answer grows (right); ticks: counted."""
    rows = gains(clock)
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


def pays(
    devices: Sequence[str], Q: int = 50, saving: float = 0.1, compressor: str = "tokenpacker"
) -> pd.DataFrame:
    """The smallest batch at which one token for V brings the first sooner by `saving`, by device and N.

    Counted floors from features on; rows without such a batch (up to 256) are left out.
    """
    V, batch = np.unique(np.geomspace(2, 576, 60).round())[:, None], np.arange(1.0, 257)
    out = []
    for name in devices:
        for shape in cost.QWEN15:
            pipe = cost.Pipeline(shape, compressor=compressor, features_cached=True)
            many, one = (cost.latency(pipe, cost.hardware(name), v, Q, 1, batch)["ttft"] for v in (V, 1.0))
            soon = one <= (1 - saving) * many
            first = np.where(soon.any(1), batch[soon.argmax(1)], np.nan)
            out += [{"device": name, "N": shape.nominal, "V": v, "batch": b} for v, b in zip(V[:, 0], first)]
    return pd.DataFrame(out).dropna(ignore_index=True)


def batch_that_pays(devices: Sequence[str], Q: int = 50, saving: float = 0.1) -> alt.Chart:
    """From which batch on one token instead of V makes the first answer token come sooner."""
    rows = pays(devices, Q, saving)
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


def room(device: str, Q: int = 50, G: int = 128) -> pd.DataFrame:
    """KV cache a request and the largest batch that fits a device, by N and V (bf16)."""
    V, hardware, out = np.unique(np.geomspace(1, 576, 40).round()), cost.hardware(device), []
    for shape in cost.QWEN15:
        pipe = cost.Pipeline(shape)
        kv = cost.memory(pipe, V, Q, G)["kv"] / 2**20
        most = cost.largest_batch(pipe, hardware, V, Q, G)
        out += [{"N": shape.nominal, "V": v, "KV, MiB": k, "batch": m} for v, k, m in zip(V, kv, most)]
    return pd.DataFrame(out)


def kv_room(device: str, Q: int = 50, G: int = 128) -> alt.HConcatChart:
    """Two panels: memory that one request's KV cache takes, and how many requests fit at once."""
    rows = room(device, Q, G)
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
    cache = base.encode(alt.Y("KV\\, MiB:Q", title="KV cache of a request, MiB", scale=log))
    fits = base.transform_filter("datum.batch > 0").encode(
        alt.Y("batch:Q", title="largest batch that fits", scale=log)
    )
    title = alt.TitleParams(
        f"Memory on {device}", subtitle=f"counted; Q = {Q}, G = {G}, bf16, weights and tower included"
    )
    return (cache | fits).properties(title=title)


def paper_seconds(
    device: str, batches: Sequence[int] = (1, 32), Q: int = 50, task: str = "reasoning"
) -> pd.DataFrame:
    """The paper's points at predicted milliseconds a request on a device, from pixels to the first token."""
    points, hardware, out = scores.published(task), cost.hardware(device), []
    for N, V, Y in zip(points.N, points.V, points.Y):
        pipe = cost.Pipeline(cost.llm(f"{N:g}"))
        for b in batches:
            ms = float(cost.latency(pipe, hardware, V, Q, 1, b)["ttft"]) * 1e3 / b
            out.append({"N": N, "V": int(V), "error": Y, "batch": b, "ms": ms})
    return undominated(pd.DataFrame(out), "ms", ["batch"])


def own_seconds(clock: pd.DataFrame, errors: pd.DataFrame, family: str = "reasoning") -> pd.DataFrame:
    """This project's own errors (mean over seeds) beside milliseconds clocked here for the same N and V.

    The sweep's compressor, TokenPacker, has no pass over the question, so QueCC's is taken off.
    """
    score, key = f"error_{family}", ["N", "V"]
    if errors.empty or score not in errors:
        return pd.DataFrame(columns=["N", "V", "error", "batch", "ms", "frontier"])
    timed = _named(clock)
    timed = timed[timed["repeat"] == 0].astype({"N": int, "V": int})
    wide = timed.pivot_table(
        index=["LLM", *key, "batch"], columns="stage", values="median_ms", aggfunc="first"
    )
    asking = wide["question"].fillna(0) if "question" in wide else 0
    ttft = (wide["ttft"] - asking).rename("median_ms").reset_index()
    mean = errors.astype({"N": int, "V": int}).groupby(key)[score].mean().rename("error").reset_index()
    both = mean.merge(ttft, on=key)
    return undominated(both.assign(ms=both["median_ms"] / both["batch"], N=both["LLM"]), "ms", ["batch"])


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
