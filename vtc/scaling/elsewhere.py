"""What other published tables say: a beta for each benchmark, and milliseconds that our cost model never saw.

The paper fits one beta to the mean of nine benchmarks. Its Table 1 gives the scores of single benchmarks at
1, 4, 16 and 36 tokens, for one LLM and one run each: four points a benchmark, another set of scores than
the law's, no seeds. So the intervals are wide, and the table is an observation.
"""

from __future__ import annotations

import numpy as np

from vtc import cost
from vtc.evaluation.compare import student_interval
from vtc.scaling.scores import published_rows

METHODS = ("TokenPacker", "QueCC")  # those that Table 1 gives at four V
MOST = {"MME": 2000.0}  # points that a benchmark gives at most, where it is not scored in percent
COMPRESSORS = {"none": "identity", "QueCC": "quecc", "TokenPacker": "tokenpacker", "MQT": "mqt"}


def benchmark_betas(methods: tuple[str, ...] = METHODS) -> list[dict[str, object]]:
    """Each benchmark's own beta in Table 1 -> one row a benchmark, rising: beta, its 95 % interval, points.

    Least squares of ln(error) on ln V, one level for each compressor and one slope for both; the interval is
    Student's t of that slope.
    """
    table = [r for r in published_rows("compressors") if r["method"] in methods and r["value"]]
    rows = []
    for task in dict.fromkeys(r["task"] for r in table):
        points = [r for r in table if r["task"] == task]
        share = np.array([float(r["value"]) for r in points]) / MOST.get(task, 100.0)
        x, y = np.log([float(r["V"]) for r in points]), np.log(1 - share)
        level = np.array([[r["method"] == m for m in methods] for r in points], float)  # (n, methods)
        design = np.column_stack([-x, level])
        found, *_ = np.linalg.lstsq(design, y, rcond=None)
        free = len(y) - design.shape[1]
        noise = ((y - design @ found) ** 2).sum() / free
        error = (noise * np.linalg.inv(design.T @ design)[0, 0]) ** 0.5
        beta, low, high, _ = student_interval(float(found[0]), error, free)
        rows.append({"task": task, "beta": beta, "beta_lo": low, "beta_hi": high, "points": len(y)})
    return sorted(rows, key=lambda row: row["beta"])


def published_latency(device: str = "a100") -> list[dict[str, object]]:
    """First-token times measured by others (LLaVA-1.5-7B, A100) beside our counted floor, a row each.

    The length Q of their prompt is not published. It is inferred from the operations that they publish for
    the uncompressed model, so no millisecond enters the prediction. `passes` counts how often the LLM's
    layers run one after the other before the first token (QueCC's question pass is one more); `beyond_ms` is
    what the floor does not explain.
    """
    there = {(r["method"], int(r["V"]), r["task"]): r["value"] for r in published_rows("replication")}
    Q = _prompt(float(there["none", 576, "TFLOP"]))
    rows = []
    for (method, V, what), value in there.items():
        if what != "ms" or not value or method not in COMPRESSORS:
            continue
        pipe = cost.Pipeline(cost.llm("vicuna-7b"), compressor=COMPRESSORS[method])
        floor_ms = 1e3 * float(cost.latency(pipe, cost.hardware(device), V, Q, q=7)["ttft"])
        part = cost.compressor(pipe.compressor, pipe.tower, V, pipe.llm.d)
        row = {"method": method, "V": V, "Q": Q, "published_ms": float(value), "floor_ms": floor_ms}
        passes = 1 + (pipe.question_pass(part) == "paid")
        rows.append(row | {"passes": passes, "beyond_ms": float(value) - floor_ms})
    return rows


def _prompt(tflop: float) -> int:
    """Text tokens with which the uncompressed model takes so many TFLOP, by our count."""
    pipe = cost.Pipeline(cost.llm("vicuna-7b"), compressor="identity")
    lengths = np.arange(1, 200)
    counted = np.array([float(cost.flops(pipe, 576, Q)) / 1e12 for Q in lengths])
    return int(lengths[np.argmin(np.abs(counted - tflop))])
