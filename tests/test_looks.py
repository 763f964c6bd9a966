"""Where tokens look: planted maps give the planted numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vtc import profiles
from vtc.evaluation import exam, looks

P = profiles.get("smoke")


class Planted:
    """Stands for a model: the map of a question is `share` on the asked mark's patches, the rest is even."""

    def __init__(self, share: float, marks: dict[tuple[int, str], np.ndarray]):
        self.share, self.marks = share, marks
        self.compressor = type("", (), {"of_tower": {}})

    def attention_map(self, image, texts: list[str]) -> torch.Tensor:
        even = np.full(P.s, 1 / P.s)
        maps = [
            self.share * (m := self.marks[int(image), text]) / m.sum() + (1 - self.share) * even
            for text in texts
        ]
        return torch.tensor(np.stack(maps))[:, None].expand(-1, 2, -1)  # two tokens alike


@pytest.fixture
def marks(monkeypatch) -> dict[tuple[int, str], np.ndarray]:
    """Patches of the mark that each reading question of the smoke exam asks for, by image and text."""
    import vtc.training.features

    monkeypatch.setattr(vtc.training.features, "features", lambda *_, **__: torch.arange(P.images_test))
    made = exam.exam(P)
    part, found = made.parts[0], {}
    for i in range(len(part.questions)):
        image = part.questions.scene[i]
        box = made.scenes.box[image, part.questions.mark[i]]
        found[image, part.questions.text(i)[0]] = looks.on_marks(box[None], P.g)[0]
    return found


def test_a_map_that_follows_the_question_moves_and_lies_on_what_is_asked(marks):
    seen = looks.looks(P, Planted(0.8, marks))
    assert seen["looks_asked"] > 0.8 > 0.4 > seen["looks_other"]
    assert 0.5 < seen["looks_move"] <= 0.8


def test_an_even_map_does_not_move(marks):
    seen = looks.looks(P, Planted(0.0, marks))
    assert seen["looks_move"] == 0
    assert seen["looks_asked"] == pytest.approx(seen["looks_other"])


def test_patches_of_a_mark():
    inside = looks.on_marks(np.array([[0.25, 0.25, 0.5], [0.51, 0.99, 0.01]]), 4).reshape(2, 4, 4)
    assert inside[0, :2, :2].all() and inside[0].sum() == 4
    assert inside[1].sum() == 1 and inside[1, 3, 2]  # smaller than a patch: the nearest
