"""Figures of notebook 02: errors told in words and seen, predictions beside them, exponents by demand."""

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
    color = alt.Color("LLM:O", title="LLM parameters N", sort=order)
    frame = frame.assign(LLM=frame["N"].map("{:,.0f}".format))
    return alt.Chart(frame).encode(x=figures.tokens(frame["V"]), color=color)


def errors(rows: pd.DataFrame, p: Profile) -> alt.FacetChart:
    """Error against V, one curve per LLM; whiskers from the least to the greatest seed."""
    chart = figures.seeds(_by_size(summary.by_family(rows)))
    each = [f"{row.family} by {row.by_N:.2f} and {row.by_V:.2f}" for row in summary.falls(rows).itertuples()]
    title = "The largest LLM and the best V lower the error: " + ", ".join(each)
    said = "one curve per LLM, whiskers: from the least to the greatest seed; beside the smallest LLM and V"
    return figures.panels(
        chart, figures.FAMILY, title, said, figures.provenance(rows, p), width=255, height=260
    )


def tasks(rows: pd.DataFrame, p: Profile) -> alt.FacetChart:
    """Score against V for each task, one curve per LLM, mean over seeds."""
    score = alt.Y("score:Q", title="score", scale=alt.Scale(domain=[0, 1]))
    lines = _by_size(summary.by_task(rows)).mark_line(point=alt.OverlayMarkDef(size=25)).encode(y=score)
    facet = alt.Facet("task:N", title=None, sort=list(TASKS))
    title, where = "Each task by itself, one curve per LLM", figures.provenance(rows, p)
    return figures.panels(lines, facet, title, where, columns=4, width=130, height=120)


def told(parts: pd.DataFrame, p: Profile) -> alt.LayerChart:
    """Error of each LLM that is told the scene in words, against N: the marginal E_text(N)."""
    llms = parts[parts["part"] == "llm"]
    frame = pd.concat(
        llms[["N", "seed"]].assign(family=name, error=llms[f"error_{family}"])
        for family, name in FAMILIES.items()
    )
    sizes = sorted(frame["N"].unique().tolist())
    log = alt.Scale(type="log", nice=False, padding=12)
    x = alt.X("N:Q", title="LLM parameters N", scale=log, axis=alt.Axis(values=sizes, format=",.0f"))
    color = alt.Color("family:N", title="family", sort=list(FAMILIES.values()))
    base, title = alt.Chart(frame).encode(x, color), "error, told in words"
    shares = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1]
    axis = {"title": title, "scale": log, "axis": alt.Axis(values=shares, tickCount=len(shares))}
    lines = base.mark_line().encode(y=alt.Y("mean(error):Q", **axis))
    points = base.mark_point(size=35).encode(y=alt.Y("error:Q", **axis))
    said = "What an LLM knows depends on N", figures.provenance(llms, p)
    return figures.titled(lines + points, *said, width=440, height=280)


def predictions(table: pd.DataFrame, p: Profile) -> alt.FacetChart:
    """Measured error of each cell against the one predicted from two marginals; the line: as predicted."""
    frame = table.assign(
        family=table["family"].map(FAMILIES), outcome=table["hit"].map({True: "hit", False: "miss"})
    )
    titles = "predicted error", "measured error"
    base, line = figures.against(frame, "predicted", "measured", titles, padding=10)
    shapes = alt.Scale(domain=["hit", "miss"], range=["circle", "M-1,-1L1,1M-1,1L1,-1"])
    points = base.mark_point(size=55, filled=False, strokeWidth=2.2).encode(
        color=alt.Color("label:N", title="prediction"),
        shape=alt.Shape("outcome:N", title="within the tolerance", scale=shapes),
        tooltip=["N", "V", "predicted", "measured", "tolerance"],
    )
    within = table["tolerance"].max()
    hits = f"{int(table['hit'].sum())} of {len(table)} cells within the tolerance, {within:.2f} of the error"
    title = "Errors of the grid, predicted before it was trained"
    return figures.panels(line + points, figures.FAMILY, title, hits, width=240, height=240)


def plane(frame: pd.DataFrame, p: Profile) -> alt.LayerChart:
    """alpha / beta over the plane of demands; red where N counts more, blue where V does.

    Grey where either may be 0, by its interval: there the ratio is not determined.
    """
    known = (frame["alpha"] > 0) & (frame["beta"] > 0)
    known &= ~(frame["alpha_low"] <= 0) & ~(frame["beta_low"] <= 0)
    ratio = (frame["alpha"] / frame["beta"]).where(known).clip(0.05, 20)
    words = [f"{row.alpha:z.2f}, {row.beta:z.2f}" for row in frame.itertuples()]
    shown = frame.assign(ratio=ratio, words=words)
    ranks, level = list(dict.fromkeys(frame["rank"]))[::-1], alt.Axis(labelAngle=0)
    fits, eye = list(dict.fromkeys(frame["fit"])), "marks that fit a side of the image (the eye)"
    base = alt.Chart(shown).encode(
        x=alt.X("fit:N", title=eye, sort=fits, axis=level),
        y=alt.Y("rank:N", title="rank of the fact (the memory)", sort=ranks),
    )
    scale = alt.Scale(type="log", domain=[0.05, 1, 20], range=["#2166ac", "#f7f7f7", "#b2182b"])
    color = alt.Color("ratio:Q", title="alpha / beta", scale=scale)
    strong = "isValid(datum.ratio) && (datum.ratio > 8 || datum.ratio < 0.125)"
    dark = alt.condition(strong, alt.value("white"), alt.value("black"))
    numbers = base.mark_text(fontSize=12).encode(text="words:N", color=dark)
    grey = base.mark_rect(stroke="white", color="#d9d9d9")
    chart = grey + base.mark_rect(stroke="white").transform_filter("isValid(datum.ratio)").encode(color=color)
    chart += numbers
    title = "Memory turns alpha / beta up, the eye turns it down"
    said = (
        f"numbers: alpha, beta; red: N counts more, blue: V counts more, white: alike; profile {p.name}",
        "grey: not determined, the interval over seeds of alpha or of beta holds 0",
    )
    return figures.titled(chart, title, *said, width=460, height=230)


def turned(table: pd.DataFrame, p: Profile) -> alt.FacetChart:
    """Slopes of the error in ln N and in ln V, in the world and in its flipped twin: `summary.turned`."""
    apart = table[table["slope"] == "more with N than with V"].set_index(["world", "questions"])
    means = [apart.loc[(world, "facts"), "mean"] for world in ("world", "twin")]
    first, then = ("N than with V" if mean > 0 else "V than with N" for mean in means)
    where = "in both worlds" if first == then else f"in the world, more with {then} in the twin"
    shown = table[table["slope"].isin(["with N", "with V"])]
    base = alt.Chart(shown).encode(
        y=alt.Y("questions:N", title=None),
        yOffset=alt.YOffset("slope:N"),
        color=alt.Color("slope:N", title="slope"),
    )
    bars = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title="change of the error for e times as much"), x2="high:Q"
    )
    chart = bars + base.mark_point(size=60, filled=True).encode(x="mean:Q")
    chart += alt.Chart(shown).mark_rule(strokeDash=[4, 4], color="#999999").encode(x=alt.datum(0))
    by = alt.Column("world:N", title=None, sort=["world", "twin"])
    title = f"Errors about facts fall more with {first} {where}"
    said = f"profile {p.name}; points: means over seeds, bars: 95 % intervals"
    return figures.panels(chart, by, title, said, width=250, height=110)


def plateaus(rows: pd.DataFrame) -> alt.FacetChart:
    """Scores of the first world's task `attribute`, one mark a run: runs lie on plateaus, not on a curve."""
    frame = rows[rows["V"] > 0].sort_values("N").assign(LLM=lambda f: f["N"].map("N = {:,.0f}".format))
    order = [f"N = {n:,.0f}" for n in sorted(frame["N"].unique())]
    bins = alt.Bin(step=0.1, extent=[0, 1])
    x = alt.X("score_attribute:Q", bin=bins, title="score of attribute")
    bars = alt.Chart(frame).mark_bar().encode(x=x, y=alt.Y("count():Q", title="runs"))
    title = "In the first world a run either left its plateau or did not"
    by = alt.Column("LLM:N", title=None, sort=order)
    return figures.panels(bars, by, title, "every V > 0 and seed", width=150, height=150)
