"""Many cells under one recipe: which LLMs at which V by which compressors and seeds; rows as they come."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pandas as pd
import torch

from vtc import compressors, data, machine
from vtc.evaluation.ask import scored
from vtc.evaluation.exam import exam, example
from vtc.evaluation.looks import looks
from vtc.evaluation.scores import errors, pack, unpack
from vtc.experiments import store
from vtc.experiments.provenance import weights_hash
from vtc.models.llm import tokenizer_of
from vtc.models.vlm import VLM, text_model
from vtc.profiles import Profile
from vtc.training import features, stages, tower
from vtc.training.device import device, in_bf16

LOOKED_AT = 4  # the most tokens whose attention maps are kept; more of them see little each

STEM, ZOO = "02_errors", "05_zoo"  # the sweep over N and V, and the compressors side by side
PARTS = "02_parts"  # what is trained before: the tower, and the LLMs told the scene in words
SWEPT = "tokenpacker_nested"  # the compressor of the sweep: one training a size serves every V
CURVES = ("quecc", "lookup")  # the compressors of the learning curves


def cells(p: Profile, V: tuple[int, ...] = ()) -> list[dict]:
    """Every LLM at every V (default: the profile's) by TokenPacker, the longest first.

    Every size once before any a second time: the first of its cells trains it, and the others would wait.
    """
    return [
        {"size": size.name, "V": v, "compressor": SWEPT, "seed": seed}
        for seed in p.seeds
        for v in reversed(V or p.V)
        for size in reversed(p.sizes)
    ]


def variant_cells(p: Profile, stem: str) -> list[dict]:
    """The cells of one of `Profile.variants`.

    The twin: every second LLM at every V. Twice as long: the zoo's LLM at every V. Learning curves: two
    compressors at the least V of the zoo.
    """
    if stem.startswith("05"):
        return zoo(replace(p, zoo=CURVES, zoo_V=p.zoo_V[:1]))
    sizes = p.sizes[::2] if stem == "02_twin" else (p.size(p.zoo_size),)
    return cells(replace(p, sizes=sizes))


def members(name: str) -> tuple[str, ...]:
    """The compressors of a set, or the one of that name."""
    return compressors.sets().get(name, (name,))


def zoo(p: Profile, sizes: tuple[str, ...] = ()) -> list[dict]:
    """Compressors at few tokens with one LLM (or those of `sizes`); ablations at the two least V.

    V that a compressor can't give are left out. By V, rising: the first cell of a nested compressor trains
    it, and nobody should wait for that.
    """
    cases = []
    for name in p.zoo:
        few = p.zoo_V[:2] if name == "ablations" else p.zoo_V
        able = [(v, one) for v in few for one in members(name) if v in compressors.possible(one, p.g)]
        for size in sizes or (p.zoo_size,):
            cases += [{"size": size, "V": v, "compressor": one} for v, one in able]
    cases = [case for i, case in enumerate(cases) if case not in cases[:i]]
    cases.sort(key=lambda case: case["V"])
    return [case | {"seed": seed} for seed in p.seeds for case in cases]


def parts(p: Profile) -> pd.DataFrame:
    """The tower and the text-trained LLMs as they are recorded, or trained: one row each."""
    command = f"vtc sweep --profile {p.name}"
    return store.replay(PARTS, p, stages.parts(p), partial(part, p), command, p.workers)


def part(p: Profile, case: dict) -> dict[str, object]:
    """Train one of `stages.parts` -> row: what the tower sees, or an LLM's scores when it is told the scene.

    The latter are the marginal E_text(N): the same questions as every cell is asked, no image in it.
    """
    where = {"device": machine.device_name(device().type)}
    if case["part"] == "tower":
        return tower.accuracy(p) | where
    size = p.size(case["size"])
    model = text_model(stages.text_llm(p, size, case["seed"]), tokenizer_of(size)).eval()
    scores = scored(p, model.to(device()), told=True)
    notes = stages.text_notes(p, size, case["seed"])
    row = {"N": size.N, "text_loss": notes["loss"], "train_seconds": notes["seconds"]}
    return row | errors(exam(p), scores) | {"scores": pack(scores), **where}


def table(p: Profile, cases: list[dict], stem: str = STEM) -> pd.DataFrame:
    """The rows of these cells; those not there yet are trained and asked, several side by side.

    The tower and the LLMs that they need are trained first.
    """
    needed = {case["size"] for case in cases}
    first = [case for case in stages.parts(p) if case["size"] in {"tower", *needed}]
    store.table(PARTS, p, first, partial(part, p), p.workers)
    return store.table(stem, p, cases, partial(measure, p), p.workers)


def replay(p: Profile, cases: list[dict], stem: str = STEM) -> pd.DataFrame:
    """What a notebook shows of these cases, see `vtc.experiments.store.replay`."""
    command = f"vtc sweep --profile {p.name}" + (" --zoo" if stem == ZOO else "")
    return store.replay(stem, p, cases, partial(measure, p), command, p.workers)


def measure(p: Profile, case: dict) -> dict[str, object]:
    """Train one cell and ask it -> N, Q, scores and errors, speed, and the score of every single answer.

    shuffled: the scores again on shuffled questions, where the compressor reads another than the LLM.
    """
    case = stages.Case(**case)
    stages.check(p, case)
    model, notes = stages.train(p, case)
    model, made = model.to(device()), exam(p)
    scores = scored(p, model)
    steered = model.compressor.needs_question and not model.question_first
    wrong = scored(p, model, shuffled=True) if steered else []
    asked = np.concatenate([(part.questions.question >= 0).sum(1) for part in made.parts])
    on, d = model.device.type, model.llm.config.hidden_size
    drawn = 0 < case.V <= LOOKED_AT and model.V == case.V  # FastV chooses only inside the LLM
    row = {
        **{"N": p.size(case.size).N, "Q": float(asked.mean()), **errors(made, scores), **notes},
        "scores": pack(scores),
        "shuffled": pack(wrong),
        "attention_map": attention_map(p, model) if drawn else "",
        **(looks(p, model) if drawn and model.compressor.needs_question else {}),  # other maps never move
        **{"device": machine.device_name(on), "dtype": "bf16" if in_bf16(on, d) else "float32"},
        **{"tower_hash": _tower_hash(p), "llm_hash": _llm_hash(p, case.size, case.seed)},
    }
    shutil.rmtree(stages.checkpoints(p, case), ignore_errors=True)  # last: a kill before this trains no more
    return row


@cache
def _tower_hash(p: Profile) -> str:
    return weights_hash(tower.pretrained(p).state_dict())


@cache
def _llm_hash(p: Profile, size: str, seed: int) -> str:
    return weights_hash(stages.text_llm(p, p.size(size), seed).state_dict())


@torch.no_grad()
def attention_map(p: Profile, model: VLM) -> str:
    """Where tokens look in one test image for three questions: m V s weights over the greatest, packed."""
    image, asked = example(p)
    seen = features.features(p, "test", **model.compressor.of_tower)[[image]]
    where = model.attention_map(seen.to(torch.float32), asked)
    return pack((where / where.amax(-1, keepdim=True)).flatten().tolist())


def example_image(p: Profile) -> np.ndarray:
    """The test image that attention maps are of, (pixels, pixels, 3)."""
    image = example(p)[0]
    return data.render(data.scenes_of(p, "test"), "test", p.pixels, range(image, image + 1))[0]


def asked_marks(p: Profile) -> pd.DataFrame:
    """The mark that each question about the example asks for -> question, left, top, right, bottom.

    The last four are shares of the image's side.
    """
    (image, about), scenes, facts = example(p), data.scenes_of(p, "test"), data.Facts(p.world)
    marks = [data.right_answer(scenes, image, facts, question).mark for question in about]
    found = [(question, *scenes.edges(image, mark)) for question, mark in zip(about, marks)]
    return pd.DataFrame(found, columns=["question", "left", "top", "right", "bottom"])


def attention_maps(p: Profile, rows: pd.DataFrame, V: int) -> pd.DataFrame:
    """Rows with attention maps at V, one seed each -> compressor, question, token, x, y (patches), weight."""
    columns = ["compressor", "question", "token", "x", "y", "weight"]
    parts, about = [pd.DataFrame(columns=columns)], example(p)[1]
    packed_maps = rows.get("attention_map", pd.Series("", rows.index)).fillna("")
    there = rows[(rows["V"] == V) & (packed_maps != "")]
    for row in there.drop_duplicates("compressor").itertuples():
        m, token, y, x = np.indices((len(about), V, p.g, p.g)).reshape(4, -1)
        part = {"question": np.array(about)[m], "token": token, "x": x, "y": y}
        parts.append(pd.DataFrame(part | {"compressor": row.compressor, "weight": unpack(row.attention_map)}))
    return pd.concat(parts[1:] or parts, ignore_index=True)[columns]
