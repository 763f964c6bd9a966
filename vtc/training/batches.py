"""A batch of people's own data: questions with answers, several packed in one sequence behind an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from vtc import InputError
from vtc.models.chat import answer_ids, prefix_length, question_ids
from vtc.models.prompt import Packed, asked, conversation, pack
from vtc.profiles import NO_IMAGE, Schedule
from vtc.training.device import Batch, Share


@dataclass(frozen=True)
class Question:
    """One question about one image, with the answer that is right."""

    image: int  # row of the image
    text: str
    answer: str
    talk: int = 0  # which of the image's conversations it is a turn of


class Bank:
    """Questions with answers as token ids, grouped by the image they are about.

    steered: given where questions of one talk are turns of one conversation; see
    `vtc.models.prompt.conversation`.
    """

    def __init__(self, questions: list[Question], tokenizer, steered: bool | None = None) -> None:
        self.pad_id = tokenizer.pad_token_id
        # few texts differ: tokenise each once
        texts, answers = (list(dict.fromkeys(part)) for part in zip(*((q.text, q.answer) for q in questions)))
        said = dict(zip(answers, answer_ids(tokenizer, answers)))
        first, later = (dict(zip(texts, question_ids(tokenizer, texts, again))) for again in (False, True))
        turns = [(first[q.text], said[q.answer]) for q in questions]
        rows = [(q.image, asked(*turn)) for q, turn in zip(questions, turns)]
        if steered is not None:
            talks: dict[tuple[int, int], list[tuple]] = {}
            for q, turn in zip(questions, turns):
                talk = talks.setdefault((q.image, q.talk), [])
                talk.append((later[q.text], said[q.answer]) if talk else turn)
            rows = [(image, row) for (image, _), talk in talks.items() for row in conversation(talk, steered)]
        self.rows = [row for _, row in rows]
        self.shared = prefix_length(tokenizer)
        self.answers = [round(float(row.weight.sum())) for row in self.rows]  # in each row
        self.of: dict[int, list[int]] = {}  # image -> its questions' rows
        for i, (image, _) in enumerate(rows):
            self.of.setdefault(image, []).append(i)
        self.images = np.array(sorted(self.of))

    def choose(self, batch: int, pack: int, rng: np.random.Generator) -> tuple[list[list[int]], np.ndarray]:
        """`batch` images, and `pack` questions (rows) for each, or as many as there are."""
        images, chosen = rng.choice(self.images, batch), []
        for image in images:
            about = self.of[int(image)]
            picks = rng.choice(len(about), min(pack, len(about)), replace=False)
            chosen.append([about[j] for j in picks])
        return chosen, images

    def pack(self, chosen: list[list[int]]) -> Packed:
        """Rows of questions, one list a sequence -> Packed, padded to the longest."""
        return pack([[self.rows[j] for j in rows] for rows in chosen], self.pad_id, shared=self.shared)

    def draw(self, batch: int, pack: int, rng: np.random.Generator) -> tuple[Packed, np.ndarray]:
        """What `choose` chose, packed, and the images."""
        chosen, images = self.choose(batch, pack, rng)
        return self.pack(chosen), images


def batches(
    bank: Bank, schedule: Schedule, key: tuple[int, int], features, budgets: tuple[int, ...] = ()
) -> Callable[[int, Share], Batch]:
    """The batches of a stage by step and share: questions, the features of their images, and V.

    key: the seed and the stage's number; with the step they fix what is drawn, so that the shares of all
    processes together are one process's batch. budgets: each step draws its V from these, no image (0) a
    third as often as any other.
    """
    often = np.array([1.0 if V else NO_IMAGE for V in budgets])

    def batch(step: int, share: Share) -> Batch:
        rng = np.random.default_rng([*key, step])
        chosen, images = bank.choose(schedule.batch, schedule.pack, rng)
        drawn = (int(rng.choice(budgets, p=often / often.sum())),) if budgets else ()  # on the host
        mine = chosen[share.mine]
        if not mine:
            few = f"a batch of {schedule.batch} is too small for {share.of} processes"
            raise InputError(f"{few} (or parts of it, by --accumulate)")
        image = features[torch.from_numpy(images[share.mine])]
        here, everywhere = (sum(bank.answers[j] for rows in part for j in rows) for part in (mine, chosen))
        return Batch((bank.pack(mine), image, *drawn), share.of * here / everywhere)

    return batch
