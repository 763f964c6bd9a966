"""Many cells under one recipe: which LLMs at which V by which compressors and seeds; rows as they come."""

from __future__ import annotations

import base64
import io
import json
import shutil
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pandas as pd
import torch
from PIL import Image

from vtc import compressors, data, machine
from vtc.evaluation.ask import example, questions, scored
from vtc.evaluation.scores import errors, pack, unpack
from vtc.experiments import store
from vtc.experiments.provenance import weights_hash
from vtc.models.vlm import VLM
from vtc.profiles import Profile
from vtc.training import features, stages, tower
from vtc.training.device import bf16_is_fast

LOOKED_AT = 4  # the most tokens whose attention maps are kept; more of them see little each

STEM, ZOO = "02_errors", "05_zoo"  # the sweep over N and V, and the compressors side by side
PARTS, ASKED = "02_parts", "02_asked"  # what is trained before, and what every cell is asked


def cells(p: Profile, V: tuple[int, ...] = ()) -> list[dict]:
    """Every LLM at every V (default: the profile's) by TokenPacker, the longest first."""
    return [
        {"size": size.name, "V": v, "compressor": "tokenpacker", "seed": seed}
        for seed in p.seeds
        for size in reversed(p.sizes)
        for v in reversed(V or p.V)
    ]


def members(name: str) -> tuple[str, ...]:
    """The compressors of a set, or the one of that name."""
    return compressors.sets().get(name, (name,))


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
    """The tower and the text-trained LLMs as they are recorded, or trained: one row each."""
    command = f"vtc sweep --profile {p.name}"
    return store.replay(PARTS, p, stages.parts(p), partial(stages.part, p), command, p.workers)


def table(p: Profile, cases: list[dict], stem: str = STEM) -> pd.DataFrame:
    """The rows of these cells; those not there yet are trained and asked, several side by side.

    The tower and the LLMs that they need are trained first.
    """
    needed = {case["size"] for case in cases}
    first = [case for case in stages.parts(p) if case["size"] in {"tower", *needed}]
    store.table(PARTS, p, first, partial(stages.part, p), p.workers)
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
    asked = questions(p)
    scores = scored(p, model)
    steered = model.compressor.needs_question and not model.question_first
    wrong = scored(p, model, shuffled=True) if steered else []
    lengths = [len(ids) for ids in model.tokenizer([q.text for q in asked])["input_ids"]]
    on = model.device.type
    drawn = 0 < case.V <= LOOKED_AT and model.V == case.V  # FastV chooses only inside the LLM
    row = {
        **{"N": p.size(case.size).N, "Q": float(np.mean(lengths)), **errors(asked, scores), **notes},
        "scores": pack(scores),
        "shuffled": pack(wrong),
        "attention_map": attention_map(p, model) if drawn else "",
        **{"device": machine.device_name(on), "dtype": "bf16" if bf16_is_fast(on) else "float32"},
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


def attention_map(p: Profile, model: VLM) -> str:
    """Where tokens look in one test image for three questions: m V s weights over the greatest, packed."""
    image, asked = example(p)
    seen = features.features(p, "test", **model.compressor.of_tower)[[image]]
    where = model.attention_map(seen.to(torch.float32), asked)
    return pack((where / where.amax(-1, keepdim=True)).flatten().tolist())


@dataclass(frozen=True)
class Asked:
    """What every cell was asked: the task of each test question, and what attention maps are of."""

    tasks: list[str]
    image: np.ndarray  # (pixels, pixels, 3), a test image
    questions: list[str]  # about it


def asked(p: Profile) -> Asked:
    """What was asked, from the recorded row where there is one, so that no image is made to show results."""
    case = [{"split": "test"}]
    rows = store.table(ASKED, p, case, None)
    row = (store.table(ASKED, p, case, partial(_asked, p)) if rows.empty else rows).iloc[0]
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(row["image"]))))
    return Asked(row["tasks"].split(), image, json.loads(row["questions"]))


def _asked(p: Profile, case: dict) -> dict[str, str]:
    image, about = example(p)
    pixels = data.render(tower.images_of(p, "test"), "test", p.pixels, range(image, image + 1))[0]
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "png")
    tasks = " ".join(q.task for q in questions(p))
    return {"tasks": tasks, "questions": about, "image": base64.b64encode(png.getvalue()).decode()}


def attention_maps(p: Profile, rows: pd.DataFrame, V: int) -> pd.DataFrame:
    """Rows with attention maps at V, one seed each -> compressor, question, token, x, y (patches), weight."""
    columns = ["compressor", "question", "token", "x", "y", "weight"]
    parts, about = [pd.DataFrame(columns=columns)], asked(p).questions
    packed_maps = rows.get("attention_map", pd.Series("", rows.index)).fillna("")
    there = rows[(rows["V"] == V) & (packed_maps != "")]
    for row in there.drop_duplicates("compressor").itertuples():
        m, token, y, x = np.indices((len(about), V, p.g, p.g)).reshape(4, -1)
        part = {"question": np.array(about)[m], "token": token, "x": x, "y": y}
        parts.append(pd.DataFrame(part | {"compressor": row.compressor, "weight": unpack(row.attention_map)}))
    return pd.concat(parts[1:] or parts, ignore_index=True)[columns]
