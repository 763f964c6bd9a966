"""The five notebooks in order, all measured here; then our numbers, the recorded ones and the paper's.

Rows, weights, figures and executed notebooks go to `runs/<name>/`. Stopped at any moment, the same command
goes on: executed notebooks of the same sources are not run again, measured rows are kept, training resumes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from unittest.mock import patch

from vtc import files
from vtc.profiles import ROOT, Profile

NOTEBOOKS = ROOT / "notebooks"
SAMPLE_S = 0.5  # between two looks at the memory in use


def _kernel_environment(profile: Profile) -> AbstractContextManager[None]:
    """What notebooks inherit: the run's folder, its seeds, a terminal for progress bars if there is one."""
    terminal = os.ttyname(sys.stderr.fileno()) if _on_terminal() else "off"
    seeds = ",".join(map(str, profile.seeds))
    settings = {"VTC_RUN": profile.run, "VTC_SEEDS": seeds, "VTC_PROGRESS": terminal}
    return patch.dict(os.environ, settings)


def _run(notebook: Path, profile: Profile) -> str | None:
    """Executes one notebook into the run's folder unless it is there already; returns a fault in one line."""
    done = profile.runs / "notebooks" / notebook.name
    sources = _sources(notebook, profile)
    if (cost := _finished(done, sources)) is not None:
        print(f"{notebook.stem}\n    {cost}, kept", flush=True)
        return None
    import papermill  # costs a second
    from nbclient.exceptions import DeadKernelError

    going = done.with_suffix(".going.ipynb")
    going.parent.mkdir(parents=True, exist_ok=True)
    print(notebook.stem, flush=True)
    start = time.monotonic()
    parameters = {"profile": profile.name, "recompute": True}
    try:
        with PeakMemory() as memory:
            executed = papermill.execute_notebook(
                notebook,
                going,
                parameters,
                cwd=NOTEBOOKS,
                kernel_name="python3",
                start_timeout=600,  # seconds; a busy machine is slow to start a kernel
                progress_bar={"leave": False} if _on_terminal() else False,
                extra_arguments=["--IPKernelApp.log_level=50"],  # the kernel's remarks are not for readers
            )
    except papermill.PapermillExecutionError as error:
        return _fault(error, going)
    except DeadKernelError:
        return f"its kernel was killed (out of memory?) after {_duration(time.monotonic() - start)}"
    cost = f"{_duration(time.monotonic() - start)}, peak {memory.peak_bytes / 1e9:.1f} GB"
    executed.metadata["vtc"] = {"sources": sources, "cost": cost}
    files.write(done, json.dumps(executed, indent=1))
    going.unlink()
    print(f"    {cost}", flush=True)
    return None


def _sources(notebook: Path, profile: Profile) -> str:
    """A hash of what makes a notebook's outcome: its cells, the package, the profile's numbers."""
    every = json.loads(notebook.read_text())["cells"]
    cells = [cell["source"] for cell in every if cell["cell_type"] == "code"]
    kinds = (".py", ".csv", ".json", ".html")  # code, and what it reads
    modules = sorted(path for path in (ROOT / "vtc").rglob("*") if path.suffix in kinds)
    digest = hashlib.sha256(json.dumps(["".join(cell) for cell in cells]).encode() + repr(profile).encode())
    for path in modules:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _finished(done: Path, sources: str) -> str | None:
    """What a complete executed copy of the same sources cost; None if there is none."""
    try:
        made = json.loads(done.read_text())["metadata"]["vtc"]
    except (OSError, ValueError, KeyError):
        return None
    return made["cost"] if made["sources"] == sources else None


def _fault(error: Exception, going: Path) -> str:
    """Which cell, its first line, what it said last, and where the whole trace is."""
    said = [line for line in str(error.evalue).splitlines() if line.strip()] or [""]
    cell = next((line for line in error.source.splitlines() if line.strip()), "")
    return f"cell [{error.exec_count}] `{cell}`: {error.ename}: {said[-1]} (whole trace in {_short(going)})"


class PeakMemory:
    """The most memory that this process and its descendants held at once, in bytes, sampled."""

    def __enter__(self) -> PeakMemory:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        me = psutil.Process()
        while not self._stop.wait(SAMPLE_S):
            held = 0
            for process in [me, *me.children(recursive=True)]:
                with suppress(psutil.Error):  # it has ended meanwhile
                    held += process.memory_info().rss
            self.peak_bytes = max(self.peak_bytes, held)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _on_terminal() -> bool:
    return sys.stderr.isatty() and not os.environ.get("CI")


def _short(path: Path) -> Path:
    """A path as seen from the checkout, where it lies in it."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
