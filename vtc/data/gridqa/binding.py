"""Questions that bind several marks of one image together: a panel of its own, outside the law.

And `ask_any`, which asks all kinds of questions together.
"""

from __future__ import annotations

import numpy as np

from vtc.data.gridqa import words
from vtc.data.gridqa.ask import AT, NONE, TASKS, Questions, ask, number
from vtc.data.gridqa.facts import Facts
from vtc.data.gridqa.world import Scenes

PANEL = ("count", "compare", "right")
_COUNTS = np.array([AT[str(n)] for n in range(13)])


def ask_any(
    scenes: Scenes, rows: np.ndarray, facts: Facts, split: str, rng: np.random.Generator,
    mix: tuple[float, ...], binding: float,
) -> Questions:  # fmt: skip
    """As `ask`, with a share `binding` of questions of the panel, whose tasks count on from TASKS."""
    asked = ask(scenes, rows, facts, split, rng, mix)
    other = np.flatnonzero(rng.random(len(rows)) < binding)
    panel = ask_binding(scenes, rows[other], rng)
    panel.task[:] += len(TASKS)
    for column, part in zip(vars(asked).values(), vars(panel).values()):
        column[other] = part
    return asked


def ask_binding(scenes: Scenes, rows: np.ndarray, rng: np.random.Generator) -> Questions:
    """One question about each of the scenes `rows` (n,), its task an index into PANEL.

    "count 7 ?" asks how many marks are a 7, "more 3 than 5 ?" which of two digits is there more often, "x3 y5
    right ?" for the next mark of the line. A scene of one mark is only counted.
    """
    n, line = len(rows), scenes.cols[rows]
    shown = np.arange(scenes.digit.shape[1])[None] < scenes.marks[rows, None]  # (n, m)
    digit = scenes.digit[rows]
    counts = ((digit[..., None] == np.arange(10)) & shown[..., None]).sum(1)  # (n, 10)
    task = np.where(line > 1, rng.integers(0, len(PANEL), n), 0)

    mark = (rng.random(n) * scenes.marks[rows]).astype(int)
    mark -= (task == 2) & (mark % line == line - 1)  # the last of a line has none on its right
    each = np.arange(n)
    seen = digit[each, mark]
    one = np.where((task == 0) & (rng.random(n) < 0.1), rng.integers(0, 10, n), seen)
    fewer = rng.random((n, 10)) * (counts != counts[each, one][:, None])  # a digit there more or less often
    other = fewer.argmax(1)
    turned = rng.random(n) < 0.5
    first, second = np.where(turned, other, one), np.where(turned, one, other)

    count, compare, right = (task == k for k in range(len(PANEL)))
    question, answer = np.full((n, 5), NONE), np.full((n, 4), NONE)
    question[count, 0], question[count, 1] = AT["count"], number(words.DIGITS, one[count])
    question[compare, 0], question[compare, 2] = AT["more"], AT["than"]
    question[compare, 1] = number(words.DIGITS, first[compare])
    question[compare, 3] = number(words.DIGITS, second[compare])
    x, y = scenes.place[rows, mark].T
    question[right, 0], question[right, 1] = number(words.X, x[right]), number(words.Y, y[right])
    question[right, 2] = AT["right"]
    question[:, 4] = AT["?"]
    answer[count, 0] = _COUNTS[counts[each, one][count]]
    more = counts[each, first] > counts[each, second]
    answer[compare, 0] = np.where(more, AT["yes"], AT["no"])[compare]
    answer[right, 0] = number(words.DIGITS, digit[each[right], mark[right] + 1])
    return Questions(rows, task, mark, np.full(n, -1), question, answer)
