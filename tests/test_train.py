"""Training: a killed stage ends as an unbroken one; a cell's whole path; scores; bad cases in one line."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import vtc
from vtc import data, profiles
from vtc.evaluation import ask, scores
from vtc.experiments import sweep
from vtc.models.llm import make_llm, make_tokenizer
from vtc.models.vlm import text_model
from vtc.shapes import LLMShape
from vtc.training import stages, tower
from vtc.training.loop import Muon, Stage, fit
from vtc.training.losses import Guided


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke profile with a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VTC_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield profiles.get("smoke")


class Killed(Exception):
    pass


@pytest.mark.parametrize("stopped_at", [2, 4, 7])
def test_a_stopped_stage_ends_as_an_unbroken_one(tmp_path, stopped_at):
    size = LLMShape("t", d=16, layers=1, heads=1, d_ff=32, tied=True)
    tokenizer = make_tokenizer()
    scenes = data.make_scenes(8, "train", seed=0)
    told = [data.in_words(scenes, i) for i in range(8)]
    bank = stages.Bank(data.ask(scenes, tuple(data.MAKERS), "text", 0), tokenizer, told)
    stage = Stage("text", 8, 3e-3, ("llm",), 3)

    def run(folder, stop=None):
        torch.manual_seed(0)
        model = text_model(make_llm(size, len(tokenizer)), tokenizer)

        def batch(step):
            if step == stop:
                raise Killed
            return (bank.draw(4, 3, np.random.default_rng(step))[0],)

        fit(model, stage, batch, folder)
        return model.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "parts", stop=stopped_at)
    again = run(tmp_path / "parts")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_one_cell_through_the_whole_path(smoke):
    """Real classes at toy size: tower, text stage, align, instruct, answers, row; the same row twice."""
    case = {"size": "xs", "V": 16, "compressor": "tokenpacker", "seed": 0}
    row = sweep.measure(smoke, case)
    assert row["questions"] == len(ask.questions(smoke)) == len(scores.unpack(row["scores"]))
    assert row["N"] == sum(
        p.numel() for n, p in make_llm(smoke.size("xs"), 9).named_parameters() if "embed" not in n
    )
    same = ("loss", "scores", "error_reasoning", "error_ocr")
    again = sweep.measure(smoke, case)
    assert [row[k] for k in same] == [again[k] for k in same]


def test_a_compressor_trained_once_serves_every_V(smoke, monkeypatch):
    """The second V costs no step, and has the same loss and other answers."""
    cases = [{"size": "xs", "V": v, "compressor": "m3", "seed": 0} for v in stages.served(smoke)]
    rows = [sweep.measure(smoke, cases[0])]
    monkeypatch.setattr(stages, "fit", lambda *_: pytest.fail("trained again"))
    rows += [sweep.measure(smoke, case) for case in cases[1:]]
    assert len(rows) > 1 and len({row["loss"] for row in rows}) == 1
    assert len({row["scores"] for row in rows}) > 1


@pytest.mark.parametrize("name, seen", [("lookup", [16, None]), ("lookup_unaligned", [None, None])])
def test_a_compressor_may_be_aligned_at_more_tokens(smoke, monkeypatch, name, seen):
    """What each stage's first batch says of V: nothing, or that of the align stage."""
    stages = []

    def fit(model, stage, batch, folder):
        stages.append(next((int(v) for v in batch(0)[2:]), None))
        return {"loss": 0.0, "seconds": 1.0, "steps": 1}

    monkeypatch.setattr(stages, "text_llm", lambda p, size, seed: make_llm(size, len(make_tokenizer())))
    monkeypatch.setattr(stages, "fit", fit)
    stages.train(smoke, stages.Case("xs", 1, name, 0))
    assert stages == seen


def test_a_steered_compressor_is_also_asked_with_another_question(smoke):
    rows = {}
    for name in ("quecc_light", "quecc_unasked"):
        rows[name] = sweep.measure(smoke, {"size": "xs", "V": 1, "compressor": name, "seed": 0})
    assert len(rows["quecc_light"]["shuffled"]) == len(rows["quecc_light"]["scores"])
    assert rows["quecc_unasked"]["shuffled"] == ""


def test_training_lowers_the_loss(smoke):
    """Thirty steps on eight scenes: far below the loss of guessing among all words."""
    tokenizer = make_tokenizer()
    scenes = data.make_scenes(8, "train", seed=0)
    bank = stages.Bank(
        data.ask(scenes, ("digits", "max"), "text", 0),
        tokenizer,
        [data.in_words(scenes, i) for i in range(8)],
    )
    torch.manual_seed(0)
    model = text_model(make_llm(smoke.size("s"), len(tokenizer)), tokenizer)
    stage = Stage("text", 30, 3e-3, ("llm",), 1000)
    notes = fit(model, stage, lambda step: (bank.draw(8, 2, np.random.default_rng(step))[0],), None)
    assert notes["loss"] < 0.5 * np.log(len(tokenizer))


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
    questions = [
        data.Question(0, "x", "how many digits ?", "3"),
        data.Question(0, "y", "read the digits ?", "1 2 3"),
    ]
    bank = stages.Bank(questions, tokenizer)
    packed = bank.pack([[0, 1]], np.zeros(1, int))
    assert tokenizer.decode(packed.ids[0]) == "how many digits ? 3 <end> read the digits ? 1 2 3 <end>"
    assert packed.segment[0].tolist() == [0] * 6 + [1] * 8
    assert packed.position[0].tolist() == [*range(6), *range(8)]
    said = [
        tokenizer.decode(packed.ids[0][(packed.weight[0] > 0) & (packed.segment[0] == k)]) for k in (0, 1)
    ]
    assert said == ["3 <end>", "1 2 3 <end>"]
    assert packed.weight.sum() == pytest.approx(2)
    assert [tokenizer.decode(q, skip_special_tokens=True) for q in packed.questions[0]] == [
        "how many digits ?",
        "read the digits ?",
    ]


def test_the_bank_pads_questions_as_its_tokenizer_does():
    tokenizer = make_tokenizer()
    tokenizer.pad_token = "<end>"
    bank = stages.Bank(
        [data.Question(0, "x", q, "3") for q in ("describe ?", "read the digits ?")], tokenizer
    )
    padded = bank.pack([[0, 1]], np.zeros(1, int)).questions[0]  # (2, 4)
    assert (padded == tokenizer.pad_token_id).tolist() == [[False, False, True, True], [False] * 4]


@pytest.mark.parametrize(
    "said, right, similarity",
    [("1 2 3", "1 2 3", 1), ("", "1 2", 0), ("1 3", "1 2 3", 2 / 3), ("3 2 1", "1 2 3", 1 / 3), ("", "", 1)],
)
def test_edit_similarity_by_hand(said, right, similarity):
    assert scores.edit_similarity(said, right) == pytest.approx(similarity)


def test_packed_scores_come_back():
    values = [0.0, 1.0, 0.5, 0.05, 0.95]
    assert scores.unpack(scores.pack(values)) == pytest.approx(values)


def test_errors_average_tasks_not_questions():
    asked = [data.Question(0, t, "?", "a") for t in data.TASKS] + [data.Question(0, "max", "?", "a")] * 3
    row = scores.errors(asked, [float(q.task == "max") for q in asked])
    assert row["error_reasoning"] == pytest.approx(1 - 1 / len(data.REASONING)) and row["error_ocr"] == 1


def test_tower_features_are_the_same_from_the_cache_and_anew(smoke):
    cached = tower.features(smoke, "test", selecting=True)
    images = torch.from_numpy(data.render(tower.images_of(smoke, "test"), "test", smoke.pixels, range(3)))
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
    images = torch.from_numpy(data.render(tower.images_of(smoke, "test"), "test", smoke.pixels, range(3)))
    eyes = tower.pretrained(smoke)
    with torch.no_grad():
        whole, same, few = eyes(images), eyes(images, side=smoke.g), eyes(images, side=3)
        dot = images.clone()
        dot[0, -1, -1] = 255 - dot[0, -1, -1]  # one pixel of the first image
        moved = (eyes(dot, side=3).last - few.last).abs().amax((1, 2))
    assert torch.allclose(whole.levels, same.levels, atol=1e-5)
    assert few.last.shape == (3, 9, smoke.tower.d)
    assert moved[0] > 1e-3 > moved[1:].max()


def test_a_checkpoint_tower_also_gives_its_class_token(smoke, tmp_path):
    vision = {"image_size": smoke.pixels, "layers": 2, "width": 32, "patch_size": 4, "head_width": 16}
    text = {"context_length": 4, "vocab_size": 8, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(open_clip.model.CLIP(**config).state_dict(), tmp_path / "open_clip_model.safetensors")
    p = replace(smoke, tower=replace(smoke.tower, checkpoint=str(tmp_path)), run="checkpoint-tower")
    eyes, out = tower.pretrained(p), []
    eyes.visual.transformer.resblocks[1].register_forward_hook(lambda _, x, y: out.append(y[:, 0]))
    images = torch.from_numpy(data.render(tower.images_of(p, "test"), "test", p.pixels, range(3)))
    seen = eyes(images, selecting=True)
    assert torch.equal(seen.cls, out[0])
    assert torch.allclose(tower.features(p, "test", selecting=True).cls[:3].float(), seen.cls, atol=0.1)
    assert tower.features(smoke, "test", selecting=True).cls is None


def test_a_guided_model_keeps_its_own_loss_and_leaves_the_decoder_behind(smoke):
    case = stages.Case("xs", 4, "quecc_distilled", 0)
    model, notes = stages.train(smoke, case)
    assert not any("distil" in name for name in model.state_dict())
    guided = Guided(model)
    questions = stages.Bank(data.ask(tower.images_of(smoke, "test"), ("read",), "test", 0), model.tokenizer)
    packed, rows = questions.draw(2, 3, np.random.default_rng(0))
    seen = tower.features(smoke, "test")[torch.from_numpy(rows)].to(torch.float32)
    own = model(packed, seen)
    guided.distil.weight = 0.0
    assert guided(packed, seen).item() == pytest.approx(own.item(), abs=1e-6)
    guided.distil.weight = 1.0
    guided(packed, seen).backward()
    assert all(part.grad is not None for part in guided.distil.parameters())
    assert all(part.grad is not None for part in model.compressor.parameters())


@pytest.mark.parametrize("name", ["prumerge_plus", "visionzip", "tome", "dct", "downsample_image"])
def test_compressors_without_training_go_the_whole_way(smoke, name):
    case = {"size": "xs", "V": 16, "compressor": name, "seed": 0}
    assert 0 <= sweep.measure(smoke, case)["error_reasoning"] <= 1


@pytest.mark.parametrize(
    "bad, good, said",
    [
        (stages.Case("xs", 4, "fastv", 0), stages.Case("m", 4, "fastv", 0), "layer 2"),
        (
            stages.Case("m", 4, "fastv", 0, '{"layer": 3}'),
            stages.Case("xs", 4, "fastv", 0, '{"layer": 1}'),
            "3",
        ),
        (stages.Case("m", 7, "mqt_nested", 0), stages.Case("m", 9, "mqt_nested", 0), "0 .*, 1, 4, 9, 16, 36"),
    ],
)
def test_cases_that_would_fail_later_are_said_before_any_work(bad, good, said):
    laptop = profiles.get("laptop")
    stages.check(laptop, good)
    with pytest.raises(vtc.InputError, match=said):
        stages.check(laptop, bad)


def test_each_training_has_a_folder_of_its_own(smoke):
    case = stages.Case("xs", 16, "m3", 0)
    said = [[data.Conversation(Path("a.png"), (("what ?", answer),))] for answer in ("red", "blue")]
    folders = [stages.checkpoints(smoke, case, one) for one in (None, *said)]
    assert folders[0].name == "m3-xs-V16-0" and len(set(folders)) == 3


def test_a_compressor_trained_once_is_kept_for_its_options(smoke, monkeypatch):
    asked = []
    monkeypatch.setattr(stages, "_train", lambda p, case, every: asked.append(case.options) or 1 / 0)
    for options in ("{}", '{"heads": 2}'):
        kept = stages.Case("xs", 1, "mqt_nested", 7, options)
        with pytest.raises(ZeroDivisionError):
            stages.train(smoke, kept)
        made = smoke.cache / f"mqt_nested-xs-7{'-heads2' if 'heads' in options else ''}"
        (made / "every-V.safetensors").touch()
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
        (["--size", "xxl"], "xs, s, m, l"),
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

    def fit(model, stage, batch, folder):
        drawn.update(int(batch(step)[2]) for step in range(9))
        return {"loss": 0.0, "seconds": 1.0, "steps": 1}

    monkeypatch.setattr(stages, "fit", fit)
    said = [data.Conversation(tmp_path / "a.png", (("what color ?", "red"), ("what ?", "red")))]
    stages.train_own(smoke, stages.Case("xs", 16, "mqt_nested", 0), said)
    assert drawn == set(stages.served(smoke))


def test_own_questions_too_short_to_stand_before_the_image_are_said(smoke, tmp_path):
    Image.new("RGB", (20, 30), "red").save(tmp_path / "a.png")
    said = [data.Conversation(tmp_path / "a.png", (("describe", "red"),))]
    with pytest.raises(vtc.InputError, match="'describe': 1 tokens"):
        stages.train_own(smoke, stages.Case("xs", 4, "quecc_shared", 0), said)


def test_own_images_train_save_and_answer(smoke, tmp_path):
    """LLaVA's format in, a saved model out, its answers scored: the door for people's own images."""
    turns = [{"from": "human", "value": "<image>\nwhat color ?"}, {"from": "gpt", "value": "red"}]
    entries = []
    for i in range(6):
        Image.new("RGB", (20, 30), "red").save(tmp_path / f"{i}.png")
        entries.append({"image": f"{i}.png", "conversations": turns})
    (tmp_path / "talk.json").write_text(json.dumps(entries))
    said = data.read_llava(tmp_path / "talk.json", tmp_path)
    p = replace(smoke, recipe=replace(smoke.recipe, align_steps=2, instruct_steps=25, pack=2))
    model, _ = stages.train_own(p, stages.Case("xs", 4, "quecc", 0), said)
    model.save_pretrained(tmp_path / "model")
    row = ask.own(vtc.models.vlm.VLM.from_pretrained(tmp_path / "model"), said)
    assert row["questions"] == 6 and row["exact"] == 1.0  # every answer is "red"
