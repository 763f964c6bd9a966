"""An auxiliary loss for any compressor: its tokens should let all patches be guessed (ETC, arXiv 2606.00543).

A small decoder guesses mu, the patches X (s, d), from the tokens; each channel is a Gaussian about its guess,

    L_aux = w sum over d of [ 1 / (2 sigma_d^2) sum over s of (X - mu)^2  +  s log sigma_d ].

It is added to the LLM's loss in training, and the decoder is left behind. ETC also scales X by the
question's interest in each patch; that is left out here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.compressors.base import Compressor, Features, mlp2x, windows


class AuxiliaryLoss(nn.Module):
    """L_aux of a compressor's tokens; the decoder's parameters train along and are left behind.

    weight: of the loss; by default each patch's channel weighs as much beside the LLM's loss as in ETC, whose
    sum over 576 x 1024 of them is taken 1e-5 times.
    """

    def __init__(self, compressor: Compressor, width: int = 128, weight: float | None = None):
        super().__init__()
        weight = 1e-5 * 576 * 1024 / (compressor.grid**2 * compressor.d) if weight is None else weight
        v, s = compressor.tokens, compressor.grid**2
        n = math.isqrt(v)
        self.n = n if n * n == v and n and compressor.grid % n == 0 else 1
        d_in = compressor.d_out * (1 if self.n**2 == v else v)  # not by window: all tokens side by side
        self.weight = weight
        self.spread = nn.Linear(d_in, width)
        self.place = nn.Parameter(torch.randn(s // self.n**2, width))
        self.decode = mlp2x(width, width, compressor.d)
        self.log_sigma = nn.Parameter(torch.zeros(compressor.d))

    def guess(self, tokens: Tensor) -> Tensor:
        """(b, V, d_out) -> the patches by window, (b, n*n, k*k, d)."""
        tokens = tokens if tokens.shape[1] == self.n**2 else tokens.flatten(1).unsqueeze(1)
        return self.decode(F.gelu(self.spread(tokens)).unsqueeze(2) * self.place)

    def forward(self, tokens: Tensor, features: Features) -> Tensor:
        """Tokens (b m, V, d_out) and the features of b images -> a scalar to add to the LLM's loss."""
        target = windows(features.last.detach().float(), self.n)
        target = target.repeat_interleave(len(tokens) // len(target), 0)
        off = (self.guess(tokens).float() - target).square().sum((1, 2)).mean(0)  # (d,)
        patches = target.shape[1] * target.shape[2]
        return self.weight * (off * (-2 * self.log_sigma).exp() / 2 + patches * self.log_sigma).sum()


class WithAuxiliaryLoss(nn.Module):
    """A model in training whose compressor's tokens should also let the patches be guessed."""

    def __init__(self, model: nn.Module, compressor: Compressor) -> None:
        super().__init__()
        self.model, self.auxiliary = model, AuxiliaryLoss(compressor)
        self.compressor = [compressor]  # in a list: it is a part of the model already

    def forward(self, packed, features: Features, *drawn: int) -> Tensor:
        """The model's loss and the auxiliary one."""
        made: list[Tensor] = []
        with self.compressor[0].register_forward_hook(lambda module, given, tokens: made.append(tokens)):
            loss = self.model(packed, features, *drawn)
        return loss + self.auxiliary(made[-1], features)
