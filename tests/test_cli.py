"""The command line: one line for bad input, exit codes, and a start that imports no more than it needs."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from vtc import InputError, __main__, profiles
from vtc.scaling import published

ROOT = Path(__file__).resolve().parents[1]

LIGHT = [
    "vtc.profiles",
    "vtc.experiments.store",
    "vtc.figures",
    "vtc.cost",
    "vtc.scaling",
    "vtc.scaling.plan",
    "vtc.experiments.reproduce",
]


def vtc(*words, **options):
    command = [sys.executable, "-m", "vtc", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def here(capsys):
    """Runs a command in this process, where torch is imported once for all -> what a process would give."""

    def run(*words):
        try:
            code = __main__.main([*words])
        except SystemExit as end:  # argparse: help, or words it does not know
            code = end.code
        return subprocess.CompletedProcess(words, code, *capsys.readouterr())

    return run


@pytest.fixture
def fake(monkeypatch):
    """Puts a command's module in place whose main does what it is told."""

    def put(action):
        def main(args):
            return action(args)

        module = types.ModuleType("vtc.commands.fake")
        module.add_arguments = lambda parser: parser.add_argument("--word")
        module.main = main
        monkeypatch.setitem(sys.modules, "vtc.commands.fake", module)
        monkeypatch.setitem(__main__.COMMANDS, "fake", "does as it is told")

    return put


def raising(error):
    def action(args):
        raise error

    return action


def test_a_command_gets_its_words_and_gives_its_exit_code(fake):
    fake(lambda args: int(args.word))
    assert __main__.main(["fake", "--word", "7"]) == 7


def test_bad_input_is_one_line_and_exit_code_2(fake, capsys):
    fake(raising(InputError("scores.csv, row 3:\n score is 83, expected 0 to 1")))
    assert __main__.main(["fake"]) == 2
    assert capsys.readouterr().err == "vtc: scores.csv, row 3: score is 83, expected 0 to 1\n"


def test_an_interrupt_is_one_line_and_exit_code_130(fake, capsys):
    fake(raising(KeyboardInterrupt()))
    assert __main__.main(["fake"]) == 130
    assert "stopped" in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_trace(fake):
    fake(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        __main__.main(["fake"])


def test_help_names_every_command_and_imports_none_of_them():
    done = vtc("--help")
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in __main__.COMMANDS)
    code = "import sys, vtc.__main__ as m; m.main([]); print([n for n in sys.modules if n.startswith('vtc')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "['vtc', 'vtc.__main__']"


@pytest.mark.parametrize("command", __main__.COMMANDS)
def test_every_command_explains_its_options(command, here):
    done = here(command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: vtc {command}" in done.stdout


@pytest.mark.parametrize("words", [["reproduce", "--profile", "huge"], ["record", "--profile", "huge"]])
def test_an_unknown_profile_names_the_four(words, here):
    done = here(*words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert all(name in done.stderr for name in ("huge", "smoke", "laptop", "gpu", "paper"))


def test_an_unknown_command_is_refused(here):
    assert here("reprodcue").returncode == 2
    assert here().returncode == 2


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m vtc --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize("words", [["reproduce"], ["sweep", "--profile", "smoke"]])
def test_seeds_that_are_no_numbers_are_refused(words, here):
    done = here(*words, "--seeds", "one")
    assert done.returncode == 2
    assert done.stderr == "vtc: seeds 'one': expected whole numbers and commas, such as 0,1,2\n"


@pytest.mark.parametrize(
    "words, said",
    [
        (["--zoo", "best"], "vtc: --zoo best: choose some of headline, rivals, ablations, nested, others"),
        (["--zoo", "lookup,quecks"], "vtc: --zoo quecks: choose some of headline, rivals"),
        (["--zoo", "rivals", "--V", "5"], "vtc: --V 5: no compressor of these sets"),
        (["--V", "5"], "vtc: V = 5: a 12 x 12 grid and tokenpacker_nested can give 0"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_any_work(words, said, here):
    done = here("sweep", "--profile", "smoke", *words)
    assert done.returncode == 2 and done.stderr.startswith(said)


def test_a_folder_in_place_of_a_file_is_one_line(tmp_path, monkeypatch, here):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.csv").write_text(
        "N,V,score\n" + "\n".join(f"{n},{v},.5" for n in (1, 2, 7) for v in (1, 4))
    )
    for words in (["plan", "--json", "."], ["fit", "scores.csv", "--json", "."]):
        done = here(*words)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert done.stderr == f"vtc: {tmp_path}: cannot be written (Is a directory)\n"


def test_seeds_reach_the_notebooks(monkeypatch):
    monkeypatch.setenv("VTC_SEEDS", "2,1")
    assert profiles.get("smoke").seeds == (2, 1)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package installed without its repository -> runs a command of it from another folder."""
    pytest.importorskip("setuptools", reason="builds the package without a network")
    home = tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, home)
    shutil.copytree(ROOT / "vtc", home / "vtc", ignore=shutil.ignore_patterns("__pycache__"))
    words = "-m pip install -q --no-deps --no-index --no-build-isolation --disable-pip-version-check".split()
    subprocess.run([sys.executable, *words, "--target", home / "site", home], check=True)
    (home / "elsewhere").mkdir()
    settings = {k: v for k, v in os.environ.items() if k != "VTC_RUNS"} | {"PYTHONPATH": str(home / "site")}
    return lambda *words: vtc(*words, cwd=home / "elsewhere", env=settings), home / "elsewhere"


def test_installed_without_a_checkout_it_fits_and_plans(installed):
    run, here = installed
    p = published("reasoning")
    rows = "".join(f"{n},{v},{1 - y}\n" for n, v, y in zip(p.N, p.V, p.Y))
    (here / "mine.csv").write_text("N,V,score\n" + rows)
    done = run("fit", "mine.csv", "--json", "law.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((here / "law.json").read_text())["all"]["ratio"] == pytest.approx(4.70, abs=0.01)
    done = run("plan", "--json", "plan.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((here / "plan.json").read_text())["fits"]
    assert sorted(path.name for path in here.iterdir()) == ["law.json", "mine.csv", "plan.json"]


@pytest.mark.parametrize("command", ["reproduce", "record"])
def test_installed_without_a_checkout_the_notebooks_are_said_to_be_missing(installed, command):
    done = installed[0](command)
    assert done.returncode == 2
    assert (
        done.stderr.startswith(f"vtc: `vtc {command}` needs the repository") and done.stderr.count("\n") == 1
    )


def test_installed_without_a_checkout_runs_lie_in_the_current_folder(installed):
    run, here = installed
    code = "from vtc import profiles as p; print(p.CHECKOUT, p.get('smoke').runs, p.get('smoke').results)"
    site = here.parent / "site"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, env={"PYTHONPATH": str(site)}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["None", str(here / "runs" / "smoke"), str(here / "results" / "smoke")]


def test_what_is_not_python_is_installed_too(installed):
    site = installed[1].parent / "site" / "vtc"
    for path in (ROOT / "vtc").rglob("*"):
        if path.suffix in (".csv", ".json", ".html"):
            assert (site / path.relative_to(ROOT / "vtc")).exists(), path


def test_what_needs_no_torch_imports_none():
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    code += "    assert 'torch' not in sys.modules, f'{name} imports torch'"
    done = subprocess.run([sys.executable, "-c", code, *LIGHT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
