"""The compressor zoo: `build(name, tokens=V, grid=g, ...)` makes any of them, all are called alike.

    compressor = build("quecc", tokens=4, grid=12, d=64, d_levels=256, d_llm=128, d_question=128)
    tokens = compressor(features, question)  # (b, s, d) -> (b, 4, d_out)

Nothing heavy is imported until one is built. To add a compressor, write its file and one line in `REGISTRY`,
or pass a class of your own to `register`.
"""

from __future__ import annotations

from importlib import import_module
from numbers import Integral

from vtc import InputError

# name -> (module, class, options that the name stands for)
REGISTRY = {
    "none": ("simple", "NoImage", {}),
    "identity": ("simple", "Identity", {}),
    "pool": ("simple", "Pool", {}),
    "pool_after": ("simple", "PoolAfter", {}),
    "m3": ("simple", "PoolAfter", {}),
    "tokenpacker": ("tokenpacker", "TokenPacker", {}),
    "tokenpacker_antialias": ("tokenpacker", "TokenPacker", {"antialias": True}),
    "quecc": ("quecc", "QueCC", {}),
    "quecc_shared": ("quecc", "QueCC", {"source": "prompt_prefix"}),
    "quecc_light": ("quecc", "QueCC", {"source": "embeddings"}),
    "quecc_unasked": ("quecc", "QueCC", {"question": False}),  # QueCC with one part left out
    "quecc_pooled": ("quecc", "QueCC", {"conv": False}),
    "quecc_one_level": ("quecc", "QueCC", {"levels": 1}),
    "quecc_one_head": ("quecc", "QueCC", {"heads": 1}),
    "quecc_distilled": ("quecc", "QueCC", {}),
    "glances": ("zoo.glances", "Glances", {}),
    "glances_steered": ("zoo.glances", "Glances", {"steered": True}),
    "glances_nested": ("zoo.glances", "Glances", {"steered": True, "every": True}),
    "lookup": ("zoo.lookup", "Lookup", {}),
    "lookup_unaligned": ("zoo.lookup", "Lookup", {"aligned": False}),
    "lookup_distilled": ("zoo.lookup", "Lookup", {"aligned": False}),
    "mqt": ("zoo.resampler", "MQT", {}),
    "mqt_content": ("zoo.resampler", "MQT", {"keys": "content"}),
    "mqt_nested": ("zoo.resampler", "MQT", {}),
    "perceiver": ("zoo.resampler", "Perceiver", {}),
    "llavamini": ("zoo.resampler", "LLaVAMini", {}),
    "llavamini_fused": ("zoo.prefusion", "LLaVAMiniFused", {}),
    "prumerge": ("zoo.prune", "PruMerge", {}),
    "prumerge_normalised": ("zoo.prune", "PruMerge", {"normalise": True}),
    "prumerge_plus": ("zoo.prune", "PruMerge", {"plus": True}),
    "visionzip": ("zoo.prune", "VisionZip", {}),
    "tome": ("zoo.tome", "ToMe", {}),
    "fastv": ("zoo.fastv", "FastV", {}),
    "random": ("zoo.controls", "Random", {}),
    "stride": ("zoo.controls", "Stride", {}),
    "downsample": ("zoo.controls", "Downsample", {}),
    "downsample_image": ("zoo.controls", "DownsampleImage", {}),
    "dct": ("zoo.controls", "DCT", {}),
    "braco": ("zoo.braco", "Braco", {}),
}

# One training serves every V: it is drawn anew at every step, or plays no part in training (FastV). Beside
# each, the same with weights for one V alone.
TRAINED_ONCE = {
    "m3": "pool_after",
    "mqt_nested": "mqt",
    "glances_nested": "glances_steered",
    "fastv": "identity",
}

# Trained with an auxiliary loss (`distil.py`); without it they are quecc and lookup_unaligned.
DISTILLED = ("quecc_distilled", "lookup_distilled")


def names() -> list[str]:
    """The compressors there are."""
    return list(REGISTRY)


def register(name: str, cls: type, **options) -> None:
    """Add a compressor class under `name`; the sweep, the cost and the figures then know it."""
    REGISTRY[name] = (cls, None, options)


def entry(name: str) -> tuple[str, dict]:
    """`name` -> its class's name (of your own: dotted) and its options; `InputError` lists all names."""
    if name not in REGISTRY:
        raise InputError(f"unknown compressor '{name}': use one of {', '.join(names())}")
    module, cls, options = REGISTRY[name]
    return (cls if isinstance(module, str) else f"{module.__module__}.{module.__name__}"), options


def find(name: str) -> type:
    """`name` -> its class, imported when asked for."""
    cls, _ = entry(name)
    module = REGISTRY[name][0]
    return getattr(import_module(f"vtc.compressors.{module}"), cls) if isinstance(module, str) else module


def possible(name: str, grid: int) -> list[int]:
    """The V that `name` can give on a `grid` x `grid` tower, rising."""
    return find(name).possible(grid)


def build(
    name: str, *, tokens: int, grid: int, d: int, d_levels=None, d_llm=None, d_question=None, **options
):
    """One compressor by name -> `torch.nn.Module`, see `vtc.compressors.base.Compressor`.

    tokens: V (0 means no image, whatever the name). grid: g. d, d_levels: widths of the tower's last and
    stacked layers. d_llm: the LLM's width. d_question: width of the question vector. options: the class's
    own. Raises `InputError`, one line, for an unknown name, a V that the grid cannot give, a width or option
    that does not fit.
    """
    cls, (_, preset) = find(name), entry(name)
    for what, given, least in (("tokens", tokens, 0), ("grid", grid, 1), ("d", d, 1)):
        if not isinstance(given, Integral) or given < least:
            raise InputError(f"compressor '{name}': {what} must be a whole number >= {least}, got {given!r}")
    if tokens == 0:
        name, cls, preset, options = "none", find("none"), {}, {}
    shape = dict(tokens=tokens, grid=grid, d=d, d_levels=d_levels, d_llm=d_llm, d_question=d_question)
    try:
        compressor = cls(**shape, **{**preset, **options})
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise InputError(f"compressor '{name}': {str(error).split('()')[-1].strip()}") from None
    compressor.name, compressor.options = name, options
    return compressor
