"""Numbers of the public implementations, case by case, through the public classes and `load_official`.

`pytest tests/test_parity.py --vectors DIR` runs every case of any folder with a manifest of this form.
"""

import hashlib
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from released import (
    Adaptive,
    Budget,
    FixedShare,
    TowerAttention,
    class_attention,
    given_tokens,
    match_protected,
    outlier_share,
    schedule,
    unmerge,
)

from vtc.compressors import build
from vtc.compressors.base import Features, fill, mlp2x, pick
from vtc.compressors.zoo.fastv import rank, survivors
from vtc.compressors.zoo.tome import merge


def tensor(case, spec):
    """Rebuild one input or weight from the names of the case and the tensor."""
    seed = int.from_bytes(hashlib.sha256(f"{case}/{spec['name']}".encode()).digest()[:8], "little")
    z = np.random.default_rng(seed).standard_normal(tuple(spec["shape"])).astype(np.float32)
    small = np.float32(0.1)
    value = 1 + z * small if spec["kind"] == "layernorm_weight" else z * np.float32(spec["scale"])
    assert hashlib.sha256(value.astype("<f4").tobytes()).hexdigest() == spec["sha256"], spec["name"]
    how = spec.get("transform")
    if how is None:
        return torch.from_numpy(value)
    if how == "token_size":
        return torch.from_numpy(1 + np.floor(np.abs(value) * np.float32(3)))
    scores = torch.from_numpy(value).double()
    if how == "causal_softmax_last":
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:]).tril().bool(), -torch.inf)
    return scores.softmax(-1).float()


def grid_of(patches):
    return round(patches**0.5)


def quecc(config, inputs, weights, stored):
    x, levels, text = inputs["x"], inputs["x_multi"], inputs["text"]
    g = config["grid"]
    assert config["kernel"] == config["stride"], "windows that overlap are not here"
    module = build("quecc", tokens=(g // config["kernel"])**2, grid=g, d=config["tower_width"],
                   d_levels=levels.shape[-1], d_question=config["text_width"],
                   heads=config["num_heads"])  # fmt: skip
    module.load_official(weights)
    tokens = module(Features(x, levels), text[:, 0])
    if "projector" in config:
        project = mlp2x(config["tower_width"], config["lm_width"], config["lm_width"])
        moved = {"1.": "0.", "3.": "2."}  # places behind the compressor in the release's sequence
        fill(project, {moved[k[:2]] + k[2:]: part for k, part in weights.items() if k[:2] in moved})
        tokens = project(tokens)
    return {"tokens": tokens}


def tokenpacker(config, inputs, weights, stored):
    x, levels, g = inputs["x"], inputs["x_multi"], config["grid"]
    module = build(
        "tokenpacker",
        tokens=1,
        grid=g,
        d=x.shape[-1],
        d_levels=levels.shape[-1],
        # fmt: skip
        d_llm=config["lm_width"],
        heads=config["num_heads"],
    )
    module.load_official(weights)
    features = Features(x, levels)
    return {f"tokens_scale{k}": module.at((g // k) ** 2)(features) for k in config["scale_factors"]}


def braco(config, inputs, weights, stored):
    x = inputs["x"]
    module = build("braco", tokens=config["tokens"], grid=config["grid"], d=x.shape[-1],
                   temperature=config["temperature"])  # fmt: skip
    module.load_official(weights)
    mine = {"tokens": module(Features(x))}
    return mine | ({"weights": module.residual_weights(x)} if "weights" in stored else {})


def m3(config, inputs, weights, stored):
    x = inputs["x"]
    module = build("pool_after", tokens=1, grid=grid_of(x.shape[1]), d=x.shape[-1], d_llm=config["lm_width"])
    module.load_official(weights)
    mine = {f"tokens_s{s}": module.at(s)(Features(x)) for s in config["scales"]}
    if "count_scales" in config:
        pairs = [(s, given_tokens(x.shape[1], s)) for s in config["count_scales"]]
        mine["asked_and_given_counts"] = torch.tensor(pairs)
    return mine


def mqt(config, inputs, weights, stored):
    x = inputs["x"]
    module = build("mqt", tokens=1, grid=config["tgt_size"][0], d=config["kv_dim"], d_llm=config["lm_width"],
                   heads=config["num_heads"])  # fmt: skip
    module.load_official(weights)
    mine = {f"tokens_m{m}": module.at(m)(Features(x)) for m in config["num_visual_tokens"]}
    return mine | {"pos_embed": module.code}


def llavamini(config, inputs, weights, stored):
    x, side = inputs["x"], config["grid_size"]
    module = build("llavamini", tokens=side**2, grid=grid_of(config["patches"]), d=config["width"],
                   heads=config["num_heads"])  # fmt: skip
    module.load_official(weights)
    features = Features(x)
    return {
        "pos_embed": module.code,
        "tokens": module(features),
        "attention_mean_over_heads": module.attention_map(features),
    }


def prumerge(config, inputs, weights, stored):
    attention = class_attention(inputs["q"], inputs["k"])
    features = Features(inputs["hidden"][:, 1:], attention=attention, keys=inputs["k"][:, 1:].unsqueeze(2))
    shape = {"tokens": config["patches"], "grid": grid_of(config["patches"]), "d": config["width"]}
    if config["adaptive"]:
        module = Adaptive(plus=config["plus"], **shape)
    else:
        module = FixedShare(plus=config["plus"], ratio=float(Fraction(config["reduction_ratio"])), **shape)
    choice = module.choose(attention.mean(1))
    return {
        "tokens": module(features),
        "kept_index": choice.kept,
        "rest_index": choice.rest,
        # fmt: skip
        "cls_attention": attention.mean(1),
        "reduction_ratio": outlier_share(attention.mean(1)),
    }


def visionzip(config, inputs, weights, stored):
    hidden, patches = inputs["hidden"], config["patches"]
    features = Features(hidden[:, 1:], attention=inputs["attn"][:, :, 0, 1:],
                        keys=inputs["metric"][:, 1:].unsqueeze(2), cls=hidden[:, 0])  # fmt: skip
    mine = {}
    for d, c in config["budgets"]:
        module = Budget(tokens=d + c, grid=grid_of(patches), d=config["width"], contextual=c)
        zipped = module.zip(features)
        named = {"tokens": module(features), "dominant_index": zipped.dominant,
                 "target_index": zipped.target, "assigned_target": zipped.assigned}  # fmt: skip
        mine |= {f"{name}_d{d}_c{c}": part for name, part in named.items()}
    return mine


def tower_attention(config, inputs, weights, stored):
    module = TowerAttention(config["width"], config["num_heads"])
    module.load_official(weights)
    out, cls_attention, metric = module(inputs["x"], inputs.get("size"))
    return {"attn_output": out, "cls_attention": cls_attention, "metric": metric}


def tome(config, inputs, weights, stored):
    x = inputs["x"]
    matching = match_protected(inputs["metric"], config["r"], config["class_token"], config["distill_token"])
    tokens, size = merge(x, matching, inputs.get("size"))
    return {"tokens": tokens, "size": size, "unmerged_index": matching.stay, "source_index": matching.source,
            "destination_index": matching.target, "group_of_token": matching.groups(),
            "unmerge_of_tokens": unmerge(tokens, matching)}  # fmt: skip


def tome_repeat(config, inputs, weights, stored):
    x, metric = inputs["x"], inputs.get("metric")
    keys = None if config["metric"] == "tokens" else metric.unsqueeze(2)
    mine = {}
    for m in config["targets"]:
        module = build("tome", tokens=m, grid=grid_of(config["tokens"]), d=x.shape[-1])
        merged = module.merging(Features(x, keys=keys))
        named = {"tokens": module(Features(x, keys=keys)), "size": merged.size,
                 "group_of_token": merged.groups, "r": torch.tensor(merged.steps)}  # fmt: skip
        mine |= {f"{name}_m{m}": part for name, part in named.items()}
    return mine


def tome_schedule(config, inputs, weights, stored):
    forms = [(n, tuple(r["tuple"]) if isinstance(r, dict) else r) for n, r in config["schedules"]]
    return {f"schedule_{i}": torch.tensor(schedule(n, r)) for i, (n, r) in enumerate(forms)}


def fastv(config, inputs, weights, stored):
    hidden, row = inputs["hidden"], inputs["attn"][:, :, -1].mean(1)
    start, n, length = config["system_length"], config["image_length"], config["sequence_length"]
    image = torch.zeros(len(hidden), length, dtype=torch.bool)
    image[:, start : start + n] = True

    def ranked(keep):  # in the release the first sample decides for its batch
        return rank(row, image, keep)[:1].expand(len(row), -1)

    first = ranked(config["keep"])
    kept, later = survivors(first, image), survivors(ranked(round(n * (1 - config["hf_ratio"]))), image)
    place = torch.arange(length).expand(len(hidden), -1)
    return {"keep_index": kept[0], "rank_order_index": first[0], "position_ids": place.gather(1, kept)[:1],
            "pruned_hidden": pick(hidden, kept), "mask_variant_visible": (~image).scatter(1, first, True),
            "mask_variant_position_ids": place[:1], "hf_keep_index": later[0],
            "hf_position_ids": place.gather(1, later)[:1]}  # fmt: skip


FAMILIES = {f.__name__: f for f in (quecc, tokenpacker, braco, m3, mqt, llavamini, prumerge, visionzip, tome,
tome_repeat,
                                    tome_schedule, fastv)}  # fmt: skip
FAMILIES |= {"tome_attn": tower_attention, "visionzip_attn": tower_attention}


def differences(case, mine, stored):
    """Outputs that are missing, of another shape, or too far away, in words."""
    limit = case["tolerance"]
    atol = min(limit.get("tight_atol", 1e-5), limit.get("atol", 1e-5))
    for name in stored.files:
        theirs = torch.from_numpy(stored[name].astype(np.float64))
        if name not in mine:
            yield f"{name}: not given"
        elif mine[name].shape != theirs.shape:
            yield f"{name}: {tuple(mine[name].shape)}, stored {tuple(theirs.shape)}"
        else:
            off = (mine[name].double() - theirs).abs()
            allowed = 0 if stored[name].dtype.kind in "iu" else atol + limit.get("rtol", 0) * theirs.abs()
            if not (off <= allowed).all():  # NaN is no agreement
                yield f"{name}: off by {off.max():.3g}"


class Stored(dict):
    files = ("tokens",)


def test_numbers_that_are_none_differ():
    stored, case = Stored(tokens=np.ones(2)), {"tolerance": {}}
    assert not list(differences(case, {"tokens": torch.ones(2)}, stored))
    assert list(differences(case, {"tokens": torch.full((2,), torch.nan)}, stored))


def pytest_generate_tests(metafunc):
    if "case" not in metafunc.fixturenames:
        return
    folder = Path(metafunc.config.getoption("--vectors"))
    manifest = folder / "manifest.json"
    cases = json.loads(manifest.read_text())["cases"] if manifest.is_file() else [None]
    metafunc.parametrize("case", cases, ids=lambda case: case["case"] if case else "no-vectors")


@torch.no_grad()
def test_equals_release(case, request):
    folder = Path(request.config.getoption("--vectors"))
    if case is None:
        pytest.skip(f"no parity vectors: {folder} has no manifest.json (give another folder with --vectors)")
    inputs = {s["name"]: tensor(case["case"], s) for s in case["inputs"]}
    weights = {s["name"]: tensor(case["case"], s) for s in case["weights"]}
    with np.load(folder / case["npz"]) as stored:
        mine = FAMILIES[case["family"]](case["config"], inputs, weights, stored)
        wrong = list(differences(case, mine, stored))
    assert not wrong, "; ".join(wrong)
