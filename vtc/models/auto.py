"""What transformers' Auto classes load of a folder that `VLM.save_pretrained` wrote; import this to have it.

::

    import vtc.models.auto
    model = AutoModelForImageTextToText.from_pretrained("model")
    processor = AutoProcessor.from_pretrained("model")
    inputs = processor(images=[picture], text=["what is it?"])
    said = model.generate(**inputs, max_new_tokens=20)[:, inputs["input_ids"].shape[1] :]
    processor.batch_decode(said, skip_special_tokens=True)

`AutoModel` gives the `VLM` itself, whose `generate` takes questions and gives answers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.modeling_outputs import CausalLMOutput

from vtc import InputError
from vtc.compressors.base import Features
from vtc.data.images import load_image, squared
from vtc.models import chat, io
from vtc.models.generate import quick_tower
from vtc.models.prompt import NOBODY, SHARED, Layout, Packed, asked, pack
from vtc.models.vlm import VLM, VLMConfig

IGNORED = -100  # label of a token that no loss is taken of


class VLMForImageTextToText(VLM):
    """The same model, called as transformers' are: ids and pixels in, logits or ids out; one image a prompt.

    An image has no place in the ids: its V tokens stand before them, or where the compressor wants them.
    """

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, pixel_values: Tensor | None = None,
        labels: Tensor | None = None, **_: object,
    ) -> CausalLMOutput:  # fmt: skip
        """Ids, mask, labels (b, t), pixels (b, pixels, pixels, 3) uint8 -> logits (b, V + t, vocabulary).

        What has a label is an answer, which a compressor does not read; the loss is the mean over its tokens.
        """
        packed = self._packed(input_ids, attention_mask, labels)
        x, layout = self._embedded(packed, pixel_values)
        mask = layout.mask(x.dtype)
        logits = self.llm(inputs_embeds=x, attention_mask=mask, position_ids=layout.position_ids).logits
        if labels is None:
            return CausalLMOutput(logits=logits)
        before = logits[:, -labels.shape[1] - 1 : -1]  # the token before one predicts it
        loss = F.cross_entropy(before.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)
        return CausalLMOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, pixel_values: Tensor | None = None,
        **options: object,
    ) -> Tensor:  # fmt: skip
        """Prompts (b, t), padded on the left -> the prompts and what follows, by the LLM's own `generate`.

        options: its own (sampling, beams, ...); greedy without any. Raises InputError for padding on the
        right, and for compressors that drop tokens inside the LLM.
        """
        if self.V and self.compressor.cost_class == "D":
            problem = f"{self.config.compressor} drops tokens inside the LLM"
            raise InputError(f"{problem}: ask by VLM.generate (AutoModel)")
        if attention_mask is not None and not bool(attention_mask[:, -1].all()):
            raise InputError("prompts end with padding: pad on the left to generate")
        packed = self._packed(input_ids, attention_mask)
        x, layout = self._embedded(packed, pixel_values)
        if self.question_first or self.prefix:  # the cache reads column after column, so they must stand
            order = layout.position_ids.masked_fill(layout.segment == NOBODY, -1).argsort(dim=1, stable=True)
            x, layout = x.gather(1, order[..., None].expand_as(x)), layout.reordered(order)
        ends = {"eos_token_id": self.tokenizer.eos_token_id, "pad_token_id": self.tokenizer.pad_token_id}
        said = self.llm.generate(
            inputs_embeds=x, attention_mask=(layout.segment != NOBODY).long(),
            position_ids=layout.position_ids, **{"do_sample": False, **ends, **options},
        )  # fmt: skip
        return torch.cat([input_ids.repeat_interleave(len(said) // len(input_ids), 0), said], 1)

    def _packed(self, ids: Tensor, mask: Tensor | None, labels: Tensor | None = None) -> Packed:
        """Ids as they came, one question a row; the compressor reads what has no label."""
        mask = torch.ones_like(ids) if mask is None else mask
        answers = torch.zeros_like(mask, dtype=torch.bool) if labels is None else labels != IGNORED
        rows = [[asked(row[keep].tolist())] for row, keep in zip(ids, (mask > 0) & ~answers)]
        place = (mask.cumsum(1) - 1).clamp_min(0)
        whose = torch.where(place < self.prefix, SHARED, 0)
        return replace(
            pack(rows, self.tokenizer.pad_token_id).to(ids.device), ids=ids,
            segment=torch.where(mask > 0, whose, NOBODY), position=place,
            weight=answers.float(), answers=answers.flatten().nonzero()[:, 0],
        )  # fmt: skip

    def _embedded(self, packed: Packed, pixels: Tensor | None) -> tuple[Tensor, Layout]:
        """What the LLM reads, (b, V + t, d_llm), and where it stands."""
        features = self._seen(pixels, len(packed.ids))
        return self.embedded(packed, features, self.encode_image(features, packed))

    def _seen(self, pixels: Tensor | None, prompts: int) -> Features | None:
        if not self.V:
            return None
        images = 0 if pixels is None else len(pixels)
        if images != prompts:
            raise InputError(f"{prompts} prompts and {images} images: give one image (pixel_values) a prompt")
        with torch.no_grad():
            return self.here(quick_tower(self.eyes())(pixels, **self.compressor.of_tower))


class VLMProcessor(ProcessorMixin):
    """Images and questions -> what `VLMForImageTextToText` reads; padded on the left."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pixels: int) -> None:
        super().__init__(tokenizer)
        self.pixels, self.chat_template = pixels, tokenizer.chat_template

    def __call__(self, images=None, text: str | list[str] | None = None, **_: object) -> BatchFeature:
        """Images (PIL's, or paths) and questions, one each -> input_ids, attention_mask, pixel_values.

        A text may be what `apply_chat_template` made; any other is put into the template here.
        """
        made: dict[str, Tensor] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            padded = self.tokenizer.pad({"input_ids": [self._ids(one) for one in texts]}, padding_side="left")
            made = {name: torch.tensor(padded[name]) for name in ("input_ids", "attention_mask")}
        if images is not None:
            images = images if isinstance(images, (list, tuple)) else [images]
            made["pixel_values"] = torch.from_numpy(np.stack([self._square(image) for image in images]))
        return BatchFeature(made)

    def _ids(self, text: str) -> list[int]:
        around = chat.frame(self.tokenizer)
        if around is not None and around.first and text.startswith(around.first):
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return chat.question_ids(self.tokenizer, [text])[0]

    def _square(self, image) -> np.ndarray:
        if isinstance(image, (str, Path)):
            return load_image(image, self.pixels)
        return squared(image, self.pixels)

    def apply_chat_template(self, conversation: list[dict], **options: object) -> str | list[int]:
        """As the tokenizer's; contents may be lists of parts, of which the texts are taken."""
        if not self.chat_template:
            return " ".join(_text(message["content"]) for message in conversation)
        talk = [{**message, "content": _text(message["content"])} for message in conversation]
        return self.tokenizer.apply_chat_template(talk, **{"tokenize": False, **options})

    def save_pretrained(self, folder: str | Path, **_: object) -> None:
        """Write the tokenizer; the size of an image is in the model's config.json."""
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **_: object) -> VLMProcessor:
        """The processor of a model that `VLM.save_pretrained` wrote; InputError where it is none."""
        config, tokenizer = io.read(VLMConfig, Path(folder))
        return cls(tokenizer, config.shape.pixels)


def _text(content: str | list[dict]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part.get("type") == "text")


AutoConfig.register(VLMConfig.model_type, VLMConfig)
AutoModel.register(VLMConfig, VLM)
AutoModelForImageTextToText.register(VLMConfig, VLMForImageTextToText)
AutoProcessor.register(VLMConfig, VLMProcessor)
