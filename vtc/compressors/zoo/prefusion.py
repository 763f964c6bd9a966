"""LLaVA-Mini's pre-fusion (arXiv 2501.03895, section 4.2): layers beside the LLM let text read all patches.

Cost class B: one token enters the LLM, but these layers, as wide as it, read every patch first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtc import InputError
from vtc.compressors.base import Features, mlp2x
from vtc.compressors.zoo.resampler import LLaVAMini


class PreFusion(nn.Module):
    """[patches; tokens; text], all at the LLM's width -> the same, read by decoder layers as the LLM's own.

    config: the LLM's (transformers' Qwen2Config); layers: how many (the paper has 4), no more than it has.
    """

    def __init__(self, config, layers: int = 4):
        super().__init__()
        from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

        layers = min(layers, config.num_hidden_layers)
        self.layers = nn.ModuleList(Qwen2DecoderLayer(config, i) for i in range(layers))
        self.rotary = Qwen2RotaryEmbedding(config)

    def forward(self, x: Tensor, mask: Tensor, position: Tensor) -> Tensor:
        """x (b, n, d_llm), additive mask (b or 1, 1, n, n), positions (b or 1, n) -> (b, n, d_llm)."""
        angles = self.rotary(x, position)
        for layer in self.layers:
            x = layer(x, attention_mask=mask, position_ids=position, position_embeddings=angles)
        return x


class LLaVAMiniFused(LLaVAMini):
    """LLaVA-Mini whole: compressor, projector, and `fuse`, which the VLM calls with the text embedded.

    llm_config: the LLM's configuration. The call alone gives the un-fused tokens, (b, C*C, d_llm).
    """

    cost_class = "B"
    ends_at_llm = True
    fuses = True

    def __init__(self, *, llm_config=None, layers: int = 4, **options):
        super().__init__(**options)
        if llm_config is None:
            raise InputError("llavamini_fused needs the LLM's configuration: pass llm_config=... to build")
        self.project = mlp2x(self.d, self.d_out, self.d_out)
        self.fusion = PreFusion(llm_config, layers)

    def start_from(self, layers: nn.ModuleList) -> None:
        """Begin as copies of the LLM's first layers, which know its words already."""
        for own, given in zip(self.fusion.layers, layers):
            own.load_state_dict(given.state_dict())

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        return self.project(super().compress(features))

    def fuse(self, features: Features, tokens: Tensor, text: Tensor, mask: Tensor, position: Tensor):
        """Features, un-fused tokens (b, V, d_llm), text (b, t, d_llm) -> the last two, as the LLM gets them.

        mask (b, 1, n, n), additive, and position (b, n) of patches, tokens and text: n = s + V + t.
        """
        patches = self.project(features.last)
        x = torch.cat([patches, tokens, text.to(patches.dtype)], 1)
        x = self.fusion(x, mask.to(x.dtype), position)
        before = patches.shape[1] + tokens.shape[1]
        return x[:, patches.shape[1] : before], x[:, before:]
