"""The three stages: the LLM reads text, the compressor is aligned, both are instructed.

Every cell of the sweep has the same data, order and steps; only N, V, the compressor and the seed differ.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from vtc import InputError, compressors, data
from vtc.compressors.base import Features
from vtc.models.generate import check_questions
from vtc.models.llm import make_llm, make_tokenizer, tokenizer_of
from vtc.models.prompt import Packed, asked, pack
from vtc.models.vlm import VLM, VLMConfig, text_model
from vtc.profiles import Profile
from vtc.shapes import LLMShape
from vtc.training import tower
from vtc.training.loop import Stage, fit, once, save_whole
from vtc.training.losses import Guided


@dataclass(frozen=True)
class Case:
    """One cell: which LLM, how many visual tokens, by which compressor, from which seed."""

    size: str  # name of the LLM size
    V: int
    compressor: str
    seed: int
    options: str = "{}"  # the compressor's own, as JSON


class Bank:
    """Questions with answers as token ids, grouped by the scene they are about."""

    def __init__(
        self, questions: list[data.Question], tokenizer, told: list[list[str]] | None = None
    ) -> None:
        end, self.pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        texts = list(
            dict.fromkeys(t for q in questions for t in (q.text, q.answer))
        )  # few differ; tokenise each once
        ids = dict(zip(texts, tokenizer(texts)["input_ids"]))
        self.rows = [asked(ids[q.text], [*ids[q.answer], end]) for q in questions]
        self.of = {}  # scene -> rows
        for i, q in enumerate(questions):
            self.of.setdefault(q.image, []).append(i)
        self.anywhere = self.of.pop(-1, [])  # questions that need no scene
        self.scenes = np.array(sorted(self.of))
        self.told = None if told is None else _told(told, tokenizer)

    def draw(
        self, batch: int, pack: int, rng: np.random.Generator, free: int = 0
    ) -> tuple[Packed, np.ndarray]:
        """`batch` scenes, `pack` questions each, `free` about no scene -> Packed and the scenes' rows."""
        scenes = rng.choice(self.scenes, batch)
        chosen = []
        for scene in scenes:
            own = self.of[int(scene)]
            picks = rng.choice(len(own), min(pack - free, len(own)), replace=False)
            extra = rng.integers(0, len(self.anywhere), free) if free else ()
            chosen.append([own[j] for j in picks] + [self.anywhere[j] for j in extra])
        return self.pack(chosen, scenes), scenes

    def pack(self, chosen: list[list[int]], scenes: np.ndarray) -> Packed:
        """Rows of questions, one list a sequence -> Packed, padded to the longest."""
        scene_text = None if self.told is None else self.told[scenes]
        return pack([[self.rows[j] for j in rows] for rows in chosen], self.pad, scene_text)


# --- the three stages ---------------------------------------------------------------------------------------

_TEXT_SCENES = 8192


def text_bank(p: Profile, tokenizer, seed: int = 5) -> Bank:
    """What the LLM reads before it sees: scenes in words, questions about them, and facts about no scene."""
    n = min(_TEXT_SCENES, p.images_train)
    scenes = data.make_scenes(n, "train", seed)
    asked = data.ask(scenes, tuple(data.MAKERS), "text", seed, each=2)
    return Bank(asked + data.facts(), tokenizer, [data.in_words(scenes, i) for i in range(n)])


def _told(scenes: list[list[str]], tokenizer) -> np.ndarray:
    """Scenes in words -> (n, p, 2) token ids, one place a cell with its one or two words, padded."""
    words = {w: tokenizer(w)["input_ids"] for scene in scenes for w in scene}
    longest = max(map(len, words.values()))  # two with our own tokenizer
    ids = np.full((len(scenes), max(map(len, scenes)), longest), tokenizer.pad_token_id)
    for i, scene in enumerate(scenes):
        for j, word in enumerate(scene):
            ids[i, j, : len(words[word])] = words[word]
    return ids


def text_llm(p: Profile, size: LLMShape, seed: int) -> nn.Module:
    """The LLM of that size after the text stage; trained once a seed and kept, or its checkpoint as it is."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    llm = make_llm(size, len(tokenizer))
    if size.checkpoint:
        return llm
    folder = p.cache / f"llm-{size.name}-{seed}"
    done = folder / "llm.safetensors"
    with once(done) as missing:
        if missing:
            save_whole(_read_text(p, llm, tokenizer, seed, folder), done)
    llm.load_state_dict(load_file(done), strict=False)
    llm.tie_weights()
    return llm


def _read_text(p: Profile, llm: nn.Module, tokenizer, seed: int, folder: Path) -> dict[str, torch.Tensor]:
    """The text stage -> the LLM's weights."""
    r, bank = p.recipe, text_bank(p, tokenizer)

    def batch(step: int) -> tuple:
        return (
            bank.draw(r.batch, r.pack, np.random.default_rng([seed, 0, step]), free=max(r.pack // 4, 1))[0],
        )

    fit(
        text_model(llm, tokenizer),
        Stage("text", r.text_steps, r.lr(r.text_lr, llm.config.hidden_size), ("llm",), r.checkpoint_every),
        batch,
        folder,
    )
    return {k: v for k, v in llm.state_dict().items() if k != "lm_head.weight"}


def parts(p: Profile) -> list[dict]:
    """What is trained before the sweep, the longest first: the tower, then every LLM on text, once a seed."""
    llms = [
        {"part": "llm", "size": size.name, "seed": seed} for seed in p.seeds for size in reversed(p.sizes)
    ]
    return [{"part": "tower", "size": "tower", "seed": 0}, *llms]


def part(p: Profile, case: dict) -> dict[str, float]:
    """Train one of `parts` -> row: a tower's shares of patches named right, an LLM's loss on unseen text."""
    if case["part"] == "tower":
        return tower.accuracy(p)
    size = p.size(case["size"])
    tokenizer = tokenizer_of(size)
    model = text_model(text_llm(p, size, case["seed"]), tokenizer).eval()
    bank = text_bank(p, tokenizer, seed=8)
    with torch.no_grad():
        losses = [model(bank.draw(64, 4, np.random.default_rng(i), free=1)[0]).item() for i in range(4)]
    return {"N": size.N, "text_loss": float(np.mean(losses))}


def build(p: Profile, case: Case) -> VLM:
    """The model of that case before it has seen an image: text-trained LLM, new compressor and projector."""
    size = p.size(case.size)
    return assemble(p, case, text_llm(p, size, case.seed), tokenizer_of(size))


def assemble(p: Profile, case: Case, llm: nn.Module, tokenizer) -> VLM:
    torch.manual_seed(1000 + case.seed)
    config = VLMConfig(
        llm=llm.config.to_dict(), tower=asdict(p.tower), grid=p.g, compressor=case.compressor, tokens=case.V,
        options=json.loads(case.options), span=p.recipe.span,
    )  # fmt: skip
    return VLM(config, llm, tokenizer)


def train(p: Profile, case: Case) -> tuple[VLM, dict[str, float]]:
    """Align, then instruct on GridQA -> the model and its training's figures (loss, seconds, questions/s)."""
    if case.V and compressors.entry(case.compressor).nested:
        return _train_once(p, case)
    return _train(p, case)


def _train_once(p: Profile, case: Case) -> tuple[VLM, dict[str, float]]:
    """As `train`, with weights that serve every V: trained by the first case that needs them, and kept."""
    done = _folder(p, case) / "every-V.safetensors"
    with once(done) as missing:
        if missing:
            first = replace(case, V=max(served(p)))
            model, notes = _train(p, first, served(p))
            weights = {k: v for k, v in model.state_dict().items() if k != "llm.lm_head.weight"}
            save_whole(weights, done, {k: repr(v) for k, v in notes.items()})
            shutil.rmtree(checkpoints(p, first), ignore_errors=True)
    model = build(p, case)
    model.load_state_dict(load_file(done), strict=False)
    model.llm.tie_weights()
    with safe_open(done, "pt") as file:
        return model.eval(), {k: float(v) for k, v in file.metadata().items()}


def served(p: Profile) -> tuple[int, ...]:
    """The V that one training serves: those of the sweep that leave out three patches of four at least."""
    return tuple(v for v in p.V if 0 < v <= p.s // 4)


def _train(p: Profile, case: Case, every: tuple[int, ...] = ()) -> tuple[VLM, dict[str, float]]:
    """One training; `every`: V is drawn from these at each step."""
    model = build(p, case)
    features = tower.features(p, "train", **model.compressor.of_tower)
    scenes = tower.images_of(p, "train")
    described = data.ask(scenes, ("describe", "read"), "train", seed=4)
    asked = data.ask(scenes, tuple(data.MAKERS), "train", seed=4, each=2) + data.facts()
    banks = Bank(described, model.tokenizer), Bank(asked, model.tokenizer)
    return teach(p, case, model, features, *banks, every)


def teach(
    p: Profile, case: Case, model: VLM, features: Features, described: Bank, asked: Bank, every=(), said=None
) -> tuple[VLM, dict[str, float]]:
    """Both stages on these features and questions: align (compressor, projector), then instruct (LLM too).

    every: each step draws its V from these (MQT; M3 averages over them, of which this is an unbiased draw).
    said: people's own data, see `checkpoints`.
    """
    r, folder, d = p.recipe, checkpoints(p, case, said), model.llm.config.hidden_size

    def batches(bank: Bank, stage: int, pack: int, budgets: tuple[int, ...]) -> Callable[[int], tuple]:
        def batch(step: int) -> tuple:
            rng = np.random.default_rng([case.seed, stage, step])
            packed, rows = bank.draw(r.batch, pack, rng, free=min(len(bank.anywhere), 1))
            drawn = (int(rng.choice(budgets)),) if budgets else ()
            return packed, features[torch.from_numpy(rows)].to(torch.float32), *drawn

        return batch

    guided = case.V > 0 and compressors.entry(case.compressor).distilled
    learner, root = (Guided(model), "model.") if guided else (model, "")
    sees = (f"{root}compressor", f"{root}projector", "distil")  # the last is there where guided
    aligned = {"seconds": 0.0}
    if case.V:  # without an image there is nothing to align
        align = Stage("align", r.align_steps, r.lr(r.align_lr, d), sees, r.checkpoint_every)
        drawn = every or ((model.compressor.aligns_at,) if model.compressor.aligns_at else ())
        aligned = fit(learner, align, batches(described, 1, 2, drawn), folder)
    both, lr = (*sees, f"{root}llm"), r.lr(r.instruct_lr, d)
    instruct = Stage("instruct", r.instruct_steps, lr, both, r.checkpoint_every)
    last = fit(learner, instruct, batches(asked, 2, r.pack, every), folder)
    return model.eval(), {
        "loss": last["loss"],
        "train_seconds": last["seconds"] + aligned["seconds"],
        "questions_per_s": r.batch * r.pack * last["steps"] / max(last["seconds"], 1e-9),
    }


def checkpoints(p: Profile, case: Case, said: list[data.Conversation] | None = None) -> Path:
    """Where the stages of a case keep their checkpoints until its row is written; own data, their own."""
    own = hashlib.sha256(repr(said).encode()).hexdigest()[:8] if said else ""
    return _folder(p, case, f"V{case.V}", own)


def _folder(p: Profile, case: Case, V: str = "", own: str = "") -> Path:
    options = "".join(c for c in case.options if c.isalnum())
    words = case.compressor, case.size, V, str(case.seed), options, own
    return p.cache / "-".join(filter(None, words))


def train_own(p: Profile, case: Case, said: list[data.Conversation]) -> tuple[VLM, dict[str, float]]:
    """Align and instruct on people's own images and conversations (LLaVA's format), with the profile's tower.

    A checkpoint's LLM brings its own tokenizer; otherwise the LLM is fresh and its words are those of the
    data.
    """
    size, talks = p.size(case.size), [c for c in said if c.image is not None]
    if not talks:
        raise InputError('no entry has an image: expected at least one with the field "image"')
    asked = [data.Question(i, "own", q, a) for i, c in enumerate(talks) for q, a in c.turns]
    words = " ".join(f"{q.text} {q.answer}" for q in asked).split()
    tokenizer = tokenizer_of(size, tuple(dict.fromkeys(words)))
    torch.manual_seed(case.seed)
    eyes = tower.pretrained(p)
    model = assemble(p, case, make_llm(size, len(tokenizer)), tokenizer)
    model.tower, bank = eyes, Bank(asked, tokenizer)
    check_questions(model, [q.text for q in asked], [one.question for one in bank.rows])
    features = tower.of_files(eyes, [c.image for c in talks], **model.compressor.of_tower)
    every = served(p) if case.V and compressors.entry(case.compressor).nested else ()
    return teach(p, case, model, features, bank, bank, every, said)


def check(p: Profile, case: Case) -> None:
    """InputError, before any work, where the profile has no such LLM or the compressor cannot give that V."""
    p.size(case.size)
    possible = compressors.possible(case.compressor, p.g)
    if case.V and case.V not in possible:
        there = ", ".join(map(str, possible if len(possible) < 20 else [*possible[:5], "...", possible[-1]]))
        raise InputError(
            f"V = {case.V}: a {p.g} x {p.g} grid and {case.compressor} can give 0 (no image), {there}"
        )
    if case.V and compressors.find(case.compressor).cost_class == "D":
        options, layers = json.loads(case.options), p.size(case.size).layers
        first = compressors.build(case.compressor, tokens=case.V, grid=p.g, d=p.tower.d, **options).layer
        if first >= layers:
            raise InputError(
                f"{case.compressor} drops tokens at layer {first}: take an LLM of more than {layers}"
            )
    elif case.V and compressors.entry(case.compressor).nested and case.V not in served(p):
        there = ", ".join(map(str, served(p)))
        raise InputError(f"V = {case.V}: profile {p.name} trains {case.compressor} for 0 (no image), {there}")
