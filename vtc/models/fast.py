"""Lean inference over the weights of a transformers Qwen2 or LLaMA: what `vtc.benchmark` clocks.

Everything that a request doesn't change is done once, when the runner is built: q, k and v in one matrix,
rotary tables, a static KV cache, and on a CPU the weights in the layout that its matrix kernels want (oneDNN,
through the operators that torch.compile uses; otherwise every call re-orders them), with the scales of the
norms folded in. The residual and the gate ride on the products there. Only the last position gets logits.
On a GPU decode never waits for the host: position and token live on the device and one step is a CUDA graph.

Requests of one batch have equal lengths, as in a benchmark; outputs equal transformers' up to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc import InputError

ROWS = 32  # rows of an AMX tile pair: CPU products are quickest when a prompt is a multiple of it


def _has_packing(dtype: torch.dtype) -> bool:
    """Whether this torch and this CPU offer the pre-packed products (the operators torch.compile uses)."""
    ops = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and hasattr(ops, "_reorder_linear_weight")):
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and ops._is_mkldnn_bf16_supported())


class Product:
    """x (..., d_in) -> x W^T + b (..., d_out), with W in the layout the device likes.

    `scale` (d_in): of the norm before; folded into W on a CPU, where W is copied anyway.
    """

    def __init__(self, linears: list[nn.Linear], scale: Tensor | None = None):
        weight = torch.cat([p.weight for p in linears]) if len(linears) > 1 else linears[0].weight
        self.bias = None if linears[0].bias is None else torch.cat([p.bias for p in linears])
        if scale is not None and folds(weight):
            weight = (weight.float() * scale.float()).to(weight.dtype)
        self.packed = weight.device.type == "cpu" and _has_packing(weight.dtype)
        self.weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight, None) if self.packed else weight.detach()
        )

    def __call__(self, x: Tensor) -> Tensor:
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


class Layer:
    """One decoder layer: its products and its norms."""

    def __init__(self, block: nn.Module):
        attention, mlp = block.self_attn, block.mlp
        self.norm1, self.norm2 = block.input_layernorm.weight, block.post_attention_layernorm.weight
        self.qkv = Product([attention.q_proj, attention.k_proj, attention.v_proj], self.norm1)
        self.out = Product([attention.o_proj])
        self.gate, self.up = Product([mlp.gate_proj], self.norm2), Product([mlp.up_proj], self.norm2)
        self.down = Product([mlp.down_proj])


def norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """RMS norm over the last axis, in float32; without its scale where the next product holds that."""
    if not folds(x):
        return F.rms_norm(x, x.shape[-1:], scale, eps)
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
    return (x.float() * square.div_(x.shape[-1]).add_(eps).rsqrt_()).to(x.dtype)


def in_blocks(q: Tensor) -> bool:
    """Whether `attend_in_blocks` beats the fused kernel: bf16 on a CPU without AMX, which that one is for."""
    return q.device.type == "cpu" and q.dtype is torch.bfloat16 and not torch.cpu._is_amx_tile_supported()


def attend(q: Tensor, keys: Tensor, values: Tensor, causal: bool, mask: Tensor | None = None) -> Tensor:
    """Queries (b, h, t, e), keys and values (b, kv heads, n, e) -> (b, h, t, e), the quickest way here.

    causal: the queries stand at the last t of n places, of which `mask` tells the same where t < n. One query
    in bf16 on a CPU is answered in float32: of 626 keys in 24 layers the conversion and the attention take
    4.5 ms on two EPYC cores, the fused bf16 kernel by itself 12.
    """
    kind, groups = q.dtype, q.shape[1] // keys.shape[1]
    if q.shape[2] > 1 and in_blocks(q):
        if groups > 1:
            keys, values = (x.repeat_interleave(groups, 1) for x in (keys, values))
        return attend_in_blocks(q, keys, values, causal)
    if q.shape[2] == 1 and q.device.type == "cpu":
        q, keys, values = q.float(), keys.float(), values.float()
    how = {"is_causal": causal and mask is None, "enable_gqa": groups > 1}
    return F.scaled_dot_product_attention(q, keys, values, mask, **how).to(kind)


def attend_in_blocks(q: Tensor, keys: Tensor, values: Tensor, causal: bool = True, rows: int = 128) -> Tensor:
    """Attention, some queries at a time, so that their weights stay in the cache.

    (b, h, t, e), keys and values (b, h, n, e) -> (b, h, t, e). causal: the queries stand at the last t of n
    places, and see no key after their own. At 640 tokens it takes .38 of the fused kernel's time on an EPYC
    core (16 heads of 64), at 64 tokens .57.
    """
    t, past = q.shape[2], keys.shape[2] - q.shape[2]
    later = torch.full((rows, rows), -torch.inf, dtype=q.dtype).triu(1)
    seen = torch.empty_like(q, memory_format=torch.contiguous_format)
    out, q, keys, values = (x.flatten(0, 1) for x in (seen, q * q.shape[-1] ** -0.5, keys, values))
    for start in range(0, t, rows):
        end = min(start + rows, t)
        last = past + end if causal else keys.shape[1]
        weights = torch.bmm(q[:, start:end], keys[:, :last].transpose(1, 2))  # (b h, rows, last)
        if causal:
            weights[:, :, past + start :].add_(later[: end - start, : end - start])
        out[:, start:end] = torch.bmm(weights.softmax(-1), values[:, :last])
    return seen


class PackedLinear(nn.Module):
    """A linear layer by `Product`."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.product = Product([linear])

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)


class SelfAttention(nn.Module):
    """torch's MultiheadAttention as a vision tower calls it: q, k and v of one input (b, n, d), no mask."""

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        inner = nn.Linear(attention.embed_dim, 3 * attention.embed_dim, device="meta")
        inner.weight, inner.bias = attention.in_proj_weight, attention.in_proj_bias
        self.heads, self.qkv, self.out = attention.num_heads, Product([inner]), Product([attention.out_proj])

    def forward(self, x: Tensor, *_: Tensor, **__: object) -> tuple[Tensor, None]:
        b, n, d = x.shape
        parts = self.qkv(x).view(b, n, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4).contiguous()  # (b, h, n, e) each
        seen = attend(q, k, v, causal=False)
        return self.out(seen.transpose(1, 2).reshape(b, n, d)), None


def quicken(tower: nn.Module) -> nn.Module:
    """A vision tower (`vtc.models.tower`) for inference on a CPU: the same features, its products packed.

    In place; afterwards it is neither trained nor saved. On a GPU it stays as it is.
    """
    for block in tower.visual.transformer.resblocks:
        if block.attn.in_proj_weight.device.type == "cpu":
            block.attn = SelfAttention(block.attn)
            block.mlp.c_fc, block.mlp.c_proj = PackedLinear(block.mlp.c_fc), PackedLinear(block.mlp.c_proj)
    return tower


class Runner:
    """Prefill and decode of one LLM with a static cache of `tokens` positions for `batch` requests.

    `model`: transformers' Qwen2ForCausalLM or LlamaForCausalLM; its weights are read, and on a CPU a packed
    copy is made (`release`: the model's layers are emptied on the way, so that memory holds them once).
    `graph`: decode as a CUDA graph (default: on a GPU).
    """

    @torch.no_grad()
    def __init__(
        self, model: nn.Module, tokens: int, batch: int = 1, graph: bool | None = None, release: bool = False
    ):
        config, body = model.config, model.model
        self.embedding, self.norm, self.eps = body.embed_tokens.weight, body.norm.weight, config.rms_norm_eps
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.hidden_size // self.heads
        self.head = Product([model.lm_head], self.norm)
        self.layers = []
        for block in body.layers:
            self.layers.append(Layer(block))
            if release:
                block.to("meta")
        self.device, self.dtype = self.embedding.device, self.embedding.dtype
        self.graph = self.device.type == "cuda" if graph is None else graph
        room = tokens + ROWS  # a padded prompt writes a few places past its end
        ids = torch.arange(room, device=self.device)
        cos, sin = body.rotary_emb(self.embedding[:1, None], ids[None])
        half = self.head_dim // 2  # both halves of the table are the same
        self.cos, self.sin = cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous()
        shape = (len(self.layers), 2, batch, self.kv_heads, room, self.head_dim)
        self.cache = torch.zeros(shape, device=self.device, dtype=self.dtype)
        self.tokens, self.batch, self.places = tokens, batch, ids
        self.at = torch.zeros(1, dtype=torch.long, device=self.device)  # position of the token to come
        self.ids = torch.zeros(batch, 1, dtype=torch.long, device=self.device)
        self._captured = None

    @property
    def kv_bytes(self) -> int:
        """Bytes of the static cache."""
        return self.cache.numel() * self.cache.element_size()

    def _rotate(self, x: Tensor, at) -> Tensor:
        """Rotary positions: x (b, t, h, e), its two halves turned against each other."""
        half, cos, sin = self.head_dim // 2, self.cos[at], self.sin[at]
        a, b, turned = x[..., :half], x[..., half:], x.new_empty(x.shape)
        torch.mul(a, cos, out=turned[..., :half]).addcmul_(b, sin, value=-1)
        torch.mul(b, cos, out=turned[..., half:]).addcmul_(a, sin)
        return turned

    def _remember(self, cache: Tensor, k: Tensor, v: Tensor, at) -> Tensor:
        """Writes k and v (b, h, t, e) into a layer's cache; returns the part of it that attention reads."""
        b = len(k)
        if isinstance(at, slice):
            cache[0, :b, :, at], cache[1, :b, :, at] = k, v
            return cache[:, :b, :, : at.stop]
        cache[0, :b].index_copy_(2, at, k)  # a position on the device: a graph sees the whole cache, masked
        cache[1, :b].index_copy_(2, at, v)
        return cache[:, :b]

    def _block(self, x: Tensor, layer: Layer, cache: Tensor, at, mask: Tensor | None) -> Tensor:
        """One layer over x (b, t, d); `at` (a slice, or an index on the device): where its tokens stand."""
        b, t, d = x.shape
        qkv = layer.qkv(norm(x, layer.norm1, self.eps)).view(b, t, -1, self.head_dim)
        turned = self._rotate(qkv[:, :, : self.heads + self.kv_heads], at).transpose(1, 2)  # b h t e
        q, k = turned.split((self.heads, self.kv_heads), dim=1)
        v = qkv[:, :, self.heads + self.kv_heads :].transpose(1, 2)
        keys, values = self._remember(cache, k, v, at)
        seen = attend(q, keys, values, causal=t > 1, mask=mask)
        x = layer.out.plus(seen.transpose(1, 2).reshape(b, t, d), x)
        y = norm(x, layer.norm2, self.eps)
        return layer.down.plus(layer.up.times(y, layer.gate.swish(y)), x)

    def _check(self, b: int, tokens: int) -> None:
        if tokens > self.tokens or b > self.batch:
            raise InputError(f"{b} x {tokens} tokens: this runner was built for {self.batch} x {self.tokens}")

    @torch.no_grad()
    def prefill(self, embedded: Tensor, past: int = 0) -> Tensor:
        """embedded (b, t, d), after `past` tokens already in the cache -> last hidden state (b, d), normed
        (on a CPU without the norm's scale, which the head holds)."""
        b, t, _ = embedded.shape
        self._check(b, past + t)
        if (
            self.device.type == "cpu" and b == 1 and t > ROWS
        ):  # positions after the last change nothing before it
            embedded = F.pad(embedded, (0, 0, 0, -t % ROWS))
        width = embedded.shape[1]
        at, mask = slice(past, past + width), None
        if past:
            mask = self.places[: past + width] <= self.places[past : past + width, None]
        x = embedded
        for layer, cache in zip(self.layers, self.cache):
            x = self._block(x, layer, cache, at, mask)
        self.at.fill_(past + t)
        return norm(x[:, t - 1], self.norm, self.eps)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (b, d) -> (b, vocabulary)."""
        return self.head(hidden)

    @torch.no_grad()
    def first(self, hidden: Tensor) -> Tensor:
        """hidden (b, d) -> the likeliest token (b, 1)."""
        self.ids[: len(hidden)] = self.head(hidden).argmax(-1, keepdim=True)
        return self.ids[: len(hidden)]

    def _step(self, b: int, at, mask: Tensor | None) -> None:
        x = F.embedding(self.ids[:b], self.embedding)
        for layer, cache in zip(self.layers, self.cache):
            x = self._block(x, layer, cache, at, mask)
        self.ids[:b] = self.head(norm(x[:, -1], self.norm, self.eps)).argmax(-1, keepdim=True)

    def _device_step(self, b: int) -> None:
        """A step that reads its position from the device, so that a graph can hold it."""
        self._step(b, self.at, (self.places <= self.at)[None, None, None])
        self.at += 1

    def _graph_step(self, b: int) -> None:
        if self.device.type != "cuda":  # the same step, one by one
            self._device_step(b)
            return
        if self._captured is None or self._captured[0] != b:
            kept = self.ids.clone(), self.at.clone()
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # libraries set themselves up outside the graph
                self._device_step(b)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._device_step(b)
            self.ids.copy_(
                kept[0]
            )  # the trial run is undone; the place it wrote in the cache is written again
            self.at.copy_(kept[1])
            self._captured = b, graph
        self._captured[1].replay()

    @torch.no_grad()
    def decode(self, steps: int, past: int, batch: int = 1) -> Tensor:
        """`steps` more tokens after the one in `ids`, `past` tokens being in the cache -> (b, steps)."""
        self._check(batch, past + steps)
        tokens = torch.empty(batch, steps, dtype=torch.long, device=self.device)
        for i in range(steps):
            if self.graph:
                self._graph_step(batch)
            else:
                self._step(batch, slice(past + i, past + i + 1), None)
            tokens[:, i] = self.ids[:batch, 0]
        return tokens

    @torch.no_grad()
    def generate(self, embedded: Tensor, G: int) -> Tensor:
        """embedded (b, t, d) -> G greedy tokens (b, G)."""
        b, t, _ = embedded.shape
        first = self.first(self.prefill(embedded)).clone()
        return torch.cat([first, self.decode(G - 1, t, b)], dim=1)
