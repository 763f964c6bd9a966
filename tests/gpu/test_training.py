"""Training on a GPU: a smoke cell names it, its losses are the CPU's, the next batch comes meanwhile."""

import numpy as np
import pytest
import torch

from vtc import data, machine, profiles

pytestmark = pytest.mark.skipif(not machine.has_cuda(), reason="no CUDA device")


@pytest.fixture
def smoke(tmp_path, monkeypatch):
    monkeypatch.setenv("VTC_RUNS", str(tmp_path))
    return profiles.get("smoke")


def test_a_smoke_sweep_runs_on_the_gpu(smoke):
    from vtc.experiments import sweep

    for case in sweep.cells(smoke):
        row = sweep.measure(smoke, case)
        assert row["device"] == torch.cuda.get_device_name() and np.isfinite(row["loss"])


def test_losses_are_those_of_a_cpu(monkeypatch):
    """Twenty steps of the text stage in float32 from the same weights and batches."""
    from accelerate.state import AcceleratorState, PartialState

    from vtc.models.llm import make_llm, make_tokenizer
    from vtc.models.vlm import text_model
    from vtc.shapes import LLMShape
    from vtc.training import loop
    from vtc.training.lessons import Reader, TextLessons

    monkeypatch.setattr(loop, "autocast", lambda kind, d: torch.autocast(kind, enabled=False))
    tokenizer, world = make_tokenizer(), data.WorldConfig(lands=2, entities=4, offset=1.0)
    scenes = data.make_scenes(world, 8, "train", seed=0)
    draw = TextLessons(scenes, data.Facts(world), Reader(tokenizer), 0, 12, 4, 3).batch
    stage = loop.Stage("text", 20, 3e-3, ("llm",), 100, muon=False)  # Muon turns matrices in bf16
    curves = {}
    for kind in ("cuda", "cpu"):
        monkeypatch.setenv("ACCELERATE_USE_CPU", str(kind == "cpu").lower())
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.manual_seed(0)
        llm = make_llm(LLMShape("t", d=32, layers=2, heads=1, d_ff=64, tied=True), len(tokenizer))
        model, losses = text_model(llm, tokenizer), []
        model.register_forward_hook(lambda module, given, loss, losses=losses: losses.append(loss.detach()))
        loop.fit(model, stage, draw, None)
        assert model.device.type == kind == PartialState().device.type
        curves[kind] = torch.stack(losses).tolist()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert curves["cuda"] == pytest.approx(curves["cpu"], rel=2e-3)
    assert curves["cpu"][-1] < curves["cpu"][0] - 0.3


def test_batches_come_pinned_in_their_own_dtype():
    from vtc.compressors.base import Features
    from vtc.training.device import Batch, prefetched

    def batch(step):
        return Batch((Features(last=torch.full((2, 3, 4), step, dtype=torch.bfloat16)), 4))

    for step, given in enumerate(prefetched(batch, range(5), torch.device("cuda", 0))):
        features, V = given.inputs
        assert features.last.is_cuda and features.last.dtype == torch.bfloat16 and V == 4
        assert (features.last == step).all()
