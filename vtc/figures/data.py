"""Figures of notebook 01: what images show, which demands questions make, what answers give away."""

from __future__ import annotations

import base64
import io

import altair as alt
import numpy as np
import pandas as pd

from vtc import figures
from vtc.evaluation.scores import FAMILIES
from vtc.evaluation.summary import FAMILY_OF, PANEL

COLOR = alt.Color("family:N", title="family", sort=[*FAMILIES.values(), PANEL])


def sheet(images: np.ndarray, captions: list[str], columns: int = 4) -> alt.LayerChart:
    """Images (n, pixels, pixels, 3) in rows, enlarged, each above its caption."""
    row, column = np.divmod(np.arange(len(images)), columns)
    rows = pd.DataFrame({"image": map(url, images), "column": column, "row": row, "caption": captions})
    x = alt.X("column:O", axis=None)
    y = alt.Y("row:O", axis=None, scale=alt.Scale(paddingInner=0.12))
    height = 190 * (rows["row"].max() + 1)
    base = alt.Chart(rows).encode(x=x, y=y)
    pictures = base.mark_image(width=144, height=144, yOffset=-8).encode(url="image:N")
    words = base.mark_text(dy=76, fontSize=12, limit=220).encode(text="caption:N")
    return (pictures + words).properties(width=230 * columns, height=height)


def url(image: np.ndarray) -> str:
    """The image, enlarged with its pixels kept, as a data address."""
    from PIL import Image

    out = io.BytesIO()
    side = image.shape[0] * max(288 // image.shape[0], 1)
    Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def demands(frame: pd.DataFrame) -> alt.LayerChart:
    """Every question that the law is about, by what the eye and what the memory must do.

    frame: an exam's, see `vtc.evaluation.exam`. Questions that need no fact stand on the lowest line.
    """
    shown = frame[frame["task"].isin([*FAMILY_OF]) & frame["kind"].isin(["read", "fact", "common"])]
    nothing, ranks = 0.3, [1, 10, 100, 1000, 10000]
    known = (shown["rank"] + 1.0).where(shown["rank"] >= 0, nothing)
    shown = shown.assign(family=shown["task"].map(FAMILY_OF), tokens=shown["fit"] ** 2, known=known)
    label = "datum.value < 1 ? 'no fact' : format(datum.value, ',')"
    scale = alt.Scale(type="log", domain=[0.2, 41000])
    axis = alt.Axis(values=[nothing, *ranks], labelExpr=label)
    y = alt.Y(
        "known:Q", title="rank of the fact that must be known (1: the most common)", scale=scale, axis=axis
    )
    scale, axis = alt.Scale(type="log", domain=[1, 100]), alt.Axis(values=[1, 4, 9, 16, 36, 100])
    x = alt.X("tokens:Q", title="marks of this size that an image can hold", scale=scale, axis=axis)
    chart = alt.Chart(shown).mark_circle(size=14, opacity=0.5).encode(x, y, COLOR)
    title = "Reasoning asks much of the memory, OCR-like tasks much of the eye"
    return figures.titled(chart, title, "one point a test question", width=520, height=320)


def give_away(frame: pd.DataFrame) -> alt.LayerChart:
    """Per task the share of its commonest answer: what may be had without looking."""
    share = alt.Scale(domain=[0, 1])
    x = alt.X("commonest answer:Q", title="share of the commonest answer", scale=share)
    base = alt.Chart(frame).encode(x, alt.Y("task:N", title=None, sort=list(frame["task"])))
    bars = base.mark_bar().encode(COLOR)
    words = base.mark_text(align="left", dx=4).encode(text=alt.Text("commonest answer:Q", format=".2f"))
    most = frame.loc[frame["family"] != PANEL, "commonest answer"].max()
    title = f"Of the law's tasks none can be guessed more often than {most:.0%}"
    said = "best answer without looking, question by question"
    return figures.titled(bars + words, title, said, height=240)
