"""The quick path gives what transformers gives: logits, tokens, packed and alone, in turn, masked or not."""

import json

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import vtc
from vtc import profiles
from vtc.compressors.base import Features
from vtc.models import generate, kernels
from vtc.models.decode import Plain
from vtc.models.llm import make_llm, make_tokenizer
from vtc.models.prompt import Layout, asked, conversation, lay_out, pack
from vtc.models.runner import Runner
from vtc.shapes import LLMShape
from vtc.training import stages

P = profiles.get("smoke")
SHAPE = LLMShape("test", d=32, layers=2, heads=2, d_ff=64, tied=True)
CLASSES = {
    "A": ("tokenpacker", 4, {}), "A, many": ("pool", 16, {}), "steered": ("quecc", 4, {}),
    "embeddings": ("quecc_light", 4, {}), "prefix": ("quecc_shared", 4, {}),
    "B": ("llavamini_fused", 4, {}), "D": ("fastv", 4, {"layer": 1}), "none": ("none", 0, {}),
}  # fmt: skip


def llm(kv_heads=4, bias=True, dtype="float32"):
    torch.manual_seed(0)
    kind, config = (Qwen2ForCausalLM, Qwen2Config) if bias else (LlamaForCausalLM, LlamaConfig)
    wide = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": kv_heads}
    size = {"num_hidden_layers": 3, "vocab_size": 97, "intermediate_size": 96, "eos_token_id": None}
    model = kind(config(**wide, **size))
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms that are not 0 and 1
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.to(getattr(torch, dtype)).eval()


def vlm(kind: str, span: int | None = None):
    """An untrained model of that class, with a head of its own, for a tied one repeats itself."""
    compressor, V, options = CLASSES[kind]
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    case = stages.Case("test", V, compressor, 0, json.dumps(options))
    model = stages.assemble(P, case, make_llm(SHAPE, len(tokenizer)), tokenizer).eval()
    says = torch.randn(len(tokenizer), SHAPE.d)
    says[: tokenizer.eos_token_id] = 0  # padding and unknown words are not spoken
    model.llm.lm_head.weight = torch.nn.Parameter(says)
    model.config.span = span
    return model


def features(b: int) -> Features:
    levels = torch.randn(b, P.s, P.tower.d * 2, generator=torch.Generator().manual_seed(0))
    return Features(levels=levels, last=levels[..., -P.tower.d :])


def greedy(engine, x, G):
    """Prompts of equal length, one question each, (b, t, d) -> G tokens (b, G)."""
    b, t, _ = x.shape
    engine.reserve(b, t + G)
    return engine.decode(engine.first(engine.prefill(x)), t, G - 1)[:, 0]


@pytest.mark.parametrize("kv_heads, bias", [(4, True), (2, True), (4, False)])
@pytest.mark.parametrize("graph", [False, True])
def test_the_runner_gives_the_logits_and_tokens_of_transformers(kv_heads, bias, graph):
    model = llm(kv_heads, bias)
    runner = Runner(model, graph=graph)
    for batch, length in ((2, 19), (1, 45)):  # the second is padded to a multiple of 32
        x = torch.randn(batch, length, 64)
        with torch.no_grad():
            wanted = model(inputs_embeds=x).logits[:, -1]
            tokens = model.generate(
                inputs_embeds=x, max_new_tokens=9, min_new_tokens=9, do_sample=False, pad_token_id=0
            )
        assert torch.allclose(runner.logits(runner.prefill(x))[:, 0], wanted, atol=1e-5)
        runner.prefill(x[:, :7])  # a prefix kept, as with the question before the image
        runner.reserve(batch, length)
        runner.prefill(x[:, :7])
        assert torch.allclose(runner.logits(runner.prefill(x[:, 7:], past=7))[:, 0], wanted, atol=1e-5)
        assert torch.equal(greedy(runner, x, 9), tokens)
        assert torch.equal(greedy(Plain(model), x, 9), tokens)
    assert runner.case.cache.nbytes > 0


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("many", [False, True])
def test_rows_of_unequal_length_and_several_questions_are_answered_as_alone(graph, many):
    """Any mask and any positions: the runner against transformers' forward without a cache."""
    model, rng = llm(), np.random.default_rng(0)
    texts = [[rng.integers(0, 97, n) for n in row] for row in ([5, 3, 7], [2, 6], [9])]
    rows = texts if many else [[text] for row in texts for text in row]
    packed = pack([[asked(text) for text in row] for row in rows], pad=0, left=True)
    b, m = packed.lengths.shape
    layout = lay_out(packed, torch.ones(b, 0, dtype=torch.bool), vtc.models.prompt.ImageSlot(0))
    runner, n, G = Runner(model, graph=graph), packed.ids.shape[1], 4
    runner.reserve(b, n + G * m)
    x = model.model.embed_tokens(packed.ids)
    hidden = runner.prefill(x, 0, layout.position_ids, layout.mask(x.dtype), packed.last)
    place = layout.position_ids.gather(1, packed.last) + 1
    said = runner.decode(runner.first(hidden), n, G - 1, place, layout.decode_mask(m, G - 1, x.dtype))
    for row, answers in zip(rows, said.tolist()):
        for text, answer in zip(row, answers):
            ids = torch.from_numpy(text)[None]
            for token in answer:
                with torch.no_grad():
                    assert model(input_ids=ids).logits[0, -1].argmax() == token
                ids = torch.cat([ids, torch.tensor([[token]])], 1)


@pytest.mark.parametrize("kv_heads, blocks", [(4, True), (2, True), (4, False)])
def test_the_runner_in_bf16_is_as_near_as_bf16_allows(kv_heads, blocks, monkeypatch):
    monkeypatch.setattr(kernels, "in_blocks", lambda q: blocks)
    model, x = llm(kv_heads, dtype="bfloat16"), torch.randn(1, 40, 64).bfloat16()
    with torch.no_grad():
        exact = model.float()(inputs_embeds=x.float()).logits[:, -1]
        theirs = model.bfloat16()(inputs_embeds=x).logits[:, -1].float()
    ours = (runner := Runner(model)).logits(runner.prefill(x))[:, 0].float()
    assert (ours - exact).abs().max() < 2 * (theirs - exact).abs().max() + 1e-3


@pytest.mark.parametrize("t, past", [(1, 0), (5, 0), (128, 3), (300, 40)])
def test_attention_in_blocks_is_attention(t, past):
    draw = torch.Generator().manual_seed(0)
    q, keys, values = (torch.randn(2, 3, n, 8, generator=draw) for n in (t, t + past, t + past))
    mask = torch.ones(t, t + past, dtype=torch.bool).tril(past)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, keys, values, mask)
    torch.testing.assert_close(kernels.attend_in_blocks(q, keys, values), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kernels.attend(q, keys, values), wanted, atol=1e-5, rtol=1e-5)
    hidden = torch.where(mask, 0.0, -1e4).expand(2, 1, -1, -1)
    torch.testing.assert_close(
        kernels.attend_in_blocks(q, keys, values, mask=hidden), wanted, atol=1e-5, rtol=1e-5
    )


def test_two_sizes_of_request_keep_their_own_cache_and_the_longer_is_larger():
    runner = Runner(llm())
    few, many = torch.randn(1, 20, 64), torch.randn(1, 200, 64)
    wanted = greedy(runner, few, 5)
    assert (small := runner.case.cache.nbytes) > 0
    greedy(runner, many, 5)
    assert runner.case.cache.nbytes > 3 * small
    assert torch.equal(greedy(runner, few, 5), wanted)


@pytest.mark.parametrize("span", [None, 9])
@pytest.mark.parametrize("kind", CLASSES)
def test_training_and_answering_have_the_same_logits(kind, span):
    """Several images, unequal questions, all at once and cached, against training's pass over each alone."""
    model, seen = vlm(kind, span), features(3)
    texts = [["x7 y2 owl ?", "land ?"], ["x5 y7 owl whence ?"], ["x3 y5 read ?"] * 2]
    said = generate.answers(model, seen, texts, 3)
    assert len({answer for row in said for answer in row}) > 1
    if kind == "D":
        return  # it trains with all tokens; `test_tokens_dropped_inside_the_llm` has its own comparison
    ids = model.tokenizer
    for i, (row, answers) in enumerate(zip(texts, said)):
        for text, answer in zip(row, answers):
            whole = asked(ids(text)["input_ids"], [*ids(answer)["input_ids"], ids.eos_token_id])
            with torch.no_grad():
                best = model.logits(pack([[whole]], ids.pad_token_id), seen[i : i + 1]).argmax(-1).tolist()
            right = whole.ids[whole.question :].tolist()
            assert best[: min(3, len(right))] == right[:3]


@pytest.mark.parametrize("kind", CLASSES)
def test_a_later_turn_is_the_same_text_asked_as_one_long_prompt(kind):
    model, seen = vlm(kind), features(2)
    turns = [["x7 y2 owl ?", "land ?", "read ?  ?"], ["x5 y7 owl whence ?"]]
    said = model.generate(seen, turns, 3, conversation=True)
    assert said[0] != model.generate(seen, turns, 3)[0]  # what was said before is heard
    told = f"{turns[0][0]} {said[0][0]} <end> {turns[0][1]}"
    assert model.generate(seen[:1], [told], 3) == [said[0][1]]
    told = f"{told} {said[0][1]} <end> {turns[0][2]}"
    assert model.generate(seen[:1], [told], 3) == [said[0][2]]
    assert [len(row) for row in said] == [3, 1]


@pytest.mark.parametrize("kind", ["A", "steered", "prefix"])
def test_a_conversation_is_learnt_as_its_turns_with_all_that_was_said_before(kind):
    model, seen, ids = vlm(kind), features(1), make_tokenizer()
    words = [("x7 y2 owl ?", "3"), ("land ?", "new apple"), ("more 3 than 5 ?", "yes")]
    turns = [(ids(q)["input_ids"], [*ids(a)["input_ids"], ids.eos_token_id]) for q, a in words]
    steered = model.compressor.needs_question
    packed = pack([conversation(turns, steered)], ids.pad_token_id)
    with torch.no_grad():
        together = model(packed, seen).item()
        alone = []
        for k, (question, answer) in enumerate(turns):
            before = [token for turn in turns[:k] for part in turn for token in part]
            alone.append(model(pack([[asked([*before, *question], answer)]], ids.pad_token_id), seen).item())
    assert together == pytest.approx(np.mean(alone), abs=2e-5)


def test_the_engine_is_kept_until_weights_change():
    model = vlm("A")
    first = generate.engine_of(model.llm, torch.float32)
    assert generate.engine_of(model.llm, torch.float32) is first
    assert generate.engine_of(model.llm, torch.bfloat16) is not first
    first = generate.engine_of(model.llm, torch.float32)
    before = model.generate(features(1), ["land ?"])
    with torch.no_grad():
        model.llm.lm_head.weight.copy_(model.llm.lm_head.weight.flip(0))
    assert generate.engine_of(model.llm, torch.float32) is not first
    assert model.generate(features(1), ["land ?"]) != before
    model.train()
    assert model.llm not in generate._BUILT


def test_what_is_hooked_or_adapted_is_left_to_transformers():
    model = llm()
    assert isinstance(generate.engine_of(model, torch.float32), Runner)
    hook = model.model.layers[1].register_forward_hook(lambda module, given, out: None)
    assert isinstance(generate.engine_of(model, torch.float32), Plain)
    hook.remove()
    attention = model.model.layers[0].self_attn
    attention.q_proj = torch.nn.Sequential(attention.q_proj, torch.nn.Linear(64, 64))
    attention.q_proj.append(type("Adapter", (torch.nn.Linear,), {})(64, 64))
    assert isinstance(generate.engine_of(model, torch.float32), Plain)


def test_positions_may_be_fractions_and_no_token_sees_what_stands_behind_it():
    model = vlm("A, many", span=4)
    packed = pack([[asked([5, 6])]], 0)
    layout = lay_out(packed, torch.ones(1, 16, dtype=torch.bool), model.slot)
    place = layout.position_ids[0]
    assert place.tolist() == sorted(place.tolist()) and place[16] == 4
    seen = Layout(layout.segment, layout.position_ids).mask(torch.float32)[0, 0] == 0
    assert torch.equal(seen, torch.ones(18, 18, dtype=torch.bool).tril())


def test_images_are_seen_by_the_quick_tower_until_its_weights_change():
    from vtc.models.tower import Tower

    model = vlm("A")
    model.tower = tower = Tower(P.tower).eval().requires_grad_(False)
    shape = (2, P.pixels, P.pixels, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    asked = ["x5 y7 owl whence ?"] * 2
    assert model.generate(images, asked) == model.generate(tower(images), asked)
    quick = generate.quick_tower(tower)
    assert quick is not tower and generate.quick_tower(tower) is quick
    torch.testing.assert_close(quick(images).levels, tower(images).levels, atol=1e-4, rtol=0.02)
    tower.visual.conv1[0].weight.mul_(2)
    assert generate.quick_tower(tower) is not quick
