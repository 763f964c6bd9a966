"""The zoo: one call, exact counts, honest cost, and learned windows against a plain loop over windows."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from released import Budget
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from vtc import InputError, compressors, cost, profiles
from vtc.benchmark.speed import Published
from vtc.compressors import build, names, possible
from vtc.compressors.base import Features, Official
from vtc.compressors.zoo.prune import PruMerge
from vtc.evaluation import compare
from vtc.experiments import sweep
from vtc.figures import zoo
from vtc.scaling.fitting import fit
from vtc.scaling.plan import Request, plan
from vtc.scaling.scores import published
from vtc.training import stages
from vtc.training.losses import AuxiliaryLoss

D, LEVELS, LLM, HEADS = 16, 48, 24, 4  # widths of tower, levels, LLM; heads of the tower's keys
CONFIG = Qwen2Config(hidden_size=LLM, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2,
                     num_hidden_layers=3, vocab_size=30, attn_implementation="eager")  # fmt: skip
OPTIONS = {"llavamini_fused": {"llm_config": CONFIG, "layers": 2}}
LEARNED = [
    n
    for n in names()
    if n.startswith(("quecc", "tokenpacker", "glances", "mqt", "perc", "llava", "pool_a", "m3", "look"))
]


def features(b=3, g=6, seed=0, of=None):
    """Made-up features of g x g patches, or of as many as the compressor `of` reads."""
    g = g if of is None else of.side
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(b, *shape, generator=draw)

    s = g * g
    return Features(
        normal(s, D), normal(s, LEVELS), normal(HEADS, s).softmax(-1) / 2, normal(s, HEADS, 4), normal(D)
    )


def make(name, tokens, g=6, **options):
    torch.manual_seed(1)
    return build(name, tokens=tokens, grid=g, d=D, d_levels=LEVELS, d_llm=LLM, d_question=LLM,
                 **{**OPTIONS.get(name, {}), **options})  # fmt: skip


def fused(module, x, text):
    """Tokens and text that have read the patches, each place what stands before it."""
    n = 36 + module.tokens + text.shape[1]
    mask = torch.full((n, n), -1e4).triu(1)[None, None]
    return module.fuse(x, module(x), text, mask, torch.arange(n)[None])


def question(module, b=3, m=None, words=5):
    """A question as the module wants it: a vector, or word embeddings."""
    lead = (b,) if m is None else (b, m)
    last = (words, LLM) if getattr(module, "question_source", None) == "embeddings" else (LLM,)
    return torch.randn(*lead, *last, generator=torch.Generator().manual_seed(2))


def some_tokens(name, g=6):
    """First, a middle and last V that the grid can give, few enough to run them all."""
    there = possible(name, g)
    return sorted({there[0], there[len(there) // 2], there[-1]})


CASES = [(name, v) for name in names() for v in some_tokens(name)]


@pytest.mark.parametrize("name, tokens", CASES)
def test_call(name, tokens):
    """Exact count, declared width, same twice, and nothing leaks between the images of a batch."""
    module = make(name, tokens).eval()
    x, ask = features(of=module), question(module)
    z = module(x, ask)
    entering = 36 if module.cost_class == "D" else tokens  # FastV's drop out later, inside the LLM
    assert z.shape == (3, entering, module.d_out) and z.dtype == torch.float32 and z.isfinite().all()
    assert module.d_out == (LLM if module.ends_at_llm else D)
    assert torch.equal(z, module(x, ask))
    alone = torch.cat([module(x[i : i + 1], ask[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, z, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", names())
def test_any_grid(name):
    for g in range(4, 25):
        there = possible(name, g)
        for v in {there[0], there[-1]} if g < 13 else {there[0]}:
            module = make(name, v, g).eval()
            with torch.no_grad():
                z = module(features(1, of=module), question(module, 1))
            assert z.shape[1] == (g * g if module.cost_class == "D" else v)


@pytest.mark.parametrize("name", [n for n in names() if n not in ("none", "fastv")])
def test_where_a_token_looks(name):
    module = make(name, some_tokens(name)[len(some_tokens(name)) // 2]).eval()
    seen = module.attention_map(features(of=module), question(module))
    assert seen.shape == (3, module.tokens, 36) and (seen >= 0).all()
    rows = seen.sum(-1)[:, 1:] if name == "visionzip" else seen.sum(-1)  # its class token is no patch
    torch.testing.assert_close(rows, torch.ones_like(rows))


@pytest.mark.parametrize("name, tokens", [(n, v) for n, v in CASES if n in LEARNED])
def test_gradient_reaches_all_that_trains(name, tokens):
    module = make(name, tokens)
    x = features()
    if name == "llavamini_fused":
        out = torch.cat(fused(module, x, torch.randn(3, 5, LLM)), 1)
    else:
        out = module(x, question(module))
    out.square().sum().backward()
    idle = {n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()}
    allowed = idle_by_design(name, tokens)
    assert {n for n in idle if not n.startswith(allowed)} == set()


def idle_by_design(name, tokens):
    """Where a window is one patch the softmax is 1: no query or key can matter."""
    if tokens == 36 and name.startswith(("quecc", "tokenpacker")):
        return ("text", "pool", "query", "conv", "attend.q", "attend.k_", "attend.key", "attend.kv_")
    if tokens == 36 and name.startswith(("glances", "lookup")):
        return ("query", "place", "steer", "text", "pool", "ask", "gate")
    parts = itertools.product(("place", "conv_weight", "conv_bias"), (1, 2, 3, 6))
    other = tuple(f"{part}.{k}" for part, k in parts if k != 6 / tokens**0.5)  # tables of another V
    constant = ("score.bias", "pool.score.bias", "gate.bias")  # over the words: leaves the softmax
    return (*constant, *other, *(("gate",) if name == "lookup_asked" else ()))  # which has a single word


@pytest.mark.parametrize("name", LEARNED)
def test_save_and_load(name, tmp_path):
    tokens = some_tokens(name)[1]
    old = make(name, tokens).eval()
    save_file(old.state_dict(), tmp_path / "weights.safetensors")
    torch.manual_seed(9)
    new = build(
        name, tokens=tokens, grid=6, d=D, d_levels=LEVELS, d_llm=LLM, d_question=LLM, **OPTIONS.get(name, {})
    )

    def run(module):
        if module.fuses:
            return torch.cat(fused(module, features(), torch.ones(3, 5, LLM)), 1)
        return module(features(), question(module))

    assert not torch.equal(run(new.eval()), run(old))
    new.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(run(new), run(old))


# learned windows, once more, as slowly and plainly as they can be written


def attention_by_hand(q, keys, values, given, heads):
    """One query (d,) over keys and values (n, d) with torch's packed weights."""
    wq, wk, wv = given["clip_attn.in_proj_weight"].chunk(3)
    bq, bk, bv = given["clip_attn.in_proj_bias"].chunk(3)
    q, keys, values = wq @ q + bq, keys @ wk.T + bk, values @ wv.T + bv
    c, out = len(q) // heads, []
    for h in range(heads):
        at = slice(h * c, (h + 1) * c)
        weights = torch.softmax(keys[:, at] @ q[at] / math.sqrt(c), 0)
        out.append(weights @ values[:, at])
    return given["clip_attn.out_proj.weight"] @ torch.cat(out) + given["clip_attn.out_proj.bias"]


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_quecc_equals_loop_over_windows(k):
    g, n = 6, 6 // k
    torch.manual_seed(3)
    slow = Published(D, LEVELS, LLM, g, k)
    for p in slow.parameters():
        torch.nn.init.normal_(p, std=0.4)
    module = make("quecc", n * n)
    module.load_official(slow.state_dict())
    x, ask, given = features(), torch.randn(3, LLM), slow.state_dict()
    with torch.no_grad():
        fast, fast_train = module(x, ask), None
        with torch.enable_grad():
            fast_train = module(x, ask).detach()
        tau = slow.text_projection(ask)
        for b in range(3):
            keys, values = slow.k_proj(x.levels[b]), slow.v_proj(x.levels[b])
            asked = slow.q_proj(x.last[b] + tau[b])
            for i in range(n):
                for j in range(n):
                    patches = [(i * k + r) * g + j * k + c for r in range(k) for c in range(k)]
                    kernel = given["q_downsample.weight"][:, 0].flatten(1).T  # (k k, d)
                    q = (asked[patches] * kernel).sum(0) + given["q_downsample.bias"]
                    by_hand = attention_by_hand(q, keys[patches], values[patches], given, 8)
                    torch.testing.assert_close(fast[b, i * n + j], by_hand, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(fast, slow(x.last, x.levels, ask), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(fast, fast_train, atol=1e-5, rtol=1e-5)


def patches_of(v, n, g=6):
    """Raster places of the patches of window v of n x n."""
    k = g // n
    return [(v // n * k + r) * g + v % n * k + c for r in range(k) for c in range(k)]


def norm(x, weight, bias, eps=1e-6):
    return (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, correction=0, keepdim=True) + eps
    ).sqrt() * weight + bias


@pytest.mark.parametrize("name", ["tokenpacker", "tokenpacker_antialias"])
@pytest.mark.parametrize("n", [1, 2, 3, 6])
@torch.no_grad()
def test_tokenpacker_equals_loop_over_windows(name, n):
    torch.manual_seed(3)
    pairs = {"k_proj_1.0": (D, LEVELS), "v_proj_1.0": (D, LEVELS), "mlp.0": (LLM, D), "mlp.2": (LLM, LLM)}
    pairs |= dict.fromkeys(("k_proj_1.2", "v_proj_1.2", "clip_attn.out_proj"), (D, D))
    given = {f"{name}.weight": torch.randn(shape) * shape[1] ** -0.5 for name, shape in pairs.items()}
    given |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in pairs.items()}
    for ln in ("ln_q_1", "ln_k_1", "ln_v_1"):
        given |= {f"{ln}.weight": torch.randn(D), f"{ln}.bias": torch.randn(D)}
    given |= {
        "clip_attn.in_proj_weight": torch.randn(3 * D, D) / 4,
        "clip_attn.in_proj_bias": torch.randn(3 * D),
    }
    given["q_proj_1.weight"] = torch.randn(D, D) / 4
    module, x = make(name, n * n), features()
    module.load_official(given)

    def mlp(x, name):
        hidden = F.gelu(x @ given[f"{name}.0.weight"].T + given[f"{name}.0.bias"])
        return hidden @ given[f"{name}.2.weight"].T + given[f"{name}.2.bias"]

    def normed(x, name):
        return norm(x, given[f"{name}.weight"], given[f"{name}.bias"])

    small = F.interpolate(x.last.mT.reshape(3, D, 6, 6), (n, n), mode="bilinear").flatten(2).mT
    for i in range(3):
        keys, values = (normed(mlp(x.levels[i], f"{a}_proj_1"), f"ln_{a}_1") for a in "kv")
        for v in range(n * n):
            at = patches_of(v, n)
            coarse = x.last[i, at].mean(0) if name.endswith("antialias") else small[i, v]
            q = normed(given["q_proj_1.weight"] @ coarse, "ln_q_1")
            by_hand = mlp(attention_by_hand(q, keys[at], values[at], given, 8), "mlp")
            torch.testing.assert_close(module(x)[i, v], by_hand, atol=1e-5, rtol=1e-5)


def attended(queries, keys, values, attend):
    """`attention_by_hand` of every query, by a `PackedAttention`'s weights."""
    given = {"in_proj_weight": attend.in_weight, "in_proj_bias": attend.in_bias,
             "out_proj.weight": attend.out.weight, "out_proj.bias": attend.out.bias}  # fmt: skip
    given = {f"clip_attn.{name}": part for name, part in given.items()}
    return torch.stack([attention_by_hand(q, keys, values, given, attend.heads) for q in queries])


@pytest.mark.parametrize("name", ["mqt", "mqt_content", "llavamini", "perceiver"])
@pytest.mark.parametrize("tokens", [1, 4, 9])
@torch.no_grad()
def test_resamplers_equal_a_loop_over_queries(name, tokens):
    m, x = make(name, tokens), features().last
    for p in m.parameters():
        torch.nn.init.normal_(p, std=0.4)

    def normed(x, layer):
        return norm(x, layer.weight, layer.bias, 1e-5 if name == "llavamini" else 1e-6)

    for i in range(3):
        values = normed(m.read(x[i]) if name == "perceiver" else x[i], m.value_norm)
        queries, keys = normed(m.query, m.query_norm) + m.code[: len(m.query)], values + m.key_code
        if name.startswith("mqt"):
            queries = normed(m.query[:tokens] + m.code[:tokens], m.query_norm)
            keys = normed(m.key_code + x[i] if "content" in name else m.key_code, m.key_norm)
        z = attended(queries, keys, values, m.attend)
        z = z @ m.project if name.startswith("mqt") else m.project(z) if name == "perceiver" else z
        torch.testing.assert_close(m(Features(x))[i], z, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_values_of_m3_and_stride(n):
    x, m3, stride = features().last, make("m3", n * n), make("stride", n * n)
    for v in range(n * n):
        at = patches_of(v, n)
        torch.testing.assert_close(m3(Features(x))[:, v], m3.project(x[:, at]).mean(1), atol=1e-5, rtol=1e-5)
        middle = at[(6 // n // 2) * (6 // n + 1)]  # right below the centre of an even window
        assert torch.equal(stride(Features(x))[:, v], x[:, middle])


@pytest.mark.parametrize("n", [1, 4, 5])
def test_downsample_is_the_mean_over_its_area(n):
    x, tokens = features().last.view(3, 6, 6, D), make("downsample", n * n)(features()).view(3, n, n, D)
    step = 6 / n

    def overlap(i, r):
        return max(0, min((i + 1) * step, r + 1) - max(i * step, r)) / step

    for i in range(n):
        for j in range(n):
            mean = sum(overlap(i, r) * overlap(j, c) * x[:, r, c] for r in range(6) for c in range(6))
            torch.testing.assert_close(tokens[:, i, j], mean, atol=1e-5, rtol=1e-5)


def test_quecc_many_questions_share_keys():
    for name in ("quecc", "quecc_light", "glances_steered", "lookup", "seek"):
        module = make(name, 4).eval()
        x, asks = features(), question(module, 3, m=3)
        each = torch.stack([module(x, asks[:, i]) for i in range(3)], 1).flatten(0, 1)
        torch.testing.assert_close(module(x, asks), each, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["quecc_light", "glances_steered", "lookup", "seek"])
def test_padding_of_a_question_is_not_read(name):
    module = make(name, 4).eval()
    x, ask = features(), question(module)
    mask = torch.arange(8).expand(3, 8) < 5
    padded = torch.cat([ask, torch.randn(3, 3, LLM)], 1)
    torch.testing.assert_close(module(x, padded, mask=mask), module(x, ask), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("ablation", [{"question": False}, {"conv": False}, {"levels": 1}, {"heads": 1}])
def test_quecc_ablations(ablation):
    module = make("quecc", 4, **ablation).eval()
    x, ask = features(), torch.randn(3, LLM)
    z, other = module(x, ask), module(x, ask.flip(0))
    assert torch.equal(z, other) == ("question" in ablation)
    moved = Features(x.last, x.levels + 1)
    assert torch.equal(z, module(moved, ask)) == ("levels" in ablation)
    assert (make("quecc", 4).n_parameters > module.n_parameters) == (ablation.keys() != {"heads"})


@pytest.mark.parametrize(
    "name", [n for n in names() if n in LEARNED or n in ("pool", "random", "dct", "tome")]
)
def test_nested_weights_are_shared(name):
    module = make(name, some_tokens(name)[0]).eval()
    other = some_tokens(name)[1]
    if not module.nested:
        with pytest.raises(InputError, match="same weights"):
            module.at(other)
        return
    twin = module.at(other)
    assert twin.tokens == other and module.tokens != other
    assert all(a is b for a, b in zip(twin.parameters(), module.parameters(), strict=True))
    assert twin(features(), question(twin)).shape[1] == other


def test_quecc_for_every_v_is_at_each_the_one_made_for_it():
    module = make("quecc_nested", 4)
    for V in (1, 4, 9, 36):
        one = make("quecc", V)
        own = {name: p for name, p in module.state_dict().items() if not name.startswith("conv_")}
        if V < 36:  # a window of one patch has no convolution
            own |= {f"conv_{w}": getattr(module, f"conv_{w}")[str(one.k)] for w in ("weight", "bias")}
        one.load_state_dict(own, strict=V < 36)
        x, ask = features(), question(one)
        torch.testing.assert_close(module.at(V)(x, ask), one(x, ask))
    with pytest.raises(InputError, match="build 'quecc'"):
        module.load_official({})


def test_lookup_may_read_one_vector_in_place_of_words():
    module, x = make("lookup_asked", 4).eval(), features()
    ask = torch.randn(3, LLM)
    assert module.question_pass == "paid" and module(x, ask).shape == (3, 4, LLM)
    assert not torch.equal(module(x, ask), module(x, ask.flip(0)))
    words = make("lookup", 4).eval()  # the same search: that vector stands as the only word
    found = [m.found(m.patches(x), q, None) for m, q in ((module, ask), (words, ask[:, None]))]
    torch.testing.assert_close(*found)


def test_pooling_keeps_the_mean_and_dct_the_low_frequencies():
    x = features()
    for name in ("pool", "downsample", "dct"):
        torch.testing.assert_close(make(name, 4)(x).mean(1), x.last.mean(1), atol=1e-5, rtol=1e-4)
    rows = torch.arange(6.0).add(0.5).mul(math.pi / 6).cos()  # one low wave survives truncation to 4 x 4
    wave = Features(rows.repeat_interleave(6)[None, :, None].expand(1, 36, D))
    points = torch.arange(4.0).add(0.5).mul(math.pi / 4).cos()
    torch.testing.assert_close(
        make("dct", 16)(wave)[0, :, 0], points.repeat_interleave(4), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", [n for n in names() if n not in ("none", "fastv")])
def test_where_in_inference_mode_and_half_precision(name):
    module = make(name, some_tokens(name)[1 if len(some_tokens(name)) > 2 else 0]).eval()
    seen = module.attention_map(features(of=module), question(module))
    with torch.inference_mode():
        torch.testing.assert_close(module.attention_map(features(of=module), question(module)), seen)
    module.to(torch.bfloat16)
    coarse = module.attention_map(features(of=module).to(torch.bfloat16), question(module).bfloat16())
    assert coarse.shape == seen.shape and coarse.isfinite().all()


@pytest.mark.parametrize("name", names())
def test_an_empty_batch_gives_no_tokens(name):
    module = make(name, some_tokens(name)[0]).eval()
    with torch.no_grad():
        assert len(module(features(0, of=module), question(module, 0))) == 0


def test_visionzip_names_the_class_token_where_it_is_the_only_dominant_one():
    """Position 0 of the release's `dominant`, which counts the class token."""
    zipped = Budget(tokens=4, grid=6, d=D, contextual=3).zip(features())
    assert zipped.dominant.tolist() == [[0]] * 3
    torch.testing.assert_close(zipped.tokens[:, 0], features().cls)


def test_tome_is_a_weighted_partition():
    x, module = features(), make("tome", 7)
    merged = module.merging(x)
    assert (merged.size.sum(1) == 36).all()
    for i in range(7):
        members = merged.groups[0] == i
        torch.testing.assert_close(merged.tokens[0, i], x.last[0, members].mean(0), atol=1e-5, rtol=1e-5)


def test_prumerge_normalised_is_a_mean():
    ones = Features(torch.ones(2, 36, D), attention=features(2).attention, keys=features(2).keys)
    torch.testing.assert_close(make("prumerge_normalised", 5)(ones), torch.ones(2, 5, D))
    assert not torch.allclose(make("prumerge", 5)(ones), torch.ones(2, 5, D), atol=0.01)


def test_prumerge_plus_keeps_no_patch_twice():
    for v in range(1, 37):
        kept, rest = PruMerge(tokens=v, grid=6, d=D, plus=True).choose(features().attention.mean(1))
        assert sorted(torch.cat([kept, rest], 1)[0].tolist()) == list(range(36)) and kept.shape[1] == v - 1


def language_model():
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(CONFIG).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


def prompt():
    image = torch.zeros(3, 26, dtype=torch.bool)
    image[:, 4:20] = True
    real = torch.ones(3, 26, dtype=torch.long)
    real[1, :2] = 0  # padding on the left
    return torch.randn(3, 26, LLM, generator=torch.Generator().manual_seed(4)) * 3, image, real


@torch.no_grad()
def test_fastv_equals_hiding_the_dropped_as_keys():
    """Dropping tokens at layer K and masking them from layer K on give the last position the same logits."""
    model, (x, image, real) = language_model(), prompt()
    module = build("fastv", tokens=4, grid=4, d=D, layer=1)
    layers, kept = model.model.layers, []
    word, grown = x[:, :1], torch.nn.functional.pad(real, (0, 1), value=1)
    with module.inside(layers, image):
        hook = layers[2].register_forward_pre_hook(
            lambda _, args, kw: kept.append(kw["position_ids"]), with_kwargs=True
        )
        out = model(inputs_embeds=x, attention_mask=real, use_cache=True)
        short = out.logits[:, -1]
        step = model(inputs_embeds=word, attention_mask=grown, past_key_values=out.past_key_values).logits[
            :, -1
        ]
        hook.remove()
    assert out.logits.shape[1] == 14 and kept[0].shape == (3, 14)
    hidden = torch.ones(3, 27, dtype=torch.bool).scatter(1, kept[0], False)
    hidden[:, 26] = False  # the word that came after the prompt

    def hide(_, args, kwargs):
        mask = (
            kwargs["attention_mask"]
            .float()
            .masked_fill(hidden[:, None, None], torch.finfo(torch.float32).min)
        )
        return args, {**kwargs, "attention_mask": mask}

    hooks = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in layers[1:]]
    masked = model(inputs_embeds=torch.cat([x, word], 1), attention_mask=grown).logits
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(short, masked[:, 25], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(step, masked[:, 26], atol=1e-4, rtol=1e-4)  # from the cache
    assert not torch.allclose(short, model(inputs_embeds=x, attention_mask=real).logits[:, -1], atol=1e-4)


@torch.no_grad()
def test_fastv_generates_with_a_cache_and_leaves_no_trace():
    model, (x, image, real) = language_model(), prompt()
    ask = dict(inputs_embeds=x, attention_mask=real, max_new_tokens=4, do_sample=False)
    whole = model.generate(**ask)
    with build("fastv", tokens=16, grid=4, d=D, layer=1).inside(model.model.layers, image):
        assert torch.equal(model.generate(**ask), whole)
    module = build("fastv", tokens=2, grid=4, d=D, layer=1)
    with module.inside(model.model.layers, image):
        cached = model.generate(**ask)
    assert cached.shape == (3, 4) and torch.equal(model.generate(**ask), whole)


def test_prefusion_lets_text_read_the_image_but_not_the_reverse():
    module = make("llavamini_fused", 4).eval()
    x, text = features(), torch.randn(3, 5, LLM)
    tokens, words = fused(module, x, text)
    assert tokens.shape == (3, 4, LLM) and words.shape == (3, 5, LLM)
    other = Features(x.last + 1)
    tokens_2, words_2 = fused(module, other, text)
    assert not torch.allclose(words, words_2) and not torch.allclose(tokens, tokens_2)
    torch.testing.assert_close(fused(module, x, text + 1)[0], tokens)


@pytest.mark.parametrize("name, tokens", [("tokenpacker", 4), ("mqt", 5), ("pool", 1)])
def test_the_auxiliary_loss_learns_to_guess_the_patches(name, tokens):
    module, x = make(name, tokens), features()
    auxiliary = AuxiliaryLoss(module, width=32, weight=1e-3)
    learn = torch.optim.Adam([*module.parameters(), *auxiliary.parameters()], lr=0.01)
    losses = []
    for _ in range(40):
        loss = auxiliary(module(x), x)
        learn.zero_grad()
        loss.backward()
        learn.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():  # an image is guessed from its own tokens, not from the patches' mean
        assert auxiliary(module(x), x) < 0.9 * auxiliary(module(x).roll(1, 0), x)


def test_zero_tokens_mean_no_image_by_any_name():
    for name in names():
        assert make(name, 0)(features()).shape == (3, 0, D)


OWN = """
import torch

from vtc.compressors.base import Windows, mean_pool


class Corner(Windows):  # the mean of each window, mapped, and moved by what is asked
    needs_question = True
    question_source = "llm_last"

    def __init__(self, **shape):
        super().__init__(**shape)
        self.map = torch.nn.Linear(self.d, self.d)
        self.ask = torch.nn.Linear(self.width_of("d_question"), self.d)

    def compress(self, features, question=None):
        question = question if question.dim() == 3 else question.unsqueeze(1)  # (b, m, d_question)
        tokens = self.map(mean_pool(features.last, self.n)).unsqueeze(1) + self.ask(question).unsqueeze(2)
        return tokens.flatten(0, 1)  # (b m, V, d)
"""


def test_a_compressor_is_one_file_and_one_line(tmp_path, monkeypatch):
    """A file in a folder of its own and a line: built, counted, planned, swept, drawn, saved and loaded."""
    (tmp_path / "corner.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VTC_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(compressors, "REGISTRY", dict(compressors.REGISTRY))
    compressors.register("corner", __import__("corner").Corner)

    module = make("corner", 4)
    seen = module.attention_map(features(), question(module))
    assert seen[0, 3].nonzero().flatten().tolist() == patches_of(3, 2)
    assert "corner" in compressors.sets()["others"]

    p = replace(profiles.get("smoke"), zoo=("corner",), zoo_V=(4, 5), workers=1)
    shape = {"d": p.tower.d, "d_levels": p.tower.d_levels, "d_llm": 96, "d_question": 96}
    built = build("corner", tokens=4, grid=p.g, **shape)
    with torch.no_grad(), FlopCounterMode(display=False) as seen:
        built(Features(torch.randn(3, p.s, p.tower.d)), torch.randn(3, 2, 96))
    ours = cost.compressor("corner", p.tower, 4, 96)
    assert 3 * (ours.image + 2 * ours.question) == pytest.approx(seen.get_total_flops(), rel=0.01)
    assert ours.weights == built.n_parameters and ours.question_pass == "paid"

    law = fit(published("reasoning"))
    made = plan(Request(compressor="corner", models=(0.5,), tokens=(4, 36)), cost.hardware("a100"), law)
    assert made.best is not None and made.request.q_prime == made.request.Q

    cases = [case for case in sweep.zoo(p) if case["compressor"] == "corner"]
    assert [case["V"] for case in cases] == [4]
    rows = sweep.table(p, cases, sweep.ZOO)
    assert len(rows) == 1 and (rows["compressor"] == "corner").all()
    priced = compare.with_cost(rows, p)
    assert priced["mflop"].gt(0).all()
    for chart in (zoo.errors(rows, p), zoo.ranked(rows, p), zoo.at_cost(priced, p)):
        assert "corner" in chart.to_json()

    model, _ = stages.train(p, stages.Case(**cases[0]))
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    assert again.compressor.name == "corner"


@pytest.mark.parametrize(
    "act, says",
    [
        (lambda: make("quec", 4), "unknown compressor 'quec': use one of .*tokenpacker"),
        (lambda: make("quecc", 5), r"cannot give V = 5 from a 6 x 6 grid: use one of 1, 4, 9, 36"),
        (lambda: make("visionzip", 1), "V = 1"),
        (lambda: make("quecc", 4, colour="red"), "unexpected keyword argument 'colour'"),
        (lambda: make("quecc", 4, source="tea leaves"), "llm_last, prompt_prefix, embeddings"),
        (lambda: make("quecc", 4, heads=5), "5 heads do not divide the width 16"),
        (lambda: make("perceiver", 4, heads=5), "5 heads do not divide the width 16"),
        (lambda: make("mqt", 4, keys="cold"), "'static' .* or 'content'"),
        (lambda: make("quecc", 4)(features()), "needs the question"),
        (
            lambda: make("quecc", 4)(features(), torch.randn(3, 7)),
            r"question of shape \(3, 24\), got \(3, 7\)",
        ),
        (
            lambda: make("pool", 4)(features(g=8)),
            r"6 x 6 patches needs features.last of shape \(3, 36, 16\), got \(3, 64, 16\)",
        ),
        (lambda: make("prumerge", 4)(Features(features().last)), "reads features.attention"),
        (lambda: make("tokenpacker", 4)(Features(features().last)), "reads features.levels"),
        (lambda: build("tokenpacker", tokens=4, grid=6, d=D, d_levels=LEVELS), "needs the width d_llm"),
        (lambda: make("quecc", 4).load_official({}), "expects a tensor named 'text_projection.0.weight'"),
        (
            lambda: make("mqt", 4).load_official({"ln_q.weight": torch.ones(3), "ln_q.bias": torch.ones(3)}),
            r"is \(16,\)",
        ),
        (lambda: build("fastv", tokens=4, grid=6, d=D, layer=0), "layer must be at least 1"),
        (lambda: make("mqt", 17, g=4), "V = 17"),
        (lambda: make("mqt", 4, g=4).at(17), "V = 17"),
        (lambda: make("pool", 4.0), "tokens must be a whole number >= 0, got 4.0"),
        (lambda: make("pool", 4, g=(4, 6)), r"grid must be a whole number >= 1, got \(4, 6\)"),
        (lambda: make("mqt", 4, g=6.0), "grid must be"),
        (lambda: make("dct", 4, g=0), "grid must be"),
        (lambda: make("tokenpacker", 4, heads=5), "5 heads do not divide the width 16"),
        (lambda: build("tokenpacker", tokens=4, grid=6, d=20, d_levels=20, d_llm=24), "8 heads .* width 20"),
        (lambda: make("quecc", 4, heads=0), "0 heads do not divide"),
        (lambda: make("glances", 4, glances=0), "glances must be at least 1"),
        (lambda: make("quecc_light", 4)(features(), torch.randn(3, LLM)), r"question of shape \(3, \*, 24\)"),
        (lambda: make("glances_steered", 4)(features(), torch.randn(3, LLM)), "question of shape"),
        (lambda: make("lookup", 4)(features(), torch.randn(3, LLM)), "question of shape"),
        (lambda: make("quecc", 4)(features(), torch.randn(3, 1, 2, LLM)), "question of shape"),
        (lambda: make("pool", 4)(Features(features().last[0])), "features.last of shape"),
        (
            lambda: make("tokenpacker", 4)(Features(features().last, features(g=8).levels)),
            r"features.levels of shape \(3, 36, 48\), got \(3, 64, 48\)",
        ),
        (
            lambda: make("tokenpacker", 4)(Features(features().last, features().last)),
            r"features.levels of shape \(3, 36, 48\), got \(3, 36, 16\)",
        ),
        (
            lambda: make("prumerge", 4)(Features(features().last, attention=features(g=8).attention)),
            "attention of",
        ),
        (
            lambda: make("tome", 4)(Features(features().last, keys=features(g=8).keys)),
            "features.keys of shape",
        ),
    ],
)
def test_errors_are_one_line_that_helps(act, says):
    with pytest.raises(InputError, match=says) as error:
        act()
    assert "\n" not in str(error.value)


def test_official_names_with_a_models_prefix():
    given = Official({"model.mm_projector.query": torch.ones(2), "model.embed.weight": torch.ones(2)}, "MQT")
    assert "query" in given and "model.embed.weight" not in given


@pytest.mark.parametrize("name", ["glances", "glances_steered", "lookup"])
@pytest.mark.parametrize("tokens", [1, 4, 9, 36])
def test_glances_and_lookup_are_what_a_loop_over_windows_gives(name, tokens):
    """Straight from the definition: image by image, window by window, look by look."""
    module, x = make(name, tokens).eval(), features()
    ask = question(module)
    with torch.no_grad():
        z = F.layer_norm(module.read(x.levels), (module.query.shape[1],), eps=1e-6)
        side, k = math.isqrt(tokens), 6 // math.isqrt(tokens)
        place = module.place[str(k)] if name == "lookup" else module.place
        for i in range(3):
            query, grown = module.query, 1.0
            if module.needs_question:
                told = module.text(module.pool(ask[i : i + 1]))[0]
                query = query + module.steer(told).view(query.shape) * query.shape[1] ** -0.5
                grown = 1 + module.scale(told)
            for v in range(tokens):
                rows, columns = range(v // side * k, v // side * k + k), range(v % side * k, v % side * k + k)
                patches = torch.stack([z[i, 6 * r + c] for r in rows for c in columns])
                carried = [
                    ((query[h] @ patches.T + place[h]).softmax(0) @ patches * grown) @ module.value[h]
                    for h in range(len(query))
                ]
                token = module.project(torch.cat(carried))
                if name == "lookup":
                    token = token + by_word(module, ask[i], patches)
                torch.testing.assert_close(module(x, ask)[i, v], token, atol=1e-5, rtol=1e-4)


def by_word(module, words, patches):
    """What the words of one question find among the patches of one window."""
    share = module.gate(words).softmax(0)  # (q, finds)
    queries = F.layer_norm(words, words.shape[-1:]) @ module.ask
    found = [(q @ patches.T * len(q) ** -0.5).softmax(0) @ patches for q in queries]
    finds = [sum(share[j, f] * found[j] for j in range(len(words))) for f in range(share.shape[1])]
    return torch.cat(finds) @ module.hand_on


@pytest.mark.parametrize("tokens", [1, 4])
def test_seek_is_what_a_loop_over_its_searches_gives(tokens):
    """Straight from the definition: image by image, token by token, search by search."""
    module, x = make("seek", tokens).eval(), features()
    ask, side = question(module), math.isqrt(tokens)
    with torch.no_grad():
        z = F.layer_norm(module.read(x.levels), (D,), eps=1e-6)
        keys = [z[:, 6 * y + c] + module.rows[y] + module.columns[c] for y in range(6) for c in range(6)]
        for i in range(3):
            t = F.layer_norm(module.text(module.pool(F.layer_norm(ask[i : i + 1], (LLM,))))[0], (D,))
            for v in range(tokens):
                queries = [module.query[v, h] + module.steer[h] @ t for h in range(4)]
                scores = [torch.stack([q @ key[i] for key in keys]) * D**-0.5 for q in queries]
                found = [score.softmax(0) @ z[i] for score in scores]
                window = z[i].view(side, 6 // side, side, 6 // side, D)[v // side, :, v % side]
                token = module.project(torch.cat([*found, window.mean((0, 1)), t]))
                torch.testing.assert_close(module(x, ask)[i, v], token, atol=1e-5, rtol=1e-4)
