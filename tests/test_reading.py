"""Notebooks that teach: minutes, questions, exercises, tables and figures as promised."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = {
    path.name[:2]: nbformat.read(path, as_version=4).cells for path in sorted(FOLDER.glob("*.ipynb"))
}
PROSE = {
    name: "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for name, cells in NOTEBOOKS.items()
}
TAUGHT = [name for name, text in PROSE.items() if "**What you will learn.**" in text]
each = pytest.mark.parametrize("name", TAUGHT)
LESSONS = ("01", "02", "03", "04", "05")
each_lesson = pytest.mark.parametrize("name", LESSONS)
WORDS_A_MINUTE, SECONDS_A_FIGURE = 200, 20


def outputs(name: str, kind: str, cells: list | None = None) -> list[str]:
    """What the cells (all of a notebook, or these) show, of one MIME type."""
    cells = NOTEBOOKS[name] if cells is None else cells
    shown = (out.get("data", {}) for cell in cells for out in cell.get("outputs", []))
    return [data[kind] for data in shown if kind in data]


def test_these_are_lessons():
    assert set(LESSONS) <= set(TAUGHT)


@each
def test_reading_takes_the_minutes_that_are_said(name):
    """Words, folded ones too, and figures; an appendix is not counted."""
    text, _, appendix = PROSE[name].partition("\n# Appendix")
    said = int(re.search(r"\*\*Minutes\.\*\* (\d+) to read", text)[1])
    assert said <= 25
    if appendix:
        end = next(i for i, cell in enumerate(NOTEBOOKS[name]) if "# Appendix" in cell.source)
    figures = len(outputs(name, "image/png", NOTEBOOKS[name][: end if appendix else None]))
    minutes = len(re.findall(r"\w+", text)) / WORDS_A_MINUTE + figures * SECONDS_A_FIGURE / 60
    assert minutes <= said


@each
def test_a_notebook_that_teaches_has_its_parts(name):
    text = PROSE[name]
    for part in ("**What you need.**", "## Exercises", "What comes next"):
        assert part in text, part
    exercises = len(
        re.findall(r"^(?:\*\*)?\d\.", text.partition("## Exercises")[2].partition("\n## ")[0], re.M)
    )
    answers = text.count("<details><summary>Answer</summary>")
    assert 3 <= exercises == answers <= 5
    assert answers <= text.count("</details>")


@each_lesson
def test_a_lesson_asks_before_it_shows(name):
    text = PROSE[name]
    assert text.count("**Predict") >= 4 and "*The paper" in text and "glossary" in text
    assert "## Try it" in text and "## Sources" in text


@each_lesson
def test_cells_and_tables_are_short(name):
    for cell in NOTEBOOKS[name]:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 10, cell.source
    for table in outputs(name, "text/html"):
        rows = table.partition("<details")[0].count("<tr")
        assert rows <= 1 + 10 + 1, table[:300]  # names of columns (and of an index), ten rows


@each_lesson
def test_every_figure_is_described(name):
    shown = [out.get("data", {}) for cell in NOTEBOOKS[name] for out in cell.get("outputs", [])]
    pictures = [data for data in shown if "image/png" in data]
    assert pictures and all(len(data["text/plain"]) > 40 for data in pictures)


PAGES = [*FOLDER.glob("*.ipynb"), *(FOLDER.parent / "docs").glob("*.md"), FOLDER.parent / "README.md"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    """Files that prose points to are there; docs/planner_page.html is made by `make site`."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = PROSE[path.name[:2]]
    targets = re.findall(r"\]\(([^)#:\s]+?)(?:#[^)]*)?\)", text)
    inside = {target: path.parent / target for target in targets}
    if path.parent.name == "docs":  # pages of the book lie one folder higher there
        inside |= {target: FOLDER.parent / target for target in targets if target.startswith("notebooks/")}
    assert not [target for target, file in inside.items() if not file.exists()]
