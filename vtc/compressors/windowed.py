"""Attention of a window's token to the window's own patches, shared by QueCC and TokenPacker.

Published (arXiv 2411.03312, section 4.2; 2407.02392, section 3.2), for head h and the patches j of a window:

    a_j = softmax_j(q_h . (K_h z_j)),    o_h = sum_j a_j (U_h z'_j),    z = LN(MLP_k(l)), z' = LN(MLP_u(l))

Here the maps K and U act on the side of the query, of which a window has one, in place of its k * k patches:

    q_h . (K_h z_j) = (K_h^T q_h) . z_j,    sum_j a_j (U_h z'_j) = U_h (sum_j a_j z'_j)

so that 2 d^2 operations for each patch become a few d. The norms' scales and shifts move the same way, and a
bias of the keys, the same for all j, leaves the softmax. Same outputs, fewer operations.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.compressors.base import Official, check_heads, unwindows, windows

FOLD = 512  # width from which folding the second map pays


class KeysValues(NamedTuple):
    """Patches as `WindowAttention` reads them, and the maps that lead on from there."""

    z: Tensor  # (2, b, s, width) keys and values before the norms' division
    inverse: Tensor  # (2, b, s) 1 / sigma
    maps: tuple[Tensor, ...] | None = None  # where z is the second map's input: `folded`, but for R


class WindowAttention(nn.Module):
    """Keys and values of the patches (b, s, d_levels), queries (b, m, v, width) -> (b, m, v, width).

    `m` sets of queries (questions) share the keys and values. Two biases of the releases, of the key norm
    and the key in-projection, are not kept: they cannot change the output.
    """

    eps = 1e-6

    def __init__(self, d_levels: int, width: int, heads: int = 8, std: float | None = None):
        super().__init__()
        check_heads(heads, width)
        self.heads, self._folded = heads, None
        self.kv_in = nn.Linear(d_levels, 2 * width)
        second = nn.Linear(2 * width, width)  # drawn as two linear maps (out, in) below
        maps = second.weight.detach().view(width, 2, width).permute(1, 2, 0)  # (key or value, in, out)
        self.kv_weight = nn.Parameter(maps.contiguous() * 2**0.5)
        self.kv_bias = nn.Parameter(torch.zeros(2, 1, width).uniform_(-(width**-0.5), width**-0.5))
        self.key_scale, self.value_scale = (nn.Parameter(torch.ones(width)) for _ in range(2))
        self.value_shift = nn.Parameter(torch.zeros(width))
        packed = nn.init.xavier_uniform_(torch.empty(3 * width, width))
        self.q, self.v, self.out = (nn.Linear(width, width) for _ in range(3))
        self.k_weight = nn.Parameter(packed[width : 2 * width].clone())
        with torch.no_grad():
            self.q.weight.copy_(packed[:width])
            self.v.weight.copy_(packed[2 * width :])
            for bias in (self.q.bias, self.v.bias, self.out.bias):
                bias.zero_()
            if std:  # TokenPacker's start
                for weight in (self.kv_in.weight, self.kv_weight, self.out.weight):
                    nn.init.trunc_normal_(weight, std=std)
                self.kv_in.bias.zero_()
                self.kv_bias.zero_()

    def keys_values(self, levels: Tensor) -> KeysValues:
        """(b, s, d_levels) -> keys and values of the patches; no question is in them.

        The second map is centred over its outputs, so their mean is 0 and the norm is one division, made on
        the scores and the weights in place of the patches. Where `folds`, its inputs are given in place of
        its outputs, whose norm is all that is needed of them.
        """
        b, s, _ = levels.shape
        width = self.q.in_features
        hidden = F.gelu(self.kv_in(levels)).view(b * s, 2, width).transpose(0, 1)  # (2, b s, width)
        if self.folds(levels):
            r, *maps = self.folded()
            sums = sum(y.square_().sum(-1) for y in triangular(hidden, r))
            inverse = (sums / width + self.eps).rsqrt_()
            return KeysValues(hidden.view(2, b, s, width), inverse.view(2, b, s), tuple(maps))
        weight, bias = self.centred()
        z = torch.baddbmm(bias.to(hidden.dtype), hidden, weight.to(hidden.dtype))
        return KeysValues(z.view(2, b, s, width), inverse_sigma(z, self.eps).view(2, b, s))

    def centred(self) -> tuple[Tensor, Tensor]:
        """The second maps (2, in, out) and biases (2, 1, out) whose outputs have mean 0."""
        return tuple(part - part.mean(-1, keepdim=True) for part in (self.kv_weight, self.kv_bias))

    def folds(self, x: Tensor) -> bool:
        """Whether the second map is folded into its neighbours: wide, float32, without gradients.

        Not weights made in inference mode: nothing tells when they change.
        """
        if self.q.in_features < FOLD or x.dtype != torch.float32 or torch.is_grad_enabled():
            return False
        if self.kv_weight.is_inference():
            return False
        return not torch.is_autocast_enabled("cuda" if x.is_cuda else "cpu")

    def folded(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """R (2, width, width + 1), with |R [h; 1]| the norm of the second map's output, and the maps (with
        their constants) that take h in its place: key (width, width), (width,); value likewise. Kept until
        weights change."""
        parts = (self.kv_weight, self.kv_bias, self.key_scale, self.value_scale, self.k_weight, self.v.weight)
        state = tuple((part.data_ptr(), part._version) for part in parts)
        if self._folded is None or self._folded[0] != state:
            weight, bias = (part.double() for part in self.centred())
            r = torch.linalg.qr(torch.cat([weight, bias], 1).transpose(1, 2), mode="r").R
            to_key, to_value = self.k_weight * self.key_scale, self.v.weight * self.value_scale
            maps = [to_key.double() @ weight[0].T, to_key.double() @ bias[0, 0]]
            maps += [to_value.double() @ weight[1].T, to_value.double() @ bias[1, 0]]
            self._folded = state, tuple(part.float() for part in (r, *maps))
        return self._folded[1]

    def forward(self, queries: Tensor, kv: KeysValues) -> Tensor:
        """queries (b, m, v, width), kv from `keys_values` -> (b, m, v, width)."""
        b, m, v, width = queries.shape
        z, inverse = self.windows(kv, v)
        weights = self.weights(queries, z[0], inverse[0], kv.maps) * inverse[1]  # (b v, m heads, k k)
        mixed = (weights.to(z.dtype) @ z[1]).view(b, v, m, self.heads, width)
        if kv.maps:
            values, constant = kv.maps[2:]
            total = weights.sum(-1).view(b, v, m, self.heads, 1).transpose(1, 2)
            shift = F.linear(self.value_shift, self.v.weight).view(self.heads, -1)
            constant = total * constant.view(self.heads, -1) + shift
        else:
            mixed = mixed * self.value_scale + self.value_shift  # (b, v, m, heads, width)
            values, constant = self.v.weight, 0
        values = values.view(self.heads, -1, width).to(mixed.dtype)
        heads = torch.einsum("bvmhw,hcw->bmvhc", mixed, values) + constant
        return self.out(heads.reshape(b, m, v, width) + self.v.bias)

    def windows(self, kv: KeysValues, v: int) -> tuple[Tensor, Tensor]:
        """By window: (2, b v, k k, width) and (2, b v, 1, k k)."""
        n = math.isqrt(v)
        inverse = windows(kv.inverse.unsqueeze(-1), n).flatten(1, 2)
        return windows(kv.z, n).flatten(1, 2), inverse.transpose(2, 3)

    def alone(self, levels: Tensor) -> Tensor:
        """One patch a window (V = s): its weight is 1 whatever is asked, so no query or key is needed."""
        width = self.q.in_features
        hidden = F.gelu(F.linear(levels, self.kv_in.weight[width:], self.kv_in.bias[width:]))
        z = F.layer_norm(hidden @ self.kv_weight[1] + self.kv_bias[1], (width,), eps=self.eps)
        return self.out(self.v(z * self.value_scale + self.value_shift))  # (b, s, width)

    def weights(self, queries: Tensor, z: Tensor, inverse: Tensor, maps: tuple | None) -> Tensor:
        """queries (b, m, v, width), keys (b v, k k, width) -> attention (b v, m heads, k k), row sums 1."""
        b, m, v, width = queries.shape
        c = width // self.heads
        q = (self.q(queries) * c**-0.5).view(b, m, v, self.heads, c)
        keys, constant = maps[:2] if maps else (self.k_weight * self.key_scale, None)
        moved = torch.einsum("bmvhc,hcw->bvmhw", q, keys.view(self.heads, c, width).to(q.dtype))
        scores = moved.reshape(b * v, m * self.heads, width).to(z.dtype) @ z.transpose(1, 2)
        if constant is not None:
            each = (q * constant.view(self.heads, c)).sum(-1)  # (b, m, v, heads)
            scores = scores + each.transpose(1, 2).reshape(b * v, m * self.heads, 1)
        return torch.softmax(scores * inverse, -1)

    def attention_map(self, queries: Tensor, kv: KeysValues) -> Tensor:
        """Mean over heads of the attention, spread over the grid: (b, v, s); for one set of queries."""
        b, _, v, _ = queries.shape
        z, inverse = self.windows(kv, v)
        weights = self.weights(queries, z[0], inverse[0], kv.maps)
        return unwindows(weights.mean(1).view(b, v, -1), math.isqrt(v))

    def official(self, given: Official, key: str, key_norm: str, value: str, value_norm: str) -> dict:
        """Tensors of a release by own names: `key`, `value` prefix MLPs, `clip_attn` the attention."""
        q, k, v = given["clip_attn.in_proj_weight"].chunk(3)
        q_bias, _, v_bias = given["clip_attn.in_proj_bias"].chunk(3)
        maps = [given.under(f"{prefix}.") for prefix in (key, value)]
        return {
            "kv_in.weight": torch.cat([part["0.weight"] for part in maps]),
            "kv_in.bias": torch.cat([part["0.bias"] for part in maps]),
            "kv_weight": torch.stack([part["2.weight"].T for part in maps]),
            "kv_bias": torch.stack([part["2.bias"] for part in maps]).unsqueeze(1),
            "key_scale": given[f"{key_norm}.weight"],
            "value_scale": given[f"{value_norm}.weight"],
            "value_shift": given[f"{value_norm}.bias"],
            "q.weight": q,
            "q.bias": q_bias,
            "k_weight": k,
            "v.weight": v,
            "v.bias": v_bias,
            "out.weight": given["clip_attn.out_proj.weight"],
            "out.bias": given["clip_attn.out_proj.bias"],
        }


def inverse_sigma(z: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(z^2) + eps), last axis: all of a layer norm where the mean is 0 by construction."""
    norm = torch.linalg.vector_norm(z, dim=-1).float()
    return (norm.square() / z.shape[-1] + eps).rsqrt()


def triangular(x: Tensor, r: Tensor, blocks: int = 4):
    """R [x; 1] for x (2, n, d), R (2, d, d + 1) upper triangular, in blocks of rows with zeros left out."""
    d = x.shape[-1]
    for start in range(0, d, d // blocks):
        rows = r[:, start : start + d // blocks]
        yield torch.baddbmm(rows[:, None, :, d], x[..., start:], rows[..., start:d].transpose(1, 2))
