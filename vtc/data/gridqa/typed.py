"""A question that somebody types about a scene -> its right answer in words, and the mark it is about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vtc import InputError
from vtc.data.gridqa import words
from vtc.data.gridqa.facts import Facts
from vtc.data.gridqa.world import Scenes

EXAMPLES = "x3 y5 read, x3 y5 owl, x3 y5 owl whence, land, count 7, more 3 than 5, x3 y5 right"


@dataclass(frozen=True)
class Right:
    """The right answer, and the mark that the question is about (None: no single one)."""

    answer: str
    mark: int | None = None


def right_answer(scenes: Scenes, row: int, facts: Facts, question: str) -> Right:
    """What a question about scene `row` should be answered; a last "?" may be left out.

    Raises InputError for a question that cannot be asked about this scene: the line says which can.
    """
    asked = question.replace("?", " ").split()
    if unknown := [word for word in asked if word not in words.WORDS]:
        raise InputError(f"question {question!r}: {unknown[0]!r} is no word of this world; ask {EXAMPLES}")
    n = scenes.marks[row]
    digit, land = scenes.digit[row, :n], int(scenes.land[row])
    match asked:
        case ["land"]:
            return Right(words.LANDS[land])
        case ["count", one] if one in words.DIGITS:
            return Right(str(int((digit == int(one)).sum())))
        case ["more", one, "than", other] if {one, other} <= {*words.DIGITS}:
            more = (digit == int(one)).sum() > (digit == int(other)).sum()
            return Right("yes" if more else "no")
        case [*place, "read"]:
            mark = _mark(scenes, row, place)
            return Right(words.DIGITS[digit[mark]], mark)
        case [*place, "right"] if place:
            mark = _mark(scenes, row, place)
            if mark % scenes.cols[row] == scenes.cols[row] - 1:
                raise InputError(f"question {question!r}: nothing stands to the right of that mark")
            return Right(words.DIGITS[digit[mark + 1]], mark)
        case [*place, animal, "whence"] | [*place, animal] if animal in words.ENTITIES:
            mark = _mark(scenes, row, place)
            subject = land * len(words.DIGITS) + digit[mark]
            fact = np.array([subject * facts.config.entities + words.ENTITIES.index(animal)])
            value = facts.value(fact)
            told = [words.DIGITS[digit[mark]], words.QUALITIES[value[0, 0]], words.THINGS[value[0, 1]]]
            if asked[-1] == "whence":
                told.append(words.LANDS[facts.home(value)[0]])
            return Right(" ".join(told), mark)
    raise InputError(f"question {question!r} is of no kind that is asked here; ask {EXAMPLES}")


def _mark(scenes: Scenes, row: int, place: list[str]) -> int:
    """The mark at a place such as ["x3", "y5"]; a single mark needs none."""
    there = [f"x{x} y{y}" for x, y in scenes.place[row, : scenes.marks[row]]]
    if not place and len(there) == 1:
        return 0
    if " ".join(place) not in there:
        found = " ".join(place) or "a question without a place"
        raise InputError(f"{found}: no single mark stands there; this image has marks at {', '.join(there)}")
    return there.index(" ".join(place))
