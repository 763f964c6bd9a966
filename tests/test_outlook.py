"""What a training will take: against published hours, against counting what it really multiplies."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vtc import InputError, cost, profiles
from vtc.__main__ import main as vtc
from vtc.compressors.base import Features
from vtc.models.llm import make_llm, make_tokenizer
from vtc.models.prompt import asked, pack
from vtc.training import outlook, user_data
from vtc.training.stages import Case, assemble

PAPER, SMOKE = profiles.get("paper"), profiles.get("smoke")
A100 = cost.hardware("a100")


def test_llavas_published_hours():
    """LLaVA-1.5's README: 8 A100, 3.5 and 10 hours for 7B; the second with gradient checkpointing."""
    align, instruct = outlook.stages(PAPER, Case("7B", 576, "identity", 0), A100, 8, "all")
    assert align.device_hours == pytest.approx(28, rel=0.15)
    assert instruct.device_hours == pytest.approx(80, rel=0.25)


@pytest.mark.parametrize("size", [size.name for size in PAPER.sizes])
def test_the_paper_profile_needs_less_than_500_gb(size):
    assert sum(outlook.storage(PAPER, Case(size, 16, "quecc", 0), "all").values()) <= outlook.LIMIT


@pytest.mark.parametrize("compressor", ["tokenpacker", "quecc"])
@pytest.mark.parametrize("learns", ["all", "frozen"])
def test_operations_and_parameters_are_those_of_the_model(compressor, learns):
    """Forth and back of one image with half its text an answer, counted by torch as it happens."""
    tokens, words = 24, make_tokenizer(tuple(f"w{i}" for i in range(40)))
    size = replace(SMOKE.sizes[1], d=64, d_ff=192, heads=4, vocab=len(words))
    p = replace(SMOKE, sizes=(size,))
    case = Case(p.sizes[0].name, 16, compressor, 0)
    model = assemble(p, case, make_llm(p.sizes[0], len(words)), words)
    between = sum(w.numel() for part in (model.compressor, model.projector) for w in part.parameters())
    assert outlook._between(p, case) == between
    model.llm.requires_grad_(learns == "all")
    ids = torch.arange(3, 3 + tokens).tolist()
    packed = pack([[asked(ids[: tokens // 2], ids[tokens // 2 :])]], 0)
    seen = Features(last=torch.randn(1, p.s, p.tower.d), levels=torch.randn(1, p.s, p.tower.d_levels))
    with FlopCounterMode(display=False) as counted:
        model(packed, seen).backward()
    tower = float(cost.tower_pass(p.tower).flops)
    told = outlook._flops(p, case, tokens, learns == "all") - tower
    if compressor == "quecc":  # it reads the question, which is half of the text here
        told -= float(cost.llm_pass(p.sizes[0], tokens).flops - cost.llm_pass(p.sizes[0], tokens // 2).flops)
    assert counted.get_total_flops() == pytest.approx(told, rel=0.1)


def test_loras_parameters_are_pefts():
    pytest.importorskip("peft", reason="LoRA needs peft: pip install peft")
    size = SMOKE.sizes[0]
    adapted = user_data.with_lora(make_llm(size, 50))
    learnt = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert outlook._of_llm(size, "lora") == learnt


def test_the_check_prints_a_plan_and_runs_every_stage(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VTC_RUNS", str(tmp_path))
    words = ["train", "--profile", "paper", "--check", "--tokens", "4", "--compressor", "quecc"]
    assert vtc(words) == 0
    said = capsys.readouterr().out
    for part in ("align: 2,181 steps", "instruct: 5,197 steps", "device-hours", "GB a device", "storage",
                 "dry run", "align and instruct", "2 answers"):  # fmt: skip
        assert part in said
    assert not list(tmp_path.rglob("*.safetensors"))  # nothing is left
    assert vtc([*words, "--devices", "0"]) == 2


def test_the_dry_run_needs_a_v_that_the_grid_gives():
    with pytest.raises(InputError, match="cannot give V"):
        outlook.lines(PAPER, Case("7B", 577, "quecc", 0), A100, 8)
