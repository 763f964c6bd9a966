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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.compressors.base import Official, check_heads, unwindows, windows


class WindowAttention(nn.Module):
    """Keys and values of the patches (b, s, d_levels), queries (b, m, v, width) -> (b, m, v, width).

    `m` sets of queries (questions) share the keys and values. Two biases of the releases, of the key norm
    and the key in-projection, are not kept: they cannot change the output.
    """

    eps = 1e-6

    def __init__(self, d_levels: int, width: int, heads: int = 8, std: float | None = None):
        super().__init__()
        check_heads(heads, width)
        self.heads = heads
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

    def keys_values(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """(b, s, d_levels) -> keys and values of the patches (2, b, s, width), and 1 / sigma (2, b, s).

        No question is in them. The second map is centred over its outputs, so their mean is 0 and the norm is
        one division by sigma, made later: on the scores and the weights in place of the patches.
        """
        b, s, _ = levels.shape
        width = self.q.in_features
        hidden = F.gelu(self.kv_in(levels)).view(b * s, 2, width).transpose(0, 1)  # (2, b s, width)
        weight, bias = (part - part.mean(-1, keepdim=True) for part in (self.kv_weight, self.kv_bias))
        z = torch.baddbmm(bias.to(hidden.dtype), hidden, weight.to(hidden.dtype))
        return z.view(2, b, s, width), inverse_sigma(z, self.eps).view(2, b, s)

    def forward(self, queries: Tensor, kv: tuple[Tensor, Tensor]) -> Tensor:
        """queries (b, m, v, width), kv from `keys_values` -> (b, m, v, width)."""
        b, m, v, width = queries.shape
        z, inverse = self.windows(kv, v)
        weights = self.weights(queries, z[0], inverse[0]) * inverse[1]  # (b v, m heads, k k)
        mixed = (weights.to(z.dtype) @ z[1]).view(b, v, m, self.heads, width)
        mixed = mixed * self.value_scale + self.value_shift  # (b, v, m, heads, width)
        values = self.v.weight.view(self.heads, -1, width).to(mixed.dtype)
        heads = torch.einsum("bvmhw,hcw->bmvhc", mixed, values)
        return self.out(heads.reshape(b, m, v, width) + self.v.bias)

    def windows(self, kv: tuple[Tensor, Tensor], v: int) -> tuple[Tensor, Tensor]:
        """By window: (2, b v, k k, width) and (2, b v, 1, k k)."""
        (z, inverse), n = kv, math.isqrt(v)
        inverse = windows(inverse.unsqueeze(-1), n).flatten(1, 2)
        return windows(z, n).flatten(1, 2), inverse.transpose(2, 3)

    def alone(self, levels: Tensor) -> Tensor:
        """One patch a window (V = s): its weight is 1 whatever is asked, so no query or key is needed."""
        width = self.q.in_features
        hidden = F.gelu(F.linear(levels, self.kv_in.weight[width:], self.kv_in.bias[width:]))
        z = F.layer_norm(hidden @ self.kv_weight[1] + self.kv_bias[1], (width,), eps=self.eps)
        return self.out(self.v(z * self.value_scale + self.value_shift))  # (b, s, width)

    def weights(self, queries: Tensor, z: Tensor, inverse: Tensor) -> Tensor:
        """queries (b, m, v, width), keys (b v, k k, width) -> attention (b v, m heads, k k), row sums 1."""
        b, m, v, width = queries.shape
        c = width // self.heads
        q = (self.q(queries) * c**-0.5).view(b, m, v, self.heads, c)
        keys = (self.k_weight * self.key_scale).view(self.heads, c, width)
        moved = torch.einsum("bmvhc,hcw->bvmhw", q, keys.to(q.dtype))
        scores = moved.reshape(b * v, m * self.heads, width).to(z.dtype) @ z.transpose(1, 2)
        return torch.softmax(scores * inverse, -1)

    def attention_map(self, queries: Tensor, kv: tuple[Tensor, Tensor]) -> Tensor:
        """Mean over heads of the attention, spread over the grid: (b, v, s); for one set of queries."""
        b, _, v, _ = queries.shape
        z, inverse = self.windows(kv, v)
        weights = self.weights(queries, z[0], inverse[0])
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
