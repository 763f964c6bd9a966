"""`make faults`: sweeps, clocks and figures killed at any moment, two at once, a full disk: nothing is lost.

Each run is a process group of its own, ended by SIGKILL either at a random time or while a file is being
written (`.name.part`). For the second kind the run is stopped (SIGSTOP) whenever such a file is seen: if the
file is still there it is killed, else it goes on. What is left of the file proves that the kill came inside
a write. Started again each time, the run must end with the rows of one that nobody touched.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLOCKS = {"seconds", "train_seconds", "questions_per_s", "date"}  # what no second run repeats
SWEEP, BENCH = ("sweep", "--profile", "smoke"), ("bench", "--profile", "smoke")
SCORES = "family,N,V,score\n" + "".join(  # each family is a figure twice, svg and png
    f"{family},{n},{v},{1 - 0.3 * n**-0.3 * v**-0.1}\n"
    for family in "abcdef"
    for n in (1, 2, 7)
    for v in (1, 4, 16)
)


class Run:
    """A command of `vtc` whose rows and figures go to a folder."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder, self.words = folder, words

    def start(self) -> subprocess.Popen:
        command = [sys.executable, "-m", "vtc", *self.words]
        env = os.environ | {"VTC_RUNS": str(self.folder), "VTC_PROGRESS": "off"}
        env.setdefault("OMP_NUM_THREADS", "1")
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=env, start_new_session=True, **pipes)

    def finish(self) -> float:
        """Runs to the end; returns the seconds it took."""
        process, start = self.start(), time.monotonic()
        said = process.communicate()[1]
        assert process.returncode == 0, said
        return time.monotonic() - start

    def parts(self) -> set[Path]:
        """Files that are being written, or were when their writer was killed."""
        return {Path(at, name) for at, _, names in os.walk(self.folder) for name in names if _is_part(name)}

    def rows(self) -> dict[str, list[dict]]:
        """Every case in the folder, by its fields: its rows without what no second run repeats."""
        found: dict[str, list[dict]] = {}
        for path in sorted(self.folder.glob("*/rows/*/[!.]*.json")):
            case = json.loads(path.read_text())
            name = json.dumps([path.parent.name, case["case"]], sort_keys=True)
            assert name not in found, f"{path}: a case twice"
            found[name] = [{k: v for k, v in row.items() if k not in CLOCKS} for row in case["rows"]]
        return found

    def killed(self, at: random.Random, inside: bool, seconds: float) -> str:
        """Starts the command and kills it at a random time, or "inside" the first write after it.

        seconds: how long an unbroken run takes. Returns "inside", "outside", or "ended" before it was killed.
        """
        before, process = self.parts(), self.start()
        moment = time.monotonic() + at.uniform(0, seconds / 2 if inside else seconds)
        while process.poll() is None:
            if time.monotonic() < moment:
                time.sleep(0.01)
            elif not inside or self._stopped_in(process, self.parts() - before):
                break
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[1]
            return "ended"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "inside" if self.parts() - before else "outside"

    def _stopped_in(self, process: subprocess.Popen, new: set[Path]) -> bool:
        """Stops the command if it is writing; where the files are done by then it goes on."""
        if not new:
            time.sleep(0.0002)
            return False
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(0.002)  # the signal has arrived
        if any(path.exists() for path in new):
            return True
        os.killpg(process.pid, signal.SIGCONT)
        return False


def _is_part(name: str) -> bool:
    return name.startswith(".") and name.endswith(".part")


def kills(run: Run, goal: dict[str, list[dict]], seconds: float, total: int, inside: int) -> int:
    """Kills a command `total` times, `inside` of them or more within a write, then lets it end.

    goal: the rows it must end with; of a clock the same cases, each once. seconds: how long an unbroken run
    takes. Returns how many kills came inside a write.
    """
    at, hits, n = random.Random(0), 0, 0
    while n < total or hits < inside:
        had = run.rows()
        how = run.killed(at, hits < inside, seconds)
        if how == "ended":
            _check(run, goal)
            shutil.rmtree(run.folder)  # from the start again
            continue
        n, hits = n + 1, hits + (how == "inside")
        kept = run.rows()
        assert had.items() <= kept.items(), "a row was lost or changed"
        print(f"kill {n}: {how}; {len(had)} cases before, {len(kept)} after", flush=True)
    run.finish()
    _check(run, goal)
    return hits


def _check(run: Run, goal: dict[str, list[dict]]) -> None:
    found = run.rows()
    assert found.keys() == goal.keys(), "other cases than those of an unbroken run"
    clock = run.words[0] == "bench"
    for name, rows in goal.items():
        assert len(found[name]) == len(rows) if clock else found[name] == rows, f"{name}: other rows"


def sweep(folder: Path, total: int, inside: int, words: tuple[str, ...] = SWEEP) -> Run:
    """Kills of a sweep beside an unbroken one, which is returned."""
    unbroken = Run(folder / "unbroken", *words)
    seconds = unbroken.finish()
    hits = kills(Run(folder / "killed", *words), unbroken.rows(), seconds, total, inside)
    print(f"vtc {' '.join(words)}: {total} kills or more, {hits} inside a write; no row lost, none doubled")
    return unbroken


def two_at_once(folder: Path, goal: dict[str, list[dict]], words: tuple[str, ...] = SWEEP) -> None:
    """Two programs that work on one folder end with its rows, each once."""
    run = Run(folder / "shared", *words)
    both = [run.start(), run.start()]
    for process in both:
        said = process.communicate()[1]
        assert process.returncode == 0, said
    _check(run, goal)
    print("two sweeps at once: the same rows, each once")


def figures(folder: Path, total: int) -> int:
    """Kills of a command that draws into a folder of older figures: each stays, or is new and whole."""
    (folder / "scores.csv").write_text(SCORES)
    words = ("fit", str(folder / "scores.csv"), "--figures")
    seconds = Run(folder, *words, str(folder / "whole")).finish()
    whole = {path.name: path.read_bytes() for path in (folder / "whole").iterdir()}
    drawn, hits, at = folder / "drawn", 0, random.Random(1)
    for _ in range(4 * total):  # on an idle machine the first `total` hit
        drawn.mkdir(exist_ok=True)
        for name in whole:
            (drawn / name).write_bytes(b"old")
        hits += Run(drawn, *words, str(drawn)).killed(at, True, seconds) == "inside"
        for name, content in whole.items():
            assert (drawn / name).read_bytes() in (b"old", content), (
                f"{name} is neither the old nor the new one"
            )
        shutil.rmtree(drawn)
        if hits == total:
            break
    print(f"figures: {hits} kills inside a write; the old or the new one is there, whole")
    return hits


@contextmanager
def small_disk(place: Path) -> Iterator[bool]:
    """What a folder holds, on a disk that is full with it; False where none can be mounted."""
    shutil.copytree(place, aside := place.with_name(f"{place.name}-aside"))
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", place], capture_output=True)
    if made.returncode:
        print(f"a full disk: skipped, none can be mounted here ({made.stderr.decode().strip()})")
        yield False
        return
    try:
        shutil.copytree(aside, place, dirs_exist_ok=True)
        with (place / "filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(b"x" * 4096)
            except OSError:
                pass
        yield True
    finally:
        subprocess.run(["umount", place], check=True)


def full_disk(folder: Path, unbroken: Run, kinds: tuple[str, ...] = ("row", "checkpoint", "figure")) -> None:
    """What is written finds no space: one line, exit code 2, what was there stays whole."""
    for what in kinds:
        run = Run(folder / f"full-{what}", *unbroken.words)
        shutil.copytree(unbroken.folder, run.folder)
        next(
            (run.folder / "smoke" / "rows" / "02_errors").glob("[!.]*.json")
        ).unlink()  # to be measured again
        for weights in (run.folder / "smoke" / "cache").rglob("nested.safetensors"):
            weights.unlink()  # or nothing were trained again
        place = run.folder / "smoke" / {"row": "rows", "checkpoint": "cache", "figure": "figures"}[what]
        if what == "figure":
            place.mkdir()
            (place / "law_a.svg").write_text("old")
            (folder / "scores.csv").write_text(SCORES)
            run.words = ("fit", str(folder / "scores.csv"), "--figures", str(place))
        with small_disk(place) as mounted:
            if not mounted:
                return
            before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
            process = run.start()
            said = process.communicate()[1]
            assert process.returncode == 2 and said.startswith("vtc: ") and said.count("\n") == 1, said
            assert "No space left on device" in said, said
            assert not run.parts(), "a temporary file is left"
            for path, content in before.items():
                assert path.read_bytes() == content, f"{path} changed"
        print(f"a full disk under a {what}: {said.strip()}")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        unbroken = sweep(folder, total=20, inside=8)
        assert figures(folder, total=3) == 3
        two_at_once(folder, unbroken.rows())
        clock = Run(folder / "clock", *BENCH)
        seconds = clock.finish()
        kills(Run(folder / "clock killed", *BENCH), clock.rows(), seconds, total=10, inside=2)
        print("vtc bench: 10 kills; the same cases, each once")
        full_disk(folder, unbroken)


if __name__ == "__main__":
    main()
