"""What lessons show is what runs: sources as they are in the files, tensors as the model makes them."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from xml.etree import ElementTree

import pandas as pd
import pytest
import torch

from vtc import compressors, profiles
from vtc.compressors.base import Features
from vtc.compressors.quecc import QueCC
from vtc.compressors.tokenpacker import TokenPacker, middle
from vtc.figures import lesson, plain
from vtc.models.llm import make_llm
from vtc.models.prompt import asked, pack
from vtc.models.tower import Tower
from vtc.models.vlm import VLM, VLMConfig

P = profiles.get("smoke")


def test_code_is_shown_as_it_is_written():
    shown = lesson.show(middle, TokenPacker.queries).forms["text/plain"]
    whole = inspect.getsource(middle)
    assert whole.startswith(shown.splitlines()[0]) and '"""' not in shown
    code = [line for line in shown.splitlines() if line.strip()]
    assert set(code) <= {
        line.removeprefix("    ") for line in inspect.getsource(TokenPacker.queries).splitlines()
    } | set(whole.splitlines())
    assert lesson.show(middle, docs=True).forms["text/plain"] == whole.rstrip()
    assert shown.count("\ndef ") + shown.startswith("def ") == 2


def test_what_is_shown_still_compiles():
    for part in (QueCC, QueCC.queries, TokenPacker.compress, middle):
        compile(lesson.show(part).forms["text/plain"], "shown", "exec")


def test_a_notebook_gets_coloured_code():
    shown = lesson.show(middle)._repr_mimebundle_()
    assert (
        shown["text/markdown"].startswith("```python\ndef middle(")
        and shown["text/plain"] in shown["text/markdown"]
    )


@pytest.mark.parametrize("compressor", ["tokenpacker", "quecc"])
def test_a_forward_pass_makes_what_the_model_makes(compressor):
    torch.manual_seed(0)
    llm, ids, b = make_llm(P.sizes[0], 50), [3, 1, 4, 1, 5], 2
    config = VLMConfig(
        llm=llm.config.to_dict(), tower=asdict(P.tower), grid=P.tower.g, compressor=compressor, tokens=4
    )
    vlm = VLM(config, llm, None, Tower(P.tower)).eval()
    images = torch.randint(0, 255, (b, P.tower.pixels, P.tower.pixels, 3), dtype=torch.uint8)
    made = lesson.forward_pass(vlm, images, ids)
    with torch.no_grad():
        expected = vlm.logits(
            pack([[asked(ids, [9])]] * b, pad=0), vlm.eyes()(images)
        )  # of the answer's token
    assert torch.allclose(made["next token"], expected, atol=1e-5)
    table = lesson.shapes(made).set_index("what")
    assert table.loc["visual tokens", "shape"] == str((b, 4, P.sizes[0].d))
    assert table.loc["prompt", "shape"] == str((b, 4 + len(ids), P.sizes[0].d))
    assert table.loc["features, last layer", "numbers"] == P.tower.s * P.tower.d


@pytest.mark.parametrize("tokens", [1, 4, 9])
@pytest.mark.parametrize("name", ["tokenpacker", "quecc"])
def test_what_is_written_out_computes_what_the_package_does(name, tokens):
    torch.manual_seed(1)
    one = compressors.build(name, tokens=tokens, grid=6, d=32, d_levels=64, d_llm=48).eval()
    for weight in one.parameters():  # scales and shifts too: a start of ones and zeros would hide them
        weight.data += 0.3 * torch.randn_like(weight)
    features = Features(torch.randn(2, 36, 32), torch.randn(2, 36, 64))
    question = torch.randn(2, 48)
    if name == "quecc":
        assert torch.allclose(plain.quecc(one, features, question), one(features, question), atol=2e-4)
        assert not torch.allclose(
            plain.quecc(one, features, 1 - question), one(features, question), atol=1e-2
        )
    else:
        assert torch.allclose(plain.tokenpacker(one, features), one(features), atol=2e-4)
    assert len(lesson.show(getattr(plain, name), docs=True).forms["text/plain"].splitlines()) <= 15


def test_a_long_table_is_folded_after_its_first_rows():
    frame = pd.DataFrame({"V": range(13)})
    shown = lesson.table(frame)._repr_mimebundle_()
    first, _, rest = shown["text/html"].partition("<details><summary>3 more rows</summary>")
    assert (first.count("<tr"), rest.count("<tr")) == (1 + 10, 1 + 3)
    assert shown["text/plain"].endswith("... and 3 more rows")
    assert "details" not in lesson.table(frame.head(10))._repr_mimebundle_()["text/html"]


def test_a_page_inside_a_notebook_is_the_file(tmp_path):
    path = tmp_path / "page.html"
    path.write_text('<p class="a">5 < 6 & more</p>')
    frame = ElementTree.fromstring(lesson.page(path, "A page")._repr_mimebundle_()["text/html"])
    assert frame.get("srcdoc") == path.read_text() and frame.get("title") == "A page"
