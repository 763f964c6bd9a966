"""`make faults`: sweeps, clocks and figures killed at any moment, two at once, a full disk: nothing is lost.

Each run is a process group of its own, ended by SIGKILL at a random time, or inside a write chosen at random.
For the second kind the run counts its own writes and stands still in that one, its file half written and not
in place yet, until the kill comes: what is left of the file proves where it came. Started again each time,
the run must end with the rows of one that nobody touched. A part that fails is said, and the others still
run; the last lines are one a part, and the exit code is 1 if any failed.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vtc import __main__, files

CLOCKS = {"seconds", "train_seconds", "questions_per_s", "date"}  # what no second run repeats
SWEEP, BENCH = ("sweep", "--profile", "smoke"), ("bench", "--profile", "smoke")
SCORES = "family,N,V,score\n" + "".join(  # each family is a figure twice, svg and png
    f"{family},{n},{v},{1 - 0.3 * n**-0.3 * v**-0.1}\n"
    for family in "abcdef"
    for n in (1, 2, 7)
    for v in (1, 4, 16)
)
FIGURES = 12
WAIT_IN, WAITING = "VTC_FAULTS_WAIT_IN", ".waiting"  # which write stands still; the file that says it does
MANY = 4  # writes among which one is chosen


def wait_in_write(number: int) -> None:
    """The `number`-th write of this process stands still for good, half written, until somebody kills it."""
    to_disk, count = files._to_disk, itertools.count(1)

    def torn(part: Path) -> None:
        if next(count) == number:
            for file in [path for path in (part, *part.rglob("*")) if path.is_file()]:
                os.truncate(file, file.stat().st_size // 2)
            Path(os.environ["VTC_RUNS"], WAITING).touch()
            time.sleep(3600)
        to_disk(part)

    files._to_disk = torn


if WAIT_IN in os.environ:  # here, and in the workers of a sweep, which import this file too
    wait_in_write(int(os.environ[WAIT_IN]))


@dataclass
class Tally:
    """What the kills of one command did."""

    kills: int = 0
    inside: int = 0  # of them, inside a write
    lost: int = 0  # cases that were there before a kill and not after, or not at the end
    doubled: int = 0  # cases that are there twice
    changed: int = 0  # cases whose rows are not those of an unbroken run

    @property
    def harmless(self) -> bool:
        return not (self.lost or self.doubled or self.changed)

    def __str__(self) -> str:
        cases = f"{self.lost} cases lost, {self.doubled} doubled, {self.changed} changed"
        return f"{self.kills} kills, {self.inside} of them inside a write; {cases}"


class Run:
    """A command of `vtc` whose rows and figures go to a folder."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder, self.words = folder, words

    def start(self, wait_in: int = 0) -> subprocess.Popen:
        """wait_in: the write in which it stands still; 0: none."""
        env = os.environ | {"VTC_RUNS": str(self.folder), "VTC_PROGRESS": "off"}
        env.setdefault("OMP_NUM_THREADS", "1")
        if wait_in:
            env[WAIT_IN] = str(wait_in)
        (self.folder / WAITING).unlink(missing_ok=True)
        command = [sys.executable, __file__, *self.words]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=env, start_new_session=True, **pipes)

    def finish(self) -> float:
        """Runs to the end; returns the seconds it took."""
        process, start = self.start(), time.monotonic()
        said = process.communicate()[1]
        assert process.returncode == 0, said
        return time.monotonic() - start

    def parts(self) -> set[Path]:
        """Files and folders that were being written when their writer was killed."""
        return set(self.folder.rglob(".*.part"))

    def rows(self) -> dict[str, list[list[dict]]]:
        """Every case by its fields -> its rows, file by file, without what no second run repeats."""
        found: dict[str, list[list[dict]]] = {}
        for path in sorted(self.folder.glob("*/rows/*/[!.]*.json")):
            case = json.loads(path.read_text())
            name = json.dumps([path.parent.name, case["case"]], sort_keys=True)
            rows = [{k: v for k, v in row.items() if k not in CLOCKS} for row in case["rows"]]
            found.setdefault(name, []).append(rows)
        return found

    def killed(self, at: random.Random, inside: bool, seconds: float, many: int = MANY) -> str:
        """Starts the command and kills it at a random time, or `inside` one of its first `many` writes.

        seconds: how long an unbroken run takes. Returns "inside", "outside", or "ended" before it was killed.
        """
        before = self.parts()
        process = self.start(at.randint(1, many) if inside else 0)
        moment = time.monotonic() + at.uniform(0, seconds)
        while process.poll() is None:
            if (self.folder / WAITING).exists() if inside else time.monotonic() > moment:
                break
            time.sleep(0.01)
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[1]
            return "ended"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "inside" if self.parts() - before else "outside"


def kills(run: Run, goal: Run, seconds: float, total: int, inside: int) -> Tally:
    """Kills a command `total` times or more, `inside` of them within a write, then lets it end.

    goal: an unbroken run, whose rows it must end with; of a clock the same cases. seconds: how long that
    took.
    """
    at, tally = random.Random(0), Tally()
    while tally.kills < total or tally.inside < inside:
        had = run.rows()
        how = run.killed(at, tally.inside < inside and at.random() < 0.5, seconds)
        if how == "ended":
            compare(run, goal, tally)
            shutil.rmtree(run.folder)  # from the start again
            continue
        kept = run.rows()
        tally.kills, tally.inside = tally.kills + 1, tally.inside + (how == "inside")
        tally.lost += sum(kept.get(name) != rows for name, rows in had.items())
        print(f"kill {tally.kills}: {how}; {len(had)} cases before, {len(kept)} after", flush=True)
    run.finish()
    compare(run, goal, tally)
    return tally


def compare(run: Run, goal: Run, tally: Tally) -> None:
    """Lays the rows of a run that has ended beside those of an unbroken one."""
    found, clock = run.rows(), run.words[0] == "bench"
    for name, (rows, *_) in goal.rows().items():
        here, *again = found.pop(name, [None])
        tally.lost += here is None
        tally.doubled += len(again)
        tally.changed += here is not None and (len(here) != len(rows) if clock else here != rows)
    tally.changed += len(found)  # cases that the other does not have


def sweep(folder: Path, total: int, inside: int, words: tuple[str, ...] = SWEEP) -> tuple[Run, Tally]:
    """An unbroken sweep, and what kills did to one beside it."""
    unbroken = Run(folder / "unbroken", *words)
    seconds = unbroken.finish()
    return unbroken, kills(Run(folder / "killed", *words), unbroken, seconds, total, inside)


def clock(folder: Path, total: int, inside: int) -> Tally:
    """The same of a clock."""
    unbroken = Run(folder / "clock", *BENCH)
    seconds = unbroken.finish()
    return kills(Run(folder / "clock killed", *BENCH), unbroken, seconds, total, inside)


def two_at_once(folder: Path, unbroken: Run) -> Tally:
    """Two programs that work on one folder must end with its rows, each once."""
    run, tally = Run(folder / "shared", *unbroken.words), Tally()
    both = [run.start(), run.start()]
    for process in both:
        said = process.communicate()[1]
        assert process.returncode == 0, said
    compare(run, unbroken, tally)
    return tally


def figures(folder: Path, total: int) -> Tally:
    """Kills inside the writing of a figure, over older figures: each must stay, or be new and whole."""
    (folder / "scores.csv").write_text(SCORES)
    words = ("fit", str(folder / "scores.csv"), "--figures")
    seconds = Run(folder, *words, str(folder / "whole")).finish()
    whole = {path.name: path.read_bytes() for path in (folder / "whole").iterdir()}
    drawn, tally, at = folder / "drawn", Tally(), random.Random(1)
    for _ in range(total):
        drawn.mkdir()
        for name in whole:
            (drawn / name).write_bytes(b"old")
        tally.kills += 1
        tally.inside += Run(drawn, *words, str(drawn)).killed(at, True, seconds, FIGURES) == "inside"
        for name, content in whole.items():
            here = (drawn / name).read_bytes() if (drawn / name).exists() else None
            tally.lost += here is None
            tally.changed += here not in (None, b"old", content)
        shutil.rmtree(drawn)
    return tally


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


KINDS = ("row", "checkpoint", "figure")


def full_disk(folder: Path, unbroken: Run, kinds: tuple[str, ...] = KINDS) -> str:
    """What is written finds no space: one line, exit code 2, what was there stays whole."""
    for what in kinds:
        run = Run(folder / f"full-{what}", *unbroken.words)
        shutil.copytree(unbroken.folder, run.folder)
        rows = run.folder / "smoke" / "rows" / "02_errors"
        next(rows.glob("[!.]*.json")).unlink()  # to be measured again
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
                return "skipped, no small disk can be mounted here"
            before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
            process = run.start()
            said = process.communicate()[1]
            assert process.returncode == 2 and said.startswith("vtc: ") and said.count("\n") == 1, said
            assert "No space left on device" in said, said
            assert not run.parts(), "a temporary file is left"
            for path, content in before.items():
                assert path.read_bytes() == content, f"{path} changed"
        print(f"a full disk under a {what}: {said.strip()}")
    return f"under a {', a '.join(kinds)}: one line each, what was there is whole, nothing else is left"


def main() -> int:
    """All parts, whatever becomes of one of them, and a line for each; 1 if one failed."""
    lines, failed = [], False

    def part(name: str, work: Callable[[], Tally | str]) -> None:
        nonlocal failed
        try:
            said = work()
            bad = isinstance(said, Tally) and not said.harmless
        except Exception as error:  # said below; the other parts still run
            said, bad = f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}", True
        failed |= bad
        lines.append(f"{'FAILED' if bad else 'ok':<8}{name}: {said}")
        print(lines[-1], flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        unbroken = Run(folder / "unbroken", *SWEEP)
        part("vtc sweep --profile smoke", lambda: sweep(folder, total=20, inside=8)[1])
        part("vtc fit --figures", lambda: figures(folder, total=3))
        part("two sweeps at once", lambda: two_at_once(folder, unbroken))
        part("vtc bench --profile smoke", lambda: clock(folder, total=10, inside=2))
        part("a full disk", lambda: full_disk(folder, unbroken))
    print("", *lines, sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(__main__.main(sys.argv[1:]) if sys.argv[1:] else main())
