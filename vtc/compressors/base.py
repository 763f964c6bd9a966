"""What every compressor shares: the features that come in, the one call, the window geometry, the mlp2x.

Data flow: tower features (+ question) -> **compressor** -> projector -> LLM. Letters as in `vtc`: `b, s, v,
d` are axes (batch, patch, visual token, width), `g` the side of the patch grid (`s = g*g`), `k` the side of
a window and `n = g/k` the windows along a side (`V = n*n`).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from vtc import InputError


@dataclass(frozen=True)
class Features:
    """What a vision tower hands over; only `last` is always there. Raster order, no class token."""

    last: Tensor  # (b, s, d) the layer the LLM would read, second to last
    levels: Tensor | None = None  # (b, s, d_levels) several layers side by side
    attention: Tensor | None = None  # (b, h, s) of the class token, softmaxed; its own column is cut off
    keys: Tensor | None = None  # (b, s, h, d_h) attention keys of the patches
    cls: Tensor | None = None  # (b, d) the class token of the layer of `last`

    def __len__(self) -> int:
        return self.last.shape[0]

    def map(self, change) -> Features:
        """The same features with `change` applied to every tensor that is there."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Features(**{name: part if part is None else change(part) for name, part in parts.items()})

    @staticmethod
    def cat(pieces: list[Features]) -> Features:
        """The batches one behind the other."""
        parts = {f.name: [getattr(piece, f.name) for piece in pieces] for f in fields(Features)}
        whole = {name: None if part[0] is None else torch.cat(part) for name, part in parts.items()}
        return Features(**whole)

    def __getitem__(self, index) -> Features:
        """Images `index` (slice, list or index tensor) of the batch."""
        return self.map(lambda part: part[index])

    def to(self, *args, **kwargs) -> Features:
        return self.map(lambda part: part.to(*args, **kwargs))


class Compressor(nn.Module):
    """Features (b, s, d) and, for some, a question (b, d_question) -> V visual tokens (b, V, d_out).

    A compressor of your own is a subclass with `compress`; everything else has a working default. Raises
    `InputError` where V, grid, question or attention do not fit.
    """

    cost_class = "A"  # A: V tokens enter the LLM, B: side layers read all, C: the cache shrinks, D: inside it
    needs_question = False
    needs_levels = False
    needs_attention = False  # features.attention
    needs_keys = False  # features.keys
    shrinks_image = False  # True: the tower sees a smaller image, of V patches
    windowed = False  # True: token i tells of window i, in raster order
    ends_at_llm = False  # True: d_out is the LLM's width and no projector follows
    fuses = False  # True: `fusion.layers` beside the LLM read text and patches first, see `zoo/prefusion.py`
    layer: int | None = None  # D: the LLM's layer before which tokens are dropped
    nested = False  # True: the same weights serve every V, see `at`
    question_source: str | None = "llm_last"  # where the question's vector comes from, see `QueCC`
    aligns_at: int | None = None  # V of the align stage where it is another, see `at`

    def __init__(self, *, tokens, grid, d, d_levels=None, d_llm=None, d_question=None):
        super().__init__()
        self.name = type(self).__name__
        self.grid, self.d, self.d_levels, self.d_llm, self.d_question = grid, d, d_levels, d_llm, d_question
        self.tokens = self.check_tokens(tokens)
        self.d_out = self.width_of("d_llm") if self.ends_at_llm else d

    @classmethod
    def possible(cls, grid: int) -> list[int]:
        """The V that a `grid` x `grid` tower can be compressed to, rising."""
        return list(range(1, grid * grid + 1))

    def check_tokens(self, tokens: int) -> int:
        there = self.possible(self.grid)
        if tokens in there:
            return tokens
        listed = ", ".join(map(str, there if len(there) < 20 else [*there[:5], "...", there[-1]]))
        grid = f"{self.grid} x {self.grid} grid"
        raise InputError(f"{self.name} cannot give V = {tokens} from a {grid}: use one of {listed}")

    @property
    def side(self) -> int:
        """Patches a side that the tower hands over: g, or less where the image is shrunk before."""
        return math.isqrt(self.tokens) if self.shrinks_image else self.grid

    @property
    def question_pass(self) -> str | None:
        """The LLM's pass over the question: "paid" by each request, "shared" with the prompt, or None."""
        if not self.needs_question or self.question_source == "embeddings":
            return None
        return "shared" if self.question_source == "prompt_prefix" else "paid"

    @property
    def of_tower(self) -> dict[str, bool | int]:
        """What it wants of the tower beside its outputs, as arguments of `vtc.models.tower.Tower`."""
        smaller = {"side": self.side} if self.shrinks_image else {}
        return {"selecting": self.needs_attention or self.needs_keys, **smaller}

    def width_of(self, which: str) -> int:
        if width := getattr(self, which):
            return width
        raise InputError(f"{self.name} needs the width {which}: pass {which}=... to vtc.compressors.build")

    def at(self, tokens: int) -> Compressor:
        """The same weights (shared, not copied) giving another V; only where `nested` is true."""
        if not self.nested and tokens != self.tokens:
            built = f"{self.name} is built for V = {self.tokens}"
            raise InputError(f"{built}; it cannot give {tokens} with the same weights")
        twin = copy.copy(self)
        twin.tokens = twin.check_tokens(tokens)
        return twin

    def forward(self, features: Features, question: Tensor | None = None, **extra) -> Tensor:
        """Features (b, s, d), question (b, d_question) or None -> visual tokens (b, V, d_out)."""
        self.check(features, question)
        return self.compress(features, question, **extra)

    def check(self, features: Features, question: Tensor | None) -> None:
        """Raise `InputError` where the features or the question lack what this compressor reads."""
        b, s, d_levels = len(features), self.side**2, self.d_levels if self.needs_levels else None
        shapes = {
            "last": (b, s, self.d),
            "levels": (b, s, d_levels),
            "attention": (b, None, s),
            "keys": (b, s, None, None),
        }
        who = f"{self.name} for {self.side} x {self.side} patches"
        for part, shape in shapes.items():
            given = getattr(features, part)
            if given is not None:
                expect(who, f"features.{part}", given, shape)
            elif getattr(self, f"needs_{part}"):
                raise InputError(f"{self.name} reads features.{part}, which this tower did not give")
        if not self.needs_question:
            return
        if question is None:
            raise InputError(f"{self.name} needs the question: pass question=(batch, {self.d_question})")
        one = (b, None, self.d_question) if self.question_source == "embeddings" else (b, self.d_question)
        expect(self.name, "a question", question, one, (b, None, *one[1:]))

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    @torch.inference_mode(False)
    @torch.enable_grad()
    def attention_map(self, features: Features, question: Tensor | None = None, **extra) -> Tensor:
        """What each visual token reads of each patch: (b, V, s), rows add up to 1 (what the notebook draws).

        The default is the size of the token's gradient with respect to each patch, so it works for any
        compressor; those with an attention map of their own return that instead.
        """
        kind = next((p.dtype for p in self.parameters()), torch.float32)
        # clones, for what was made in inference mode has no gradients
        features = features.map(lambda part: part.clone().to(kind).detach().requires_grad_())
        question = None if question is None else question.clone().to(kind)
        read = [part for part in (features.last, features.levels) if part is not None]
        rows = []
        for token in self(features, question, **extra).unbind(1):  # (b, d_out)
            slopes = torch.autograd.grad(token.square().sum(), read, retain_graph=True, allow_unused=True)
            rows.append(sum(slope.float().square().sum(-1) for slope in slopes if slope is not None).sqrt())
        seen = torch.stack(rows, 1)  # (b, V, s)
        return seen / seen.sum(-1, keepdim=True).clamp_min(1e-12)

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())


class Windows(Compressor):
    """A compressor whose tokens stand for n x n square windows of the grid: V = n*n for n that divide g."""

    windowed = True

    @classmethod
    def possible(cls, grid: int) -> list[int]:
        return [n * n for n in range(1, grid + 1) if grid % n == 0]

    @property
    def n(self) -> int:
        """Windows along a side."""
        return math.isqrt(self.tokens)

    @property
    def k(self) -> int:
        """Patches along a window's side."""
        return self.grid // self.n


def expect(who: str, what: str, x: Tensor, *shapes: tuple) -> None:
    """Raise `InputError` unless x has one of these shapes; None in one stands for any size."""
    for shape in shapes:
        if x.dim() == len(shape) and all(n in (None, m) for n, m in zip(shape, x.shape)):
            return
    sizes = ", ".join("*" if n is None else str(n) for n in shapes[0])
    raise InputError(f"{who} needs {what} of shape ({sizes}), got {tuple(x.shape)}")


def check_heads(heads: int, width: int) -> None:
    """Raise `InputError` where attention heads do not divide the width."""
    if heads < 1 or width % heads:
        raise InputError(f"{heads} heads do not divide the width {width}: pass heads=... that do")


def pick(x: Tensor, index: Tensor) -> Tensor:
    """(b or 1, t, d) at (b, n) -> (b, n, d)."""
    return x.expand(len(index), -1, -1).gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def windows(x: Tensor, n: int) -> Tensor:
    """(..., s, d) in raster order -> (..., n*n, k*k, d), windows and their patches in raster order."""
    *lead, s, d = x.shape
    g = math.isqrt(s)
    k = g // n
    x = x.reshape(*lead, n, k, n, k, d).transpose(-4, -3)  # (..., n, n, k, k, d)
    return x.reshape(*lead, n * n, k * k, d)  # a view where n = 1 or k = 1


def unwindows(x: Tensor, n: int) -> Tensor:
    """Weights inside windows (b, v, k*k) -> weights over the whole grid (b, v, s), zero outside."""
    b, v, kk = x.shape
    k = math.isqrt(kk)
    place = torch.eye(v, device=x.device, dtype=x.dtype).view(v, n, n, 1, 1)  # token -> its own window
    whole = x.view(b, v, 1, 1, k, k) * place  # (b, v, n, n, k, k)
    return whole.transpose(3, 4).reshape(b, v, n * n * kk)


def mean_pool(x: Tensor, n: int) -> Tensor:
    """(b, s, d) -> (b, n*n, d): the mean of each window."""
    b, s, d = x.shape
    k = math.isqrt(s) // n
    return x if k == 1 else x.view(b, n, k, n, k, d).mean((2, 4)).view(b, n * n, d)


def mlp2x(d_in: int, d: int, d_out: int) -> nn.Sequential:
    """Linear, exact GELU, Linear: LLaVA-1.5's projector, and the maps inside some compressors."""
    return nn.Sequential(nn.Linear(d_in, d), nn.GELU(), nn.Linear(d, d_out))


class Official:
    """A release's state dict, read name by name; a name that is missing is said in one line."""

    def __init__(self, state: dict, owner: str):
        inside = {name: part for name, part in state.items() if "mm_projector." in name}
        self.state = {name.split("mm_projector.")[-1]: part for name, part in (inside or state).items()}
        self.owner = owner

    def __contains__(self, name: str) -> bool:
        return name in self.state

    def under(self, prefix: str) -> Official:
        """The names that start with `prefix`, without it."""
        part = copy.copy(self)
        part.state = {k[len(prefix) :]: v for k, v in self.state.items() if k.startswith(prefix)}
        return part

    def __getitem__(self, name: str) -> Tensor:
        if name in self.state:
            return torch.as_tensor(self.state[name])
        expected = f"load_official: {self.owner} expects a tensor named '{name}'"
        raise InputError(f"{expected} in the state dict; it is missing")

    def mlp2x(self, prefix: str = "") -> dict[str, Tensor]:
        """Tensors of a Linear, GELU, Linear, under the names of our `mlp2x`."""
        return {f"{i}.{part}": self[f"{prefix}{i}.{part}"] for i in (0, 2) for part in ("weight", "bias")}

    def linear(self, name: str, bias: bool = True) -> dict[str, Tensor]:
        return {part: self[f"{name}.{part}"] for part in (("weight", "bias") if bias else ("weight",))}


def fill(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into `module`'s parameters by name; one `InputError` says which is missing or misfits."""
    own, owner = dict(module.named_parameters()), f"{type(module).__name__}"
    for name, part in own.items():
        if name not in tensors:
            raise InputError(f"load_official: nothing in the state dict for {owner}.{name}")
        here, there = tuple(part.shape), tuple(tensors[name].shape)
        if here != there:
            what = f"load_official: {owner}.{name} is {here} here, {there} in the state dict"
            raise InputError(f"{what}: build with the widths of the release")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
