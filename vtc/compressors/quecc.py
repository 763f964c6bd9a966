"""QueCC (arXiv 2411.03312, section 4.2): window attention whose queries know the question.

    t   = LN(W_t h)                               h: the LLM's last hidden state of the question's last token
    y_p = LN(MLP_q(x_p + t))                      every patch, moved by what is asked
    q_v = sum of c_p * y_p over window v          a depthwise convolution, kernel = stride = k
    k_p = LN(MLP_k(l_p)), u_p = LN(MLP_u(l_p))    l_p: four layers of the tower side by side
    z_v = Attention(q_v; k_p, u_p for the patches p of window v)

(b, s, d), (b, s, d_levels) and a question -> (b, V, d), then the projector; V = (g / k)^2. Beside TokenPacker
two things are new: the question moves the queries, and a convolution learns how to shrink them. Keys and
values do not see the question, so an image asked m questions pays for them once. Where V = s a window is one
patch, whose weight is 1 whatever is asked.

Reference implementation: https://github.com/locuslab/llava-token-compression (no licence; written from the
paper and its description).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc import InputError
from vtc.compressors.base import Features, Official, Windows, fill, mean_pool
from vtc.compressors.question import Steered
from vtc.compressors.windowed import WindowAttention, inverse_sigma


class QueCC(Steered, Windows):
    """(b, s, d), (b, s, d_levels) and a question -> (b, V, d); the projector follows.

    question: (b, d_question), the LLM's last hidden state of the question's last token, or (b, m, d_question)
    for m questions an image, which gives (b*m, V, d). Ablations: `question=False`, `conv=False` (window
    mean), `levels=1` (keys and values from `last` alone), `heads=1`. nested: a convolution for every V, so
    that one training serves all of them; the other weights do not depend on V.

    source says where the question vector comes from, for the VLM that has to give it: "llm_last", a pass of
    the LLM over the question alone (published); "prompt_prefix", the question stands before the image and
    its last hidden state comes from the prompt's own prefix, whose cache is reused; "embeddings", no pass:
    question is the LLM's input embeddings (b, q, d_llm) or (b, m, q, d_llm) with a mask alike, pooled here.
    """

    needs_question = True
    needs_levels = True

    def __init__(
        self, *, heads=8, question=True, conv=True, levels=None, source="llm_last", nested=False,
        **shape,
    ):  # fmt: skip
        super().__init__(**shape)
        self.question_source, self.nested, d = None, nested, self.d
        self.needs_question, self.needs_levels, self.conv = question, levels != 1, conv
        if question:
            self.text = nn.Linear(self.take_question(source), d)
            self.text_norm = nn.LayerNorm(d, eps=1e-6)
        self.query_in, self.query_out = nn.Linear(d, d), nn.Linear(d, d)
        self.query_norm = nn.LayerNorm(d, eps=1e-6)
        if conv and nested:
            sides = [self.grid // math.isqrt(v) for v in self.possible(self.grid)]
            kernels = {str(k): _kernel(d, k) for k in sides if k > 1}  # a window of one patch needs none
            self.conv_weight, self.conv_bias = (
                nn.ParameterDict({k: pair[i] for k, pair in kernels.items()}) for i in (0, 1)
            )
        elif conv:
            self.conv_weight, self.conv_bias = _kernel(d, self.k)
        self.attend = WindowAttention(self.width_of("d_levels") if self.needs_levels else d, d, heads)

    def keys_values(self, features: Features) -> tuple[Tensor, tuple]:
        """What no question changes: the query MLP's first product (b, s, d), and keys and values."""
        return F.linear(features.last, self.query_in.weight), self.attend.keys_values(self.read(features))

    def read(self, features: Features) -> Tensor:
        return features.levels if self.needs_levels else features.last

    def queries(self, before: Tensor, question: Tensor | None) -> Tensor:
        """The query MLP's first product (b, s, d), questions (b, m, d_question) -> (b, m, V, d)."""
        steer = self.query_in.bias
        if self.needs_question:  # W(x + t) + b = Wx + (Wt + b)
            steer = self.query_in(self.text_norm(self.text(question))).unsqueeze(2)  # (b, m, 1, d)
        weight, bias = (part - part.mean(0) for part in (self.query_out.weight, self.query_out.bias))
        z = F.linear(F.gelu(before.unsqueeze(1) + steer), weight, bias)  # (b, m, s, d), its mean is 0
        return self.downsample(z * inverse_sigma(z, self.query_norm.eps).unsqueeze(-1).to(z.dtype))

    def downsample(self, z: Tensor) -> Tensor:
        """(b, m, s, d), normalised -> (b, m, V, d): the norm's affine map and the convolution."""
        b, m, s, d = z.shape
        g, n, k = self.grid, self.n, self.k
        scale, shift = self.query_norm.weight, self.query_norm.bias
        if not self.conv:
            return mean_pool(z.flatten(0, 1), n).view(b, m, n * n, d) * scale + shift
        weight, bias = self.conv_weight, self.conv_bias
        if self.nested:
            weight, bias = weight[str(k)], bias[str(k)]
        bias = bias + shift * weight.sum((0, 1))  # the norm's scale and shift move into the convolution
        weight = weight * scale
        if torch.is_grad_enabled():  # its backward pass is slow on a CPU
            weight = weight.view(k, 1, k, d).to(z.dtype)
            return (z.view(b, m, n, k, n, k, d) * weight).sum((3, 5)).view(b, m, n * n, d) + bias
        image = z.view(b * m, g, g, d).permute(0, 3, 1, 2)
        out = F.conv2d(image, weight.permute(2, 0, 1).unsqueeze(1), bias, k, groups=d)
        return out.permute(0, 2, 3, 1).reshape(b, m, n * n, d)

    def compress(self, features: Features, question: Tensor | None = None, mask=None) -> Tensor:
        question = self.asked(question, mask)
        if torch.is_grad_enabled():
            return self.steer(features, question)
        b, step = len(features), pieces(features, question, self.query_out.out_features)
        parts = [slice(i, i + step) for i in range(0, max(b, 1), step)]
        asked = [None if question is None else question[at] for at in parts]
        return torch.cat([self.steer(features[at], ask) for at, ask in zip(parts, asked)])

    def steer(self, features: Features, question: Tensor | None) -> Tensor:
        """Features of b images and their vectors (b, m, d_question) -> (b m, V, d)."""
        if self.k == 1:  # the question has no say
            m = 1 if question is None else question.shape[1]
            return self.attend.alone(self.read(features)).repeat_interleave(m, 0)
        before, kv = self.keys_values(features)
        return self.attend(self.queries(before, question), kv).flatten(0, 1)  # (b m, V, d)

    def attention_map(self, features: Features, question: Tensor | None = None, mask=None) -> Tensor:
        before, kv = self.keys_values(features)
        return self.attend.attention_map(self.queries(before, self.asked(question, mask)), kv)

    def load_official(self, state: dict[str, Tensor]) -> None:
        """Read a released QueCC: `text_projection`, `q_proj`, `q_downsample`, `k_proj`, `clip_attn`, ...

        Prefixed `0.` where the release's projector follows as `1.` and `3.`.
        """
        if self.nested:
            raise InputError("load_official: a release serves one V, and this QueCC every V: build 'quecc'")
        given = Official(state, "QueCC")
        given = given.under("0.") if "0.q_proj.0.weight" in given else given
        fill(self.text, given.linear("text_projection.0"))
        fill(self.text_norm, given.linear("text_projection.1"))
        fill(self.query_in, given.linear("q_proj.0"))
        fill(self.query_out, given.linear("q_proj.2"))
        fill(self.query_norm, given.linear("q_proj.3"))
        fill(self.attend, self.attend.official(given, "k_proj", "k_proj.3", "v_proj", "v_proj.3"))
        with torch.no_grad():
            self.conv_weight.copy_(given["q_downsample.weight"][:, 0].permute(1, 2, 0))
            self.conv_bias.copy_(given["q_downsample.bias"])


def _kernel(d: int, k: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A depthwise convolution of side k at its start: weight (k, k, d) and bias (d,)."""
    depthwise = nn.Conv2d(d, d, k, groups=d)
    weight = depthwise.weight.detach()[:, 0].permute(1, 2, 0)
    return nn.Parameter(weight.contiguous()), nn.Parameter(depthwise.bias.detach())


def pieces(features: Features, question: Tensor | None, width: int) -> int:
    """Images to take at once: on a CPU, buffers of some 8 MB are not fetched from the system anew."""
    b, s, _ = features.last.shape
    if features.last.device.type != "cpu":
        return b
    m = 1 if question is None else question.shape[1]
    return max(1, 2**21 // (m * s * width))
