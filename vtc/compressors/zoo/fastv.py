"""FastV (arXiv 2403.06764): all patches enter the LLM, those attended to least leave before layer K.

Reference implementation: https://github.com/pkunlp-icler/FastV. Done here by hooks on the layers of one
model, for the time of one `with` block; nothing is patched for the process. Cost class D: layers before K
and the tower see every patch.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor

from vtc import InputError
from vtc.compressors.base import Compressor, Features, pick


def rank(row: Tensor, image: Tensor, keep: int) -> Tensor:
    """Image positions to keep by falling attention: row (b, t), image (b, t) bool -> (b, keep).

    row: attention of the last token, mean over heads.
    """
    scores = row.masked_fill(~image, -torch.inf)
    return scores.argsort(dim=-1, descending=True, stable=True)[:, :keep]


def survivors(ranked: Tensor, image: Tensor) -> Tensor:
    """All positions outside the image and those ranked, rising, (b, t - dropped)."""
    stay = (~image).scatter(1, ranked, True)
    counts = stay.sum(-1)
    if (counts != counts[0]).any():
        raise InputError("fastv: the prompts of a batch must hold equally many visual tokens")
    return stay.nonzero()[:, 1].view(len(stay), -1)


class FastV(Compressor):
    """Hands all s patches over; `inside(layers, image)` lets V of them live on from the LLM's layer K.

    tokens is V; the call returns (b, s, d). Each sample ranks for itself (in the release the first one
    decides for its batch). Kept tokens keep their positions.
    """

    cost_class = "D"
    nested = True

    def __init__(self, *, layer: int = 2, **shape):
        super().__init__(**shape)
        self.layer = layer
        if layer < 1:
            why = "attention of the layer before is read"
            raise InputError(f"fastv: layer must be at least 1 ({why}), got {layer}")

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        return features.last

    @contextmanager
    def inside(self, layers, image: Tensor):
        """Drop visual tokens inside these decoder layers (Qwen2's, `model.layers`) while the block runs.

        image: (b, t) bool, the visual positions of the whole prompt. Works for one forward pass (whose
        output is then shorter by what was dropped) and for `generate` with a cache.
        """
        if not self.layer < len(layers):
            raise InputError(f"fastv: layer {self.layer} of {len(layers)}: nothing would be saved")
        kept: list[Tensor] = []  # set in the pass over the prompt, read by all later layers and steps

        def look(attention, args, kwargs):
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            if hidden.shape[1] == image.shape[1]:
                row = last_row(attention, hidden, kwargs["position_embeddings"], kwargs["attention_mask"])
                kept[:] = [survivors(rank(row, image, self.tokens), image)]

        def drop(layer, args, kwargs):
            hidden, *rest = args
            first = hidden.shape[1] == image.shape[1]
            hidden = pick(hidden, kept[0]) if first else hidden
            return (hidden, *rest), shorten(kwargs, kept[0], image.shape[1])

        hooks = [layers[self.layer - 1].self_attn.register_forward_pre_hook(look, with_kwargs=True)]
        hooks += [layer.register_forward_pre_hook(drop, with_kwargs=True) for layer in layers[self.layer :]]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()


def shorten(kwargs: dict, kept: Tensor, t: int) -> dict:
    """A decoder layer's keyword arguments for the kept positions; in later steps the mask alone changes."""
    cos, sin = kwargs["position_embeddings"]
    mask, changed = kwargs.get("attention_mask"), dict(kwargs)
    prompt = cos.shape[1] == t
    if prompt:
        changed["position_embeddings"] = (pick(cos, kept), pick(sin, kept))
        if kwargs.get("position_ids") is not None:
            changed["position_ids"] = kwargs["position_ids"].expand(len(kept), -1).gather(1, kept)
    if mask is None:
        return changed
    columns = torch.cat([kept, torch.arange(t, mask.shape[-1], device=kept.device).expand(len(kept), -1)], 1)
    mask = mask.expand(len(kept), *mask.shape[1:])
    heads, rows = mask.shape[1:3]
    if prompt:
        mask = mask.gather(2, kept[:, None, :, None].expand(-1, heads, -1, mask.shape[-1]))
        rows = kept.shape[1]
    changed["attention_mask"] = mask.gather(3, columns[:, None, None].expand(-1, heads, rows, -1))
    return changed


def last_row(attention, hidden: Tensor, position_embeddings, mask: Tensor | None) -> Tensor:
    """The last token's attention over the prompt, mean over heads, (b, t), by a Qwen2 attention's maps."""
    from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

    b, t, _ = hidden.shape
    cos, sin = position_embeddings
    split = (b, -1, attention.q_proj.out_features // attention.head_dim, attention.head_dim)
    q = attention.q_proj(hidden[:, -1:]).view(split).transpose(1, 2)  # (b, heads, 1, c)
    k = attention.k_proj(hidden).view(b, t, -1, attention.head_dim).transpose(1, 2)
    q, _ = apply_rotary_pos_emb(q, q, cos[:, -1:], sin[:, -1:])
    k, _ = apply_rotary_pos_emb(k, k, cos, sin)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = (q @ k.transpose(2, 3)).float() * attention.scaling  # (b, heads, 1, t)
    if mask is not None and mask.dim() == 4:
        last = mask[:, :, -1:, :t]
        scores = scores.masked_fill(~last, -torch.inf) if last.dtype == torch.bool else scores + last
    return scores.softmax(-1).mean(1)[:, 0]
