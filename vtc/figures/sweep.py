"""Figures of notebook 02: error against visual tokens and LLM size, and which task needs which of the two."""

from __future__ import annotations

import altair as alt
import pandas as pd

from vtc import data, figures
from vtc.profiles import Profile

FAMILIES = {"reasoning": "reasoning", "ocr": "OCR-like"}


def tidy(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the sweep -> one row a cell, seed and task: N, V, seed, family, task, score."""
    parts = []
    for family, tasks in data.FAMILIES.items():
        for task in tasks:
            part = rows[["size", "N", "V", "seed"]].assign(task=task, score=rows[f"score_{task}"])
            parts.append(part.assign(family=FAMILIES[family]))
    return pd.concat(parts, ignore_index=True)


def by_family(rows: pd.DataFrame) -> pd.DataFrame:
    """Sweep rows -> one row a cell and family: mean error over seeds, and the least and greatest seed."""
    parts = [
        rows.groupby(["N", "V"])[f"error_{family}"].agg(error="mean", low="min", high="max", seeds="count")
        for family in data.FAMILIES
    ]
    return pd.concat(parts, keys=FAMILIES.values(), names=["family"]).reset_index()


def _tokens(values: pd.Series) -> alt.X:
    ticks = sorted(int(v) for v in values.unique())
    axis = alt.Axis(values=ticks, labelOverlap=False, format="d", grid=False)
    return alt.X("V:Q", title="visual tokens V", scale=alt.Scale(type="symlog", constant=1), axis=axis)


def _size(frame: pd.DataFrame) -> alt.Color:
    order = sorted(frame["N"].unique())
    return alt.Color("LLM:N", title="LLM parameters N", sort=[f"{n:,.0f}" for n in order])


def errors(rows: pd.DataFrame, p: Profile) -> alt.FacetChart:
    """Error against V, one curve an LLM; whiskers from the least to the greatest seed."""
    frame = by_family(rows)
    frame["LLM"] = frame["N"].map("{:,.0f}".format)
    base = alt.Chart(frame).encode(x=_tokens(frame["V"]), color=_size(frame))
    lines = base.mark_line(point=True).encode(
        y=alt.Y("error:Q", title="error, 1 - mean score", scale=alt.Scale(zero=False))
    )
    whiskers = base.mark_rule(opacity=0.5).encode(y="low:Q", y2="high:Q")
    title = alt.Title("Error against visual tokens, one curve an LLM", subtitle=figures.provenance(rows, p))
    chart = (lines + whiskers).properties(width=330, height=260)
    return chart.facet(alt.Column("family:N", title=None, sort=list(FAMILIES.values()))).properties(
        title=title
    )


def tasks(rows: pd.DataFrame, p: Profile) -> alt.FacetChart:
    """Score against V for each task, one curve an LLM, mean over seeds."""
    frame = tidy(rows).groupby(["family", "task", "N", "V"], sort=False)["score"].mean().reset_index()
    frame["LLM"] = frame["N"].map("{:,.0f}".format)
    chart = (
        alt.Chart(frame)
        .mark_line(point=alt.OverlayMarkDef(size=25))
        .encode(
            x=_tokens(frame["V"]),
            y=alt.Y("score:Q", title="score", scale=alt.Scale(domain=[0, 1])),
            color=_size(frame),
        )
        .properties(width=190, height=130)
    )
    title = alt.Title("Each task by itself", subtitle=figures.provenance(rows, p))
    return chart.facet(alt.Facet("task:N", title=None, sort=list(data.TASKS)), columns=4).properties(
        title=title
    )


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Per task: what going from the smallest to the largest LLM brings, and from fewest to most tokens.

    Both are differences of mean scores over the cells with an image; the other quantity is averaged over.
    """
    seen = tidy(rows[rows["V"] > 0])
    table = seen.groupby(["family", "task", "N", "V"], sort=False)["score"].mean().reset_index()
    ends = []
    for (family, task), part in table.groupby(["family", "task"], sort=False):
        grid = part.pivot(index="N", columns="V", values="score")
        # only V that every LLM has, only LLMs that have every V: an unfinished sweep compares like with like
        by_N, by_V = grid.dropna(axis=1).mean(axis=1), grid.dropna(axis=0).mean(axis=0)
        ends.append((family, task, by_N.iloc[-1] - by_N.iloc[0], by_V.iloc[-1] - by_V.iloc[0]))
    return pd.DataFrame(ends, columns=["family", "task", "gain from N", "gain from V"])


def regimes(rows: pd.DataFrame, p: Profile) -> alt.LayerChart:
    """Each task by gain from a larger LLM and from more tokens: the paper's two regimes, if there are two."""
    frame = gains(rows)
    top = float(max(frame["gain from N"].max(), frame["gain from V"].max())) * 1.1
    scale = alt.Scale(domain=[min(0.0, float(frame[["gain from N", "gain from V"]].min().min())), top])
    base = alt.Chart(frame).encode(
        x=alt.X("gain from N:Q", title="gain from the smallest to the largest LLM", scale=scale),
        y=alt.Y("gain from V:Q", title="gain from the fewest to the most tokens", scale=scale),
        color=alt.Color("family:N", title="family"),
    )
    words = base.mark_text(align="left", dx=8).encode(text="task:N")
    line = pd.DataFrame({"x": [0, top], "y": [0, top]})
    even = (
        alt.Chart(line).mark_line(strokeDash=[4, 4], color="#999999", strokeWidth=1).encode(x="x:Q", y="y:Q")
    )
    title = alt.Title(
        "Which tasks want a larger LLM, which want more tokens", subtitle=figures.provenance(rows, p)
    )
    return (even + base.mark_point(size=90) + words).properties(title=title, width=400, height=340)


def falls(rows: pd.DataFrame) -> pd.DataFrame:
    """Per family: share of neighbouring cells whose mean error falls as V, or N, takes a step up (V > 0)."""
    means = by_family(rows[rows["V"] > 0])
    shares = []
    for family, part in means.groupby("family", sort=False):
        grid = part.pivot(index="N", columns="V", values="error")
        by_V, by_N = grid.diff(axis=1).iloc[:, 1:], grid.diff(axis=0).iloc[1:]
        shares.append((family, float((by_N < 0).mean().mean()), float((by_V < 0).mean().mean())))
    return pd.DataFrame(shares, columns=["family", "falls with N", "falls with V"])


def looking(rows: pd.DataFrame) -> pd.DataFrame:
    """Per task: the largest LLM's mean score without image, with the most tokens, and what looking adds."""
    largest = tidy(rows[rows["N"] == rows["N"].max()])
    table = largest.groupby(["family", "task", "V"], sort=False)["score"].mean().unstack("V")
    without, with_image = table[0], table[max(table.columns)]
    return pd.DataFrame(
        {"no image": without, "most tokens": with_image, "looking adds": with_image - without}
    ).reset_index()


def claims(rows: pd.DataFrame, p: Profile) -> list[dict]:
    """What the paper says of the error surface and whether these rows bear it out, for `records.claim`."""
    whole = len(rows.groupby(["size", "V"])) == len(p.sizes) * len(p.V)
    steps = falls(rows).set_index("family")
    gain = gains(rows).groupby("family")[["gain from N", "gain from V"]].mean()
    blind, seen = rows[rows["V"] == 0], rows[rows["V"] == rows["V"].max()]
    said = []
    for family, column in (("reasoning", "falls with N"), ("OCR-like", "falls with V")):
        share = float(steps.loc[family, column])
        said.append((f"{family} error {column}", "yes", f"in {share:.0%} of steps", share >= 0.75))
    for family, more, less in (("reasoning", "N", "V"), ("OCR-like", "V", "N")):
        a, b = gain.loc[family, f"gain from {more}"], gain.loc[family, f"gain from {less}"]
        text = f"{a:.2f} from {more}, {b:.2f} from {less}"
        said.append((f"{family} tasks gain more from {more} than from {less}", "yes", text, a > b))
    worse = min(blind[f"error_{f}"].mean() - seen[f"error_{f}"].mean() for f in data.FAMILIES)
    said.append(
        ("without an image the error is clearly larger", "not tested", f"by {worse:.2f}", worse > 0.1)
    )
    return [
        {
            "id": f"02-{i}",
            "statement": statement,
            "paper": paper,
            "ours": ours,
            "verdict": ("held" if held else "does not hold") if whole else "open: sweep unfinished",
            "source": "arXiv 2411.03312, section 3",
        }
        for i, (statement, paper, ours, held) in enumerate(said)
    ]
