"""What the second world teaches: batches, the loss of a model taught by its own LLM, and that both learn."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vtc import InputError
from vtc.compressors.base import Features
from vtc.data.gridqa.ask import in_words
from vtc.data.gridqa.binding import ask_any
from vtc.data.gridqa.facts import Facts
from vtc.data.gridqa.words import WORDS
from vtc.data.gridqa.world import make_scenes
from vtc.models.llm import make_llm, make_tokenizer
from vtc.models.prompt import asked, one_a_row, pack
from vtc.models.vlm import VLM, VLMConfig, text_model
from vtc.shapes import LLMShape, TowerShape, WorldConfig
from vtc.training.device import Share
from vtc.training.lessons import Distilled, ImageLessons, InWords, Reader, TextLessons, seen_logits
from vtc.training.loop import Stage, fit

TOKENIZER = make_tokenizer(WORDS)
READER = Reader(TOKENIZER)
SMALL = WorldConfig(lands=2, entities=4, offset=1.0)
TOWER = TowerShape(d=16, layers=1, heads=1, patch=8, levels=(1,), pixels=96)


@pytest.fixture(scope="module")
def told() -> VLM:
    torch.manual_seed(0)
    return text_model(make_llm(LLMShape("tiny", 1, 32, 64, 2, tied=True), len(TOKENIZER)), TOKENIZER).eval()


@pytest.fixture(scope="module")
def lessons() -> ImageLessons:
    scenes = make_scenes(SMALL, 12, "train", 0)
    features = torch.randn(12, 144, 16, generator=torch.Generator().manual_seed(0))
    return ImageLessons(
        scenes, Facts(SMALL), READER, Features(last=features, levels=features), 0, 4, 3, {0: 1, 1: 1, 4: 1}
    )


def seeing(told: VLM, compressor: str = "tokenpacker", V: int = 4) -> VLM:
    config = VLMConfig(
        llm=told.llm.config.to_dict(),
        tower=asdict(TOWER),
        grid=12,
        compressor=compressor,
        tokens=V,
        span=16,
    )
    return VLM(config, copy.deepcopy(told.llm), TOKENIZER)


def test_lessons_are_the_same_for_the_same_step(lessons: ImageLessons) -> None:
    for step in (0, 5):
        one, two = (lessons.batch(step, Share()).inputs for _ in range(2))
        assert torch.equal(one[0].ids, two[0].ids) and one[2] == two[2]
    assert not torch.equal(*(lessons.batch(step, Share()).inputs[0].scene_text for step in (0, 5)))
    assert {lessons.batch(step, Share()).inputs[2] for step in range(40)} == {0, 1, 4}


def test_processes_share_a_batch(lessons: ImageLessons) -> None:
    whole, parts = lessons.batch(3, Share()), [lessons.batch(3, Share(rank, 3)) for rank in range(3)]
    assert np.mean([part.weight for part in parts]) == pytest.approx(whole.weight) == 1
    for rank, part in enumerate(parts):
        packed, features, V = part.inputs
        rows = whole.inputs[0].ids[rank::3]
        assert torch.equal(packed.ids, rows[:, : packed.ids.shape[1]]) and V == whole.inputs[2]
        assert torch.equal(features.last, whole.inputs[1].last[rank::3])


def test_text_has_facts_and_scenes_in_turn() -> None:
    scenes, facts = make_scenes(SMALL, 20, "train", 0), Facts(SMALL)
    text = TextLessons(scenes, facts, READER, 0, facts_a_step=6, scenes_a_step=3, questions=2)
    (about_scenes,), (about_facts,) = (text.batch(step, Share()).inputs for step in (0, 1))
    assert about_scenes.lengths.shape == (3, 2) and about_facts.lengths.shape == (6, 1)
    land, digit = about_facts.scene_text[:, 0, 3], about_facts.scene_text[:, 0, 2]
    for i, row in enumerate(about_facts.ids):
        entity, mark, said, *value, end = TOKENIZER.convert_ids_to_tokens(row)
        assert (mark, end) == ("?", "<end>") and said == TOKENIZER.convert_ids_to_tokens([digit[i]])[0]
        at = WORDS.index(TOKENIZER.convert_ids_to_tokens([land[i]])[0]) * 10 + int(said)
        known = facts.value(np.array([at * 4 + WORDS.index(entity) - WORDS.index("ant")]))[0]
        assert value == [WORDS[WORDS.index("big") + known[0]], WORDS[WORDS.index("apple") + known[1]]]


def test_the_loss_of_a_model_that_is_told_is_cross_entropy_alone(
    told: VLM, lessons: ImageLessons, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the image says what the words say, nothing is left of the first part of the loss."""
    packed, features, _ = lessons.batch(0, Share()).inputs
    monkeypatch.setattr("vtc.training.lessons.seen_logits", lambda model, p, f, V: told.logits(p))
    weight, right = packed.weight.flatten()[packed.answers], packed.ids.flatten()[packed.answers]
    expected = (F.cross_entropy(told.logits(packed), right, reduction="none") * weight).sum() / weight.sum()
    for share in (0.0, 0.5):
        loss = Distilled(seeing(told), told, share)(packed, features, 4)
        assert loss.item() == pytest.approx(share * expected.item(), abs=1e-5)


def test_what_the_llm_says_is_asked_once_and_kept(
    told: VLM, lessons: ImageLessons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit the same loss, whether the LLM is asked, answers are written down, or read again."""
    model = seeing(told)
    batches = [(*lessons.batch(step, Share()).inputs[:2], 4) for step in range(3)]
    asked = [Distilled(model, told)(*batch).item() for batch in batches]
    assert [Distilled(model, told, kept=tmp_path)(*batch).item() for batch in batches] == asked
    assert len(list(tmp_path.rglob("*.safetensors"))) == len(set(asked)) == 3
    reader = Distilled(model, told, kept=tmp_path)
    monkeypatch.setattr(reader, "teacher", [])  # nobody is there to ask
    assert [reader(*batch).item() for batch in batches] == asked
    packed, features, V = batches[0]
    with pytest.raises(IndexError):  # the same questions about other scenes are another file
        reader(replace(packed, scene_text=packed.scene_text.flip(0)), features, V)


def test_without_an_image_nothing_tells_the_scene(told: VLM, lessons: ImageLessons) -> None:
    packed, features, _ = lessons.batch(0, Share()).inputs
    other = replace(packed, scene_text=packed.scene_text.flip(0))
    model = seeing(told)
    blind, also_blind = (seen_logits(model, p, features, 0) for p in (packed, other))
    assert torch.equal(blind, also_blind)
    one, four = (seen_logits(model, packed, features, V) for V in (1, 4))
    assert not torch.allclose(one, blind) and not torch.allclose(one, four)
    changed = features.map(lambda part: part.flip(0))
    assert not torch.allclose(seen_logits(model, packed, changed, 4), four)


def test_both_stages_learn_and_the_teacher_does_not_change(told: VLM, lessons: ImageLessons) -> None:
    scenes, facts = make_scenes(SMALL, 50, "train", 0), Facts(SMALL)
    text = TextLessons(scenes, facts, READER, 0, facts_a_step=32, scenes_a_step=8, questions=4)
    model = copy.deepcopy(told)
    before = np.mean([model(*text.batch(step, Share()).inputs).item() for step in range(4)])
    fit(model, Stage("text", 60, 1e-2, ("llm",), 100), text.batch, None)
    after = np.mean([model(*text.batch(step, Share()).inputs).item() for step in range(4)])
    assert after < 0.6 * before

    teacher = {name: weight.clone() for name, weight in model.state_dict().items()}
    learner = Distilled(seeing(model), model)
    losses = [learner(*lessons.batch(step, Share()).inputs).item() for step in range(6)]
    fit(learner, Stage("instruct", 40, 3e-3, ("model.compressor", "model.llm"), 100), lessons.batch, None)
    assert np.mean(
        [learner(*lessons.batch(step, Share()).inputs).item() for step in range(6)]
    ) < 0.9 * np.mean(losses)
    assert all(torch.equal(teacher[name], weight) for name, weight in model.state_dict().items())


def test_targets_of_the_align_stage_are_the_words_of_a_window(told: VLM, lessons: ImageLessons) -> None:
    """At one token all marks and the land; at 144 each mark in the patch of its place, by its own words."""
    packed, _, _ = lessons.batch(0, Share()).inputs
    aligned, embed = InWords(seeing(told)), told.llm.get_input_embeddings().weight
    scene = packed.scene_text[0]
    real = scene[scene[:, 0] != TOKENIZER.pad_token_id]
    one, marks = aligned.target(packed.scene_text, 1)
    expected = embed[real[:, :3]].sum((0, 1)) + embed[real[0, 3]]
    assert torch.allclose(one[0, 0], expected, atol=1e-5) and marks[0, 0] == len(real)
    many, marks = aligned.target(packed.scene_text, 144)
    assert marks[0].sum() == len(real) and marks.max() == 1
    for x, y, digit, land in real.tolist():
        column, row = (int(word[1:]) for word in TOKENIZER.convert_ids_to_tokens([x, y]))
        assert torch.allclose(many[0, row * 12 + column], embed[[x, y, digit, land]].sum(0), atol=1e-5)


def test_the_align_stage_brings_tokens_to_their_words(told: VLM, lessons: ImageLessons) -> None:
    learner = InWords(seeing(told))
    some = [lessons.batch(step, Share()).inputs for step in range(12)]
    before = np.mean([learner(*given).item() for given in some if given[2]])
    frozen = learner.model.llm.get_input_embeddings().weight.clone()
    fit(learner, Stage("align", 60, 1e-2, ("model.compressor",), 100), lessons.batch, None)
    assert np.mean([learner(*given).item() for given in some if given[2]]) < 0.7 * before
    assert torch.equal(frozen, learner.model.llm.get_input_embeddings().weight)


@pytest.mark.parametrize("compressor", ["tokenpacker", "quecc"])
@pytest.mark.parametrize("V", [16, 36, 144])
def test_tokens_in_the_order_of_the_prompt_are_compared_with_their_own_windows(
    told: VLM, lessons: ImageLessons, monkeypatch: pytest.MonkeyPatch, compressor: str, V: int
) -> None:
    """Tokens that are their windows' words already lose nothing; beyond the span they stand by blocks."""
    model = seeing(told, compressor, V)
    learner, (packed, features, _) = InWords(model), lessons.batch(0, Share()).inputs
    m = packed.lengths.shape[1] if model.compressor.needs_question else 1
    order, (wanted, _) = model.slot.order, learner.target(packed.scene_text, V)
    assert (order is not None) == (V > 16) and packed.lengths.shape[1] == 3

    def shown(tokens: torch.Tensor) -> float:
        monkeypatch.setattr(VLM, "encode_image", lambda *_: tokens.repeat(1, m, 1))
        return learner(packed, features, V).item()

    assert shown(wanted if order is None else wanted[:, order]) == pytest.approx(0, abs=1e-6)
    assert shown(wanted.flip(1)) > 0.1
    if order is not None:
        assert shown(wanted) > 0.1


def test_a_steered_compressor_is_aligned_for_each_question(told: VLM, lessons: ImageLessons) -> None:
    """Its loss is the mean over questions of what each alone would give, and only the compressor learns."""
    learner, (packed, features, _) = InWords(seeing(told, "quecc")), lessons.batch(0, Share()).inputs
    whole = learner(packed, features, 4)
    alone = []
    for k in range(3):
        one = replace(packed, questions=packed.questions[:, [k]], lengths=packed.lengths[:, [k]])
        alone.append(learner(one, features, 4))
    assert whole.item() == pytest.approx(torch.stack(alone).mean().item(), abs=1e-6)
    assert len({loss.item() for loss in alone}) == 3
    learner.model.llm.requires_grad_(False)
    whole.backward()
    assert all(p.grad is not None for p in learner.model.compressor.parameters())


def test_the_llm_learns_at_a_share_of_the_rate(told: VLM, lessons: ImageLessons) -> None:
    """One step of Muon moves a matrix by its rate, whatever its gradient; steps without an image too."""
    budgets = {lessons.batch(step, Share()).inputs[2]: step for step in range(30)}  # V -> a step that has it
    steps, moved = (budgets[4], budgets[0]), {}
    for share in (1.0, 0.05):
        learner = Distilled(seeing(told), told)
        before = {name: weight.clone() for name, weight in learner.named_parameters()}
        stage = Stage(
            "instruct", 2, 1e-3, ("model.compressor", "model.llm"), 9, slow=("model.llm",), slow_share=share
        )
        fit(learner, stage, lambda step, mine: lessons.batch(steps[step], mine), None)
        moved[share] = {name: (p - before[name]).norm().item() for name, p in learner.named_parameters()}
    for name in (
        "model.llm.model.layers.0.mlp.up_proj.weight",
        "model.llm.model.layers.0.self_attn.o_proj.weight",
    ):
        assert moved[0.05][name] == pytest.approx(0.05 * moved[1.0][name], rel=0.25)
    seen = "model.compressor.attend.kv_in.weight"
    assert moved[0.05][seen] == pytest.approx(moved[1.0][seen], rel=0.1)


def test_a_tokenizer_that_lacks_a_word_is_said_in_one_line() -> None:
    with pytest.raises(InputError, match="'zurich' is not one token of this LLM's tokenizer") as error:
        Reader(make_tokenizer(tuple(word for word in WORDS if word != "zurich")))
    assert "\n" not in str(error.value)


def test_questions_are_packed_as_one_by_one() -> None:
    """All at once and row by row are two ways to the same batch, field by field."""
    scenes, facts = make_scenes(SMALL, 6, "train", 0), Facts(SMALL)
    rows = np.arange(6)
    questions = ask_any(
        scenes, np.repeat(rows, 4), facts, "text", np.random.default_rng(0), (2, 2, 1, 1), 0.3
    )
    assert len(set(questions.task)) > 5
    pairs = [tuple(TOKENIZER(text)["input_ids"] for text in questions.text(i)) for i in range(24)]
    one = [asked(q, [*a, TOKENIZER.eos_token_id]) for q, a in pairs]
    expected = pack([one[i : i + 4] for i in range(0, 24, 4)], TOKENIZER.pad_token_id)
    packed = READER.packed(questions, in_words(scenes, rows))
    for name, value in vars(expected).items():
        if value is not None:
            assert torch.equal(vars(packed)[name], value), name


def test_questions_in_rows_of_their_own_are_packed_as_alone() -> None:
    """Rows of three, one and no questions: who has fewer gets empty rows."""
    q = [asked([5 + i, *range(i)], [3, 1]) for i in range(4)]
    found, expected = one_a_row(pack([q[:3], q[3:], []], 0)), pack([*([one] for one in q), *[[]] * 5], 0)
    assert found.answers.tolist() == expected.answers.tolist() and len(found.ids) == 9
    for name, value in vars(expected).items():
        assert value is None or torch.equal(vars(found)[name], value), name


@pytest.mark.parametrize(
    "compressor, V, questions, kind",
    [
        *(("tokenpacker", V, 3, torch.float64) for V in (None, 0, 1, 4)),
        *(("quecc", V, m, torch.float64) for V, m in ((4, 1), (4, 3), (16, 3))),  # the last: a row a question
        ("tokenpacker", None, 1, torch.float64),
        ("tokenpacker", 4, 3, torch.bfloat16),
    ],
)
def test_the_quick_pass_gives_the_logits_and_gradients_of_transformers(
    told, lessons, compressor, V, questions, kind, monkeypatch
):
    """V None: the scene is told in words. In bf16 both are near what float32 says."""
    seen = replace(lessons, questions=questions, budgets={V or 0: 1})
    packed, features, _ = seen.batch(0, Share()).inputs
    packed = replace(packed, scene_text=packed.scene_text[:, :1] if V == 0 else packed.scene_text)
    if V:
        packed = replace(packed, scene_text=None)
    model = seeing(told, compressor, V or 4).requires_grad_()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    model = model.to(kind) if kind == torch.float64 else model
    features = features.to(kind) if kind == torch.float64 else features
    found = []
    for quick in (True, False):
        monkeypatch.setattr(VLM, "_quick", lambda self, packed: quick)  # noqa: B023
        model.zero_grad()
        with torch.autocast("cpu", kind, enabled=kind == torch.bfloat16):
            logits = model.logits(packed, features)
        F.cross_entropy(logits, packed.ids.flatten()[packed.answers]).backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((logits.detach(), grads))
    (ours, mine), (theirs, given) = found
    near = 0.1 if kind == torch.bfloat16 else 1e-5
    assert mine.keys() == given.keys()
    assert (ours - theirs).abs().max() <= near * theirs.abs().max()
    assert all((mine[name] - g).norm() <= near * g.norm().clamp_min(1e-3) for name, g in given.items())
