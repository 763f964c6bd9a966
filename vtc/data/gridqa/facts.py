"""What no image tells: a fact about every digit in every land and every animal, common and rare ones.

"What does the owl of house 7 in Lima have?" is answered by two words, a quality and a thing. How common the
first, second, ... fact is, is Zipf's law; the order is drawn once, so common facts lie in all lands.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vtc.data.gridqa import words
from vtc.data.gridqa.world import Scenes, make_scenes
from vtc.profiles import Profile
from vtc.shapes import WorldConfig

# Every fact has a part, 0 to 3. Images ask for those of their split; text teaches all.
PARTS = {"train": (0, 1), "validation": (2,), "test": (3,), "text": (0, 1, 2, 3)}


@dataclass(frozen=True)
class Facts:
    """All facts of a world, numbered `(land * 10 + digit) * entities + entity`; same seed, same facts."""

    config: WorldConfig
    seed: int = 2411_03312

    def __len__(self) -> int:
        return self.config.lands * len(words.DIGITS) * self.config.entities

    @cached_property
    def _drawn(self) -> tuple[np.ndarray, ...]:
        rng, n = np.random.default_rng(self.seed), len(self)
        value = np.stack([rng.integers(0, len(w), n) for w in (words.QUALITIES, words.THINGS)], -1)
        rank = rng.permutation(n)
        part = rng.integers(0, 4, n)
        home = rng.integers(0, len(words.LANDS), (len(words.QUALITIES), len(words.THINGS)))
        return value, rank, part, home

    def value(self, fact: np.ndarray) -> np.ndarray:
        """(n,) -> quality and thing (n, 2)."""
        return self._drawn[0][fact]

    def rank(self, fact: np.ndarray) -> np.ndarray:
        """How common, 0 the most."""
        return self._drawn[1][fact]

    def home(self, value: np.ndarray) -> np.ndarray:
        """Quality and thing (n, 2) -> the land where that is made (n,): the second hop of a chain."""
        return self._drawn[3][value[..., 0], value[..., 1]]

    @cached_property
    def _sums(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Per split the cumulated weights of all facts (n,), and of each subject's (subjects, entities)."""
        weight = (self._drawn[1] + self.config.offset) ** -self.config.zipf
        found = {}
        for split in PARTS:
            w = np.where(self.askable(split), weight, 0)
            found[split] = np.cumsum(w), np.cumsum(w.reshape(-1, self.config.entities), 1)
        return found

    def askable(self, split: str) -> np.ndarray:
        """Which facts that split may ask, (facts,)."""
        return np.isin(self._drawn[2], PARTS[split])

    def subjects(self, split: str) -> np.ndarray:
        """How often each digit of each land is asked about, (lands, 10), adding up to 1."""
        sums = self._sums[split][1][:, -1]
        return (sums / sums.sum()).reshape(self.config.lands, len(words.DIGITS))

    def draw(self, n: int, split: str, rng: np.random.Generator) -> np.ndarray:
        """n facts by Zipf's law, of those that this split may ask."""
        sums = self._sums[split][0]
        return np.searchsorted(sums, rng.random(n) * sums[-1], side="right")

    def draw_about(self, subject: np.ndarray, split: str, rng: np.random.Generator) -> np.ndarray:
        """One fact about each subject `land * 10 + digit` (n,), by the same law among its facts."""
        sums = self._sums[split][1][subject]  # (n, entities)
        entity = (sums <= rng.random((len(subject), 1)) * sums[:, -1:]).sum(1)
        return subject * self.config.entities + entity


def scenes_of(p: Profile, split: str) -> Scenes:
    """The scenes that the profile trains on ("train"), chooses by ("validation") or is tested on ("test").

    Marks are as frequent as the facts about them that the split may ask, so that questions about any mark ask
    all facts together by the world's law.
    """
    subjects = Facts(p.world).subjects(split)
    return make_scenes(p.world, getattr(p, f"images_{split}"), split, seed=3, subjects=subjects)
