"""The vision-language model: visual tokens' place in the prompt, what the LLM learns from, how it answers.

Visual tokens come first, the question after them, as in LLaVA. Several questions about an image are packed in
one sequence behind one set of visual tokens; a block mask keeps them from seeing each other, and their
positions restart, so each is answered as if it had been asked alone (`tests/test_vlm.py` holds the two
against each other).
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from vtc import InputError, compressors
from vtc.compressors.base import Features, mlp2x
from vtc.models import answer
from vtc.models.llm import swap_norms
from vtc.models.prompt import NOBODY, SHARED, Packed, block_mask
from vtc.models.tower import Tower, load_checkpoint
from vtc.shapes import TowerShape


@dataclass(frozen=True)
class VLMConfig:
    """All that is needed to build the model again."""

    llm: dict  # transformers' configuration
    tower: dict  # TowerShape
    grid: int  # g
    compressor: str  # name in vtc.compressors
    tokens: int  # V
    options: dict = field(default_factory=dict)  # of the compressor
    span: int | None = None  # positions that the visual tokens of an image take up at most; None: one each


class VLM(nn.Module):
    """Image features and a question -> answer; compressor, projector and LLM learn, the tower is frozen."""

    def __init__(
        self,
        config: VLMConfig,
        llm: nn.Module,
        tokenizer: PreTrainedTokenizerFast,
        tower: Tower | None = None,
    ):
        super().__init__()
        self.config, self.tokenizer, self.llm = config, tokenizer, llm
        shape, width = TowerShape.saved(config.tower, config.grid), llm.config.hidden_size
        options = {**config.options}
        if config.tokens and compressors.find(config.compressor).fuses:
            options["llm_config"] = llm.config
        self.compressor = compressors.build(
            config.compressor, tokens=config.tokens, grid=config.grid, d=shape.d,
            d_levels=shape.d_levels, d_llm=width, d_question=width, **options,
        )  # fmt: skip
        if self.compressor.fuses:
            swap_norms(self.compressor).start_from(llm.model.layers)
        inner = self.compressor.d_out
        self.projector = nn.Identity() if self.compressor.ends_at_llm else mlp2x(inner, width, width)
        self.tower = [tower]  # in a list: frozen, and saved apart, so not among the parameters

    @property
    def device(self) -> torch.device:
        """Where the model is; what it is given is moved there."""
        return self.llm.get_input_embeddings().weight.device

    def here(self, features: Features | None) -> Features | None:
        """Features on the model's device, in the compressor's precision; the LLM's may be another."""
        if features is None:
            return None
        weights = (w for part in (self.compressor, self.projector) for w in part.parameters())
        return features.to(self.device, next((w.dtype for w in weights), None))

    @property
    def V(self) -> int:
        """Visual tokens that enter the LLM for each image; cost class D drops some of them only inside."""
        return self.config.grid**2 if self.compressor.cost_class == "D" else self.compressor.tokens

    def places(self, order: Tensor) -> Tensor:
        """Positions of visual tokens of that order: one apart or, if more than `span`, block by block.

        The grid of tokens is then read as `span` square blocks, one position each; tokens of a block share it
        out row by row. So neighbours of two rows stand close, as the places of a scene told in words do.
        """
        place, n, blocks = order % max(self.V, 1), math.isqrt(self.V), math.isqrt(self.after)
        if self.after == self.V:
            return place
        if n * n != self.V:
            return place * (self.after / self.V)
        y, x = place // n * (blocks / n), place % n * (blocks / n)  # in blocks
        return y.floor() * blocks + x.floor() + y % 1 + x % 1 * (blocks / n)

    @property
    def after(self) -> int:
        """The position that follows the visual tokens."""
        return min(self.V, self.config.span or self.V)

    @property
    def question_first(self) -> bool:
        """Whether the question, all but its last token ("?"), stands before the image."""
        return getattr(self.compressor, "question_source", None) == "prompt_prefix"

    def visual(self, features: Features, questions: Tensor | None = None) -> Tensor:
        """Features (b, s, d) -> visual tokens (b, V, d_llm), or (b, m V, d_llm) where questions steer them.

        questions: token ids (b, m, q), padded on the right.
        """
        if not self.compressor.needs_question:
            return self.unasked(features)[0]
        asked, mask = self.read(questions)
        return self.steered(features, asked, **mask)

    def unasked(self, features: Features) -> tuple[Tensor, Tensor]:
        """Visual tokens (b, V, d_llm) without a question, and which are real, (b, V): others are padding."""
        tokens, real = self.compressor.with_mask(features)
        return self.projector(tokens), real

    def read(self, questions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Token ids (b, m, q) -> what the compressor reads of them: vectors, or embeddings and a mask."""
        real = questions != self.tokenizer.pad_token_id
        if self.compressor.question_source == "embeddings":
            return self.llm.get_input_embeddings()(questions), {"mask": real}
        if self.question_first:
            real = F.pad(real[..., 1:], (0, 1))  # all but the last
        return self.question_vectors(questions, real), {}

    @torch.no_grad()
    def where(self, features: Features, questions: list[str]) -> Tensor:
        """Where each visual token of one image looks as the question changes: (m, V, s), rows add up to 1."""
        ids = self.tokenizer(questions, padding=True, padding_side="right", return_tensors="pt")["input_ids"]
        features = self.here(features)
        if not self.compressor.needs_question:
            return self.compressor.where(features).expand(len(questions), -1, -1)
        rows = []
        for one in ids.to(self.device):
            asked, mask = self.read(one[None, None])
            rows.append(self.compressor.where(features, asked.to(features.last), **mask))  # (1, V, s)
        return torch.cat(rows)

    def steered(self, features: Features, asked: Tensor, **mask: Tensor) -> Tensor:
        """Visual tokens (b, m V, d_llm), given what the compressor reads of m questions an image."""
        z = self.projector(self.compressor(features, asked.to(features.last), **mask))  # (b m, V, d_llm)
        return z.view(len(asked), -1, z.shape[-1])

    @torch.no_grad()
    def question_vectors(self, questions: Tensor, real: Tensor) -> Tensor:
        """Token ids, and which are real, (b, m, q) -> its last hidden state at the last, (b, m, d_llm).

        A text-only pass through the same LLM, without gradient (arXiv 2411.03312, QueCC).
        """
        ids, real = questions.flatten(0, 1), real.flatten(0, 1)
        hidden = self.llm.model(input_ids=ids, attention_mask=real.long(), use_cache=False).last_hidden_state
        last = (real.sum(1) - 1).clamp_min(0)
        return hidden[torch.arange(len(ids)), last].view(*questions.shape[:2], -1)

    def at(self, V: int) -> VLM:
        """The same weights (shared, not copied) giving another V; only for a compressor that is nested."""
        twin = copy.copy(self)
        twin._modules = {**self._modules, "compressor": self.compressor.at(V)}
        return twin

    def forward(self, packed: Packed, features: Features | None = None, V: Tensor | None = None) -> Tensor:
        """Mean over answers of their tokens' mean cross-entropy; a scene in words may stand for the image.

        V: for this batch alone, see `at`.
        """
        packed, features = packed.to(self.device), self.here(features)
        weight, model = packed.weight[:, 1:], self if V is None else self.at(int(V))
        said = weight > 0
        losses = F.cross_entropy(model.logits(packed, features), packed.ids[:, 1:][said], reduction="none")
        return (losses * weight[said]).sum() / weight.sum()

    def logits(self, packed: Packed, features: Features | None = None) -> Tensor:
        """What every token of an answer could have been: (answer tokens, vocabulary), row by row."""
        embed = self.llm.get_input_embeddings()
        before, whose, place, text = (
            self._seen(packed, features) if packed.prefix is None else self._told(packed)
        )
        kind, words = _precision(embed.weight), embed(packed.ids)
        if packed.prefix is None and self.compressor.fuses:
            before, fused = self.fused(features, before, words, packed.segment, packed.position)
            answers = (packed.weight > 0).unsqueeze(-1)  # these go in as they are, as in decoding
            words = torch.where(answers, words.to(fused.dtype), fused)
        x = torch.cat([before.to(kind), words.to(kind)], 1)  # (b, p + t, d_llm)
        position = torch.cat([place, text], 1)
        mask = block_mask(torch.cat([whose, packed.segment], 1), position).to(kind)
        out = self.llm.model(
            inputs_embeds=x, attention_mask=mask, position_ids=position, use_cache=False
        ).last_hidden_state  # (b, p + t, d_llm)
        # The token before a target predicts it; a question has a token or more, so that one is its own.
        before_answers = out[:, -packed.ids.shape[1] : -1][packed.weight[:, 1:] > 0]
        return self.llm.lm_head(before_answers).float()

    def _told(self, packed: Packed) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What stands before the text, whose it is, its positions and the text's: a scene told in words."""
        # The words of one cell are added up, as a visual token holds all that is seen at one place.
        word = packed.prefix != self.tokenizer.pad_token_id  # (b, p, 2)
        before = (self.llm.get_input_embeddings()(packed.prefix) * word[..., None]).sum(2)  # (b, p, d_llm)
        whose = torch.where(word.any(2), SHARED, NOBODY)
        place = torch.arange(before.shape[1], device=before.device).expand(len(before), -1)
        return before, whose, place, packed.position + (whose == SHARED).sum(1, keepdim=True)

    def _seen(self, packed: Packed, features: Features) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same of an image: its visual tokens, or one set of them for each question."""
        steered = self.compressor.needs_question
        before, real = (self.visual(features, packed.questions), None) if steered else self.unasked(features)
        order = torch.arange(before.shape[1], device=before.device).expand(len(before), -1)  # (b, p)
        place, text = self.places(order), packed.position
        if not steered:
            return before, torch.where(real, SHARED, NOBODY), place, text + self.after
        whose = order // max(self.V, 1)
        if not self.question_first:
            return before, whose, place, text + self.after
        asked = (packed.questions != self.tokenizer.pad_token_id).sum(-1).sub(1).clamp_min(0)  # (b, m)
        later = text >= asked.gather(1, packed.segment.clamp_min(0))  # (b, t) behind the image
        return before, whose, place + asked.gather(1, whose), text + later * self.after

    def fused(self, features: Features, z: Tensor, text: Tensor, segment: Tensor, position: Tensor):
        """Tokens (b, V, d_llm), text (b, t, d_llm), whose it is and where -> both, after the patches."""
        first = torch.arange(self.compressor.grid**2 + self.V, device=text.device).expand(len(text), -1)
        whose = torch.cat([torch.full_like(first, SHARED), segment], 1)
        place = torch.cat([first, position + first.shape[1]], 1)
        return self.compressor.fuse(features, z, text, block_mask(whose, place), place)

    @torch.no_grad()
    def generate(
        self,
        features: Features | Tensor | None,
        questions: list[str] | list[list[str]],
        max_new_tokens: int = 10,
        misled: list[str] | None = None,
    ) -> list[str] | list[list[str]]:
        """Greedy answers, to one question an image or to several, which share what does not depend on them.

        Features (b, s, d), or images (b, pixels, pixels, 3) in uint8; b questions or b lists of questions.
        misled: a control; the compressor reads these b questions, the LLM the others.
        """
        return answer.answers(self, features, questions, max_new_tokens, misled)

    def eyes(self) -> Tower:
        """The tower; raises InputError where there is none."""
        if self.tower[0] is None:
            raise InputError(
                "this model was built on cached features: give it a tower to answer about pixels"
            )
        return self.tower[0]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, weights as safetensors and the tokenizer; no pickles."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {
            k: v.contiguous()
            for k, v in self.state_dict().items()
            if k != "llm.lm_head.weight" or not self._tied
        }
        tower = self.tower[0]
        if tower is not None and not tower.shape.checkpoint:
            weights |= {f"tower.{k}": v for k, v in tower.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=1))
        self.tokenizer.save_pretrained(folder)

    @property
    def _tied(self) -> bool:
        return bool(self.llm.config.tie_word_embeddings)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VLM:
        """The model that `save_pretrained` wrote; raises InputError where the folder is not one."""
        folder = Path(folder)
        try:
            config = VLMConfig(**json.loads((folder / "config.json").read_text()))
            weights = load_file(folder / "model.safetensors")
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        except (OSError, TypeError, ValueError, SafetensorError) as e:
            found = str(e).splitlines()[0]
            raise InputError(
                f"{folder}: no saved model ({found}); expected config.json, model.safetensors, tokenizer.json"
            ) from None
        llm = swap_norms(
            AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**config.llm), attn_implementation="written_out"
            )
        )
        model, shape = cls(config, llm, tokenizer), TowerShape.saved(config.tower, config.grid)
        inside = {k.removeprefix("tower."): v for k, v in weights.items() if k.startswith("tower.")}
        outside = {k: v for k, v in weights.items() if not k.startswith("tower.")}
        missing = model.load_state_dict(outside, strict=False).missing_keys
        if shape.checkpoint:
            model.tower[0] = load_checkpoint(shape.checkpoint, shape.levels)
        elif inside:
            tower = model.tower[0] = Tower(shape).eval().requires_grad_(False)
            missing += tower.load_state_dict(inside, strict=False).missing_keys
        for name in missing:
            if name != "llm.lm_head.weight" or not model._tied:
                raise InputError(f"{folder}: model.safetensors has no {name}; save the model again")
        llm.tie_weights()
        return model.eval()


def _precision(weight: Tensor) -> torch.dtype:
    """What matrices are multiplied in here: autocast's type inside autocast, else the weights' own."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
