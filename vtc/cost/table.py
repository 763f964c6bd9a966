"""The generated table of what compressors cost: a line for each compressor and tower.

`vtc.cost.measure` writes compressors.json, `vtc.cost.compressors` reads it; no torch.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

from vtc.shapes import TowerShape

FILE = Path(__file__).with_name("compressors.json")
LEAST_WIDTH = 32  # of the LLM for which the table holds


class Count(NamedTuple):
    """What one compressor multiplies (a multiply-add is two operations) and moves, at one V."""

    image: float  # operations for each image
    question: float  # operations for each of its questions
    fixed: float  # operations once a call
    weights: float
    elements: float  # read and written for each image with one question, weights apart


def line(key: str, tower: TowerShape) -> str:
    """The name of a line: the key of a registry entry, and the tower."""
    shape = f"{tower.g} x {tower.g} patches, {tower.d} wide, {tower.heads} heads, {len(tower.levels)} levels"
    return f"{key} | {shape}"


@cache
def lines() -> dict[str, dict]:
    """All lines. Each holds the traits of the compressor, whether it has every V, and `counts` by V: for each
    field of `Count` the coefficients of 1, D and D^2, D being the LLM's width."""
    return json.loads(FILE.read_text())


def find(key: str, tower: TowerShape) -> dict | None:
    """The line, if it is there."""
    return lines().get(line(key, tower))
