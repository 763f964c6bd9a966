"""What every compressor multiplies and moves, counted by running it without numbers (torch's meta device).

`python -m vtc.cost.measure [NAME ...]` (`make costs`: all names, some minutes) writes compressors.json, which
serves all readers without torch; `vtc.cost.compressors` calls `measured` for what is not in it.

A call with b images and m questions each takes `fixed + b * (image + m * question)` operations: three calls
tell the three apart. In the LLM's width D each count is a polynomial of degree two at most: three widths give
its coefficients, a fourth checks them.
"""

from __future__ import annotations

import itertools
import json
import sys

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vtc import InputError, compressors, files, profiles
from vtc.compressors.base import Compressor, Features
from vtc.cost.table import FILE, LEAST_WIDTH, Count, line, lines
from vtc.progress import bar
from vtc.shapes import CLIP_L_336, TowerShape

WORDS = 20  # of a question, where its embeddings are read
WIDTHS = (LEAST_WIDTH, 64, 96, 256)  # of the LLM: three to fit, the fourth to check
SOME_V = (1, 2, 4, 9, 16, 25, 36, 64, 100, 144, 256, 400, 576)  # of a compressor that can give more than FEW
FEW = 24


class Products(TorchDispatchMode):
    """Adds up the operations of all matrix products, and the elements that go into and come out of them."""

    flops = elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        formula = flop_registry.get(function._overloadpacket)
        if formula is None:
            with self:  # a composite operation: its parts are counted
                out = function.decompose(*args, **kwargs)
            return function(*args, **kwargs) if out is NotImplemented else out
        out = function(*args, **kwargs)
        self.flops += formula(*args, **kwargs, out_val=out)
        self.elements += sum(x.numel() for x in (*args, out) if isinstance(x, Tensor))
        return out


class NoLayers(nn.Module):
    """In the place of a side stack (class B), whose layers `vtc.cost.count` counts as the LLM's own."""

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return x


def built(name: str, tower: TowerShape, V: int, D: int) -> Compressor:
    """The compressor on the meta device; a class that cannot be made there is made on the CPU and moved."""
    shape = dict(tokens=V, grid=tower.g, d=tower.d, d_levels=tower.d_levels, d_llm=D, d_question=D)
    if compressors.find(name).fuses and V:
        from transformers import Qwen2Config

        shape["llm_config"] = Qwen2Config(hidden_size=D, intermediate_size=D, num_attention_heads=1,
                                          num_key_value_heads=1, vocab_size=1)  # fmt: skip
    try:
        with torch.device("meta"):
            return compressors.build(name, **shape).eval()
    except (NotImplementedError, RuntimeError):
        return compressors.build(name, **shape).eval().to("meta")


def traits(module: Compressor) -> dict:
    """What a request needs to know of a compressor beside its counts."""
    return {
        "at_llm_width": module.ends_at_llm,
        "question_pass": module.question_pass,
        "fusion_layers": len(module.fusion.layers) if module.fuses else 0,
        "shrinks_image": module.shrinks_image,
        "drops_after": module.layer if module.cost_class == "D" else None,
    }


def measured(name: str, tower: TowerShape, V: int, D: int) -> Count:
    """Counts of one compressor at one V."""
    module = built(name, tower, V, D)
    if module.fuses:
        module.fusion = NoLayers()
    one, two = (counted(module, tower, b, 1) for b in (1, 2))
    asked = counted(module, tower, 1, 2) if module.needs_question else one
    question, each = asked.flops - one.flops, two.flops - one.flops
    elements = two.elements - one.elements
    if not elements:  # no product: features are read, tokens written
        parts = (part for part in vars(features(module, tower, 1)).values() if part is not None)
        elements = sum(part.numel() for part in parts) + V * module.d_out
    return Count(each - question, question, one.flops - each, module.n_parameters, elements)


def blank(*shape: int) -> Tensor:
    """A tensor without numbers."""
    return torch.empty(*shape, device="meta")


def features(module: Compressor, tower: TowerShape, b: int) -> Features:
    """Features without numbers: what the compressor reads of a tower of that shape."""
    s, heads = module.side**2, tower.heads
    return Features(
        blank(b, s, tower.d),
        blank(b, s, tower.d_levels) if module.needs_levels else None,
        blank(b, heads, s) if module.needs_attention else None,
        blank(b, s, heads, tower.d // heads) if module.needs_keys else None,
        blank(b, tower.d) if module.needs_attention else None,
    )


@torch.no_grad()
def counted(module: Compressor, tower: TowerShape, b: int, m: int) -> Products:
    """One call with b images and m questions each, counted."""
    x, D = features(module, tower, b), module.d_llm
    words = (WORDS,) if module.question_source == "embeddings" else ()
    question = blank(b, m, *words, D) if module.needs_question else None
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused attention says nothing of its products
    try:
        with sdpa_kernel(SDPBackend.MATH), Products() as products:
            tokens = module(x, question)
            if module.fuses:
                text, n = blank(b, WORDS, D), x.last.shape[1] + tokens.shape[1] + WORDS
                module.fuse(x, tokens, text, blank(b, 1, n, n), blank(b, n))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return products


def polynomials(name: str, tower: TowerShape, V: int) -> list[list[float]]:
    """Coefficients of 1, D and D^2 of every count; ArithmeticError where a fourth width does not agree."""
    counts = [measured(name, tower, V, D) for D in WIDTHS[: 4 if reads_llm(name, tower, V) else 1]]
    return [_fitted(f"{name}, V = {V}: {what}", ys) for what, *ys in zip(Count._fields, *counts)]


def _fitted(what: str, ys: list[float]) -> list[float]:
    if len(set(ys)) == 1:
        return ys[:1]
    a, b, c, check = WIDTHS
    first, second = (ys[1] - ys[0]) / (b - a), (ys[2] - ys[1]) / (c - b)
    square = (second - first) / (c - a)  # Newton's divided differences
    terms = [ys[0] - first * a + square * a * b, first - square * (a + b), square]
    if abs(sum(term * check**i for i, term in enumerate(terms)) - ys[3]) > 1e-9 * abs(ys[3]):
        raise ArithmeticError(f"{what} is no polynomial of degree two in the LLM's width")
    return [int(term) if term == int(term) else term for term in terms]


def reads_llm(name: str, tower: TowerShape, V: int) -> bool:
    """Whether a compressor can only be built for an LLM of known width."""
    try:
        compressors.build(name, tokens=V, grid=tower.g, d=tower.d, d_levels=tower.d_levels)
    except InputError:
        return True
    return False


def row(name: str, tower: TowerShape, some: tuple[int, ...] = ()) -> dict:
    """One line of the table; `some`: at these V alone."""
    there = compressors.possible(name, tower.g)
    V = there if len(there) <= FEW else [v for v in there if v in (*SOME_V, there[0], there[-1])]
    counts = {str(v): polynomials(name, tower, v) for v in V if v in some or not some}
    return traits(built(name, tower, V[0], WIDTHS[0])) | {"every_V": len(V) == len(there), "counts": counts}


def towers() -> list[TowerShape]:
    """CLIP ViT-L/14-336 and the profiles' towers, each shape once."""
    shapes = (CLIP_L_336, *(p.tower for p in profiles.PROFILES.values()))
    return list({line("", tower): tower for tower in shapes}.values())


def measure(names: list[str], towers: list[TowerShape]) -> dict[str, dict]:
    """Lines of the table."""
    keys = {compressors.entry(name).key: name for name in names}  # one name of each key
    every = bar([*itertools.product(keys.items(), towers)], "compressors")
    return {line(key, tower): row(name, tower) for (key, name), tower in every}


def main(names: list[str]) -> None:
    """Write the table anew, or the lines of these compressors alone; the others stay as they are."""
    found = (lines() if names else {}) | measure(names or compressors.names(), towers())
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
    files.write(FILE, f"{{\n{rows}\n}}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
