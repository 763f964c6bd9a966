"""LLaVA-Mini's pre-fusion (arXiv 2501.03895, section 4.2): layers beside the LLM let text read all patches.

Cost class B: one token enters the LLM, but these layers, as wide as it, read every patch first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtc import InputError
from vtc.compressors.base import Features, mlp2x
from vtc.compressors.resampler import LLaVAMini


class PreFusion(nn.Module):
    """[patches; tokens; text], all at the LLM's width -> tokens and text that have read the patches.

    config: the LLM's (transformers' Qwen2Config); layers: how many decoder layers (the paper has 4).
    """

    def __init__(self, config, layers: int = 4):
        super().__init__()
        from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

        self.layers = nn.ModuleList(Qwen2DecoderLayer(config, i) for i in range(layers))
        self.rotary = Qwen2RotaryEmbedding(config)

    def forward(self, patches: Tensor, tokens: Tensor, text: Tensor, mask: Tensor | None = None):
        """Patches, tokens and text (b, s | v | t, d_llm), mask (b, t) of real text -> tokens, text."""
        x = torch.cat([patches, tokens, text], 1)
        b, n, _ = x.shape
        seen = torch.ones(n, n, dtype=torch.bool, device=x.device).tril().expand(b, 1, n, n)
        if mask is not None:
            real = torch.cat([mask.new_ones(b, n - mask.shape[1]), mask], 1).bool()
            seen = seen & real[:, None, None]
        hidden = (~seen).to(x.dtype) * torch.finfo(x.dtype).min  # added to the scores
        where = torch.arange(n, device=x.device).unsqueeze(0)
        angles = self.rotary(x, where)
        for layer in self.layers:
            x = layer(x, attention_mask=hidden, position_ids=where, position_embeddings=angles)
        return x[:, patches.shape[1] : n - text.shape[1]], x[:, n - text.shape[1] :]


class LLaVAMiniFused(LLaVAMini):
    """LLaVA-Mini whole: compressor, projector, and `fuse`, which the VLM calls with the text embedded.

    llm_config: the LLM's configuration. The call alone gives the un-fused tokens, (b, C*C, d_llm).
    """

    cost_class = "B"
    ends_at_llm = True

    def __init__(self, *, llm_config=None, layers: int = 4, **options):
        super().__init__(**options)
        if llm_config is None:
            raise InputError("llavamini_fused needs the LLM's configuration: pass llm_config=... to build")
        self.project = mlp2x(self.d, self.d_out, self.d_out)
        self.fusion = PreFusion(llm_config, layers)

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        return self.project(super().compress(features))

    def fuse(self, features: Features, text: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features and text (b, t, d_llm) -> the LLM's input: tokens (b, V, d_llm), text (b, t, d_llm)."""
        return self.fusion(self.project(features.last), self(features), text, mask)
