"""The compressor zoo: `build(name, tokens=V, grid=g, ...)` makes any of them, all are called alike.

    compressor = build("quecc", tokens=4, grid=12, d=64, d_levels=256, d_llm=128, d_question=128)
    tokens = compressor(features, question)  # (b, s, d) -> (b, 4, d_out)

Nothing heavy is imported until one is built. A new compressor is one file, one line in `REGISTRY` and one for
readers in `ideas`, or a class of your own passed to `register`; the sweep, the cost, the planner and the
figures then know it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from numbers import Integral

from vtc import InputError


@dataclass(frozen=True)
class Entry:
    """One line of the registry: a class, what options the name stands for, how it is trained and shown."""

    cls: str | type  # "module.Class" inside this package, or a class of your own
    options: dict = field(default_factory=dict)
    label: str = ""  # as tables and figures write it; empty: the name
    sets: tuple[str, ...] = ("others",)  # of notebook 05, see `SETS`
    nested: bool = False  # nested budgets: one training serves every V, which is drawn anew at each step
    one_V: str | None = None  # where nested: the same, trained for one V alone
    distilled: bool = False  # trained with the auxiliary loss of `vtc.training.losses`
    words: bool = True  # where its tokens are of windows, the align stage teaches them the LLM's words
    published: str = ""  # its name in the table of published results (published.csv)

    @property
    def key(self) -> str:
        """Class and options in one word; entries of the same key compute and cost the same."""
        cls = self.cls if isinstance(self.cls, str) else f"{self.cls.__module__}.{self.cls.__qualname__}"
        return f"{cls}({', '.join(f'{name}={value}' for name, value in self.options.items())})"


SETS = ("headline", "rivals", "ablations", "nested", "others")
HEADLINE = ("headline",)  # five seeds, where others have three
RIVALS, ABLATIONS, NESTED = ("rivals",), ("ablations",), ("nested",)
QUECC, LOOKUP, MQT = "quecc.QueCC", "zoo.lookup.Lookup", "zoo.resampler.MQT"
GLANCES, PRUMERGE = "zoo.glances.Glances", "zoo.prune.PruMerge"
REGISTRY = {
    "none": Entry("simple.NoImage", sets=()),
    "identity": Entry("simple.Identity", sets=()),
    "pool": Entry("simple.Pool", sets=RIVALS),
    "pool_after": Entry("simple.PoolAfter", label="pooling trained for one V (M3's form)", published="M3"),
    "m3": Entry("simple.PoolAfter", label="M3", sets=NESTED, nested=True, one_V="pool_after"),
    "tokenpacker": Entry(
        "tokenpacker.TokenPacker", label="TokenPacker", sets=HEADLINE, published="TokenPacker"
    ),
    "tokenpacker_nested": Entry(
        "tokenpacker.TokenPacker",
        label="TokenPacker for every V",
        sets=NESTED,
        nested=True,
        one_V="tokenpacker",
    ),
    "tokenpacker_by_questions": Entry("tokenpacker.TokenPacker", sets=ABLATIONS, words=False),
    "tokenpacker_antialias": Entry("tokenpacker.TokenPacker", {"antialias": True}),
    "quecc": Entry(QUECC, label="QueCC", sets=HEADLINE + RIVALS + ABLATIONS, published="QueCC"),
    "quecc_shared": Entry(QUECC, {"source": "prompt_prefix"}, sets=RIVALS),
    "quecc_light": Entry(QUECC, {"source": "embeddings"}, sets=HEADLINE + RIVALS),
    "quecc_nested": Entry(
        QUECC, {"nested": True}, label="QueCC for every V", sets=NESTED, nested=True, one_V="quecc"
    ),
    "quecc_unasked": Entry(QUECC, {"question": False}, sets=ABLATIONS),  # QueCC with one part left out
    "quecc_pooled": Entry(QUECC, {"conv": False}, sets=ABLATIONS),
    "quecc_one_level": Entry(QUECC, {"levels": 1}, sets=ABLATIONS),
    "quecc_one_head": Entry(QUECC, {"heads": 1}, sets=ABLATIONS),
    "quecc_distilled": Entry(QUECC, sets=ABLATIONS, distilled=True),
    "glances": Entry(GLANCES),
    "glances_steered": Entry(GLANCES, {"steered": True}, sets=RIVALS),
    "glances_nested": Entry(
        GLANCES, {"steered": True, "nested": True}, sets=NESTED, nested=True, one_V="glances_steered"
    ),
    "lookup": Entry(
        LOOKUP, label="lookup (near LLaMA-VID, arXiv 2311.17043)", sets=HEADLINE + RIVALS + ABLATIONS
    ),
    "lookup_nested": Entry(LOOKUP, label="lookup for every V", sets=NESTED, nested=True, one_V="lookup"),
    "lookup_asked": Entry(LOOKUP, {"source": "llm_last"}, sets=ABLATIONS),  # one word: QueCC's question
    "lookup_unaligned": Entry(LOOKUP, {"aligned": False}, sets=ABLATIONS),
    "lookup_distilled": Entry(LOOKUP, {"aligned": False}, sets=ABLATIONS, distilled=True),
    "seek": Entry("zoo.seek.Seek"),
    "mqt": Entry(MQT, label="MQT trained for one V", published="MQT"),
    "mqt_content": Entry(MQT, {"keys": "content"}),
    "mqt_nested": Entry(MQT, sets=NESTED, nested=True, one_V="mqt"),
    "perceiver": Entry("zoo.resampler.Perceiver"),
    "llavamini": Entry("zoo.resampler.LLaVAMini"),
    "llavamini_fused": Entry("zoo.prefusion.LLaVAMiniFused"),
    "prumerge": Entry(PRUMERGE, label="PruMerge without a class token", published="PruMerge"),
    "prumerge_normalised": Entry(PRUMERGE, {"normalise": True}),
    "prumerge_plus": Entry(PRUMERGE, {"plus": True}),
    "visionzip": Entry("zoo.prune.VisionZip"),
    "tome": Entry("zoo.tome.ToMe"),
    "fastv": Entry("zoo.fastv.FastV", nested=True),  # V plays no part in its training
    "random": Entry("zoo.controls.Random"),
    "stride": Entry("zoo.controls.Stride"),
    "downsample": Entry("zoo.controls.Downsample"),
    "downsample_image": Entry("zoo.controls.DownsampleImage"),
    "dct": Entry("zoo.controls.DCT"),
    "braco": Entry("zoo.braco.Braco", label="Braco"),
    "llamavid": Entry("zoo.llamavid.LLaMAVID", label="LLaMA-VID"),
}


def names() -> list[str]:
    """The compressors there are."""
    return list(REGISTRY)


def register(name: str, cls: type, **options) -> None:
    """Add a compressor class under `name`, with these options of the class."""
    REGISTRY[name] = Entry(cls, options)


def entry(name: str) -> Entry:
    """The registry's line of that name; `InputError` lists all names."""
    if name not in REGISTRY:
        raise InputError(f"unknown compressor '{name}': use one of {', '.join(names())}")
    return REGISTRY[name]


def label(name: str) -> str:
    """How tables and figures write a compressor; a name that is not registered stays as it is."""
    return REGISTRY[name].label or name if name in REGISTRY else name


def sets() -> dict[str, tuple[str, ...]]:
    """The compressors of notebook 05 by set, each in the registry's order."""
    return {kind: tuple(name for name, line in REGISTRY.items() if kind in line.sets) for kind in SETS}


def find(name: str) -> type:
    """`name` -> its class, imported when asked for."""
    cls = entry(name).cls
    if isinstance(cls, type):
        return cls
    module, _, cls = cls.rpartition(".")
    return getattr(import_module(f"vtc.compressors.{module}"), cls)


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
    cls, preset = find(name), entry(name).options
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
