"""A fresh process a case, samples taken in turn, and what is said of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from vtc.benchmark.cases import OUT_OF_MEMORY, needs, tokens
from vtc.machine import free_bytes
from vtc.progress import bar

FEWEST, MOST = 5, 40  # samples of a stage


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
    from vtc.machine import die_with

    die_with(os.getppid())
    from vtc.benchmark.stages import Bench, is_out_of_memory

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


def summary(samples_ms: list[float]) -> dict:
    """Median, quartiles and a 95 % interval of the median by order statistics (no shape assumed).

    With fewer than 6 samples the interval is their range, whose level is then below 95 %.
    """
    x, n = np.sort(samples_ms), len(samples_ms)
    from scipy.stats import binom

    k = int(binom.ppf(0.025, n, 0.5))
    low, high = x[max(k - 1, 0)], x[min(n - k, n - 1)]
    quarter = np.percentile(x, [25, 50, 75])
    return {
        "median_ms": float(quarter[1]),
        "q25_ms": float(quarter[0]),
        "q75_ms": float(quarter[2]),
        "low_ms": float(low),
        "high_ms": float(high),
        "n": n,
        "samples_ms": [round(float(s), 4) for s in samples_ms],
    }


def sample(calls: dict[str, Callable[[], float]], budget_s: float, label: str = "") -> dict[str, list[float]]:
    """Times every call in turn, after one warm-up each, until the budget is spent (5 to 40 rounds) -> ms."""
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + budget_s
    for _ in bar(range(MOST), label, unit="round"):
        for name, call in calls.items():
            taken[name].append(call() * 1e3)
        if time.perf_counter() > end and len(taken[name]) >= FEWEST:
            break
    return taken


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]), sys.argv[2])
