"""A trained model that anybody may ask about test images: what it says, what is right, where it looks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from vtc import InputError, data
from vtc.data import Right
from vtc.models.vlm import VLM
from vtc.profiles import ROOT, Profile

SHIPPED = ROOT / "models" / "quecc"  # made by `vtc train`, see its README.md
LONGEST = 5  # tokens of an answer, its end included


@dataclass(frozen=True)
class Answer:
    """One question about one image."""

    image: np.ndarray  # (pixels, pixels, 3)
    question: str
    said: str  # by the model
    right: Right
    box: tuple[float, ...] | None  # the mark that is asked for, see `Scenes.edges`
    maps: np.ndarray  # (V, g, g), how much each visual token takes from each patch; adds up to 1 a token


@dataclass(frozen=True)
class Interview:
    """A model that has a tower, and the test images of a profile, drawn at the model's size."""

    model: VLM
    p: Profile

    @cached_property
    def scenes(self) -> data.Scenes:
        """What the images show."""
        return data.scenes_of(self.p, "test")

    @cached_property
    def facts(self) -> data.Facts:
        """What no image shows."""
        return data.Facts(self.p.world)

    @torch.no_grad()
    def ask(self, image: int, question: str) -> Answer:
        """The model's answer to a question about a test image; raises InputError where it cannot be asked."""
        if not 0 <= image < len(self.scenes):
            raise InputError(f"image {image}: there are 0 to {len(self.scenes) - 1}")
        right = data.right_answer(self.scenes, image, self.facts, question)
        question = question.replace("?", " ").strip() + " ?"
        tower = self.model.eyes()
        pixels = data.render(self.scenes, "test", tower.shape.pixels, range(image, image + 1))
        seen = tower(torch.from_numpy(pixels), **self.model.compressor.of_tower)
        [said] = self.model.generate(seen, [question], LONGEST)
        looks = self.model.attention_map(seen, [question])[0]  # (V, s)
        maps = looks.unflatten(-1, (tower.shape.g, tower.shape.g)).cpu().numpy()
        box = None if right.mark is None else self.scenes.edges(image, right.mark)
        return Answer(pixels[0], question, said, right, box, maps)


def shipped(p: Profile, folder: Path = SHIPPED) -> Interview:
    """The small trained model that comes with the repository, to be asked about the profile's test images."""
    return Interview(VLM.from_pretrained(folder), p)
