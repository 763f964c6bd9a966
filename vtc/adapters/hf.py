"""`vtc.wrap`: any compressor of the zoo inside a vision-language model that people have (transformers).

::

    wrapped = vtc.wrap(model, "tokenpacker", tokens=16)
    inputs = processor(text=..., images=..., return_tensors="pt", padding=True)
    wrapped(**inputs, labels=labels).loss.backward()      # trains the compressor and the projector
    wrapped.generate(**inputs, max_new_tokens=20)
    wrapped.save_pretrained("added")                      # only what was added
    wrapped.model                                         # the model, as it was

The wrapper owns the placeholders: each run of the model's own image tokens shrinks to V of them, and labels
with it. V is for each image, or for each tile where the model cuts an image into tiles. Nothing of the model
is patched.
"""

from __future__ import annotations

import json
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vtc import InputError, compressors
from vtc.adapters.families import Encoded, Family, family_of
from vtc.compressors.base import Features, Official, fill
from vtc.files import replacing

TEXT = (
    "input_ids",
    "attention_mask",
    "labels",
    "mm_token_type_ids",
)  # of a processor's output; the rest is vision
CONFIG, WEIGHTS, ADAPTERS = "vtc_wrap.json", "added.safetensors", "peft"  # in the folder of what was added
IGNORED = -100  # label of a token that no loss is taken of


class Wrapped(nn.Module):
    """A vision-language model whose images enter its LLM as V tokens; see `wrap`."""

    def __init__(
        self, model: nn.Module, compressor: str, tokens: int, grid: int | None, options: dict
    ) -> None:
        super().__init__()
        inner = model.get_base_model() if _under_peft(model) else model
        self.model, self.family = model, family_of(inner, grid)
        self.given = {"compressor": compressor, "tokens": tokens, "grid": self.family.g, "options": options}
        self.compressor = _build(compressor, tokens, self.family, options)
        self.projector = nn.Identity() if self.compressor.ends_at_llm else self.family.projector()
        self.projector.requires_grad_(True)
        self.compressor.to(inner.get_input_embeddings().weight.device)

    @property
    def V(self) -> int:
        """Visual tokens of an image (of a tile, where the model tiles)."""
        return self.compressor.tokens

    def encode(self, **vision: Tensor) -> Encoded:
        """What the tower sees of these images, once for any number of questions; without gradient."""
        with torch.no_grad():
            return self.family.encode(**vision)

    def visual(self, encoded: Encoded, asked: dict[str, Tensor], rows: list[int]) -> tuple[list, list]:
        """Visual tokens of each image, (tiles V, d_llm), and those of the LLM's deeper layers.

        asked: what the compressor reads of the questions, a row a prompt. rows: the prompt of each tile.
        """
        kind = next((p.dtype for p in self.compressor.parameters()), encoded.features.last.dtype)
        question = {name: part[rows] for name, part in asked.items()}
        found = []
        for last in (encoded.features.last, *encoded.deep):
            tokens = self._tokens(Features(last=last, levels=encoded.features.levels).to(kind), question)
            found.append([image.flatten(0, 1) for image in tokens.split(encoded.tiles)])
        return found[0], found[1:]

    def _tokens(self, features: Features, question: dict[str, Tensor]) -> Tensor:
        tokens = self.compressor(features, **question)  # (tiles, V, d_out)
        return self.projector(tokens.to(self.family.model.get_input_embeddings().weight.dtype))

    def prepared(self, encoded: Encoded | None = None, **inputs: Tensor) -> dict[str, object]:
        """A processor's output -> what the model is called with: fewer placeholders, visual tokens in their
        place.

        encoded: images that were encoded before, in place of their pixels. Raises InputError where the
        prompts do not hold as many image tokens as the images have.
        """
        text = {name: value for name, value in inputs.items() if name in TEXT and name != "mm_token_type_ids"}
        vision = {name: value for name, value in inputs.items() if name not in TEXT}
        if encoded is None and vision:
            encoded = self.encode(**vision)
        ids = text["input_ids"]
        mask = text.get("attention_mask", torch.ones_like(ids))
        images, lengths = (0, []) if encoded is None else (len(encoded.tiles), encoded.lengths)
        after = [self.V * n for n in (encoded.tiles if encoded else [])]
        rows, owners = _shrunk(ids, mask, text.get("labels"), self.family.image_token, lengths, after)
        pad = getattr(self.family.config.get_text_config(), "pad_token_id", None) or 0
        made = _padded(rows, left=bool((mask[:, 0] == 0).any()), pad=pad)
        made |= self.family.beside(made["input_ids"], self.V, images)
        if encoded is None:
            return made
        of_tile = [owner for owner, n in zip(owners, encoded.tiles) for _ in range(n)]
        tokens, deep = self.visual(encoded, self._asked(ids, mask), of_tile)
        return made | {"mm_encoder_outputs": {"image": self.family.handed(tokens, deep, encoded.own)}}

    def _asked(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """What a steered compressor reads of each prompt's text: its last hidden state, or its embeddings."""
        if not self.compressor.needs_question:
            return {}
        texts = [row[(keep > 0) & (row != self.family.image_token)] for row, keep in zip(ids, mask)]
        real = nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in texts], batch_first=True)  # (b, q)
        words = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        embedded = self.family.model.get_input_embeddings()(words)  # (b, q, d_llm)
        if self.compressor.question_source == "embeddings":
            return {"question": embedded, "mask": real.bool()}
        with torch.no_grad():
            hidden = self.family.language_model(
                inputs_embeds=embedded,
                attention_mask=real,
                position_ids=(real.cumsum(1) - 1).clamp_min(0),
                use_cache=False,
            ).last_hidden_state
        return {"question": hidden[torch.arange(len(ids), device=ids.device), real.sum(1) - 1]}

    def forward(self, encoded: Encoded | None = None, **inputs: Tensor):
        """As the model's own forward, on a processor's output."""
        extra = {k: v for k, v in inputs.items() if not isinstance(v, Tensor)}
        given = {k: v for k, v in inputs.items() if isinstance(v, Tensor)}
        return self.model(**self.prepared(encoded, **given), **extra)

    @torch.no_grad()
    def generate(self, encoded: Encoded | None = None, **inputs) -> Tensor:
        """As the model's own generate; tensors are a processor's output, all else options -> token ids.

        The prompts come back as they were given, with the model's own image tokens, and the answers behind.
        """
        options = {k: v for k, v in inputs.items() if not isinstance(v, Tensor)}
        given = {k: v for k, v in inputs.items() if isinstance(v, Tensor)}
        ready = self.prepared(encoded, **given)
        said = self.model.generate(**ready, **options)
        if not isinstance(said, Tensor):  # return_dict_in_generate
            return said
        prompts = given["input_ids"].repeat_interleave(len(said) // len(given["input_ids"]), 0)
        return torch.cat([prompts, said[:, ready["input_ids"].shape[1] :]], 1)

    def trainable(self) -> list[nn.Parameter]:
        """What learns: the compressor, the projector where one follows it, and peft's adapters."""
        own = [*self.compressor.parameters(), *self.projector.parameters()]
        return own + [p for p in self.model.parameters() if p.requires_grad and _under_peft(self.model)]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `trainable` may change, as safetensors, and how it was built; nothing of the model."""
        weights = {name: v.contiguous() for name, v in self._added().state_dict().items()}
        given = self.given | {"model_type": self.family.config.model_type, "peft": _under_peft(self.model)}
        with replacing(folder) as part:
            part.mkdir()
            save_file(weights, part / WEIGHTS)
            (part / CONFIG).write_text(json.dumps(given))
            if given["peft"]:
                self.model.save_pretrained(part / ADAPTERS, save_embedding_layers=False)

    def load_official(self, file: str | Path) -> None:
        """Weights of an official release (QueCC, TokenPacker, ...): its projector file, .bin or safetensors.

        QueCC's holds LLaVA's projector, too. Raises InputError where the file does not fit.
        """
        state = _released(Path(file))
        if not hasattr(self.compressor, "load_official"):
            raise InputError(f"{self.given['compressor']} has no official release that is known here")
        self.compressor.load_official(state)
        released = Official(state, "LLaVA's projector")
        if hasattr(self.projector, "linear_1") and "1.weight" in released:
            fill(self.projector.linear_1, released.linear("1"))
            fill(self.projector.linear_2, released.linear("3"))

    def _added(self) -> nn.ModuleDict:
        return nn.ModuleDict({"compressor": self.compressor, "projector": self.projector})


def wrap(
    model: nn.Module, compressor: str = "tokenpacker", *, tokens: int, grid: int | None = None, **options
) -> Wrapped:
    """Put a class-A compressor of the zoo between a model's images and its LLM; V = `tokens`.

    model: LLaVA-1.5, LLaVA-NeXT, SmolVLM, Idefics3, Qwen2-VL or Qwen3-VL of transformers, also under peft.
    grid: side of the grid that the compressor reads (default: the model's own; Qwen's images are brought to
    24 x 24). options: the compressor's own. Raises InputError for a model or a compressor that does not fit.
    """
    return Wrapped(model, compressor, tokens, grid, options)


def load(model: nn.Module, folder: str | Path) -> Wrapped:
    """A model with what `Wrapped.save_pretrained` wrote; give it without adapters of its own.

    Raises InputError where the folder is not one, or was saved for another model.
    """
    folder, kind = Path(folder), model.config.model_type
    try:
        given = json.loads((folder / CONFIG).read_text())
        weights = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        found = str(error).splitlines()[0]
        raise InputError(
            f"{folder}: nothing that vtc.wrap saved ({found}); expected {CONFIG}, {WEIGHTS}"
        ) from None
    if given["model_type"] != kind:
        raise InputError(f"{folder} was saved for a {given['model_type']}, this is a {kind}")
    if given["peft"]:
        model = _with_adapters(model, folder / ADAPTERS)
    wrapped = wrap(model, given["compressor"], tokens=given["tokens"], grid=given["grid"], **given["options"])
    try:
        wrapped._added().load_state_dict(weights)
    except RuntimeError as error:
        found = str(error).splitlines()[1].strip()
        raise InputError(f"{folder} was saved for a {kind} of another size ({found})") from None
    return wrapped


def _released(file: Path) -> dict[str, Tensor]:
    """Tensors by name; of a pickle (.bin) nothing but tensors is read."""
    try:
        if file.suffix == ".bin":
            return torch.load(file, map_location="cpu", weights_only=True)
        return load_file(file)
    except (OSError, UnpicklingError, RuntimeError, SafetensorError) as error:
        found = str(error).strip().splitlines()[0]
        raise InputError(f"{file}: no weights ({found}); expected a release's .bin or safetensors") from None


def _under_peft(model: nn.Module) -> bool:
    return hasattr(model, "get_base_model")


def _with_adapters(model: nn.Module, folder: Path) -> nn.Module:
    try:
        from peft import PeftModel
    except ImportError:
        raise InputError(f"{folder} holds LoRA weights: pip install peft") from None
    if _under_peft(model):
        raise InputError(f"{folder} holds LoRA weights: give load the model without adapters")
    return PeftModel.from_pretrained(model, folder, is_trainable=True)


def _build(name: str, tokens: int, family: Family, options: dict) -> nn.Module:
    cls = compressors.find(name)
    reads_tower = cls.needs_attention or cls.needs_keys or cls.shrinks_image
    if cls.cost_class != "A" or reads_tower or tokens < 1:
        raise InputError(
            f"{name} at {tokens} tokens cannot be wrapped: choose one that makes V >= 1 tokens of features"
        )
    built = compressors.build(
        name, tokens=tokens, grid=family.g, d=family.d, d_levels=family.d_levels, d_llm=family.d_llm,
        d_question=family.d_llm, **options,
    )  # fmt: skip
    if built.needs_question and built.question_source == "prompt_prefix":
        raise InputError(
            f"{name} wants the question before the image, which these models put first: use quecc"
        )
    return built


def _shrunk(
    ids: Tensor, mask: Tensor, labels: Tensor | None, image_token: int, lengths: list[int], after: list[int]
) -> tuple[list[dict[str, Tensor]], list[int]]:
    """Prompts whose images take up `after` tokens in place of `lengths` -> rows without padding, owner of
    each image.
    """
    rows, owners = [], []
    for b, (row, keep) in enumerate(zip(ids, mask)):
        places = keep.nonzero()[:, 0].tolist()
        kept, at = [], 0
        while at < len(places):
            if row[places[at]] != image_token:
                kept.append(places[at])
                at += 1
                continue
            i = len(owners)
            run = places[at : at + lengths[i]] if i < len(lengths) else []
            if not run or len(run) < lengths[i] or not (row[run] == image_token).all():
                raise InputError(
                    f"prompt {b} holds image tokens that fit no image: {len(lengths)} images of {lengths} "
                    "tokens were given; make prompts and pixels with the model's own processor"
                )
            kept += [run[0]] * after[i]
            owners.append(b)
            at += lengths[i]
        index = torch.tensor(kept, device=ids.device, dtype=torch.long)
        rows.append({"input_ids": row[index], "attention_mask": torch.ones_like(index)})
        if labels is not None:
            rows[-1]["labels"] = labels[b][index]
    if len(owners) != len(lengths):
        raise InputError(f"{len(lengths)} images were given, the prompts have places for {len(owners)}")
    return rows, owners


def _padded(rows: list[dict[str, Tensor]], left: bool, pad: int) -> dict[str, Tensor]:
    """Rows of unequal length -> tensors (b, t), padded on the side on which they came."""
    fill = {"input_ids": pad, "attention_mask": 0, "labels": IGNORED}
    side = "left" if left else "right"
    return {
        name: nn.utils.rnn.pad_sequence(
            [row[name] for row in rows], batch_first=True, padding_value=fill[name], padding_side=side
        )
        for name in rows[0]
    }
