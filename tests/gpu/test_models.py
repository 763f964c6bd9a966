"""The model on a GPU: what it says on a CPU; a cache and a graph for each size of request."""

import pytest
import torch
from test_generate import CLASSES, features, greedy, llm, vlm

from vtc.models import generate
from vtc.models.prompt import asked, pack
from vtc.models.runner import Runner

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
QUESTIONS = [["x7 y2 owl ?", "land ?"], ["x5 y7 owl whence ?"], ["x3 y5 read ?"]]


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """float32 products in float32, not in TF32."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize("kind", CLASSES)
def test_cpu_and_gpu_agree(kind):
    model, seen = vlm(kind, span=9), features(3)
    ids = model.tokenizer
    rows = [[asked(ids(q)["input_ids"], [5, ids.eos_token_id]) for q in row] for row in QUESTIONS]
    packed = pack(rows, ids.pad_token_id)
    with torch.no_grad():
        wanted, loss = model.logits(packed, seen), model(packed, seen)
    said = model.generate(seen, QUESTIONS, 4)
    model.to("cuda")
    with torch.no_grad():
        found = model.logits(packed.to("cuda"), model.here(seen))
        torch.testing.assert_close(model(packed, seen).cpu(), loss, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.cpu(), wanted, atol=1e-3, rtol=1e-3)
    assert model.generate(seen, QUESTIONS, 4) == said


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_says_what_single_steps_say(dtype):
    model = llm().to("cuda", dtype)
    x = torch.randn(2, 21, 64, device="cuda", dtype=dtype)
    wanted = greedy(Runner(model, graph=False), x, 12)
    runner = Runner(model)
    assert torch.equal(greedy(runner, x, 12), wanted)
    assert torch.equal(greedy(runner, x, 12), wanted)  # the graph again, on what the first left
    assert len(runner.case.graphs) == 1


def test_two_lengths_in_one_process_keep_their_own_cache():
    model = llm().to("cuda")
    runner = generate.engine_of(model, torch.float32)
    few, many = (torch.randn(1, n, 64, device="cuda") for n in (20, 600))
    wanted = [greedy(runner, x, 6) for x in (few, many)]
    assert [case.n for case in runner.cases.values()] == [64, 640]
    assert [torch.equal(greedy(runner, x, 6), y) for x, y in zip((few, many, few), (*wanted, wanted[0]))] == [
        True
    ] * 3


def test_the_tower_goes_where_the_model_goes():
    from vtc import profiles
    from vtc.models.tower import Tower

    model, p = vlm("A"), profiles.get("smoke")
    model.tower = Tower(p.tower).eval().requires_grad_(False)
    images = torch.randint(0, 256, (2, p.pixels, p.pixels, 3), dtype=torch.uint8)
    said = model.generate(images, ["land ?"] * 2)
    model.to("cuda")
    assert model.eyes()(images).last.is_cuda
    assert model.generate(images, ["land ?"] * 2) == said
