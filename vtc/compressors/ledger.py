"""What each compressor multiplies, by name: two operations a multiply-add, norms and sums left out. No torch.

Counts the algorithm as it runs here, which is less than the releases' where projections moved to the side of
the queries (`windowed`, `resampler`). Agrees with torch's instrumented count within 1 %, see the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vtc import InputError


@dataclass(frozen=True)
class Count:
    """Operations of a call: `fixed` once, `image` for each image, `question` for each of its questions."""

    image: float = 0
    question: float = 0
    fixed: float = 0

    def total(self, b: int = 1, questions: int = 1) -> float:
        return self.fixed + b * (self.image + questions * self.question)


def _free(V, s, d, L, D, T):
    return Count()


def _mlp(n, a, b, c):
    """Linear, GELU, Linear on n tokens."""
    return 2 * n * (a * b + b * c)


def _pool_after(V, s, d, L, D, T):
    return Count(2 * s * d * D + 2 * V * D * D)  # the second map runs on the means


def _windows(V, s, L, w, heads, folded):
    """(for the keys and values, for one set of queries) of `WindowAttention`."""
    if V == s:  # one patch a window: values alone
        return 2 * s * (L * w + 3 * w * w), 0
    second = 2 * w * w * (0.625 if folded and w >= 512 else 1)  # `windowed.triangular`
    return 2 * s * (2 * L * w + second), 8 * V * w * w + 4 * heads * s * w


def _tokenpacker(V, s, d, L, D, T, heads=8, width=None, antialias=False, folded=False):
    w = width or d
    kv, attend = _windows(V, s, L, w, heads, folded)
    query = 2 * V * d * w if V < s else 0
    return Count(kv + attend + query + _mlp(V, w, D, D))


def _pooled_question(T, heads=4, words=20):
    return 4 * words * T * heads  # scores, weighted sum


def _quecc(V, s, d, L, D, T, heads=8, width=None, question=True, conv=True, levels=None, source="llm_last",
           kernel=None, stride=None, project=False, words=20, folded=False):  # fmt: skip
    w, T = width or d, T or D
    kv, attend = _windows(V, s, d if levels == 1 else L, w, heads, folded)
    out = _mlp(V, w, D, D) if project else 0
    pooled = _pooled_question(T, words=words) if question and source == "embeddings" else 0
    if V == s:  # the question has no say
        return Count(kv, pooled + out)
    steer = pooled + 2 * (4 * T if pooled else T) * d + 2 * d * w if question else 0
    each = 2 * s * w * w + (2 * s * w if conv else 0) + attend
    return Count(kv + 2 * s * d * w, steer + each + out)


def _glances(V, s, d, L, D, T, glances=32, width=None, each=None, steered=False, every=False,
             source="embeddings", words=20):  # fmt: skip
    w = width or d
    each, T = each or max(4, w // 8), T or D
    looks = 4 * glances * s * w + 2 * V * glances * w * each + _mlp(V, glances * each, D, D)
    if not steered:
        return Count(_mlp(s, L, w, w), looks)
    pooled = _pooled_question(T, words=words) if source == "embeddings" else 0
    steer = pooled + 2 * (4 * T if pooled else T) * w + 2 * w * (glances * w + w)
    return Count(_mlp(s, L, w, w), looks + steer)


def _lookup(V, s, d, L, D, T, finds=4, aligned=True, words=20, **options):
    own = _glances(V, s, d, L, D, T, steered=True, words=words, width=D, **options)
    asked = 2 * words * D * (D + finds) + 2 * words * s * D  # queries and shares, scores
    mixed = 2 * words * finds * s + 2 * finds * s * D + 2 * V * finds * D * D
    return Count(own.image, own.question + asked + mixed)


def _attention(m, s, d, heads, one_query=False, one_key=False):
    """(fixed, per image) of `PackedAttention` for m queries; queries or keys may serve every image."""
    few = heads * m <= d
    query = 2 * m * d * d * (2 if few else 1)
    keys = 0 if few else 2 * s * d * d
    scores = 2 * m * s * d * (heads if few else 1)
    mix = scores + (2 * m * d * d if few else 2 * s * d * d) + 2 * m * d * d
    parts = [(query, one_query), (keys, one_key), (scores, one_query and one_key), (mix, False)]
    return sum(n for n, once in parts if once), sum(n for n, once in parts if not once)


def _mqt(V, s, d, L, D, T, heads=16, keys="static", side=None):
    fixed, image = _attention(V, s, d, heads, one_query=True, one_key=keys == "static")
    return Count(image + 2 * V * d * D, fixed=fixed)


def _llavamini(V, s, d, L, D, T, heads=8):
    fixed, image = _attention(V, s, d, heads, one_query=True)
    return Count(image, fixed=fixed)


def _llavamini_fused(V, s, d, L, D, T, heads=8, llm_config=None, layers=4, words=20):
    c, x = llm_config, s + V + words
    layers = min(layers, c.num_hidden_layers)
    keys = D * c.num_key_value_heads // c.num_attention_heads  # width of keys and of values
    layer = 2 * x * (2 * D * D + 2 * D * keys + 3 * D * c.intermediate_size) + 4 * x * x * D
    own = _llavamini(V, s, d, L, D, T, heads)
    return Count(own.image + _mlp(s + V, d, D, D) + layers * layer, fixed=own.fixed)


def _perceiver(V, s, d, L, D, T, heads=8, depth=0):
    fixed, image = _attention(V, s, d, heads, one_query=True)
    block = _attention(V, V, d, heads)[1] + _attention(V, s, d, heads)[1] + _mlp(V, d, 4 * d, d)
    return Count(image + 2 * s * d * d + 2 * V * d * d + depth * block, fixed=fixed)


def _prumerge(V, s, d, L, D, T, plus=False, adaptive=False, ratio=None, normalise=False, d_keys=None):
    n = V - 1  # exact for a fixed V; the cap where an image decides
    return Count(2 * n * s * (d_keys or d) + 2 * n * s * d + 2 * (s - n) * d)


def _visionzip(V, s, d, L, D, T, contextual=None, normalise=False, d_keys=None, class_token=True):
    c = contextual or max(1, round(V * 10 / 64))
    others = s - (V - c - class_token) - c
    return Count(2 * others * c * (d_keys or d) + 2 * others * c * d)


def _tome(V, s, d, L, D, T, d_keys=None):
    total, t = 0, s
    while t > V:
        total += 2 * ((t + 1) // 2) * (t // 2) * (d_keys or d)
        t -= min(t // 2, t - V)
    return Count(total)


def _separable(V, s, d, L, D, T, **options):
    g, n = math.isqrt(s), V**0.5
    return Count(2 * n * g * g * d + 2 * n * n * g * d)


def _dct(V, s, *shape):
    return Count(_separable(V, s, *shape).image, fixed=2 * V * math.isqrt(s))  # the matrix itself


# by class, so that every name that stands for a class with options shares its formula
FORMULAS = {
    "NoImage": _free,
    "Identity": _free,
    "Pool": _free,
    "PoolAfter": _pool_after,
    "TokenPacker": _tokenpacker,
    "QueCC": _quecc,
    "Glances": _glances,
    "Lookup": _lookup,
    "MQT": _mqt,
    "Perceiver": _perceiver,
    "LLaVAMini": _llavamini,
    "LLaVAMiniFused": _llavamini_fused,  # with `fuse` over `words` words of text
    "PruMerge": _prumerge,
    "VisionZip": _visionzip,
    "ToMe": _tome,
    "Random": lambda *shape, seed=0: Count(),
    "Stride": _free,
    "Downsample": _separable,
    "DownsampleImage": _free,  # its gain is the tower's, which sees fewer patches
    "DCT": _dct,
    "FastV": lambda *shape, **options: Count(),  # its cost is the LLM's
}


def count(name: str, tokens: int, grid: int, d: int, d_levels=None, d_llm=None, d_question=None, folded=False,
          **options) -> Count:  # fmt: skip
    """Operations of a compressor by its registered name and shape, as given to `build`.

    folded: whether it runs in float32 without gradients, see `WindowAttention.folds`. options: the
    compressor's, and for some `words` (question length) or `d_keys` (width of the tower's keys). A class
    without a formula (one of your own) is built, and instrumented on the meta device. Raises `InputError`
    for an unknown name and a V that no compressor can give.
    """
    from vtc.compressors import build, entry

    if tokens != 0 and not 1 <= tokens <= grid**2:
        raise InputError(f"{name} cannot give V = {tokens} from a {grid} x {grid} grid: use 0 to {grid**2}")
    cls, preset = entry("none" if tokens == 0 else name)
    if cls not in FORMULAS:
        shape = dict(tokens=tokens, grid=grid, d=d, d_levels=d_levels, d_llm=d_llm, d_question=d_question)
        return Count(instrumented(build(name, **shape, **options)))
    if cls in ("TokenPacker", "QueCC"):
        options["folded"] = folded
    return FORMULAS[cls](tokens, grid**2, d, d_levels, d_llm, d_question, **{**preset, **options})


def of(compressor, b: int = 1, questions: int = 1) -> float:
    """Operations of a built compressor: from its formula, else by instrumenting a call on the meta device."""
    from vtc.compressors import entry

    shape = dict(tokens=compressor.tokens, grid=compressor.grid, d=compressor.d, d_levels=compressor.d_levels,
                 d_llm=compressor.d_llm, d_question=compressor.d_question)  # fmt: skip
    if not hasattr(compressor, "options") or entry(compressor.name)[0] not in FORMULAS:
        return instrumented(compressor, b)
    folded = str(precision(compressor)) == "torch.float32"
    return count(compressor.name, **shape, folded=folded, **compressor.options).total(b, questions)


def precision(compressor):
    """The dtype of its weights; None where it has none."""
    return next((p.dtype for p in compressor.parameters()), None)


def instrumented(compressor, b: int = 1) -> float:
    """What torch's counter sees in one call with b images and one question each; the input is made up."""
    import copy

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from vtc.compressors.base import Features

    def blank(*shape):
        return torch.empty(b, *shape, device="meta", dtype=precision(compressor))

    s, d = compressor.side**2, compressor.d
    features = Features(
        blank(s, d), blank(s, compressor.d_levels or d), blank(1, s), blank(s, 1, d), blank(d)
    )
    words = (20,) if compressor.question_source == "embeddings" else ()
    question = blank(*words, compressor.width_of("d_question")) if compressor.needs_question else None
    twin = copy.deepcopy(compressor).to("meta")
    with torch.no_grad():
        twin(features, question)  # makes what is kept between calls
        with FlopCounterMode(display=False) as counter:
            twin(features, question)
    return counter.get_total_flops()
