"""The plainest compressors: no image, every patch, and the mean of windows before or after the projector.

    Pool:       z_v = mean of x_p over the k x k patches p of window v; the projector P comes after: P(z_v)
    PoolAfter:  z_v = mean of P(x_p) over the same patches

(b, s, d) -> (b, V, d), or (b, V, d_llm) where P is inside; V = (g / k)^2. P is a Linear, a GELU and a Linear,
so the two differ by what the GELU does to a mean. PoolAfter is the map of M3 (arXiv 2405.17430, section 3):
"m3" trains it for all V at once, as M3 does, "pool_after" for one V.
"""

from __future__ import annotations

from torch import Tensor

from vtc.compressors.base import Compressor, Features, Official, Windows, fill, mean_pool, mlp2x


class NoImage(Compressor):
    """V = 0: the LLM sees the question alone, which says what the questions give away by themselves."""

    @classmethod
    def possible(cls, grid: int) -> list[int]:
        return [0]

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        return features.last[:, :0]  # (b, 0, d)

    def attention_map(self, features: Features, question: Tensor | None = None) -> Tensor:
        return features.last.new_zeros(len(features), 0, self.grid**2)


class Identity(Compressor):
    """All s = g*g patches go to the projector, as in LLaVA-1.5."""

    windowed = True  # of one patch each

    @classmethod
    def possible(cls, grid: int) -> list[int]:
        return [grid * grid]

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        return features.last


class Pool(Windows):
    """The mean of each k x k window of `features.last`; the projector then reads V tokens."""

    nested = True

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        return mean_pool(features.last, self.n)


class PoolAfter(Windows):
    """The projector on every patch (d -> d_llm), then the mean of each window; ends at the LLM's width.

    One set of weights serves every V (`at`). M3 trains with nested budgets: its loss is the mean of the LLM's
    loss over several V.
    """

    ends_at_llm = True
    nested = True

    def __init__(self, **shape):
        super().__init__(**shape)
        self.project = mlp2x(self.d, self.d_out, self.d_out)

    def compress(self, features: Features, question: Tensor | None = None) -> Tensor:
        gate, last = self.project[:2], self.project[2]
        return last(mean_pool(gate(features.last), self.n))  # the last map is linear: the mean goes before it

    def load_official(self, state: dict[str, Tensor]) -> None:
        """Read LLaVA's `mlp2x_gelu` projector, names `0.*` and `2.*`."""
        fill(self.project, Official(state, "PoolAfter").mlp2x())
