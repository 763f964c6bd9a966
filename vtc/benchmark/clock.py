"""The one clock: calls taken in turn, waited for on either side; raw samples, and what is said of them.

Everything in this package that takes a time takes it here: the stages of a request, training, a first token,
a compressor beside another. Calls that will be compared are timed in turn (a, b, a, b, ...), so that a busy
moment of the machine meets all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from vtc.progress import bar

FEWEST, MOST = 5, 40  # samples of a call
Key = TypeVar("Key")


def milliseconds(call: Callable, device: str = "cpu") -> float:
    """How long one call takes: CUDA events on a GPU, synchronised on either side; else the system's counter.

    A GPU's work is only queued when a call returns, so a clock that does not wait measures the queueing.
    """
    if device == "cpu":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def in_turn(
    calls: Mapping[Key, Callable],
    device: str = "cpu",
    budget_s: float = 0.0,
    fewest: int = FEWEST,
    most: int = MOST,
    warm_up: int = 1,
    label: str = "",
) -> dict[Key, list[float]]:
    """Milliseconds of every call: `warm_up` rounds unseen, then rounds until the budget is spent.

    There are `fewest` to `most` rounds whatever the budget; every call has the same number of samples.
    """
    for _ in range(warm_up):
        for call in calls.values():
            call()
    taken: dict[Key, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + budget_s
    for i in bar(range(most), label, unit="round"):
        if i >= fewest and time.perf_counter() > end:
            break
        for name, call in calls.items():
            taken[name].append(milliseconds(call, device))
    return taken


def interval(samples: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of the median by order statistics: no shape of the distribution is assumed.

    With fewer than 6 samples it is their range, whose level is then below 95 %.
    """
    from scipy.stats import binom

    x, n = np.sort(samples), len(samples)
    k = int(binom.ppf(0.025, n, 0.5))
    return float(x[max(k - 1, 0)]), float(x[min(n - k, n - 1)])


def summary(samples_ms: Sequence[float]) -> dict:
    """Median, quartiles, the median's 95 % interval, how many, and the samples themselves."""
    low, high = interval(samples_ms)
    q25, median, q75 = (float(x) for x in np.percentile(samples_ms, [25, 50, 75]))
    quartiles = {"median_ms": median, "q25_ms": q25, "q75_ms": q75}
    raw = {"n": len(samples_ms), "samples_ms": [round(float(s), 4) for s in samples_ms]}
    return {**quartiles, "low_ms": low, "high_ms": high, **raw}


def ratio(slow_ms: Sequence[float], fast_ms: Sequence[float]) -> dict[str, float]:
    """How many times as long the first takes: the median over the turns of both, and its 95 % interval."""
    turns = np.divide(slow_ms, fast_ms)
    low, high = interval(turns)
    return {"ratio": float(np.median(turns)), "ratio_low": low, "ratio_high": high}
