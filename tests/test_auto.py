"""The model behind transformers' Auto classes: ids in, ids out, the same answers as by the friendly call."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from vtc import InputError, profiles
from vtc.models import chat, io
from vtc.models.auto import VLMForImageTextToText, VLMProcessor
from vtc.models.llm import LEAN, empty_llm, llm_config, make_tokenizer
from vtc.models.prompt import asked, pack
from vtc.models.tower import Tower
from vtc.models.vlm import VLM, VLMConfig

P = profiles.get("smoke")
QUESTIONS = ["what is it", "is the red one left of it", "how many"]
WORDS = tuple(dict.fromkeys(" ".join(QUESTIONS).split())) + tuple("abcdefghijklmnop")


def build(compressor, V, span=None):
    torch.manual_seed(0)
    tokenizer = make_tokenizer(WORDS)
    llm = empty_llm(llm_config(P.sizes[0], len(tokenizer)), LEAN)
    config = VLMConfig(
        llm=llm.config.to_dict(), tower=asdict(P.tower), grid=P.g, compressor=compressor, tokens=V, span=span
    )
    return VLM(config, llm, tokenizer, Tower(P.tower)).eval()


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (60, 50, 3), dtype=np.uint8)) for _ in QUESTIONS]


def loaded(folder):
    return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize(
    "compressor, V, span",
    [("tokenpacker", 4, None), ("tokenpacker", 16, 4), ("quecc", 4, None), ("quecc_shared", 4, None),
     ("prumerge", 4, None), ("llavamini_fused", 1, None), ("none", 0, None)],
)  # fmt: skip
def test_ids_give_the_answers_of_the_friendly_call(tmp_path, pictures, compressor, V, span):
    friendly = build(compressor, V, span)
    friendly.save_pretrained(tmp_path / "model")
    model, processor = loaded(tmp_path / "model")
    assert isinstance(model, VLMForImageTextToText) and isinstance(processor, VLMProcessor)
    assert isinstance(AutoModel.from_pretrained(tmp_path / "model"), VLM)
    assert AutoConfig.from_pretrained(tmp_path / "model").tokens == V
    inputs = processor(images=pictures, text=QUESTIONS)
    given = inputs["input_ids"].shape[1]
    said = model.generate(**inputs, max_new_tokens=6)
    assert torch.equal(said[:, :given], inputs["input_ids"])
    told = friendly.generate(inputs["pixel_values"] if V else None, QUESTIONS, 6)
    assert processor.batch_decode(said[:, given:], skip_special_tokens=True) == told
    again = model.generate(**inputs, max_new_tokens=6, use_cache=False)
    assert torch.equal(said, again)


def test_beams_sampling_and_batches(tmp_path, pictures):
    build("quecc", 4).save_pretrained(tmp_path / "model")
    model, processor = loaded(tmp_path / "model")
    inputs = processor(images=pictures, text=QUESTIONS)
    given = inputs["input_ids"].shape[1]
    beams = model.generate(**inputs, max_new_tokens=4, num_beams=3)
    assert beams.shape[0] == 3 and torch.equal(beams[:, :given], inputs["input_ids"])
    torch.manual_seed(0)
    drawn = model.generate(**inputs, max_new_tokens=4, do_sample=True, num_return_sequences=2)
    assert drawn.shape[0] == 6
    for i, (picture, question) in enumerate(zip(pictures, QUESTIONS)):  # alone as in the batch
        one = processor(images=picture, text=question)
        alone = model.generate(**one, max_new_tokens=4, num_beams=3)[0, one["input_ids"].shape[1] :]
        assert torch.equal(beams[i, given : given + len(alone)], alone)


@pytest.mark.parametrize("compressor", ["tokenpacker", "quecc", "quecc_shared", "llavamini_fused"])
def test_the_loss_on_labels_is_the_loss_of_our_training(pictures, compressor):
    friendly = build(compressor, 1)
    model = VLMForImageTextToText(friendly.config, friendly.llm, friendly.tokenizer, friendly.tower).eval()
    model.load_state_dict(friendly.state_dict())
    processor = VLMProcessor(friendly.tokenizer, P.pixels)
    pixels = processor(images=pictures[:2])["pixel_values"]
    rows = [([3, 4, 5], [6, 2]), ([7, 4], [8, 2])]
    features = friendly.eyes()(pixels, **friendly.compressor.of_tower)
    with torch.no_grad():
        ours = friendly(pack([[asked(*row)] for row in rows], 0), features)
        ids = torch.tensor([[3, 4, 5, 6, 2], [7, 4, 8, 2, 0]])  # padded on the right, as for training
        labels = torch.tensor([[-100, -100, -100, 6, 2], [-100, -100, 8, 2, -100]])
        mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
        theirs = model(ids, mask, pixels, labels).loss
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_another_process_without_network_says_the_same_tokens(tmp_path, pictures):
    build("quecc", 4).save_pretrained(tmp_path / "model")
    model, processor = loaded(tmp_path / "model")
    said = model.generate(**processor(images=pictures[0], text=QUESTIONS[0]), max_new_tokens=6)
    pictures[0].save(tmp_path / "picture.png")
    program = f"""
import socket
def refuse(*_, **__): raise OSError("no network")
socket.socket.connect = refuse
import vtc.models.auto
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained("model")
processor = AutoProcessor.from_pretrained("model")
inputs = processor(images="picture.png", text={QUESTIONS[0]!r})
print(model.generate(**inputs, max_new_tokens=6).tolist())
"""
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert out.stdout.strip().splitlines()[-1] == str(said.tolist())
    assert not [p for p in (tmp_path / "model").iterdir() if p.suffix in (".bin", ".pt", ".pkl", ".pth")]


def test_a_hub_id_stands_where_a_folder_stood(tmp_path, monkeypatch, pictures):
    friendly, asked = build("tokenpacker", 4), []

    def download(name, allow_patterns):
        asked.append((name, any("bin" in pattern for pattern in allow_patterns)))
        if name == "you/gone":
            raise OSError("404: no such repository")
        return str(tmp_path / "model")

    monkeypatch.setattr(io, "snapshot_download", download)
    friendly.save_pretrained(tmp_path / "model")
    model, pixels = (
        VLM.from_pretrained("you/model"),
        VLMProcessor(friendly.tokenizer, P.pixels)(pictures)["pixel_values"],
    )
    assert model.generate(pixels, QUESTIONS) == friendly.generate(pixels, QUESTIONS)
    with pytest.raises(InputError, match="you/gone: .*404"):
        VLM.from_pretrained("you/gone")
    with pytest.raises(InputError, match="no saved model"):
        VLM.from_pretrained(tmp_path / "nothing")  # a path is never asked for
    assert asked == [("you/model", False), ("you/gone", False)]


def test_what_does_not_fit_is_one_line(tmp_path, pictures):
    friendly = build("tokenpacker", 4)
    model = VLMForImageTextToText(friendly.config, friendly.llm, friendly.tokenizer, friendly.tower).eval()
    inputs = VLMProcessor(friendly.tokenizer, P.pixels)(images=pictures, text=QUESTIONS)
    with pytest.raises(InputError, match="3 prompts and 2 images"):
        model.generate(**inputs | {"pixel_values": inputs["pixel_values"][:2]})
    with pytest.raises(InputError, match="pad on the left"):
        model.generate(**{**inputs, "attention_mask": inputs["attention_mask"].flip(1)})
    with pytest.raises(InputError, match="no saved model"):
        VLMProcessor.from_pretrained(tmp_path)


def test_a_prompt_of_the_chat_template_is_not_put_into_it_again():
    processor = VLMProcessor(chat.ready(make_tokenizer(WORDS)), P.pixels)
    parts = [{"type": "image"}, {"type": "text", "text": QUESTIONS[0]}]
    prompt = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    assert QUESTIONS[0] in prompt and prompt != QUESTIONS[0]
    assert torch.equal(processor(text=prompt)["input_ids"], processor(text=QUESTIONS[0])["input_ids"])
