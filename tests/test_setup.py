"""The set-up files agree with each other and with what the code imports; they name no machine."""

import ast
import configparser
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vtc

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = [
    line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")
]

# distributions whose import has another name
IMPORTS = {
    "open_clip_torch": "open_clip",
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "websocket-client": "websocket",
    "lmms-eval": "lmms_eval",
    "vl-convert-python": "vl_convert",
}
# used through another package or as a program of their own
INDIRECT = {"jupyterlab", "ipykernel", "nbval", "pytest-xdist", "ruff", "torchvision", "safetensors"}
INDIRECT |= {"sphinx", "myst-nb", "sphinx-book-theme"}  # called by `make site`
INDIRECT |= {"gguf"}  # by transformers


def names(requirements):
    return [re.match(r"[\w.-]+", requirement)[0] for requirement in requirements]


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def imported():
    """Every top-level module that the package and its tests import."""
    found = set()
    for path in [*(ROOT / "vtc").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    return found


def test_everything_asked_for_is_pinned_once_per_machine():
    pinned = {plain(re.match(r"[\w.-]+(?===)", pin)[0]) for pin in PINS}
    pinned_extras = [extra for name, extra in EXTRAS.items() if name != "eval"]  # has its own environment
    asked = names(PROJECT["dependencies"] + sum(pinned_extras, []))
    assert {plain(name) for name in asked} <= pinned


def test_pins_name_no_place():
    text = "\n".join(PINS)
    assert not re.search(r"://|file:|(^|\s)-|@ ", text)
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+( ; .+)?", pin) for pin in PINS)


def test_what_is_asked_for_is_used_and_what_is_used_is_asked_for():
    asked = set(names(PROJECT["dependencies"] + sum(EXTRAS.values(), [])))
    modules = imported()
    assert {name for name in asked - INDIRECT if IMPORTS.get(name, name) not in modules} == set()
    provided = {IMPORTS.get(name, name) for name in asked} | set(sys.stdlib_module_names) | {"vtc"}
    ours = {path.stem for path in (ROOT / "tests").glob("*.py")}
    through = {"nbclient", "nbformat"}  # come with papermill and jupyterlab
    assert modules - provided - ours - through - {"__future__"} == set()


def test_conda_takes_the_same_pins_and_the_same_package():
    text = (ROOT / "environment.yml").read_text()
    assert "--constraint constraints.txt" in text
    extras = re.search(r"--editable \.\[([\w,]+)\]", text)[1]
    assert set(extras.split(",")) == set(EXTRAS) - {"site", "llm", "eval"}  # by name
    assert f".[{extras}]" in (ROOT / "Makefile").read_text()


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
@pytest.mark.parametrize("goal", ["reproduce", "test", "lab", "venv", "constraints"])
def test_make_knows_each_goal_and_builds_the_environment_first(goal, tmp_path):
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(["make", "-n", goal], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("-m venv .venv") < done.stdout.index("-m pip install")
    if goal == "reproduce":
        assert "vtc reproduce --profile laptop" in done.stdout


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
def test_an_old_python_is_refused_in_words(tmp_path):
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(["make", "venv", "PYTHON=false"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "older than 3.11" in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_make_test_and_passes_its_exit_code_on(tmp_path):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    for code in (0, 1):
        (tmp_path / "Makefile").write_text(f"test:\n\t@exit {code}\n")
        done = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, capture_output=True)
        assert bool(done.returncode) == bool(code)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
@pytest.mark.parametrize(
    "path",
    [
        ".venv/bin/python",
        "runs/laptop/02_errors.csv",
        "results/laptop/.locks/02_errors.lock",
        "vtc/__pycache__/x.pyc",
        "vtc.egg-info/PKG-INFO",
    ],
)
def test_git_ignores_what_commands_write(path):
    assert subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode == 0


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
@pytest.mark.parametrize("path", ["results/first-world/02_errors.csv", "figures/laptop/04_frontier.svg"])
def test_git_keeps_what_is_recorded(path):
    assert subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode == 1


def sanitized(text):
    """What nbval compares: the text after the replacements, in order."""
    config = configparser.RawConfigParser()
    config.read(ROOT / "notebooks" / "sanitize.cfg")
    for section in config.sections():
        text = re.sub(config[section]["regex"], config[section]["replace"], text)
    return text


@pytest.mark.parametrize(
    "one, other",
    [
        ("took 12.3 ms", "took 9 ms"),
        ("<object at 0x7f12ab34cd>", "<object at 0x55aa01b2c3>"),
        ("2026-01-02T03:04:05+00:00", "2025-11-12T13:14:15+00:00"),
        ("commit 1a2b3c4-dirty", "commit ffe0912"),
        ("/home/a/vtc/runs/laptop", "/Users/b/runs/laptop"),
        ("alpha 0.07094612", "alpha 0.07094638"),
        ("torch 2.14.1", "torch 2.11.0+cpu"),
    ],
)
def test_the_sanitizer_hides_what_differs_between_machines(one, other):
    assert sanitized(one) == sanitized(other)


@pytest.mark.parametrize(
    "one, other",
    [
        ("N = 1234567", "N = 1234568"),
        ("alpha 0.0709", "alpha 0.0708"),
        ("V = 16 of 144", "V = 36 of 144"),
        ("held", "open"),
        ("(8, 144, 64)", "(8, 144, 65)"),
    ],
)
def test_the_sanitizer_leaves_facts_alone(one, other):
    assert sanitized(one) != sanitized(other)


def test_one_version():
    assert vtc.__version__ in (ROOT / "CITATION.cff").read_text()
    assert "version" in PROJECT["dynamic"]


def test_readme_says_what_the_recorded_rows_say():
    """The findings in README.md are those of the recorded rows, and every file it links to is there."""
    from vtc.experiments import report

    text = report.README.read_text(encoding="utf-8")
    made = text.partition(report.FIRST)[2].partition(report.LAST)[0].strip()
    assert made == report.block()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    missing = [link for link in links if not (report.ROOT / link).exists()]
    assert not missing


def test_the_readme_is_one_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    parts = re.findall(r"^## (.+)", text, re.M)
    assert parts == ["Three doors", "How the evidence stands", "Where a line lives", "Limits"]
    assert len(text.splitlines()) <= 90 and text.count("![") == 1
