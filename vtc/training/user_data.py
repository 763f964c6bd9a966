"""The same two stages on people's own images and conversations, in LLaVA's format."""

from __future__ import annotations

import torch

from vtc import InputError, data
from vtc.models.generate import check_questions
from vtc.models.llm import make_llm, tokenizer_of
from vtc.models.vlm import VLM
from vtc.profiles import Profile
from vtc.training import features, tower
from vtc.training.batches import Bank, Question
from vtc.training.stages import Case, align_and_instruct, assemble, checkpoints


def train(p: Profile, case: Case, talks: list[data.Conversation]) -> tuple[VLM, dict[str, float]]:
    """Align and instruct on these conversations, with the profile's tower.

    Entries without an image are left out; a turn is learnt behind those before it. A checkpoint's LLM brings
    its own tokenizer; otherwise the LLM is fresh and its words are those of the data. Raises InputError where
    no entry has an image or a question is too short.
    """
    size, shown = p.size(case.size), [talk for talk in talks if talk.image is not None]
    if not shown:
        raise InputError('no entry has an image: expected at least one with the field "image"')
    asked = [Question(i, q, a) for i, talk in enumerate(shown) for q, a in talk.turns]
    words = " ".join(f"{q.text} {q.answer}" for q in asked).split()
    tokenizer = tokenizer_of(size, tuple(dict.fromkeys(words)))
    torch.manual_seed(case.seed)
    eyes = tower.pretrained(p)
    model = assemble(p, case, make_llm(size, len(tokenizer)), tokenizer)
    model.tower, bank = eyes, Bank(asked, tokenizer, steered=model.compressor.needs_question)
    texts = [q.text for q in asked]
    check_questions(model, texts, [len(ids) for ids in tokenizer(texts)["input_ids"]])
    files = [talk.image for talk in shown]
    seen = features.of_user_images(p, eyes, files, **model.compressor.of_tower)
    return align_and_instruct(p, case, model, seen, bank, bank, checkpoints(p, case, talks))
