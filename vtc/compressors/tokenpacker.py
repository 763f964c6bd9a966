"""TokenPacker (arXiv 2407.02392, section 3.2): each coarse token attends to the fine patches of its window.

    q_v = LN(W_q x'_v)                            x': the grid shrunk to V points (bilinear)
    k_p = LN(MLP_k(l_p)), u_p = LN(MLP_u(l_p))    l_p: four layers of the tower side by side
    z_v = MLP(Attention(q_v; k_p, u_p for the patches p of window v))

(b, s, d) and (b, s, d_levels) -> (b, V, d_llm); V = (g / k)^2 windows of k x k patches. The query sees its
window coarsely, keys and values finely and at several depths: attention puts detail back into few tokens.
Reference implementation: https://github.com/CircleRadon/TokenPacker (no licence; written from the paper).
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from vtc.compressors.base import Features, Official, Windows, fill, mean_pool, mlp2x
from vtc.compressors.windowed import WindowAttention


def middle(x: Tensor, n: int) -> Tensor:
    """Bilinear sampling of (b, s, d) down to (b, n*n, d) without a filter, as the release does.

    With half-pixel centres this is the middle patch of a window of odd side, and the mean of the middle
    2 x 2 patches of a window of even side; all others are not read.
    """
    b, s, d = x.shape
    g = math.isqrt(s)
    k = g // n
    x = x.view(b, n, k, n, k, d)
    low = slice((k - 1) // 2, k // 2 + 1)
    x = x[:, :, low, :, low]  # (b, n, 1 or 2, n, 1 or 2, d)
    return (x.mean((2, 4)) if k % 2 == 0 else x).reshape(b, n * n, d)


class TokenPacker(Windows):
    """(b, s, d) and (b, s, d_levels) -> (b, V, d_llm); ends at the LLM's width, no projector follows.

    antialias: queries from the mean of the window in place of its middle. The weights do not depend on V
    (`at`). Starts like the release: normal, standard deviation .02 at width 1024, scaled with the width
    elsewhere so that the outputs keep their size.
    """

    needs_levels = True
    ends_at_llm = True
    nested = True

    def __init__(self, *, heads: int = 8, antialias: bool = False, **shape):
        super().__init__(**shape)
        self.antialias = antialias
        std = 0.02 * (1024 / self.d) ** 0.5
        self.query = nn.Linear(self.d, self.d, bias=False)
        self.query_norm = nn.LayerNorm(self.d, eps=1e-6)
        self.attend = WindowAttention(self.width_of("d_levels"), self.d, heads, std)
        self.project = mlp2x(self.d, self.d_out, self.d_out)
        for layer in (self.query, self.project[0], self.project[2]):
            nn.init.trunc_normal_(layer.weight, std=std)
        for layer in (self.project[0], self.project[2]):
            nn.init.zeros_(layer.bias)

    def queries(self, features: Features) -> Tensor:
        coarse = mean_pool(features.last, self.n) if self.antialias else middle(features.last, self.n)
        return self.query_norm(self.query(coarse)).unsqueeze(1)  # (b, 1, V, d)

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        if self.k == 1:
            return self.project(self.attend.alone(features.levels))
        mixed = self.attend(self.queries(features), self.attend.keys_values(features.levels))
        return self.project(mixed.squeeze(1))

    def attention_map(self, features: Features, question: Tensor | None = None) -> Tensor:
        return self.attend.attention_map(self.queries(features), self.attend.keys_values(features.levels))

    def load_official(self, state: dict[str, Tensor]) -> None:
        """Read a released TokenPacker: `q_proj_1`, `k_proj_1`, `ln_q_1`, `clip_attn`, `mlp`, ..."""
        given = Official(state, "TokenPacker")
        fill(self.query, given.linear("q_proj_1", bias=False))
        fill(self.query_norm, given.linear("ln_q_1"))
        fill(self.attend, self.attend.official(given, "k_proj_1", "ln_k_1", "v_proj_1", "ln_v_1"))
        fill(self.project, given.mlp2x("mlp."))
