"""What the public releases do beside the compressors of this package; parity vectors hold them to both."""

import math

import torch
from torch import Tensor, nn

from vtc.compressors.zoo.prune import Kept, PruMerge, VisionZip, complement
from vtc.compressors.zoo.tome import Matching, match, similarity


def given_tokens(patches: int, asked: int) -> int:
    """Tokens M3's release gives when `asked` for some number: it cuts the window's side to a whole one."""
    side = math.isqrt(patches)
    window = int((patches / asked) ** 0.5)
    return ((side - window) // window + 1) ** 2


def class_attention(q: Tensor, k: Tensor) -> Tensor:
    """PruMerge: last layer's maps, class token first, (b, 1+s, d) each -> (b, 1, s): one head, class cut."""
    scores = q[:, :1] @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    return scores.softmax(-1)[:, :, 1:]


def outlier_share(attention: Tensor) -> Tensor:
    """(b, s) -> (b,) float64: share of patches above Q3 + 1.5 (Q3 - Q1) of their image."""
    low, high = torch.quantile(attention, torch.tensor([0.25, 0.75]).to(attention), dim=-1)
    above = attention > (high + 1.5 * (high - low)).unsqueeze(-1)
    return above.sum(-1).double() / attention.shape[-1]


class Adaptive(PruMerge):
    """PruMerge as released: the share of outliers among the patches of an image decides how many stay."""

    def choose(self, attention: Tensor) -> Kept:
        s, share = attention.shape[1], float(outlier_share(attention)[0])
        top = attention.argsort(dim=-1, descending=True, stable=True)[:, : int(s * share)]
        if self.plus and share > 0:  # three times as dense, never the last patch
            extra = torch.arange(0, s - 1, int(int(1 / share) / 3))
            top = torch.cat([top, extra[~torch.isin(extra, top)].view(1, -1)], 1)
        return Kept(top, complement(top, s))


class FixedShare(PruMerge):
    """PruMerge's fixed variant: a share of the patches is kept; with `plus` a patch may be kept twice."""

    def __init__(self, *, ratio: float, **options):
        super().__init__(**options)
        self.ratio = ratio

    def choose(self, attention: Tensor) -> Kept:
        s, step = attention.shape[1], int(1 / self.ratio)
        top = attention.argsort(dim=-1, descending=True, stable=True)[:, : int(s * self.ratio)]
        if self.plus:
            top = torch.cat([top, torch.arange(step // 2, s - 1, step).expand(len(top), -1)], 1)
        return Kept(top, complement(top, s))


class Budget(VisionZip):
    """VisionZip with any share of contextual tokens."""

    def __init__(self, *, contextual: int, **options):
        super().__init__(**options)
        self.contextual = contextual


class Protected(Matching):
    """ToMe inside a tower, where the distillation token, B's first, comes right after the class token."""

    @property
    def order(self) -> Tensor:
        """Where each output position is taken from."""
        stays, out = self.stay.shape[1], self.tokens - self.source.shape[1]
        rest = [i for i in range(out) if i not in (0, stays)]
        return torch.tensor([0, stays, *rest], device=self.stay.device)

    def sum(self, x: Tensor) -> Tensor:
        return super().sum(x)[:, self.order]

    def groups(self) -> Tensor:
        return self.order.argsort()[super().groups()]


def match_protected(metric: Tensor, r: int, class_token: bool = False, distill_token: bool = False):
    """ToMe's matching where the class token and the distillation token never merge."""
    scores = similarity(metric)
    scores[:, :class_token] = -torch.inf
    scores[:, :, :distill_token] = -torch.inf
    found = match(scores, max(0, min(r, (metric.shape[1] - class_token - distill_token) // 2)))
    if class_token:
        found = found._replace(stay=found.stay.sort(-1).values)
    return Protected(*found) if distill_token else found


def unmerge(x: Tensor, matching: Matching) -> Tensor:
    """(b, t - r, d) -> (b, t, d): every token gets a copy of the one it was merged into."""
    return x.gather(1, matching.groups().unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def schedule(layers: int, r) -> list[int]:
    """Merges per layer from ToMe's short forms: a number, (mean, slope in -1..1), or a list to fill up."""
    if isinstance(r, list):
        return r + [0] * (layers - len(r))
    mean, slope = r if isinstance(r, tuple) else (r, 0)
    first = int(mean * (1 - slope))
    step = (2 * mean - first - first) / (layers - 1)
    return [int(first + step * layer) for layer in range(layers)]


class TowerAttention(nn.Module):
    """A tower layer's attention that also gives what the selectors read: the class row and the key metric.

    (b, t, d) -> output (b, t, d), class token's attention (b, heads, t), metric (b, t, d / heads), the mean
    of the keys over heads. size (b, t, 1): its logarithm is added to the scores (ToMe's proportional
    attention).
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (b, heads, t, c)
        scores = q @ k.transpose(2, 3) * (d // self.heads) ** -0.5
        if size is not None:
            scores = scores + size.log().view(b, 1, 1, t)
        weights = scores.softmax(-1)
        out = self.proj((weights @ v).transpose(1, 2).reshape(b, t, d))
        return out, weights[:, :, 0], k.mean(1)

    def load_official(self, state: dict[str, Tensor]) -> None:
        """Names of timm (`qkv`, `proj`) or transformers' CLIP (`q_proj`, `k_proj`, `v_proj`, `out_proj`)."""
        if "qkv.weight" in state:
            self.load_state_dict(state)
            return
        packed = {f"qkv.{p}": torch.cat([state[f"{i}_proj.{p}"] for i in "qkv"]) for p in ("weight", "bias")}
        self.load_state_dict({**packed, **{f"proj.{p}": state[f"out_proj.{p}"] for p in ("weight", "bias")}})
