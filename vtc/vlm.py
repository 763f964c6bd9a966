"""The vision-language model: where visual tokens stand in the prompt, what the LLM learns from, how it
answers.

The LLM is transformers' Qwen2 (the architecture of Qwen1.5, which the paper uses) from tiny to real sizes.
Visual
tokens come first, the question after them, as in LLaVA. Several questions about an image are packed in one
sequence
behind one set of visual tokens; a block mask keeps them from seeing each other, and their positions restart,
so each
is answered as if it had been asked alone (`tests/test_vlm.py` holds the two against each other).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.masking_utils import eager_mask

from vtc import InputError, compressors, data
from vtc.compressors.base import Features, mlp2x
from vtc.profiles import LLMSize, TowerSize
from vtc.tower import Tower, load_checkpoint

PAD, UNKNOWN, END = "<pad>", "<unk>", "<end>"
SHARED, NOBODY = -1, -2  # segments: a token that every question sees; padding that none sees


def make_tokenizer(words: tuple[str, ...] = data.WORDS) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: one token a word, split at spaces; unknown words become one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {w: i for i, w in enumerate(dict.fromkeys((PAD, UNKNOWN, END, *words)))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=PAD, unk_token=UNKNOWN, eos_token=END)


def written_out(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **_: object
):
    """Attention as three products, softmax in the products' own precision: (b, heads, t, d_head) -> (b, t,
    heads, d_head).

    On a CPU the fused attention's backward pass takes three to five times as long (heads 16 to 64 wide, 116
    tokens),
    and transformers' own "eager" a sixth of a whole training step more, for its softmax in float32.
    """
    weights = (q * scaling) @ k.transpose(2, 3)  # (b, heads, t, t)
    if mask is not None:
        weights = weights + mask.clamp_min(-1e4).to(weights.dtype)  # an all-masked row (padding) stays finite
    return (weights.softmax(-1) @ v).transpose(1, 2), None


AttentionInterface.register("written_out", written_out)
AttentionMaskInterface.register("written_out", eager_mask)


def make_llm(size: LLMSize, vocabulary: int) -> Qwen2ForCausalLM:
    """The LLM of that size: its checkpoint's weights, or fresh ones with attention written out."""
    if size.checkpoint:
        try:
            return AutoModelForCausalLM.from_pretrained(size.checkpoint, attn_implementation="sdpa")
        except OSError as e:
            problem = str(e).splitlines()[0]
            raise InputError(
                f"LLM {size.checkpoint!r} could not be loaded ({problem}); give a hub id or folder"
            ) from None
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=size.d, intermediate_size=size.d_ff, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.heads, tie_word_embeddings=True,
        max_position_embeddings=4096, initializer_range=size.d**-0.5, pad_token_id=0, eos_token_id=2,
        bos_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    config._attn_implementation = "written_out"
    return swap_norms(Qwen2ForCausalLM(config))


def swap_norms(llm: nn.Module) -> nn.Module:
    """Put torch's own RMSNorm, same weights and same mathematics, where transformers writes it out in five
    steps."""
    for parent in list(llm.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ == "Qwen2RMSNorm":
                norm = nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return llm


@dataclass(frozen=True)
class Packed:
    """A batch of sequences, each several questions with their answers about one image."""

    ids: Tensor  # (b, t) token ids
    segment: Tensor  # (b, t) which question a token belongs to; NOBODY for padding
    position: Tensor  # (b, t) place within its own question
    weight: Tensor  # (b, t) above 0 where a token is part of an answer; the weights of one answer add up to 1
    questions: Tensor | None = (
        None  # (b, m, q) the questions alone, padded on the right; for steered compressors
    )
    prefix: Tensor | None = (
        None  # (b, p, 2) a scene told in words, in the image's place: one or two words a place
    )

    def to(self, device: torch.device | str) -> Packed:
        return Packed(*(v if v is None else v.to(device) for v in self.__dict__.values()))


@dataclass(frozen=True)
class VLMConfig:
    """All that is needed to build the model again."""

    llm: dict  # transformers' configuration
    tower: dict  # TowerSize
    grid: int  # g
    compressor: str  # name in vtc.compressors
    tokens: int  # V
    options: dict = field(default_factory=dict)  # of the compressor


class VLM(nn.Module):
    """Features of an image and a question -> answer; compressor, projector and LLM learn, the tower is
    frozen."""

    def __init__(
        self,
        config: VLMConfig,
        llm: nn.Module,
        tokenizer: PreTrainedTokenizerFast,
        tower: Tower | None = None,
    ):
        super().__init__()
        self.config, self.tokenizer, self.llm = config, tokenizer, llm
        size, width = TowerSize(**config.tower), llm.config.hidden_size
        self.compressor = compressors.build(
            config.compressor, tokens=config.tokens, grid=config.grid, d=size.d,
            d_levels=size.d * len(size.levels), d_llm=width, d_question=width, **config.options,
        )  # fmt: skip
        inner = self.compressor.d_out
        self.projector = nn.Identity() if self.compressor.ends_at_llm else mlp2x(inner, width, width)
        self.tower = [tower]  # in a list: frozen, and saved apart, so not among the parameters

    @property
    def V(self) -> int:
        """Visual tokens that enter the LLM for each image."""
        return self.compressor.tokens

    def visual(self, features: Features, questions: Tensor | None = None) -> Tensor:
        """Features (b, s, d) and questions (b, m, q) of token ids -> visual tokens (b, V, d_llm), or (b, m*V,
        d_llm)
        where the compressor is steered by the question."""
        if not self.compressor.needs_question:
            return self.projector(self.compressor(features))
        b, m, _ = questions.shape
        z = self.projector(self.compressor(features, self.question_vectors(questions)))  # (b*m, V, d_llm)
        return z.view(b, m * self.V, -1)

    @torch.no_grad()
    def question_vectors(self, questions: Tensor) -> Tensor:
        """Token ids (b, m, q), padded on the right -> the LLM's last hidden state of each one's last token
        (b, m, d_llm).

        A text-only pass through the same LLM, without gradient (arXiv 2411.03312, QueCC).
        """
        b, m, q = questions.shape
        ids = questions.view(b * m, q)
        real = ids != self.tokenizer.pad_token_id
        hidden = self.llm.model(input_ids=ids, attention_mask=real.long(), use_cache=False).last_hidden_state
        last = (real.sum(1) - 1).clamp_min(0)
        return hidden[torch.arange(b * m), last].view(b, m, -1)

    def forward(self, packed: Packed, features: Features | None = None) -> Tensor:
        """Mean over answers of their tokens' mean cross-entropy; the image's place is taken by
        `packed.prefix` where
        there is one."""
        embed = self.llm.get_input_embeddings()
        b = len(packed.ids)
        if packed.prefix is not None:
            # The words of one cell are added up, as a visual token holds all that is seen at one place.
            word = packed.prefix != self.tokenizer.pad_token_id  # (b, p, 2)
            before = (embed(packed.prefix) * word[..., None]).sum(2)  # (b, p, d_llm)
            whose = torch.where(word.any(2), SHARED, NOBODY)
            place = torch.arange(before.shape[1]).expand(b, -1)
            offset = (whose == SHARED).sum(1, keepdim=True)
        else:
            before = self.visual(features, packed.questions)  # (b, p, d_llm)
            order = torch.arange(before.shape[1])
            steered = self.compressor.needs_question
            whose = (order // max(self.V, 1) if steered else torch.full_like(order, SHARED)).expand(b, -1)
            place = (order % max(self.V, 1)).expand(b, -1)
            offset = self.V
        x = torch.cat([before.to(embed.weight.dtype), embed(packed.ids)], 1)  # (b, p + t, d_llm)
        segment = torch.cat([whose.to(x.device), packed.segment], 1)
        position = torch.cat([place.to(x.device), packed.position + offset], 1)
        out = self.llm.model(
            inputs_embeds=x, attention_mask=block_mask(segment), position_ids=position, use_cache=False
        ).last_hidden_state  # (b, p + t, d_llm)
        # The token before a target predicts it; a question has at least one token, so it is of the same
        # question.
        t = packed.ids.shape[1]
        weight = packed.weight[:, 1:]
        said = weight > 0
        logits = self.llm.lm_head(out[:, -t:][:, :-1][said]).float()  # (answer tokens, vocabulary)
        losses = F.cross_entropy(logits, packed.ids[:, 1:][said], reduction="none")
        return (losses * weight[said]).sum() / weight.sum()

    @torch.no_grad()
    def generate(
        self, features: Features | Tensor | None, questions: list[str], max_new_tokens: int = 10
    ) -> list[str]:
        """Greedy answers, one question an image: features (b, s, d), or images (b, pixels, pixels, 3)
        uint8."""
        if isinstance(features, Tensor):
            features = self._tower()(features)
        tokenizer, embed = self.tokenizer, self.llm.get_input_embeddings()
        device = embed.weight.device
        asked = tokenizer(questions, padding=True, padding_side="left", return_tensors="pt")
        ids, real = asked["input_ids"].to(device), asked["attention_mask"].to(device)
        x = embed(ids)
        if self.V:
            alone = tokenizer(questions, padding=True, padding_side="right", return_tensors="pt")["input_ids"]
            before = self.visual(features, alone.to(device)[:, None])  # (b, V, d_llm)
            # Padding goes in front of the visual tokens, so that positions are those of training.
            pad = (real == 0).sum(1)
            x = torch.cat([before.to(x.dtype), x], 1)
            real = torch.cat([torch.ones(len(x), self.V, dtype=real.dtype, device=device), real], 1)
            order = torch.arange(x.shape[1], device=device)
            shift = pad[:, None]  # [visual, pad, question] -> [pad, visual, question]
            source = torch.where(
                order < shift, order + self.V, torch.where(order < shift + self.V, order - shift, order)
            )
            x = x.gather(1, source[..., None].expand_as(x))
            real = real.gather(1, source)
        out = self.llm.generate(
            inputs_embeds=x, attention_mask=real, max_new_tokens=max_new_tokens, do_sample=False,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        return [text.strip() for text in tokenizer.batch_decode(out, skip_special_tokens=True)]

    def _tower(self) -> Tower:
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
        if tower is not None and not tower.size.checkpoint:
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
        except (OSError, TypeError, ValueError) as e:
            found = str(e).splitlines()[0]
            raise InputError(
                f"{folder}: no saved model ({found}); expected config.json and model.safetensors"
            ) from None
        llm = swap_norms(
            AutoModelForCausalLM.from_config(
                AutoConfig.for_model(**config.llm), attn_implementation="written_out"
            )
        )
        size = TowerSize(**{**config.tower, "levels": tuple(config.tower["levels"])})
        tower = (
            load_checkpoint(size.checkpoint, size.levels)
            if size.checkpoint
            else Tower(size, config.grid * size.patch)
        )
        inside = {k.removeprefix("tower."): v for k, v in weights.items() if k.startswith("tower.")}
        if inside:
            tower.load_state_dict(inside)
        model = cls(
            config, llm, PreTrainedTokenizerFast.from_pretrained(folder), tower.eval().requires_grad_(False)
        )
        model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("tower.")}, strict=False)
        llm.tie_weights()
        return model.eval()


def block_mask(segment: Tensor) -> Tensor:
    """Segments (b, t) -> additive mask (b, 1, t, t): a token sees itself, what stands before it in its own
    question,
    and what all may see (SHARED)."""
    t = segment.shape[1]
    mine, theirs = segment[:, :, None], segment[:, None, :]
    earlier = torch.ones(t, t, dtype=torch.bool, device=segment.device).tril()
    allow = ((mine == theirs) | (theirs == SHARED)) & earlier & (theirs != NOBODY)
    allow |= torch.eye(t, dtype=torch.bool, device=segment.device)  # padding sees itself, so no row is empty
    return torch.where(allow, 0.0, -1e4)[:, None]
