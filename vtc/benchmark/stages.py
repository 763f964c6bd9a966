"""The torch side of the clock: a model of the case's shapes, and every part of its `VLM.generate` timed.

    tower -> question (where the compressor reads it) -> compressor -> projector -> prefill -> first -> decode

The parts are those that answer users: the model's own compressor and projector, and the engine of
`vtc.models.generate`. All V and all compressors of a case are timed in turn, the tower once a turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vtc import cost, machine
from vtc.benchmark.cases import WORDS, names, shapes, tokens
from vtc.benchmark.clock import in_turn, summary
from vtc.benchmark.peaks import DTYPES, peaks
from vtc.benchmark.reading import floor
from vtc.models import generate
from vtc.models.llm import empty_llm, llm_config, make_tokenizer
from vtc.models.runner import Runner
from vtc.models.tower import Tower
from vtc.models.vlm import VLM, VLMConfig
from vtc.shapes import LLMShape

Key = tuple[int, str, str]  # V, compressor ("": the same for all), stage


def random_llm(shape: LLMShape, dtype: torch.dtype, device: str) -> nn.Module:
    """transformers' LLM of that shape with its default attention, weights drawn on the device."""
    config = llm_config(shape, shape.vocab)
    with torch.device("meta"):
        llm = empty_llm(config, "sdpa")
    rotary = type(llm.model.rotary_emb)(config=config).to(device)  # tables are computed, not weights
    llm = llm.to(dtype).to_empty(device=device)
    llm.model.rotary_emb = rotary
    llm.tie_weights()
    draw = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for weight in llm.parameters():
            weight.fill_(1) if weight.dim() == 1 else weight.uniform_(-0.02, 0.02, generator=draw)
    return llm


def make_llm(name: str, shape: LLMShape, dtype: torch.dtype, device: str) -> nn.Module:
    """A checkpoint's LLM, or one of that shape with random weights, as transformers' defaults have it."""
    from transformers import AutoModelForCausalLM

    if "/" in name or Path(name).is_dir():
        llm = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device)
    else:
        llm = random_llm(shape, dtype, device)
    llm.generation_config.eos_token_id = None  # every request makes all G tokens
    return llm.eval().requires_grad_(False)


class Bench:
    """One case: the LLM, its engine and the tower stay; a model is put together for each compressor and V."""

    @torch.inference_mode()
    def __init__(self, c: dict):
        self.c, self.on, self.dtype, self.batch = c, c["on"], DTYPES[c["dtype"]], c["batch"]
        self.shape, self.eyes = shapes(c)
        torch.manual_seed(0)
        self.origin = {"device": machine.device_name(self.on), "threads": torch.get_num_threads()}
        self.origin |= machine.driver() if self.on == "cuda" else {}
        self.peaks = peaks(self.on, c["dtype"], quick=c["budget_s"] < 0.5)
        self.tokenizer = make_tokenizer(tuple(f"word{i}" for i in range(WORDS - 3)))  # and three special ones
        self.llm = make_llm(c["llm"], self.shape, self.dtype, self.on)
        self.llm.lm_head.weight[self.tokenizer.eos_token_id] = 0  # no answer ends early
        if c["baseline"]:
            self.engine = generate.engine_of(self.llm, self.dtype)
        else:  # nobody else needs the weights: memory holds them once
            self.engine = Runner(self.llm, self.dtype, release=True)
        self.engine.kept = len(tokens(c)) + 1  # a size of request each, and one to spare: all V are in turn
        self.tower = Tower(self.eyes).to(self.on, self.dtype).eval().requires_grad_(False)
        side = self.eyes.pixels
        self.images = torch.zeros(self.batch, side, side, 3, dtype=torch.uint8, device=self.on)
        self.features = self.tower(self.images)
        ids = torch.tensor(self.tokenizer(self.question)["input_ids"], device=self.on)
        self.text = self.llm.get_input_embeddings()(ids.expand(self.batch, -1))  # (b, Q, d)

    @property
    def question(self) -> str:
        """A text of Q tokens."""
        return " ".join(f"word{i % (WORDS - 3)}" for i in range(self.c["Q"]))

    @torch.inference_mode()
    def rows(self) -> list[dict]:
        """A row a V, compressor and stage: its times, its counted floor, what binds, the memory of that V."""
        calls, peak = {}, {}
        for V in tokens(self.c):
            self.engine.release()  # the memory of this V alone
            machine.forget_peak(self.on)
            now = self.calls(V)
            for call in now.values():
                call()
            calls, peak[V] = calls | now, machine.peak_bytes(self.on)
        budget = self.c["budget_s"] * len(peak)
        warm_up = int(self.on == "cuda")  # graphs are captured anew; a CPU is warm
        taken = in_turn(calls, self.on, budget, warm_up=warm_up, label=self.c["llm"])
        return [
            self._row(V, name, stage, ms, peak[V])
            for name in names(self.c)
            for (V, whose, stage), ms in taken.items()
            if whose in ("", name)
        ]

    def _row(self, V: int, name: str, stage: str, ms: list[float], peak_bytes: float) -> dict:
        c, steps = self.c, max(self.c["G"] - 1, 1)
        work = cost.stages(self._pipe(name), V, c["Q"], c["G"], self.batch, c["q"])
        work["decode"] = cost.Work(work["decode"].flops / steps, work["decode"].bytes / steps)
        if stage.startswith("decode"):
            ms = [x / steps for x in ms]
        kv = self.batch * (V + c["Q"] + c["G"]) * float(self.shape.kv_bytes(c["dtype"]))
        same = {"tokens": V, "compressor": name, "stage": stage, "status": "ok", "N": float(self.shape.N)}
        same |= {"peak_bytes": peak_bytes, "kv_bytes": kv, "load": round(os.getloadavg()[0], 2)}
        return same | self.origin | self.peaks | _floor(stage, work, self.peaks, ms) | summary(ms)

    def _pipe(self, name: str) -> cost.Pipeline:
        return cost.Pipeline(self.shape, self.eyes, name, self.c["question"], self.c["dtype"])

    def calls(self, V: int) -> dict[Key, Callable]:
        """A call for every stage at V tokens that does it once, on inputs made beforehand."""
        if not V:
            return self._answer(0, "", self.text, 0)
        calls: dict[Key, Callable] = {}
        first = names(self.c)[0]
        if V == min(v for v in tokens(self.c) if v):  # the tower does the same at every V: once a turn
            calls[V, first, "tower"] = lambda: generate.quick_tower(self.tower)(self.images)
        for name in names(self.c):
            calls |= self._request(V, name, beside=self.c["baseline"] and name == first)
        return calls

    def model(self, V: int, name: str) -> VLM:
        """The model that answers with V tokens of that compressor."""
        parts = {"llm": self.llm.config.to_dict(), "tower": asdict(self.eyes)}
        config = VLMConfig(**parts, grid=self.eyes.g, compressor=name, tokens=V)
        model = VLM(config, self.llm, self.tokenizer, self.tower).eval().requires_grad_(False)
        for part in (model.compressor, model.projector):
            part.to(self.on, self.dtype)
        return model

    def _request(self, V: int, name: str, beside: bool) -> dict[Key, Callable]:
        model, engine, pipe = self.model(V, name), self.engine, self._pipe(name)
        way = pipe.question_pass(cost.compressor(name, self.eyes, V, self.shape.d))
        paid, past = way in ("paid", "shared"), self.c["q"] if way == "shared" else 0
        question, rest, seen = self.text[:, : self.c["q"]], self.text[:, past:], self.features

        def ask() -> Tensor:
            engine.reserve(self.batch, V + self.c["Q"] + self.c["G"])
            return engine.prefill(question)  # (b, 1, d)

        asked = None
        if model.compressor.needs_question:  # word embeddings (b, 1, q, d), or a hidden state (b, 1, d)
            words = model.compressor.question_source == "embeddings"
            asked = question.unsqueeze(1) if words else ask()
        z = model.compressor(seen, asked)

        def until_first() -> Tensor:
            z = model.projector(model.compressor(seen, ask() if paid else asked))
            return engine.first(self._prefill(torch.cat([z, rest], 1), past))

        calls: dict[Key, Callable] = {(V, name, "ttft"): until_first}
        calls[V, name, "compressor"] = lambda: model.compressor(seen, asked)
        if paid:
            calls[V, name, "question"] = ask
        if not isinstance(model.projector, nn.Identity):
            calls[V, name, "projector"] = lambda: model.projector(z)
        x = torch.cat([model.projector(z), rest], 1)  # (b, V + Q - past, d)
        calls |= self._answer(V, name if past else "", x, past)
        return calls | (self._beside(V, name, model) if beside else {})

    def _prefill(self, x: Tensor, past: int) -> Tensor:
        if not past:
            self.engine.reserve(self.batch, x.shape[1] + self.c["G"])
        return self.engine.prefill(x, past)

    def _answer(self, V: int, whose: str, x: Tensor, past: int) -> dict[Key, Callable]:
        """The stages of the LLM over prompts x (b, t, d), which are the same whatever made the tokens."""
        engine, end, steps = self.engine, past + x.shape[1], self.c["G"] - 1
        ready = self._prefill(x, past)
        ids = engine.first(ready)  # (b, 1)

        def decode(graph: bool) -> Tensor:
            kept, engine.graph = engine.graph, graph
            engine.reserve(self.batch, end + self.c["G"])
            said = engine.decode(ids, end, steps)
            engine.graph = kept
            return said

        calls: dict[Key, Callable] = {
            (V, whose, "prefill"): lambda: self._prefill(x, past),
            (V, whose, "first"): lambda: engine.first(ready),
            (V, whose, "decode"): lambda: decode(engine.graph),
        }
        if engine.graph:
            calls[V, whose, "decode without graph"] = lambda: decode(False)
        if not V:
            calls[V, whose, "ttft"] = lambda: engine.first(self._prefill(x, past))
        return calls

    def _beside(self, V: int, name: str, model: VLM) -> dict[Key, Callable]:
        """`VLM.generate` from features, and the same model with transformers' `generate`, its defaults."""
        G, asked = self.c["G"], [self.question] * self.batch

        def theirs(G: int) -> list[str]:
            ids = self.tokenizer(asked, return_tensors="pt")["input_ids"].to(self.on)
            read, mask = None, {}
            if model.compressor.needs_question:
                lengths = torch.full_like(ids[:, :1], ids.shape[1])
                read, mask = model.read(ids[:, None], lengths)
            z = model.projector(model.compressor(self.features, read, **mask))
            x = torch.cat([z, self.llm.get_input_embeddings()(ids)], 1)
            said = self.llm.generate(inputs_embeds=x, max_new_tokens=G, do_sample=False)
            return self.tokenizer.batch_decode(said)

        ways = {"ours": partial(model.generate, self.features, asked), "baseline": theirs}
        lengths = {"one token": 1, "all tokens": G}
        return {
            (V, name, f"{whose} {what}"): partial(way, n)
            for whose, way in ways.items()
            for what, n in lengths.items()
        }


def _floor(stage: str, work: dict, peaks: dict[str, float], samples: list[float]) -> dict:
    """Counted operations and bytes of a stage, the least it can take here, and the share of it reached."""
    within = cost.STAGES[1:-1] if stage == "ttft" else (stage,)
    parts = [[float(work[name].flops), float(work[name].bytes)] for name in within if name in work]
    if not parts:
        return {"parts": None}
    flops, moved = (sum(side) for side in zip(*parts))
    median = sorted(samples)[len(samples) // 2]
    least = floor(parts, median, peaks["peak_flops"], peaks["bandwidth"])
    return {"flops": flops, "bytes": moved, **least, "parts": parts}
