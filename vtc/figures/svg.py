"""A drawing of boxes, arrows and words as one SVG: light and dark, legible on a phone, described in words.

Whoever draws gives pieces (strings of SVG) and their places; `Drawing` adds title, description and colours.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from html import escape

from vtc import figures, files

WIDTH = 360  # units of a drawing's own, and pixels of a narrow phone: a size of 11 is 11 pixels there
SHOWN = 440  # pixels that a drawing is wide where there is room
SMALL, NORMAL = 11, 12.5  # font sizes

_LIGHT = {"ink": "#222222", "paper": "#ffffff", "box": "#f3f3f3", "lit": "#cfe5f5", "edge": "#0072b2",
          "text": "#f6dcc8", "rule": "#c4c4c4"}  # fmt: skip
_DARK = {"ink": "#ececec", "paper": "#1a1c1f", "box": "#2b2e33", "lit": "#12415f", "edge": "#56b4e9",
         "text": "#6a3b1c", "rule": "#5b5f66"}  # fmt: skip
_RULES = """.vtc-d{{color:{ink};font-family:Helvetica,Arial,Liberation Sans,sans-serif}}
.vtc-d text{{fill:currentColor}}.vtc-d .b{{font-weight:bold}}
.vtc-d .paper{{fill:{paper}}}.vtc-d .box{{fill:{box};stroke:currentColor;stroke-width:1}}
.vtc-d .lit{{fill:{lit};stroke:{edge};stroke-width:2.5}}.vtc-d .on{{fill:{edge};stroke:{paper}}}
.vtc-d .off{{fill:{paper};stroke:{rule}}}.vtc-d .seen{{fill:{lit};stroke:{edge}}}
.vtc-d .text{{fill:{text};stroke:currentColor}}.vtc-d .lit-edge{{stroke:{edge};stroke-width:2.5}}
.vtc-d .rule{{stroke:{rule};fill:none;stroke-width:.8}}
.vtc-d .line{{stroke:currentColor;fill:none;stroke-width:1.4}}
.vtc-d .dash{{stroke-dasharray:4 3}}.vtc-d .curve{{stroke:{edge};fill:none;stroke-width:2.5}}
.vtc-d .tip{{fill:currentColor;stroke:none}}"""


@dataclass(frozen=True)
class Drawing:
    """An SVG with a title and its content in words; a notebook shows it, `save` writes it."""

    title: str
    alt: str  # what is drawn, for those who cannot see it
    height: int
    pieces: tuple[str, ...]

    def svg(self, dark: bool = True) -> str:
        """The file's text; `dark`: with colours for dark screens too, taken where the reader's is dark."""
        rules = _RULES.format(**_LIGHT)
        if dark:
            rules += "\n@media (prefers-color-scheme: dark){" + _RULES.format(**_DARK) + "}"
        size = (
            f'viewBox="0 0 {WIDTH} {self.height}" width="{SHOWN}" height="{SHOWN * self.height / WIDTH:.0f}"'
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} class="vtc-d" role="img">',
                f"<title>{escape(self.title)}</title><desc>{escape(self.alt)}</desc><style>{rules}</style>",
                f'<rect class="paper" width="{WIDTH}" height="{self.height}"/>',
                words(14, 21, self.title, NORMAL + 0.5, bold=True),
                *self.pieces,
                "</svg>\n",
            ]
        )

    def save(self, path) -> None:
        """Writes the file whole."""
        files.write(path, self.svg())

    def _repr_mimebundle_(self, **_: object) -> tuple[dict, dict]:
        """The drawing itself, and a picture of it for pages that show no SVG."""
        import vl_convert

        png, _ = figures.packed_tight(io.BytesIO(vl_convert.svg_to_png(self.svg(dark=False), scale=2)))
        shown = {"image/svg+xml": self.svg(), "image/png": png, "text/plain": f"{self.title}. {self.alt}"}
        return shown, {"image/png": {"width": SHOWN}}


def words(x, y, text: str, size=SMALL, anchor="start", bold=False, what: str = "") -> str:
    """A line of text with its baseline at y; `what` names the fact that it states, for tests."""
    more = (' class="b"' if bold else "") + (f' data-what="{what}"' if what else "")
    where = f'x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"'
    return f"<text {where}{more}>{escape(text, quote=False)}</text>"


def box(x, y, w, h, kind: str = "box") -> str:
    """A rectangle; kind: a class of the colours above."""
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="4"/>'


def cell(x, y, w, h, kind: str, data: str = "") -> str:
    """A square of a grid; `data` names it, for tests."""
    named = f' data-cell="{data}"' if data else ""
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}"{named}/>'


def line(x1, y1, x2, y2, kind: str = "line") -> str:
    return f'<path class="{kind}" d="M{x1:g} {y1:g}L{x2:g} {y2:g}"/>'


def arrow(x1, y1, x2, y2, dashed: bool = False) -> str:
    """A straight arrow, along x or y."""
    kind = "line dash" if dashed else "line"
    side = (x2 > x1) - (x2 < x1), (y2 > y1) - (y2 < y1)  # the direction, a unit step
    a, b = x2 - 6 * side[0], y2 - 6 * side[1]
    u, v = 3.5 * side[1], 3.5 * side[0]
    tip = f"M{x2:g} {y2:g}L{a + u:g} {b + v:g}L{a - u:g} {b - v:g}Z"
    return line(x1, y1, a, b, kind) + f'<path class="tip" d="{tip}"/>'


def labelled(x, y, w, h, kind: str, name: str, *lines: str, what: dict | None = None) -> str:
    """A box with a bold name and lines below it, centred; `what`: line -> the fact that it states."""
    rows = 1 + len(lines)
    top, step = y + h / 2 - 7 * (rows - 1) + 4, 14
    out = [box(x, y, w, h, kind), words(x + w / 2, top, name, NORMAL, "middle", bold=True)]
    for i, text in enumerate(lines, 1):
        out.append(words(x + w / 2, top + i * step, text, SMALL, "middle", what=(what or {}).get(text, "")))
    return "".join(out)


def shape(*axes: int | str) -> str:
    """(b, 576, 1024) as text."""
    return f"({', '.join(map(str, axes))})"
