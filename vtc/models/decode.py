"""Greedy decoding, whatever computes the LLM: prefill reads a prompt, decode goes on token by token.

    embedded prompt (b, t, d) -> prefill -> hidden (b, m, d) -> m tokens a row, again and again -> (b, m, G)

A row of the batch is an image; m questions behind it are answered side by side, one new column of the cache
each a step (`vtc.models.prompt`). `Plain` calls transformers' forward, for any LLM; `vtc.models.runner` is
quicker where it can be.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DynamicCache


class Engine:
    """One LLM answering: `prefill` reads a prompt, `decode` goes on from its first token."""

    graph = False  # whether a step is a CUDA graph
    every = 1  # steps between two looks at whether all rows have ended; on a GPU a look waits for it

    def release(self) -> None:
        """Give back the memory that past requests took."""

    def first(self, hidden: Tensor) -> Tensor:
        """hidden (b, m, d) -> the likeliest tokens (b, m)."""
        return self.logits(hidden).argmax(-1)

    @torch.inference_mode()
    def decode(
        self, ids: Tensor, past: int, steps: int, position_ids: Tensor | None = None,
        mask: Tensor | None = None, end: int | None = None,
    ) -> Tensor:  # fmt: skip
        """`steps` tokens more after `ids` (b, m), `past` columns being in the cache -> (b, m, 1 + steps).

        position_ids (b, m): where `ids` stand (default: behind the cache). mask (b, 1, m, past + steps m):
        see `Layout.decode_mask`. It stops where every row has said `end`; fewer tokens are then returned.
        """
        if not steps:
            return ids[..., None]
        if position_ids is None:
            position_ids = torch.full((1, 1), past, device=ids.device)
        self.begin(ids, past, steps, position_ids, mask)
        said, done = [ids], torch.zeros_like(ids, dtype=torch.bool)
        for i in range(steps):
            if end is not None:
                done |= said[-1] == end
                if i % self.every == 0 and bool(done.all()):
                    break
            said.append(self.next(i))
        return torch.stack(said, -1)


class Plain(Engine):
    """transformers' own forward, whatever the LLM."""

    def __init__(self, llm: nn.Module):
        self.llm, self.dtype = llm, llm.get_input_embeddings().weight.dtype
        self.every = 1 if llm.device.type == "cpu" else 8

    def reserve(self, b: int, tokens: int) -> None:
        """Nothing: the cache grows."""

    @torch.inference_mode()
    def prefill(
        self, embedded: Tensor, past: int = 0, position_ids: Tensor | None = None,
        mask: Tensor | None = None, last: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As `Runner.prefill`."""
        self.cache = self.cache if past else DynamicCache(config=self.llm.config)
        return columns(self._forward(embedded.to(self.dtype), position_ids, mask), last)

    def _forward(self, x: Tensor, position_ids: Tensor | None, mask: Tensor | None) -> Tensor:
        return self.llm.base_model(
            inputs_embeds=x, attention_mask=mask, position_ids=position_ids, past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state  # fmt: skip

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (b, m, d) -> (b, m, vocabulary)."""
        return self.llm.get_output_embeddings()(hidden)

    def begin(self, ids: Tensor, past: int, steps: int, position_ids: Tensor, mask: Tensor | None) -> None:
        self.ids, self.past, self.position_ids, self.mask = ids, past, position_ids, mask

    def next(self, i: int) -> Tensor:
        """The tokens after those of step i: (b, m)."""
        b, m = self.ids.shape
        mask = None if self.mask is None else self.mask[..., : self.past + (i + 1) * m]
        x = self.llm.get_input_embeddings()(self.ids)
        self.ids = self.first(self._forward(x, (self.position_ids + i).expand(b, m), mask))
        return self.ids


def columns(hidden: Tensor, last: Tensor | None) -> Tensor:
    """Hidden states (b, t, d) at columns `last` (b, m), by default the last one -> (b, m, d)."""
    if last is None:
        return hidden[:, -1:]
    return hidden.gather(1, last[..., None].expand(-1, -1, hidden.shape[-1]))
