"""Images and questions: GridQA, made here from a seed, and folders in LLaVA's format.

GridQA keeps the two abilities that the paper separates. An image is a grid of cells that hold coloured shapes
or
*real* handwritten digits (UCI digits, in scikit-learn; test images use handwriting never trained on).
Reasoning
questions need a few facts about the image and some thought; OCR-like ones need many details of it.
Cells vary in size and objects stand off their centres, so that no number of visual tokens fits the grid by
design.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import numpy as np

from vtc import InputError

COLORS = {
    "red": (220, 50, 47), "green": (60, 160, 60), "blue": (50, 90, 220), "yellow": (225, 205, 40),
    "purple": (150, 60, 190), "cyan": (50, 190, 200), "orange": (240, 140, 30), "pink": (240, 140, 190),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
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
DIGITS = tuple("0123456789")
NUMBERS = tuple(str(n) for n in range(19))  # a count, or the sum of two digits
_QUESTION_WORDS = (
    "what how many like shape color is are the more than yes no which where lives in row column "
    "read digit digits largest sum of two plus describe one ? empty"
).split()
WORDS = tuple(
    dict.fromkeys((*NUMBERS, *COLORS, *SHAPES, *PLACES, *NTH, *" ".join(DIRECTIONS).split(), *_QUESTION_WORDS))
)

REASONING = ("attribute", "count", "compare", "spatial", "sum", "max", "knowledge")
OCR = ("read", "digit", "digits")
FAMILIES = {"reasoning": REASONING, "ocr": OCR}
TASKS = REASONING + OCR


EMPTY, SHAPE, DIGIT = 0, 1, 2
_MOST = 8  # objects of one kind in an image; a count stays one token


@dataclass(frozen=True)
class Question:
    """One question about one image, with the answer that is right."""

    image: int  # row of the image; -1: no image is needed
    task: str
    text: str
    answer: str


@dataclass(frozen=True)
class Scenes:
    """What n images show, one row a scene and one column a cell in reading order (16 columns, unused ones
    EMPTY)."""

    rows: np.ndarray  # (n,) 3 or 4
    cols: np.ndarray  # (n,) 3 or 4
    kind: np.ndarray  # (n, 16) EMPTY, SHAPE or DIGIT
    shape: np.ndarray  # (n, 16) index into SHAPES
    color: np.ndarray  # (n, 16) index into COLORS
    digit: np.ndarray  # (n, 16) 0..9
    glyph: np.ndarray  # (n, 16) which handwritten digit is drawn
    box: np.ndarray  # (n, 16, 3) centre x, centre y, side, as shares of the image's side
    seed: int  # of the noise

    def __len__(self) -> int:
        return len(self.rows)

    def cells(self, i: int) -> list[tuple[int, int, str | None, str | None, str | None]]:
        """The filled cells of scene i in reading order: row, column, color, shape, digit."""
        rows = []
        for c in range(int(self.rows[i] * self.cols[i])):
            where = divmod(c, int(self.cols[i]))
            if self.kind[i, c] == SHAPE:
                rows.append((*where, _COLOR_NAMES[self.color[i, c]], SHAPES[self.shape[i, c]], None))
            elif self.kind[i, c] == DIGIT:
                rows.append((*where, None, None, DIGITS[self.digit[i, c]]))
        return rows


_COLOR_NAMES = tuple(COLORS)


def home(color: str, shape: str) -> str:
    """Where that thing lives: a fact that nothing in an image tells; every pair of colour and shape has
    one."""
    pair = _COLOR_NAMES.index(color) * len(SHAPES) + SHAPES.index(shape)
    order = np.random.default_rng(2411_03312).permutation(len(COLORS) * len(SHAPES))
    return PLACES[int(order[pair]) % len(PLACES)]


def taught_with_images(color: str, shape: str) -> bool:
    """Whether image training may ask where this pair lives; the test asks about the other half, known from
    text only."""
    return (_COLOR_NAMES.index(color) + SHAPES.index(shape)) % 2 == 0


@cache
def handwriting(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Real handwritten digits (n, 8, 8) in 0..1 and their values; three quarters train, one quarter test,
    disjoint."""
    from sklearn.datasets import load_digits

    images, values = load_digits(return_X_y=True)
    order = np.random.default_rng(7).permutation(len(values))
    cut = len(order) * 3 // 4
    rows = order[:cut] if split == "train" else order[cut:]
    return images[rows].reshape(-1, 8, 8).astype(np.float32) / 16, values[rows]


def make_scenes(n: int, split: str, seed: int) -> Scenes:
    """n scenes of that split ("train" or "test" handwriting), the same for the same seed."""
    rng = np.random.default_rng([seed, split == "test"])
    rows, cols = rng.integers(3, 5, n), rng.integers(3, 5, n)
    used = np.arange(16)[None] < (rows * cols)[:, None]  # (n, 16)
    shapes = rng.integers(2, _MOST + 1, n)
    digits = np.minimum(rng.integers(2, _MOST + 1, n), rows * cols - shapes)
    rank = np.where(used, rng.random((n, 16)), 2).argsort(1).argsort(1)  # a random order of the used cells
    kind = np.where(rank < shapes[:, None], SHAPE, np.where(rank < (shapes + digits)[:, None], DIGIT, EMPTY))
    # Colours and shapes come from a few a scene, so that counts above one and ties are common.
    palette = rng.permuted(np.tile(np.arange(len(COLORS)), (n, 1)), axis=1)[:, :4]
    forms = rng.permuted(np.tile(np.arange(len(SHAPES)), (n, 1)), axis=1)[:, :4]
    color = np.take_along_axis(palette, rng.integers(0, 4, (n, 16)), 1)
    shape = np.take_along_axis(forms, rng.integers(0, 4, (n, 16)), 1)
    _, values = handwriting(split)
    glyph = rng.integers(0, len(values), (n, 16))
    cell = np.arange(16)[None]
    y, x = cell // cols[:, None] + 0.5, cell % cols[:, None] + 0.5
    room = (
        0.5 * np.stack([1 / cols, 1 / rows], -1)[:, None] - 0.095
    )  # how far a centre may leave its cell's centre
    jitter = rng.uniform(-1, 1, (n, 16, 2)) * np.maximum(room, 0.03)
    centre = np.stack([x / cols[:, None], y / rows[:, None]], -1) + jitter
    side = rng.uniform(0.17, 0.21, (n, 16, 1))
    return Scenes(
        rows, cols, kind, shape, color, values[glyph], glyph, np.concatenate([centre, side], -1), seed
    )


@cache
def _shape_mask(name: str, side: int) -> np.ndarray:
    """The shape's pixels, (side, side) in 0..1; drawn four times finer and averaged, so edges are smooth."""
    fine = (np.arange(side * 4) + 0.5) / (side * 2) - 1
    x, y = np.meshgrid(fine, fine)
    r = np.hypot(x, y)
    inside = {
        "circle": r < 0.95,
        "square": np.maximum(abs(x), abs(y)) < 0.82,
        "triangle": (y < 0.85) & (y > 2 * abs(x) - 0.95),
        "cross": (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 0.95),
        "diamond": abs(x) + abs(y) < 1,
        "ring": (r < 0.98) & (r > 0.5),
    }[name]
    return inside.reshape(side, 4, side, 4).mean((1, 3)).astype(np.float32)


@cache
def _digit_mask(split: str, glyph: int, side: int) -> np.ndarray:
    """That handwritten digit at side x side pixels, 0..1."""
    from PIL import Image

    small = Image.fromarray((handwriting(split)[0][glyph] * 255).astype(np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255


def render(scenes: Scenes, split: str, pixels: int, rows: range | None = None) -> np.ndarray:
    """Draw the scenes -> (n, pixels, pixels, 3) uint8; the same pixels for the same seed, whichever rows are
    asked for."""
    rows = range(len(scenes)) if rows is None else rows
    images = np.empty((len(rows), pixels, pixels, 3), np.uint8)
    inks = np.array(list(COLORS.values()), np.float32)
    for j, i in enumerate(rows):
        rng = np.random.default_rng([scenes.seed, i])
        canvas = rng.normal(40, 6, (pixels, pixels, 3)).astype(np.float32)
        tints = rng.uniform(-18, 18, (16, 3)).astype(np.float32)
        for c in np.flatnonzero(scenes.kind[i]):
            x, y, side = scenes.box[i, c]
            side = round(side * pixels)
            left = min(max(round(x * pixels - side / 2), 0), pixels - side)
            top = min(max(round(y * pixels - side / 2), 0), pixels - side)
            if scenes.kind[i, c] == SHAPE:
                mask, ink = _shape_mask(SHAPES[scenes.shape[i, c]], side), inks[scenes.color[i, c]]
            else:
                mask, ink = _digit_mask(split, int(scenes.glyph[i, c]), side), np.float32(225)
            patch = canvas[top : top + side, left : left + side]
            patch += mask[..., None] * (ink + tints[c] - patch)
        images[j] = canvas.clip(0, 255)
    return images


def dense_labels(scenes: Scenes, g: int) -> tuple[np.ndarray, np.ndarray]:
    """What each of the g x g patches shows -> (n, g*g) form (0 nothing, then SHAPES, then digits) and (n,
    g*g) colour."""
    n = len(scenes)
    form, tint = np.zeros((n, g, g), np.int64), np.zeros((n, g, g), np.int64)
    centres = (np.arange(g) + 0.5) / g
    x, y, side = np.moveaxis(scenes.box, -1, 0)  # each (n, 16)
    for c in range(16):
        near_x = abs(centres - x[:, c, None]) < side[:, c, None] / 2  # (n, g)
        near_y = abs(centres - y[:, c, None]) < side[:, c, None] / 2
        here = (near_y[:, :, None] & near_x[:, None, :]) & (scenes.kind[:, c] > 0)[:, None, None]
        is_shape = scenes.kind[:, c] == SHAPE
        what = np.where(is_shape, 1 + scenes.shape[:, c], 1 + len(SHAPES) + scenes.digit[:, c])
        form = np.where(here, what[:, None, None], form)
        tint = np.where(here, np.where(is_shape, 1 + scenes.color[:, c], 0)[:, None, None], tint)
    return form.reshape(n, -1), tint.reshape(n, -1)


# --- questions: one function a task; None where this scene has no such question -----------------------------


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
    names = sorted(set(values)) if rng.random() < 0.9 else list(_COLOR_NAMES if column == 2 else SHAPES)
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
    once = _only([c[2] for c in shapes])
    pairs = [(c[2], c[3]) for c in shapes if c[2] in once]
    if split != "text":
        pairs = [p for p in pairs if taught_with_images(*p) == (split == "train")]
    if not pairs:
        return None
    color, shape = rng.choice(pairs)
    return f"where lives the {color} one ?", home(color, shape)


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
    "max": _max, "knowledge": _knowledge, "read": _read, "digit": _digit, "digits": _digits, "describe": _describe,
}  # fmt: skip


def ask(
    scenes: Scenes, tasks: tuple[str, ...], split: str, seed: int, each: int = 1, limit: int = 0
) -> list[Question]:
    """Questions of these tasks about the scenes, `each` a task and scene where the scene has one.

    `split` "test" asks where things live only for pairs that image training left out, "train" only for the
    others,
    "text" for all. `limit` > 0 stops at so many questions a task.
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


def captions(scenes: Scenes) -> list[Question]:
    """What the align stage learns to say of each image: every shape in order, and every digit in order."""
    return ask(scenes, ("describe", "read"), "train", 0)


def in_words(scenes: Scenes, i: int) -> list[str]:
    """Scene i told in words, cell by cell: "row" before each row, then "red circle", "7" or "empty" for each
    cell."""
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


# --- people's own images, in LLaVA's format -----------------------------------------------------------------


@dataclass(frozen=True)
class Conversation:
    """One image (or none) and the turns of talk about it."""

    image: Path | None
    turns: tuple[tuple[str, str], ...]  # (question, answer)


def read_llava(file: str | Path, images: str | Path) -> list[Conversation]:
    """Read a LLaVA-format JSON (a list of {"image", "conversations": [{"from", "value"}]}) and its image
    folder.

    Raises InputError, one line with file, entry and field, for anything that is not so.
    """
    file, images = Path(file), Path(images)
    if not images.is_dir():
        raise InputError(
            f'{images}: image folder is not there; give the folder that the entries\' "image" is relative to'
        )
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: file is not there; expected a LLaVA-format JSON") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise InputError(
            f"{file}: not readable as JSON ({e}); expected LLaVA's list of conversations"
        ) from None
    if not isinstance(entries, list) or not entries:
        raise InputError(
            f"{file}: expected a non-empty JSON list of conversations, found {type(entries).__name__}"
        )
    return [_conversation(entry, f"{file}: entry {i}", images) for i, entry in enumerate(entries)]


def _conversation(entry: object, where: str, images: Path) -> Conversation:
    if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
        raise InputError(
            f'{where}: field "conversations" is missing or no list; expected turns with "from" and "value"'
        )
    said = entry["conversations"]
    for turn in said:
        if (
            not isinstance(turn, dict)
            or not isinstance(turn.get("value"), str)
            or turn.get("from") not in ("human", "gpt")
        ):
            raise InputError(
                f'{where}: field "conversations": each turn needs "from" (human or gpt) and a text "value"'
            )
    if len(said) % 2 or not said or [t["from"] for t in said] != ["human", "gpt"] * (len(said) // 2):
        raise InputError(
            f'{where}: field "conversations": turns must alternate human, gpt; found {len(said)} turns'
        )
    turns = tuple(
        (q["value"].replace("<image>", "").strip(), a["value"].strip()) for q, a in zip(said[::2], said[1::2])
    )
    name = entry.get("image")
    if name is None:
        return Conversation(None, turns)
    if not isinstance(name, str) or not (images / name).is_file():
        raise InputError(f'{where}: field "image": {name!r} is not a file in {images}')
    return Conversation(images / name, turns)


def load_image(path: str | Path, pixels: int) -> np.ndarray:
    """One image, resized to a square -> (pixels, pixels, 3) uint8; InputError where it is missing or
    unreadable."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((pixels, pixels), Image.Resampling.BICUBIC))
    except FileNotFoundError:
        raise InputError(f"{path}: image is not there") from None
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as e:
        raise InputError(
            f"{path}: not readable as an image ({e}); expected PNG, JPEG or another format Pillow knows"
        ) from None
