"""`vtc.wrap` on tiny random models of six architectures: nothing patched, nothing downloaded."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from vtc import InputError, wrap
from vtc.adapters.hf import load
from vtc.benchmark.speed import Published
from vtc.compressors.base import Features

IMAGE, SIDE, GRID, VOCABULARY = 100, 64, 16, 120
SPECIALS = [2, *range(IMAGE, VOCABULARY)]  # a random model must not say these: the end, an image
MERGED_GRID = GRID // 2  # of the models that merge neighbouring patches
LAYERS = dict(num_attention_heads=4, num_hidden_layers=2)
TEXT = dict(hidden_size=64, intermediate_size=96, num_key_value_heads=2, vocab_size=VOCABULARY, **LAYERS)
TEXT |= dict(max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2)
VISION = dict(hidden_size=32, intermediate_size=64, image_size=SIDE, patch_size=4)
VISION |= dict(num_attention_heads=4, num_hidden_layers=4)
PLACES = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
SPECIAL = dict(image_token_id=IMAGE, video_token_id=101, vision_start_token_id=102, vision_end_token_id=103)
MERGED = dict(depth=4, num_heads=4, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)


def llava():
    clip = {"model_type": "clip_vision_model", "projection_dim": 32, **VISION}
    text = {"model_type": "llama", **TEXT}
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(vision_config=clip, text_config=text, image_token_id=IMAGE)
    )


def llava_next():
    clip = {"model_type": "clip_vision_model", "projection_dim": 32, **VISION}
    points = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    text = {"model_type": "llama", **TEXT}
    config = hf.LlavaNextConfig(
        vision_config=clip, text_config=text, image_token_id=IMAGE, image_grid_pinpoints=points
    )
    return hf.LlavaNextForConditionalGeneration(config)


def smolvlm(kind="SmolVLM", vision="smolvlm_vision"):
    config = getattr(hf, f"{kind}Config")(
        vision_config={"model_type": vision, **VISION}, text_config={"model_type": "llama", **TEXT},
        image_token_id=IMAGE, scale_factor=2, pad_token_id=0,
    )  # fmt: skip
    return getattr(hf, f"{kind}ForConditionalGeneration")(config)


def idefics3():
    return smolvlm("Idefics3", "idefics3_vision")


def qwen2_vl():
    vision = dict(embed_dim=32, hidden_size=64, mlp_ratio=2, **MERGED)
    text = {"model_type": "qwen2_vl_text", "rope_parameters": PLACES, **TEXT}
    return hf.Qwen2VLForConditionalGeneration(
        hf.Qwen2VLConfig(vision_config=vision, text_config=text, **SPECIAL)
    )


def qwen3_vl():
    vision = dict(hidden_size=32, intermediate_size=64, out_hidden_size=64, num_position_embeddings=GRID**2,
                  deepstack_visual_indexes=[1, 2], **MERGED)  # fmt: skip
    text = {"model_type": "qwen3_vl_text", "head_dim": 16, "rope_parameters": PLACES, **TEXT}
    return hf.Qwen3VLForConditionalGeneration(
        hf.Qwen3VLConfig(vision_config=vision, text_config=text, **SPECIAL)
    )


MODELS = {f.__name__: f for f in (llava, llava_next, smolvlm, idefics3, qwen2_vl, qwen3_vl)}


def made(name):
    torch.manual_seed(0)
    return MODELS[name]().eval().requires_grad_(True)


def pixels(name, images, seed=0):
    """Two images, and how many placeholders each takes up in a prompt of the model's own."""
    torch.manual_seed(seed)
    if name == "llava":
        return {"pixel_values": torch.randn(images, 3, SIDE, SIDE)}, GRID**2
    if name == "llava_next":
        sizes = torch.tensor([[SIDE, 2 * SIDE]] * images)
        return {"pixel_values": torch.randn(images, 3, 3, SIDE, SIDE), "image_sizes": sizes}, None
    if name in ("smolvlm", "idefics3"):
        return {"pixel_values": torch.randn(images, 1, 3, SIDE, SIDE)}, MERGED_GRID**2
    grid = torch.tensor([[1, GRID, GRID]] * images)
    return {"pixel_values": torch.randn(images * GRID**2, 3 * 2 * 16), "image_grid_thw": grid}, MERGED_GRID**2


def own_lengths(name, model, vision):
    out = model.base_model.get_image_features(**vision, return_dict=True)
    return [len(tokens) for tokens in out.pooler_output]


def batch(name, model, texts=((3, 4), (5, 6, 7), (8,), (9, 10)), images=(1, 0, 1, 0), left=True):
    """Prompts of unequal length, some with an image and some without, padded as a processor does it."""
    vision, _ = pixels(name, sum(images))
    lengths = iter(own_lengths(name, model, vision))
    rows = []
    for text, n in zip(texts, images):
        rows.append([1] + [IMAGE] * sum(next(lengths) for _ in range(n)) + list(text))
    longest = max(map(len, rows))
    pad = [[0] * (longest - len(row)) for row in rows]
    ids = torch.tensor([p + r if left else r + p for p, r in zip(pad, rows)])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), **vision}
    if name.startswith("qwen"):
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    return inputs


def squares(name):
    """The grid to wrap with: Qwen's own choice would be larger than these tiny images."""
    return {"grid": MERGED_GRID} if name.startswith("qwen") else {}


@pytest.mark.parametrize("name", [n for n in MODELS if n != "llava_next"])
def test_identity_gives_the_models_own_logits(name):
    model = made(name)
    inputs = batch(name, model)
    tokens = GRID**2 if name == "llava" else MERGED_GRID**2
    wrapped = wrap(model, "identity", tokens=tokens, **squares(name))
    with torch.no_grad():
        own, ours = model(**inputs).logits, wrapped(**inputs).logits
    assert torch.allclose(own, ours, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "compressor, V",
    [
        ("tokenpacker", 16),
        ("tokenpacker", 4),
        ("tokenpacker", 1),
        ("quecc", 16),
        ("quecc", 4),
        ("quecc_light", 1),
        ("lookup", 1),
    ],
)
def test_cached_equals_uncached_in_a_left_padded_batch(name, compressor, V):
    model = made(name)
    wrapped = wrap(model, compressor, tokens=V, **squares(name)).eval()
    inputs = batch(name, model)
    said = wrapped.generate(**inputs, max_new_tokens=4, do_sample=False, suppress_tokens=SPECIALS)
    start = inputs["input_ids"].shape[1]  # prompts come back as a processor made them
    assert torch.equal(said[:, :start], inputs["input_ids"])
    new = said[:, start:]
    assert new.shape == (4, 4)
    for step in range(new.shape[1]):  # again, without a cache: what was said so far stands behind the prompt
        given = wrapped.prepared(**inputs)
        given["input_ids"] = torch.cat([given["input_ids"], new[:, :step]], 1)
        more = given["input_ids"].new_ones(4, step)
        given["attention_mask"] = torch.cat([given["attention_mask"], more], 1)
        if "mm_token_type_ids" in given:
            given["mm_token_type_ids"] = torch.cat([given["mm_token_type_ids"], 0 * more.int()], 1)
        with torch.no_grad():
            logits = model(**given, use_cache=False).logits[:, -1]
        assert torch.equal(logits.index_fill(1, torch.tensor(SPECIALS), -torch.inf).argmax(-1), new[:, step])


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_the_compressor_and_labels_follow(name):
    model = made(name)
    wrapped = wrap(model, "quecc", tokens=4, **squares(name))
    inputs = batch(name, model, left=False)
    labels = torch.where(inputs["input_ids"] == IMAGE, -100, inputs["input_ids"])
    labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    given = wrapped.prepared(**inputs, labels=labels)
    assert given["labels"].shape == given["input_ids"].shape
    assert (given["labels"] != -100).sum() == (labels != -100).sum()
    wrapped(**inputs, labels=labels).loss.backward()
    grads = [p.grad for p in wrapped.compressor.parameters()]
    assert all(g is not None and g.isfinite().all() for g in grads) and any(g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize("name", MODELS)
def test_unwrapped_the_model_is_as_before(name):
    model = made(name)
    inputs = batch(name, model)
    with torch.no_grad():
        before = model(**inputs).logits
        wrapped = wrap(model, "tokenpacker", tokens=1, **squares(name))
        wrapped(**inputs)
        after = wrapped.model(**inputs).logits
    assert wrapped.model is model and torch.equal(before, after)


def test_one_encoding_serves_many_questions():
    model = made("llava")
    wrapped = wrap(model, "quecc", tokens=4).eval()
    inputs = batch("llava", model, texts=((3, 4),), images=(1,))
    seen = wrapped.encode(pixel_values=inputs["pixel_values"])
    for words in ((3, 4), (5, 6, 7)):
        own = batch("llava", model, texts=(words,), images=(1,))
        with torch.no_grad():
            fresh = wrapped(**own).logits
            reused = wrapped(seen, input_ids=own["input_ids"], attention_mask=own["attention_mask"]).logits
        assert torch.equal(fresh, reused)


def test_several_images_in_a_row_and_tiles():
    model = made("llava_next")
    wrapped = wrap(model, "tokenpacker", tokens=4)
    inputs = batch("llava_next", model, texts=((3,), (4, 5)), images=(2, 0))
    given = wrapped.prepared(**inputs)
    assert (given["input_ids"] == IMAGE).sum() == 2 * 3 * 4  # two images of three tiles, four tokens a tile


def trained(wrapped, inputs, steps=3):
    """The same wrapped model after some steps on everything that `trainable` names."""
    labels = torch.where(inputs["input_ids"] == IMAGE, -100, inputs["input_ids"])
    optimizer = torch.optim.AdamW(wrapped.trainable(), lr=1e-2)
    for _ in range(steps):
        wrapped(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return wrapped.eval()


@pytest.mark.parametrize(
    "name, compressor", [("llava", "quecc"), ("llava", "perceiver"), ("qwen2_vl", "quecc")]
)
def test_what_was_trained_comes_back_and_the_model_stays(tmp_path, name, compressor):
    """A trained projector used to be lost: it was the model's own, and only the compressor was saved."""
    model, inputs = made(name), batch(name, made(name))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    wrapped = trained(wrap(model, compressor, tokens=4, **squares(name)), inputs)
    wrapped.save_pretrained(tmp_path / "added")
    again = load(made(name), tmp_path / "added").eval()
    with torch.no_grad():
        assert torch.equal(wrapped(**inputs).logits, again(**inputs).logits)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_saves_and_loads_only_what_it_added(tmp_path):
    wrapped = wrap(made("llava"), "quecc", tokens=4, heads=4).eval()
    wrapped.save_pretrained(tmp_path / "added")
    assert {p.name for p in (tmp_path / "added").iterdir()} == {"added.safetensors", "vtc_wrap.json"}
    saved = sum(v.numel() for v in load_file(tmp_path / "added" / "added.safetensors").values())
    assert saved == sum(p.numel() for p in wrapped.trainable())
    with pytest.raises(InputError, match="nothing that vtc.wrap saved"):
        load(made("llava"), tmp_path)
    with pytest.raises(InputError, match="was saved for a llava"):
        load(made("qwen2_vl"), tmp_path / "added")
    config = hf.LlavaConfig(vision_config={"model_type": "clip_vision_model", **VISION | {"hidden_size": 16}},
                            text_config={"model_type": "llama", **TEXT}, image_token_id=IMAGE)  # fmt: skip
    with pytest.raises(InputError, match="another size"):
        load(hf.LlavaForConditionalGeneration(config), tmp_path / "added")


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_lora_is_trained_saved_and_loaded_with_the_rest(tmp_path, name):
    peft = pytest.importorskip("peft", reason="LoRA needs peft: pip install peft")
    model, inputs = made(name), batch(name, made(name))
    lora = peft.LoraConfig(target_modules=r".*language_model.*\.(q_proj|v_proj)", r=2)
    wrapped = wrap(peft.get_peft_model(model, lora), "quecc", tokens=4, **squares(name))
    learns = {id(p) for p in wrapped.trainable()}
    assert learns == {id(p) for p in wrapped.parameters() if p.requires_grad}
    assert sum("lora_" in n for n, p in wrapped.named_parameters() if id(p) in learns) == 2 * 2 * 2  # layers
    trained(wrapped, inputs).save_pretrained(tmp_path / "added")
    saved = [*load_file(tmp_path / "added" / "peft" / "adapter_model.safetensors")]
    assert len(saved) == 8 and all("lora_" in key for key in saved)
    again = load(made(name), tmp_path / "added").eval()
    with torch.no_grad():
        assert torch.equal(wrapped(**inputs).logits, again(**inputs).logits)
    with pytest.raises(InputError, match="without adapters"):
        load(peft.get_peft_model(made(name), lora), tmp_path / "added")


class Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def test_an_official_release_fills_compressor_and_projector(tmp_path):
    torch.manual_seed(0)
    slow = Published(32, 4 * 32, 64, GRID, 4)  # QueCC as released, of this tower and LLM
    release = {f"model.mm_projector.0.{name}": part for name, part in slow.state_dict().items()}
    for place, d in (("1", 32), ("3", 64)):
        release[f"model.mm_projector.{place}.weight"] = torch.randn(64, d) * d**-0.5
        release[f"model.mm_projector.{place}.bias"] = torch.randn(64)
    torch.save(release, tmp_path / "mm_projector.bin")
    wrapped = wrap(made("llava"), "quecc", tokens=16)
    wrapped.load_official(tmp_path / "mm_projector.bin")
    x, levels, asked = torch.randn(2, GRID**2, 32), torch.randn(2, GRID**2, 128), torch.randn(2, 64)
    with torch.no_grad():
        ours = wrapped._tokens(Features(last=x, levels=levels), {"question": asked})
        first, second = (
            partial(torch.nn.functional.linear, weight=release[f"model.mm_projector.{i}.weight"],
                    bias=release[f"model.mm_projector.{i}.bias"]) for i in ("1", "3")
        )  # fmt: skip
        theirs = second(torch.nn.functional.gelu(first(slow(x, levels, asked))))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="no official release"):
        wrap(made("llava"), "pool", tokens=16).load_official(tmp_path / "mm_projector.bin")
    with pytest.raises(InputError, match="missing"):
        wrap(made("llava"), "tokenpacker", tokens=16).load_official(tmp_path / "mm_projector.bin")
    torch.save({"x": Harmful()}, tmp_path / "bad.bin")
    for name in ("bad.bin", "gone.bin"):
        with pytest.raises(InputError, match="no weights"):
            wrapped.load_official(tmp_path / name)


def test_what_does_not_fit_is_one_line():
    with pytest.raises(InputError, match="wraps llava"):
        wrap(hf.GPT2Model(hf.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=8)), "quecc", tokens=4)
    model = made("llava")
    for name in ("fastv", "prumerge", "downsample_image"):
        with pytest.raises(InputError, match="cannot be wrapped"):
            wrap(model, name, tokens=4)
    with pytest.raises(InputError, match="before the image"):
        wrap(model, "quecc_shared", tokens=4)
    with pytest.raises(InputError, match="V = 5"):
        wrap(model, "tokenpacker", tokens=5)
    inputs = batch("llava", model)
    with pytest.raises(InputError, match="fit no image"):
        wrap(model, "tokenpacker", tokens=4)(**inputs | {"pixel_values": inputs["pixel_values"][:1]})
