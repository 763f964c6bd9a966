"""What a compressor costs: operations from its own ledger, and what they move; no torch.

`vtc.compressors.ledger` counts the algorithms as they run here (less than the releases' where a projection
moved to the side of the queries). This adds what a request needs besides: weights, elements moved, whether a
projector follows, whether the LLM must read the question first, and how many tokens its layers see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vtc.compressors import build, entry, ledger
from vtc.shapes import TowerShape

FUSION_LAYERS = 4  # of LLaVA-Mini's pre-fusion stack, each as wide as the LLM's; fewer where it has fewer


class Traits(NamedTuple):
    """What a built-in's attributes say, so that none is imported; the tests hold them to the classes."""

    ends_at_llm: bool = False
    needs_question: bool = False
    question_source: str = "llm_last"
    shrinks_image: bool = False
    fuses: bool = False
    cost_class: str = "A"
    layer: int = 2  # from which FastV drops


TRAITS = dict.fromkeys(("TokenPacker", "MQT", "PoolAfter", "Glances", "Lookup"), Traits(ends_at_llm=True)) | {
    "QueCC": Traits(needs_question=True),
    "LLaVAMiniFused": Traits(ends_at_llm=True, fuses=True, cost_class="B"),
    "DownsampleImage": Traits(shrinks_image=True),
    "FastV": Traits(cost_class="D"),
}


def _linear(a, b):
    return a * b + b


def _mlp2x(a, b, c):
    return _linear(a, b) + _linear(b, c)


def _windows(L, d):
    return 2 * L * d + 6 * d * d + 10 * d


def _pool(D):
    return _linear(D, 4) + 4 * 64


def _quecc(V, s, d, L, D, question=True, conv=True, levels=None, source="llm_last", **_):
    pooled = source == "embeddings"
    asked = _linear(4 * D if pooled else D, d) + 2 * d + pooled * _pool(D)
    query = 2 * _linear(d, d) + 2 * d + conv * (s / V + 1) * d
    return question * asked + query + _windows(d if levels == 1 else L, d)


def _glances(V, s, d, L, D, steered=False, every=False, width=None, glances=32):
    w, g = width or d, math.isqrt(s)
    each = max(4, w // 8)
    places = sum(k * k for k in range(1, g + 1) if g % k == 0) if every else s / V
    looks = glances * (places + w + w * each) + _mlp2x(glances * each, D, D)
    steer = _pool(D) + _linear(4 * D, w) + _linear(w, glances * w) + _linear(w, w)
    return _mlp2x(L, w, w) + looks + steered * steer


def _lookup(V, s, d, L, D, finds=4, **_):
    own = _glances(V, s, d, L, D, steered=True, every=True, width=D)
    return own + D * D + _linear(D, finds) + finds * D * D


def _resampler(rows, d):
    return rows * d + 4 * d + 4 * _linear(d, d)


# class -> weights, from V, s, d (tower), L (levels side by side), D (LLM) and options; others have none
WEIGHTS = {
    "TokenPacker": lambda V, s, d, L, D, **_: d * d + 2 * d + _windows(L, d) + _mlp2x(d, D, D),
    "QueCC": _quecc,
    "Glances": _glances,
    "Lookup": _lookup,
    "MQT": lambda V, s, d, L, D, **_: _resampler(min(256, s), d) + 2 * d + d * D,
    "PoolAfter": lambda V, s, d, L, D: _mlp2x(d, D, D),
    "Perceiver": lambda V, s, d, L, D: _resampler(V, d) + 2 * _linear(d, d),
    "LLaVAMini": lambda V, s, d, L, D: _resampler(V, d),
    "LLaVAMiniFused": lambda V, s, d, L, D: _resampler(V, d) + _mlp2x(d, D, D),  # beside its layers
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


def compressor(name: str, tower: TowerShape, V, d_llm, dtype: str = "bf16") -> CompressorCost:
    """Cost of a compressor by its registered name, from the tower's s patches to V tokens.

    V and d_llm may be arrays that broadcast; one of your own is built and instrumented at each of them.
    Raises InputError for an unknown name, listing those there are.
    """
    d, s = tower.d, tower.s
    V, D = np.broadcast_arrays(np.asarray(V, float), np.asarray(d_llm, float))
    pairs, where = np.unique(np.stack([V.ravel(), D.ravel()]), axis=1, return_inverse=True)
    kinds, counts = zip(*(_count(name, tower, v, w, dtype) for v, w in pairs.T))
    each, fixed, weights = (np.array(part)[where.reshape(-1)].reshape(V.shape) for part in zip(*counts))
    kind = kinds[-1]  # of the largest V
    source = {"prompt_prefix": "shared", "embeddings": None}.get(kind.question_source, "paid")
    return CompressorCost(
        flops=each,
        fixed=fixed,
        elements=s * (d + tower.d_levels) + V * D + np.where(weights > 0, 8 * s * d, 0),
        weights=weights,
        at_llm_width=kind.ends_at_llm,
        question_pass=source if kind.needs_question else None,
        fusion_layers=FUSION_LAYERS if kind.fuses else 0,
        shrinks_image=kind.shrinks_image,
        drops_after=getattr(kind, "layer", 2) if kind.cost_class == "D" else None,
    )


def _count(name: str, tower: TowerShape, V: float, D: float, dtype: str) -> tuple:
    """Its traits, and operations per image, once a call, and weights, at one V and one width of the LLM."""
    cls, options = entry(name)
    V = int(V) if V == int(V) else V
    d, L = tower.d, tower.d_levels
    if cls not in ledger.FORMULAS and V:
        wide = round(D)
        module = build(name, tokens=V, grid=tower.g, d=d, d_levels=L, d_llm=wide, d_question=wide)
        return module, (ledger.instrumented(module), 0.0, module.n_parameters)
    kind = TRAITS.get(cls, Traits())
    kind = kind._replace(
        needs_question=options.get("question", kind.needs_question),
        question_source=options.get("source", kind.question_source),
    )
    if V == 0:
        return kind, (0.0, 0.0, 0.0)
    known = "llavamini" if kind.fuses else name
    found = ledger.count(known, V, tower.g, d, L, D, D, folded=dtype == "fp32")
    patches = 2 * (tower.s + V) * (d * D + D * D) if kind.fuses else 0.0  # the projector runs on all
    weights = WEIGHTS[cls](V, tower.s, d, L, D, **options) if cls in WEIGHTS else 0.0
    return kind, (found.image + found.question + patches, found.fixed, weights)
