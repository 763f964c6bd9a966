"""A fresh process for every case, so that peak memory is its own; running out of it is a row."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from vtc.benchmark.cases import OUT_OF_MEMORY, needs, tokens
from vtc.machine import device_name, die_with, free_bytes, is_out_of_memory

KILLED, LOST = -9, 3  # what a process returns that the system killed, or that found no memory


def measure(c: dict) -> list[dict]:
    """Clocks one case in a fresh process -> a row a V, compressor and stage.

    Where memory runs out, the largest V is clocked by itself and the others without it; if it does not fit
    alone either, its row says so. On a CPU a V that cannot fit is not begun: it would swap for minutes first.
    """
    left = [V for V in tokens(c) if c["on"] != "cpu" or needs(c, V) <= free_bytes("cpu")]
    rows: list[dict] = []
    while left:
        if (found := _clocked(c, left)) is not None:
            rows += found
            break
        largest = left.pop()
        rows += (_clocked(c, [largest]) or []) if left else []
    lost = [V for V in tokens(c) if V not in {row["tokens"] for row in rows}]
    said = {"stage": "all", "status": OUT_OF_MEMORY, "device": device_name(c["on"])}
    return rows + [{"tokens": V, **said, "needs_bytes": needs(c, V)} for V in lost]


def _clocked(c: dict, V: list[int]) -> list[dict] | None:
    """The rows of a case at these V from a process of its own; None where its memory ran out."""
    c = c | {"V": " ".join(map(str, V))}
    words = [sys.executable, "-m", "vtc.benchmark.process", json.dumps(c)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"VTC_PROGRESS": "off"})
    if done.returncode in (KILLED, LOST):
        return None
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the clock died")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _serve(c: dict) -> int:
    """The child: prints the rows of the case as lines of JSON."""
    die_with(os.getppid())
    from vtc.benchmark.stages import Bench

    try:
        rows = Bench(c).rows()
    except Exception as error:
        if is_out_of_memory(error):
            return LOST
        raise
    for row in rows:
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(_serve(json.loads(sys.argv[1])))
