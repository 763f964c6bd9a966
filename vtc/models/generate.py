"""A model's greedy answers: questions about images -> text; what no question changes is done once an image.

questions -> token ids -> rows (`prompt`) -> embedded with their images' visual tokens (`vlm.embedded`)
          -> an engine, the quick one (`runner`) or transformers' (`decode.Plain`) -> tokens -> text
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vtc import InputError
from vtc.compressors.base import Features
from vtc.models.chat import question_ids
from vtc.models.decode import Engine, Plain
from vtc.models.kernels import quicken
from vtc.models.llm import plain_weights, precision
from vtc.models.prompt import NOBODY, Layout, Packed, asked, lay_out, pack
from vtc.models.runner import Runner
from vtc.models.tower import Tower

if TYPE_CHECKING:
    from vtc.models.vlm import VLM


@torch.no_grad()
def answers(
    model: VLM,
    features: Features | Tensor | None,
    questions: list[str] | list[list[str]],
    max_new_tokens: int = 10,
    shuffled: list[str] | None = None,
    conversation: bool = False,
) -> list[str] | list[list[str]]:
    """Greedy answers, to one question an image or to several, which share what does not depend on them.

    This is `VLM.generate`. Features (b, s, d), or images (b, pixels, pixels, 3) in uint8; b questions or b
    lists of questions. conversation: the questions of a list are turns; each is asked after those before it
    were answered. shuffled: a control; the compressor reads these b questions, the LLM the others. Raises
    InputError where questions and images do not go together.
    """
    if not questions:
        return []
    _check(model, features, questions, shuffled)
    if isinstance(features, Tensor):
        features = quick_tower(model.eyes())(features, **model.compressor.of_tower)
    features, one = model.here(features), isinstance(questions[0], str)
    rows = _ids(model, [[q] for q in questions] if one else questions, conversation and not one)
    if conversation and not one:
        return _in_turn(model, features, rows, max_new_tokens)
    read = _ids(model, [[q] for q in shuffled]) if shuffled else rows
    said = [_texts(model, row) for row in _answer(model, features, rows, read, max_new_tokens)]
    return [row[0] for row in said] if one else said


def _check(model: VLM, images: Features | Tensor | None, questions: list, shuffled: list[str] | None) -> None:
    name = model.config.compressor
    if images is None and model.V:
        raise InputError(f"this model reads {model.V} tokens of an image: give features or images")
    if images is not None and len(images) != len(questions):
        found = f"{len(images)} images, {len(questions)} questions"
        raise InputError(f"{found}: give one, or one list of them, an image")
    if shuffled is not None and model.question_first:
        raise InputError(f"shuffled: {name} reads it where the LLM does; use one such as quecc")
    if shuffled is not None and (not isinstance(questions[0], str) or len(shuffled) != len(questions)):
        raise InputError(f"shuffled: {len(shuffled)} questions; give one for each image, asked one question")


def check_questions(model: VLM, questions: list[str], tokens: list[int]) -> None:
    """Raise `InputError` where a question has too few tokens to be asked."""
    least = 1 + model.question_first
    for question, n in zip(questions, tokens):
        if n < least:
            name = model.config.compressor
            raise InputError(f"question {question!r}: {n} tokens, {name} needs at least {least}")


def _ids(model: VLM, rows: list[list[str]], turns: bool = False) -> list[list[list[int]]]:
    """Token ids of every question; InputError where one has too few. turns: a row is one conversation."""
    texts = [text for row in rows for text in row]
    ids = question_ids(model.tokenizer, texts)
    check_questions(model, texts, list(map(len, ids)))
    later = question_ids(model.tokenizer, texts, later=True) if turns else ids
    left = iter(zip(ids, later))
    return [[next(left)[turns and k > 0] for k in range(len(row))] for row in rows]


def _texts(model: VLM, said: list[list[int]]) -> list[str]:
    return [model.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in said]


def _in_turn(model: VLM, features: Features | None, rows: list[list[list[int]]], G: int) -> list[list[str]]:
    """Questions that are turns of a conversation: each is read behind all that was said before it."""
    before, said = [[] for _ in rows], [[] for _ in rows]
    for turn in range(max(map(len, rows))):
        here = [i for i, row in enumerate(rows) if turn < len(row)]
        prompts = [[before[i] + rows[i][turn]] for i in here]
        seen = None if features is None else features[torch.tensor(here, device=model.device)]
        for i, (prompt,), (answer,) in zip(here, prompts, _answer(model, seen, prompts, prompts, G)):
            before[i] = [*prompt, *answer, model.tokenizer.eos_token_id]
            said[i] += _texts(model, [answer])
    return said


def _answer(
    model: VLM, features: Features | None, rows: list[list[list[int]]], read: list[list[list[int]]], G: int
) -> list[list[list[int]]]:
    """Token ids of questions, one list an image -> of their answers; the compressor reads `read`."""
    owner = [i for i, row in enumerate(rows) for _ in row]  # of every question, its image
    if not owner:
        return [[] for _ in rows]
    inside = model.compressor.cost_class == "D" and model.V > 0  # tokens are dropped by hooks in the LLM
    engine = Plain(model.llm) if inside else engine_of(model.llm, precision(model.llm))
    apart = model.compressor.needs_question or model.compressor.fuses or isinstance(engine, Plain)
    # a question a row, or the questions of an image in one row, behind one set of visual tokens
    packed = _pack(model, [[ids] for row in rows for ids in row] if apart else rows)
    steers = _pack(model, read) if model.compressor.needs_question else packed
    batch = _Batch(model, engine, features, packed, steers, owner if apart else None)
    with batch.dropping() if inside else nullcontext():
        said = iter(batch.decode(G).tolist())  # (rows, m, <= G)
    end = model.tokenizer.eos_token_id
    grouped = [[next(said)[0] for _ in row] for row in rows] if apart else list(said)
    return [[_until(ids, end) for ids in some[: len(row)]] for some, row in zip(grouped, rows)]


def _pack(model: VLM, rows: list[list[list[int]]]) -> Packed:
    questions, pad = [[asked(ids) for ids in row] for row in rows], model.tokenizer.pad_token_id
    return pack(questions, pad, left=True, shared=model.prefix).to(model.device)


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


class _Batch:
    """Rows of questions on their way through one engine.

    packed: as the LLM reads them; read: (b, m) as the compressor reads them, for b images. owner: the image
    of each row, where a row is a question; None where it is an image.
    """

    def __init__(
        self, model: VLM, engine: Engine, features: Features | None, packed: Packed, read: Packed,
        owner: list[int] | None,
    ) -> None:  # fmt: skip
        self.model, self.engine, self.features, self.packed, self.read = model, engine, features, packed, read
        self.owner, self.cell = None, None
        if owner is not None:  # of each row: its image, and its place among the (b m) questions
            number = [owner[:i].count(image) for i, image in enumerate(owner)]
            self.owner, number = torch.tensor([owner, number], device=model.device)
            self.cell = self.owner * read.lengths.shape[1] + number
        self.rows, self.m = packed.lengths.shape
        self.columns = model.V + packed.ids.shape[1]

    def decode(self, G: int) -> Tensor:
        """Greedy tokens (rows, m, <= G)."""
        engine, packed, m = self.engine, self.packed, self.m
        self.reserved = self.columns + m * G
        hidden, layout, masked = self._question_first() if self.model.question_first else self._image_first()
        end = self.model.tokenizer.eos_token_id
        first = engine.first(hidden).where(packed.lengths > 0, end)  # a row may have fewer questions than m
        last = packed.last + self.columns - packed.ids.shape[1]
        place = layout.position_ids.gather(1, last) + 1  # (rows, m) of the first answer tokens
        mask = layout.decode_mask(m, G - 1, engine.dtype) if masked else None
        return engine.decode(first, self.columns, G - 1, place, mask, end)

    def _image_first(self) -> tuple[Tensor, Layout, bool]:
        """Visual tokens, then the text -> hidden states (rows, m, d), layout, and whether it is masked."""
        z = self._visual(self._question_pass)
        seen = self.features
        if self.model.compressor.fuses and self.owner is not None:
            seen = seen[self.owner]
        x, layout = self.model.embedded(self.packed, seen, z)  # (rows, columns, d_llm)
        masked = self._needs_mask(layout) or self.model.prefix > 0  # its columns come later
        self.engine.reserve(self.rows, self.reserved)
        last = None if self.m == 1 else self.packed.last + self.model.V
        mask = layout.mask(self.engine.dtype) if masked else None
        return self.engine.prefill(x, 0, layout.position_ids, mask, last), layout, masked

    def _question_first(self) -> tuple[Tensor, Layout, bool]:
        """The question but its last token, then the image, then that; the first part's cache is kept."""
        V, q, on = self.model.V, self.packed.ids.shape[1], self.model.device
        layout = lay_out(self.packed, torch.ones(self.rows, V, dtype=torch.bool, device=on), self.model.slot)
        column = torch.arange(V + q, device=on)
        layout = layout.columns(torch.cat([column[V:-1], column[:V], column[-1:]]))
        masked, past = self._needs_mask(layout), q - 1
        mask = layout.mask(self.engine.dtype) if masked else None
        words, place = self.model.llm.get_input_embeddings()(self.packed.ids), layout.position_ids
        self.engine.reserve(self.rows, self.reserved)

        def prefix(questions: Tensor, lengths: Tensor) -> Tensor:
            early = None if mask is None else mask[:, :, :past, :past]
            hidden = self.engine.prefill(words[:, :-1], 0, place[:, :past], early)  # (rows, 1, d)
            vectors = hidden.new_zeros(lengths.numel(), hidden.shape[-1])
            vectors[self.cell] = hidden[:, 0]
            return vectors.view(*lengths.shape, -1)

        x = torch.cat([z := self._visual(prefix), words[:, -1:].to(z.dtype)], 1)  # (rows, V + 1, d_llm)
        late = None if mask is None else mask[:, :, past:]
        return self.engine.prefill(x, past, place[:, past:], late), layout, masked

    def _visual(self, reader: Callable) -> Tensor:
        """Visual tokens of every row (rows, V, d_llm)."""
        z = self.model.encode_image(self.features, self.read, reader)
        if self.owner is None:
            return z
        if not self.model.compressor.needs_question:
            return z[self.owner]
        return z.reshape(-1, self.model.V, z.shape[-1])[self.cell]

    def _question_pass(self, questions: Tensor, lengths: Tensor) -> Tensor:
        """`VLM.question_vectors` by the engine: ids (b, m, q) -> (b, m, d_llm)."""
        words = self.model.llm.get_input_embeddings()(questions.flatten(0, 1))
        last = (lengths.flatten() - 1).clamp_min(0)[:, None]
        return self.engine.prefill(words, last=last).view(*questions.shape[:2], -1)

    def _needs_mask(self, layout: Layout) -> bool:
        """Whether "all that stands before" says too much: padding, or several questions in a row."""
        return self.m > 1 or bool((layout.segment == NOBODY).any())

    def dropping(self):
        """Visual tokens leave inside the LLM (FastV) as long as this holds."""
        column = torch.arange(self.columns, device=self.model.device)
        image = (column < self.model.V).expand(self.rows, -1)
        return self.model.compressor.inside(self.model.llm.model.layers, image)


# --- what is built once from weights that do not change ---

_BUILT: WeakKeyDictionary[nn.Module, tuple[tuple, object]] = WeakKeyDictionary()


def _once(module: nn.Module, dtype: torch.dtype | None, weights: Iterable[Tensor], build: Callable) -> object:
    """What `build` made of a module's weights: kept, and made anew when they changed."""
    now = (dtype, *((p.data_ptr(), 0 if p.is_inference() else p._version) for p in weights))
    then, made = _BUILT.get(module, (None, None))
    if now != then:
        made = build()
        _BUILT[module] = now, made
    return made


def engine_of(llm: nn.Module, dtype: torch.dtype) -> Engine:
    """What answers for this LLM in that precision: its runner, or transformers' forward."""
    weights = plain_weights(llm)
    return Plain(llm) if weights is None else _once(llm, dtype, weights, lambda: Runner(llm, dtype))


def quick_tower(tower: Tower) -> nn.Module:
    """The same tower with packed products; on a GPU, and where it is not open_clip's, as it is."""
    if tower.mean.device.type != "cpu" or not isinstance(tower, Tower):
        return tower
    return _once(tower, None, tower.parameters(), lambda: quicken(tower))


def forget(llm: nn.Module) -> None:
    """Drop what was built from an LLM, and its memory: it is going to change."""
    _BUILT.pop(llm, None)
