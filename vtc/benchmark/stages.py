"""The torch side of the clock: builds what a case names, and times its stages on the device itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from vtc import compressors, cost, machine
from vtc.benchmark.cases import shapes, tokens
from vtc.benchmark.clock import in_turn, summary
from vtc.benchmark.peaks import DTYPES, peaks
from vtc.benchmark.reading import floor
from vtc.compressors.base import Features, mlp2x
from vtc.models.fast import Runner, quicken
from vtc.models.tower import Tower


def make_llm(name: str, shape: cost.LLMShape, dtype: torch.dtype, on: str) -> nn.Module:
    """transformers' model of a shape with random weights, or a checkpoint's, as its defaults have it."""
    from transformers import (
        AutoModelForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    if "/" in name or Path(name).is_dir():
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(on).eval()
    kinds = (Qwen2Config, Qwen2ForCausalLM) if shape.bias else (LlamaConfig, LlamaForCausalLM)

    def config(layers: int, vocab: int, d_ff: int):
        wide = {
            "hidden_size": shape.d,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
        }
        size = {"num_hidden_layers": layers, "vocab_size": vocab, "intermediate_size": d_ff}
        return kinds[0](
            **wide, **size, tie_word_embeddings=bool(shape.tied), eos_token_id=None, pad_token_id=0
        )

    with torch.device("meta"):
        model = kinds[1](config(shape.layers, shape.vocab, shape.d_ff))
    tables = dict(
        kinds[1](config(1, 8, 8)).named_buffers()
    )  # rotary tables are no weights, the same at any size
    model = model.to(dtype).to_empty(device=on)
    generator = torch.Generator(on).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1) if parameter.dim() == 1 else parameter.uniform_(
                -0.02, 0.02, generator=generator
            )
        for buffer_name, buffer in model.named_buffers():
            buffer.copy_(tables[buffer_name])
    model.tie_weights()
    return model.eval()


class Bench:
    """One case: LLM, runner and tower stay; a compressor is built for each V."""

    def __init__(self, c: dict):
        self.c, self.on, self.dtype = c, c["on"], DTYPES[c["dtype"]]
        self.shape, self.tower_shape = shapes(c)
        self.batch = c["batch"]
        torch.manual_seed(0)
        self.origin = {"device": machine.device_name(self.on)} | (
            machine.driver() if self.on == "cuda" else {"threads": torch.get_num_threads()}
        )
        self.peaks = peaks(self.on, c["dtype"], quick=c["budget_s"] < 0.5)
        self.room = max(tokens(c)) + c["Q"] + c["G"]
        self.pipe = cost.Pipeline(self.shape, self.tower_shape, c["compressor"], c["question"], c["dtype"])
        self.way = self.pipe.question_pass(
            cost.compressor(c["compressor"], self.tower_shape, 1, self.shape.d)
        )
        self.baseline = make_llm(c["llm"], self.shape, self.dtype, self.on)
        self.baseline.generation_config.eos_token_id = None  # every request makes all G tokens
        self.runner = Runner(self.baseline, self.room, self.batch, release=not c["baseline"])
        tower, pixels = Tower(self.tower_shape), self.tower_shape.pixels
        self.tower = quicken(tower.to(self.on, self.dtype).eval().requires_grad_(False))
        self.images = torch.zeros(self.batch, pixels, pixels, 3, dtype=torch.uint8, device=self.on)
        self.text = self._embedded(c["Q"])
        self.seen_tower = False

    def _embedded(self, tokens: int) -> Tensor:
        ids = torch.arange(self.batch * tokens, device=self.on).view(self.batch, -1) % self.shape.vocab
        return torch.nn.functional.embedding(ids, self.runner.embedding)

    @torch.inference_mode()
    def rows(self, V: int) -> list[dict]:
        """Every stage at V visual tokens: its times, its counted floor, what binds, memory."""
        machine.forget_peak(self.on)
        calls = self.calls(V)
        c, steps = self.c, self.c["G"] - 1
        taken = in_turn(calls, self.on, c["budget_s"], label=f"{c['llm']} V={V}")
        taken["decode"] = [ms / steps for ms in taken["decode"]]
        work = cost.stages(self.pipe, V, c["Q"], c["G"], self.batch, c["q"])
        work["decode"] = cost.Work(work["decode"].flops / steps, work["decode"].bytes / steps)
        kv = self.batch * (V + c["Q"] + c["G"]) * float(self.shape.kv_bytes(c["dtype"]))
        same = {"tokens": V, "status": "ok", "N": float(self.shape.N)} | self.origin | self.peaks
        same |= {
            "peak_bytes": machine.peak_bytes(self.on),
            "kv_bytes": kv,
            "load": round(os.getloadavg()[0], 2),
        }
        return [
            {**same, "stage": s, **_floor(s, work, self.peaks, ms), **summary(ms)} for s, ms in taken.items()
        ]

    def calls(self, V: int) -> dict[str, Callable]:
        """Stage -> a call that does it once, on inputs made beforehand."""
        c, run, q = self.c, self.runner, self.c["q"]
        calls: dict[str, Callable] = {}
        question = self.text[:, :q]
        before, past = self.text, 0
        if V:
            features = self.tower(self.images)
            compress, project, reads = self._eyes(V, features)
            asked = run.prefill(question) if self.way else question if reads else None
            visual = compress(asked)
            if not self.seen_tower:  # the same at every V: once is enough
                calls["tower"] = lambda: self.tower(self.images)
                self.seen_tower = True
            if self.way in ("paid", "shared"):
                calls["question"] = lambda: run.prefill(question)
            calls["compressor"] = lambda: compress(asked)
            if project is not None:
                calls["projector"] = lambda: project(visual)
            past = q if self.way == "shared" else 0
            seen = visual if project is None else project(visual)
            before = torch.cat([seen, self.text[:, past:]], 1)
        ready = run.prefill(before, past)
        end, steps = past + before.shape[1], c["G"] - 1

        def until_first() -> None:
            x = self.text
            if V:
                z = compress(run.prefill(question) if self.way in ("paid", "shared") else asked)
                x = torch.cat([z if project is None else project(z), self.text[:, past:]], 1)
            run.first(run.prefill(x, past))

        calls["prefill"] = lambda: run.prefill(before, past)
        calls["first"] = lambda: run.first(ready)
        calls["ttft"] = until_first
        calls["decode"] = lambda: run.decode(steps, end, self.batch)
        if self.on == "cuda":
            calls["decode without graph"] = lambda: self._plain_decode(steps, end)
        if c["baseline"] and past == 0:
            calls |= self._beside(before)
        return calls

    def _plain_decode(self, steps: int, end: int) -> None:
        self.runner.graph = False
        self.runner.decode(steps, end, self.batch)
        self.runner.graph = True

    def _beside(self, x: Tensor) -> dict[str, Callable]:
        """Ours and transformers' generate, default settings, from the same embeddings, in turn."""

        def theirs(G: int) -> Callable:
            return lambda: self.baseline.generate(inputs_embeds=x, max_new_tokens=G, do_sample=False)

        G = self.c["G"]
        ours = {
            "ours one token": lambda: self.runner.generate(x, 1),
            "ours all tokens": lambda: self.runner.generate(x, G),
        }
        return ours | {"baseline one token": theirs(1), "baseline all tokens": theirs(G)}

    def _eyes(self, V: int, features: Features) -> tuple[Callable, nn.Module | None, bool]:
        """Compressor on these features, its projector, and whether it reads the question.

        The projector is None where the compressor ends at the LLM's width.
        """
        t, d = self.tower_shape, self.shape.d
        shape = {"tokens": V, "grid": t.g, "d": t.d, "d_levels": t.d_levels, "d_llm": d, "d_question": d}
        module = compressors.build(self.c["compressor"], **shape)
        project = None if module.ends_at_llm else mlp2x(t.d, d, d)
        for part in (module, project):
            if part is not None:
                part.to(self.on, self.dtype).eval().requires_grad_(False)
        reads = module.needs_question
        return (lambda asked: module(features, asked) if reads else module(features)), project, reads


def _floor(stage: str, work: dict, peaks: dict[str, float], samples: list[float]) -> dict:
    """Counted operations and bytes of a stage, the least it can take here, and the share of it reached."""
    names = cost.STAGES[1:-1] if stage == "ttft" else (stage,)
    parts = [[float(work[name].flops), float(work[name].bytes)] for name in names if name in work]
    if not parts:
        return {"parts": None}
    flops, moved = (sum(side) for side in zip(*parts))
    median = sorted(samples)[len(samples) // 2]
    least = floor(parts, median, peaks["peak_flops"], peaks["bandwidth"])
    return {"flops": flops, "bytes": moved, **least, "parts": parts}
