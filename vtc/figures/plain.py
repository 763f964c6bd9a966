"""TokenPacker and QueCC written out, to be read: the weights and outputs of the package, more operations.

`one` is a compressor of `vtc.compressors`; a test holds these equal to calling it. What the package does
otherwise is explained in `vtc.compressors.windowed`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vtc.compressors.base import Features, windows
from vtc.compressors.quecc import QueCC
from vtc.compressors.tokenpacker import TokenPacker, middle
from vtc.compressors.windowed import WindowAttention


def tokenpacker(one: TokenPacker, features: Features) -> Tensor:
    """Features of s patches -> V tokens (b, V, d_llm)."""
    coarse = middle(features.last, one.n)  # (b, V, d): each window's middle
    query = one.query_norm(one.query(coarse))  # (b, V, d)
    mixed = attention(one.attend, query, features.levels)  # (b, V, d): detail of the window comes back
    return one.project(mixed)  # (b, V, d_llm)


def quecc(one: QueCC, features: Features, question: Tensor) -> Tensor:
    """Features of s patches and a question (b, d_llm) -> V tokens (b, V, d)."""
    asked = one.text_norm(one.text(question)).unsqueeze(1)  # (b, 1, d)
    steered = features.last + asked  # (b, s, d): every patch is moved by what is asked
    every = one.query_norm(one.query_out(F.gelu(one.query_in(steered))))  # (b, s, d)
    inside = windows(every, one.n)  # (b, V, k k, d)
    kernel = one.conv_weight.flatten(0, 1)  # (k k, d): a weight for each patch of a window and channel
    query = (inside * kernel).sum(2)  # (b, V, d): the learned convolution, kernel = stride = k
    query = query + one.conv_bias
    return attention(one.attend, query, features.levels)


def attention(one: WindowAttention, query: Tensor, levels: Tensor) -> Tensor:
    """Queries (b, V, d), a window each, and levels (b, s, d_levels) -> what they read of it, (b, V, d)."""
    n, d = round(query.shape[1] ** 0.5), query.shape[2:]
    hidden = F.gelu(one.kv_in(levels)).chunk(2, -1)  # (b, s, d) for keys and for values
    key, value = (h @ w + b for h, w, b in zip(hidden, one.kv_weight, one.kv_bias))
    key = F.linear(F.layer_norm(key, d, one.key_scale, eps=one.eps), one.k_weight)
    value = one.v(F.layer_norm(value, d, one.value_scale, one.value_shift, one.eps))
    parts = one.q(query).unsqueeze(2), windows(key, n), windows(value, n)  # (b, V, 1 or k k, d)
    heads = (x.unflatten(-1, (one.heads, -1)).transpose(2, 3) for x in parts)  # (b, V, heads, 1 or k k, c)
    mixed = F.scaled_dot_product_attention(*heads)  # (b, V, heads, 1, c): softmax(q k / sqrt(c)) v
    return one.out(mixed.flatten(2))
