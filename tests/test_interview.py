"""A model that is asked: right answers, the shipped model, the panel of notebook 05, cards."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from vtc import InputError, data, figures, profiles
from vtc.__main__ import main
from vtc.evaluation import exam, interview
from vtc.figures import looks

SMOKE, LAPTOP = profiles.get("smoke"), profiles.get("laptop")
FACTS = data.Facts(SMOKE.world)


@pytest.fixture(scope="module")
def shipped() -> interview.Interview:
    return interview.shipped(LAPTOP)


def test_a_typed_question_has_the_answer_that_the_exam_gives():
    made = exam.exam(SMOKE)
    for part in made.parts:
        for i in range(len(part.questions)):
            question, answer = part.questions.text(i)
            row = int(part.questions.scene[i])
            assert data.right_answer(made.scenes, row, FACTS, question).answer == answer, question


def test_the_mark_that_is_asked_for_stands_at_its_place():
    scenes = data.scenes_of(SMOKE, "test")
    row = int(np.argmax(scenes.marks))
    for mark, (x, y) in enumerate(scenes.place[row, : scenes.marks[row]]):
        right = data.right_answer(scenes, row, FACTS, f"x{x} y{y} read")
        assert (right.mark, right.answer) == (mark, str(scenes.digit[row, mark]))
        left, top, other, low = scenes.edges(row, mark)
        assert left < (x + 0.5) / 12 + 0.05 and other > (x + 0.5) / 12 - 0.05 and top < low


@pytest.mark.parametrize("question", ["", "read", "x0 y0 z", "x11 y11 read", "more 3 than owl", "count owl"])
def test_a_question_that_cannot_be_asked_is_refused_in_one_line(question):
    scenes = data.scenes_of(SMOKE, "test")
    with pytest.raises(InputError) as refused:
        data.right_answer(scenes, int(np.argmax(scenes.marks)), FACTS, question)
    assert "\n" not in str(refused.value) and (
        "ask" in str(refused.value) or "marks at" in str(refused.value)
    )


def said(
    one: interview.Interview, kind: str, images: int, shuffled: bool = False
) -> tuple[list[bool], float]:
    """Whether the exam's first questions of a kind are answered rightly, and how often one word would be."""
    part = exam.exam(one.p).parts[data.TASKS.index(kind)]
    texts = [part.questions.text(i * part.each) for i in range(images)]
    pixels = data.render(one.scenes, "test", one.model.tower.shape.pixels, range(images))
    asked, right = zip(*texts)
    others = [*asked[1:], asked[0]] if shuffled else None
    answers = one.model.generate(torch.from_numpy(pixels), list(asked), interview.LONGEST, shuffled=others)
    return [a == b for a, b in zip(answers, right)], max(map(right.count, right)) / images


def test_the_shipped_model_is_small_and_answers_far_better_than_blind(shipped):
    files = [path for path in interview.SHIPPED.iterdir() if path.name != "README.md"]
    assert sum(path.stat().st_size for path in files) <= 5e6
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    card = (interview.SHIPPED / "README.md").read_text()
    read, guessed = said(shipped, "read", 128)
    assert np.mean(read) > 0.75 and guessed < 0.2
    fact, guessed = said(shipped, "fact", 128)
    assert np.mean(fact) > 0.4 and guessed < 0.1
    assert (
        np.mean(said(shipped, "read", 128, shuffled=True)[0]) < np.mean(read) - 0.3
    )  # it reads the question
    written = float(re.search(r"\| land \|.*\| ([\d.]+) \| [\d.]+ \|", card)[1])
    assert np.mean(said(shipped, "land", 128)[0]) == pytest.approx(written, abs=0.03)


def test_its_token_looks_at_the_mark_that_is_asked_for(shipped):
    """On the marks of twenty images: more weight there than on a mark that the question does not name."""
    there, elsewhere = [], []
    rows = np.flatnonzero(shipped.scenes.marks > 3)[:20]
    for row in map(int, rows):
        x, y = shipped.scenes.place[row, 0]
        answer = shipped.ask(row, f"x{x} y{y} read")
        assert answer.maps.sum() == pytest.approx(1, abs=1e-3) and answer.box == shipped.scenes.edges(row, 0)
        for mark, found in ((0, there), (int(shipped.scenes.marks[row]) - 1, elsewhere)):
            left, top, right, low = (round(edge * 12) for edge in shipped.scenes.edges(row, mark))
            found.append(answer.maps[0, top:low, left:right].mean())
    assert np.mean(there) > 3 * np.mean(elsewhere)


def test_the_panel_is_a_picture_where_nobody_can_type_and_answers_where_somebody_can(shipped, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    image, questions = exam.example(LAPTOP)
    panel = looks.Panel(shipped, image, questions[0])
    still, _ = panel._repr_mimebundle_()
    assert still["image/png"].startswith(b"\x89PNG") and questions[0] in still["text/plain"]
    boxes, problem, drawn = panel.widgets().children
    first = drawn.value
    boxes.children[1].value = questions[1]
    assert drawn.value != first and not problem.value
    boxes.children[1].value = "what is this"
    assert "no word of this world" in problem.value
    monkeypatch.setenv("JPY_SESSION_NAME", "here")
    live = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in (live[0] if isinstance(live, tuple) else live)


@pytest.mark.parametrize("question, mark", [("land", None), ("x5 y4 read", 1)])
def test_an_answer_is_drawn_with_a_map_a_token(question, mark):
    maps, box = np.random.default_rng(0).random((4, 3, 3)), mark and (0.1, 0.1, 0.4, 0.4)
    answer = interview.Answer(np.zeros((6, 6, 3), np.uint8), question, "7", data.Right("8", mark), box, maps)
    chart = looks.asked(answer)
    assert "wrong; the correct answer is 8" in figures.description(chart)
    json.dumps(chart.to_dict(), allow_nan=False)  # a notebook takes no NaN
    drawn = figures.drawn(chart)
    assert drawn["token"].nunique() == 4 and drawn["weight"].max() == 1
    assert drawn["left"].notna().any() == (mark is not None)


def test_a_card_says_what_the_evaluation_finds(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VTC_RUNS", str(tmp_path / "runs"))
    out = tmp_path / "model"
    words = [
        "train",
        "--profile",
        "smoke",
        "--tokens",
        "1",
        "--compressor",
        "quecc",
        "--out",
        str(out),
        "--card",
    ]
    assert main(words) == 0 and main(["evaluate", str(out), "--profile", "smoke"]) == 0
    found = dict(re.findall(r"^(\w+) +([\d.]+)$", capsys.readouterr().out, re.M))
    card = (out / "README.md").read_text()
    assert "vtc train --profile smoke --size d16 --tokens 1 --compressor quecc --seed 0" in card
    for task, written in re.findall(r"^\| (\w+) \|.*\| ([\d.]+) \| [\d.]+ \|$", card, re.M):
        assert float(written) == pytest.approx(float(found[f"score_{task}"]), abs=0.0051)
    assert main([*words, "--data", "talk.json", "--images", "."]) == 2
    assert "--card" in capsys.readouterr().err
