"""The programs that the documentation shows run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parents[1] / "docs" / "real_llm.md"


def programs(page: Path) -> list[str]:
    """The python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


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
