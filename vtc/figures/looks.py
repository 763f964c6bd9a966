"""Figures of where visual tokens look in an image, and the panel of notebook 05 in which a model is asked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from html import escape

import altair as alt
import numpy as np
import pandas as pd

from vtc import InputError, figures
from vtc.evaluation.interview import Answer, Interview
from vtc.figures.data import url
from vtc.profiles import Profile

SIDE = 150  # CSS pixels of an image or a map
EDGES = ("left", "top", "right", "bottom")
ASKED = figures.PALETTE[1]  # outline of the mark that is asked for


def attention_maps(
    frame: pd.DataFrame, image: np.ndarray, boxes: pd.DataFrame, p: Profile
) -> alt.HConcatChart:
    """One image, and where each compressor's tokens look in it: a row a compressor, a column a question.

    frame: columns compressor, question, x, y, weight (of all tokens together); image (pixels, pixels, 3);
    boxes: question and `EDGES` of the mark that it asks for, as shares of a side.
    """
    everywhere = frame[["compressor", "question"]].drop_duplicates().merge(boxes, on="question")
    both = pd.concat([frame, everywhere], ignore_index=True)
    maps = _map(both, max(frame["x"], default=0) + 1)
    question = alt.Column("question:N", title=None, sort=None)
    rows = alt.Row("compressor:N", title=None)
    said = "darker: its tokens take more; outlined: the mark that is asked for", f"profile {p.name}, one seed"
    picture = _image(image, boxes)
    chart = alt.hconcat(picture, maps.facet(row=rows, column=question)).resolve_scale(color="independent")
    return figures.titled(chart, _moved(frame), *said)


def _moved(frame: pd.DataFrame) -> str:
    """Whose maps change with the question: rows compressor, question, x, y, weight -> a title."""
    by = frame.pivot_table(index=["compressor", "x", "y"], columns="question", values="weight", aggfunc="sum")
    spread = (by.max(axis=1) - by.min(axis=1)).groupby("compressor").max()
    move, stay = (" and ".join(spread.index[found]) for found in (spread > 1e-3, spread <= 1e-3))
    return f"When the question changes, maps move: {move or 'none'}; maps stay: {stay or 'none'}"


def asked(answer: Answer) -> alt.HConcatChart:
    """One question about one image: the answer, the right one, and a map of where each token looks."""
    V, g, _ = answer.maps.shape
    token, y, x = np.indices(answer.maps.shape).reshape(3, -1)
    weight = (answer.maps / answer.maps.max((1, 2), keepdims=True)).ravel()
    name = [f"token {i + 1} of {V}" for i in range(V)]
    frame = pd.DataFrame({"token": np.array(name)[token], "x": x, "y": y, "weight": weight})
    box = pd.DataFrame([answer.box] if answer.box else [], columns=list(EDGES), dtype=float)
    both = pd.concat([frame, pd.DataFrame({"token": name}).merge(box, how="cross")], ignore_index=True)
    by = alt.Facet("token:N", title=None, sort=name)
    maps = _map(both, g).facet(by, columns=4)
    title = f"{answer.question} The model answers: {answer.said or '(nothing)'}"
    said = answer.said == answer.right.answer
    verdict = "correct" if said else f"wrong; the correct answer is {answer.right.answer}"
    said = verdict, "darker: the token takes more" + "; outlined: the mark that is asked for" * len(box)
    chart = alt.hconcat(_image(answer.image, box), maps).resolve_scale(color="independent")
    return figures.titled(chart, title, *said)


def _map(frame: pd.DataFrame, g: int) -> alt.LayerChart:
    """Rows with x, y, weight (patches of a g x g grid) and rows with `EDGES`: squares, and an outline."""
    base = alt.Chart(frame)
    ends = base.transform_calculate(x1="datum.x + 1", y1="datum.y + 1")
    blues = alt.Color("weight:Q", title="relative weight", scale=alt.Scale(scheme="blues", domain=[0, 1]))
    x, y = _sides("x", "y", g)
    squares = ends.mark_rect().encode(x, y, x2="x1:Q", y2="y1:Q", color=blues)
    return (squares.transform_filter("isValid(datum.weight)") + _outline(base, g)).properties(
        width=SIDE, height=SIDE
    )


def _outline(base: alt.Chart, g: int) -> alt.Chart:
    """Boxes given by `EDGES`, in shares of a side, on a grid of g patches."""
    scaled = base.transform_filter("isValid(datum.left)").transform_calculate(
        **{name: f"datum.{name} * {g}" for name in EDGES}
    )
    x, y = _sides("left", "top", g)
    mark = scaled.mark_rect(filled=False, stroke=ASKED, strokeWidth=2.5)
    return mark.encode(x, y, x2="right:Q", y2="bottom:Q")


def _sides(x: str, y: str, g: int) -> tuple[alt.X, alt.Y]:
    """Axes of an image's two sides, in patches, without ticks; y goes down."""
    scale = {"domain": [0, g], "nice": False, "zero": False}
    down = alt.Scale(**scale, reverse=True)
    return alt.X(f"{x}:Q", scale=alt.Scale(**scale), axis=None), alt.Y(f"{y}:Q", scale=down, axis=None)


def _image(image: np.ndarray, boxes: pd.DataFrame) -> alt.LayerChart:
    """An image (pixels, pixels, 3) with the outlines of marks."""
    picture = alt.Chart(pd.DataFrame({"image": [url(image)]})).mark_image(width=SIDE, height=SIDE)
    drawn = picture.encode(url="image:N", x=alt.value(SIDE / 2), y=alt.value(SIDE / 2))
    layers = drawn + _outline(alt.Chart(boxes.reindex(columns=list(EDGES))), 1)
    return layers.properties(width=SIDE, height=SIDE, title="the image")


@dataclass(frozen=True)
class Panel:
    """A model to be asked: in the lab boxes for image and question, elsewhere the picture of one question."""

    interview: Interview
    image: int
    question: str

    def picture(self, image: int, question: str) -> figures.Picture:
        """The answer to that question, drawn; raises InputError where it cannot be asked."""
        return figures.show(asked(self.interview.ask(image, question)))

    def _repr_mimebundle_(self, **_: object) -> tuple[dict, dict] | dict:
        if "JPY_SESSION_NAME" in os.environ:  # set by a Jupyter server: somebody can type
            return self.widgets()._repr_mimebundle_()
        return self.picture(self.image, self.question)._repr_mimebundle_()

    def widgets(self):
        """A box for the image's number, one for the question, and what follows from both (ipywidgets)."""
        import ipywidgets as w

        last = len(self.interview.scenes) - 1
        whole = {"description_width": "initial"}
        number = w.BoundedIntText(self.image, min=0, max=last, description=f"image, 0 to {last}", style=whole)
        text = w.Text(self.question, description="question", continuous_update=False, style=whole)
        drawn, problem = w.Image(format="png"), w.HTML()

        def ask(_: object = None) -> None:
            try:
                shown = self.picture(number.value, text.value)
            except InputError as error:
                problem.value = escape(str(error))
                return
            problem.value, drawn.value, drawn.width = "", shown.png, shown.width

        for box in (number, text):
            box.observe(ask, "value")
        ask()
        return w.VBox([w.HBox([number, text]), problem, drawn])
