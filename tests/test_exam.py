"""What every cell is asked, and that one packed pass scores it as greedy answers would be scored."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vtc import data, profiles
from vtc.compressors.base import Features
from vtc.evaluation import ask, summary
from vtc.evaluation.exam import COMMON, FAMILIES, LARGE, MEANS, OUTSIDE, SMALL, TASKS, Exam, exam, example
from vtc.models.llm import make_llm, make_tokenizer
from vtc.models.vlm import VLM
from vtc.profiles import Profile
from vtc.shapes import LLMShape, WorldConfig
from vtc.training import stages
from vtc.training.device import Batch
from vtc.training.lessons import Reader
from vtc.training.loop import Stage, fit

P = replace(profiles.get("smoke"), images_test=200, images_validation=200)


def known(made: Exam) -> set[tuple[str, ...]]:
    """Every fact that is asked: land, digit and entity."""
    facts = set()
    for part in made.parts:
        for i in np.flatnonzero(part.questions.rank >= 0):
            asked, answer = part.questions.text(i)
            entity = [word for word in asked.split() if word not in ("?", "whence")][-1]
            facts.add((data.LANDS[made.scenes.land[part.questions.scene[i]]], answer.split()[0], entity))
    return facts


def test_the_questions_are_the_same_every_time_and_others_on_validation_images() -> None:
    one, two = (exam.__wrapped__(P, "test") for _ in range(2))
    assert one.frame.equals(two.frame)
    for a, b in zip(one.parts, two.parts):
        assert np.array_equal(a.questions.question, b.questions.question)
        assert np.array_equal(a.questions.answer, b.questions.answer)
    assert not np.array_equal(one.frame["fit"], exam(P, "validation").frame["fit"])
    assert len(one) == len(one.frame) == sum(len(part.questions) for part in one.parts)


def test_every_task_is_asked_in_its_region_of_the_plane() -> None:
    frame = exam(P).frame
    assert set(TASKS) <= set(frame["task"]) <= {*TASKS, "easy"} and set(MEANS) == set(TASKS)
    assert set(TASKS) == {*OUTSIDE, *(task for tasks in FAMILIES.values() for task in tasks)}
    kinds = frame.groupby("task")["kind"].agg(set)
    for task, kind in {"know": "fact", "fact": "fact", "read": "read", "glance": "read"}.items():
        assert kinds[task] == {kind}
    fits = frame.groupby("task")["fit"].agg(["min", "max"])
    assert fits["max"]["know"] < LARGE <= fits["min"]["fact"]
    assert fits["max"]["glance"] < SMALL <= min(fits["min"]["read"], fits["min"]["recall"])
    ranks = frame.groupby("task")["rank"].agg(["min", "max"])
    assert ranks["max"]["recall"] < COMMON < ranks["max"]["know"] and ranks["min"]["know"] >= 0
    assert (ranks.loc[["read", "land", *data.PANEL]] == -1).all(None)


def test_each_part_asks_equally_much_about_each_of_its_images() -> None:
    """The packed pass relies on it."""
    made = exam(P)
    start = 0
    for part in made.parts:
        assert np.array_equal(part.questions.scene, part.images.repeat(part.each))
        rows = made.frame.iloc[start : start + len(part.questions)]
        assert np.array_equal(rows["image"], part.questions.scene)
        start += len(part.questions)
    assert [part.each for part in made.parts] == [4, 4, 1, 1, 2, 2]


def test_choices_are_made_on_other_facts_and_other_handwriting_than_claims() -> None:
    made = {split: exam(P, split) for split in ("validation", "test")}
    facts = {split: known(one) for split, one in made.items()}
    assert min(map(len, facts.values())) > 300 and not facts["validation"] & facts["test"]
    drawn = {}
    for split, one in made.items():
        shown = np.arange(one.scenes.digit.shape[1]) < one.scenes.marks[:, None]
        glyphs = np.unique(one.scenes.glyph[shown])
        drawn[split] = {data.handwriting(split)[0][i].tobytes() for i in glyphs}
    assert min(map(len, drawn.values())) > 100 and not drawn["validation"] & drawn["test"]


def test_an_example_has_three_questions_about_one_image() -> None:
    image, texts = example(P)
    made = exam(P)
    about = [i for i in range(len(made.parts[0].questions)) if made.parts[0].questions.scene[i] == image]
    assert len(set(texts)) == 3 and set(texts) <= {made.parts[0].questions.text(i)[0] for i in about}


def test_the_table_of_what_is_asked_has_every_task() -> None:
    table = summary.asked(exam(P)).set_index("task")
    assert set(table.index) == set(TASKS)
    assert table.loc["chain", "answer words"] == 4 and table.loc["read", "answer words"] == 1
    assert 0.4 < table.loc["compare", "commonest answer"] < 0.6


# --- scored in one pass ------------------------------------------------------------------------------------

TINY = WorldConfig(lands=1, entities=2, offset=1.0)
SMALL_P = replace(P, world=TINY, images_test=12)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Features:
    """What the tower might see in the test images, in place of what it does see."""
    width = SMALL_P.tower.d_levels
    levels = torch.randn(12, SMALL_P.s, width, generator=torch.Generator().manual_seed(0))
    made = Features(last=levels[..., -SMALL_P.tower.d :], levels=levels)
    monkeypatch.setattr(ask.features, "features", lambda p, split, **wants: made)
    return made


def half_trained(p: Profile, compressor: str, V: int, seen: Features, **options: object) -> VLM:
    """A model that has learnt some of the answers to the test questions by heart."""
    torch.manual_seed(0)
    tokenizer, made = make_tokenizer(), exam(p)
    case = stages.Case("tiny", V, compressor, 0, json.dumps(options))
    llm = make_llm(LLMShape("tiny", 2, 32, 64, 2, tied=True), len(tokenizer))
    model, reader = stages.assemble(p, case, llm, tokenizer), Reader(tokenizer)

    def batch(step: int, share: object) -> Batch:
        part = made.parts[step % len(made.parts)]
        packed = reader.packed(part.questions, data.in_words(made.scenes, part.images))
        packed = replace(packed, scene_text=None)
        return Batch((packed, seen[torch.from_numpy(part.images)]))

    fit(model, Stage("half", 48, 1e-2, ("llm", "compressor", "projector"), 100), batch, None)
    return model.eval()


@pytest.mark.parametrize(
    "compressor, V, options",
    [
        ("tokenpacker", 1, {}), ("tokenpacker", 36, {}), ("none", 0, {}), ("quecc", 4, {}),
        ("quecc_shared", 1, {}), ("llavamini_fused", 1, {}), ("fastv", 4, {"layer": 1}),
    ],
)  # fmt: skip
def test_scores_are_those_of_greedy_answers(compressor: str, V: int, options: dict, seen: Features) -> None:
    model, made = half_trained(SMALL_P, compressor, V, seen, **options), exam(SMALL_P)
    found, said, right = ask.scored(SMALL_P, model), [], []
    for part in made.parts:
        texts = [part.questions.text(i) for i in range(len(part.questions))]
        image = seen[torch.from_numpy(part.questions.scene)] if V else None
        said += model.generate(image, [question for question, _ in texts], 6)
        right += [answer for _, answer in texts]
    assert found.tolist() == [float(a == b) for a, b in zip(said, right)]
    assert 0.1 < found.mean() < 0.9  # of either kind many


def test_shuffled_scores_are_those_of_greedy_answers_to_shuffled_questions(seen: Features) -> None:
    """The compressor reads what is asked about the image before, the LLM what is asked about this one."""
    model, made, said, right = half_trained(SMALL_P, "quecc", 1, seen), exam(SMALL_P), [], []
    for part in made.parts:
        texts = [part.questions.text(i) for i in range(len(part.questions))]
        asked = np.array([question for question, _ in texts]).reshape(-1, part.each)
        read = np.roll(asked, 1, 0).ravel().tolist()
        image = seen[torch.from_numpy(part.questions.scene)]
        said += model.generate(image, asked.ravel().tolist(), 6, shuffled=read)
        right += [answer for _, answer in texts]
    found = ask.scored(SMALL_P, model, shuffled=True)
    assert found.tolist() == [float(a == b) for a, b in zip(said, right)]
    assert not np.array_equal(found, ask.scored(SMALL_P, model))


def test_told_the_scene_an_llm_is_scored_on_its_words_alone(seen: Features) -> None:
    """Its scores do not change with the image, and change with the words."""
    model = half_trained(SMALL_P, "none", 0, seen)
    told, blind = ask.scored(SMALL_P, model, told=True), ask.scored(SMALL_P, model)
    assert len(told) == len(blind) == len(exam(SMALL_P)) and not np.array_equal(told, blind)
