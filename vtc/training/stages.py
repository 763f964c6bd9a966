"""The three stages: the LLM reads text, the compressor is aligned with it, both are instructed.

    stage       learns                              reads
    text        LLM                                 facts, and scenes told in words, with questions
    align       compressor, projector               images; a token should become the words of its window
    instruct    compressor, projector and LLM       images, asked every kind of question

The paper trains each (N, V) by LLaVA's two stages (section 3; arXiv 2304.08485): first only what stands
between tower and LLM, so that its tokens become words which the LLM knows, then the LLM too. Its LLMs,
Qwen1.5, come pre-trained; the text stage puts ours in that place. The tower is frozen throughout.

Text and people's own data minimise the mean over the answers A of a batch of the mean over an answer's
tokens,

    L = 1/|A| sum over a in A of  1/|a| sum over t of  -log p(a_t | image or scene in words, question, a_<t),

so a long answer weighs as much as a short one; nothing is learnt of the questions themselves. The instruct
stage on GridQA adds what the same LLM says when it is told the scene in words (`vtc.training.lessons`), and
moves the LLM at a twentieth of the rate: at the full rate it forgets the facts that it read. Every cell of
the sweep has the same data, order and steps; only N, V, the compressor and the seed differ.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vtc import InputError, compressors, data
from vtc.compressors.base import Features
from vtc.models.llm import make_llm, make_tokenizer, tokenizer_of
from vtc.models.vlm import VLM, VLMConfig, text_model
from vtc.profiles import NO_IMAGE, Profile, Recipe
from vtc.shapes import LLMShape
from vtc.training import features
from vtc.training.batches import Bank, batches
from vtc.training.checkpoints import build_once, notes_of
from vtc.training.device import device
from vtc.training.lessons import Distilled, ImageLessons, InCaption, InWords, Reader, TextLessons
from vtc.training.loop import Stage, fit
from vtc.training.losses import WithAuxiliaryLoss
from vtc.training.memory import NOTHING_SPARED, Memory

TEXT_SCENES = 40_000  # scenes told in words
TEXT, ALIGN, INSTRUCT = range(3)  # with seed and step they fix what a batch holds


@dataclass(frozen=True)
class Case:
    """One cell: which LLM, how many visual tokens, by which compressor, from which seed."""

    size: str  # name of the LLM size
    V: int
    compressor: str
    seed: int
    options: str = "{}"  # the compressor's own, as JSON


# --- text: the LLM alone ------------------------------------------------------------------------------------


def text_llm(p: Profile, size: LLMShape, seed: int) -> nn.Module:
    """The LLM of that size after the text stage; trained once a seed and kept, or its checkpoint as it is."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    llm = make_llm(size, len(tokenizer))
    if size.checkpoint:
        return llm
    folder = p.cache_before_align / f"llm-{size.name}-{seed}"
    file = folder / "llm.safetensors"
    build_once(file, lambda: _read_text(p, llm, tokenizer, seed, folder))
    llm.load_state_dict(load_file(file), strict=False)
    llm.tie_weights()
    return llm


def text_notes(p: Profile, size: LLMShape, seed: int) -> dict[str, float]:
    """How the text stage of that LLM went: loss, seconds."""
    return notes_of(p.cache_before_align / f"llm-{size.name}-{seed}" / "llm.safetensors")


def _read_text(p: Profile, llm: nn.Module, tokenizer, seed: int, folder: Path) -> tuple[dict, dict]:
    """The text stage -> the LLM's weights, and how its training went."""
    stage = _stage(p.recipe, "text", llm.config.hidden_size, ("llm",))
    notes = fit(text_model(llm, tokenizer), stage, text_lessons(p, tokenizer, seed).batch, folder)
    return {k: v for k, v in llm.state_dict().items() if k != "lm_head.weight"}, notes


def _stage(recipe: Recipe, name: str, d: int, trains: tuple[str, ...], slow: tuple[str, ...] = ()) -> Stage:
    """The recipe's stage of that name for an LLM of width d."""
    schedule = getattr(recipe, name)
    return Stage(
        name, schedule.steps, recipe.lr(schedule, d), trains, recipe.checkpoint_every, recipe.warmup,
        recipe.muon, slow, recipe.llm_share, d,
    )  # fmt: skip


def text_lessons(p: Profile, tokenizer, seed: int) -> TextLessons:
    """What the LLM reads before it sees: facts, and scenes in words with questions about them."""
    facts, text = data.Facts(p.world), p.recipe.text
    scenes = data.make_scenes(p.world, TEXT_SCENES, "train", 51, facts.subjects("text"))
    return TextLessons(scenes, facts, Reader(tokenizer), seed, p.recipe.facts, text.batch, text.pack)


def parts(p: Profile) -> list[dict]:
    """What is trained before the sweep, the longest first: the tower, then every LLM on text, once a seed."""
    sizes = [size.name for size in reversed(p.sizes) if not size.checkpoint]
    llms = [{"part": "llm", "size": size, "seed": seed} for seed in p.seeds for size in sizes]
    return llms if p.tower.checkpoint else [{"part": "tower", "size": "tower", "seed": 0}, *llms]


# --- align and instruct: the VLM ----------------------------------------------------------------------------


def train(p: Profile, case: Case) -> tuple[VLM, dict[str, float]]:
    """Align, then instruct on GridQA -> the model and its training's figures (loss, seconds, questions/s)."""
    if compressors.entry(case.compressor).nested:
        return _train_nested(p, case)
    return _train(p, case, (case.V,))


def _train(p: Profile, case: Case, budgets: tuple[int, ...]) -> tuple[VLM, dict[str, float]]:
    """budgets: each step draws its V from these, no image (0) a third as often as any other."""
    r, model, folder = p.recipe, build(p, case), checkpoints(p, case)
    d = model.llm.config.hidden_size
    often = {V: 1.0 if V else NO_IMAGE for V in budgets}
    lessons = ImageLessons(
        data.scenes_of(p, "train"), data.Facts(p.world), Reader(model.tokenizer),
        features.features(p, "train", **model.compressor.of_tower), case.seed, r.instruct.batch,
        r.instruct.pack, often,
    )  # fmt: skip
    teacher = text_model(text_llm(p, p.size(case.size), case.seed), model.tokenizer)
    kept = None if compressors.entry(case.compressor).nested else told_answers(p, case.size, case.seed)
    learner = Distilled(model, teacher, kept=kept)
    between = "model.compressor", "model.projector"
    notes = {"seconds": 0.0}
    if case.V:  # without an image there is nothing to align
        aligns_at = model.compressor.aligns_at
        seen = replace(
            lessons, images=r.align.batch, questions=r.align.pack, stage=ALIGN,
            budgets={V: 1.0 for V in ((aligns_at,) if aligns_at else budgets) if V},
        )  # fmt: skip
        by_words = model.compressor.windowed and compressors.entry(case.compressor).words
        aligned = InWords(model) if by_words else learner
        notes = fit(aligned, _stage(r, "align", d, between), seen.batch, folder)
    if case.V and compressors.entry(case.compressor).distilled:
        learner, between = _guided(learner)
    llm = f"{between[0].removesuffix('compressor')}llm"
    last = fit(learner, _stage(r, "instruct", d, (*between, llm), (llm,)), lessons.batch, folder)
    return model.eval(), _notes(r, notes, last)


def told_answers(p: Profile, size: str, seed: int) -> Path | None:
    """Where answers of that LLM, told the scenes, are kept for all compressors that are trained for one V.

    About 1 GB. Nested compressors leave it out: one training serves every V, and few follow it. None on an
    accelerator, which asks the LLM in less time than it takes to read a file.
    """
    return p.cache_before_align / f"told-{size}-{seed}" if device().type == "cpu" else None


def _guided(learner: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """A learner with the auxiliary loss, and the names of what learns beside the LLM."""
    guided = WithAuxiliaryLoss(learner, learner.model.compressor)
    return guided, ("model.model.compressor", "model.model.projector", "auxiliary")


def _notes(recipe: Recipe, aligned: dict[str, float], last: dict[str, float]) -> dict[str, float]:
    asked = recipe.instruct.batch * recipe.instruct.pack * recipe.instruct.steps
    return {
        "loss": last["loss"],
        "train_seconds": aligned["seconds"] + last["seconds"],
        "questions_per_s": asked / max(last["seconds"], 1e-9),
    }


def _train_nested(p: Profile, case: Case) -> tuple[VLM, dict[str, float]]:
    """As `train`, with weights that serve every V: trained by the first case that needs them, and kept."""
    file = _folder(p, case) / "nested.safetensors"

    def make() -> tuple[dict[str, Tensor], dict[str, float]]:
        budgets = nested_budgets(p, case.compressor)
        largest = replace(case, V=max(budgets))
        model, notes = _train(p, largest, budgets)
        shutil.rmtree(checkpoints(p, largest), ignore_errors=True)
        return {k: v for k, v in model.state_dict().items() if k != "llm.lm_head.weight"}, notes

    build_once(file, make)
    model = build(p, case)
    model.load_state_dict(load_file(file), strict=False)
    model.llm.tie_weights()
    return model.eval(), notes_of(file)


def nested_budgets(p: Profile, name: str) -> tuple[int, ...]:
    """The V that one training of that compressor serves: those of the sweep that it can give, and 0."""
    possible = compressors.possible(name, p.g)
    return tuple(v for v in p.V if v == 0 or v in possible)


def align_and_instruct(
    p: Profile,
    case: Case,
    model: VLM,
    seen: Features | features.OnDemand,
    captions: Bank,
    questions: Bank,
    folder: Path,
    llm: tuple[str, ...] = ("llm",),
    memory: Memory = NOTHING_SPARED,
    by_words: bool = False,
) -> tuple[VLM, dict[str, float]]:
    """Both stages on people's own images, whose features are `seen`; checkpoints go to `folder`.

    llm: names under the model that learn besides in the second stage; none where the LLM stays frozen. Each
    step of a nested compressor draws its V, as in MQT (arXiv 2405.19315); 0 among them where the LLM learns.
    by_words: the first stage makes tokens the words of captions, as `InCaption` does, and runs no LLM.
    """
    r, d, entry = p.recipe, model.llm.config.hidden_size, compressors.entry(case.compressor)
    guided = case.V > 0 and entry.distilled
    budgets = nested_budgets(p, case.compressor) if case.V and entry.nested else ()
    shown = tuple(V for V in budgets if V)
    learner, root = (WithAuxiliaryLoss(model, model.compressor), "model.") if guided else (model, "")
    between = (f"{root}compressor", f"{root}projector", "auxiliary")  # the last is there where guided
    aligned = {"seconds": 0.0}
    if case.V:  # without an image there is nothing to align
        first = (model.compressor.aligns_at,) if model.compressor.aligns_at else ()
        batch = batches(captions, r.align, (case.seed, ALIGN), seen, shown or first)
        stage = _stage(r, "align", d, between)
        if by_words:  # a small model's work, by its optimiser
            trains = "model.compressor", "model.projector"
            aligned = fit(InCaption(model, captions), replace(stage, trains=trains, muon=True), batch, folder)
        else:
            aligned = fit(learner, stage, batch, folder, memory)
    batch = batches(questions, r.instruct, (case.seed, INSTRUCT), seen, budgets if llm else shown)
    stage = _stage(r, "instruct", d, (*between, *(root + name for name in llm)))
    last = fit(learner, stage, batch, folder, memory)
    return model.eval(), _notes(r, aligned, last)


def build(p: Profile, case: Case) -> VLM:
    """The model of that case before it has seen an image: text-trained LLM, new compressor and projector."""
    size = p.size(case.size)
    return assemble(p, case, text_llm(p, size, case.seed), tokenizer_of(size))


def assemble(p: Profile, case: Case, llm: nn.Module, tokenizer) -> VLM:
    """That LLM with the case's compressor and a projector, both new."""
    torch.manual_seed(1000 + case.seed)
    own = llm.config.to_dict() | {"_name_or_path": ""}  # without the place where its checkpoint lay
    config = VLMConfig(
        llm=own, tower=asdict(p.tower), grid=p.g, compressor=case.compressor, tokens=case.V,
        options=json.loads(case.options), span=p.recipe.span,
    )  # fmt: skip
    return VLM(config, llm, tokenizer)


def checkpoints(p: Profile, case: Case, user_data: object = None) -> Path:
    """Where the stages of a case keep their checkpoints until its row is written; each user data, its own."""
    mark = hashlib.sha256(repr(user_data).encode()).hexdigest()[:8] if user_data else ""
    return _folder(p, case, f"V{case.V}", mark)


def _folder(p: Profile, case: Case, V: str = "", mark: str = "") -> Path:
    options = "".join(c for c in case.options if c.isalnum() or c in ".-_")
    words = case.compressor, case.size, V, str(case.seed), options, mark
    return p.cache / "-".join(filter(None, words))


def check(p: Profile, case: Case) -> None:
    """InputError, before any work, where the profile has no such LLM or the compressor cannot give that V."""
    p.size(case.size)
    possible = compressors.possible(case.compressor, p.g)
    if case.V and case.V not in possible:
        there = ", ".join(map(str, possible if len(possible) < 20 else [*possible[:5], "...", possible[-1]]))
        maker = f"a {p.g} x {p.g} grid and {case.compressor}"
        raise InputError(f"V = {case.V}: {maker} can give 0 (no image), {there}")
    if case.V and compressors.find(case.compressor).cost_class == "D":
        options, layers = json.loads(case.options), p.size(case.size).layers
        first = compressors.build(case.compressor, tokens=case.V, grid=p.g, d=p.tower.d, **options).layer
        if first >= layers:
            problem = f"{case.compressor} drops tokens at layer {first}"
            raise InputError(f"{problem}: take an LLM of more than {layers}")
    elif case.V and compressors.entry(case.compressor).nested and case.V not in p.V:
        there = ", ".join(map(str, nested_budgets(p, case.compressor)))
        raise InputError(f"V = {case.V}: profile {p.name} trains {case.compressor} for {there}")
