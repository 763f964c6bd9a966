"""The drawings state what the code does: a built model's shapes, a window's weights, mask, roofline."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from vtc import InputError, compressors, cost, profiles
from vtc.compressors.base import Features
from vtc.compressors.tokenpacker import middle
from vtc.figures import drawings, svg
from vtc.models import prompt
from vtc.models.llm import make_llm
from vtc.models.tower import Tower
from vtc.models.vlm import VLM, VLMConfig

SVG = "{http://www.w3.org/2000/svg}"
P = profiles.get("smoke")
V, Q = 4, 7


def facts(drawing: svg.Drawing) -> dict[str, str]:
    """What the words of a drawing state, by the name of the fact."""
    found = ElementTree.fromstring(drawing.svg()).iter(f"{SVG}text")
    return {text.get("data-what"): text.text for text in found if text.get("data-what")}


def cells(drawing: svg.Drawing) -> dict[str, str]:
    """Class of every named square."""
    found = ElementTree.fromstring(drawing.svg()).iter(f"{SVG}rect")
    return {one.get("data-cell"): one.get("class") for one in found if one.get("data-cell")}


def axes(x: torch.Tensor, b: int = 2) -> str:
    """A tensor's shape as the drawings write it, the batch as a letter."""
    assert x.shape[0] == b
    return svg.shape("b", *x.shape[1:])


def test_the_model_has_the_shapes_that_are_drawn():
    stated = facts(drawings.model(drawings.of(P, V, Q)))
    llm = make_llm(P.sizes[-1], 50)
    config = VLMConfig(llm=llm.config.to_dict(), tower=asdict(P.tower), grid=P.tower.g,
                       compressor="tokenpacker", tokens=V)  # fmt: skip
    vlm = VLM(config, llm, None, Tower(P.tower)).eval()
    images = torch.zeros(2, P.tower.pixels, P.tower.pixels, 3, dtype=torch.uint8)
    packed = prompt.pack([[prompt.asked(range(Q))]] * 2, pad=0)
    features = vlm.eyes()(images)
    tokens = vlm.encode_image(features, packed)
    whole, _ = vlm.embedded(packed, features, tokens)
    assert stated["image"] == axes(images)
    assert stated["features"].endswith(f"= {axes(features.last)}")
    assert stated["visual tokens"] == f"= {axes(tokens)}"
    assert stated["text tokens"] == f"= {axes(llm.get_input_embeddings()(packed.ids))}"
    assert stated["prompt"] == f"prompt: {axes(whole)}"
    assert stated["V"].startswith(f"V = {tokens.shape[1]} ")
    table = llm.get_input_embeddings().weight.numel()
    assert stated["N"] == f"N = {sum(p.numel() for p in llm.model.parameters()) - table:,} parameters"


@pytest.mark.parametrize("name", ["tokenpacker", "quecc"])
@pytest.mark.parametrize("tokens", [1, V])
def test_a_window_is_what_the_compressor_makes_of_it(name, tokens):
    size = drawings.of(P, tokens, Q)
    drawing, t, wide = drawings.window(name, size, heads=8), P.tower, size.llm.d
    one = compressors.build(name, tokens=tokens, grid=t.g, d=t.d, d_levels=t.d_levels, d_llm=wide)
    features = Features(*(torch.randn(2, t.s, n) for n in (t.d, t.d_levels)))
    question = torch.randn(2, wide) if name == "quecc" else None
    if name == "quecc":
        before, kv = one.keys_values(features)
        queries = one.queries(before, question[:, None])
        assert set(one.conv_weight.shape[:2]) == {size.k}
    else:
        queries, kv = one.queries(features), one.attend.keys_values(features.levels)
    z, inverse = one.attend.windows(kv, tokens)
    weights = one.attend.weights(queries, z[0], inverse[0])  # (b v, heads, k k)
    stated = facts(drawing)
    assert stated["features"] == f"features {axes(features.last)}"
    assert stated["queries"] == axes(queries.squeeze(1))
    assert stated["keys"] == f"{axes(kv[0][0])} each"
    assert stated["weights"].startswith(f"{weights.shape[-1]} weights a head, {weights.shape[1]} heads")
    assert stated["out"] == axes(one(features, question))
    assert stated["window"] == f"{size.k} x {size.k} = {z.shape[2]} patches"
    if name == "quecc":
        assert stated["question"] == axes(question)
        assert stated["last"] == f"projector: {svg.shape('b', tokens, wide)}"


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
def test_dark_patches_are_those_that_make_the_query(k):
    """Patches of the first window that TokenPacker's shrinking reads, by its gradient."""
    x = torch.randn(1, (2 * k) ** 2, 1, requires_grad=True)
    middle(x, 2)[0, 0].sum().backward()
    read = x.grad.view(2 * k, 2 * k)[:k, :k].nonzero().tolist()
    assert {tuple(at) for at in read} == drawings.middle_patches(k)


def test_the_mask_is_the_models_and_that_of_its_docstring():
    names, sees = drawings.example_mask()
    drawn = cells(drawings.block_mask(names, sees))
    lines = prompt.__doc__.splitlines()
    first = next(i for i, line in enumerate(lines) if "sees:" in line)  # names of the columns
    at = lines[first].index("v1 v2") + 1
    for i, line in enumerate(lines[first + 1 : first + 7]):
        wanted = [line.ljust(100)[at + 3 * j] == "#" for j in range(len(names))]
        assert wanted == sees[i].tolist(), line
        assert [drawn[f"{names[i]},{name}"] == "on" for name in names] == wanted
    assert sees.sum() < 21  # less than a causal mask's


def test_the_corner_of_the_roofline_is_where_what_binds_changes():
    device, qwen = cost.hardware("h200"), drawings.PAPER.llm
    stated = facts(drawings.roofline(device, qwen))
    corner = int(stated["ridge"])
    passes = [cost.Work(2.0 * qwen.matrices * t, 2 * qwen.matrices) for t in (corner, corner + 1)]
    assert corner == 206 and [str(cost.binds(work, device)) for work in passes] == ["bandwidth", "compute"]
    assert stated["flat"] == f"reads the weights: {2 * qwen.matrices / 4.8e12 * 1e3:.2g} ms"
    slow = next(float(what.split()[0]) for what, text in stated.items() if text == "V = 576")
    assert slow == pytest.approx(2 * qwen.matrices * 626 / 989e12 * 1e3, rel=0.01)


@pytest.mark.parametrize("stem", drawings.pages())
def test_committed_drawings_are_those_of_the_code_and_fit_a_phone(stem):
    drawing = drawings.pages()[stem]
    path = profiles.ROOT / "docs" / "drawings" / f"{stem}.svg"
    assert path.read_text(encoding="utf-8") == drawing.svg(), "python -m vtc.figures.drawings"
    root = ElementTree.fromstring(drawing.svg())
    assert root.find(f"{SVG}title").text == drawing.title
    assert len(root.find(f"{SVG}desc").text) > 80
    assert "prefers-color-scheme: dark" in root.find(f"{SVG}style").text
    for text in root.iter(f"{SVG}text"):
        size = float(text.get("font-size"))
        wide = 0.52 * size * len(text.text)  # a letter's mean width
        start = float(text.get("x")) - {"start": 0, "middle": wide / 2, "end": wide}[text.get("text-anchor")]
        assert size >= 11 and start >= 0 and start + wide <= svg.WIDTH, text.text


def test_a_part_is_lit_and_unknown_parts_are_said():
    one, two = drawings.model().svg(), drawings.model(lit=("compressor", "llm")).svg()
    assert (one.count('class="lit"'), two.count('class="lit"')) == (0, 2)
    with pytest.raises(InputError, match="no such part: eye; parts: image, tower"):
        drawings.model(lit="eye")
    with pytest.raises(InputError, match="V = 5 does not divide 24 x 24"):
        drawings.window("quecc", drawings.Size(drawings.PAPER.tower, drawings.PAPER.llm, 5, 50, ""))


def test_a_notebook_gets_the_drawing_and_a_picture_of_it():
    shown, size = drawings.block_mask(["a"], np.ones((1, 1), bool))._repr_mimebundle_()
    assert shown["image/svg+xml"].startswith("<svg") and shown["image/png"].startswith(b"\x89PNG")
    assert size["image/png"]["width"] == svg.SHOWN and "a sees a" in shown["text/plain"]


def test_drawing_needs_no_torch():
    code = "import sys, vtc.figures.drawings as d; d.model(); d.roofline(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
