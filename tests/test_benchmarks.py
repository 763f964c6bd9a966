"""Public benchmarks' scores on examples worked by hand from their definitions."""

from __future__ import annotations

import itertools
import random

import pytest

from vtc.evaluation import benchmarks


@pytest.mark.parametrize(
    "matches, accuracy",
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_vqa_accuracy_is_the_mean_over_leaving_each_person_out(matches, accuracy):
    """With m matches, ten minus m subsets see m of them and m subsets see one less: (10 - m) min(1, m/3) +
    ...
    """
    right = ["cat"] * matches + [f"dog{i}" for i in range(10 - matches)]
    assert benchmarks.vqa_accuracy("cat", right) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    "said, words",
    [
        ("The cat.", "cat"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("dont know", "don't know"),
        ("3.5", "3.5"),
        ("yes!", "yes"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("1,000", "1000"),
        ("an apple a day", "apple day"),
        ("red\nball", "red ball"),
    ],
)
def test_answers_are_compared_by_their_words(said, words):
    assert benchmarks.vqa_words(said) == words


def test_where_all_agree_answers_are_compared_as_they_are():
    assert benchmarks.vqa_accuracy("the cat", ["cat"] * 10) == 0.0
    assert benchmarks.vqa_accuracy("the cat", ["cat"] * 9 + ["dog"]) == 1.0


def test_exact_match():
    assert (
        benchmarks.exact_match(" Left.", "left") == 1.0 and benchmarks.exact_match("left side", "left") == 0.0
    )


def test_yes_and_no():
    answers = ["Yes", "No, there is none", "yes there is", "There is not. Yes", "Yes, it is"]
    right = ["yes", "yes", "no", "no", "yes"]
    found = benchmarks.yes_no(answers, right)
    assert found["precision"] == pytest.approx(2 / 3) and found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3) and found["accuracy"] == pytest.approx(3 / 5)
    assert found["yes"] == pytest.approx(3 / 5)


def test_edit_distance_against_a_search_of_all_ways():
    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    rng = random.Random(0)
    words = ["".join(rng.choices("abc", k=rng.randrange(5))) for _ in range(12)]
    for a, b in itertools.product(words, repeat=2):
        assert benchmarks.edit_distance(a, b) == slow(a, b) == benchmarks.edit_distance(b, a)


@pytest.mark.parametrize(
    "said, right, value",
    [
        ("hello", ["hello"], 1.0),
        ("Hello  World", ["hello world"], 1.0),
        ("hallo", ["hello", "bye"], 0.8),
        ("abcd", ["abxy"], 0.5),
        ("abcd", ["axyz"], 0.0),
        ("", ["x"], 0.0),
    ],
)
def test_anls(said, right, value):
    assert benchmarks.anls(said, right) == pytest.approx(value)


@pytest.mark.parametrize(
    "said, letter",
    [
        ("B", "B"),
        ("B.", "B"),
        ("B. a cat", "B"),
        ("(C)", "C"),
        ("The answer is D.", "D"),
        ("Because", ""),
        ("", ""),
        ("Z", ""),
    ],
)
def test_the_letter_of_a_choice(said, letter):
    assert benchmarks.choice(said) == letter
