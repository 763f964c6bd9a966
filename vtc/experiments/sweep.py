"""Many cells under one recipe: which LLMs at which V by which compressors and seeds; rows as they come."""

from __future__ import annotations

import shutil
from functools import partial

import numpy as np
import pandas as pd
import torch

from vtc import compressors
from vtc.evaluation.ask import answers, errors, looked_at, questions, score
from vtc.experiments import store
from vtc.models.vlm import VLM
from vtc.profiles import Profile
from vtc.training import stages, tower

LOOKED_AT = 4  # the most tokens whose looks are kept; more of them see little each

STEM, ZOO = "02_errors", "05_zoo"  # the sweep over N and V, and the compressors side by side


def cells(p: Profile, compressor: str = "tokenpacker") -> list[dict]:
    """Every LLM at every V, the longest first; TokenPacker as in the paper's scaling runs."""
    return [
        {"size": size.name, "V": V, "compressor": compressor, "seed": seed}
        for seed in p.seeds
        for size in reversed(p.sizes)
        for V in reversed(p.V)
    ]


# The compressors of notebook 05; TokenPacker's rows are the sweep's.
SETS = {
    "rivals": ("pool", "quecc", "quecc_shared", "quecc_light", "glances_steered", "lookup"),
    "ablations": (
        *("quecc", "quecc_unasked", "quecc_pooled", "quecc_one_level", "quecc_one_head"),
        *("quecc_distilled", "lookup", "lookup_unaligned", "lookup_distilled"),
    ),
    "nested": ("m3", "mqt_nested", "glances_nested"),
    "others": (
        *("glances", "pool_after", "mqt", "mqt_content", "perceiver", "llavamini", "tokenpacker_antialias"),
        *("llavamini_fused", "prumerge", "prumerge_normalised", "prumerge_plus", "visionzip", "tome"),
        *("fastv", "random", "stride", "downsample", "downsample_image", "dct"),
    ),
}


def members(name: str) -> tuple[str, ...]:
    """The compressors of a set, or the one of that name."""
    return SETS.get(name, (name,))


def zoo(p: Profile) -> list[dict]:
    """Compressors at few tokens with one LLM; with the rivals, every patch handed to the largest (identity).

    Ablations: at the two least V. V that a compressor can't give are left out.
    """
    largest = {"size": p.sizes[-1].name, "V": p.s, "compressor": "identity"}
    cases = [largest] if "rivals" in p.zoo else []
    for name in p.zoo:
        few = p.zoo_V[:2] if name == "ablations" else p.zoo_V
        able = [(v, one) for v in few for one in members(name) if v in compressors.possible(one, p.g)]
        cases += [{"size": p.zoo_size, "V": v, "compressor": one} for v, one in able]
    cases = [case for i, case in enumerate(cases) if case not in cases[:i]]
    return [case | {"seed": seed} for seed in p.seeds for case in cases]


def parts(p: Profile) -> pd.DataFrame:
    """The tower and the text-trained LLMs, trained where they are not yet: one row each."""
    return store.table("02_parts", p, stages.parts(p), partial(stages.part, p), workers=p.workers)


def table(p: Profile, cases: list[dict], stem: str = STEM) -> pd.DataFrame:
    """The rows of these cells; those not there yet are trained and asked, several side by side."""
    return store.table(stem, p, cases, partial(measure, p), workers=p.workers)


def replay(p: Profile, cases: list[dict], stem: str = STEM) -> pd.DataFrame:
    """What a notebook shows of these cells, see `vtc.experiments.store.replay`."""
    command = f"vtc sweep --profile {p.name}" + (" --zoo" if stem == ZOO else "")
    return store.replay(stem, p, cases, partial(measure, p), command, p.workers)


def measure(p: Profile, case: dict) -> dict[str, object]:
    """Train one cell and ask it -> N, Q, scores and errors, speed, and the score of every single answer.

    misled: the scores again where the compressor reads another question than the LLM.
    """
    case = stages.Case(**case)
    stages.check(p, case)
    model, notes = stages.train(p, case)
    asked = questions(p)
    scores = [score(q, a) for q, a in zip(asked, answers(p, model, asked))]
    steered = model.compressor.needs_question and not model.question_first
    wrong = answers(p, model, asked, misled=True) if steered else []
    lengths = [len(ids) for ids in model.tokenizer([q.text for q in asked])["input_ids"]]
    shutil.rmtree(stages.checkpoints(p, case), ignore_errors=True)
    row = {"N": p.size(case.size).N, "Q": float(np.mean(lengths)), **errors(asked, scores), **notes}
    drawn = 0 < case.V <= LOOKED_AT and model.V == case.V  # FastV chooses only inside the LLM
    row["looks"] = looks(p, model) if drawn else ""
    return row | {"scores": packed(scores), "misled": packed([score(q, a) for q, a in zip(asked, wrong)])}


def looks(p: Profile, model: VLM) -> str:
    """Where tokens look in one test image for three questions: m V s weights over the greatest, packed."""
    image, asked = looked_at(p)
    seen = tower.features(p, "test", **model.compressor.of_tower)[[image]]
    where = model.where(seen.to(torch.float32), asked)
    return packed((where / where.amax(-1, keepdim=True)).flatten().tolist())


def looked(p: Profile, rows: pd.DataFrame, V: int) -> pd.DataFrame:
    """Rows with `looks` at that V, one seed each -> compressor, question, token, x, y (patches), weight."""
    _, asked = looked_at(p)
    there = rows.assign(looks=rows.get("looks", "")).query("V == @V and looks.str.len() > 0")
    parts = []
    for row in there.drop_duplicates("compressor").itertuples():
        weight = unpacked(row.looks)
        m, token, y, x = np.indices((len(asked), V, p.g, p.g)).reshape(4, -1)
        part = {"question": np.array(asked)[m], "token": token, "x": x, "y": y, "weight": weight}
        parts.append(pd.DataFrame(part).assign(compressor=row.compressor))
    columns = ["compressor", "question", "token", "x", "y", "weight"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def packed(scores: list[float]) -> str:
    """Scores in 0..1 as a character each, in twentieths (`a` 0, `u` 1), so rows can be paired by question."""
    return "".join(chr(ord("a") + round(20 * s)) for s in scores)


def unpacked(text: str) -> np.ndarray:
    """What `packed` wrote, to the nearest twentieth."""
    return (np.frombuffer(text.encode(), np.uint8).astype(float) - ord("a")) / 20
