"""Rows -> pictures: one theme for all notebooks; picture, rows and interactive page under one stem.

A figure is a function from a tidy frame to a chart, without statistics of its own; each notebook's are in
the module of its subject: `data` (01), `sweep` (02), `clock` (03), `law` (04), `zoo` (05), `page` (the
planner). No chart needs a network: a notebook shows the picture itself or, in the lab, the chart with its
tooltips and sliders, which the lab can draw; a page carries the drawing library.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from xml.sax.saxutils import escape

import altair as alt
import pandas as pd

from vtc import files
from vtc.evaluation.scores import FAMILIES
from vtc.profiles import Profile

FONT = "Helvetica, Arial, Liberation Sans, sans-serif"
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31"]
INK, FAINT, RULE = "#222222", "#666666", "#E3E3E3"  # text, second text, grid lines
PNG_SCALE = 2  # pixels a CSS pixel, for screens of double density
LIVE = "application/vnd.vegalite.v5+json"  # the version that JupyterLab draws
LIVE_CHARACTERS = 300_000  # charts with more rows than this stay pictures
FAMILY = alt.Column("family:N", title=None, sort=list(FAMILIES.values()))  # a panel each


@alt.theme.register("vtc", enable=True)
def theme() -> alt.theme.ThemeConfig:
    """The one look: sizes that stay legible at half width, colours told apart without red and green
    (Okabe and Ito), ordered quantities on one ramp from light to dark."""
    text = {"labelFontSize": 12, "titleFontSize": 13, "labelColor": INK, "titleColor": INK}
    return {
        "config": {
            "font": FONT,
            "background": "white",
            "view": {"continuousWidth": 420, "continuousHeight": 280, "stroke": None},
            "axis": {**text, "titleFontWeight": "normal", "gridColor": RULE, "domainColor": FAINT},
            "axisQuantitative": {"tickCount": 6},
            "legend": {**text, "titleFontWeight": "normal", "symbolSize": 90, "labelLimit": 260},
            "header": {**text, "titleFontWeight": "normal"},
            "title": {
                "anchor": "start",
                "fontSize": 15,
                "color": INK,
                "subtitleFontSize": 11,
                "subtitleColor": FAINT,
                "offset": 10,
            },
            "mark": {"tooltip": True},
            "line": {"strokeWidth": 2.2},
            "point": {"size": 60, "filled": True},
            "rule": {"color": FAINT},
            "range": {
                "category": PALETTE,
                "ordinal": {"scheme": "viridis", "extent": [0.9, 0.1]},
                "ramp": {"scheme": "viridis", "extent": [0.95, 0.05]},
                "diverging": {"scheme": "blueorange"},
            },
        }
    }


alt.data_transformers.disable_max_rows()  # every row drawn travels with its chart


@dataclass(frozen=True)
class Picture:
    """A drawn chart; a notebook shows it as a still picture, the lab as the chart itself."""

    png: bytes
    alt: str  # what it shows, for those who can't see it
    width: int  # CSS pixels
    spec: str = ""  # the chart as JSON, which the lab draws live
    files: tuple[Path, ...] = ()  # written by `save`

    def _repr_mimebundle_(self, **_: object) -> tuple[dict, dict]:
        shown = {"image/png": self.png, "text/plain": self.alt}
        if 0 < len(self.spec) <= LIVE_CHARACTERS:
            shown[LIVE] = json.loads(self.spec)
        return shown, {"image/png": {"width": self.width}}


def show(chart: alt.TopLevelMixin, alt_text: str = "") -> Picture:
    """The chart as a picture, nothing written; `alt_text` (or its title) says it to readers without sight."""
    out = io.BytesIO()
    chart.save(out, format="png", scale_factor=PNG_SCALE)
    png, width = packed_tight(out)
    spec = chart.to_dict() | {"$schema": "https://vega.github.io/schema/vega-lite/v5.json"}  # as `LIVE`
    return Picture(png, alt_text or description(chart), width // PNG_SCALE, json.dumps(spec))


def packed_tight(png: io.BytesIO) -> tuple[bytes, int]:
    """The same pixels without the alpha channel, in a fifth of the bytes, and how many are side by side."""
    from PIL import Image

    picture, out = Image.open(png).convert("RGB"), io.BytesIO()
    picture.save(out, "png", optimize=True)
    return out.getvalue(), picture.width


def save(
    chart: alt.TopLevelMixin, stem: str, profile: Profile, alt_text: str = "", html: bool = False
) -> Picture:
    """Writes `<stem>.svg`, `.png` and the rows drawn as `.csv` to the run's figures, and returns the picture.

    `html` adds a page of about 1 MB on which the chart can be zoomed and questioned, without a network.
    The stem begins with the notebook's number.
    """
    picture = show(chart, alt_text)
    svg, page = io.StringIO(), io.StringIO()
    chart.save(svg, format="svg")
    if html:
        chart.save(page, format="html", inline=True)
    contents = {
        "svg": _titled(svg.getvalue(), picture.alt).encode(),
        "png": picture.png,
        "csv": drawn(chart).to_csv(index=False, lineterminator="\n").encode(),
        "html": page.getvalue().encode(),
    }
    written = {profile.figures / f"{stem}.{kind}": content for kind, content in contents.items() if content}
    for path, content in written.items():
        files.write(path, content)
    return replace(picture, files=tuple(written))


def titled(chart: alt.TopLevelMixin, text: str, *subtitle: str, **size: int) -> alt.TopLevelMixin:
    """The chart under a title that says what it shows and, below, how to read it and where it comes from."""
    return chart.properties(title=alt.Title(text, subtitle=list(subtitle)), **size)


def panels(
    chart: alt.TopLevelMixin,
    facet: alt.Facet | alt.Column,
    text: str,
    *subtitle: str,
    columns: int = 0,
    **size,
) -> alt.FacetChart:
    """One small chart a group, side by side, under one title; `size` is that of each."""
    rows = {"columns": columns} if columns else {}
    return titled(chart.properties(**size).facet(facet, **rows), text, *subtitle)


def tokens(values: pd.Series) -> alt.X:
    """The axis of visual tokens: logarithmic, V = 0 too where it is there, a tick at every V measured."""
    ticks = sorted(int(v) for v in values.unique())
    scale = {"type": "symlog", "constant": 1} if 0 in ticks else {"type": "log", "padding": 12}
    scale["nice"] = False  # else one token more than measured gets half of the axis
    # the theme's count of ticks would thin out these values
    axis = alt.Axis(values=ticks, tickCount=len(ticks), labelOverlap=False, format="d", grid=False)
    return alt.X("V:Q", title="visual tokens V", scale=alt.Scale(**scale), axis=axis)


def error(title: str = "error, 1 - mean score", channel: type = alt.Y) -> alt.X | alt.Y:
    """The axis of errors, not from zero."""
    return channel("error:Q", title=title, scale=alt.Scale(zero=False))


def seeds(base: alt.Chart) -> alt.LayerChart:
    """Errors (mean over seeds) as a line, with whiskers from the least to the greatest seed."""
    lines = base.mark_line(point=True).encode(y=error())
    return lines + base.mark_rule(opacity=0.5).encode(y="low:Q", y2="high:Q")


def against(frame: pd.DataFrame, x: str, y: str, titles: tuple[str, str], **scale) -> tuple[alt.Chart, ...]:
    """Column y against column x on equal axes: a chart for marks, and the dashed line on which y = x."""
    both = frame[[x, y]]
    axes = alt.Scale(domain=[float(both.min().min()), float(both.max().max())], nice=False, **scale)
    across, up = alt.X(f"{x}:Q", title=titles[0], scale=axes), {"title": titles[1], "scale": axes}
    base = alt.Chart(frame).encode(across, alt.Y(f"{y}:Q", **up))
    line = base.mark_line(strokeDash=[4, 4], color="#999999")
    return base, line.encode(y=alt.Y(f"{x}:Q", **up))


def drawn(chart: alt.TopLevelMixin) -> pd.DataFrame:
    """The rows that the chart draws; where it draws several frames, column `frame` numbers them."""
    frames = [pd.DataFrame(records) for records in chart.to_dict().get("datasets", {}).values()]
    if len(frames) < 2:
        return frames[0] if frames else pd.DataFrame()
    return pd.concat([frame.assign(frame=i) for i, frame in enumerate(frames)], ignore_index=True)


def provenance(frame: pd.DataFrame, profile: Profile) -> str:
    """A subtitle computed from the rows: profile, device, how many rows, commit."""
    parts = [f"profile {profile.name}"]
    parts += _all_of(frame, "device", "devices")
    parts += [f"{len(frame):,} row{'' if len(frame) == 1 else 's'}"]
    parts += [f"commit {text}" if " " not in text else text for text in _all_of(frame, "commit", "commits")]
    return " · ".join(parts)


def _all_of(frame: pd.DataFrame, column: str, plural: str) -> list[str]:
    """The one value of a column, or how many it has; nothing if it has none."""
    values = sorted(set(frame[column].dropna().astype(str))) if column in frame else []
    return [values[0] if len(values) == 1 else f"{len(values)} {plural}"] if values else []


def description(chart: alt.TopLevelMixin) -> str:
    """The chart's own description, or its title and subtitle in one line."""
    spec = chart.to_dict()
    title = spec.get("title", "")
    if isinstance(title, dict):
        title = [title.get("text", ""), title.get("subtitle", "")]
    lines = title if isinstance(title, list) else [title]
    flat = [part for line in lines for part in (line if isinstance(line, list) else [line]) if part]
    return spec.get("description") or ". ".join(flat)


def _titled(svg: str, alt_text: str) -> str:
    """The drawing with its description inside, where screen readers look."""
    head, tail = svg.split(">", 1)
    return f'{head} role="img"><title>{escape(alt_text)}</title>{tail}'
