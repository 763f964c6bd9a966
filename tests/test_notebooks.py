"""Every notebook opens cold at smoke and keeps the house rules; the runner stops, goes on and reports."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from vtc import __main__, files, profiles
from vtc.experiments import claims, evidence, report, reproduce, store

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@each_notebook
def test_a_notebook_runs_cold_at_smoke(path, tmp_path, monkeypatch):
    import papermill

    monkeypatch.setenv("VTC_RUNS", str(tmp_path))
    monkeypatch.delenv("VTC_RUN", raising=False)
    parameters = {"profile": "smoke", "recompute": True}
    executed = papermill.execute_notebook(
        path,
        tmp_path / path.name,
        parameters,
        cwd=path.parent,
        kernel_name="python3",
        start_timeout=600,
        progress_bar=False,
    )
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code" and cell.source)


@each_notebook
def test_a_notebook_keeps_the_house_rules(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown" and "markdown" in (cells[-1].cell_type, cells[-2].cell_type)
    assert "provenance(p)" in code(path)[-1].source  # versions, device, commit close it
    first, second = code(path)[:2]
    assert "parameters" in first.metadata.tags
    assert re.fullmatch(r'profile = "laptop".*\nrecompute = False.*', first.source.strip())
    assert "profiles.get(profile, recompute)" in second.source
    for cell in code(path):
        lines = cell.source.splitlines()
        assert len(lines) <= 14, cell.source
        assert not re.search(r"^\s*(def|class|async def) ", cell.source, re.M), cell.source
        assert not re.search(r"""["'](/|\.\./)""", cell.source), "a path in a cell"


@each_notebook
def test_a_notebook_is_committed_executed_and_without_faults(path):
    for cell in code(path):
        assert cell.execution_count or not cell.source.strip(), cell.source
        assert not any(out.output_type == "error" for out in cell.outputs)


@each_notebook
def test_stored_outputs_speak_of_no_machine(path):
    """A warning with a path in it would differ from machine to machine, and is not for readers."""
    for cell in code(path):
        for output in cell.outputs:
            assert output.get("name") != "stderr", output["text"]
            assert "site-packages" not in json.dumps(output.get("text", "")), cell.source


# --- the runner, on two notebooks of its own ---

SWEEP = """import time
from pathlib import Path
from vtc import profiles
from vtc.experiments import store
p = profiles.get(profile, recompute)
def measure(case):
    time.sleep(0.3)
    Path(p.runs, "measured").open("a").write("x")
    return {"error": case["V"] / 3}
rows = store.table("01_x", p, [{"V": v} for v in range(8)], measure)"""
CLAIM = """from vtc import profiles
from vtc.experiments import store
p = profiles.get(profile, recompute)
mean = store.stored("01_x", p).error.mean()
assert abs(mean - 7 / 6) < 1e-9"""


def notebook(path, *cells):
    parameters = nbformat.v4.new_code_cell('profile = "laptop"\nrecompute = False')
    parameters.metadata["tags"] = ["parameters"]
    nb = nbformat.v4.new_notebook(cells=[parameters, *map(nbformat.v4.new_code_cell, cells)])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, path)


@pytest.fixture
def story(tmp_path, monkeypatch):
    """A folder of two small notebooks in place of the five, and empty runs."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    notebook(folder / "01_sweep.ipynb", SWEEP)
    notebook(folder / "02_claim.ipynb", CLAIM)
    monkeypatch.setenv("VTC_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(reproduce, "NOTEBOOKS", folder)
    return folder


def start(folder):
    """`vtc reproduce` on those notebooks in a process of its own."""
    script = folder.parent / "reproduce.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom vtc import __main__\n"
        "from vtc.experiments import reproduce\n"
        f"reproduce.NOTEBOOKS = reproduce.ROOT = Path({str(folder)!r})\n"  # the package is no source here
        "sys.exit(__main__.main(['reproduce', '--profile', 'smoke', '--name', 'toy']))\n"
    )
    return subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def rows_of(run):
    """V of the rows that a run holds."""
    found = (json.loads(path.read_text()) for path in (run / "rows" / "01_x").glob("*.json"))
    return sorted(row["V"] for case in found for row in case["rows"])


def test_killed_at_three_moments_it_goes_on_to_the_same_rows(story, tmp_path):
    run = tmp_path / "runs" / "toy"
    for goal in (1, 3, 6):
        process = start(story)
        end = time.monotonic() + 300
        while len(rows_of(run)) < goal and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    said, fault = start(story).communicate()
    assert not fault and re.search(r'recomputed +"error varies 5x faster .* agrees', said)
    assert rows_of(run) == list(range(8))
    assert len((run / "measured").read_text()) <= 8 + 3  # each kill loses the case in flight
    assert {path.name for path in (run / "notebooks").iterdir()} == {"01_sweep.ipynb", "02_claim.ipynb"}

    said, _ = start(story).communicate()  # all is there: nothing runs again
    assert said.count(", kept") == 2
    notebook(story / "02_claim.ipynb", CLAIM, "p.name")  # one source changed: only that one runs
    said, _ = start(story).communicate()
    assert said.count(", kept") == 1
    assert json.loads((run / "notebooks" / "02_claim.ipynb").read_text())["metadata"]["vtc"]["cost"]


def test_a_fault_names_notebook_cell_and_last_line(story, capfd):
    notebook(story / "01_sweep.ipynb", "ok = 1", "\nraise ValueError('first\\nlast')")
    assert __main__.main(["reproduce", "--profile", "smoke", "--name", "toy"]) == 1
    lines = capfd.readouterr().err.strip().splitlines()
    assert "01_sweep.ipynb: cell [4] `raise ValueError('first\\nlast')`: ValueError: last" in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_a_dead_kernel_is_said(story, capfd):
    notebook(story / "01_sweep.ipynb", "import os\nos.kill(os.getpid(), 9)")
    assert __main__.main(["reproduce", "--profile", "smoke", "--name", "toy"]) == 1
    assert "01_sweep.ipynb: its kernel was killed (out of memory?)" in capfd.readouterr().err


def test_fresh_forgets_what_was_measured(story, tmp_path, capsys):
    run = tmp_path / "runs" / "toy"
    p = profiles.get("smoke", recompute=True, run="toy")
    store.table("01_x", p, [{"V": 9}], lambda case: {"error": 9})
    notebook(story / "01_sweep.ipynb", "1")
    notebook(story / "02_claim.ipynb", "1")
    assert __main__.main(["reproduce", "--profile", "smoke", "--name", "toy", "--fresh"]) == 0
    assert not rows_of(run)


@pytest.mark.parametrize("name", ["..", "a/b", "."])
def test_a_name_stays_in_its_folder(name, capsys):
    assert __main__.main(["reproduce", "--profile", "smoke", "--name", name, "--fresh"]) == 2
    assert "without slashes" in capsys.readouterr().err


def test_two_at_once_are_refused(story, tmp_path, capsys):
    with files.file_lock(tmp_path / "runs" / "toy" / "reproduce"):
        assert __main__.main(["reproduce", "--profile", "smoke", "--name", "toy"]) == 2
    assert "another `vtc reproduce`" in capsys.readouterr().err


def test_the_table_sets_what_is_here_beside_what_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("VTC_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    now = profiles.get("smoke", recompute=True, run="again")
    before = claims.table(evidence.recomputed()).assign(low=-1.0).drop(index=0)
    files.write(now.results / "claims.csv", before.to_csv(index=False))
    table = [re.split(r"\s{2,}", line) for line in report.comparison(now).splitlines()]
    assert table[0] == ["evidence", "what is said", "test", "here", "recorded", "verdict"]
    kind, says, test, here, recorded, verdict = table[3]
    assert (kind, says, verdict) == ("recomputed", "beta = 0.015, reasoning", "agrees")
    assert (
        test == "= 0.015, not 0" and here == "0.0151 [0.0108, 0.0206]" and recorded == "0.0151 [-1, 0.0206]"
    )
    assert table[2][4] == "-"  # that one is not recorded


def test_peak_memory_counts_children():
    with reproduce.PeakMemory() as memory:
        code = "b = bytearray(300_000_000); b[::4096] = b'x' * len(b[::4096]); import time; time.sleep(1.5)"
        subprocess.run([sys.executable, "-c", code])
    assert memory.peak_bytes > 300e6
