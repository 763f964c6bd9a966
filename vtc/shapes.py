"""The shapes of what is built: LLMs and vision towers with the presets of the paper, and the small world."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from vtc import InputError

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class LLMShape:
    """A decoder-only LLM with gated MLPs (Qwen2, LLaMA): what its cost depends on, and how to build it."""

    name: str
    layers: int
    d: int  # width
    d_ff: int  # width of the gated MLP
    heads: int  # query heads
    kv_heads: int | None = None  # key and value heads; None: as many as query heads
    vocab: int = 0  # rows of the embedding table and of the LM head; 0: those of the tokenizer it will get
    tied: bool = False  # the head is the embedding table
    bias: bool = True  # biases on q, k and v (Qwen yes, LLaMA no)
    nominal: float = float("nan")  # the paper's N, billions
    checkpoint: str | None = None  # hub id or folder of its weights; None: trained here

    def __post_init__(self) -> None:
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)

    @property
    def d_kv(self):
        """Width of the keys (and of the values) of one token."""
        return _whole(self.kv_heads * (self.d / self.heads))

    @property
    def matrices(self):
        """Parameters of the matrix products that every token meets."""
        return self.layers * (2 * self.d**2 + 2 * self.d * self.d_kv + 3 * self.d * self.d_ff)

    @property
    def N(self):
        """The paper's N: parameters that every token meets; neither the embedding table nor the head."""
        return self.matrices + self.layers * (self.bias * (self.d + 2 * self.d_kv) + 2 * self.d) + self.d

    @property
    def head(self):
        """Parameters of the LM head, which multiplies only tokens whose logits are asked for."""
        return self.vocab * self.d

    @property
    def params(self):
        """All parameters that memory must hold."""
        return self.N + self.head + np.where(self.tied, 0, self.head)

    def kv_bytes(self, dtype: str = "bf16"):
        """Bytes of KV cache one token takes."""
        return 2 * self.layers * self.d_kv * BYTES[dtype]

    @staticmethod
    def stack(shapes, trailing: int = 0) -> LLMShape:
        """Several shapes as one whose fields are arrays (n, 1 * trailing): a whole family in one call."""
        axes = (-1,) + (1,) * trailing
        fields = [f.name for f in dataclasses.fields(LLMShape) if f.name not in ("name", "checkpoint")]
        columns = {f: np.array([getattr(s, f) for s in shapes]).reshape(axes) for f in fields}
        return LLMShape(name="+".join(s.name for s in shapes), **columns)


def _whole(x):
    """A number without its fraction where that is zero; arrays as they are."""
    return int(x) if np.ndim(x) == 0 and x == int(x) else x


@dataclass(frozen=True)
class TowerShape:
    """A CLIP vision transformer: patches of one image in, one token a patch (and a class token) out."""

    d: int  # width
    layers: int
    heads: int
    patch: int  # side of a patch, pixels
    levels: tuple[int, ...]  # layers that compressors read; the last is `features.last`, later ones never run
    pixels: int  # side of an image
    d_ff: int | None = None  # width of the MLP; None: 4 d
    extra: int = 1  # class tokens
    # Channels of 3 x 3 convolutions of stride 2 before the last one, which gives the patches, of 2^(n + 1)
    # pixels. Empty: one linear map a patch, as in CLIP.
    stem: tuple[int, ...] = ()
    checkpoint: str | None = None  # open_clip id or folder of its weights; None: trained here

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        object.__setattr__(self, "stem", tuple(self.stem))
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", 4 * self.d)
        if self.stem and 2 ** (len(self.stem) + 1) != self.patch:
            made = f"a stem of {len(self.stem)} channels gives patches of {2 ** (len(self.stem) + 1)} pixels"
            raise InputError(f"tower: {made}, not of {self.patch}; change one of them")

    @property
    def g(self) -> int:
        """Side of the patch grid."""
        return self.pixels // self.patch

    @property
    def s(self) -> int:
        """Patches of one image."""
        return self.g**2

    @property
    def d_levels(self) -> int:
        """Width of the levels side by side."""
        return self.d * len(self.levels)

    @property
    def depth(self) -> int:
        """Layers that are computed."""
        return max(self.levels)

    @property
    def params(self) -> int:
        """Parameters that memory must hold (computed layers only)."""
        block = 4 * self.d**2 + 2 * self.d * self.d_ff + 9 * self.d + self.d_ff
        biases = sum((*self.stem, self.d)) if self.stem else 0
        first = sum(inner * outer for inner, outer, _ in self.convolutions) + biases
        return self.depth * block + first + (self.s + self.extra + 3) * self.d

    @property
    def convolutions(self) -> list[tuple[int, int, float]]:
        """What turns pixels into patches: inputs and outputs of each map, how many of them a patch takes."""
        if not self.stem:
            return [(3 * self.patch**2, self.d, 1.0)]
        ins, outs = (3, *self.stem), (*self.stem, self.d)
        return [(9 * i, o, 4.0 ** (len(outs) - 1 - k)) for k, (i, o) in enumerate(zip(ins, outs))]


@dataclass(frozen=True)
class WorldConfig:
    """The distributions of the small world, stated before anything is trained on it.

    They largely *set* the exponents of the law: how fast the error falls with V follows from `least` and
    `most`, how fast it falls with N from the number of facts and from `zipf`. What the world tests is whether
    both together follow from each alone.
    """

    # The eye. An image could hold `fit` x `fit` marks of its size, log-uniform between these two. So
    # the visual tokens that are needed to tell the marks apart, up to fit^2, are log-uniform as well.
    least: float = 1.0
    most: float = 10.0  # 100 tokens: more than the 36 of V = s/4, fewer than the 144 of V = s
    rows: int = 2  # lines of marks at most
    cols: int = 6  # marks in a line at most
    # The memory. A fact for every land, digit and animal, 40,960 of them, of 10 bits each.
    lands: int = 32
    entities: int = 128
    zipf: float = 1.0  # the fact of rank r is taught and asked in proportion to 1 / (r + offset)^zipf
    offset: float = 100.0  # keeps the head flat: the best guess without the image is right once in eight


LLMS = {
    shape.name: shape
    for shape in (
        LLMShape("qwen1.5-0.5b", 24, 1024, 2816, 16, 16, 151936, tied=True, nominal=0.5),
        LLMShape("qwen1.5-1.8b", 24, 2048, 5504, 16, 16, 151936, nominal=1.8),
        LLMShape("qwen1.5-4b", 40, 2560, 6912, 20, 20, 151936, nominal=4.0),
        LLMShape("qwen1.5-7b", 32, 4096, 11008, 32, 32, 151936, nominal=7.0),
        LLMShape("qwen1.5-14b", 40, 5120, 13696, 40, 40, 152064, nominal=14.0),
        LLMShape("vicuna-7b", 32, 4096, 11008, 32, 32, 32000, bias=False, nominal=7.0),
    )
}
QWEN15 = tuple(shape for name, shape in LLMS.items() if name.startswith("qwen1.5"))
# LLaVA reads h[-2], the output of layer 23; the other levels are TokenPacker's and QueCC's.
CLIP_L_336 = TowerShape(1024, 24, 16, 14, (12, 16, 22, 23), 336)


def llm(name: str) -> LLMShape:
    """A preset by name ("qwen1.5-7b", "vicuna-7b") or by the paper's N in billions ("0.5", "7")."""
    by_size = {f"{shape.nominal:g}": shape for shape in QWEN15}
    found = LLMS.get(name.lower()) or by_size.get(name.lower().removesuffix("b"))
    if found is None:
        raise InputError(f"unknown LLM {name!r}; known: {', '.join([*LLMS, *by_size])}")
    return found


def llm_like(N) -> LLMShape:
    """A Qwen1.5-like shape of any size: depth and widths interpolated in ln N between the five presets.

    N: the paper's nominal billions, scalar or array. At 0.5, 1.8, 4, 7 and 14 it is the preset itself.
    """
    at = np.log(np.clip(N, QWEN15[0].nominal, QWEN15[-1].nominal))
    grid = np.log([s.nominal for s in QWEN15])
    layers, d, d_ff = (
        np.exp(np.interp(at, grid, np.log([getattr(s, f) for s in QWEN15]))) for f in ("layers", "d", "d_ff")
    )
    heads, tied = d / 64, np.asarray(N) < 1
    return LLMShape("qwen1.5-like", layers, d, d_ff, heads, heads, QWEN15[0].vocab, tied, nominal=N)
