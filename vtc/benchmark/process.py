"""A fresh process for every case, so that peak memory is its own; running out of it is a row."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from vtc.benchmark.cases import OUT_OF_MEMORY, needs, tokens
from vtc.machine import die_with, free_bytes, is_out_of_memory


def measure(c: dict, memory_gb: float | None = None) -> list[dict]:
    """Clocks one case in a fresh process -> a row a V and stage; a V that does not fit says so in its row."""
    if c["on"] == "cpu" and needs(c) > free_bytes("cpu"):  # a CPU would swap for minutes before it failed
        return [_lost(c, V) for V in tokens(c)]
    words = [sys.executable, "-m", "vtc.benchmark.process", json.dumps(c), str(memory_gb or "")]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"VTC_PROGRESS": "off"})
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    missing = [V for V in tokens(c) if V not in {row["tokens"] for row in rows}]
    if missing and done.returncode not in (-9, 0):
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the clock died")
    return rows + [_lost(c, V) for V in missing]  # killed by the kernel: it ran out of memory


def _lost(c: dict, V: int) -> dict:
    return {"tokens": V, "stage": "all", "status": OUT_OF_MEMORY, "needs_bytes": needs(c)}


def _serve(c: dict, memory_gb: str) -> None:
    """The child: clocks every V of the case and prints its rows as lines of JSON."""
    die_with(os.getppid())
    from vtc.benchmark.stages import Bench

    if memory_gb:
        _limit(float(memory_gb) * 1e9)
    bench = None
    for V in tokens(c):
        try:
            bench = bench or Bench(c)
            rows = bench.rows(V)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            rows = [_lost(c, V)]
        for row in rows:
            print(json.dumps(row), flush=True)


def _limit(extra: float) -> None:
    """Lets this process take so many bytes more than it has, and no more."""
    import resource
    from pathlib import Path

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = int(pages * resource.getpagesize() + extra)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]), sys.argv[2])
