"""The LLM's pass in training, on a CPU: what transformers computes, in fewer and larger operations.

Its layers have one product for queries, keys and values, rotary tables that are made once, and gradients that
are written out. The last layer has no queries but the text's, and computes the rest of itself for the tokens
that are read alone: those before an answer's, a third of a batch. By transformers' forward a text step takes
1.1 (d = 16) to 1.2 times (d = 32) as long.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vtc.models.prompt import Layout


def hidden(llm: nn.Module, x: Tensor, layout: Layout, t: int, read: Tensor) -> Tensor:
    """Embeddings (b, n, d), the last t of a row its text -> the LLM's last hidden states at `read`, (r, d).

    llm: one whose weights `plain_weights` finds, with a key and a value for every head. read: (r,) tokens by
    their place in the flattened text (b, t).
    """
    (b, n, _), kind, body, p = x.shape, x.dtype, llm.base_model, x.shape[1] - t
    cos, sin = _turns(body, layout.position_ids, x)
    mask, x = layout.mask(kind), x.flatten(0, 1)  # (b, 1, n, n), (b n, d)
    with torch.autocast(x.device.type, enabled=False):  # all is in x's precision
        for layer in body.layers:
            attention, mlp, last = layer.self_attn, layer.mlp, layer is body.layers[-1]
            whole = [attention.q_proj, attention.k_proj, attention.v_proj]
            weight = torch.cat([part.weight for part in whole]).to(kind)
            bias = None if whole[0].bias is None else torch.cat([part.bias for part in whole]).to(kind)
            qkv = F.linear(layer.input_layernorm(x), weight, bias).view(b, n, 3, -1, cos.shape[-1])
            turned = _Turn.apply(qkv[:, :, :2], cos, sin)  # (b, n, 2, h, e)
            q, k, v = (part.transpose(1, 2) for part in (*turned.unbind(2), qkv[:, :, 2]))  # (b, h, n, e)
            if last:
                q, mask = q[:, :, p:], mask[:, :, p:]
            weights = (q @ k.mT).add_(mask).softmax(-1)  # (b, h, n, n); of the last layer (b, h, t, n)
            seen = (weights @ v).transpose(1, 2).flatten(0, 1).flatten(1)
            if last:
                seen, x = seen[read], x[read // t * n + p + read % t]
            x = x + F.linear(seen, attention.o_proj.weight.to(kind))
            parts = (part.weight.to(kind) for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
            x = x + _SwiGLU.apply(layer.post_attention_layernorm(x), *parts)
        return body.norm(x)


def _turns(body: nn.Module, position_ids: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (b, n) -> factors (b, n, 2, 1, d_head) of `_Turn`; those of the queries scale them too."""
    cos, sin = body.rotary_emb(x, position_ids)  # (b, n, d_head), both halves alike
    half = cos.shape[-1] // 2
    sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)
    scale = cos.new_tensor([body.layers[0].self_attn.scaling, 1])[:, None, None]
    return tuple(table[:, :, None, None] * scale for table in (cos, sin))


class _Turn(torch.autograd.Function):
    """Rotary positions: x (b, n, 2, h, d_head) -> x cos + swap(x) sin, swap changing the halves of x."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return (x * cos).addcmul_(x.roll(x.shape[-1] // 2, -1), sin)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return (grad * sin).roll(grad.shape[-1] // 2, -1).addcmul_(grad, cos), None, None


class _SwiGLU(torch.autograd.Function):
    """The MLP: x (n, d) -> (silu(x W_gate') * x W_up') W_down', weights as `nn.Linear` keeps them."""

    @staticmethod
    def forward(ctx, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        opened, wide = x @ gate.mT, x @ up.mT  # (n, d_ff)
        swish = F.silu(opened)
        inner = swish * wide
        ctx.save_for_backward(x, gate, up, down, opened, wide, swish, inner)
        return inner @ down.mT

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, down, opened, wide, swish, inner = ctx.saved_tensors
        to_inner = grad @ down
        to_up = to_inner * swish
        to_gate = torch.ops.aten.silu_backward(to_inner.mul_(wide), opened)
        to_x = torch.addmm(to_up @ up, to_gate, gate)
        if not any(ctx.needs_input_grad[1:]):  # the LLM is frozen
            return to_x, None, None, None
        return to_x, to_gate.mT @ x, to_up.mT @ x, grad.mT @ inner
