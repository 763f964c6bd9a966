"""What is asked about an image of GridQA, with the answer; what text alone teaches; scenes told in words."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np

from vtc.data.gridqa.scenes import COLOR_NAMES, COLORS, SHAPES, Scenes

PLACES = (
    "oslo",
    "lima",
    "cairo",
    "delhi",
    "paris",
    "quito",
    "seoul",
    "tunis",
    "accra",
    "hanoi",
    "minsk",
    "sofia",
)
NTH = ("first", "second", "third", "fourth")
DIRECTIONS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}
NUMBERS = tuple(str(n) for n in range(19))  # a count, or the sum of two digits
_QUESTION_WORDS = (
    "what how many like shape color is are the more than yes no which where lives in row column "
    "read digit digits largest sum of two plus describe one ? empty"
).split()
WORDS = tuple(
    dict.fromkeys(
        (*NUMBERS, *COLORS, *SHAPES, *PLACES, *NTH, *" ".join(DIRECTIONS).split(), *_QUESTION_WORDS)
    )
)

REASONING = ("attribute", "count", "compare", "spatial", "sum", "max", "knowledge")
OCR = ("read", "digit", "digits")
FAMILIES = {"reasoning": REASONING, "ocr": OCR}
TASKS = REASONING + OCR


@dataclass(frozen=True)
class Question:
    """One question about one image, with the answer that is right."""

    image: int  # row of the image; -1: no image is needed
    task: str
    text: str
    answer: str


def home(color: str, shape: str) -> str:
    """Where that thing lives: a fact nothing in an image tells; every pair of colour and shape has one."""
    pair = COLOR_NAMES.index(color) * len(SHAPES) + SHAPES.index(shape)
    order = np.random.default_rng(2411_03312).permutation(len(COLORS) * len(SHAPES))
    return PLACES[int(order[pair]) % len(PLACES)]


def taught_with_images(color: str, shape: str) -> bool:
    """Whether image training may ask where this pair lives; the test asks the half known from text only."""
    return (COLOR_NAMES.index(color) + SHAPES.index(shape)) % 2 == 0


# One function a task; None where this scene has no such question.


def _only(values: list[str]) -> list[str]:
    return [v for v in sorted(set(values)) if values.count(v) == 1]


def _attribute(cells: list, rng: Random, split: str) -> tuple[str, str] | None:
    shapes = [c for c in cells if c[3]]
    by_color, by_shape = _only([c[2] for c in shapes]), _only([c[3] for c in shapes])
    if not by_color and not by_shape:
        return None
    if by_color and (not by_shape or rng.random() < 0.5):
        key = rng.choice(by_color)
        return f"what shape is the {key} one ?", next(c[3] for c in shapes if c[2] == key)
    key = rng.choice(by_shape)
    return f"what color is the {key} one ?", next(c[2] for c in shapes if c[3] == key)


def _count(cells: list, rng: Random, split: str) -> tuple[str, str]:
    column = rng.choice((2, 3))
    values = [c[column] for c in cells if c[3]]
    names = values if rng.random() < 0.9 else list(COLOR_NAMES if column == 2 else SHAPES)
    key = rng.choice(names)
    return f"how many like the {key} one ?", str(values.count(key))


def _compare(cells: list, rng: Random, split: str) -> tuple[str, str] | None:
    column = rng.choice((2, 3))
    values = [c[column] for c in cells if c[3]]
    pairs = [
        (a, b) for a in sorted(set(values)) for b in sorted(set(values)) if values.count(a) > values.count(b)
    ]
    if not pairs:
        return None
    more, less = rng.choice(pairs)
    return (
        (f"are more {more} than {less} ?", "yes")
        if rng.random() < 0.5
        else (f"are more {less} than {more} ?", "no")
    )


def _spatial(cells: list, rng: Random, split: str) -> tuple[str, str] | None:
    once = _only([f"{c[2]} {c[3]}" for c in cells if c[3]])
    at = {(c[0], c[1]): c[4] or f"{c[2]} {c[3]}" for c in cells}
    choices = []
    for (row, col), what in at.items():
        if what in once:
            choices += [
                (w, what, at[row + dr, col + dc])
                for w, (dr, dc) in DIRECTIONS.items()
                if (row + dr, col + dc) in at
            ]
    if not choices:
        return None
    where, what, answer = rng.choice(choices)
    return f"what is {where} the {what} one ?", answer


def _sum(cells: list, rng: Random, split: str) -> tuple[str, str] | None:
    digits = [int(c[4]) for c in cells if c[4]]
    return ("sum of the first two digits ?", str(digits[0] + digits[1])) if len(digits) > 1 else None


def _max(cells: list, rng: Random, split: str) -> tuple[str, str] | None:
    digits = [c[4] for c in cells if c[4]]
    return ("which digit is largest ?", max(digits)) if digits else None


def _knowledge(cells: list, rng: Random, split: str) -> tuple[str, str] | None:
    shapes = [c for c in cells if c[3]]
    keys = [
        (c[column], c)
        for column in (2, 3)
        for c in shapes
        if [d[column] for d in shapes].count(c[column]) == 1
    ]
    if split != "text":
        keys = [(key, c) for key, c in keys if taught_with_images(c[2], c[3]) == (split == "train")]
    if not keys:
        return None
    key, cell = rng.choice(keys)
    return f"where lives the {key} one ?", home(cell[2], cell[3])


def _read(cells: list, rng: Random, split: str) -> tuple[str, str] | None:
    digits = [c[4] for c in cells if c[4]]
    return ("read the digits ?", " ".join(digits)) if digits else None


def _digit(cells: list, rng: Random, split: str) -> tuple[str, str] | None:
    digits = [c for c in cells if c[4]]
    if not digits:
        return None
    row, col, *_, value = rng.choice(digits)
    return f"digit in {NTH[row]} row {NTH[col]} column ?", value


def _digits(cells: list, rng: Random, split: str) -> tuple[str, str]:
    return "how many digits ?", str(sum(c[4] is not None for c in cells))


def _describe(cells: list, rng: Random, split: str) -> tuple[str, str]:
    return "describe ?", " ".join(f"{c[2]} {c[3]}" for c in cells if c[3])


MAKERS = {
    "attribute": _attribute, "count": _count, "compare": _compare, "spatial": _spatial, "sum": _sum,
    "max": _max, "knowledge": _knowledge, "read": _read, "digit": _digit, "digits": _digits,
    "describe": _describe,
}  # fmt: skip


def ask(
    scenes: Scenes, tasks: tuple[str, ...], split: str, seed: int, each: int = 1, limit: int = 0
) -> list[Question]:
    """Questions of these tasks about the scenes, `each` a task and scene where the scene has one.

    `split` "test" asks where things live only for pairs that image training left out, "train" only for the
    others, "text" for all. `limit` > 0 stops at so many questions a task.
    """
    rng, asked = Random(f"{seed} {split}"), []
    left = dict.fromkeys(tasks, limit or len(scenes) * each)
    for i in range(len(scenes)):
        cells = scenes.cells(i)
        for task in tasks:
            for _ in range(min(each, left[task])):
                if (made := MAKERS[task](cells, rng, split)) is not None:
                    asked.append(Question(i, task, *made))
                    left[task] -= 1
    return asked


def in_words(scenes: Scenes, i: int) -> list[str]:
    """Scene i in words, cell by cell: "row" before each row, then "red circle", "7" or "empty" a cell."""
    at = {(r, c): digit or f"{color} {shape}" for r, c, color, shape, digit in scenes.cells(i)}
    return [
        word
        for r in range(scenes.rows[i])
        for word in ("row", *(at.get((r, c), "empty") for c in range(scenes.cols[i])))
    ]


def facts() -> list[Question]:
    """What text alone teaches: where every thing lives, and the sums of two digits."""
    lives = [
        Question(-1, "fact", f"where lives the {c} {s} one ?", home(c, s)) for c in COLORS for s in SHAPES
    ]
    sums = [Question(-1, "plus", f"{a} plus {b} ?", str(a + b)) for a in range(10) for b in range(10)]
    return lives + sums
