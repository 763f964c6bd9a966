"""The model: packed questions answered as if alone; the image reaches the answer; save, load, generate."""

import json
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

import vtc
from vtc import data, profiles
from vtc.compressors.base import Features
from vtc.models import kernels
from vtc.models.llm import LEAN, Norm, lean, make_llm, make_tokenizer, swap_norms
from vtc.models.prompt import NOBODY, SHARED, ImageSlot, block_mask, raster_positions
from vtc.models.runner import Runner
from vtc.models.tower import load_checkpoint
from vtc.models.vlm import VLM, VLMConfig
from vtc.shapes import LLMShape
from vtc.training import stages, tower
from vtc.training.batches import Bank, Question
from vtc.training.device import Batch

P = profiles.get("smoke")
SIZE = LLMShape("test", d=32, layers=2, heads=2, d_ff=64, tied=True)


def features(b: int, seed: int = 0) -> Features:
    levels = torch.randn(b, P.s, P.tower.d * 2, generator=torch.Generator().manual_seed(seed))
    return Features(levels=levels, last=levels[..., -P.tower.d :])


def model(compressor: str = "tokenpacker", V: int = 4, **options) -> VLM:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    case = stages.Case("test", V, compressor, 0, json.dumps(options))
    return stages.assemble(P, case, make_llm(SIZE, len(tokenizer)), tokenizer).eval()


def talkative(compressor: str, V: int = 4, **options) -> VLM:
    """An untrained LLM repeats itself, its head being its embedding: this one's head is another."""
    vlm = model(compressor, V, **options)
    says = torch.randn(len(vlm.tokenizer), SIZE.d)
    says[: vlm.tokenizer.eos_token_id] = 0  # padding and unknown words are not spoken
    vlm.llm.lm_head.weight = torch.nn.Parameter(says)
    return vlm


def bank(n: int = 4) -> Bank:
    """Thirteen questions of every kind about each of n images."""
    scenes, rows = data.make_scenes(P.world, n, "train", seed=11), np.repeat(np.arange(n), 13)
    rng = np.random.default_rng(0)
    asked = data.ask_any(scenes, rows, data.Facts(P.world), "train", rng, (1, 1, 1, 1), 0.2)
    questions = [Question(int(asked.scene[i]), *asked.text(i)) for i in range(len(asked))]
    return Bank(questions, make_tokenizer())


def answer_losses(vlm: VLM, packed, seen: Features) -> float:
    with torch.no_grad():
        return vlm(packed, seen).item()


STEERED = ["quecc", "quecc_shared", "quecc_light", "glances_steered", "lookup"]


@pytest.mark.parametrize("compressor", ["tokenpacker", "pool", "glances", "llavamini_fused", *STEERED])
def test_packed_questions_are_learnt_as_if_alone(compressor):
    vlm, questions, seen = model(compressor), bank(1), features(1)
    rows = list(range(6))
    together = answer_losses(vlm, questions.pack([rows]), seen)
    alone = [answer_losses(vlm, questions.pack([[r]]), seen) for r in rows]
    assert together == pytest.approx(np.mean(alone), abs=2e-5)


def test_packed_questions_do_not_see_each_other():
    vlm, questions, seen = model(), bank(1), features(1)
    first = questions.pack([[0, 1]])
    changed = questions.pack([[0, 5]])
    keep = (first.segment == 0).float()
    t = int(keep.sum())
    one = answer_losses(vlm, replace(first, weight=first.weight * keep), seen)
    weight = torch.zeros_like(changed.weight)
    weight[:, :t] = changed.weight[:, :t]
    assert one == pytest.approx(answer_losses(vlm, replace(changed, weight=weight), seen), abs=1e-6)


@pytest.mark.parametrize(
    "compressor, V",
    [("tokenpacker", 4), ("identity", 144), ("none", 0)]
    + [(name, 4) for name in ("llavamini_fused", *STEERED)],
)
def test_generate_says_what_training_would(compressor, V):
    """Greedy decoding with padding, caches and all questions at once, against training's pass over one."""
    vlm, seen = talkative(compressor, V), features(5)
    vlm.config.span = 2
    asked = ["x7 y2 owl ?", "x5 y7 owl whence ?", "x3 y5 read ?", "land ?"]
    asked.append("x3 y5 right ?")
    said = vlm.generate(seen, asked, max_new_tokens=3)
    assert len(set(said)) > 1
    for i, (question, answer) in enumerate(zip(asked, said)):
        alone = Bank([Question(0, question, answer)], vlm.tokenizer)
        packed = alone.pack([[0]])
        with torch.no_grad():
            best = vlm.logits(packed, seen[i : i + 1]).argmax(-1).tolist()
        right = packed.ids[0, alone.rows[0].question :].tolist()
        assert best[: min(3, len(right))] == right[:3]  # the fourth, the end, was added by the bank


@pytest.mark.parametrize("compressor", ["tokenpacker", "llavamini_fused", *STEERED])
def test_several_questions_an_image_are_answered_as_each_alone(compressor):
    vlm, seen = talkative(compressor), features(3)
    turns = [["x7 y2 owl ?", "land ?", "x3 y5 read ?"], ["x5 y7 owl whence ?"], []]
    alone = [[vlm.generate(seen[i : i + 1], [q])[0] for q in asked] for i, asked in enumerate(turns)]
    assert len({answer for said in alone for answer in said}) > 2
    assert vlm.generate(seen, turns) == alone


def test_tokens_dropped_inside_the_llm():
    """FastV trains as identity does, and answers as it does where it keeps all."""
    asked, seen = ["land ?", "x5 y7 owl whence ?"], features(2)
    whole, all_kept = talkative("identity", P.s), talkative("fastv", P.s, layer=1)
    few = talkative("fastv", 4, layer=1)
    for other in (all_kept, few):
        other.load_state_dict(whole.state_dict())
        packed = bank(2).pack([[0, 1], [2]])
        assert answer_losses(other, packed, seen) == answer_losses(whole, packed, seen)
    alone = [[m.generate(seen[i : i + 1], [q])[0] for i, q in enumerate(asked)] for m in (whole, few)]
    assert len({*alone[0], *alone[1]}) > 2
    assert [all_kept.generate(seen, asked), few.generate(seen, asked)] == alone
    lengths = []
    few.llm.model.layers[1].register_forward_hook(lambda _, x, y: lengths.append(y.shape[1]))
    few.generate(seen, asked, max_new_tokens=3)
    assert lengths == [4 + 5, 1, 1]


def test_question_before_the_image_is_read_once():
    """quecc_shared: the LLM reads the question once, as the prompt's beginning; quecc reads it twice."""
    seen, read = features(1), {}
    for name in ("quecc", "quecc_shared"):
        vlm, tokens = model(name), []
        vlm.llm.model.layers[0].register_forward_hook(
            lambda _, x, y, tokens=tokens: tokens.append(y.shape[1])
        )
        vlm.generate(seen, ["x5 y7 owl whence ?"], max_new_tokens=1)
        read[name] = sum(tokens)
    assert read == {"quecc": 5 + 4 + 5, "quecc_shared": 5 + 4}


def test_generate_does_not_depend_on_its_neighbours():
    vlm, seen = talkative("tokenpacker"), features(3)
    asked = ["x7 y2 owl ?", "more 3 than 5 ?", "land ?"]
    together = vlm.generate(seen, asked)
    assert len(set(together)) == 3
    assert together == [vlm.generate(seen[i : i + 1], [q])[0] for i, q in enumerate(asked)]


def test_padding_stays_finite_in_bf16():
    """A row that may see nothing (padding) must not poison the others; in bf16 the mask's least is -inf."""
    vlm, seen = model(), features(2)
    real = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = vlm.llm(inputs_embeds=torch.randn(2, 4, SIZE.d), attention_mask=real, use_cache=False)
    assert torch.isfinite(out.logits[:, 2:]).all()
    assert len(vlm.generate(seen, ["land ?", "x7 y2 owl ?"])) == 2


def test_image_and_question_change_the_answer_distribution():
    vlm, questions = model("quecc", 1), bank(1)
    packed = questions.pack([[0]])
    assert answer_losses(vlm, packed, features(1, 0)) != answer_losses(vlm, packed, features(1, 1))


def test_block_mask_by_hand():
    segment = torch.tensor([[SHARED, 0, 0, 1, NOBODY]])
    seen = block_mask(segment, torch.tensor([[0, 1, 2, 1, 0]]))[0, 0] == 0
    assert seen.tolist() == [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [True, True, True, False, False],
        [True, False, False, True, False],
        [True, False, False, False, True],
    ]


def test_written_out_attention_and_norms_equal_transformers():
    torch.manual_seed(0)
    ours = make_llm(SIZE, 50)
    config = ours.config.__class__(**{**ours.config.to_dict(), "_attn_implementation": "eager"})
    theirs = Qwen2ForCausalLM(config)
    theirs.load_state_dict(ours.state_dict())
    ids = torch.randint(0, 50, (2, 9))
    with torch.no_grad():
        assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-5)


def test_gradient_reaches_what_trains_and_nothing_else():
    vlm, questions = model(), bank(2)
    stage = stages.Stage("align", 1, 1e-3, ("compressor", "projector"), 100)
    before = {n: p.clone() for n, p in vlm.named_parameters()}
    packed = questions.pack([[0, 1], [12]])
    stages.fit(vlm, stage, lambda step, share: Batch((packed, features(2))), None)
    moved = {n.split(".")[0] for n, p in vlm.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"compressor"}  # TokenPacker ends at the LLM's width: it has no projector


@pytest.mark.parametrize("compressor", ["llavamini_fused", *STEERED])
def test_saved_model_answers_alike(compressor, tmp_path):
    vlm = model(compressor, 4)
    vlm.tower = tower.Tower(P.tower).eval().requires_grad_(False)
    vlm.save_pretrained(tmp_path)
    again = VLM.from_pretrained(tmp_path)
    images = torch.from_numpy(data.render(data.make_scenes(P.world, 2, "test", 0), "test", P.pixels))
    asked = ["x7 y2 owl ?", "land ?"]
    assert again.generate(images, asked) == vlm.generate(images, asked)
    packed = bank(2).pack([[0, 1], [2]])
    with torch.no_grad():
        wanted, found = (m.logits(packed, m.tower(images)) for m in (vlm, again))
    assert torch.equal(wanted, found)
    assert {f.suffix for f in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_a_save_that_fails_leaves_the_old_folder_whole(tmp_path, monkeypatch):
    first, second = model(), model("quecc")
    first.save_pretrained(tmp_path / "model")
    before = {f.name: f.read_bytes() for f in (tmp_path / "model").iterdir()}

    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(second.tokenizer, "save_pretrained", full)  # the last that is written
    with pytest.raises(vtc.InputError, match="No space left"):
        second.save_pretrained(tmp_path / "model")
    assert {f.name: f.read_bytes() for f in (tmp_path / "model").iterdir()} == before
    assert [f.name for f in tmp_path.iterdir()] == ["model"]
    assert VLM.from_pretrained(tmp_path / "model").config.compressor == "tokenpacker"


def test_the_model_is_a_transformers_model(tmp_path):
    vlm = model("quecc")
    vlm.tower = tower.Tower(P.tower).requires_grad_(False)
    assert isinstance(vlm, PreTrainedModel) and vlm.config.sub_configs.keys() == {"llm"}
    assert vlm.all_tied_weights_keys == {"llm.lm_head.weight": "llm.model.embed_tokens.weight"}
    assert "tower.visual.conv1.0.weight" in vlm.state_dict()  # it moves and is saved with the model
    assert not vlm.train().tower.training and not any(p.requires_grad for p in vlm.tower.parameters())
    vlm.save_pretrained(tmp_path)
    config = VLMConfig.from_pretrained(tmp_path)
    assert config.to_json_string() == vlm.config.to_json_string() and config.llm.hidden_size == SIZE.d
    assert "llm.lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    VLMConfig(llm=vlm.llm.config)  # takes a copy: the LLM's own keeps its attention
    assert vlm.llm.config._attn_implementation == vlm.config.attention == LEAN
    again = VLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(w, again[name]) for name, w in vlm.state_dict().items())


@pytest.mark.parametrize(
    "name, made", [("ViT-L-14-336", "-quickgelu"), ("ViT-bigG-14", "-quickgelu"), ("RN50x99", "")]
)
def test_openai_towers_are_built_with_the_gelu_they_were_trained_with(name, made, monkeypatch):
    asked = []

    def create_model(*given, **how):
        asked.append((given, how))
        raise RuntimeError("no network here")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    with pytest.raises(vtc.InputError, match="no network here"):
        load_checkpoint(name, (1, 2))
    assert asked == [((name + made,), {"pretrained": "openai"})]
    assert open_clip.get_model_config("ViT-L-14-336-quickgelu")["quick_gelu"]


def test_folder_that_holds_no_model_is_said_in_one_line(tmp_path):
    with pytest.raises(vtc.InputError, match="no saved model"):
        VLM.from_pretrained(tmp_path)


def no_projector(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "projector" not in k}, folder / "model.safetensors")


@pytest.mark.parametrize(
    "spoil, said",
    [
        (no_projector, "has no projector.0.weight"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"), "no saved model"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no saved model"),
    ],
)
def test_a_spoilt_model_is_said_in_one_line(spoil, said, tmp_path):
    model("quecc").save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(vtc.InputError, match=said) as error:
        VLM.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_model_saved_without_a_tower_does_not_answer_pixels(tmp_path):
    model().save_pretrained(tmp_path)
    images = torch.zeros(1, P.pixels, P.pixels, 3, dtype=torch.uint8)
    with pytest.raises(vtc.InputError, match="give it a tower"):
        VLM.from_pretrained(tmp_path).generate(images, ["land ?"])


@pytest.mark.parametrize(
    "compressor, asked, misled, said",
    [
        ("quecc_shared", ["land"], None, "'land': 1 tokens"),
        ("tokenpacker", [""], None, "0 tokens"),
        ("tokenpacker", ["land ?"] * 2, None, "1 images, 2 questions"),
        ("quecc", ["land ?"], ["land ?"] * 2, "shuffled: 2 questions"),
        ("quecc", [["land ?"]], ["land ?"], "shuffled: 1 questions"),
        ("quecc_shared", ["land ?"], ["count ?"], "shuffled: quecc_shared"),
    ],
)
def test_requests_that_cannot_be_met_are_said_in_one_line(compressor, asked, misled, said):
    with pytest.raises(vtc.InputError, match=said):
        model(compressor).generate(features(1), asked, shuffled=misled)


@pytest.mark.parametrize("asked", [[], [[]]])
def test_nothing_asked_is_nothing_said(asked):
    assert model().generate(features(1), asked) == asked


@pytest.mark.parametrize("compressor", ["quecc", "quecc_light", "llavamini_fused"])
def test_a_checkpoint_in_bf16_with_grouped_heads_answers_and_is_saved(compressor, tmp_path):
    """Its own tokenizer, whose padding is not 0, its weights' type, and heads that share keys."""
    tokenizer = make_tokenizer(("<more>", *data.WORDS[::-1]))
    tokenizer.pad_token = "<more>"
    tokenizer.save_pretrained(tmp_path)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **shape)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    size = LLMShape("own", d=32, layers=2, heads=4, d_ff=64, checkpoint=str(tmp_path))
    vlm = stages.build(replace(P, sizes=(size,)), stages.Case("own", 4, compressor, 0)).eval()
    assert vlm.tokenizer.pad_token_id == 3 and vlm.llm.dtype == torch.bfloat16
    vlm.save_pretrained(tmp_path / "saved")
    again, asked, seen = VLM.from_pretrained(tmp_path / "saved"), ["land ?", "read ?"], features(2)
    assert len(vlm.generate(seen, asked)) == len(again.generate(seen, asked)) == 2
    rows = [Question(0, q, "3") for q in ("land ?", "x3 y5 read ?")]
    packed = Bank(rows, vlm.tokenizer).pack([[0], [1]])
    assert answer_losses(again, packed, seen) == pytest.approx(answer_losses(vlm, packed, seen), abs=0.02)


def test_what_a_model_is_given_goes_to_its_device(monkeypatch):
    """The meta device stands for an accelerator, as far as it carries."""
    vlm, seen, packed = model("quecc").to("meta"), features(1), bank(1).pack([[0, 1]])
    assert vlm.attention_map(seen, ["land ?", "x3 y5 read ?"]).is_meta
    monkeypatch.setattr("vtc.models.generate._answer", lambda model, seen, *_: [[[]]] * seen.last.is_meta)
    assert vlm.generate(seen, ["land ?"])
    monkeypatch.setattr(vlm, "logits", lambda packed, seen: 1 / (packed.ids.is_meta - seen.last.is_meta))
    with pytest.raises(ZeroDivisionError):  # both were moved
        vlm(packed, seen)
    images = torch.zeros(1, P.pixels, P.pixels, 3, dtype=torch.uint8)
    assert tower.Tower(P.tower).to("meta")(images, selecting=True).keys.is_meta


@pytest.mark.parametrize("compressor, V", [("tokenpacker", 1), ("quecc", None), ("lookup", 1)])
def test_a_step_reads_no_value_on_the_host(compressor, V, monkeypatch):
    """An accelerator would be waited for; the meta device has no values to give."""
    monkeypatch.setattr("vtc.models.vlm.precision", lambda llm: torch.float32)  # autocast knows no meta
    vlm = model(compressor).to("meta").train()
    loss = vlm(bank(1).pack([[0, 1]]), features(1), V)
    loss.backward()
    assert loss.is_meta


def test_kernels_made_for_a_cpu_stay_on_it(monkeypatch):
    """Attention written out, the norm's own gradient, packed products: elsewhere it is all torch's."""
    used, other = [], torch.zeros(1, 2, 3, 4, device="meta")
    torchs = lambda module, q, *_, **how: (used.append("torch's attention"), (q, None))[1]  # noqa: E731
    monkeypatch.setattr("vtc.models.llm.sdpa_attention_forward", torchs)
    monkeypatch.setattr("vtc.models.llm._RMS.apply", lambda *_: used.append("our norm"))
    lean(None, other, other, other, None, 1.0)
    Norm(torch.nn.Parameter(torch.ones(4, device="meta")), 1e-6)(other)
    assert used == ["torch's attention"]
    assert not kernels.folds(other) and not kernels.in_blocks(other.bfloat16())
    assert not kernels.Product([torch.nn.Linear(4, 4, device="meta")]).packed


def test_a_runner_decodes_no_further_than_its_cache():
    runner = Runner(make_llm(SIZE, 20))
    runner.reserve(1, 9)
    runner.prefill(torch.zeros(1, 5, SIZE.d))
    with pytest.raises(vtc.InputError, match="1 x 99 tokens"):
        runner.decode(torch.zeros(1, 1, dtype=int), 5, 94)


def test_swapped_norms_keep_weights_outputs_and_gradients():
    torch.manual_seed(0)
    theirs = Qwen2RMSNorm(6, eps=1e-6).double()
    torch.nn.init.normal_(theirs.weight)
    ours, x = Norm(theirs.weight, 1e-6), torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ours, x)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)  # theirs takes the mean in float32
    llm = swap_norms(make_llm(SIZE, 20))
    assert isinstance(llm.model.norm, Norm)
    assert "model.norm.weight" in llm.state_dict()


def test_many_visual_tokens_share_the_positions_of_few():
    assert raster_positions(16, 16) == tuple(range(16))
    slot = ImageSlot(16, span=4)
    assert slot.text_offset == 4
    rows = torch.tensor(raster_positions(16, 4)).view(4, 4).tolist()  # four blocks of two by two
    assert rows == [[0, 0.25, 1, 1.25], [0.5, 0.75, 1.5, 1.75], [2, 2.25, 3, 3.25], [2.5, 2.75, 3.5, 3.75]]
    assert slot.order[:5] == [0, 1, 4, 5, 2]  # block by block: a token sees those that stand before it
    assert slot.on("cpu")[0].tolist() == sorted(sum(rows, []))


@pytest.mark.parametrize("compressor", ["m3", "mqt_nested", "pool", "glances_nested"])
def test_at_another_V_the_weights_are_the_same(compressor):
    """A model built for 16 tokens and asked for 4, and one built for 4 that was given its weights."""
    large, small = model(compressor, V=16), model(compressor, V=4)
    small.load_state_dict(large.state_dict())
    packed, seen = bank(1).pack([[0, 1]]), features(1)
    with torch.no_grad():
        losses = [large(packed, seen, v).item() for v in (4, 16)]
        assert losses == pytest.approx([small(packed, seen).item(), large(packed, seen).item()], abs=1e-6)
    assert losses[0] != pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize("compressor", ["quecc", "quecc_light", "glances_steered"])
def test_misled_by_the_question_itself_nothing_changes(compressor):
    vlm, seen, logits = model(compressor), features(3), []
    asked = ["x3 y5 read ?", "x7 y2 owl ?", "count 7 ?"]
    vlm.llm.lm_head.register_forward_hook(lambda _, x, y: logits.append(y))
    for misled in (None, asked, asked[::-1]):
        vlm.generate(seen, asked, 1, misled)
    assert torch.equal(logits[0], logits[1])
    assert (logits[0] != logits[2]).any(-1).flatten().tolist() == [True, False, True]
    read = []
    vlm.read = lambda questions, *more: read.append(questions) or VLM.read(vlm, questions, *more)
    vlm.generate(seen, asked, 4, shuffled=asked[::-1])
    words = vlm.tokenizer.batch_decode(read[0][:, 0], skip_special_tokens=True)
    assert words == asked[::-1]


@pytest.mark.parametrize("compressor", ["tokenpacker", *STEERED])
def test_where_tokens_look_depends_on_the_question_where_it_steers(compressor):
    vlm, seen = model(compressor), features(1)
    looks = vlm.attention_map(seen, ["x5 y7 owl whence ?", "x3 y5 read ?"])
    assert looks.shape == (2, 4, P.s)
    assert torch.allclose(looks.sum(-1), torch.ones(2, 4), atol=1e-5)
    assert torch.equal(looks[0], looks[1]) == (not vlm.compressor.needs_question)
