"""Scenes told in words and questions about them, as rows of word numbers (`words.WORDS`), many at once.

Every question has two demands: which mark must be read, among how many others and how small (the eye), and
which fact must be known, a common or a rare one (the memory). An answer says first what was read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vtc.data.gridqa import words
from vtc.data.gridqa.facts import Facts
from vtc.data.gridqa.world import Scenes

AT = {word: i for i, word in enumerate(words.WORDS)}
TASKS = ("read", "fact", "chain", "land")  # a mark; and a fact about it; and one about that; the ground alone
NONE = -1  # padding in a row of words


def number(group: tuple[str, ...], which: np.ndarray | int) -> np.ndarray:
    """The word number of the `which`-th word of that group."""
    return AT[group[0]] + np.asarray(which)


def _told(place: np.ndarray, digit: np.ndarray, land: np.ndarray) -> np.ndarray:
    """Marks in words, (..., 4): x, y, digit and land."""
    which = (*np.moveaxis(place, -1, 0), digit, land)
    return np.stack([number(g, w) for g, w in zip((words.X, words.Y, words.DIGITS, words.LANDS), which)], -1)


def in_words(scenes: Scenes, rows: np.ndarray) -> np.ndarray:
    """Those scenes in words -> (b, m, 4): x, y, digit and land of every mark; NONE where there is no mark."""
    digit = scenes.digit[rows]
    told = _told(scenes.place[rows], digit, np.broadcast_to(scenes.land[rows, None], digit.shape))
    told[np.arange(digit.shape[1])[None] >= scenes.marks[rows, None]] = NONE
    return told[:, : scenes.marks[rows].max()]


@dataclass(frozen=True)
class Questions:
    """n questions with their answers, in columns."""

    scene: np.ndarray  # (n,)
    task: np.ndarray  # (n,) index into TASKS
    mark: np.ndarray  # (n,) the mark that must be read
    rank: np.ndarray  # (n,) of the fact that must be known, 0 the most common; -1: none
    question: np.ndarray  # (n, 5) words, NONE where there is none
    answer: np.ndarray  # (n, 4) words, NONE where there is none

    def __len__(self) -> int:
        return len(self.scene)

    def take(self, rows: np.ndarray) -> Questions:
        """Those of the questions."""
        return Questions(*(column[rows] for column in vars(self).values()))

    def text(self, i: int) -> tuple[str, str]:
        """Question i and its answer as a reader sees them."""
        question, answer = (
            " ".join(words.WORDS[w] for w in row if w != NONE) for row in (self.question[i], self.answer[i])
        )
        return question, answer


def ask(
    scenes: Scenes,
    rows: np.ndarray,
    facts: Facts,
    split: str,
    rng: np.random.Generator,
    mix: tuple[float, ...] = (3, 3, 1, 1),
) -> Questions:
    """One question about each of the scenes `rows` (n,), of the tasks in proportion to `mix`.

    Every mark of a scene is asked for as often as any other; of the facts about it those that `split` may
    ask, by Zipf's law. Where scenes are made by `Facts.subjects`, all facts together follow that law too.
    """
    n = len(rows)
    task = rng.choice(len(TASKS), n, p=np.array(mix) / np.sum(mix))
    mark = (rng.random(n) * scenes.marks[rows]).astype(int)
    subject = scenes.land[rows] * len(words.DIGITS) + scenes.digit[rows, mark]
    known = facts.draw_about(subject, split, rng)
    place = np.where(scenes.marks[rows, None] > 1, scenes.place[rows, mark], NONE)  # one mark needs no place
    return _in_rows(facts, rows, task, mark, place, known)


def about(facts: Facts, fact: np.ndarray, rng: np.random.Generator) -> tuple[Questions, np.ndarray]:
    """Facts (n,) as text teaches them -> questions, and scenes of one mark in words (n, 1, 4)."""
    n, subject = len(fact), fact // facts.config.entities
    land, digit = np.divmod(subject, len(words.DIGITS))
    place = rng.integers(0, len(words.X), (n, 2))
    each, zero = np.arange(n), np.zeros(n, int)
    asked = _in_rows(facts, each, zero + 1, zero, np.full((n, 2), NONE), fact)
    return asked, _told(place, digit, land)[:, None]


def _in_rows(facts: Facts, scene, task, mark, place: np.ndarray, known: np.ndarray) -> Questions:
    """Columns (n,), places in question (n, 2) and the fact about each mark (n,) -> questions in words."""
    n = len(scene)
    read, fact, chain, ground = (task == k for k in range(len(TASKS)))
    knows = fact | chain
    value, (land, digit) = facts.value(known), np.divmod(known // facts.config.entities, len(words.DIGITS))
    question, answer = np.full((n, 5), NONE), np.full((n, 4), NONE)
    at = np.stack([number(words.X, place[:, 0]), number(words.Y, place[:, 1])], -1)
    question[:, :2] = np.where(place == NONE, NONE, at)
    question[:, 2] = np.where(knows, number(words.ENTITIES, known % facts.config.entities), AT["read"])
    question[chain, 3] = AT["whence"]
    question[ground, :3] = NONE, NONE, AT["land"]
    question[:, 4] = AT["?"]
    answer[:, 0] = np.where(ground, number(words.LANDS, land), number(words.DIGITS, digit))
    answer[knows, 1] = number(words.QUALITIES, value[knows, 0])
    answer[knows, 2] = number(words.THINGS, value[knows, 1])
    answer[chain, 3] = number(words.LANDS, facts.home(value[chain]))
    return Questions(scene, task, mark, np.where(knows, facts.rank(known), NONE), question, answer)
