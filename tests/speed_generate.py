"""`VLM.generate` beside transformers' `generate`, in turn, bf16, batch 1: `python tests/speed_generate.py`.

Both start from the same features and question and end with text. A ratio above 1: ours is faster;
taken in turn, they hold on a busy machine.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers import Qwen2ForCausalLM

from vtc import shapes
from vtc.compressors.base import Features
from vtc.models.llm import make_llm, make_tokenizer
from vtc.models.vlm import VLM, VLMConfig

SHAPES = {
    "sweep": shapes.LLMShape("sweep", d=128, layers=3, heads=8, d_ff=352, tied=True),
    "0.5b": shapes.LLMS["qwen1.5-0.5b"],
}
QUESTION = "what shape is the red one ?"


def build(shape: shapes.LLMShape, V: int, compressor: str = "pool") -> VLM:
    """A random model of that shape in bf16, its tokenizer the small world's words."""
    torch.manual_seed(0)
    tower = {"d": 64, "layers": 4, "heads": 4, "patch": 4, "levels": (3, 4), "pixels": 96}
    tokenizer = make_tokenizer()
    ours = make_llm(shape, shape.vocab or len(tokenizer)).bfloat16()
    with torch.device("meta"):  # transformers' own attention and norms, on the same weights
        llm = Qwen2ForCausalLM._from_config(ours.config, attn_implementation="sdpa")
    llm.load_state_dict(ours.state_dict(), assign=True)
    llm.model.rotary_emb = ours.model.rotary_emb  # its table is no weight
    llm.tie_weights()
    config = VLMConfig(llm=llm.config.to_dict(), tower=tower, grid=24, compressor=compressor, tokens=V)
    return VLM(config, llm, tokenizer).bfloat16().eval()


@torch.no_grad()
def theirs(model: VLM, features: Features, question: str, G: int) -> torch.Tensor:
    """The same prompt through transformers' generate, default settings."""
    ids = model.tokenizer(question, return_tensors="pt")["input_ids"]
    z = model.encode_image(model.here(features))[0]
    x = torch.cat([z.to(model.llm.dtype), model.llm.get_input_embeddings()(ids)], 1)
    said = model.llm.generate(inputs_embeds=x, max_new_tokens=G, min_new_tokens=G, do_sample=False)
    model.tokenizer.batch_decode(said, skip_special_tokens=True)
    return said


def compare(model: VLM, G: int, turns: int) -> dict[str, float]:
    """Median milliseconds of both and the median of the turns' ratios."""
    s = model.config.grid**2
    levels = torch.randn(1, s, 128, generator=torch.Generator().manual_seed(0))
    features = Features(last=levels[..., -64:], levels=levels)
    model.llm.generation_config.eos_token_id = None
    calls = {
        "theirs": lambda: theirs(model, features, QUESTION, G),
        "ours": lambda: model.generate(features, [QUESTION], G),
    }
    taken = {name: [] for name in calls}
    for i in range(turns + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i > 1:  # the first ones warm up
                taken[name].append(1e3 * (time.perf_counter() - start))
    ratio = statistics.median(a / b for a, b in zip(taken["theirs"], taken["ours"]))
    return {name: statistics.median(ms) for name, ms in taken.items()} | {"ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="sweep")
    parser.add_argument("--V", type=int, nargs="+", default=[1, 16, 144, 576])
    parser.add_argument("--G", type=int, nargs="+", default=[1, 9, 64])
    parser.add_argument("--turns", type=int, default=20)
    args = parser.parse_args()
    for V in args.V:
        model = build(SHAPES[args.shape], V)
        for G in args.G:
            found = compare(model, G, args.turns)
            print(f"{args.shape} V={V} G={G}: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items()))


if __name__ == "__main__":
    main()
