"""Scores of public benchmarks, as their own evaluations compute them.

VQA accuracy (VQAv2, TextVQA, VizWiz; arXiv 1505.00468), exact match (GQA; arXiv 1902.09506), F1 of yes/no
questions (POPE; arXiv 2305.10355), ANLS (DocVQA; arXiv 2007.00398), and the letter of a multiple choice
(ScienceQA, MMBench). Each takes what was said and what is right; the tests hold them to examples worked by
hand from the definitions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# written as VQA's evaluation wants them: with their apostrophe
CONTRACTIONS = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
how'll how's i'd i'm i've isn't it'd it'll let's ma'am might've mightn't must've mustn't needn't
not've o'clock oughtn't shan't she'd should've shouldn't somebody'd somebody'll somebody's someone'd
someone'll someone's something'd something'll that'd that's there'd there're there's they'd they'll
they're they've wasn't we've weren't what'll what're what's what've when's where'd where's where've
who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're
you've
""".split()
WITH_APOSTROPHE = {word.replace("'", ""): word for word in CONTRACTIONS}
NUMBERS = dict(zip("none zero one two three four five six seven eight nine ten".split(),
                   "0 0 1 2 3 4 5 6 7 8 9 10".split()))  # fmt: skip
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
LOOSE_PERIOD = re.compile(r"(?<!\d)\.(?!\d)")
COMMA_IN_NUMBER = re.compile(r"\d,\d")
ANLS_LEAST = 0.5  # a similarity below this counts as none


def edit_similarity(answer: str, right: str) -> float:
    """1 - edit distance / longer length, in words; what ANLS averages (there, under ANLS_LEAST is 0)."""
    a, b = answer.split(), right.split()
    return 1 - edit_distance(a, b) / max(len(a), len(b), 1)


def vqa_words(answer: str) -> str:
    """An answer as VQA compares it: no punctuation or articles, numbers as digits, contractions with
    apostrophes.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    joined = COMMA_IN_NUMBER.search(text) is not None
    for mark in PUNCTUATION:
        alone = f"{mark} " in text or f" {mark}" in text
        text = text.replace(mark, "" if alone or joined else " ")
    words = LOOSE_PERIOD.sub("", text).lower().split()
    kept = [NUMBERS.get(word, word) for word in words]
    return " ".join(WITH_APOSTROPHE.get(word, word) for word in kept if word not in ARTICLES)


def vqa_accuracy(answer: str, right: Sequence[str]) -> float:
    """Agreement with ten people: min(1, matches / 3), the mean over leaving each person out.

    Where all ten said the same, answers are compared as they are; otherwise by their words, see `vqa_words`.
    """
    said, others = answer.replace("\n", " ").strip(), [r.replace("\n", " ").strip() for r in right]
    if len(set(others)) > 1:
        said, others = vqa_words(said), [vqa_words(r) for r in others]
    matches = [said == other for other in others]
    left_out = [min(1.0, (sum(matches) - match) / 3) for match in matches]
    return sum(left_out) / len(left_out)


def exact_match(answer: str, right: str) -> float:
    """1 where both are the same but for case, white space and a final period (GQA)."""
    return float(answer.strip().rstrip(".").lower() == right.strip().rstrip(".").lower())


def says_yes(answer: str) -> bool:
    """Whether an answer counts as yes in POPE: its first sentence holds neither "no" nor "not"."""
    words = answer.split(".")[0].replace(",", "").split()
    return not {"No", "no", "not"} & set(words)


def yes_no(answers: Sequence[str], right: Sequence[str]) -> dict[str, float]:
    """POPE's numbers, with "yes" as the positive: accuracy, precision, recall, F1, share of yes."""
    said, truth = [says_yes(a) for a in answers], [r.strip().lower() == "yes" for r in right]
    hit = sum(a and b for a, b in zip(said, truth))
    precision, recall = hit / max(sum(said), 1), hit / max(sum(truth), 1)
    return {
        "accuracy": sum(a == b for a, b in zip(said, truth)) / len(truth),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / max(precision + recall, 1e-12),
        "yes": sum(said) / len(said),
    }


def edit_distance(a: Sequence, b: Sequence) -> int:
    """The fewest insertions, deletions and replacements that turn one into the other (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


def anls(answer: str, right: Sequence[str]) -> float:
    """Similarity to the nearest of the right answers, letter by letter; below .5 it counts as 0 (DocVQA)."""
    said, *others = (" ".join(text.lower().split()) for text in (answer, *right))
    best = max((1 - edit_distance(said, o) / max(len(said), len(o), 1) for o in others), default=0.0)
    return best if best >= ANLS_LEAST else 0.0


def choice(answer: str, letters: str = "ABCDE") -> str:
    """The letter that an answer to a multiple choice names; "" where it names none.

    "B", "B.", "B. a cat", "(B)" and "The answer is B." all name B; a word that begins with it does not.
    """
    text, one = answer.strip(), f"([{letters}])"
    forms = rf"{one}$", rf"\(?{one}[).:](\s|$)", rf".*?[Tt]he answer is \(?{one}\b"
    found = [match for form in forms if (match := re.match(form, text, re.DOTALL))]
    return found[0].group(1) if found else ""
