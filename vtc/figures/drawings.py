"""The lessons' drawings: the whole model, a compressor's window, the block mask, the roofline.

No number is typed in: shapes come from `vtc.shapes`, seconds from `vtc.cost`, the mask from the prompt that
the model reads. `python -m vtc.figures.drawings` writes those that the pages use to docs/drawings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtc import InputError, cost, profiles
from vtc.figures.svg import NORMAL, SMALL, WIDTH, Drawing, arrow, box, cell, labelled, line, shape, words
from vtc.shapes import BYTES, CLIP_L_336, LLMShape, TowerShape, llm

PARTS = ("image", "tower", "compressor", "question", "prompt", "llm", "answer")
LEFT, RIGHT, MIDDLE = 14, WIDTH - 14, 110  # margins, and the line along which the model's parts stand


@dataclass(frozen=True)
class Size:
    """What the drawings print: a tower, an LLM, V visual and Q text tokens."""

    tower: TowerShape
    llm: LLMShape
    V: int
    Q: int
    name: str

    @property
    def n(self) -> int:
        """Windows along a side; raises InputError where V does not divide the grid into squares."""
        n = math.isqrt(self.V)
        if n * n != self.V or n == 0 or self.tower.g % n:
            g = self.tower.g
            raise InputError(f"V = {self.V} does not divide {g} x {g} patches into square windows")
        return n

    @property
    def k(self) -> int:
        return self.tower.g // self.n


PAPER = Size(CLIP_L_336, llm("7"), 16, 50, "CLIP ViT-L/14-336 and Qwen1.5-7B")


def of(profile: profiles.Profile, V: int, Q: int, size: LLMShape | None = None) -> Size:
    """The sizes of a profile: its tower and an LLM of it (the largest where none is given)."""
    shown = profile.sizes[-1] if size is None else size
    return Size(profile.tower, shown, V, Q, f"profile {profile.name}, LLM {shown.name}")


def count(n: float) -> str:
    """6.48 billion; 641,024."""
    return f"{n / 1e9:.3g} billion" if n >= 1e8 else f"{n:,.0f}"


def flop(n: float) -> str:
    """855 GFLOP; 2.1 MFLOP."""
    unit, name = next(((u, x) for u, x in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if n >= u), (1e3, "k"))
    return f"{n / unit:.3g} {name}FLOP"


def model(size: Size = PAPER, lit: str | Sequence[str] = ()) -> Drawing:
    """The whole model from image to answer, with shapes and token counts on the arrows.

    lit: parts (of `PARTS`) to highlight, one or several; raises InputError for others.
    """
    lit = {lit} if isinstance(lit, str) else set(lit)
    if lit - set(PARTS):
        raise InputError(f"no such part: {', '.join(sorted(lit - set(PARTS)))}; parts: {', '.join(PARTS)}")
    kind = {part: "lit" if part in lit else "box" for part in PARTS}
    t, V, Q, d_llm = size.tower, size.V, size.Q, size.llm.d
    spread = 320
    a = V / (V + Q) * spread  # the visual share of the prompt's bar
    tokens = [
        box(20, 292, a, 22, "lit" if "prompt" in lit else "seen") if V else "",
        box(20 + a, 292, spread - a, 22, "text lit-edge" if "prompt" in lit else "text") if Q else "",
        words(20, 328, f"V = {V} visual", what="V"),
        words(340, 328, f"Q = {Q} text tokens", anchor="end", what="Q"),
    ]
    pieces = [
        words(LEFT, 37, f"b images; {size.name}"),
        *_grid(MIDDLE - 28, 50, 56, t.g, "seen" if "image" in lit else "off"),
        words(150, 64, "image", NORMAL, bold=True),
        words(150, 80, shape("b", t.pixels, t.pixels, 3), what="image"),
        words(150, 96, f"{t.g} x {t.g} = {t.s} patches", what="patches"),
        arrow(MIDDLE, 106, MIDDLE, 126),
        labelled(20, 126, 180, 40, kind["tower"], "vision tower", f"frozen, {len(t.levels)} layers are read"),
        arrow(MIDDLE, 166, MIDDLE, 204),
        words(122, 188, f"features (b, s, d) = {shape('b', t.s, t.d)}", what="features"),
        labelled(20, 204, 180, 40, kind["compressor"], "compressor, projector",
                 f"{t.s} patches -> {V} token{'s' * (V != 1)}"),
        arrow(256, 224, 202, 224, dashed=True),
        words(228, 217, "QueCC", SMALL, "middle"),
        labelled(256, 204, 84, 40, kind["question"], "question", "words"),
        arrow(MIDDLE, 244, MIDDLE, 290),
        words(122, 262, "(b, V, d_llm)"),
        words(122, 277, f"= {shape('b', V, d_llm)}", what="visual tokens"),
        arrow(298, 244, 298, 290),
        words(291, 262, "(b, Q, d_llm)", anchor="end"),
        words(291, 277, f"= {shape('b', Q, d_llm)}", anchor="end", what="text tokens"),
        *tokens,
        arrow(MIDDLE, 333, MIDDLE, 358),
        words(122, 349, f"prompt: {shape('b', V + Q, d_llm)}", what="prompt"),
        labelled(20, 358, spread, 54, kind["llm"], "LLM", n := f"N = {count(size.llm.N)} parameters",
                 two := f"cost about 2 N (V + Q) = {flop(2 * size.llm.N * (V + Q))}",
                 what={n: "N", two: "cost"}),
        arrow(MIDDLE, 412, MIDDLE, 436),
        words(122, 428, "one token a pass, G in all"),
        labelled(55, 436, 110, 26, kind["answer"], "answer"),
    ]  # fmt: skip
    said = (
        f"An image of {t.g} x {t.g} patches goes through a frozen vision tower, which gives {t.s} features "
        f"of width {t.d}. A compressor makes {V} visual tokens of width {d_llm} from them; QueCC also reads "
        f"the question. Visual tokens and {Q} text tokens form the prompt of an LLM with {count(size.llm.N)} "
        "parameters, which writes the answer one token at a time."
    )
    return Drawing("From an image to an answer", said, 472, tuple(pieces))


def _grid(x: float, y: float, side: float, g: int, kind: str) -> list[str]:
    """A square cut into g x g."""
    cuts = [side * i / g for i in range(1, g)]
    path = "".join(f"M{x + c:.3g} {y}v{side}M{x} {y + c:.3g}h{side}" for c in cuts)
    return [cell(x, y, side, side, kind), f'<path class="rule" d="{path}"/>']


def middle_patches(k: int) -> set[tuple[int, int]]:
    """The patches of a k x k window that TokenPacker's query is made from: the middle one, or the four."""
    rows = range((k - 1) // 2, k // 2 + 1)
    return {(y, x) for y in rows for x in rows}


def window(name: str, size: Size = PAPER, heads: int = 8) -> Drawing:
    """One window of "tokenpacker" or "quecc": what query, keys and values are made of, and the token."""
    titles = {"tokenpacker": "TokenPacker", "quecc": "QueCC"}
    if name not in titles:
        raise InputError(f"no drawing of {name!r}: use one of {', '.join(titles)}")
    t, V, n, k, steered = size.tower, size.V, size.n, size.k, name == "quecc"
    every = {(y, x) for y in range(k) for x in range(k)}
    query = every if steered else middle_patches(k)
    at = (n > 1) * 1  # the window that is drawn large: the second along both sides, where there is one
    wide, step = 112, 112 / n
    grid = [cell(24 + step * x, 50 + step * y, step, step, "seen" if (y, x) == (at, at) else "off")
            for y in range(n) for x in range(n)]  # fmt: skip
    patch = wide / k
    large = [cell(224 + patch * x, 50 + patch * y, patch, patch, "on" if (y, x) in query else "seen",
                  "query" if (y, x) in query else "") for y in range(k) for x in range(k)]  # fmt: skip
    corner = 24 + step * (at + 1)
    pieces = [
        words(LEFT, 37, f"k = {k}: V = ({t.g} / {k})^2 = {V} window{'s' * (V > 1)}", what="V"),
        *grid,
        line(corner, 50 + step * at, 224, 50, "rule"),
        line(corner, 50 + step * (at + 1), 224, 162, "rule"),
        *large,
        words(80, 178, f"features {shape('b', t.s, t.d)}", SMALL, "middle", what="features"),
        words(280, 178, f"{k} x {k} = {k * k} patch{'es' * (k > 1)}", SMALL, "middle", what="window"),
    ]
    top = 192
    if steered:
        pieces += [
            labelled(18, top, 156, 44, "text", "question vector", q := shape("b", size.llm.d),
                     what={q: "question"}),
            words(184, top + 18, "the LLM's last state"),
            words(184, top + 33, "at the question's end"),
            arrow(96, top + 44, 96, top + 64),
            words(104, top + 58, "added to every patch"),
        ]  # fmt: skip
        top += 64
    made = "MLP, then k x k convolution" if steered else "middle, linear, norm"
    queries, pairs = shape("b", V, t.d), shape("b", t.s, t.d)
    out = shape("b", V, t.d if steered else size.llm.d)
    last = "projector: " + shape("b", V, size.llm.d) if steered else "an MLP brings it to the LLM's width"
    pieces += [
        labelled(18, top, 156, 58, "lit", "query, dark patches", made, queries, what={queries: "queries"}),
        labelled(186, top, 156, 58, "box", "keys and values", f"{len(t.levels)} layers, MLP, norm",
                 f"{pairs} each", what={f"{pairs} each": "keys"}),
        arrow(96, top + 58, 96, top + 80),
        arrow(264, top + 58, 264, top + 80),
        labelled(18, top + 80, 324, 44, "box", "attention inside the window",
                 w := f"{k * k} weights a head, {heads} heads; each adds up to 1", what={w: "weights"}),
        arrow(180, top + 124, 180, top + 146),
        labelled(60, top + 146, 240, 58, "lit", "one token a window", out, last,
                 what={out: "out", last: "last"}),
    ]  # fmt: skip
    how = (
        "its queries know the question, whose vector is added to every patch; a learned convolution shrinks "
        "them to one query a window"
        if steered
        else "its query is the middle of the window, seen coarsely; the question plays no part"
    )
    said = (
        f"The grid of {t.g} x {t.g} patches is cut into {V} windows of {k} x {k}. In each, one query attends "
        f"to the window's {k * k} patches, whose keys and values come from {len(t.levels)} layers of the "
        f"tower: {how}. The weighted sum is one visual token."
    )
    return Drawing(f"{titles[name]}: one window, one token", said, top + 214, tuple(pieces))


def example_mask() -> tuple[list[str], np.ndarray]:
    """The prompt of the docstring of `vtc.models.prompt`, as the model lays it out and masks it.

    Two visual tokens and two questions, "a b" with the answer "x", and "c" -> names of the six columns, and
    (6, 6) whether a row's token sees a column's.
    """
    import torch

    from vtc.models.prompt import HIDDEN, ImageSlot, asked, lay_out, pack

    packed = pack([[asked([1, 2], [3]), asked([4])]], pad=0)
    layout = lay_out(packed, torch.ones(1, 2, dtype=torch.bool), ImageSlot(2))
    return ["v1", "v2", "a", "b", "x", "c"], (layout.mask(torch.float32)[0, 0] > HIDDEN).numpy()


def block_mask(names: Sequence[str], sees: np.ndarray) -> Drawing:
    """Who sees whom: a row for each token, a filled square for each token that it sees; sees (n, n) bool."""
    n, left, top = len(names), 60, 74
    side = (RIGHT - 30 - left) / n
    pieces = [words(LEFT, 37, "filled: the row's token sees the column's")]
    for i, name in enumerate(names):
        pieces.append(words(left + side * (i + 0.5), top - 8, name, NORMAL, "middle"))
        pieces.append(words(left - 10, top + side * (i + 0.5) + 4, name, NORMAL, "end"))
    for i, j in np.ndindex(n, n):
        kind = "on" if sees[i, j] else "off"
        pieces.append(cell(left + side * j, top + side * i, side, side, kind, f"{names[i]},{names[j]}"))
    rows = ", ".join(
        f"{a} sees {' '.join(b for b, s in zip(names, row) if s)}" for a, row in zip(names, sees)
    )
    title = "Two questions behind one image"
    return Drawing(title, f"A grid of tokens: {rows}.", round(top + side * n + 16), tuple(pieces))


def ridge(device: cost.Hardware, dtype: str = "bf16") -> float:
    """Tokens of a pass from which arithmetic takes longer than reading the weights.

    t tokens need 2 t operations a weight, whose bytes are read once: t = peak bytes / (2 bandwidth).
    """
    return (
        device.peak[dtype]
        * device.compute_share
        * BYTES[dtype]
        / (2 * device.bandwidth * device.bandwidth_share)
    )


def roofline(
    device: cost.Hardware | None = None, shape_: LLMShape = PAPER.llm, Q: int = 50, V=(1, 16, 144, 576)
) -> Drawing:
    """The least time of one pass through an LLM's matrices against its tokens, and where the corner lies."""
    device = device or cost.hardware("h200")
    tokens = np.array([1.0, 3000.0])
    x0, x1, y0, y1 = 46, RIGHT, 268, 76  # the axes' ends

    def ms(t) -> float:
        work = cost.Work(2.0 * shape_.matrices * t, shape_.matrices * BYTES["bf16"])
        return float(cost.seconds(work, device) * 1e3)

    low, high = ms(1) / 2, ms(tokens[1]) * 1.3
    corner = ridge(device)

    def at(t, y) -> tuple[float, float]:
        along, up = np.log(t) / np.log(tokens[1]), np.log(y / low) / np.log(high / low)
        return x0 + along * (x1 - x0), y0 + up * (y1 - y0)

    path = "L".join("{:.1f} {:.1f}".format(*at(t, ms(t))) for t in (1, corner, tokens[1]))
    foot = at(corner, low)
    pieces = [
        words(LEFT, 37, "time >= max(operations / peak, bytes / bandwidth)"),
        words(LEFT, 54, f"{shape_.name}, {device.name.upper()}, 16 bits, Q = {Q}"),
        line(x0, y0, x1, y0),
        line(x0, y0, x0, y1),
        *(words(at(t, 1)[0], y0 + 15, f"{t}", SMALL, "middle") for t in (1, 10, 1000)),
        words((x0 + x1) / 2, y0 + 32, "tokens in the pass, V + Q", SMALL, "middle"),
        *(words(x0 - 5, at(1, y)[1] + 4, f"{y:g}", SMALL, "end") for y in _ticks(low, high)),
        words(x0 - 30, y1 - 6, "ms"),
        f'<path class="curve" d="M{path}"/>',
        line(*at(corner, ms(corner)), *foot, "line dash"),
        words(foot[0], y0 + 15, f"{corner:.0f}", SMALL, "middle", bold=True, what="ridge"),
        words(x0 + 8, at(1, ms(1))[1] + 18, f"reads the weights: {ms(1):.2g} ms", what="flat"),
        words(at(corner, 1)[0] + 12, at(1, low)[1] - 22, "does arithmetic"),
    ]
    for v in V:
        x, y = at(v + Q, ms(v + Q))
        pieces.append(f'<circle class="tip" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    for v in (V[0], V[-1]):
        x, y = at(v + Q, ms(v + Q))
        pieces.append(words(x - 8, y - 8, f"V = {v}", SMALL, "end", what=f"{ms(v + Q):.6g} ms"))
    said = (
        f"The least time of one pass of {shape_.name} on {device.name.upper()} is flat, {ms(1):.2g} "
        f"milliseconds, up to {corner:.0f} tokens, because the weights must be read; beyond, it grows with "
        f"the tokens. Dots: V = {', '.join(map(str, V))} visual tokens beside {Q} of text."
    )
    return Drawing("Fewer tokens save time only beyond the corner", said, 312, tuple(pieces))


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... between two numbers."""
    steps = [m * 10.0**e for e in range(-6, 7) for m in (1, 2, 5)]
    return [s for s in steps if low < s < high]


def pages() -> dict[str, Drawing]:
    """The drawings of docs/drawings by file name."""
    lit = {f"model-{part}": model(lit=part) for part in ("tower", "compressor", "llm")}
    return {
        "model": model(),
        **lit,
        "window-tokenpacker": window("tokenpacker"),
        "window-quecc": window("quecc"),
        "block-mask": block_mask(*example_mask()),
        "roofline": roofline(),
    }


if __name__ == "__main__":
    for stem, drawing in pages().items():
        drawing.save(Path(profiles.ROOT) / "docs" / "drawings" / f"{stem}.svg")
