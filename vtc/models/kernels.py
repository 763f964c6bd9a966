"""Lean pieces of inference, the quickest way on the device at hand; outputs equal torch's up to rounding.

On a CPU weights are put once in the layout that its matrix kernels want (oneDNN, through the operators that
torch.compile uses; otherwise every call re-orders them), with the scales of the norms folded in; the residual
and the gate ride on the products. On a GPU all of this is torch's own.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def has_packing(dtype: torch.dtype) -> bool:
    """Whether this torch and this CPU offer the pre-packed products (the operators torch.compile uses)."""
    ops = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and hasattr(ops, "_reorder_linear_weight")):
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and ops._is_mkldnn_bf16_supported())


class Product(nn.Module):
    """x (..., d_in) -> x W^T + b (..., d_out), with W in the layout the device likes.

    `scale` (d_in): of the norm before; folded into W on a CPU, where W is copied anyway. `dtype`: what to
    multiply in, the weights' own where not given.
    """

    def __init__(
        self, linears: list[nn.Linear], scale: Tensor | None = None, dtype: torch.dtype | None = None
    ):
        super().__init__()
        weights, bias = [p.weight.detach() for p in linears], linears[0].bias
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        dtype = dtype or weight.dtype
        self.bias = None if bias is None else torch.cat([p.bias.detach() for p in linears]).to(dtype)
        if scale is not None and folds(weight):
            weight = weight.float() * scale.detach().float()
        weight = weight.to(dtype)
        self.packed = weight.device.type == "cpu" and has_packing(dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:  # not forward: a module's own call costs decode 4 % at small d
        if not self.packed:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def swish(self, x: Tensor) -> Tensor:
        """silu(x W^T + b)."""
        if not self.packed:
            return F.silu(F.linear(x, self.weight, self.bias))
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "swish", [], "")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """(x W^T + b) * other."""
        if not self.packed:
            return F.linear(x, self.weight, self.bias).mul_(other)
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "mul")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """x W^T + b + other."""
        if not self.packed:
            return F.linear(x, self.weight, self.bias).add_(other)
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "add")


def folds(weight: Tensor) -> bool:
    """Whether norm scales go into the matrices: on a CPU; a GPU has one kernel for the norm and less room."""
    return weight.device.type == "cpu"


def norm(x: Tensor, scale: Tensor, eps: float, folded: bool = True) -> Tensor:
    """RMS norm over the last axis, in float32; on a CPU without its scale where the next product holds it."""
    if not folds(x):
        return F.rms_norm(x, x.shape[-1:], scale.to(x.dtype), eps)
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
    wide = x.float() * square.div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide if folded else wide * scale).to(x.dtype)


def in_blocks(q: Tensor) -> bool:
    """Whether `attend_in_blocks` beats the fused kernel: bf16 on a CPU without AMX, which that one is for."""
    return q.device.type == "cpu" and q.dtype is torch.bfloat16 and not torch.cpu._is_amx_tile_supported()


def attend(q: Tensor, keys: Tensor, values: Tensor, causal: bool = True, mask: Tensor | None = None):
    """Queries (b, h, t, e), keys and values (b, kv heads, n, e) -> (b, h, t, e), the quickest way here.

    mask (b, 1, t, n): added to the weights; without one and causal, the queries stand at the last t of n
    places and see no key after their own. One query in bf16 on a CPU is answered in float32: of 626 keys in
    24 layers the conversion and the attention take 4.5 ms on two EPYC cores, the fused bf16 kernel by itself
    12.
    """
    kind, (t, n), groups = q.dtype, (q.shape[2], keys.shape[2]), q.shape[1] // keys.shape[1]
    if t > 1 and in_blocks(q):
        if groups > 1:
            keys, values = (x.repeat_interleave(groups, 1) for x in (keys, values))
        return attend_in_blocks(q, keys, values, causal, mask)
    if t == 1 and q.device.type == "cpu":
        q, keys, values = q.float(), keys.float(), values.float()
        mask = None if mask is None else mask.float()
    if mask is None and causal and 1 < t < n:  # torch's own flag aligns the first query with the first key
        mask = torch.ones(t, n, dtype=torch.bool, device=q.device).tril(n - t)
    how = {"is_causal": causal and mask is None and t > 1, "enable_gqa": groups > 1}
    return F.scaled_dot_product_attention(q, keys, values, mask, **how).to(kind)


def attend_in_blocks(
    q: Tensor, keys: Tensor, values: Tensor, causal: bool = True, mask: Tensor | None = None, rows: int = 128
) -> Tensor:
    """Attention, some queries at a time, so that their weights stay in the cache; see `attend`.

    (b, h, t, e), keys and values (b, h, n, e), mask (b, 1, t, n) -> (b, h, t, e). At 640 tokens it takes .38
    of the fused kernel's time on an EPYC core (16 heads of 64), at 64 tokens .57.
    """
    (b, h, t, _), n = q.shape, keys.shape[2]
    past, causal, rows = n - t, causal and mask is None, min(rows, t)
    later = torch.full((rows, rows), -torch.inf, dtype=q.dtype).triu_(1) if causal else None
    seen = torch.empty_like(q, memory_format=torch.contiguous_format)
    out, q, keys, values = (x.flatten(0, 1) for x in (seen, q * q.shape[-1] ** -0.5, keys, values))
    for start in range(0, t, rows):
        end = min(start + rows, t)
        last = past + end if causal else n
        weights = torch.bmm(q[:, start:end], keys[:, :last].transpose(1, 2))  # (b h, rows, last)
        if causal:
            weights[:, :, past + start :].add_(later[: end - start, : end - start])
        elif mask is not None:
            weights.view(b, h, end - start, n).add_(mask[:, :, start:end])
        out[:, start:end] = torch.bmm(weights.softmax(-1), values[:, :last])
    return seen


class SelfAttention(nn.Module):
    """torch's MultiheadAttention as a vision tower calls it: q, k and v of one input (b, n, d), no mask."""

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        inner = nn.Linear(attention.embed_dim, 3 * attention.embed_dim, device="meta")
        inner.weight, inner.bias = attention.in_proj_weight, attention.in_proj_bias
        self.num_heads = attention.num_heads
        self.qkv, self.out = Product([inner]), Product([attention.out_proj])
        self.in_proj_weight, self.in_proj_bias = inner.weight, inner.bias  # what selectors read

    def forward(self, x: Tensor, *_: Tensor, **__: object) -> tuple[Tensor, None]:
        b, n, d = x.shape
        parts = self.qkv(x).view(b, n, 3, self.num_heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4).contiguous()  # (b, h, n, e) each
        seen = attend(q, k, v, causal=False)
        return self.out(seen.transpose(1, 2).reshape(b, n, d)), None


def quicken(tower: nn.Module) -> nn.Module:
    """A vision tower (`vtc.models.tower`) for inference on a CPU: the same features, its products packed.

    The given one stays as it is; the twin shares all but the packed weights.
    """
    shared = {id(tensor): tensor for tensor in (*tower.parameters(), *tower.buffers())}
    twin = copy.deepcopy(tower, shared)  # modules are copied, what is in `shared` is not
    for block in twin.visual.transformer.resblocks:
        block.attn, mlp = SelfAttention(block.attn), block.mlp
        mlp.c_fc, mlp.c_proj = Product([mlp.c_fc]), Product([mlp.c_proj])
    return twin
