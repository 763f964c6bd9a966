"""The published fitting procedure re-enacted: a random fifth of a coarse grid, the best one wins.

`published_search` walks it configuration by configuration in plain Python loops, as published (its progress
bar left out, which flatters it); `best_of_fifth` gives the same answer from a whole-grid evaluation in
numpy, so that many seeds can be tried. Source: the official repository's search script
(locuslab/llava-token-compression); grid A in [.2, .7] x 50, alpha in [0, .2] x 100, beta in [0, .05] x 100,
D in [0, .3] x 10.
"""

from __future__ import annotations

import time
from functools import lru_cache

import numpy as np

from vtc.scaling.fitting import fit
from vtc.scaling.scores import Points, published

AXES = {"A": (0.2, 0.7, 50), "alpha": (0.0, 0.2, 100), "beta": (0.0, 0.05, 100), "D": (0.0, 0.3, 10)}
FRACTION = 0.2
SIZE = int(np.prod([steps for _, _, steps in AXES.values()]))  # 5,000,000 configurations


def _axes() -> list[np.ndarray]:
    return [np.linspace(*axis) for axis in AXES.values()]


@lru_cache(maxsize=2)
def _whole_grid(task: str) -> np.ndarray:
    """SSE of every configuration, (A, alpha, beta, D) as float32."""
    p = published(task)
    A, alpha, beta, D = _axes()
    f = np.exp(-alpha[:, None, None] * np.log(p.N) - beta[:, None] * np.log(p.V))  # (alpha, beta, n)
    ff, fy, f1 = (f**2).sum(-1), (f * p.Y).sum(-1), f.sum(-1)
    A, D = A[:, None, None, None], D
    square = A**2 * ff[..., None] + D**2 * len(p) + (p.Y**2).sum()
    cross = 2 * (A * D * f1[..., None] - A * fy[..., None] - D * p.Y.sum())
    return (square + cross).astype(np.float32)


def best_of_fifth(task: str = "reasoning", seed: int | None = 0, fraction: float = FRACTION) -> dict:
    """The winner of a random fraction of the grid (seed None: of all of it): seed, A, alpha, beta, D, sse."""
    sse, p = _whole_grid(task).reshape(-1), published(task)
    tried = np.arange(SIZE)
    if seed is not None:
        tried = np.random.default_rng(seed).choice(SIZE, int(fraction * SIZE), replace=False)
    where = np.unravel_index(tried[np.argmin(sse[tried])], [len(axis) for axis in _axes()])
    A, alpha, beta, D = (float(axis[i]) for axis, i in zip(_axes(), where))
    exact = float(((A * p.N**-alpha * p.V**-beta + D - p.Y) ** 2).sum())
    found = {"A": A, "alpha": alpha, "beta": beta, "D": D, "sse": exact}
    return {"seed": "whole grid" if seed is None else seed} | found


def published_search(p: Points, configurations: int, seed: int = 0) -> tuple[dict, float]:
    """Python loops over shuffled configurations x sizes x token counts, as published -> (winner, seconds)."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*_axes(), indexing="ij"), -1).reshape(-1, 4)
    grid = grid[rng.choice(SIZE, configurations, replace=False)]
    sizes, tokens = sorted(set(p.N.tolist())), sorted(set(p.V.tolist()))
    score = {str(n): [1 - float(p.Y[(p.N == n) & (p.V == v)][0]) for v in tokens] for n in sizes}

    best, winner = float("inf"), None
    began = time.process_time()
    for A, alpha, beta, D in grid:
        loss = 0.0
        for n in sizes:
            for v in tokens:  # scores are looked up inside the innermost loop, as published
                loss += (A / n**alpha / v**beta + D - (1 - score[str(n)][tokens.index(v)])) ** 2
        if loss < best:
            best, winner = loss, (A, alpha, beta, D)
    return dict(zip(AXES, map(float, winner))) | {"sse": float(best)}, time.process_time() - began


def cases(draws: int) -> list[dict]:
    """What `race` is asked: the published fifth, or a slice of it in profiles with few draws."""
    return [{"task": "reasoning", "configurations": int(FRACTION * SIZE * min(1.0, draws / 2000))}]


def race(case: dict) -> dict:
    """Both fits timed in one run, in CPU seconds (other programs at work don't count), with their SSEs.

    case: {task, configurations}. With fewer configurations than the published fifth its seconds are scaled up
    in proportion, and the row says so.
    """
    p, count, whole = published(case["task"]), int(case["configurations"]), int(FRACTION * SIZE)
    fit(p)  # imports and caches are warm before the clock starts
    began = time.process_time()
    ours = [fit(p) for _ in range(20)][-1]
    each = (time.process_time() - began) / 20
    winner, took = published_search(p, count)
    full = took * whole / count
    return {
        "seconds_published": full,
        "seconds_measured": took,
        "extrapolated": count < whole,
        "seconds_ours": each,
        "times_faster": full / each,
        "sse_published": winner["sse"],
        "sse_ours": ours.sse,
        "sse_whole_grid": best_of_fifth(case["task"], None)["sse"],
    }
