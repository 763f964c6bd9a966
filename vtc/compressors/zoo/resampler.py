"""Learned queries that read the whole grid: MQT, Perceiver, LLaVA-Mini's compressor.

MQT: arXiv 2405.19315, https://github.com/gordonhu608/MQT-LLaVA. LLaVA-Mini: arXiv 2501.03895,
https://github.com/ictnlp/LLaVA-Mini. Perceiver (Flamingo, arXiv 2204.14198) in its one-layer form: Qwen-VL's.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc import InputError
from vtc.compressors.base import Compressor, Features, Official, check_heads, fill


def position_code(side: int, width: int) -> Tensor:
    """Fixed 2-D code (side*side, width): channels for the column, then the row, each sines then cosines."""
    if width % 4:
        raise InputError(f"a 2-D position code needs a width that 4 divides, got {width}")
    speeds = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.arange(side, dtype=torch.float64).outer(speeds)  # (side, width/4)
    line = torch.cat([angles.sin(), angles.cos()], -1)  # (side, width/2)
    columns, rows = line.repeat(side, 1), line.repeat_interleave(side, 0)
    return torch.cat([columns, rows], -1).float()


def resized(code: Tensor, grid: int) -> Tensor:
    """A square code (side*side, width) resampled to (grid*grid, width), bicubic, as the releases do."""
    side = math.isqrt(len(code))
    if side == grid:
        return code
    image = code.view(1, side, side, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, (grid, grid), mode="bicubic", align_corners=False)
    return image.permute(0, 2, 3, 1).flatten(0, 2)


class PackedAttention(nn.Module):
    """Multi-head attention with one packed in-projection (query, key, value rows), heads in blocks.

    With few queries the key and value maps are applied on the query's side (see `windowed`), which gives the
    same output for less. The key bias is kept for loading; it cannot change the output.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads(heads, width)
        self.heads = heads
        self.in_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_bias = nn.Parameter(torch.zeros(3 * width))
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.bias)

    def split(self, x: Tensor) -> Tensor:
        """(b, n, width) -> (b, heads, n, width / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def few(self, m: int) -> bool:
        """Whether moving the projections to the side of the m queries saves operations."""
        return self.heads * m <= self.out.in_features

    def weights(self, queries: Tensor, keys: Tensor) -> Tensor:
        """queries (b or 1, m, width), keys (b or 1, s, width) -> (b or 1, heads, m, s), rows add up to 1."""
        m, width = queries.shape[1:]
        to_query, to_key, _ = self.in_weight.chunk(3)
        scale = (width // self.heads) ** -0.5
        q = self.split(F.linear(queries, to_query, self.in_bias[:width]) * scale)  # (b, heads, m, c)
        if not self.few(m):
            return (q @ self.split(F.linear(keys, to_key)).transpose(2, 3)).softmax(-1)
        moved = q @ to_key.view(self.heads, -1, width).to(q.dtype)  # (b, heads, m, width)
        scores = moved.flatten(1, 2) @ keys.transpose(1, 2)  # (b, heads m, s)
        return scores.softmax(-1).unflatten(1, (self.heads, m))

    def mix(self, weights: Tensor, values: Tensor) -> Tensor:
        """weights (b or 1, heads, m, s), values (b, s, width) -> (b, m, width)."""
        b, width = values.shape[0], values.shape[2]
        m = weights.shape[2]
        to_value, bias = self.in_weight[2 * width :], self.in_bias[2 * width :]
        if self.few(m):
            seen = (weights.flatten(1, 2) @ values).unflatten(1, (self.heads, m))  # (b, heads, m, width)
            each = seen @ to_value.view(self.heads, -1, width).transpose(1, 2).to(seen.dtype)
        else:
            each = weights @ self.split(F.linear(values, to_value))  # (b, heads, m, c)
        return self.out(each.transpose(1, 2).reshape(b, m, width) + bias)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return self.mix(self.weights(queries, keys), values)

    def load_official(self, given: Official) -> None:
        """Names of torch's `MultiheadAttention`."""
        fill(self, {"in_weight": given["in_proj_weight"], "in_bias": given["in_proj_bias"],
                    "out.weight": given["out_proj.weight"], "out.bias": given["out_proj.bias"]})  # fmt: skip


class Resampler(Compressor):
    """Learned queries (m, d) attend once to all patches; subclasses say what queries and keys are made of."""

    eps = 1e-6

    def __init__(self, *, heads: int, rows: int, **shape):
        super().__init__(**shape)
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(rows, self.d), std=0.02))
        self.query_norm = nn.LayerNorm(self.d, eps=self.eps)
        self.value_norm = nn.LayerNorm(self.d, eps=self.eps)
        self.attend = PackedAttention(self.d, heads)

    def place(self, code: Tensor, key_code: Tensor) -> None:
        """Keep the position codes of queries (m, d) and keys (s, d)."""
        self.register_buffer("code", code, persistent=False)
        self.register_buffer("key_code", key_code, persistent=False)

    def reads(self, features: Features) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (1, m, d), keys (b or 1, s, d), values (b, s, d)."""
        values = self.value_norm(features.last)
        return (self.query_norm(self.query) + self.code).unsqueeze(0), values + self.key_code, values

    def load(self, given: Official, **norms: str) -> None:
        """Read `query`, `attn.*` and the norms, own name = theirs, of a release."""
        for own, name in norms.items():
            fill(getattr(self, own), given.linear(name))
        self.attend.load_official(given.under("attn."))
        with torch.no_grad():
            self.query.copy_(given["query"])

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        return self.attend(*self.reads(features))

    def attention_map(self, features: Features, question: Tensor | None = None) -> Tensor:
        queries, keys, _ = self.reads(features)
        return self.attend.weights(queries, keys).mean(1).expand(len(features), -1, -1)


class MQT(Resampler):
    """The first V of up to 256 ordered queries -> (b, V, d_llm): one set of weights for every V (`at`).

    keys="static", as released: keys are the position codes alone, so the attention map is the same for every
    image (a learned spatial pooling). keys="content": the patch is added to its code before the key norm.
    """

    ends_at_llm = True
    nested = True

    @classmethod
    def possible(cls, grid: int) -> list[int]:
        return list(range(1, min(16, grid) ** 2 + 1))

    def __init__(self, *, heads: int = 16, keys: str = "static", **shape):
        side = min(16, shape["grid"])
        super().__init__(heads=heads, rows=side**2, **shape)
        if keys not in ("static", "content"):
            raise InputError(f"mqt: keys='{keys}' is unknown, use 'static' (as released) or 'content'")
        self.content = keys == "content"
        self.key_norm = nn.LayerNorm(self.d, eps=self.eps)
        code = position_code(side, self.d).half().float()  # the release makes it in 16 bits
        self.place(code, resized(code, self.grid))
        self.project = nn.Parameter(torch.randn(self.d, self.d_out) * self.d**-0.5)

    def reads(self, features: Features) -> tuple[Tensor, Tensor, Tensor]:
        queries = self.query_norm(self.query[: self.tokens] + self.code[: self.tokens])
        keys = self.key_code + features.last if self.content else self.key_code.unsqueeze(0)
        return queries.unsqueeze(0), self.key_norm(keys), self.value_norm(features.last)

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        return super().compress(features, question) @ self.project

    def load_official(self, state: dict[str, Tensor]) -> None:
        """Read a released MQT resampler: `query`, `proj`, `attn.*`, `ln_q`, `ln_k`, `ln_v`."""
        given = Official(state, "MQT")
        self.load(given, query_norm="ln_q", key_norm="ln_k", value_norm="ln_v")
        with torch.no_grad():
            self.project.copy_(given["proj"])


class LLaVAMini(Resampler):
    """C x C learned queries over the patches -> (b, C*C, d); the projector follows. C = 1 is the paper's.

    The query's code is added after its norm, and the key's code is the tiny C x C code blown up: at C = 1 it
    is one constant and says nothing of position. `PreFusion` is the paper's second half, which reads all
    patches.
    """

    eps = 1e-5

    @classmethod
    def possible(cls, grid: int) -> list[int]:
        return [side**2 for side in range(1, grid + 1)]

    def __init__(self, *, heads: int = 8, **shape):
        super().__init__(heads=heads, rows=shape["tokens"], **shape)
        code = position_code(math.isqrt(self.tokens), self.d)
        self.place(code, resized(code, self.grid))

    def load_official(self, state: dict[str, Tensor]) -> None:
        """Read LLaVA-Mini's compressor: `query`, `attn.*`, `ln_q`, `ln_kv`."""
        self.load(Official(state, "LLaVAMini"), query_norm="ln_q", value_norm="ln_kv")


class Perceiver(Resampler):
    """V learned queries over mapped patches -> (b, V, d): content-keyed, the control for MQT.

    One cross-attention, `Q = LN(q) + p`, `K = LN(Wx) + p`, `U = LN(Wx)`, and a linear map after, as in
    Qwen-VL.
    """

    def __init__(self, *, heads: int = 8, **shape):
        super().__init__(heads=heads, rows=shape["tokens"], **shape)
        self.read = nn.Linear(self.d, self.d)
        self.project = nn.Linear(self.d, self.d)
        side = math.ceil(self.tokens**0.5)
        self.place(position_code(side, self.d)[: self.tokens], position_code(self.grid, self.d))

    def reads(self, features: Features) -> tuple[Tensor, Tensor, Tensor]:
        return super().reads(Features(self.read(features.last)))

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        return self.project(super().compress(features))
