"""Counted cost: against an instrumented count, against hand-worked cases, and as a planner uses it."""

import dataclasses
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from vtc import InputError, compressors, cost, profiles
from vtc.benchmark import clocked
from vtc.cost.compressors import TRAITS, Traits

TINY = cost.LLMShape("tiny", layers=3, d=96, d_ff=256, heads=6, kv_heads=2, vocab=500)
SMALL = cost.LLMShape("small", layers=2, d=256, d_ff=704, heads=4, kv_heads=4, vocab=1000)


def counted(call) -> float:
    """FLOPs that torch's own counter sees."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def qwen(shape):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.d,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
        attn_implementation="eager",
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.mark.parametrize("shape", [TINY, SMALL], ids=lambda s: s.name)
@pytest.mark.parametrize("batch, tokens", [(1, 17), (2, 120)])
def test_llm_prefill_within_one_percent_of_the_instrumented_count(shape, batch, tokens):
    import torch

    model = qwen(shape)
    ids = torch.zeros(batch, tokens, dtype=torch.long)
    seen = counted(lambda: model(input_ids=ids, logits_to_keep=1, use_cache=False))
    ours = cost.llm_pass(shape, tokens, 0, batch) + cost.llm_head(shape, batch)
    assert ours.flops == pytest.approx(seen, rel=0.01)
    assert shape.params == sum(p.numel() for p in model.parameters())


def test_llm_decode_within_one_percent_of_the_instrumented_count():
    import torch

    model = qwen(TINY)
    ids = torch.zeros(2, 20, dtype=torch.long)

    def generate():
        cache = model(input_ids=ids, logits_to_keep=1, use_cache=True).past_key_values
        for _ in range(4):  # five tokens: the first comes out of prefill
            model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)

    ours = cost.llm_pass(TINY, 20, 0, 2) + cost.llm_head(TINY, 2) + cost.llm_decode(TINY, 20, 5, 2)
    assert ours.flops == pytest.approx(counted(generate), rel=0.01)


@pytest.mark.parametrize(
    "image, patch, layers, d, d_ff, heads", [(48, 4, 3, 64, 256, 4), (56, 14, 2, 128, 512, 8)]
)
def test_tower_within_one_percent_of_the_instrumented_count(image, patch, layers, d, d_ff, heads):
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        image_size=image,
        patch_size=patch,
        num_hidden_layers=layers,
        hidden_size=d,
        intermediate_size=d_ff,
        num_attention_heads=heads,
        attn_implementation="eager",
    )
    model = CLIPVisionModel(config).eval()
    shape = cost.TowerShape(d, layers, heads, patch, (layers,), image, d_ff)
    seen = counted(lambda: model(pixel_values=torch.zeros(2, 3, image, image)))
    assert cost.tower_pass(shape, 2).flops == pytest.approx(seen, rel=0.01)
    assert shape.params == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.01)


def test_presets_have_the_sizes_they_are_named_for():
    billions = {name: shape.params / 1e9 for name, shape in cost.LLMS.items()}
    published = {"qwen1.5-0.5b": 0.464, "qwen1.5-1.8b": 1.837, "qwen1.5-4b": 3.950, "qwen1.5-7b": 7.721}
    published |= {"qwen1.5-14b": 14.167, "vicuna-7b": 6.738}
    assert billions == pytest.approx(published, abs=6e-4)
    assert cost.LLMS["qwen1.5-7b"].kv_bytes("bf16") == 2**19  # half a MiB a token
    assert cost.tower_pass(cost.CLIP_L_336).flops == pytest.approx(0.38e12 * 23 / 24, rel=0.01)
    like = cost.llm_like(np.array([s.nominal for s in cost.QWEN15]))
    assert like.N == pytest.approx([s.N for s in cost.QWEN15])


@pytest.mark.parametrize("name", ["quecc", "tokenpacker", "pool", "pool_after", "mqt", "perceiver"])
@pytest.mark.parametrize("V", [1, 4, 16, 36])
def test_compressors_within_one_percent_of_the_instrumented_count(name, V):
    from vtc.compressors import ledger

    tower = cost.TowerShape(64, 4, 4, 28, (1, 2, 3, 4), 336)
    shape = {"tokens": V, "grid": tower.g, "d": 64, "d_levels": 256, "d_llm": 96, "d_question": 96}
    ours = cost.compressor(name, tower, V, 96)
    seen = ledger.instrumented(compressors.build(name, **shape), b=3)
    assert 3 * float(ours.flops) + float(ours.fixed) == pytest.approx(seen, rel=0.01)


@pytest.mark.parametrize("name", ["quecc", "quecc_one_level", "tokenpacker"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_wide_compressors_within_one_percent_in_either_precision(name, dtype):
    import torch

    from vtc.compressors import ledger

    tower = cost.TowerShape(512, 4, 8, 28, (1, 2, 3, 4), 336)
    shape = {"tokens": 16, "grid": tower.g, "d": 512, "d_levels": 2048, "d_llm": 512, "d_question": 512}
    with torch.device("meta"):
        built = compressors.build(name, **shape).to(torch.bfloat16 if dtype == "bf16" else torch.float32)
    seen = ledger.instrumented(built)
    assert float(cost.compressor(name, tower, 16, 512, dtype).flops) == pytest.approx(seen, rel=0.01)
    assert built.flops() == pytest.approx(seen, rel=0.01)


@pytest.mark.parametrize("name", compressors.names())
def test_compressor_weights_and_traits_are_those_that_are_built(name):
    import torch

    for d, D, g in ((64, 64, 12), (1024, 2048, 24)):
        tower = cost.TowerShape(d, 4, 8, 14, (1, 2, 3, 4), 14 * g)
        there = compressors.possible(name, g)
        for V in {there[0], there[len(there) // 2], there[-1]} - {0}:
            shape = {"tokens": V, "grid": g, "d": d, "d_levels": 4 * d, "d_llm": D, "d_question": D}
            if name == "llavamini_fused":
                shape["llm_config"] = qwen(dataclasses.replace(SMALL, d=D)).config
            with torch.device("meta"):
                built = compressors.build(name, **shape)
            beside = built.fusion.parameters() if built.fuses else ()  # counted by layers of the LLM
            own = built.n_parameters - sum(p.numel() for p in beside)
            assert float(cost.compressor(name, tower, V, D).weights) == own
    cls = compressors.find(name)
    kind = TRAITS.get(cls.__name__, Traits())
    assert all(getattr(cls, f, said) == said for f, said in kind._asdict().items())


def test_what_reads_every_patch_is_charged_for_it():
    shape, clip = cost.llm("7"), cost.CLIP_L_336
    work = {
        n: cost.stages(cost.Pipeline(shape, compressor=n), 1, 50)
        for n in ("pool", "fastv", "llavamini_fused")
    }
    equivalent = (2 * clip.s + (shape.layers - 2) * 1) / shape.layers + 50
    assert work["fastv"]["prefill"].flops == pytest.approx(cost.llm_pass(shape, equivalent).flops, rel=0.02)
    assert work["fastv"]["prefill"].flops > work["pool"]["prefill"].flops
    stack = cost.llm_pass(cost.LLMShape("four", 4, 4096, 11008, 32, 32, 10), clip.s + 51)
    assert work["llavamini_fused"]["compressor"].flops > stack.flops


def test_fusion_has_no_more_layers_than_the_llm():
    def beside(layers):
        llm = dataclasses.replace(SMALL, layers=layers)
        fused, plain = (cost.Pipeline(llm, compressor=name) for name in ("llavamini_fused", "llavamini"))
        more = cost.memory(fused, 1, 50)["weights"] - cost.memory(plain, 1, 50)["weights"]
        return cost.stages(fused, 1, 50)["compressor"].flops, more

    (a, held), (b, more), (c, same) = (beside(layers) for layers in (3, 4, 5))
    assert a < b == c and more == same == pytest.approx(held * 4 / 3, rel=0.01)


def test_compressors_of_ones_own_are_counted_as_they_are_built(monkeypatch):
    import torch

    from vtc.compressors.base import Compressor

    class Asked(Compressor):
        ends_at_llm = needs_question = True

        def __init__(self, **shape):
            super().__init__(**shape)
            self.map = torch.nn.Linear(self.d, self.d_llm)

        def compress(self, features, question=None):
            asked = question.flatten(1).sum(1) if self.needs_question else torch.zeros(1, device="meta")
            return self.map(features.last[:, : self.tokens]) + asked.view(-1, 1, 1)

    class Pool(Asked):  # as one of ours is called
        question_source, shrinks_image = "embeddings", True

    class Late(Asked):
        cost_class, needs_question, layer = "D", False, 3

    monkeypatch.setattr(compressors, "REGISTRY", dict(compressors.REGISTRY))
    for one in (Asked, Pool, Late):
        compressors.register(one.__name__, one)
    tower = cost.TowerShape(64, 4, 4, 4, (1, 2, 3, 4), 48)
    asked, pool, late = (cost.compressor(name, tower, [0, 4], 96) for name in ("Asked", "Pool", "Late"))
    for found in (asked, pool, late):
        assert found.flops.tolist() == [0, 2 * 4 * 64 * 96] and found.weights.tolist() == [0, 65 * 96]
        assert found.at_llm_width
    assert (asked.question_pass, pool.question_pass, late.question_pass) == ("paid", None, None)
    assert (asked.shrinks_image, pool.shrinks_image, late.drops_after) == (False, True, 3)


def test_a_smaller_image_spares_the_tower():
    small, pool = (
        cost.stages(cost.Pipeline(cost.llm("7"), compressor=n), 36, 50) for n in ("downsample_image", "pool")
    )
    assert small["prefill"].flops == pool["prefill"].flops
    fewer = dataclasses.replace(cost.CLIP_L_336, pixels=6 * 14)
    assert small["tower"].flops == cost.tower_pass(fewer).flops < 0.1 * pool["tower"].flops


def test_question_pass_paid_cached_and_shared():
    def total(question, q=20):
        pipe = cost.Pipeline(cost.llm("7"), compressor="quecc", question=question)
        return cost.stages(pipe, 16, 50, 1, 1, q)

    paid, cached, shared = (total(kind) for kind in cost.QUESTION_PASS)
    assert cached["question"].flops == 0 < paid["question"].flops
    assert cached["prefill"].flops == paid["prefill"].flops
    once = cached["prefill"].flops - cost.llm("7").layers * 4 * cost.llm("7").d * 20 * 46
    assert shared["question"].flops + shared["prefill"].flops == pytest.approx(
        once
    )  # less one block of the square
    both = shared["question"].bytes + shared["prefill"].bytes
    assert both > 1.9 * cached["prefill"].bytes  # the weights are still read twice


def test_no_image_costs_the_llm_alone():
    work = cost.stages(cost.Pipeline(cost.llm("0.5"), compressor="quecc"), 0, 50)
    assert [work[s].flops for s in ("tower", "question", "compressor", "projector")] == [0] * 4
    assert work["prefill"].flops == cost.llm_pass(cost.llm("0.5"), 50).flops


def test_arrays_agree_with_scalars():
    family = cost.LLMShape.stack(cost.QWEN15, trailing=2)
    V, batch, h200 = np.array([0, 1, 576])[:, None], np.array([1, 64]), cost.hardware("h200")
    together = cost.latency(cost.Pipeline(family, compressor="quecc"), h200, V, 50, 8, batch)
    for i, shape in enumerate(cost.QWEN15):
        alone = cost.latency(cost.Pipeline(shape, compressor="quecc"), h200, 576, 50, 8, 64)
        assert together["total"][i, 2, 1] == pytest.approx(float(alone["total"]))


def test_roofline_names_what_binds():
    pipe, h100 = cost.Pipeline(cost.llm("7")), cost.hardware("h100")
    few = cost.binds(cost.stages(pipe, 1, 50)["prefill"], h100)
    many = cost.binds(cost.stages(pipe, 576, 50)["prefill"], h100)
    assert (few, many) == ("bandwidth", "compute")
    assert cost.binds(cost.stages(pipe, 1, 50, 32)["decode"], h100) == "bandwidth"


def test_largest_batch_is_the_last_that_fits():
    pipe, l4 = cost.Pipeline(cost.llm("7")), cost.hardware("l4")
    most = int(cost.largest_batch(pipe, l4, 576, 50, 32))
    assert cost.memory(pipe, 576, 50, 32, most)["total"] <= l4.memory
    assert cost.memory(pipe, 576, 50, 32, most + 1)["total"] > l4.memory
    assert cost.largest_batch(cost.Pipeline(cost.llm("14")), l4, 1, 50) == 0
    assert cost.largest_batch(pipe, l4, 1, 50, 32) > 3 * most


@pytest.mark.parametrize("overlap", [True, False])
def test_fitted_shares_are_recovered(overlap):
    rng, a100 = np.random.default_rng(0), cost.hardware("a100")
    flops, moved = 10 ** rng.uniform(9, 13, 60), 10 ** rng.uniform(8, 10.5, 60)
    a100 = dataclasses.replace(a100, overlap=overlap)
    true = a100.with_shares(0.61, 0.83)
    measured = cost.seconds(cost.Work(flops, moved), true) * rng.lognormal(0, 0.02, 60)
    fitted, miss = cost.fit_shares(flops, moved, measured, a100)
    assert (fitted.compute_share, fitted.bandwidth_share) == pytest.approx((0.61, 0.83), rel=0.02)
    assert miss < 0.03


def test_unknown_names_are_refused_with_those_there_are():
    for call in (
        lambda: cost.llm("gpt"),
        lambda: cost.hardware("abacus"),
        lambda: cost.stages(cost.Pipeline(cost.llm("7"), compressor="magic"), 1, 1),
        lambda: cost.Pipeline(cost.llm("7"), question="free"),
        lambda: cost.Pipeline(cost.llm("7"), dtype="int3"),
    ):
        with pytest.raises(InputError, match="[a-z]"):
            call()


def test_hardware_rows_name_their_source():
    for device in cost.hardware_table().values():
        assert device.source and device.peak["bf16"] > device.peak["fp32"] > 0
        assert device.memory > 0 < device.bandwidth


@pytest.mark.parametrize("name, folder", [("xeon2", "xeon2"), ("epyc2", "first-world")])
def test_a_clocked_cpu_is_what_its_recorded_rows_say(name, folder):
    """hardware.csv's own rows against the rows they came from, to the digits they are written with."""
    found = clocked(pd.read_csv(profiles.ROOT / "results" / folder / "03_clock.csv"))
    row = cost.hardware(name)
    assert f"results/{folder}/03_clock.csv" in row.source
    assert not row.overlap and not found.overlap
    for ours, theirs in (
        (row.peak["bf16"], found.peak["bf16"]),
        (row.peak["fp32"], found.peak["fp32"]),
        (row.bandwidth, found.bandwidth),
        (row.compute_share, found.compute_share),
        (row.bandwidth_share, found.bandwidth_share),
    ):
        assert ours == pytest.approx(theirs, rel=2e-3)


def test_names_need_no_torch():
    code = "import sys; from vtc import compressors, cost; "
    code += "[cost.compressor(n, cost.CLIP_L_336, 4, 1024) for n in compressors.names()]; "
    code += "sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
