"""A trained model in lmms-eval: `lmms-eval --model vtc --model_args pretrained=FOLDER,tokens=4 --tasks ...`.

lmms-eval finds it by its entry point; it has some fifty dependencies, so give it an environment of its own
(`pip install '.[eval]'`). Answers are greedy, one image a question.
"""

from __future__ import annotations

from itertools import groupby

import numpy as np
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from vtc import InputError
from vtc.data.images import squared
from vtc.models.vlm import VLM
from vtc.progress import bar

MANIFEST = ModelManifest(model_id="vtc", simple_class_path="vtc.adapters.lmms_eval.Evaluated")
LONGEST = 1024  # tokens of an answer, where the task names no number


class Evaluated(lmms):
    """A folder that `VLM.save_pretrained` wrote, as lmms-eval asks its models."""

    def __init__(
        self, pretrained: str, compressor: str = "", tokens: int | None = None, batch_size: int = 1,
        device: str = "cpu", **_: object,
    ) -> None:  # fmt: skip
        """compressor: refused unless the folder's; tokens: another V of a model that serves several."""
        super().__init__()
        self.batch_size, model = int(batch_size), VLM.from_pretrained(pretrained)
        if compressor and compressor != model.config.compressor:
            raise InputError(f"{pretrained}: its compressor is {model.config.compressor}, not {compressor}")
        where = device if torch.accelerator.is_available() else "cpu"
        self.model = (model if tokens in (None, model.V) else model.at(int(tokens))).to(where).eval()

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy answers, in the order of the requests, up to the first of the task's stop strings."""
        asked = [self._asked(request) for request in requests]
        order = sorted(range(len(asked)), key=lambda i: asked[i][2])
        said = [""] * len(asked)
        for longest, rows in groupby(bar(order, "questions"), key=lambda i: asked[i][2]):
            rows = list(rows)
            for start in range(0, len(rows), self.batch_size):
                part = rows[start : start + self.batch_size]
                images = [asked[i][1] for i in part]
                pixels = None if images[0] is None else torch.from_numpy(np.stack(images))
                answers = self.model.generate(pixels, [asked[i][0] for i in part], longest)
                for i, answer in zip(part, answers):
                    said[i] = _until(answer, asked[i][3])
        return said

    def _asked(self, request: Instance) -> tuple[str, np.ndarray | None, int, list[str]]:
        """Question, image, tokens of the longest answer, stop strings; InputError where it is not for us."""
        context, options, doc_to_visual, doc, task, split = request.args
        if options.get("do_sample") or options.get("temperature") or options.get("num_beams", 1) > 1:
            raise InputError(f"task {task} samples or searches with beams: answers here are greedy")
        images = doc_to_visual(self.task_dict[task][split][doc]) or []
        if self.model.V and len(images) != 1:
            raise InputError(f"task {task}, row {doc}: {len(images)} images; this model reads one a question")
        image = squared(images[0], self.model.eyes().pixels) if self.model.V else None
        stops = options.get("until") or []
        stops = [stops] if isinstance(stops, str) else list(stops)
        return context.replace("<image>", "").strip(), image, options.get("max_new_tokens", LONGEST), stops

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refused: no task with images that this project reports asks for it."""
        raise InputError("vtc answers questions (generate_until); choose such tasks")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused, as `loglikelihood` is."""
        raise InputError("vtc answers one round of questions (generate_until); choose such tasks")


def _until(answer: str, stops: list[str]) -> str:
    for stop in filter(None, stops):
        answer = answer.split(stop)[0]
    return answer.strip()
