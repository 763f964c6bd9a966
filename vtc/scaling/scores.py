"""Scores as points of a law: people's own CSV, the paper's published rows, or this project's sweep."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtc import InputError

PUBLISHED = Path(__file__).parent.parent / "published.csv"
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
    Y = np.asarray(Y, float)
    fill = lambda x, value: np.full(len(Y), value) if x is None else np.asarray(x)  # noqa: E731
    return Points(
        np.asarray(N, float),
        np.asarray(V, float),
        Y,
        fill(Q, 0.0).astype(float),
        fill(seed, 0),
        fill(odd, ""),
        family,
    )


def published(task: str = "reasoning") -> Points:
    """The paper's 28 points (Qwen1.5, TokenPacker); task reasoning | ocr; `odd` marks the suspect ones."""
    rows = [row for row in published_rows("scaling") if row["task"] == task]
    if not rows:
        raise InputError(
            f"task {task!r}: published.csv has reasoning and ocr; for your own scores give a CSV file"
        )
    column = lambda name: [float(row[name]) for row in rows]  # noqa: E731
    return points(
        column("N"), column("V"), 1 - np.array(column("value")), odd=[row["odd"] for row in rows], family=task
    )


def published_rows(table: str) -> list[dict]:
    """Rows of published.csv: table scaling | law | compressors | replication."""
    with PUBLISHED.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["table"] == table]


def read(path: str | Path, unit: str = "billions") -> list[Points]:
    """A CSV with columns N, V, score and optionally family, seed, Q -> one Points a family, in file order.

    `unit` is that of N. Raises InputError naming row and column when a column is missing, a value is not a
    finite number, a score lies outside [0, 1], or a token count is negative.
    """
    path = Path(path)
    if unit not in UNITS:
        raise InputError(f"unit {unit!r} of N is unknown; choose {', '.join(UNITS)}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows, header = list(table), [name.strip() for name in table.fieldnames or []]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path}: cannot be read as CSV text ({error}); give a file with columns N,V,score"
        ) from None
    for name in ("N", "V", "score"):
        if name not in header:
            raise InputError(
                f"{path}: column {name} is missing (found {', '.join(header) or 'nothing'}); rename or add it"
            )
    if not rows:
        raise InputError(f"{path}: has a header but no rows; at least 4 are needed")
    rows = [{(k or "").strip(): v for k, v in row.items()} for row in rows]
    clean = [_row(path, i, row, UNITS[unit]) for i, row in enumerate(rows, start=2)]
    families = dict.fromkeys(row["family"] for row in clean)
    return [_family([row for row in clean if row["family"] == name], name) for name in families]


def _family(rows: list[dict], name: str) -> Points:
    column = lambda key: [row[key] for row in rows]  # noqa: E731
    return points(
        column("N"), column("V"), 1 - np.array(column("score")), column("Q"), column("seed"), family=name
    )


def _row(path: Path, line: int, row: dict, scale: float) -> dict:
    """One line of a file as numbers; `line` counts the header as 1."""

    def number(name: str, low: float, high: float, hint: str, default=None) -> float:
        text = row.get(name)
        if (text is None or text.strip() == "") and default is not None:
            return default
        where = f"{path}, line {line}, column {name}: {text!r}"
        try:
            value = float(text)
        except (TypeError, ValueError):
            raise InputError(f"{where} is not a number; fill it in or delete the line") from None
        if not math.isfinite(value):
            raise InputError(f"{where} is not finite; fill it in or delete the line")
        if not low <= value <= high:
            raise InputError(f"{where} {hint}")
        return value

    percent = "lies outside 0 to 1; if scores are in percent divide them by 100"
    return {
        "N": number("N", 1e-300, math.inf, "must be positive; N counts the LLM's parameters") * scale,
        "V": number("V", 0, math.inf, "is a negative count of tokens; V must be 0 or more"),
        "score": number("score", 0, 1, percent),
        "Q": number("Q", 0, math.inf, "is a negative count of tokens; Q must be 0 or more", default=0.0),
        "seed": int(number("seed", 0, 2**53, "is no seed; a whole number from 0", default=0.0)),
        "family": (row.get("family") or "all").strip(),
    }


def sweep(rows, family: str = "reasoning", compressor: str | None = None) -> Points:
    """Rows of our sweep (02_errors: N a plain count, V, seed, error_<family>) -> Points, N in billions.

    rows: a pandas DataFrame or a list of dicts; `compressor` picks one where there are several.
    """
    rows = rows.to_dict("records") if hasattr(rows, "to_dict") else list(rows)
    rows = [row for row in rows if compressor in (None, row.get("compressor")) or float(row["V"]) == 0]
    rows = [row for row in rows if np.isfinite(float(row[f"error_{family}"]))]
    column = lambda key, default=0: [float(row.get(key, default)) for row in rows]  # noqa: E731
    return points(
        np.array(column("N")) * 1e-9,
        column("V"),
        column(f"error_{family}"),
        column("Q"),
        column("seed"),
        family=family,
    )
