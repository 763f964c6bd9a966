"""What is clocked: cases as flat dicts, the shapes they name, and whether this machine can run them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from vtc import InputError, compressors, cost, profiles
from vtc.machine import free_bytes, has_cuda
from vtc.profiles import Profile

STEM, PROMPTS = "03_clock", "03_prompts"  # stages against V; and against how much is asked and answered
WORDS = 128  # vocabulary of the small LLMs of the sweep
OUT_OF_MEMORY = "out of memory"


def case(llm: str, V: Iterable[int], compressors: Iterable[str] = ("quecc",), **changes) -> dict:
    """One case as a flat dict (its own key): defaults are a laptop's; `V` is written as "0 1 16".

    All its V and compressors are clocked in turn, in one process, so that they can be compared.
    """
    known = {
        "llm": llm,  # preset of vtc.cost, "profile:size", or a checkpoint (folder or hub id)
        "V": " ".join(str(v) for v in sorted(set(V))),
        "Q": 50,  # text tokens, q of them the question
        "q": 20,
        "G": 8,  # generated tokens
        "batch": 1,
        "compressors": " ".join(compressors),
        "question": "paid",  # paid | cached | shared
        "tower": "clip",  # CLIP ViT-L/14-336, or the tower of a profile by name
        "dtype": "bf16",
        "on": "cpu",  # cpu | cuda
        "baseline": False,  # also clock transformers' generate with default settings on the same weights
        "budget_s": 6,  # about how long to sample each V
        "repeat": 0,
    }
    return known | changes


def cases(p: Profile) -> list[dict]:
    """What notebook 03 clocks at a profile; anew (`recompute`) at laptop, two that take four minutes."""
    if p.name == "smoke":
        sizes, quick = [s.name for s in p.sizes], {"tower": "smoke", "budget_s": 0.2, "G": 4}
        return [case(f"smoke:{n}", p.V, batch=b, baseline=b == 1, **quick) for n, b in zip(sizes, (1, 8))]
    both = ("quecc", "tokenpacker")
    if p.name == "laptop":
        half, small = "qwen1.5-0.5b", {"tower": "laptop", "G": 16, "budget_s": 1}
        largest = f"laptop:{p.sizes[-1].name}"
        if p.recompute:
            return [
                case(half, (1, 16, 144, 576), both, baseline=True, budget_s=1),
                case(largest, p.V, both, baseline=True, **small),
            ]
        return [
            *(case(half, (0, 1, 4, 16, 36, 144, 576), both, baseline=True, repeat=r) for r in (0, 1)),
            case(half, (1, 16, 144, 576), batch=4),
            case(half, (1, 16), dtype="fp32", budget_s=4),
            case("qwen1.5-1.8b", (1, 576), budget_s=4),
            *(case(largest, p.V, both, batch=b, baseline=b == 1, **small) for b in (1, 32)),
        ]
    if p.name == "gpu":
        base, V = {"on": "cuda", "G": 32, "budget_s": 2}, (0, 1, 4, 16, 36, 144, 576)
        by = dict.fromkeys(cost.LLMS, both) | {"vicuna-7b": (*both, "pool", "mqt")}
        return [
            *(case(n, V, by[n], batch=b, baseline=b == 1, **base) for n in by for b in (1, 8, 32, 128)),
            *(case(n, V, by[n], baseline=True, repeat=1, **base) for n in ("qwen1.5-0.5b", "vicuna-7b")),
            case("vicuna-7b", V[1:], question="cached", **base),
            case("qwen1.5-0.5b", V, dtype="fp32", **base),
        ]
    return []


def prompts(p: Profile) -> list[dict]:
    """The least V and the most, under short and long texts (Q) and answers (G): what is left of the gain?"""
    asked = ((10, 8), (50, 8), (200, 8), (600, 8), (50, 2), (50, 64))
    few = ((50, 8), (600, 8), (50, 64)) if p.recompute else asked
    known = {
        "smoke": (
            f"smoke:{p.sizes[0].name}",
            p.s,
            ((50, 4), (200, 4), (50, 16)),
            {"tower": "smoke", "budget_s": 0.1},
        ),
        "laptop": ("qwen1.5-0.5b", 576, few, {"budget_s": 1}),
        "gpu": ("vicuna-7b", 576, asked, {"budget_s": 2, "on": "cuda"}),
    }
    if p.name not in known:
        return []
    llm, V, asked, base = known[p.name]
    return [case(llm, (1, V), ("tokenpacker",), Q=Q, q=min(Q, 20), G=G, **base) for Q, G in asked]


def shapes(c: dict) -> tuple[cost.LLMShape, cost.TowerShape]:
    """The shapes of a case; raises InputError for names that are not known."""
    name = c["llm"]
    tower = cost.CLIP_L_336 if c["tower"] == "clip" else profiles.get(c["tower"]).tower
    if ":" in name:
        profile, _, size = name.partition(":")
        return replace(profiles.get(profile).size(size), vocab=WORDS), tower
    if "/" in name or Path(name).is_dir():
        from vtc.models.llm import shape_of

        return shape_of(name), tower
    return cost.llm(name), tower


def needs(c: dict, V: int | None = None) -> float:
    """Bytes that a case will hold at V tokens, by default its most.

    On a CPU the engine packs a copy of the weights; the others are let go unless the baseline runs on them.
    """
    (shape, tower), V = shapes(c), max(tokens(c)) if V is None else V
    pipes = [cost.Pipeline(shape, tower, name, c["question"], c["dtype"]) for name in names(c)]
    held = [cost.memory(pipe, V, c["Q"], c["G"], c["batch"]) for pipe in pipes]
    most = max(held, key=lambda one: one["total"])
    twice = most["weights"] if c["baseline"] and c["on"] == "cpu" else 0
    return float(most["total"] + twice) + 0.6e9  # the libraries themselves


def check(c: dict) -> None:
    """Raises InputError, before anything starts, where this machine cannot run the case."""
    if c["on"] not in ("cpu", "cuda"):
        raise InputError(f"device {c['on']!r} is unknown: use cpu or cuda")
    if c["on"] == "cuda" and not has_cuda():
        raise InputError("no GPU was found here: use --device cpu, or run on a machine with CUDA")
    for name in names(c):
        found = compressors.find(name)
        inside = found.shrinks_image or found.needs_attention or found.needs_keys
        if found.cost_class != "A" or inside:
            raise InputError(f"the clock has no stage for {name}: it works in the tower or the LLM")
    want, there = needs(c), free_bytes(c["on"])
    if want > there:
        what = f"{c['llm']} in {c['dtype']} at batch {c['batch']}"
        raise InputError(f"{what} needs about {want / 1e9:.1f} GB, {there / 1e9:.1f} GB are free: go smaller")


def tokens(c: dict) -> list[int]:
    """The V of a case, rising."""
    return [int(v) for v in str(c["V"]).split()]


def names(c: dict) -> list[str]:
    """The compressors of a case."""
    return c["compressors"].split()
