"""What a compressor costs: operations from its own ledger, and what they move; no torch.

`vtc.compressors.ledger` counts the algorithms as they run here (less than the releases' where a projection
moved to the side of the queries). This adds what a request needs besides: weights, elements moved, whether a
projector follows, whether the LLM must read the question first, and how many tokens its layers see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vtc.compressors import entry, find, ledger
from vtc.cost.shapes import TowerShape

AT_LLM_WIDTH = ("TokenPacker", "MQT", "PoolAfter", "Glances", "Lookup", "LLaVAMiniFused")
FUSION_LAYERS = 4  # of LLaVA-Mini's pre-fusion stack, each as wide as the LLM's

# class -> weights that multiply, from V, s, d (tower), L (levels side by side), D (LLM); others have none
WEIGHTS = {
    "TokenPacker": lambda V, s, d, L, D: 2 * (L * d + d * d) + 5 * d * d + d * D + D * D,
    "QueCC": lambda V, s, d, L, D: 2 * (L * d + d * d) + 6 * d * d + s / np.maximum(V, 1) * d + D * d,
    "Glances": lambda V, s, d, L, D: L * d + d * d + 32 * (d / 8) * D + D * D,
    "Lookup": lambda V, s, d, L, D: L * D + D * D + 32 * (D / 8) * D + D * D + 5 * D * D,
    "MQT": lambda V, s, d, L, D: 4 * d * d + 256 * d + d * D,
    "PoolAfter": lambda V, s, d, L, D: d * D + D * D,
    "Perceiver": lambda V, s, d, L, D: 5 * d * d + (V + s) * d,
    "LLaVAMini": lambda V, s, d, L, D: 4 * d * d + V * d,
    "LLaVAMiniFused": lambda V, s, d, L, D: 4 * d * d + V * d + 2 * (d * D + D * D),
}


@dataclass(frozen=True)
class CompressorCost:
    """One compressor at one V; arrays where V or the LLM's width are."""

    flops: np.ndarray | float  # for each image and its question
    fixed: np.ndarray | float  # operations once a call
    elements: np.ndarray | float  # moved for each image
    weights: np.ndarray | float
    at_llm_width: bool = False  # ends at the LLM's width, so that no projector follows
    question_pass: str | None = None  # how its question vector is come by: paid | shared | None (no pass)
    fusion_layers: int = 0  # layers of a side stack over all patches, V and Q (class B)
    shrinks_image: bool = False  # the tower sees V patches
    drops_after: int | None = None  # LLM layers that still see every patch (class D)


def compressor(name: str, tower: TowerShape, V, d_llm) -> CompressorCost:
    """Cost of a compressor by its registered name, from the tower's s patches to V tokens.

    V and d_llm may be arrays that broadcast. Raises InputError for an unknown name, listing those there are.
    """
    cls, options = entry(name)
    d, s = tower.d, tower.s
    levels = d * tower.levels
    V, D = np.broadcast_arrays(np.asarray(V, float), np.asarray(d_llm, float))
    pairs, where = np.unique(np.stack([V.ravel(), D.ravel()]), axis=1, return_inverse=True)
    counts = [_count(cls, name, tower, v, w) for v, w in pairs.T]
    each, fixed = (np.array([getattr(c, f) for c in counts]) for f in ("per_image", "fixed"))
    where = where.reshape(-1)
    weights = WEIGHTS[cls](V, s, d, levels, D) if cls in WEIGHTS else 0.0 * V
    source = {"prompt_prefix": "shared", "embeddings": None}.get(options.get("source"), "paid")
    return CompressorCost(
        flops=each[where].reshape(V.shape),
        fixed=fixed[where].reshape(V.shape),
        elements=s * (d + levels) + V * D + (8 * s * d if cls in WEIGHTS else 0),
        weights=weights,
        at_llm_width=cls in AT_LLM_WIDTH or (cls not in ledger.FORMULAS and find(name).ends_at_llm),
        question_pass=source if cls == "QueCC" and options.get("question", True) else None,
        fusion_layers=FUSION_LAYERS if cls == "LLaVAMiniFused" else 0,
        shrinks_image=cls == "DownsampleImage",
        drops_after=options.get("layer", 2) if cls == "FastV" else None,
    )


@dataclass(frozen=True)
class _Count:
    per_image: float
    fixed: float


def _count(cls: str, name: str, tower: TowerShape, V: float, d_llm: float) -> _Count:
    """The ledger's count at one V and one width; fused, LLaVA-Mini adds the projector on every patch."""
    if V == 0:
        return _Count(0.0, 0.0)
    d, D = tower.d, d_llm
    V = int(V) if V == int(V) else V
    known = "llavamini" if cls == "LLaVAMiniFused" else name
    found = ledger.count(known, V, tower.g, d, d * tower.levels, D, D)
    extra = 2 * (tower.s + V) * (d * D + D * D) if cls == "LLaVAMiniFused" else 0.0
    return _Count(found.image + found.question + extra, found.fixed)
