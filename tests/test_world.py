"""The second world: what its scenes show, its facts, its questions, and that nothing leaks between splits."""

from __future__ import annotations

import numpy as np
import pytest

from vtc.data.gridqa import words
from vtc.data.gridqa.ask import AT, NONE, TASKS, ask, in_words
from vtc.data.gridqa.binding import PANEL, ask_binding
from vtc.data.gridqa.drawing import dense_labels, render
from vtc.data.gridqa.facts import Facts
from vtc.data.gridqa.world import SIDE, SPLITS, handwriting, make_scenes
from vtc.shapes import WorldConfig

WORLD = WorldConfig()
FACTS = Facts(WORLD)


def asked(split: str, n: int = 4000, mix: tuple = (1, 1, 1, 1), seed: int = 0):
    scenes = make_scenes(WORLD, n, "train", seed)
    rng = np.random.default_rng(seed)
    return scenes, ask(scenes, rng.integers(0, n, n), FACTS, split, rng, mix)


def test_words_differ() -> None:
    assert len(set(words.WORDS)) == len(words.WORDS)
    assert len(words.X) == len(words.Y) == SIDE


def test_same_seed_same_world() -> None:
    one, two = (make_scenes(WORLD, 20, "test", 3) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(two).values()))
    assert np.array_equal(render(one, "test", 48), render(two, "test", 48))
    assert np.array_equal(render(one, "test", 48)[7], render(two, "test", 48, range(7, 8))[0])
    assert not np.array_equal(one.land, make_scenes(WORLD, 20, "test", 4).land)


def test_marks_are_spread_log_uniformly_and_no_two_share_a_place() -> None:
    scenes = make_scenes(WORLD, 5000, "train", 1)
    logs = np.log(scenes.fit) / np.log(WORLD.most)  # least is 1
    assert np.allclose(np.quantile(logs, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)
    for i in range(500):
        places = scenes.place[i, : scenes.marks[i]]
        assert len({tuple(p) for p in places}) == scenes.marks[i]
        centre, side = np.split(scenes.box[i, : scenes.marks[i]], [2], axis=1)
        assert (centre - side / 2).min() > -1e-9 and (centre + side / 2).max() < 1 + 1e-9


def test_handwriting_of_one_split_is_in_no_other() -> None:
    seen = [{image.tobytes() for image in handwriting(split)[0]} for split in SPLITS]
    assert sum(map(len, seen)) > 1790  # of 1,797, all of them different
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]


def test_facts_of_one_split_are_asked_in_no_other_and_text_teaches_all() -> None:
    rng = np.random.default_rng(0)
    drawn = {split: set(FACTS.draw(30_000, split, rng)) for split in (*SPLITS, "text")}
    assert not drawn["train"] & drawn["validation"] and not drawn["train"] & drawn["test"]
    assert not drawn["validation"] & drawn["test"]
    for split in SPLITS:  # what a split asks, text has taught, of the common ones
        common = {f for f in drawn[split] if FACTS.rank(f) < 500}
        assert len(common) > 80 and common <= drawn["text"]


def test_facts_are_drawn_by_zipfs_law() -> None:
    rank = FACTS.rank(FACTS.draw(200_000, "text", np.random.default_rng(1)))
    weight = (np.arange(len(FACTS)) + WORLD.offset) ** -WORLD.zipf
    for first in (10, 100, 1000, 10_000):
        assert np.mean(rank < first) == pytest.approx(weight[:first].sum() / weight.sum(), abs=0.005)


def test_a_subjects_facts_follow_the_same_law() -> None:
    subject = np.full(100_000, 37)
    fact = FACTS.draw_about(subject, "text", np.random.default_rng(1))
    assert (fact // WORLD.entities == 37).all()
    rank = FACTS.rank(37 * WORLD.entities + np.arange(WORLD.entities))
    weight = (rank + WORLD.offset) ** -WORLD.zipf
    share = np.bincount(fact % WORLD.entities, minlength=WORLD.entities) / len(fact)
    assert np.abs(share - weight / weight.sum()).max() < 0.005


def test_questions_about_images_follow_the_law_of_the_facts() -> None:
    """Marks are drawn as often as their facts are asked; then all facts are, by the law of their split."""
    scenes = make_scenes(WORLD, 20_000, "test", 3, FACTS.subjects("test"))
    rng = np.random.default_rng(0)
    about = ask(scenes, np.tile(np.arange(20_000), 5), FACTS, "test", rng, (0, 1, 0, 0)).rank
    alone = FACTS.rank(FACTS.draw(100_000, "test", rng))
    for first in (10, 100, 1000, 10_000):
        assert np.mean(about < first) == pytest.approx(np.mean(alone < first), abs=0.012)
    marks = np.arange(scenes.digit.shape[1]) < scenes.marks[:, None]
    assert np.array_equal(handwriting("test")[1][scenes.glyph[marks]], scenes.digit[marks])


def test_answers_are_true() -> None:
    scenes, q = asked("text")
    for i in range(400):
        text, answer = q.text(i)
        scene, said = q.scene[i], answer.split()
        land, digit = scenes.land[scene], scenes.digit[scene, q.mark[i]]
        task = TASKS[q.task[i]]
        if task == "land":
            assert (text, answer) == ("land ?", words.LANDS[land])
            continue
        if scenes.marks[scene] > 1:  # the place in the question is that of the mark
            x, y = scenes.place[scene, q.mark[i]]
            assert text.split()[:2] == [f"x{x}", f"y{y}"]
        assert said[0] == str(digit)
        assert len(said) == {"read": 1, "fact": 3, "chain": 4}[task]
        if task != "read":
            entity = words.ENTITIES.index(next(w for w in text.split() if w in words.ENTITIES))
            value = FACTS.value(np.array([(land * 10 + digit) * WORLD.entities + entity]))
            assert said[1:3] == [words.QUALITIES[value[0, 0]], words.THINGS[value[0, 1]]]
            assert task == "fact" or said[3] == words.LANDS[FACTS.home(value)[0]]


def test_a_fact_needs_the_image() -> None:
    """The best blind guess, the commonest answer to each question's text, is right once in six at most."""
    scenes = make_scenes(WORLD, 60_000, "train", 0, FACTS.subjects("text"))
    q = ask(scenes, np.arange(60_000), FACTS, "text", np.random.default_rng(0), (0, 1, 0, 0))
    known = q.question[:, 2]
    right = 0
    for entity in np.unique(known):
        _, counts = np.unique(q.answer[known == entity, 1:3], axis=0, return_counts=True)
        right += counts.max()
    assert right / len(q) < 1 / 6


def test_scenes_in_words_name_every_mark() -> None:
    scenes = make_scenes(WORLD, 50, "train", 2)
    told = in_words(scenes, np.arange(50))
    assert ((told != NONE).all(-1).sum(1) == scenes.marks).all()
    place = scenes.place
    for i in range(50):
        for k in range(scenes.marks[i]):
            x, y = place[i, k]
            right = f"x{x}", f"y{y}", str(scenes.digit[i, k]), words.LANDS[scenes.land[i]]
            assert tuple(told[i, k]) == tuple(AT[word] for word in right)


def test_labels_say_which_digit_covers_the_patch_of_a_place() -> None:
    scenes = make_scenes(WORLD, 300, "train", 5)
    label = dense_labels(scenes, SIDE).reshape(300, SIDE, SIDE)
    for i in range(300):
        for k in range(scenes.marks[i]):
            x, y = scenes.place[i, k]
            if scenes.box[i, k, 2] * SIDE > 1.5:  # smaller marks may miss the centre of their patch
                assert label[i, y, x] == scenes.digit[i, k] + 1


def test_a_drawing_shows_what_the_scene_says() -> None:
    """Marks are light and stand where their boxes are; grounds of two lands differ."""
    scenes = make_scenes(WORLD, 200, "train", 6)
    images = render(scenes, "train", 96).astype(float)
    for i in range(200):
        x, y, side = scenes.box[i, 0] * 96
        rows, cols = (slice(int(c - side / 2), int(c + side / 2) + 1) for c in (y, x))
        assert images[i, rows, cols].max() > 0.7 * 255
    colour = images[:, :8, :8].mean((1, 2))
    red, blue = scenes.land // 4 == 0, scenes.land // 4 == 2
    assert (colour[red, 0] > colour[red, 2]).mean() > 0.9
    assert (colour[blue, 0] < colour[blue, 2]).mean() > 0.9


def test_few_facts_and_one_mark_by_configuration() -> None:
    """A twin world by its numbers alone: the same words and questions."""
    twin = WorldConfig(entities=2, least=6.0, most=10.0)
    facts, scenes = Facts(twin), make_scenes(twin, 50, "test", 0)
    q = ask(scenes, np.arange(50), facts, "test", np.random.default_rng(0), (0, 1, 0, 0))
    assert len(facts) == len(FACTS) * 2 // WORLD.entities
    assert scenes.marks.min() > 1 and set(q.question[:, 2]) <= {AT[w] for w in words.ENTITIES[:2]}


def test_binding_answers_are_true() -> None:
    scenes = make_scenes(WORLD, 600, "validation", 8)
    q = ask_binding(scenes, np.arange(600), np.random.default_rng(0))
    answers = {name: set() for name in PANEL}
    for i in range(600):
        text, answer = (part.split() for part in q.text(i))
        digits = [str(d) for d in scenes.digit[i, : scenes.marks[i]]]
        task = PANEL[q.task[i]]
        answers[task].add(answer[0])
        if task == "count":
            assert answer == [str(digits.count(text[1]))]
        elif task == "compare":
            assert digits.count(text[1]) != digits.count(text[3])
            assert answer == ["yes" if digits.count(text[1]) > digits.count(text[3]) else "no"]
        else:
            places = [(f"x{x}", f"y{y}") for x, y in scenes.place[i]]
            at = places.index(tuple(text[:2]))
            assert at // scenes.cols[i] == (at + 1) // scenes.cols[i]  # of the same line
            assert answer == [digits[at + 1]]
    assert answers["compare"] == {"yes", "no"} and answers["right"] == set("0123456789")
    assert {"0", "1", "2", "3"} <= answers["count"]
