"""Counted cost: against an instrumented count, against hand-worked cases, and as a planner uses it."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from vtc import InputError, compressors, cost, profiles
from vtc.benchmark import clocked
from vtc.cost import measure, table

TINY = cost.LLMShape("tiny", layers=3, d=96, d_ff=256, heads=6, kv_heads=2, vocab=500)
SMALL = cost.LLMShape("small", layers=2, d=256, d_ff=704, heads=4, kv_heads=4, vocab=1000)


def counted(call) -> float:
    """FLOPs that torch's own counter sees."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # torch's fused encoder layer would count as nothing
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
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


STEMS = [("smoke", (8, 16), 8), ("laptop", (16, 32), 8), ("deep", (4, 8, 12), 16), ("linear", (), 8)]


@pytest.mark.parametrize("name, stem, patch", STEMS)
def test_a_tower_with_a_stem_is_counted_as_it_is_built(name, stem, patch):
    """Features of one token a patch; parameters to the last one; operations within one percent."""
    import torch

    from vtc.models.tower import Tower

    shape = cost.TowerShape(d=32, layers=2, heads=2, patch=patch, levels=(1, 2), pixels=96, stem=stem)
    tower, images = Tower(shape).eval(), torch.zeros(3, 96, 96, 3, dtype=torch.uint8)
    seen = counted(lambda: tower(images))
    assert cost.tower_pass(shape, 3).flops == pytest.approx(seen, rel=0.01)
    left = ("visual.ln_post", "visual.proj")  # what only CLIP's own output passes through
    built = sum(p.numel() for name, p in tower.named_parameters() if not name.startswith(left))
    assert shape.params == built
    with torch.no_grad():
        features = tower(images)
    assert features.last.shape == (3, shape.s, 32) and shape.s == (96 // patch) ** 2
    assert features.levels.shape == (3, shape.s, shape.d_levels)


def test_profiles_have_towers_with_such_stems():
    towers = {name: profiles.get(name).tower for name in ("smoke", "laptop", "gpu")}
    assert [tower.stem for tower in towers.values()] == [(8, 16), (16, 32), (16, 32)]
    assert [tower.g for tower in towers.values()] == [12, 12, 24]


@pytest.mark.parametrize("stem, patch", [((8, 16), 4), ((8,), 8), ((8, 16, 32), 8)])
def test_a_stem_that_gives_other_patches_is_said_in_one_line(stem, patch):
    made = 2 ** (len(stem) + 1)
    with pytest.raises(InputError, match=f"gives patches of {made} pixels, not of {patch}") as error:
        cost.TowerShape(d=32, layers=1, heads=2, patch=patch, levels=(1,), pixels=96, stem=stem)
    assert "\n" not in str(error.value)


def test_presets_have_the_sizes_they_are_named_for():
    billions = {name: shape.params / 1e9 for name, shape in cost.LLMS.items()}
    published = {"qwen1.5-0.5b": 0.464, "qwen1.5-1.8b": 1.837, "qwen1.5-4b": 3.950, "qwen1.5-7b": 7.721}
    published |= {"qwen1.5-14b": 14.167, "vicuna-7b": 6.738}
    assert billions == pytest.approx(published, abs=6e-4)
    assert cost.LLMS["qwen1.5-7b"].kv_bytes("bf16") == 2**19  # half a MiB a token
    assert cost.tower_pass(cost.CLIP_L_336).flops == pytest.approx(0.38e12 * 23 / 24, rel=0.01)
    like = cost.llm_like(np.array([s.nominal for s in cost.QWEN15]))
    assert like.N == pytest.approx([s.N for s in cost.QWEN15])


KEYS = {entry.key: name for name, entry in compressors.REGISTRY.items()}  # one name of each
SMOKE = profiles.get("smoke").tower


def widths(name, tower, V, D):
    """Arguments of `compressors.build`."""
    shape = {"tokens": V, "grid": tower.g, "d": tower.d, "d_levels": tower.d_levels}
    fused = {"llm_config": qwen(dataclasses.replace(TINY, d=D)).config} if "fused" in name else {}
    return shape | {"d_llm": D, "d_question": D} | fused


def called(name, tower, V, D, b=1, m=1):
    """A real call of a compressor, with numbers, that `counted` can watch."""
    import torch

    from vtc.compressors.base import Features

    built = compressors.build(name, **widths(name, tower, V, D)).eval()
    s, heads = built.side**2, tower.heads
    shapes = ((s, tower.d), (s, tower.d_levels), (heads, s), (s, heads, tower.d // heads), (tower.d,))
    x = Features(*(torch.randn(b, *shape) for shape in shapes))
    x = x if built.needs_keys else Features(x.last, x.levels)
    words = (measure.WORDS,) if built.question_source == "embeddings" else ()
    ask = torch.randn(b, m, *words, D) if built.needs_question else None
    return lambda: built(x, ask)


@pytest.mark.parametrize("name", [n for n in KEYS.values() if n != "llavamini_fused"])
def test_compressors_within_one_percent_of_the_instrumented_count(name):
    """A forward pass with numbers, three images and two questions each, against the generated table."""
    there = [v for v in compressors.possible(name, SMOKE.g) if v in (1, 2, 16, 36)]
    for V in there:
        ours = cost.compressor(name, SMOKE, V, 96)
        seen = counted(called(name, SMOKE, V, 96, b=3, m=2))
        questions = 2 if ours.question.any() else 1
        assert 3 * (ours.image + questions * ours.question) + ours.fixed == pytest.approx(seen, rel=0.01)


def test_prefusion_within_one_percent_of_the_instrumented_count():
    """The call's map of the tokens and the fusion's of all patches; its layers are counted as the LLM's."""
    name = "llavamini_fused"
    ours, call = cost.compressor(name, SMOKE, 4, TINY.d), called(name, SMOKE, 4, TINY.d)
    patches = 2 * SMOKE.s * (SMOKE.d * TINY.d + TINY.d**2)
    assert ours.flops + ours.fixed == pytest.approx(counted(call) + patches, rel=0.01)
    assert ours.fusion_layers == 4


@pytest.mark.parametrize("i, name", enumerate(KEYS.values()))
def test_the_generated_table_is_what_is_counted_now(i, name):
    """At two towers and V that go round; `make costs` writes the table anew."""
    key = compressors.entry(name).key
    for tower in (SMOKE, cost.CLIP_L_336):
        known = table.find(key, tower)
        V = list(known["counts"])[i % len(known["counts"])]
        found = measure.row(name, tower, (int(V),))
        assert found == known | {"counts": {V: known["counts"][V]}}


def test_the_table_holds_every_compressor_at_every_tower_and_nothing_else():
    lines = {table.line(key, tower) for key in KEYS for tower in measure.towers()}
    assert lines == set(table.lines()), "run make costs"


def test_counts_at_any_width_and_any_V():
    """Widths far from those fitted; V between two that it can give, not in the table, out of reach."""
    for name, V, D in (("lookup", 16, 4096), ("quecc_light", 4, 1000), ("lookup", 4, 24), ("mqt", 50, 768)):
        ours, seen = cost.compressor(name, SMOKE, V, D), measure.measured(name, SMOKE, V, D)
        assert [float(getattr(ours, what)) for what in seen._fields] == pytest.approx(list(seen))
    four, six, nine = (float(cost.compressor("quecc", SMOKE, V, 96).flops) for V in (4, 6.5, 9))
    assert six == pytest.approx((four + nine) / 2) and four != nine
    assert cost.reach("mqt") == (1, 256) and cost.reach("quecc", SMOKE) == (1, 144)
    for V in (0.5, 257):
        with pytest.raises(InputError, match=f"V = {V} from a 24 x 24 grid: use 0 or 1 to 256"):
            cost.compressor("mqt", cost.CLIP_L_336, V, 96)


@pytest.mark.parametrize("name", compressors.names())
def test_compressor_weights_are_those_that_are_built(name):
    import torch

    tower, D = cost.CLIP_L_336, 2048
    there = compressors.possible(name, tower.g)
    for V in {there[0], there[-1]} - {0}:
        with torch.device("meta"):
            built = compressors.build(name, **widths(name, tower, V, D))
        beside = built.fusion.parameters() if built.fuses else ()  # counted by layers of the LLM
        own = built.n_parameters - sum(p.numel() for p in beside)
        assert float(cost.compressor(name, tower, V, D).weights) == own


@pytest.mark.parametrize(
    "name, V",
    [("mqt", [1, 4, 9, 16, 36, 64, 144]), ("identity", [576]), ("braco", [1, 4, 9, 16])],
)
def test_a_plan_offers_what_the_compressor_can_give(name, V, tmp_path):
    from vtc.__main__ import main

    out = tmp_path / "plan.json"
    assert main(["plan", "--compressor", name, "--draws", "40", "--models", "7", "--json", str(out)]) == 0
    assert sorted(choice["V"] for choice in json.loads(out.read_text())["choices"]) == V


def test_the_question_pass_follows_from_the_class():
    kinds = {name: cost.traits(name)["question_pass"] for name in compressors.names()}
    parts = {"quecc_pooled", "quecc_one_level", "quecc_one_head"}
    paid = {"quecc", "quecc_nested", "quecc_distilled", "lookup_asked", *parts}
    assert {name for name, kind in kinds.items() if kind == "paid"} == paid
    assert {name for name, kind in kinds.items() if kind == "shared"} == {"quecc_shared"}


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

    class Attends(Compressor):  # by torch's own attention, which has fused kernels
        def __init__(self, **shape):
            super().__init__(**shape)
            self.attend = torch.nn.MultiheadAttention(self.d, 4, batch_first=True)
            self.register_buffer("seed", torch.tensor(float(torch.ones(1).sum())))  # not on the meta device

        def compress(self, features, question=None):
            x = self.attend(features.last[:, : self.tokens], features.last, features.last, need_weights=False)
            return torch.nn.functional.scaled_dot_product_attention(x[0], x[0], x[0])

    monkeypatch.setattr(compressors, "REGISTRY", dict(compressors.REGISTRY))
    for one in (Asked, Pool, Late, Attends):
        compressors.register(one.__name__, one)
    tower = cost.TowerShape(64, 4, 4, 4, (1, 2, 3, 4), 48)
    asked, pool, late = (cost.compressor(name, tower, [0, 4], 96) for name in ("Asked", "Pool", "Late"))
    for found in (asked, pool, late):
        assert found.flops.tolist() == [0, 2 * 4 * 64 * 96] and found.weights.tolist() == [0, 65 * 96]
        assert found.at_llm_width
    assert (asked.question_pass, pool.question_pass, late.question_pass) == ("paid", None, None)
    assert (asked.shrinks_image, pool.shrinks_image, late.drops_after) == (False, True, 3)
    products = 2 * (4 + 144) * 64**2 * 2 + 4 * 4 * 144 * 64 + 4 * 4 * 4 * 64  # maps, attention twice
    assert float(cost.compressor("Attends", tower, 4, 96).flops) == products


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
    code += "[cost.compressor(n, cost.CLIP_L_336, cost.reach(n)[1], 1024) for n in compressors.names()]; "
    code += "sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
