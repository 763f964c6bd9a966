"""What a batch is: questions with their answers, several packed in one sequence behind one image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from vtc import InputError, data
from vtc.models.chat import answer_ids, question_ids
from vtc.models.prompt import Packed, asked, conversation, pack
from vtc.profiles import Schedule
from vtc.training.device import Batch, Share


class Bank:
    """Questions with answers as token ids, grouped by the scene (or image) they are about.

    scene_text: the scenes told in words, for the stage in which the LLM has no image yet. steered: given
    where an image's questions are turns of one conversation; see `vtc.models.prompt.conversation`.
    """

    def __init__(
        self, questions: list[data.Question], tokenizer, scene_text: list[list[str]] | None = None,
        steered: bool | None = None,
    ) -> None:  # fmt: skip
        self.pad_id = tokenizer.pad_token_id
        # few texts differ: tokenise each once
        texts, answers = (list(dict.fromkeys(part)) for part in zip(*((q.text, q.answer) for q in questions)))
        said = dict(zip(answers, answer_ids(tokenizer, answers)))
        first, later = (dict(zip(texts, question_ids(tokenizer, texts, again))) for again in (False, True))
        turns = [(first[q.text], said[q.answer]) for q in questions]
        rows = [(q.image, asked(*turn)) for q, turn in zip(questions, turns)]
        if steered is not None:
            talks: dict[int, list[tuple]] = {}
            for q, turn in zip(questions, turns):
                talk = talks.setdefault(q.image, [])
                talk.append((later[q.text], said[q.answer]) if talk else turn)
            rows = [(image, row) for image, talk in talks.items() for row in conversation(talk, steered)]
        self.rows = [row for _, row in rows]
        self.answers = [round(float(row.weight.sum())) for row in self.rows]  # in each row
        self.of: dict[int, list[int]] = {}  # scene -> its questions' rows
        for i, (scene, _) in enumerate(rows):
            self.of.setdefault(scene, []).append(i)
        self.anywhere = self.of.pop(-1, [])  # questions that need no scene
        self.scenes = np.array(sorted(self.of))
        self.scene_text = None if scene_text is None else _in_ids(scene_text, tokenizer)

    def choose(
        self, batch: int, pack: int, rng: np.random.Generator, free: int = 0
    ) -> tuple[list[list[int]], np.ndarray]:
        """`batch` scenes, and `pack` questions (rows) for each, of which `free` are about no scene."""
        scenes, chosen = rng.choice(self.scenes, batch), []
        for scene in scenes:
            about = self.of[int(scene)]
            picks = rng.choice(len(about), min(pack - free, len(about)), replace=False)
            extra = rng.integers(0, len(self.anywhere), free) if free else ()
            chosen.append([about[j] for j in picks] + [self.anywhere[j] for j in extra])
        return chosen, scenes

    def pack(self, chosen: list[list[int]], scenes: np.ndarray) -> Packed:
        """Rows of questions, one list a sequence -> Packed, padded to the longest."""
        scene_text = None if self.scene_text is None else self.scene_text[scenes]
        return pack([[self.rows[j] for j in rows] for rows in chosen], self.pad_id, scene_text)

    def draw(
        self, batch: int, pack: int, rng: np.random.Generator, free: int = 0
    ) -> tuple[Packed, np.ndarray]:
        """What `choose` chose, packed, and the scenes."""
        chosen, scenes = self.choose(batch, pack, rng, free)
        return self.pack(chosen, scenes), scenes


def batches(
    bank: Bank,
    schedule: Schedule,
    key: tuple[int, int],
    free: int = 0,
    features=None,
    budgets: tuple[int, ...] = (),
) -> Callable[[int, Share], Batch]:
    """The batches of a stage by step and share: questions, the features of their images, and V.

    key: the seed and the stage's number; with the step they fix what is drawn, so that the shares of all
    processes together are one process's batch. budgets: each step draws its V from these.
    """

    def batch(step: int, share: Share) -> Batch:
        rng = np.random.default_rng([*key, step])
        chosen, scenes = bank.choose(schedule.batch, schedule.pack, rng, free)
        drawn = (int(rng.choice(budgets)),) if budgets else ()  # on the host, where shapes are made
        mine = chosen[share.mine]
        if not mine:
            raise InputError(f"a batch of {schedule.batch} is too small for {share.of} processes")
        packed = bank.pack(mine, scenes[share.mine])
        image = () if features is None else (features[torch.from_numpy(scenes[share.mine])],)
        here, everywhere = (sum(bank.answers[j] for rows in part for j in rows) for part in (mine, chosen))
        return Batch((packed, *image, *drawn), share.of * here / everywhere)

    return batch


def _in_ids(scenes: list[list[str]], tokenizer) -> np.ndarray:
    """Scenes in words -> (n, p, 2) token ids, one place a cell with its one or two words, padded."""
    words = {word: tokenizer(word)["input_ids"] for scene in scenes for word in scene}
    longest = max(map(len, words.values()))  # two with our own tokenizer
    ids = np.full((len(scenes), max(map(len, scenes)), longest), tokenizer.pad_token_id)
    for i, scene in enumerate(scenes):
        for j, word in enumerate(scene):
            ids[i, j, : len(words[word])] = words[word]
    return ids
