"""People's own images and conversations: LLaVA's JSON or JSONL, and tables of questions and answers.

A row of LLaVA's format is {"image": "a.jpg", "conversations": [{"from": "human", "value": ...}, {"from":
"gpt", ...}]}, one conversation of one or several turns; a row without an image is text alone. A table (CSV,
JSON or JSONL) has the columns image, question and answer. Files are read row by row, so that a file of any
size fits in memory.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vtc import InputError
from vtc.data.images import listed, load_image

CHUNK = 1 << 20  # characters read at once
LONGEST = 64 << 20  # characters of one row
SHOWN = 5  # problems of a kind that a report names one by one


@dataclass(frozen=True)
class Conversation:
    """One image (or none) and the turns of talk about it."""

    image: Path | None
    turns: tuple[tuple[str, str], ...]  # (question, answer), each turn after those before it


def rows(file: str | Path) -> Iterator[tuple[int, object]]:
    """Index and content of each row of a JSON list, a JSONL file or a CSV table, one at a time.

    Raises InputError, with the row, where the file is not there or is cut off.
    """
    file = Path(file)
    try:
        with file.open(encoding="utf-8-sig", newline="" if file.suffix == ".csv" else None) as text:
            if file.suffix == ".csv":
                yield from enumerate(csv.DictReader(text))
            elif file.suffix == ".jsonl":
                yield from _lines(file, text)
            else:
                yield from _items(file, text)
    except FileNotFoundError:
        raise InputError(f"{file}: file is not there; expected LLaVA's JSON, JSONL or a CSV table") from None
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"{file}: not readable as text ({e}); expected LLaVA's JSON, JSONL or CSV") from None


def _lines(file: Path, text) -> Iterator[tuple[int, object]]:
    for i, line in enumerate(text):
        try:
            yield i, json.loads(line)
        except json.JSONDecodeError as e:
            raise InputError(f"{file}: row {i}: not readable as JSON ({e}); one JSON object a line") from None


def _items(file: Path, text) -> Iterator[tuple[int, object]]:
    """The items of one JSON list, decoded as they come in."""
    decoder, held, at, i = json.JSONDecoder(), text.read(CHUNK).lstrip(), 1, 0
    if not held.startswith("["):
        raise InputError(f"{file}: not readable as JSON: expected a non-empty JSON list, [{{...}}, ...]")
    while True:
        while at < len(held) and held[at] in " \t\r\n,":
            at += 1
        if at < len(held) and held[at] == "]":
            return
        try:
            item, at = decoder.raw_decode(held, at)
        except RecursionError:
            raise InputError(f"{file}: row {i}: nested too deeply; expected LLaVA's fields") from None
        except json.JSONDecodeError as e:
            # Cut by the end of the chunk, or wrong? What is cut fails at its end, or in a string without one.
            cut = e.pos > len(held) - 16 or e.msg.startswith("Unterminated string")
            more = text.read(CHUNK) if cut and len(held) - at < LONGEST else ""
            if not more:
                fault = f"{file}: row {i}: not readable as JSON ({e.msg})"
                raise InputError(f"{fault}; mend it, or is the file cut off?") from None
            held, at = held[at:] + more, 0
            continue
        yield i, item
        i += 1


def conversation(row: object, where: str, images: Path, there: set[str] | None = None) -> Conversation:
    """One row -> Conversation; InputError names the field. there: the images there are, else the disk is
    asked.
    """
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object with fields, found {type(row).__name__}")
    if "conversations" not in row and {"question", "answer"} <= set(row):
        turns = ((_text(row, "question", where), _text(row, "answer", where)),)
    else:
        turns = _turns(row.get("conversations"), where)
    name = row.get("image")
    if name in (None, ""):
        return Conversation(None, turns)
    field = f'{where}: field "image"'
    if isinstance(name, list):
        why = "a compressor here makes tokens of one image"
        raise InputError(f"{field}: {len(name)} images; {why}, so split the row or leave it out")
    if not isinstance(name, str) or not (name in there if there is not None else (images / name).is_file()):
        raise InputError(f"{field}: {name!r} is not a file in {images}")
    return Conversation(images / name, turns)


def _text(row: dict, name: str, where: str) -> str:
    value = row[name]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f'{where}: field "{name}": {value!r}; expected a text')
    return value.strip()


def _turns(said: object, where: str) -> tuple[tuple[str, str], ...]:
    field = f'{where}: field "conversations"'
    if not isinstance(said, list):
        raise InputError(f'{field} is missing or no list; expected turns with "from" and "value"')
    for turn in said:
        known = isinstance(turn, dict) and turn.get("from") in ("human", "gpt")
        if not known or not isinstance(turn.get("value"), str):
            raise InputError(f'{field}: each turn needs "from" (human or gpt) and a text "value"')
    if len(said) % 2 or not said or [t["from"] for t in said] != ["human", "gpt"] * (len(said) // 2):
        raise InputError(f"{field}: turns must alternate human, gpt; found {len(said)} turns")
    spoken = [turn["value"].replace("<image>", "").strip() for turn in said]
    return tuple(zip(spoken[::2], spoken[1::2]))


def read_llava(file: str | Path, images: str | Path, bad: str = "stop") -> list[Conversation]:
    """The conversations of a file. bad: "stop" at a row that cannot be read, or "skip" it.

    Raises InputError, one line with file, row and field; also where no row is left.
    """
    if bad not in ("stop", "skip"):
        raise InputError(f"bad rows {bad!r}: choose stop or skip")
    there, found = listed(images), []
    for i, row in rows(file):
        try:
            found.append(conversation(row, f"{file}: entry {i}", Path(images), there))
        except InputError:
            if bad == "stop":
                raise
    if not found:
        wanted = "expected a non-empty JSON list of conversations"
        raise InputError(f"{file}: {wanted}, found none that can be used")
    return found


@dataclass
class Report:
    """What a file holds, and what is wrong where."""

    rows: int = 0
    with_image: int = 0
    text_only: int = 0
    turns: int = 0
    opened: int = 0  # images that were opened
    bad: int = 0
    shown: list[str] = field(default_factory=list)  # the first problems, file, row and field named

    def lines(self) -> list[str]:
        """In words, a line each."""
        said = [
            f"{self.rows:,} rows: {self.with_image:,} with an image, {self.text_only:,} of text alone, "
            f"{self.turns:,} turns; {self.opened:,} images opened",
            f"{self.bad:,} problems" if self.bad else "nothing wrong",
        ]
        more = self.bad - len(self.shown)
        return said + self.shown + ([f"and {more:,} more"] if more > 0 else [])

    def problem(self, line: str) -> None:
        self.bad += 1
        if len(self.shown) < SHOWN:
            self.shown.append(line)


def check(file: str | Path, images: str | Path, opened: int = 1000, seed: int = 0) -> Report:
    """Read every row, look each image up in one listing of the folder, and open `opened` of them, drawn by
    seed.
    """
    there, report, rng = listed(images), Report(), random.Random(seed)
    drawn: list[Path] = []  # a uniform sample of the images, however many rows come (reservoir)
    for i, row in rows(file):
        report.rows += 1
        try:
            said = conversation(row, f"{file}: entry {i}", Path(images), there)
        except InputError as error:
            report.problem(str(error))
            continue
        report.turns += len(said.turns)
        if said.image is None:
            report.text_only += 1
            continue
        report.with_image += 1
        if len(drawn) < opened:
            drawn.append(said.image)
        elif (place := rng.randrange(report.with_image)) < opened:
            drawn[place] = said.image
    for path in dict.fromkeys(drawn):
        report.opened += 1
        try:
            load_image(path, 32)
        except InputError as error:
            report.problem(str(error))
    return report
