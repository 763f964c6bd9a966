"""Operations, bytes and memory of every stage of a request, in closed form."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from vtc import InputError
from vtc.cost.compressors import CompressorCost, compressor
from vtc.shapes import BYTES, CLIP_L_336, LLMShape, TowerShape

QUESTION_PASS = ("paid", "cached", "shared")
STAGES = ("tower", "question", "compressor", "projector", "prefill", "first", "decode")


@dataclass(frozen=True)
class Work:
    """Operations and bytes moved of one stage; scalars or arrays that broadcast."""

    flops: np.ndarray | float  # a multiply-add is two
    bytes: np.ndarray | float  # to and from the device's main memory

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __iter__(self):
        return iter((self.flops, self.bytes))

    def where(self, mask) -> Work:
        """This work where `mask` holds, none elsewhere."""
        return Work(np.where(mask, self.flops, 0.0), np.where(mask, self.bytes, 0.0))


def llm_pass(shape: LLMShape, tokens, past=0, batch=1, dtype: str = "bf16") -> Work:
    """The LLM's layers over `tokens` new tokens that also attend to `past` cached ones; no LM head."""
    flops = 2 * shape.matrices * tokens + 4 * shape.layers * shape.d * tokens * (tokens + past)
    activations = shape.layers * tokens * (10 * shape.d + 2 * shape.d_kv + 2 * shape.d_ff)
    moved = activations * BYTES[dtype] + (tokens + past) * shape.kv_bytes(dtype)
    used = np.asarray(tokens) > 0
    return Work(batch * flops * 1.0, np.where(used, shape.matrices * BYTES[dtype] + batch * moved, 0.0))


def llm_head(shape: LLMShape, batch=1, dtype: str = "bf16") -> Work:
    """The LM head on the last token of every request."""
    elements = shape.head + batch * (shape.d + shape.vocab)
    return Work(2.0 * batch * shape.head, elements * BYTES[dtype])


def llm_decode(shape: LLMShape, prompt, G, batch=1, dtype: str = "bf16") -> Work:
    """All passes that follow the first token: G - 1 of one token each, over a growing cache."""
    steps = np.maximum(np.asarray(G) - 1.0, 0.0)
    seen = steps * prompt + steps * (steps + 1) / 2  # keys read, summed over the steps
    flops = 2 * (shape.matrices + shape.head) * steps + 4 * shape.layers * shape.d * seen
    per_step = shape.layers * (10 * shape.d + 2 * shape.d_kv + 2 * shape.d_ff) + shape.d + shape.vocab
    weights = steps * (shape.matrices + shape.head) * BYTES[dtype]
    moved = per_step * steps * BYTES[dtype] + seen * shape.kv_bytes(dtype)
    return Work(batch * flops, weights + batch * moved)


def tower_pass(shape: TowerShape, images=1, dtype: str = "bf16", patches=None) -> Work:
    """The vision tower over `images` images, of fewer patches than its own where they are shrunk before."""
    s = shape.s if patches is None else patches
    t, d = s + shape.extra, shape.d
    block = 2 * t * (4 * d**2 + 2 * d * shape.d_ff) + 4 * t**2 * d
    made = shape.convolutions
    flops = shape.depth * block + 2 * s * sum(i * o * times for i, o, times in made)
    between = sum(2 * o * times for _, o, times in made[:-1])  # what each convolution hands to the next
    moved = shape.depth * t * (14 * d + 2 * shape.d_ff) + s * (3 * shape.patch**2 + between)
    return Work(1.0 * images * flops, (shape.params + np.asarray(images) * moved) * BYTES[dtype])


@dataclass(frozen=True)
class Pipeline:
    """The parts that one request goes through.

    QueCC needs a pass of the LLM over the question: `paid` for every request; `cached`, the vector is kept;
    `shared`, the question stands before the image and its KV is kept (always so for "quecc_shared").
    """

    llm: LLMShape
    tower: TowerShape = CLIP_L_336
    compressor: str = "tokenpacker"
    question: str = "paid"  # where the compressor needs a question pass: paid | cached | shared
    dtype: str = "bf16"
    features_cached: bool = False  # the tower has seen the image before

    def __post_init__(self):
        if self.question not in QUESTION_PASS:
            raise InputError(f"question pass {self.question!r} is unknown; choose {', '.join(QUESTION_PASS)}")
        if self.dtype not in BYTES:
            raise InputError(f"precision {self.dtype!r} is unknown; choose {', '.join(BYTES)}")

    def question_pass(self, part: CompressorCost) -> str | None:
        """How the question vector is come by: paid, cached or shared; None where none is needed."""
        if part.question_pass is None:
            return None
        return "shared" if part.question_pass == "shared" and self.question == "paid" else self.question


def stages(pipe: Pipeline, V, Q, G=1, batch=1, q=None) -> dict[str, Work]:
    """Work of every stage of `batch` requests of one image each.

    V visual tokens (0: no image at all), Q text tokens, G generated tokens, `q` of the Q being the question
    (default all of them). Keys are `STAGES`. `prefill` is the LLM's layers over V + Q tokens, `first` its
    head on the last one, `decode` all later tokens. With question="shared" the question's KV is kept, so that
    prefill starts after its q tokens. What reads all patches inside the LLM (FastV) or beside it
    (LLaVA-Mini's fusion) is counted where it happens.
    """
    V, Q, batch = (np.asarray(x, float) for x in (V, Q, batch))
    q = Q if q is None else np.minimum(q, Q)
    seen, prompt = V > 0, V + Q
    shape, dtype = pipe.llm, pipe.dtype
    part = compressor(pipe.compressor, pipe.tower, V, shape.d)
    through = pipe.tower.s if part.drops_after else V  # tokens that the projector makes
    patches = V if part.shrinks_image else pipe.tower.s  # patches that the tower sees
    mlp, mlp_elements = _projector(pipe, part)
    side = Work(batch * part.flops + part.fixed, (part.weights + batch * part.elements) * BYTES[dtype])
    if part.fusion_layers:
        stack = dataclasses.replace(shape, layers=np.minimum(part.fusion_layers, shape.layers))
        side += llm_pass(stack, pipe.tower.s + prompt, 0, batch, dtype)
    width = Work(2 * batch * through * mlp, (mlp + batch * through * mlp_elements) * BYTES[dtype])
    way = pipe.question_pass(part)
    kept = np.where(seen, q, 0.0) if way == "shared" else 0.0
    prefill = llm_pass(shape, prompt - kept, kept, batch, dtype)
    if part.drops_after:
        before = np.minimum(shape.layers, part.drops_after)
        early, late = (dataclasses.replace(shape, layers=n) for n in (before, shape.layers - before))
        whole = llm_pass(early, pipe.tower.s + Q, 0, batch, dtype)
        dropped = whole + llm_pass(late, prompt, 0, batch, dtype)
        prefill = Work(*(np.where(seen, a, b) for a, b in zip(dropped, prefill)))
    return {
        "tower": tower_pass(pipe.tower, batch, dtype, patches).where(seen & (not pipe.features_cached)),
        "question": llm_pass(shape, q, 0, batch, dtype).where(seen & (way in ("paid", "shared"))),
        "compressor": side.where(seen),
        "projector": width.where(seen),
        "prefill": prefill,
        "first": llm_head(shape, batch, dtype),
        "decode": llm_decode(shape, prompt, G, batch, dtype),
    }


def _projector(pipe: Pipeline, part: CompressorCost) -> tuple:
    """Weights, and elements a token, of the two-layer MLP that follows (none at the LLM's width)."""
    if part.at_llm_width:
        return 0.0, 0.0
    return pipe.tower.d * pipe.llm.d + pipe.llm.d**2, pipe.tower.d + 2 * pipe.llm.d


def flops(pipe: Pipeline, V, Q, G=1, batch=1, q=None):
    """All operations of the request."""
    return sum(work.flops for work in stages(pipe, V, Q, G, batch, q).values())


def memory(pipe: Pipeline, V, Q, G=1, batch=1) -> dict:
    """Bytes a device must hold: weights, kv, activations (the widest moment of prefill) and their total."""
    V, size, shape = np.asarray(V, float), BYTES[pipe.dtype], pipe.llm
    part = compressor(pipe.compressor, pipe.tower, V, shape.d)
    tower = 0 if pipe.features_cached else pipe.tower.params
    stack = np.minimum(part.fusion_layers, shape.layers) * shape.matrices / shape.layers
    seeing = np.where(V > 0, part.weights + stack + _projector(pipe, part)[0] + tower, 0)
    tokens = V + Q
    weights = (shape.params + seeing) * size
    kv = batch * (tokens + G) * shape.kv_bytes(pipe.dtype)
    activations = batch * (tokens * (2 * shape.d + 3 * shape.d_ff) * size + 4 * shape.vocab)
    return {"weights": weights, "kv": kv, "activations": activations, "total": weights + kv + activations}
