"""What a compressor costs in a request: counts and traits, from the generated table or counted on the spot.

Without torch where the table has the compressor, the tower and V; a compressor of your own, another tower or
another V is built and counted as the table was (`vtc.cost.measure`). Between two V that it can give, counts
lie on the straight line between theirs.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.polynomial.polynomial import polyval

from vtc import InputError, compressors
from vtc.cost import table
from vtc.shapes import CLIP_L_336, TowerShape


@dataclass(frozen=True)
class CompressorCost:
    """One compressor at one V; arrays where V or the LLM's width are."""

    image: np.ndarray | float  # operations for each image
    question: np.ndarray | float  # operations for each question
    fixed: np.ndarray | float  # operations once a call
    weights: np.ndarray | float
    elements: np.ndarray | float  # moved for each image with one question
    at_llm_width: bool = False  # ends at the LLM's width, so that no projector follows
    question_pass: str | None = None  # how its question vector is come by: paid | shared | None (no pass)
    fusion_layers: int = 0  # layers of a side stack over all patches, V and Q (class B)
    shrinks_image: bool = False  # the tower sees V patches
    drops_after: int | None = None  # LLM layers that still see every patch (class D)

    @property
    def flops(self):
        """Operations for each image and its question."""
        return self.image + self.question


def compressor(name: str, tower: TowerShape, V, d_llm) -> CompressorCost:
    """Cost of a compressor by its registered name, from the tower's s patches to V tokens.

    V and d_llm may be arrays that broadcast. Raises InputError for an unknown name, listing those there are,
    and for a V out of the compressor's reach.
    """
    V, D = np.broadcast_arrays(np.asarray(V, float), np.asarray(d_llm, float))
    counts = np.zeros((len(table.Count._fields), *V.shape))
    for v in np.unique(V[V != 0]):
        counts[:, V == v] = _counts(name, tower, float(v), D[V == v])
    return CompressorCost(*counts, **traits(name, tower))


def traits(name: str, tower: TowerShape = CLIP_L_336) -> dict:
    """What a request needs to know of a compressor beside its counts, as fields of `CompressorCost`."""
    entry = compressors.entry(name)
    known = table.find(entry.key, tower) or _built_traits(entry.key, name, tower)
    return {field: known[field] for field in list(CompressorCost.__dataclass_fields__)[5:]}


def reach(name: str, tower: TowerShape = CLIP_L_336) -> tuple[int, int]:
    """The least and the most tokens that a compressor can give."""
    known = table.find(compressors.entry(name).key, tower)
    there = [int(v) for v in known["counts"]] if known else compressors.possible(name, tower.g)
    return there[0], there[-1]


@cache
def _built_traits(key: str, name: str, tower: TowerShape) -> dict:
    from vtc.cost import measure

    return measure.traits(measure.built(name, tower, reach(name, tower)[0], table.LEAST_WIDTH))


def _counts(name: str, tower: TowerShape, V: float, D: np.ndarray) -> np.ndarray:
    """Every count at one V and these widths of the LLM (n,) -> (counts, n)."""
    key = compressors.entry(name).key
    known = table.find(key, tower)
    if known and D.min() >= table.LEAST_WIDTH:
        there = [int(v) for v in known["counts"]]
        if known["every_V"] or V in there or V != int(V):
            parts = _between(name, tower, V, there)
            each = ((share, known["counts"][str(v)]) for v, share in parts)
            return sum(share * np.stack([polyval(D, terms) for terms in counts]) for share, counts in each)
    parts = _between(name, tower, V, compressors.possible(name, tower.g))
    widths, at = np.unique(D.round().astype(int), return_inverse=True)
    return sum(
        share * np.stack([_measured(key, name, v, int(w), tower) for w in widths], -1)[:, at]
        for v, share in parts
    )


def _between(name: str, tower: TowerShape, V: float, there: list[int]) -> list[tuple[int, float]]:
    """V itself, or the nearest on either side that the compressor can give; each with its share."""
    i = bisect_left(there, V)
    if V < there[0] or i == len(there):
        grid, reached = f"{tower.g} x {tower.g} grid", f"{there[0]} to {there[-1]}"
        raise InputError(f"{name} cannot give V = {V:g} from a {grid}: use 0 or {reached}")
    if there[i] == V:
        return [(there[i], 1.0)]
    low, high = there[i - 1], there[i]
    share = (V - low) / (high - low)
    return [(low, 1 - share), (high, share)]


@cache
def _measured(key: str, name: str, V: int, D: int, tower: TowerShape) -> np.ndarray:
    from vtc.cost import measure

    return np.array(measure.measured(name, tower, V, D), float)
