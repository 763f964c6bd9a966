"""What every cell is asked: the same questions about the same images, with the demands that each makes.

Split "test" is for what is reported. Split "validation" is for every choice (a recipe, a learning rate, a
compressor to go on with), so that nothing is chosen by the questions that it is then judged on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from vtc import data
from vtc.profiles import Profile

# Questions an image, by what is asked; "common" ones are facts of rank below COMMON, as far as there are any.
EACH = {"read": 4, "fact": 4, "common": 2, "chain": 1, "land": 1, "binding": 2}
COMMON = 300
LARGE, SMALL = 3.0, 2.0  # fewer marks than LARGE fit a side: large ones; SMALL or more: small ones

# The tasks. The paper's two families are regions of the demand plane: little to see and much to know, and
# much to see and little to know. The others stand outside the law.
FAMILIES = {"reasoning": ("know",), "ocr": ("read", "recall")}
OUTSIDE = ("glance", "fact", "chain", "land", *data.PANEL)
MEANS = {
    "know": "a fact, common or rare, about one of a few large marks",
    "read": "a mark among many small ones",
    "recall": "a common fact about a small mark",
    "glance": "a large mark",
    "fact": "a fact about a small mark",
    "chain": "where the thing comes from that a fact names: two facts in a row",
    "land": "the land, which the ground shows everywhere",
    "count": "how many marks are the same digit",
    "compare": "which of two digits is there more often",
    "right": "the mark to the right of another",
}
TASKS = (*FAMILIES["reasoning"], *FAMILIES["ocr"], *OUTSIDE)


@dataclass(frozen=True)
class Part:
    """Questions of one kind, equally many about each of some images."""

    questions: data.Questions
    images: np.ndarray  # (b,) rows of the split's images

    @property
    def each(self) -> int:
        """Questions about each image."""
        return len(self.questions) // len(self.images)


@dataclass(frozen=True)
class Exam:
    """All questions of a split, part by part."""

    scenes: data.Scenes
    parts: tuple[Part, ...]
    frame: pd.DataFrame  # one row a question: task, image, fit, marks, rank (-1: no fact), kind

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def tasks(self) -> list[str]:
        """The task of each question."""
        return self.frame["task"].to_list()


@lru_cache
def exam(p: Profile, split: str = "test") -> Exam:
    """The profile's questions of a split; the same for every cell, to compare question by question."""
    facts, scenes = data.Facts(p.world), data.scenes_of(p, split)
    rng, rows = np.random.default_rng([6, data.SPLITS.index(split)]), np.arange(len(scenes))

    def ask(kind: str, each: int) -> data.Questions:
        mix = tuple(float(kind == task) for task in data.TASKS)
        return data.ask(scenes, np.repeat(rows, each), facts, split, rng, mix)

    parts = [Part(ask(kind, EACH[kind]), rows) for kind in data.TASKS]
    parts.append(_common(ask("fact", 24), rows))
    parts.append(Part(data.ask_binding(scenes, np.repeat(rows, EACH["binding"]), rng), rows))
    kinds = (*data.TASKS, "common", "binding")
    frames = [_frame(scenes, part.questions, kind) for part, kind in zip(parts, kinds)]
    return Exam(scenes, tuple(parts), pd.concat(frames, ignore_index=True))


def located(made: Exam, question: int) -> tuple[Part, int]:
    """The part that holds a question of the exam, and the question's place in it."""
    for part in made.parts:
        if question < len(part.questions):
            return part, question
        question -= len(part.questions)
    raise IndexError(question)


def shared_facts(p: Profile) -> dict[str, int]:
    """Facts that each split may ask, and under "shared" how many of them any other split may ask too."""
    facts = data.Facts(p.world)
    may = {split: facts.askable(split) for split in data.SPLITS}
    times = np.sum(list(may.values()), 0)
    return {split: int(which.sum()) for split, which in may.items()} | {"shared": int((times > 1).sum())}


def _common(pool: data.Questions, rows: np.ndarray) -> Part:
    """The first common facts of a pool, of the images that have enough of them."""
    each, known = EACH["common"], pool.rank < COMMON
    nth = np.zeros(len(pool), int)
    for image in rows:
        mine = pool.scene == image
        nth[mine] = np.cumsum(known[mine])
    enough = np.array([known[pool.scene == image].sum() >= each for image in rows])
    take = known & (nth <= each) & enough[pool.scene]
    return Part(pool.take(np.flatnonzero(take)), rows[enough])


def _frame(scenes: data.Scenes, asked: data.Questions, kind: str) -> pd.DataFrame:
    fit = scenes.fit[asked.scene]
    if kind == "binding":
        task = np.array(data.PANEL)[asked.task]
    elif kind == "fact":
        task = np.where(fit < LARGE, "know", "fact")
    elif kind == "read":
        task = np.where(fit < SMALL, "glance", "read")
    elif kind == "common":
        task = np.where(fit < SMALL, "easy", "recall")
    else:
        task = np.full(len(asked), kind)
    marks = scenes.marks[asked.scene]
    columns = {"task": task, "image": asked.scene, "fit": fit, "marks": marks, "rank": asked.rank}
    return pd.DataFrame(columns | {"kind": kind})


def example(p: Profile) -> tuple[int, list[str]]:
    """A test image and three questions about it, to see where a token looks as the question changes."""
    made = exam(p)
    part = made.parts[0]  # reading
    fit = made.scenes.fit  # best where a few tokens can tell some marks apart
    for image in np.argsort((fit < 4) | (fit >= 6), kind="stable"):
        about = np.flatnonzero(part.questions.scene == image)
        texts = list(dict.fromkeys(part.questions.text(i)[0] for i in about))
        if len(texts) >= 3:
            return int(image), texts[:3]
    raise LookupError("no test image has three marks that are asked for")
