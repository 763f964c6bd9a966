"""Figures of notebook 01: what the images show, what is asked about them, what answers give away."""

from __future__ import annotations

import base64
import io

import altair as alt
import numpy as np
import pandas as pd

from vtc import figures


def sheet(images: np.ndarray, captions: list[str], columns: int = 4) -> alt.LayerChart:
    """Images (n, pixels, pixels, 3) in rows, enlarged, each above its caption."""
    row, column = np.divmod(np.arange(len(images)), columns)
    rows = pd.DataFrame({"image": map(_url, images), "column": column, "row": row, "caption": captions})
    x = alt.X("column:O", axis=None)
    y = alt.Y("row:O", axis=None, scale=alt.Scale(paddingInner=0.12))
    height = 190 * (rows["row"].max() + 1)
    base = alt.Chart(rows).encode(x=x, y=y)
    pictures = base.mark_image(width=144, height=144, yOffset=-8).encode(url="image:N")
    words = base.mark_text(dy=76, fontSize=12).encode(text="caption:N")
    return (pictures + words).properties(width=230 * columns, height=height)


def _url(image: np.ndarray) -> str:
    """The image, three times as large with its pixels kept, as a data address."""
    from PIL import Image

    out = io.BytesIO()
    side = image.shape[0] * 3
    Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def give_away(frame: pd.DataFrame) -> alt.LayerChart:
    """Per task the share of its commonest answer: what may be had without looking."""
    rows = frame[frame["family"] != "caption"]
    base = alt.Chart(rows).encode(
        y=alt.Y("task:N", title=None, sort=list(rows["task"])),
        x=alt.X("commonest answer:Q", title="share of the commonest answer", scale=alt.Scale(domain=[0, 1])),
    )
    bars = base.mark_bar().encode(color=alt.Color("family:N", title="family"))
    words = base.mark_text(align="left", dx=4).encode(text=alt.Text("commonest answer:Q", format=".2f"))
    return figures.titled(bars + words, "What the questions give away by themselves", height=240)
