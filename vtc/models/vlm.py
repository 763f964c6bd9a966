"""The vision-language model: image features and a question -> answer.

    image -> tower (frozen) -> features (b, s, d) -> compressor, which may read the question
          -> projector -> visual tokens (b, V, d_llm) -> laid out with the text (`prompt`) -> LLM -> answer

Training and answering embed the same `Packed` prompt by the same call, `embedded`; `tests/test_vlm.py` holds
the two against each other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.configuration_utils import SubConfigSpec

from vtc import InputError, compressors
from vtc.compressors.base import Features, mlp2x
from vtc.models import generate, io
from vtc.models.chat import prefix_length, question_ids
from vtc.models.decode import columns
from vtc.models.llm import LEAN, empty_llm, plain_weights, precision, swap_norms
from vtc.models.prompt import SHARED, ImageSlot, Layout, Packed, block_mask, lay_out, one_a_row, without_last
from vtc.models.tower import Tower
from vtc.models.training_pass import hidden
from vtc.shapes import TowerShape

APART_FROM = 9  # with so many visual tokens of its own a question trains faster in a row of its own


class VLMConfig(PreTrainedConfig):
    """All that is needed to build the model again."""

    model_type = "vtc"
    sub_configs_defaults = {"llm": SubConfigSpec(AutoConfig, model_type="qwen2")}

    llm: dict | PreTrainedConfig | None = None
    tower: dict | None = None  # TowerShape
    grid: int = 1  # g
    compressor: str = "none"  # name in vtc.compressors
    tokens: int = 0  # V
    options: dict | None = None  # of the compressor
    span: int | None = None  # positions that the visual tokens of an image take up at most; None: one each
    attention: str = LEAN  # the LLM's, as transformers knows it; a checkpoint keeps its own

    def __post_init__(self, **more: object) -> None:
        if isinstance(self.llm, PreTrainedConfig):  # a copy: transformers resets what is nested here
            self.llm = self.llm.to_dict()
        super().__post_init__(**more)

    @property
    def shape(self) -> TowerShape | None:
        """The tower's, if the model has one."""
        return TowerShape(**self.tower) if self.tower else None


class VLM(PreTrainedModel):
    """Image features and a question -> answer; compressor, projector and LLM learn, the tower is frozen.

    Parts that are not given (llm, tower) are built from the configuration, untrained; without a tower the
    model answers about features alone.
    """

    config_class = VLMConfig

    def __init__(
        self,
        config: VLMConfig,
        llm: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerFast | None = None,
        tower: Tower | None = None,
    ):
        super().__init__(config)
        self.tokenizer, self.tower = tokenizer, tower
        self.prefix = prefix_length(tokenizer) if tokenizer is not None else 0  # tokens before the image
        self.llm = llm = empty_llm(config.llm, config.attention) if llm is None else llm
        config.attention = llm.config._attn_implementation
        width, options = llm.config.hidden_size, {**(config.options or {})}
        shape = config.shape
        d, d_levels = (shape.d, shape.d_levels) if shape else (1, 1)  # without a tower there is no image
        if config.tokens and compressors.find(config.compressor).fuses:
            options["llm_config"] = llm.config
        self.compressor = compressors.build(
            config.compressor, tokens=config.tokens, grid=config.grid, d=d, d_levels=d_levels,
            d_llm=width, d_question=width, **options,
        )  # fmt: skip
        if self.compressor.fuses:
            if config.attention == LEAN:
                swap_norms(self.compressor)
            self.compressor.start_from(llm.model.layers)
        inner = self.compressor.d_out
        self.projector = nn.Identity() if self.compressor.ends_at_llm else mlp2x(inner, width, width)
        self.post_init()

    def initialize_weights(self) -> None:
        """Nothing: every part comes initialised or trained."""

    def train(self, mode: bool = True) -> VLM:
        """As torch's; the tower stays frozen. The quick engine is dropped, for weights will change."""
        super().train(mode)
        if self.tower is not None:
            self.tower.eval()
        if mode:
            generate.forget(self.llm)
        return self

    def here(self, features: Features | None) -> Features | None:
        """Features on the model's device, in the compressor's precision; the LLM's may be another."""
        if features is None:
            return None
        weights = (w for part in (self.compressor, self.projector) for w in part.parameters())
        dtype = next((w.dtype for w in weights), None)
        return features.to(self.device).to(dtype)  # in this order: what is sent is the smaller one

    @property
    def V(self) -> int:
        """Visual tokens that enter the LLM for each image; cost class D drops some of them only inside."""
        return self.config.grid**2 if self.compressor.cost_class == "D" else self.compressor.tokens

    @property
    def N(self) -> int:
        """The LLM's parameters that every token meets: neither the embedding table nor the head."""
        ends = {
            id(part.weight) for part in (self.llm.get_input_embeddings(), self.llm.get_output_embeddings())
        }
        return sum(p.numel() for p in self.llm.parameters() if id(p) not in ends)

    @property
    def question_first(self) -> bool:
        """Whether the question, all but its last token ("?"), stands before the image."""
        return getattr(self.compressor, "question_source", None) == "prompt_prefix"

    @property
    def slot(self) -> ImageSlot:
        """Where visual tokens stand in the prompt."""
        steered, prefix = self.compressor.needs_question, 0 if self.question_first else self.prefix
        return ImageSlot(self.V, self.config.span, steered, self.question_first, prefix)

    def at(self, V: int) -> VLM:
        """The same weights (shared, not copied) giving another V; only for a compressor that is nested.

        V = 0: the LLM alone, without an image.
        """
        shape = {"grid": self.config.grid, "d": self.compressor.d}
        twin = copy.copy(self)
        there = self.compressor.at(V) if V else compressors.build("none", tokens=0, **shape)
        twin._modules = {**self._modules, "compressor": there}
        return twin

    # --- what the LLM reads ---

    def encode_image(
        self, features: Features, packed: Packed | None = None, reader: Callable | None = None
    ) -> Tensor:
        """Features (b, s, d) -> visual tokens in prompt order, (b, V, d_llm).

        Where m questions steer them, (b, m V, d_llm). `reader` gives the questions' vectors in place of
        `question_vectors`.
        """
        if not self.V:
            return torch.zeros(len(packed.ids), 0, self.llm.config.hidden_size, device=self.device)
        if self.compressor.needs_question:
            asked, mask = self.read(packed.questions, packed.lengths, reader)
            z = self.projector(self.compressor(features, asked.to(features.last), **mask))  # (b m, V, d_llm)
        else:
            z = self.projector(self.compressor(features))
        order = self.slot.on(z.device)[1]
        z = z if order is None else z[:, order]
        return z.reshape(len(features), -1, z.shape[-1])

    def read(self, questions: Tensor, lengths: Tensor, reader: Callable | None = None):
        """Token ids (b, m, q) -> what the compressor reads of them: vectors, or embeddings and a mask."""
        if self.compressor.question_source == "embeddings":
            real = torch.arange(questions.shape[-1], device=questions.device) < lengths[..., None]
            return self.llm.get_input_embeddings()(questions), {"mask": real}
        read = lengths - 1 if self.question_first else lengths  # all, or all but the last
        return (reader or self.question_vectors)(questions, read), {}

    @torch.no_grad()
    def question_vectors(self, questions: Tensor, lengths: Tensor) -> Tensor:
        """Token ids (b, m, q), padded on the right -> the hidden state at the last of them, (b, m, d_llm).

        A text-only pass through the same LLM, without gradient (arXiv 2411.03312, QueCC).
        """
        ids, lengths = questions.flatten(0, 1), lengths.flatten()
        real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        out = self.llm.base_model(input_ids=ids, attention_mask=real.long(), use_cache=False)
        last = (lengths - 1).clamp_min(0)[:, None]
        return columns(out.last_hidden_state, last).view(*questions.shape[:2], -1)

    def scene_in_words(self, scene_text: Tensor) -> tuple[Tensor, Tensor]:
        """A scene told in words (b, p, w) -> embeddings (b, p, d_llm) in the image's place, which are real.

        The words of one cell are added up, as a visual token holds all that is seen at one place.
        """
        word = scene_text != self.tokenizer.pad_token_id  # (b, p, w)
        return (self.llm.get_input_embeddings()(scene_text) * word[..., None]).sum(2), word.any(2)

    def embedded(
        self, packed: Packed, features: Features | None, before: Tensor, real: Tensor | None = None
    ) -> tuple[Tensor, Layout]:
        """A prompt and what stands before its text, (b, p, d_llm) -> embeddings (b, p + t, d_llm), layout.

        real (b, p): which places of a scene told in words are not padding.
        """
        if real is None:
            real = torch.ones(before.shape[:2], dtype=torch.bool, device=before.device)
        words, layout = self.llm.get_input_embeddings()(packed.ids), lay_out(packed, real, self.slot)
        if packed.scene_text is None and self.compressor.fuses:
            before, fused = self._fused(features, before, words, packed)
            answers = (packed.weight > 0).unsqueeze(-1)  # these go in as they are, as in decoding
            words = torch.where(answers, words.to(fused.dtype), fused)
        kind = precision(self.llm)
        return torch.cat([before.to(kind), words.to(kind)], 1), layout

    def _fused(self, features: Features, z: Tensor, text: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
        """Tokens (b, V, d_llm) and text (b, t, d_llm) -> both, after they have read the patches."""
        first = torch.arange(self.compressor.grid**2 + self.V, device=text.device).expand(len(text), -1)
        whose = torch.cat([torch.full_like(first, SHARED), packed.segment], 1)
        place = torch.cat([first, packed.position + first.shape[1]], 1)
        return self.compressor.fuse(features, z, text, block_mask(whose, place), place)

    # --- training ---

    def forward(self, packed: Packed, features: Features | None = None, V: int | None = None) -> Tensor:
        """Mean over answers of their tokens' mean cross-entropy; a scene in words may stand for the image.

        V: for this batch alone, see `at`.
        """
        packed, features = packed.to(self.device), self.here(features)
        model = self if V is None else self.at(int(V))
        weight, right = (x.flatten()[packed.answers] for x in (packed.weight, packed.ids))
        losses = F.cross_entropy(model.logits(packed, features), right, reduction="none")
        return (losses * weight).sum() / weight.sum()

    def logits(self, packed: Packed, features: Features | None = None) -> Tensor:
        """What every token of an answer could have been: (answer tokens, vocabulary), row by row."""
        if packed.scene_text is None:
            before, real = self.encode_image(features, packed), None
        else:
            before, real = self.scene_in_words(packed.scene_text)
        if quick := self._quick(packed):
            if self._apart(packed):
                packed, before = one_a_row(packed), before.view(-1, self.V, before.shape[-1])
            packed, read = without_last(packed)
        x, layout = self.embedded(packed, features, before, real)  # (b, p + t, d_llm)
        if quick:
            out = hidden(self.llm, x, layout, packed.ids.shape[1], read)  # (answer tokens, d_llm)
            return self.llm.get_output_embeddings()(out).float()
        out = self.llm.base_model(
            inputs_embeds=x, attention_mask=layout.mask(x.dtype), position_ids=layout.position_ids,
            use_cache=False,
        ).last_hidden_state  # (b, p + t, d_llm)  # fmt: skip
        # The token before a target predicts it; a question has a token or more, so that one is its own.
        t, n = packed.ids.shape[1], out.shape[1]
        row, column = packed.answers // t, packed.answers % t + n - t - 1
        return self.llm.get_output_embeddings()(out.flatten(0, 1)[row * n + column]).float()

    def _quick(self, packed: Packed) -> bool:
        """Whether `training_pass.hidden` computes what this LLM does, and is quicker."""
        config = self.llm.config
        return (
            packed.ids.device.type == "cpu"
            and config._attn_implementation == LEAN
            and config.num_key_value_heads == config.num_attention_heads
            and not self.compressor.fuses
            and not self.llm.base_model.gradient_checkpointing
            and plain_weights(self.llm) is not None
        )

    def _apart(self, packed: Packed) -> bool:
        """Whether each question gets a row of its own: no two share a token, and it is quicker."""
        steered = self.slot.steered and packed.scene_text is None and not self.prefix
        return steered and self.V >= APART_FROM

    # --- answering ---

    generate = generate.answers  # (features or images, questions, ...) -> greedy answers

    @torch.no_grad()
    def attention_map(self, features: Features, questions: list[str]) -> Tensor:
        """Where each visual token of one image looks as the question changes: (m, V, s), rows add up to 1."""
        features = self.here(features)
        if not self.compressor.needs_question:
            return self.compressor.attention_map(features).expand(len(questions), -1, -1)
        rows = []
        for question in questions:
            ids = torch.tensor(question_ids(self.tokenizer, [question]), device=self.device)[None]
            asked, mask = self.read(ids, torch.full_like(ids[..., 0], ids.shape[-1]))
            rows.append(self.compressor.attention_map(features, asked.to(features.last), **mask))  # (1, V, s)
        return torch.cat(rows)

    def eyes(self) -> Tower:
        """The tower, on the model's device; raises InputError where there is none."""
        if self.tower is None:
            raise InputError("model built on cached features: give it a tower to answer about pixels")
        return self.tower.to(self.device)

    # --- on the disk ---

    def save_pretrained(self, folder: str | Path, **_: object) -> None:
        """Write config.json, weights as safetensors and the tokenizer, whole or not at all; no pickles."""
        io.save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path, **_: object) -> VLM:
        """The model that `save_pretrained` wrote; raises InputError where the folder is not one."""
        return io.load(cls, Path(folder))


def text_model(llm: nn.Module, tokenizer: PreTrainedTokenizerFast) -> VLM:
    """The LLM alone, as a VLM without an image; a scene told in words stands in its place."""
    return VLM(VLMConfig(llm=llm.config.to_dict()), llm, tokenizer)
