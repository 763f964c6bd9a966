"""Grades from one packed pass equal what the model says when it is asked."""

from __future__ import annotations

import numpy as np
import torch

from vtc.data.gridqa.ask import ask, in_words
from vtc.data.gridqa.facts import Facts
from vtc.data.gridqa.words import WORDS
from vtc.data.gridqa.world import make_scenes
from vtc.evaluation.graded import graded
from vtc.models.llm import make_llm, make_tokenizer
from vtc.models.vlm import text_model
from vtc.shapes import LLMShape, WorldConfig
from vtc.training.device import Share
from vtc.training.lessons import Reader, TextLessons
from vtc.training.loop import Stage, fit

TOKENIZER = make_tokenizer(WORDS)


def test_graded_is_what_greedy_answers_score() -> None:
    """A blind model, half trained so that some answers are right: asked one by one and in one pass."""
    world = WorldConfig(lands=1, entities=2, offset=1.0)
    scenes, facts = make_scenes(world, 40, "train", 0), Facts(world)
    torch.manual_seed(0)
    model = text_model(make_llm(LLMShape("tiny", 1, 32, 64, 2, tied=True), len(TOKENIZER)), TOKENIZER)
    reader, rows = Reader(TOKENIZER), np.arange(40)
    lessons = TextLessons(scenes, facts, reader, 0, facts_a_step=8, scenes_a_step=8, questions=8)

    def blind(step: int, share: Share):
        given = lessons.batch(2 * step, share)
        given.inputs[0].scene_text.fill_(TOKENIZER.pad_token_id)
        return given

    fit(model, Stage("text", 60, 1e-2, ("llm",), 100), blind, None)
    model.eval()
    asked = ask(scenes, np.repeat(rows, 3), facts, "text", np.random.default_rng(1), (1, 1, 1, 1))
    packed = reader.packed(asked, np.full_like(in_words(scenes, rows), -1))
    with torch.no_grad():
        grades = graded(packed, model.logits(packed))
    said = model.generate(None, [asked.text(i)[0] for i in range(120)], 6)
    right = [asked.text(i)[1] for i in range(120)]
    assert grades.exact.tolist() == [a == b for a, b in zip(said, right)]
    assert grades.read.tolist() == [a.split()[:1] == b.split()[:1] for a, b in zip(said, right)]
    assert 10 < grades.exact.sum() < 110  # of either kind some
    assert (grades.probability[grades.exact] > 0.01).all() and (grades.probability <= 1).all()
