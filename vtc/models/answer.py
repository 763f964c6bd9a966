"""A model's greedy answers: questions about images -> text; what no question changes is shared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vtc import InputError
from vtc.compressors.base import Features
from vtc.models.prompt import NOBODY

if TYPE_CHECKING:
    from vtc.models.vlm import VLM


def answers(
    model: VLM,
    features: Features | Tensor | None,
    questions: list[str] | list[list[str]],
    max_new_tokens: int = 10,
    misled: list[str] | None = None,
) -> list[str] | list[list[str]]:
    """What `VLM.generate` returns. Raises InputError where questions and images do not go together."""
    if not questions:
        return []
    _check(model, features, questions, misled)
    if isinstance(features, Tensor):
        features = model.eyes()(features, **model.compressor.of_tower)
    features = model.here(features)
    if isinstance(questions[0], str):
        return _of_turns(model, features, [[q] for q in questions], max_new_tokens, misled)
    longest = max(questions, key=len)  # its last questions fill the shorter lists, unheard
    if not longest:
        return [[] for _ in questions]
    m, filled = len(longest), [[*turns, *longest[len(turns) :]] for turns in questions]
    flat = _of_turns(model, features, filled, max_new_tokens)
    return [flat[i * m : i * m + len(turns)] for i, turns in enumerate(questions)]


def _check(model: VLM, images: Features | Tensor | None, questions: list, misled: list[str] | None) -> None:
    name = model.config.compressor
    if images is not None and len(images) != len(questions):
        raise InputError(
            f"{len(images)} images, {len(questions)} questions: give one, or one list of them, an image"
        )
    if misled is not None and model.question_first:
        raise InputError(f"misled: {name} reads it where the LLM does; use one such as quecc")
    if misled is not None and (not isinstance(questions[0], str) or len(misled) != len(questions)):
        raise InputError(f"misled: {len(misled)} questions; give one for each image, asked one question")


def check_questions(model: VLM, questions: list[str], tokens: list[int]) -> None:
    """Raise `InputError` where a question has too few tokens to be asked."""
    least = 1 + model.question_first
    for question, n in zip(questions, tokens):
        if n < least:
            name = model.config.compressor
            raise InputError(f"question {question!r}: {n} tokens, {name} needs at least {least}")


def _of_turns(
    model: VLM, features: Features | None, turns: list[list[str]], max_new_tokens: int, misled=None
) -> list[str]:
    """Answers to m questions for each of b images, b m in all, image by image."""
    embed = model.llm.get_input_embeddings()
    flat, m = [q for asked in turns for q in asked], len(turns[0])
    asked = model.tokenizer(flat, padding=True, padding_side="left", return_tensors="pt").to(model.device)
    ids, real = asked["input_ids"], asked["attention_mask"]  # (b m, q)
    check_questions(model, flat, real.sum(1).tolist())
    position = (real.cumsum(1) - 1).clamp_min(0)
    if not model.V:
        return _decode(model, embed(ids), real, position, max_new_tokens)
    cache, start, order = None, 0, torch.arange(model.V, device=ids.device)
    tokens = real.new_ones(len(flat), model.V)  # which visual tokens are real
    if model.question_first:  # the vector comes with the cache of the prompt's first part
        first = model.llm.model(
            input_ids=ids[:, :-1],
            attention_mask=real[:, :-1],
            position_ids=position[:, :-1],
            use_cache=True,
        )
        cache, vectors = first.past_key_values, first.last_hidden_state[:, -1].view(len(turns), m, -1)
        z, start = model.steered(features, vectors), position[:, -1:]
        ids, position = ids[:, -1:], position[:, -1:]
        seen = torch.cat([real[:, :-1], tokens, real[:, -1:]], 1)
    elif model.compressor.needs_question:
        read = misled or flat
        right = model.tokenizer(read, padding=True, padding_side="right", return_tensors="pt")["input_ids"]
        z = model.visual(features, right.to(ids.device).view(len(turns), m, -1))
        seen = torch.cat([tokens, real], 1)
    else:
        z, tokens = (x.repeat_interleave(m, 0) for x in model.unasked(features))
        seen = torch.cat([tokens, real], 1)
    z = z.view(len(flat), model.V, -1)
    words = embed(ids)
    if model.compressor.fuses:
        each = features.map(lambda part: part.repeat_interleave(m, 0))
        z, words = model.fused(each, z, words, torch.where(real > 0, 0, NOBODY), position)
    x = torch.cat([z, words], 1).to(embed.weight.dtype)  # (b m, V + q, d_llm): visual, padding, question
    place = (model.places(order) + start).expand(len(flat), -1)
    position = torch.cat([place, position + model.after], 1)
    if model.compressor.cost_class != "D":
        return _decode(model, x, seen, position, max_new_tokens, cache)
    image = torch.arange(x.shape[1], device=x.device).expand(len(x), -1) < model.V
    with model.compressor.inside(model.llm.model.layers, image):
        return _decode(model, x, seen, position, max_new_tokens)


def _decode(
    model: VLM, x: Tensor, real: Tensor, position: Tensor, max_new_tokens: int, cache=None
) -> list[str]:
    """The likeliest token again and again, until every row has said its end."""
    said, done = [], torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for _ in range(max_new_tokens):
        out = model.llm(
            inputs_embeds=x, attention_mask=real, position_ids=position, past_key_values=cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        token = out.logits[:, -1].argmax(-1).masked_fill(done, model.tokenizer.pad_token_id)  # (b,)
        said.append(token)
        done |= token == model.tokenizer.eos_token_id
        if done.all():
            break
        x, cache = model.llm.get_input_embeddings()(token)[:, None], out.past_key_values
        real, position = torch.cat([real, real.new_ones(len(x), 1)], 1), position[:, -1:] + 1
    texts = model.tokenizer.batch_decode(torch.stack(said, 1), skip_special_tokens=True)
    return [text.strip() for text in texts]
