"""Your own compressor: copy this file, change it, and `register` the class or add its line to `REGISTRY`."""

import torch
from torch import nn

from vtc.compressors.base import Windows, windows


class OneMap(Windows):
    """Every window's patches, weighted by one learned map: (b, s, d) -> (b, V, d)."""

    def __init__(self, **shape):
        super().__init__(**shape)
        self.place = nn.Parameter(torch.zeros(self.k**2))

    def compress(self, features, question=None):
        return self.place.softmax(0) @ windows(features.last, self.n)  # (b, V, k * k, d) -> (b, V, d)
