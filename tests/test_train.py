"""Training: a killed stage ends as an unbroken one; a cell's whole path; scores; bad cases in one line."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import vtc
from vtc import data, machine, profiles
from vtc.compressors.base import Features
from vtc.evaluation import ask, exam, scores
from vtc.evaluation.benchmarks import edit_similarity
from vtc.experiments import sweep
from vtc.models.llm import make_llm, make_tokenizer
from vtc.models.vlm import text_model
from vtc.shapes import LLMShape
from vtc.training import device, features, stages, tower, user_data
from vtc.training.batches import Bank, Question, batches
from vtc.training.checkpoints import notes_of
from vtc.training.device import Batch, Share
from vtc.training.lessons import Distilled, InWords, Reader, TextLessons
from vtc.training.loop import Stage, fit
from vtc.training.losses import WithAuxiliaryLoss
from vtc.training.optim import Muon


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke profile with a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VTC_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield profiles.get("smoke")


WORLD = data.WorldConfig(lands=2, entities=4, offset=1.0)


def bank(scenes: data.Scenes, split: str = "train", each: int = 6) -> Bank:
    """Questions of every kind about every scene, as people's own data are."""
    rows = np.repeat(np.arange(len(scenes)), each)
    rng = np.random.default_rng(0)
    asked = data.ask_any(scenes, rows, data.Facts(data.WorldConfig()), split, rng, (1, 1, 1, 1), 0.2)
    questions = [Question(int(asked.scene[i]), *asked.text(i)) for i in range(len(asked))]
    return Bank(questions, make_tokenizer())


class Killed(Exception):
    pass


def test_one_cell_through_the_whole_path(smoke):
    """Real classes at toy size: tower, text stage, align, instruct, answers, row; the same row twice."""
    size = smoke.sizes[0]
    case = {"size": size.name, "V": 16, "compressor": "tokenpacker", "seed": 0}
    row = sweep.measure(smoke, case)
    assert row["questions"] == len(exam.exam(smoke)) == len(scores.unpack(row["scores"]))
    assert row["N"] == sum(p.numel() for n, p in make_llm(size, 9).named_parameters() if "embed" not in n)
    assert row["device"] == machine.device_name("cpu") and row["dtype"] in ("bf16", "float32")
    same = ("loss", "scores", "error_reasoning", "error_ocr", "tower_hash", "llm_hash")
    again = sweep.measure(smoke, case)
    assert [row[k] for k in same] == [again[k] for k in same]


@pytest.mark.parametrize("name", ["tokenpacker_nested", "mqt_nested"])
def test_a_compressor_trained_once_serves_every_V(smoke, monkeypatch, name):
    """Whichever V comes first trains for all, no image and every patch too; others cost no step."""
    p = replace(smoke, V=(0, 1, smoke.s))
    assert stages.nested_budgets(p, name) == p.V
    cases = [stages.Case(p.sizes[0].name, V, name, 0) for V in p.V]
    model, notes = stages.train(p, cases[0])
    assert model.V == 0
    monkeypatch.setattr(stages, "fit", lambda *_: pytest.fail("trained again"))
    seen, logits = features.features(p, "test")[:4].to(torch.float32), [notes["loss"]]
    packed = bank(data.scenes_of(p, "test"), "test").pack([[6 * i, 6 * i + 1] for i in range(4)])
    for case in cases[1:]:
        other, again = stages.train(p, case)
        assert other.V == case.V and again == notes
        assert torch.equal(other.llm.model.norm.weight, model.llm.model.norm.weight)
        with torch.no_grad():
            logits.append(other.logits(packed, seen))
            assert torch.equal(logits[-1], other.logits(packed, seen))
            assert not torch.equal(logits[-1], model.logits(packed, seen))
    assert not torch.equal(logits[1], logits[2])


@pytest.mark.parametrize("name, seen", [("lookup", [16, 1]), ("lookup_unaligned", [1, 1])])
def test_a_compressor_may_be_aligned_at_more_tokens(smoke, monkeypatch, name, seen):
    """The V of each stage's first batch: that of the case, or more where it is aligned."""
    drawn = []

    def fit(model, stage, batch, folder):
        drawn.append(batch(0, Share()).inputs[2])
        return {"loss": 0.0, "seconds": 1.0}

    monkeypatch.setattr(stages, "text_llm", lambda p, size, seed: make_llm(size, len(make_tokenizer())))
    monkeypatch.setattr(stages, "fit", fit)
    stages.train(smoke, stages.Case(smoke.sizes[0].name, 1, name, 0))
    assert drawn == seen


@pytest.mark.parametrize("name, words", [("tokenpacker", True), ("tokenpacker_by_questions", False)])
def test_windows_are_taught_words_unless_their_entry_says_no(smoke, monkeypatch, name, words):
    """The align stage compares tokens with words, or asks questions; the instruct stage asks questions."""
    learners = []

    def fit(model, stage, batch, folder):
        learners.append(type(model))
        return {"loss": 0.0, "seconds": 1.0}

    monkeypatch.setattr(stages, "text_llm", lambda p, size, seed: make_llm(size, len(make_tokenizer())))
    monkeypatch.setattr(stages, "fit", fit)
    stages.train(smoke, stages.Case(smoke.sizes[0].name, 1, name, 0))
    assert learners == [InWords if words else Distilled, Distilled]


def test_a_steered_compressor_is_also_asked_with_another_question(smoke):
    rows = {}
    for name in ("quecc_light", "quecc_unasked"):
        rows[name] = sweep.measure(smoke, {"size": "d16", "V": 1, "compressor": name, "seed": 0})
    asked, wrong = (scores.unpack(rows["quecc_light"][name]) for name in ("scores", "shuffled"))
    assert len(asked) == len(wrong)
    assert rows["quecc_unasked"]["shuffled"] == ""


def test_muon_moves_every_matrix_as_torchs_does():
    """Four steps on wide, tall and square matrices, two of them of one shape."""
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((8, 24), (24, 8), (8, 8), (8, 24))]
    torchs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    same = {"lr": 0.02, "weight_decay": 0.05, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = Muon(ours, **same), torch.optim.Muon(torchs, **same)
    for _ in range(4):
        for p, q in zip(ours, torchs):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(ours, torchs):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-3)  # moved by .3; bf16 products, summed otherwise


def test_the_bank_packs_what_it_was_given():
    tokenizer = make_tokenizer()
    texts = [("count 7 ?", "3"), ("x3 y5 owl ?", "1 new apple")]
    packed = Bank([Question(0, *text) for text in texts], tokenizer).pack([[0, 1]])
    assert tokenizer.decode(packed.ids[0]) == "count 7 ? 3 <end> x3 y5 owl ? 1 new apple <end>"
    assert packed.segment[0].tolist() == [0] * 5 + [1] * 8
    assert packed.position[0].tolist() == [*range(5), *range(8)]
    said = [
        tokenizer.decode(packed.ids[0][(packed.weight[0] > 0) & (packed.segment[0] == k)]) for k in (0, 1)
    ]
    assert said == ["3 <end>", "1 new apple <end>"]
    assert packed.weight.sum() == pytest.approx(2)
    asked = [tokenizer.decode(q, skip_special_tokens=True) for q in packed.questions[0]]
    assert asked == [question for question, _ in texts]


def test_the_bank_pads_questions_as_its_tokenizer_does():
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "<end>"
    questions = [Question(0, text, "3") for text in ("land ?", "x3 y5 read ?")]
    padded = Bank(questions, tokenizer).pack([[0, 1]]).questions[0]  # (2, 4)
    assert (padded == tokenizer.pad_token_id).tolist() == [[False, False, True, True], [False] * 4]


@pytest.mark.parametrize(
    "said, right, similarity",
    [("1 2 3", "1 2 3", 1), ("", "1 2", 0), ("1 3", "1 2 3", 2 / 3), ("3 2 1", "1 2 3", 1 / 3), ("", "", 1)],
)
def test_edit_similarity_by_hand(said, right, similarity):
    assert edit_similarity(said, right) == pytest.approx(similarity)


def test_packed_scores_come_back():
    values = [0.0, 1.0, 0.5, 0.05, 0.95]
    assert scores.unpack(scores.pack(values)) == pytest.approx(values)
    assert scores.pack([]) == ""
    right = np.random.default_rng(0).integers(0, 2, 1003).astype(float)  # no whole number of bytes
    text = scores.pack(right)
    assert len(text) < len(right) / 5 and (scores.unpack(text) == right).all()
    assert (scores.unpack("uau") == [1, 0, 1]).all()  # rows of before


def test_errors_average_tasks_not_questions():
    frame = pd.DataFrame({"task": [*exam.TASKS, *["recall"] * 3]})
    asked = exam.Exam(None, (), frame)
    row = scores.errors(asked, (frame["task"] == "recall").to_numpy(float))
    assert row["error_reasoning"] == 1 and row["error_ocr"] == 0.5
    assert row["score_recall"] == 1 and row["questions"] == len(frame)


def test_tower_features_are_the_same_from_the_cache_and_anew(smoke):
    cached = features.features(smoke, "test", selecting=True)
    images = torch.from_numpy(data.render(data.scenes_of(smoke, "test"), "test", smoke.pixels, range(3)))
    with torch.no_grad():
        fresh = tower.pretrained(smoke)(images, selecting=True)
    assert torch.allclose(cached.levels[:3].float(), fresh.levels, atol=0.1, rtol=0.05)  # the cache is bf16
    assert torch.equal(cached.last, cached.levels[..., -smoke.tower.d :])
    heads = smoke.tower.heads
    assert cached.attention[:3].shape == (3, heads, smoke.s) and cached.keys[:3].shape[1:3] == (
        smoke.s,
        heads,
    )
    assert torch.allclose(cached.attention[:3].float(), fresh.attention, atol=1e-3)
    assert torch.allclose(cached.keys[:3].float(), fresh.keys, atol=0.1, rtol=0.05)
    paid = cached.attention.float().sum(-1)  # what the class token takes is not counted
    assert (paid < 1.01).all() and (paid > 0.5).all()


def test_a_tower_sees_smaller_images(smoke):
    """At its own size nothing changes; of a smaller image it sees as few patches as were asked for."""
    images = torch.from_numpy(data.render(data.scenes_of(smoke, "test"), "test", smoke.pixels, range(3)))
    eyes = tower.pretrained(smoke)
    with torch.no_grad():
        whole, same, few = eyes(images), eyes(images, side=smoke.g), eyes(images, side=3)
        dot = images.clone()
        dot[0, -8:, -8:] = 255 - dot[0, -8:, -8:]  # the last patch of the first image
        moved = (eyes(dot, side=3).last - few.last).abs().amax((1, 2))
    assert torch.allclose(whole.levels, same.levels, atol=1e-5)
    assert few.last.shape == (3, 9, smoke.tower.d)
    assert moved[0] > 1e-3 > moved[1:].max()


def test_a_checkpoint_tower_also_gives_its_class_token(smoke, tmp_path):
    vision = {"image_size": smoke.pixels, "layers": 2, "width": 32, "patch_size": smoke.tower.patch}
    vision["head_width"] = 16
    text = {"context_length": 4, "vocab_size": 8, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(open_clip.model.CLIP(**config).state_dict(), tmp_path / "open_clip_model.safetensors")
    p = replace(smoke, tower=replace(smoke.tower, stem=(), checkpoint=str(tmp_path)), run="checkpoint-tower")
    eyes, out = tower.pretrained(p), []
    eyes.visual.transformer.resblocks[1].register_forward_hook(lambda _, x, y: out.append(y[:, 0]))
    images = torch.from_numpy(data.render(data.scenes_of(p, "test"), "test", p.pixels, range(3)))
    seen = eyes(images, selecting=True)
    assert torch.equal(seen.cls, out[0])
    assert torch.allclose(features.features(p, "test", selecting=True).cls[:3].float(), seen.cls, atol=0.1)
    assert features.features(smoke, "test", selecting=True).cls is None


def test_a_guided_model_keeps_its_own_loss_and_leaves_the_decoder_behind(smoke):
    case = stages.Case(smoke.sizes[0].name, 4, "quecc_distilled", 0)
    model, notes = stages.train(smoke, case)
    assert not any("auxiliary" in name for name in model.state_dict())
    guided = WithAuxiliaryLoss(model, model.compressor)
    packed, rows = bank(data.scenes_of(smoke, "test"), "test").draw(2, 3, np.random.default_rng(0))
    seen = features.features(smoke, "test")[torch.from_numpy(rows)].to(torch.float32)
    own = model(packed, seen)
    guided.auxiliary.weight = 0.0
    assert guided(packed, seen).item() == pytest.approx(own.item(), abs=1e-6)
    guided.auxiliary.weight = 1.0
    guided(packed, seen).backward()
    assert all(part.grad is not None for part in guided.auxiliary.parameters())
    assert all(part.grad is not None for part in model.compressor.parameters())


@pytest.mark.parametrize("name", ["prumerge_plus", "visionzip", "tome", "dct", "downsample_image"])
def test_compressors_without_training_go_the_whole_way(smoke, name):
    case = {"size": smoke.sizes[0].name, "V": 16, "compressor": name, "seed": 0}
    assert 0 <= sweep.measure(smoke, case)["error_reasoning"] <= 1


@pytest.mark.parametrize(
    "name, V, options, said",
    [
        ("fastv", 4, '{"layer": 3}', "drops tokens at layer 3: take an LLM of more than 3"),
        ("mqt_nested", 7, "{}", "trains mqt_nested for 0, 1, 4, 9, 16, 36"),
        ("quecc", 5, "{}", "can give 0 .no image., 1, 4, 9, 16"),
    ],
)
def test_cases_that_would_fail_later_are_said_before_any_work(name, V, options, said):
    laptop = profiles.get("laptop")
    size = laptop.sizes[0]
    assert size.layers == 3
    stages.check(laptop, stages.Case(size.name, 9, name, 0))
    with pytest.raises(vtc.InputError, match=said):
        stages.check(laptop, stages.Case(size.name, V, name, 0, options))
    with pytest.raises(vtc.InputError, match="'huge': profile laptop has d16, d24"):
        stages.check(laptop, stages.Case("huge", 9, name, 0))


def test_each_training_has_a_folder_of_its_own(smoke):
    case = stages.Case("d16", 16, "m3", 0)
    said = [[data.Conversation(Path("a.png"), (("what ?", answer),))] for answer in ("red", "blue")]
    folders = [stages.checkpoints(smoke, case, one) for one in (None, *said)]
    assert folders[0].name == "m3-d16-V16-0" and len(set(folders)) == 3
    alike = [replace(case, options=options) for options in ('{"alpha": 1.5}', '{"alpha": 15}')]
    assert len({stages.checkpoints(smoke, one) for one in alike}) == 2


def test_a_compressor_trained_once_is_kept_for_its_options(smoke, monkeypatch):
    asked = []
    monkeypatch.setattr(stages, "_train", lambda p, case, budgets: asked.append(case.options) or 1 / 0)
    for options in ("{}", '{"heads": 2}'):
        kept = stages.Case("d16", 1, "mqt_nested", 7, options)
        with pytest.raises(ZeroDivisionError):
            stages.train(smoke, kept)
        made = smoke.cache / f"mqt_nested-d16-7{'-heads2' if 'heads' in options else ''}"
        (made / "nested.safetensors").touch()
    assert asked == ["{}", '{"heads": 2}']


def vtc_says(*words, env=None):
    done = subprocess.run([sys.executable, "-m", "vtc", *words], capture_output=True, text=True, env=env)
    return done.returncode, done.stderr.strip()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--profile", "large"], "smoke, laptop, gpu, paper"),
        (["--compressor", "magic"], "tokenpacker"),
        (["--tokens", "5"], "1, 4, 9, 16, 36, 144"),
        (["--size", "xxl"], "d16, d24, d32"),
        (["--data", "none.json", "--images", "."], "none.json"),
        (["--data", "none.json", "--images", "nowhere"], "image folder is not there"),
    ],
)
def test_bad_words_get_one_line_and_exit_code_2(words, said, tmp_path):
    code, text = vtc_says("train", *words)
    assert code == 2 and said in text and "\n" not in text


def test_own_data_train_a_nested_compressor_at_every_V(smoke, tmp_path, monkeypatch):
    Image.new("RGB", (20, 30), "red").save(tmp_path / "a.png")
    drawn = set()

    def fit(model, stage, batch, folder, memory):
        drawn.update(batch(step, Share()).inputs[2] for step in range(30))
        return {"loss": 0.0, "seconds": 1.0}

    monkeypatch.setattr(stages, "fit", fit)
    said = [data.Conversation(tmp_path / "a.png", (("what color ?", "red"), ("what ?", "red")))]
    user_data.train(smoke, stages.Case("d16", 16, "mqt_nested", 0), said)
    assert drawn == set(stages.nested_budgets(smoke, "mqt_nested")) == {0, 1, 16}
    drawn.clear()  # a frozen LLM learns nothing without an image
    user_data.train(smoke, stages.Case("d16", 16, "mqt_nested", 0), said, learns="frozen")
    assert drawn == {1, 16}


def test_own_questions_too_short_to_stand_before_the_image_are_said(smoke, tmp_path):
    Image.new("RGB", (20, 30), "red").save(tmp_path / "a.png")
    said = [data.Conversation(tmp_path / "a.png", (("describe", "red"),))]
    with pytest.raises(vtc.InputError, match="'describe': 1 tokens"):
        user_data.train(smoke, stages.Case("d16", 4, "quecc_shared", 0), said)


@pytest.mark.parametrize("steered, rows, answers", [(False, 2, [2, 1]), (True, 3, [1, 1, 1])])
def test_turns_of_a_conversation_are_learnt_behind_those_before_them(steered, rows, answers):
    tokenizer = make_tokenizer()
    said = [(0, "x7 y2 read ?", "3"), (0, "land ?", "new oslo"), (1, "count 1 ?", "1")]
    talks = Bank([Question(*turn) for turn in said], tokenizer, steered=steered)
    assert len(talks.rows) == rows and talks.answers == answers
    last = talks.rows[1 if steered else 0]
    assert tokenizer.decode(last.ids) == "x7 y2 read ? 3 <end> land ? new oslo <end>"
    learnt = tokenizer.decode(last.ids[last.weight > 0])
    assert learnt == ("new oslo <end>" if steered else "3 <end> new oslo <end>")
    assert last.question == (4 + 2 + 2 if steered else 4)  # what steers: all that was said


def test_own_images_train_save_and_answer(smoke, tmp_path):
    """LLaVA's format in, a saved model out, its answers scored: the door for people's own images."""
    turns = [{"from": "human", "value": "<image>\nwhat color ?"}, {"from": "gpt", "value": "red"}]
    entries = []
    for i in range(6):
        Image.new("RGB", (20, 30), "red").save(tmp_path / f"{i}.png")
        entries.append({"image": f"{i}.png", "conversations": turns})
    (tmp_path / "talk.json").write_text(json.dumps(entries))
    said = data.read_llava(tmp_path / "talk.json", tmp_path)
    p = replace(
        smoke,
        recipe=replace(
            smoke.recipe,
            align=replace(smoke.recipe.align, steps=2),
            instruct=replace(smoke.recipe.instruct, steps=25, pack=2),
        ),
    )
    model, _ = user_data.train(p, stages.Case("d16", 4, "quecc", 0), said)
    model.save_pretrained(tmp_path / "model")
    row = ask.own(vtc.models.vlm.VLM.from_pretrained(tmp_path / "model"), said)
    assert row["questions"] == 6 and row["exact"] == 1.0  # every answer is "red"
    with pytest.raises(vtc.InputError, match="no entry has an image"):
        ask.own(model, [replace(talk, image=None) for talk in said])


# --- the loop: interruptions, processes, precision, storage -------------------------------------------------


def small_text_stage(steps: int = 8):
    """A tiny LLM and its text stage: a function of a folder and, perhaps, the step at which it dies."""
    size = LLMShape("t", d=16, layers=1, heads=1, d_ff=32, tied=True)
    tokenizer = make_tokenizer()
    scenes = data.make_scenes(WORLD, 8, "train", seed=0)
    lessons = TextLessons(scenes, data.Facts(WORLD), Reader(tokenizer), 0, 12, 4, 3)

    def run(folder, stop=None):
        torch.manual_seed(0)
        model = text_model(make_llm(size, len(tokenizer)), tokenizer)

        def batch(step, share):
            if step == stop:
                raise Killed
            return lessons.batch(step, share)

        return model, fit(model, Stage("text", steps, 3e-3, ("llm",), 3), batch, folder)

    return run


@pytest.mark.parametrize("stopped_at", [2, 4, 7])
def test_a_stopped_stage_ends_as_an_unbroken_one(tmp_path, stopped_at):
    run = small_text_stage()
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "parts", stop=stopped_at)
    again, _ = run(tmp_path / "parts")
    assert all(torch.equal(w, again.state_dict()[name]) for name, w in whole.state_dict().items())


def test_a_stopped_stage_keeps_its_seconds_and_its_loss(tmp_path):
    run = small_text_stage()
    _, whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "parts", stop=7)
    before = notes_of(tmp_path / "parts" / "text.safetensors")
    _, again = run(tmp_path / "parts")
    assert before["step"] == 6 and again["seconds"] > before["seconds"] > 0
    assert again["loss"] == whole["loss"]
    _, done = run(tmp_path / "parts", stop=0)  # nothing is left to do, and it says the same
    assert done["loss"] == whole["loss"] and done["seconds"] > before["seconds"]


def test_shares_of_all_processes_are_one_batch():
    own = bank(data.make_scenes(data.WorldConfig(), 8, "train", seed=0))
    seen = Features(last=torch.arange(8.0).view(8, 1, 1))
    draw = batches(own, profiles.Schedule(1, batch=5, lr=1.0, pack=3), (0, 1), seen, (1, 4, 16))
    whole, shares = draw(7, Share()), [draw(7, Share(rank, 2)) for rank in (0, 1)]
    assert whole.weight == 1 and sum(part.weight for part in shares) == pytest.approx(2)
    assert len({part.inputs[2] for part in (whole, *shares)}) == 1  # one V, drawn on the host
    assert isinstance(whole.inputs[2], int)
    for rank, part in enumerate(shares):
        for i, words in enumerate(part.inputs[0].ids):
            assert text(own, words) == text(own, whole.inputs[0].ids[rank + 2 * i])
        assert torch.equal(part.inputs[1].last, whole.inputs[1].last[rank::2])
    with pytest.raises(vtc.InputError, match="too small for 6 processes"):
        draw(7, Share(5, 6))


def text(own, ids):
    return [i for i in ids.tolist() if i != own.pad_id]


def test_two_processes_learn_as_one_does(tmp_path):
    """Same global batch, another number of processes: the same loss at every step."""
    script = tmp_path / "curve.py"
    script.write_text(CURVE)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    curves = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.json"
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        words = [sys.executable, *torchrun, str(script), str(processes), str(out)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        curves.append(json.loads(out.read_text()))
    assert len(curves[0]) == 20 and np.mean(curves[0][-4:]) < np.mean(curves[0][:4]) - 0.5
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


CURVE = """
import json, sys
from pathlib import Path
import torch
from accelerate import Accelerator
from vtc import data
from vtc.models.llm import make_llm, make_tokenizer
from vtc.models.vlm import text_model
from vtc.shapes import LLMShape
from vtc.training import loop
from vtc.training.checkpoints import build_once
from vtc.training.device import processes
from vtc.training.lessons import Reader, TextLessons

loop.autocast = lambda kind, d: torch.autocast(kind, enabled=False)  # float32, so that the sums agree
torch.Tensor.bfloat16 = torch.Tensor.float  # in Muon too: a bit of bf16 that flips moves a loss by 2e-4
assert processes().num_processes == int(sys.argv[1])  # as every entry into training asks first
accelerator = Accelerator()
assert accelerator.num_processes == int(sys.argv[1])
tokenizer = make_tokenizer()
world = data.WorldConfig(lands=1, entities=2, offset=1.0)
scenes = data.make_scenes(world, 8, "train", seed=0)
lessons = TextLessons(scenes, data.Facts(world), Reader(tokenizer), 0, 5, 5, 3)
torch.manual_seed(accelerator.process_index)  # the first process's weights are everybody's
llm = make_llm(LLMShape("t", d=16, layers=1, heads=1, d_ff=32, tied=True), len(tokenizer))
model = text_model(llm, tokenizer)
losses, out = [], Path(sys.argv[2])
model.register_forward_hook(lambda module, given, loss: losses.append(loss.detach()))

weights = []

def batch(step, share):
    made = lessons.batch(step, share)
    weights.append(made.weight)
    return made

def make():
    loop.fit(model, loop.Stage("text", 20, 6e-3, ("llm",), 100), batch, None)
    return {"embed": model.llm.get_input_embeddings().weight.detach()}, {}

build_once(out.with_suffix(".safetensors"), make)  # one file, made by all processes together
mine = torch.stack(losses) * torch.tensor(weights)
curve = accelerator.reduce(mine, "mean")
if accelerator.is_main_process:
    assert out.with_suffix(".safetensors").exists()
    out.write_text(json.dumps(curve.tolist()))
accelerator.end_training()
"""


def test_a_bf16_checkpoint_learns_in_float32_and_stays_bf16():
    """At a rate of 2e-5 a bf16 weight near 1 would not move at all; its float32 master does, and adds up."""

    class Line(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
            self.seen = []

        def forward(self):
            self.seen.append(self.w.dtype)
            return self.w.sum()

    model = Line()
    stage = Stage("line", 400, 2e-5, ("w",), 1000, muon=False)
    fit(model, stage, lambda step, share: Batch(()), None)
    assert set(model.seen) == {torch.float32} and model.w.dtype == torch.bfloat16
    assert (model.w < 1).all()  # 400 steps of half the rate on average: .004, one bf16 step below 1

    stuck = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    adam = torch.optim.AdamW([stuck], lr=2e-5, weight_decay=0)
    for _ in range(400):
        stuck.grad = torch.ones_like(stuck)
        adam.step()
    assert (stuck == 1).all()


def test_features_beyond_the_budget_are_computed_when_asked_for(smoke):
    """The same numbers as kept ones, and nothing is written."""
    kept = features.features(smoke, "test", selecting=True)
    size = features.size_in_bytes(smoke, len(kept), selecting=True)
    parts = (kept.levels, kept.attention, kept.keys)
    assert size == sum(part.numel() * part.element_size() for part in parts)
    tight = replace(smoke, feature_bytes=size - 1)
    before = set(smoke.cache_before_align.iterdir())
    demanded = features.features(tight, "test", selecting=True)
    assert isinstance(demanded, features.OnDemand) and len(demanded) == len(kept)
    rows = torch.tensor([3, 0, 7])
    for name in ("last", "levels", "attention", "keys"):
        ours, theirs = getattr(demanded[rows], name).float(), getattr(kept, name)[rows].float()
        assert torch.allclose(ours, theirs, atol=0.05, rtol=0.02), name
    assert set(smoke.cache_before_align.iterdir()) == before


def test_the_paper_profile_is_llavas_recipe_and_fits_a_disk():
    p = profiles.get("paper")
    align, instruct = p.recipe.align, p.recipe.instruct
    assert (align.batch, align.lr, align.steps) == (256, 1e-3, -(-558_128 // 256))
    assert (instruct.batch, instruct.lr, instruct.steps) == (128, 2e-5, 665_298 // 128)
    assert not p.recipe.muon and p.recipe.warmup == 0.03
    assert all(p.recipe.lr(instruct, size.d) == 2e-5 for size in p.sizes)
    whole = features.size_in_bytes(p, p.images_train)
    assert whole > 2e12 and whole > p.feature_bytes  # 2.6 TB: computed, not kept
    assert p.feature_bytes * 4 < 500 * profiles.GB


def test_a_wider_llm_learns_more_slowly_on_a_gpu_too():
    p = profiles.get("gpu")
    rates = [p.recipe.lr(p.recipe.text, size.d) for size in p.sizes]
    assert rates == sorted(rates, reverse=True) and rates[0] > 2 * rates[-1]
    assert p.g == 24 and max(p.V) == 576 and len(p.sizes) >= 7 and len(p.seeds) == 5
    assert len({(size.layers, size.d // size.heads) for size in p.sizes}) == 1


def test_a_torch_without_onednn_trains_in_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    device.bf16_is_fast.cache_clear()
    try:
        assert not device.bf16_is_fast("cpu") and not device.bf16_is_fast("mps")
    finally:
        device.bf16_is_fast.cache_clear()


def test_a_cpu_computes_wide_models_alone_in_bf16(smoke, monkeypatch):
    """The width is the LLM's, whichever stage trains."""
    monkeypatch.setattr(device, "bf16_is_fast", lambda kind: kind != "mps")
    said = {kind: [device.in_bf16(kind, d) for d in (16, 95, 96)] for kind in ("cpu", "cuda", "mps")}
    assert said == {"cpu": [False, False, True], "cuda": [True] * 3, "mps": [False] * 3}
    dtypes = []
    for d in (16, 128):
        stage = stages._stage(smoke.recipe, "instruct", d, ("llm",))
        with device.autocast("cpu", stage.d):
            dtypes.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
    assert dtypes == [torch.float32, torch.bfloat16]


def test_the_next_batch_is_made_while_this_one_is_used():
    """As on an accelerator: in order, one ahead, errors where the batch is due."""
    made = []

    def batch(step):
        made.append(step)
        if step == 3:
            raise Killed
        return Batch((torch.full((2,), step), Features(last=torch.zeros(1, 1, 1)), 4))

    coming = device.prefetched(batch, range(5), torch.device("meta"))
    for _ in range(3):
        words, seen, V = next(coming).inputs
        assert words.is_meta and seen.last.is_meta and V == 4
    with pytest.raises(Killed):
        next(coming)
    assert made == [0, 1, 2, 3]
