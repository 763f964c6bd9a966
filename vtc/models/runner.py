"""The quick path: prefill and decode over the weights of a transformers Qwen2 or LLaMA.

What a request does not change is done once: q, k and v in one matrix, packed weights, norms folded in. The
cache is as long as the request needs, so attention meets what is there and no more. On a GPU decode never
waits for the host: positions and tokens live on the device and a step is a CUDA graph, one for each size of
request. Outputs equal transformers' up to rounding (`tests/test_generate.py`).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc import InputError
from vtc.models.decode import Engine, columns
from vtc.models.kernels import Product, attend, norm
from vtc.models.prompt import HIDDEN

ROWS = 32  # rows of an AMX tile pair: CPU products are quickest when a prompt is a multiple of it
BUCKET = 64  # on a GPU cache lengths are multiples of this; each has its own graph
CASES = 4  # sizes of request whose cache and graph a GPU keeps (`Runner.kept`)


class Layer:
    """One decoder layer: its products and its norms."""

    def __init__(self, block: nn.Module, dtype: torch.dtype):
        attention, mlp = block.self_attn, block.mlp
        first, second = block.input_layernorm.weight.detach(), block.post_attention_layernorm.weight.detach()
        self.norm1, self.norm2 = first.to(dtype), second.to(dtype)
        self.qkv = Product([attention.q_proj, attention.k_proj, attention.v_proj], first, dtype)
        self.out = Product([attention.o_proj], None, dtype)
        self.gate, self.up = Product([mlp.gate_proj], second, dtype), Product([mlp.up_proj], second, dtype)
        self.down = Product([mlp.down_proj], None, dtype)


class Case:
    """What requests of one size share: the cache and, for a graph, the state of a step on the device."""

    def __init__(self, runner: Runner, b: int, n: int, storage: Tensor):
        self.b, self.n = b, n
        self.cache = storage.view(len(runner.layers), 2, b, runner.kv_heads, n, runner.head_dim)
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}  # by m
        self.states: dict[int, dict[str, Tensor]] = {}  # by m

    def state(self, runner: Runner, m: int) -> dict[str, Tensor]:
        """Tokens, step, columns, rotary tables (step, b, m, 1, half) and mask: what a graph reads."""
        if m not in self.states:
            b, n, half = self.b, self.n, runner.head_dim // 2
            whole = {"ids": (b, m), "step": (1,), "at": (m,)}  # at: columns that the step writes
            other = {"cos": (n, b, m, 1, half), "sin": (n, b, m, 1, half), "mask": (b, 1, m, n)}
            self.states[m] = {name: self.cache.new_zeros(s, dtype=torch.long) for name, s in whole.items()}
            self.states[m] |= {name: self.cache.new_zeros(s) for name, s in other.items()}
        return self.states[m]


class Runner(Engine):
    """Prefill and decode over the weights of transformers' Qwen2ForCausalLM or LlamaForCausalLM.

    dtype: what to compute in, the weights' own where not given. On a CPU a packed copy of the weights is made
    (`release`: the model's layers are emptied on the way, so that memory holds them once). `graph`: decode as
    a CUDA graph (default: on a GPU).
    """

    @torch.inference_mode()
    def __init__(self, llm: nn.Module, dtype: torch.dtype | None = None, graph=None, release: bool = False):
        config, body = llm.config, llm.model
        self.embedding, self.eps = body.embed_tokens.weight.detach(), config.rms_norm_eps
        self.device, self.dtype = self.embedding.device, dtype or self.embedding.dtype
        self.norm = body.norm.weight.detach()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.head = Product([llm.lm_head], None, self.dtype)
        self.rotary = body.rotary_emb
        self.layers = []
        for block in body.layers:
            self.layers.append(Layer(block, self.dtype))
            if release:
                block.to("meta")
        on_gpu = self.device.type == "cuda"
        self.graph, self.every = on_gpu if graph is None else graph, 8 if on_gpu else 1
        self.cases: OrderedDict[tuple[int, int], Case] = OrderedDict()
        self.storage = torch.zeros(0, device=self.device, dtype=self.dtype)
        self.case: Case | None = None
        self.kept = CASES

    @torch.inference_mode()
    def reserve(self, b: int, tokens: int) -> None:
        """Make the cache for b rows of `tokens` columns; what another request left in it is lost."""
        on_cpu = self.device.type == "cpu"  # there a padded prompt writes a few columns past its end
        n = tokens + ROWS if on_cpu else -(-tokens // BUCKET) * BUCKET
        size = len(self.layers) * 2 * b * self.kv_heads * n * self.head_dim
        if on_cpu:  # one storage serves all sizes in turn; it grows as it must
            if size > len(self.storage):
                self.storage = torch.zeros(size, dtype=self.dtype)
            self.case = Case(self, b, n, self.storage[:size])
            return
        if (b, n) not in self.cases:
            self.cases[b, n] = Case(self, b, n, torch.zeros(size, dtype=self.dtype, device=self.device))
        self.cases.move_to_end((b, n))
        self.case = self.cases[b, n]
        while len(self.cases) > self.kept:
            self.cases.popitem(last=False)

    def release(self) -> None:
        """As `Engine.release`; on a CPU the storage stays, for the next request."""
        self.cases.clear()
        self.case = None

    def _check(self, b: int, tokens: int) -> None:
        if self.case is None or tokens > self.case.n or b != self.case.b:
            raise InputError(f"{b} x {tokens} tokens: reserve(batch, tokens) for them before the prompt")

    def _turns(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (b, t), whole or not -> cosines and sines (b, t, 1, head_dim / 2) of rotary positions."""
        cos, sin = self.rotary(self.embedding[:1, None].to(self.dtype), position_ids)
        half = self.head_dim // 2  # both halves of the table are the same
        return cos[:, :, None, :half].contiguous(), sin[:, :, None, :half].contiguous()

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary positions: x (b, t, h, e), its two halves turned against each other."""
        half = self.head_dim // 2
        a, b, turned = x[..., :half], x[..., half:], x.new_empty(x.shape)
        torch.mul(a, cos, out=turned[..., :half]).addcmul_(b, sin, value=-1)
        torch.mul(b, cos, out=turned[..., half:]).addcmul_(a, sin)
        return turned

    def _remember(self, cache: Tensor, k: Tensor, v: Tensor, at: slice | Tensor) -> Tensor:
        """Writes k and v (b, h, t, e) into a layer's cache; returns the part of it that attention reads."""
        if isinstance(at, slice):
            cache[0, :, :, at], cache[1, :, :, at] = k, v
            return cache[:, :, :, : at.stop]
        cache[0].index_copy_(2, at, k)  # columns named on the device: a graph reads the whole cache, masked
        cache[1].index_copy_(2, at, v)
        return cache

    def _layers(self, x: Tensor, at: slice | Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """All layers over x (b, t, d), whose tokens go to columns `at` of the cache."""
        b, t, d = x.shape
        for layer, cache in zip(self.layers, self.case.cache):
            qkv = layer.qkv(norm(x, layer.norm1, self.eps)).view(b, t, -1, self.head_dim)
            turned = self._rotate(qkv[:, :, : self.heads + self.kv_heads], cos, sin).transpose(1, 2)
            q, k = turned.split((self.heads, self.kv_heads), dim=1)  # (b, h, t, e)
            v = qkv[:, :, self.heads + self.kv_heads :].transpose(1, 2)
            keys, values = self._remember(cache, k, v, at)
            seen = attend(q, keys, values, mask=mask)
            x = layer.out.plus(seen.transpose(1, 2).reshape(b, t, -1), x)
            y = norm(x, layer.norm2, self.eps)
            x = layer.down.plus(layer.up.times(y, layer.gate.swish(y)), x)
        return x

    @torch.inference_mode()
    def prefill(
        self, embedded: Tensor, past: int = 0, position_ids: Tensor | None = None,
        mask: Tensor | None = None, last: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Prompts (b, t, d), after `past` columns in the cache -> hidden states (b, m, d), normed.

        position_ids (b, t), by default one after the other; mask (b, 1, t, past + t), added to the attention
        weights, by default causal; last (b, m): columns that are wanted, by default the last one.
        """
        b, t, _ = embedded.shape
        if past == 0 and (self.case is None or self.case.b != b or self.case.n < t):
            self.reserve(b, t)
        self._check(b, past + t)
        x = embedded.to(self.dtype)
        if self.device.type == "cpu" and b == 1 and t > ROWS and mask is None:
            x = F.pad(x, (0, 0, 0, -t % ROWS))  # columns after the last change nothing before it
        width = x.shape[1]
        if position_ids is None:
            position_ids = torch.arange(past, past + width, device=self.device)[None]
        cos, sin = self._turns(F.pad(position_ids, (0, width - position_ids.shape[1])))
        with torch.autocast(self.device.type, enabled=False):
            x = self._layers(x, slice(past, past + width), cos, sin, mask)
            return norm(columns(x[:, :t], last), self.norm, self.eps, folded=False)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (b, m, d) -> (b, m, vocabulary)."""
        with torch.autocast(self.device.type, enabled=False):
            return self.head(hidden)

    def begin(self, ids: Tensor, past: int, steps: int, position_ids: Tensor, mask: Tensor | None) -> None:
        """Prepare `steps` steps: tables of their positions, and what they see."""
        b, m = ids.shape
        self._check(b, past + steps * m)
        places = position_ids[None] + torch.arange(steps, device=self.device)[:, None, None]  # (steps, b, m)
        cos, sin = self._turns(places.flatten(0, 1))
        shape = (steps, *position_ids.shape, 1, self.head_dim // 2)
        self.tables, self.past, self.mask, self.ids = (cos.view(shape), sin.view(shape)), past, mask, ids
        if not self.graph:
            return
        self.on = on = self.case.state(self, m)
        on["ids"].copy_(ids)
        on["step"].zero_()
        on["at"].copy_(torch.arange(past, past + m, device=self.device))
        on["cos"][:steps], on["sin"][:steps] = self.tables
        on["mask"].zero_()
        if mask is not None:
            on["mask"][..., : mask.shape[-1]] = mask

    def next(self, i: int) -> Tensor:
        """The tokens after those of step i: (b, m)."""
        m = self.ids.shape[1]
        if self.graph:
            self._replay(m)
            return self.on["ids"].clone()
        at = slice(self.past + i * m, self.past + (i + 1) * m)
        mask = None if self.mask is None else self.mask[..., : at.stop]
        self.ids = self._step(self.ids, at, *(table[i] for table in self.tables), mask)
        return self.ids

    def _step(self, ids: Tensor, at: slice | Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            x = self._layers(F.embedding(ids, self.embedding).to(self.dtype), at, cos, sin, mask)
            return self.head(norm(x, self.norm, self.eps, folded=False)).argmax(-1)

    def _device_step(self) -> None:
        """A step that reads tokens, positions and columns from the device, so that a graph can hold it."""
        on = self.on
        column = torch.arange(self.case.n, device=self.device)
        there = torch.where(column <= on["at"][-1], 0.0, HIDDEN).to(self.dtype)
        cos, sin = (on[name].index_select(0, on["step"])[0] for name in ("cos", "sin"))
        on["ids"].copy_(self._step(on["ids"], on["at"], cos, sin, on["mask"] + there))
        on["step"] += 1
        on["at"] += len(on["at"])

    def _replay(self, m: int) -> None:
        if self.device.type != "cuda":  # the same step, one by one
            self._device_step()
            return
        if m not in self.case.graphs:
            kept = {name: self.on[name].clone() for name in ("ids", "step", "at")}
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # libraries set themselves up outside the graph
                self._device_step()
            torch.cuda.current_stream().wait_stream(stream)
            graph = self.case.graphs[m] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._device_step()
            for name, before in kept.items():  # undo the trial; what it wrote in the cache is written again
                self.on[name].copy_(before)
        self.case.graphs[m].replay()
