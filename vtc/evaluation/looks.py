"""Does a token look where the question points? Three numbers from the attention maps of many test images.

Each image is asked several questions, each about one mark. If maps do not depend on the question, two maps of
an image are the same, and the mark that is asked for gets as much weight as the marks of the others.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from vtc.evaluation.exam import LARGE, exam
from vtc.models.vlm import VLM
from vtc.profiles import Profile
from vtc.training import features

IMAGES = 200  # test images at most that are looked at


@torch.no_grad()
def looks(p: Profile, model: VLM, split: str = "test") -> dict[str, float]:
    """Means over pairs of questions about different marks of one image, at most `IMAGES` images.

    looks_move: half the sum of |difference| of the two maps, 0 the same to 1 nothing in common. looks_asked,
    looks_other: share of a map that lies on the mark asked for, and on the mark that the other question asks
    for. Not a number where no image has two such questions.
    """
    made = exam(p, split)
    part, scenes = made.parts[0], made.scenes  # reading
    many = part.images[scenes.fit[part.images] >= LARGE][:IMAGES]
    seen = features.features(p, split, **model.compressor.of_tower)
    found = []
    for image in many:
        about = np.flatnonzero(part.questions.scene == image)
        marks, first = np.unique(part.questions.mark[about], return_index=True)
        texts = [part.questions.text(i)[0] for i in about[first]]
        if len(texts) > 1:
            maps = model.attention_map(seen[[image]].to(torch.float32), texts).mean(1).cpu().numpy()  # (m, s)
            found += _pairs(maps, on_marks(scenes.box[image, marks], p.g))
    moves, asked, other = np.mean(found, axis=0) if found else (np.nan,) * 3
    return {"looks_move": float(moves), "looks_asked": float(asked), "looks_other": float(other)}


def on_marks(box: np.ndarray, g: int) -> np.ndarray:
    """Boxes (m, 3) of centre x, centre y and side -> which patches' centres lie in them, (m, g * g)."""
    y, x = (np.indices((g, g)).reshape(2, 1, -1) + 0.5) / g  # (1, s)
    reach = box[:, 2:] / 2 + 1e-9
    inside = (np.abs(x - box[:, :1]) <= reach) & (np.abs(y - box[:, 1:2]) <= reach)
    nearest = np.argmin((x - box[:, :1]) ** 2 + (y - box[:, 1:2]) ** 2, 1)  # a mark smaller than a patch
    inside[np.arange(len(box)), nearest] = True
    return inside


def _pairs(maps: np.ndarray, marks: np.ndarray) -> list[tuple[float, float, float]]:
    """Maps (m, s), patches of each one's mark (m, s) -> moved, asked, other of every ordered pair."""
    return [
        (np.abs(maps[i] - maps[j]).sum() / 2, (maps[i] * marks[i]).sum(), (maps[i] * marks[j]).sum())
        for i, j in itertools.permutations(range(len(maps)), 2)
    ]
