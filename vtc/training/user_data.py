"""The same two stages on people's own images and conversations, with their own LLM and tower if they like."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from vtc import InputError, data
from vtc.models.chat import question_ids
from vtc.models.generate import check_questions
from vtc.models.llm import make_llm, shape_of, tokenizer_of
from vtc.models.tower import load_checkpoint
from vtc.models.vlm import VLM
from vtc.profiles import Profile, Schedule
from vtc.training import features, tower
from vtc.training.batches import Bank, Question
from vtc.training.memory import NOTHING_SPARED, Memory
from vtc.training.stages import Case, align_and_instruct, assemble, checkpoints

RANK = 16  # of LoRA
MOST = (100, 8, 2), (1000, 8, 2)  # steps, images and questions of the stages: an hour or so with 135M
OFTEN = 100  # steps between two checkpoints: a step with a real LLM takes seconds
LEARNS = ("all", "frozen", "lora")  # of the LLM, in the second stage


def with_checkpoints(
    p: Profile,
    llm: str | None = None,
    eyes: str | None = None,
    lora: bool = False,
    by_words: bool = False,
) -> tuple[Profile, nn.Module | None]:
    """The profile with an LLM and a tower by id or folder, and that tower; what is not given stays.

    A given LLM is trained as LLaVA's are (arXiv 2310.03744): AdamW, 1e-3 for what is new, 2e-4 beside LoRA.
    by_words: a first stage that does not run the LLM keeps the profile's schedule. Raises InputError where
    there is no such LLM or tower.
    """
    if llm is not None:
        size, r = shape_of(_absolute(llm)), p.recipe
        align = replace(r.align, lr=1e-3, pack=r.instruct.pack)  # the same questions in both stages
        instruct = replace(r.instruct, lr=2e-4 if lora else 1e-3)
        if r.text is not None:  # a small machine's recipe
            align, instruct = (_at_most(s, *most) for s, most in zip((align, instruct), MOST))
        align = r.align if by_words else align
        how = {
            "width": None,
            "warmup": 0.03,
            "muon": False,
            "span": None,
            "checkpoint_every": min(r.checkpoint_every, OFTEN),
        }
        recipe = replace(r, align=align, instruct=instruct, **how)
        p = replace(p, sizes=(size,), zoo_size=size.name, recipe=recipe)
    if eyes is None:
        return p, None
    loaded = load_checkpoint(_absolute(eyes))
    return replace(p, tower=loaded.shape, tower_recipe=None), loaded


def _at_most(schedule: Schedule, steps: int, batch: int, pack: int) -> Schedule:
    few = {"steps": steps, "batch": batch, "pack": pack}
    return replace(schedule, **{name: min(n, getattr(schedule, name)) for name, n in few.items()})


def _absolute(name: str) -> str:
    """A folder's or file's whole path, for the model that is saved names it; an id as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def train(
    p: Profile,
    case: Case,
    talks: list[data.Conversation],
    eyes: nn.Module | None = None,
    learns: str = "all",
    memory: Memory = NOTHING_SPARED,
    captions: list[data.Conversation] | None = None,
    by_words: bool = False,
) -> tuple[VLM, dict[str, float]]:
    """Align and instruct on these conversations; learns: one of `LEARNS`. eyes: a tower, else the profile's.

    captions: what the first stage learns from; None: the same. by_words: see `align_and_instruct`. Entries
    without an image are left out; a turn is learnt behind those before it. A checkpoint's LLM brings its own
    tokenizer; otherwise the LLM is fresh and its words are the data's. Raises InputError where no entry
    has an image or a question is too short.
    """
    size, shown = p.size(case.size), _with_image(talks)
    told = shown if captions is None else _with_image(captions)
    images = {path: row for row, path in enumerate(dict.fromkeys(talk.image for talk in [*shown, *told]))}
    asked, named = (
        [Question(images[talk.image], q, a, i) for i, talk in enumerate(part) for q, a in talk.turns]
        for part in (shown, told)
    )
    words = " ".join(f"{q.text} {q.answer}" for q in [*asked, *named]).split()
    tokenizer = tokenizer_of(size, tuple(dict.fromkeys(words)))
    eyes = tower.pretrained(p) if eyes is None else eyes
    torch.manual_seed(case.seed)
    model = assemble(p, case, make_llm(size, len(tokenizer)), tokenizer)
    model.tower, steered = eyes, model.compressor.needs_question
    bank = Bank(asked, tokenizer, steered)
    first = bank if captions is None else Bank(named, tokenizer, steered)
    texts = [q.text for q in [*asked, *named]]
    check_questions(model, texts, [len(ids) for ids in question_ids(tokenizer, texts)])
    seen = features.of_user_images(p, eyes, list(images), **model.compressor.of_tower)
    adapted = with_lora(model.llm) if learns == "lora" else None
    names = {"all": ("llm",), "frozen": (), "lora": tuple(_adapters(model))}[learns]
    folder = checkpoints(p, case, (talks, captions, by_words))
    model, notes = align_and_instruct(p, case, model, seen, first, bank, folder, names, memory, by_words)
    if adapted is not None:
        model.llm = adapted.merge_and_unload()  # W + B A: an LLM like any other again
    return model, notes


def _with_image(talks: list[data.Conversation]) -> list[data.Conversation]:
    shown = [talk for talk in talks if talk.image is not None]
    if not shown:
        raise InputError('no entry has an image: expected at least one with the field "image"')
    return shown


def with_lora(llm: nn.Module) -> nn.Module:
    """peft's LoRA (arXiv 2106.09685) on every matrix of the LLM's layers, put in where they are.

    Raises InputError where peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise InputError("LoRA needs peft, which is not here: pip install peft") from None
    return get_peft_model(llm, LoraConfig(target_modules="all-linear", r=RANK, lora_alpha=2 * RANK))


def _adapters(model: VLM) -> list[str]:
    return [name for name, _ in model.named_parameters() if ".lora_" in name]
