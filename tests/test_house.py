"""The house: rooms in the order of the data flow, imports that point downwards, no circles, small files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "vtc"
ROOMS = (
    *("__init__", "files", "machine", "progress", "shapes", "profiles", "data", "compressors", "cost"),
    *("models", "training", "evaluation", "benchmark", "scaling", "experiments", "figures", "adapters"),
    *("commands", "__main__"),
)  # from the bottom up
MOST_LINES = 350  # of a file


def modules() -> dict[str, Path]:
    """Dotted name -> file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found[".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")] = (
            path
        )
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imported(path: Path, there: dict[str, Path]) -> set[str]:
    """The package's modules that a file imports, wherever in the file it does."""
    names = set()
    tree = ast.parse(path.read_text())
    for block in ast.walk(tree):  # what only type checkers read is no import
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING":
            block.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vtc":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in there else node.module)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.split(".")[0] == "vtc"}
    return names & set(there)


def test_every_room_has_its_place() -> None:
    assert {room(name) for name in modules()} <= set(ROOMS)


def test_imports_point_downwards() -> None:
    there = modules()
    upwards = {
        (name, other)
        for name, path in there.items()
        for other in imported(path, there)
        if ROOMS.index(room(other)) > ROOMS.index(room(name))
    }
    assert not upwards


def test_no_circles() -> None:
    there = modules()
    arrows = {name: imported(path, there) - {name} for name, path in there.items()}
    left = dict(arrows)
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    assert not left, f"these import one another: {sorted(left)}"


@pytest.mark.parametrize("name", modules())
def test_files_are_small(name: str) -> None:
    lines = len(modules()[name].read_text().splitlines())
    assert lines <= MOST_LINES, f"{name}: {lines} lines"
