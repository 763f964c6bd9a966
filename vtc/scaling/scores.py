"""Scores as points of a law: people's own CSV, the paper's published rows, or this project's sweep."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtc import InputError
from vtc.files import packaged

COUNT = 0, math.inf, "is a negative count of tokens; it must be 0 or more"
FIELDS = {  # column of a file of scores -> least, most, what to say otherwise
    "N": (1e-300, math.inf, "must be positive; N counts the LLM's parameters"),
    "V": COUNT,
    "score": (0, 1, "lies outside 0 to 1; if scores are in percent divide them by 100"),
    "Q": COUNT,
    "seed": (0, 2**53, "is no seed; a whole number from 0"),
}
UNITS = {"billions": 1.0, "millions": 1e-3, "thousands": 1e-6, "parameters": 1e-9}


@dataclass(frozen=True)
class Points:
    """Errors of one task family; all arrays (n,)."""

    N: np.ndarray  # LLM parameters, billions
    V: np.ndarray  # visual tokens
    Y: np.ndarray  # error, 1 - score
    Q: np.ndarray  # text tokens of the prompt, 0 where unknown
    seed: np.ndarray  # training seed, 0 where unknown
    odd: np.ndarray  # what is suspicious about the point, "" if nothing
    family: str = "all"

    def __len__(self) -> int:
        return len(self.Y)

    def keep(self, mask) -> Points:
        """The points that a boolean mask (n,) keeps."""
        return Points(*(getattr(self, f)[mask] for f in ("N", "V", "Y", "Q", "seed", "odd")), self.family)

    @property
    def llm(self) -> np.ndarray:
        """Which LLM each point comes from, (n,): all V of one size and seed share it."""
        return np.unique(np.stack([self.N, self.seed]), axis=1, return_inverse=True)[1].reshape(-1)

    @property
    def cells(self) -> Points:
        """One point a cell (N, V): the mean over its seeds."""
        (N, V), which = np.unique(np.stack([self.N, self.V]), axis=1, return_inverse=True)
        count = np.bincount(which.reshape(-1))
        Y, Q = (np.bincount(which.reshape(-1), x) / count for x in (self.Y, self.Q))
        return points(N, V, Y, Q, family=self.family)

    @property
    def trusted(self) -> Points:
        """Without the points that carry a remark."""
        return self.keep(self.odd == "")


def points(N, V, Y, Q=None, seed=None, odd=None, family="all") -> Points:
    """Columns of equal length -> Points; Q, seed and odd may be missing."""
    N, V, Y, Q = (np.asarray(x, float) for x in (N, V, Y, np.zeros(len(Y)) if Q is None else Q))
    seed = np.zeros(len(Y), int) if seed is None else np.asarray(seed)
    odd = np.full(len(Y), "") if odd is None else np.asarray(odd)
    return Points(N, V, Y, Q, seed, odd, family)


def published(task: str = "reasoning") -> Points:
    """The paper's 28 points (Qwen1.5, TokenPacker); task reasoning | ocr; `odd` marks the suspect ones."""
    rows = [row for row in published_rows("scaling") if row["task"] == task]
    if not rows:
        there = "published.csv has reasoning and ocr"
        raise InputError(f"task {task!r}: {there}; for your own scores give a CSV file")
    N, V, score = (np.array([float(row[name]) for row in rows]) for name in ("N", "V", "value"))
    return points(N, V, 1 - score, odd=[row["odd"] for row in rows], family=task)


def published_rows(table: str) -> list[dict]:
    """Rows of published.csv: table scaling | law | compressors | replication."""
    return [row for row in packaged("published.csv") if row["table"] == table]


def read(path: str | Path, unit: str = "billions") -> list[Points]:
    """A CSV with columns N, V, score and optionally family, seed, Q -> one Points a family, in file order.

    `unit` is that of N; errors as in `records`.
    """
    columns = ("N", "V", "score", "Q", "seed")
    found = []
    for family, rows in records(path, ("N", "V", "score"), unit).items():
        N, V, score, Q, seed = (np.array([row[name] for row in rows]) for name in columns)
        found.append(points(N, V, 1 - score, Q, seed.astype(int), family=family))
    return found


def records(path: str | Path, needed: Sequence[str], unit: str = "billions") -> dict[str, list[dict]]:
    """A CSV of scores -> family -> rows of numbers, in file order; N in billions, 0 where nothing is given.

    Raises InputError naming file, line and column when a needed column is missing, a value is not a finite
    number, a score lies outside [0, 1], or a token count is negative.
    """
    if unit not in UNITS:
        raise InputError(f"unit {unit!r} of N is unknown; choose {', '.join(UNITS)}")
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows, header = list(table), [name.strip() for name in table.fieldnames or []]
    except (OSError, ValueError, csv.Error) as error:  # ValueError: no UTF-8, or a NUL in the name
        wanted = f"give a file with columns {','.join(needed)}"
        raise InputError(f"{path}: cannot be read as CSV text ({error}); {wanted}") from None
    for name in needed:
        if name not in header:
            found = ", ".join(header) or "nothing"
            raise InputError(f"{path}: column {name} is missing (found {found}); rename or add it")
    if not rows:
        raise InputError(f"{path}: has a header but no rows; at least 4 are needed")
    families: dict[str, list[dict]] = {}
    for line, row in enumerate(rows, start=2):
        row = {(name or "").strip(): text for name, text in row.items()}
        numbers = _numbers(f"{path}, line {line}", row, needed)
        numbers["N"] *= UNITS[unit]
        families.setdefault((row.get("family") or "all").strip(), []).append(numbers)
    return families


def _numbers(where: str, row: dict, needed: Sequence[str]) -> dict[str, float]:
    """The number in every field of one line."""
    out = {}
    for name, (low, high, hint) in FIELDS.items():
        text = row.get(name)
        if not (text or "").strip() and name not in needed:
            out[name] = 0.0
            continue
        place = f"{where}, column {name}: {text!r}"
        try:
            out[name] = float(text)
        except (TypeError, ValueError):
            raise InputError(f"{place} is not a number; fill it in or delete the line") from None
        if not math.isfinite(out[name]):
            raise InputError(f"{place} is not finite; fill it in or delete the line")
        if not low <= out[name] <= high:
            raise InputError(f"{place} {hint}")
    return out


def sweep(rows, family: str = "reasoning") -> Points:
    """Rows of our sweep (02_errors: N a plain count, V, seed, error_<family>) -> Points, N in billions.

    rows: a pandas DataFrame or a list of dicts.
    """
    rows = rows.to_dict("records") if hasattr(rows, "to_dict") else list(rows)
    rows = [row for row in rows if np.isfinite(float(row[f"error_{family}"]))]
    columns = ("N", "V", f"error_{family}", "Q", "seed")
    N, *others = (np.array([float(row.get(name, 0)) for row in rows]) for name in columns)
    return points(N * 1e-9, *others, family=family)
